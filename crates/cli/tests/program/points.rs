//! Points: back up, look, restore, pin, delete.

use backstay_testing::fixtures::{Nasty, nasty};

use crate::{World, assert_text};

#[test]
fn a_nasty_tree_comes_back_identical() {
    let world = World::new();
    std::fs::create_dir(world.path("odd")).unwrap();
    nasty(&world.path("odd"), &Nasty::quick());
    let taken = world.json(&["backup", "odd"]);
    let failures: Vec<_> = taken["problems"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|p| !["socket", "vanished", "mount"].contains(&p["kind"].as_str().unwrap()))
        .collect();
    assert!(failures.is_empty(), "{failures:?}");
    world.run(&["restore", "odd", "--directory", "out"]).ok();
    let differences = backstay_tree::compare::trees(
        &world.path("odd"),
        &world.path("out"),
        &backstay_tree::compare::Options::default(),
    );
    let but_sockets: Vec<_> =
        differences.iter().filter(|d| !sockets(&world.path("odd"), &taken).contains(&d.path)).collect();
    assert!(but_sockets.is_empty(), "{but_sockets:#?}");
    world.run(&["verify", "odd"]).ok();
}

/// Sockets have no content; they are in the point as such and are told, not made again.
fn sockets(root: &std::path::Path, taken: &serde_json::Value) -> Vec<std::path::PathBuf> {
    use std::os::unix::fs::FileTypeExt as _;
    let _ = taken;
    let mut found = Vec::new();
    let mut folders = vec![std::path::PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder)).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            let path = folder.join(entry.file_name());
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_socket() {
                // The folder's own time of change comes from making the rest.
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn what_points_hold_is_shown() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    world.write("blog/index.html", b"<h1>hello again</h1>\n");
    world.write("blog/new\nline \\ \x1b[31m.txt", b"odd name\n");
    world.run(&["backup", "blog"]).ok();
    let mut told = String::new();
    for words in [
        "list",
        "list blog",
        "show blog",
        "files blog",
        "files blog latest~1 -r",
        "files blog latest img",
        "files blog latest index.html",
        "cat blog latest~1 index.html",
        "verify blog latest~1",
        "status",
        "job list",
    ] {
        let args: Vec<&str> = words.split(' ').collect();
        told.push_str(&world.run(&args).ok().told(&world, words));
        told.push('\n');
    }
    assert!(!told.contains('\x1b'), "names cannot steer the terminal");
    let odd = r"new\x0aline \\ \x1b[31m.txt";
    assert_eq!(world.ok(&["cat", "blog", "latest", odd]), "odd name\n", "a path can be typed as it is shown");
    assert_text!("shown", told);
}

#[test]
fn points_are_named_by_prefix_place_and_time() {
    let world = World::with_blog();
    for n in 0..3 {
        world.write("blog/n", format!("{n}").as_bytes());
        world.run(&["backup", "blog"]).ok();
    }
    let ids = world.points("blog");
    let content = |point: &str| world.ok(&["cat", "blog", point, "n"]);
    assert_eq!((content("latest").as_str(), content("latest~2").as_str()), ("2", "0"));
    assert_eq!(content(&ids[1]), "1");
    assert_eq!(content(&ids[1][..12]), "1");
    let time = world.json(&["show", "blog", "latest~1"])["point"]["time"].as_str().unwrap().to_owned();
    assert_eq!(content(&time), "1");
    assert_eq!(content("2100-01-01"), "2");
    world.run(&["show", "blog", "2000-01-01"]).fails("PointNotFound", 4);
    world.run(&["show", "blog", "latest~3"]).fails("PointNotFound", 4);
    world.run(&["show", "blog", "yesterday"]).fails("InvalidValue", 2);
    world.run(&["cat", "blog", "latest", "../home/secrets.json"]).fails("PathNotFound", 4);
    world.run(&["files", "blog", "latest", "nothing"]).fails("PathNotFound", 4);
}

#[test]
fn restoring_never_touches_what_is_there() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    world.run(&["restore", "blog", "--directory", "deep/below/out", "--yes"]).ok();
    world.assert_same(world.path("blog"), world.path("deep/below/out"));
    for taken in ["blog", "blog/index.html", "deep/below/out"] {
        world.run(&["restore", "blog", "--directory", taken]).fails("TargetUnusable", 1);
    }
    std::fs::create_dir(world.path("empty")).unwrap();
    world.run(&["restore", "blog", "--directory", "empty"]).ok();
    world.assert_same(world.path("blog"), world.path("empty"));
    world.run(&["restore", "blog", "--directory", "some", "--path", "img"]).ok();
    assert!(world.path("some/img/logo.png").exists() && !world.path("some/index.html").exists());
    world.run(&["restore", "blog", "--directory", "none", "--path", "absent"]).fails("PathNotFound", 4);
    let names = std::fs::read_dir(world.path("")).unwrap().flatten().map(|e| e.file_name());
    let mut names: Vec<_> = names.map(|n| n.into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["blog", "deep", "empty", "home", "some"], "nothing is left behind");
}

#[test]
fn pinned_points_stay_and_deleted_ones_are_gone() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    world.write("blog/more", b"more");
    world.run(&["backup", "blog"]).ok();
    let ids = world.points("blog");
    world.run(&["pin", "blog", &ids[1]]).ok();
    world.run(&["pin", "blog", &ids[1]]).ok();
    assert_eq!(world.points("blog"), ids, "a pin does not change a point's id");
    assert!(world.ok(&["list"]).contains("pinned"));
    world.run(&["delete", "blog", &ids[1], "--yes"]).fails("Conflict", 1);
    world.run(&["delete", "blog", &ids[0]]).fails("ConfirmationNeeded", 2);
    assert_eq!(world.points("blog"), ids);
    world.run(&["delete", "blog", "latest", "--yes"]).ok();
    assert_eq!(world.points("blog"), ids[1..]);
    world.run(&["restore", "blog", "--directory", "out"]).ok();
    world.run(&["unpin", "blog", "latest"]).ok();
    world.run(&["delete", "blog", "latest", "--yes"]).ok();
    assert_eq!(world.points("blog"), [""; 0]);
    world.run(&["restore", "blog", "--directory", "out2"]).fails("PointNotFound", 4);
    world.run(&["backup", "blog"]).ok();
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    use std::io::Read as _;
    let world = World::new();
    for n in 0..3_000 {
        world.write(&format!("many/a-file-with-quite-a-long-name-{n}"), b"");
    }
    world.run(&["backup", "many"]).ok();
    for json in [false, true] {
        let mut command = world.command(["files", "many"]);
        command.args(json.then_some("--json"));
        let mut child = command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut some = [0; 100];
        child.stdout.take().unwrap().read_exact(&mut some).unwrap();
        let ran = crate::Ran::of(child.wait_with_output().unwrap()).ok();
        assert_eq!(ran.stderr, "");
    }
}
