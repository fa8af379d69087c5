//! A lost catalog, a blank machine, wrong passwords.

use crate::{World, assert_text};

const PASSPHRASE: &str = "correct horse battery\n";

#[test]
fn a_blank_machine_with_the_kit_lists_and_restores() {
    let world = World::with_blog();
    world.run(&["backup", "blog", "--vault", "vault"]).ok();
    let exported = world.run_with("home", &["kit", "export", "kit.age"], PASSPHRASE).ok();
    assert_text!("kit_export", exported.told(&world, "kit export kit.age"));
    world.run_with("home", &["kit", "export", "kit.age"], PASSPHRASE).fails("AlreadyExists", 1);
    world.run_with("home", &["kit", "export", "short.age"], "short\n").fails("InvalidValue", 2);
    assert!(!world.path("short.age").exists());

    world.run_with("blank", &["kit", "open", "kit.age"], "wrong horse battery\n").fails("KitUnreadable", 1);
    assert!(!world.path("blank").exists(), "a wrong passphrase makes nothing");
    let opened = world.run_with("blank", &["kit", "open", "kit.age"], PASSPHRASE).ok();
    assert_text!("kit_open", opened.told(&world, "kit open kit.age"));
    world.run_at("blank", &["restore", "blog", "--directory", "out"]).ok();
    world.assert_same(world.path("blog"), world.path("out"));
    let secrets = |home: &str| {
        let text = std::fs::read_to_string(world.path(home).join("secrets.json")).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        (value["vault_password"].clone(), value["age_identity"].clone())
    };
    assert_eq!(secrets("home"), secrets("blank"), "the new machine is the old one");
    world.run_with("blank", &["kit", "open", "kit.age"], PASSPHRASE).ok();
    world.run_at("blank", &["backup", "blog"]).ok();

    // Into a state that has secrets of its own it does not go.
    world.write("shop/x", b"x");
    world.run_at("own", &["backup", "shop"]).ok();
    let before = std::fs::read(world.path("own/secrets.json")).unwrap();
    world.run_with("own", &["kit", "open", "kit.age"], PASSPHRASE).fails("AlreadyExists", 1);
    assert_eq!(std::fs::read(world.path("own/secrets.json")).unwrap(), before);
}

#[test]
fn a_kit_finds_a_vault_that_has_moved() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    world.run_with("home", &["kit", "export", "kit.age"], PASSPHRASE).ok();
    std::fs::rename(world.path("home/vault"), world.path("disk")).unwrap();
    std::fs::remove_dir_all(world.path("home")).unwrap();
    let lost = world.run_with("home", &["kit", "open", "kit.age"], PASSPHRASE).fails("VaultNotFound", 4);
    assert!(lost.stderr.contains("--vault"), "{lost:?}");
    world.run_with("home", &["kit", "open", "kit.age", "--vault", "disk"], PASSPHRASE).ok();
    world.run(&["restore", "blog", "--directory", "out"]).ok();
    world.assert_same(world.path("blog"), world.path("out"));
}

#[test]
fn a_kit_is_an_ordinary_age_file() {
    use std::io::Read as _;
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    world.run_with("home", &["kit", "export", "kit.age"], PASSPHRASE).ok();
    let sealed = std::fs::read(world.path("kit.age")).unwrap();
    let decryptor = age::Decryptor::new(age::armor::ArmoredReader::new(&sealed[..])).unwrap();
    let identity = age::scrypt::Identity::new(age::secrecy::SecretString::from(PASSPHRASE.trim().to_owned()));
    let mut text = String::new();
    decryptor.decrypt(std::iter::once(&identity as _)).unwrap().read_to_string(&mut text).unwrap();
    let kit: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(kit["vault_address"], world.path("home/vault").to_str().unwrap());
    // What it says is enough for restic alone.
    let password = kit["vault_password"].as_str().unwrap();
    let restic = backstay_testing::Restic::new(world.path("home/vault"), password);
    assert_eq!(restic.snapshots().len(), 1);
    assert!(restic.check_read_data().is_ok());
}

