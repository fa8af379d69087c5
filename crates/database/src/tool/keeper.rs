//! The thread that starts a child, watches it and sees its end.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use backstay_model::{Code, Error, Result};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::{Ended, Explain, Limits, child};

/// Most that is kept of standard error.
const STDERR: usize = 64 << 10;
/// How often cancellation and silence are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long the rest of standard error is waited for when the group is gone.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A child and its keeper. When dropped, the child's group is killed and its end seen.
pub(super) struct Keeper {
    /// Standard input, where the child is fed.
    pub(super) stdin: Option<ChildStdin>,
    /// Standard output, where it is read.
    pub(super) stdout: Option<ChildStdout>,
    program: String,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<io::Result<(ExitStatus, Stopped)>>>,
    waiting: Arc<Mutex<Option<Instant>>>,
    stderr: Arc<Mutex<Ring>>,
    idle: Duration,
    explain: Explain,
    /// How it ended, once that is known.
    ended: Option<Result<(), (Code, String)>>,
}

/// What the keeper is told. When nobody is left to tell it anything, it kills the child.
enum Order {
    /// The child has nothing more to say or to be told: look for its end at once.
    End,
}

/// Why the keeper killed the child.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stopped {
    Not,
    Cancelled,
    Idle,
    Dropped,
}

type Streams = (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>);

