//! Whatever is altered is found, and the entry named.

use std::ops::Range;
use std::path::{Path, PathBuf};

use backstay_archive::source::Stream;
use backstay_archive::{Finding, Flaw, SigningKey, Verified};
use backstay_model::Code;
use backstay_testing::fixtures::Random;
use backstay_testing::quick_dir;

use crate::world::{Bytes, Made, Packed, checks, key, live, look, manifest, options, pack, time};

/// A small archive with an entry of each kind.
fn small() -> Packed {
    let home = quick_dir();
    let path = |name: &str| home.path().join(name);
    std::fs::create_dir(path("folder")).unwrap();
    std::fs::write(path("folder/text"), Random::new(1).text(300)).unwrap();
    std::fs::write(path("random"), Random::new(2).bytes(80)).unwrap();
    std::fs::write(path("empty"), b"").unwrap();
    std::fs::hard_link(path("random"), path("folder/random")).unwrap();
    std::os::unix::fs::symlink("folder/text", path("link")).unwrap();
    std::fs::write(path("\u{fc}ml\u{e4}ut"), b"named in UTF-8").unwrap();
    let dump = Stream::new("dump", time(), &b"a dump of unknown length"[..]);
    pack(&[&live(home.path()), &dump], options())
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()).into()
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// The ranges of bytes that belong to each entry, as the central directory has them; then that of the end.
fn regions(zip: &[u8]) -> (Vec<(String, Range<usize>)>, Range<usize>) {
    let end = zip.len() - 22;
    let directory = u32_at(zip, end + 16);
    let mut at = directory;
    let mut offsets = Vec::new();
    let mut regions = Vec::new();
    while at < end {
        let len = 46 + u16_at(zip, at + 28) + u16_at(zip, at + 30) + u16_at(zip, at + 32);
        let name = zip[at + 46..at + 46 + u16_at(zip, at + 28)].to_vec();
        let name = String::from_utf8(name).unwrap();
        offsets.push((name.clone(), u32_at(zip, at + 42)));
        regions.push((name, at..at + len));
        at += len;
    }
    for (n, (name, start)) in offsets.iter().enumerate() {
        let next = offsets.get(n + 1).map_or(directory, |(_, start)| *start);
        regions.push((name.clone(), *start..next));
    }
    (regions, end..zip.len())
}

fn refused(verified: &Verified) -> &[Finding] {
    assert!(!verified.is_sound());
    &verified.findings
}

#[test]
fn every_flipped_bit_of_the_zip_is_found_and_its_entry_named() {
    let packed = small();
    assert_eq!(look(&packed.zip, Some(&packed.xml), &checks()).unwrap().findings, []);
    let (regions, end) = regions(&packed.zip);
    let mut flips = 0;
    for at in 0..packed.zip.len() {
        let owner = regions.iter().find(|(_, range)| range.contains(&at)).map(|(name, _)| name.as_str());
        assert!(owner.is_some() || end.contains(&at), "byte {at} belongs to nothing");
        for bit in 0..8 {
            let mut zip = packed.zip.clone();
            zip[at] ^= 1 << bit;
            let verified = look(&zip, Some(&packed.xml), &checks()).unwrap();
            let findings = refused(&verified);
            if let Some(owner) = owner {
                let named = findings.iter().any(|finding| finding.entry == owner);
                assert!(named, "byte {at}, bit {bit} of {owner}: {findings:?}");
            }
            assert_eq!(verified.accept().unwrap_err().code(), Code::ArchiveDamaged, "byte {at}, bit {bit}");
            flips += 1;
        }
    }
    println!("{flips} flips in a zip of {} bytes", packed.zip.len());
}

#[test]
fn every_flipped_bit_of_the_manifest_is_found() {
    let packed = small();
    for signed in [true, false] {
        let xml = packed.manifest.to_xml(signed.then(key).as_ref());
        for at in 0..xml.len() {
            for bit in 0..8 {
                let mut xml = xml.clone();
                xml[at] ^= 1 << bit;
                let verified = look(&packed.zip, Some(&xml), &checks()).unwrap();
                let findings = refused(&verified);
                assert_eq!(findings[0].what, Flaw::Manifest, "byte {at}, bit {bit}: {findings:?}");
            }
        }
    }
}

