//! What every [`Storage`] must do, as one suite that each implementation runs.
//!
//! Every check gets a storage of its own, empty at the start. A check that fails panics with what was expected.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "this module is a test, made a module so that other crates can run it"
)]

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use backstay_model::Code;

use crate::{Object, Put, Storage};

const MIB: usize = 1 << 20;

/// A check with its name.
type Check = (&'static str, fn(&dyn Storage));

/// Runs every check; `make` gives a new, empty storage each time.
pub fn suite(make: impl Fn() -> Box<dyn Storage>) {
    suite_without(&[], make);
}

/// The same without some checks, each with the reason why it says nothing there: a server of the tests that cannot do
/// what the services it stands for can.
pub fn suite_without(left_out: &[(&str, &str)], make: impl Fn() -> Box<dyn Storage>) {
    let checks: &[Check] = &[
        ("put and get", put_and_get),
        ("put if absent", put_if_absent),
        ("replace", replace),
        ("sizes", sizes),
        ("ranges", ranges),
        ("absent objects", absent_objects),
        ("deleted objects", deleted_objects),
        ("odd names", odd_names),
        ("good names", good_names),
        ("listing by folder", listing_by_folder),
        ("errors of the listener", errors_of_the_listener),
        ("calls from the listener", calls_from_the_listener),
        ("one winner", one_winner),
        ("never half", never_half),
        ("listing while writing", listing_while_writing),
        ("many names at once", many_names_at_once),
        ("streams", streams),
        ("streams that are dropped", streams_that_are_dropped),
        ("one winner of streams", one_winner_of_streams),
    ];
    for (name, check) in checks {
        if let Some((_, why)) = left_out.iter().find(|(n, _)| n == name) {
            println!("storage contract: {name}: left out, {why}");
            continue;
        }
        println!("storage contract: {name}");
        let storage = make();
        assert!(list(&*storage, "").is_empty(), "the storage is not empty at the start");
        check(&*storage);
    }
}

/// Bytes that differ from each other and do not compress, the same for the same seed.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

fn list(storage: &dyn Storage, folder: &str) -> BTreeSet<(String, u64)> {
    let mut found = BTreeSet::new();
    storage
        .list(folder, &mut |Object { name, size }| {
            assert!(found.insert((name.clone(), size)), "{name} is listed twice");
            Ok(())
        })
        .unwrap();
    found
}

fn code<T: std::fmt::Debug>(result: backstay_model::Result<T>) -> Code {
    result.unwrap_err().code()
}

fn put_and_get(storage: &dyn Storage) {
    for (i, len) in [0, 1, 4095, 4096, 4097, MIB, 20 * MIB].into_iter().enumerate() {
        let (name, bytes) = (format!("data/{i}"), noise(len, 7));
        storage.put(&name, &bytes, Put::IfAbsent).unwrap();
        assert!(storage.get(&name).unwrap() == bytes, "{len} bytes came back otherwise");
        assert_eq!(storage.size(&name).unwrap(), len as u64);
    }
    assert!(!storage.location().is_empty());
}

fn put_if_absent(storage: &dyn Storage) {
    storage.put("keys/a", b"first", Put::IfAbsent).unwrap();
    assert_eq!(code(storage.put("keys/a", b"second", Put::IfAbsent)), Code::ObjectExists);
    assert_eq!(storage.get("keys/a").unwrap(), b"first");
    assert_eq!(list(storage, ""), [("keys/a".to_owned(), 5)].into());
}

fn replace(storage: &dyn Storage) {
    storage.put("a/b", b"first", Put::Replace).unwrap();
    assert_eq!(storage.get_range("a/b", 0, 5).unwrap(), b"first");
    for bytes in [&b"a longer one"[..], b"", b"x"] {
        storage.put("a/b", bytes, Put::Replace).unwrap();
        assert_eq!(storage.get("a/b").unwrap(), bytes);
        assert_eq!(storage.get_range("a/b", 0, bytes.len()).unwrap(), bytes);
        assert_eq!(list(storage, "a"), [("a/b".to_owned(), bytes.len() as u64)].into());
    }
}

fn sizes(storage: &dyn Storage) {
    storage.put("empty", b"", Put::IfAbsent).unwrap();
    storage.put("deep/er/two", b"22", Put::IfAbsent).unwrap();
    assert_eq!(storage.size("empty").unwrap(), 0);
    assert_eq!(storage.size("deep/er/two").unwrap(), 2);
    assert_eq!(code(storage.size("deep/er")), Code::ObjectNotFound);
    assert_eq!(code(storage.get("deep/er")), Code::ObjectNotFound);
    assert_eq!(code(storage.delete("deep/er")), Code::ObjectNotFound);
}

fn ranges(storage: &dyn Storage) {
    let bytes = noise(100_000, 3);
    storage.put("data/ab/pack", &bytes, Put::IfAbsent).unwrap();
    storage.put("data/ab/none", b"", Put::IfAbsent).unwrap();
    for (offset, len) in
        [(0, 0), (0, 1), (0, 100_000), (1, 99_999), (99_999, 1), (100_000, 0), (4095, 4098), (50_000, 50_000)]
    {
        let got = storage.get_range("data/ab/pack", offset as u64, len).unwrap();
        assert!(got == bytes[offset..offset + len], "{len} bytes from {offset}");
    }
    assert_eq!(storage.get_range("data/ab/none", 0, 0).unwrap(), b"");
    for (offset, len) in
        [(0, 100_001), (99_999, 2), (100_000, 1), (100_001, 0), (u64::MAX, 1), (1, usize::MAX), (u64::MAX, 0)]
    {
        assert_eq!(
            code(storage.get_range("data/ab/pack", offset, len)),
            Code::StorageFailed,
            "{len} from {offset}"
        );
    }
    assert_eq!(code(storage.get_range("data/ab/none", 0, 1)), Code::StorageFailed);
}

fn absent_objects(storage: &dyn Storage) {
    storage.put("there/a", b"1", Put::IfAbsent).unwrap();
    for name in ["absent", "there/b", "there/a/below", "nowhere/at/all"] {
        assert_eq!(code(storage.get(name)), Code::ObjectNotFound, "{name}");
        assert_eq!(code(storage.get_range(name, 0, 0)), Code::ObjectNotFound, "{name}");
        assert_eq!(code(storage.size(name)), Code::ObjectNotFound, "{name}");
        assert_eq!(code(storage.delete(name)), Code::ObjectNotFound, "{name}");
    }
    assert!(list(storage, "nowhere").is_empty());
}

fn deleted_objects(storage: &dyn Storage) {
    for name in ["d/a", "d/b"] {
        storage.put(name, name.as_bytes(), Put::IfAbsent).unwrap();
    }
    assert_eq!(storage.get_range("d/a", 0, 3).unwrap(), b"d/a");
    storage.delete("d/a").unwrap();
    assert_eq!(code(storage.get("d/a")), Code::ObjectNotFound);
    assert_eq!(code(storage.get_range("d/a", 0, 3)), Code::ObjectNotFound);
    assert_eq!(code(storage.delete("d/a")), Code::ObjectNotFound);
    assert_eq!(code(storage.discard("d/a")), Code::ObjectNotFound);
    assert_eq!(list(storage, ""), [("d/b".to_owned(), 3)].into());
    storage.put("d/a", b"again", Put::IfAbsent).unwrap();
    assert_eq!(storage.get_range("d/a", 0, 5).unwrap(), b"again");
    storage.delete("d/a").unwrap();
    storage.discard("d/b").unwrap();
    assert!(list(storage, "").is_empty());
}

fn odd_names(storage: &dyn Storage) {
    let long_part = "x".repeat(201);
    let long = ["x".repeat(128), "y".repeat(128), "z".repeat(128), "w".repeat(128)].join("/");
    let odd = [
        "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a/.", "a b", "a\0b", "a\nb", "ü", "a\\b",
        "a*", "a%2e", "~", ".tmp-1", "a/.tmp-x", &long_part, &long,
    ];
    for name in odd {
        assert_eq!(code(storage.put(name, b"x", Put::IfAbsent)), Code::InvalidValue, "{name:?}");
        assert_eq!(code(storage.put(name, b"x", Put::Replace)), Code::InvalidValue, "{name:?}");
        assert_eq!(code(storage.get(name)), Code::InvalidValue, "{name:?}");
        assert_eq!(code(storage.get_range(name, 0, 1)), Code::InvalidValue, "{name:?}");
        assert_eq!(code(storage.size(name)), Code::InvalidValue, "{name:?}");
        assert_eq!(code(storage.delete(name)), Code::InvalidValue, "{name:?}");
        if !name.is_empty() {
            assert_eq!(code(storage.list(name, &mut |_| Ok(()))), Code::InvalidValue, "{name:?}");
        }
    }
    assert!(list(storage, "").is_empty());
}

fn good_names(storage: &dyn Storage) {
    let long_part = "x".repeat(200);
    let long = ["x".repeat(127), "y".repeat(128), "z".repeat(127), "w".repeat(127)].join("/");
    assert_eq!(long.len(), 512);
    let good = ["a", "A", "0", "-", "--help", "_", "...", ".hidden", "a.b/c-d/e_f", "..a", &long_part, &long];
    for name in good {
        storage.put(name, name.as_bytes(), Put::IfAbsent).unwrap();
    }
    for name in good {
        assert_eq!(storage.get(name).unwrap(), name.as_bytes());
    }
    let want: BTreeSet<_> = good.iter().map(|n| ((*n).to_owned(), n.len() as u64)).collect();
    assert_eq!(list(storage, ""), want);
}

fn listing_by_folder(storage: &dyn Storage) {
    for name in
        ["data", "data1/a", "data.x", "data-/q", "dat/a", "locks/a", "deep/er/a", "deep/er/b/c", "deep/z"]
    {
        storage.put(name, name.as_bytes(), Put::IfAbsent).unwrap();
    }
    let names = |folder: &str| list(storage, folder).into_iter().map(|(n, _)| n).collect::<Vec<_>>();
    assert!(names("data").is_empty(), "siblings or the object itself listed: {:?}", names("data"));
    assert_eq!(names("data1"), ["data1/a"]);
    assert_eq!(names("deep"), ["deep/er/a", "deep/er/b/c", "deep/z"]);
    assert_eq!(names("deep/er"), ["deep/er/a", "deep/er/b/c"]);
    assert!(names("de").is_empty() && names("deep/er/a").is_empty());
    assert_eq!(names("").len(), 9);
}

fn errors_of_the_listener(storage: &dyn Storage) {
    for i in 0..10 {
        storage.put(&format!("a/{i}"), b"", Put::IfAbsent).unwrap();
    }
    let mut seen = 0;
    let stop = storage.list("a", &mut |_| {
        seen += 1;
        match seen {
            3 => Err(backstay_model::Error::new(Code::Cancelled, "Enough")),
            _ => Ok(()),
        }
    });
    assert_eq!((code(stop), seen), (Code::Cancelled, 3));
}

fn calls_from_the_listener(storage: &dyn Storage) {
    for i in 0..20 {
        storage.put(&format!("a/{i}"), b"x", Put::IfAbsent).unwrap();
    }
    storage.list("a", &mut |o| storage.delete(&o.name)).unwrap();
    assert!(list(storage, "").is_empty());
}

fn one_winner(storage: &dyn Storage) {
    for round in 0..20 {
        let name = format!("locks/{round}");
        let barrier = Barrier::new(8);
        let won: Vec<usize> = thread::scope(|s| {
            let write = |i: usize| {
                let bytes = noise(10_000 + i, i as u64);
                barrier.wait();
                match storage.put(&name, &bytes, Put::IfAbsent) {
                    Ok(()) => true,
                    Err(e) if e.code() == Code::ObjectExists => false,
                    Err(e) => panic!("{e:?}"),
                }
            };
            let threads: Vec<_> = (0..8).map(|i| s.spawn(move || write(i).then_some(i))).collect();
            threads.into_iter().filter_map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(won.len(), 1, "of 8 writers {won:?} were told that they were first");
        assert!(storage.get(&name).unwrap() == noise(10_000 + won[0], won[0] as u64));
    }
}

fn never_half(storage: &dyn Storage) {
    let versions: Vec<Vec<u8>> = (0..4).map(|i| noise(300_000 + i * 50_000, i as u64)).collect();
    storage.put("shared", &versions[0], Put::Replace).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|s| {
        let writer = |i: usize| {
            for turn in 0..25 {
                storage.put("shared", &versions[(i + turn) % 4], Put::Replace).unwrap();
            }
        };
        let reader = || {
            while !done.load(Ordering::Relaxed) {
                let got = storage.get("shared").unwrap();
                assert!(versions.contains(&got), "{} bytes that nobody wrote", got.len());
                let listed = list(storage, "").into_iter().next().unwrap().1;
                assert!(versions.iter().any(|v| v.len() as u64 == listed));
                let head = storage.get_range("shared", 0, 300_000).unwrap();
                assert!(versions.iter().any(|v| v[..300_000] == head));
            }
        };
        let readers = [s.spawn(reader), s.spawn(reader)];
        let writers: Vec<_> = (0..4).map(|i| s.spawn(move || writer(i))).collect();
        let ends: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|r| r.join().unwrap());
        assert!(ends.iter().all(Result::is_ok));
    });
}

fn listing_while_writing(storage: &dyn Storage) {
    for i in 0..50 {
        storage.put(&format!("old/{i}"), b"old", Put::IfAbsent).unwrap();
    }
    let done = AtomicBool::new(false);
    thread::scope(|s| {
        let lister = s.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let found = list(storage, "");
                assert_eq!(found.iter().filter(|(n, _)| n.starts_with("old/")).count(), 50);
                assert!(found.iter().all(|(n, size)| n.starts_with("old/") || *size == 9));
            }
        });
        for i in 0..100 {
            storage.put(&format!("new/{i}"), b"something", Put::IfAbsent).unwrap();
            if i % 3 == 0 {
                storage.delete(&format!("new/{i}")).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
        lister.join().unwrap();
    });
    assert_eq!(list(storage, "new").len(), 66);
}

