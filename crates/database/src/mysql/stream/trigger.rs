//! The head of a trigger's statement, which the server keeps as it was typed.
//!
//! Whoever typed `CREATE TRIGGER shop.t BEFORE INSERT ON shop.words` has its database's name in every dump, and loading such a
//! dump beside the one in use would make the trigger in the one in use. So the name of the database is taken out.

/// The first bytes of the line that makes a trigger.
const HEAD: &[u8] = b"/*!50003 CREATE*/";

/// Whether a line makes a trigger, and its head goes on in the next line.
pub(super) fn is_unfinished(line: &[u8]) -> bool {
    let ended = line.trim_ascii_end().ends_with(b";;");
    !ended && statement(line).is_some_and(|at| qualifiers(line, at).is_none())
}

/// The line without the names of databases in a trigger's head.
pub(super) fn unqualified(line: Vec<u8>) -> Vec<u8> {
    let Some(found) = statement(&line).and_then(|at| qualifiers(&line, at)) else { return line };
    let mut out = Vec::with_capacity(line.len());
    let mut from = 0;
    for (start, end) in found {
        out.extend_from_slice(line.get(from..start).unwrap_or_default());
        from = end;
    }
    out.extend_from_slice(line.get(from..).unwrap_or_default());
    out
}

/// Where the words behind `TRIGGER` begin, if the line makes one.
fn statement(line: &[u8]) -> Option<usize> {
    if !line.starts_with(HEAD) {
        return None;
    }
    const PART: &[u8] = b"/*!50003 ";
    let at = line.windows(PART.len()).rposition(|part| part == PART)? + PART.len();
    let word = next(line, at)?;
    is(line, word, "TRIGGER").then_some(word.1)
}

/// Where names of databases stand with the dot and the blanks behind them; none where the head is not complete.
fn qualifiers(line: &[u8], at: usize) -> Option<Vec<(usize, usize)>> {
    let mut found = Vec::new();
    let mut word = next(line, at)?;
    if is(line, word, "IF") {
        for _ in 0..3 {
            word = next(line, word.1)?;
        }
    }
    let after = name(line, word, &mut found)?;
    let time = next(line, after)?;
    let event = next(line, time.1)?;
    let on = next(line, event.1)?;
    if !is(line, on, "ON") {
        return Some(found);
    }
    let table = next(line, on.1)?;
    name(line, table, &mut found)?;
    Some(found)
}

/// Reads `name` or `database.name`; where it ends.
fn name(line: &[u8], first: (usize, usize), found: &mut Vec<(usize, usize)>) -> Option<usize> {
    let dot = next(line, first.1)?;
    if line.get(dot.0) != Some(&b'.') {
        return Some(first.1);
    }
    let second = next(line, dot.1)?;
    found.push((first.0, second.0));
    Some(second.1)
}

fn is(line: &[u8], word: (usize, usize), text: &str) -> bool {
    line.get(word.0..word.1).is_some_and(|word| word.eq_ignore_ascii_case(text.as_bytes()))
}

/// The next word, quoted name or sign, from where to where; none where the line ends before it does.
fn next(line: &[u8], mut at: usize) -> Option<(usize, usize)> {
    loop {
        let rest = line.get(at..)?;
        let blank = rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        at += blank;
        let rest = line.get(at..)?;
        if rest.starts_with(b"/*") {
            at += rest.windows(2).position(|part| part == b"*/")? + 2;
        } else if rest.starts_with(b"-- ") || rest.starts_with(b"#") {
            at += rest.iter().position(|byte| *byte == b'\n')? + 1;
        } else {
            break;
        }
    }
    let rest = line.get(at..)?;
    let first = *rest.first()?;
    let length = match first {
        b'`' | b'"' => quoted(rest, first)?,
        byte if is_word(byte) => {
            let length = rest.iter().take_while(|byte| is_word(**byte)).count();
            // It may go on.
            (length < rest.len()).then_some(length)?
        }
        _ => 1,
    };
    Some((at, at + length))
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || !byte.is_ascii()
}

fn quoted(bytes: &[u8], quote: u8) -> Option<usize> {
    let mut at = 1;
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == quote)? + 1;
        if bytes.get(at) != Some(&quote) {
            return Some(at);
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_database_is_taken_out_of_the_head_alone() {
        let cases = [
            ("trigger t before insert on a for each row x", "trigger t before insert on a for each row x"),
            (
                "TRIGGER shop.t BEFORE INSERT ON shop . a FOR EACH ROW x.y",
                "TRIGGER t BEFORE INSERT ON a FOR EACH ROW x.y",
            ),
            (
                "TRIGGER IF NOT EXISTS `sh``op`.`t.t` /* on */ AFTER UPDATE ON `a.b` FOR",
                "TRIGGER IF NOT EXISTS `t.t` /* on */ AFTER UPDATE ON `a.b` FOR",
            ),
            ("TRIGGER\nshop.t\nBEFORE DELETE\nON shop.`ä` FOR", "TRIGGER\nt\nBEFORE DELETE\nON `ä` FOR"),
        ];
        for (typed, expected) in cases {
            let head = "/*!50003 CREATE*/ /*!50017 DEFINER=`a`@`b`*/ /*!50003 ";
            let line = format!("{head}{typed}\n").into_bytes();
            assert!(!is_unfinished(&line), "{typed}");
            assert_eq!(String::from_utf8(unqualified(line)).unwrap(), format!("{head}{expected}\n"));
        }
        assert!(is_unfinished(b"/*!50003 CREATE*/ /*!50003 trigger shop.t\n"));
        assert!(!is_unfinished(b"/*!50003 CREATE*/ /*!50003 PROCEDURE p()\n"));
    }
}
