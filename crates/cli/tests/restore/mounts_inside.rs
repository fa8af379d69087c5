//! Mounts in a home, and a home that is one; disks that are full.

use std::fs;
use std::path::Path;

use crate::mounts::{alone, small_disk, unmount};
use crate::{
    World, assert_broken, assert_healed, break_it, broken_blog, canary, copy, facts, fill, mounts,
    no_workplace,
};

#[test]
fn a_mount_the_point_has_too_is_left_alone() {
    alone(|| {
        let world = World::with_blog();
        fill(&world, "blog");
        fs::create_dir(world.path("blog/uploads")).unwrap();
        mounts::tmpfs(&world.path("blog/uploads"));
        world.write("blog/uploads/a/photo.jpg", b"precious");
        world.run(&["backup", "blog"]).ok();
        world.write("blog/uploads/a/later.jpg", b"precious too");
        break_it(&world, "blog");
        let kept = canary(&world.path("blog/uploads"));
        let broken = facts(&world.path("blog"));
        for healed in [true, false, true] {
            let words = if healed { "restore" } else { "undo" };
            // The first undo and the second go back and forth.
            world.run(&[words, "blog", "--yes"]).ok();
            assert_eq!(canary(&world.path("blog/uploads")), kept);
            if healed {
                assert_healed(&world, "blog");
            } else {
                assert_eq!(facts(&world.path("blog")), broken);
            }
        }
    });
}

#[test]
fn a_mount_the_point_does_not_have_is_left_alone_with_the_way_to_it() {
    alone(|| {
        let world = broken_blog();
        fs::create_dir_all(world.path("blog/extra/deep/data")).unwrap();
        world.write("blog/extra/deep/goes.txt", b"goes");
        mounts::tmpfs(&world.path("blog/extra/deep/data"));
        world.write("blog/extra/deep/data/db/table", b"rows");
        let kept = canary(&world.path("blog/extra/deep/data"));
        let broken = facts(&world.path("blog"));
        world.run(&["restore", "blog", "--yes"]).ok();
        assert_healed(&world, "blog");
        assert!(!world.path("blog/extra/deep/goes.txt").exists(), "what is beside it goes");
        assert_eq!(canary(&world.path("blog/extra/deep/data")), kept);
        world.run(&["undo", "blog", "--yes"]).ok();
        assert_eq!(facts(&world.path("blog")), broken);
        assert_eq!(canary(&world.path("blog/extra/deep/data")), kept);
    });
}

#[test]
fn bind_mounts_of_the_same_disk_are_left_alone_and_what_is_below_them() {
    alone(|| {
        let world = World::with_blog();
        fill(&world, "blog");
        world.write("blog/shared/below.txt", b"below the mount");
        world.write("blog/config.php", b"of the image");
        world.run(&["backup", "blog"]).ok();
        break_it(&world, "blog");
        world.write("blog/shared/below2.txt", b"new below the mount");
        world.write("blog/config.php", b"below the mounted file");
        let below = canary(&world.path("blog/shared"));
        world.write("elsewhere/data.txt", b"of another app");
        world.write("secrets/config.php", b"mounted");
        mounts::bind(&world.path("elsewhere"), &world.path("blog/shared"));
        mounts::bind(&world.path("secrets/config.php"), &world.path("blog/config.php"));
        let outside = (canary(&world.path("elsewhere")), canary(&world.path("secrets")));
        let look = || (canary(&world.path("elsewhere")), canary(&world.path("secrets")));
        for words in ["restore", "undo", "undo"] {
            let ran = world.run(&[words, "blog", "--yes"]);
            assert_eq!(look(), outside, "{ran:?}");
            ran.ok();
        }
        assert_healed(&world, "blog");
        assert_eq!(fs::read(world.path("blog/shared/data.txt")).unwrap(), b"of another app");
        assert_eq!(fs::read(world.path("blog/config.php")).unwrap(), b"mounted");
        unmount(&world.path("blog/shared"));
        unmount(&world.path("blog/config.php"));
        assert_eq!(canary(&world.path("blog/shared")), below);
        assert_eq!(fs::read(world.path("blog/config.php")).unwrap(), b"below the mounted file");
    });
}

