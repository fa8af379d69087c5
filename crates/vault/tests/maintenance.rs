//! Check, prune, repair, copy and stats on vaults that were written here.

mod maintenance_support;

use std::sync::Arc;

use backstay_storage::{Memory, Storage};
use backstay_testing::fixtures;
use maintenance_support::*;

/// A vault with backups of a tree that changes from one to the next; the last `keep` are kept.
fn vault_with_history(backups: i64, keep: usize) -> (Arc<Memory>, backstay_vault::Vault, tempfile::TempDir) {
    let dir = backstay_testing::temp_dir();
    let storage = Arc::new(Memory::new());
    let vault = new_vault(storage.clone());
    let mut files = fixtures::small(dir.path(), 5, 60);
    for number in 0..backups {
        backup(&vault, dir.path(), number).unwrap();
        files = fixtures::change(dir.path(), u64::try_from(number).unwrap(), &files);
    }
    let all = vault.snapshots().unwrap();
    let gone: Vec<_> = all.iter().take(all.len() - keep).map(|(id, _)| *id).collect();
    vault.forget(&gone).unwrap();
    (storage, vault, dir)
}

#[test]
fn prune_removes_what_is_unused_and_keeps_the_rest_byte_for_byte() {
    let (storage, vault, _dir) = vault_with_history(8, 3);
    let before = read_all(&vault).unwrap();
    let bytes = |s: &Memory| names(s).iter().map(|n| s.size(n).unwrap()).sum::<u64>();
    let full = bytes(&storage);
    let (plan, outcome) = prune(&vault, thorough()).unwrap();
    println!("{plan:#?}\n{outcome:#?}");
    assert!(plan.unused.count > 0 && !plan.repack.is_empty());
    assert_eq!(outcome.deferred, None);
    assert!(bytes(&storage) < full);
    let report = clean(&vault);
    assert_eq!(report.note_count, 0, "{:?}", report.notes);
    assert_eq!(read_all(&vault).unwrap(), before);
    let (plan, outcome) = prune(&vault, thorough()).unwrap();
    assert!(plan.is_empty() && plan.unused.count == 0 && plan.duplicate.count == 0, "{plan:#?}");
    assert_eq!(outcome, Default::default());
}
