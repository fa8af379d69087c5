//! What is mounted where, as the kernel tells this process.
//!
//! Invariant: the answer is about the thread's own mount namespace at the moment of the call; mounts of other
//! namespaces are not seen (moving a folder takes them along, deleting one detaches them, neither touches their
//! content). Nothing is locked or changed.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use backstay_model::{Code, Error, Result};

/// Where the kernel tells it (a thread may have another namespace than the process began with).
const MOUNTINFO: &str = "/proc/thread-self/mountinfo";

/// Places strictly below `path` where something is mounted, sorted. `path` is absolute and without links.
pub fn below(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(all()?.into_iter().filter(|at| at != path && at.starts_with(path)).collect())
}

/// All places where something is mounted, sorted.
pub fn all() -> Result<Vec<PathBuf>> {
    let text = std::fs::read(MOUNTINFO).map_err(|e: io::Error| {
        Error::new(Code::System, format!("Cannot read {MOUNTINFO}, which tells what is mounted")).because(e)
    })?;
    Ok(parse(&text))
}

/// The mount points of a table in the kernel's form, sorted, each once.
fn parse(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split(|b| *b == b'\n');
    let points = lines.filter_map(|line| line.split(|b| *b == b' ').nth(4)).map(unescape);
    let mut points: Vec<_> = points.map(PathBuf::from).collect();
    points.sort_unstable();
    points.dedup();
    points
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        rest = match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                tail
            }
            _ => {
                bytes.push(*first);
                after
            }
        };
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_understood() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            30 22 0:5 / /srv/a\\040b\\134\\011\\012c rw - tmpfs tmpfs rw\n\
            31 22 0:5 / /srv/\\303\\244 rw master:1 - tmpfs tmpfs rw\n\
            32 22 0:6 / /srv rw - tmpfs tmpfs rw\n33 22 0:6 / /srv rw - tmpfs tmpfs rw\nbroken\n";
        let points = parse(table);
        let expected = ["/", "/srv", "/srv/a b\\\t\nc", "/srv/\u{e4}"];
        assert_eq!(points, expected.map(PathBuf::from));
    }

    #[test]
    fn only_what_lies_below_is_told() {
        let all = all().unwrap();
        assert!(all.contains(&PathBuf::from("/")), "{all:?}");
        assert!(below(Path::new("/proc/self/nothing")).unwrap().is_empty());
        assert!(!below(Path::new("/")).unwrap().contains(&PathBuf::from("/")));
    }
}
