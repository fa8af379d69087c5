//! Apps: making them known, setting what is set about them, removing them and bringing them back.
//!
//! Invariants: nothing here deletes anything of an app: a removed app keeps its home, its points, its configuration and
//! its name. A home that Backstay made lies in `sites/NAME` of the state folder and is made before the app is noted;
//! killed in between, the empty folder is taken over by the next try.

mod operate;

pub use operate::Operated;

use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_catalog::App;
use backstay_model::app::{AppConfig, Moment, Pause, Runtime as Kind};
use backstay_model::{AppName, Cancel, Code, Error, Point, PointId, Result};
use backstay_platform::{Condition, HookTarget, Runtime, State, run_hook};
use backstay_tree::path::escape;
use jiff::Timestamp;
use serde::Serialize;

use crate::adopt::{FOREIGN, SITES, absolute_home, app_at};
use crate::in_app::{InAppState, InAppView};
use crate::job::Running;
use crate::private;
use crate::secrets::Secrets;
use crate::state::Engine;

/// How long a removed app without points can be brought back.
const KEEP_REMOVED: Duration = Duration::from_hours(30 * 24);
/// The kind of an app whose home Backstay made.
const SITE: &str = "site";

/// A change of what is set about an app.
pub type AppChange<'a> = &'a mut dyn FnMut(&mut AppConfig) -> Result<()>;

/// An app with what is set about it and how it is.
#[derive(Clone, Debug, Serialize)]
pub struct AppDetails {
    /// Its name.
    pub name: AppName,
    /// Its home on this machine.
    pub home: Option<String>,
    /// Whether the home is there.
    pub home_exists: bool,
    /// Whether Backstay made the home.
    pub home_is_ours: bool,
    /// When it became known.
    pub created: Timestamp,
    /// When it was removed; none while it is protected.
    pub removed: Option<Timestamp>,
    /// What is set about it.
    pub config: AppConfig,
    /// Whether it runs; none where that cannot be said.
    pub condition: Option<Condition>,
    /// Why that cannot be said.
    pub condition_unknown: Option<String>,
    /// Where its output goes, for a command that Backstay runs.
    pub log: Option<String>,
    /// Its own MySQL; none where it has none.
    pub in_app_mysql: Option<InAppView>,
    /// Its points, as the vault was last seen.
    pub points: usize,
    /// When the newest of them was taken.
    pub newest: Option<Timestamp>,
}

/// What became of making an app known.
#[derive(Clone, Debug, Serialize)]
pub struct NewApp {
    /// The app.
    pub app: AppDetails,
    /// Whether it had been removed and is protected again.
    pub revived: bool,
    /// Whether its home was made now.
    pub home_made: bool,
}

impl Engine {
    /// An app that is protected.
    fn protected_app(&self, name: &AppName) -> Result<App> {
        if !self.has_catalog() {
            return Err(self.nothing_yet(Code::AppNotFound, &format!("There is no app `{name}`")));
        }
        self.known_app(name.as_str())
    }

    /// An app, protected or removed; none when the name is free.
    fn any_app(&self, name: &AppName) -> Result<Option<App>> {
        if self.has_catalog() { self.catalog()?.app(name) } else { Ok(None) }
    }

    /// The app as it runs on this host; none where its home is not known here.
    fn app_runtime(&self, app: &App) -> Option<Runtime> {
        let home = app.home.clone()?;
        Some(Runtime::new(&self.state, app.name.clone(), home, app.config.clone()))
    }

    /// The same to be started, with its settings.
    fn runtime_here(&self, app: &App) -> Result<Runtime> {
        let runtime = self.app_runtime(app).ok_or_else(|| {
            Error::new(
                Code::SourceNotFound,
                format!("The home of app `{}` on this machine is not known", app.name),
            )
            .advise(format!("Name its folder: `backstay app add {} DIR`.", app.name))
        })?;
        Ok(runtime.with(self.environment(&app.name)?))
    }

