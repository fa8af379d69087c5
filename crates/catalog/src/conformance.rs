//! What every [`Catalog`] keeps, as one suite.
//!
//! An implementation runs [`suite`] in its tests with a function that opens a new, empty state. It panics where a
//! promise is broken.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use backstay_model::{
    AppName, Code, CustomBackup, JobId, JobKind, JobState, Occasion, Origin, Point, PointId, PointStatus,
    Schedule, Signer,
};
use jiff::Timestamp;

use crate::{
    App, Catalog, Container, CustomChanges, End, LogLine, NewJob, PRODUCTION, PointChanges, PointRecord,
    SealedRecord, SettingKind, SettingRecord, Work,
};

/// Runs every check, each on a state of its own.
pub fn suite<C: Catalog>(make: impl Fn() -> C) {
    apps_are_unique_by_name_and_home(&make());
    what_is_set_about_an_app_stays_or_changes_whole(&make());
    a_removed_app_keeps_its_name_and_comes_back(&make());
    points_are_a_view_per_vault(&make());
    containers_are_kept_by_name_and_while_they_are_used(&make());
    custom_backups_are_a_view_of_containers(&make());
    settings_are_kept_by_app_slot_kind_and_name(&make());
    settings_are_put_all_or_none_and_those_of_the_slot_may_stay(&make());
    what_is_sealed_is_sealed_anew_all_or_none(&make());
    one_exclusive_job_per_app(&make());
    only_the_holder_of_the_token_may_write(&make());
    a_stop_reaches_the_job(&make());
    an_automatic_job_is_not_cancelled(&make());
    notes_are_kept_by_name(&make());
    jobs_keep_what_they_did(&make());
    of_many_that_begin_at_once_one_wins(&make());
}

/// An app with that name and home.
#[must_use]
pub fn app(name: &str, home: Option<&str>) -> App {
    App::new(AppName::suggest(name), home.map(PathBuf::from), "folder", Timestamp::UNIX_EPOCH)
}

/// A point of an app, told apart by `number`.
#[must_use]
pub fn point(app: &str, number: u8) -> PointRecord {
    PointRecord {
        point: Point {
            id: PointId::from_bytes([number; 16]),
            app: AppName::suggest(app),
            time: Timestamp::from_second(1_000 + i64::from(number)).unwrap_or_default(),
            origin: Origin::Manual,
            status: PointStatus::Succeeded,
            pinned: false,
            files: 1,
            bytes: u64::MAX,
            added_bytes: 3,
            snapshot: format!("{number:02x}").repeat(32),
        },
        host: "host".to_owned(),
        paths: vec!["/srv/blog".to_owned()],
        tree: "00".repeat(32),
    }
}

/// A job of an app, told apart by `number`.
#[must_use]
pub fn job(number: u8, app: Option<&str>, exclusive: bool) -> NewJob {
    NewJob {
        id: JobId::from_bytes([number; 16]),
        kind: JobKind::Backup,
        app: app.map(AppName::suggest),
        exclusive,
        automatic: false,
    }
}

fn well() -> End {
    End { state: JobState::Succeeded, message: Some("Done".to_owned()), code: None }
}

fn code<T: std::fmt::Debug>(result: backstay_model::Result<T>) -> Code {
    result.unwrap_err().code()
}

fn apps_are_unique_by_name_and_home(c: &impl Catalog) {
    assert_eq!(c.apps().unwrap(), []);
    let blog = app("blog", Some("/srv/blog"));
    c.add_app(&blog).unwrap();
    c.add_app(&app("bare", None)).unwrap();
    c.add_app(&app("bare-2", None)).unwrap();
    assert_eq!(code(c.add_app(&app("blog", Some("/else")))), Code::AlreadyExists);
    assert_eq!(code(c.add_app(&app("blog2", Some("/srv/blog")))), Code::Conflict);
    let apps = c.apps().unwrap();
    assert_eq!(apps.iter().map(|a| a.name.as_str()).collect::<Vec<_>>(), ["bare", "bare-2", "blog"]);
    assert_eq!(apps[2], blog);
    c.move_app(&app("bare", Some("/srv/bare"))).unwrap();
    assert_eq!(c.apps().unwrap()[0], app("bare", Some("/srv/bare")));
    assert_eq!(code(c.move_app(&app("bare", Some("/srv/blog")))), Code::Conflict);
    assert_eq!(code(c.move_app(&app("nobody", None))), Code::AppNotFound);
    c.move_app(&app("bare", None)).unwrap();
}

