//! Writing a zip as a stream: no seeking, nothing written twice.
//!
//! Invariants: an entry is written by one call, or by `begin`, `data`…, `end`; the records of the central directory are
//! kept until `finish`. Every byte goes through one place that counts it and hashes it. After an error the archive is
//! not whole: it has no central directory, so nothing takes it for one.

use std::io::{self, BufWriter, Write};

use backstay_tree::fs::FileTime;
use libdeflater::Crc;
use sha2::{Digest as _, Sha256};

use super::{
    CENTRAL, DESCRIPTOR, END, END64, EXTRA_OWNER, EXTRA_TIME, EXTRA_ZIP64, FLAG_DESCRIPTOR, FLAG_UTF8, LOCAL,
    LOCATOR64, MADE_BY_UNIX, Method,
};

/// What fits 32 bits ends below this.
const MAX32: u64 = u32::MAX as u64;
/// From this size on a stream's descriptor has 64 bits. Below 4 GiB, since what is deflated can grow.
const WIDE_FROM: u64 = 0xFF00_0000;
/// Longest name that the format holds.
pub(crate) const NAME_MAX: usize = u16::MAX as usize;
/// Bytes that are collected before they are written.
const BUFFER: usize = 256 << 10;
/// Bit of the external attributes by which DOS knows folders.
const DOS_FOLDER: u32 = 0x10;

/// What an entry is, beside its content.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// As bytes; folders end with `/`.
    pub name: Vec<u8>,
    /// With the bits of the kind.
    pub mode: u32,
    pub mtime: FileTime,
    /// Owner and group.
    pub owner: (u32, u32),
}

/// Length and checks of an entry's content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    pub size: u64,
    pub crc: u32,
}

/// The sum of bytes that tells an altered entry, and where it lies.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    /// CRC-32 of everything that the entry has in the archive.
    pub crc: u32,
}

/// The whole archive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whole {
    pub size: u64,
    pub sha256: [u8; 32],
}

/// Little-endian numbers behind each other.
trait Put {
    fn u16(&mut self, value: u16) -> &mut Self;
    fn u32(&mut self, value: u32) -> &mut Self;
    fn u64(&mut self, value: u64) -> &mut Self;
}

impl Put for Vec<u8> {
    fn u16(&mut self, value: u16) -> &mut Self {
        self.extend_from_slice(&value.to_le_bytes());
        self
    }
    fn u32(&mut self, value: u32) -> &mut Self {
        self.extend_from_slice(&value.to_le_bytes());
        self
    }
    fn u64(&mut self, value: u64) -> &mut Self {
        self.extend_from_slice(&value.to_le_bytes());
        self
    }
}

/// The low 32 bits, or all ones when it does not fit.
fn low32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn low16(value: usize) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

/// Counts and hashes what is written.
struct Tally<W: Write> {
    /// Headers are small; each of them would be a system call.
    out: BufWriter<W>,
    count: u64,
    whole: Sha256,
    entry: Crc,
}

impl<W: Write> Tally<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.count += bytes.len() as u64;
        self.whole.update(bytes);
        self.entry.update(bytes);
        Ok(())
    }
}

/// A zip that is being written.
pub(crate) struct Container<W: Write> {
    out: Tally<W>,
    /// Records of the central directory.
    central: Vec<u8>,
    entries: u64,
    /// Any zip64 field anywhere.
    wide: bool,
    open: Option<Open>,
    scratch: Vec<u8>,
}

/// An entry whose data is being written.
struct Open {
    head: Head,
    offset: u64,
    wide: bool,
    data: u64,
}

impl<W: Write> Container<W> {
    pub(crate) fn new(out: W) -> Self {
        let out = BufWriter::with_capacity(BUFFER, out);
        let out = Tally { out, count: 0, whole: Sha256::new(), entry: Crc::new() };
        Container { out, central: Vec::new(), entries: 0, wide: false, open: None, scratch: Vec::new() }
    }

    /// Writes an entry whose packed bytes are all there.
    pub(crate) fn entry(
        &mut self,
        head: &Head,
        method: Method,
        content: Content,
        packed: &[u8],
    ) -> io::Result<Placed> {
        let offset = self.start();
        let packed_size = packed.len() as u64;
        let wide = packed_size >= MAX32 || content.size >= MAX32;
        let mut local = std::mem::take(&mut self.scratch);
        local_header(&mut local, head, method, Some((content, packed_size)), wide);
        self.out.put(&local)?;
        self.out.put(packed)?;
        self.scratch = local;
        Ok(self.record(head, method, content, packed_size, offset, Shape { wide, descriptor: false }))
    }

