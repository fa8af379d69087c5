//! Reading a manifest.
//!
//! Invariants: no document type, no entities but the five of XML, no processing instructions, bounded depth and sizes:
//! a hostile manifest costs no more than its own length. What is not understood is an error, not skipped, except in
//! manifests of other programs, of which only the names of dumps are taken.

use std::borrow::Cow;
use std::os::unix::ffi::OsStringExt as _;

use backstay_model::{Code, Error, Problem, ProblemKind, Result};
use backstay_tree::path::unescape;
use jiff::Timestamp;
use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

use super::{
    Consistency, Database, Manifest, NAMESPACE, Sealed, Settings, Step, VERSION, ZipRecord, damaged,
};
use crate::index::EntryRecord;
use crate::limits::{ENTRIES_MAX, MANIFEST_MAX};
use crate::sign::unhex;

/// Levels of elements.
const DEPTH_MAX: usize = 8;
/// Elements beside the entries.
const NODES_MAX: usize = 1_000_000;
/// Attributes of an element.
const ATTRIBUTES_MAX: usize = 16;

/// An element and what is in it.
#[derive(Debug, Default)]
struct Node {
    name: String,
    attributes: Vec<(String, String)>,
    text: String,
    children: Vec<Node>,
}

impl Node {
    fn child(&self, name: &str) -> Option<&Node> {
        self.children.iter().find(|child| child.name == name)
    }

    fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }

    fn need(&self, name: &str) -> Result<&str> {
        self.text_of(name).ok_or_else(|| damaged(format!("{name} is missing")))
    }

    fn attribute(&self, name: &str) -> Result<&str> {
        let found = self.attributes.iter().find(|(key, _)| key == name);
        found.map(|(_, v)| v.as_str()).ok_or_else(|| damaged(format!("{} has no {name}", self.name)))
    }

    fn list(&self, name: &str) -> &[Node] {
        self.child(name).map_or(&[], |child| &child.children)
    }
}

/// Reads the document before its last element: the root is still open at the end.
pub(super) fn manifest(body: &[u8]) -> Result<Manifest> {
    let mut entries = Vec::new();
    let root = document(body, &mut |element| entry(element).and_then(|e| push(&mut entries, e)), true)?;
    if root.name != "BackupDescription" || root.attribute("xmlns")? != NAMESPACE {
        return Err(Error::new(Code::ArchiveUnsupported, "The xml is not a manifest of Backstay"));
    }
    let version: u32 = number(root.attribute("version")?)?;
    if version != VERSION {
        let message = format!("The manifest has version {version}, the one that is known is {VERSION}");
        return Err(Error::new(Code::ArchiveUnsupported, message));
    }
    let archive = root.child("Archive").ok_or_else(|| damaged("Archive is missing"))?;
    let count: usize =
        number(root.child("Entries").ok_or_else(|| damaged("Entries is missing"))?.attribute("count")?)?;
    if count != entries.len() {
        return Err(damaged(format!("it has {} entries and says {count}", entries.len())));
    }
    Ok(Manifest {
        program: root.need("Program")?.to_owned(),
        app: root.need("App")?.to_owned(),
        slot: root.text_of("Slot").map(str::to_owned),
        point: root
            .text_of("Point")
            .map(|p| p.parse().map_err(|_bad| damaged("Point is no id")))
            .transpose()?,
        kind: root.need("Kind")?.to_owned(),
        host: root.need("Host")?.to_owned(),
        home: root.need("Home")?.to_owned(),
        host_names: root.list("HostNames").iter().map(|n| n.text.clone()).collect(),
        started: time(root.need("Started")?)?,
        ended: time(root.need("Ended")?)?,
        consistency: consistency(&root)?,
        databases: root.list("Databases").iter().map(database).collect::<Result<_>>()?,
        settings: root.child("Settings").map(settings).transpose()?,
        filter: root.list("Filter").iter().map(|n| n.text.clone()).collect(),
        problems: root.list("Problems").iter().map(problem).collect::<Result<_>>()?,
        zip: ZipRecord {
            name: archive.attribute("name")?.to_owned(),
            size: number(archive.attribute("size")?)?,
            sha256: unhex(archive.attribute("sha256")?).ok_or_else(|| damaged("a hash cannot be read"))?,
        },
        entries,
    })
}