fn what_is_set_about_an_app_stays_or_changes_whole(c: &impl Catalog) {
    let mut blog = app("blog", Some("/srv/blog"));
    blog.config.excludes = vec!["cache".to_owned()];
    c.add_app(&blog).unwrap();
    assert_eq!(c.app(&blog.name).unwrap(), Some(blog.clone()));
    let changed = c
        .change_app_config(&blog.name, &mut |config| {
            config.automatic = false;
            Ok(())
        })
        .unwrap();
    blog.config.automatic = false;
    assert_eq!(changed, blog);
    let refused = c.change_app_config(&blog.name, &mut |config| {
        config.excludes.clear();
        Err(backstay_model::Error::new(Code::InvalidValue, "No"))
    });
    assert_eq!(code(refused), Code::InvalidValue);
    assert_eq!(c.app(&blog.name).unwrap(), Some(blog.clone()));
    assert_eq!(code(c.change_app_config(&AppName::suggest("nobody"), &mut |_| Ok(()))), Code::AppNotFound);
    c.move_app(&app("blog", Some("/srv/moved"))).unwrap();
    assert_eq!(c.apps().unwrap()[0].config, blog.config, "a move changes the home alone");
    c.change_points("v1", &PointChanges::default(), &[app("blog", Some("/srv/blog"))]).unwrap();
    assert_eq!(c.apps().unwrap()[0].config, blog.config, "the vault knows nothing better");
    std::thread::scope(|scope| {
        for n in 0..8 {
            let name = &blog.name;
            scope.spawn(move || {
                c.change_app_config(name, &mut |config| {
                    config.excludes.push(n.to_string());
                    Ok(())
                })
                .unwrap()
            });
        }
    });
    assert_eq!(c.apps().unwrap()[0].config.excludes.len(), 9, "no change is lost");
}

fn a_removed_app_keeps_its_name_and_comes_back(c: &impl Catalog) {
    let mut blog = app("blog", Some("/srv/blog"));
    blog.config.plan = "large".to_owned();
    c.add_app(&blog).unwrap();
    c.change_points("v1", &PointChanges { add: vec![point("blog", 1)], remove: vec![] }, &[]).unwrap();
    let removed = c.remove_app(&blog.name).unwrap();
    assert!(removed.removed.is_some());
    assert_eq!(code(c.remove_app(&blog.name)), Code::AppNotFound);
    assert_eq!(c.apps().unwrap(), []);
    assert_eq!(c.removed_apps().unwrap(), std::slice::from_ref(&removed));
    assert_eq!(c.app(&blog.name).unwrap(), Some(removed));

    // Neither the vault nor a new app takes its place.
    let news = PointChanges { add: vec![point("blog", 2)], remove: vec![] };
    c.change_points("v1", &news, &[app("blog", Some("/srv/blog")), app("blog", None)]).unwrap();
    assert_eq!(c.apps().unwrap(), []);
    assert_eq!(c.points("v1").unwrap().len(), 2, "its points stay");
    assert_eq!(code(c.add_app(&app("blog", Some("/else")))), Code::AlreadyExists);

    assert_eq!(c.revive_app(&blog.name).unwrap(), blog);
    assert_eq!(c.apps().unwrap(), [blog.clone()]);
    assert_eq!(code(c.revive_app(&blog.name)), Code::AppNotFound);

    // Its home is free meanwhile; then it must get another one before it can come back.
    c.remove_app(&blog.name).unwrap();
    c.add_app(&app("other", Some("/srv/blog"))).unwrap();
    assert_eq!(code(c.revive_app(&blog.name)), Code::Conflict);
    c.move_app(&app("blog", Some("/srv/else"))).unwrap();
    assert_eq!(c.revive_app(&blog.name).unwrap().home, Some(PathBuf::from("/srv/else")));

    // Forgotten only when old and without points.
    c.remove_app(&blog.name).unwrap();
    c.remove_app(&AppName::suggest("other")).unwrap();
    assert_eq!(c.forget_removed(Timestamp::UNIX_EPOCH).unwrap(), []);
    assert_eq!(c.forget_removed(Timestamp::MAX).unwrap(), [AppName::suggest("other")]);
    assert_eq!(c.removed_apps().unwrap().len(), 1);
    c.add_app(&app("other", None)).unwrap();
}

