//! Trees that are long, deep, wide or oddly named.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use rustix::fs::Mode;

use crate::{World, copy};

fn there_and_back(world: &World, home: &str) {
    copy(&world.path(home), &world.path("after"));
    for (words, wanted) in [("restore", "before"), ("undo", "after"), ("undo", "before")] {
        world.run(&[words, home, "--yes", "--json"]).ok();
        world.assert_same(world.path(wanted), world.path(home));
    }
}

/// The disk space that everything below a folder takes, but the vault.
fn space(folder: &Path) -> u64 {
    let mut pending = vec![folder.to_owned()];
    let mut bytes = 0;
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        bytes += meta.blocks() * 512;
        if meta.is_dir() && !path.ends_with("vault") {
            pending.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    bytes
}

/// What is unchanged is neither copied nor put aside.
#[test]
fn a_restore_takes_the_space_of_the_difference() {
    let world = World::new();
    let unchanged: Vec<u8> = (0..40_000_000_u32).map(|n| (n.wrapping_mul(n) >> 7).to_le_bytes()[0]).collect();
    world.write("app/large", &unchanged);
    for n in 0..100 {
        world.write(&format!("app/d{}/{n}", n % 7), &unchanged[n * 50_000..][..50_000]);
    }
    world.run(&["backup", "app"]).ok();
    copy(&world.path("app"), &world.path("before"));
    for n in 0..20 {
        world.write(&format!("app/d{}/{n}", n % 7), &unchanged[n..][..50_000]);
    }
    copy(&world.path("app"), &world.path("after"));
    let difference = 20 * 50_000;
    let before = space(&world.path(""));
    for (words, wanted) in [("restore", "before"), ("undo", "after"), ("undo", "before")] {
        world.run(&[words, "app", "--yes"]).ok();
        world.assert_same(world.path(wanted), world.path("app"));
        let more = space(&world.path("")).saturating_sub(before);
        // The journal, the job, the catalog and the file index take some of it.
        assert!(more < 2 * difference + 1_000_000, "{words}: {more} bytes for a difference of {difference}");
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

#[test]
fn thousands_of_changed_entries() {
    const FILES: usize = 4000;
    let world = World::new();
    let home = world.path("many");
    let path = |n: usize| home.join(format!("d{}/e{}/f{n}", n % 50, n % 7));
    for n in 0..FILES {
        fs::create_dir_all(path(n).parent().unwrap()).unwrap();
        fs::write(path(n), format!("{n} then")).unwrap();
    }
    world.run(&["backup", "many"]).ok();
    copy(&home, &world.path("before"));
    for n in 0..FILES {
        match n % 4 {
            0 => fs::remove_file(path(n)).unwrap(),
            1 => fs::write(home.join(format!("d{}/new{n}", n % 50)), "new").unwrap(),
            _ => fs::write(path(n), format!("{n} now, longer")).unwrap(),
        }
    }
    let plan = world.json(&["restore", "many", "--dry-run"]);
    assert_eq!(plan["totals"]["added"]["files"], FILES / 4, "{:#}", plan["totals"]);
    assert_eq!(plan["totals"]["changed"]["files"], FILES / 2, "{:#}", plan["totals"]);
    assert_eq!(plan["totals"]["removed"]["files"], FILES / 4, "{:#}", plan["totals"]);
    let began = std::time::Instant::now();
    there_and_back(&world, "many");
    println!("{FILES} changed entries there, back and there: {:?}", began.elapsed());
    // The next restore clears what this one has kept.
    fs::write(path(2), "again").unwrap();
    world.run(&["restore", "many", "--yes"]).ok();
    world.assert_same(world.path("before"), &home);
    let left = fs::read_dir(world.path("")).unwrap().map(|e| e.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with(".backstay-")).collect();
    assert_eq!(left.len(), 1, "one side is kept for the next undo");
}

/// Makes a chain of folders below `root`, with a file at every 50th; any length of path.
fn chain(root: &std::path::Path, levels: usize, text: &str) {
    use rustix::fs::{CWD, OFlags, mkdirat, openat};
    let folder = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = openat(CWD, root, folder, Mode::empty()).unwrap();
    for level in 0..levels {
        let name = format!("level-{level:04}");
        if mkdirat(&at, name.as_str(), Mode::from(0o755)).is_err() {
            assert!(level > 0 || root.join(&name).is_dir());
        }
        at = openat(&at, name.as_str(), folder, Mode::empty()).unwrap();
        if level % 50 == 49 {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
            let file = openat(&at, "file", flags, Mode::from(0o644)).unwrap();
            rustix::io::write(&file, format!("{text} {level}").as_bytes()).unwrap();
        }
    }
}

/// What lies in such a chain: for each level its mode and time, the names in it and the text of its file.
fn look(root: &std::path::Path) -> Vec<String> {
    use rustix::fs::{CWD, Dir, OFlags, fstat, openat};
    let folder = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = openat(CWD, root, folder, Mode::empty()).unwrap();
    let mut found = Vec::new();
    loop {
        let names =
            Dir::read_from(&at).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|name| name != "." && name != "..").collect();
        names.sort();
        let mut text = [0; 64];
        let file = openat(&at, "file", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let read = file.map_or(0, |file| rustix::io::read(&file, &mut text).unwrap());
        let stat = fstat(&at).unwrap();
        let text = String::from_utf8_lossy(&text[..read]).into_owned();
        found.push(format!("{:o} {}.{} {names:?} {text}", stat.st_mode, stat.st_mtime, stat.st_mtime_nsec));
        let Some(next) = names.into_iter().find(|name| name.starts_with("level-")) else { return found };
        at = openat(&at, next.as_str(), folder, Mode::empty()).unwrap();
    }
}

#[test]
fn trees_deeper_than_a_path_may_be_long() {
    const LEVELS: usize = 600;
    let world = World::new();
    let home = world.path("deep");
    fs::create_dir(&home).unwrap();
    chain(&home, LEVELS, "then");
    world.run(&["backup", "deep"]).ok();
    let then = look(&home);
    assert_eq!(then.len(), LEVELS + 1);
    // Changed all the way down; gone as a whole; deeper than it was.
    for way in ["changed", "gone", "deeper"] {
        if way != "changed" {
            fs::remove_dir_all(home.join("level-0000")).unwrap();
        }
        match way {
            "changed" => chain(&home, LEVELS, "now, longer"),
            "gone" => fs::write(home.join("new"), "new").unwrap(),
            _ => chain(&home, LEVELS + 30, "other"),
        }
        let now = look(&home);
        for (words, wanted) in [("restore", &then), ("undo", &now), ("undo", &then)] {
            world.run(&[words, "deep", "--yes"]).ok();
            let found = look(&home);
            let differs = found.iter().zip(wanted).find(|(a, b)| a != b);
            assert!(found.len() == wanted.len() && differs.is_none(), "{way}, {words}: {differs:?}");
        }
    }
}
