//! Zips made by hand, with every field as a test wants it.

use backstay_archive::{EntryRecord, Written};
use sha2::{Digest as _, Sha256};

/// One entry; what is none is as it must be.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    pub name: Vec<u8>,
    pub local_name: Option<Vec<u8>>,
    pub made_by: u8,
    pub flags: u16,
    pub local_flags: Option<u16>,
    pub method: u16,
    pub local_method: Option<u16>,
    /// What comes out.
    pub plain: Vec<u8>,
    /// What lies in the zip.
    pub packed: Vec<u8>,
    pub crc: Option<u32>,
    pub packed_size: Option<u32>,
    pub size: Option<u32>,
    /// CRC, packed size, size.
    pub local_sizes: Option<(u32, u32, u32)>,
    pub mode: u32,
    pub extra: Vec<u8>,
    pub local_extra: Vec<u8>,
    /// Bytes behind the data.
    pub behind: Vec<u8>,
    pub offset: Option<u32>,
    pub disk: u16,
    pub comment: Vec<u8>,
    /// It has no local header and no data.
    pub no_local: bool,
    /// It has no record in the directory.
    pub no_central: bool,
}

impl Entry {
    pub fn stored(name: impl AsRef<[u8]>, bytes: &[u8]) -> Self {
        Entry {
            name: name.as_ref().to_vec(),
            made_by: 3,
            plain: bytes.to_vec(),
            packed: bytes.to_vec(),
            mode: 0o100_644,
            ..Entry::default()
        }
    }

    pub fn deflated(name: impl AsRef<[u8]>, bytes: &[u8]) -> Self {
        let mut packer = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let mut packed = vec![0; packer.deflate_compress_bound(bytes.len())];
        let len = packer.deflate_compress(bytes, &mut packed).unwrap();
        packed.truncate(len);
        Entry { method: 8, packed, ..Entry::stored(name, bytes) }
    }

    pub fn folder(name: &str) -> Self {
        Entry { mode: 0o040_755, ..Entry::stored(name, b"") }
    }

    pub fn link(name: &str, target: &str) -> Self {
        Entry { mode: 0o120_777, ..Entry::stored(name, target.as_bytes()) }
    }
}

/// A zip.
#[derive(Clone, Debug, Default)]
pub struct Craft {
    pub before: Vec<u8>,
    pub entries: Vec<Entry>,
    /// Between the entries and the directory.
    pub between: Vec<u8>,
    pub after_directory: Vec<u8>,
    pub count: Option<u16>,
    pub count_here: Option<u16>,
    pub directory_size: Option<u32>,
    pub directory_offset: Option<u32>,
    pub disk: u16,
    pub comment: Vec<u8>,
    pub comment_len: Option<u16>,
    pub after: Vec<u8>,
}

fn narrow(len: usize) -> u32 {
    u32::try_from(len).unwrap()
}

fn short(len: usize) -> u16 {
    u16::try_from(len).unwrap()
}

impl Craft {
    pub fn of(entries: Vec<Entry>) -> Self {
        Craft { entries, ..Craft::default() }
    }

    pub fn zip(&self) -> Vec<u8> {
        self.build().0
    }

    /// The zip and, for each entry, all the bytes it has.
    fn build(&self) -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut zip = self.before.clone();
        let mut parts = Vec::new();
        let mut directory: Vec<u8> = Vec::new();
        for entry in &self.entries {
            let at = narrow(zip.len());
            let crc = entry.crc.unwrap_or_else(|| libdeflater::crc32(&entry.plain));
            let packed_size = entry.packed_size.unwrap_or_else(|| narrow(entry.packed.len()));
            let size = entry.size.unwrap_or_else(|| narrow(entry.plain.len()));
            let mut local: Vec<u8> = Vec::new();
            if !entry.no_local {
                let name = entry.local_name.as_ref().unwrap_or(&entry.name);
                let sizes = entry.local_sizes.unwrap_or((crc, packed_size, size));
                local.extend(b"PK\x03\x04\x14\x00");
                local.extend(entry.local_flags.unwrap_or(entry.flags).to_le_bytes());
                local.extend(entry.local_method.unwrap_or(entry.method).to_le_bytes());
                local.extend([0, 0, 33, 0]);
                local.extend([sizes.0, sizes.1, sizes.2].map(u32::to_le_bytes).concat());
                local.extend(short(name.len()).to_le_bytes());
                local.extend(short(entry.local_extra.len()).to_le_bytes());
                local.extend(name);
                local.extend(&entry.local_extra);
                local.extend(&entry.packed);
                local.extend(&entry.behind);
            }
            zip.extend(&local);
            let mut central: Vec<u8> = Vec::new();
            if !entry.no_central {
                central.extend(b"PK\x01\x02\x14");
                central.extend([entry.made_by, 20, 0]);
                central.extend(entry.flags.to_le_bytes());
                central.extend(entry.method.to_le_bytes());
                central.extend([0, 0, 33, 0]);
                central.extend([crc, packed_size, size].map(u32::to_le_bytes).concat());
                central.extend(short(entry.name.len()).to_le_bytes());
                central.extend(short(entry.extra.len()).to_le_bytes());
                central.extend(short(entry.comment.len()).to_le_bytes());
                central.extend(entry.disk.to_le_bytes());
                central.extend([0, 0]);
                central.extend((entry.mode << 16).to_le_bytes());
                central.extend(entry.offset.unwrap_or(at).to_le_bytes());
                central.extend(&entry.name);
                central.extend(&entry.extra);
                central.extend(&entry.comment);
            }
            directory.extend(&central);
            parts.push([local, central].concat());
        }
        zip.extend(&self.between);
        let offset = narrow(zip.len());
        let size = narrow(directory.len());
        zip.extend(directory);
        zip.extend(&self.after_directory);
        let count =
            self.count.unwrap_or_else(|| short(self.entries.iter().filter(|e| !e.no_central).count()));
        zip.extend(b"PK\x05\x06");
        zip.extend(self.disk.to_le_bytes());
        zip.extend(self.disk.to_le_bytes());
        zip.extend(self.count_here.unwrap_or(count).to_le_bytes());
        zip.extend(count.to_le_bytes());
        zip.extend(self.directory_size.unwrap_or(size).to_le_bytes());
        zip.extend(self.directory_offset.unwrap_or(offset).to_le_bytes());
        zip.extend(self.comment_len.unwrap_or_else(|| short(self.comment.len())).to_le_bytes());
        zip.extend(&self.comment);
        zip.extend(&self.after);
        (zip, parts)
    }

    /// The zip with what a manifest would say of it.
    pub fn written(&self) -> (Vec<u8>, Written) {
        let (zip, parts) = self.build();
        let record = |(entry, part): (&Entry, &Vec<u8>)| EntryRecord {
            name: entry.name.clone(),
            size: entry.plain.len() as u64,
            sha256: Sha256::digest(&entry.plain).into(),
            crc: libdeflater::crc32(part),
        };
        let written = Written {
            size: zip.len() as u64,
            sha256: Sha256::digest(&zip).into(),
            entries: self.entries.iter().zip(&parts).map(record).collect(),
            problems: Vec::new(),
        };
        (zip, written)
    }
}
