//! Custom backups into a local folder: taken, listed, read by other programs, verified, copied out, deleted.

use std::process::Command;

use serde_json::Value;

use crate::{Ran, World, assert_text};

/// The output of a program of the system that must end well.
fn must(program: &str, args: &[&str], dir: &std::path::Path) -> String {
    let out = Command::new(program).args(args).current_dir(dir).env("LC_ALL", "C.UTF-8").output();
    let out = out.unwrap_or_else(|e| panic!("{program}, which ./test installs: {e}"));
    let text = [String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)].concat();
    assert!(out.status.success(), "{program} {args:?}: {text}");
    text
}

/// The names in a folder, sorted.
pub(crate) fn names(folder: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The schema of manifests.
fn schema() -> String {
    format!("{}/../../docs/manifest.xsd", env!("CARGO_MANIFEST_DIR"))
}

fn customs(list: &Value) -> Vec<String> {
    let all = list["custom"].as_array().unwrap();
    all.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_was_written_is_an_ordinary_zip_with_a_valid_manifest() {
    let world = World::with_blog();
    std::fs::create_dir(world.path("backups")).unwrap();
    world.write("blog/logs/today", b"noise");
    world.write("blog/_backup.filter", b"/logs\n");
    let first = world.run(&["backup", "blog", "--container", "./backups", "--name", "one"]).ok();
    assert!(
        first.stderr.contains("This was the first backup") && first.stderr.contains("kit export"),
        "{first:?}"
    );
    let backups = world.path("backups");
    assert_eq!(names(&backups), ["one.log", "one.xml", "one.zip"]);
    must("unzip", &["-t", "one.zip"], &backups);
    must("xmllint", &["--noout", "--schema", &schema(), "one.xml"], &backups);
    must("unzip", &["-q", "one.zip", "-d", "out"], &backups);
    assert_eq!(std::fs::read(backups.join("out/fs/index.html")).unwrap(), b"<h1>hello</h1>\n");
    assert!(
        backups.join("out/fs/_backup.filter").exists() && !backups.join("out/fs/logs").exists(),
        "the filter"
    );
    // Settings: for this server alone, unless they are to be plain.
    let sealed = std::fs::read(backups.join("out/settings.age")).unwrap();
    assert!(sealed.starts_with(b"age-encryption.org/v1\n"));
    world.ok(&["backup", "blog", "--container", "./backups", "--name", "two", "--plain-settings"]);
    let settings = must("unzip", &["-p", "two.zip", "settings.json"], &backups);
    let settings: Value = serde_json::from_str(&settings).unwrap();
    assert_eq!(
        (settings["app"].as_str(), settings["config"]["plan"].as_str()),
        (Some("blog"), Some("default"))
    );
    let log = std::fs::read_to_string(backups.join("two.log")).unwrap();
    assert!(
        log.starts_with("job ") && log.contains(" of backstay ") && log.contains("blog into two"),
        "{log}"
    );
}

/// An import of a backup into another state ends so.
#[track_caller]
fn comes_in(world: &World, home: &str, name: &str, more: &[&str], status: i32) {
    let args = ["import", "--container", "./backups", "--name", name];
    let ran = world.run_at(home, &[&args[..], more].concat()).ends(status);
    assert_eq!(ran.stderr.contains("SettingsSealed"), status == 3, "{ran:?}");
}

#[test]
fn settings_are_sealed_for_whom_they_are_to_be() {
    let world = World::with_blog();
    let backup = |home: &str, name: &str, more: &[&str]| {
        let args = ["backup", "blog", "--container", "./backups", "--name", name];
        world.run_at(home, &[&args[..], more].concat())
    };
    std::fs::create_dir(world.path("backups")).unwrap();
    world.write("word", b"correct horse battery\n");
    world.write("other-word", b"staple\n");
    backup("home", "mine", &[]).ok();
    comes_in(&world, "second", "mine", &[], 3);
    backup("home", "passed", &["--passphrase-file", "word"]).ok();
    comes_in(&world, "third", "passed", &["--passphrase-file", "other-word"], 3);
    comes_in(&world, "fourth", "passed", &["--passphrase-file", "word"], 0);
    // For another server, which opens it without being asked for anything.
    backup("fifth", "theirs", &[]).ok();
    let xml = std::fs::read_to_string(world.path("backups/theirs.xml")).unwrap();
    let at = xml.find("age1").unwrap();
    let recipient: String = xml[at..].chars().take_while(char::is_ascii_alphanumeric).collect();
    backup("home", "given", &["--recipient", &recipient]).ok();
    comes_in(&world, "fifth", "given", &[], 0);
    comes_in(&world, "sixth", "given", &[], 3);

    backup("home", "bad", &["--recipient", "age1x"]).fails("InvalidValue", 2);
    backup("home", "bad", &["--recipient", &recipient, "--plain-settings"]).fails("Usage", 2);
    world.run(&["backup", "blog", "--passphrase-file", "word"]).fails("Usage", 2);
    assert!(!names(&world.path("backups")).iter().any(|n| n.starts_with("bad")), "nothing was begun");
}

#[test]
fn names_are_never_written_over() {
    let world = World::with_blog();
    std::fs::create_dir(world.path("backups")).unwrap();
    let take = |more: &[&str]| world.run(&[&["backup", "blog", "--container", "./backups"], more].concat());
    take(&["--name", "one"]).ok();
    take(&["--name", "one"]).fails("AlreadyExists", 1);
    for name in ["", "../x", "a b", "x/"] {
        take(&["--name", name]).fails("InvalidValue", 2);
    }
    // Default names of one minute are numbered.
    for _ in 0..3 {
        take(&[]).ok();
    }
    let names = customs(&world.json(&["list", "blog"]));
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.iter().filter(|n| n.starts_with("blog_2")).count() == 3, "{names:?}");
    // A zip of somebody else is left alone too.
    world.write("backups/mine.zip", b"mine");
    take(&["--name", "mine"]).fails("AlreadyExists", 1);
    assert_eq!(std::fs::read(world.path("backups/mine.zip")).unwrap(), b"mine");
    assert!(!world.path("backups/mine.log").exists());
}

#[test]
fn both_kinds_are_listed_shown_verified_copied_out_and_deleted() {
    let world = World::with_blog();
    world.run(&["container", "add", "shelf", "backups", "--create"]).ok();
    world.run(&["backup", "blog"]).ok();
    world.run(&["backup", "blog", "--container", "shelf", "--name", "first"]).ok();
    let mut told = String::new();
    for words in [
        "list",
        "list blog",
        "list --container shelf",
        "show blog first",
        "verify blog first",
        "container list",
        "container show shelf",
        "container test shelf",
        "download blog first out",
        "job list",
    ] {
        let args: Vec<&str> = words.split(' ').collect();
        told.push_str(&world.run(&args).ok().told(&world, words));
        told.push('\n');
    }
    for file in ["first.zip", "first.xml", "first.log"] {
        let bytes = |dir: &str| std::fs::read(world.path(dir).join(file)).unwrap();
        assert_eq!(bytes("out"), bytes("backups"));
    }
    for words in [
        "download blog first out",
        "download blog latest out2",
        "download blog nothing out2",
        "delete blog first",
    ] {
        let args: Vec<&str> = words.split(' ').collect();
        let ran = world.run(&args);
        assert_ne!(ran.status, 0, "{words}");
        told.push_str(&ran.told(&world, words));
        told.push('\n');
    }
    let id = world.json(&["list", "blog"])["custom"][0]["id"].as_str().unwrap().to_owned();
    world.run(&["verify", "blog", &id[..9]]).ok();
    told.push_str(
        &world.run(&["delete", "blog", &id[..9], "--yes"]).ok().told(&world, "delete blog ID --yes"),
    );
    assert_eq!(names(&world.path("backups")), [""; 0]);
    assert_eq!(customs(&world.json(&["list", "blog"])), [""; 0]);
    world.run(&["show", "blog", "first"]).fails("InvalidValue", 2);
    told = regex_names(&told);
    assert_text!("custom", told);
}

/// Checksums and sizes of files that hold times differ from run to run.
fn regex_names(text: &str) -> String {
    text.lines()
        .filter(|l| !l.starts_with("SHA-256") && !l.starts_with("Zip "))
        .map(|l| format!("{l}\n"))
        .collect()
}

#[test]
fn damage_is_found_and_named_and_the_catalog_follows_the_container() {
    let world = World::with_blog();
    world.run(&["container", "add", "shelf", "backups", "--create"]).ok();
    for name in ["a", "b", "c"] {
        world.run(&["backup", "blog", "--container", "shelf", "--name", name]).ok();
    }
    let zip = world.path("backups/a.zip");
    let mut bytes = std::fs::read(&zip).unwrap();
    bytes[80] ^= 1;
    std::fs::write(&zip, bytes).unwrap();
    let ran = world.run(&["verify", "blog", "a"]).fails("ArchiveDamaged", 1);
    assert!(ran.stdout.contains("NOT whole") && ran.stdout.contains("fs/"), "{ran:?}");
    world.run(&["download", "blog", "a", "out"]).fails("ArchiveDamaged", 1);
    assert_eq!(names(&world.path("out")), [""; 0], "nothing of it stays");
    // One is gone, one came from elsewhere.
    for ending in ["zip", "xml", "log"] {
        std::fs::remove_file(world.path(&format!("backups/b.{ending}"))).unwrap();
        std::fs::rename(
            world.path(&format!("backups/c.{ending}")),
            world.path(&format!("backups/d.{ending}")),
        )
        .unwrap();
    }
    world.run(&["verify", "blog", "b"]).fails("PointNotFound", 4);
    world.write("backups/e.xml", b"<nonsense/>");
    world.write("backups/f.log", b"of somebody else");
    let ran = world.run(&["list", "--container", "shelf"]).ends(3);
    assert!(
        ran.stderr.contains("e: The xml is not a manifest") && ran.stderr.contains("f has no manifest"),
        "{ran:?}"
    );
    let mut names = customs(&world.json(&["list", "blog"]));
    names.sort();
    assert_eq!(names, ["a", "d"]);
    world.run(&["verify", "blog", "d"]).ok();
    // Nothing that is not ours was touched by a further backup.
    world.run(&["backup", "blog", "--container", "shelf", "--name", "g"]).ok();
    assert!(world.path("backups/e.xml").exists() && world.path("backups/f.log").exists());
    // Another state sees them with its own eyes: signed by somebody it does not know.
    let list =
        Ran::of(world.command_at("other", ["list", "--container", "./backups", "--json"]).output().unwrap());
    let list: Value = serde_json::from_str(&list.ends(3).stdout).unwrap();
    assert!(list["custom"].as_array().unwrap().iter().all(|c| c["signer"] == "unknown"), "{list}");
}

#[test]
fn a_container_inside_an_app_is_not_backed_up_and_the_app_itself_is_none() {
    let world = World::with_blog();
    world.run(&["container", "add", "shelf", "blog/backups", "--create"]).ok();
    world.run(&["backup", "blog", "--container", "shelf", "--name", "one"]).ok();
    world.run(&["backup", "blog", "--container", "shelf", "--name", "two"]).ok();
    let listed = must("unzip", &["-l", "two.zip"], &world.path("blog/backups"));
    assert!(listed.contains("fs/index.html") && !listed.contains("one.zip"), "{listed}");
    world.run(&["backup", "blog"]).ok();
    let files = world.ok(&["files", "blog", "latest", "-r"]);
    assert!(!files.contains("one.zip"), "{files}");
    world.run(&["backup", "blog", "--container", "./blog"]).fails("Conflict", 1);
    world.run(&["container", "add", "bad", "home/vault"]).fails("Conflict", 1);
    world.run(&["backup", "blog", "--container", "nowhere"]).fails("ContainerNotFound", 4);
    world.run(&["backup", "blog", "--container", "./nowhere"]).fails("StorageNotFound", 4);
}

#[test]
fn what_cannot_be_read_makes_it_partial_and_a_failing_hook_leaves_nothing() {
    let world = World::with_blog();
    world.run(&["container", "add", "shelf", "backups", "--create"]).ok();
    world.run(&["backup", "blog"]).ok();
    world.run(&["app", "set", "blog", "--before-backup", "exit 7"]).ok();
    world.run(&["backup", "blog", "--container", "shelf"]).fails("HookFailed", 1);
    assert_eq!(names(&world.path("backups")), [""; 0]);
    world
        .run(&[
            "app",
            "set",
            "blog",
            "--before-backup",
            "",
            "--after-backup",
            "echo $BACKSTAY_POINT > ../point",
        ])
        .ok();
    // A filter that cannot be obeyed: everything is taken, and that is told.
    std::fs::create_dir(world.path("blog/_backup.filter")).unwrap();
    let ran =
        world.run(&["backup", "blog", "--container", "shelf", "--name", "p"]).fails("PartiallySucceeded", 3);
    assert!(ran.stderr.contains("The rules were not obeyed"), "{ran:?}");
    let list = world.json(&["list", "--container", "shelf"]);
    assert_eq!(list["custom"][0]["status"], "PartiallySucceeded");
    let point = std::fs::read_to_string(world.path("point")).unwrap();
    assert_eq!(list["custom"][0]["id"], point.trim());
    let status = world.run(&["status"]);
    assert!(!status.stdout.contains("partial"), "points of the vault are another matter: {status:?}");
}

#[test]
fn a_schedule_is_set_shown_and_cleared_and_holds_its_container() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    let mut told = String::new();
    let mut tell = |words: &str| {
        let args: Vec<&str> = words.split(' ').collect();
        told.push_str(&world.run(&args).told(&world, words));
        told.push('\n');
    };
    tell("schedule show blog");
    tell("schedule set blog --every 6h");
    tell("schedule set blog --every 6h --container shelf");
    world.run(&["container", "add", "shelf", "backups", "--create"]).ok();
    tell("schedule set blog --container shelf");
    tell("schedule set blog --every 90m --container shelf");
    tell("schedule set blog --every 2d --start 2040-01-01T02:00:00Z --keep 14d --keep-one --container shelf");
    tell("schedule set blog --keep 0");
    tell("container remove shelf --yes");
    tell("schedule clear blog");
    tell("container remove shelf --yes");
    assert_text!("schedule", told);
}

#[test]
fn plans_with_limits_refuse_what_is_too_large_with_both_figures() {
    let world = World::with_blog();
    world.run(&["container", "add", "shelf", "backups", "--create"]).ok();
    world.write("home/backstay.toml", b"[plans.small]\nautomatic = \"1MB\"\ncustom = \"20MB\"\n");
    world.write("blog/large", &vec![7; 30_000_000]);
    world.run(&["backup", "blog", "--container", "shelf", "--name", "free"]).ok();
    world.run(&["app", "set", "blog", "--plan", "small"]).ok();
    let ran = world.run(&["backup", "blog", "--container", "shelf"]).fails("BackupTooLarge", 1);
    assert!(
        ran.stderr.contains("exceeds the 0.02 GB limit") && ran.stderr.contains("size is 0.04 GB"),
        "{ran:?}"
    );
    assert_eq!(names(&world.path("backups")), ["free.log", "free.xml", "free.zip"], "nothing of it stays");
    // What is left out does not count.
    world.write("blog/_backup.filter", b"/large\n");
    world.run(&["backup", "blog", "--container", "shelf"]).ok();
}
