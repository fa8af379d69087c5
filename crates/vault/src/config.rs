//! The vault's `config` object.
//!
//! Invariants: written once, when the vault is made, and never changed; no field of our own lies in it. The
//! polynomial is there for restic's chunker (and must be irreducible, or restic refuses the vault); our own
//! cutting does not use it.

use backstay_model::{Code, Error, Result};
use serde::{Deserialize, Serialize};

use crate::crypto::random;
use crate::id::Id;

/// What the `config` object says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Repository format version: 1 (no compression) or 2.
    pub version: u32,
    /// The vault's identity, random.
    pub id: Id,
    /// restic's chunker polynomial, hexadecimal.
    pub chunker_polynomial: String,
}

impl Config {
    /// For a new vault, version 2.
    pub fn generate() -> Result<Self> {
        let mut id = [0u8; 32];
        random(&mut id)?;
        Ok(Config { version: 2, id: Id(id), chunker_polynomial: format!("{:x}", random_polynomial()?) })
    }

    /// Refuses versions that this program does not know: they are unsupported, not damaged.
    pub fn check(&self) -> Result<()> {
        if !(1..=2).contains(&self.version) {
            let message =
                format!("The vault has format version {}; this program knows 1 and 2", self.version);
            return Err(Error::new(Code::VaultUnsupported, message));
        }
        Ok(())
    }
}

/// The degree restic asks of its polynomial.
const DEGREE: u32 = 53;

fn random_polynomial() -> Result<u64> {
    // One in about 53 is irreducible; the bound only keeps a broken random source from looping for ever.
    for _ in 0..100_000 {
        let mut bytes = [0u8; 8];
        random(&mut bytes)?;
        let candidate = (u64::from_le_bytes(bytes) & ((1 << DEGREE) - 1)) | (1 << DEGREE) | 1;
        if irreducible(candidate) {
            return Ok(candidate);
        }
    }
    Err(Error::new(Code::System, "The random source gives no usable numbers"))
}

fn degree(p: u64) -> i64 {
    63 - i64::from(p.leading_zeros())
}

fn remainder(mut a: u128, modulus: u64) -> u64 {
    let degree_modulus = degree(modulus);
    loop {
        let degree_a = 127 - i64::from(a.leading_zeros());
        if a == 0 || degree_a < degree_modulus {
            return u64::try_from(a).unwrap_or(u64::MAX);
        }
        a ^= u128::from(modulus) << (degree_a - degree_modulus);
    }
}

fn square(p: u64, modulus: u64) -> u64 {
    let spread = (0..64).filter(|bit| p >> bit & 1 == 1).fold(0u128, |sum, bit| sum | (1 << (2 * bit)));
    remainder(spread, modulus)
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, remainder(u128::from(a), b));
    }
    a
}

/// Ben-Or's test: no common factor with x^(2^i) + x for i up to half the degree.
fn irreducible(p: u64) -> bool {
    let mut power = 2; // the polynomial x
    for _ in 0..degree(p) / 2 {
        power = square(power, p);
        if gcd(p, power ^ 2) != 1 {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomials_known_from_restic_are_irreducible_and_products_are_not() {
        assert!(irreducible(0x3DA3358B4DC173));
        assert!(irreducible(0b111));
        assert!(!irreducible(0b101)); // (x + 1)^2
        assert!(!irreducible(0x3DA3358B4DC172));
    }

    #[test]
    fn new_configs_have_the_degree_that_restic_wants() {
        let config = Config::generate().unwrap();
        let polynomial = u64::from_str_radix(&config.chunker_polynomial, 16).unwrap();
        assert_eq!(degree(polynomial), 53);
        assert!(irreducible(polynomial));
        assert!(Config { version: 3, ..config }.check().is_err());
    }
}
