//! Zips that mean harm: each is refused for the right reason, or does none.

use std::sync::Arc;

use backstay_archive::{Checks, Flaw};
use backstay_model::{Cancel, Silent};
use backstay_testing::quick_dir;
use backstay_tree::beneath::Root;
use backstay_tree::fs::Host;

use crate::craft::{Craft, Entry};
use crate::world::look;

fn anyway() -> Checks {
    Checks { accept_unverified: true, ..Checks::default() }
}

fn plain(name: &str) -> Entry {
    Entry::stored(name, b"harm")
}

fn one(entry: Entry) -> Vec<u8> {
    Craft::of(vec![Entry::stored("honest", b"honest"), entry]).zip()
}

fn utf8(name: &[u8]) -> Entry {
    Entry { flags: 1 << 11, ..Entry::stored(name, b"harm") }
}

fn zeros(packed_as: u64, says: u32) -> Entry {
    let bytes = vec![0; usize::try_from(packed_as).unwrap()];
    Entry { size: Some(says), ..Entry::deflated("zeros", &bytes) }
}

fn descriptor(crc: u32, packed: u32, size: u32) -> Vec<u8> {
    [0x0807_4b50, crc, packed, size].map(u32::to_le_bytes).concat()
}

/// Stored, with its sizes behind it.
fn with_descriptor(behind: Vec<u8>) -> Entry {
    Entry { flags: 8, local_sizes: Some((0, 0, 0)), behind, ..Entry::stored("described", b"harm") }
}

fn zip64(id: u16, values: &[u64]) -> Vec<u8> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    [&id.to_le_bytes()[..], &u16::try_from(bytes.len()).unwrap().to_le_bytes(), &bytes].concat()
}

/// Names that lead out, or mean different things to different programs.
fn names() -> Vec<(&'static str, Vec<u8>, Flaw)> {
    let mut list: Vec<(&str, Vec<u8>, Flaw)> = Vec::new();
    for (what, name) in [
        ("up", "../x"),
        ("up within", "a/../../x"),
        ("up and back", "a/../x"),
        ("up alone", ".."),
        ("up as a folder", "../"),
        ("up at the end", "a/.."),
        ("absolute", "/etc/passwd"),
        ("absolute, twice", "//etc/passwd"),
        ("here", "./x"),
        ("here alone", "."),
        ("here within", "a/./x"),
        ("two slashes", "a//x"),
        ("a slash alone", "/"),
        ("two slashes at the end", "a//"),
        ("no name", ""),
        ("a backslash", "a\\x"),
        ("up by backslash", "..\\x"),
        ("up by backslashes", "a\\..\\..\\x"),
        ("absolute by backslash", "\\x"),
        ("a share", "\\\\server\\share\\x"),
        ("a drive", "C:/x"),
        ("a drive by backslash", "C:\\x"),
        ("a drive without root", "C:x"),
        ("a device path", "\\\\?\\C:\\x"),
        ("zero byte", "x\0.txt"),
        ("zero byte at the end", "x\0"),
        ("up in the home", "fs/../x"),
        ("up out of the home", "fs/../../x"),
        ("absolute in the home", "fs//etc/passwd"),
        ("up encoded wrongly and rightly", "a/..//../x"),
    ] {
        list.push((what, one(plain(name)), Flaw::UnsafeName));
    }
    let dos = |name: &str| Entry { made_by: 0, ..plain(name) };
    for (what, name) in [
        ("up by DOS", "..\\x"),
        ("up within by DOS", "a\\..\\..\\x"),
        ("absolute by DOS", "\\x"),
        ("a drive by DOS", "C:\\x"),
        ("a share by DOS", "\\\\server\\share"),
    ] {
        list.push((what, one(dos(name)), Flaw::UnsafeName));
    }
    list.push(("a component too long", one(plain(&"x".repeat(256))), Flaw::UnsafeName));
    list.push(("too many levels", one(plain(&"x/".repeat(5000))), Flaw::UnsafeName));
    list.push(("UTF-8 that is none", one(utf8(b"\xff")), Flaw::UnsafeName));
    list.push(("a slash in too many bytes", one(utf8(b"..\xc0\xafx")), Flaw::UnsafeName));
    let below = |first: Entry, name: &str| Craft::of(vec![first, plain(name)]).zip();
    list.push(("below a link", below(Entry::link("l", "/tmp"), "l/x"), Flaw::UnsafeName));
    list.push((
        "below a link, before it",
        { Craft::of(vec![plain("l/x"), Entry::link("l", "/tmp")]).zip() },
        Flaw::UnsafeName,
    ));
    list.push(("deep below a link", below(Entry::link("a/l", ".."), "a/l/b/c/x"), Flaw::UnsafeName));
    list.push(("below a file", below(plain("f"), "f/x"), Flaw::UnsafeName));
    list.push(("the home is a link", below(Entry::link("fs", "/tmp"), "fs/x"), Flaw::UnsafeName));
    list.push(("twice", below(plain("x"), "x"), Flaw::Duplicate));
    list.push(("a link and a file", below(Entry::link("x", "/etc/passwd"), "x"), Flaw::Duplicate));
    list.push(("a folder and a file", below(Entry::folder("x/"), "x"), Flaw::Duplicate));
    let mixed = Craft::of(vec![dos("a\\x"), plain("a/x")]).zip();
    list.push(("twice by two spellings", mixed, Flaw::Duplicate));
    list
}

