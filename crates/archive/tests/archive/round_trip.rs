//! What goes in comes out.

use backstay_archive::source::Stream;
use backstay_archive::{Flaw, Integrity, LocalFile, Manifest, StoredObject, place, seal, verify};
use backstay_model::{Cancel, Code, Silent};
use backstay_storage::{Fault, Faulty, Memory, Op, Rule, Storage as _};
use backstay_testing::fixtures::{self, Nasty, Random};
use backstay_testing::{quick_dir, temp_dir};
use backstay_tree::compare;
use std::sync::Arc;

use crate::world::{
    Bytes, Made, Named, checks, extract, identity, key, live, look, name, options, pack, pack_app, sound,
    time, trust,
};

#[test]
fn the_nasty_tree_comes_back_exactly() {
    let home = temp_dir();
    let root = home.path().join("nasty");
    let options_nasty = Nasty { beyond_path_max: true, ..Nasty::quick() };
    fixtures::nasty(&root, &options_nasty);
    let packed = pack(&[&live(&root)], options());
    let contents = sound(&packed);
    let target = home.path().join("back");
    let done = extract(&contents, &target);
    assert_eq!(done.problems, []);
    let differences = compare::trees(&root, &target, &compare::Options::default());
    assert!(differences.is_empty(), "{differences:#?}");
    backstay_testing::unlock(&root);
    backstay_testing::unlock(&target);
}

#[test]
fn large_and_many_files_come_back_exactly() {
    let home = temp_dir();
    let root = home.path().join("app");
    std::fs::create_dir(&root).unwrap();
    fixtures::small(&root, 5, 2000);
    let mut random = Random::new(6);
    std::fs::write(root.join("text"), random.text(20 << 20)).unwrap();
    std::fs::write(root.join("random"), random.bytes((17 << 20) + 1)).unwrap();
    std::fs::write(root.join("limit"), random.text(16 << 20)).unwrap();
    std::fs::hard_link(root.join("text"), root.join("text, again")).unwrap();
    let packed = pack(&[&live(&root)], options());
    let target = home.path().join("back");
    let done = extract(&sound(&packed), &target);
    assert_eq!((done.problems.len(), done.counts.files), (0, 2004));
    let differences = compare::trees(&root, &target, &compare::Options::default());
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn the_manifest_reads_back_as_it_was_and_says_who_signed() {
    let home = temp_dir();
    fixtures::small(home.path(), 1, 30);
    std::fs::write(home.path().join("odd \u{fffe}\u{ffff} \u{1}\n&<>\"'"), "x").unwrap();
    let mut packed = pack_app(home.path());
    packed.manifest.problems.push(backstay_model::Problem {
        path: "a\\x00b".into(),
        kind: backstay_model::ProblemKind::Grew,
        detail: "line\nbreak & <tag>".into(),
    });
    let xml = packed.manifest.to_xml(Some(&key()));
    let (read, integrity) = Manifest::from_xml(&xml, &trust()).unwrap();
    assert_eq!(read, packed.manifest);
    assert_eq!(integrity, Integrity::Signed(key().public()));
    let (_, integrity) = Manifest::from_xml(&xml, &Default::default()).unwrap();
    assert_eq!(integrity, Integrity::UnknownKey(key().public()));
    let plain = packed.manifest.to_xml(None);
    assert_eq!(Manifest::from_xml(&plain, &trust()).unwrap().1, Integrity::Unsigned);
}

#[test]
fn dumps_and_settings_are_read_back_from_a_storage() {
    let home = temp_dir();
    fixtures::small(home.path(), 2, 50);
    let packed = pack_app(home.path());
    let storage = Arc::new(Memory::new());
    place::reserve(&*storage, &name(), "begun\n").unwrap();
    let mut zip = place::Zip::begin(&*storage, &name()).unwrap();
    std::io::Write::write_all(&mut zip, &packed.zip).unwrap();
    assert_eq!(zip.commit().unwrap(), packed.manifest.zip.size);
    place::commit(&*storage, &name(), "begun\ndone\n", &packed.xml).unwrap();
    let zip = StoredObject::open(storage.clone(), name().zip()).unwrap();
    let xml = storage.get(&name().xml()).unwrap();
    let verified = verify(Arc::new(zip), Some(&xml), &checks(), &Silent, &Cancel::new()).unwrap();
    assert_eq!(verified.findings, []);
    let contents = verified.accept().unwrap();
    assert_eq!(contents.dumps().collect::<Vec<_>>(), ["blogdb"]);
    let read = |name: &str| {
        let mut bytes = Vec::new();
        contents.read_beside(name, &mut |b| {
            bytes.extend_from_slice(b);
            Ok(())
        })?;
        Ok::<_, backstay_model::Error>(bytes)
    };
    assert_eq!(read("blogdb").unwrap(), b"create table posts (id int);\n");
    let sealed = read(place::SETTINGS_SEALED).unwrap();
    let with = seal::Opener { identities: vec![identity()], passphrase: None };
    assert_eq!(seal::open(&sealed, &with).unwrap(), b"{\"SETTING\":\"value\"}");
    assert_eq!(read("fs/current").unwrap_err().code(), Code::PathNotFound);
}

#[test]
fn a_file_on_the_disk_and_a_selection() {
    let home = temp_dir();
    fixtures::small(home.path(), 3, 100);
    let packed = pack_app(home.path());
    let dir = quick_dir();
    let path = packed.store(dir.path(), "app");
    let zip = Arc::new(LocalFile::open(&path).unwrap());
    let contents =
        verify(zip, Some(&packed.xml), &checks(), &Silent, &Cancel::new()).unwrap().accept().unwrap();
    let target = dir.path().join("part");
    std::fs::create_dir(&target).unwrap();
    let root = backstay_tree::beneath::Root::open(Arc::new(backstay_tree::fs::Host), &target).unwrap();
    let only = |record: &backstay_archive::Record| record.path.starts_with("uploads");
    let done = contents.extract(&root, &only, &Silent, &Cancel::new()).unwrap();
    assert_eq!(done.problems, []);
    must_be_same(&home.path().join("uploads"), &target.join("uploads"));
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 1);
}

