//! The child: words in, one line of JSON out.
//!
//! The report is one line that begins with a mark, so whatever else the program prints does not disturb it. A failure is a
//! report too; the status says only whether there is one.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use backstay_model::{Code, Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{content, copy};
use crate::adapter::Hashes;

/// How the line of the report begins.
const MARK: &str = "backstay-sqlite ";

/// What a child has to say.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Report<T> {
    Done(T),
    Failed { code: String, message: String },
}

/// The child's whole life: `FOLDER NAME snapshot TARGET MILLISECONDS HASHES`, `FOLDER NAME check HASHES` or
/// `FOLDER NAME texts SQL LIMIT`. Returns the status to end with.
#[must_use]
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    show_life();
    let line = match work(&args) {
        Ok(done) => done,
        Err(e) => {
            let message =
                e.causes().iter().fold(e.message().to_owned(), |all, cause| format!("{all}: {cause}"));
            line(&Report::<()>::Failed { code: e.code().as_str().to_owned(), message }).unwrap_or_default()
        }
    };
    let mut out = std::io::stdout().lock();
    match writeln!(out, "\n{MARK}{line}").and_then(|()| out.flush()) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn work(args: &[OsString]) -> Result<String> {
    let bad = || Error::new(Code::Usage, "These are no words for the process that reads databases");
    let [folder, name, word, rest @ ..] = args else { return Err(bad()) };
    std::env::set_current_dir(folder)
        .map_err(|e| Error::new(Code::DatabaseNotFound, "Its folder cannot be entered").because(e))?;
    let name = Path::new(name);
    match (word.to_str(), rest) {
        (Some("snapshot"), [target, wait, hashes]) => {
            let wait = wait.to_str().and_then(|w| w.parse().ok()).ok_or_else(bad)?;
            let hashes = hashes_of(hashes).ok_or_else(bad)?;
            line(&Report::Done(copy::snapshot(name, Path::new(target), Duration::from_millis(wait), hashes)?))
        }
        (Some("check"), [hashes]) => line(&Report::Done(content::read(
            name,
            hashes_of(hashes).ok_or_else(bad)?,
            content::Depth::Full,
        )?)),
        (Some("texts"), [sql, limit]) => {
            let limit = limit.to_str().and_then(|l| l.parse().ok()).ok_or_else(bad)?;
            line(&Report::Done(content::texts(name, sql.to_str().ok_or_else(bad)?, limit)?))
        }
        _ => Err(bad()),
    }
}

fn hashes_of(word: &OsString) -> Option<Hashes> {
    [Hashes::None, Hashes::Affordable, Hashes::All].into_iter().find(|h| super::word(*h) == word)
}

fn line<T: Serialize>(report: &Report<T>) -> Result<String> {
    serde_json::to_string(report)
        .map_err(|e| Error::new(Code::Internal, "A report cannot be written").because(e))
}

/// The report in what a child has said.
pub(super) fn report<T: DeserializeOwned>(said: &[u8]) -> Result<T> {
    let none =
        || Error::new(Code::DatabaseInterrupted, "The process that reads the database said nothing of use");
    let text = String::from_utf8_lossy(said);
    let line = text.lines().find_map(|line| line.strip_prefix(MARK)).ok_or_else(none)?;
    match serde_json::from_str(line).map_err(|e| none().because(e))? {
        Report::Done(done) => Ok(done),
        Report::Failed { code, message } => {
            let code = Code::ALL.iter().find(|c| c.as_str() == code).copied();
            Err(Error::new(code.unwrap_or(Code::DatabaseFailed), message))
        }
    }
}

/// Prints an empty line each second while the thread that works is given the processor, so that who waits for it knows a
/// long check from one that hangs in a dead file system.
fn show_life() {
    let stat = format!("/proc/self/task/{}/schedstat", rustix::thread::gettid().as_raw_nonzero());
    let watch = move || {
        let mut last = String::new();
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let now = std::fs::read_to_string(&stat).unwrap_or_default();
            if now != last && writeln!(std::io::stdout()).is_err() {
                return;
            }
            last = now;
        }
    };
    // Without it, only the patience is shorter.
    std::thread::Builder::new().name("life".to_owned()).spawn(watch).ok();
}
