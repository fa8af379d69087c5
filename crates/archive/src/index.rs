//! What is remembered of the entries while an archive is written: for the manifest and for `metadata.jsonl`.
//!
//! Invariant: entries and records are in the order of the archive. Records are kept compressed.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::PathBuf;

use backstay_model::{Code, Error, Problem, ProblemKind, Result};
use flate2::Compression;
use flate2::write::DeflateEncoder;
use libdeflater::Crc;
use sha2::{Digest as _, Sha256};

use crate::pack::Shared;
use crate::record::{LINE_MAX, Record, first_line};
use crate::source::Names;
use crate::worker::problem;
use crate::zip::write::Content;

/// An entry of the zip as the manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRecord {
    /// Its name in the zip, as bytes.
    pub name: Vec<u8>,
    /// Bytes of content.
    pub size: u64,
    /// Of the content.
    pub sha256: [u8; 32],
    /// CRC-32 of all bytes that the entry has in the zip: local header, data, descriptor, central record.
    pub crc: u32,
}

/// What goes into the records about an item.
pub(crate) enum Note {
    Nothing,
    Line(Vec<u8>),
    /// The first of several names, and its line.
    First(PathBuf, Vec<u8>),
    /// A further name: of which first one.
    Further(PathBuf, Box<Record>),
}

impl Note {
    /// The note of an entry that will be in the archive.
    pub(crate) fn of(shared: &Shared<'_>, mut record: Record, names: Names) -> Self {
        let mut line = Vec::with_capacity(192);
        record.write(&mut line);
        if line.len() > LINE_MAX {
            let detail = "Its attributes are too long for an archive";
            shared.problem(problem(&record.path, ProblemKind::Metadata, detail));
            record.details.xattrs.clear();
            line.clear();
            record.write(&mut line);
        }
        match names {
            Names::One => Note::Line(line),
            Names::First => Note::First(record.path, line),
            Names::Further(first) => Note::Further(first, Box::new(record)),
        }
    }
}

/// See the module.
pub(crate) struct Index {
    pub entries: Vec<EntryRecord>,
    pub problems: Vec<Problem>,
    /// Name of the entry whose data is being written.
    pub open: Vec<u8>,
    /// Of files with several names, by the first name that was listed: the first that is in the archive, and its content.
    firsts: HashMap<PathBuf, (PathBuf, [u8; 32])>,
    records: DeflateEncoder<Vec<u8>>,
    lines: usize,
    records_size: u64,
    records_crc: Crc,
    records_sha256: Sha256,
}

/// The finished records, packed.
pub(crate) struct Records {
    pub packed: Vec<u8>,
    pub content: Content,
    pub sha256: [u8; 32],
}

impl Index {
    pub(crate) fn new(level: u8) -> Result<Self> {
        let mut index = Index {
            entries: Vec::new(),
            problems: Vec::new(),
            open: Vec::new(),
            firsts: HashMap::new(),
            lines: 0,
            records: DeflateEncoder::new(Vec::new(), Compression::new(level.clamp(1, 9).into())),
            records_size: 0,
            records_crc: Crc::new(),
            records_sha256: Sha256::new(),
        };
        index.record(first_line().as_bytes())?;
        Ok(index)
    }

    pub(crate) fn add(&mut self, name: Vec<u8>, size: u64, sha256: [u8; 32], crc: u32) -> Result<()> {
        if self.entries.len() >= crate::limits::ENTRIES_MAX {
            return Err(crate::limits::too_many());
        }
        self.entries.push(EntryRecord { name, size, sha256, crc });
        Ok(())
    }

    /// Appends what is noted of an item with that content. A further name is one only if the first one is in the archive
    /// with the same content: it may have changed, or vanished, in between.
    pub(crate) fn note(&mut self, note: Note, sha256: &[u8; 32]) -> Result<()> {
        self.lines += 1;
        if self.lines > crate::limits::ENTRIES_MAX {
            return Err(crate::limits::too_many());
        }
        match note {
            Note::Nothing => Ok(()),
            Note::Line(line) => self.record(&line),
            Note::First(path, line) => {
                self.firsts.insert(path.clone(), (path, *sha256));
                self.record(&line)
            }
            Note::Further(first, mut record) => {
                match self.firsts.get(&first) {
                    Some((path, content)) if content == sha256 => record.link = Some(path.clone()),
                    Some(_) => {}
                    None => {
                        self.firsts.insert(first, (record.path.clone(), *sha256));
                    }
                }
                let mut line = Vec::with_capacity(256);
                record.write(&mut line);
                self.record(&line)
            }
        }
    }

    /// Appends a line to the records.
    fn record(&mut self, line: &[u8]) -> Result<()> {
        self.records_crc.update(line);
        self.records_sha256.update(line);
        self.records_size += line.len() as u64;
        self.records.write_all(line).map_err(failed)
    }

    /// Ends the records.
    pub(crate) fn finish(self) -> Result<(Vec<EntryRecord>, Vec<Problem>, Records)> {
        let content = Content { size: self.records_size, crc: self.records_crc.sum() };
        let packed = self.records.finish().map_err(failed)?;
        let records = Records { packed, content, sha256: self.records_sha256.finalize().into() };
        Ok((self.entries, self.problems, records))
    }
}

fn failed(e: std::io::Error) -> Error {
    Error::new(Code::Internal, "The records of the archive cannot be packed").because(e)
}
