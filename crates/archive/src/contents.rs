//! What an archive holds, once it was looked at.
//!
//! Invariants: made only by [`crate::verify`], when nothing is wrong. Nodes stand in an order in which each comes behind its
//! folder, and the folder of each is a node that is a folder; a further name of a file comes behind the first one. Content is
//! checked again when it is read, since the archive may have changed since.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_model::{Code, Error, Result};
use libdeflater::Crc;
use sha2::{Digest as _, Sha256};

use crate::bytes::{Bytes, Forward};
use crate::flaw::{Finding, Findings, Flaw};
use crate::inflate::Unpacker;
use crate::limits::ENTRIES_MAX;
use crate::manifest::Manifest;
use crate::names;
use crate::record::{LINE_MAX, METADATA, Record, RecordKind, check_first_line, damaged};
use crate::zip::LOCAL_LEN;
use crate::zip::read::{Central, local_len};

mod foreign;

/// Bytes of extra fields that a local header has, about.
const EXTRA: u64 = 256;

/// Lines of [`METADATA`] as they are unpacked.
pub(crate) struct Lines {
    partial: Vec<u8>,
    number: u64,
    records: Vec<Record>,
    error: Option<Error>,
}

impl Lines {
    pub(crate) fn new() -> Self {
        Lines { partial: Vec::new(), number: 0, records: Vec::new(), error: None }
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|b| *b == b'\n') {
            let (line, after) = rest.split_at(at);
            rest = after.get(1..).unwrap_or_default();
            let mut whole = std::mem::take(&mut self.partial);
            whole.extend_from_slice(line);
            self.line(&whole);
            whole.clear();
            self.partial = whole;
        }
        if self.partial.len() + rest.len() > LINE_MAX {
            self.error.get_or_insert(damaged(self.number + 1, "the line is too long"));
            self.partial.clear();
        } else {
            self.partial.extend_from_slice(rest);
        }
    }

    fn line(&mut self, line: &[u8]) {
        self.number += 1;
        if self.error.is_some() {
            return;
        }
        let read = if self.number == 1 {
            check_first_line(line)
        } else if self.records.len() >= ENTRIES_MAX {
            Err(crate::limits::too_many())
        } else {
            Record::read(line, self.number).map(|record| self.records.push(record))
        };
        self.error = read.err();
    }

    fn finish(self) -> Result<Vec<Record>> {
        match self.error {
            Some(e) => Err(e),
            None if !self.partial.is_empty() || self.number == 0 => {
                Err(damaged(self.number + 1, "it is cut off"))
            }
            None => Ok(self.records),
        }
    }
}

/// The target of a symbolic link.
pub(crate) struct Target(pub Vec<u8>);

/// What was found in the content of entries.
pub(crate) struct Seen {
    pub lines: Option<Lines>,
    /// By number of the entry.
    pub targets: HashMap<usize, Target>,
}

impl Seen {
    pub(crate) fn new(_entries: usize) -> Self {
        Seen { lines: None, targets: HashMap::new() }
    }
}

/// An entry of the home.
#[derive(Clone, Debug)]
pub struct Node {
    /// All about it but its content.
    pub record: Record,
    /// Number of its entry in the zip; none for FIFOs, devices and folders that are only implied.
    entry: Option<usize>,
}

/// Something that lies beside the home.
#[derive(Clone, Debug)]
pub struct Beside {
    /// Its name in the zip.
    pub name: String,
    /// Bytes.
    pub size: u64,
    entry: usize,
}

/// What an archive holds.
pub struct Contents {
    zip: Arc<dyn Bytes>,
    entries: Vec<Central>,
    /// By number of the entry, where the manifest says it.
    hashes: Vec<[u8; 32]>,
    nodes: Vec<Node>,
    beside: Vec<Beside>,
    dumps: Vec<String>,
    manifest: Option<Manifest>,
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Contents({}, {} nodes)", self.zip.name(), self.nodes.len())
    }
}