    /// Makes an app known. Without a home a new, empty one is made. An app that was removed is taken up again, as it was
    /// but for `change`.
    pub fn app_add(&self, name: &AppName, home: Option<&Path>, change: AppChange<'_>) -> Result<NewApp> {
        if name.as_str() == FOREIGN {
            let message = format!("`{FOREIGN}` is kept for the snapshots of other programs");
            return Err(Error::new(Code::InvalidValue, message).advise("Choose another name."));
        }
        let catalog = self.catalog()?;
        let known = catalog.app(name)?;
        let homeless = |a: &App| a.home.as_ref().is_none_or(|h| !h.is_dir());
        if let Some(app) = known.as_ref().filter(|a| a.removed.is_none() && !(homeless(a) && home.is_some()))
        {
            return Err(Error::new(Code::AlreadyExists, format!("App `{}` exists already", app.name))
                .advise(format!("`backstay app set {name} …` changes it; or choose another name.")));
        }
        let mut config = known.as_ref().map(|a| a.config.clone()).unwrap_or_default();
        change(&mut config)?;
        config.check()?;
        let before = known.as_ref().and_then(|a| a.home.clone()).filter(|h| h.is_dir());
        let (home, home_made) = match (home, before) {
            (Some(home), _) => (self.adopted_home(name, home)?, false),
            (None, Some(home)) => (home, false),
            (None, None) => (self.make_home(name)?, true),
        };
        let kind = if home_made { SITE } else { "folder" };
        let mut app = known.clone().unwrap_or_else(|| App::new(name.clone(), None, kind, self.clock.now()));
        app.home = Some(home);
        app.config = config.clone();
        let had_own = known.as_ref().is_some_and(|a| a.config.in_app_mysql);
        if config.in_app_mysql && !had_own {
            self.make_in_app(&app, &Cancel::new())?;
        }
        match &known {
            None => catalog.add_app(&app)?,
            Some(known) => {
                catalog.move_app(&app)?;
                catalog.change_app_config(name, &mut |it| {
                    *it = config.clone();
                    Ok(())
                })?;
                if known.removed.is_some() {
                    app = catalog.revive_app(name)?;
                }
            }
        }
        let revived = known.is_some_and(|a| a.removed.is_some());
        if config.in_app_mysql && !had_own {
            self.run_new_in_app(&app)?;
        }
        Ok(NewApp { app: self.details(app)?, revived, home_made })
    }

    /// A folder that exists and may become the app's home.
    fn adopted_home(&self, name: &AppName, home: &Path) -> Result<PathBuf> {
        let home = absolute_home(home)?;
        self.refuse_own(&home)?;
        match app_at(&self.apps()?, &home) {
            Some(other) if other.name != *name => {
                let message = format!("{} belongs to app `{}` already", home.display(), other.name);
                Err(Error::new(Code::Conflict, message).advise("A folder is the home of one app."))
            }
            _ => Ok(home),
        }
    }

    /// Makes an empty home in the state folder.
    fn make_home(&self, name: &AppName) -> Result<PathBuf> {
        let home = self.state.join(SITES).join(name.as_str());
        private::make_folder(&*self.fs, &home)?;
        let mut entries = std::fs::read_dir(&home).map_err(|e| {
            Error::new(Code::StateAccess, format!("Cannot read {}", home.display())).because(e)
        })?;
        if entries.next().is_some() {
            let message = format!("{} exists and is not empty", home.display());
            return Err(Error::new(Code::Conflict, message)
                .advise(format!("To adopt what is in it: `backstay app add {name} {}`.", home.display())));
        }
        Ok(home)
    }

    /// Changes what is set about an app.
    pub fn app_set(&self, name: &AppName, change: AppChange<'_>) -> Result<AppDetails> {
        let app = self.protected_app(name)?;
        let mut wanted = app.config.clone();
        change(&mut wanted)?;
        wanted.check()?;
        if !same_runner(&app.config.runtime, &wanted.runtime) {
            self.refuse_running(&app)?;
        }
        match (app.config.in_app_mysql, wanted.in_app_mysql) {
            (false, true) => {
                self.make_in_app(&App { config: wanted.clone(), ..app.clone() }, &Cancel::new())?;
            }
            (true, false) => self.refuse_without_in_app(&app)?,
            _ => {}
        }
        let changed = self.catalog()?.change_app_config(name, &mut |config| {
            change(config)?;
            config.check()
        })?;
        match (app.config.in_app_mysql, changed.config.in_app_mysql) {
            (false, true) => self.run_new_in_app(&changed)?,
            (true, false) => {
                self.rest_in_app(&app)?;
                self.forget_in_app_password(name)?;
            }
            _ => {}
        }
        self.details(changed)
    }

