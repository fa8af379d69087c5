//! Nodes: the entries of a tree blob, in restic's JSON.
//!
//! Invariants: what is written here is byte for byte what restic writes for the same entry (names quoted as Go
//! quotes them, field order, escapes), so `restic rewrite` and `restic repair` accept our trees. What is read
//! is not trusted: a node's name may be anything until [`Node::safe_name`] has passed it.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use backstay_model::{Code, Error, Result};
use backstay_tree::fs::{FileTime, Kind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::id::Id;
use crate::quote;

/// An entry of a folder in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, as bytes.
    pub name: OsString,
    /// What it is; none for kinds this program does not know ("irregular").
    pub kind: Option<Kind>,
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Last change of content.
    pub mtime: FileTime,
    /// Last change of content or metadata.
    pub ctime: FileTime,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Owner's name, empty when unknown.
    pub user: Arc<str>,
    /// Group's name, empty when unknown.
    pub group: Arc<str>,
    /// Inode number.
    pub inode: u64,
    /// Tells hard links of different file systems apart; zero where there is one name.
    pub device_id: u64,
    /// Bytes of content.
    pub size: u64,
    /// Names the file has.
    pub links: u64,
    /// Where a symbolic link points.
    pub link_target: OsString,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// Device number of a device node.
    pub device: u64,
    /// The pieces of a file's content, in order.
    pub content: Vec<Id>,
    /// The tree of a folder.
    pub subtree: Option<Id>,
}

const GO_DIR: u32 = 1 << 31;
const GO_SYMLINK: u32 = 1 << 27;
const GO_DEVICE: u32 = 1 << 26;
const GO_FIFO: u32 = 1 << 25;
const GO_SOCKET: u32 = 1 << 24;
const GO_SETUID: u32 = 1 << 23;
const GO_SETGID: u32 = 1 << 22;
const GO_CHAR: u32 = 1 << 21;
const GO_STICKY: u32 = 1 << 20;

impl Default for Node {
    fn default() -> Self {
        Node {
            name: OsString::new(),
            kind: None,
            mode: 0,
            mtime: FileTime::default(),
            ctime: FileTime::default(),
            uid: 0,
            gid: 0,
            user: Arc::from(""),
            group: Arc::from(""),
            inode: 0,
            device_id: 0,
            size: 0,
            links: 0,
            link_target: OsString::new(),
            xattrs: Vec::new(),
            device: 0,
            content: Vec::new(),
            subtree: None,
        }
    }
}

impl Node {
    /// The name if it can be an entry of a folder: not empty, `.` or `..`, no `/`, no NUL, at most 255 bytes.
    #[must_use]
    pub fn safe_name(&self) -> Option<&OsStr> {
        let bytes = self.name.as_bytes();
        let bad = bytes.is_empty()
            || bytes.len() > 255
            || bytes == b"."
            || bytes == b".."
            || bytes.iter().any(|b| *b == b'/' || *b == 0);
        (!bad).then_some(self.name.as_os_str())
    }