fn points_are_a_view_per_vault(c: &impl Catalog) {
    let changes = PointChanges { add: vec![point("blog", 1), point("shop", 2)], remove: vec![] };
    let found = [app("blog", Some("/srv/blog")), app("shop", None)];
    c.change_points("v1", &changes, &found).unwrap();
    c.change_points("v1", &changes, &found).unwrap();
    c.change_points("v2", &PointChanges { add: vec![point("blog", 3)], remove: vec![] }, &[]).unwrap();
    assert_eq!(c.points("v1").unwrap(), [point("shop", 2), point("blog", 1)], "newest first, nothing twice");
    assert_eq!(c.points("v2").unwrap(), [point("blog", 3)]);
    assert_eq!(c.points("v3").unwrap(), []);
    assert_eq!(c.apps().unwrap().len(), 2);
    c.change_points("v1", &PointChanges::default(), &[app("other", Some("/srv/blog"))]).unwrap();
    assert_eq!(c.apps().unwrap()[1], app("other", None));
    let mut pinned = point("blog", 1);
    pinned.point.pinned = true;
    let remove = vec![point("shop", 2).point.snapshot, "unknown".to_owned()];
    c.change_points("v1", &PointChanges { add: vec![pinned.clone()], remove }, &[]).unwrap();
    assert_eq!(c.points("v1").unwrap(), [pinned]);
}

fn container(name: &str) -> Container {
    Container {
        name: name.to_owned(),
        address: format!("/srv/{name}"),
        credentials: Some("sealed".to_owned()),
        expires: Some(Timestamp::UNIX_EPOCH),
        options: "{}".to_owned(),
        created: Timestamp::UNIX_EPOCH,
    }
}

/// A custom backup of an app, told apart by `number`.
#[must_use]
pub fn custom(app: &str, number: u8) -> CustomBackup {
    CustomBackup {
        id: PointId::from_bytes([number; 16]),
        app: AppName::suggest(app),
        container: "/srv/one".to_owned(),
        name: format!("{app}_{number}"),
        time: Timestamp::from_second(1_000 + i64::from(number)).unwrap_or_default(),
        occasion: Occasion::Scheduled,
        status: PointStatus::Succeeded,
        files: 1,
        bytes: u64::MAX,
        stored_bytes: 2,
        host: "host".to_owned(),
        home: "/srv/blog".to_owned(),
        signer: Signer::ThisServer,
        removing: false,
        unmatched: vec!["/gone".to_owned()],
    }
}

