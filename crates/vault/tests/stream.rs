//! Documents that are streams: saved while they are made, given up when whoever makes them fails, read back as they are
//! pulled.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "test helpers"
)]

mod support;

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backstay_model::{Cancel, Code, Error, Result, Silent};
use backstay_storage::{Fault, Faulty as FaultyStorage, Memory, Object, Op, Put, Rule, Storage};
use backstay_testing::fixtures::Random;
use backstay_vault::backup::{Committed, SnapshotDetails, SnapshotWriter, StreamSaver};
use backstay_vault::check::{CheckOptions, check};
use backstay_vault::{Folder, Id, Lock, Node, Strength, Vault};
use support::{memory_vault, new_vault, open, verify};

fn lock(vault: &Vault) -> Lock {
    vault.lock(Strength::Shared, Duration::ZERO, &Cancel::new()).unwrap()
}

fn commit(writer: SnapshotWriter, lock: &Lock) -> Result<Committed> {
    let details =
        SnapshotDetails { time: writer.started(), paths: vec!["/x".into()], tags: Vec::new(), parent: None };
    writer.commit(lock, details, &Silent)
}

fn find(vault: &Vault, point: &Committed, path: &str) -> Option<Node> {
    vault.reader().unwrap().find(&point.snapshot.tree, Path::new(path)).ok()
}

#[track_caller]
fn content(vault: &Vault, point: &Committed, path: &str) -> Vec<u8> {
    let node = find(vault, point, path).expect("it is in the point");
    let reader = vault.reader().unwrap();
    let (mut pushed, mut pulled) = (Vec::new(), Vec::new());
    reader.cat(&node, &mut pushed).unwrap();
    reader.stream(&node).unwrap().read_to_end(&mut pulled).unwrap();
    assert!(pushed == pulled, "both ways of reading give the same");
    pulled
}

#[track_caller]
fn is_clean(vault: &Vault) {
    let report = check(vault, CheckOptions { read_data: true }, &Silent, &Cancel::new()).unwrap();
    assert!(report.is_clean(), "{:#?}", report.errors);
    verify(vault);
}

/// Gives bytes in portions, then fails or ends.
struct Source<'a> {
    bytes: &'a [u8],
    error: Option<io::Error>,
}

impl Read for Source<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() {
            return self.error.take().map_or(Ok(0), Err);
        }
        let count = buf.len().min(self.bytes.len()).min(65_521);
        buf[..count].copy_from_slice(&self.bytes[..count]);
        self.bytes = &self.bytes[count..];
        Ok(count)
    }
}

fn failing(bytes: &[u8], error: io::Error) -> Source<'_> {
    Source { bytes, error: Some(error) }
}

#[test]
fn a_reader_that_fails_ends_its_document_and_no_more() {
    let stream = Random::new(3).text(6 << 20);
    // Within what one thread holds, after some batches, at the very end.
    for fails_at in [0, 700, 300_000, 2_500_000, 5_000_001, stream.len()] {
        let (_memory, vault) = memory_vault();
        let held = lock(&vault);
        let mut writer = vault.begin(&held, 3, &Cancel::new()).unwrap();
        writer.save_bytes("before", b"before").unwrap();
        let mut reader = failing(&stream[..fails_at], io::Error::other("the pipe burst"));
        let error = writer.save_stream("databases/one", &mut reader, 6 << 20).unwrap().unwrap_err();
        assert_eq!(error.code(), Code::System);
        assert!(error.to_string().contains("databases/one"), "{error}");
        // The same bytes: what the failed one has claimed must be there.
        let mut reader = stream.as_slice();
        let size = writer.save_stream("databases/two", &mut reader, 6 << 20).unwrap().unwrap();
        assert_eq!(size, stream.len() as u64);
        let point = commit(writer, &held).unwrap();
        assert!(find(&vault, &point, "databases/one").is_none(), "at {fails_at}");
        assert!(content(&vault, &point, "databases/two") == stream, "at {fails_at}");
        assert_eq!(content(&vault, &point, "before"), b"before");
        is_clean(&vault);
        // A later backup relies on the index alone.
        let mut writer = vault.begin(&held, 3, &Cancel::new()).unwrap();
        writer.save_stream("databases/one", &mut stream.as_slice(), 6 << 20).unwrap().unwrap();
        let point = commit(writer, &held).unwrap();
        assert!(content(&vault, &point, "databases/one") == stream);
        assert_eq!(point.snapshot.summary.as_ref().unwrap().data_blobs, 0, "all of it was there");
        is_clean(&vault);
    }
}

