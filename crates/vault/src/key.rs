//! Key files: the master key, sealed by a password.
//!
//! Invariants: the cost parameters in a key file are bounded before they are used, so a hostile one costs at
//! most 256 MiB and a few seconds; the derived key is wiped; a vault never loses its last key.

use backstay_model::{Code, Error, Result, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use scrypt::Params;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::crypto::{Cipher, MasterKey, random};

/// How hard it is made to guess the password of a key: scrypt's N = 2^log_n, r = 8, p = 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    log_n: u8,
}

impl Cost {
    /// For passwords that people choose: restic's usual cost (N = 2^15, 32 MiB).
    pub const PEOPLE: Cost = Cost { log_n: 15 };
    /// For passwords of 256 random bits, which cannot be guessed at any cost: N = 2^10, some milliseconds.
    pub const RANDOM: Cost = Cost { log_n: 10 };
}

/// Most memory a key file may ask for.
const MEMORY_MAX: u64 = 256 << 20;
/// Most work (N * r * p) a key file may ask for: some seconds.
const WORK_MAX: u64 = 1 << 24;

/// The JSON of a key file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyFile {
    /// When the key was made.
    pub created: Timestamp,
    /// By whom.
    #[serde(default)]
    pub username: String,
    /// On which machine.
    #[serde(default)]
    pub hostname: String,
    kdf: String,
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
    salt: String,
    data: String,
}

impl KeyFile {
    /// Seals `master` under a password.
    pub fn seal(
        master: &MasterKey,
        password: &Secret,
        cost: Cost,
        created: Timestamp,
        (username, hostname): (String, String),
    ) -> Result<Self> {
        let mut salt = [0u8; 64];
        random(&mut salt)?;
        let mut file = KeyFile {
            created,
            username,
            hostname,
            kdf: "scrypt".into(),
            n: 1 << cost.log_n,
            r: 8,
            p: 1,
            salt: BASE64.encode(salt),
            data: String::new(),
        };
        let mut json = master.to_json()?;
        file.data = BASE64.encode(Cipher::new(&file.derive(password)?).sealed(&json)?);
        json.zeroize();
        Ok(file)
    }

    /// The master key, or none when the password is not this key's.
    pub fn open(&self, password: &Secret) -> Result<Option<MasterKey>> {
        let mut sealed = BASE64.decode(&self.data).map_err(|e| damaged().because(e))?;
        match Cipher::new(&self.derive(password)?).open(&mut sealed) {
            Some(json) => {
                let key = MasterKey::from_json(json);
                json.zeroize();
                key.map(Some)
            }
            None => Ok(None),
        }
    }

    fn derive(&self, password: &Secret) -> Result<MasterKey> {
        if self.kdf != "scrypt" {
            let message = format!("A key uses the function `{}`", self.kdf.escape_debug());
            return Err(Error::new(Code::VaultUnsupported, message));
        }
        let memory = self.n.saturating_mul(u64::from(self.r)).saturating_mul(128);
        let work = self.n.saturating_mul(u64::from(self.r)).saturating_mul(u64::from(self.p));
        if !self.n.is_power_of_two() || self.n < 2 || self.r == 0 || self.p == 0 {
            return Err(damaged());
        }
        if memory > MEMORY_MAX || work > WORK_MAX {
            let message = format!("A key asks for absurd work: N={} r={} p={}", self.n, self.r, self.p);
            return Err(Error::new(Code::LimitExceeded, message));
        }
        let salt = BASE64.decode(&self.salt).map_err(|e| damaged().because(e))?;
        let log_n = u8::try_from(self.n.ilog2()).map_err(|_never| damaged())?;
        let params = Params::new(log_n, self.r, self.p).map_err(|e| damaged().because(e))?;
        let mut out = [0u8; 64];
        scrypt::scrypt(password.reveal().as_bytes(), &salt, &params, &mut out)
            .map_err(|e| Error::new(Code::Internal, "Cannot derive a key").because(e))?;
        let key = MasterKey::from_bytes(&out);
        out.zeroize();
        Ok(key)
    }
}

fn damaged() -> Error {
    Error::new(Code::VaultDamaged, "A key file cannot be understood")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> KeyFile {
        let master = MasterKey::generate().unwrap();
        let who = ("user".into(), "host".into());
        KeyFile::seal(&master, &Secret::new("right"), Cost::RANDOM, Timestamp::UNIX_EPOCH, who).unwrap()
    }

    #[test]
    fn only_the_right_password_opens() {
        let file = sealed();
        assert!(file.open(&Secret::new("right")).unwrap().is_some());
        assert!(file.open(&Secret::new("wrong")).unwrap().is_none());
    }

    #[test]
    fn absurd_cost_parameters_are_refused_at_once() {
        for (n, r, p) in
            [(1 << 40, 8, 1), (1 << 15, 1 << 30, 1), (1 << 15, 8, 1 << 30), (u64::MAX, 8, 1), (0, 8, 1)]
        {
            let file = KeyFile { n, r, p, ..sealed() };
            assert!(file.open(&Secret::new("right")).is_err(), "{n} {r} {p}");
        }
    }
}
