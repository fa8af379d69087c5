//! Reading the zip format, believing nothing.
//!
//! Invariants: no length or offset is used before it was compared with what there is; numbers are added with checks. The
//! central directory must end where the end record begins, and there must be only one end record that fits, so all
//! readers see the same directory. A record that cannot be read is told with its number, so that the caller can name
//! the entry from the manifest.

use backstay_model::{Code, Error, Result};

use super::{
    CENTRAL, CENTRAL_LEN, DESCRIPTOR, END, END_LEN, END64, END64_LEN, EXTRA_TIME, EXTRA_ZIP64, LOCAL,
    LOCAL_LEN, LOCATOR64, LOCATOR64_LEN,
};
use crate::bytes::Bytes;
use crate::limits::{DIRECTORY_MAX, ENTRIES_MAX};

/// An entry as the central directory has it.
#[derive(Clone, Debug)]
pub(crate) struct Central {
    pub name: Vec<u8>,
    /// Upper byte of "made by": 3 is Unix.
    pub made_by: u8,
    pub flags: u16,
    pub method: u16,
    /// DOS time and date.
    pub dos: (u16, u16),
    pub crc: u32,
    pub packed: u64,
    pub size: u64,
    /// Unix mode with the bits of the kind; 0 where there is none.
    pub mode: u32,
    /// Bit of DOS.
    pub dos_folder: bool,
    /// Of its local header.
    pub offset: u64,
    /// Seconds since 1970, where told.
    pub unix_time: Option<i32>,
    /// The record itself within the directory.
    pub record: std::ops::Range<usize>,
}

/// The central directory.
#[derive(Debug)]
pub(crate) struct Directory {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where it begins: everything before it belongs to entries.
    pub offset: u64,
    /// Entries that it should have.
    pub count: u64,
    /// Nothing lies behind the end record.
    pub no_comment: bool,
}

/// Little-endian numbers taken from the front of bytes.
struct Take<'b>(&'b [u8]);

impl<'b> Take<'b> {
    fn bytes(&mut self, len: usize) -> Option<&'b [u8]> {
        let (front, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(front)
    }
    fn u16(&mut self) -> Option<u16> {
        self.bytes(2)?.try_into().ok().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_le_bytes)
    }
}

pub(crate) fn damaged(why: impl std::fmt::Display) -> Error {
    Error::new(Code::ArchiveDamaged, format!("The zip is damaged: {why}"))
}

fn unsupported(why: &str) -> Error {
    Error::new(Code::ArchiveUnsupported, format!("The zip cannot be read: {why}"))
}

/// The end record: entries, size and offset of the directory, and where what follows the directory begins.
struct End {
    count: u64,
    size: u64,
    offset: u64,
    at: u64,
    comment: usize,
}

/// Finds and reads the central directory.
pub(crate) fn directory(bytes: &dyn Bytes) -> Result<Directory> {
    let size = bytes.size();
    let tail_len =
        usize::try_from(size.min((END_LEN + usize::from(u16::MAX) + LOCATOR64_LEN + END64_LEN) as u64))
            .unwrap_or(usize::MAX);
    let mut tail = vec![0; tail_len];
    let tail_at = size - tail_len as u64;
    bytes.read_at(&mut tail, tail_at)?;
    let end = end_record(&tail, tail_at)?;
    if end.offset.checked_add(end.size) != Some(end.at) {
        return Err(damaged("its directory does not end where the end of the zip begins"));
    }
    if end.count > ENTRIES_MAX as u64 {
        return Err(crate::limits::too_many());
    }
    if end.size > DIRECTORY_MAX {
        return Err(Error::new(
            Code::LimitExceeded,
            format!("A directory has at most {DIRECTORY_MAX} bytes"),
        ));
    }
    if end.count.saturating_mul(CENTRAL_LEN as u64) > end.size {
        return Err(damaged("it says that it has more entries than its directory can hold"));
    }
    let mut directory =
        vec![0; usize::try_from(end.size).map_err(|_large| damaged("its directory is too large"))?];
    bytes.read_at(&mut directory, end.offset)?;
    Ok(Directory { bytes: directory, offset: end.offset, count: end.count, no_comment: end.comment == 0 })
}