/// Receives content piece by piece.
pub type Receive<'r> = dyn FnMut(&[u8]) -> Result<()> + 'r;

impl Contents {
    /// The entries of the home, each behind its folder; the first is the home itself.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What lies beside the home: dumps, settings.
    #[must_use]
    pub fn beside(&self) -> &[Beside] {
        &self.beside
    }

    /// The manifest; none for archives that were accepted without.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// Names of dumps beside the home.
    pub fn dumps(&self) -> impl Iterator<Item = &str> {
        let known = self.manifest.iter().flat_map(|m| m.databases.iter().map(|d| d.file.as_str()));
        known.chain(self.dumps.iter().map(String::as_str))
    }

    /// Gives the content of an entry beside the home. The last piece is given before the whole is known to be right: use
    /// what was given only after this returned.
    pub fn read_beside(&self, name: &str, receive: &mut Receive<'_>) -> Result<()> {
        let found = self.beside.iter().find(|beside| beside.name == name);
        let found = found.ok_or_else(|| {
            let name = name.escape_debug();
            Error::new(Code::PathNotFound, format!("The archive has no `{name}`"))
        })?;
        let mut from = Forward::new(&*self.zip, 0, None);
        self.read(&mut from, &mut Unpacker::new(), found.entry, receive)
    }

    /// Gives the content of a file of the home, in the same way.
    pub fn read_node(&self, node: &Node, receive: &mut Receive<'_>) -> Result<()> {
        let mut from = Forward::new(&*self.zip, 0, None);
        self.read_with(&mut from, &mut Unpacker::new(), node, receive)
    }

    /// Gives the content of several files of the home, by their numbers among [`Contents::nodes`], each with its number:
    /// first all of one, then all of the next, in the order in which they lie ([`Contents::place`]).
    pub fn read_nodes(
        &self,
        numbers: &[usize],
        receive: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let node = |number: &usize| self.nodes.get(*number);
        let mut order: Vec<(u64, usize)> =
            numbers.iter().filter_map(|n| Some((self.place(node(n)?), *n))).collect();
        order.sort_unstable();
        let last = order.last().and_then(|(_, n)| self.entries.get(node(n)?.entry?));
        let end = last.map_or(0, |entry| {
            let header = LOCAL_LEN as u64 + entry.name.len() as u64 + EXTRA;
            entry.offset.saturating_add(header).saturating_add(entry.packed)
        });
        let mut from = Forward::new(&*self.zip, 0, None).until(end);
        let mut unpacker = Unpacker::new();
        for (_, number) in order {
            let Some(node) = node(&number) else { continue };
            self.read_with(&mut from, &mut unpacker, node, &mut |bytes| receive(number, bytes))?;
        }
        Ok(())
    }

    /// The same with what is kept between entries. `from` goes forwards only.
    pub(crate) fn read_with(
        &self,
        from: &mut Forward<'_>,
        unpacker: &mut Unpacker,
        node: &Node,
        receive: &mut Receive<'_>,
    ) -> Result<()> {
        match node.entry {
            Some(entry) => self.read(from, unpacker, entry, receive),
            None => Ok(()),
        }
    }

    /// Where an entry lies: reading in the order of the places reads forwards.
    #[must_use]
    pub fn place(&self, node: &Node) -> u64 {
        node.entry.and_then(|n| self.entries.get(n)).map_or(0, |entry| entry.offset)
    }