/// Headers that lie.
fn headers() -> Vec<(&'static str, Vec<u8>, Flaw)> {
    let honest = plain("x");
    let with = |change: &dyn Fn(&mut Entry)| {
        let mut entry = honest.clone();
        change(&mut entry);
        one(entry)
    };
    let local_name = |name: &str| with(&|e| e.local_name = Some(name.into()));
    vec![
        ("another local name", local_name("y"), Flaw::Header),
        ("a local name that leads out", local_name("../x"), Flaw::Header),
        ("a longer local name", local_name("x/y/z"), Flaw::Header),
        ("another local method", with(&|e| e.local_method = Some(8)), Flaw::Header),
        ("encrypted only locally", with(&|e| e.local_flags = Some(1)), Flaw::Header),
        ("descriptor only locally", with(&|e| e.local_flags = Some(8)), Flaw::Header),
        (
            "another local size",
            with(&|e| e.local_sizes = Some((libdeflater::crc32(b"harm"), 4, 5))),
            Flaw::Header,
        ),
        ("another local checksum", with(&|e| e.local_sizes = Some((1, 4, 4))), Flaw::Header),
        ("no local header", with(&|e| e.offset = Some(2)), Flaw::Overlap),
        (
            "a local header within data",
            {
                let inner = Craft::of(vec![plain("y")]).zip();
                let inner = &inner[..inner.len() - 22 - 47];
                let outer = Entry::stored("outer", inner);
                let hidden = Entry { no_local: true, offset: Some(35), ..plain("y") };
                Craft::of(vec![outer, hidden]).zip()
            },
            Flaw::Overlap,
        ),
        ("wrong checksum", with(&|e| e.crc = Some(7)), Flaw::Content),
        ("wrong size of a stored entry", with(&|e| e.size = Some(5)), Flaw::Content),
        (
            "data cut off",
            one(Entry { packed: vec![0x4b], ..Entry::deflated("x", b"harm, harm, harm") }),
            Flaw::Content,
        ),
        (
            "data that is none",
            one(Entry { packed: vec![0xff; 20], ..Entry::deflated("x", b"harm") }),
            Flaw::Content,
        ),
        ("encrypted", with(&|e| e.flags = 1), Flaw::Unsupported),
        ("strongly encrypted", with(&|e| e.flags = 1 << 6), Flaw::Unsupported),
        ("hidden directory", with(&|e| e.flags = 1 << 13), Flaw::Unsupported),
        ("bzip2", with(&|e| e.method = 12), Flaw::Unsupported),
        ("a method that nobody knows", with(&|e| e.method = 0xffff), Flaw::Unsupported),
        ("a FIFO", with(&|e| e.mode = 0o010_644), Flaw::Unsupported),
        ("a device", with(&|e| e.mode = 0o060_644), Flaw::Unsupported),
        (
            "a link with a huge target",
            one(Entry { mode: 0o120_777, ..Entry::deflated("l", &[b'x'; 70_000]) }),
            Flaw::Unsupported,
        ),
        ("on another disk", with(&|e| e.disk = 3), Flaw::Header),
        (
            "two fields of large sizes",
            with(&|e| e.extra = [zip64(1, &[4]), zip64(1, &[4])].concat()),
            Flaw::Header,
        ),
        (
            "a field of large sizes that is too short",
            with(&|e| {
                e.size = Some(u32::MAX);
                e.extra = zip64(1, &[]);
            }),
            Flaw::Header,
        ),
        (
            "an extra field that is longer than it can be",
            with(&|e| e.extra = vec![1, 0, 255, 255]),
            Flaw::Header,
        ),
        (
            "an offset near the end of numbers",
            with(&|e| {
                e.offset = Some(u32::MAX);
                e.extra = zip64(1, &[u64::MAX - 10]);
            }),
            Flaw::Overlap,
        ),
        (
            "a packed size near the end of numbers",
            with(&|e| {
                e.packed_size = Some(u32::MAX);
                e.extra = zip64(1, &[u64::MAX - 40]);
            }),
            Flaw::Overlap,
        ),
        ("a descriptor with another checksum", one(with_descriptor(descriptor(1, 4, 4))), Flaw::Header),
        ("a descriptor that is missing", one(with_descriptor(Vec::new())), Flaw::Header),
        (
            "a descriptor with bytes behind it",
            {
                let crc = libdeflater::crc32(b"harm");
                one(with_descriptor([descriptor(crc, 4, 4), vec![0; 20]].concat()))
            },
            Flaw::Overlap,
        ),
        ("bytes behind an entry", with(&|e| e.behind = b"hidden".to_vec()), Flaw::Overlap),
    ]
}

