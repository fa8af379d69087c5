//! Processes in the home, homes by other names, other users, what cannot be read or changed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::{
    Ran, World, assert_broken, assert_healed, break_it, broken_blog, canary, copy, facts, fill, no_workplace,
};

/// A shell that works in a folder and answers each line it is sent with what it sees there.
fn works_in(folder: &Path) -> Child {
    let script = "while read -r line; do pwd -P; cat same.txt index.html 2>/dev/null; echo wrote > mine.txt; echo .; done";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
    shell.spawn().unwrap()
}

#[test]
fn processes_keep_working_in_the_home_and_in_folders_that_stay() {
    let world = broken_blog();
    let folders = ["blog", "blog/keep", "blog/keep/deep"].map(|f| world.path(f));
    let mut shells = folders.clone().map(|f| works_in(&f));
    world.run(&["restore", "blog", "--yes"]).ok();
    assert_healed(&world, "blog");
    for (shell, folder) in shells.iter_mut().zip(&folders) {
        shell.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        drop(shell.stdin.take());
        let mut told = String::new();
        std::io::Read::read_to_string(shell.stdout.as_mut().unwrap(), &mut told).unwrap();
        shell.wait().unwrap();
        assert_eq!(told.lines().next().map(PathBuf::from).as_ref(), Some(folder), "{told}");
        assert_eq!(
            fs::read(folder.join("mine.txt")).unwrap(),
            b"wrote\n",
            "it writes into the living folder"
        );
        if folder.ends_with("blog") {
            assert!(told.contains("hello"), "{told}");
        }
        if folder.ends_with("deep") {
            assert!(told.contains("stays"), "{told}");
        }
    }
}

#[test]
fn an_open_file_that_is_replaced_loses_nothing_that_is_written_to_it() {
    let world = broken_blog();
    let mut open = fs::OpenOptions::new().append(true).open(world.path("blog/index.html")).unwrap();
    world.run(&["restore", "blog", "--yes"]).ok();
    open.write_all(b"written after it was replaced\n").unwrap();
    drop(open);
    assert_healed(&world, "blog");
    world.run(&["undo", "blog", "--yes"]).ends(0);
    let text = fs::read_to_string(world.path("blog/index.html")).unwrap();
    assert!(text.starts_with("defaced!\n"), "{text}");
}

#[test]
fn a_home_behind_links_is_the_folder_they_lead_to() {
    let world = World::new();
    fill(&world, "releases/41");
    fill(&world, "releases/42");
    symlink("releases/42", world.path("current")).unwrap();
    symlink("current", world.path("live")).unwrap();
    world.run(&["backup", "live", "--json"]).ok();
    let app = world.json(&["list"])["points"][0]["app"].as_str().unwrap().to_owned();
    break_it(&world, "releases/42");
    let other = canary(&world.path("releases/41"));
    world.run(&["restore", &app, "--yes"]).ok();
    assert_healed(&world, "releases/42");
    assert_eq!(fs::read_link(world.path("live")).unwrap(), Path::new("current"));
    assert_eq!(fs::read_link(world.path("current")).unwrap(), Path::new("releases/42"));
    world.run(&["undo", &app, "--yes"]).ok();
    assert_broken(&world, "releases/42");
    assert_eq!(canary(&world.path("releases/41")), other);
}

/// The program as a user who may not do everything: `nobody` when the tests run as root.
fn as_user(world: &World, args: &[&str]) -> Ran {
    if !rustix::process::geteuid().is_root() {
        return world.run(args);
    }
    let program = world.path("backstay");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_backstay"), &program).unwrap();
        chown(&world.path(""));
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program).args(args);
    command.current_dir(world.path("")).env("BACKSTAY_HOME", world.path("home")).env("TZ", "UTC");
    Ran::of(command.output().unwrap())
}

