//! Asking a person.
//!
//! Invariants: questions go to standard error, only when standard input is a terminal. A secret is read without
//! echo from a terminal, or as the first line of a file or of standard input; never from argv.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::Path;

use backstay_model::{Code, Error, Result, Secret};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

/// Longest secret read, in bytes.
const SECRET_MAX: u64 = 4096;
/// Longest text that opens a container, in bytes: the key file of a service account is a document.
const TEXT_MAX: u64 = 64 * 1024;

/// Goes on when the person agrees, or has agreed beforehand.
pub fn confirm(question: &str, agreed: bool) -> Result<()> {
    if agreed {
        return Ok(());
    }
    if !is_terminal() {
        return Err(Error::new(Code::ConfirmationNeeded, format!("This needs an answer: {question}")));
    }
    match agrees(question)? {
        true => Ok(()),
        false => Err(Error::new(Code::Cancelled, "Not agreed to; nothing was done")),
    }
}

/// What is answered about one of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This one.
    Yes,
    /// Not this one.
    No,
    /// This one and all that follow.
    All,
}

/// Whether there is somebody to ask.
pub fn is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Asks a question on the terminal that may well be answered with no.
pub fn agrees(question: &str) -> Result<bool> {
    Ok(matches!(answer(&format!("{question} [y/N] "))?.as_str(), "y" | "yes"))
}

/// The same about one of several.
pub fn each(question: &str) -> Result<Answer> {
    Ok(match answer(&format!("{question} [y/N/all] "))?.as_str() {
        "y" | "yes" => Answer::Yes,
        "a" | "all" => Answer::All,
        _ => Answer::No,
    })
}

fn answer(question: &str) -> Result<String> {
    prompt(question);
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(unreadable)?;
    Ok(answer.trim().to_ascii_lowercase())
}

/// A secret that exists: a vault's password, a kit's passphrase.
pub fn secret(what: &str, file: Option<&Path>) -> Result<Secret> {
    let secret = match file {
        Some(path) => {
            let file = std::fs::File::open(path).map_err(|e| {
                Error::new(Code::InvalidValue, format!("Cannot read {}", path.display())).because(e)
            })?;
            first_line(io::BufReader::new(file))?
        }
        None if io::stdin().is_terminal() => typed(&format!("{what}: "))?,
        None => first_line(io::stdin().lock())?,
    };
    if secret.reveal().is_empty() {
        return Err(Error::new(Code::InvalidValue, format!("{what} is empty")));
    }
    Ok(secret)
}

/// A secret that may have several lines (a key file): all of a file or of standard input, one line from a terminal.
pub fn secret_text(what: &str, file: Option<&Path>) -> Result<Secret> {
    match file {
        Some(path) => {
            let file = std::fs::File::open(path).map_err(|e| {
                Error::new(Code::InvalidValue, format!("Cannot read {}", path.display())).because(e)
            })?;
            whole(file)
        }
        None if io::stdin().is_terminal() => typed(&format!("{what}: ")),
        None => whole(io::stdin().lock()),
    }
}

/// A value that is to be stored: all of standard input but one newline at its end, or one line from a terminal. It may be
/// empty.
pub fn value(what: &str) -> Result<Secret> {
    if io::stdin().is_terminal() { typed(&format!("{what}: ")) } else { as_it_is(io::stdin().lock()) }
}

fn as_it_is(from: impl io::Read) -> Result<Secret> {
    // Room for all of it, so that no copy of a part is left behind.
    let mut bytes = Vec::with_capacity(72 * 1024);
    from.take(TEXT_MAX + 3).read_to_end(&mut bytes).map_err(unreadable)?;
    let read = std::str::from_utf8(&bytes)
        .map(|text| Secret::new(text.strip_suffix("\r\n").or(text.strip_suffix('\n')).unwrap_or(text)))
        .map_err(|_not_text| Error::new(Code::InvalidValue, "A value must be UTF-8 text"));
    bytes.fill(0);
    read
}