fn push(entries: &mut Vec<EntryRecord>, entry: EntryRecord) -> Result<()> {
    if entries.len() >= ENTRIES_MAX {
        return Err(crate::limits::too_many());
    }
    entries.push(entry);
    Ok(())
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| plain).ok_or_else(|| damaged("a number cannot be read"))
}

fn time(text: &str) -> Result<Timestamp> {
    text.parse().map_err(|_bad| damaged("a time cannot be read"))
}

fn consistency(root: &Node) -> Result<Consistency> {
    let node = root.child("Consistency").ok_or_else(|| damaged("Consistency is missing"))?;
    let step = |step: &Node| {
        Ok(Step {
            what: step.attribute("what")?.to_owned(),
            started: time(step.attribute("started")?)?,
            ended: time(step.attribute("ended")?)?,
            position: step.attribute("position").ok().map(str::to_owned),
        })
    };
    Ok(Consistency {
        class: node.attribute("class")?.to_owned(),
        steps: node.children.iter().map(step).collect::<Result<_>>()?,
    })
}

fn database(node: &Node) -> Result<Database> {
    Ok(Database {
        connection: node.need("ConnectionName")?.to_owned(),
        name: node.need("DatabaseName")?.to_owned(),
        kind: node.need("DatabaseType")?.to_owned(),
        version: node.text_of("ServerVersion").map(str::to_owned),
        file: node.need("FileName")?.to_owned(),
        record: node.text_of("Record").map(str::to_owned),
    })
}

fn settings(node: &Node) -> Result<Settings> {
    let sealed = match node.attribute("sealed")? {
        "recipients" => Sealed::Recipients(node.children.iter().map(|n| n.text.clone()).collect()),
        "passphrase" => Sealed::Passphrase,
        "plain" => Sealed::Plain,
        other => {
            let message = format!("The settings are sealed in a way that is not known ({other})");
            return Err(Error::new(Code::ArchiveUnsupported, message));
        }
    };
    Ok(Settings { file: node.attribute("file")?.to_owned(), sealed })
}

fn problem(node: &Node) -> Result<Problem> {
    let kind = node.attribute("kind")?;
    let kind: ProblemKind = serde_json::from_value(serde_json::Value::String(kind.to_owned()))
        .map_err(|_unknown| damaged(format!("there is no kind of problem `{kind}`")))?;
    Ok(Problem { path: node.attribute("path")?.to_owned(), kind, detail: node.text.clone() })
}

/// An `Entry` element.
fn entry(element: &BytesStart<'_>) -> Result<EntryRecord> {
    let (mut name, mut size, mut crc, mut sha256) = (None, None, None, None);
    for (key, value) in attributes(element)? {
        match key.as_str() {
            "name" => name = unescape(&value),
            "size" => size = Some(number(&value)?),
            "crc" => crc = unhex::<4>(&value).map(u32::from_be_bytes),
            "sha256" => sha256 = unhex(&value),
            _ => return Err(damaged("an entry has an attribute that is not known")),
        }
    }
    let all = || Some(EntryRecord { name: name?.into_vec(), size: size?, crc: crc?, sha256: sha256? });
    all().ok_or_else(|| damaged("an entry cannot be read"))
}

fn attributes(element: &BytesStart<'_>) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for attribute in element.attributes() {
        let attribute = attribute.map_err(|e| damaged(format!("an attribute cannot be read ({e})")))?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0);
        let value = value.map_err(|e| damaged(format!("an attribute cannot be read ({e})")))?;
        if found.len() == ATTRIBUTES_MAX {
            return Err(damaged("an element has too many attributes"));
        }
        found.push((attribute.key.as_ref().to_owned(), value.into_owned()));
    }
    Ok(found)
}

