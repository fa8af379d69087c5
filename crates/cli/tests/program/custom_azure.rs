//! Custom backups into Azure Blob storage (Azurite): signatures, keys, what is wrong with them, and where they never show.

use backstay_testing::{Azurite, signature};

use crate::{Ran, World};

const FAR: &str = "2099-01-01T00:00:00Z";

/// Makes a container in the emulator by way of the program, with the account's key.
fn make(world: &World, azurite: &Azurite, name: &str) {
    let args = ["container", "add", name, &azurite.place(name), "--create"];
    let made = world.run_with("home", &args, Azurite::KEY).ok();
    assert!(made.stderr.contains("Made to keep its key") && made.stderr.contains("kit export"), "{made:?}");
}

/// A container whose URL with its signature is given on standard input.
fn add(world: &World, name: &str, url: &str, more: &[&str]) -> Ran {
    world.run_with("home", &[&["container", "add", name], more].concat(), url)
}

/// The texts by which a signature would be known.
fn secrets(url: &str) -> Vec<String> {
    let raw = url.split("sig=").nth(1).unwrap().to_owned();
    let plain = raw.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
    vec![raw, plain, Azurite::KEY.to_owned()]
}

#[test]
fn a_backup_goes_into_a_container_and_comes_back_whole() {
    let Some(azurite) = Azurite::start() else { return };
    let world = World::with_blog();
    world.write("blog/large", &vec![7; 9_000_000]);
    make(&world, &azurite, "backups");
    let url = azurite.url("backups", "racwdl", FAR);
    let added = add(&world, "az", &url, &[]).ok();
    assert!(!added.stderr.contains("kit export"), "told once, with the first key: {added:?}");
    world.run(&["backup", "blog", "--container", "az", "--name", "one"]).ok();
    world.run(&["backup", "blog", "--container", "az", "--name", "one"]).fails("AlreadyExists", 1);
    // By its address, with the key that the container of that address has.
    world.run(&["backup", "blog", "--container", &azurite.place("backups"), "--name", "two"]).ok();
    world.run(&["verify", "blog", "one"]).ok();
    world.run(&["download", "blog", "one", "out"]).ok();
    let unzip =
        std::process::Command::new("unzip").arg("-tq").arg(world.path("out/one.zip")).status().unwrap();
    assert!(unzip.success());
    let list = world.json(&["list", "--container", "az"]);
    assert_eq!(list["custom"].as_array().unwrap().len(), 2, "{list}");
    assert_eq!(list["unfinished"].as_array().unwrap().len(), 0);
    world.run(&["delete", "blog", "two", "--yes"]).ok();
    let list = world.json(&["list", "--container", "backups"]);
    assert_eq!(list["custom"].as_array().unwrap().len(), 1);
}

#[test]
fn an_app_is_restored_from_a_container_here_and_on_a_machine_that_has_never_seen_it() {
    let Some(azurite) = Azurite::start() else { return };
    let world = World::with_blog();
    make(&world, &azurite, "backups");
    world.run(&["backup", "blog", "--container", "backups", "--name", "one"]).ok();
    let copy = |to: &str| {
        let cp =
            std::process::Command::new("cp").arg("-a").args([world.path("blog"), world.path(to)]).status();
        assert!(cp.unwrap().success());
    };
    copy("then");
    world.write("blog/index.html", b"<h1>changed</h1>\n");
    world.write("blog/new", b"new");
    copy("now");
    // By its name, over the app, and that taken back.
    let plan = world.json(&["restore", "blog", "one", "--dry-run"]);
    assert!(plan.to_string().contains("\"new\""), "{plan:#}");
    world.assert_same(world.path("now"), world.path("blog"));
    world.run(&["restore", "blog", "one", "--yes"]).ok();
    world.assert_same(world.path("then"), world.path("blog"));
    world.run(&["undo", "blog", "--yes"]).ok();
    world.assert_same(world.path("now"), world.path("blog"));
    world.run(&["restore", "blog", "one", "--to", "copy", "--directory", "copy"]).ok();
    world.assert_same(world.path("then"), world.path("copy"));
    // Of a point of the vault, into the same container.
    world.run(&["export", "blog", "--container", "backups", "--name", "two"]).ok();
    world.run(&["verify", "blog", "two"]).ok();
    // Another machine: the settings were sealed for the first one, everything else comes.
    let url = azurite.url("backups", "rl", FAR);
    world.run_with("other", &["container", "add", "far", "--untested"], &url).ok();
    let restore =
        ["restore", "--container", "far", "--name", "one", "--to", "blog", "--directory", "brought"];
    world.run_at("other", &restore).ends(3);
    world.assert_same(world.path("then"), world.path("brought"));
}

