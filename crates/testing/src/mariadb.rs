//! MariaDB: a private server of Debian's package for one test, reached by TCP and by a socket.
//!
//! The folder that `mariadb-install-db` makes is made once on a machine and copied from then on: that takes a tenth of a
//! second instead of four.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::server::{free_port, with_parent};
use crate::tls::Certificates;

/// So long the server may take to answer.
const READY: Duration = Duration::from_secs(60);

/// A running server. As root it runs as the user `mysql`.
#[derive(Debug)]
pub struct MariaDb {
    child: Child,
    port: u16,
    dir: TempDir,
    options: Vec<String>,
}

impl MariaDb {
    /// Starts one without TLS.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with more options (`--require-secure-transport=ON`, `--ssl-cert=…`).
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_with(options: &[&str]) -> Self {
        Self::start_in(crate::quick_dir(), options)
    }

    /// Starts one with the certificate of that name, and the right authority for its clients.
    #[must_use]
    pub fn start_tls(certificates: &Certificates, name: &str, options: &[&str]) -> Self {
        let dir = crate::quick_dir();
        let copy = |from: PathBuf, to: &str| {
            let to = dir.path().join(to);
            std::fs::copy(from, &to).expect("a certificate");
            // A key is its owner's alone, and the server is another user.
            if rustix::process::geteuid().is_root() {
                run(Command::new("chown").arg("mysql:").arg(&to));
            }
            to.display().to_string()
        };
        let ca = copy(certificates.certificate("ca"), "ca.pem");
        let certificate = copy(certificates.certificate(name), "server.pem");
        let key = copy(certificates.key(name), "server.key");
        let tls = [format!("--ssl-ca={ca}"), format!("--ssl-cert={certificate}"), format!("--ssl-key={key}")];
        let all: Vec<&str> = tls.iter().map(String::as_str).chain(options.iter().copied()).collect();
        Self::start_in(dir, &all)
    }

    /// The same with its data in a folder of the caller's, in which there is no `data` yet.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_in(dir: TempDir, options: &[&str]) -> Self {
        let data = dir.path().join("data");
        run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(template()).arg(&data));
        if rustix::process::geteuid().is_root() {
            run(Command::new("chown").arg("mysql:").arg(dir.path()));
        }
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let port = free_port();
        let child = spawn(dir.path(), port, &options);
        let mut server = MariaDb { child, port, dir, options };
        server.wait();
        server
    }

    /// Kills it with SIGKILL, as a crash of the machine's power supply would, but for the page cache.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Starts it again on the same data, port and options.
    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.dir.path(), self.port, &self.options);
        self.wait();
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its port on this machine.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
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

    /// Runs statements as root by the `mariadb` client through the socket; what it prints, columns separated by tabs.
    ///
    /// # Panics
    /// With what the server says, when it refuses one.
    #[track_caller]
    pub fn sql(&self, statements: &str) -> String {
        self.try_sql(statements).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same; the error is what the server says.
    ///
    /// # Errors
    /// When the server refuses one.
    pub fn try_sql(&self, statements: &str) -> Result<String, String> {
        let input = self.dir.path().join(format!("input-{:?}.sql", std::thread::current().id()));
        std::fs::write(&input, statements).expect("a file for the statements");
        let output = self
            .client("mariadb")
            .args(["--default-character-set=utf8mb4", "--skip-column-names", "--batch", "--raw"])
            .stdin(std::fs::File::open(&input).expect("the statements"))
            .output()
            .expect("the mariadb client");
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// A client program of MariaDB, set up to reach the server as root.
    #[must_use]
    pub fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--no-defaults").arg("--socket").arg(self.socket()).args(["--user", "root"]);
        command
    }

    fn wait(&mut self) {
        let begin = Instant::now();
        while begin.elapsed() < READY {
            if let Some(status) = self.child.try_wait().expect("a child") {
                panic!("mariadbd ended by itself, {status}: {}", self.log());
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() && self.socket().exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("mariadbd does not get ready: {}", self.log());
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(dir: &Path, port: u16, options: &[String]) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("server.log"));
    let log = log.expect("a log file");
    let mut command = Command::new("mariadbd");
    command
        .arg("--no-defaults")
        .arg(format!("--datadir={}", dir.join("data").display()))
        .arg(format!("--socket={}", dir.join("sock").display()))
        .arg(format!("--pid-file={}", dir.join("pid").display()))
        // A server clears its folder of temporary tables when it starts, whoever made them.
        .arg(format!("--tmpdir={}", dir.join("data").display()))
        .arg(format!("--port={port}"))
        .args(["--bind-address=127.0.0.1", "--performance-schema=0", "--skip-name-resolve"])
        .args(["--innodb-buffer-pool-size=64M", "--innodb-fast-shutdown=0"])
        .args(["--max-allowed-packet=64M", "--character-set-server=utf8mb4"])
        .args(options);
    if rustix::process::geteuid().is_root() {
        command.arg("--user=mysql");
    }
    let mut wrapped = with_parent(&command);
    wrapped.stdin(Stdio::null()).stdout(log.try_clone().expect("a log file")).stderr(log);
    wrapped.spawn().expect("mariadbd (Debian: mariadb-server)")
}

/// A folder with an empty server's data, made once.
fn template() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    let base = std::env::temp_dir();
    let place = base.join(format!("backstay-mariadb-{}-{user}", version()));
    if place.exists() {
        return place;
    }
    let work = tempfile::Builder::new().prefix("backstay-mariadb-").tempdir_in(&base);
    let work = work.expect("a temporary folder");
    let data = work.path().join("data");
    std::fs::create_dir(&data).expect("a folder");
    let mut install = Command::new("mariadb-install-db");
    install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
    install.args(["--innodb-log-file-size=16M", "--skip-name-resolve"]);
    install.arg(format!("--datadir={}", data.display()));
    if user == 0 {
        // The server's user must be able to reach it.
        run(Command::new("chmod").arg("755").arg(work.path()));
        run(Command::new("chown").arg("mysql:").arg(&data));
        install.arg("--user=mysql");
    }
    run(&mut install);
    // Whoever comes second finds it there.
    if std::fs::rename(&data, &place).is_err() {
        assert!(place.exists(), "the template of MariaDB could not be put in place");
    }
    place
}

fn version() -> String {
    let output = Command::new("mariadbd").arg("--version").output();
    let output = output.expect("mariadbd (Debian: mariadb-server)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().skip_while(|word| *word != "Ver").nth(1);
    version.expect("a version").to_owned()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&output.stdout));
}