fn containers_are_kept_by_name_and_while_they_are_used(c: &impl Catalog) {
    assert_eq!(c.containers().unwrap(), []);
    c.put_container(&container("two"), false).unwrap();
    c.put_container(&container("one"), false).unwrap();
    assert_eq!(c.containers().unwrap(), [container("one"), container("two")]);
    assert_eq!(code(c.put_container(&container("one"), false)), Code::AlreadyExists);
    let other =
        Container { address: "/else".to_owned(), credentials: None, expires: None, ..container("one") };
    c.put_container(&other, true).unwrap();
    assert_eq!(c.container("one").unwrap(), Some(other.clone()));
    assert_eq!(c.container("three").unwrap(), None);
    assert_eq!(code(c.remove_container("three")), Code::ContainerNotFound);

    let blog = app("blog", None);
    c.add_app(&blog).unwrap();
    let schedule = |container: &str| {
        Some(Schedule {
            every_hours: 6,
            start: Timestamp::UNIX_EPOCH,
            keep_days: 0,
            keep_one: false,
            container: container.to_owned(),
        })
    };
    let set = |to: Option<Schedule>| {
        c.change_app_config(&blog.name, &mut |config| {
            config.schedule.clone_from(&to);
            Ok(())
        })
        .unwrap()
    };
    set(schedule("one"));
    assert_eq!(code(c.remove_container("one")), Code::Conflict);
    c.remove_app(&blog.name).unwrap();
    assert_eq!(code(c.remove_container("one")), Code::Conflict, "a removed app may come back");
    set(schedule("two"));
    assert_eq!(c.remove_container("one").unwrap(), other);
    set(None);
    c.remove_container("two").unwrap();
    assert_eq!(c.containers().unwrap(), []);
}

fn custom_backups_are_a_view_of_containers(c: &impl Catalog) {
    let put = |put: Vec<CustomBackup>| CustomChanges { put, remove: vec![] };
    c.change_custom_backups(&put(vec![custom("blog", 1), custom("shop", 2)])).unwrap();
    c.change_custom_backups(&put(vec![custom("blog", 3), custom("blog", 1)])).unwrap();
    let elsewhere = CustomBackup { container: "/srv/two".to_owned(), ..custom("blog", 1) };
    c.change_custom_backups(&put(vec![elsewhere.clone()])).unwrap();
    let all = [custom("blog", 3), custom("shop", 2), custom("blog", 1), elsewhere.clone()];
    assert_eq!(c.custom_backups(None).unwrap(), all, "newest first, nothing twice");
    let of_blog = c.custom_backups(Some(&AppName::suggest("blog"))).unwrap();
    assert_eq!(of_blog, [custom("blog", 3), custom("blog", 1), elsewhere]);
    let changed = CustomBackup { removing: true, ..custom("shop", 2) };
    let gone = |b: &CustomBackup| (b.container.clone(), b.name.clone());
    let remove = vec![gone(&custom("blog", 3)), gone(&custom("blog", 1)), gone(&custom("blog", 9))];
    c.change_custom_backups(&CustomChanges { put: vec![changed.clone()], remove }).unwrap();
    assert_eq!(c.custom_backups(Some(&changed.app)).unwrap(), [changed]);
    assert_eq!(c.custom_backups(None).unwrap().len(), 2);
    // An app that has one left is not forgotten.
    for name in ["shop", "bare"] {
        c.add_app(&app(name, None)).unwrap();
        c.remove_app(&AppName::suggest(name)).unwrap();
    }
    assert_eq!(c.forget_removed(Timestamp::MAX).unwrap(), [AppName::suggest("bare")]);
}

/// A setting, told apart by its value.
#[must_use]
pub fn setting(kind: SettingKind, name: &str, value: &str) -> SettingRecord {
    SettingRecord {
        kind,
        name: name.to_owned(),
        value: value.to_owned(),
        connection_type: (kind == SettingKind::Connection).then(|| "PostgreSQL".to_owned()),
        sticky: false,
        changed: Timestamp::UNIX_EPOCH,
    }
}

