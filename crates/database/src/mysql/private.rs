//! A MariaDB of one app's own, behind a socket: "MySQL in-app".
//!
//! Invariants:
//! * The data folder is made beside its place and renamed into it: it is whole or not there. Only [`InApp::make`] makes one:
//!   starting a server whose data is gone is an error, never an empty database.
//! * Starting and stopping can be repeated. One process at a time does either: a lock file is held meanwhile, and the system
//!   gives it back when that process is killed.
//! * The server outlives whoever starts it. A killed server comes back with what was committed.
//! * Backstay needs no password: the system's account that it runs as is let in through the socket. The app has an account
//!   of its own with a password, for its one database. Nobody is let in by the network.
//! * Everything lies below one folder of mode 0700. Where the server runs as another account, the folder is ours and of mode 0711,
//!   and only `data` and `run` in it are the server's: nothing that we open for writing can be replaced by it.
//!
//! Crash story: killed while the data folder is made, its half is removed by the next start. Killed while the server starts, the
//! next start finds it running, or waits for it. Killed while it ends, the next start finds the mark of that, waits for the end, and
//! starts it anew.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, TryRecvError};
use std::time::{Duration, Instant};

use backstay_model::{Code, Error, Result, Secret};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};

use super::connect::{Session, literal, name};
use super::tools;
use crate::adapter::Options;
use crate::endpoint::{Endpoint, Kind, Place, Tls};
use crate::tool::{self, Program};

/// The longest path of a socket.
const SOCKET: usize = 107;
/// How often a server is looked at that starts or stops.
const LOOK: Duration = Duration::from_millis(20);
/// How long a server that starts is waited for before it is told to stop.
const STARTING: Duration = Duration::from_secs(20);
/// How long one that was told to stop, and answers nobody, may take before it is killed.
const HUNG: Duration = Duration::from_secs(30);
/// Small, as befits one app.
const SETTINGS: [&str; 10] = [
    "--skip-networking",
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=8M",
    "--performance-schema=0",
    "--max-connections=40",
    "--table-open-cache=64",
    "--character-set-server=utf8mb4",
    "--skip-log-bin",
    "--event-scheduler=ON",
    "--local-infile=0",
];

/// The server of one app.
#[derive(Debug)]
pub struct InApp {
    folder: PathBuf,
    account: Option<String>,
    options: Options,
}

impl InApp {
    /// The name of the database in it.
    pub const DATABASE: &str = "localdb";
    /// The app's account at the server, from this machine.
    pub const USER: &str = "app";

