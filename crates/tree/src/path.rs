//! Names as text that can be printed anywhere and read back.
//!
//! Invariant: [`unescape`] of [`escape`] is the same bytes; the text has no control characters, so a name cannot
//! forge lines of a log or move a terminal's cursor.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A name or path as text: bytes that are not UTF-8 and control characters as `\xNN`, a backslash doubled.
#[must_use]
pub fn escape(name: &OsStr) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if steers(c) => {
                    let mut bytes = [0; 4];
                    push_bytes(&mut text, c.encode_utf8(&mut bytes).as_bytes());
                }
                c => text.push(c),
            }
        }
        push_bytes(&mut text, chunk.invalid());
    }
    text
}

/// Control characters, and those that change the direction or the line of what follows them.
fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn push_bytes(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        text.push_str("\\x");
        text.extend([byte >> 4, byte & 15].into_iter().filter_map(|d| char::from_digit(d.into(), 16)));
    }
}

/// The name that [`escape`] printed; none when the text has a backslash that `escape` would not write.
#[must_use]
pub fn unescape(text: &str) -> Option<OsString> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = match (first, after) {
            (b'\\', [b'\\', tail @ ..]) => {
                bytes.push(b'\\');
                tail
            }
            (b'\\', [b'x', high, low, tail @ ..]) => {
                bytes.push(hex(*high)? << 4 | hex(*low)?);
                tail
            }
            (b'\\', _) => return None,
            (other, tail) => {
                bytes.push(*other);
                tail
            }
        };
    }
    Some(OsString::from_vec(bytes))
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_as_expected() {
        for (bytes, text) in [
            (&b"plain/\xc3\xa4.txt"[..], "plain/\u{e4}.txt"),
            (b"a\nb\\c", "a\\x0ab\\\\c"),
            (b"\xff\xc3", "\\xff\\xc3"),
            ("\u{202e}cod.exe".as_bytes(), "\\xe2\\x80\\xaecod.exe"),
            (b"\x1b[2J\x7f", "\\x1b[2J\\x7f"),
            ("\u{85}".as_bytes(), "\\xc2\\x85"),
            (b"", ""),
        ] {
            assert_eq!(escape(OsStr::from_bytes(bytes)), text);
            assert_eq!(unescape(text).unwrap().as_bytes(), bytes);
        }
        for bad in ["\\", "a\\n", "\\x1", "\\xg0", "\\x0A", "\\x"] {
            assert_eq!(unescape(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_pair_of_bytes_comes_back() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                let name = OsString::from_vec(vec![a, b, b'\\', a]);
                let text = escape(&name);
                assert!(!text.chars().any(char::is_control));
                assert_eq!(unescape(&text).unwrap(), name);
            }
        }
    }
}