#[test]
fn a_point_with_nothing_but_a_failed_document_is_sound_and_later_ones_may_use_what_it_left() {
    let (memory, vault) = memory_vault();
    let stream = Random::new(4).text(3 << 20);
    let held = lock(&vault);
    let mut writer = vault.begin(&held, 3, &Cancel::new()).unwrap();
    let mut reader = failing(&stream, io::Error::other("no end"));
    writer.save_stream("databases/one", &mut reader, 3 << 20).unwrap().unwrap_err();
    let point = commit(writer, &held).unwrap();
    assert!(find(&vault, &point, "databases").is_none(), "no folder for nothing");
    is_clean(&vault);
    let vault = open(Arc::new(memory.clone()));
    let mut writer = vault.begin(&held, 3, &Cancel::new()).unwrap();
    writer.save_stream("databases/one", &mut stream.as_slice(), 3 << 20).unwrap().unwrap();
    let point = commit(writer, &held).unwrap();
    assert!(content(&vault, &point, "databases/one") == stream);
    is_clean(&vault);
    held.release().unwrap();
    support::restic_check_copy(&memory);
}

#[test]
fn the_error_is_the_readers_own_where_it_gave_one() {
    let (_memory, vault) = memory_vault();
    let held = lock(&vault);
    let mut writer = vault.begin(&held, 3, &Cancel::new()).unwrap();
    let inner = Error::new(Code::DatabaseUnreachable, "The server went away");
    let mut reader = failing(b"something", io::Error::other(inner));
    let error = writer.save_stream("databases/one", &mut reader, 0).unwrap().unwrap_err();
    assert_eq!(error.code(), Code::DatabaseUnreachable);
    assert_eq!(error.to_string(), "The server went away");
}

#[test]
fn a_document_that_was_saved_before_stays_when_its_successor_fails() {
    let (_memory, vault) = memory_vault();
    let held = lock(&vault);
    let mut writer = vault.begin(&held, 3, &Cancel::new()).unwrap();
    for (name, bytes) in [("databases/a", "one"), ("alone", "three")] {
        writer.save_bytes(name, bytes.as_bytes()).unwrap();
    }
    let mut reader = failing(b"half", io::Error::other("gone"));
    writer.save_stream("databases/a", &mut reader, 0).unwrap().unwrap_err();
    writer.save_bytes("alone", b"newer").unwrap();
    let point = commit(writer, &held).unwrap();
    assert_eq!(content(&vault, &point, "databases/a"), b"one");
    assert_eq!(content(&vault, &point, "alone"), b"newer");
    let root = vault.reader().unwrap().tree(&point.snapshot.tree).unwrap();
    assert_eq!(root.len(), 2, "each name once");
    is_clean(&vault);
}

#[test]
fn an_error_of_the_vault_ends_the_backup() {
    let storage = Arc::new(FaultyStorage::new(Arc::new(Memory::new())));
    let vault = new_vault(storage.clone());
    let held = lock(&vault);
    let mut writer = vault.begin(&held, 3, &Cancel::new()).unwrap();
    storage.add(Rule::new(Fault::Fail(Code::StorageFull)).on(Op::Put).name("data/"));
    let noise = Random::new(1).bytes(80 << 20);
    let error = writer.save_stream("databases/one", &mut noise.as_slice(), 80 << 20).unwrap_err();
    assert_eq!(error.code(), Code::StorageFull);
    storage.clear();
    assert!(writer.save_bytes("other", b"x").is_err(), "it has ended");
    assert!(commit(writer, &held).is_err());
    assert_eq!(vault.snapshots().unwrap().len(), 0);
}

