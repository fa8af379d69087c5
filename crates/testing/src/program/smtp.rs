//! A real mail server: aiosmtpd (Debian's `python3-aiosmtpd`).

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::tls::Leaf;

const SERVER: &str = include_str!("smtp_server.py");
/// The interpreter that Debian's packages are for.
const PYTHON: &str = "/usr/bin/python3";

/// A mail server on this machine that keeps what it is sent. It knows the user `backstay` with the password
/// [`SmtpServer::PASSWORD`].
pub struct SmtpServer {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
    mails: Arc<Mutex<Vec<Value>>>,
}

impl SmtpServer {
    /// The password of its one user.
    pub const PASSWORD: &str = "s3cret of the mail server";

    /// One that takes mail in the clear from anybody.
    #[must_use]
    pub fn plain() -> Self {
        Self::start("plain")
    }

    /// One that takes mail only after STARTTLS and a login.
    #[must_use]
    pub fn starttls() -> Self {
        Self::start("starttls")
    }

    /// One that speaks TLS from the first byte and wants a login.
    #[must_use]
    pub fn implicit() -> Self {
        Self::start("implicit")
    }

    fn start(kind: &str) -> Self {
        let folder = crate::temp_dir();
        certificates(folder.path());
        std::fs::write(folder.path().join("server.py"), SERVER).unwrap();
        let mut child = Command::new(PYTHON)
            .arg("server.py")
            .args([kind, Self::PASSWORD])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{PYTHON} could not be started: {e}"));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_default();
        let port = first.parse().unwrap_or_else(|_| {
            panic!("the mail server did not start (is python3-aiosmtpd installed?): {first}")
        });
        let mails = Arc::new(Mutex::new(Vec::new()));
        let theirs = Arc::clone(&mails);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                theirs.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        SmtpServer { child, port, folder, mails }
    }

    /// Its port on this machine.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate of the authority that signed its own, which is for `localhost`.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The mails so far: `from`, `to`, `user`, `tls`, `subject`, `headers`, `text`.
    #[must_use]
    pub fn mails(&self) -> Vec<Value> {
        self.mails.lock().unwrap().clone()
    }

    /// Waits until there are so many mails; panics after a minute.
    #[track_caller]
    pub fn wait_for(&self, count: usize) -> Vec<Value> {
        let started = Instant::now();
        loop {
            let mails = self.mails();
            if mails.len() >= count {
                return mails;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{count} mails were expected: {mails:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for SmtpServer {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

/// An authority and a certificate for `localhost` that it signed.
fn certificates(folder: &Path) {
    crate::tls::authority(folder, "ca");
    let leaf = Leaf { name: "leaf", subject: "localhost", names: "DNS:localhost", good: true };
    crate::tls::certificate(folder, "ca", &leaf);
}