#[test]
fn a_mount_where_the_point_has_a_file_is_never_lost() {
    alone(|| {
        let world = World::with_blog();
        fill(&world, "blog");
        world.write("blog/data", b"was a file");
        world.write("blog/up/data", b"was a file below a file");
        world.run(&["backup", "blog"]).ok();
        break_it(&world, "blog");
        fs::remove_file(world.path("blog/data")).unwrap();
        fs::create_dir(world.path("blog/data")).unwrap();
        mounts::tmpfs(&world.path("blog/data"));
        world.write("blog/data/db/table", b"rows");
        let broken = canary(&world.path("blog"));
        let ran = world.run(&["restore", "blog", "--yes"]);
        assert_eq!(canary(&world.path("blog/data")).len(), 3);
        assert_eq!(fs::read(world.path("blog/data/db/table")).unwrap(), b"rows");
        // Either the rest is at the point, or nothing has changed at all.
        if ran.status == 0 {
            assert_healed(&world, "blog");
        } else {
            assert_eq!(ran.status, 1, "{ran:?}");
            assert_eq!(canary(&world.path("blog")), broken);
            no_workplace(&world.path("blog"));
        }
        println!("{}{}", ran.stdout, ran.stderr);
    });
}

#[test]
fn a_mount_below_a_folder_that_the_point_has_as_a_file_refuses_the_whole() {
    alone(|| {
        let world = World::with_blog();
        fill(&world, "blog");
        world.write("blog/data", b"was a file");
        world.run(&["backup", "blog"]).ok();
        break_it(&world, "blog");
        fs::remove_file(world.path("blog/data")).unwrap();
        fs::create_dir_all(world.path("blog/data/volumes/one")).unwrap();
        mounts::tmpfs(&world.path("blog/data/volumes/one"));
        world.write("blog/data/volumes/one/table", b"rows");
        let broken = canary(&world.path("blog"));
        world.run(&["restore", "blog", "--dry-run"]);
        world.run(&["restore", "blog", "--yes"]).fails("Conflict", 1);
        assert_eq!(canary(&world.path("blog")), broken);
        no_workplace(&world.path("blog"));
        // What is not in the way can be restored.
        world.run(&["restore", "blog", "--yes", "--path", "index.html", "--path", "old"]).ok();
        assert_eq!(fs::read(world.path("blog/old/gone.txt")).unwrap(), b"was there\n");
    });
}

#[test]
fn a_mount_hidden_in_a_folder_that_goes_keeps_its_folder() {
    // Mounts on mounts, and names that are written with escapes in the kernel's table.
    alone(|| {
        let world = broken_blog();
        for name in ["new/with space", "new/tab\there", "new/back\\slash", "new/line\nbreak", "new/#hash"] {
            let at = world.path("blog").join(name);
            fs::create_dir_all(&at).unwrap();
            mounts::tmpfs(&at);
            fs::write(at.join("kept"), name).unwrap();
            fs::create_dir(at.join("inner")).unwrap();
            mounts::tmpfs(&at.join("inner"));
            fs::write(at.join("inner/kept"), "twice").unwrap();
        }
        let kept = canary(&world.path("blog/new/line\nbreak"));
        let ran = world.run(&["restore", "blog", "--yes"]).ok();
        assert_healed(&world, "blog");
        for name in ["new/with space", "new/tab\there", "new/back\\slash", "new/line\nbreak", "new/#hash"] {
            let at = world.path("blog").join(name);
            assert_eq!(fs::read(at.join("kept")).unwrap(), name.as_bytes(), "{ran:?}");
            assert_eq!(fs::read(at.join("inner/kept")).unwrap(), b"twice", "{ran:?}");
        }
        assert_eq!(canary(&world.path("blog/new/line\nbreak")), kept);
    });
}

