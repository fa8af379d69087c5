//! Who works on a job, and whether they are still there.
//!
//! Invariants: a process is called dead only on proof: same boot and same process space and no such process (or
//! another one under its number), or the same machine booted anew. Everything else is unknown, and only the lease
//! decides then. Two containers share a boot but not process numbers; hence the process space is part of it.

use std::fmt;
use std::fs;
use std::str::FromStr;

/// A process on a machine, recognisable for ever: numbers of processes are reused, their start times are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Host name.
    pub host: String,
    /// Process number.
    pub pid: u32,
    /// When the process started, in the kernel's ticks since boot.
    pub start: u64,
    /// The kernel's id of this boot.
    pub boot: String,
    /// The space in which `pid` counts.
    pub space: String,
    /// The machine's own id.
    pub machine: String,
}

/// What is known about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Alive,
    /// It is gone.
    Dead,
    /// It cannot be seen from here.
    Unknown,
}

impl Owner {
    /// This process.
    #[must_use]
    pub fn current() -> Self {
        let pid = std::process::id();
        Owner {
            host: word(&rustix::system::uname().nodename().to_string_lossy()),
            pid,
            start: start_of(pid).unwrap_or(0),
            boot: read_word("/proc/sys/kernel/random/boot_id"),
            space: fs::read_link("/proc/self/ns/pid").map(|p| word(&p.to_string_lossy())).unwrap_or_default(),
            machine: read_word("/etc/machine-id"),
        }
    }

    /// Whether time since boot means the same to both.
    #[must_use]
    pub fn same_boot(&self, other: &Owner) -> bool {
        !self.boot.is_empty() && self.boot == other.boot
    }

    /// Whether the process `self` still runs, seen from the process `here`.
    #[must_use]
    pub fn life(&self, here: &Owner) -> Life {
        if self.same_boot(here) {
            if self.space != here.space || self.space.is_empty() {
                return Life::Unknown;
            }
            return match start_of(self.pid) {
                Some(start) if start == self.start => Life::Alive,
                _ => Life::Dead,
            };
        }
        let same_machine = !self.machine.is_empty()
            && self.machine == here.machine
            && self.host == here.host
            && !self.boot.is_empty();
        if same_machine && !here.boot.is_empty() { Life::Dead } else { Life::Unknown }
    }
}

/// Field 22 of `/proc/PID/stat`; zombies count as gone.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name is in parentheses and may hold anything, parentheses too.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn read_word(path: &str) -> String {
    word(&fs::read_to_string(path).unwrap_or_default())
}

/// One word without blanks or `=`.
fn word(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_whitespace() || c == '=' { '_' } else { c }).collect()
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Owner { host, pid, start, boot, space, machine } = self;
        write!(f, "host={host} pid={pid} start={start} boot={boot} space={space} machine={machine}")
    }
}

/// A text that is not an owner.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAnOwner;

impl FromStr for Owner {
    type Err = NotAnOwner;
    fn from_str(s: &str) -> Result<Self, NotAnOwner> {
        let get = |key: &str| {
            s.split(' ').find_map(|part| part.strip_prefix(key)?.strip_prefix('=')).ok_or(NotAnOwner)
        };
        Ok(Owner {
            host: get("host")?.to_owned(),
            pid: get("pid")?.parse().map_err(|_not_a_number| NotAnOwner)?,
            start: get("start")?.parse().map_err(|_not_a_number| NotAnOwner)?,
            boot: get("boot")?.to_owned(),
            space: get("space")?.to_owned(),
            machine: get("machine")?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_its_text_round_trips() {
        let me = Owner::current();
        assert_eq!(me.life(&me), Life::Alive);
        assert_eq!(me.to_string().parse(), Ok(me.clone()));
        assert!("pid=1".parse::<Owner>().is_err());
        assert!(me.start > 0 && !me.boot.is_empty());
    }

    #[test]
    fn a_process_that_ended_is_dead_and_so_is_one_whose_number_was_reused() {
        let me = Owner::current();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let it = Owner { pid: child.id(), start: start_of(child.id()).unwrap(), ..me.clone() };
        assert_eq!(it.life(&me), Life::Alive);
        assert_eq!(Owner { start: it.start + 1, ..it.clone() }.life(&me), Life::Dead);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(it.life(&me), Life::Dead);
    }

    #[test]
    fn what_cannot_be_seen_is_unknown_and_a_new_boot_ends_all() {
        let me = Owner { machine: "m".into(), ..Owner::current() };
        assert_eq!(Owner { space: "pid:[1]".into(), pid: 1, ..me.clone() }.life(&me), Life::Unknown);
        assert_eq!(Owner { boot: "other".into(), ..me.clone() }.life(&me), Life::Dead);
        assert_eq!(
            Owner { boot: "other".into(), machine: "n".into(), ..me.clone() }.life(&me),
            Life::Unknown
        );
        assert_eq!(Owner { boot: "other".into(), host: "n".into(), ..me.clone() }.life(&me), Life::Unknown);
    }
}