fn settings_are_kept_by_app_slot_kind_and_name(c: &impl Catalog) {
    use SettingKind::{Connection, Setting};
    let (blog, shop) = (AppName::suggest("blog"), AppName::suggest("shop"));
    assert_eq!(code(c.set_setting(&blog, PRODUCTION, &setting(Setting, "A", "1"))), Code::AppNotFound);
    assert_eq!(c.settings(&blog, PRODUCTION).unwrap(), []);
    c.add_app(&app("blog", None)).unwrap();
    c.add_app(&app("shop", None)).unwrap();
    for (kind, name) in [(Setting, "b"), (Setting, "B"), (Setting, "DB"), (Connection, "DB")] {
        c.set_setting(&blog, PRODUCTION, &setting(kind, name, "1")).unwrap();
    }
    c.set_setting(&blog, "staging", &setting(Setting, "B", "staged")).unwrap();
    let again = SettingRecord {
        sticky: true,
        changed: Timestamp::from_second(5).unwrap(),
        ..setting(Setting, "B", "2")
    };
    c.set_setting(&blog, PRODUCTION, &again).unwrap();
    let all = [
        setting(Connection, "DB", "1"),
        again.clone(),
        setting(Setting, "DB", "1"),
        setting(Setting, "b", "1"),
    ];
    assert_eq!(c.settings(&blog, PRODUCTION).unwrap(), all);
    assert_eq!(c.settings(&blog, "staging").unwrap(), [setting(Setting, "B", "staged")]);
    assert_eq!(c.settings(&shop, PRODUCTION).unwrap(), []);
    assert_eq!(c.delete_setting(&blog, PRODUCTION, Setting, "B").unwrap(), again);
    let gone = |app, kind| code(c.delete_setting(app, PRODUCTION, kind, "B"));
    assert_eq!(gone(&blog, Setting), Code::SettingNotFound);
    assert_eq!(gone(&blog, Connection), Code::ConnectionNotFound);
    assert_eq!(gone(&AppName::suggest("nobody"), Setting), Code::AppNotFound);
    assert_eq!(c.settings(&blog, PRODUCTION).unwrap().len(), 3);
    assert_eq!(c.settings(&blog, "staging").unwrap().len(), 1);

    // A removed app keeps them; one that is forgotten does not.
    c.remove_app(&blog).unwrap();
    assert_eq!(c.settings(&blog, PRODUCTION).unwrap().len(), 3);
    assert_eq!(c.forget_removed(Timestamp::MAX).unwrap(), std::slice::from_ref(&blog));
    c.add_app(&app("blog", None)).unwrap();
    assert_eq!(c.settings(&blog, PRODUCTION).unwrap(), [], "a new app of the name has none of the old one's");
    assert_eq!(c.settings(&blog, "staging").unwrap(), []);
}

fn settings_are_put_all_or_none_and_those_of_the_slot_may_stay(c: &impl Catalog) {
    use SettingKind::{Connection, Setting};
    let blog = AppName::suggest("blog");
    assert_eq!(code(c.put_settings(&blog, PRODUCTION, &[], false)), Code::AppNotFound);
    c.add_app(&app("blog", None)).unwrap();
    let now = || c.settings(&blog, PRODUCTION).unwrap();
    c.set_setting(&blog, "staging", &setting(Setting, "A", "staged")).unwrap();
    c.set_setting(&blog, PRODUCTION, &setting(Setting, "OLD", "1")).unwrap();
    let new = [setting(Connection, "DB", "2"), setting(Setting, "A", "2")];
    for _ in 0..2 {
        c.put_settings(&blog, PRODUCTION, &new, false).unwrap();
        assert_eq!(now(), new);
    }
    let own = SettingRecord { sticky: true, ..setting(Setting, "OWN", "3") };
    let db = SettingRecord { sticky: true, ..setting(Connection, "DB", "3") };
    c.set_setting(&blog, PRODUCTION, &own).unwrap();
    c.set_setting(&blog, PRODUCTION, &db).unwrap();
    let more = [setting(Connection, "DB", "4"), setting(Setting, "B", "4")];
    for _ in 0..2 {
        c.put_settings(&blog, PRODUCTION, &more, true).unwrap();
        assert_eq!(now(), [db.clone(), setting(Setting, "B", "4"), own.clone()]);
    }
    c.put_settings(&blog, PRODUCTION, &[], true).unwrap();
    assert_eq!(now(), [db, own]);
    c.put_settings(&blog, PRODUCTION, &[], false).unwrap();
    assert_eq!(now(), []);
    assert_eq!(
        c.settings(&blog, "staging").unwrap(),
        [setting(Setting, "A", "staged")],
        "the slot is another"
    );
}