#[test]
fn a_home_that_is_a_bind_mount() {
    alone(|| {
        let world = World::new();
        fs::create_dir_all(world.path("container/app")).unwrap();
        world.write("host/data/x", b"beside");
        fs::create_dir_all(world.path("host/blog")).unwrap();
        mounts::bind(&world.path("host/blog"), &world.path("container/app"));
        fill(&world, "container/app");
        world.run(&["backup", "container/app"]).ok();
        let healed = facts(&world.path("host/blog"));
        break_it(&world, "container/app");
        let broken = facts(&world.path("host/blog"));
        let beside = canary(&world.path("host/data"));
        for (words, wanted) in [("restore", &healed), ("undo", &broken), ("undo", &healed), ("undo", &broken)]
        {
            world.run(&[words, "app", "--yes"]).ok();
            assert_eq!(&facts(&world.path("host/blog")), wanted, "{words}");
            assert_eq!(&facts(&world.path("container/app")), wanted, "{words}");
        }
        // The next restore clears what the last has kept: one workplace at most.
        let left = fs::read_dir(world.path("host/blog")).unwrap().flatten();
        let left = left.filter(|e| e.file_name().to_string_lossy().starts_with(".backstay-")).count();
        assert_eq!(left, 1, "one side is kept for the next undo");
        assert_eq!(canary(&world.path("host/data")), beside);
        // A backup does not take it in.
        world.run(&["backup", "container/app"]).ok();
        assert!(!world.ok(&["files", "app"]).contains(".backstay-"));
    });
}

#[test]
fn a_disk_too_small_for_the_new_beside_the_old_changes_nothing() {
    alone(|| {
        let world = World::new();
        small_disk(&world.path("disk"), "4m");
        fill(&world, "disk/blog");
        let mut random = backstay_testing::fixtures::Random::new(7);
        world.write("disk/blog/big.bin", &random.bytes(2_000_000));
        world.run(&["backup", "disk/blog"]).ok();
        break_it(&world, "disk/blog");
        world.write("disk/blog/big.bin", &random.bytes(2_500_000));
        let mut broken = canary(&world.path("disk/blog"));
        // The workplace was inside, so the home itself has another time of change.
        broken.remove(Path::new(""));
        world.run(&["restore", "blog", "--yes"]).fails("TargetFull", 1);
        let mut now = canary(&world.path("disk/blog"));
        now.remove(Path::new(""));
        assert_eq!(now, broken);
        no_workplace(&world.path("disk/blog"));
        fs::remove_file(world.path("disk/blog/big.bin")).unwrap();
        world.run(&["restore", "blog", "--yes"]).ok();
        assert_healed(&world, "disk/blog");
    });
}

#[test]
fn a_disk_that_becomes_full_while_staging_changes_nothing() {
    alone(|| {
        let world = World::new();
        small_disk(&world.path("disk"), "2m");
        fill(&world, "disk/blog");
        // A byte each that costs a page each: the sum of the sizes does not tell.
        for n in 0..300 {
            world.write(&format!("disk/blog/small/{n}"), b"x");
        }
        world.run(&["backup", "disk/blog"]).ok();
        copy(&world.path("disk/blog"), &world.path("before"));
        break_it(&world, "disk/blog");
        for n in 0..300 {
            world.write(&format!("disk/blog/small/{n}"), b"y");
        }
        let mut broken = canary(&world.path("disk/blog"));
        // The workplace was inside, so the home itself has another time of change.
        broken.remove(Path::new(""));
        world.run(&["restore", "blog", "--yes"]).fails("TargetFull", 1);
        let mut now = canary(&world.path("disk/blog"));
        now.remove(Path::new(""));
        assert_eq!(now, broken);
        assert_broken(&world, "disk/blog");
        no_workplace(&world.path("disk/blog"));
        assert_eq!(fs::read_dir(world.path("home/jobs")).unwrap().count(), 0, "no journal is left");
        // With room it works, and the next commands find nothing to finish.
        fs::remove_dir_all(world.path("disk/blog/small")).unwrap();
        world.run(&["restore", "blog", "--yes"]).ok();
        world.assert_same(world.path("before"), world.path("disk/blog"));
    });
}
