//! The order in which the objects of an archive come and go, stopped at every call.

use std::sync::Arc;

use backstay_archive::{Name, place, root_name};
use backstay_model::Code;
use backstay_storage::{Fault, Faulty, Memory, Op, Put, Rule, Storage};
use jiff::Timestamp;

use crate::world::name;

fn begin() -> (Arc<Memory>, Faulty) {
    let memory = Arc::new(Memory::new());
    let faulty = Faulty::new(memory.clone());
    (memory, faulty)
}

/// A whole backup of tiny objects.
fn back_up(storage: &dyn Storage) -> backstay_model::Result<()> {
    place::reserve(storage, &name(), "job 1\n")?;
    storage.put(&name().zip(), b"zip", Put::IfAbsent)?;
    place::commit(storage, &name(), "job 1\nall is well\n", b"manifest")
}

fn is_whole(storage: &dyn Storage) -> bool {
    let parts = place::list(storage).unwrap().remove(&name()).unwrap_or_default();
    if parts.is_backup() {
        assert_eq!((parts.xml, parts.zip, parts.log), (Some(8), Some(3), Some(18)));
    }
    parts.is_backup()
}

#[test]
fn names() {
    let app = "blog".parse().unwrap();
    let name = Name::of(&app, "2026-11-20T13:05:59Z".parse::<Timestamp>().unwrap());
    assert_eq!((name.as_str(), &*name.zip()), ("blog_202611201305", "blog_202611201305.zip"));
    assert_eq!(name.version(2).xml(), "blog_202611201305-2.xml");
    assert_eq!(Name::parse("2026/before update").unwrap_err().code(), Code::InvalidValue);
    assert_eq!(Name::parse("daily/blog.v1").unwrap().log(), "daily/blog.v1.log");
    for bad in ["", "/a", "a/", "../a", ".tmp-1/a", "a b", &"x".repeat(151)] {
        assert_eq!(Name::parse(bad).unwrap_err().code(), Code::InvalidValue, "{bad}");
    }
    let taken = ["blog".to_owned(), "a_b".to_owned()];
    for (database, file) in [
        ("shop", "shop"),
        ("BLOG", "BLOG-2"),
        ("fs", "fs-2"),
        ("Settings.AGE", "Settings.AGE-2"),
        ("metadata.jsonl", "metadata.jsonl-2"),
        ("a/b", "a_b-2"),
        ("../../etc", "_.._etc"),
        ("", "database-2"),
        ("...", "database-2"),
        ("\u{e9}t\u{e9}", "\u{e9}t\u{e9}"),
    ] {
        assert_eq!(root_name(database, &taken), file);
        assert!(place::is_root_name(file));
    }
}

#[test]
fn a_backup_killed_at_any_call_is_whole_or_none() {
    let (memory, storage) = begin();
    back_up(&storage).unwrap();
    assert!(is_whole(&*memory));
    let calls = storage.calls().iter().filter(|call| call.op.mutates()).count() as u64;
    assert_eq!(calls, 4);
    for nth in 1..=calls {
        for after in [false, true] {
            let (memory, storage) = begin();
            storage.kill_at(nth, after);
            back_up(&storage).unwrap_err();
            assert_eq!(is_whole(&*memory), nth == calls && after, "call {nth}, after: {after}");
            if !is_whole(&*memory) {
                // The next run knows that its job is dead, removes what is left and may use the name.
                place::remove(&*memory, &name()).unwrap();
                back_up(&*memory).unwrap();
                assert!(is_whole(&*memory));
            }
        }
    }
}

#[test]
fn deleting_killed_at_any_call_leaves_a_whole_backup_or_none() {
    for nth in 1..=3 {
        for after in [false, true] {
            let (memory, storage) = begin();
            back_up(&*memory).unwrap();
            storage.kill_at(nth, after);
            place::remove(&storage, &name()).unwrap_err();
            assert_eq!(is_whole(&*memory), nth == 1 && !after, "call {nth}, after: {after}");
            // The name is held until nothing is left.
            let left = place::list(&*memory).unwrap();
            let taken = place::reserve(&*memory, &name(), "job 2\n").is_err();
            assert_eq!(taken, !left.is_empty());
            place::remove(&*memory, &name()).unwrap();
            assert!(place::list(&*memory).unwrap().is_empty());
        }
    }
    let (memory, _) = begin();
    assert!(!place::remove(&*memory, &name()).unwrap());
}

#[test]
fn a_name_in_use_is_refused_and_stays_as_it_is() {
    let (memory, _) = begin();
    back_up(&*memory).unwrap();
    assert_eq!(place::reserve(&*memory, &name(), "job 2\n").unwrap_err().code(), Code::AlreadyExists);
    assert!(is_whole(&*memory));
    // Somebody removed the log, which held the name: the rest still does.
    for gone in [vec![name().log()], vec![name().log(), name().xml()]] {
        gone.iter().for_each(|object| memory.delete(object).unwrap_or(()));
        assert_eq!(place::reserve(&*memory, &name(), "job 2\n").unwrap_err().code(), Code::AlreadyExists);
        assert_eq!(memory.size(&name().log()).unwrap_err().code(), Code::ObjectNotFound);
    }
}

#[test]
fn an_answer_that_was_lost_does_not_fail_a_backup_that_is_there() {
    let (memory, storage) = begin();
    storage.add(Rule::new(Fault::FailAfter(Code::StorageUnavailable)).on(Op::Put).name(name().xml()));
    back_up(&storage).unwrap();
    assert!(is_whole(&*memory));
    let (memory, storage) = begin();
    storage.add(Rule::new(Fault::Fail(Code::StorageUnavailable)).on(Op::Put).name(name().xml()));
    assert_eq!(back_up(&storage).unwrap_err().code(), Code::StorageUnavailable);
    assert!(!is_whole(&*memory));
    // Another one's manifest is not ours.
    let (memory, storage) = begin();
    place::reserve(&storage, &name(), "job 1\n").unwrap();
    memory.put(&name().xml(), b"other", Put::IfAbsent).unwrap();
    let error = place::commit(&storage, &name(), "job 1\n", b"manifest").unwrap_err();
    assert_eq!(error.code(), Code::ObjectExists);
}

#[test]
fn only_what_has_the_name_of_a_part_is_listed() {
    let (memory, _) = begin();
    back_up(&*memory).unwrap();
    for other in ["readme.txt", "x.zip", "daily/y.log", "noending"] {
        memory.put(other, b"", Put::IfAbsent).unwrap();
    }
    let list = place::list(&*memory).unwrap();
    let names: Vec<_> = list.keys().map(Name::as_str).collect();
    assert_eq!(names, ["blog_202611201315", "daily/y", "x"]);
    assert_eq!(list.values().filter(|parts| parts.is_backup()).count(), 1);
}