    /// The name of its kind in the JSON: `file`, `dir`, `symlink` …
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self.kind {
            Some(Kind::File) => "file",
            Some(Kind::Dir) => "dir",
            Some(Kind::Symlink) => "symlink",
            Some(Kind::BlockDevice) => "dev",
            Some(Kind::CharDevice) => "chardev",
            Some(Kind::Fifo) => "fifo",
            Some(Kind::Socket) => "socket",
            None => "irregular",
        }
    }

    fn go_mode(&self) -> u32 {
        let kind = match self.kind {
            Some(Kind::Dir) => GO_DIR,
            Some(Kind::Symlink) => GO_SYMLINK,
            Some(Kind::BlockDevice) => GO_DEVICE,
            Some(Kind::CharDevice) => GO_DEVICE | GO_CHAR,
            Some(Kind::Fifo) => GO_FIFO,
            Some(Kind::Socket) => GO_SOCKET,
            Some(Kind::File) | None => 0,
        };
        let bit = |unix: u32, go: u32| if self.mode & unix != 0 { go } else { 0 };
        kind | (self.mode & 0o777) | bit(0o4000, GO_SETUID) | bit(0o2000, GO_SETGID) | bit(0o1000, GO_STICKY)
    }

    /// Appends the node's JSON.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"name\":\"");
        quote::name(self.name.as_bytes(), out);
        text_field(out, "\",\"type\":\"", self.type_name());
        out.push(b'"');
        nonzero(out, "mode", u64::from(self.go_mode()));
        for (field, time) in [("mtime", self.mtime), ("atime", self.mtime), ("ctime", self.ctime)] {
            text_field(out, ",\"", field);
            text_field(out, "\":\"", &timestamp(time).to_string());
            out.push(b'"');
        }
        number(out, ",\"uid\":", u64::from(self.uid));
        number(out, ",\"gid\":", u64::from(self.gid));
        nonempty(out, "user", &self.user);
        nonempty(out, "group", &self.group);
        nonzero(out, "inode", self.inode);
        nonzero(out, "device_id", self.device_id);
        nonzero(out, "size", self.size);
        nonzero(out, "links", self.links);
        self.write_target(out);
        self.write_xattrs(out);
        nonzero(out, "device", self.device);
        self.write_content(out);
        if let Some(subtree) = &self.subtree {
            text_field(out, ",\"subtree\":\"", subtree.hex().as_str());
            out.push(b'"');
        }
        out.push(b'}');
    }

    fn write_target(&self, out: &mut Vec<u8>) {
        let target = self.link_target.as_bytes();
        if target.is_empty() {
            return;
        }
        text_field(out, ",\"linktarget\":\"", "");
        quote::json(&String::from_utf8_lossy(target), out);
        out.push(b'"');
        if std::str::from_utf8(target).is_err() {
            text_field(out, ",\"linktarget_raw\":\"", &BASE64.encode(target));
            out.push(b'"');
        }
    }

    fn write_xattrs(&self, out: &mut Vec<u8>) {
        if self.xattrs.is_empty() {
            return;
        }
        out.extend_from_slice(b",\"extended_attributes\":[");
        for (n, (name, value)) in self.xattrs.iter().enumerate() {
            out.extend_from_slice(if n == 0 { b"{\"name\":\"" } else { b",{\"name\":\"" });
            quote::json(&name.to_string_lossy(), out);
            text_field(out, "\",\"value\":\"", &BASE64.encode(value));
            out.extend_from_slice(b"\"}");
        }
        out.push(b']');
    }

    fn write_content(&self, out: &mut Vec<u8>) {
        if self.kind != Some(Kind::File) {
            out.extend_from_slice(b",\"content\":null");
            return;
        }
        out.extend_from_slice(b",\"content\":[");
        for (n, id) in self.content.iter().enumerate() {
            out.extend_from_slice(if n == 0 { b"\"" } else { b",\"" });
            out.extend_from_slice(id.hex().as_bytes());
            out.push(b'"');
        }
        out.push(b']');
    }
}

