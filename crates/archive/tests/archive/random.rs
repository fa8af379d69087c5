//! Random archives come back, random damage never gets through, random bytes do no harm.

use std::path::PathBuf;

use backstay_archive::{Checks, Manifest, Options};
use proptest::prelude::*;

use crate::craft::{Craft, Entry};
use crate::world::{Bytes, Made, checks, look, pack, trust};

fn files() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let name = "[a-z]{1,8}|[ -~&&[^/]]{1,6}x|[\u{e4}-\u{ff}]{1,4}|a\\\\b|[\u{1}-\u{1f}]x";
    let content = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..400),
        (any::<u8>(), 0..5000usize).prop_map(|(byte, len)| vec![byte; len]),
    ];
    prop::collection::btree_map(name, content, 0..12).prop_map(|map| map.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_packed_comes_back(files in files(), level in 1u8..=9, workers in 1usize..4) {
        let items = files.iter().map(|(name, bytes)| (PathBuf::from(name), Bytes::Of(bytes.clone()))).collect();
        let packed = pack(&[&Made(items)], Options { level, workers, ..Options::default() });
        let (manifest, _) = Manifest::from_xml(&packed.xml, &trust()).unwrap();
        prop_assert_eq!(&manifest, &packed.manifest);
        let verified = look(&packed.zip, Some(&packed.xml), &checks()).unwrap();
        prop_assert!(verified.is_sound(), "{:?}", verified.findings);
        let contents = verified.accept().unwrap();
        for (node, (name, bytes)) in contents.nodes().iter().skip(1).zip(&files) {
            let mut read = Vec::new();
            contents.read_node(node, &mut |b| { read.extend_from_slice(b); Ok(()) }).unwrap();
            prop_assert_eq!((&node.record.path, &read), (&PathBuf::from(name), bytes));
        }
        prop_assert_eq!(contents.nodes().len(), files.len() + 1);
    }

    #[test]
    fn damage_of_any_kind_is_found(
        at in any::<prop::sample::Index>(),
        len in 0..64usize,
        new in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let made = Made((0..8).map(|n| (PathBuf::from(format!("{n}")), Bytes::Of(vec![b'x'; 50 * n]))).collect());
        let packed = pack(&[&made], Options::default());
        let at = at.index(packed.zip.len());
        let end = (at + len).min(packed.zip.len());
        let damaged = [&packed.zip[..at], &new, &packed.zip[end..]].concat();
        let verified = look(&damaged, Some(&packed.xml), &checks()).unwrap();
        prop_assert_eq!(verified.is_sound(), damaged == packed.zip);
    }

    #[test]
    fn random_bytes_are_refused_and_nothing_else(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let anyway = Checks { accept_unverified: true, ..Checks::default() };
        prop_assert!(!look(&bytes, None, &anyway).unwrap().is_sound());
        prop_assert!(Manifest::from_xml(&bytes, &trust()).is_err());
        let sealed = crate::damage::seal(&bytes);
        prop_assert!(Manifest::from_xml(&sealed, &trust()).is_err());
    }

    #[test]
    fn a_zip_of_another_program_with_random_damage_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut craft = Craft::of(vec![Entry::folder("a/"), Entry::deflated("a/x", &[b'y'; 300]), Entry::link("l", "a/x")]);
        craft.comment = b"comment".to_vec();
        let mut zip = craft.zip();
        for (at, byte) in changes {
            let at = at.index(zip.len());
            zip[at] = byte;
        }
        let anyway = Checks { accept_unverified: true, ..Checks::default() };
        if let Ok(contents) = look(&zip, None, &anyway).and_then(backstay_archive::Verified::accept) {
            for node in contents.nodes() {
                contents.read_node(node, &mut |_| Ok(())).unwrap();
            }
        }
    }
}

/// Manifests that a hostile writer might seal: bounded in depth, elements and entities.
#[test]
fn hostile_manifests_are_refused_quickly() {
    let head =
        "<?xml version=\"1.0\"?>\n<BackupDescription xmlns=\"urn:backstay:manifest:1\" version=\"1\">\n";
    let laughs = (1..30).fold("<!ENTITY a0 \"ha\">".to_owned(), |all, n| {
        let ten = format!("&a{};", n - 1).repeat(10);
        format!("{all}<!ENTITY a{n} \"{ten}\">")
    });
    let deep = "<x>".repeat(1_000_000);
    let wide = format!("{head}{}", "<x/>".repeat(2_000_000));
    let attributes: String = (0..100_000).map(|n| format!(" a{n}=\"\"")).collect();
    for (what, body) in [
        ("a billion laughs", format!("<?xml version=\"1.0\"?><!DOCTYPE x [{laughs}]>{head}&a29;")),
        (
            "an external entity",
            format!("<!DOCTYPE x [<!ENTITY f SYSTEM \"file:///etc/passwd\">]>{head}<App>&f;</App>"),
        ),
        ("an unknown entity", format!("{head}<App>&f;</App>")),
        ("depth", format!("{head}{deep}")),
        ("width", wide),
        ("attributes", format!("{head}<x{attributes}/>")),
        ("an instruction", format!("{head}<?php echo 1 ?>")),
        ("a comment", format!("{head}<!-- -->")),
        ("CDATA", format!("{head}<App><![CDATA[x]]></App>")),
        ("two roots", format!("{head}</BackupDescription><x>")),
        ("closed wrongly", format!("{head}<App></Host>")),
        ("nothing in it", head.to_owned()),
        ("no root", String::new()),
    ] {
        let begin = std::time::Instant::now();
        let error = Manifest::from_xml(&crate::damage::seal(body.as_bytes()), &trust()).unwrap_err();
        assert!(begin.elapsed() < std::time::Duration::from_secs(20), "{what}");
        assert!(!error.message().contains("root:"), "{what}: {error}");
    }
}
