//! What a `_backup.filter` keeps through a restore.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{World, assert_broken, assert_healed, break_it, broken_blog, canary, facts, no_workplace};

fn kept(plan: &serde_json::Value) -> Vec<String> {
    let kept = plan["kept"].as_array().cloned().unwrap_or_default();
    let mut paths: Vec<_> = kept.iter().map(|k| k["path"].as_str().unwrap().to_owned()).collect();
    paths.sort();
    paths
}

#[test]
fn without_a_filter_all_that_the_point_does_not_have_goes() {
    let world = broken_blog();
    world.write("blog/site/wwwroot/Images/brand.png", b"new");
    world.run(&["restore", "blog", "--yes"]).ok();
    world.assert_same(world.path("before"), world.path("blog"));
}

#[test]
fn what_the_filter_in_the_target_names_stays_as_it_is() {
    let world = World::with_blog();
    crate::fill(&world, "blog");
    let www = "blog/site/wwwroot";
    for (path, text) in [
        ("Images/brand.png", "brand then"),
        ("Images/2014/a", "2014 then"),
        ("Images/2015/a", "2015 then"),
        ("index.php", "then"),
    ] {
        world.write(&format!("{www}/{path}"), text.as_bytes());
    }
    world.run(&["backup", "blog"]).ok();
    break_it(&world, "blog");
    let lines = b"\\site\\wwwroot\\Images\\brand.png\r\n\\site\\wwwroot\\Images\\2014\r\n\\site\\wwwroot\\Images\\2013\r\n";
    world.write(&format!("{www}/_backup.filter"), lines);
    for (path, text) in [
        ("Images/brand.png", "brand now"),
        ("Images/2013/x", "2013 now, not in the point"),
        ("Images/2014/a", "2014 now"),
        ("Images/2014/b", "2014 now, not in the point"),
        ("Images/2015/a", "2015 now"),
        ("Images/2015/b", "2015 now, not in the point"),
        ("Images/2016/a", "2016 now, not in the point"),
        ("index.php", "now"),
    ] {
        world.write(&format!("{www}/{path}"), text.as_bytes());
    }
    let stays =
        || ["Images/brand.png", "Images/2013", "Images/2014"].map(|path| canary(&world.path(www).join(path)));
    let before = (stays(), facts(&world.path("blog")));
    let plan = world.json(&["restore", "blog", "--dry-run"]);
    let images =
        |names: &[&str]| names.iter().map(|n| format!("site/wwwroot/Images/{n}")).collect::<Vec<_>>();
    let mut stay = images(&["2013", "2014", "brand.png"]);
    stay.push("site/wwwroot/_backup.filter".to_owned());
    assert_eq!(kept(&plan), stay, "{plan:#}");
    assert_eq!(plan["filter"].as_array().unwrap().len(), 3, "{plan:#}");
    let text = world.ok(&["restore", "blog", "--dry-run"]);
    assert!(text.contains("site/wwwroot/Images/2014"), "{text}");
    world.run(&["restore", "blog", "--yes"]).ok();
    assert_healed(&world, "blog");
    assert_eq!(stays(), before.0);
    let read = |path: &str| fs::read_to_string(world.path(www).join(path)).ok();
    assert_eq!(read("Images/2015/a").as_deref(), Some("2015 then"));
    assert_eq!(read("index.php").as_deref(), Some("then"));
    assert_eq!((read("Images/2015/b"), read("Images/2016/a")), (None, None), "what no filter names goes");
    world.run(&["undo", "blog", "--yes"]).ok();
    assert_eq!(facts(&world.path("blog")), before.1);
    assert_eq!(stays(), before.0);
}

#[test]
fn a_folder_goes_around_what_is_kept_in_it() {
    let world = broken_blog();
    world.write("blog/_backup.filter", b"/new/cache/**\n**/*.log\n");
    for path in ["new/cache/a/b", "new/cache/c", "new/x/y/keep.log", "new/x/y/goes.txt", "new/z/goes.txt"] {
        world.write(&format!("blog/{path}"), path.as_bytes());
    }
    let broken = facts(&world.path("blog"));
    let filter = canary(&world.path("blog/_backup.filter"));
    world.run(&["restore", "blog", "--yes"]).ok();
    // The point has no filter: this one stays, so that what it names is kept the next time too.
    assert_eq!(canary(&world.path("blog/_backup.filter")), filter);
    assert_eq!(world.json(&["restore", "blog", "--dry-run"])["steps"], serde_json::json!([]));
    for (path, there) in [
        ("new/cache/a/b", true),
        ("new/cache/c", true),
        ("new/x/y/keep.log", true),
        ("new/x/y/goes.txt", false),
        ("new/z", false),
        ("new/a", false),
        ("shell.php", false),
    ] {
        assert_eq!(world.path("blog").join(path).exists(), there, "{path}");
    }
    world.run(&["undo", "blog", "--yes"]).ok();
    assert_eq!(facts(&world.path("blog")), broken);
}

