//! How errors and warnings are shown: one place, one form.
//!
//! Invariants: an error goes to standard error as text; with `--json` an error object goes to standard output too.
//! The exit status is the code's.

use std::io::Write as _;

use backstay_model::{Code, Error, Problem, Retry};
use serde::Serialize;

/// Problems that are listed one by one; all of them are in the JSON and the job's log.
const SHOWN: usize = 20;

#[derive(Serialize)]
struct ErrorObject<'a> {
    error: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    code: Code,
    message: &'a str,
    causes: Vec<String>,
    advice: &'a str,
    more: String,
    may_retry: bool,
}

/// Where to read more about a code.
pub fn more(code: Code) -> String {
    format!("docs/errors.md#{}", code.as_str().to_ascii_lowercase())
}

/// The error as lines of text.
pub fn text(error: &Error) -> String {
    let mut lines = vec![format!("error: {}", error.message()), format!("  code: {}", error.code())];
    lines.extend(
        error.causes().iter().map(|c| format!("  cause: {}", c.trim_end().replace('\n', "\n         "))),
    );
    lines.push(format!("  do: {}", error.advice()));
    lines.push(format!("  more: {}", more(error.code())));
    lines.join("\n")
}

/// The error as a JSON object.
pub fn json(error: &Error) -> String {
    let body = Body {
        code: error.code(),
        message: error.message(),
        causes: error.causes(),
        advice: error.advice(),
        more: more(error.code()),
        may_retry: error.code().retry() == Retry::Later,
    };
    serde_json::to_string_pretty(&ErrorObject { error: body }).unwrap_or_default()
}

/// Shows an error; gives the exit status.
pub fn show(error: &Error, as_json: bool) -> u8 {
    say(text(error));
    if as_json {
        // Nobody is left to be told when this fails.
        let _nobody = writeln!(std::io::stdout(), "{}", json(error));
    }
    error.code().exit()
}

/// A line for people, on standard error.
pub fn say(text: impl AsRef<str>) {
    // Standard error that is closed must not stop the work.
    let _closed = writeln!(std::io::stderr(), "{}", text.as_ref());
}

/// Tells what is only partly done, with the paths; gives the exit status.
pub fn partial(what: &str, problems: &[Problem]) -> u8 {
    partial_as(Code::PartiallySucceeded, what, problems)
}

/// The same with a code of its own.
pub fn partial_as(code: Code, what: &str, problems: &[Problem]) -> u8 {
    let mut lines = vec![format!("warning: {what}")];
    let line = |p: &Problem| match p.path.as_str() {
        "" => format!("  {}", p.detail),
        path => format!("  {path}: {}", p.detail),
    };
    lines.extend(problems.iter().take(SHOWN).map(line));
    if let Some(rest) = problems.len().checked_sub(SHOWN).filter(|n| *n > 0) {
        lines.push(format!("  and {rest} more: all are in the job's log (`backstay job log ID`)"));
    }
    lines.push(format!("  code: {code}"));
    lines.push(format!("  do: {}", code.advice()));
    lines.push(format!("  more: {}", more(code)));
    say(lines.join("\n"));
    code.exit()
}
