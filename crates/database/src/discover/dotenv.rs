//! `.env` files: `NAME=value`, with quotes, comments, `export` and references to other variables.
//!
//! The programs that read such files differ in the details. Read as most do: nothing is special in single quotes or
//! backticks; `\` escapes in double quotes; ` #` begins a comment outside of quotes; `${NAME}` and `${NAME:-otherwise}` are
//! replaced outside of single quotes by what this file, or the general one beside it, says before.

use super::Found;
use super::cursor::{Cursor, is_word};
use super::variables::{self, Variables};

/// Longest value that references may make.
const VALUE_MAX: usize = 16 << 10;
/// Most variables of a file, and longest reference.
const VARIABLES_MAX: usize = 2_000;
const REFERENCE_MAX: usize = 1_000;

pub(super) fn look(text: &str, general: &str, path: &str, found: &mut Found) {
    let mut all = Variables::new();
    read(general, &mut all);
    let mut own = Variables::new();
    for (name, value) in read(text, &mut all) {
        own.insert(name, value);
    }
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    variables::look(&all, &|name| own.contains_key(name), path, folder, found);
}

/// Reads a file into `all`, and gives what it has set.
fn read(text: &str, all: &mut Variables) -> Variables {
    let mut set = Variables::new();
    let mut cursor = Cursor::new(text.as_bytes());
    while !cursor.rest().is_empty() && set.len() < VARIABLES_MAX {
        cursor.while_(|b| b.is_ascii_whitespace());
        let before = Cursor::new(cursor.rest());
        cursor.eat(b"export ");
        cursor.while_(|b| b == b' ' || b == b'\t');
        let name = cursor.while_(|b| is_word(b) || matches!(b, b'.' | b'-' | b':'));
        cursor.while_(|b| b == b' ' || b == b'\t');
        if name.is_empty() || !cursor.eat(b"=") {
            cursor = before;
            cursor.line();
            continue;
        }
        let name = String::from_utf8_lossy(name).into_owned();
        cursor.while_(|b| b == b' ' || b == b'\t');
        let value = value(&mut cursor, all);
        cursor.line();
        all.insert(name.clone(), value.clone());
        set.insert(name, value);
    }
    set
}

/// A value; none where a reference in it leads nowhere.
fn value(cursor: &mut Cursor<'_>, all: &Variables) -> Option<String> {
    match cursor.peek() {
        Some(quote @ (b'\'' | b'`')) => {
            let mut inside = Cursor::new(cursor.rest());
            inside.skip(1);
            let value = inside.while_(|b| b != quote);
            if inside.eat(&[quote]) {
                *cursor = inside;
                return Some(String::from_utf8_lossy(value).into_owned());
            }
        }
        Some(b'"') => {
            let mut inside = Cursor::new(cursor.rest());
            inside.skip(1);
            if let Some(value) = double(&mut inside, all) {
                *cursor = inside;
                return value;
            }
        }
        _ => {}
    }
    let line = cursor.while_(|b| b != b'\n');
    let end = line.windows(2).position(|pair| matches!(pair, [b' ' | b'\t', b'#'])).unwrap_or(line.len());
    let line = if line.first() == Some(&b'#') { &[] } else { line.get(..end).unwrap_or_default() };
    let mut inside = Cursor::new(line);
    let mut value = Vec::new();
    let mut known = true;
    while !inside.rest().is_empty() {
        known &= one(&mut inside, &mut value, all);
    }
    known.then(|| String::from_utf8_lossy(&value).trim().to_owned())
}

/// Up to the closing quote; none where there is none, and inside none where a reference leads nowhere.
fn double(cursor: &mut Cursor<'_>, all: &Variables) -> Option<Option<String>> {
    let mut value = Vec::new();
    let mut known = true;
    loop {
        match cursor.peek()? {
            b'"' => {
                cursor.skip(1);
                return Some(known.then(|| String::from_utf8_lossy(&value).into_owned()));
            }
            b'\\' => {
                cursor.skip(1);
                match cursor.next()? {
                    b'n' => value.push(b'\n'),
                    b'r' => value.push(b'\r'),
                    b't' => value.push(b'\t'),
                    c @ (b'"' | b'\\' | b'$' | b'\'') => value.push(c),
                    c => value.extend([b'\\', c]),
                }
            }
            _ => known &= one(cursor, &mut value, all),
        }
    }
}

/// The next byte, or what a reference stands for. False where it stands for nothing.
fn one(cursor: &mut Cursor<'_>, value: &mut Vec<u8>, all: &Variables) -> bool {
    if !cursor.rest().starts_with(b"${") {
        value.extend(cursor.next());
        return true;
    }
    let mut inside = Cursor::new(cursor.rest().get(..REFERENCE_MAX).unwrap_or(cursor.rest()));
    inside.skip(2);
    let name = String::from_utf8_lossy(inside.while_(is_word)).into_owned();
    let otherwise = inside.eat(b":-") || inside.eat(b"-");
    let default = inside.while_(|b| b != b'}' && b != b'\n' && b != b'"');
    if name.is_empty() || (!otherwise && !default.is_empty()) || !inside.eat(b"}") {
        value.extend(cursor.next());
        return true;
    }
    let length = REFERENCE_MAX.min(cursor.rest().len()) - inside.rest().len();
    cursor.skip(length);
    match all.get(&name) {
        Some(Some(known)) if (!known.is_empty() || !otherwise) && value.len() + known.len() <= VALUE_MAX => {
            value.extend(known.as_bytes());
        }
        Some(None) => return false,
        _ if otherwise => value.extend(default),
        _ => return false,
    }
    true
}
