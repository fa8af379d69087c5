//! Who this process is, so that a lock it leaves behind can be told from one that is held.
//!
//! A process is named by its boot, its PID namespace, its PID and its start time: together they are never used
//! twice, so "that process is gone" is a fact and not a guess.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A process, on one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Host name.
    pub hostname: String,
    /// Process number.
    pub pid: u32,
    /// The machine's identity (`/etc/machine-id`), empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub machine_id: String,
    /// Identity of the machine's running boot.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// The PID namespace (containers have their own).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pid_namespace: String,
    /// When the process began, in ticks since boot.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub process_start: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default()
}

/// Field 22 of `/proc/PID/stat`, counted after the command's closing bracket.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = stat.rsplit_once(')')?;
    after.split_ascii_whitespace().nth(19)?.parse().ok()
}

impl Process {
    /// This process.
    #[must_use]
    pub fn current() -> Self {
        let pid = std::process::id();
        let namespace = fs::read_link("/proc/self/ns/pid").map(|p| p.display().to_string());
        Process {
            hostname: read("/proc/sys/kernel/hostname"),
            pid,
            machine_id: read("/etc/machine-id"),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            pid_namespace: namespace.unwrap_or_default(),
            process_start: start_of(pid).unwrap_or(0),
        }
    }

    /// Whether that process certainly is no more: it was on this machine, and either the machine has been
    /// restarted since or no process with its number and start time is there. What cannot be known is `false`.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let here = Process::current();
        if self.hostname != here.hostname || self.boot_id.is_empty() || here.boot_id.is_empty() {
            return false;
        }
        if self.boot_id != here.boot_id {
            return !self.machine_id.is_empty() && self.machine_id == here.machine_id;
        }
        self.pid_namespace == here.pid_namespace
            && self.process_start != 0
            && start_of(self.pid) != Some(self.process_start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_that_certainly_ended_is_gone() {
        let here = Process::current();
        assert!(here.process_start > 0 && !here.boot_id.is_empty());
        assert!(!here.is_gone());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let other = Process { pid: child.id(), process_start: start_of(child.id()).unwrap(), ..here.clone() };
        assert!(!other.is_gone());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(other.is_gone());
        assert!(Process { process_start: here.process_start + 1, ..here.clone() }.is_gone());
        assert!(!Process { hostname: "elsewhere".into(), ..other.clone() }.is_gone());
        assert!(!Process { pid_namespace: "pid:[1]".into(), ..other.clone() }.is_gone());
        assert!(!Process { boot_id: String::new(), ..other.clone() }.is_gone());
        let rebooted = Process { boot_id: "earlier".into(), machine_id: "m".into(), ..here };
        assert!(!rebooted.is_gone());
    }
}