fn must_be_same(a: &std::path::Path, b: &std::path::Path) {
    let options = compare::Options { hard_links: false, ..compare::Options::default() };
    let differences = compare::trees(a, b, &options);
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn what_cannot_be_read_is_told_and_the_rest_is_packed() {
    let home = temp_dir();
    fixtures::small(home.path(), 4, 20);
    let live = live(home.path()).leave_out(|path, _| path.starts_with("uploads"));
    let packed = pack(&[&live], options());
    assert!(packed.manifest.entries.iter().all(|e| !e.name.starts_with(b"fs/uploads")));
    sound(&packed);
}

/// Files with several names of which the first vanished, or that changed between two of them: the archive is sound.
#[test]
fn further_names_of_what_vanished_or_changed() {
    use backstay_archive::source::Names::{First, Further};
    let of = |text: &str| Bytes::Of(text.into());
    let large = |byte| Bytes::Of(vec![byte; 17 << 20]);
    let named = Named(vec![
        ("a1".into(), Bytes::Gone, First),
        ("a2".into(), of("a"), Further("a1".into())),
        ("a3".into(), of("a"), Further("a1".into())),
        ("b1".into(), of("b"), First),
        ("b2".into(), of("changed"), Further("b1".into())),
        ("b3".into(), of("b"), Further("b1".into())),
        ("c1".into(), large(1), First),
        ("c2".into(), large(1), Further("c1".into())),
        ("c3".into(), large(2), Further("c1".into())),
    ]);
    let packed = pack(&[&named], options());
    assert_eq!(packed.manifest.problems.len(), 1);
    let contents = sound(&packed);
    let links: Vec<_> = contents.nodes().iter().map(|n| n.record.link.as_ref()?.to_str()).collect();
    assert_eq!(links, [None, None, Some("a2"), None, None, Some("b1"), None, Some("c1"), None]);
    let dir = quick_dir();
    let target = dir.path().join("back");
    assert_eq!(extract(&contents, &target).problems, []);
    assert_eq!(std::fs::read_to_string(target.join("b2")).unwrap(), "changed");
    assert_eq!(std::fs::read(target.join("c3")).unwrap(), vec![2; 17 << 20]);
}

/// What a reader would refuse is not written, but told.
#[test]
fn paths_that_no_archive_can_hold() {
    let deep: std::path::PathBuf = "d/".repeat(9000).into();
    let made = Made(vec![(deep, Bytes::Of(Vec::new())), ("fine".into(), Bytes::Of(b"fine".to_vec()))]);
    let packed = pack(&[&made], options());
    assert_eq!(packed.manifest.problems.len(), 1);
    assert_eq!(sound(&packed).nodes().len(), 2);
}

#[test]
fn a_dump_that_breaks_off_ends_the_archive() {
    struct Breaks(u32);
    impl std::io::Read for Breaks {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.0 += 1;
            if self.0 > 40 {
                return Err(std::io::Error::other("the server went away"));
            }
            buf.fill(1);
            Ok(buf.len())
        }
    }
    let mut writer = backstay_archive::Writer::new(Vec::new(), options()).unwrap();
    let dump = Stream::new("dump", time(), Breaks(0));
    let error = writer.add(&dump, &Silent, &Cancel::new()).unwrap_err();
    assert_eq!(error.code(), Code::FileUnreadable);
    assert!(error.message().contains("the server went away"), "{error}");
}

