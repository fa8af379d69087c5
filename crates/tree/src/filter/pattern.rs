//! One name with `*` and `?` in it.
//!
//! Invariant: matching takes time in proportion to the name's length times the pattern's at the very worst, whatever
//! either holds: only the last star is ever gone back to.

/// A part of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Token {
    /// That byte.
    Byte(u8),
    /// One character; one byte where the name is not UTF-8.
    Any,
    /// Any number of characters, none too.
    Star,
}

/// A name with stars and question marks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pattern {
    tokens: Vec<Token>,
    /// Bytes that every match ends with: most names are told apart by these.
    ending: Vec<u8>,
}

impl Pattern {
    /// From its tokens; several stars in a row are one.
    pub fn new(mut tokens: Vec<Token>) -> Self {
        tokens.dedup_by(|a, b| *a == Token::Star && *b == Token::Star);
        let mut ending: Vec<u8> = Vec::new();
        for token in tokens.iter().rev() {
            match token {
                Token::Byte(byte) => ending.push(*byte),
                Token::Any | Token::Star => break,
            }
        }
        ending.reverse();
        Pattern { tokens, ending }
    }

    /// The byte that every match ends with, where there is one.
    pub fn last_byte(&self) -> Option<u8> {
        self.ending.last().copied()
    }

    /// Whether a whole name fits.
    pub fn matches(&self, name: &[u8]) -> bool {
        if !name.ends_with(&self.ending) {
            return false;
        }
        let (mut token, mut at) = (0, 0);
        // Behind the last star, and how far it reaches.
        let mut star: Option<(usize, usize)> = None;
        loop {
            let fits = match self.tokens.get(token) {
                Some(Token::Star) => {
                    token += 1;
                    star = Some((token, at));
                    continue;
                }
                Some(Token::Any) => width(name, at),
                Some(Token::Byte(byte)) => usize::from(name.get(at) == Some(byte)),
                None if at == name.len() => return true,
                None => 0,
            };
            if fits > 0 {
                token += 1;
                at += fits;
                continue;
            }
            // It does not fit: the last star takes one character more.
            let Some((behind, reach)) = star else { return false };
            let more = width(name, reach);
            if more == 0 {
                return false;
            }
            token = behind;
            at = reach + more;
            star = Some((behind, at));
        }
    }
}

/// Bytes of the character at a position; 1 where there is none that is UTF-8, 0 at the end.
fn width(name: &[u8], at: usize) -> usize {
    let Some(rest) = name.get(at..).filter(|r| !r.is_empty()) else { return 0 };
    let length = match rest.first() {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        _ => return 1,
    };
    rest.get(..length).filter(|c| std::str::from_utf8(c).is_ok()).map_or(1, <[u8]>::len)
}
