//! The bytes of the entries: headers, content, and that nothing lies between them.

use backstay_model::Result;
use libdeflater::Crc;
use sha2::{Digest as _, Sha256};

use super::Check;
use crate::bytes::{Forward, Watch};
use crate::contents::{Contents, Lines, Seen, Target};
use crate::flaw::{Finding, Flaw};
use crate::inflate::Unpacker;
use crate::record::METADATA;
use crate::zip::read::{Central, Directory, is_descriptor, local, local_len};
use crate::zip::{FLAG_DESCRIPTOR, FLAG_ENCRYPTED, FLAG_UTF8, LOCAL_LEN};

/// Longest target of a link that is read.
const TARGET_MAX: u64 = 64 << 10;
/// Most bytes between an entry's data and the next entry.
const DESCRIPTOR_MAX: u64 = 24;

impl Check<'_> {
    /// Reads everything once. None: what follows would not mean anything.
    pub(super) fn data(&mut self, directory: &Directory, entries: &[Central]) -> Result<Option<Seen>> {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|n| entries.get(*n).map(|entry| entry.offset));
        if !self.regions(directory, entries, &order) {
            return Ok(None);
        }
        let mut whole = Sha256::new();
        let zip = std::sync::Arc::clone(&self.zip);
        let mut watch = |bytes: &[u8]| whole.update(bytes);
        let watch: Watch<'_> = &mut watch;
        let mut from = Forward::new(&*zip, 0, Some(watch));
        let mut unpacker = Unpacker::new();
        let mut seen = Seen::new(entries.len());
        for (place, number) in order.iter().enumerate() {
            self.cancel.check()?;
            let Some(entry) = entries.get(*number) else { continue };
            let next = order.get(place + 1).and_then(|n| entries.get(*n));
            let end = next.map_or(directory.offset, |next| next.offset);
            self.entry(&mut from, &mut unpacker, (*number, entry), end, directory, &mut seen)?;
            self.progress.done(1, entry.size);
        }
        from.finish()?;
        let sha256 = <[u8; 32]>::from(whole.finalize());
        self.sha256 = Some(sha256);
        if let Some(manifest) = self.manifest
            && sha256 != manifest.zip.sha256
            && !self.findings.any_fatal()
        {
            let detail =
                "its bytes are not those that were written (beside the entries: its directory or end)";
            self.findings.push(Finding::of_archive(Flaw::Archive, detail));
        }
        Ok(Some(seen))
    }

    /// The entries must lie behind each other, from the first byte to the directory.
    fn regions(&mut self, directory: &Directory, entries: &[Central], order: &[usize]) -> bool {
        let before = self.findings.count();
        let mut at = 0;
        let mut last: &[u8] = &[];
        for entry in order.iter().filter_map(|n| entries.get(*n)) {
            let end = entry.offset.checked_add(LOCAL_LEN as u64 + entry.name.len() as u64);
            let end = end.and_then(|end| end.checked_add(entry.packed));
            let Some(end) = end.filter(|end| *end <= directory.offset) else {
                let detail = "it is said to lie where the zip's directory lies, or behind it";
                self.findings.push(Finding::of_entry(&entry.name, Flaw::Overlap, detail));
                continue;
            };
            if entry.offset < at {
                // Either of the two may be the one that lies.
                for name in [last, &entry.name] {
                    let detail = "it lies where another entry lies";
                    self.findings.push(Finding::of_entry(name, Flaw::Overlap, detail));
                }
            }
            if end >= at {
                at = end;
                last = &entry.name;
            }
        }
        match order.first().and_then(|n| entries.get(*n)) {
            Some(first) if first.offset != 0 => {
                let detail = "there are bytes before it that belong to nothing";
                self.findings.push(Finding::of_entry(&first.name, Flaw::Overlap, detail));
            }
            None if directory.offset != 0 => {
                let detail = "there are bytes that belong to nothing";
                self.findings.push(Finding::of_archive(Flaw::Overlap, detail));
            }
            _ => {}
        }
        self.findings.count() == before
    }

    fn entry(
        &mut self,
        from: &mut Forward<'_>,
        unpacker: &mut Unpacker,
        (number, entry): (usize, &Central),
        end: u64,
        directory: &Directory,
        seen: &mut Seen,
    ) -> Result<()> {
        let mut raw = Crc::new();
        let known =
            self.manifest.and_then(|m| m.entries.get(number)).filter(|known| known.name == entry.name);
        let before = self.findings.count();
        let Some(start) = self.header(from, entry, &mut raw)? else { return Ok(()) };
        let data_end = start.checked_add(entry.packed).filter(|data_end| *data_end <= end);
        let Some(data_end) = data_end else {
            let detail = "its data reaches into the next entry";
            self.findings.push(Finding::of_entry(&entry.name, Flaw::Overlap, detail));
            return Ok(());
        };
        let mut crc = Crc::new();
        let mut sha256 = Sha256::new();
        let mut lines = (self.vouched && entry.name == METADATA.as_bytes()).then(Lines::new);
        let mut target = (entry.is_link() && entry.size <= TARGET_MAX).then(Vec::new);
        let mut out = |bytes: &[u8]| {
            crc.update(bytes);
            if known.is_some() {
                sha256.update(bytes);
            }
            if let Some(lines) = &mut lines {
                lines.take(bytes);
            }
            if let Some(target) = &mut target {
                target.extend_from_slice(bytes);
            }
            Ok(())
        };
        let unpacked = if self.can_unpack(entry) {
            unpacker.entry(from, entry, start, &mut raw, &mut out)?
        } else {
            return Ok(());
        };
        match unpacked {
            Err(why) => self.findings.push(Finding::of_entry(&entry.name, Flaw::Content, why)),
            Ok(()) if crc.sum() != entry.crc => {
                let detail = "its content does not match its checksum";
                self.findings.push(Finding::of_entry(&entry.name, Flaw::Content, detail));
            }
            Ok(()) => {}
        }
        self.behind(from, entry, (data_end, end), &mut raw)?;
        raw.update(directory.bytes.get(entry.record.clone()).unwrap_or_default());
        if let Some(known) = known
            && self.findings.count() == before
        {
            if <[u8; 32]>::from(sha256.finalize()) != known.sha256 {
                let detail = "its content is not what was written";
                self.findings.push(Finding::of_entry(&entry.name, Flaw::Content, detail));
            } else if raw.sum() != known.crc {
                let detail = "its bytes in the zip are not those that were written";
                self.findings.push(Finding::of_entry(&entry.name, Flaw::Header, detail));
            }
        }
        if let Some(lines) = lines {
            seen.lines = Some(lines);
        }
        if let Some(target) = target {
            seen.targets.insert(number, Target(target));
        }
        Ok(())
    }

    /// Compares the local header with the directory; gives where the data begins. None: that is not known.
    fn header(&mut self, from: &mut Forward<'_>, entry: &Central, raw: &mut Crc) -> Result<Option<u64>> {
        let mut tell = |detail: &str| {
            self.findings.push(Finding::of_entry(&entry.name, Flaw::Header, detail));
        };
        let len = local_len(from.get(entry.offset, LOCAL_LEN)?);
        let fits = |len: &usize| {
            let end = entry.offset.checked_add(*len as u64);
            end.is_some_and(|end| end <= self.zip.size())
        };
        let Some(len) = len.filter(fits) else {
            tell("its local header cannot be read");
            return Ok(None);
        };
        let bytes = from.get(entry.offset, len)?;
        let Some(header) = local(bytes) else {
            tell("its local header cannot be read");
            return Ok(None);
        };
        raw.update(bytes);
        const FLAGS: u16 = FLAG_ENCRYPTED | FLAG_DESCRIPTOR | FLAG_UTF8;
        if header.name != entry.name {
            tell("its local header has another name than the directory");
        }
        if header.method != entry.method || header.flags & FLAGS != entry.flags & FLAGS {
            tell("its local header says another compression than the directory");
        }
        let sizes = (header.crc, header.packed, header.size);
        let same = sizes == (entry.crc, entry.packed, entry.size);
        let later = entry.flags & FLAG_DESCRIPTOR != 0 && sizes == (0, 0, 0);
        if !same && !later {
            tell("its local header has another size or checksum than the directory");
        }
        Ok(Some(entry.offset + header.len))
    }

    fn can_unpack(&mut self, entry: &Central) -> bool {
        let why = if entry.flags & (FLAG_ENCRYPTED | 1 << 6 | 1 << 13) != 0 {
            "it is encrypted"
        } else if !matches!(entry.method, 0 | 8) {
            "its compression is not known"
        } else {
            return true;
        };
        // Nothing that we wrote is: then it is damage.
        let flaw = if self.vouched { Flaw::Header } else { Flaw::Unsupported };
        self.findings.push(Finding::of_entry(&entry.name, flaw, why));
        false
    }

    /// What stands between the data and the next entry: a descriptor or nothing.
    fn behind(
        &mut self,
        from: &mut Forward<'_>,
        entry: &Central,
        (start, end): (u64, u64),
        raw: &mut Crc,
    ) -> Result<()> {
        let len = end.saturating_sub(start);
        let mut tell = |flaw, detail: &str| self.findings.push(Finding::of_entry(&entry.name, flaw, detail));
        let descriptor = entry.flags & FLAG_DESCRIPTOR != 0;
        if len > DESCRIPTOR_MAX || (len > 0 && !descriptor) {
            tell(Flaw::Overlap, "behind its data there are bytes that belong to nothing");
            return Ok(());
        }
        let bytes = from.get(start, usize::try_from(len).unwrap_or(0))?;
        raw.update(bytes);
        if descriptor && !is_descriptor(bytes, entry) {
            tell(Flaw::Header, "what stands behind its data does not match the directory");
        }
        Ok(())
    }

    /// Everything together: the tree that would be restored.
    pub(super) fn contents(
        &mut self,
        entries: Vec<Central>,
        paths: Vec<Option<Vec<u8>>>,
        seen: Seen,
        dumps: Vec<String>,
    ) -> Option<Contents> {
        let zip = std::sync::Arc::clone(&self.zip);
        Contents::build(zip, entries, paths, seen, self.manifest, dumps, &mut self.findings)
    }
}