    /// Makes an empty MySQL for an app that has one of its own, where its data is gone; true when that was so.
    pub fn app_make_mysql(&self, name: &AppName) -> Result<bool> {
        let app = self.protected_app(name)?;
        let gone = self.in_app_view(&app).is_some_and(|view| view.state == InAppState::Gone);
        if gone {
            self.make_in_app(&app, &Cancel::new())?;
            self.run_new_in_app(&app)?;
        }
        Ok(gone)
    }

    /// Starts the app's own MySQL that was made now, unless the app is one that is started with it and does not run.
    fn run_new_in_app(&self, app: &App) -> Result<()> {
        match self.app_runtime(app).filter(|runtime| runtime.config.runtime.runs()) {
            Some(runtime) => {
                let state = backstay_platform::state(&runtime, &Cancel::new())?.state;
                if state == State::Running { self.run_in_app(app, &Cancel::new()) } else { Ok(()) }
            }
            None => self.run_in_app(app, &Cancel::new()),
        }
    }

    /// An app that runs, or is being backed up or restored, keeps its own MySQL.
    fn refuse_without_in_app(&self, app: &App) -> Result<()> {
        self.refuse_unfinished(&app.name)?;
        if let Some(job) = self.catalog()?.exclusive_job(&app.name)? {
            let message = format!("A job of app `{}` is running (job {})", app.name, job.id.short());
            return Err(Error::new(Code::AppBusy, message));
        }
        self.refuse_running(app)
    }

    /// Another runtime would not know the app that runs.
    fn refuse_running(&self, app: &App) -> Result<()> {
        let Some(runtime) = self.app_runtime(app) else { return Ok(()) };
        // What cannot be asked cannot be stopped either, and must be exchangeable.
        let state = backstay_platform::state(&runtime, &Cancel::new()).map(|c| c.state);
        if state.is_ok_and(|s| s == State::Running) {
            return Err(Error::new(Code::Conflict, format!("App `{}` is running", app.name))
                .advise(format!("Stop it first: `backstay app stop {}`.", app.name)));
        }
        Ok(())
    }

    /// One app, also a removed one.
    pub fn app_show(&self, name: &AppName) -> Result<AppDetails> {
        match self.any_app(name)? {
            Some(app) => self.details(app),
            None => self.protected_app(name).and_then(|app| self.details(app)),
        }
    }

    /// The protected apps, or the removed ones that can be brought back, by name.
    pub fn app_list(&self, removed: bool) -> Result<Vec<AppDetails>> {
        if !self.has_catalog() {
            return Ok(Vec::new());
        }
        self.forget_removed()?;
        let catalog = self.catalog()?;
        let apps = if removed { catalog.removed_apps()? } else { catalog.apps()? };
        apps.into_iter().map(|app| self.details(app)).collect()
    }

    fn forget_removed(&self) -> Result<()> {
        let limit = self.clock.now().checked_sub(KEEP_REMOVED);
        limit.map_or(Ok(()), |limit| self.catalog()?.forget_removed(limit).map(drop))
    }

    fn details(&self, app: App) -> Result<AppDetails> {
        let vault = Secrets::load(&self.state)?.and_then(|s| s.vault);
        let all = vault.map_or(Ok(Vec::new()), |vault| self.catalog()?.points(&vault.id))?;
        let of_app: Vec<&Point> = all.iter().map(|r| &r.point).filter(|p| p.app == app.name).collect();
        let runtime = self.app_runtime(&app);
        let asked = runtime.as_ref().map(|r| backstay_platform::state(r, &Cancel::new())).transpose();
        let (condition, condition_unknown) = match asked {
            Ok(condition) => (condition, None),
            Err(e) => (None, Some(e.message().to_owned())),
        };
        Ok(AppDetails {
            points: of_app.len(),
            newest: of_app.iter().map(|p| p.time).max(),
            home_exists: app.home.as_ref().is_some_and(|h| h.is_dir()),
            home_is_ours: app.home.as_ref().is_some_and(|h| h.starts_with(self.state.join(SITES))),
            home: app.home.as_ref().map(|h| escape(h.as_os_str())),
            created: app.created,
            removed: app.removed,
            condition,
            condition_unknown,
            log: runtime.and_then(|r| r.log_file()).map(|p| escape(p.as_os_str())),
            in_app_mysql: self.in_app_view(&app),
            config: app.config,
            name: app.name,
        })
    }

