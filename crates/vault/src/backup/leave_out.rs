//! What the rules of a filter keep out of a backup.
//!
//! Invariants: an entry that a rule names is as if it were not there: it is not opened, not told as a problem (an
//! unreadable folder is no failure when it is not wanted), and not taken over from the past. So the tree and the file
//! index are those of a home without it, and right again when the rules change. How many were left out and which
//! rules named nothing is told once, at the end.

use std::ffi::OsStr;

use backstay_tree::Listing;
use backstay_tree::filter::{At, Filter, Hits, Step};

/// What a filter left out of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filtered {
    /// Entries that were left out; a folder counts as one, with all below it.
    pub left_out: u64,
    /// Numbers of the rules that named nothing.
    pub unmatched: Vec<usize>,
}

/// A filter at work.
#[derive(Debug)]
pub(crate) struct LeaveOut {
    filter: Filter,
    hits: Hits,
}

impl LeaveOut {
    pub fn new(filter: Filter) -> Self {
        LeaveOut { hits: Hits::new(&filter), filter }
    }

    /// Where a folder stands: the home, or one below another that is not left out.
    pub fn at(&self, above: Option<(&At, &OsStr)>) -> At {
        match above.map(|(at, name)| self.filter.enter(at, name, None)) {
            None => self.filter.home(),
            Some(Step::Inside(at)) => at,
            // Nobody asks about what lies below something that is left out.
            Some(Step::LeftOut(_)) => At::default(),
        }
    }

    /// Takes what the rules name out of what a folder holds.
    pub fn thin(&self, at: &At, listing: &mut Listing) {
        if at.is_idle() {
            return;
        }
        let stays = |name: &OsStr| matches!(self.filter.enter(at, name, Some(&self.hits)), Step::Inside(_));
        listing.entries.retain(|e| stays(&e.name));
        listing.left_out.retain(|e| stays(&e.name));
        listing.problems.retain(|(name, _)| stays(name));
    }

    pub fn result(&self) -> Filtered {
        Filtered { left_out: self.hits.left_out(), unmatched: self.hits.unmatched() }
    }
}