    /// The server whose everything lies in that folder. `account` is the system's account that it runs as, which root must
    /// name. Nothing is made or started yet.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>, account: Option<String>, options: Options) -> Self {
        InApp { folder: folder.into(), account, options }
    }

    /// Whether its data is there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.data().is_dir()
    }

    /// Where its data is.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Makes an empty data folder where there is none; true when it was made now.
    pub fn make(&self) -> Result<bool> {
        let _lock = self.lock()?;
        self.endpoint()?;
        let missing = !self.exists();
        if missing {
            self.make_data()?;
        }
        Ok(missing)
    }

    /// Starts the server where it does not run, and waits until it answers. `DatabaseNotFound` where its data is gone.
    pub fn start(&self) -> Result<Endpoint> {
        if !self.exists() {
            let message = format!("The data of the app's own MySQL is not in {}", self.data().display());
            return Err(Error::new(Code::DatabaseNotFound, message));
        }
        let _lock = self.lock()?;
        let endpoint = self.endpoint()?;
        if self.stopping().exists() {
            // Somebody was killed while it ended: it must not be taken for one that goes on.
            self.end(&endpoint)?;
        }
        if let Ok(mut session) = self.session(&endpoint) {
            return self.database(&mut session).map(|()| endpoint);
        }
        let begun = match self.process() {
            // Still starting, for somebody who was killed meanwhile.
            Some(_) => None,
            None => Some(self.spawn()?),
        };
        let mut session = self.wait(&endpoint, begun)?;
        self.database(&mut session)?;
        Ok(endpoint)
    }

    /// Stops the server, if it runs, and waits until it has ended.
    pub fn stop(&self) -> Result<()> {
        let _lock = self.lock()?;
        let endpoint = self.endpoint()?;
        let begin = Instant::now();
        // Told to end while it starts, it may wait for itself for ever.
        while self.process().is_some() && self.session(&endpoint).is_err() && begin.elapsed() < STARTING {
            std::thread::sleep(LOOK);
        }
        if self.process().is_some() {
            let failed = |e: std::io::Error| {
                let message = format!("{} cannot be written", self.stopping().display());
                Error::new(Code::System, message).because(e)
            };
            std::fs::write(self.stopping(), []).map_err(failed)?;
        }
        self.end(&endpoint)
    }

    /// Tells the server to end, if it runs, and waits for that.
    fn end(&self, endpoint: &Endpoint) -> Result<()> {
        let Some(pid) = self.process() else { return self.ended() };
        rustix::process::kill_process(pid, Signal::TERM).ok();
        let begin = Instant::now();
        let mut killed = false;
        while self.process().is_some() {
            if begin.elapsed() > HUNG && !killed && self.session(endpoint).is_err() {
                // It has let go of everybody and does not end. What was committed is safe.
                rustix::process::kill_process(pid, Signal::KILL).ok();
                killed = true;
            }
            if begin.elapsed() > self.options.idle {
                let message = format!("The server in {} does not stop", self.folder.display());
                return Err(Error::new(Code::DatabaseInterrupted, message));
            }
            std::thread::sleep(LOOK);
        }
        self.ended()
    }

    fn ended(&self) -> Result<()> {
        match std::fs::remove_file(self.stopping()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                let message = format!("{} cannot be removed", self.stopping().display());
                Err(Error::new(Code::System, message).because(e))
            }
            _ => Ok(()),
        }
    }

    /// The mark of a server that was told to end.
    fn stopping(&self) -> PathBuf {
        self.folder.join("stopping")
    }

    /// Lets the app in with a password. Nothing is changed where it is let in already. The server must run.
    pub fn let_app_in(&self, password: &Secret) -> Result<()> {
        let mut endpoint = self.endpoint()?;
        let mut session = self.session(&endpoint)?;
        let user = Some(Self::USER.to_owned());
        endpoint = Endpoint { user, password: Some(password.clone()), integrated: false, ..endpoint };
        if Session::open(&endpoint, &self.options, true).is_ok() {
            return Ok(());
        }
        let account = format!("{}@localhost", name(Self::USER));
        let identified = format!("IDENTIFIED BY {}", literal(password.reveal()));
        session.run(&format!("CREATE USER IF NOT EXISTS {account} {identified}"))?;
        session.run(&format!("ALTER USER {account} {identified}"))?;
        // A view that it has made can be looked at only where it may see what the view shows: beside its database, too, where that
        // is filled anew.
        let beside = format!("{}\\_bs\\_%", Self::DATABASE);
        for database in [Self::DATABASE, &beside] {
            session.run(&format!("GRANT ALL PRIVILEGES ON {}.* TO {account}", name(database)))?;
        }
        Ok(())
    }

    /// The connection string of the app, in the form of Azure's: the password stands last, as programs that cut such a string
    /// into pieces expect it.
    #[must_use]
    pub fn connection_string(&self, password: &Secret) -> Secret {
        let socket = quoted(&self.socket().display().to_string());
        let (database, user) = (Self::DATABASE, Self::USER);
        Secret::new(format!(
            "Database={database};Data Source={socket};Protocol=Unix;User Id={user};Password={}",
            password.reveal()
        ))
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process().is_some()
    }

    /// How its database is reached.
    pub fn endpoint(&self) -> Result<Endpoint> {
        let socket = self.socket();
        if socket.as_os_str().len() > SOCKET {
            let message =
                format!("The path of the socket is longer than {SOCKET} bytes: {}", socket.display());
            return Err(Error::new(Code::InvalidValue, message).advise(
                "Choose a shorter name for the app, or a state folder with a shorter path (--home DIR).",
            ));
        }
        Ok(Endpoint {
            kind: Kind::MySql,
            place: Place::Socket(socket, 0),
            database: Some(Self::DATABASE.to_owned()),
            user: Some(self.whoami()?),
            password: None,
            integrated: true,
            tls: Tls::default(),
            unused: Default::default(),
        })
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run().join("sock")
    }

    fn run(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// The account that this process runs as.
    fn whoami(&self) -> Result<String> {
        let mut program = Program::new("/usr/bin/id");
        program.arg("-un");
        let said = program.said(&tools::limits(&self.options), tools::explain("Asking for the account"))?;
        Ok(said.trim().to_owned())
    }

    fn lock(&self) -> Result<File> {
        let failed = |e: std::io::Error| {
            Error::new(Code::System, format!("The folder {} cannot be used", self.folder.display()))
                .because(e)
        };
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        let mode = if self.account.is_some() { 0o711 } else { 0o700 };
        std::fs::set_permissions(&self.folder, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600);
        let file = file.open(self.folder.join("lock")).map_err(failed)?;
        let begin = Instant::now();
        while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            self.options.cancel.check()?;
            if begin.elapsed() > self.options.idle {
                let message =
                    format!("Somebody else starts or stops the server in {}", self.folder.display());
                return Err(Error::new(Code::DatabaseBusy, message));
            }
            std::thread::sleep(LOOK);
        }
        Ok(file)
    }

    fn session(&self, endpoint: &Endpoint) -> Result<Session> {
        Session::open(endpoint, &self.options, false)
    }

    fn database(&self, session: &mut Session) -> Result<()> {
        session.run(&format!("CREATE DATABASE IF NOT EXISTS {}", name(Self::DATABASE)))
    }

    /// The running server: the process that its file names, or, while it starts and has written none yet, any.
    fn process(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.data().join("pid")).unwrap_or_default();
        let named = text.trim().parse().ok().filter(|raw| self.is_ours(*raw));
        named.or_else(|| self.search()).and_then(Pid::from_raw)
    }

    fn search(&self) -> Option<i32> {
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers.find(|raw| self.is_ours(*raw))
    }

    /// Whether a process is the server of this folder: it has its socket, and runs as who owns the data, or still as we do.
    fn is_ours(&self, raw: i32) -> bool {
        let process = format!("/proc/{raw}");
        let Ok(line) = std::fs::read(format!("{process}/cmdline")) else { return false };
        let ours = format!("--socket={}", self.socket().display());
        let owner = |path: &Path| std::fs::metadata(path).map(|meta| meta.uid()).ok();
        let who = owner(Path::new(&process));
        line.split(|byte| *byte == 0).any(|arg| arg == ours.as_bytes())
            && (who == Some(rustix::process::geteuid().as_raw()) || who == owner(&self.data()))
    }

    /// Makes the data folder.
    fn make_data(&self) -> Result<()> {
        let data = self.data();
        let failed =
            |e: std::io::Error| Error::new(Code::System, "The data folder cannot be made").because(e);
        let work = self.folder.join("data.new");
        if work.exists() {
            std::fs::remove_dir_all(&work).map_err(failed)?;
        }
        let limits = tools::limits(&self.options);
        let names = ["mariadb-install-db", "mysql_install_db"];
        let found = tool::find(&names, &self.options.tools, &["/usr/bin"], "mariadb-server", &limits)?;
        let path = found.first().map(|found| found.path.clone()).unwrap_or_default();
        let mut program = Program::new(path);
        program.args(["--no-defaults", "--auth-root-authentication-method=socket", "--skip-test-db"]);
        program.args(["--innodb-log-file-size=8M", "--skip-name-resolve"]);
        program.arg(format!("--auth-root-socket-user={}", self.whoami()?));
        program.arg(format!("--datadir={}", work.display()));
        // A server that starts clears its folder of temporary tables, so two that share one would take each other's.
        program.arg(format!("--tmpdir={}", work.display()));
        if let Some(account) = &self.account {
            program.arg(format!("--user={account}"));
        }
        program.said(&limits, tools::explain("Making the data folder"))?;
        let opened = File::open(&work).map_err(failed)?;
        rustix::fs::syncfs(&opened).map_err(|e| failed(e.into()))?;
        std::fs::rename(&work, &data).map_err(failed)?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    /// Starts the server. What comes says how it ended, should it do so.
    fn spawn(&self) -> Result<mpsc::Receiver<String>> {
        let limits = tools::limits(&self.options);
        let usual = ["/usr/sbin", "/usr/libexec", "/usr/local/libexec"];
        let found =
            tool::find(&["mariadbd", "mysqld"], &self.options.tools, &usual, "mariadb-server", &limits)?;
        let path = found.first().map(|found| found.path.clone()).unwrap_or_default();
        let failed = |e: std::io::Error| Error::new(Code::System, "The server cannot be started").because(e);
        let data = self.data();
        std::fs::remove_file(data.join("pid")).ok();
        let path_of = |option: &str, path: &Path| format!("--{option}={}", path.display());
        let mut command = Command::new(path);
        command
            .arg("--no-defaults")
            .arg(path_of("datadir", &data))
            .arg(path_of("tmpdir", &data))
            .arg(path_of("log-error", &data.join("log.err")))
            .arg(path_of("pid-file", &data.join("pid")))
            .arg(path_of("socket", &self.socket()))
            .args(SETTINGS)
            .args(self.account.iter().map(|account| format!("--user={account}")))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.make_run()?;
        let mut child = command.spawn().map_err(failed)?;
        let (tell, told) = mpsc::channel();
        // It is waited for as long as this process lives, and by the system afterwards.
        std::thread::Builder::new()
            .spawn(move || {
                let ended = child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
                tell.send(ended).ok();
            })
            .map_err(failed)?;
        Ok(told)
    }

    /// The server makes its socket in a folder of its own.
    fn make_run(&self) -> Result<()> {
        let failed = |e: std::io::Error| {
            Error::new(Code::System, "The folder of the socket cannot be made").because(e)
        };
        let run = self.run();
        std::fs::create_dir_all(&run).map_err(failed)?;
        let Some(account) = &self.account else { return Ok(()) };
        std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o711)).map_err(failed)?;
        let mut program = Program::new("/usr/bin/chown");
        program.args(["--no-dereference", account.as_str()]).arg(&run);
        program
            .said(&tools::limits(&self.options), tools::explain("Giving the folder to the server"))
            .map(drop)
    }

    /// Waits until the server answers. One that was found and goes meanwhile, whoever told it to, is started anew.
    fn wait(&self, endpoint: &Endpoint, mut begun: Option<mpsc::Receiver<String>>) -> Result<Session> {
        let begin = Instant::now();
        loop {
            self.options.cancel.check()?;
            let error = match self.session(endpoint) {
                Ok(session) => return Ok(session),
                Err(error) => error,
            };
            let log = self.data().join("log.err");
            let ended = begun.as_ref().map(mpsc::Receiver::try_recv);
            if let Some(Ok(status)) = ended {
                let message = format!("The server ended by itself, {status}; its log is {}", log.display());
                return Err(Error::new(Code::DatabaseFailed, message));
            }
            let is_gone = !matches!(ended, Some(Err(TryRecvError::Empty))) && self.process().is_none();
            if is_gone && begun.is_none() {
                begun = Some(self.spawn()?);
                continue;
            }
            if is_gone || begin.elapsed() > self.options.idle {
                return Err(
                    error.context(format!("The server does not answer; its log is {}", log.display()))
                );
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// A value as connection strings write it.
fn quoted(value: &str) -> String {
    let plain = !value.contains([';', '\'', '"', '=']) && value.trim() == value;
    if plain { value.to_owned() } else { format!("\"{}\"", value.replace('"', "\"\"")) }
}
