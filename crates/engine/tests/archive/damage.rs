//! Archives that are not what was written: nothing of them comes in.

use std::collections::BTreeSet;
use std::path::Path;

use backstay_engine::BackupRequest;
use backstay_model::{Cancel, Code, Silent};

use crate::world::{Machine, code, pack};

/// The names of all files of a vault but its locks.
fn objects(vault: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut pending = vec![vault.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => pending.push(entry.path()),
                false => drop(found.insert(entry.path().display().to_string())),
            }
        }
    }
    found
}

/// A machine with a point of an app, and an archive of the same app that differs.
fn scene() -> (Machine, std::path::PathBuf) {
    let machine = Machine::new();
    machine.write("blog/page", b"now");
    machine.engine.backup(&BackupRequest::of(&machine.path("blog")), &Silent, &Cancel::new()).unwrap();
    machine.write("then/page", b"then");
    std::os::unix::fs::symlink("page", machine.path("then/start")).unwrap();
    let (zip, _) = pack(&machine.path("then"), &machine.path("in"), "a", None);
    (machine, zip)
}

#[test]
fn every_flipped_byte_and_every_length_is_refused_before_anything_is_written() {
    let (machine, zip) = scene();
    let vault = machine.path("home/vault");
    let (before, points) = (objects(&vault), machine.points());
    let xml = zip.with_extension("xml");
    for file in [&zip, &xml] {
        let good = std::fs::read(file).unwrap();
        let flipped = (0..good.len()).map(|at| {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            (format!("byte {at}"), bytes)
        });
        let cut = (0..good.len()).step_by(41).map(|len| (format!("{len} bytes"), good[..len].to_vec()));
        for (what, bytes) in flipped.chain(cut) {
            std::fs::write(file, bytes).unwrap();
            let found = code(machine.import(&zip, None, false));
            let refused = matches!(
                found,
                Code::ArchiveDamaged
                    | Code::ArchiveUnsupported
                    | Code::ArchiveUnverified
                    | Code::LimitExceeded
            );
            assert!(refused, "{what} of {}: {found}", file.display());
        }
        std::fs::write(file, good).unwrap();
    }
    assert_eq!(objects(&vault), before);
    assert_eq!(machine.points(), points);
    assert_eq!(std::fs::read(machine.path("blog/page")).unwrap(), b"now");
    machine.import(&zip, None, false).unwrap();
    assert_eq!(machine.points().len(), points.len() + 1);
}

#[test]
fn the_manifest_of_another_archive_does_not_vouch() {
    let (machine, zip) = scene();
    machine.write("then/page", b"else");
    let (other, _) = pack(&machine.path("then"), &machine.path("in"), "b", None);
    std::fs::copy(other.with_extension("xml"), zip.with_extension("xml")).unwrap();
    assert_eq!(code(machine.import(&zip, None, false)), Code::ArchiveDamaged);
    assert_eq!(
        code(machine.import(&zip, None, true)),
        Code::ArchiveDamaged,
        "a manifest that lies is not passed over"
    );
    std::fs::remove_file(zip.with_extension("xml")).unwrap();
    assert_eq!(code(machine.import(&zip, None, false)), Code::ArchiveUnverified);
    assert_eq!(code(machine.import(&machine.path("in/none.zip"), None, true)), Code::SourceNotFound);
    assert_eq!(machine.points().len(), 1);
}

#[test]
fn an_archive_on_a_blank_machine_that_is_refused_leaves_no_point() {
    let (machine, zip) = scene();
    let mut bytes = std::fs::read(&zip).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&zip, bytes).unwrap();
    let blank = Machine::new();
    assert_eq!(code(blank.import(&zip, None, false)), Code::ArchiveDamaged);
    assert!(blank.points().is_empty());
    assert!(blank.engine.apps().unwrap().is_empty());
    drop(machine);
}