fn end_record(tail: &[u8], tail_at: u64) -> Result<End> {
    let mut found = None;
    for at in 0..=tail.len().saturating_sub(END_LEN) {
        let Some(record) = tail.get(at..).filter(|t| t.starts_with(&END.to_le_bytes()) && t.len() >= END_LEN)
        else {
            continue;
        };
        // The comment must reach to the last byte.
        let comment = record.get(20..22).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes);
        if record.len() == END_LEN + usize::from(comment) {
            if found.is_some() {
                return Err(damaged("it has two ends, and readers would not agree on one"));
            }
            found = Some((at, usize::from(comment)));
        }
    }
    let (at, comment) = found.ok_or_else(|| damaged("it has no end (it was cut off, or is no zip)"))?;
    let read = || {
        let mut take = Take(tail.get(at + 4..)?);
        let (disk, directory_disk) = (take.u16()?, take.u16()?);
        let (here, count) = (take.u16()?, take.u16()?);
        let (size, offset) = (take.u32()?, take.u32()?);
        Some((disk, directory_disk, here, count, size, offset))
    };
    let (disk, directory_disk, here, count, size, offset) =
        read().ok_or_else(|| damaged("its end is cut off"))?;
    if disk != 0 || directory_disk != 0 || here != count {
        return Err(unsupported("it is one of several parts"));
    }
    let locator = at.checked_sub(LOCATOR64_LEN).and_then(|l| tail.get(l..at));
    let locator = locator.filter(|l| l.starts_with(&LOCATOR64.to_le_bytes()));
    let plain = End {
        count: count.into(),
        size: size.into(),
        offset: offset.into(),
        at: tail_at + at as u64,
        comment,
    };
    let Some(locator) = locator else {
        return Ok(plain);
    };
    let end64_at = at - LOCATOR64_LEN;
    let wide = end64(tail, tail_at, end64_at, locator)?;
    let agrees = |narrow: u64, limit: u64, wide: u64| narrow == wide || narrow == limit;
    let same = agrees(plain.count, u16::MAX.into(), wide.count)
        && agrees(plain.size, u32::MAX.into(), wide.size)
        && agrees(plain.offset, u32::MAX.into(), wide.offset);
    if !same {
        return Err(damaged("its two ends say different things"));
    }
    Ok(End { comment, ..wide })
}

/// The end record of zip64, which must stand just before its locator.
fn end64(tail: &[u8], tail_at: u64, locator_at: usize, locator: &[u8]) -> Result<End> {
    let bad = || damaged("its end for large zips cannot be read");
    let read = || {
        let mut take = Take(locator.get(4..)?);
        let (disk, at, disks) = (take.u32()?, take.u64()?, take.u32()?);
        let start = usize::try_from(at.checked_sub(tail_at)?).ok()?;
        if disk != 0 || disks > 1 || start.checked_add(END64_LEN)? != locator_at {
            return None;
        }
        let mut take = Take(tail.get(start..locator_at)?);
        if take.u32()? != END64 || take.u64()? != 44 {
            return None;
        }
        take.bytes(4)?;
        let (disk, directory_disk) = (take.u32()?, take.u32()?);
        let (here, count) = (take.u64()?, take.u64()?);
        let (size, offset) = (take.u64()?, take.u64()?);
        (disk == 0 && directory_disk == 0 && here == count).then_some(End {
            count,
            size,
            offset,
            at,
            comment: 0,
        })
    };
    read().ok_or_else(bad)
}

/// The entry whose record begins at `at` in the directory.
pub(crate) fn central(directory: &[u8], at: usize) -> Result<Central, &'static str> {
    let read = || {
        let mut take = Take(directory.get(at..)?);
        if take.u32()? != CENTRAL {
            return None;
        }
        let made_by = take.u16()? >> 8;
        take.u16()?;
        let (flags, method) = (take.u16()?, take.u16()?);
        let dos = (take.u16()?, take.u16()?);
        let crc = take.u32()?;
        let (packed, size) = (take.u32()?, take.u32()?);
        let (name, extra, comment) = (take.u16()?, take.u16()?, take.u16()?);
        let disk = take.u16()?;
        take.u16()?;
        let external = take.u32()?;
        let offset = take.u32()?;
        let name = take.bytes(name.into())?.to_vec();
        let extra = take.bytes(extra.into())?;
        take.bytes(comment.into())?;
        let end = directory.len() - take.0.len();
        let made_by = u8::try_from(made_by).ok()?;
        let mode = if made_by == super::MADE_BY_UNIX { external >> 16 } else { 0 };
        let entry = Central {
            name,
            made_by,
            flags,
            method,
            dos,
            crc,
            packed: packed.into(),
            size: size.into(),
            mode,
            dos_folder: external & 0x10 != 0,
            offset: offset.into(),
            unix_time: None,
            record: at..end,
        };
        Some((entry, disk, extra))
    };
    let (mut entry, disk, extra) = read().ok_or("its record in the directory cannot be read")?;
    if disk != 0 && disk != u16::MAX {
        return Err("it is said to lie on another disk");
    }
    let mut wide = [(&mut entry.size, true), (&mut entry.packed, true), (&mut entry.offset, true)];
    for (value, is_wide) in &mut wide {
        *is_wide = **value == u64::from(u32::MAX);
    }
    let mut zip64_seen = false;
    for field in Extra(extra) {
        match field.ok_or("its extra fields cannot be read")? {
            (EXTRA_ZIP64, _) if zip64_seen => return Err("it has two fields of large sizes"),
            (EXTRA_ZIP64, bytes) => {
                zip64_seen = true;
                let mut take = Take(bytes);
                for (value, _) in wide.iter_mut().filter(|(_, is_wide)| *is_wide) {
                    **value = take.u64().ok_or("its field of large sizes is too short")?;
                }
            }
            (EXTRA_TIME, bytes) if bytes.first().is_some_and(|flags| flags & 1 != 0) => {
                entry.unix_time = bytes.get(1..5).and_then(|b| b.try_into().ok()).map(i32::from_le_bytes);
            }
            _ => {}
        }
    }
    Ok(entry)
}

