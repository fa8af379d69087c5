//! Trees to back up: a nasty one with everything a file system can hold, and small ones from a seed.

mod nasty;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

pub use nasty::{Made, Nasty, nasty};

/// A stream of random numbers, the same for the same seed on every machine (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed; neighbouring seeds give unrelated streams.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0xA076_1D64_78BD_642F))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.bits().to_le_bytes());
        }
        out.truncate(len);
        out
    }

    /// Text that compresses as source code does, exactly so many bytes.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&str; 16] = [
            "function",
            "return",
            "if",
            "else",
            "class",
            "public",
            "$this->",
            "array(",
            "=>",
            "null",
            "echo",
            "{",
            "}",
            "// to be done later",
            "foreach",
            "\n    ",
        ];
        let mut out = Vec::with_capacity(len + 32);
        while out.len() < len {
            let n = self.bits();
            out.extend_from_slice(WORDS[usize::try_from(n % 16).unwrap()].as_bytes());
            if n.is_multiple_of(7) {
                write!(out, " value_{}", (n >> 32) % 5000).unwrap();
            }
            out.push(if n.is_multiple_of(11) { b'\n' } else { b' ' });
        }
        out.truncate(len);
        out
    }
}

/// A tree like a small web app: `files` files in some folders, text and random bytes, a few links; the same names,
/// contents and modes for the same seed. Gives back the paths of the files, relative to `dir`.
pub fn small(dir: &Path, seed: u64, files: usize) -> Vec<PathBuf> {
    let mut random = Random::new(seed);
    let mut made: Vec<PathBuf> = Vec::with_capacity(files);
    for i in 0..files {
        let folder = match random.below(5) {
            0 => PathBuf::new(),
            1 => PathBuf::from("app"),
            2 => PathBuf::from(format!("app/module-{}", random.below(4))),
            _ => PathBuf::from(format!("uploads/{}/{:02}", 2020 + random.below(3), 1 + random.below(12))),
        };
        fs::create_dir_all(dir.join(&folder)).unwrap();
        let upload = folder.starts_with("uploads");
        let path = folder.join(format!("file-{i}.{}", if upload { "jpg" } else { "php" }));
        let magnitude = 6 + random.below(11);
        let len = usize::try_from(random.below(1 << magnitude)).unwrap();
        let bytes = if upload { random.bytes(len) } else { random.text(len) };
        match made.last() {
            Some(earlier) if random.below(40) == 0 => {
                fs::hard_link(dir.join(earlier), dir.join(&path)).unwrap()
            }
            _ => fs::write(dir.join(&path), bytes).unwrap(),
        }
        made.push(path);
    }
    std::os::unix::fs::symlink("app", dir.join("current")).unwrap();
    made
}

/// Changes a tree as an hour of use would: edits, appends, new files, deletions, a renamed one; the same for the
/// same seed and the same tree. `files` as given by [`small`]; gives back the files that are there afterwards.
pub fn change(dir: &Path, seed: u64, files: &[PathBuf]) -> Vec<PathBuf> {
    let mut random = Random::new(seed ^ 0x00C0_FFEE);
    let mut left = files.to_vec();
    let some = (files.len() / 20).max(2);
    for i in 0..some.min(left.len()) {
        let at = usize::try_from(random.below(left.len() as u64)).unwrap();
        let path = dir.join(&left[at]);
        match i % 4 {
            0 => {
                let mut bytes = fs::read(&path).unwrap();
                let cut = usize::try_from(random.below(bytes.len() as u64 + 1)).unwrap();
                bytes.splice(cut..cut, format!("/* edit {seed} */").into_bytes());
                fs::write(&path, bytes).unwrap();
            }
            1 => {
                let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
                file.write_all(&random.text(500)).unwrap();
            }
            2 => {
                fs::remove_file(&path).unwrap();
                left.remove(at);
            }
            _ => {
                let to = left[at].with_extension(format!("moved{seed}"));
                fs::rename(&path, dir.join(&to)).unwrap();
                left[at] = to;
            }
        }
    }
    fs::create_dir_all(dir.join("uploads/new")).unwrap();
    for i in 0..some {
        let path = PathBuf::from(format!("uploads/new/{seed}-{i}.jpg"));
        let len = usize::try_from(1 + random.below(50_000)).unwrap();
        fs::write(dir.join(&path), random.bytes(len)).unwrap();
        left.push(path);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(dir: &Path, files: &[PathBuf]) -> Vec<Vec<u8>> {
        files.iter().map(|f| fs::read(dir.join(f)).unwrap()).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_tree_and_the_same_changes() {
        let (a, b, c) = (crate::temp_dir(), crate::temp_dir(), crate::temp_dir());
        let (fa, fb, fc) = (small(a.path(), 1, 200), small(b.path(), 1, 200), small(c.path(), 2, 200));
        assert_eq!((&fa, contents(a.path(), &fa)), (&fb, contents(b.path(), &fb)));
        assert_ne!(contents(a.path(), &fa), contents(c.path(), &fc));
        let (na, nb) = (change(a.path(), 9, &fa), change(b.path(), 9, &fb));
        assert_eq!(contents(a.path(), &na), contents(b.path(), &nb));
        assert_ne!(fa, na);
    }
}
