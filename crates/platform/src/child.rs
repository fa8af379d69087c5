//! Running a program to its end, with a limit of time.
//!
//! Invariants: the program leads a process group of its own. When it ends, when the time is up or when the work is
//! cancelled, whatever is left of the group is killed before this returns. The leader is collected last, so its number
//! cannot mean another group meanwhile. Of the output (both streams as one) the last [`OUTPUT_MAX`] bytes are kept. A
//! process that left the group on purpose (`setsid`) is not waited for.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use backstay_model::app::CommandLine;
use backstay_model::{Cancel, Code, Error, Result};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::session;

/// Bytes of output that are kept.
pub const OUTPUT_MAX: usize = 64 * 1024;
/// How long a program may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(2);
/// How often is looked.
const TICK: Duration = Duration::from_millis(10);
/// Where programs are looked for when PATH is not set.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub status: ExitStatus,
    /// Whether it was stopped because its time was up.
    pub late: bool,
    /// The end of what it wrote.
    pub output: Output,
}

/// The end of what a program wrote.
#[derive(Debug, Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    cut: bool,
}

impl Output {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > 2 * OUTPUT_MAX {
            self.trim();
        }
    }

    fn trim(&mut self) {
        if let Some(over) = self.bytes.len().checked_sub(OUTPUT_MAX).filter(|n| *n > 0) {
            self.bytes.drain(..over);
            self.cut = true;
        }
    }

    /// As text, with a word where the beginning is missing.
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let text = text.trim_end();
        if self.cut { format!("[the beginning is left out]\n{text}") } else { text.to_owned() }
    }
}

/// A command without anything of our environment but where programs are, whose home it is and the language.
pub(crate) fn clean(line: &CommandLine) -> Command {
    let mut command = match line {
        CommandLine::Line(line) => {
            let mut shell = Command::new("/bin/sh");
            shell.arg("-c").arg(line);
            shell
        }
        CommandLine::Words(words) => {
            let mut words = words.iter();
            let mut command = Command::new(words.next().map_or("", String::as_str));
            command.args(words);
            command
        }
    };
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH.into()));
    for name in ["HOME", "LANG"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command
}

/// Runs a program to its end. The error is that it could not be started, or `Cancelled`.
pub(crate) fn run(command: &mut Command, limit: Duration, cancel: &Cancel) -> Result<Ended> {
    cancel.check()?;
    let failed = |what: &str, e: io::Error| Error::new(Code::System, what.to_owned()).because(e);
    let (mut reader, writer) = io::pipe().map_err(|e| failed("Cannot make a pipe", e))?;
    let unblock = || {
        let flags = fcntl_getfl(reader.as_fd())?;
        fcntl_setfl(reader.as_fd(), flags | OFlags::NONBLOCK)
    };
    unblock().map_err(|e| failed("Cannot set up a pipe", e.into()))?;
    let second = writer.try_clone().map_err(|e| failed("Cannot make a pipe", e))?;
    command.stdin(Stdio::null()).stdout(writer).stderr(second);
    let spawned = session::die_with_us(command).spawn();
    // The ends for writing are closed here, or the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = spawned.map_err(|e| failed("Cannot run the program", e))?;
    let mut output = Output::default();
    let ended = attend(&child, limit, cancel, || drain(&mut reader, &mut output));
    // Whatever happened: nothing of the group stays.
    kill(&child, Signal::KILL);
    let status = child.wait().map_err(|e| failed("Cannot wait for the program", e))?;
    drain(&mut reader, &mut output);
    output.trim();
    match ended? {
        End::Itself => Ok(Ended { status, late: false, output }),
        End::Late => Ok(Ended { status, late: true, output }),
    }
}

enum End {
    Itself,
    Late,
}

/// Waits until the leader has ended, without collecting it.
fn attend(child: &Child, limit: Duration, cancel: &Cancel, mut read: impl FnMut()) -> Result<End> {
    let started = Instant::now();
    let mut asked: Option<(Instant, Result<End>)> = None;
    loop {
        read();
        if has_ended(child) {
            return asked.map_or(Ok(End::Itself), |(_, why)| why);
        }
        match &asked {
            None => {
                let why = match cancel.check() {
                    Err(e) => Some(Err(e)),
                    Ok(()) => (started.elapsed() >= limit).then_some(Ok(End::Late)),
                };
                if let Some(why) = why {
                    kill(child, Signal::TERM);
                    asked = Some((Instant::now(), why));
                }
            }
            Some((since, _)) if since.elapsed() >= GRACE => kill(child, Signal::KILL),
            Some(_) => {}
        }
        std::thread::sleep(TICK);
    }
}

fn pid(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

fn has_ended(child: &Child) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // An error means that there is nothing to wait for.
    pid(child).is_none_or(|pid| waitid(WaitId::Pid(pid), options).map_or(true, |s| s.is_some()))
}

/// Signals the whole group. Its leader was not collected yet, so the number is still its own.
fn kill(child: &Child, signal: Signal) {
    if let Some(pid) = pid(child) {
        // The group may have ended by itself.
        let _gone = kill_process_group(pid, signal);
    }
}

