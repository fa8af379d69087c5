//! Kills of restores over an app, on the disk: at system calls of an app of files; spread over time of one that runs.

use backstay_testing::temp_dir;

use crate::calls::{Scene as _, at_calls};
use crate::kill::{Spread, duration};
use crate::live::{Live, RESTORE, Supervised, Trace, of_restore};
use crate::phase::{Kind, Tally};

const KILLS: u32 = 200;
const AT_CALLS: usize = 120;

#[test]
fn killed_restores() {
    let mut tally = Tally::new(RESTORE);
    let mut live = Live::new(temp_dir(), 0);
    let mut runs = 0;
    at_calls(AT_CALLS, &mut live, &["restore", "blog", "--yes"], &mut tally, &mut |live, before, blow| {
        let left = Trace::of(live, before.side);
        let (side, job) = live.settle(before, &left, blow);
        runs += 1;
        if runs % 3 == 0 {
            live.undo_works(side);
        }
        of_restore(before, &left, job.as_deref())
    });
    drop(live);
    let span = while_it_runs(&mut tally);
    tally.tell(&format!("restore of {span:.0} ms"));
}

/// One restore after the other to the side on which the app is not, with whatever the earlier ones left. Gives how long
/// one takes, in milliseconds.
fn while_it_runs(tally: &mut Tally) -> f64 {
    let mut live = Live::new(temp_dir(), 40);
    let mut side = live.reset().side;
    let app = Supervised::start(&live.world);
    let mut spread = Spread::new(KILLS, 8);
    while spread.goes_on() {
        for _ in 0..spread.to_measure() {
            let point = live.points[1 - side].clone();
            spread.measured(duration(&live.world, &["restore", "blog", &point, "--yes"]));
            side = 1 - side;
        }
        let before = Trace::of(&live, side);
        let point = live.points[1 - side].clone();
        let blow = spread.strike(&live.world, &["restore", "blog", &point, "--yes"]);
        assert!(app.instances() <= 1, "two run right after the kill");
        let left = Trace::of(&live, side);
        let (now, job) = live.settle(&before, &left, blow);
        // On a busy machine what was started is not yet the program that it becomes.
        let begin = std::time::Instant::now();
        while app.instances() == 0 && begin.elapsed().as_secs() < 10 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(app.instances(), 1, "instances after the next command: {left:?}");
        tally.add(Kind::Spread, blow, of_restore(&before, &left, job.as_deref()));
        side = now;
    }
    spread.span().as_secs_f64() * 1e3
}
