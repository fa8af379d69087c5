//! Kills of deletes: on the disk, since in memory nearly all of the time goes into starting the program.

use backstay_testing::temp_dir;

use crate::calls::{Scene as _, at_calls};
use crate::kill::{Blow, Spread, duration};
use crate::phase::{DELETE, Disk, Kind, Tally, of_delete};
use crate::site::{Site, Template};

const KILLS: u32 = 40;
/// Every call, of the number there is now.
const AT_CALLS: usize = 100;

/// The point that is deleted: not the oldest, which the next command works on.
fn victim(site: &Site) -> String {
    site.held[1].0.clone()
}

/// What must hold after a killed delete of the victim. Gives the phase it was in.
fn settle(site: &mut Site, before: &Disk, blow: Blow) -> &'static str {
    let disk = Disk::of(&site.world);
    let there = before.snapshots.is_subset(&disk.snapshots);
    assert_eq!(before.snapshots.len() - disk.snapshots.len(), usize::from(!there), "one snapshot or none");
    let id = victim(site);
    site.next_command();
    site.take_note();
    if there {
        site.world.run(&["verify", "blog", &id]).ok();
        site.world.run(&["delete", "blog", &id, "--yes"]).ok();
        site.take_note();
    }
    assert!(site.held.iter().all(|(held, _)| *held != id), "the point is gone");
    site.world.run(&["show", "blog", &id]).fails("PointNotFound", 4);
    let job = site.holds(blow);
    of_delete(before, &disk, job.as_deref())
}

#[test]
fn killed_deletes() {
    let mut tally = Tally::new(DELETE);
    let mut template = Template::new(temp_dir(), 3);
    let id = victim(&template.site);
    let args = ["delete", "blog", &id, "--yes"];
    let mut spread = Spread::new(KILLS, 4);
    while spread.goes_on() {
        for _ in 0..spread.to_measure() {
            template.reset();
            spread.measured(duration(&template.site.world, &args));
        }
        let before = template.reset();
        let blow = spread.strike(&template.site.world, &args);
        let phase = settle(&mut template.site, &before, blow);
        tally.add(Kind::Spread, blow, phase);
    }
    at_calls(AT_CALLS, &mut template, &args, &mut tally, &mut |t, before, blow| {
        settle(&mut t.site, before, blow)
    });
    tally.tell(&format!("delete of {:.0} ms", spread.span().as_secs_f64() * 1e3));
}