fn what_is_sealed_is_sealed_anew_all_or_none(c: &impl Catalog) {
    let blog = AppName::suggest("blog");
    c.add_app(&app("blog", None)).unwrap();
    c.put_container(&container("shelf"), false).unwrap();
    c.put_container(&Container { credentials: None, ..container("open") }, false).unwrap();
    c.set_setting(&blog, "staging", &setting(SettingKind::Setting, "A", "one")).unwrap();
    c.set_setting(&blog, PRODUCTION, &setting(SettingKind::Connection, "DB", "two")).unwrap();
    let texts = || {
        let of = |slot: &str| c.settings(&blog, slot).unwrap()[0].value.clone();
        (c.container("shelf").unwrap().unwrap().credentials.unwrap(), of("staging"), of(PRODUCTION))
    };
    let before = texts();
    let mut seen = Vec::new();
    let failed = c.reseal(&mut |record, text| {
        seen.push((record.clone(), text.to_owned()));
        match record {
            SealedRecord::Setting { slot, .. } if slot.as_str() != PRODUCTION => {
                Err(backstay_model::Error::new(Code::StateDamaged, "No"))
            }
            _ => Ok(Some("new".to_owned())),
        }
    });
    assert_eq!(code(failed), Code::StateDamaged);
    assert_eq!(texts(), before, "nothing was changed");
    let shelf = SealedRecord::Container { name: "shelf".to_owned() };
    assert!(seen.contains(&(shelf, "sealed".to_owned())), "{seen:?}");
    let changed = c.reseal(&mut |_, text| Ok((text != "one").then(|| format!("new {text}")))).unwrap();
    assert_eq!(changed, 2);
    assert_eq!(texts(), ("new sealed".to_owned(), "one".to_owned(), "new two".to_owned()));
}

fn one_exclusive_job_per_app(c: &impl Catalog) {
    let first = c.begin_job(&job(1, Some("blog"), true)).unwrap();
    assert_eq!((first.state, first.token > 0), (JobState::Running, true));
    assert_eq!(code(c.begin_job(&job(2, Some("blog"), true))), Code::AppBusy);
    assert!(c.job(&JobId::from_bytes([2; 16])).unwrap().is_none(), "what was refused left nothing");
    c.begin_job(&job(3, Some("blog"), false)).unwrap();
    assert_eq!(c.exclusive_job(&AppName::suggest("blog")).unwrap().unwrap().id, first.id);
    assert!(c.exclusive_job(&AppName::suggest("shop")).unwrap().is_none());
    c.begin_job(&job(4, Some("shop"), true)).unwrap();
    c.begin_job(&job(5, None, true)).unwrap();
    c.begin_job(&job(6, None, true)).unwrap();
    c.end_job(&first.id, first.token, &Work::default(), &well()).unwrap();
    let again = c.begin_job(&job(7, Some("blog"), true)).unwrap();
    assert!(again.token > first.token);
    assert_eq!(c.expire_jobs().unwrap(), [], "their process lives");
}

fn only_the_holder_of_the_token_may_write(c: &impl Catalog) {
    let it = c.begin_job(&job(1, Some("blog"), true)).unwrap();
    let (work, wrong) = (Work::default(), it.token + 1);
    assert_eq!(code(c.renew_job(&it.id, wrong, &work)), Code::LeaseLost);
    assert_eq!(code(c.watch_job(&it.id, wrong)), Code::LeaseLost);
    assert_eq!(code(c.end_job(&it.id, wrong, &work, &well())), Code::LeaseLost);
    assert_eq!(c.job(&it.id).unwrap().unwrap().state, JobState::Running);
    c.end_job(&it.id, it.token, &work, &well()).unwrap();
    assert_eq!(code(c.renew_job(&it.id, it.token, &work)), Code::LeaseLost);
    assert_eq!(code(c.end_job(&it.id, it.token, &work, &well())), Code::LeaseLost);
}