fn many_names_at_once(storage: &dyn Storage) {
    thread::scope(|s| {
        for t in 0..8u64 {
            s.spawn(move || {
                for i in 0..25 {
                    let name = format!("data/{:02x}/{t}-{i}", (t * 25 + i) % 16);
                    storage.put(&name, &noise(1000, t * 100 + i), Put::IfAbsent).unwrap();
                    assert!(storage.get_range(&name, 10, 90).unwrap() == noise(1000, t * 100 + i)[10..100]);
                }
            });
        }
    });
    assert_eq!(list(storage, "data").len(), 200);
}

/// Writes an object in pieces of a length.
fn stream(
    storage: &dyn Storage,
    name: &str,
    bytes: &[u8],
    piece: usize,
    mode: Put,
) -> backstay_model::Result<u64> {
    let mut upload = storage.put_stream(name, mode)?;
    for piece in bytes.chunks(piece) {
        upload.write(piece)?;
    }
    upload.commit()
}

fn streams(storage: &dyn Storage) {
    for (i, (len, piece)) in
        [(0, 1), (1, 1), (1000, 7), (8 * MIB, MIB), (8 * MIB + 1, 8 * MIB + 1), (25 * MIB + 5, 3 * MIB)]
            .into_iter()
            .enumerate()
    {
        let (name, bytes) = (format!("archives/{i}"), noise(len, i as u64));
        assert_eq!(stream(storage, &name, &bytes, piece, Put::IfAbsent).unwrap(), len as u64);
        assert!(storage.get(&name).unwrap() == bytes, "{len} bytes came back otherwise");
        let again = stream(storage, &name, b"other", 1, Put::IfAbsent);
        assert_eq!(code(again), Code::ObjectExists);
        let again = stream(storage, &name, &noise(9 * MIB, 1), MIB, Put::IfAbsent);
        assert_eq!(code(again), Code::ObjectExists);
        assert!(storage.get(&name).unwrap() == bytes, "{len} bytes were replaced");
    }
    let larger = noise(17 * MIB, 40);
    assert_eq!(stream(storage, "archives/0", &larger, MIB, Put::Replace).unwrap(), larger.len() as u64);
    assert_eq!(stream(storage, "archives/5", b"small", MIB, Put::Replace).unwrap(), 5);
    assert!(storage.get("archives/0").unwrap() == larger);
    assert_eq!(storage.get("archives/5").unwrap(), b"small");
    assert_eq!(code(storage.put_stream("a//b", Put::Replace).map(drop)), Code::InvalidValue);
    assert_eq!(list(storage, "").len(), 6);
}

