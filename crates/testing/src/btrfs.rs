//! A Btrfs file system of a test's own, in a file.
//!
//! Invariant: it is unmounted, and its loop device given back by that, when the value is dropped, also by a test that fails.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A mounted file system.
#[derive(Debug)]
pub struct Btrfs {
    at: PathBuf,
}

impl Btrfs {
    /// A new one of so many MiB (110 at least), whose file is `IMAGE` and which is mounted at `at`. None, with the reason
    /// printed, where it cannot be made here; with `BACKSTAY_NEED_BTRFS` set that is a failure.
    #[must_use]
    pub fn mount(image: &Path, at: &Path, mib: u64) -> Option<Self> {
        match try_mount(image, at, mib) {
            Ok(()) => Some(Btrfs { at: at.to_owned() }),
            Err(why) => {
                println!("left out: no Btrfs can be mounted here ({why})");
                assert!(std::env::var_os("BACKSTAY_NEED_BTRFS").is_none(), "Btrfs is needed: {why}");
                None
            }
        }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Makes a subvolume at a path below.
    pub fn subvolume(&self, name: &str) {
        run("btrfs", ["subvolume".as_ref(), "create".as_ref(), self.at.join(name).as_os_str()]).unwrap();
    }

    /// Makes a read-only snapshot, as a user would.
    pub fn snapshot(&self, of: &str, name: &str) {
        let (of, name) = (self.at.join(of), self.at.join(name));
        let words = ["subvolume", "snapshot", "-r"].map(OsStr::new);
        run("btrfs", words.into_iter().chain([of.as_os_str(), name.as_os_str()])).unwrap();
    }

    /// The paths of all subvolumes, sorted.
    #[must_use]
    pub fn subvolumes(&self) -> Vec<String> {
        let said = run("btrfs", ["subvolume".as_ref(), "list".as_ref(), self.at.as_os_str()]).unwrap();
        let path = |line: &str| line.split_once(" path ").map(|(_, path)| path.to_owned());
        let mut paths: Vec<String> = said.lines().filter_map(path).collect();
        paths.sort();
        paths
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        let begin = Instant::now();
        while let Err(why) = run("umount", [self.at.as_os_str()]) {
            if begin.elapsed() > Duration::from_secs(10) {
                // Nobody sees it any more, and it goes with the last who uses it.
                println!("{why}");
                run("umount", ["--lazy".as_ref(), self.at.as_os_str()]).unwrap_or_default();
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn try_mount(image: &Path, at: &Path, mib: u64) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("only root can mount".to_owned());
    }
    let file = std::fs::File::create(image).map_err(|e| e.to_string())?;
    file.set_len(mib << 20).map_err(|e| e.to_string())?;
    std::fs::create_dir_all(at).map_err(|e| e.to_string())?;
    run("mkfs.btrfs", ["-q".as_ref(), image.as_os_str()])?;
    // The loop device goes when it is unmounted.
    run("mount", ["-o".as_ref(), "loop".as_ref(), image.as_os_str(), at.as_os_str()]).map(drop)
}

fn run<'a>(program: &str, words: impl IntoIterator<Item = &'a OsStr>) -> Result<String, String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let done = Command::new(program).args(words).env("PATH", format!("{path}:/usr/sbin:/sbin")).output();
    let done = done.map_err(|e| format!("{program}: {e}"))?;
    match done.status.success() {
        true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&done.stderr).trim())),
    }
}
