//! SHA-256, two streams at a time.
//!
//! Everything that is stored is hashed twice: each piece of content (its id) and the pack it ends up in (the pack's
//! name). One stream cannot use more than half of what a processor's SHA unit can do, because every round waits for
//! the one before; two independent streams side by side can. So the open pack is hashed along with the next piece.
//!
//! Invariants: results are those of SHA-256, on every machine: where the processor lacks the instructions, the same
//! functions do one stream after the other with the `sha2` crate. Tests compare both with `sha2` at all lengths.

use sha2::block_api::compress256;

use crate::id::Id;

const BLOCK: usize = 64;
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// A SHA-256 under way, fed with whole blocks until its end.
#[derive(Clone)]
pub struct Running {
    state: [u32; 8],
    bytes: u64,
}

impl Default for Running {
    fn default() -> Self {
        Running { state: INITIAL, bytes: 0 }
    }
}

fn add(bytes: &mut u64, blocks: &[[u8; BLOCK]]) {
    *bytes += u64::try_from(blocks.len() * BLOCK).unwrap_or(0);
}

impl Running {
    /// Takes in whole blocks of 64 bytes.
    pub fn update(&mut self, blocks: &[[u8; BLOCK]]) {
        compress256(&mut self.state, blocks);
        add(&mut self.bytes, blocks);
    }

