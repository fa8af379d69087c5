//! What lies in a home and is not part of the app: other apps, the state, the vault.

use std::fs;

use crate::{World, assert_broken, assert_healed, break_it, canary, facts, fill};

#[test]
fn an_app_in_the_home_of_another_is_not_touched_and_can_be_restored_itself() {
    let world = World::new();
    fill(&world, "outer");
    fill(&world, "outer/sites/inner");
    // The first point of the outer app has the inner one in it: nobody knew of that yet.
    world.run(&["backup", "outer"]).ok();
    world.run(&["backup", "outer/sites/inner"]).ok();
    break_it(&world, "outer");
    break_it(&world, "outer/sites/inner");
    world.write("outer/sites/beside.txt", b"goes");
    let inner = canary(&world.path("outer/sites/inner"));
    let broken = facts(&world.path("outer"));
    world.run(&["restore", "outer", "--yes"]).ok();
    assert_healed(&world, "outer");
    assert_broken(&world, "outer/sites/inner");
    assert!(!world.path("outer/sites/beside.txt").exists());
    assert_eq!(canary(&world.path("outer/sites/inner")), inner);
    world.run(&["undo", "outer", "--yes"]).ok();
    assert_eq!(facts(&world.path("outer")), broken);
    assert_eq!(canary(&world.path("outer/sites/inner")), inner);

    world.run(&["restore", "inner", "--yes"]).ok();
    assert_healed(&world, "outer/sites/inner");
    assert_broken(&world, "outer");
    assert!(world.path("outer/sites/beside.txt").exists());
    // Both at once, each taken back in any order.
    world.run(&["restore", "outer", "--yes"]).ok();
    world.run(&["undo", "inner", "--yes"]).ok();
    assert_healed(&world, "outer");
    assert_broken(&world, "outer/sites/inner");
    world.run(&["undo", "outer", "--yes"]).ok();
    assert_broken(&world, "outer");
    assert_eq!(fs::read(world.path("outer/sites/beside.txt")).unwrap(), b"goes");
}

#[test]
fn the_workplace_of_an_inner_app_is_not_touched_by_the_outer() {
    let world = World::new();
    fill(&world, "outer");
    world.run(&["backup", "outer"]).ok();
    fill(&world, "outer/inner");
    world.run(&["backup", "outer/inner"]).ok();
    break_it(&world, "outer/inner");
    // Its workplace lies beside it, and that is in the outer home.
    world.run(&["restore", "inner", "--yes"]).ok();
    break_it(&world, "outer");
    world.run(&["restore", "outer", "--yes"]).ok();
    assert_healed(&world, "outer");
    assert_healed(&world, "outer/inner");
    let undone = world.json(&["undo", "inner", "--yes"]);
    assert_eq!(undone["counts"]["files"], 0, "its journal is still good: {undone:#}");
    assert_broken(&world, "outer/inner");
}

#[test]
fn an_inner_app_the_outer_point_does_not_have_keeps_its_way() {
    let world = World::new();
    fill(&world, "outer");
    world.run(&["backup", "outer"]).ok();
    fill(&world, "outer/new/deep/inner");
    world.run(&["backup", "outer/new/deep/inner"]).ok();
    break_it(&world, "outer");
    let inner = canary(&world.path("outer/new/deep/inner"));
    world.run(&["restore", "outer", "--yes"]).ok();
    assert_healed(&world, "outer");
    assert_eq!(canary(&world.path("outer/new/deep/inner")), inner);
    world.run(&["undo", "outer", "--yes"]).ok();
    assert_broken(&world, "outer");
    assert_eq!(canary(&world.path("outer/new/deep/inner")), inner);
}

#[test]
fn the_state_and_the_vault_in_the_home_survive() {
    for place in ["blog/var/backstay", "blog/old-state"] {
        let world = World::new();
        fill(&world, "blog");
        let run = |args: &[&str]| world.run_at(place, args);
        // The point has neither: they are left out of it.
        run(&["backup", "blog"]).ok();
        let healed = leave_out(facts(&world.path("blog")), place);
        break_it(&world, "blog");
        let broken = leave_out(facts(&world.path("blog")), place);
        let secrets = fs::read(world.path(place).join("secrets.json")).unwrap();
        for (words, wanted) in
            [("restore", &healed), ("undo", &broken), ("undo", &healed), ("restore", &healed)]
        {
            run(&[words, "blog", "--yes"]).ok();
            assert_eq!(&leave_out(facts(&world.path("blog")), place), wanted, "{words}, {place}");
        }
        assert_eq!(fs::read(world.path(place).join("secrets.json")).unwrap(), secrets);
        run(&["vault", "check", "--read-data"]).ok();
        run(&["vault", "prune"]).ok();
        run(&["restore", "blog", "--directory", "out"]).ok();
    }
}

/// Without the state and the times of the folders on the way to it.
fn leave_out(mut facts: crate::Facts, place: &str) -> crate::Facts {
    let state = place.strip_prefix("blog/").unwrap();
    facts.retain(|path, _| !path.starts_with(state) && !std::path::Path::new(state).starts_with(path));
    facts
}

#[test]
fn a_vault_in_the_home_survives() {
    let world = World::new();
    fill(&world, "blog");
    world.run(&["backup", "blog", "--vault", "blog/backups/vault"]).ok();
    world.run(&["vault", "check", "--vault", "blog/backups/vault"]).ok();
    break_it(&world, "blog");
    world.write("blog/backups/old.tar", b"goes");
    for (words, healed) in [("restore", true), ("undo", false), ("undo", true)] {
        world.run(&[words, "blog", "--yes", "--vault", "blog/backups/vault"]).ok();
        if healed {
            assert_healed(&world, "blog");
        } else {
            assert_broken(&world, "blog");
        }
        assert_eq!(world.path("blog/backups/old.tar").exists(), !healed);
        world.run(&["vault", "check", "--read-data", "--vault", "blog/backups/vault"]).ok();
    }
}

#[test]
fn a_home_around_the_whole_state_can_be_restored_from_outside_too() {
    // The folder of all sites is an app itself, and each site is one.
    let world = World::new();
    for site in ["a", "b", "c"] {
        fill(&world, &format!("srv/{site}"));
        world.run(&["backup", &format!("srv/{site}")]).ok();
    }
    world.write("srv/nginx.conf", b"then");
    world.run(&["backup", "srv"]).ok();
    world.write("srv/nginx.conf", b"now");
    let sites = || ["a", "b", "c"].map(|site| canary(&world.path("srv").join(site)));
    for site in ["a", "b"] {
        break_it(&world, &format!("srv/{site}"));
        world.run(&["restore", site, "--yes"]).ok();
    }
    let before = sites();
    world.run(&["restore", "srv", "--yes"]).ok();
    assert_eq!(fs::read(world.path("srv/nginx.conf")).unwrap(), b"then");
    assert_eq!(sites(), before);
    for site in ["a", "b"] {
        world.run(&["undo", site, "--yes"]).ok();
        assert_broken(&world, &format!("srv/{site}"));
    }
}
