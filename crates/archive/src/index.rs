//! What is remembered of the entries while an archive is written: for the manifest and for `metadata.jsonl`.
//!
//! Invariant: entries and records are in the order of the archive. Records are kept compressed.

use std::io::Write as _;

use backstay_model::{Code, Error, Problem, Result};
use flate2::Compression;
use flate2::write::DeflateEncoder;
use libdeflater::Crc;
use sha2::{Digest as _, Sha256};

use crate::record::first_line;
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

/// See the module.
pub(crate) struct Index {
    pub entries: Vec<EntryRecord>,
    pub problems: Vec<Problem>,
    /// Name of the entry whose data is being written.
    pub open: Vec<u8>,
    records: DeflateEncoder<Vec<u8>>,
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

    /// Appends a line to the records.
    pub(crate) fn record(&mut self, line: &[u8]) -> Result<()> {
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
