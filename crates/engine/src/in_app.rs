//! MySQL in-app: a MariaDB of one app's own, which Backstay runs behind a socket (`docs/adr/0009-mysql-in-app.md`).
//!
//! Everything of it lies in `mysql/APP` of the state: `data` and `run/sock` are the server's, `password` is that of the app's
//! account, sealed; `wanted` is there while the server is to run; `use` is locked by those who need it for a while;
//! `arriving` names the job that makes a new app.
//!
//! Invariants:
//! * A server runs while its app is to run, and while somebody holds it ([`Hold`]). Who lets go last of one that is not wanted
//!   stops it, so a restore or a backup of a stopped app leaves it stopped, and nothing stops it in the middle of an exchange.
//! * Data is made when it is turned on and for a new app, never because it is not there: that is told. Nothing here deletes data but
//!   that of a new app whose restore did not come to its end.
//! * Where Backstay runs as root, the server runs as another account, so the ways to it can be passed by all (0711) and everything
//!   else in the state is closed by itself.
//!
//! Crash: the marks are files, the locks are the kernel's. A server that a killed command has left running is stopped by
//! the next one that holds it, or by `app stop`. Locks: `use`, shared by holders, exclusive while it is stopped; then that of [`InApp`].

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstay_catalog::App;
use backstay_database::{ConnectionType, Endpoint, InApp, Kind, Options, Place};
use backstay_model::app::Runtime;
use backstay_model::{AppName, Cancel, Code, Error, JobId, Problem, ProblemKind, Result, Secret};
use backstay_tree::path::escape;
use jiff::Timestamp;
use serde::Serialize;

use crate::databases::linked::Linked;
use crate::private;
use crate::sealed::{self, opening_keys};
use crate::secrets::random;
use crate::settings::Link;
use crate::state::Engine;

/// The name of its connection.
pub(crate) const NAME: &str = InApp::DATABASE;
/// The folder of all of them, in the state folder. Short, since the path of a socket must be.
const FOLDER: &str = "mysql";
const PASSWORD: &str = "password";
const WANTED: &str = "wanted";
const USE: &str = "use";
const ARRIVING: &str = "arriving";
/// How long what fills a folder may take to end after it was killed.
const ENDING: Duration = Duration::from_secs(10);
/// The account that a server runs as where Backstay runs as root.
const ACCOUNT: &str = "mysql";

/// The app's own MySQL at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InAppView {
    /// How it is.
    pub state: InAppState,
    /// Its folder.
    pub folder: String,
    /// Its socket.
    pub socket: String,
}

/// How the app's own MySQL is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InAppState {
    /// It runs.
    Running,
    /// It does not run, and is not to.
    Stopped,
    /// It should run and does not.
    Failed,
    /// Its data is not there.
    Gone,
}

impl InAppState {
    /// The state as one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            InAppState::Running => "running",
            InAppState::Stopped => "stopped",
            InAppState::Failed => "failed",
            InAppState::Gone => "gone",
        }
    }
}

/// A connection string that was set by hand for the app's own MySQL.
#[derive(Clone, Debug)]
pub struct ByHand {
    /// What a person should know.
    pub told: String,
    /// Whether it leads elsewhere, and so hides the app's own MySQL from it.
    pub hides: bool,
}

/// The server of an app.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    app: AppName,
    folder: PathBuf,
    account: Option<String>,
}

/// A server that runs at least as long as this lives.
#[derive(Debug)]
pub(crate) struct Hold {
    server: Server,
    used: Option<File>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        drop(self.used.take());
        // One that does not stop now is stopped by the next holder.
        self.server.stop_if_idle().unwrap_or_default();
    }
}

impl Hold {
    /// How Backstay reaches its database.
    pub fn endpoint(&self) -> Result<Endpoint> {
        self.server.at(&Cancel::new()).endpoint()
    }
}

impl Server {
    fn at(&self, cancel: &Cancel) -> InApp {
        let options = Options { cancel: cancel.clone(), ..Options::default() };
        InApp::new(&self.folder, self.account.clone(), options)
    }

    /// Whether its data is there.
    pub fn exists(&self) -> bool {
        self.at(&Cancel::new()).exists()
    }

    fn is_wanted(&self) -> bool {
        self.folder.join(WANTED).exists()
    }