/// Extra fields: number and bytes; none for what is no field.
struct Extra<'b>(&'b [u8]);

impl<'b> Iterator for Extra<'b> {
    type Item = Option<(u16, &'b [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut take = Take(self.0);
        let mut read = || {
            let (id, len) = (take.u16()?, take.u16()?);
            Some((id, take.bytes(len.into())?))
        };
        let field = read();
        self.0 = if field.is_some() { take.0 } else { &[] };
        Some(field)
    }
}

/// A local header, as far as it must agree with the central directory.
#[derive(Debug)]
pub(crate) struct Local {
    pub name: Vec<u8>,
    pub flags: u16,
    pub method: u16,
    pub crc: u32,
    pub packed: u64,
    pub size: u64,
    /// It has sizes of 64 bits, so its descriptor has.
    pub wide: bool,
    /// Bytes of the header with name and extra fields.
    pub len: u64,
}

/// How long the header that begins with these [`LOCAL_LEN`] bytes is.
pub(crate) fn local_len(fixed: &[u8]) -> Option<usize> {
    let mut take = Take(fixed);
    (take.u32()? == LOCAL).then_some(())?;
    take.bytes(22)?;
    Some(LOCAL_LEN + usize::from(take.u16()?) + usize::from(take.u16()?))
}

/// Reads a whole local header.
pub(crate) fn local(bytes: &[u8]) -> Option<Local> {
    let mut take = Take(bytes);
    (take.u32()? == LOCAL).then_some(())?;
    take.u16()?;
    let (flags, method) = (take.u16()?, take.u16()?);
    take.bytes(4)?;
    let (crc, packed, size) = (take.u32()?, take.u32()?, take.u32()?);
    let (name, extra) = (take.u16()?, take.u16()?);
    let name = take.bytes(name.into())?.to_vec();
    let extra = take.bytes(extra.into())?;
    let mut local = Local {
        name,
        flags,
        method,
        crc,
        packed: packed.into(),
        size: size.into(),
        wide: false,
        len: bytes.len() as u64,
    };
    for field in Extra(extra) {
        // Padding of a few bytes at the end is not a field; some writers align with it.
        let Some((EXTRA_ZIP64, bytes)) = field else { continue };
        if local.wide {
            return None;
        }
        local.wide = true;
        let mut take = Take(bytes);
        for value in [&mut local.size, &mut local.packed] {
            if *value == u64::from(u32::MAX) {
                *value = take.u64()?;
            }
        }
    }
    Some(local)
}

/// Whether the bytes between an entry's data and the next entry are its data descriptor. Writers differ in signature
/// and width; where both ends are known there is no doubt which one it is.
pub(crate) fn is_descriptor(bytes: &[u8], entry: &Central) -> bool {
    let mut take = Take(bytes);
    if matches!(bytes.len(), 16 | 24) && take.u32() != Some(DESCRIPTOR) {
        return false;
    }
    let large = matches!(bytes.len(), 20 | 24);
    let mut read = || {
        let crc = take.u32()?;
        let size = |take: &mut Take<'_>| if large { take.u64() } else { take.u32().map(u64::from) };
        let (packed, size) = (size(&mut take)?, size(&mut take)?);
        Some(take.0.is_empty() && (crc, packed, size) == (entry.crc, entry.packed, entry.size))
    };
    read().unwrap_or(false)
}

/// Bits of the kind in a Unix mode.
const KIND: u32 = 0o170_000;

impl Central {
    pub(crate) fn is_folder(&self) -> bool {
        self.name.ends_with(b"/") || self.mode & KIND == 0o040_000 || (self.made_by == 0 && self.dos_folder)
    }

    pub(crate) fn is_link(&self) -> bool {
        self.mode & KIND == 0o120_000
    }

    /// Neither a file nor a folder nor a link.
    pub(crate) fn is_special(&self) -> bool {
        !matches!(self.mode & KIND, 0 | 0o100_000 | 0o040_000 | 0o120_000)
    }
}
