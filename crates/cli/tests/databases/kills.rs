//! Restores with databases, killed all over: afterwards files and both databases are on one side, whatever was going on.
//!
//! `BACKSTAY_KILLS` says how many; by default a few, so that the whole takes a minute.

use std::collections::BTreeMap;

use crate::Shop;
use crate::kill::{Spread, duration};

const KILLS: u32 = 24;

#[test]
fn killed_restores_with_databases_leave_one_side() {
    let kills = std::env::var("BACKSTAY_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    let shop = Shop::new();
    let mut points = BTreeMap::new();
    for version in ["A", "B"] {
        shop.set(version);
        points.insert(version.to_owned(), shop.backup());
    }
    let content: BTreeMap<String, Vec<String>> = ["A", "B"]
        .map(|version| {
            shop.world.ok(&["restore", "shop", &points[version], "--with-databases", "--yes"]);
            (version.to_owned(), shop.content())
        })
        .into();
    let mut now = "B".to_owned();
    let other = |now: &str| if now == "A" { "B".to_owned() } else { "A".to_owned() };
    let mut spread = Spread::new(kills, 3);
    let mut tally: BTreeMap<&str, u32> = BTreeMap::new();
    let mut number = 0;
    while spread.goes_on() {
        for _ in 0..spread.to_measure().min(3) {
            let to = other(&now);
            spread.measured(duration(
                &shop.world,
                &["restore", "shop", &points[&to], "--with-databases", "--yes"],
            ));
            now = to;
        }
        let to = other(&now);
        let blow =
            spread.strike(&shop.world, &["restore", "shop", &points[&to], "--with-databases", "--yes"]);
        let phase = phase(&shop, blow.late);
        *tally.entry(phase).or_default() += 1;
        // Any command goes on with what was left.
        shop.world.ok(&["job", "list"]);
        let [files, pg, maria] = shop.versions();
        assert!(
            files == pg && pg == maria,
            "files {files}, PostgreSQL {pg}, MariaDB {maria} after a kill {phase}"
        );
        assert!(files == now || files == to);
        shop.assert_content(&content[&files], &format!("after a kill {phase}"));
        assert_eq!(shop.left(), "", "after a kill {phase}");
        now = files;
        number += 1;
        if number % 8 == 0 {
            let before = shop.versions();
            shop.world.ok(&["undo", "shop", "--yes"]);
            shop.world.ok(&["undo", "shop", "--yes"]);
            assert_eq!(shop.versions(), before);
        }
    }
    println!("restores of {:.0} ms, killed: {tally:?}", spread.span().as_secs_f64() * 1e3);
    shop.world.ok(&["vault", "check"]);
}

/// What a kill has met, as what it has left tells.
fn phase(shop: &Shop, late: bool) -> &'static str {
    let has = |folder: &str| {
        let entries = std::fs::read_dir(shop.world.path("home").join(folder)).into_iter().flatten().flatten();
        entries.count() > 0
    };
    let left = shop.left();
    let journal =
        std::fs::read_dir(shop.world.path("home/jobs")).into_iter().flatten().flatten().any(|job| {
            job.path().join("journal.json").exists()
                && !std::fs::read_to_string(job.path().join("state.json"))
                    .unwrap_or_default()
                    .contains("losed")
        });
    match (late, has("exchanges"), left.contains("_old"), journal) {
        (true, ..) => "too late",
        (_, false, ..) => "before the note or after the end",
        (_, true, false, false) => "filling, or staging files",
        (_, true, false, true) => "committed, nothing exchanged yet",
        (_, true, true, true) => "in the exchange",
        (_, true, true, false) => "after the close",
    }
}