#[test]
fn a_stream_stops_when_the_work_is_cancelled() {
    let (_memory, vault) = memory_vault();
    let held = lock(&vault);
    let cancel = Cancel::new();
    let mut writer = vault.begin(&held, 3, &cancel).unwrap();
    struct Endless(Cancel, u32);
    impl Read for Endless {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1 == 50 {
                self.0.cancel();
            }
            buf.fill(self.1 as u8);
            Ok(buf.len())
        }
    }
    let error = writer.save_stream("one", &mut Endless(cancel.clone(), 0), 1 << 40).unwrap_err();
    assert_eq!(error.code(), Code::Cancelled);
    assert!(commit(writer, &held).is_err());
}

#[test]
fn streams_that_are_stored_beside_each_other_are_what_they_would_be_one_after_the_other() {
    let stream = Random::new(5).text(7 << 20);
    let parts: [&[u8]; 4] = [&stream, &stream[1 << 20..], &stream[..3 << 20], b""];
    let (_memory, vault) = memory_vault();
    let held = lock(&vault);
    let mut writer = vault.begin(&held, 3, &Cancel::new()).unwrap();
    let savers: Vec<_> = parts.iter().map(|_| writer.begin_stream().unwrap()).collect();
    let broken = writer.begin_stream().unwrap();
    let stored: Vec<_> = std::thread::scope(|scope| {
        let save = |(saver, part): (StreamSaver, &[u8])| saver.save("one", &mut { part }, 7 << 20);
        let threads: Vec<_> =
            savers.into_iter().zip(parts).map(|both| scope.spawn(move || save(both))).collect();
        // The writer goes on meanwhile, with the same bytes too.
        let name = "databases/by-threads";
        writer.save_stream(name, &mut stream.as_slice(), 7 << 20).unwrap().unwrap();
        let mut reader =
            failing(&stream, io::Error::other(Error::new(Code::DatabaseInterrupted, "It broke")));
        let error = broken.save("one", &mut reader, 7 << 20).unwrap().unwrap_err();
        assert_eq!(error.code(), Code::DatabaseInterrupted);
        threads.into_iter().map(|thread| thread.join().unwrap().unwrap().unwrap()).collect()
    });
    for (number, stored) in stored.into_iter().enumerate() {
        writer.add_stream(&format!("databases/{number}"), stored);
    }
    let point = commit(writer, &held).unwrap();
    for (number, part) in parts.iter().enumerate() {
        assert!(content(&vault, &point, &format!("databases/{number}")) == *part, "{number}");
    }
    let pieces = |name: &str| find(&vault, &point, name).unwrap().content;
    assert_eq!(pieces("databases/0"), pieces("databases/by-threads"));
    is_clean(&vault);
}

#[test]
fn an_error_of_the_vault_in_one_of_several_streams_ends_the_backup() {
    let storage = Arc::new(FaultyStorage::new(Arc::new(Memory::new())));
    let vault = new_vault(storage.clone());
    let held = lock(&vault);
    let mut writer = vault.begin(&held, 3, &Cancel::new()).unwrap();
    storage.add(Rule::new(Fault::Fail(Code::StorageFull)).on(Op::Put).name("data/"));
    let noise = Random::new(1).bytes(80 << 20);
    let saver = writer.begin_stream().unwrap();
    let error = saver.save("one", &mut noise.as_slice(), 80 << 20).unwrap_err();
    assert_eq!(error.code(), Code::StorageFull);
    storage.clear();
    assert!(writer.save_bytes("other", b"x").is_err(), "it has ended");
    assert!(commit(writer, &held).is_err());
}

// --- what a dump costs