fn streams_that_are_dropped(storage: &dyn Storage) {
    storage.put("there", b"first", Put::IfAbsent).unwrap();
    for (name, len) in [("new", 5), ("new", 20 * MIB), ("there", 5), ("there", 20 * MIB)] {
        let mut upload = storage.put_stream(name, Put::Replace).unwrap();
        upload.write(&noise(len, 9)).unwrap();
        assert_eq!(list(storage, ""), [("there".to_owned(), 5)].into(), "an object in the making is listed");
        assert_eq!(storage.get("there").unwrap(), b"first");
        drop(upload);
    }
    assert_eq!(list(storage, ""), [("there".to_owned(), 5)].into());
    assert_eq!(storage.get("there").unwrap(), b"first");
}

fn one_winner_of_streams(storage: &dyn Storage) {
    for len in [1000, 9 * MIB] {
        let name = format!("locks/{len}");
        let barrier = Barrier::new(4);
        let won: Vec<usize> = thread::scope(|s| {
            let write = |i: usize| {
                let mut upload = storage.put_stream(&name, Put::IfAbsent)?;
                upload.write(&noise(len + i, i as u64))?;
                barrier.wait();
                upload.commit()
            };
            let threads: Vec<_> = (0..4)
                .map(|i| {
                    s.spawn(move || match write(i) {
                        Ok(_) => Some(i),
                        Err(e) if e.code() == Code::ObjectExists => None,
                        Err(e) => panic!("{e:?}"),
                    })
                })
                .collect();
            threads.into_iter().filter_map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(won.len(), 1, "of 4 writers {won:?} were told that they were first");
        assert!(storage.get(&name).unwrap() == noise(len + won[0], won[0] as u64));
    }
}
