//! `settings.py` of Django: `DATABASES = {'default': {'ENGINE': …}}`, as far as it is literal.

use backstay_model::Secret;

use super::cursor::{Cursor, is_word, push_char};
use super::parts::Parts;
use super::variables::kind;
use super::{Found, beneath};
use crate::endpoint::Kind;

/// How deep lists and dictionaries are followed.
const DEPTH: u32 = 16;
/// Where PostgreSQL has its socket on most systems.
const SOCKET: &str = "/var/run/postgresql";

/// A value of Python.
#[derive(Debug)]
enum Value {
    Text(String),
    /// A path beneath the folder of the project.
    Path(String),
    Number(u64),
    Nothing,
    Dictionary(Vec<(String, Value)>),
    /// Something that would have to be run.
    Unknown,
}

pub(super) fn look(text: &str, path: &str, found: &mut Found) {
    let mut cursor = Cursor::new(text.as_bytes());
    while !cursor.rest().is_empty() {
        let mut line = Cursor::new(cursor.rest());
        if line.eat(b"DATABASES") {
            line.while_(|b| b == b' ' || b == b'\t');
            // With a type in between, perhaps.
            if line.eat(b":") {
                line.while_(|b| b != b'=' && b != b'\n');
            }
            if line.eat(b"=") && !line.rest().starts_with(b"=") {
                databases(value(&mut line, DEPTH), path, found);
                if line.rest().len() < cursor.rest().len() {
                    cursor = line;
                }
                continue;
            }
        }
        cursor.line();
    }
}

fn databases(value: Value, path: &str, found: &mut Found) {
    let Value::Dictionary(aliases) = value else {
        return found.unread("DATABASES", path, "it is worked out by Python");
    };
    for (alias, value) in aliases {
        let name = format!("django_{alias}");
        match value {
            Value::Dictionary(settings) => match parts(settings, path) {
                Ok(Some((kind, parts))) => parts.put(&name, kind, path, found),
                Ok(None) => {}
                Err(why) => found.unread(&name, path, why),
            },
            _ => found.unread(&name, path, "it is worked out by Python"),
        }
    }
}

fn parts(settings: Vec<(String, Value)>, path: &str) -> Result<Option<(Kind, Parts)>, String> {
    let mut texts: std::collections::BTreeMap<&'static str, String> = std::collections::BTreeMap::new();
    let mut in_project = None;
    for (key, value) in settings {
        let wanted = ["ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT"];
        let Some(key) = wanted.into_iter().find(|wanted| *wanted == key) else { continue };
        match value {
            Value::Text(text) => drop(texts.insert(key, text)),
            Value::Number(number) => drop(texts.insert(key, number.to_string())),
            Value::Path(path) if key == "NAME" => in_project = Some(path),
            Value::Nothing => {}
            _ => return Err(format!("`{key}` is worked out by Python")),
        }
    }
    let mut text = |key: &str| texts.remove(key).filter(|text| !text.is_empty());
    let Some(engine) = text("ENGINE").filter(|engine| !engine.ends_with(".dummy")) else { return Ok(None) };
    let kind = kind(&engine).ok_or("its engine is none that can be linked")?;
    let host = text("HOST");
    let mut parts = Parts { database: text("NAME"), ..Parts::default() };
    if kind == Kind::Sqlite {
        if let Some(name) = in_project {
            // The settings lie in a package, and that in the folder of the project.
            let package = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let package = package.strip_suffix("/settings").unwrap_or(package);
            let project = package.rsplit_once('/').map_or("", |(folder, _)| folder);
            let file = beneath(project, &name).ok_or("its path leads out of the app's home")?;
            parts.database = Some(file);
            parts.note = Some("Its path was worked out from where the settings lie".to_owned());
        }
        return match &parts.database {
            Some(name) if name != ":memory:" => Ok(Some((kind, parts))),
            _ => Ok(None),
        };
    }
    if parts.database.is_none() {
        return Err("it names no database".to_owned());
    }
    parts.port = match text("PORT") {
        None => None,
        Some(port) => {
            let port = port.trim().parse::<u16>().ok().filter(|port| *port > 0);
            Some(port.ok_or("its port is no number from 1 to 65535")?)
        }
    };
    parts.user = text("USER");
    parts.password = text("PASSWORD").map(Secret::new);
    match host {
        Some(host) if host.starts_with('/') => parts.socket = Some(host),
        Some(host) => parts.host = Some(host),
        None if kind == Kind::PostgreSql => {
            parts.socket = Some(SOCKET.to_owned());
            parts.note = Some(format!("It names no host; taken for the socket in {SOCKET}"));
        }
        None => {}
    }
    Ok(Some((kind, parts)))
}

