//! From lines to rules.
//!
//! Invariants: a line gives at most one rule and never an error; [`parse_text`] of [`Rule::text`] is the same rule. A
//! backslash separates, so it cannot escape: a character in brackets does (`[*]`), and only those that would mean
//! something else without them (so `[id].js` is the name it looks like).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use backstay_model::Result;

use super::pattern::{Pattern, Token};
use super::{LINES_MAX, SIZE_MAX, too_large};
use crate::path::{escape, unescape};

/// Characters that stand for themselves in brackets.
const ESCAPED: &[u8] = b"*?#[\\ \t";

/// One line of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its number in the file, counted from 1; none where it comes from elsewhere.
    pub line: Option<u32>,
    /// The rule as it is recorded and shown: with slashes and from the home on, bytes that are not text escaped as in
    /// [`crate::path::escape`].
    pub text: String,
    /// Empty when it names nothing.
    pub(super) components: Vec<Component>,
}

/// What a name of a path must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Component {
    /// This one.
    Name(Vec<u8>),
    /// One that fits.
    Pattern(Pattern),
    /// Any number of names, none too. Never the last, never two in a row.
    AnyDepth,
}

impl Component {
    pub fn is_name(&self) -> bool {
        matches!(self, Component::Name(_))
    }
}

/// The rules of a file.
pub(super) fn parse_file(bytes: &[u8]) -> Result<Vec<Rule>> {
    if bytes.len() > SIZE_MAX {
        return Err(too_large(format!("{} bytes, at most {SIZE_MAX} are taken", bytes.len())));
    }
    let decoded = decode(bytes);
    let lines = decoded.split(|b| *b == b'\n');
    let mut rules = Vec::new();
    for (n, line) in lines.enumerate() {
        if n > LINES_MAX {
            return Err(too_large(format!("more than {LINES_MAX} lines")));
        }
        rules.extend(parse_line(line, u32::try_from(n + 1).ok()));
    }
    Ok(rules)
}

/// Without a byte order mark; from UTF-16 where that says so, as some editors on Windows write it.
fn decode(bytes: &[u8]) -> Vec<u8> {
    let wide = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let units = rest.chunks_exact(2).filter_map(|c| Some(unit(c.try_into().ok()?)));
        let text: String =
            char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        text.into_bytes()
    };
    match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => rest.to_vec(),
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        _ => bytes.to_vec(),
    }
}

/// A rule as it was recorded.
pub(super) fn parse_text(text: &str) -> Option<Rule> {
    parse_line(unescape(text)?.as_bytes(), None)
}

/// The rule of a line; none when it is empty or a comment.
pub(super) fn parse_line(line: &[u8], number: Option<u32>) -> Option<Rule> {
    let line = trim(line);
    if line.is_empty() || line.first() == Some(&b'#') {
        return None;
    }
    let mut reader = Reader { text: Vec::new(), components: Vec::new(), name: Vec::new() };
    let mut rest = line;
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'[', [c, b']', after @ ..]) if ESCAPED.contains(c) => {
                reader.push(&[b'[', *c, b']'], Token::Byte(*c));
                after
            }
            (b'/' | b'\\', after) => {
                reader.end_name();
                after
            }
            (b'*', after) => {
                reader.push(b"*", Token::Star);
                after
            }
            (b'?', after) => {
                reader.push(b"?", Token::Any);
                after
            }
            (other, after) => {
                reader.push(&[*other], Token::Byte(*other));
                after
            }
        };
    }
    reader.end_name();
    Some(reader.rule(number))
}

fn trim(mut line: &[u8]) -> &[u8] {
    // A blank in brackets is not at the end: the bracket is.
    while let [b' ' | b'\t' | b'\r', rest @ ..] | [rest @ .., b' ' | b'\t' | b'\r'] = line {
        line = rest;
    }
    line
}

struct Reader {
    /// The rule in its recorded form.
    text: Vec<u8>,
    components: Vec<Vec<Token>>,
    name: Vec<Token>,
}

impl Reader {
    fn push(&mut self, text: &[u8], token: Token) {
        if self.name.is_empty() {
            self.text.push(b'/');
        }
        self.text.extend_from_slice(text);
        self.name.push(token);
    }

    fn end_name(&mut self) {
        if !self.name.is_empty() {
            self.components.push(std::mem::take(&mut self.name));
        }
    }

    fn rule(mut self, line: Option<u32>) -> Rule {
        // What ends with a blank would be trimmed when it is read again.
        if matches!(self.text.last(), None | Some(b' ' | b'\t' | b'\r')) {
            self.text.push(b'/');
        }
        let text = escape(OsStr::from_bytes(&self.text));
        Rule { line, text, components: components(self.components).unwrap_or_default() }
    }
}

/// What the names of a rule mean; none when no path can fit.
fn components(names: Vec<Vec<Token>>) -> Option<Vec<Component>> {
    const DOT: Token = Token::Byte(b'.');
    let mut components = Vec::new();
    for name in names {
        match name.as_slice() {
            [DOT] => {}
            [DOT, DOT] => return None,
            [Token::Star, Token::Star] => {
                if components.last() != Some(&Component::AnyDepth) {
                    components.push(Component::AnyDepth);
                }
            }
            tokens => {
                let bytes = tokens.iter().map(|t| if let Token::Byte(b) = t { Some(*b) } else { None });
                let component = match bytes.collect::<Option<Vec<u8>>>() {
                    Some(name) => Component::Name(name),
                    None => Component::Pattern(Pattern::new(name)),
                };
                components.push(component);
            }
        }
    }
    if components.last() == Some(&Component::AnyDepth) {
        // Everything below, and not the folder itself.
        components.push(Component::Pattern(Pattern::new(vec![Token::Star])));
    }
    Some(components)
}