fn text_field(out: &mut Vec<u8>, before: &str, text: &str) {
    out.extend_from_slice(before.as_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn number(out: &mut Vec<u8>, before: &str, value: u64) {
    out.extend_from_slice(before.as_bytes());
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value;
    loop {
        at -= 1;
        if let (Some(slot), Ok(digit)) = (digits.get_mut(at), u8::try_from(rest % 10)) {
            *slot = b'0' + digit;
        }
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

fn nonzero(out: &mut Vec<u8>, field: &str, value: u64) {
    if value != 0 {
        text_field(out, ",\"", field);
        number(out, "\":", value);
    }
}

fn nonempty(out: &mut Vec<u8>, field: &str, value: &str) {
    if !value.is_empty() {
        text_field(out, ",\"", field);
        out.extend_from_slice(b"\":\"");
        quote::json(value, out);
        out.push(b'"');
    }
}

/// Times outside the years 0 to 9999 cannot be written; they become the nearest that can, as in restic.
fn timestamp(time: FileTime) -> Timestamp {
    const YEAR_0: i64 = -62_167_219_200;
    const YEAR_9999: i64 = 253_402_207_200; // one day short: zones may not push it over
    let secs = time.secs.clamp(YEAR_0, YEAR_9999);
    let nanos = i32::try_from(time.nanos).unwrap_or(0);
    // A negative second with nanoseconds counted forward is one second later, counted backward.
    Timestamp::new(secs, 0)
        .and_then(|t| t.checked_add(jiff::SignedDuration::new(0, nanos)))
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

fn file_time(text: Option<&str>) -> Result<FileTime> {
    let Some(text) = text else { return Ok(FileTime::default()) };
    let time: Timestamp = text.parse().map_err(|e: jiff::Error| {
        Error::new(Code::VaultDamaged, "A time in a tree cannot be read").because(e)
    })?;
    let nanos = time.as_nanosecond();
    let secs = i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or(0);
    let nanos = u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0);
    Ok(FileTime { secs, nanos })
}

#[derive(Deserialize)]
struct JsonXattr<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    value: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct JsonNode<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(default)]
    mode: u32,
    #[serde(borrow, default)]
    mtime: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    ctime: Option<Cow<'a, str>>,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(borrow, default)]
    user: Cow<'a, str>,
    #[serde(borrow, default)]
    group: Cow<'a, str>,
    #[serde(default)]
    inode: u64,
    #[serde(default)]
    device_id: u64,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    links: u64,
    #[serde(borrow, default)]
    linktarget: Cow<'a, str>,
    #[serde(borrow, default)]
    linktarget_raw: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    extended_attributes: Option<Vec<JsonXattr<'a>>>,
    #[serde(default)]
    device: u64,
    #[serde(default)]
    content: Option<Vec<Id>>,
    #[serde(default)]
    subtree: Option<Id>,
}

impl JsonNode<'_> {
    fn into_node(self) -> Result<Node> {
        let damaged =
            |what: &str| Error::new(Code::VaultDamaged, format!("A tree has {what} that cannot be read"));
        let decode = |text: &str| BASE64.decode(text).map_err(|e| damaged("a binary value").because(e));
        let kind = match self.kind.as_ref() {
            "file" => Some(Kind::File),
            "dir" => Some(Kind::Dir),
            "symlink" => Some(Kind::Symlink),
            "dev" => Some(Kind::BlockDevice),
            "chardev" => Some(Kind::CharDevice),
            "fifo" => Some(Kind::Fifo),
            "socket" => Some(Kind::Socket),
            _ => None,
        };
        let bit = |go: u32, unix: u32| if self.mode & go != 0 { unix } else { 0 };
        let special = bit(GO_SETUID, 0o4000) | bit(GO_SETGID, 0o2000) | bit(GO_STICKY, 0o1000);
        let link_target = match self.linktarget_raw {
            Some(raw) => decode(&raw)?,
            None => self.linktarget.into_owned().into_bytes(),
        };
        let mut xattrs = Vec::new();
        for x in self.extended_attributes.unwrap_or_default() {
            xattrs
                .push((OsString::from(x.name.into_owned()), decode(x.value.as_deref().unwrap_or_default())?));
        }
        Ok(Node {
            name: OsString::from_vec(quote::unquote(&self.name).ok_or_else(|| damaged("a name"))?),
            kind,
            mode: (self.mode & 0o777) | special,
            mtime: file_time(self.mtime.as_deref())?,
            ctime: file_time(self.ctime.as_deref())?,
            uid: self.uid,
            gid: self.gid,
            user: Arc::from(self.user.as_ref()),
            group: Arc::from(self.group.as_ref()),
            inode: self.inode,
            device_id: self.device_id,
            size: self.size,
            links: self.links,
            link_target: OsString::from_vec(link_target),
            xattrs,
            device: self.device,
            content: self.content.unwrap_or_default(),
            subtree: self.subtree,
        })
    }
}

/// The nodes of a tree blob.
pub fn parse_tree(json: &[u8]) -> Result<Vec<Node>> {
    let mut nodes = Vec::new();
    let mut problem = None;
    for_each_node(json, &mut |node| match node {
        Ok(node) => nodes.push(node),
        Err(e) => problem = problem.take().or(Some(e)),
    })?;
    problem.map_or(Ok(nodes), Err)
}

/// Hands over the nodes of a tree blob one by one, those that cannot be understood as errors. An error of its own:
/// from some point on the blob is no tree; what was handed over before stays true.
pub fn for_each_node(json: &[u8], each: &mut dyn FnMut(Result<Node>)) -> Result<()> {
    let mut json = serde_json::Deserializer::from_slice(json);
    json.deserialize_map(TreeVisitor(each))
        .and_then(|()| json.end())
        .map_err(|e| Error::new(Code::VaultDamaged, "A tree cannot be understood").because(e))
}

struct TreeVisitor<'f>(&'f mut dyn FnMut(Result<Node>));