#[test]
fn every_way_in_which_a_signature_is_wrong_is_told_and_nothing_is_stored() {
    let Some(azurite) = Azurite::start() else { return };
    let world = World::with_blog();
    make(&world, &azurite, "backups");
    let good = azurite.url("backups", "racwdl", FAR);
    let other_key = "bm90IHRoZSBrZXkgb2YgdGhpcyBhY2NvdW50LCBidXQgYXMgbG9uZyBhcyBvbmU=";
    let forged = format!("{}/backups?{}", azurite.endpoint(), signature("backups", "racwdl", FAR, other_key));
    let cases = [
        (
            azurite.url("backups", "racwdl", "2020-01-01T00:00:00Z"),
            "StorageDenied",
            1,
            "was valid until 2020",
        ),
        (azurite.url("backups", "rl", FAR), "StorageDenied", 1, "the step `write` failed"),
        (azurite.url("backups", "rwl", FAR), "StorageDenied", 1, "the step `delete` failed"),
        (azurite.url("gone", "racwdl", FAR), "StorageNotFound", 4, "There is no container gone"),
        (forged, "StorageDenied", 1, "the signature does not fit"),
        (good.replace("&sig=", "&gis="), "SignatureIncomplete", 1, "Missing mandatory parameters"),
    ];
    for (url, code, status, words) in &cases {
        let ran = add(&world, "az", url, &[]).fails(code, *status);
        assert!(ran.stderr.contains(words), "{words} is expected: {ran:?}");
        for secret in if url.contains("sig=") { secrets(url) } else { Vec::new() } {
            assert!(!ran.stderr.contains(&secret) && !ran.stdout.contains(&secret), "{ran:?}");
        }
    }
    world.run(&["container", "show", "az"]).fails("ContainerNotFound", 4);
    // In an address that stands on the command line it is refused.
    world.run(&["backup", "blog", "--container", &good]).fails("InvalidValue", 2);
    // Kept on wish; what it lacks is told by each test, and when it ends.
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(48);
    let weak = azurite.url("backups", "rl", &format!("{:.0}", soon));
    let ran = add(&world, "az", &weak, &["--untested"]).ok();
    assert!(
        ran.stderr.contains("does not allow to write, delete") && ran.stderr.contains("only: make a new one"),
        "{ran:?}"
    );
    let test = world.run(&["container", "test", "az"]).ends(1);
    assert!(test.stdout.contains("open    ok") && test.stdout.contains("write   FAILED"), "{test:?}");
    assert!(world.ok(&["container", "list"]).contains("SOON"));
    let status = world.run(&["status", "--json"]).ends(1);
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(status["containers_expiring"][0]["name"], "az");
    add(&world, "az", &good, &[]).fails("AlreadyExists", 1);
    add(&world, "az", &good, &["--replace"]).ok();
    world.run(&["container", "test", "az"]).ok();
}

#[test]
fn what_opens_a_container_never_shows() {
    let Some(azurite) = Azurite::start() else { return };
    let world = World::with_blog();
    make(&world, &azurite, "backups");
    let url = azurite.url("backups", "racwdl", FAR);
    add(&world, "az", &url, &[]).ok();
    let mut all = String::new();
    for words in [
        "backup blog --container az --name one",
        "container list --json",
        "container show az --json",
        "container test az --json",
        "list --container az --json",
        "show blog one --json",
        "verify blog one",
        "job list --json",
        "status --json",
        "schedule set blog --every 6h --container az --json",
        "app show blog --json",
        "download blog one out",
    ] {
        let args: Vec<&str> = words.split(' ').collect();
        let ran = world.run(&args);
        all.push_str(&format!("{words}\n{}{}", ran.stdout, ran.stderr));
    }
    for job in world.json(&["job", "list"])["jobs"].as_array().unwrap() {
        all.push_str(&world.ok(&["job", "log", job["id"].as_str().unwrap()]));
    }
    for secret in secrets(&url) {
        assert!(!all.contains(&secret), "in what is printed: {all}");
        for file in walk(&world.path("home")).iter().chain(&walk(&world.path("out"))) {
            let bytes = std::fs::read(file).unwrap();
            let found = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
            assert!(!found, "{} holds a key in clear", file.display());
        }
    }
}

/// All files below a folder.
fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => files.extend(walk(&entry.path())),
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}
