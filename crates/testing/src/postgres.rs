//! A real PostgreSQL, private to a test: its own folder, port and socket, gone with the test.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::program::{Outcome, run};
use crate::server::free_port;

/// So long a server may take to start on a busy machine.
const READY: Duration = Duration::from_secs(90);

/// How a server differs from the usual.
#[derive(Clone, Debug, Default)]
pub struct PostgresSetup {
    /// Certificate and key (PEM) of a server that has TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The authority (PEM) of the certificates of clients.
    pub client_authority: Option<PathBuf>,
    /// The lines of `pg_hba.conf`; empty: passwords (SCRAM) from everywhere, with and without TLS.
    pub access: Vec<String>,
    /// Further lines of `postgresql.conf`.
    pub settings: Vec<String>,
}

/// A server that a test runs. It listens on 127.0.0.1 and on a socket.
#[derive(Debug)]
pub struct Postgres {
    port: u16,
    dir: TempDir,
    /// Dropped, the server ends.
    running: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
    _template: Arc<Template>,
}

impl Postgres {
    /// Its superuser.
    pub const USER: &str = "postgres";
    /// The password of its superuser.
    pub const PASSWORD: &str = "s3cret:of\\the database";

    /// The usual one.
    #[must_use]
    pub fn start() -> Self {
        Self::with(&PostgresSetup::default())
    }

    /// One that tests of this process share as long as one of them has it.
    #[must_use]
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let started = Arc::new(Self::start());
            *shared = Arc::downgrade(&started);
            started
        })
    }

    /// One of that setup.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn with(setup: &PostgresSetup) -> Self {
        let template = Template::get();
        Self::on(&template.0.path().join("data"), setup, Arc::clone(&template))
    }

    /// A standby of this server, which follows it.
    ///
    /// # Panics
    /// When it cannot be made or does not start.
    #[must_use]
    pub fn standby(&self) -> Self {
        let base = folder();
        let data = base.path().join("data");
        run(self.client("pg_basebackup").args(["-X", "stream", "-R", "-D"]).arg(&data)).ok();
        if let Some(account) = account() {
            run(Command::new("chown").arg("-R").arg(account).arg(&data)).ok();
        }
        Self::on(&data, &PostgresSetup::default(), Template::get())
    }

    /// One whose data are a copy of these.
    fn on(original: &Path, setup: &PostgresSetup, template: Arc<Template>) -> Self {
        let dir = folder();
        let data = dir.path().join("data");
        run(Command::new("cp").arg("-a").arg(original).arg(&data)).ok();
        let port = free_port();
        configure(&data, dir.path(), port, setup);
        let (running, keeper) = keep(&data, dir.path().join("server.log"));
        let server =
            Postgres { port, dir, running: Some(running), keeper: Some(keeper), _template: template };
        let begin = Instant::now();
        while server.try_psql("postgres", "SELECT 1").stdout != "1\n" {
            assert!(begin.elapsed() < READY, "PostgreSQL does not get ready: {}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.dir.path()
    }

    /// Its data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// What it wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default()
    }

    /// The path of one of the programs that belong to it.
    #[must_use]
    pub fn program(name: &str) -> PathBuf {
        programs().join(name)
    }

    /// Runs a script as the superuser and gives what it wrote, columns separated by `|`.
    ///
    /// # Panics
    /// With what psql says when a statement fails.
    #[track_caller]
    pub fn psql(&self, database: &str, script: &str) -> String {
        self.try_psql(database, script).ok().stdout
    }

    /// The same where a failure is expected.
    pub fn try_psql(&self, database: &str, script: &str) -> Outcome {
        let mut command = self.client("psql");
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f", "-", database]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("psql could not be started: {e}"));
        let mut stdin = child.stdin.take().unwrap();
        let script = script.to_owned();
        // A script may be longer than a pipe, and psql may end before it.
        let feeder = std::thread::spawn(move || stdin.write_all(script.as_bytes()).is_ok());
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        Outcome {
            command: "psql".to_owned(),
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// One of its programs, set up to connect through the socket as the superuser.
    #[must_use]
    pub fn client(&self, program: &str) -> Command {
        let mut command = Command::new(Self::program(program));
        command
            .env("PGHOST", self.socket())
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", Self::USER)
            .env("PGPASSWORD", Self::PASSWORD)
            .env("LC_ALL", "C.UTF-8");
        command
    }

    /// Stops it at once, as a power cut would: nobody is told.
    pub fn stop(&mut self) {
        self.running = None;
        if let Some(keeper) = self.keeper.take() {
            keeper.join().unwrap();
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.running = None;
        if let Some(keeper) = self.keeper.take() {
            keeper.join().ok();
        }
    }
}

/// The folder of the newest server's programs.
fn programs() -> PathBuf {
    let version = |path: &PathBuf| path.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("postgres").is_file())
        .max_by_key(version)
        .expect("PostgreSQL is not installed (Debian's package `postgresql`): ./test installs it")
}

/// The server refuses to run as root: it is another user then.
fn account() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let known = |name: &str| Command::new("id").arg(name).output().is_ok_and(|o| o.status.success());
    Some(if known("postgres") { "postgres" } else { "nobody" })
}

/// A program of the server as the account that may run it, killed with the thread that starts it.
fn as_account(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if let Some(account) = account() {
        command.args(["--reuid", account, "--clear-groups"]);
    }
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).env("LC_ALL", "C.UTF-8");
    command
}

