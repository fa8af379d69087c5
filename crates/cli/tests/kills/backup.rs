//! Kills of backups: one after the other on one vault, with whatever the earlier ones left in it.

use backstay_testing::quick_dir;

use crate::calls::at_calls;
use crate::kill::{Blow, Spread, duration};
use crate::phase::{BACKUP, Disk, Kind, Tally, of_backup};
use crate::site::{Site, Template};

const KILLS: u32 = 200;
/// Every call, of the number there is now.
const AT_CALLS: usize = 100;
/// Bytes of each of the large files that are new every time: enough for packs to be stored while files are read.
const MEDIA: usize = 18_000_000;

/// What must hold after a killed backup. Gives the phase it was in.
fn settle(site: &mut Site, before: &Disk, blow: Blow) -> &'static str {
    let disk = Disk::of(&site.world);
    let taken = !disk.snapshots.is_subset(&before.snapshots);
    let first = site.next_command();
    let new = site.take_note();
    let expected = usize::from(taken) + usize::from(first == "backup blog");
    assert_eq!(new, expected, "points after a kill and `{first}`");
    let job = site.holds(blow);
    of_backup(before, &disk, job.as_deref())
}

#[test]
fn killed_backups() {
    let mut tally = Tally::new(BACKUP);
    let mut template = Template::new(quick_dir(), 7);
    at_calls(AT_CALLS, &mut template, &["backup", "blog"], &mut tally, &mut |t, before, blow| {
        settle(&mut t.site, before, blow)
    });
    drop(template);
    let mut site = Site::new(quick_dir(), 1, MEDIA);
    let mut spread = Spread::new(KILLS, 2);
    while spread.goes_on() {
        for _ in 0..spread.to_measure() {
            site.change();
            spread.measured(duration(&site.world, &["backup", "blog"]));
            site.take_note();
        }
        site.tidy();
        site.change();
        let before = Disk::of(&site.world);
        let blow = spread.strike(&site.world, &["backup", "blog"]);
        let phase = settle(&mut site, &before, blow);
        tally.add(Kind::Spread, blow, phase);
    }
    site.tidy();
    site.world.run(&["backup", "blog"]).ok();
    site.take_note();
    site.restore_all();
    site.world.run(&["vault", "prune"]).ok();
    site.world.run(&["vault", "check", "--read-data"]).ok();
    site.restore_all();
    let disk = Disk::of(&site.world);
    assert!(disk.locks.is_empty() && disk.making.is_empty(), "{disk:?}");
    tally.tell(&format!("backup of {:.0} ms", spread.span().as_secs_f64() * 1e3));
}
