//! Random histories keep every snapshot readable; arbitrary bytes never make a parser panic.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unreachable,
    clippy::print_stdout,
    reason = "a helper outside a test function that fails is a failed test"
)]

mod maintenance_support;

use std::collections::BTreeMap;
use std::sync::Arc;

use backstay_model::{Cancel, Silent};
use backstay_storage::{Faulty, Memory};
use backstay_testing::fixtures;
use backstay_vault::Id;
use backstay_vault::blob::BlobKind;
use backstay_vault::index::IndexFile;
use backstay_vault::node::parse_tree;
use backstay_vault::pack::{header_size, parse_header};
use backstay_vault::prune::PruneOptions;
use backstay_vault::repair::{Repair, RepairOptions};
use maintenance_support::*;
use proptest::prelude::*;

/// A step in the life of a vault.
#[derive(Clone, Debug)]
enum Step {
    Change(u64),
    Backup,
    /// A backup that is killed at that mutating call.
    KilledBackup(u64),
    /// Of the snapshots, the one at this place.
    Forget(prop::sample::Index),
    Prune {
        percent: u8,
        small: usize,
        repack: bool,
    },
    /// A prune that is killed at that mutating call.
    KilledPrune(u64, bool),
    Repair,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any::<u64>().prop_map(Step::Change),
        4 => Just(Step::Backup),
        1 => (1..8u64).prop_map(Step::KilledBackup),
        3 => any::<prop::sample::Index>().prop_map(Step::Forget),
        2 => (0..30u8, 0..6usize, any::<bool>())
            .prop_map(|(percent, small, repack)| Step::Prune { percent, small, repack }),
        2 => (1..20u64, any::<bool>()).prop_map(|(n, after)| Step::KilledPrune(n, after)),
        1 => Just(Step::Repair),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_every_snapshot_readable(steps in prop::collection::vec(step(), 1..25)) {
        let dir = backstay_testing::quick_dir();
        let storage = Arc::new(Memory::new());
        let vault = new_vault(storage.clone());
        let mut files = fixtures::small(dir.path(), 12, 25);
        let mut expected: BTreeMap<Id, Everything> = BTreeMap::new();
        let mut number = 0;
        for step in steps {
            match step {
                Step::Change(seed) => files = fixtures::change(dir.path(), seed % 1000, &files),
                Step::Backup => {
                    number += 1;
                    let id = backup(&vault, dir.path(), number).unwrap();
                    expected.insert(id, read(&vault.reader().unwrap(), &id).unwrap());
                }
                Step::KilledBackup(nth) => {
                    number += 1;
                    let faulty = Arc::new(Faulty::new(storage.clone()));
                    faulty.kill_at(nth, false);
                    backup(&open(faulty), dir.path(), number).ok();
                    forget_locks(&*storage);
                    let all = vault.snapshots().unwrap();
                    // Killed when it gave its lock back: the point is there.
                    if let Some((id, _)) = all.iter().find(|(id, _)| !expected.contains_key(id)) {
                        expected.insert(*id, read(&vault.reader().unwrap(), id).unwrap());
                    }
                }
                Step::Forget(which) => {
                    let all: Vec<Id> = expected.keys().copied().collect();
                    if !all.is_empty() {
                        let id = *which.get(&all);
                        vault.forget(&[id]).unwrap();
                        expected.remove(&id);
                    }
                }
                Step::Prune { percent, small, repack } => {
                    let options =
                        PruneOptions { max_unused_percent: percent, small_packs: small, repack, ..thorough() };
                    prop_assert_eq!(prune(&vault, options).unwrap().1.deferred, None);
                    prop_assert_eq!(check_all(&vault).note_count, 0);
                }
                Step::KilledPrune(nth, after) => {
                    let faulty = Arc::new(Faulty::new(storage.clone()));
                    faulty.kill_at(nth, after);
                    prune(&open(faulty), PruneOptions { small_packs: 0, ..thorough() }).ok();
                    forget_locks(&*storage);
                }
                Step::Repair => {
                    let repair = Repair::plan(&vault, RepairOptions::default(), &Silent, &Cancel::new()).unwrap();
                    prop_assert!(repair.value().is_empty(), "{:?}", repair.value());
                }
            }
            let report = check_all(&vault);
            prop_assert!(report.is_clean(), "{:?}", report.errors);
            let there: Vec<Id> = vault.snapshots().unwrap().into_iter().map(|(id, _)| id).collect();
            prop_assert_eq!(there.len(), expected.len());
            let reader = vault.reader().unwrap();
            for (id, everything) in &expected {
                prop_assert_eq!(&read(&reader, id).unwrap(), everything);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_header_of_any_bytes_is_refused_or_adds_up(bytes in prop::collection::vec(any::<u8>(), 0..300), end in any::<u64>()) {
        if let Ok(blobs) = parse_header(&bytes, end) {
            let mut at = 0u64;
            for blob in &blobs {
                prop_assert_eq!(u64::from(blob.offset), at);
                at += u64::from(blob.length);
            }
            prop_assert_eq!(at, end);
        }
    }

    #[test]
    fn a_header_length_of_any_bytes_fits_the_pack(tail in any::<[u8; 4]>(), size in any::<u64>()) {
        if let Ok(length) = header_size(tail, size) {
            prop_assert!(length as u64 + 4 <= size);
        }
    }

    #[test]
    fn headers_made_of_entries_are_read_as_they_are(entries in prop::collection::vec((0..4u8, 32..5000u32, any::<u32>(), any::<[u8; 32]>()), 0..20)) {
        let mut bytes = Vec::new();
        for (tag, length, plain, id) in &entries {
            bytes.push(*tag);
            bytes.extend_from_slice(&length.to_le_bytes());
            if *tag > 1 {
                bytes.extend_from_slice(&plain.to_le_bytes());
            }
            bytes.extend_from_slice(id);
        }
        let end = entries.iter().map(|(_, length, ..)| u64::from(*length)).sum();
        let blobs = parse_header(&bytes, end).unwrap();
        prop_assert_eq!(blobs.len(), entries.len());
        for (blob, (tag, length, plain, id)) in blobs.iter().zip(&entries) {
            prop_assert_eq!(blob.kind == BlobKind::Tree, tag % 2 == 1);
            prop_assert_eq!((blob.length, blob.id), (*length, Id(*id)));
            prop_assert_eq!(blob.uncompressed, (*tag > 1).then_some(*plain));
        }
        prop_assert!(parse_header(&bytes, end + 1).is_err());
    }

    #[test]
    fn an_index_or_tree_of_any_bytes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        serde_json::from_slice::<IndexFile>(&bytes).ok();
        parse_tree(&bytes).ok();
    }

    /// Nearly right: the text of a real tree with some bytes changed.
    #[test]
    fn a_tree_with_changed_bytes_is_read_or_refused(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut text = br#"{"nodes":[{"name":"a\\xff\\\"","type":"file","mode":420,"mtime":"2023-11-14T22:13:20.5+01:00","uid":0,"gid":0,"user":"root","inode":5,"size":3,"links":1,"extended_attributes":[{"name":"user.x","value":"AP8="}],"content":["ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]},{"name":"d","type":"dir","mode":2147484141,"uid":0,"gid":0,"content":null,"subtree":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}]}"#.to_vec();
        prop_assert_eq!(parse_tree(&text).unwrap().len(), 2);
        for (at, byte) in changes {
            let at = at.index(text.len());
            text[at] = byte;
        }
        parse_tree(&text).ok();
    }
}