    pub(crate) fn forward(&self) -> Forward<'_> {
        Forward::new(&*self.zip, 0, None)
    }

    fn read(
        &self,
        from: &mut Forward<'_>,
        unpacker: &mut Unpacker,
        number: usize,
        receive: &mut Receive<'_>,
    ) -> Result<()> {
        let entry =
            self.entries.get(number).ok_or_else(|| Error::new(Code::Internal, "An entry is not there"))?;
        let changed = || {
            let name = Finding::of_entry(&entry.name, Flaw::Content, "").entry;
            Error::new(
                Code::ArchiveDamaged,
                format!("{name} is not what it was when the archive was looked at"),
            )
        };
        let header = local_len(from.get(entry.offset, LOCAL_LEN)?).ok_or_else(changed)?;
        let start = entry.offset + header as u64;
        let (mut crc, mut sha256) = (Crc::new(), Sha256::new());
        let known = self.hashes.get(number);
        let mut out = |bytes: &[u8]| {
            crc.update(bytes);
            if known.is_some() {
                sha256.update(bytes);
            }
            receive(bytes)
        };
        unpacker.entry(from, entry, start, &mut Crc::new(), &mut out)?.map_err(|_flaw| changed())?;
        let right = match known {
            Some(known) => <[u8; 32]>::from(sha256.finalize()) == *known,
            None => crc.sum() == entry.crc,
        };
        if right { Ok(()) } else { Err(changed()) }
    }

    pub(crate) fn with_manifest(mut self, manifest: Option<Manifest>) -> Self {
        self.manifest = manifest;
        self
    }

    /// Puts together what was seen; tells what does not fit.
    pub(crate) fn build(
        zip: Arc<dyn Bytes>,
        entries: Vec<Central>,
        paths: Vec<Option<Vec<u8>>>,
        seen: Seen,
        manifest: Option<&Manifest>,
        dumps: Vec<String>,
        findings: &mut Findings,
    ) -> Option<Self> {
        let paths: Vec<Vec<u8>> = paths.into_iter().collect::<Option<_>>()?;
        let hashes = manifest.map(|m| m.entries.iter().map(|e| e.sha256).collect()).unwrap_or_default();
        let mut contents =
            Contents { zip, entries, hashes, nodes: Vec::new(), beside: Vec::new(), dumps, manifest: None };
        if manifest.is_some() {
            contents.own(&paths, seen, findings);
        } else {
            contents.foreign(&paths, &seen, findings);
        }
        Some(contents)
    }

    /// The tree as [`METADATA`] has it.
    fn own(&mut self, paths: &[Vec<u8>], seen: Seen, findings: &mut Findings) {
        let records = match seen.lines.map(Lines::finish) {
            Some(Ok(records)) => records,
            Some(Err(e)) => {
                let flaw =
                    if e.code() == Code::ArchiveUnsupported { Flaw::Unsupported } else { Flaw::Metadata };
                return findings.push(Finding::of_entry(METADATA.as_bytes(), flaw, e.message()));
            }
            None => {
                let detail = "it is missing";
                return findings.push(Finding::of_entry(METADATA.as_bytes(), Flaw::Missing, detail));
            }
        };
        let mut places: HashMap<&[u8], usize> = HashMap::new();
        for (number, path) in paths.iter().enumerate() {
            match path.strip_prefix(b"fs/").or((path == b"fs").then_some(b"".as_slice())) {
                Some(below) => {
                    places.insert(below, number);
                }
                None => self.beside_entry(number, path, findings),
            }
        }
        let mut tree = Tree { contents: self, places, known: HashMap::new(), seen: &seen.targets };
        for record in records {
            let name = [b"fs/", record.path.as_os_str().as_bytes()].concat();
            if let Err(why) = tree.add(record) {
                findings.push(Finding::of_entry(&name, Flaw::Metadata, why));
            }
        }
        let left: Vec<usize> = tree.places.into_values().collect();
        for number in left {
            if let Some(entry) = self.entries.get(number) {
                let detail = format!("{METADATA} does not have it");
                findings.push(Finding::of_entry(&entry.name, Flaw::Metadata, detail));
            }
        }
    }

    fn beside_entry(&mut self, number: usize, path: &[u8], findings: &mut Findings) {
        let Some(entry) = self.entries.get(number) else { return };
        match std::str::from_utf8(path) {
            Ok(name) if crate::place::is_root_name(name) && !entry.is_folder() && !entry.is_link() => {
                if name != METADATA {
                    self.beside.push(Beside { name: name.to_owned(), size: entry.size, entry: number });
                }
            }
            _ => findings.push(Finding::of_entry(
                &entry.name,
                Flaw::UnsafeName,
                "it is no name of something beside the home",
            )),
        }
    }
}