fn whole(from: impl io::Read) -> Result<Secret> {
    let mut text = Secret::new(String::new());
    let mut bytes = Vec::new();
    from.take(TEXT_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 <= TEXT_MAX {
        text = match std::str::from_utf8(&bytes) {
            Ok(read) => Secret::new(read.trim()),
            Err(_not_text) => return Err(Error::new(Code::InvalidValue, "A key must be UTF-8 text")),
        };
    }
    bytes.fill(0);
    if text.reveal().is_empty() {
        return Err(Error::new(Code::InvalidValue, "There is no key, or it is longer than 64 KiB")
            .advise("Give it on standard input, or name a file with --credentials-file."));
    }
    Ok(text)
}

/// A secret that is chosen now: typed twice on a terminal.
pub fn new_secret(what: &str, file: Option<&Path>) -> Result<Secret> {
    let first = secret(what, file)?;
    if file.is_none() && io::stdin().is_terminal() && typed(&format!("{what} again: "))? != first {
        return Err(Error::new(Code::InvalidValue, "The two are not the same"));
    }
    Ok(first)
}

fn first_line(from: impl io::BufRead) -> Result<Secret> {
    let mut bytes = Vec::new();
    from.take(SECRET_MAX).read_until(b'\n', &mut bytes).map_err(unreadable)?;
    let text = String::from_utf8(bytes)
        .map_err(|_not_text| Error::new(Code::InvalidValue, "A password or passphrase must be UTF-8 text"))?;
    Ok(Secret::new(text.trim_end_matches(['\n', '\r'])))
}

fn prompt(text: &str) {
    let mut err = io::stderr();
    // A prompt that cannot be shown is still answered.
    let _unseen = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

fn unreadable(e: io::Error) -> Error {
    Error::new(Code::System, "Cannot read the answer").because(e)
}

/// Reads a line without echo. The terminal is put back on every way out; Ctrl-C is read as a key, so that it
/// cannot leave the terminal mute.
fn typed(question: &str) -> Result<Secret> {
    let stdin = io::stdin();
    let before = tcgetattr(&stdin).map_err(|e| unreadable(e.into()))?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
    prompt(question);
    tcsetattr(&stdin, OptionalActions::Flush, &quiet).map_err(|e| unreadable(e.into()))?;
    let line = keys(stdin.lock().bytes());
    let restored = tcsetattr(&stdin, OptionalActions::Now, &before);
    prompt("\n");
    restored.map_err(|e| unreadable(e.into()))?;
    line
}

fn keys(input: impl Iterator<Item = io::Result<u8>>) -> Result<Secret> {
    let mut line = Vec::new();
    for key in input {
        match key.map_err(unreadable)? {
            b'\r' | b'\n' | 4 => break,
            3 => return Err(Error::new(Code::Cancelled, "Stopped on request")),
            8 | 127 => {
                // The whole last character, which may be several bytes.
                while line.pop().is_some_and(|b: u8| b & 0b1100_0000 == 0b1000_0000) {}
            }
            21 => line.clear(),
            byte => line.push(byte),
        }
    }
    String::from_utf8(line)
        .map(Secret::new)
        .map_err(|_not_text| Error::new(Code::InvalidValue, "A password or passphrase must be UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_make_a_line() {
        let read = |text: &str| keys(text.bytes().map(Ok)).map(|s| s.reveal().to_owned());
        assert_eq!(read("pass\nrest").unwrap(), "pass");
        assert_eq!(read("pä\x7fass").unwrap(), "pass");
        assert_eq!(read("wrong\x15right\r").unwrap(), "right");
        assert_eq!(read("pa\x03").unwrap_err().code(), Code::Cancelled);
    }

    #[test]
    fn a_value_is_what_was_given_but_for_one_newline() {
        let read = |bytes: &[u8]| as_it_is(bytes).map(|s| s.reveal().to_owned());
        for (given, value) in [
            ("a", "a"),
            ("a\n", "a"),
            ("a\r\n", "a"),
            ("a\n\n", "a\n"),
            (" a\tb \n", " a\tb "),
            ("\n", ""),
            ("", ""),
        ] {
            assert_eq!(read(given.as_bytes()).unwrap(), value, "{given:?}");
        }
        assert_eq!(read(b"\xff").unwrap_err().code(), Code::InvalidValue);
        assert!(read(&[b'a'; 70_000]).unwrap().len() > 65_536, "too long, and seen as such later");
    }

    #[test]
    fn only_the_first_line_of_a_file_is_the_secret() {
        let read = |bytes: &[u8]| first_line(bytes).map(|s| s.reveal().to_owned());
        assert_eq!(read(b" p w \r\nsecond").unwrap(), " p w ");
        assert_eq!(read(b"").unwrap(), "");
        assert_eq!(read(b"\xff\n").unwrap_err().code(), Code::InvalidValue);
    }
}