fn a_stop_reaches_the_job(c: &impl Catalog) {
    let it = c.begin_job(&job(1, Some("blog"), true)).unwrap();
    assert!(!c.watch_job(&it.id, it.token).unwrap());
    assert!(!c.renew_job(&it.id, it.token, &Work::default()).unwrap());
    assert!(c.cancel_job(&it.id).unwrap().cancel_requested);
    assert!(c.watch_job(&it.id, it.token).unwrap());
    assert!(c.renew_job(&it.id, it.token, &Work::default()).unwrap());
    let end = End { state: JobState::Cancelled, message: None, code: Some("Cancelled".to_owned()) };
    c.end_job(&it.id, it.token, &Work::default(), &end).unwrap();
    assert_eq!(c.cancel_job(&it.id).unwrap().state, JobState::Cancelled);
    assert_eq!(code(c.cancel_job(&JobId::from_bytes([9; 16]))), Code::JobNotFound);
}

fn an_automatic_job_is_not_cancelled(c: &impl Catalog) {
    let it = c.begin_job(&NewJob { automatic: true, ..job(1, Some("blog"), true) }).unwrap();
    assert!(it.automatic);
    assert_eq!(code(c.cancel_job(&it.id)), Code::AutomaticJob);
    assert!(!c.watch_job(&it.id, it.token).unwrap(), "it was not asked to stop");
    c.end_job(&it.id, it.token, &Work::default(), &well()).unwrap();
    assert_eq!(c.cancel_job(&it.id).unwrap().state, JobState::Succeeded);
}

fn notes_are_kept_by_name(c: &impl Catalog) {
    assert!(c.notes("").unwrap().is_empty());
    let note = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
    c.set_notes(&[note("a/1", Some("x")), note("a/2", Some("y")), note("b%", Some("z"))]).unwrap();
    c.set_notes(&[note("a/1", Some("new")), note("a/2", None), note("a/3", None)]).unwrap();
    let of = |prefix: &str| c.notes(prefix).unwrap().into_iter().collect::<Vec<_>>();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(of("a/"), [pair("a/1", "new")]);
    assert_eq!(of("b%"), [pair("b%", "z")]);
    assert_eq!(of("%"), [], "a prefix is taken as it is");
    assert_eq!(of("").len(), 2);
}

fn jobs_keep_what_they_did(c: &impl Catalog) {
    let it = c.begin_job(&job(1, None, false)).unwrap();
    let line = |n: i64| LogLine { time: Timestamp::from_second(n).unwrap(), text: format!("line {n}") };
    let mut work = Work { log: vec![line(1), line(2)], ..Work::default() };
    work.progress.bytes = u64::MAX;
    c.renew_job(&it.id, it.token, &work).unwrap();
    work.log = vec![line(3)];
    c.end_job(&it.id, it.token, &work, &well()).unwrap();
    assert_eq!(c.job_log(&it.id).unwrap(), [line(1), line(2), line(3)]);
    let done = c.job(&it.id).unwrap().unwrap();
    assert_eq!((done.state, done.progress.bytes, done.lease_until), (JobState::Succeeded, u64::MAX, None));
    assert_eq!(done.message.as_deref(), Some("Done"));
    c.begin_job(&job(2, None, false)).unwrap();
    let ids: Vec<_> = c.jobs(10).unwrap().iter().map(|j| j.id).collect();
    assert_eq!(ids, [JobId::from_bytes([2; 16]), it.id]);
    assert_eq!(c.jobs(1).unwrap().len(), 1);
}

fn of_many_that_begin_at_once_one_wins(c: &impl Catalog) {
    let won = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for n in 1..=8 {
            let won = &won;
            scope.spawn(move || match c.begin_job(&job(n, Some("blog"), true)) {
                Ok(_) => {
                    won.fetch_add(1, Ordering::SeqCst);
                }
                Err(e) => assert_eq!(e.code(), Code::AppBusy),
            });
        }
    });
    assert_eq!(won.load(Ordering::SeqCst), 1);
}