#[test]
fn a_place_that_takes_no_more_ends_the_archive_with_its_error() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(buf.len()).ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(buf.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let many = |n| (std::path::PathBuf::from(format!("{n}")), Bytes::Random(300_000));
    let made = Made((0..500).map(many).collect());
    for room in [0, 1_000_000, 50_000_000] {
        let mut writer = backstay_archive::Writer::new(Full(room), options()).unwrap();
        let error = writer.add(&made, &Silent, &Cancel::new()).unwrap_err();
        assert_eq!(error.code(), Code::StorageFull);
    }
}

#[test]
fn the_error_of_a_storage_comes_out_as_it_is_and_leaves_no_zip() {
    let memory = Arc::new(Memory::new());
    let storage = Faulty::new(memory.clone());
    storage.add(Rule::new(Fault::Fail(Code::StorageDenied)).on(Op::Put));
    let zip = place::Zip::begin(&storage, &name()).unwrap();
    let mut writer = backstay_archive::Writer::new(zip, options()).unwrap();
    let made = Made(vec![("file".into(), Bytes::Random(3 << 20))]);
    let error = match writer.add(&made, &Silent, &Cancel::new()) {
        Err(e) => e,
        Ok(()) => writer.finish(time()).and_then(|(zip, _)| zip.commit()).unwrap_err(),
    };
    assert_eq!(error.code(), Code::StorageDenied);
    assert!(place::list(&*memory).unwrap().is_empty());
}

#[test]
fn work_that_is_cancelled_stops() {
    let made = Made(vec![("endless".into(), Bytes::Zeros(1 << 50))]);
    let cancel = Cancel::new();
    let mut writer = backstay_archive::Writer::new(std::io::sink(), options()).unwrap();
    std::thread::scope(|scope| {
        let work = scope.spawn(|| writer.add(&made, &Silent, &cancel));
        std::thread::sleep(std::time::Duration::from_millis(50));
        cancel.cancel();
        assert_eq!(work.join().unwrap().unwrap_err().code(), Code::Cancelled);
    });
}

#[test]
fn a_zip_alone_is_taken_only_when_asked_for() {
    let home = temp_dir();
    fixtures::small(home.path(), 8, 40);
    let packed = pack_app(home.path());
    assert_eq!(look(&packed.zip, None, &checks()).unwrap_err().code(), Code::ArchiveUnverified);
    let anyway = backstay_archive::Checks { accept_unverified: true, ..checks() };
    let verified = look(&packed.zip, None, &anyway).unwrap();
    assert_eq!((verified.integrity, verified.findings.len()), (None, 0), "{:?}", verified.findings);
    let contents = verified.accept().unwrap();
    let target = quick_dir();
    let target = target.path().join("back");
    let done = extract(&contents, &target);
    assert_eq!(done.problems, []);
    let options =
        compare::Options { hard_links: false, mtime: false, folder_mtime: false, ..Default::default() };
    let differences = compare::trees(home.path(), &target, &options);
    assert!(differences.iter().all(|d| d.what == compare::What::Mode), "{differences:#?}");
    // Another program's xml beside it is no manifest, but names the dumps.
    let foreign = b"<backupdescription><databases><databasebackupdescription><filename>blogdb</filename>\
        </databasebackupdescription></databases></backupdescription>";
    assert_eq!(look(&packed.zip, Some(foreign), &checks()).unwrap_err().code(), Code::ArchiveUnsupported);
    let contents = look(&packed.zip, Some(foreign), &anyway).unwrap().accept().unwrap();
    assert_eq!(contents.dumps().collect::<Vec<_>>(), ["blogdb"]);
    // A broken manifest is no missing manifest.
    let broken = [&packed.xml[..100], b"x", &packed.xml[100..]].concat();
    let verified = look(&packed.zip, Some(&broken), &anyway).unwrap();
    assert_eq!(verified.findings.first().map(|f| f.what), Some(Flaw::Manifest));
    assert_eq!(verified.accept().unwrap_err().code(), Code::ArchiveDamaged);
}
