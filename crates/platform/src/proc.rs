//! Processes as `/proc` shows them.
//!
//! Invariants: a process is known by its number and its start time together; numbers are used again, start times of
//! the same number are not. A number is not given out again while a session or group of that number has members.
//! Zombies count as gone.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Its number.
    pub pid: i32,
    /// The session it belongs to.
    pub session: i32,
    /// When it started, in the kernel's ticks since boot.
    pub start: u64,
    /// Whether it has ended and only waits to be collected.
    pub zombie: bool,
}

/// One process; none when there is none of that number.
pub(crate) fn look(pid: i32) -> Option<Seen> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may hold anything, parentheses too.
    let after = stat.iter().rposition(|b| *b == b')')? + 1;
    let rest = std::str::from_utf8(stat.get(after..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X" | "x");
    let session = fields.nth(2)?.parse().ok()?;
    let start = fields.nth(15)?.parse().ok()?;
    Some(Seen { pid, session, start, zombie })
}

/// All processes that can be seen.
pub(crate) fn all() -> io::Result<Vec<Seen>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|n| n.parse().ok()).and_then(look));
    }
    Ok(found)
}

/// Whether a process was started with that variable in its environment. False where that cannot be seen.
pub(crate) fn has_variable(pid: i32, assignment: &str) -> bool {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environ.split(|b| *b == 0).any(|entry| entry == assignment.as_bytes())
}

/// Sends a signal to exactly this process. One that has ended meanwhile is no error.
pub(crate) fn signal(it: &Seen, signal: Signal) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(it.pid) else { return Ok(()) };
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other?,
    };
    // From here on the handle means one process. Is it the one that was seen?
    if look(it.pid).is_none_or(|now| now.start != it.start) {
        return Ok(());
    }
    match pidfd_send_signal(&handle, signal) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => Ok(other?),
    }
}

/// The kernel's id of this boot.
pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The space in which process numbers count.
pub(crate) fn space() -> String {
    fs::read_link("/proc/self/ns/pid").map(|p| p.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Time since boot.
pub(crate) fn uptime() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session;
    use std::process::Command;

    #[test]
    fn a_process_is_seen_with_what_tells_it_apart() {
        let me = i32::try_from(std::process::id()).unwrap();
        let seen = look(me).unwrap();
        // Where the leader of the session lives outside this process space, in a container say, its number is 0 here.
        assert!(seen.start > 0 && seen.session >= 0 && !seen.zombie);
        let mut child = session::lead_new(Command::new("sleep").arg("60")).spawn().unwrap();
        let leader = look(i32::try_from(child.id()).unwrap()).unwrap();
        assert_eq!(leader.session, leader.pid);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(all().unwrap().contains(&seen));
        assert!(!boot().is_empty() && !space().is_empty() && uptime() > Duration::from_secs(1));
    }

    #[test]
    fn a_number_that_was_used_again_is_not_signalled() {
        let mut child = Command::new("sleep").arg("60").env("TOKEN", "a b").spawn().unwrap();
        let it = look(i32::try_from(child.id()).unwrap()).unwrap();
        let other = Seen { start: it.start - 1, ..it.clone() };
        signal(&other, Signal::KILL).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(child.try_wait().unwrap(), None, "another process's signal does not reach it");
        signal(&it, Signal::KILL).unwrap();
        assert!(!child.wait().unwrap().success());
        signal(&it, Signal::KILL).unwrap();
    }
}
