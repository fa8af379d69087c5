use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::conformance;

fn names(storage: &Local) -> Vec<String> {
    let mut names = Vec::new();
    storage
        .list("", &mut |o| {
            names.push(o.name);
            Ok(())
        })
        .unwrap();
    names.sort();
    names
}

#[test]
fn keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let next = std::sync::atomic::AtomicU32::new(0);
    conformance::suite(|| {
        let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Box::new(Local::create(dir.path().join(n.to_string())).unwrap())
    });
}

#[test]
fn folders_and_files_are_for_the_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Local::create(dir.path().join("made/for/this")).unwrap();
    storage.put("data/ab/x", b"1", Put::IfAbsent).unwrap();
    let mode = |p: &str| fs::metadata(dir.path().join(p)).unwrap().permissions().mode() & 0o7777;
    for folder in ["made", "made/for", "made/for/this", "made/for/this/data", "made/for/this/data/ab"] {
        assert_eq!(mode(folder), 0o700, "{folder}");
    }
    assert_eq!(mode("made/for/this/data/ab/x"), 0o600);
}

#[test]
fn a_missing_place_is_made_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vault");
    assert_eq!(Local::open(&path).unwrap_err().code(), Code::StorageNotFound);
    assert!(!path.exists());
    drop(Local::create(&path).unwrap());
    drop(Local::create(&path).unwrap());
    drop(Local::open(&path).unwrap());
    fs::write(dir.path().join("file"), "x").unwrap();
    assert_eq!(Local::open(dir.path().join("file")).unwrap_err().code(), Code::StorageNotFound);
    assert!(Local::create(dir.path().join("file/below")).is_err());
}

#[test]
fn a_place_that_vanished_is_not_made_again_and_not_taken_for_empty() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vault");
    let storage = Local::create(&path).unwrap();
    storage.put("keys/a", b"1", Put::IfAbsent).unwrap();
    fs::remove_dir_all(&path).unwrap();
    let put = storage.put("keys/b", b"1", Put::IfAbsent).unwrap_err();
    assert_eq!(put.code(), Code::StorageUnavailable, "{put:?}");
    assert_eq!(storage.get("keys/a").unwrap_err().code(), Code::StorageUnavailable);
    assert_eq!(storage.list("keys", &mut |_| Ok(())).unwrap_err().code(), Code::StorageUnavailable);
    assert!(!path.exists());
}

#[test]
fn nothing_but_objects_is_listed_and_links_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Local::create(dir.path().join("vault")).unwrap();
    storage.put("data/a", b"1", Put::IfAbsent).unwrap();
    let at = |p: &str| dir.path().join("vault").join(p);
    fs::write(dir.path().join("outside"), "secret").unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    fs::write(dir.path().join("folder/x"), "secret").unwrap();
    for name in ["data/.tmp-other", "lost file", "data/ümlaut"] {
        fs::write(at(name), "x").unwrap();
    }
    symlink(dir.path().join("outside"), at("data/link")).unwrap();
    symlink(dir.path().join("folder"), at("linked")).unwrap();
    assert_eq!(names(&storage), ["data/a"]);
    for name in ["data/link", "linked/x"] {
        let e = storage.get(name).unwrap_err();
        assert!(!matches!(e.code(), Code::Internal | Code::System), "{e:?}");
        assert!(storage.put(&format!("{name}/y"), b"", Put::IfAbsent).is_err());
    }
    assert!(storage.put("linked/y", b"", Put::Replace).is_err());
    storage.put("data/link", b"own", Put::Replace).unwrap();
    assert_eq!(fs::read(dir.path().join("outside")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(dir.path().join("folder")).unwrap().count(), 1);
}

#[test]
fn a_kept_handle_is_not_used_after_another_process_replaced_or_deleted_the_object() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (Local::create(dir.path()).unwrap(), Local::open(dir.path()).unwrap());
    one.put("a", b"old", Put::IfAbsent).unwrap();
    assert_eq!(one.get_range("a", 0, 3).unwrap(), b"old");
    other.put("a", b"new one", Put::Replace).unwrap();
    assert_eq!(one.get_range("a", 0, 7).unwrap(), b"new one");
    other.delete("a").unwrap();
    assert_eq!(one.get_range("a", 0, 3).unwrap_err().code(), Code::ObjectNotFound);
}

#[test]
fn many_objects_are_read_without_keeping_them_all_open() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Local::create(dir.path()).unwrap();
    let open_files = || {
        let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
        links.filter(|l| fs::read_link(l.path()).is_ok_and(|t| t.starts_with(dir.path()))).count()
    };
    for i in 0..200 {
        let name = format!("data/{i}");
        storage.put(&name, b"1", Put::IfAbsent).unwrap();
        storage.get_range(&name, 0, 1).unwrap();
    }
    assert!((2..=40).contains(&open_files()), "{}", open_files());
}

#[test]
fn files_in_the_making_of_dead_processes_are_removed_on_open() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Local::create(dir.path()).unwrap();
    storage.put("data/ab/x", b"1", Put::IfAbsent).unwrap();
    let living = temporary::new_name();
    // The same maker but for the start time: an id that was used again.
    let mut parts: Vec<&str> = living.split('-').collect();
    let at = parts.len() - 2;
    parts[at] = "1";
    let dead = parts.join("-");
    for folder in ["", "data", "data/ab"] {
        fs::write(dir.path().join(folder).join(&living), "x").unwrap();
        fs::write(dir.path().join(folder).join(&dead), "x").unwrap();
    }
    let storage = Local::open(dir.path()).unwrap();
    for folder in ["", "data", "data/ab"] {
        assert!(dir.path().join(folder).join(&living).exists());
        assert!(!dir.path().join(folder).join(&dead).exists());
    }
    assert_eq!(names(&storage), ["data/ab/x"]);
}

#[test]
fn refused_access_is_told_apart_from_absence() {
    if rustix::process::geteuid().is_root() {
        println!("skipped as root, whom modes do not stop");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let storage = Local::create(dir.path()).unwrap();
    storage.put("data/x", b"1", Put::IfAbsent).unwrap();
    fs::set_permissions(dir.path().join("data/x"), fs::Permissions::from_mode(0o000)).unwrap();
    assert_eq!(storage.get("data/x").unwrap_err().code(), Code::StorageDenied);
    fs::set_permissions(dir.path().join("data"), fs::Permissions::from_mode(0o500)).unwrap();
    assert_eq!(storage.put("data/y", b"1", Put::IfAbsent).unwrap_err().code(), Code::StorageDenied);
    fs::set_permissions(dir.path().join("data"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn an_object_in_place_is_not_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Local::create(dir.path()).unwrap();
    storage.put("a", b"1", Put::IfAbsent).unwrap();
    let before = fs::metadata(dir.path().join("a")).unwrap().ino();
    assert_eq!(storage.put("a", b"2", Put::IfAbsent).unwrap_err().code(), Code::ObjectExists);
    assert_eq!(fs::metadata(dir.path().join("a")).unwrap().ino(), before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a file in the making was left");
}