/// Zips that lie as a whole, and bombs.
fn wholes() -> Vec<(&'static str, Vec<u8>, Flaw)> {
    let two = || Craft::of(vec![plain("x"), plain("y")]);
    let with = |change: &dyn Fn(&mut Craft)| {
        let mut craft = two();
        change(&mut craft);
        craft.zip()
    };
    let overlapping = {
        let mut entries = vec![Entry::deflated("bomb", &vec![0; 100_000])];
        for n in 0..50 {
            let copy = Entry {
                name: format!("copy{n}").into_bytes(),
                no_local: true,
                offset: Some(0),
                ..entries[0].clone()
            };
            entries.push(copy);
        }
        Craft::of(entries).zip()
    };
    vec![
        ("nothing", Vec::new(), Flaw::Archive),
        (
            "no zip",
            b"this is no zip at all, only some text that is long enough to hold an end".to_vec(),
            Flaw::Archive,
        ),
        ("the end alone, cut off", b"PK\x05\x06\0\0\0\0".to_vec(), Flaw::Archive),
        (
            "fewer entries than it says",
            with(&|z| (z.count, z.count_here) = (Some(3), Some(3))),
            Flaw::Archive,
        ),
        ("more entries than it says", with(&|z| (z.count, z.count_here) = (Some(1), Some(1))), Flaw::Archive),
        (
            "more entries than can be",
            with(&|z| (z.count, z.count_here) = (Some(60_000), Some(60_000))),
            Flaw::Archive,
        ),
        ("a directory that begins too early", with(&|z| z.directory_offset = Some(3)), Flaw::Archive),
        ("a directory behind the end", with(&|z| z.directory_offset = Some(1 << 30)), Flaw::Archive),
        ("a directory that is too large", with(&|z| z.directory_size = Some(0xffff_fff0)), Flaw::Archive),
        ("several parts", with(&|z| z.disk = 1), Flaw::Unsupported),
        ("part of its entries here", with(&|z| z.count_here = Some(1)), Flaw::Unsupported),
        ("bytes before it", with(&|z| z.before = b"#!/bin/sh\n".to_vec()), Flaw::Overlap),
        ("bytes before the directory", with(&|z| z.between = b"hidden".to_vec()), Flaw::Overlap),
        ("bytes behind the directory", with(&|z| z.after_directory = b"hidden".to_vec()), Flaw::Archive),
        ("bytes behind the end", with(&|z| z.after = b"hidden".to_vec()), Flaw::Archive),
        (
            "a comment that is longer than it says",
            with(&|z| (z.comment, z.comment_len) = (b"abc".to_vec(), Some(2))),
            Flaw::Archive,
        ),
        (
            "two ends",
            {
                let other = Craft::of(vec![plain("z")]).zip();
                with(&|z| z.comment = other.clone())
            },
            Flaw::Archive,
        ),
        ("two zips", [two().zip(), Craft::of(vec![plain("z")]).zip()].concat(), Flaw::Archive),
        (
            "an end for large zips that is not there",
            with(&|z| {
                z.after_directory =
                    [&b"PK\x06\x07\0\0\0\0"[..], &9u64.to_le_bytes(), &1u32.to_le_bytes()].concat();
            }),
            Flaw::Archive,
        ),
        (
            "an entry that has no record",
            {
                let hidden = Entry { no_central: true, ..plain("hidden") };
                Craft::of(vec![plain("x"), hidden, plain("y")]).zip()
            },
            Flaw::Overlap,
        ),
        (
            "an entry before all others that has no record",
            {
                let hidden = Entry { no_central: true, ..plain("hidden") };
                Craft::of(vec![hidden, plain("y")]).zip()
            },
            Flaw::Overlap,
        ),
        ("a bomb that says what it is", Craft::of(vec![zeros(100 << 20, 100 << 20)]).zip(), Flaw::Bomb),
        ("a bomb that says less", Craft::of(vec![zeros(100 << 20, 1000)]).zip(), Flaw::Content),
        (
            "a large bomb that says less, in pieces",
            Craft::of(vec![zeros(100 << 20, 20 << 20)]).zip(),
            Flaw::Content,
        ),
        (
            "a bomb that says more than deflate can do",
            Craft::of(vec![zeros(1000, u32::MAX - 1)]).zip(),
            Flaw::Bomb,
        ),
        ("many bombs in the same bytes", overlapping, Flaw::Overlap),
        (
            "folders without end that nobody listed",
            {
                let deep = |n: usize| plain(&format!("{n}/{}x", "folder/".repeat(200)));
                Craft::of((0..1500).map(deep).collect()).zip()
            },
            Flaw::Bomb,
        ),
        (
            "many small bombs",
            {
                let bomb =
                    |n| Entry { name: format!("{n}").into_bytes(), ..Entry::deflated("", &vec![0; 1 << 20]) };
                Craft::of((0..100).map(bomb).collect()).zip()
            },
            Flaw::Bomb,
        ),
    ]
}

