//! Kills of prunes.

use backstay_testing::quick_dir;

use crate::calls::{Scene as _, at_calls};
use crate::kill::{Blow, Spread, duration};
use crate::phase::{Disk, Kind, PRUNE, Tally, of_prune};
use crate::site::Template;

const KILLS: u32 = 60;
/// Every call, of the number there is now.
const AT_CALLS: usize = 100;

/// What must hold after a killed prune. Gives the phase it was in.
fn settle(template: &mut Template, before: &Disk, blow: Blow) -> &'static str {
    let site = &mut template.site;
    let disk = Disk::of(&site.world);
    assert_eq!(before.snapshots, disk.snapshots, "a prune deletes no point");
    let first = site.next_command();
    assert_eq!(site.take_note(), usize::from(first == "backup blog"));
    let job = site.holds(blow);
    // The next one finishes the work: nothing that nobody needs stays for ever.
    site.world.run(&["vault", "prune"]).ok();
    let plan = &site.world.json(&["vault", "prune", "--dry-run"])["plan"];
    assert_eq!(plan["freed_bytes"], 0, "{plan}");
    let packs = Disk::of(&site.world).packs;
    assert!(template.going.is_disjoint(&packs), "packs stay that nobody needs");
    of_prune(before, &disk, &template.going, job.as_deref())
}

#[test]
fn killed_prunes() {
    let mut tally = Tally::new(PRUNE);
    let mut template = Template::new(quick_dir(), 5);
    let args = ["vault", "prune"];
    let mut spread = Spread::new(KILLS, 6);
    while spread.goes_on() {
        for _ in 0..spread.to_measure() {
            template.reset();
            spread.measured(duration(&template.site.world, &args));
        }
        let before = template.reset();
        let blow = spread.strike(&template.site.world, &args);
        let phase = settle(&mut template, &before, blow);
        tally.add(Kind::Spread, blow, phase);
    }
    at_calls(AT_CALLS, &mut template, &args, &mut tally, &mut settle);
    tally.tell(&format!("prune of {:.0} ms", spread.span().as_secs_f64() * 1e3));
}
