//! Real servers for tests, each on a free port of this machine with a folder of its own, gone with the test.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// So long a server may take to answer on its port. Interpreters start slowly on a busy machine.
const READY: Duration = Duration::from_secs(90);

/// A server that a test runs.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Server {
    /// Starts what `command` makes for a port and a folder, and waits until it takes connections. A port that somebody else
    /// took meanwhile is given up for another.
    ///
    /// # Panics
    /// When it ends by itself three times or does not get ready.
    #[must_use]
    pub fn start(name: &str, command: impl Fn(u16, &Path) -> Command) -> Self {
        for _ in 0..3 {
            let dir = crate::quick_dir();
            let port = free_port();
            let log = dir.path().join("server.log");
            let output = std::fs::File::create(&log).expect("a log file");
            let child = with_parent(&command(port, dir.path()))
                .stdin(Stdio::null())
                .stdout(output.try_clone().expect("a log file"))
                .stderr(output)
                .spawn()
                .unwrap_or_else(|e| panic!("{name} could not be started: {e}"));
            let mut server = Server { child, port, dir };
            if server.is_ready() {
                return server;
            }
            println!("{name} ended by itself: {}", std::fs::read_to_string(&log).unwrap_or_default());
        }
        panic!("{name} does not start")
    }

    fn is_ready(&mut self) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < READY {
            if self.child.try_wait().expect("a child").is_some() {
                return false;
            }
            if TcpStream::connect(self.address()).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("a server does not get ready: {}", self.log())
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A port that nobody listens on at this moment.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// The same command, killed by the system when the thread that starts it ends, should a test be killed.
pub(crate) fn with_parent(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

/// A program that `./test` installs into `.tools/`; none, and a line that says so, where it is not there.
///
/// # Panics
/// When `BACKSTAY_NEED_STORES` is set: the run that installs it must not pass without it.
#[must_use]
pub fn tool(name: &str, file: impl AsRef<OsStr>) -> Option<PathBuf> {
    let file = Path::new(file.as_ref());
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools");
    let found = std::env::var_os("BACKSTAY_TOOLS")
        .map(PathBuf::from)
        .into_iter()
        .chain([own])
        .map(|folder| folder.join(file))
        .find(|path| path.exists());
    if found.is_none() {
        let needed = std::env::var_os("BACKSTAY_NEED_STORES").is_some();
        assert!(!needed, "{name} not installed, but this run needs it");
        println!("{name} not installed, this part is left out: ./test installs it and runs all");
    }
    found
}