impl Keeper {
    /// Starts the command on a thread of its own.
    pub(super) fn start(
        program: String,
        mut command: Command,
        secrets: Vec<OwnedFd>,
        limits: &Limits,
        explain: Explain,
    ) -> Result<Self> {
        let failed = |e: io::Error| {
            let code = match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Code::DatabaseToolMissing,
                _ => Code::System,
            };
            Error::new(code, format!("`{program}` cannot be started")).because(e)
        };
        let (orders, received) = mpsc::channel();
        let (tell, told) = mpsc::sync_channel::<io::Result<Streams>>(1);
        let waiting = Arc::new(Mutex::new(None));
        let watch = Watch { limits: limits.clone(), waiting: Arc::clone(&waiting), orders: received };
        child::prepare(&mut command, secrets);
        let thread = thread::Builder::new()
            .name("tool".to_owned())
            .spawn(move || {
                let started = command.spawn();
                drop(command);
                let mut child = match started {
                    Ok(child) => child,
                    Err(e) => {
                        tell.send(Err(e)).ok();
                        return Err(io::ErrorKind::NotFound.into());
                    }
                };
                tell.send(Ok((child.stdin.take(), child.stdout.take(), child.stderr.take()))).ok();
                watch.until_end(&mut child)
            })
            .map_err(failed)?;
        let streams = told.recv().unwrap_or_else(|e| Err(io::Error::other(e)));
        let (stdin, stdout, said) = streams.map_err(failed)?;
        let stderr = Arc::new(Mutex::new(Ring::default()));
        let mut keeper = Keeper {
            stdin,
            stdout,
            program: program.clone(),
            orders: Some(orders),
            thread: Some(thread),
            waiting,
            stderr: Arc::clone(&stderr),
            idle: limits.idle,
            explain,
            ended: None,
        };
        match said.map(|said| thread::Builder::new().spawn(move || read_stderr(said, &stderr))) {
            Some(Err(e)) => {
                keeper.stop();
                Err(failed(e))
            }
            _ => Ok(keeper),
        }
    }

    /// Does something that waits for the child.
    pub(super) fn wait_for<T>(&self, work: impl FnOnce() -> T) -> T {
        *lock(&self.waiting) = Some(Instant::now());
        let done = work();
        *lock(&self.waiting) = None;
        done
    }

    /// What it said to standard error so far.
    pub(super) fn stderr(&self) -> String {
        lock(&self.stderr).text()
    }

    /// Waits for its end, however often it is asked. `limited`: not longer than a single wait may last.
    pub(super) fn end(&mut self, limited: bool) -> Result<()> {
        if self.ended.is_none() {
            if limited {
                *lock(&self.waiting) = Some(Instant::now());
            }
            if let Some(orders) = &self.orders {
                orders.send(Order::End).ok();
            }
            let error = self.outcome().err();
            self.ended = Some(match &error {
                None => Ok(()),
                Some(e) => Err((e.code(), e.message().to_owned())),
            });
            if let Some(error) = error {
                return Err(error);
            }
        }
        match &self.ended {
            Some(Err((code, message))) => Err(Error::new(*code, message.clone())),
            _ => Ok(()),
        }
    }

    fn outcome(&mut self) -> Result<()> {
        let program = self.program.clone();
        let lost = || Error::new(Code::Internal, format!("The keeper of `{program}` is gone"));
        let joined = self.thread.take().ok_or_else(lost)?.join().map_err(|_panic| lost())?;
        let (status, stopped) = joined
            .map_err(|e| Error::new(Code::System, format!("`{program}` cannot be watched")).because(e))?;
        self.await_last_words();
        match stopped {
            Stopped::Cancelled => {
                Err(Error::new(Code::Cancelled, format!("`{program}` was stopped as asked")))
            }
            Stopped::Idle => Err(Error::new(
                Code::DatabaseInterrupted,
                format!("`{program}` gave no sign of life for {} s and was stopped", self.idle.as_secs()),
            )),
            Stopped::Dropped => {
                Err(Error::new(Code::DatabaseInterrupted, format!("`{program}` was stopped")))
            }
            Stopped::Not if status.success() => Ok(()),
            Stopped::Not => {
                let ended = Ended { program: self.program.clone(), status, stderr: self.stderr() };
                Err((self.explain)(&ended))
            }
        }
    }

    /// The group is gone; the reader of standard error may still be at its last bytes. Someone who has left the group
    /// could hold that stream open for ever.
    fn await_last_words(&self) {
        let begin = Instant::now();
        while !lock(&self.stderr).complete && begin.elapsed() < LAST_WORDS {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn stop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the keeper's thread looks at.
struct Watch {
    limits: Limits,
    waiting: Arc<Mutex<Option<Instant>>>,
    orders: Receiver<Order>,
}

impl Watch {
    /// Waits until the child has ended, by itself or because it had to be stopped; then nobody of its group is left.
    fn until_end(&self, child: &mut Child) -> io::Result<(ExitStatus, Stopped)> {
        let mut pause = LOOK;
        let mut stopped = Stopped::Not;
        while !has_ended(child)? {
            match self.orders.recv_timeout(pause) {
                Ok(Order::End) => pause = Duration::from_micros(500),
                Err(RecvTimeoutError::Timeout) => pause = (pause * 2).min(LOOK),
                Err(RecvTimeoutError::Disconnected) => stopped = Stopped::Dropped,
            }
            if self.limits.cancel.is_cancelled() {
                stopped = Stopped::Cancelled;
            } else if lock(&self.waiting).is_some_and(|since| since.elapsed() > self.limits.idle) {
                stopped = Stopped::Idle;
            }
            if stopped != Stopped::Not {
                break;
            }
        }
        // It is not reaped yet, so its number is nobody else's.
        kill_group(child);
        Ok((child.wait()?, stopped))
    }
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()).ok()?)
}

/// Whether it has ended; it stays to be reaped.
fn has_ended(child: &Child) -> io::Result<bool> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    let Some(pid) = pid(child) else { return Ok(true) };
    loop {
        match rustix::process::waitid(WaitId::Pid(pid), options) {
            Ok(status) => return Ok(status.is_some()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn kill_group(child: &Child) {
    if let Some(pid) = pid(child) {
        // Nobody there is no error.
        rustix::process::kill_process_group(pid, Signal::KILL).ok();
    }
}

/// The last of what was said.
#[derive(Default)]
struct Ring {
    bytes: VecDeque<u8>,
    complete: bool,
}

impl Ring {
    fn push(&mut self, more: &[u8]) {
        self.bytes.extend(more);
        let excess = self.bytes.len().saturating_sub(STDERR);
        self.bytes.drain(..excess);
    }

    fn text(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn read_stderr(mut stderr: ChildStderr, ring: &Mutex<Ring>) {
    let mut block = [0; 4096];
    loop {
        match stderr.read(&mut block) {
            Ok(0) => break,
            Ok(read) => lock(ring).push(block.get(..read).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    lock(ring).complete = true;
}

/// What is guarded here stays whole when a thread dies in the middle.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
