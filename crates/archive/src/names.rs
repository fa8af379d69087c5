//! Which names of entries are accepted.
//!
//! Invariant: an accepted path is relative and of plain components, so it stays beneath any root; in archives that no
//! manifest vouches for it also means the same to programs of other systems.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::flaw::{Finding, Findings, Flaw};
use crate::zip::{FLAG_UTF8, MADE_BY_UNIX};

/// Longest component that Linux takes.
const COMPONENT_MAX: usize = 255;
/// Most levels of folders, and in archives that no manifest vouches for.
const DEPTH_MAX: usize = 8192;
const DEPTH_MAX_FOREIGN: usize = 256;

/// The path of an entry, without the `/` that ends a folder's name; or why it is not accepted.
pub(crate) fn path_of(name: &[u8], flags: u16, made_by: u8, vouched: bool) -> Result<Vec<u8>, &'static str> {
    if flags & FLAG_UTF8 != 0 && std::str::from_utf8(name).is_err() {
        return Err("its name is said to be UTF-8 and is not");
    }
    let mut name = name.to_vec();
    if !vouched {
        if name.contains(&b'\\') {
            if made_by == MADE_BY_UNIX {
                return Err("its name has a backslash, which other programs take for a folder's end");
            }
            name.iter_mut().filter(|b| **b == b'\\').for_each(|b| *b = b'/');
        }
        if let [letter, b':', ..] = name.as_slice()
            && letter.is_ascii_alphabetic()
        {
            return Err("its name begins with a drive letter");
        }
    }
    let path = name.strip_suffix(b"/").unwrap_or(&name).to_vec();
    check(&path)?;
    if !vouched && path.split(|b| *b == b'/').nth(DEPTH_MAX_FOREIGN).is_some() {
        return Err("it lies in too many folders");
    }
    Ok(path)
}

/// Whether a path is relative and of plain components.
pub(crate) fn check(path: &[u8]) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("it has no name");
    }
    if path.contains(&0) {
        return Err("its name has a zero byte");
    }
    if path.starts_with(b"/") {
        return Err("its name is an absolute path");
    }
    let mut depth = 0;
    for component in path.split(|b| *b == b'/') {
        depth += 1;
        match component {
            b"" => return Err("its name has an empty component"),
            b"." => return Err("its name has a component `.`"),
            b".." => return Err("its name leads out of its folder (`..`)"),
            c if c.len() > COMPONENT_MAX => return Err("a component of its name is longer than 255 bytes"),
            _ => {}
        }
    }
    if depth > DEPTH_MAX { Err("it lies in too many folders") } else { Ok(()) }
}

/// What is known of a path when all are looked at together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    Folder,
    Other,
}

/// Looks at all paths together: duplicates, entries below something that is no folder, names that differ by case only.
pub(crate) fn together<'n>(paths: impl Iterator<Item = (&'n [u8], Sort)>, findings: &mut Findings) {
    let mut all: Vec<(&[u8], Sort)> = paths.collect();
    // With `/` before all other bytes, what is in a folder stands directly behind it.
    let order = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    all.sort_by(|(a, _), (b, _)| a.iter().map(order).cmp(b.iter().map(order)));
    let mut last: Option<&[u8]> = None;
    let mut above: Option<&[u8]> = None;
    let mut folded: HashMap<String, &[u8]> = HashMap::with_capacity(all.len());
    for (path, sort) in all {
        if last.replace(path) == Some(path) {
            findings.push(Finding::of_entry(path, Flaw::Duplicate, "there is more than one of that name"));
            continue;
        }
        let below =
            above.and_then(|above| path.strip_prefix(above)).is_some_and(|rest| rest.starts_with(b"/"));
        if below {
            let detail = "it lies below an entry that is no folder";
            findings.push(Finding::of_entry(path, Flaw::UnsafeName, detail));
        } else if sort == Sort::Other {
            above = Some(path);
        }
        match folded.entry(String::from_utf8_lossy(path).to_lowercase()) {
            Entry::Occupied(other) => {
                let other = String::from_utf8_lossy(other.get()).escape_debug().to_string();
                let detail = format!("its name differs from {other} only by the case of letters");
                findings.push(Finding::of_entry(path, Flaw::CaseCollision, detail));
            }
            Entry::Vacant(free) => {
                free.insert(path);
            }
        }
    }
}
