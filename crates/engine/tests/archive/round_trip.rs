//! Out, in, and out again.

use backstay_archive::{LocalFile, Seal, Sealed, seal};
use backstay_engine::{BackupRequest, InPlace, Proof, RestoreRequest, SealBy, Selector};
use backstay_model::{Cancel, Code, JobState, Origin, PointStatus, Secret, Silent};
use backstay_testing::fixtures::{Nasty, nasty};

use crate::world::{
    DUMP, Machine, SETTINGS, TIME, code, entries, key, manifest_of, pack, pack_at, small_home,
};

/// The entry of a zip, as `verify` gives it.
fn entry(zip: &std::path::Path, name: &str) -> Vec<u8> {
    let xml = std::fs::read(zip.with_extension("xml")).unwrap();
    let bytes = std::sync::Arc::new(LocalFile::open(zip).unwrap());
    let checks = backstay_archive::Checks::default();
    let contents = backstay_archive::verify(bytes, Some(&xml), &checks, &Silent, &Cancel::new())
        .unwrap()
        .accept()
        .unwrap();
    let mut out = Vec::new();
    contents
        .read_beside(name, &mut |piece| {
            out.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
    out
}

#[test]
fn an_archive_that_came_in_goes_out_as_it_was() {
    let machine = Machine::new();
    let home = machine.path("site");
    nasty(&home, &Nasty::quick());
    let by = Seal::Recipients(vec![machine.recipient()]);
    let (zip, original) = pack(&home, &machine.path("in"), "a", Some(&by));

    let report = machine.import(&zip, None, false).unwrap();
    let point = &report.point.point;
    assert_eq!(
        (point.app.as_str(), point.origin, point.status),
        ("blog", Origin::Imported, PointStatus::Succeeded)
    );
    assert_eq!((point.time.as_second(), report.new_app, report.already), (TIME, true, false));
    assert_eq!(report.archive.as_ref().unwrap().proof, Proof::UnknownKey);
    assert_eq!(
        (report.databases.as_slice(), report.settings_sealed),
        (["blogdb".to_owned()].as_slice(), false)
    );
    assert_eq!(machine.engine.apps().unwrap()[0].home, None, "the home of another machine is not taken");
    machine.assert_holds(&report.point, &home);
    machine.check();

    // Plain settings are written when asked for only.
    let (out, again) = machine.export("blog", "again", &SealBy::Plain);
    assert_eq!((out.settings, out.problems.as_slice()), (Some("plain"), [].as_slice()));
    assert_eq!(entry(&again, "settings.json"), SETTINGS);
    let (_, again) = machine.export("blog", "sealed", &SealBy::Server);
    assert_eq!(entry(&again, "blogdb"), DUMP);
    let there = manifest_of(&again);
    assert_eq!(entries(&there, "settings.age"), entries(&original, "settings.age"));
    let told = |m: &backstay_archive::Manifest| {
        let at = (m.started, m.ended, m.consistency.clone());
        let app = (m.app.clone(), m.kind.clone(), m.host.clone(), m.home.clone(), m.host_names.clone());
        (at, app, m.databases.clone(), m.filter.clone(), m.problems.clone(), m.settings.clone())
    };
    assert_eq!(told(&there), told(&original));
    assert_eq!(there.point, Some(point.id));

    // To another machine, which cannot open the settings, and out of it.
    let other = Machine::new();
    let report = other.import(&again, None, false).unwrap();
    assert!(report.settings_sealed && report.failures().len() == 1, "{report:?}");
    assert_eq!(report.point.point.status, PointStatus::PartiallySucceeded);
    let job = &other.engine.jobs(1).unwrap()[0];
    assert_eq!((job.state, job.code.as_deref()), (JobState::Succeeded, Some("SettingsSealed")));
    other.assert_holds(&report.point, &home);
    let (_, third) = other.export("blog", "third", &SealBy::Plain);
    let there = manifest_of(&third);
    assert_eq!(entries(&there, ""), entries(&manifest_of(&again), ""), "sealed settings too, as they are");
    assert_eq!(there.settings.as_ref().unwrap().sealed, Sealed::Recipients(vec![machine.recipient()]));

    // Back at the first, its own signature says which point that was.
    let back = machine.import(&again, None, false).unwrap();
    assert_eq!((back.already, back.point.point.id), (true, point.id));
    assert_eq!(machine.points().len(), 1);
}

#[test]
fn what_the_vault_has_of_an_archive_is_not_stored_again_and_nothing_differs() {
    let machine = Machine::new();
    let home = machine.path("blog");
    nasty(&home, &Nasty { sparse_bytes: 40 << 20, large: true, ..Nasty::quick() });
    let (zip, _) = pack(&home, &machine.path("in"), "a", None);
    machine.engine.backup(&BackupRequest::of(&home), &Silent, &Cancel::new()).unwrap();
    let report = machine.import(&zip, None, false).unwrap();
    assert!(!report.new_app);
    let added = report.point.point.added_bytes;
    assert!(added < 400_000, "only trees are new: {added}");
    // An import is older than the backup here; nothing of it differs from what lies there.
    let selector = Selector::Id(report.point.point.id.to_string());
    let request = RestoreRequest { app: "blog", point: &selector, paths: &[] };
    let plan = machine.engine.plan_restore(&request, &InPlace::default(), &Silent, &Cancel::new()).unwrap();
    assert!(plan.changes.is_empty(), "{:#?}", plan.changes);
    // The next backup compares with what was taken here and does not believe an imported time.
    let next = machine.engine.backup(&BackupRequest::of(&home), &Silent, &Cancel::new()).unwrap();
    machine.assert_holds(&next.point, &home);
    machine.check();
}

#[test]
fn the_same_archive_is_the_same_point_and_a_passphrase_may_come_later() {
    let machine = Machine::new();
    let home = machine.path("site");
    small_home(&home);
    let passphrase = Secret::new("correct horse");
    let (zip, _) = pack(&home, &machine.path("in"), "a", Some(&Seal::Passphrase(passphrase.clone())));
    let first = machine.import(&zip, None, false).unwrap();
    assert!(first.settings_sealed && !first.already);
    let second = machine.import(&zip, None, false).unwrap();
    assert!(second.settings_sealed && second.already);
    let third = machine.import_with(&zip, None, false, Some(&passphrase)).unwrap();
    assert!(!third.settings_sealed && !third.already, "{third:?}");
    assert_eq!(third.point.point.status, PointStatus::Succeeded);
    let fourth = machine.import_with(&zip, None, false, Some(&passphrase)).unwrap();
    assert!(fourth.already);
    for report in [&second, &third, &fourth] {
        assert_eq!(report.point.point.id, first.point.point.id);
    }
    assert_eq!(machine.points().len(), 1);
    // Of another app it is another point.
    let other = machine.import(&zip, Some("shop"), false).unwrap();
    assert_ne!(other.point.point.id, first.point.point.id);
    assert_eq!(other.archive.unwrap().app, "blog", "whose it is stays known");
    // And so it is without its manifest, which is worth more than what can be told without.
    let bare = machine.path("in/bare.zip");
    std::fs::copy(&zip, &bare).unwrap();
    let poorer = machine.import(&bare, Some("blog"), true).unwrap();
    assert_ne!(poorer.point.point.id, first.point.point.id);
    // Under another name it is the same archive.
    let moved = machine.path("in/moved.zip");
    std::fs::copy(&zip, &moved).unwrap();
    std::fs::copy(zip.with_extension("xml"), moved.with_extension("xml")).unwrap();
    assert!(machine.import(&moved, None, false).unwrap().already);
    machine.check();
}

#[test]
fn no_point_lies_in_the_future_and_a_used_name_is_refused() {
    let machine = Machine::new();
    let home = machine.path("site");
    small_home(&home);
    let (zip, _) = pack_at(&home, &machine.path("in"), "a", None, 4_000_000_000);
    let report = machine.import(&zip, None, false).unwrap();
    assert!(report.point.point.time <= jiff::Timestamp::now(), "{report:?}");
    machine.export("blog", "once", &SealBy::Server);
    let before = std::fs::read(machine.path("out/once.xml")).unwrap();
    let to = machine.engine.folder_container(&machine.path("out")).unwrap();
    let name = backstay_archive::Name::parse("once").unwrap();
    let request = backstay_engine::ExportRequest {
        app: "blog",
        point: &Selector::Latest(0),
        to: &to,
        name: Some(&name),
        seal: &SealBy::Server,
    };
    assert_eq!(code(machine.engine.export(&request, &Silent, &Cancel::new())), Code::AlreadyExists);
    assert_eq!(std::fs::read(machine.path("out/once.xml")).unwrap(), before);
}

#[test]
fn the_key_that_signs_is_made_once_and_kept() {
    let machine = Machine::new();
    small_home(&machine.path("blog"));
    machine.engine.backup(&BackupRequest::of(&machine.path("blog")), &Silent, &Cancel::new()).unwrap();
    // A state of before there were signatures.
    let file = machine.engine.secrets_file();
    let mut secrets: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    secrets.as_object_mut().unwrap().remove("signing_key").unwrap();
    std::fs::write(&file, secrets.to_string()).unwrap();
    let signed_by = |zip: &std::path::Path| {
        let xml = std::fs::read(zip.with_extension("xml")).unwrap();
        let trust = backstay_archive::Trust { keys: vec![key().public()] };
        backstay_archive::Manifest::from_xml(&xml, &trust).unwrap().1
    };
    let (_, one) = machine.export("blog", "one", &SealBy::Server);
    let (_, two) = machine.export("blog", "two", &SealBy::Server);
    assert!(matches!(signed_by(&one), backstay_archive::Integrity::UnknownKey(_)));
    assert_eq!(signed_by(&one), signed_by(&two));
    let xml = std::fs::read_to_string(one.with_extension("xml")).unwrap();
    assert!(!xml.contains("settings"), "an app without settings has none in its archive");
    let recipient = seal::recipient_of(&Secret::new(secrets["age_identity"].as_str().unwrap())).unwrap();
    assert_eq!(machine.recipient(), recipient);
}
