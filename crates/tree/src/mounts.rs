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

/// A mount, as far as a backup asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it begins.
    pub at: PathBuf,
    /// The folder of its file system that is seen there.
    pub root: PathBuf,
    /// The device of the file system: equal for all mounts of one, also where its parts (subvolumes) have devices of their own.
    pub device: (u32, u32),
    /// The kind of file system (`ext4`).
    pub file_system: String,
    /// What is mounted: a device, a data set.
    pub source: OsString,
}

/// The mount that holds a path, which is absolute and without links.
pub fn holding(path: &Path) -> Result<Mount> {
    let table = read()?;
    let mounts = table.split(|b| *b == b'\n').filter_map(parse_mount);
    // Of several at one place the last one is seen.
    let found = mounts.filter(|m| path.starts_with(&m.at)).max_by_key(|m| m.at.components().count());
    found.ok_or_else(|| Error::new(Code::System, format!("The mount of {} is not known", path.display())))
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let (root, at) = (fields.next()?, fields.next()?);
    let mut rest = fields.skip_while(|f| *f != b"-").skip(1);
    let (file_system, source) = (rest.next()?, rest.next()?);
    Some(Mount {
        at: PathBuf::from(unescape(at)),
        root: PathBuf::from(unescape(root)),
        device: (major.parse().ok()?, minor.parse().ok()?),
        file_system: String::from_utf8_lossy(file_system).into_owned(),
        source: unescape(source),
    })
}

/// Places strictly below `path` where something is mounted, sorted. `path` is absolute and without links.
pub fn below(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(all()?.into_iter().filter(|at| at != path && at.starts_with(path)).collect())
}

/// All places where something is mounted, sorted.
pub fn all() -> Result<Vec<PathBuf>> {
    Ok(parse(&read()?))
}

fn read() -> Result<Vec<u8>> {
    std::fs::read(MOUNTINFO).map_err(|e: io::Error| {
        Error::new(Code::System, format!("Cannot read {MOUNTINFO}, which tells what is mounted")).because(e)
    })
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
    fn a_line_of_the_table_tells_device_root_and_source() {
        let line =
            b"41 22 0:39 /@data/a\\040b /srv rw,noatime shared:7 master:1 - btrfs /dev/sda2 rw,subvol=/@data";
        let mount = parse_mount(line).unwrap();
        let expected = Mount {
            at: "/srv".into(),
            root: "/@data/a b".into(),
            device: (0, 39),
            file_system: "btrfs".into(),
            source: "/dev/sda2".into(),
        };
        assert_eq!(mount, expected);
        let zfs = parse_mount(b"5 1 0:50 / /tank/a rw - zfs tank/my\\040data rw").unwrap();
        assert_eq!(zfs.source, "tank/my data");
        assert_eq!(parse_mount(b"5 1 0:50 / /tank"), None);
        assert_eq!(holding(Path::new("/proc/self")).unwrap().file_system, "proc");
    }

    #[test]
    fn only_what_lies_below_is_told() {
        let all = all().unwrap();
        assert!(all.contains(&PathBuf::from("/")), "{all:?}");
        assert!(below(Path::new("/proc/self/nothing")).unwrap().is_empty());
        assert!(!below(Path::new("/")).unwrap().contains(&PathBuf::from("/")));
    }
}