    /// Takes in the last bytes, and gives the digest.
    #[must_use]
    pub fn finish(mut self, rest: &[u8]) -> Id {
        let (blocks, tail) = rest.as_chunks::<BLOCK>();
        self.update(blocks);
        let bits = (self.bytes + u64::try_from(tail.len()).unwrap_or(0)) * 8;
        let mut padded = Vec::with_capacity(2 * BLOCK);
        padded.extend_from_slice(tail);
        padded.push(0x80);
        let end = if padded.len() <= BLOCK - 8 { BLOCK - 8 } else { 2 * BLOCK - 8 };
        padded.resize(end, 0);
        padded.extend_from_slice(&bits.to_be_bytes());
        compress256(&mut self.state, padded.as_chunks::<BLOCK>().0);
        let mut out = [0u8; 32];
        for (bytes, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        Id(out)
    }
}

/// The digest of `data`; beside it `side` takes in as many whole blocks of `waiting` as fit into the same time.
/// Gives the digest and how many bytes of `waiting` were taken.
#[must_use]
pub fn digest_beside(data: &[u8], side: &mut Running, waiting: &[u8]) -> (Id, usize) {
    let (blocks, _) = data.as_chunks::<BLOCK>();
    let (others, _) = waiting.as_chunks::<BLOCK>();
    let count = blocks.len().min(others.len());
    let mut main = Running::default();
    let (first, _) = blocks.split_at(count);
    let (second, _) = others.split_at(count);
    if !pair::compress(&mut main.state, first, &mut side.state, second) {
        compress256(&mut main.state, first);
        compress256(&mut side.state, second);
    }
    add(&mut main.bytes, first);
    add(&mut side.bytes, second);
    (main.finish(data.get(count * BLOCK..).unwrap_or_default()), count * BLOCK)
}

/// The digests of two texts.
#[must_use]
pub fn digest_two(first: &[u8], second: &[u8]) -> (Id, Id) {
    let mut side = Running::default();
    let (id, taken) = digest_beside(first, &mut side, second);
    (id, side.finish(second.get(taken..).unwrap_or_default()))
}

/// The instructions of x86-64.
///
/// `unsafe` because the functions are compiled for instructions that not every processor has; each call is behind a
/// check that this one has them. Loads are unaligned ones from arrays of the right size.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod pair {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_loadu_si128, _mm_set_epi64x,
        _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8,
        _mm_shuffle_epi32, _mm_storeu_si128,
    };

    use super::BLOCK;

    /// The round constants, four at a time.
    static K: [[u32; 4]; 16] = [
        [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
        [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
        [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
        [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
        [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
        [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
        [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
        [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
        [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
        [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
        [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
        [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
        [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
        [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
        [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
        [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
    ];

    /// Compresses blocks of two streams, as many of the one as of the other; `false` when this processor cannot.
    pub fn compress(
        a: &mut [u32; 8],
        first: &[[u8; BLOCK]],
        b: &mut [u32; 8],
        second: &[[u8; BLOCK]],
    ) -> bool {
        let able = is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("sse4.1")
            && is_x86_feature_detected!("ssse3");
        if able {
            // SAFETY: the instructions are there, as was just asked.
            unsafe { compress_two(a, first, b, second) };
        }
        able
    }

    /// One stream's state, as the instructions want it: words a, b, e, f and c, d, g, h.
    #[derive(Clone, Copy)]
    struct Lane {
        abef: __m128i,
        cdgh: __m128i,
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    unsafe fn load(state: &[u32; 8]) -> Lane {
        let at = state.as_ptr().cast::<__m128i>();
        // SAFETY: both halves lie within the eight words.
        let (low, high) = unsafe { (_mm_loadu_si128(at), _mm_loadu_si128(at.add(1))) };
        let low = _mm_shuffle_epi32(low, 0xB1);
        let high = _mm_shuffle_epi32(high, 0x1B);
        Lane { abef: _mm_alignr_epi8(low, high, 8), cdgh: _mm_blend_epi16(high, low, 0xF0) }
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    unsafe fn store(lane: Lane, state: &mut [u32; 8]) {
        let abef = _mm_shuffle_epi32(lane.abef, 0x1B);
        let cdgh = _mm_shuffle_epi32(lane.cdgh, 0xB1);
        let at = state.as_mut_ptr().cast::<__m128i>();
        // SAFETY: both halves lie within the eight words.
        unsafe {
            _mm_storeu_si128(at, _mm_blend_epi16(abef, cdgh, 0xF0));
            _mm_storeu_si128(at.add(1), _mm_alignr_epi8(cdgh, abef, 8));
        }
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    unsafe fn words(block: &[u8; BLOCK]) -> [__m128i; 4] {
        let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let at = block.as_ptr().cast::<__m128i>();
        // SAFETY: the four quarters lie within the block.
        let quarter = |n: usize| unsafe { _mm_shuffle_epi8(_mm_loadu_si128(at.add(n)), swap) };
        [quarter(0), quarter(1), quarter(2), quarter(3)]
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn rounds(lane: &mut Lane, words: &mut [__m128i; 4], k: __m128i, schedule: bool) {
        let [w0, w1, w2, w3] = *words;
        let sum = _mm_add_epi32(w0, k);
        lane.cdgh = _mm_sha256rnds2_epu32(lane.cdgh, lane.abef, sum);
        lane.abef = _mm_sha256rnds2_epu32(lane.abef, lane.cdgh, _mm_shuffle_epi32(sum, 0x0E));
        let next = if schedule {
            let partial = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
            _mm_sha256msg2_epu32(partial, w3)
        } else {
            w0
        };
        *words = [w1, w2, w3, next];
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    unsafe fn compress_two(
        a: &mut [u32; 8],
        first: &[[u8; BLOCK]],
        b: &mut [u32; 8],
        second: &[[u8; BLOCK]],
    ) {
        // SAFETY: the features of the callees are those of this function; slices are only read in whole blocks.
        unsafe {
            let (mut x, mut y) = (load(a), load(b));
            for (block_x, block_y) in first.iter().zip(second) {
                let (start_x, start_y) = (x, y);
                let (mut words_x, mut words_y) = (words(block_x), words(block_y));
                for (n, k) in K.iter().enumerate() {
                    let k = _mm_loadu_si128(k.as_ptr().cast());
                    rounds(&mut x, &mut words_x, k, n < 12);
                    rounds(&mut y, &mut words_y, k, n < 12);
                }
                x = Lane {
                    abef: _mm_add_epi32(x.abef, start_x.abef),
                    cdgh: _mm_add_epi32(x.cdgh, start_x.cdgh),
                };
                y = Lane {
                    abef: _mm_add_epi32(y.abef, start_y.abef),
                    cdgh: _mm_add_epi32(y.cdgh, start_y.cdgh),
                };
            }
            store(x, a);
            store(y, b);
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod pair {
    use super::BLOCK;

    /// Other processors do one stream after the other.
    pub fn compress(_: &mut [u32; 8], _: &[[u8; BLOCK]], _: &mut [u32; 8], _: &[[u8; BLOCK]]) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn both_streams_give_sha_256_at_every_length() {
        let mut data = vec![0u8; 700];
        crate::crypto::random(&mut data).unwrap();
        let expected = |bytes: &[u8]| Id(Sha256::digest(bytes).into());
        for first in (0..400).chain([511, 512, 513]) {
            for second in [0, 1, 55, 56, 63, 64, 65, 127, 128, 300, first] {
                let (a, b) = (&data[..first], &data[data.len() - second..]);
                assert_eq!(digest_two(a, b), (expected(a), expected(b)), "{first} {second}");
            }
        }
    }

    #[test]
    fn a_running_hash_fed_beside_others_is_that_of_its_whole() {
        let mut pack = vec![0u8; 100_000];
        crate::crypto::random(&mut pack).unwrap();
        let (mut side, mut at) = (Running::default(), 0);
        for length in [0, 10, 5000, 64, 33_333, 7, 20_000] {
            let (id, taken) = digest_beside(&pack[..length], &mut side, &pack[at..]);
            assert_eq!(id, Id::of(&pack[..length]));
            at += taken;
        }
        assert!(at > 50_000);
        assert_eq!(side.finish(&pack[at..]), Id::of(&pack));
    }
}
