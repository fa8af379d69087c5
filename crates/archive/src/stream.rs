//! Large files and streams: read by the walking thread, block by block.
//!
//! Invariants: the entry is begun only once the content is open. A file that cannot be read to its end stays in the
//! archive up to where it was read, marked as incomplete in its record and told as a problem; a stream of the root (a
//! dump) that breaks off ends the whole archive, since half a dump is none.

use std::path::Path;

use backstay_model::{Code, Error, Result};
use backstay_tree::fs::FileTime;
use libdeflater::Crc;
use sha2::{Digest as _, Sha256};

use crate::deflate::WINDOW;
use crate::index::Note;
use crate::pack::{BLOCK, Feed, head, record};
use crate::record::{METADATA, RecordKind};
use crate::source::{self, Failure, Names, Sink as _};
use crate::worker::{clipped, nobody, problem, unsteady};
use crate::zip::write::{Content, Head};

/// Packs a large file of the home.
pub(crate) fn file(
    feed: &mut Feed<'_>,
    path: &Path,
    content: &dyn source::Content,
    names: Names,
) -> Result<()> {
    let mut opened = match content.open() {
        Ok(opened) => opened,
        Err(failure) => return item_failed(feed, path, failure),
    };
    let details = opened.details.take().unwrap_or_else(nobody);
    let Some(head) = head(feed.shared, path, RecordKind::File, &details) else { return Ok(()) };
    feed.begin(head, opened.size)?;
    let read = read(feed, &mut opened)?;
    let mut incomplete = false;
    match read.failure {
        Some(failure) => {
            incomplete = true;
            item_failed(feed, path, failure)?;
        }
        None => {
            if let Some(told) = unsteady(path, opened.reader.steadiness(read.content.size)) {
                feed.problem(told);
            }
        }
    }
    let mut record = record(path, RecordKind::File, details);
    record.sparse = opened.sparse.map(|sparse| clipped(sparse, read.content.size));
    record.size = read.content.size;
    record.incomplete = incomplete;
    let names = if opened.same && !incomplete { names } else { Names::One };
    let note = Note::of(feed.shared, record, names);
    feed.shared.progress.done(1, 0);
    feed.end(read.content, read.sha256, note)
}

/// Packs something that lies beside the home.
pub(crate) fn root(
    feed: &mut Feed<'_>,
    name: &str,
    mtime: FileTime,
    content: &dyn source::Content,
) -> Result<()> {
    if !crate::place::is_root_name(name) || name == METADATA {
        return Err(Error::new(
            Code::InvalidValue,
            format!("`{}` cannot be an entry of an archive", name.escape_debug()),
        ));
    }
    let broken = |failure: Failure| match failure {
        Failure::Fatal(e) => e,
        Failure::Item(_, detail) => {
            Error::new(Code::FileUnreadable, format!("{name} could not be read to its end: {detail}"))
        }
    };
    let mut opened = content.open().map_err(broken)?;
    let head = Head { name: name.as_bytes().to_vec(), mode: 0o100_600, mtime, owner: (0, 0) };
    feed.begin(head, opened.size)?;
    let read = read(feed, &mut opened)?;
    match read.failure {
        Some(failure) => Err(broken(failure)),
        None => feed.end(read.content, read.sha256, Note::Nothing),
    }
}

/// What one item suffers from is told; what is fatal ends the work.
fn item_failed(feed: &mut Feed<'_>, path: &Path, failure: Failure) -> Result<()> {
    match failure {
        Failure::Fatal(e) => Err(e),
        Failure::Item(kind, detail) => {
            feed.problem(problem(path, kind, detail));
            Ok(())
        }
    }
}

struct Read {
    content: Content,
    sha256: [u8; 32],
    failure: Option<Failure>,
}

fn read(feed: &mut Feed<'_>, opened: &mut source::Opened) -> Result<Read> {
    let (mut crc, mut sha256) = (Crc::new(), Sha256::new());
    let mut size = 0u64;
    let mut before = Vec::new();
    loop {
        feed.check()?;
        let left = opened.size.map_or(u64::MAX, |total| total.saturating_sub(size));
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK);
        let mut plain = feed.shared.buffer();
        plain.resize(want, 0);
        let (got, failure) = match opened.reader.read(&mut plain) {
            Ok(got) => (got, None),
            Err(failure) => (0, Some(failure)),
        };
        plain.truncate(got);
        crc.update(&plain);
        sha256.update(&plain);
        size += got as u64;
        let last = got < want || left == got as u64;
        let window = plain.get(plain.len().saturating_sub(WINDOW)..).unwrap_or_default().to_vec();
        feed.shared.progress.done(0, got as u64);
        feed.block(std::mem::replace(&mut before, window), plain, last)?;
        if last {
            let content = Content { size, crc: crc.sum() };
            return Ok(Read { content, sha256: sha256.finalize().into(), failure });
        }
    }
}
