//! Where a file has data and where holes.
//!
//! Invariant: everything outside the ranges reads as zeros at the time of the call. Nothing is locked; a file
//! that is written meanwhile may have more data than is told, as with any read.

use std::io;
use std::os::fd::BorrowedFd;

use crate::fs::{FileSystem, Stat};

/// Whether a file may have holes: it has fewer blocks than its length needs.
#[must_use]
pub fn may_have_holes(stat: &Stat) -> bool {
    stat.blocks.saturating_mul(512) < stat.size
}

/// The ranges `[start, end)` of data within the first `size` bytes, in order, at most `limit` (at least 1) of
/// them: in a file with more, the last one takes the rest, holes and all.
pub fn extents(
    fs: &dyn FileSystem,
    file: BorrowedFd<'_>,
    size: u64,
    limit: usize,
) -> io::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let Some((start, end)) = fs.next_data(file, at)? else { break };
        let end = if found.len() + 1 >= limit { size } else { end.min(size) };
        if start >= end {
            break;
        }
        found.push((start, end));
        at = end;
    }
    Ok(found)
}
