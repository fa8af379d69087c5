//! Writing an archive.
//!
//! Invariants: entries come in the order of the calls; [`METADATA`] is the last one. The zip is written as a stream, from
//! the first byte to the last. Until [`Writer::finish`] it has no central directory and nothing takes it for an
//! archive; until its manifest is stored ([`crate::place`]) it is no backup.

use std::io::Write;

use backstay_model::{Cancel, Problem, Progress, Result};
use backstay_tree::fs::FileTime;

use crate::index::{EntryRecord, Index};
use crate::pack::{Options, pack, writing};
use crate::record::METADATA;
use crate::source::Source;
use crate::zip::Method;
use crate::zip::write::{Container, Head};

/// An archive that is being written to any stream.
pub struct Writer<W: Write> {
    container: Container<W>,
    index: Index,
    options: Options,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Bytes of the zip.
    pub size: u64,
    /// Of the whole zip.
    pub sha256: [u8; 32],
    /// All entries of the zip, in its order.
    pub entries: Vec<EntryRecord>,
    /// What a person should know about paths of the home.
    pub problems: Vec<Problem>,
}

impl<W: Write> Writer<W> {
    /// Begins an archive. Nothing is written yet.
    pub fn new(out: W, options: Options) -> Result<Self> {
        let index = Index::new(options.level)?;
        Ok(Writer { container: Container::new(out), index, options })
    }

    /// Adds everything that a source gives. An error leaves the archive unusable.
    pub fn add(&mut self, source: &dyn Source, progress: &dyn Progress, cancel: &Cancel) -> Result<()> {
        pack(source, &mut self.container, &mut self.index, &self.options, progress, cancel)
    }

    /// Bytes of the zip so far: for limits on its size.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.container.position()
    }

    /// Ends the archive and gives back what it was written to. `time` is that of the records' entry.
    pub fn finish(self, time: FileTime) -> Result<(W, Written)> {
        let Writer { mut container, index, .. } = self;
        let (mut entries, problems, records) = index.finish()?;
        let head = Head { name: METADATA.into(), mode: 0o100_600, mtime: time, owner: (0, 0) };
        let placed =
            container.entry(&head, Method::Deflated, records.content, &records.packed).map_err(writing)?;
        entries.push(EntryRecord {
            name: head.name,
            size: records.content.size,
            sha256: records.sha256,
            crc: placed.crc,
        });
        let (out, whole) = container.finish().map_err(writing)?;
        Ok((out, Written { size: whole.size, sha256: whole.sha256, entries, problems }))
    }
}
