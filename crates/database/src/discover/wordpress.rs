//! `wp-config.php` of WordPress: `define( 'DB_NAME', '…' );` and its like.
//!
//! Only constants that are plain strings are read. PHP itself is not run, so what a function gives, what is put together, and
//! what is defined twice in different ways is told.

use std::collections::BTreeMap;

use backstay_model::Secret;

use super::Found;
use super::cursor::{Cursor, is_word, push_char};
use super::parts::Parts;
use crate::endpoint::Kind;

const NAME: &str = "wordpress";
const WANTED: [&str; 5] = ["DB_NAME", "DB_USER", "DB_PASSWORD", "DB_HOST", "DB_CHARSET"];

/// A value that stands there, or why it is not known.
type Known = Result<String, &'static str>;

pub(super) fn look(content: &[u8], path: &str, found: &mut Found) {
    let mut constants = BTreeMap::new();
    let mut prefix = None;
    read(content, &mut constants, &mut prefix);
    if !constants.contains_key("DB_NAME") && !constants.contains_key("DB_HOST") {
        return;
    }
    let mut get = |name: &str| match constants.remove(name) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(why)) => Err(format!("`{name}` {why}")),
    };
    let parts = (|| {
        let database = get("DB_NAME")?.filter(|name| !name.is_empty()).ok_or("it names no database")?;
        if matches!(database.as_str(), "database_name_here" | "votre_nom_de_bdd") {
            return Err("it is not set up yet".to_owned());
        }
        let mut parts = Parts {
            database: Some(database),
            user: get("DB_USER")?,
            password: get("DB_PASSWORD")?.filter(|p| !p.is_empty()).map(Secret::new),
            ..Parts::default()
        };
        host(&get("DB_HOST")?.unwrap_or_else(|| "localhost".to_owned()), &mut parts)?;
        if let Ok(Some(charset)) = get("DB_CHARSET")
            && !charset.is_empty()
        {
            parts.options.push(("charset", charset));
        }
        Ok(parts)
    })();
    match parts {
        Ok(mut parts) => {
            let mut notes = Vec::new();
            if parts.socket.is_none() && parts.port.is_none() && parts.host.as_deref() == Some("localhost") {
                notes.push("PHP reaches `localhost` through a socket; here it is port 3306".to_owned());
            }
            if let Some(Ok(prefix)) = prefix.filter(|p| p.as_ref().is_ok_and(|p| is_prefix(p))) {
                notes.push(format!("Its tables begin with `{prefix}`"));
            }
            parts.note = Some(notes.join(". ")).filter(|note| !note.is_empty());
            parts.put(NAME, Kind::MySql, path, found);
        }
        Err(why) => found.unread(NAME, path, why),
    }
}