    fn use_file(&self) -> Result<File> {
        let path = self.folder.join(USE);
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        opened
            .map_err(|e| Error::new(Code::StateAccess, format!("Cannot lock {}", path.display())).because(e))
    }

    /// From here on nobody stops it. Waits for one who does.
    fn used(&self, cancel: &Cancel) -> Result<File> {
        let file = self.use_file()?;
        while file.try_lock_shared().is_err() {
            cancel.check()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(file)
    }

    /// Stops it, unless it is wanted or held.
    fn stop_if_idle(&self) -> Result<()> {
        if !self.exists() || self.is_wanted() {
            return Ok(());
        }
        let file = self.use_file()?;
        if file.try_lock().is_err() || self.is_wanted() {
            return Ok(());
        }
        self.at(&Cancel::new()).stop()
    }

    fn gone(&self) -> Error {
        let data = self.folder.join("data");
        let message = format!("The data of the MySQL in-app of `{}` is not in {}", self.app, data.display());
        Error::new(Code::DatabaseNotFound, message).advise(format!(
            "Is its disk there? To begin with an empty one: `backstay app set {0} --in-app-mysql on`; then `backstay restore {0} \
             --with-databases` fills it from a point.",
            self.app
        ))
    }
}

/// Removes a folder with all that is in it. What a killed process had started to fill it may still be ending.
fn remove_all(folder: &Path) -> Result<()> {
    let begin = Instant::now();
    loop {
        match std::fs::remove_dir_all(folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) if begin.elapsed() > ENDING => {
                let message = format!("Cannot remove {}", folder.display());
                return Err(Error::new(Code::StateAccess, message).because(e));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            Ok(()) => return Ok(()),
        }
    }
}

/// The record that the password of an app is sealed for.
fn record_of(app: &AppName) -> String {
    format!("app/{app}/in-app-mysql")
}

/// What an app finds of its own MySQL in its environment.
pub(crate) fn variables(state: &Path, app: &AppName) -> Result<Vec<(String, Secret)>> {
    let folder = state.join(FOLDER).join(app.as_str());
    let Some(sealed) = private::read(&folder.join(PASSWORD))? else { return Ok(Vec::new()) };
    let password = sealed::open(&opening_keys(state)?, &record_of(app), &String::from_utf8_lossy(&sealed))?;
    let server = InApp::new(folder, None, Options::default());
    let socket = Secret::new(server.socket().display().to_string());
    Ok(vec![
        (format!("MYSQLCONNSTR_{NAME}"), server.connection_string(&password)),
        ("MYSQL_UNIX_PORT".to_owned(), socket),
    ])
}

impl Engine {
    fn in_app_folder(&self, app: &AppName) -> PathBuf {
        self.state.join(FOLDER).join(app.as_str())
    }

    /// The server of an app. It runs as who owns its data; where there is none yet, as [`ACCOUNT`], or as the app does.
    pub(crate) fn in_app(&self, app: &AppName, run_as: Option<&str>) -> Result<Server> {
        let folder = self.in_app_folder(app);
        let account = match std::fs::metadata(folder.join("data")) {
            _ if !rustix::process::geteuid().is_root() => None,
            Ok(data) => Some(data.uid().to_string()),
            Err(_) if backstay_platform::has_account(ACCOUNT) => Some(ACCOUNT.to_owned()),
            Err(_) => Some(
                run_as
                    .filter(|name| *name != "root")
                    .ok_or_else(|| {
                        let message = format!("There is no account `{ACCOUNT}` that the server could run as");
                        Error::new(Code::InvalidValue, message).advise(
                            "Install mariadb-server, which makes it, or let the app run as an account of its own (--run-as).",
                        )
                    })?
                    .to_owned(),
            ),
        };
        Ok(Server { app: app.clone(), folder, account })
    }

    fn in_app_of(&self, app: &App) -> Result<Server> {
        let run_as = match &app.config.runtime {
            Runtime::Command(it) => it.user.as_deref(),
            _ => None,
        };
        self.in_app(&app.name, run_as)
    }