    /// Begins a deflated entry; `size` is what its content has at most, where that is known.
    pub(crate) fn begin(&mut self, head: Head, size: Option<u64>) -> io::Result<()> {
        let offset = self.start();
        let wide = size.is_none_or(|size| size >= WIDE_FROM);
        let mut local = std::mem::take(&mut self.scratch);
        local_header(&mut local, &head, Method::Deflated, None, wide);
        self.out.put(&local)?;
        self.scratch = local;
        self.open = Some(Open { head, offset, wide, data: 0 });
        Ok(())
    }

    /// The next deflated bytes of the entry that was begun.
    pub(crate) fn data(&mut self, packed: &[u8]) -> io::Result<()> {
        if let Some(open) = &mut self.open {
            open.data += packed.len() as u64;
        }
        self.out.put(packed)
    }

    /// Ends the entry that was begun.
    pub(crate) fn end(&mut self, content: Content) -> io::Result<Placed> {
        let Some(open) = self.open.take() else {
            return Err(io::Error::other("no entry was begun"));
        };
        if !open.wide && (open.data >= MAX32 || content.size >= MAX32) {
            return Err(io::Error::other("an entry became larger than was announced"));
        }
        let mut descriptor = Vec::with_capacity(24);
        descriptor.u32(DESCRIPTOR).u32(content.crc);
        if open.wide {
            descriptor.u64(open.data).u64(content.size);
        } else {
            descriptor.u32(low32(open.data)).u32(low32(content.size));
        }
        self.out.put(&descriptor)?;
        let shape = Shape { wide: open.wide, descriptor: true };
        Ok(self.record(&open.head, Method::Deflated, content, open.data, open.offset, shape))
    }

    fn start(&mut self) -> u64 {
        self.out.entry = Crc::new();
        self.out.count
    }

    fn record(
        &mut self,
        head: &Head,
        method: Method,
        content: Content,
        packed: u64,
        offset: u64,
        shape: Shape,
    ) -> Placed {
        let from = self.central.len();
        self.wide |= central_record(&mut self.central, head, method, content, packed, offset, shape);
        self.out.entry.update(self.central.get(from..).unwrap_or_default());
        self.entries += 1;
        Placed { crc: self.out.entry.sum() }
    }

    /// Bytes written so far.
    pub(crate) fn position(&self) -> u64 {
        self.out.count
    }

    /// Writes the central directory; gives back where it was written to.
    pub(crate) fn finish(mut self) -> io::Result<(W, Whole)> {
        let offset = self.out.count;
        let central = std::mem::take(&mut self.central);
        let size = central.len() as u64;
        for part in central.chunks(1 << 20) {
            self.out.put(part)?;
        }
        drop(central);
        let mut end = Vec::with_capacity(128);
        let entries = u16::try_from(self.entries).ok().filter(|n| *n != u16::MAX);
        if self.wide || entries.is_none() || size >= MAX32 || offset >= MAX32 {
            end.u32(END64).u64(44).u16(u16::from(MADE_BY_UNIX) << 8 | 45).u16(45).u32(0).u32(0);
            end.u64(self.entries).u64(self.entries).u64(size).u64(offset);
            end.u32(LOCATOR64).u32(0).u64(offset + size).u32(1);
        }
        let entries = entries.unwrap_or(u16::MAX);
        end.u32(END).u16(0).u16(0).u16(entries).u16(entries).u32(low32(size)).u32(low32(offset)).u16(0);
        self.out.put(&end)?;
        let whole = Whole { size: self.out.count, sha256: self.out.whole.finalize().into() };
        let mut out = self.out.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        out.flush()?;
        Ok((out, whole))
    }
}

/// How an entry's sizes are written.
#[derive(Clone, Copy)]
struct Shape {
    /// Its local header has zip64 sizes.
    wide: bool,
    /// Sizes and CRC come behind the data.
    descriptor: bool,
}

fn flags(head: &Head, descriptor: bool) -> u16 {
    let utf8 = !head.name.is_ascii() && std::str::from_utf8(&head.name).is_ok();
    (if utf8 { FLAG_UTF8 } else { 0 }) | if descriptor { FLAG_DESCRIPTOR } else { 0 }
}

fn version(method: Method, wide: bool) -> u16 {
    match (method, wide) {
        (_, true) => 45,
        (Method::Deflated, false) => 20,
        (Method::Stored, false) => 10,
    }
}

