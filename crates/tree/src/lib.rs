//! File trees.
//!
//! [`fs`] is the seam: every system call on file systems goes through [`fs::FileSystem`], so tests can count,
//! fail, kill and lose them.

pub mod fs;