#[test]
fn a_vault_is_attached_by_its_password_only() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    let added = world.run_with("home", &["vault", "key", "add"], "a password of ours\n").ok();
    assert!(added.stderr.contains("added"), "{added:?}");
    world.run_with("home", &["vault", "key", "add"], "short\n").fails("InvalidValue", 2);
    assert_eq!(world.json(&["vault", "key", "list"])["keys"].as_array().unwrap().len(), 2);

    let attach = ["vault", "attach", "home/vault"];
    world.run_with("blank", &attach, "not the password\n").fails("WrongPassword", 1);
    world.run_with("blank", &attach, "\n").fails("InvalidValue", 2);
    world.run_with("blank", &["vault", "attach", "nowhere"], "x\n").fails("VaultNotFound", 4);
    world.run_with("blank", &["vault", "attach", "s3://key:secret@host/x"], "x\n").fails("InvalidValue", 2);
    assert!(!world.path("blank").exists(), "what fails makes nothing");
    world.run_with("blank", &attach, "a password of ours\n").ok();
    world.run_at("blank", &["restore", "blog", "--directory", "out"]).ok();
    world.assert_same(world.path("blog"), world.path("out"));
    world.write("pw", b"a password of ours\nsecond line\n");
    let file = ["vault", "attach", "home/vault", "--password-file", "pw"];
    world.run_at("blank2", &file).ok();

    // A key that is in use stays; another goes, and its password with it.
    let keys = world.json(&["vault", "key", "list"]);
    let key = |in_use: bool| {
        let mut keys = keys["keys"].as_array().unwrap().iter();
        keys.find(|k| k["in_use"] == in_use).unwrap()["id"].as_str().unwrap().to_owned()
    };
    world.run(&["vault", "key", "remove", &key(true), "--yes"]).fails("Conflict", 1);
    world.run(&["vault", "key", "remove", "ffffffffff", "--yes"]).fails("KeyNotFound", 4);
    world.run(&["vault", "key", "remove", &key(false)]).fails("ConfirmationNeeded", 2);
    world.run(&["vault", "key", "remove", &key(false)[..10], "--yes"]).ok();
    world.run_at("blank", &["list"]).fails("WrongPassword", 1);
    world.run(&["list"]).ok();
}

#[test]
fn a_lost_catalog_is_rebuilt_and_a_damaged_one_is_told() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    world.run(&["pin", "blog", "latest"]).ok();
    let before = world.ok(&["list"]);
    let home = |name: &str| world.path("home").join(name);
    for name in ["hosting.db", "hosting.db-wal", "hosting.db-shm"] {
        std::fs::remove_file(home(name)).unwrap_or_default();
    }
    std::fs::remove_dir_all(home("cache")).unwrap();
    assert_eq!(world.ok(&["list"]), before);
    let again = world.json(&["backup", "blog"]);
    assert_eq!(again["new_app"], false, "apps and their homes come from the vault");

    for name in ["hosting.db-wal", "hosting.db-shm"] {
        std::fs::remove_file(home(name)).unwrap_or_default();
    }
    std::fs::write(home("hosting.db"), vec![7; 20_000]).unwrap();
    let damaged = world.run(&["list"]).fails("StateDamaged", 1);
    assert!(damaged.stderr.contains("Move"), "{damaged:?}");
    std::fs::remove_file(home("hosting.db")).unwrap();
    assert_eq!(world.points("blog").len(), 2);
}

#[test]
fn secrets_of_the_future_or_broken_ones_are_never_replaced() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    let path = world.path("home/secrets.json");
    for (text, code) in [
        ("{\"version\":99}", "StateUnsupported"),
        ("{\"version\":1,\"vault_password\":", "StateDamaged"),
        ("", "StateDamaged"),
    ] {
        std::fs::write(&path, text).unwrap();
        world.run(&["backup", "blog"]).fails(code, 1);
        world.run(&["list"]).fails(code, 1);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    // Lost altogether: the vault there is told, no new secrets are made beside it.
    std::fs::remove_file(&path).unwrap();
    world.run(&["backup", "blog"]).fails("Conflict", 1);
    assert!(!path.exists());
}
