//! Settings and connection strings: sealed, snapshots and documents of them, and a new key stopped at every call.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use backstay_engine::{ConnectionType, Engine, NewContainer, SettingsDiff, Setup, StorageOptions};
use backstay_model::{AppName, Code, Result, Secret};
use backstay_testing::quick_dir;
use backstay_tree::fs::{Faulty, FileSystem, Host, Kill};

const CANARY: &str = "canary-2b7e151628aed2a6";

fn engine_on(fs: Arc<dyn FileSystem>, dir: &Path) -> Result<Engine> {
    Engine::new(Setup { state: Some(dir.join("home")), fs, ..Setup::default() })
}

fn engine(dir: &Path) -> Engine {
    engine_on(Arc::new(Host), dir).unwrap()
}

fn name(text: &str) -> AppName {
    text.parse().unwrap()
}

fn secret(text: &str) -> Secret {
    Secret::new(text)
}

/// A state with the apps `blog` and `shop`.
fn world() -> (tempfile::TempDir, Engine) {
    let dir = quick_dir();
    let engine = engine(dir.path());
    for app in ["blog", "shop"] {
        engine.app_add(&name(app), None, &mut |_| Ok(())).unwrap();
    }
    (dir, engine)
}

fn postgres(password: &str) -> Secret {
    Secret::new(format!("postgres://web:{password}@db/shop"))
}