#[test]
fn cut_off_or_longer_anywhere_it_is_found() {
    let packed = small();
    for len in 0..packed.zip.len() {
        refused(&look(&packed.zip[..len], Some(&packed.xml), &checks()).unwrap());
    }
    for len in 0..packed.xml.len() {
        // What is too short to be known as a manifest is no manifest: refused as well.
        match look(&packed.zip, Some(&packed.xml[..len]), &checks()) {
            Ok(verified) => assert_eq!(refused(&verified)[0].what, Flaw::Manifest),
            Err(e) => assert_eq!((e.code(), len < 200), (Code::ArchiveUnsupported, true), "{len} bytes"),
        }
    }
    for more in [&b"\0"[..], b"\n", b"PK\x05\x06", &packed.zip] {
        refused(&look(&[&packed.zip, more].concat(), Some(&packed.xml), &checks()).unwrap());
        refused(&look(&[more, &packed.zip].concat(), Some(&packed.xml), &checks()).unwrap());
        refused(&look(&packed.zip, Some(&[&packed.xml, more].concat()), &checks()).unwrap());
        refused(&look(&packed.zip, Some(&[more, &packed.xml].concat()), &checks()).unwrap());
    }
}

/// Findings that are only told must not hide one that is fatal.
#[test]
fn bytes_that_belong_to_no_entry_are_found_beside_harmless_findings() {
    let name = |n| (PathBuf::from(format!("{n}")), Bytes::Of(Vec::new()));
    let mut made: Vec<_> = (0..65_600).map(name).collect();
    made.push(("readme".into(), Bytes::Of(b"a".to_vec())));
    made.push(("README".into(), Bytes::Of(b"b".to_vec())));
    let packed = pack(&[&Made(made)], options());
    let verified = look(&packed.zip, Some(&packed.xml), &checks()).unwrap();
    assert_eq!(verified.findings.iter().map(|f| f.what).collect::<Vec<_>>(), [Flaw::CaseCollision]);
    // The version that made the end record for large zips: no reader looks at it.
    let at = packed.zip.len() - 22 - 20 - 56 + 12;
    let mut zip = packed.zip.clone();
    zip[at] ^= 1;
    let verified = look(&zip, Some(&packed.xml), &checks()).unwrap();
    assert_eq!(refused(&verified)[0].what, Flaw::Archive);
}

/// Whole, honest zips of these files.
fn of(files: &[(&str, &str)]) -> Packed {
    let file = |(name, text): &(&str, &str)| (PathBuf::from(name), Bytes::Of(text.as_bytes().to_vec()));
    pack(&[&Made(files.iter().map(file).collect())], options())
}

#[test]
fn entries_swapped_renamed_added_removed_are_named() {
    let packed = of(&[("a", "content a"), ("b", "content b"), ("c", "content c")]);
    for (what, other, named) in [
        (
            "contents swapped",
            of(&[("a", "content b"), ("b", "content a"), ("c", "content c")]),
            vec!["fs/a", "fs/b"],
        ),
        ("renamed", of(&[("a", "content a"), ("x", "content b"), ("c", "content c")]), vec!["fs/b", "fs/x"]),
        (
            "names swapped",
            of(&[("b", "content b"), ("a", "content a"), ("c", "content c")]),
            vec!["fs/a", "fs/b"],
        ),
        (
            "added",
            of(&[("a", "content a"), ("b", "content b"), ("c", "content c"), ("d", "content d")]),
            vec!["fs/d"],
        ),
        ("removed", of(&[("a", "content a"), ("c", "content c")]), vec!["fs/b"]),
        ("altered", of(&[("a", "content a"), ("b", "content B"), ("c", "content c")]), vec!["fs/b"]),
        ("longer", of(&[("a", "content a"), ("b", "content b+"), ("c", "content c")]), vec!["fs/b"]),
    ] {
        let verified = look(&other.zip, Some(&packed.xml), &checks()).unwrap();
        let findings = refused(&verified);
        for name in named {
            assert!(findings.iter().any(|f| f.entry == name), "{what}, {name}: {findings:?}");
        }
    }
}