#[test]
fn hostile_zips_are_refused_for_what_is_wrong_with_them() {
    let list = [names(), headers(), wholes()].concat();
    println!("{} hostile zips", list.len());
    assert!(list.len() >= 60);
    for (what, zip, flaw) in list {
        let verified = look(&zip, None, &anyway()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(verified.findings.iter().any(|f| f.what == flaw), "{what}: {:?}", verified.findings);
        assert!(!verified.is_sound() && verified.accept().is_err(), "{what}");
    }
}

#[test]
fn odd_zips_that_do_no_harm_come_out_beneath_the_target() {
    let crc = libdeflater::crc32(b"harm");
    let short_descriptor = [crc, 4, 4].map(u32::to_le_bytes).concat();
    let long_descriptor =
        [&0x0807_4b50u32.to_le_bytes()[..], &crc.to_le_bytes(), &4u64.to_le_bytes(), &4u64.to_le_bytes()]
            .concat();
    let dos = |name: &str| Entry { made_by: 0, mode: 0, ..plain(name) };
    for (what, craft, path, content) in [
        ("a folder by backslash", Craft::of(vec![dos("a\\b\\x")]), "a/b/x", "harm"),
        ("no folders", Craft::of(vec![plain("a/b/c/x")]), "a/b/c/x", "harm"),
        ("folders last", Craft::of(vec![plain("a/x"), Entry::folder("a/")]), "a/x", "harm"),
        ("with a home", Craft::of(vec![plain("fs/site/x"), plain("dump")]), "site/x", "harm"),
        (
            "a descriptor without signature",
            Craft::of(vec![with_descriptor(short_descriptor)]),
            "described",
            "harm",
        ),
        ("a descriptor of 64 bits", Craft::of(vec![with_descriptor(long_descriptor)]), "described", "harm"),
        ("set-uid", Craft::of(vec![Entry { mode: 0o104_755, ..plain("x") }]), "x", "harm"),
        ("no rights", Craft::of(vec![Entry { mode: 0o100_000, ..plain("x") }]), "x", "harm"),
        (
            "a comment",
            Craft { comment: b"made by hand".to_vec(), ..Craft::of(vec![plain("x")]) },
            "x",
            "harm",
        ),
        ("a link out of the target", Craft::of(vec![Entry::link("l", "/etc"), plain("x")]), "x", "harm"),
        (
            "unknown extra fields",
            Craft::of(vec![Entry { extra: zip64(0x6666, &[1, 2]), ..plain("x") }]),
            "x",
            "harm",
        ),
        ("deflated", Craft::of(vec![Entry::deflated("x", b"harm")]), "x", "harm"),
        ("deflated to nothing", Craft::of(vec![Entry::deflated("x", b"")]), "x", ""),
        ("a name of 255 bytes", Craft::of(vec![plain(&"n".repeat(255))]), &*"n".repeat(255), "harm"),
    ] {
        let verified = look(&craft.zip(), None, &anyway()).unwrap();
        assert!(verified.is_sound(), "{what}: {:?}", verified.findings);
        let contents = verified.accept().unwrap();
        let dir = quick_dir();
        let target = dir.path().join("target");
        std::fs::create_dir(&target).unwrap();
        let root = Root::open(Arc::new(Host), &target).unwrap();
        let done = contents.extract(&root, &|_| true, &Silent, &Cancel::new()).unwrap();
        assert_eq!(done.problems, [], "{what}");
        assert_eq!(std::fs::read_to_string(target.join(path)).unwrap(), content, "{what}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{what}");
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(target.join(path)).unwrap());
        assert_eq!(mode & 0o7000, 0, "{what}");
    }
}

