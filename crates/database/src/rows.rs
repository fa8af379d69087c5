//! The rows of a table as they pass by: how many, and a hash that does not depend on their order.
//!
//! Invariants: a row's hash is the first half of its SHA-256; the hashes are added up. A table has the same hash however
//! its rows were cut on their way here. What is not wanted is not hashed.

use std::fmt::Write as _;

use ring::digest::{Context, Digest, SHA256, digest};

use crate::adapter::Hashes;

/// A table with more bytes of rows than that gets no hash where only what is affordable is asked for.
const AFFORDABLE: u64 = 64 << 20;

/// The rows of one table.
pub(crate) struct Rows {
    hashes: Hashes,
    number: u64,
    bytes: u64,
    sum: u128,
    /// The row that has begun.
    begun: Option<Context>,
}

impl Rows {
    /// None yet.
    pub(crate) fn new(hashes: Hashes) -> Self {
        Rows { hashes, number: 0, bytes: 0, sum: 0, begun: None }
    }

    /// Whether a hash is wanted of what was seen so far.
    pub(crate) fn wanted(&self) -> bool {
        match self.hashes {
            Hashes::None => false,
            Hashes::Affordable => self.bytes <= AFFORDABLE,
            Hashes::All => true,
        }
    }

    /// A part of a row.
    pub(crate) fn part(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if self.wanted() {
            self.begun.get_or_insert_with(|| Context::new(&SHA256)).update(bytes);
        }
    }

    /// The row that has begun is over.
    pub(crate) fn end(&mut self) {
        self.number += 1;
        if let Some(row) = self.begun.take() {
            self.add(&row.finish());
        }
    }

    /// A whole row.
    pub(crate) fn whole(&mut self, row: &[u8]) {
        self.number += 1;
        self.bytes += row.len() as u64;
        if self.wanted() {
            self.add(&digest(&SHA256, row));
        }
    }

    fn add(&mut self, digest: &Digest) {
        let half = digest.as_ref().first_chunk::<16>().copied().unwrap_or_default();
        self.sum = self.sum.wrapping_add(u128::from_be_bytes(half));
    }

    /// How many there were.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Their hash in hexadecimal digits, where it was wanted to the end.
    pub(crate) fn hash(&self) -> Option<String> {
        self.wanted().then(|| hex(&self.sum.to_be_bytes()))
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut all, byte| {
        write!(all, "{byte:02x}").ok();
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_order_nor_cuts_matter() {
        let (mut one, mut other) = (Rows::new(Hashes::All), Rows::new(Hashes::All));
        for row in ["a\tb", "", "ccc"] {
            one.whole(row.as_bytes());
        }
        for row in [vec!["c", "cc"], vec!["a\t", "", "b"], vec![""]] {
            row.iter().for_each(|part| other.part(part.as_bytes()));
            other.end();
        }
        assert_eq!((one.number(), one.hash()), (3, other.hash()));
        other.whole(b"");
        assert_ne!(one.hash(), other.hash());
    }

    #[test]
    fn what_is_not_affordable_has_no_hash() {
        let mut rows = Rows::new(Hashes::Affordable);
        rows.whole(&vec![b'x'; usize::try_from(AFFORDABLE).unwrap()]);
        assert!(rows.hash().is_some());
        rows.whole(b"x");
        assert_eq!((rows.number(), rows.hash()), (2, None));
        assert_eq!(Rows::new(Hashes::None).hash(), None);
    }
}