    /// Makes the data of an app's server and the password of its account where they are not there; true where the data was
    /// made now.
    pub(crate) fn make_in_app(&self, app: &App, cancel: &Cancel) -> Result<bool> {
        let server = self.in_app_of(app)?;
        private::make_folder(&*self.fs, &server.folder)?;
        if server.account.is_some() {
            self.open_ways()?;
        }
        self.in_app_password(&app.name)?;
        server.at(cancel).make()
    }

    /// Starts the server of an app that is to run, where it does not run, and lets the app in.
    pub(crate) fn run_in_app(&self, app: &App, cancel: &Cancel) -> Result<()> {
        if !app.config.in_app_mysql {
            return Ok(());
        }
        let server = self.in_app_of(app)?;
        let started = self.start_in_app(server, cancel)?;
        let folder = &started.server.folder;
        // While it is held nobody can take it for one that is not wanted.
        private::replace(&*self.fs, folder, WANTED, b"")
    }

    /// Stops the server of an app that is no longer to run. A backup or a restore that needs it stops it when it is done.
    pub(crate) fn rest_in_app(&self, app: &App) -> Result<()> {
        let server = self.in_app_of(app)?;
        if server.folder.is_dir() {
            private::remove(&*self.fs, &server.folder, WANTED)?;
        }
        server.stop_if_idle()
    }

    /// Holds the server of an app that may be stopped.
    pub(crate) fn hold_in_app(&self, app: &AppName, cancel: &Cancel) -> Result<Hold> {
        self.start_in_app(self.in_app(app, None)?, cancel)
    }

    fn start_in_app(&self, server: Server, cancel: &Cancel) -> Result<Hold> {
        if !server.exists() {
            return Err(server.gone());
        }
        if server.account.is_some() {
            self.open_ways()?;
        }
        let used = Some(server.used(cancel)?);
        let held = Hold { server, used };
        let it = held.server.at(cancel);
        let of = |e: Error| e.context(format!("The MySQL in-app of `{}`", held.server.app));
        it.start().map_err(of)?;
        it.let_app_in(&self.in_app_password(&held.server.app)?).map_err(of)?;
        Ok(held)
    }

    /// Starts a server that is to run and does not; true when that was so.
    pub(crate) fn tend_in_app(&self, app: &App, cancel: &Cancel) -> Result<bool> {
        let server = self.in_app_of(app)?;
        let closed = std::fs::metadata(&self.state).is_ok_and(|meta| meta.mode() & 0o001 == 0);
        if closed && server.account.is_some() && server.is_wanted() {
            // A service manager that makes the state folder for us sets its mode at each start.
            self.open_ways()?;
        }
        let fell = server.is_wanted() && server.exists() && !server.at(cancel).is_running();
        if fell {
            self.start_in_app(server, cancel)?;
        }
        Ok(fell)
    }

    /// The password of the app's account; a new one where there is none, or none that opens.
    fn in_app_password(&self, app: &AppName) -> Result<Secret> {
        let folder = self.in_app_folder(app);
        let record = record_of(app);
        let sealed = private::read(&folder.join(PASSWORD))?;
        let text = sealed.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        if let Some(Ok(password)) = text.map(|text| self.open_value(&record, &text)) {
            return Ok(password);
        }
        let word: String = random::<20>()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let password = Secret::new(word);
        let sealed = self.seal_value(&record, &password)?;
        private::replace(&*self.fs, &folder, PASSWORD, sealed.as_bytes())?;
        Ok(password)
    }

    /// The next start gives the app's account a new password.
    pub(crate) fn forget_in_app_password(&self, app: &AppName) -> Result<()> {
        let folder = self.in_app_folder(app);
        if folder.is_dir() { private::remove(&*self.fs, &folder, PASSWORD) } else { Ok(()) }
    }