/// The tree while it grows.
struct Tree<'t> {
    contents: &'t mut Contents,
    /// Entries of the zip by path below the home, those that no record has named yet.
    places: HashMap<&'t [u8], usize>,
    /// Number of the node by path.
    known: HashMap<PathBuf, usize>,
    seen: &'t HashMap<usize, Target>,
}

impl Tree<'_> {
    fn add(&mut self, record: Record) -> Result<(), &'static str> {
        let path = record.path.as_os_str().as_bytes();
        if path.is_empty() {
            if record.kind != RecordKind::Folder {
                return Err("the home is no folder");
            }
        } else {
            names::check(path)?;
            let folder = record.path.parent().unwrap_or(Path::new(""));
            let folder = self.known.get(folder).and_then(|n| self.contents.nodes.get(*n));
            if folder.is_none_or(|folder| folder.record.kind != RecordKind::Folder) {
                return Err("its folder does not come before it");
            }
        }
        if self.known.contains_key(&record.path) {
            return Err("it is described twice");
        }
        let entry = self.entry(&record)?;
        self.link(&record, entry)?;
        check_sparse(&record)?;
        self.known.insert(record.path.clone(), self.contents.nodes.len());
        self.contents.nodes.push(Node { record, entry });
        Ok(())
    }

    /// The entry of the zip that a record describes.
    fn entry(&mut self, record: &Record) -> Result<Option<usize>, &'static str> {
        let number = self.places.remove(record.path.as_os_str().as_bytes());
        let entry = number.and_then(|n| self.contents.entries.get(n));
        match (record.kind, entry) {
            (RecordKind::Fifo | RecordKind::Char | RecordKind::Block, None) => Ok(None),
            (_, None) => Err("it has no entry in the zip"),
            (RecordKind::Folder, Some(entry)) if entry.is_folder() && entry.size == 0 => Ok(number),
            (RecordKind::File, Some(entry))
                if !entry.is_folder() && !entry.is_link() && entry.size == record.size =>
            {
                Ok(number)
            }
            (RecordKind::Symlink, Some(entry)) if entry.is_link() => {
                let target = number.and_then(|n| self.seen.get(&n)).map(|t| OsStr::from_bytes(&t.0));
                if target.is_some() && target == record.target.as_deref() {
                    Ok(number)
                } else {
                    Err("its target is another one than its entry has")
                }
            }
            _ => Err("its entry in the zip is of another kind or size"),
        }
    }

    /// A further name must be the same as the first one.
    fn link(&self, record: &Record, entry: Option<usize>) -> Result<(), &'static str> {
        let Some(link) = &record.link else { return Ok(()) };
        let first = self.known.get(link).and_then(|n| self.contents.nodes.get(*n));
        let first = first.ok_or("the first name of its file does not come before it")?;
        let hash = |entry: Option<usize>| entry.and_then(|n| self.contents.hashes.get(n));
        let same = first.record.kind == record.kind
            && record.kind != RecordKind::Folder
            && first.record.link.is_none()
            && hash(first.entry) == hash(entry);
        if same { Ok(()) } else { Err("the first name of its file is something else") }
    }
}

fn check_sparse(record: &Record) -> Result<(), &'static str> {
    let mut at = 0;
    for (start, end) in record.sparse.iter().flatten() {
        if *start < at || end <= start || *end > record.size {
            return Err("its holes are not in order");
        }
        at = *end;
    }
    Ok(())
}