    /// Lets automatic backups rest, for a time or until they are resumed.
    pub fn app_pause(
        &self,
        name: &AppName,
        reason: Option<&str>,
        time: Option<Duration>,
    ) -> Result<AppDetails> {
        let now = self.clock.now();
        let until = time
            .map(|time| now.checked_add(time))
            .transpose()
            .map_err(|e| Error::new(Code::InvalidValue, "The pause is too long").because(e))?;
        self.app_set(name, &mut |config| {
            let since = config.paused.as_ref().filter(|_| config.is_paused(now)).map_or(now, |p| p.since);
            config.paused = Some(Pause { since, reason: reason.map(str::to_owned), until });
            Ok(())
        })
    }

    /// Ends a pause.
    pub fn app_resume(&self, name: &AppName) -> Result<AppDetails> {
        self.app_set(name, &mut |config| {
            config.paused = None;
            Ok(())
        })
    }

    /// No longer protects an app. Everything about it stays; the name stays its own.
    pub fn app_remove(&self, name: &AppName) -> Result<AppDetails> {
        let app = self.protected_app(name)?;
        if let Some(job) = self.catalog()?.exclusive_job(name)? {
            let message = format!("A job of app `{name}` is running (job {})", job.id.short());
            return Err(Error::new(Code::AppBusy, message));
        }
        if matches!(app.config.runtime, Kind::Command(_)) {
            // Nobody would look after it any more.
            self.refuse_running(&app)?;
        }
        let removed = self.catalog()?.remove_app(name)?;
        if removed.config.in_app_mysql {
            self.rest_in_app(&removed)?;
        }
        self.details(removed)
    }

    /// Takes a removal back.
    pub fn app_restore_deleted(&self, name: &AppName) -> Result<AppDetails> {
        if self.has_catalog() {
            self.forget_removed()?;
        }
        let app = match self.any_app(name)? {
            Some(app) if app.removed.is_some() => app,
            Some(_) => {
                return Err(Error::new(
                    Code::AlreadyExists,
                    format!("App `{name}` is there, it was not removed"),
                )
                .advise("Nothing is to be done."));
            }
            None => return self.protected_app(name).and_then(|app| self.details(app)),
        };
        if let Some(other) =
            app.home.as_deref().and_then(|h| app_at(&self.apps().ok()?, h).map(|a| a.name.clone()))
        {
            let home = app.home.as_deref().unwrap_or(Path::new("")).display();
            return Err(Error::new(Code::Conflict, format!("{home} belongs to app `{other}` by now"))
                .advise(format!("Give the app another home: `backstay app add {name} DIR`.")));
        }
        self.details(self.catalog()?.revive_app(name)?)
    }

    /// Runs the hook before a backup. Nothing was done yet when it fails.
    pub(crate) fn hook_before_backup(&self, app: &App, home: &Path, job: &Running<'_>) -> Result<()> {
        let about = HookTarget { job: Some(job.id()), ..HookTarget::default() };
        self.backup_hook(app, home, Moment::BeforeBackup, &about, job, job.cancel())
    }

    /// Runs the hook after a backup, whatever became of it; gives why it failed. It runs also when the job was told
    /// to stop: what the hook before has begun must be ended.
    pub(crate) fn hook_after_backup(
        &self,
        app: &App,
        home: &Path,
        point: Option<PointId>,
        job: &Running<'_>,
    ) -> Option<String> {
        let about = HookTarget { job: Some(job.id()), point, failed: point.is_none(), target: None };
        let ran = self.backup_hook(app, home, Moment::AfterBackup, &about, job, &Cancel::new());
        ran.err().map(|e| e.message().to_owned())
    }

    pub(crate) fn backup_hook(
        &self,
        app: &App,
        home: &Path,
        moment: Moment,
        about: &HookTarget<'_>,
        job: &Running<'_>,
        cancel: &Cancel,
    ) -> Result<()> {
        let runtime = Runtime::new(&self.state, app.name.clone(), home.to_owned(), app.config.clone());
        match run_hook(&runtime, moment, about, cancel) {
            Ok(None) => Ok(()),
            Ok(Some(ran)) => {
                job.log(format!("The {} hook ended well after {} s", moment.name(), ran.seconds));
                ran.output.lines().for_each(|line| job.log(format!("  {line}")));
                Ok(())
            }
            Err(e) => {
                job.log(e.message());
                e.causes().iter().flat_map(|c| c.lines()).for_each(|line| job.log(format!("  {line}")));
                Err(e)
            }
        }
    }
}