fn drain(reader: &mut io::PipeReader, output: &mut Output) {
    let mut buffer = [0; 8192];
    // At most what the pipe can hold at once, so that a program that never stops writing cannot keep us here.
    for _ in 0..128 {
        match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => output.add(buffer.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// How a status reads: "status 1", "signal 9".
pub(crate) fn status_text(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no status".to_owned(),
    }
}

/// Runs a program to its end, whatever happens to us meanwhile: one that must not be killed in the middle. It writes into
/// memory, so it is not hindered either by nobody reading.
pub(crate) fn run_whole(command: &mut Command) -> Result<Ended> {
    let failed = |what: &str, e: io::Error| Error::new(Code::System, what.to_owned()).because(e);
    let mut memory = || {
        let mut file = File::from(memfd_create("backstay output", MemfdFlags::CLOEXEC)?);
        let out = file.try_clone()?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let spawned = session::lead_new(command).spawn();
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let status = spawned?.wait()?;
        let mut output = Output::default();
        let mut bytes = Vec::new();
        file.seek(io::SeekFrom::Start(0))?;
        file.read_to_end(&mut bytes)?;
        output.add(&bytes);
        output.trim();
        Ok(Ended { status, late: false, output })
    };
    memory().map_err(|e: io::Error| failed("Cannot run the program", e))
}

/// Runs a tool of the system (`systemctl`, `docker`) with our own environment, which tells it where its service is.
/// `RuntimeUnavailable` when it is not there; how it ended is for the caller to judge.
pub(crate) fn tool(program: &str, args: &[&str], limit: Duration, cancel: &Cancel) -> Result<Ended> {
    let mut command = Command::new(program);
    command.args(args).env("LC_ALL", "C").env_remove("BACKSTAY_HOME");
    run(&mut command, limit, cancel).map_err(|e| {
        let cause = std::error::Error::source(&e).and_then(|s| s.downcast_ref::<io::Error>());
        if cause.is_some_and(|c| c.kind() == io::ErrorKind::NotFound) {
            Error::new(Code::RuntimeUnavailable, format!("`{program}` is not installed, or not in PATH"))
        } else if e.code() == Code::Cancelled {
            e
        } else {
            Error::new(Code::RuntimeUnavailable, format!("`{program}` cannot be run")).because(e)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(line: &str, limit: Duration) -> Result<Ended> {
        run(&mut clean(&CommandLine::Line(line.to_owned())), limit, &Cancel::new())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn the_end_of_the_output_is_kept_and_both_streams_are_one() {
        let ended = sh("echo one; echo two >&2; exit 3", LONG).unwrap();
        assert_eq!((ended.status.code(), ended.output.text().as_str()), (Some(3), "one\ntwo"));
        let long =
            sh("i=0; while [ $i -lt 30000 ]; do echo 12345678; i=$((i+1)); done; echo last", LONG).unwrap();
        let text = long.output.text();
        assert!(text.starts_with("[the beginning is left out]\n") && text.ends_with("\nlast"));
        assert!(text.len() <= OUTPUT_MAX + 40, "{}", text.len());
    }

    #[test]
    fn the_whole_group_goes_when_the_time_is_up_even_if_it_does_not_listen() {
        let alive = |number: &str| {
            let with = |p: &crate::proc::Seen| {
                let words = std::fs::read(format!("/proc/{}/cmdline", p.pid)).unwrap_or_default();
                words.split(|b| *b == 0).any(|w| w == number.as_bytes())
            };
            crate::proc::all().unwrap().iter().filter(|p| with(p)).count()
        };
        for (line, number, least) in [
            ("sleep 2070 & sleep 2070", "2070", 0),
            ("trap '' TERM; sleep 2071 & sleep 2071; sleep 2071", "2071", 2),
        ] {
            let started = Instant::now();
            let ended = sh(&format!("echo begun; {line}"), Duration::from_millis(300)).unwrap();
            assert!(ended.late);
            let took = started.elapsed();
            assert!(took >= Duration::from_secs(least) && took < Duration::from_secs(10), "{took:?}");
            assert_eq!(ended.output.text(), "begun");
            assert_eq!(alive(number), 0);
        }
    }

    #[test]
    fn what_a_program_leaves_behind_is_killed_and_not_waited_for() {
        let started = Instant::now();
        let ended = sh("sleep 72 & echo done", LONG).unwrap();
        assert_eq!(ended.output.text(), "done");
        let away = sh("setsid sleep 3 & echo $!", LONG).unwrap();
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        assert!(away.status.success());
    }

    #[test]
    fn a_whole_run_gives_both_streams_and_the_status() {
        let mut command = clean(&CommandLine::Line("echo one; echo two >&2; exit 3".into()));
        let ended = run_whole(&mut command).unwrap();
        assert_eq!((ended.status.code(), ended.output.text().as_str()), (Some(3), "one\ntwo"));
        assert!(run_whole(&mut Command::new("/no/such/program")).is_err());
    }

    #[test]
    fn cancelling_ends_it() {
        let cancel = Cancel::new();
        let theirs = cancel.clone();
        let stopper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            theirs.cancel();
        });
        let started = Instant::now();
        let ended = run(&mut clean(&CommandLine::Line("sleep 73".into())), LONG, &cancel);
        assert_eq!(ended.unwrap_err().code(), Code::Cancelled);
        assert!(started.elapsed() < Duration::from_secs(10));
        stopper.join().unwrap();
    }

    #[test]
    fn the_environment_holds_nothing_of_ours() {
        let ended = sh("env", LONG).unwrap();
        for line in ended.output.text().lines() {
            let name = line.split('=').next().unwrap();
            assert!(["PATH", "HOME", "LANG", "PWD", "SHLVL", "_", "OLDPWD"].contains(&name), "{line}");
        }
    }
}