/// A dump as `pg_dump -Fc -Z0` writes it: a header with the time, then one block a row.
fn dump(rows: usize, made_at: u64, changed: std::ops::Range<usize>) -> Vec<u8> {
    let mut out = b"PGDMP".to_vec();
    out.extend(made_at.to_le_bytes());
    out.extend([7; 4000]);
    for row in 0..rows {
        let seed = if changed.contains(&row) { row + 1_000_000 } else { row };
        let mut random = Random::new(seed as u64 + 1);
        let length = 200 + random.below(2600) as usize;
        let text = random.text(length);
        let line = [format!("{row}\t2026-11-{:02}\t", row % 28).as_bytes(), &text, b"\n"].concat();
        out.push(0);
        out.extend((line.len() as u32).to_le_bytes());
        out.extend(line);
    }
    out
}

/// What a document adds to a vault: plain bytes and bytes in packs.
fn added(vault: &Vault, name: &str, bytes: &[u8]) -> (Committed, u64, u64) {
    let held = lock(vault);
    let mut writer = vault.begin(&held, 3, &Cancel::new()).unwrap();
    writer.save_stream(name, &mut &bytes[..], bytes.len() as u64).unwrap().unwrap();
    let point = commit(writer, &held).unwrap();
    let summary = point.snapshot.summary.clone().unwrap();
    (point, summary.data_added, summary.data_added_packed)
}

#[test]
fn a_dump_with_a_run_of_changed_rows_adds_little() {
    let (_memory, vault) = memory_vault();
    // 48 MB with 80 changed rows: as 300 MB with 500.
    let rows = 32_000;
    let first = dump(rows, 1, 0..0);
    let (_, plain, packed) = added(&vault, "databases/a", &first);
    assert!(plain >= first.len() as u64);
    let same = dump(rows, 2, 0..0);
    let (_, same_plain, same_packed) = added(&vault, "databases/a", &same);
    let second = dump(rows, 3, 20_000..20_080);
    let (point, again_plain, again_packed) = added(&vault, "databases/a", &second);
    let pieces = find(&vault, &point, "databases/a").unwrap().content.len();
    let share = |part: u64, of: u64| part as f64 / of as f64 * 100.0;
    println!(
        "{} bytes, {pieces} pieces: nothing changed adds {:.2} % ({:.2} % stored), 0.25 % of the rows {:.2} % ({:.2} %)",
        first.len(),
        share(same_plain, plain),
        share(same_packed, packed),
        share(again_plain, plain),
        share(again_packed, packed),
    );
    assert!(share(again_plain, plain) < 2.0 && share(again_packed, packed) < 2.0);
    assert!(share(same_plain, plain) < 1.0);
    assert!(content(&vault, &point, "databases/a") == second);
}

// --- reading back

/// A storage that is far away: counts what is asked for, and how much of it at the same time.
#[derive(Debug, Default)]
struct Distant {
    memory: Memory,
    asked: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Storage for Distant {
    fn location(&self) -> String {
        self.memory.location()
    }
    fn put(&self, name: &str, bytes: &[u8], mode: Put) -> Result<()> {
        self.memory.put(name, bytes, mode)
    }
    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.memory.get(name)
    }
    fn get_range(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(5));
        self.now.fetch_sub(1, Ordering::SeqCst);
        self.memory.get_range(name, offset, len)
    }
    fn size(&self, name: &str) -> Result<u64> {
        self.memory.size(name)
    }
    fn list(&self, folder: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        self.memory.list(folder, each)
    }
    fn delete(&self, name: &str) -> Result<()> {
        self.memory.delete(name)
    }
    fn is_distant(&self) -> bool {
        true
    }
}

#[test]
fn a_distant_storage_is_asked_ahead_for_whole_stretches() {
    let distant = Arc::new(Distant::default());
    let vault = new_vault(distant.clone());
    let stream = Random::new(7).bytes(40 << 20);
    let (point, ..) = added(&vault, "one", &stream);
    let node = find(&vault, &point, "one").unwrap();
    let reader = vault.reader().unwrap();
    distant.asked.store(0, Ordering::SeqCst);
    distant.most.store(0, Ordering::SeqCst);
    let mut pulled = Vec::new();
    reader.stream(&node).unwrap().read_to_end(&mut pulled).unwrap();
    assert!(pulled == stream);
    let (asked, most) = (distant.asked.load(Ordering::SeqCst), distant.most.load(Ordering::SeqCst));
    println!("{} pieces, {asked} requests, up to {most} at the same time", node.content.len());
    assert!(asked * 10 < node.content.len(), "{asked} requests for {} pieces", node.content.len());
    assert!(most > 2, "{most} at the same time");
    // Given up early: nothing hangs, nothing goes on being fetched.
    let mut begun = reader.stream(&node).unwrap();
    let mut first = [0; 100];
    begun.read_exact(&mut first).unwrap();
    assert!(first == stream[..100]);
    drop(begun);
    assert_eq!(distant.now.load(Ordering::SeqCst), 0);
}