fn chown(path: &Path) {
    if rustix::process::geteuid().is_root() {
        assert!(
            Command::new("chown").args(["-R", "-h", "65534:65534"]).arg(path).status().unwrap().success()
        );
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_parent_that_may_not_be_written() {
    let world = World::new();
    fill(&world, "srv/blog");
    as_user(&world, &["backup", "srv/blog"]).ok();
    let healed = facts(&world.path("srv/blog"));
    break_it(&world, "srv/blog");
    chown(&world.path("srv/blog"));
    mode(&world.path("srv"), 0o555);
    let parent = fs::metadata(world.path("srv")).unwrap();
    let broken = facts(&world.path("srv/blog"));
    let wanted = [("restore", &healed), ("undo", &broken), ("undo", &healed), ("restore", &healed)];
    for (words, wanted) in wanted {
        as_user(&world, &[words, "blog", "--yes"]).ok();
        assert_eq!(&facts(&world.path("srv/blog")), wanted, "{words}");
    }
    let now = fs::metadata(world.path("srv")).unwrap();
    assert_eq!((parent.ctime(), parent.ctime_nsec()), (now.ctime(), now.ctime_nsec()));
    assert_eq!(fs::read_dir(world.path("srv")).unwrap().count(), 1);
    mode(&world.path("srv"), 0o755);
}

#[test]
fn folders_and_files_that_may_not_be_written_or_read() {
    let world = World::new();
    fill(&world, "blog");
    world.write("blog/locked/in/file", b"then");
    as_user(&world, &["backup", "blog"]).ok();
    copy(&world.path("blog"), &world.path("before"));
    world.write("blog/locked/in/file", b"now");
    world.write("blog/locked/in/more", b"now");
    world.write("blog/secret.key", b"not in the point");
    world.write("blog/closed/inside", b"not in the point");
    world.write("blog/img/a", b"changed and unreadable");
    break_it(&world, "blog");
    chown(&world.path("blog"));
    for (path, bits) in
        [("locked/in", 0o555), ("locked", 0o555), ("secret.key", 0), ("closed", 0), ("img/a", 0)]
    {
        mode(&world.path("blog").join(path), bits);
    }
    // Root compares, so it sees all of it.
    let broken = facts(&world.path("blog"));
    let ran = as_user(&world, &["restore", "blog", "--yes"]);
    println!("{}{}", ran.stdout, ran.stderr);
    assert!(matches!(ran.status, 0 | 1 | 3), "{ran:?}");
    if ran.status == 1 {
        assert_eq!(facts(&world.path("blog")), broken);
        no_workplace(&world.path("blog"));
    } else {
        assert_healed(&world, "blog");
        assert_eq!(fs::read(world.path("blog/img/a")).unwrap(), b"a");
        assert_eq!(fs::read(world.path("blog/locked/in/file")).unwrap(), b"then");
        as_user(&world, &["undo", "blog", "--yes"]);
        assert_eq!(facts(&world.path("blog")), broken, "also what could not be read comes back");
    }
}

/// Takes the mark away at the end, so that the folder can be removed.
struct Immutable(PathBuf);

impl Immutable {
    fn set(path: PathBuf) -> Option<Self> {
        let set = Command::new("chattr").arg("+i").arg(&path).output().is_ok_and(|o| o.status.success());
        set.then_some(Immutable(path))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        Command::new("chattr").arg("-i").arg(&self.0).status().unwrap();
    }
}

#[test]
fn an_immutable_file_is_told_and_the_app_ends_wholly_on_one_side() {
    for (path, deep) in [("blog/index.html", false), ("blog/new/a/b.txt", true)] {
        let world = broken_blog();
        let Some(mark) = Immutable::set(world.path(path)) else {
            println!("not shown: no file can be made immutable here");
            return;
        };
        let broken = facts(&world.path("blog"));
        let ran = world.run(&["restore", "blog", "--yes"]);
        println!("{path}: {}{}", ran.stdout, ran.stderr);
        if deep && ran.status == 0 {
            // A folder is moved whatever is in it.
            assert_healed(&world, "blog");
            drop(mark);
            continue;
        }
        assert_ne!(ran.status, 0);
        assert_eq!(
            fs::read(world.path(path)).unwrap(),
            broken[Path::new(path).strip_prefix("blog").unwrap()].1
        );
        drop(mark);
        // The next command finishes it, or there is nothing to finish.
        world.run(&["status"]);
        world.run(&["restore", "blog", "--yes"]).ok();
        world.assert_same(world.path("before"), world.path("blog"));
        world.run(&["undo", "blog", "--yes"]).ok();
        assert!(world.path("blog").exists());
    }
}