fn value(cursor: &mut Cursor<'_>, depth: u32) -> Value {
    blank(cursor);
    let found = match cursor.peek() {
        Some(b'{') if depth > 0 => {
            cursor.skip(1);
            return dictionary(cursor, depth - 1);
        }
        Some(b'\'' | b'"') => string(cursor).map_or(Value::Unknown, Value::Text),
        Some(b'0'..=b'9') => {
            let digits = String::from_utf8_lossy(cursor.while_(|b| b.is_ascii_digit())).into_owned();
            digits.parse().map_or(Value::Unknown, Value::Number)
        }
        Some(b) if is_word(b) => word(cursor),
        _ => Value::Unknown,
    };
    blank(cursor);
    // Anything but the end makes it something that must be run.
    match cursor.peek() {
        None | Some(b',' | b'}' | b')' | b']') => found,
        _ => {
            pass_over(cursor);
            Value::Unknown
        }
    }
}

/// `None`, `BASE_DIR / 'name'`, `os.path.join(BASE_DIR, 'name')`, and the same within `str(…)`.
fn word(cursor: &mut Cursor<'_>) -> Value {
    let name = cursor.while_(|b| is_word(b) || b == b'.');
    blank(cursor);
    match name {
        b"None" => Value::Nothing,
        b"BASE_DIR" => {
            let mut parts = Vec::new();
            while cursor.eat(b"/") {
                blank(cursor);
                let Some(part) = string(cursor) else { return Value::Unknown };
                parts.push(part);
                blank(cursor);
            }
            if parts.is_empty() { Value::Unknown } else { Value::Path(parts.join("/")) }
        }
        b"os.path.join" if cursor.eat(b"(") => {
            blank(cursor);
            if cursor.while_(is_word) != b"BASE_DIR" {
                return Value::Unknown;
            }
            let mut parts = Vec::new();
            loop {
                blank(cursor);
                if cursor.eat(b")") {
                    return Value::Path(parts.join("/"));
                }
                if !cursor.eat(b",") {
                    return Value::Unknown;
                }
                blank(cursor);
                parts.extend(string(cursor));
            }
        }
        b"str" if cursor.eat(b"(") => {
            blank(cursor);
            let inner = match cursor.rest().starts_with(b"BASE_DIR") {
                true => word(cursor),
                false => Value::Unknown,
            };
            blank(cursor);
            if cursor.eat(b")") { inner } else { Value::Unknown }
        }
        _ => Value::Unknown,
    }
}

/// Behind the `{`.
fn dictionary(cursor: &mut Cursor<'_>, depth: u32) -> Value {
    let mut pairs = Vec::new();
    loop {
        blank(cursor);
        if cursor.peek().is_none() {
            return Value::Unknown;
        }
        if cursor.eat(b"}") {
            return Value::Dictionary(pairs);
        }
        let key = string(cursor);
        blank(cursor);
        if cursor.eat(b":") {
            let value = value(cursor, depth);
            pairs.extend(key.map(|key| (key, value)));
        } else {
            pass_over(cursor);
        }
        blank(cursor);
        if !cursor.eat(b",") && cursor.peek() != Some(b'}') {
            return Value::Unknown;
        }
    }
}

/// To the `,` or the bracket that ends what cannot be read.
fn pass_over(cursor: &mut Cursor<'_>) {
    let mut open = 0_u32;
    while let Some(byte) = cursor.peek() {
        match byte {
            b'\'' | b'"' => {
                string(cursor);
                continue;
            }
            b'#' => {
                cursor.line();
                continue;
            }
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' if open == 0 => return,
            b')' | b']' | b'}' => open -= 1,
            b',' if open == 0 => return,
            _ => {}
        }
        cursor.skip(1);
    }
}

fn blank(cursor: &mut Cursor<'_>) {
    loop {
        cursor.while_(|b| b.is_ascii_whitespace() || b == b'\\');
        if cursor.peek() != Some(b'#') {
            return;
        }
        cursor.line();
    }
}

/// A text in quotes; none where there is none, or one of a form that is not read (three quotes).
fn string(cursor: &mut Cursor<'_>) -> Option<String> {
    let quote = cursor.peek().filter(|b| matches!(b, b'\'' | b'"'))?;
    let three = [quote; 3];
    if cursor.eat(&three) {
        cursor.skip_past(&three);
        return None;
    }
    cursor.skip(1);
    let mut bytes = Vec::new();
    loop {
        match cursor.next()? {
            b if b == quote => return String::from_utf8(bytes).ok(),
            b'\n' => return None,
            b'\\' => match cursor.next()? {
                b'n' => bytes.push(b'\n'),
                b't' => bytes.push(b'\t'),
                b'r' => bytes.push(b'\r'),
                b'\n' => {}
                c @ (b'\'' | b'"' | b'\\') => bytes.push(c),
                b'x' => {
                    let digits = cursor.rest().get(..2)?;
                    let code = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
                    cursor.skip(2);
                    push_char(&mut bytes, code);
                }
                b'u' | b'U' | b'N' | b'0'..=b'7' => return None,
                c => bytes.extend([b'\\', c]),
            },
            b => bytes.push(b),
        }
    }
}