#[test]
fn names_that_differ_by_case_are_told_and_taken() {
    let zip = Craft::of(vec![plain("Readme"), plain("README"), plain("readme")]).zip();
    let verified = look(&zip, None, &anyway()).unwrap();
    assert_eq!(verified.findings.iter().filter(|f| f.what == Flaw::CaseCollision).count(), 2);
    assert!(verified.is_sound() && verified.accept().is_ok());
}

/// What lies in the target already is not followed and not replaced.
#[test]
fn links_planted_in_the_target_lead_nowhere() {
    let dir = quick_dir();
    let (target, outside) = (dir.path().join("target"), dir.path().join("outside"));
    std::fs::create_dir(&target).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, target.join("a")).unwrap();
    std::os::unix::fs::symlink(outside.join("new"), target.join("file")).unwrap();
    std::fs::write(target.join("mine"), "mine").unwrap();
    let zip = Craft::of(vec![plain("a/x"), plain("file"), plain("mine"), plain("b/x")]).zip();
    let contents = look(&zip, None, &anyway()).unwrap().accept().unwrap();
    let root = Root::open(Arc::new(Host), &target).unwrap();
    let done = contents.extract(&root, &|_| true, &Silent, &Cancel::new()).unwrap();
    assert_eq!(done.problems.len(), 3, "{:?}", done.problems);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(std::fs::read_to_string(target.join("mine")).unwrap(), "mine");
    assert_eq!(std::fs::read_to_string(target.join("b/x")).unwrap(), "harm");
}

#[test]
fn a_limit_on_the_whole_holds_for_archives_with_a_manifest_too() {
    let mut craft = Craft::of(vec![Entry::folder("fs/"), Entry::stored("fs/x", &[0; 5000])]);
    craft.entries.push(Entry::stored("metadata.jsonl", b"{\"backstay_metadata\":1}\n"));
    let (zip, written) = craft.written();
    let xml = crate::world::manifest(written).to_xml(None);
    let checks = Checks { total_max: 4000, ..Checks::default() };
    let verified = look(&zip, Some(&xml), &checks).unwrap();
    assert!(verified.findings.iter().any(|f| f.what == Flaw::Bomb), "{:?}", verified.findings);
}
