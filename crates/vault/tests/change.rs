//! Plans of restores in place, carried out on real folders: what comes out is the point, what is kept is untouched.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod change_support;
mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use backstay_tree::compare::{self, What};
use backstay_vault::change::{Action, Keep, Rules};
use change_support::{World, actions, ops, run_ops};
use proptest::prelude::*;

/// A live tree that was changed since a point was taken.
fn changed(before: impl Fn(&Path), change: impl Fn(&Path)) -> (World, support::Done) {
    let world = World::new();
    before(&world.home);
    let point = world.point();
    change(&world.home);
    (world, point)
}

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn steps_lie_at_the_highest_level_that_differs() {
    let (world, point) = changed(
        |home| {
            for name in
                ["same/x", "gone/deep/x", "gone/y", "both/content", "both/mode", "both/kind", "turned/x"]
            {
                write(home.join(name), name);
            }
            symlink("x", home.join("both/link")).unwrap();
        },
        |home| {
            fs::remove_dir_all(home.join("gone")).unwrap();
            write(home.join("new/deep/x"), "12345");
            write(home.join("new/y"), "12345");
            write(home.join("both/content"), "other");
            support_mode(&home.join("both/mode"), 0o600);
            fs::remove_file(home.join("both/kind")).unwrap();
            write(home.join("both/kind/x"), "123");
            fs::remove_file(home.join("both/link")).unwrap();
            symlink("y", home.join("both/link")).unwrap();
            fs::remove_dir_all(home.join("turned")).unwrap();
            write(home.join("turned"), "a file");
        },
    );
    let inode = |path: &str| fs::symlink_metadata(world.home.join(path)).unwrap().ino();
    let (same, both) = (inode("same/x"), inode("both"));
    let plan = world.plan(&point, &Rules::none());
    assert_eq!(
        actions(&plan),
        [
            ("both/content", Action::Replace),
            ("both/kind", Action::Replace),
            ("both/link", Action::Replace),
            ("gone", Action::Add),
            ("new", Action::Remove),
            ("turned", Action::Replace),
        ]
    );
    let metadata: Vec<_> = plan.metadata.iter().map(|m| m.path.to_str().unwrap()).collect();
    assert_eq!(metadata, ["both/mode", "both", ""]);
    assert_eq!((plan.totals.added.files, plan.totals.added.bytes), (2, 17));
    assert_eq!((plan.totals.removed.files, plan.totals.removed.bytes), (2, 10));
    assert_eq!((plan.totals.changed.steps, plan.totals.changed.files), (4, 3));
    assert_eq!(plan.totals.metadata, 1);
    assert_eq!(plan.totals.stage_bytes, 17 + 12 + 9 + 8);
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<backstay_vault::change::ChangePlan>(&json).unwrap(), plan);

    world.carry_out(&plan, &point);
    world.assert_is(&point);
    assert_eq!((inode("same/x"), inode("both")), (same, both));
    assert!(world.plan(&point, &Rules::none()).is_empty());
}

fn support_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

// --- links

#[test]
fn a_link_that_was_added_goes_and_the_file_stays() {
    let (world, point) = changed(
        |home| write(home.join("a/x"), "text"),
        |home| fs::hard_link(home.join("a/x"), home.join("y")).unwrap(),
    );
    let inode = fs::metadata(world.home.join("a/x")).unwrap().ino();
    let plan = world.plan(&point, &Rules::none());
    assert_eq!(actions(&plan), [("y", Action::Remove)]);
    world.carry_out(&plan, &point);
    world.assert_is(&point);
    assert_eq!(fs::metadata(world.home.join("a/x")).unwrap().ino(), inode);
}

#[test]
fn a_link_that_was_removed_comes_back_as_a_link() {
    let links = |home: &Path| {
        write(home.join("a/x"), "text");
        fs::hard_link(home.join("a/x"), home.join("y")).unwrap();
    };
    let (world, point) = changed(links, |home| fs::remove_file(home.join("y")).unwrap());
    let plan = world.plan(&point, &Rules::none());
    assert_eq!(actions(&plan), [("a/x", Action::Replace), ("y", Action::Add)]);
    assert_eq!(plan.totals.stage_bytes, 4);
    world.carry_out(&plan, &point);
    world.assert_is(&point);
}

#[test]
fn links_that_were_regrouped_are_as_they_were() {
    let make = |home: &Path| {
        for (first, second) in [("a/1", "b/1"), ("a/2", "b/2")] {
            write(home.join(first), "the same text");
            fs::create_dir_all(home.join("b")).unwrap();
            fs::hard_link(home.join(first), home.join(second)).unwrap();
        }
        set_times(home, &["a/1", "a/2"]);
    };
    let (world, point) = changed(make, |home| {
        fs::rename(home.join("b/1"), home.join("b/3")).unwrap();
        fs::rename(home.join("b/2"), home.join("b/1")).unwrap();
        fs::rename(home.join("b/3"), home.join("b/2")).unwrap();
    });
    let plan = world.plan(&point, &Rules::none());
    assert_eq!(plan.steps.len(), 4);
    assert_eq!(plan.totals.stage_bytes, 26);
    world.carry_out(&plan, &point);
    world.assert_is(&point);
}

fn set_times(home: &Path, names: &[&str]) {
    for name in names {
        let file = fs::File::options().write(true).open(home.join(name)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000)).unwrap();
    }
}

