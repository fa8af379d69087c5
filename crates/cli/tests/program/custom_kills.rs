//! Kills of custom backups, spread evenly over the time that one takes.
//!
//! After each kill: what is listed is whole. After the next backup: nothing is left of those that were killed.

use std::collections::{BTreeMap, BTreeSet};

use backstay_testing::Azurite;
use serde_json::Value;

use crate::World;
use crate::custom::names;
use crate::kill::{Spread, duration};

const KILLS: u32 = 150;

fn app(world: &World) {
    for n in 0..200_u32 {
        let bytes: Vec<u8> = (0..20_000_u32).map(|i| (i.wrapping_mul(n + 7) >> 5).to_le_bytes()[0]).collect();
        world.write(&format!("blog/d{}/f{n}", n % 9), &bytes);
    }
}

/// The command that is killed.
fn backup(name: &str) -> [&str; 6] {
    ["backup", "blog", "--container", "shelf", "--name", name]
}

fn listing(world: &World) -> Value {
    world.json(&["list", "--container", "shelf"])
}

fn listed(listing: &Value) -> Vec<String> {
    let customs = listing["custom"].as_array().unwrap();
    customs.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
}

/// Kills backups; `objects` gives the names of all objects of the container, where they can be seen.
fn kill(world: &World, objects: &dyn Fn() -> Vec<String>) {
    world.run(&["backup", "blog"]).ok();
    let mut spread = Spread::new(KILLS, 9);
    let mut hit: BTreeMap<&str, u32> = BTreeMap::new();
    let mut whole = BTreeSet::new();
    let (mut n, mut usual) = (0, 0);
    while spread.goes_on() {
        for _ in 0..spread.to_measure() {
            spread.measured(duration(world, &backup(&format!("usual{usual}"))));
            usual += 1;
        }
        let name = format!("k{n}");
        let blow = spread.strike(world, &backup(&name));
        let list = listing(world);
        // Looked at afterwards: what a service was sent before the kill may still arrive.
        let there = objects();
        let has = |name: &str, ending: &str| there.contains(&format!("{name}.{ending}"));
        let phase = match (blow.late, has(&name, "xml"), has(&name, "zip"), has(&name, "log")) {
            (true, ..) => "too late",
            (_, true, ..) => "after its manifest",
            (_, _, true, _) => "zip without manifest",
            (_, _, _, true) => "writing the zip",
            _ => "before its log",
        };
        *hit.entry(phase).or_default() += 1;
        assert_eq!(list["damaged"].as_array().unwrap().len(), 0, "kill {n}: {list}");
        let now: BTreeSet<String> = listed(&list).into_iter().collect();
        assert!(now.is_superset(&whole), "kill {n}: a backup that was there is gone: {list}");
        assert!(now.iter().all(|b| has(b, "zip") && has(b, "xml") && has(b, "log")), "kill {n}: {list}");
        whole = now;
        if n % 10 == 9 {
            world.run(&backup(&format!("next{n}"))).ok();
            let list = listing(world);
            assert_eq!(list["unfinished"].as_array().unwrap().len(), 0, "kill {n}: {list}");
            let mut expected: Vec<String> = listed(&list)
                .iter()
                .flat_map(|b| ["log", "xml", "zip"].map(|e| format!("{b}.{e}")))
                .collect();
            expected.sort();
            assert_eq!(objects(), expected, "kill {n}: nothing is left behind");
            // Of those that were hit late at least one is looked at to the last byte.
            let last = listed(&list).into_iter().find(|b| b.starts_with('k')).unwrap_or(format!("next{n}"));
            world.run(&["verify", "blog", &last]).ok();
        }
        n += 1;
    }
    println!("a backup takes {:?}; kills: {hit:?}", spread.span());
    for phase in ["before its log", "writing the zip"] {
        assert!(hit.contains_key(phase), "{phase} was never hit: {hit:?}");
    }
    // How long one takes differs from moment to moment on a busy machine: most must be hit, not all.
    assert!(hit.get("too late").copied().unwrap_or(0) < KILLS / 2, "{hit:?}");
    // A backup was whole or is gone: those that are listed verify, one after the other.
    for name in listed(&listing(world)) {
        world.run(&["verify", "blog", &name]).ok();
    }
}

#[test]
fn into_a_folder() {
    let world = World::within(backstay_testing::quick_dir());
    app(&world);
    world.run(&["container", "add", "shelf", "backups", "--create"]).ok();
    let folder = world.path("backups");
    let objects = || names(&folder).into_iter().filter(|n| !n.starts_with(".tmp-")).collect();
    kill(&world, &objects);
    assert!(names(&folder).iter().all(|n| !n.starts_with(".tmp-")), "no file in the making stays");
}

#[test]
fn into_azure() {
    let Some(azurite) = Azurite::start() else { return };
    let world = World::within(backstay_testing::quick_dir());
    app(&world);
    let add = ["container", "add", "shelf", &azurite.place("backups"), "--create"];
    world.run_with("home", &add, Azurite::KEY).ok();
    let backstay_storage::Address::Remote(place) = azurite.place("backups").parse().unwrap() else {
        panic!()
    };
    let key = backstay_storage::Credentials::parse(&place, Azurite::KEY).unwrap();
    let remote = backstay_storage::Remote::open(&place, &key, &backstay_storage::Options::default()).unwrap();
    let objects = || {
        let mut names = Vec::new();
        let mut each = |o: backstay_storage::Object| {
            names.push(o.name);
            Ok(())
        };
        backstay_storage::Storage::list(&remote, "", &mut each).unwrap();
        names.sort();
        names
    };
    kill(&world, &objects);
}