    /// The ways to the servers, for the account that they run as and for apps: the state's folder can be passed, and
    /// everything else in it is closed.
    fn open_ways(&self) -> Result<()> {
        let failed = |e: std::io::Error| {
            Error::new(Code::StateAccess, format!("Cannot open a way into {}", self.state.display()))
                .because(e)
        };
        for entry in std::fs::read_dir(&self.state).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            if entry.file_name() == FOLDER || kind.is_symlink() {
                continue;
            }
            match entry.metadata().map(|meta| meta.mode() & 0o7777) {
                Ok(mode) if mode & 0o077 != 0 => {
                    std::fs::set_permissions(entry.path(), Permissions::from_mode(mode & !0o077))
                        .map_err(failed)?;
                }
                Ok(_) => {}
                // Temporary files come and go.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed(e)),
            }
        }
        for way in [self.state.join(FOLDER), self.state.clone()] {
            std::fs::set_permissions(&way, Permissions::from_mode(0o711)).map_err(failed)?;
        }
        let closed = |way: &&Path| std::fs::metadata(way).is_ok_and(|meta| meta.mode() & 0o001 == 0);
        match self.state.ancestors().find(closed) {
            None => Ok(()),
            Some(closed) => {
                let message = format!(
                    "{} lets no other account pass, and the server does not run as root",
                    closed.display()
                );
                Err(Error::new(Code::StateAccess, message).advise(format!(
                    "`chmod o+x {}`, or put the state elsewhere (--home DIR).",
                    closed.display()
                )))
            }
        }
    }

    /// How Backstay reaches the database of an app's own MySQL, where that runs.
    pub(crate) fn in_app_endpoint(&self, app: &App) -> Result<Endpoint> {
        self.in_app_of(app)?.at(&Cancel::new()).endpoint()
    }

    /// The folder with the data of an app's own MySQL, whether it has one now or not; none where there is no data.
    #[must_use]
    pub fn left_in_app(&self, app: &AppName) -> Option<String> {
        let folder = self.in_app_folder(app);
        folder.join("data").is_dir().then(|| escape(folder.as_os_str()))
    }

    /// The app's own MySQL at a glance; none where it has none.
    pub(crate) fn in_app_view(&self, app: &App) -> Option<InAppView> {
        if !app.config.in_app_mysql {
            return None;
        }
        let server = self.in_app_of(app).ok();
        let state = server.as_ref().map_or(InAppState::Gone, |server| {
            let it = server.at(&Cancel::new());
            match (it.exists(), it.is_running(), server.is_wanted()) {
                (false, ..) => InAppState::Gone,
                (true, true, _) => InAppState::Running,
                (true, false, true) => InAppState::Failed,
                (true, false, false) => InAppState::Stopped,
            }
        });
        let folder = self.in_app_folder(&app.name);
        let socket = InApp::new(&folder, None, Options::default()).socket();
        Some(InAppView { state, folder: escape(folder.as_os_str()), socket: escape(socket.as_os_str()) })
    }

    /// The connection of an app to its own MySQL as the app sees it, with its value; none where it has none. The server need
    /// not run.
    pub fn in_app_connection(&self, app: &AppName) -> Result<Option<(Link, Secret)>> {
        let app = self.known_app(app.as_str())?;
        let file = self.in_app_folder(&app.name).join(PASSWORD);
        let variables = match app.config.in_app_mysql {
            true => variables(&self.state, &app.name)?,
            false => Vec::new(),
        };
        let Some((_, value)) = variables.into_iter().next() else { return Ok(None) };
        let made = std::fs::metadata(file).and_then(|meta| meta.modified()).ok();
        let link = Link {
            name: NAME.to_owned(),
            kind: ConnectionType::MySql,
            endpoint: backstay_database::connection::parse(value.reveal(), ConnectionType::MySql),
            sticky: true,
            changed: made.and_then(|made| Timestamp::try_from(made).ok()).unwrap_or(app.created),
        };
        Ok(Some((link, value)))
    }

    /// Starts the server that is among the databases of an app. One that does not start is told as that database's failure.
    pub(crate) fn hold_linked(&self, app: &App, linked: &mut [Linked], cancel: &Cancel) -> Option<Hold> {
        let link = linked.iter_mut().find(|link| link.in_app)?;
        match self.hold_in_app(&app.name, cancel) {
            Ok(hold) => Some(hold),
            Err(e) => {
                link.failed(e);
                None
            }
        }
    }

