//! Where content is cut into pieces: FastCDC (gear hash), so that an insertion moves few cuts.
//!
//! Invariants: cuts depend on content, sizes and the vault's secret seed only, never on how the content is read;
//! the seed is derived from the master key, so piece sizes tell an observer nothing about known files.

use crate::crypto::MasterKey;

/// Sizes of the pieces, in bytes; all even.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// No piece but the last is smaller.
    pub min: usize,
    /// What the sizes gather around.
    pub average: usize,
    /// No piece is larger.
    pub max: usize,
}

impl Sizes {
    /// For files.
    pub const FILES: Sizes = Sizes { min: 128 << 10, average: 512 << 10, max: 4 << 20 };

    /// For a stream (a database dump) of about so many bytes: smaller pieces, because small changes are spread over
    /// it, but at most about 65,536 of them, because their list is rewritten with every change.
    #[must_use]
    pub fn for_stream(expected_bytes: u64) -> Sizes {
        let wanted = usize::try_from(expected_bytes / 65_536).unwrap_or(usize::MAX);
        let average = wanted.clamp(16 << 10, 2 << 20).next_power_of_two();
        Sizes { min: average / 4, average, max: (average * 8).min(Self::FILES.max) }
    }
}

/// Cuts content into pieces.
#[derive(Clone)]
pub struct Chunker {
    sizes: Sizes,
    masks: (u64, u64),
    gear: Vec<u64>,
    gear_shifted: Vec<u64>,
}

impl Chunker {
    /// For a vault with that master key.
    #[must_use]
    pub fn new(key: &MasterKey, sizes: Sizes) -> Self {
        use fastcdc::v2020;
        let seed = key.derive("backstay 2026-11 gear seed");
        let (gear, gear_shifted) = v2020::get_gear_with_seed(seed);
        let masks = v2020::select_masks(sizes.average, v2020::Normalization::Level1);
        Chunker { sizes, masks, gear: gear.into_owned(), gear_shifted: gear_shifted.into_owned() }
    }

    /// The sizes it cuts to.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The length of the first piece of `data`, which must hold the largest piece or all that is left.
    #[must_use]
    pub fn cut(&self, data: &[u8]) -> usize {
        if data.len() <= self.sizes.min {
            return data.len();
        }
        let window = data.get(..self.sizes.max).unwrap_or(data);
        let (_, length) = fastcdc::v2020::cut_gear(
            window,
            self.sizes.min,
            self.sizes.average,
            self.sizes.max,
            self.masks.0,
            self.masks.1,
            self.masks.0 << 1,
            self.masks.1 << 1,
            &self.gear,
            &self.gear_shifted,
        );
        length.clamp(1, window.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(chunker: &Chunker, mut data: &[u8]) -> Vec<usize> {
        let mut out = Vec::new();
        while !data.is_empty() {
            let cut = chunker.cut(data);
            out.push(cut);
            data = &data[cut..];
        }
        out
    }

    #[test]
    fn sizes_hold_and_an_insertion_moves_few_cuts() {
        let key = MasterKey::generate().unwrap();
        let chunker = Chunker::new(&key, Sizes::FILES);
        let mut data = vec![0u8; 40 << 20];
        crate::crypto::random(&mut data).unwrap();
        let before = pieces(&chunker, &data);
        let (last, all_but_last) = before.split_last().unwrap();
        assert!(all_but_last.iter().all(|p| (Sizes::FILES.min..=Sizes::FILES.max).contains(p)));
        assert!(*last <= Sizes::FILES.max && before.iter().sum::<usize>() == data.len());
        data.splice(1_000_000..1_000_000, [1, 2, 3]);
        let after = pieces(&chunker, &data);
        let same = before.iter().rev().zip(after.iter().rev()).take_while(|(a, b)| a == b).count();
        assert!(same + 8 > before.len(), "{same} of {}", before.len());
    }

    #[test]
    fn another_key_cuts_elsewhere() {
        let mut data = vec![0u8; 8 << 20];
        crate::crypto::random(&mut data).unwrap();
        let cuts = |_| pieces(&Chunker::new(&MasterKey::generate().unwrap(), Sizes::FILES), &data);
        assert_ne!(cuts(1), cuts(2));
    }

    #[test]
    fn streams_have_a_bounded_number_of_pieces() {
        assert_eq!(Sizes::for_stream(0).average, 16 << 10);
        assert_eq!(Sizes::for_stream(3 << 30).average, 64 << 10);
        assert_eq!(Sizes::for_stream(100 << 30).average, 2 << 20);
        let largest = Sizes::for_stream(u64::MAX);
        assert_eq!((largest.average, largest.max), (2 << 20, 4 << 20));
    }
}
