//! Tests of the file index.

use super::*;

fn entry(name: &str) -> PastEntry {
    PastEntry {
        name: name.into(),
        kind: Kind::File,
        size: 5,
        mtime: FileTime { secs: -1, nanos: 7 },
        ctime: FileTime { secs: 9, nanos: 8 },
        inode: 77,
        meta: Meta { mode: 0o644, uid: 1, gid: 2, links: 3, rdev: 4 },
        content: vec![Id::of(b"a"), Id::of(b"b")],
        xattrs: vec![("user.a".into(), vec![1])],
        link_target: OsString::from_vec(vec![255]),
        extents: Some(vec![(0, 4)]),
        tree: None,
        origin: None,
    }
}

fn write_once(path: &Path, tree: Id, name: &str, expected: Option<Id>) {
    let index = FileIndex::open(path, [1; 32], expected).unwrap();
    let block = index.write(&tree, &[entry(name)]).unwrap();
    index.commit(tree, block, FileTime { secs: 1, nanos: 0 }).unwrap();
}

#[test]
fn what_was_written_is_read_and_only_for_the_right_tree() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let (one, two) = (Id::of(b"1"), Id::of(b"2"));
    write_once(&path, one, "a", None);
    write_once(&path, two, "b", Some(one));
    let index = FileIndex::open(&path, [1; 32], Some(two)).unwrap();
    let past = index.read(index.slot().unwrap().root, &two).unwrap();
    assert_eq!(past.entries, [entry("b")]);
    assert_eq!(past.tree, Some(two));
    assert!(index.read(index.slot().unwrap().root, &one).is_none());
    drop(index);
    assert!(FileIndex::open(&path, [1; 32], Some(one)).unwrap().slot().is_none());
    assert!(FileIndex::open(&path, [2; 32], Some(two)).unwrap().slot().is_none());
}

#[test]
fn a_second_user_works_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let first = FileIndex::open(&path, [1; 32], None).unwrap();
    assert!(FileIndex::open(&path, [1; 32], None).is_none());
    drop(first);
    assert!(FileIndex::open(&path, [1; 32], None).is_some());
}

#[test]
fn any_damage_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let tree = Id::of(b"1");
    write_once(&path, tree, "a", None);
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&path, &bad).unwrap();
        let index = FileIndex::open(&path, [1; 32], Some(tree)).unwrap();
        let past = index.slot().and_then(|s| index.read(s.root, &tree));
        assert!(past.is_none_or(|p| p.entries == [entry("a")]), "byte {at}");
        drop(index);
        std::fs::write(&path, &good[..at]).unwrap();
        let index = FileIndex::open(&path, [1; 32], Some(tree)).unwrap();
        assert!(index.slot().and_then(|s| index.read(s.root, &tree)).is_none(), "length {at}");
    }
}

#[test]
fn blocks_that_nothing_uses_any_more_go_with_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let mut expected = None;
    let mut largest = 0;
    for round in 0..100u32 {
        let tree = Id::of(&round.to_le_bytes());
        let index = FileIndex::open(&path, [1; 32], expected).unwrap();
        // A folder of another name each time: nothing says which old block it replaces.
        let block = index.write(&tree, &vec![entry("x"); 1000]).unwrap();
        index.commit(tree, block, FileTime::default()).unwrap();
        expected = Some(tree);
        largest = largest.max(std::fs::metadata(&path).unwrap().len());
    }
    let one = 1000 * 150;
    assert!(largest < (1 << 20) + 3 * one, "{largest}");
}

#[test]
fn a_file_that_was_replaced_is_not_taken_for_the_one_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    write_once(&path, Id::of(b"1"), "a", None);
    let path = &path;
    // Opened before the holder of the lock renames a new file into place, locked after that.
    let stale = open_rw(path, false).unwrap();
    write_once(path, Id::of(b"2"), "b", None);
    rustix::fs::flock(&stale, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    assert!(!is_at(&stale, path));
    assert!(FileIndex::open(path, [1; 32], Some(Id::of(b"2"))).unwrap().slot().is_some());
}

#[test]
fn a_crash_before_commit_leaves_the_past() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let tree = Id::of(b"1");
    write_once(&path, tree, "a", None);
    let index = FileIndex::open(&path, [1; 32], Some(tree)).unwrap();
    index.write(&Id::of(b"2"), &vec![entry("x"); 30_000]).unwrap();
    drop(index);
    let index = FileIndex::open(&path, [1; 32], Some(tree)).unwrap();
    assert_eq!(index.read(index.slot().unwrap().root, &tree).unwrap().entries, [entry("a")]);
}

#[test]
fn a_second_pass_finds_the_blocks_of_the_first_even_if_they_could_not_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let (one, two, three) = (Id::of(b"1"), Id::of(b"2"), Id::of(b"3"));
    write_once(&path, one, "a", None);
    for full in [false, true] {
        let index = FileIndex::open(&path, [1; 32], Some(one)).unwrap().twice();
        let written = index.write(&two, &vec![entry("b"); 20_000]).unwrap();
        if full {
            // Writing fails from now on, as on a disk without room.
            index.tail.lock().file = File::open(&path).unwrap();
        }
        let kept = index.write(&three, &vec![entry("c"); 20_000]).unwrap();
        let mut index = index.again(three, kept, FileTime::default()).unwrap();
        assert!(index.appends());
        for _ in 0..2 {
            let root = index.slot().unwrap().root;
            assert_eq!(index.read(root, &three).unwrap().entries.len(), 20_000, "{full}");
            assert_eq!(index.read(written, &two).unwrap().entries.len(), 20_000, "{full}");
            index.write(&one, &[entry("d")]).unwrap();
            index = index.again(three, root, FileTime::default()).unwrap();
        }
        let root = index.slot().unwrap().root;
        index.keep(root);
        assert_eq!(index.commit(three, root, FileTime::default()).is_some(), !full);
        let expected = if full { one } else { three };
        let again = FileIndex::open(&path, [1; 32], Some(expected)).unwrap();
        assert!(again.slot().is_some(), "{full}");
        drop(again);
        fs_reset(&path, one);
    }
    // Without any file.
    let index = FileIndex::scratch([1; 32]).unwrap();
    let block = index.write(&one, &[entry("x")]).unwrap();
    let index = index.again(one, block, FileTime::default()).unwrap();
    assert_eq!(index.read(block, &one).unwrap().entries, [entry("x")]);
    assert!(index.commit(one, block, FileTime::default()).is_none());
}

fn fs_reset(path: &Path, tree: Id) {
    std::fs::remove_file(path).unwrap();
    write_once(path, tree, "a", None);
}
