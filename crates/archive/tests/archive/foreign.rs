//! Other programs read what we write.

use std::path::{Path, PathBuf};

use backstay_archive::source::Stream;
use backstay_archive::{SCHEMA, Writer};
use backstay_model::{Cancel, Silent};
use backstay_testing::fixtures::{self, Nasty};
use backstay_testing::{quick_dir, temp_dir};

use crate::world::{Bytes, Made, Packed, live, must, options, pack, pack_app, run, time};

/// unzip, 7z, Python and bsdtar test every entry of the zip; bsdtar also as a stream; xmllint the manifest.
fn all_read(zip: &Path, entries: usize) {
    let path = zip.to_str().unwrap();
    must("unzip", &["-tqq", path]);
    let seven = must("7z", &["t", path]);
    assert!(seven.contains("Everything is Ok"), "{seven}");
    let python = "import sys, zipfile\nz = zipfile.ZipFile(sys.argv[1])\nassert z.testzip() is None\nprint(len(z.namelist()))";
    assert_eq!(must("python3", &["-c", python, path]).trim(), entries.to_string());
    assert_eq!(must("bsdtar", &["-tf", path]).lines().count(), entries);
    // From a pipe there is no central directory to look at first.
    let streamed = must("sh", &["-c", "cat \"$1\" | bsdtar -xOf - > /dev/null", "sh", path]);
    assert_eq!(streamed, "");
    let xml = zip.with_extension("xml");
    must(
        "xmllint",
        &["--noout", "--schema", schema(zip.parent().unwrap()).to_str().unwrap(), xml.to_str().unwrap()],
    );
}

fn schema(dir: &Path) -> PathBuf {
    let path = dir.join("manifest.xsd");
    std::fs::write(&path, SCHEMA).unwrap();
    path
}

fn check(packed: &Packed) {
    let dir = quick_dir();
    let zip = packed.store(dir.path(), "blog_202611201315");
    all_read(&zip, packed.manifest.entries.len());
}

#[test]
fn an_empty_home() {
    let home = temp_dir();
    let packed = pack(&[&live(home.path())], options());
    assert_eq!(packed.manifest.entries.len(), 2);
    check(&packed);
}

#[test]
fn an_app_with_a_dump_and_settings() {
    let home = temp_dir();
    fixtures::small(home.path(), 1, 300);
    let packed = pack_app(home.path());
    assert_eq!(packed.manifest.problems, []);
    check(&packed);
    let dir = quick_dir();
    let zip = packed.store(dir.path(), "app");
    let out = dir.path().join("out");
    must("unzip", &["-q", zip.to_str().unwrap(), "-d", out.to_str().unwrap()]);
    must("diff", &["-r", home.path().to_str().unwrap(), out.join("fs").to_str().unwrap()]);
    assert_eq!(std::fs::read(out.join("blogdb")).unwrap(), b"create table posts (id int);\n");
}

#[test]
fn a_dump_larger_than_a_block_of_unknown_length_beside_a_large_file() {
    let text = fixtures::Random::new(3).text(3 << 20);
    let mixed = [&text[..], &fixtures::Random::new(4).bytes(20 << 20), &vec![0; 5 << 20]].concat();
    let made =
        Made(vec![("large".into(), Bytes::Of(mixed.clone())), ("exact".into(), Bytes::Zeros(17 << 20))]);
    let dump = Stream::new("dump", time(), std::io::Cursor::new(text));
    let packed = pack(&[&made, &dump], options());
    assert!(packed.zip.len() < 22 << 20, "{}", packed.zip.len());
    check(&packed);
    let dir = quick_dir();
    let zip = packed.store(dir.path(), "large");
    must("unzip", &["-q", zip.to_str().unwrap(), "-d", dir.path().to_str().unwrap()]);
    assert_eq!(std::fs::read(dir.path().join("fs/large")).unwrap(), mixed);
}