#[test]
fn a_stream_can_feed_another_thread() {
    let (_memory, vault) = memory_vault();
    let stream = Random::new(8).text(2 << 20);
    let (point, ..) = added(&vault, "one", &stream);
    let node = find(&vault, &point, "one").unwrap();
    let reader = vault.reader().unwrap();
    let mut pulled = reader.stream(&node).unwrap();
    let got = std::thread::scope(|scope| {
        let fed = scope.spawn(move || {
            let mut out = Vec::new();
            io::copy(&mut pulled, &mut out).unwrap();
            out
        });
        fed.join().unwrap()
    });
    assert!(got == stream);
    let folder = Node { kind: Some(backstay_tree::fs::Kind::Dir), ..Node::default() };
    assert_eq!(reader.stream(&folder).err().unwrap().code(), Code::InvalidValue);
    let longer = Node { size: node.size + 1, ..node };
    let error = reader.stream(&longer).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<Error>()).unwrap();
    assert_eq!(inner.code(), Code::VaultDamaged, "a content that is short is an error at its end");
}

#[test]
fn damage_and_loss_are_told_and_nothing_false_is_given() {
    let (memory, vault) = memory_vault();
    let stream = Random::new(9).bytes(3 << 20);
    let (point, ..) = added(&vault, "one", &stream);
    let node = find(&vault, &point, "one").unwrap();
    let place = |n: usize| {
        vault.reader().unwrap().index().find(backstay_vault::blob::BlobKind::Data, &node.content[n]).unwrap()
    };
    let middle = place(node.content.len() / 2);
    let name = Folder::Data.object(&middle.pack);
    let mut bytes = memory.get(&name).unwrap();
    bytes[middle.offset as usize + 40] ^= 1;
    memory.delete(&name).unwrap();
    memory.put(&name, &bytes, Put::IfAbsent).unwrap();
    let reader = vault.reader().unwrap();
    let mut pulled = reader.stream(&node).unwrap();
    let mut got = Vec::new();
    let error = pulled.read_to_end(&mut got).unwrap_err();
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<Error>()).unwrap();
    assert_eq!(inner.code(), Code::VaultDamaged);
    assert!(!got.is_empty() && got == stream[..got.len()], "what came before is right");
    assert!(pulled.read(&mut [0; 10]).is_err(), "it stays an error");
    memory.delete(&name).unwrap();
    assert!(reader.stream(&node).unwrap().read_to_end(&mut Vec::new()).is_err());
}

#[test]
fn what_was_moved_to_another_pack_meanwhile_is_found() {
    let (memory, vault) = memory_vault();
    let stream = Random::new(10).bytes(5 << 20);
    let (point, ..) = added(&vault, "one", &stream);
    let node = find(&vault, &point, "one").unwrap();
    let reader = vault.reader().unwrap();
    let mut pulled = reader.stream(&node).unwrap();
    let mut got = vec![0; 1 << 20];
    pulled.read_exact(&mut got).unwrap();
    // The same content again, under other packs; then the packs that this reader knows go.
    let old: Vec<Id> = vault.objects(Folder::Data).unwrap().into_keys().collect();
    for id in vault.ids(Folder::Index).unwrap() {
        memory.delete(&Folder::Index.object(&id)).unwrap();
    }
    added(&vault, "one", &stream);
    for id in old {
        memory.delete(&Folder::Data.object(&id)).unwrap();
    }
    pulled.read_to_end(&mut got).unwrap();
    assert!(got == stream);
}