#[test]
fn the_manifest_removed_replaced_or_signed_anew() {
    let packed = of(&[("a", "content a")]);
    let other = of(&[("a", "content A")]);
    assert_eq!(look(&packed.zip, None, &checks()).unwrap_err().code(), Code::ArchiveUnverified);
    refused(&look(&packed.zip, Some(&other.xml), &checks()).unwrap());
    for nothing in [&b""[..], b"\0", b"<x/>", b"<?xml version=\"1.0\"?>"] {
        assert_eq!(look(&packed.zip, Some(nothing), &checks()).unwrap_err().code(), Code::ArchiveUnsupported);
    }
    // Somebody else's signature under the right manifest: whole, but told.
    let mine = SigningKey::from_seed(&[9; 32]).unwrap();
    let verified = look(&packed.zip, Some(&packed.manifest.to_xml(Some(&mine))), &checks()).unwrap();
    assert_eq!(verified.integrity, Some(backstay_archive::Integrity::UnknownKey(mine.public())));
    assert!(verified.is_sound());
    // The signature of one manifest under another.
    let end = |xml: &[u8]| xml.windows(13).rposition(|w| w == b"  <Integrity>").unwrap();
    let body = &packed.xml[..end(&packed.xml)];
    let mixed = [body, &other.xml[end(&other.xml)..]].concat();
    assert_eq!(refused(&look(&packed.zip, Some(&mixed), &checks()).unwrap())[0].what, Flaw::Manifest);
}

#[test]
fn a_newer_format_is_not_taken_for_damage() {
    let packed = of(&[("a", "content a")]);
    let text = String::from_utf8(packed.manifest.to_xml(None)).unwrap();
    let end = text.find("  <Integrity>").unwrap();
    let newer = text[..end].replace("version=\"1\"", "version=\"2\"");
    let newer = newer.replacen("<?xml version=\"2\"", "<?xml version=\"1.0\"", 1);
    let sealed = seal(newer.as_bytes());
    assert_eq!(look(&packed.zip, Some(&sealed), &checks()).unwrap_err().code(), Code::ArchiveUnsupported);
}

/// The end of a manifest, as whoever has no key would write it.
pub fn seal(body: &[u8]) -> Vec<u8> {
    use sha2::Digest as _;
    let hash: String = sha2::Sha256::digest(body).iter().map(|b| format!("{b:02x}")).collect();
    let end = format!("  <Integrity>\n    <Sha256>{hash}</Sha256>\n  </Integrity>\n</BackupDescription>\n");
    [body, end.as_bytes()].concat()
}

