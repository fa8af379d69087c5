//! Kills of imports: the point is there, wholly, or nothing of it is to be seen, and the next import works.

use backstay_testing::fixtures::Random;
use backstay_testing::temp_dir;

use crate::calls::{Scene as _, at_calls};
use crate::kill::{Blow, Spread, duration};
use crate::phase::{BACKUP, Disk, Kind, Tally, of_backup};
use crate::site::{Site, Template};

const KILLS: u32 = 30;
const AT_CALLS: usize = 40;
const IMPORT: [&str; 4] = ["import", "in/shop.zip", "--app", "shop"];

/// An archive of an app with files that the vault does not have, made by another machine.
fn archive(site: &Site) {
    let mut random = Random::new(11);
    for n in 0..200 {
        site.world.write(&format!("shop/{}/{n}.txt", n % 9), &random.text(3_000));
    }
    for n in 0..3 {
        site.world.write(&format!("shop/media/{n}.jpg"), &random.bytes(9_000_000));
    }
    site.world.run_at("elsewhere", &["backup", "shop"]).ok();
    let args = ["export", "shop", "--directory", "in", "--name", "shop"];
    site.world.run_at("elsewhere", &args).ok();
}

/// What must hold after a killed import. Gives the phase it was in.
fn settle(site: &mut Site, before: &Disk, blow: Blow) -> &'static str {
    let disk = Disk::of(&site.world);
    let there = !disk.snapshots.is_subset(&before.snapshots);
    site.next_command();
    site.take_note();
    if there {
        site.world.run(&["verify", "shop"]).ok();
        assert_eq!(site.world.points("shop").len(), 1);
    } else {
        let listed = site.world.ok(&["list"]);
        assert!(!listed.contains("shop"), "{listed}");
    }
    let job = site.holds(blow);
    site.world.run(&IMPORT).ok();
    assert_eq!(site.world.points("shop").len(), 1);
    site.world.run(&["restore", "shop", "--directory", "again"]).ok();
    site.world.assert_same(site.world.path("shop"), site.world.path("again"));
    std::fs::remove_dir_all(site.world.path("again")).unwrap();
    of_backup(before, &disk, job.as_deref())
}

#[test]
fn killed_imports() {
    let mut tally = Tally::new(BACKUP);
    let mut template = Template::new(temp_dir(), 9);
    archive(&template.site);
    let mut spread = Spread::new(KILLS, 6);
    while spread.goes_on() {
        for _ in 0..spread.to_measure() {
            template.reset();
            spread.measured(duration(&template.site.world, &IMPORT));
        }
        let before = template.reset();
        let blow = spread.strike(&template.site.world, &IMPORT);
        let phase = settle(&mut template.site, &before, blow);
        tally.add(Kind::Spread, blow, phase);
    }
    at_calls(AT_CALLS, &mut template, &IMPORT, &mut tally, &mut |t, before, blow| {
        settle(&mut t.site, before, blow)
    });
    tally.tell(&format!("import of {:.0} ms", spread.span().as_secs_f64() * 1e3));
}
