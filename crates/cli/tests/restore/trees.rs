//! Trees that are long, deep, wide or oddly named.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::symlink;

use rustix::fs::Mode;

use crate::{World, copy};

fn there_and_back(world: &World, home: &str) {
    copy(&world.path(home), &world.path("after"));
    for (words, wanted) in [("restore", "before"), ("undo", "after"), ("undo", "before")] {
        world.run(&[words, home, "--yes", "--json"]).ok();
        world.assert_same(world.path(wanted), world.path(home));
    }
}

#[test]
fn names_of_all_kinds_are_added_changed_and_removed() {
    let mut names: Vec<OsString> = vec![
        OsString::from_vec(vec![0xff; 255]),
        OsString::from_vec(b"latin-\xe9.txt".to_vec()),
        "n".repeat(255).into(),
        "\u{fc}".repeat(127).into(),
        "u\u{308}".into(),
        "\u{fc}".into(),
    ];
    let plain = [
        "new\nline",
        "tab\t",
        " ",
        "-rf",
        "~",
        "*",
        "\\",
        "\\x41",
        "A",
        "a",
        "...",
        "..x",
        "%HOME%",
        "\u{1b}[2J",
        "con",
        "a:b",
        "#",
        "\"'",
    ];
    names.extend(plain.map(OsString::from));
    let world = World::new();
    let home = world.path("odd");
    for (n, name) in names.iter().enumerate() {
        for folder in ["changed", "removed"] {
            let at = home.join(folder).join(name);
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join(name), format!("{n} then")).unwrap();
            symlink(name, at.join("link")).unwrap();
        }
    }
    world.run(&["backup", "odd", "--json"]).ok();
    copy(&home, &world.path("before"));
    for (n, name) in names.iter().enumerate() {
        fs::write(home.join("changed").join(name).join(name), format!("{n} now")).unwrap();
        fs::remove_dir_all(home.join("removed").join(name)).unwrap();
        fs::create_dir_all(home.join("added").join(name)).unwrap();
        fs::write(home.join("added").join(name).join(name), "new").unwrap();
        // In the place of a folder a file of that name, half the time.
        if n % 2 == 0 {
            fs::write(home.join("removed").join(name), "a file").unwrap();
        }
    }
    there_and_back(&world, "odd");
}

#[test]
fn kinds_that_change_and_names_of_one_file() {
    let world = World::new();
    let home = world.path("kinds");
    let write = |path: &str, text: &str| world.write(&format!("kinds/{path}"), text.as_bytes());
    write("file-folder", "then");
    write("folder-file/x", "then");
    write("link-file", "");
    fs::remove_file(home.join("link-file")).unwrap();
    symlink("/etc/passwd", home.join("link-file")).unwrap();
    symlink("folder-file", home.join("link-folder")).unwrap();
    write("one", "linked");
    fs::hard_link(home.join("one"), home.join("two")).unwrap();
    fs::hard_link(home.join("one"), home.join("folder-file/three")).unwrap();
    write("apart-1", "same");
    write("apart-2", "same");
    world.run(&["backup", "kinds"]).ok();
    copy(&home, &world.path("before"));
    fs::remove_file(home.join("file-folder")).unwrap();
    write("file-folder/y", "now");
    fs::remove_dir_all(home.join("folder-file")).unwrap();
    write("folder-file", "now");
    for link in ["link-file", "link-folder", "two", "apart-2"] {
        fs::remove_file(home.join(link)).unwrap();
    }
    write("link-file", "now");
    write("link-folder/z", "now");
    write("two", "no longer linked");
    fs::hard_link(home.join("apart-1"), home.join("apart-2")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, home.join("pipe"), Mode::from(0o600)).unwrap();
    there_and_back(&world, "kinds");
}