/// `known`: content and packed size; none: they follow in a descriptor.
fn local_header(out: &mut Vec<u8>, head: &Head, method: Method, known: Option<(Content, u64)>, wide: bool) {
    out.clear();
    let (time, date) = dos_time(head.mtime);
    out.u32(LOCAL).u16(version(method, wide)).u16(flags(head, known.is_none())).u16(method.number());
    out.u16(time).u16(date);
    let (crc, packed, size) =
        known.map_or((0, 0, 0), |(content, packed)| (content.crc, packed, content.size));
    let (low_packed, low_size) = if wide { (u32::MAX, u32::MAX) } else { (low32(packed), low32(size)) };
    out.u32(crc).u32(low_packed).u32(low_size).u16(low16(head.name.len()));
    let time = unix_time(head.mtime);
    out.u16((if wide { 20 } else { 0 }) + if time.is_some() { 9 } else { 0 } + 15);
    out.extend_from_slice(&head.name);
    if wide {
        out.u16(EXTRA_ZIP64).u16(16).u64(size).u64(packed);
    }
    time_field(out, time);
    out.u16(EXTRA_OWNER).u16(11);
    out.extend_from_slice(&[1, 4]);
    out.u32(head.owner.0);
    out.push(4);
    out.u32(head.owner.1);
}

/// Returns whether it has zip64 fields.
fn central_record(
    out: &mut Vec<u8>,
    head: &Head,
    method: Method,
    content: Content,
    packed: u64,
    offset: u64,
    shape: Shape,
) -> bool {
    let (time, date) = dos_time(head.mtime);
    let large = [content.size, packed, offset].map(|value| (value, value >= MAX32));
    let wide = large.iter().filter(|(_, large)| *large).count();
    let version = version(method, shape.wide || wide > 0);
    out.u32(CENTRAL).u16(u16::from(MADE_BY_UNIX) << 8 | version).u16(version);
    out.u16(flags(head, shape.descriptor)).u16(method.number()).u16(time).u16(date);
    out.u32(content.crc).u32(low32(packed)).u32(low32(content.size)).u16(low16(head.name.len()));
    let time = unix_time(head.mtime);
    let wide_len = if wide > 0 { 4 + 8 * wide } else { 0 };
    out.u16(low16(wide_len + if time.is_some() { 9 } else { 0 }));
    out.u16(0).u16(0).u16(0);
    out.u32(head.mode << 16 | if head.name.ends_with(b"/") { DOS_FOLDER } else { 0 }).u32(low32(offset));
    out.extend_from_slice(&head.name);
    if wide > 0 {
        out.u16(EXTRA_ZIP64).u16(low16(8 * wide));
        for (value, _) in large.iter().filter(|(_, large)| *large) {
            out.u64(*value);
        }
    }
    time_field(out, time);
    wide > 0
}

/// Seconds since 1970 where the field holds them.
fn unix_time(time: FileTime) -> Option<i32> {
    i32::try_from(time.secs).ok()
}

fn time_field(out: &mut Vec<u8>, time: Option<i32>) {
    if let Some(time) = time {
        out.u16(EXTRA_TIME).u16(5);
        out.push(1);
        out.extend_from_slice(&time.to_le_bytes());
    }
}

/// Time and date as DOS has them, in UTC, within 1980 to 2107.
fn dos_time(time: FileTime) -> (u16, u16) {
    const FIRST: i64 = 315_532_800;
    const LAST: i64 = 4_354_819_198;
    let secs = time.secs.clamp(FIRST, LAST);
    let Ok(at) = jiff::Timestamp::from_second(secs) else { return (0, 33) };
    let at = jiff::tz::Offset::UTC.to_datetime(at);
    let part = |value: i8| u16::try_from(value).unwrap_or(0);
    let year = u16::try_from(at.year() - 1980).unwrap_or(0);
    let clock = part(at.hour()) << 11 | part(at.minute()) << 5 | (part(at.second()) / 2);
    (clock, year << 9 | part(at.month()) << 5 | part(at.day()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dos_times_of_known_moments() {
        let at = |secs| dos_time(FileTime { secs, nanos: 0 });
        // 1980-01-01 00:00:00 and before, 2026-11-20 13:14:58, 2107-12-31 23:59:58 and after.
        assert_eq!((at(315_532_800), at(-1)), ((0, 33), (0, 33)));
        assert_eq!(at(1_795_180_498), (13 << 11 | 14 << 5 | 29, 46 << 9 | 11 << 5 | 20));
        assert_eq!(at(i64::MAX), (23 << 11 | 59 << 5 | 29, 127 << 9 | 12 << 5 | 31));
    }
}
