//! Programs that dump and restore, as children.
//!
//! Invariants:
//! * A child gets an environment of ours only (`PATH`, `LC_ALL=C`, `TZ=UTC`, an empty `HOME`),
//!   standard input from nowhere unless it is fed, and of our files only its own streams and its secrets.
//! * Secrets are sealed memory files of mode 0600 that only this child inherits. They stand in no argument, no
//!   environment and on no disk.
//! * Nobody outlives us: the child leads a process group of its own that is killed when its handle is dropped, when the
//!   work is cancelled, and when it is silent for too long while we wait for it. The child itself is killed by the system
//!   when we are (the tools that we run start no others).
//! * Its output ends well only after it has ended with status 0. What it said to standard error (the last 64 KB) is in
//!   the error otherwise.
//!
//! Threads: a keeper starts the child and stays until it has ended (the system kills it when the *thread* that started it
//! is gone), and one reads standard error. No lock is held while anything is waited for.

mod child;
mod keeper;
mod search;

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use backstay_model::{Cancel, Code, Error, Result};
use rustix::fs::{MemfdFlags, Mode, SealFlags};

use keeper::Keeper;
pub(crate) use search::{Found, find};

/// When a child is stopped.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Stops it when asked to.
    pub cancel: Cancel,
    /// How long a single wait for it may last.
    pub idle: Duration,
}

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its name, without its folder.
    pub program: String,
    /// Its status.
    pub status: ExitStatus,
    /// The last that it said to standard error.
    pub stderr: String,
}

impl Ended {
    /// Its status in words.
    pub(crate) fn status_text(&self) -> String {
        use std::os::unix::process::ExitStatusExt as _;
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no status".to_owned(),
        }
    }
}

/// Makes the error of a program that has ended with another status than 0, from what it said.
pub(crate) type Explain = Box<dyn Fn(&Ended) -> Error + Send>;

/// A program that is about to be started.
pub(crate) struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    secrets: Vec<OwnedFd>,
}

impl Program {
    /// The program at that path.
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Program { path: path.into(), args: Vec::new(), secrets: Vec::new() }
    }

    /// Adds an argument. Arguments are seen by everybody on the machine.
    pub(crate) fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub(crate) fn args<A: AsRef<OsStr>>(&mut self, args: impl IntoIterator<Item = A>) -> &mut Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Gives it a secret as a file and returns the path under which the child, and only the child, finds it.
    pub(crate) fn secret(&mut self, bytes: &[u8]) -> Result<String> {
        let file = sealed(bytes)
            .map_err(|e| Error::new(Code::System, "Cannot make a file in memory for a secret").because(e))?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.secrets.push(file);
        Ok(path)
    }

    /// Lets it inherit an open file or folder and returns the path under which the child finds it.
    pub(crate) fn inherit(&mut self, file: impl AsFd) -> Result<String> {
        let file = rustix::io::fcntl_dupfd_cloexec(file, 3)
            .map_err(|e| Error::new(Code::System, "Cannot hand a file to a program").because(e))?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.secrets.push(file);
        Ok(path)
    }

    /// Starts it to read its output.
    pub(crate) fn output(self, limits: &Limits, explain: Explain) -> Result<Output> {
        let mut keeper = self.start(false, limits, explain)?;
        let stdout = keeper.stdout.take();
        if let Some(stdout) = &stdout {
            // Fewer turns of waiting for one another. Where the system gives no more, what is there will do.
            rustix::pipe::fcntl_setpipe_size(stdout, PIPE).ok();
        }
        Ok(Output { stdout, keeper })
    }

    /// Starts it to feed it.
    pub(crate) fn input(self, limits: &Limits, explain: Explain) -> Result<Input> {
        let mut keeper = self.start(true, limits, explain)?;
        let stdin = keeper.stdin.take();
        Ok(Input { stdin, keeper })
    }

    /// Runs it to its end and gives what it wrote, at most 64 KB of it.
    pub(crate) fn said(self, limits: &Limits, explain: Explain) -> Result<String> {
        let mut output = self.output(limits, explain)?;
        let mut bytes = Vec::new();
        let mut block = [0; 4096];
        loop {
            match output.read(&mut block) {
                Ok(0) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
                Ok(read) if bytes.len() < SAID => bytes.extend(block.iter().take(read)),
                Ok(_) => {}
                Err(e) => return Err(inner(e)),
            }
        }
    }

    fn start(self, fed: bool, limits: &Limits, explain: Explain) -> Result<Keeper> {
        let name = name(&self.path);
        let mut command = Command::new(&self.path);
        command
            .args(&self.args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("HOME", "/nonexistent")
            .stdin(if fed { Stdio::piped() } else { Stdio::null() })
            .stdout(if fed { Stdio::null() } else { Stdio::piped() })
            .stderr(Stdio::piped());
        Keeper::start(name, command, self.secrets, limits, explain)
    }
}

/// What a pipe holds: the most that a process without rights may ask for.
const PIPE: usize = 1 << 20;
/// Most that [`Program::said`] keeps.
const SAID: usize = 64 << 10;

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// A file in memory that cannot be changed any more. Its number is above those of the standard streams.
fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = rustix::fs::memfd_create("backstay", flags)?;
    let fd = rustix::io::fcntl_dupfd_cloexec(&made, 3)?;
    let mut file = std::fs::File::from(made);
    rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR)?;
    file.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(fd)
}

/// The error inside an [`io::Error`]; one of an interruption where it is the system's own.
pub(crate) fn inner(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => {
            Error::new(Code::DatabaseInterrupted, "A dump cannot be read or written").because(error)
        }
    }
}

/// A program whose output is read. The end comes only after it has ended with status 0.
pub(crate) struct Output {
    stdout: Option<ChildStdout>,
    keeper: Keeper,
}

impl Read for Output {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if let Some(stdout) = &mut self.stdout {
            let read = self.keeper.wait_for(|| stdout.read(buf));
            match read {
                Ok(read) if read > 0 => return Ok(read),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err(e),
                // Whatever it was: how the program ended says it better.
                Ok(_) | Err(_) => self.stdout = None,
            }
        }
        self.keeper.end(true).map(|()| 0).map_err(io::Error::other)
    }
}

/// A program that is fed.
pub(crate) struct Input {
    stdin: Option<ChildStdin>,
    keeper: Keeper,
}

impl Input {
    /// Closes its input and waits until it has ended, as long as it takes: it may have work left that it is silent about.
    /// What it said to standard error (the last 64 KB) is returned.
    pub(crate) fn finish(mut self) -> Result<String> {
        self.stdin = None;
        self.keeper.end(false)?;
        Ok(self.keeper.stderr())
    }
}

impl Write for Input {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some(stdin) = &mut self.stdin else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        match self.keeper.wait_for(|| stdin.write(buf)) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                self.stdin = None;
                match self.keeper.end(true) {
                    Err(told) => Err(io::Error::other(told)),
                    // It ended well and did not want the rest.
                    Ok(()) => Err(e),
                }
            }
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
