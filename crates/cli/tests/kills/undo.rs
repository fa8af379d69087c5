//! Kills of undos and of undos of undos, on the disk: at system calls of an app of files; spread over time of one that
//! runs.

use backstay_testing::temp_dir;

use crate::calls::{Scene as _, at_calls};
use crate::kill::{Spread, duration};
use crate::live::{Live, Supervised, Trace, UNDO, of_undo};
use crate::phase::{Kind, Tally};

const KILLS: u32 = 60;
const AT_CALLS: usize = 60;
const ARGS: &[&str] = &["undo", "blog", "--yes"];

#[test]
fn killed_undos() {
    let mut tally = Tally::new(UNDO);
    for done in [1, 2] {
        let mut live = Live::new(temp_dir(), 0);
        live.done = done;
        at_calls(AT_CALLS, &mut live, ARGS, &mut tally, &mut |live, before, blow| {
            let left = Trace::of(live, before.side);
            let (side, job) = live.settle(before, &left, blow);
            live.undo_works(side);
            of_undo(before, &left, job.as_deref())
        });
    }
    let span = while_it_runs(&mut tally);
    tally.tell(&format!("undo of {span:.0} ms"));
}

/// One undo after the other, with whatever the earlier ones left. Gives how long one takes, in milliseconds.
fn while_it_runs(tally: &mut Tally) -> f64 {
    let mut live = Live::new(temp_dir(), 40);
    live.done = 1;
    let mut side = live.reset().side;
    let app = Supervised::start(&live.world);
    let mut spread = Spread::new(KILLS, 9);
    while spread.goes_on() {
        for _ in 0..spread.to_measure() {
            spread.measured(duration(&live.world, ARGS));
            side = 1 - side;
        }
        let before = Trace::of(&live, side);
        let blow = spread.strike(&live.world, ARGS);
        assert!(app.instances() <= 1, "two run right after the kill");
        let left = Trace::of(&live, side);
        let (now, job) = live.settle(&before, &left, blow);
        assert_eq!(app.instances(), 1, "instances after the next command: {left:?}");
        tally.add(Kind::Spread, blow, of_undo(&before, &left, job.as_deref()));
        side = now;
    }
    spread.span().as_secs_f64() * 1e3
}