impl<'de> Visitor<'de> for TreeVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tree")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key == "nodes" {
                map.next_value_seed(NodesVisitor(&mut *self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct NodesVisitor<'f>(&'f mut dyn FnMut(Result<Node>));

impl<'de> DeserializeSeed<'de> for NodesVisitor<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodesVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of nodes or null")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(node) = seq.next_element::<JsonNode<'de>>()? {
            (self.0)(node.into_node());
        }
        Ok(())
    }
}

/// Builds the JSON of a tree blob from nodes in the order of their names' bytes.
pub struct TreeBuilder {
    out: Vec<u8>,
}

impl TreeBuilder {
    /// An empty tree over a buffer that is reused.
    #[must_use]
    pub fn new(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.extend_from_slice(b"{\"nodes\":[");
        TreeBuilder { out: buffer }
    }

    /// Adds a node; the caller keeps the order.
    pub fn push(&mut self, node: &Node) {
        if self.out.last() == Some(&b'}') {
            self.out.push(b',');
        }
        node.write_json(&mut self.out);
    }

    /// The JSON, with the newline that restic ends it with.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.out.extend_from_slice(b"]}\n");
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Node {
        Node {
            name: OsString::from_vec(b"a\xff\n\"<\xc3\xa9".to_vec()),
            kind: Some(Kind::File),
            mode: 0o4755,
            mtime: FileTime { secs: -2, nanos: 500_000_000 },
            ctime: FileTime { secs: 1_700_000_000, nanos: 120 },
            uid: 1,
            user: Arc::from("u<1>"),
            inode: 5,
            size: 10,
            links: 2,
            device_id: 1,
            xattrs: vec![("user.x".into(), vec![0, 255])],
            content: vec![Id::of(b"1"), Id::of(b"2")],
            ..Node::default()
        }
    }

    #[test]
    fn nodes_survive_their_json() {
        let link = Node {
            name: "l".into(),
            kind: Some(Kind::Symlink),
            mode: 0o777,
            link_target: OsString::from_vec(b"../\xff".to_vec()),
            ..Node::default()
        };
        let dir =
            Node { name: "m".into(), kind: Some(Kind::Dir), subtree: Some(Id::of(b"t")), ..Node::default() };
        let mut tree = TreeBuilder::new(vec![1, 2, 3]);
        for node in [&sample(), &link, &dir] {
            tree.push(node);
        }
        let json = tree.finish();
        assert!(json.ends_with(b"}]}\n"));
        assert_eq!(parse_tree(&json).unwrap(), [sample(), link, dir]);
        assert_eq!(TreeBuilder::new(vec![]).finish(), b"{\"nodes\":[]}\n");
    }

    #[test]
    fn the_json_is_what_restic_writes() {
        let mut out = Vec::new();
        sample().write_json(&mut out);
        let text = String::from_utf8(out).unwrap();
        let start = r#"{"name":"a\\xff\\n\\\"\u003cé","type":"file","mode":8389101,"mtime":"1969-12-31T23:59:58.5Z","atime":"1969-12-31T23:59:58.5Z","ctime":"2023-11-14T22:13:20.00000012Z","uid":1,"gid":0,"user":"u\u003c1\u003e","inode":5,"device_id":1,"size":10,"links":2,"extended_attributes":[{"name":"user.x","value":"AP8="}],"content":["#;
        assert!(text.starts_with(start), "{text}");
    }

    #[test]
    fn names_that_lead_elsewhere_are_not_safe() {
        for bad in ["", ".", "..", "/", "a/b", "/etc/passwd", "a\0b", &"x".repeat(256)] {
            assert_eq!(Node { name: bad.into(), ..Node::default() }.safe_name(), None, "{bad:?}");
        }
        assert!(Node { name: "..a".into(), ..Node::default() }.safe_name().is_some());
    }

    #[test]
    fn times_that_cannot_be_written_are_clamped() {
        let time = timestamp(FileTime { secs: i64::MAX, nanos: 0 });
        assert!(time.to_string().starts_with("9999-"));
        assert!(timestamp(FileTime { secs: i64::MIN, nanos: 0 }).to_string().starts_with("0000-"));
    }
}
