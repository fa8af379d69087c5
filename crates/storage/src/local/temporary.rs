//! Names of files in the making, and when such a file belongs to nobody.
//!
//! A name tells the boot, the process-id namespace and the process (with its start time, since ids are used again)
//! that made it. Of this boot and namespace, a file is abandoned when that process is gone. Of others (before a
//! restart, another container, another machine on a shared folder) nothing can be known, so such a file is abandoned
//! when it is a week old: writing one takes seconds.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::TEMPORARY;

const WEEK_SECS: i64 = 7 * 24 * 3600;

pub(super) fn is(name: &str) -> bool {
    name.starts_with(TEMPORARY)
}

/// A name that no process has used before.
pub(super) fn new_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static OWN: OnceLock<String> = OnceLock::new();
    let own = OWN.get_or_init(|| {
        let id = std::process::id();
        format!("{}-{id}-{}", boot_and_namespace(), started(id).unwrap_or_default())
    });
    format!("{TEMPORARY}{own}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Whether nobody will finish the file of this name, last written at `mtime_secs`.
pub(super) fn is_abandoned(name: &str, mtime_secs: i64) -> bool {
    let parts: Vec<&str> = name.strip_prefix(TEMPORARY).unwrap_or_default().split('-').collect();
    if let [boot, namespace, process, start, _number] = parts.as_slice()
        && format!("{boot}-{namespace}") == boot_and_namespace()
        && let Ok(process) = process.parse::<u32>()
    {
        return match std::fs::exists("/proc/self/stat") {
            Ok(true) => started(process).as_deref() != Some(*start),
            _ => false,
        };
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|d| i64::try_from(d.as_secs()).ok());
    now.is_some_and(|now| now.saturating_sub(mtime_secs) > WEEK_SECS)
}

/// What tells whether a process id means here what it meant to the maker of a name. Random where it is not known,
/// so that nothing is taken for known.
fn boot_and_namespace() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot: String = boot.chars().filter(char::is_ascii_hexdigit).take(12).collect();
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let namespace: String = namespace.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
        if boot.is_empty() || namespace.is_empty() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            return format!("unknown{}-{}", now.as_nanos(), std::process::id());
        }
        format!("{boot}-{namespace}")
    })
}

/// When a process was started, in clock ticks since boot; none when there is no such process.
fn started(process: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything; the rest is 3rd and following.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_process_keeps_its_files_however_old() {
        let name = new_name();
        assert!(is(&name) && crate::check_name(&name).is_err());
        assert_ne!(name, new_name());
        assert!(!is_abandoned(&name, 0), "{name}");
    }

    #[test]
    fn a_dead_process_and_a_reused_id_are_told_apart_from_a_living_one() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = child.id();
        let name = format!("{TEMPORARY}{}-{id}-{}-0", boot_and_namespace(), started(id).unwrap());
        let reused = format!("{TEMPORARY}{}-{id}-1-0", boot_and_namespace());
        let now = i64::MAX / 2;
        assert!(!is_abandoned(&name, now));
        assert!(is_abandoned(&reused, now));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_abandoned(&name, now));
    }

    #[test]
    fn files_of_unknown_makers_are_given_a_week() {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
        for name in [".tmp-0123456789ab-1-1-1-1", ".tmp-", ".tmp-x"] {
            assert!(!is_abandoned(name, now), "{name}");
            assert!(!is_abandoned(name, now - WEEK_SECS + 60), "{name}");
            assert!(!is_abandoned(name, now + WEEK_SECS), "{name}");
            assert!(is_abandoned(name, now - WEEK_SECS - 60), "{name}");
        }
    }
}