/// Whether an app that one of them started is known to the other.
fn same_runner(a: &Kind, b: &Kind) -> bool {
    match (a, b) {
        (Kind::Command(_), Kind::Command(_)) | (Kind::Static, _) => true,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_catalog::{End, NewJob, Work};
    use backstay_model::app::{CommandLine, CommandRuntime};
    use backstay_model::{JobId, JobKind, JobState};

    use crate::state::Setup;

    struct Place {
        engine: Engine,
        name: AppName,
        _dir: tempfile::TempDir,
    }

    impl Drop for Place {
        fn drop(&mut self) {
            // A test that failed has its own message.
            let _failed_before = self.engine.app_stop(&self.name, &Cancel::new());
        }
    }

    fn place(line: &str) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let engine =
            Engine::new(Setup { state: Some(dir.path().join("state")), ..Setup::default() }).unwrap();
        let name = AppName::suggest("blog");
        let new = engine.app_add(&name, None, &mut |config| {
            config.runtime = Kind::Command(CommandRuntime::new(CommandLine::Line(line.to_owned())));
            Ok(())
        });
        let new = new.unwrap();
        assert!(new.home_made && !new.revived && new.app.home_is_ours);
        Place { engine, name, _dir: dir }
    }

    #[test]
    fn an_app_is_left_alone_while_a_restore_of_it_runs() {
        let p = place("exec sleep 4101");
        let (engine, cancel) = (&p.engine, Cancel::new());
        let catalog = engine.catalog().unwrap();
        let begin = |number: u8, kind: JobKind, exclusive: bool| {
            let app = Some(p.name.clone());
            catalog
                .begin_job(&NewJob {
                    id: JobId::from_bytes([number; 16]),
                    kind,
                    app,
                    exclusive,
                    automatic: false,
                })
                .unwrap()
        };
        for (number, kind, exclusive, busy) in [
            (1, JobKind::Restore, true, true),
            (2, JobKind::Undo, true, true),
            (3, JobKind::Restore, false, false),
            (4, JobKind::Backup, true, false),
        ] {
            let job = begin(number, kind, exclusive);
            for result in [engine.app_start(&p.name, &cancel), engine.app_stop(&p.name, &cancel)] {
                assert_eq!(result.err().map(|e| e.code()), busy.then_some(Code::AppBusy), "{kind:?}");
            }
            let end = End { state: JobState::Succeeded, message: None, code: None };
            catalog.end_job(&job.id, job.token, &Work::default(), &end).unwrap();
        }
        let job = begin(5, JobKind::Backup, true);
        assert_eq!(engine.app_remove(&p.name).unwrap_err().code(), Code::AppBusy);
        let end = End { state: JobState::Succeeded, message: None, code: None };
        catalog.end_job(&job.id, job.token, &Work::default(), &end).unwrap();
        engine.app_remove(&p.name).unwrap();
        assert_eq!(engine.app_start(&p.name, &cancel).unwrap_err().code(), Code::AppNotFound);
        engine.app_restore_deleted(&p.name).unwrap();
    }

    #[test]
    fn what_is_changed_at_once_by_many_is_not_lost_and_a_bad_change_changes_nothing() {
        let p = place("true");
        let refused = p.engine.app_set(&p.name, &mut |config| {
            config.rpo = Duration::ZERO;
            Ok(())
        });
        assert_eq!(refused.unwrap_err().code(), Code::InvalidValue);
        std::thread::scope(|scope| {
            for n in 0..6 {
                let p = &p;
                scope.spawn(move || {
                    p.engine.app_set(&p.name, &mut |config| {
                        config.excludes.push(n.to_string());
                        Ok(())
                    })
                });
            }
        });
        let config = p.engine.app_show(&p.name).unwrap().config;
        assert_eq!((config.excludes.len(), config.rpo), (6, Duration::from_hours(2)));
    }
}
