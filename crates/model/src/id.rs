//! Names and ids.
//!
//! Invariants: a value of these types is valid; the only ways in are the checked constructors.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not a valid id or name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseIdError(pub String);

impl From<ParseIdError> for crate::Error {
    fn from(e: ParseIdError) -> Self {
        crate::Error::new(crate::Code::InvalidValue, e.0)
    }
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From 16 random bytes.
            #[must_use]
            pub fn from_bytes(bytes: [u8; 16]) -> Self { Self(bytes) }

            /// The first eight hexadecimal digits: enough for people in nearly all cases.
            #[must_use]
            pub fn short(&self) -> String { self.to_string().chars().take(8).collect() }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{self}") }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(s: &str) -> Result<Self, ParseIdError> {
                let bad = || ParseIdError(format!("`{s}` is not {}: 32 hexadecimal digits are expected", $what));
                if s.len() != 32 || !s.bytes().all(|b| b.is_ascii_hexdigit()) { return Err(bad()); }
                let number = u128::from_str_radix(s, 16).map_err(|_not_hex| bad())?;
                Ok(Self(number.to_be_bytes()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.collect_str(self) }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(
    /// The id of a recovery point. It is the point's own: the vault's snapshot id changes when a point is pinned.
    PointId,
    "a point id"
);
hex_id!(
    /// The id of a job.
    JobId,
    "a job id"
);

/// The name of an app: 1 to 60 characters of a-z, 0-9 and `-`, starting and ending with a letter or digit
/// (what a host name part may be, so that every app can be addressed by name).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppName(String);

impl AppName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A valid name made from any text (a folder's name, say): lower case, other characters become `-`.
    #[must_use]
    pub fn suggest(text: &str) -> Self {
        let mut name = String::new();
        for c in text.chars().flat_map(char::to_lowercase) {
            if c.is_ascii_alphanumeric() {
                name.push(c);
            } else if !name.is_empty() && !name.ends_with('-') {
                name.push('-');
            }
            if name.len() == 60 {
                break;
            }
        }
        let name = name.trim_end_matches('-');
        AppName(if name.is_empty() { "app".to_owned() } else { name.to_owned() })
    }
}

impl FromStr for AppName {
    type Err = ParseIdError;
    fn from_str(s: &str) -> Result<Self, ParseIdError> {
        let good = (1..=60).contains(&s.len())
            && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !s.starts_with('-')
            && !s.ends_with('-');
        if good {
            Ok(AppName(s.to_owned()))
        } else {
            Err(ParseIdError(format!(
                "`{s}` is not an app name: 1 to 60 characters of a-z, 0-9 and `-`, not at the ends"
            )))
        }
    }
}

impl TryFrom<String> for AppName {
    type Error = ParseIdError;
    fn try_from(s: String) -> Result<Self, ParseIdError> {
        s.parse()
    }
}

impl From<AppName> for String {
    fn from(n: AppName) -> String {
        n.0
    }
}

impl fmt::Display for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that must not be shown: it prints `***` and has no serialisation.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The secret itself, for the one place that needs it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        use zeroize::Zeroize;
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_suggested_from_anything() {
        for (from, to) in [
            ("My Blog", "my-blog"),
            ("...", "app"),
            ("wwwroot", "wwwroot"),
            ("ünïcode", "n-code"),
            ("-a-", "a"),
        ] {
            assert_eq!(AppName::suggest(from).as_str(), to);
            assert!(AppName::suggest(from).as_str().parse::<AppName>().is_ok());
        }
        assert!(AppName::suggest(&"x y".repeat(99)).as_str().parse::<AppName>().is_ok());
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "..", &"a".repeat(61)] {
            assert!(bad.parse::<AppName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_round_trip_and_secrets_stay_hidden() {
        let id = PointId::from_bytes([7; 16]);
        assert_eq!(id.to_string().parse::<PointId>(), Ok(id));
        assert!("+0000000000000000000000000000000".parse::<PointId>().is_err());
        assert_eq!(format!("{:?} {}", Secret::new("s3cret"), Secret::new("s3cret")), "*** ***");
    }
}