#[test]
fn a_filter_that_a_restore_has_brought_goes_with_its_undo() {
    let world = World::with_blog();
    world.write("blog/_backup.filter", b"/cache\n");
    world.run(&["backup", "blog"]).ok();
    std::fs::remove_file(world.path("blog/_backup.filter")).unwrap();
    world.write("blog/cache/x", b"the filter that comes does not keep it");
    let now = facts(&world.path("blog"));
    world.run(&["restore", "blog", "--yes"]).ok();
    assert!(world.path("blog/_backup.filter").exists());
    // By the journal, and where the app has written since, by the safety point.
    for writes in [false, true] {
        if writes {
            world.run(&["restore", "blog", "--yes"]).ok();
            world.write("blog/index.html", b"written since");
        }
        world.run(&["undo", "blog", "--yes"]).ok();
        // Also what the filter names: it was no filter when the restore took it away.
        assert_eq!(facts(&world.path("blog")), now, "written since: {writes}");
    }
}

#[test]
fn a_filter_in_wwwroot_stays_only_where_the_point_has_that_folder() {
    let world = World::with_blog();
    world.write("blog/site/wwwroot/index.php", b"then");
    world.run(&["backup", "blog"]).ok();
    world.write("blog/site/wwwroot/_backup.filter", b"/site/wwwroot/up\n");
    world.write("blog/site/wwwroot/up/x", b"x");
    world.write("blog/site/wwwroot/index.php", b"now");
    for _ in 0..2 {
        world.run(&["restore", "blog", "--yes"]).ok();
        assert_eq!(fs::read(world.path("blog/site/wwwroot/index.php")).unwrap(), b"then");
        assert_eq!(fs::read(world.path("blog/site/wwwroot/up/x")).unwrap(), b"x");
        assert!(world.path("blog/site/wwwroot/_backup.filter").exists());
    }
    // To a point from before there was such a folder.
    let world = World::with_blog();
    world.write("blog/site", b"a file");
    world.run(&["backup", "blog"]).ok();
    fs::remove_file(world.path("blog/site")).unwrap();
    world.write("blog/site/wwwroot/_backup.filter", b"# nothing\n");
    world.run(&["restore", "blog", "--yes"]).ok();
    assert_eq!(fs::read(world.path("blog/site")).unwrap(), b"a file");
}

#[test]
fn a_filter_that_cannot_be_obeyed_refuses_rather_than_deletes() {
    let world = broken_blog();
    world.write("rules", b"new\n");
    for make in ["link", "large", "folder"] {
        let at = world.path("blog/_backup.filter");
        match make {
            "link" => std::os::unix::fs::symlink("../rules", &at).unwrap(),
            "large" => fs::write(&at, vec![b'a'; 2 << 20]).unwrap(),
            _ => fs::create_dir(&at).unwrap(),
        }
        let broken = canary(&world.path("blog"));
        world.run(&["restore", "blog", "--yes"]).fails("FilterUnusable", 1);
        world.run(&["restore", "blog", "--dry-run"]).fails("FilterUnusable", 1);
        assert_eq!(canary(&world.path("blog")), broken, "{make}");
        assert_broken(&world, "blog");
        no_workplace(&world.path("blog"));
        if make == "folder" { fs::remove_dir(&at).unwrap() } else { fs::remove_file(&at).unwrap() }
    }
    world.run(&["restore", "blog", "--yes"]).ok();
    world.assert_same(world.path("before"), world.path("blog"));
}

#[test]
fn an_app_that_keeps_writing_where_the_filter_says_loses_nothing() {
    let world = World::with_blog();
    crate::fill(&world, "blog");
    world.write("blog/_backup.filter", b"/logs\n/new/uploads\n");
    world.run(&["backup", "blog"]).ok();
    break_it(&world, "blog");
    world.write("blog/logs/app.log", b"");
    world.write("blog/new/uploads/first", b"first");
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::Write as _;
            let mut log = fs::OpenOptions::new().append(true).open(world.path("blog/logs/app.log")).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let n = written.load(Ordering::Relaxed);
                writeln!(log, "line {n}").unwrap();
                fs::write(world.path("blog/new/uploads").join(format!("up{n}")), n.to_string()).unwrap();
                written.store(n + 1, Ordering::Relaxed);
                std::thread::yield_now();
                if n > 3000 {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
            }
        });
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for words in ["restore", "undo", "undo", "undo"] {
                let ran = world.run(&[words, "blog", "--yes"]);
                assert!(matches!(ran.status, 0 | 3), "{ran:?}");
                match words {
                    "restore" => assert_healed(&world, "blog"),
                    _ => assert!(world.path("blog/logs/app.log").exists()),
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        tried.unwrap();
    });
    let written = written.into_inner();
    assert!(written > 100);
    let log = fs::read_to_string(world.path("blog/logs/app.log")).unwrap();
    let lines: String = (0..written).map(|n| format!("line {n}\n")).collect();
    assert!(log == lines, "lines of the log are missing: {} of {written}", log.lines().count());
    for n in 0..written {
        let up = world.path("blog/new/uploads").join(format!("up{n}"));
        assert_eq!(fs::read_to_string(&up).unwrap_or_default(), n.to_string(), "{up:?}");
    }
    assert_eq!(fs::read(world.path("blog/new/uploads/first")).unwrap(), b"first");
    println!("{written} writes during a restore and three undos");
}
