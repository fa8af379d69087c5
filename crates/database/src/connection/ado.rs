//! The form of ADO.NET: `key=value;key='value'`.
//!
//! Keys are case-insensitive and may hold `=` as `==`. Values are trimmed unless quoted with `'` or `"`; the quote is
//! doubled inside. The last of several equal keys counts. The last `;` may be missing.

use backstay_model::Result;

use super::bad;

/// The pairs in their order; keys in lower case with single blanks.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(|c: char| c == ';' || c.is_whitespace());
        if rest.is_empty() {
            return Ok(pairs);
        }
        let (key, after) = key(rest)?;
        let (value, after) = value(after)?;
        pairs.push((key, value));
        rest = after;
    }
}

/// A key and what stands behind its `=`.
fn key(text: &str) -> Result<(String, &str)> {
    let mut key = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '=' if chars.peek().is_some_and(|(_, next)| *next == '=') => {
                chars.next();
                key.push('=');
            }
            '=' => {
                let words: Vec<&str> = key.split_whitespace().collect();
                if words.is_empty() {
                    return Err(bad("a value has no key"));
                }
                let after = text.get(at + 1..).unwrap_or_default();
                return Ok((words.join(" ").to_lowercase(), after));
            }
            ';' => break,
            c if c.is_control() && !c.is_whitespace() => return Err(bad("a key holds a control character")),
            c => key.push(c),
        }
    }
    Err(bad("a part of it is not of the form `key=value`"))
}

/// A value and what stands behind its `;`.
fn value(text: &str) -> Result<(String, &str)> {
    let text = text.trim_start();
    match text.chars().next() {
        Some(quote @ ('"' | '\'')) => quoted(text.get(1..).unwrap_or_default(), quote),
        _ => {
            let (value, after) = text.split_once(';').unwrap_or((text, ""));
            Ok((value.trim_end().to_owned(), after))
        }
    }
}

fn quoted(text: &str, quote: char) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c != quote {
            value.push(c);
        } else if chars.peek().is_some_and(|(_, next)| *next == quote) {
            chars.next();
            value.push(quote);
        } else {
            let after = text.get(at + 1..).unwrap_or_default().trim_start();
            return match after.strip_prefix(';') {
                Some(after) => Ok((value, after)),
                None if after.is_empty() => Ok((value, after)),
                None => Err(bad("something stands behind a quoted value")),
            };
        }
    }
    Err(bad("a quoted value has no end"))
}
