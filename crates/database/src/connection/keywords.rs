//! The form of libpq: `host=… dbname=… password='it''s'`, parted by blanks; `\` escapes inside and outside of quotes.

use backstay_model::Result;

use super::bad;

/// Keys that only this form has, or that stand in it alone.
const KEYS: [&str; 6] = ["host", "hostaddr", "dbname", "user", "service", "port"];

/// Whether a text has this form: no `;` outside of quotes, and a first key of libpq's in lower case.
pub(super) fn looks_like(text: &str) -> bool {
    let Some((key, _)) = text.split_once('=') else { return false };
    KEYS.contains(&key.trim())
        && pairs(text).is_ok_and(|pairs| {
            pairs.iter().all(|(key, value)| {
                key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
                    && (key == "password" || !value.contains(';'))
            })
        })
}

/// The pairs in their order.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(pairs);
        }
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_whitespace()) {
            key.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if key.is_empty() || chars.next() != Some('=') {
            return Err(bad("a part of it is not of the form `key=value`"));
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.next() {
                Some('\\') => value.push(chars.next().ok_or_else(|| bad("it ends with a `\\`"))?),
                Some('\'') if quoted => break,
                Some(c) if !quoted && c.is_whitespace() => break,
                Some(c) => value.push(c),
                None if quoted => return Err(bad("a quoted value has no end")),
                None => break,
            }
        }
        pairs.push((key, value));
    }
}