fn values(engine: &Engine, app: &str) -> Vec<(String, String)> {
    let app = name(app);
    let settings = engine.settings_revealed(&app).unwrap().into_iter().map(|(s, v)| (s.name, Some(v)));
    let connections = engine.connections_revealed(&app).unwrap().into_iter().map(|(l, v)| (l.name, v));
    settings.chain(connections).map(|(name, value)| (name, value.unwrap().reveal().to_owned())).collect()
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn names(all: &[backstay_engine::SettingName]) -> Vec<&str> {
    all.iter().map(|s| s.name.as_str()).collect()
}

#[test]
fn what_is_given_is_listed_without_its_value_and_keeps_its_type_and_mark() {
    let (dir, engine) = world();
    let (blog, shop) = (name("blog"), name("shop"));
    let first = engine.set_setting(&blog, "B", &secret(CANARY), None).unwrap();
    assert!(first.first_run.is_some() && !first.replaced && !first.setting.slot_sticky);
    engine.set_setting(&blog, "A", &secret(""), Some(true)).unwrap();
    let again = engine.set_setting(&blog, "A", &secret("2"), None).unwrap();
    assert!(again.replaced && again.setting.slot_sticky && again.first_run.is_none(), "the mark stays");
    let listed = engine.setting_list(&blog).unwrap();
    assert_eq!(listed.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["A", "B"]);
    assert!(!format!("{listed:?}").contains(CANARY));
    assert_eq!(values(&engine, "blog"), pairs(&[("A", "2"), ("B", CANARY)]));
    assert!(engine.setting_list(&shop).unwrap().is_empty());

    let typed = Some(ConnectionType::PostgreSql);
    let set = engine.set_connection(&blog, "DB", &postgres(CANARY), typed, None).unwrap();
    assert_eq!(set.link.endpoint.unwrap().to_string(), "PostgreSQL `shop` on db:5432 as `web`");
    engine.set_connection(&blog, "DB", &postgres("other"), None, None).unwrap();
    engine.set_connection(&blog, "Sniffed", &postgres(CANARY), None, None).unwrap();
    engine.set_connection(&blog, "Redis", &secret(&format!("redis://:{CANARY}@cache")), None, None).unwrap();
    let links = engine.connections(&blog).unwrap();
    assert!(!format!("{links:?}").contains(CANARY));
    let kinds: Vec<_> = links.iter().map(|l| (l.name.as_str(), l.kind, l.endpoint.is_ok())).collect();
    let expected = [
        ("DB", ConnectionType::PostgreSql, true),
        ("Redis", ConnectionType::Custom, false),
        ("Sniffed", ConnectionType::Custom, true),
    ];
    assert_eq!(kinds, expected);

    let code = |result: Result<backstay_engine::ConnectionSet>| result.unwrap_err().code();
    assert_eq!(code(engine.set_connection(&blog, "X", &secret(CANARY), typed, None)), Code::InvalidValue);
    let other = Some(ConnectionType::MySql);
    assert_eq!(code(engine.set_connection(&blog, "X", &postgres(CANARY), other, None)), Code::InvalidValue);
    assert_eq!(code(engine.set_connection(&blog, "X", &secret(""), None, None)), Code::InvalidValue);
    assert_eq!(
        code(engine.set_connection(&name("nobody"), "X", &secret("a"), None, None)),
        Code::AppNotFound
    );
    for (name, value) in [("a b", "x"), ("", "x"), ("X", "a\0b"), ("X", &"x".repeat(65_537))] {
        let e = engine.set_setting(&blog, name, &secret(value), None).unwrap_err();
        assert_eq!(e.code(), Code::InvalidValue);
    }
    assert_eq!(engine.delete_setting(&blog, "DB").unwrap_err().code(), Code::SettingNotFound);
    assert_eq!(engine.delete_connection(&blog, "A").unwrap_err().code(), Code::ConnectionNotFound);
    engine.delete_setting(&blog, "A").unwrap();
    engine.delete_connection(&blog, "Redis").unwrap();
    assert_eq!(values(&engine, "blog").len(), 3);
    // Neither the catalog nor anything else in the state holds a value.
    for entry in std::fs::read_dir(dir.path().join("home")).unwrap().flatten() {
        let bytes = std::fs::read(entry.path()).unwrap_or_default();
        assert!(!bytes.windows(CANARY.len()).any(|w| w == CANARY.as_bytes()), "{:?}", entry.path());
    }
}

#[test]
fn a_sealed_value_that_was_moved_or_whose_key_is_gone_is_told_and_hinders_no_other() {
    let (dir, engine) = world();
    let blog = name("blog");
    engine.set_connection(&blog, "DB", &postgres(CANARY), None, None).unwrap();
    let file = dir.path().join("home/secrets.json");
    let whole = std::fs::read_to_string(&file).unwrap();
    let mut without: serde_json::Value = serde_json::from_str(&whole).unwrap();
    without["key_encryption_keys"] = serde_json::json!([]);
    std::fs::write(&file, without.to_string()).unwrap();
    engine.set_connection(&blog, "New", &postgres("x"), None, None).unwrap();
    let links = engine.connections(&blog).unwrap();
    assert_eq!(links[0].endpoint.as_ref().unwrap_err().code(), Code::StateDamaged);
    assert!(links[1].endpoint.is_ok());
    assert_eq!(engine.settings_document(&blog).unwrap_err().code(), Code::StateDamaged);
    let rotated = engine.rotate_key().unwrap();
    assert_eq!((rotated.resealed, rotated.left.len()), (1, 1));
    assert!(rotated.left[0].what.contains("`DB`") && rotated.left[0].code == Code::StateDamaged);
}

#[test]
fn a_snapshot_is_put_back_exactly_and_may_lie_in_a_note() {
    let (_dir, engine) = world();
    let (blog, shop) = (name("blog"), name("shop"));
    engine.set_setting(&blog, "A", &secret(CANARY), Some(true)).unwrap();
    engine.set_setting(&blog, "B", &secret("1"), None).unwrap();
    engine.set_connection(&blog, "DB", &postgres(CANARY), Some(ConnectionType::PostgreSql), None).unwrap();
    let before = engine.settings_snapshot(&blog).unwrap();
    let note = serde_json::to_string(&before).unwrap();
    assert!(!note.contains(CANARY) && !format!("{before:?}").contains(CANARY));
    let kept = values(&engine, "blog");
    assert!(engine.settings_diff(&blog, &before).unwrap().is_empty());

    engine.set_setting(&blog, "A", &secret("other"), None).unwrap();
    engine.delete_setting(&blog, "B").unwrap();
    engine.set_setting(&blog, "C", &secret("new"), None).unwrap();
    engine.set_connection(&blog, "DB", &postgres(CANARY), Some(ConnectionType::Custom), None).unwrap();
    engine.rotate_key().unwrap();
    let noted = serde_json::from_str(&note).unwrap();
    let diff = engine.settings_diff(&blog, &noted).unwrap();
    let told = (names(&diff.added), names(&diff.changed), names(&diff.removed));
    assert_eq!(told, (vec!["B"], vec!["DB", "A"], vec!["C"]));
    assert_eq!(diff.changed[0].connection_type.as_deref(), Some("PostgreSQL"));
    assert!(!serde_json::to_string(&diff).unwrap().contains(CANARY));
    for _ in 0..2 {
        engine.put_settings_snapshot(&blog, &noted).unwrap();
        assert_eq!(values(&engine, "blog"), kept);
        assert_eq!(engine.settings_snapshot(&blog).unwrap(), before, "to the last bit, the second time too");
    }
    assert_eq!(engine.settings_diff(&blog, &noted).unwrap(), SettingsDiff::default());
    assert_eq!(engine.put_settings_snapshot(&shop, &noted).unwrap_err().code(), Code::Internal);
    let newer = serde_json::from_str(&note.replacen("\"version\":1", "\"version\":2", 1)).unwrap();
    assert_eq!(engine.put_settings_snapshot(&blog, &newer).unwrap_err().code(), Code::StateUnsupported);
    assert_eq!(values(&engine, "blog"), kept);
}

#[test]
fn a_document_goes_back_into_its_app_whole_and_into_another_without_what_belongs_to_the_slot() {
    let (_dir, engine) = world();
    let (blog, shop) = (name("blog"), name("shop"));
    assert!(engine.settings_document(&blog).unwrap().is_none());
    engine.set_setting(&blog, "OWN", &secret(CANARY), Some(true)).unwrap();
    engine.set_setting(&blog, "A", &secret("1"), None).unwrap();
    engine.set_connection(&blog, "DB", &postgres("p"), Some(ConnectionType::PostgreSql), None).unwrap();
    let document = engine.settings_document(&blog).unwrap().unwrap();
    engine.set_setting(&blog, "A", &secret("1"), None).unwrap();
    assert_eq!(
        *engine.settings_document(&blog).unwrap().unwrap(),
        *document,
        "unchanged ones are the same bytes"
    );

    // Its own app: everything, the marked ones too.
    engine.set_setting(&blog, "OWN", &secret("other"), None).unwrap();
    engine.delete_setting(&blog, "A").unwrap();
    let snapshot = engine.snapshot_of_document(&blog, &document).unwrap();
    assert!(!snapshot.is_silent());
    let diff = engine.settings_diff(&blog, &snapshot).unwrap();
    assert_eq!((names(&diff.added), names(&diff.changed)), (vec!["A"], vec!["OWN"]));
    engine.put_settings_snapshot(&blog, &snapshot).unwrap();
    let p = "postgres://web:p@db/shop";
    assert_eq!(values(&engine, "blog"), pairs(&[("A", "1"), ("OWN", CANARY), ("DB", p)]));

    // Another one: its own marked ones stay, also against one of the same name.
    engine.set_setting(&shop, "A", &secret("of the shop"), Some(true)).unwrap();
    engine.set_setting(&shop, "OLD", &secret("x"), None).unwrap();
    let snapshot = engine.snapshot_of_document(&shop, &document).unwrap();
    assert!(!serde_json::to_string(&snapshot).unwrap().contains(CANARY));
    let diff = engine.settings_diff(&shop, &snapshot).unwrap();
    let told = (names(&diff.added), names(&diff.removed), names(&diff.kept), names(&diff.left_out));
    assert_eq!(told, (vec!["DB"], vec!["OLD"], vec!["A"], vec!["OWN"]));
    for _ in 0..2 {
        engine.put_settings_snapshot(&shop, &snapshot).unwrap();
        assert_eq!(values(&engine, "shop"), pairs(&[("A", "of the shop"), ("DB", p)]));
    }
    // What an archive from before there were settings says nothing about stays.
    let old = br#"{"backstay_settings": 1, "app": "shop", "kind": "folder", "config": {"plan": "default"}}"#;
    let silent = engine.snapshot_of_document(&shop, old).unwrap();
    assert!(silent.is_silent() && engine.settings_diff(&shop, &silent).unwrap().is_empty());
    engine.put_settings_snapshot(&shop, &silent).unwrap();
    assert_eq!(values(&engine, "shop").len(), 2);
    assert_eq!(engine.snapshot_of_document(&shop, b"{}").unwrap_err().code(), Code::VaultUnsupported);
}

#[test]
fn a_new_key_stopped_at_any_call_leaves_everything_open() {
    let (first, engine_of_first) = world();
    let blog = name("blog");
    engine_of_first.set_setting(&blog, "A", &secret("1"), None).unwrap();
    engine_of_first.set_connection(&blog, "DB", &postgres("p"), None, None).unwrap();
    let container = NewContainer {
        name: "shelf",
        // Nobody answers there.
        address: Some("s3://bucket/x?region=eu-west-1&endpoint=http://127.0.0.1:1"),
        credentials: Some(secret("ID:KEY")),
        options: StorageOptions::default(),
        create: false,
        replace: false,
        untested: true,
    };
    engine_of_first.container_add(&container).unwrap();
    drop(engine_of_first);
    let prepared = || {
        let dir = quick_dir();
        let copied = Command::new("cp").arg("-a").arg(first.path().join("home")).arg(dir.path()).status();
        assert!(copied.unwrap().success());
        dir
    };
    let opens = |dir: &Path, what: &str| {
        let expected = pairs(&[("A", "1"), ("DB", "postgres://web:p@db/shop")]);
        assert_eq!(values(&engine(dir), "blog"), expected, "{what}");
    };
    // All three, the container's key too: what cannot be opened is left.
    let all_sealed_anew = |dir: &Path, what: &str| {
        let again = engine(dir).rotate_key().unwrap_or_else(|e| panic!("{what}: {e:?}"));
        assert_eq!((again.resealed, again.left.len()), (3, 0), "{what}");
        opens(dir, what);
    };
    let dir = prepared();
    let fs = Arc::new(Faulty::new(Arc::new(Host)));
    let rotated = engine_on(fs.clone(), dir.path()).unwrap().rotate_key().unwrap();
    assert_eq!((rotated.keys, rotated.resealed, rotated.left.len()), (2, 3, 0));
    opens(dir.path(), "afterwards");
    // Only the newest key is needed for what is in the catalog.
    let file = dir.path().join("home/secrets.json");
    let mut secrets: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    secrets["key_encryption_keys"].as_array_mut().unwrap().remove(0);
    std::fs::write(&file, secrets.to_string()).unwrap();
    opens(dir.path(), "with the newest key alone");
    all_sealed_anew(dir.path(), "with the newest key alone");

    let calls = fs.points();
    assert!(calls >= 5, "only {calls} calls were counted");
    for how in [Kill::Before, Kill::After] {
        for number in 1..=calls {
            let dir = prepared();
            let fs = Arc::new(Faulty::new(Arc::new(Host)));
            fs.kill_at(number, how);
            let died = engine_on(fs, dir.path()).and_then(|e| e.rotate_key());
            let what = format!("stopped at call {number} of {calls} ({how:?}): {:?}", died.err());
            opens(dir.path(), &what);
            all_sealed_anew(dir.path(), &what);
        }
    }
    for number in 1..=calls {
        let dir = prepared();
        let aside = tempfile::tempdir_in(dir.path()).unwrap();
        let fs = Arc::new(Faulty::with_power_loss(Arc::new(Host), aside.path()).unwrap());
        fs.kill_at(number, Kill::Before);
        let died = engine_on(fs.clone(), dir.path()).and_then(|e| e.rotate_key());
        fs.power_loss().unwrap();
        let what = format!("power lost at call {number} of {calls}: {:?}", died.err());
        opens(dir.path(), &what);
        all_sealed_anew(dir.path(), &what);
    }
    println!("{calls} system calls of a new key, each stopped before and after, and without power");
}