/// Reads a document into nodes; empty elements named `Entry` go to `entry` instead. `open`: it ends within the root.
fn document(body: &[u8], entry: &mut dyn FnMut(&BytesStart<'_>) -> Result<()>, open: bool) -> Result<Node> {
    if body.len() as u64 > MANIFEST_MAX {
        return Err(Error::new(Code::LimitExceeded, format!("A manifest has at most {MANIFEST_MAX} bytes")));
    }
    let text = std::str::from_utf8(body).map_err(|_bad| damaged("it is not UTF-8"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader::from_str(text);
    let mut stack: Vec<Node> = Vec::new();
    let mut root = None;
    let mut nodes = 0usize;
    loop {
        let event = reader.read_event().map_err(|e| damaged(format!("it is no XML ({e})")))?;
        match event {
            Event::Empty(element) if element.name().as_ref() == "Entry" => entry(&element)?,
            Event::Start(ref element) | Event::Empty(ref element) => {
                nodes += 1;
                if nodes > NODES_MAX || stack.len() >= DEPTH_MAX || root.is_some() {
                    return Err(damaged("it has too many elements, or too many levels of them"));
                }
                let name = element.name().as_ref().to_owned();
                let node = Node { name, attributes: attributes(element)?, ..Node::default() };
                stack.push(node);
                if matches!(event, Event::Empty(_)) {
                    close(&mut stack, &mut root);
                }
            }
            Event::End(_) => close(&mut stack, &mut root),
            Event::Text(text) => add(&mut stack, &text.xml10_content()),
            Event::GeneralRef(reference) => add(&mut stack, &entity(&reference)?),
            Event::Decl(_) if stack.is_empty() && root.is_none() => {}
            Event::Eof => break,
            Event::Comment(_) if !open => {}
            _ => {
                return Err(damaged(
                    "it holds what no manifest holds (document type, instructions, comments)",
                ));
            }
        }
    }
    if open {
        // All but the root must be closed.
        return match (stack.pop(), stack.is_empty(), root) {
            (Some(root), true, None) => Ok(root),
            _ => Err(damaged("its elements do not end where they must")),
        };
    }
    root.filter(|_| stack.is_empty()).ok_or_else(|| damaged("its elements do not end where they must"))
}

fn close(stack: &mut Vec<Node>, root: &mut Option<Node>) {
    let Some(mut node) = stack.pop() else { return };
    if !node.children.is_empty() {
        node.text.clear();
    }
    match stack.last_mut() {
        Some(parent) => parent.children.push(node),
        None => *root = Some(node),
    }
}

fn add(stack: &mut [Node], text: &str) {
    if let Some(node) = stack.last_mut().filter(|node| node.children.is_empty()) {
        node.text.push_str(text);
    }
}

/// One of the five entities of XML, or a character by its number.
fn entity(reference: &quick_xml::events::BytesRef<'_>) -> Result<Cow<'static, str>> {
    if let Ok(Some(c)) = reference.resolve_char_ref() {
        return Ok(c.to_string().into());
    }
    quick_xml::escape::resolve_xml_entity(&reference.xml10_content())
        .map(Cow::Borrowed)
        .ok_or_else(|| damaged("it uses an entity that is not one of XML's own"))
}

/// The names of dumps in a manifest of another program: texts of elements `FileName` below
/// `DatabaseBackupDescription`, in any case of letters.
pub(crate) fn databases_of_foreign(bytes: &[u8]) -> Result<Vec<String>> {
    let root = document(bytes, &mut |_| Ok(()), false)?;
    let mut names = Vec::new();
    let mut pending = vec![&root];
    while let Some(node) = pending.pop() {
        if node.name.eq_ignore_ascii_case("DatabaseBackupDescription") {
            let named = node.children.iter().find(|c| c.name.eq_ignore_ascii_case("FileName"));
            names.extend(named.map(|c| c.text.trim().to_owned()));
        }
        pending.extend(node.children.iter().rev());
    }
    Ok(names)
}