#[test]
fn all_names_of_a_file_whose_content_changed_are_replaced_and_those_of_others_are_not() {
    let make = |home: &Path| {
        for (first, second) in [("a/1", "b/1"), ("a/2", "b/2")] {
            write(home.join(first), first);
            fs::create_dir_all(home.join("b")).unwrap();
            fs::hard_link(home.join(first), home.join(second)).unwrap();
        }
    };
    let (world, point) = changed(make, |home| fs::write(home.join("b/1"), "changed").unwrap());
    let plan = world.plan(&point, &Rules::none());
    assert_eq!(actions(&plan), [("a/1", Action::Replace), ("b/1", Action::Replace)]);
    world.carry_out(&plan, &point);
    world.assert_is(&point);
}

#[test]
fn one_file_that_was_two_is_two_again() {
    let make = |home: &Path| {
        for name in ["a", "b", "c"] {
            write(home.join(name), "the same");
        }
        set_times(home, &["a", "b", "c"]);
    };
    let (world, point) = changed(make, |home| {
        for name in ["b", "c"] {
            fs::remove_file(home.join(name)).unwrap();
            fs::hard_link(home.join("a"), home.join(name)).unwrap();
        }
    });
    let plan = world.plan(&point, &Rules::none());
    // One of them may keep the file.
    assert_eq!(actions(&plan), [("b", Action::Replace), ("c", Action::Replace)]);
    world.carry_out(&plan, &point);
    world.assert_is(&point);
}

// --- anything

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// From any tree to any other and back, also from one that was restored.
    #[test]
    fn a_plan_that_is_carried_out_gives_the_point(
        first in ops(5..40), second in ops(0..12), third in ops(0..12),
    ) {
        let world = World::new();
        run_ops(&world.home, &first);
        let one = world.point();
        run_ops(&world.home, &second);
        let two = world.point();
        for point in [&one, &two] {
            world.restore(point, &Rules::none());
            world.assert_is(point);
            prop_assert!(world.plan(point, &Rules::none()).is_empty());
        }
        run_ops(&world.home, &third);
        world.restore(&one, &Rules::none());
        world.assert_is(&one);
    }

    /// With a filter: what it matches is untouched, all else is as in the point.
    #[test]
    fn what_is_kept_is_not_touched(
        first in ops(5..40), second in ops(0..20), keep in proptest::collection::vec("[abc](/[abc]){0,2}", 1..4),
    ) {
        let world = World::new();
        run_ops(&world.home, &first);
        let point = world.point();
        run_ops(&world.home, &second);
        let rule = |path: &Path, is_dir: bool| change_support::keep(&keep, path, is_dir);
        let plan = world.plan(&point, &Rules { keep: &rule, ..Rules::none() });
        prop_assume!(plan.conflicts.is_empty());
        let kept = |path: &Path| path.ancestors().any(|p| rule(p, true) == Keep::Yes);
        let before = change_support::census(&world.home, &kept);
        world.carry_out(&plan, &point);
        let mut after = change_support::census(&world.home, &kept);
        // A file that had another name loses it, which changes its time of change.
        before.iter().filter(|(_, seen)| seen.4.is_none()).for_each(|(path, _)| {
            after.entry(path.clone()).and_modify(|seen| seen.4 = None);
        });
        prop_assert_eq!(&after, &before);
        let expected = world.bring_out(&point);
        let options = compare::Options { hard_links: false, ..compare::Options::default() };
        let holds_kept = |path: &Path| before.keys().any(|k| k.starts_with(path));
        for difference in compare::trees(&world.home, &expected, &options) {
            let held = difference.what == What::OnlyInFirst && holds_kept(&difference.path);
            prop_assert!(kept(&difference.path) || held, "{}", difference);
        }
        for path in change_support::paths(&world.home) {
            let there = fs::symlink_metadata(expected.join(&path)).is_ok();
            prop_assert!(there || kept(&path) || holds_kept(&path), "{} stayed", path.display());
        }
        let again = world.plan(&point, &Rules { keep: &rule, ..Rules::none() });
        prop_assert!(again.is_empty(), "{:?}", again);
    }

    /// Single paths: they are as in the point, and nothing else changes.
    #[test]
    fn only_what_is_selected_changes(first in ops(5..40), second in ops(0..20), pick in any::<prop::sample::Index>()) {
        let world = World::new();
        run_ops(&world.home, &first);
        let point = world.point();
        let all = change_support::paths(&world.home);
        prop_assume!(!all.is_empty());
        let selected = all[pick.index(all.len())].clone();
        run_ops(&world.home, &second);
        let before = world.bring_out(&world.point());
        let rules = Rules { select: Some(std::slice::from_ref(&selected)), ..Rules::none() };
        let plan = world.plan(&point, &rules);
        prop_assume!(plan.conflicts.is_empty());
        world.carry_out(&plan, &point);
        let options = compare::Options { hard_links: false, ..compare::Options::default() };
        let expected = world.bring_out(&point);
        for difference in compare::trees(&world.home, &expected, &options) {
            prop_assert!(!difference.path.starts_with(&selected), "{}", difference);
        }
        for difference in compare::trees(&world.home, &before, &options) {
            let on_the_way = selected.starts_with(&difference.path) && difference.what == What::OnlyInFirst;
            prop_assert!(difference.path.starts_with(&selected) || on_the_way, "{}", difference);
        }
    }
}