    /// Whether a connection string was set by hand for the app's own MySQL, or under its name.
    pub(crate) fn in_app_by_hand(&self, app: &App, link: &Link) -> Option<ByHand> {
        if !app.config.in_app_mysql {
            return None;
        }
        let (name, app_name) = (&link.name, &app.name);
        let endpoint = link.endpoint.as_ref().ok().filter(|e| e.kind == Kind::MySql);
        let leads_here = endpoint.is_some_and(|endpoint| {
            let folder = self.in_app_folder(app_name);
            matches!(&endpoint.place, Place::Socket(socket, _) if socket.starts_with(&folder))
        });
        let away = format!("`backstay connection delete {app_name} {name}` takes it away");
        if leads_here {
            let told = format!(
                "The connection string `{name}` was set by hand for the MySQL in-app of `{app_name}`, which needs none: the backups might \
                 not work correctly. {away}"
            );
            return Some(ByHand { told, hides: false });
        }
        let same_name = name == NAME && link.kind == ConnectionType::MySql;
        same_name.then(|| ByHand {
            hides: true,
            told: format!(
                "The connection string `{name}` was set by hand and has the name of the MySQL in-app of `{app_name}`: the app finds it in \
                 the place of that, and the database that it leads to is in no point. The backups might not work correctly. {away}"
            ),
        })
    }

    /// The same by the name of the app.
    pub fn by_hand(&self, app: &AppName, link: &Link) -> Result<Option<ByHand>> {
        Ok(self.in_app_by_hand(&self.known_app(app.as_str())?, link))
    }

    /// What a point has to say of the app's own MySQL: that a person left it out, and what was set by hand for it.
    pub(crate) fn told_of_in_app(&self, app: &App, linked: &[Linked]) -> Result<Vec<Problem>> {
        if !app.config.in_app_mysql {
            return Ok(Vec::new());
        }
        let told =
            |name: &str, kind, detail: String| Problem { path: format!("database {name}"), kind, detail };
        let mut problems = Vec::new();
        if !linked.iter().any(|link| link.in_app) {
            let detail = "Not in this point: the app's databases, or this one, are left out as was asked for";
            problems.push(told(NAME, ProblemKind::Told, detail.to_owned()));
        }
        for link in self.connections(&app.name)? {
            let Some(by_hand) = self.in_app_by_hand(app, &link) else { continue };
            let asked = app.config.databases.take && !app.config.databases.without.contains(&link.name);
            let kind = if by_hand.hides && asked { ProblemKind::Database } else { ProblemKind::Told };
            problems.push(told(&link.name, kind, by_hand.told));
        }
        Ok(problems)
    }

    /// Makes the server of a new app that a job is about to fill.
    pub(crate) fn begin_in_app(&self, app: &App, job: JobId, cancel: &Cancel) -> Result<Hold> {
        let server = self.in_app_of(app)?;
        self.refuse_other_in_app(&app.name)?;
        private::make_folder(&*self.fs, &server.folder)?;
        private::replace(&*self.fs, &server.folder, ARRIVING, job.to_string().as_bytes())?;
        self.make_in_app(app, cancel)?;
        self.start_in_app(self.in_app_of(app)?, cancel)
    }

    /// Refuses where the data of another server lies in the place of a new app's.
    pub(crate) fn refuse_other_in_app(&self, app: &AppName) -> Result<()> {
        let data = self.in_app_folder(app).join("data");
        if !data.exists() {
            return Ok(());
        }
        let message = format!("There is data of an earlier MySQL in-app of `{app}` in {}", data.display());
        Err(Error::new(Code::Conflict, message)
            .advise("Choose another name for the app, or move that folder away first."))
    }

    /// The new app is known: its server is one like any other.
    pub(crate) fn settle_in_app(&self, app: &AppName) -> Result<()> {
        let folder = self.in_app_folder(app);
        if folder.is_dir() { private::remove(&*self.fs, &folder, ARRIVING) } else { Ok(()) }
    }

    /// Removes what a job has made for a new app that did not arrive; nothing else.
    pub(crate) fn forget_in_app(&self, app: &AppName, job: JobId) -> Result<()> {
        let folder = self.in_app_folder(app);
        let arriving = private::read(&folder.join(ARRIVING))?;
        if arriving.as_deref() != Some(job.to_string().as_bytes()) {
            return Ok(());
        }
        let server = self.in_app(app, Some(ACCOUNT))?;
        server.at(&Cancel::new()).stop()?;
        // What says that it may go goes last.
        for part in ["data.new", "data", "run", ""].map(|name| folder.join(name)) {
            remove_all(&part)?;
        }
        Ok(())
    }
}