/// Metadata that does not fit the zip, under a manifest that vouches for it.
#[test]
fn metadata_that_does_not_fit_is_named() {
    let home = quick_dir();
    std::fs::write(home.path().join("a"), "content").unwrap();
    std::fs::write(home.path().join("b"), "content").unwrap();
    std::os::unix::fs::symlink("a", home.path().join("l")).unwrap();
    let packed = pack(&[&live(home.path())], options());
    let lines = unpacked(&packed, home.path());
    assert_eq!(lines.lines().count(), 5);
    let with = |from: &str, to: &str| {
        let changed = lines.replacen(from, to, 1);
        assert_ne!(changed, lines, "{from}");
        changed
    };
    let line = |path: &str| {
        let start = format!("{{\"path\":\"{path}\"");
        lines.lines().find(|l| l.starts_with(&start)).unwrap().to_owned() + "\n"
    };
    let (a, b, l) = (line("a"), line("b"), line("l"));
    for (what, lines, named) in [
        ("no record", with(&a, ""), "fs/a"),
        (
            "a record too many",
            with(&a, &(a.clone() + &a.replace("\"path\":\"a\"", "\"path\":\"z\""))),
            "fs/z",
        ),
        ("twice", with(&a, &(a.clone() + &a)), "fs/a"),
        ("another size", with("\"size\":7", "\"size\":8"), "fs/a"),
        ("another kind", with("\"kind\":\"file\"", "\"kind\":\"folder\""), "fs/a"),
        ("a FIFO with content", with("\"kind\":\"file\"", "\"kind\":\"fifo\""), "fs/a"),
        ("another target", with("\"target\":\"a\"", "\"target\":\"b\""), "fs/l"),
        ("out of the home", with("\"path\":\"a\"", "\"path\":\"../a\""), "fs/../a"),
        ("absolute", with("\"path\":\"a\"", "\"path\":\"/a\""), "fs//a"),
        ("below a file", with(&b, &(b.clone() + &b.replace("\"path\":\"b\"", "\"path\":\"b/c\""))), "fs/b/c"),
        ("below a link", with(&l, &(l.clone() + &fifo("l/c"))), "fs/l/c"),
        ("link to itself", with("\"path\":\"a\"", "\"link\":\"a\",\"path\":\"a\""), "fs/a"),
        ("link to what comes later", with("\"path\":\"a\"", "\"link\":\"b\",\"path\":\"a\""), "fs/a"),
        ("link to another kind", with("\"path\":\"l\"", "\"link\":\"a\",\"path\":\"l\""), "fs/l"),
        ("holes beyond the end", with("\"path\":\"a\"", "\"sparse\":[[0,9]],\"path\":\"a\""), "fs/a"),
        ("holes backwards", with("\"path\":\"a\"", "\"sparse\":[[4,6],[0,2]],\"path\":\"a\""), "fs/a"),
        ("a mode that is none", with("\"mode\":\"644\"", "\"mode\":\"99999\""), "metadata.jsonl"),
        ("no JSON", with("\"kind\":\"file\"", "\"kind\":file"), "metadata.jsonl"),
        ("no first line", with("{\"backstay_metadata\":1}\n", ""), "metadata.jsonl"),
        ("cut off", lines.trim_end().to_owned(), "metadata.jsonl"),
        ("a bad escape", with("\"path\":\"a\"", "\"path\":\"\\\\q\""), "metadata.jsonl"),
        ("nothing", String::new(), "metadata.jsonl"),
    ] {
        let forged = with_metadata(&lines);
        let verified = look(&forged.zip, Some(&forged.xml), &checks()).unwrap();
        let findings = refused(&verified);
        assert!(findings.iter().any(|f| f.entry == named), "{what}: {findings:?}");
    }
    let good = with_metadata(&lines);
    assert!(look(&good.zip, Some(&good.xml), &checks()).unwrap().is_sound());
    let newer = with_metadata(&with("\"backstay_metadata\":1", "\"backstay_metadata\":2"));
    let verified = look(&newer.zip, Some(&newer.xml), &checks()).unwrap();
    assert_eq!(verified.accept().unwrap_err().code(), Code::ArchiveUnsupported);
}

fn fifo(path: &str) -> String {
    format!(
        "{{\"path\":\"{path}\",\"kind\":\"fifo\",\"mode\":\"644\",\"uid\":0,\"gid\":0,\"mtime\":\"0.0\"}}\n"
    )
}

fn unpacked(packed: &Packed, dir: &Path) -> String {
    let zip = packed.store(dir, "whole");
    crate::world::must("unzip", &["-p", zip.to_str().unwrap(), "metadata.jsonl"])
}

/// A zip with the entries of the test above and these records, under a manifest that says the same.
fn with_metadata(lines: &str) -> Packed {
    use crate::craft::{Craft, Entry};
    let mut craft = Craft::default();
    craft.entries.push(Entry::folder("fs/"));
    craft.entries.push(Entry::stored("fs/a", b"content"));
    craft.entries.push(Entry::stored("fs/b", b"content"));
    craft.entries.push(Entry { mode: 0o120_777, ..Entry::stored("fs/l", b"a") });
    craft.entries.push(Entry::stored("metadata.jsonl", lines.as_bytes()));
    let (zip, written) = craft.written();
    let manifest = manifest(written);
    Packed { zip, xml: manifest.to_xml(Some(&key())), manifest }
}