#[test]
fn everything_that_a_file_system_can_hold() {
    let home = temp_dir();
    let root = home.path().join("nasty");
    fixtures::nasty(&root, &Nasty::quick());
    let packed = pack(&[&live(&root)], options());
    assert_eq!(packed.manifest.problems, []);
    check(&packed);
    backstay_testing::unlock(&root);
}

#[test]
fn what_unzip_and_bsdtar_can_restore_they_do() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let home = temp_dir();
    let file = home.path().join("run.sh");
    std::fs::write(&file, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o750)).unwrap();
    std::os::unix::fs::symlink("run.sh", home.path().join("link")).unwrap();
    must("touch", &["-d", "2020-02-03 04:05:06 UTC", file.to_str().unwrap()]);
    let packed = pack(&[&live(home.path())], options());
    let dir = quick_dir();
    let zip = packed.store(dir.path(), "app");
    for (program, args) in [("unzip", ["-q", "-d"]), ("bsdtar", ["-xpf", "-C"])] {
        let out = dir.path().join(program);
        std::fs::create_dir(&out).unwrap();
        must(program, &[args[0], zip.to_str().unwrap(), args[1], out.to_str().unwrap()]);
        let meta = std::fs::symlink_metadata(out.join("fs/run.sh")).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o750, "{program}");
        assert_eq!(meta.mtime(), 1_580_702_706, "{program}");
        assert_eq!(std::fs::read_link(out.join("fs/link")).unwrap(), Path::new("run.sh"), "{program}");
    }
}

#[test]
fn more_entries_than_16_bits_count() {
    let count = 70_000;
    let name = |n| (PathBuf::from(format!("d/{n:05}")), Bytes::Of(Vec::new()));
    let packed = pack(&[&Made((0..count).map(name).collect())], options());
    assert_eq!(packed.manifest.entries.len(), count + 2);
    check(&packed);
}

#[test]
fn exactly_as_many_entries_as_16_bits_count_and_one_less() {
    for count in [65_534, 65_535] {
        let name = |n| (PathBuf::from(format!("{n}")), Bytes::Of(Vec::new()));
        let packed = pack(&[&Made((2..count).map(name).collect())], options());
        assert_eq!(packed.manifest.entries.len(), count);
        let dir = quick_dir();
        let zip = packed.store(dir.path(), "many");
        must("unzip", &["-tqq", zip.to_str().unwrap()]);
        assert_eq!(must("bsdtar", &["-tf", zip.to_str().unwrap()]).lines().count(), count);
    }
}

#[test]
fn an_entry_above_4_gib_of_unknown_length() {
    let size = (4 << 30) + 12_345;
    let made =
        Made(vec![("sparse".into(), Bytes::Zeros(size)), ("small".into(), Bytes::Of(b"small".to_vec()))]);
    let dump = Stream::new("dump", time(), std::io::Read::take(std::io::repeat(0), size));
    let packed = pack(&[&made, &dump], options());
    check(&packed);
}

/// Writes 4.3 GB to the disk and reads them five times: `bench/archive` runs it.
#[test]
#[ignore = "writes 4.3 GB; bench/archive runs it"]
fn archives_above_4_gib() {
    let dir = temp_dir();
    let zip = dir.path().join("large.zip");
    let made = Made(vec![
        ("random".into(), Bytes::Random((4 << 30) + 100)),
        ("small".into(), Bytes::Of(b"behind 4 GiB".to_vec())),
    ]);
    let mut writer = Writer::new(std::fs::File::create(&zip).unwrap(), options()).unwrap();
    writer.add(&made, &Silent, &Cancel::new()).unwrap();
    let (_, written) = writer.finish(time()).unwrap();
    let packed = crate::world::finish(Vec::new(), written);
    std::fs::write(zip.with_extension("xml"), &packed.xml).unwrap();
    assert!(packed.manifest.zip.size > 4 << 30);
    all_read(&zip, packed.manifest.entries.len());
    let (status, text) = run("unzip", &["-p", zip.to_str().unwrap(), "fs/small"]);
    assert_eq!((status, text.as_str()), (0, "behind 4 GiB"));
}