/// A folder that belongs to the account.
fn folder() -> TempDir {
    let dir = crate::quick_dir();
    give(dir.path());
    dir
}

fn give(path: &Path) {
    if let Some(account) = account() {
        run(Command::new("chown").arg(account).arg(path)).ok();
    }
}

/// A data folder that servers are copied from: making one takes seconds.
#[derive(Debug)]
struct Template(TempDir);

impl Template {
    fn get() -> Arc<Self> {
        static TEMPLATE: Mutex<Weak<Template>> = Mutex::new(Weak::new());
        let mut template = TEMPLATE.lock().unwrap_or_else(PoisonError::into_inner);
        template.upgrade().unwrap_or_else(|| {
            let made = Arc::new(Self::make());
            *template = Arc::downgrade(&made);
            made
        })
    }

    fn make() -> Self {
        let dir = folder();
        let password = dir.path().join("password");
        std::fs::write(&password, Postgres::PASSWORD).unwrap();
        give(&password);
        let mut command = as_account(&Postgres::program("initdb"));
        command
            .args([
                "--no-sync",
                "--no-instructions",
                "-A",
                "scram-sha-256",
                "-E",
                "UTF8",
                "--locale",
                "C.UTF-8",
            ])
            .args(["-U", Postgres::USER, "--pwfile"])
            .arg(&password)
            .arg("-D")
            .arg(dir.path().join("data"))
            .current_dir("/");
        run(&mut command).ok();
        Template(dir)
    }
}

fn configure(data: &Path, socket: &Path, port: u16, setup: &PostgresSetup) {
    let mut lines = vec![
        "listen_addresses = '127.0.0.1'".to_owned(),
        format!("port = {port}"),
        format!("unix_socket_directories = '{}'", socket.display()),
        "fsync = off".to_owned(),
        "synchronous_commit = off".to_owned(),
        "full_page_writes = off".to_owned(),
        "max_wal_size = 4GB".to_owned(),
        "shared_buffers = 64MB".to_owned(),
        "dynamic_shared_memory_type = mmap".to_owned(),
        "timezone = 'UTC'".to_owned(),
    ];
    let copy = |from: &Path, name: &str| {
        let to = data.join(name);
        // `install` sets owner and mode: a key that others may read is refused.
        let mut command = Command::new("install");
        command.args(["-m", "600"]);
        if let Some(account) = account() {
            command.args(["-o", account]);
        }
        run(command.arg(from).arg(&to)).ok();
    };
    if let Some((certificate, key)) = &setup.tls {
        copy(certificate, "server.pem");
        copy(key, "server.key");
        lines.push("ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'".to_owned());
    }
    if let Some(authority) = &setup.client_authority {
        copy(authority, "client-ca.pem");
        lines.push("ssl_ca_file = 'client-ca.pem'".to_owned());
    }
    lines.extend(setup.settings.iter().cloned());
    let mut access = vec!["local all,replication postgres scram-sha-256".to_owned()];
    match setup.access.is_empty() {
        true => access.push("local all all scram-sha-256\nhost all all all scram-sha-256".to_owned()),
        false => access.extend(setup.access.iter().cloned()),
    }
    append(&data.join("postgresql.conf"), &lines);
    std::fs::write(data.join("pg_hba.conf"), access.join("\n") + "\n").unwrap();
}

fn append(path: &Path, lines: &[String]) {
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    writeln!(file, "{}", lines.join("\n")).unwrap();
}

/// Starts the server on a thread that stays as long as it: the system kills it with the thread that started it, and tests
/// that share one end at different times.
fn keep(data: &Path, log: PathBuf) -> (mpsc::Sender<()>, JoinHandle<()>) {
    let (running, dropped) = mpsc::channel::<()>();
    let mut command = as_account(&Postgres::program("postgres"));
    command.arg("-D").arg(data).current_dir("/");
    let keeper = std::thread::spawn(move || {
        let output = std::fs::File::create(log).unwrap();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|e| panic!("PostgreSQL could not be started: {e}"));
        dropped.recv().ok();
        // The signal by which it leaves nothing behind in the system's memory, and waits for nobody.
        if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
            rustix::process::kill_process(pid, rustix::process::Signal::QUIT).ok();
        }
        child.wait().ok();
    });
    (running, keeper)
}
