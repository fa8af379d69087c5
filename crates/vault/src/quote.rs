//! The two quotings of restic's trees: names as Go's `strconv.Quote` writes them (without the quotes), and all
//! texts as Go's `encoding/json` does.

use unicode_general_category::{GeneralCategory, get_general_category};

/// Go's `unicode.IsPrint`: letters, marks, numbers, punctuation, symbols and the ASCII space.
fn is_print(c: char) -> bool {
    use GeneralCategory as G;
    match c {
        ' '..='~' => true,
        '\0'..='\u{9f}' => false,
        _ => !matches!(
            get_general_category(c),
            G::Control
                | G::Format
                | G::Surrogate
                | G::PrivateUse
                | G::Unassigned
                | G::LineSeparator
                | G::ParagraphSeparator
                | G::SpaceSeparator
        ),
    }
}

/// Appends a name, Go-quoted and then JSON-escaped.
pub fn name(bytes: &[u8], out: &mut Vec<u8>) {
    // Nearly all names need neither.
    if bytes.iter().all(|b| matches!(b, b' '..=b'~') && !matches!(b, b'"' | b'\\' | b'<' | b'>' | b'&')) {
        out.extend_from_slice(bytes);
        return;
    }
    let mut quoted = String::with_capacity(bytes.len() + 8);
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            go_escape(c, &mut quoted);
        }
        for byte in chunk.invalid() {
            quoted.push_str(&format!("\\x{byte:02x}"));
        }
    }
    json(&quoted, out);
}

fn go_escape(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        c if is_print(c) => out.push(c),
        c if u32::from(c) < 0x20 || c == '\x7f' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
        c if u32::from(c) < 0x10000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
    }
}

/// Appends a text, JSON-escaped as Go does (with `<`, `>`, `&` and the two line separators escaped).
pub fn json(text: &str, out: &mut Vec<u8>) {
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\x08' => out.extend_from_slice(b"\\b"),
            '\x0c' => out.extend_from_slice(b"\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\x1f' => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Reads what Go's `strconv.Unquote` reads; none when it is not a quoted text.
#[must_use]
pub fn unquote(text: &str) -> Option<Vec<u8>> {
    if !text.contains('\\') {
        return (!text.contains(['"', '\n'])).then(|| text.as_bytes().to_vec());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '"' || c == '\n' {
            return None;
        }
        if c != '\\' {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let simple = match chars.next()? {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' => b'\\',
            '"' => b'"',
            'x' => u8::try_from(digits(&mut chars, 2, 16, 0)?).ok()?,
            first @ '0'..='3' => u8::try_from(digits(&mut chars, 2, 8, first.to_digit(8)?)?).ok()?,
            long @ ('u' | 'U') => {
                let value = digits(&mut chars, if long == 'u' { 4 } else { 8 }, 16, 0)?;
                out.extend_from_slice(char::from_u32(value)?.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            _ => return None,
        };
        out.push(simple);
    }
    Some(out)
}

fn digits(chars: &mut std::str::Chars<'_>, count: usize, radix: u32, start: u32) -> Option<u32> {
    (0..count)
        .try_fold(start, |value, _| value.checked_mul(radix)?.checked_add(chars.next()?.to_digit(radix)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quoted(bytes: &[u8]) -> String {
        let mut out = b"\"".to_vec();
        name(bytes, &mut out);
        out.push(b'"');
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn it_is_gos_quoting() {
        for (from, to) in [
            (&b"plain name.txt"[..], "plain name.txt"),
            (b"tab\there", r"tab\there"),
            (b"\x01\x7f\x1b", r"\x01\x7f\x1b"),
            (b"\xff\xfe", r"\xff\xfe"),
            ("é日本😀".as_bytes(), "é日本😀"),
            ("\u{a0}\u{200b}\u{2028}\u{e000}\u{10ffff}".as_bytes(), r"\u00a0\u200b\u2028\ue000\U0010ffff"),
            ("e\u{301}".as_bytes(), "e\u{301}"),
            (b"q\"b\\", r#"q\"b\\"#),
        ] {
            assert_eq!(quoted(from), to);
        }
    }

    #[test]
    fn what_is_not_quoted_text_is_refused() {
        for bad in ["a\"b", "\\", "\\q", "\\x1", "\\u12", "\\ud800", "\\400", "\\x4\u{ff11}"] {
            assert_eq!(unquote(bad), None, "{bad}");
        }
        assert_eq!(unquote(r"\101").unwrap(), b"A");
    }

    proptest! {
        #[test]
        fn every_name_survives(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(unquote(&quoted(&bytes)).unwrap(), bytes);
        }

        #[test]
        fn unquote_takes_anything_without_panic(text in ".*") {
            prop_assert!(unquote(&text).is_none_or(|bytes| bytes.len() <= text.len()));
        }
    }
}