/// What WordPress takes as one, so that a note repeats nothing else.
fn is_prefix(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// `host`, `host:port`, `host:/socket`, `:/socket`, `[address]:port`, and `p:` before any of them.
fn host(text: &str, parts: &mut Parts) -> Result<(), String> {
    let text = text.trim();
    let text = text.strip_prefix("p:").unwrap_or(text);
    if let Some((_, socket)) = text.split_once(":/") {
        parts.socket = Some(format!("/{socket}"));
        return Ok(());
    }
    if text.starts_with('/') {
        parts.socket = Some(text.to_owned());
        return Ok(());
    }
    let (name, port) = match (text.strip_prefix('['), text.rsplit_once(':')) {
        (Some(rest), _) => rest.split_once(']').ok_or("its host has a `[` without `]`")?,
        (None, Some((name, _))) if name.contains(':') => (text, ""),
        (None, Some((name, port))) => (name, port),
        (None, None) => (text, ""),
    };
    let port = port.trim_start_matches(':');
    if !port.is_empty() {
        let port = port.parse::<u16>().ok().filter(|port| *port > 0);
        parts.port = Some(port.ok_or("its port is no number from 1 to 65535")?);
    }
    parts.host = Some(if name.is_empty() { "localhost" } else { name }.to_owned());
    Ok(())
}

/// Walks over the code; comments, texts and everything outside of `<?php` are passed over.
fn read(content: &[u8], constants: &mut BTreeMap<&'static str, Known>, prefix: &mut Option<Known>) {
    let mut cursor = Cursor::new(content);
    cursor.skip_past(b"<?");
    cursor.eat(b"php");
    while let Some(byte) = cursor.peek() {
        if comment(&mut cursor) {
            continue;
        }
        match byte {
            b'?' if cursor.eat(b"?>") => cursor.skip_past(b"<?"),
            b'\'' | b'"' => drop(text(&mut cursor)),
            b'$' => {
                cursor.skip(1);
                if cursor.while_(is_word) == b"table_prefix" {
                    blank(&mut cursor);
                    if cursor.peek() == Some(b'=') {
                        cursor.skip(1);
                        *prefix = Some(expression(&mut cursor, b';'));
                    }
                }
            }
            byte if is_word(byte) => {
                if cursor.while_(is_word).eq_ignore_ascii_case(b"define") {
                    definition(&mut cursor, constants);
                }
            }
            _ => cursor.skip(1),
        }
    }
}

fn definition(cursor: &mut Cursor<'_>, constants: &mut BTreeMap<&'static str, Known>) {
    blank(cursor);
    if !cursor.eat(b"(") {
        return;
    }
    blank(cursor);
    let Some(Ok(name)) = text(cursor) else { return };
    let Some(name) = WANTED.into_iter().find(|wanted| *wanted == name) else { return };
    blank(cursor);
    if !cursor.eat(b",") {
        return;
    }
    let value = expression(cursor, b')');
    match constants.get(name) {
        // The first counts, unless which one is first depends on something.
        Some(before) if *before != value => {
            constants.insert(name, Err("is defined more than once"));
        }
        Some(_) => {}
        None => {
            constants.insert(name, value);
        }
    }
}

/// A plain text and then the end.
fn expression(cursor: &mut Cursor<'_>, end: u8) -> Known {
    blank(cursor);
    let value = text(cursor);
    blank(cursor);
    match value {
        Some(Err(why)) => Err(why),
        Some(Ok(value)) if cursor.peek() == Some(end) => Ok(value),
        _ if cursor.rest().get(..6).is_some_and(|r| r.eq_ignore_ascii_case(b"getenv")) => {
            Err("comes from the environment")
        }
        _ => Err("is worked out by PHP"),
    }
}

/// Blanks and comments.
fn blank(cursor: &mut Cursor<'_>) {
    loop {
        cursor.while_(|b| b.is_ascii_whitespace());
        if !comment(cursor) {
            return;
        }
    }
}

fn comment(cursor: &mut Cursor<'_>) -> bool {
    if cursor.eat(b"/*") {
        cursor.skip_past(b"*/");
        return true;
    }
    // `#[` is an attribute.
    if cursor.eat(b"//") || (!cursor.rest().starts_with(b"#[") && cursor.eat(b"#")) {
        // A comment of one line ends before the end of the code.
        while let Some(byte) = cursor.peek() {
            if byte == b'\n' || cursor.rest().starts_with(b"?>") {
                break;
            }
            cursor.skip(1);
        }
        return true;
    }
    false
}

/// A text in quotes; none where there is none.
fn text(cursor: &mut Cursor<'_>) -> Option<Known> {
    let quote = cursor.peek().filter(|b| matches!(b, b'\'' | b'"'))?;
    cursor.skip(1);
    let mut bytes = Vec::new();
    let mut why = None;
    loop {
        match cursor.next() {
            None => return Some(Err("has no end")),
            Some(b) if b == quote => break,
            Some(b'\\') if quote == b'\'' => match cursor.peek() {
                Some(c @ (b'\'' | b'\\')) => {
                    cursor.skip(1);
                    bytes.push(c);
                }
                _ => bytes.push(b'\\'),
            },
            Some(b'\\') => escape(cursor, &mut bytes),
            Some(b'$') if quote == b'"' && cursor.peek().is_some_and(|b| is_word(b) || b == b'{') => {
                why = Some("holds a variable of PHP");
            }
            Some(b'{') if quote == b'"' && cursor.peek() == Some(b'$') => {
                why = Some("holds a variable of PHP")
            }
            Some(b) => bytes.push(b),
        }
    }
    Some(match (why, String::from_utf8(bytes)) {
        (Some(why), _) => Err(why),
        (None, Ok(text)) => Ok(text),
        (None, Err(_)) => Err("is not UTF-8"),
    })
}

/// What stands behind a `\` in double quotes.
fn escape(cursor: &mut Cursor<'_>, bytes: &mut Vec<u8>) {
    let digits = |cursor: &mut Cursor<'_>, most: usize, radix: u32| {
        let mut code = 0_u32;
        for _ in 0..most {
            let Some(digit) = cursor.peek().and_then(|b| char::from(b).to_digit(radix)) else { break };
            code = code.saturating_mul(radix).saturating_add(digit);
            cursor.skip(1);
        }
        code
    };
    let low = |code: u32| u8::try_from(code & 0xff).unwrap_or_default();
    match cursor.peek() {
        Some(b'0'..=b'7') => bytes.push(low(digits(cursor, 3, 8))),
        Some(b'x') if cursor.rest().get(1).is_some_and(u8::is_ascii_hexdigit) => {
            cursor.skip(1);
            bytes.push(low(digits(cursor, 2, 16)));
        }
        Some(b'u') if cursor.rest().get(1) == Some(&b'{') => {
            cursor.skip(2);
            let code = digits(cursor, 8, 16);
            cursor.eat(b"}");
            push_char(bytes, code);
        }
        Some(c) => {
            let plain = match c {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'v' => 0x0b,
                b'e' => 0x1b,
                b'f' => 0x0c,
                b'\\' | b'$' | b'"' => c,
                _ => return bytes.push(b'\\'),
            };
            cursor.skip(1);
            bytes.push(plain);
        }
        None => bytes.push(b'\\'),
    }
}
