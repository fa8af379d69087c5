//! Hostile vaults: whoever writes the trees and packs must not get anything outside the target, nor take more
//! memory and time than the vault's own size allows. Everything that is not hostile is restored all the same.

mod bounds;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_model::{Cancel, Code, ProblemKind, Secret, Silent};
use backstay_storage::{Memory, Put};
use backstay_tree::fs::{FileSystem, Host};
use serde_json::{Value, json};

use super::{RestoreOptions, RestoreOutcome, restore};
use crate::blob::BlobKind;
use crate::id::Id;
use crate::index::{BlobIndex, IndexFile, IndexedBlob, IndexedPack};
use crate::key::Cost;
use crate::reader::Reader;
use crate::vault::{Folder, Vault};

/// Writes whatever it is told into a vault.
struct Forge {
    vault: Vault,
    packs: Vec<IndexedPack>,
}

impl Forge {
    fn new() -> Self {
        let password = Secret::new("x".to_owned());
        let vault = Vault::init(Arc::new(Memory::new()), &password, Cost::RANDOM).unwrap();
        Forge { vault, packs: Vec::new() }
    }

    /// A pack with one blob, listed as told.
    fn blob(&mut self, kind: BlobKind, text: &[u8], change: impl FnOnce(&mut IndexedBlob)) -> Id {
        let sealed = self.vault.cipher().sealed(text).unwrap();
        self.pack(kind, Id::of(text), &sealed, change)
    }

    fn pack(&mut self, kind: BlobKind, id: Id, sealed: &[u8], change: impl FnOnce(&mut IndexedBlob)) -> Id {
        let pack = Id::of(sealed);
        let length = u32::try_from(sealed.len()).unwrap();
        let mut blob = IndexedBlob { id, kind, offset: 0, length, uncompressed_length: None };
        change(&mut blob);
        self.vault.storage().put(&Folder::Data.object(&pack), sealed, Put::Replace).unwrap();
        let id = blob.id;
        self.packs.push(IndexedPack { id: pack, blobs: vec![blob] });
        id
    }

    fn data(&mut self, text: &[u8]) -> Id {
        self.blob(BlobKind::Data, text, |_| {})
    }

    fn raw_tree(&mut self, json: &str) -> Id {
        self.blob(BlobKind::Tree, json.as_bytes(), |_| {})
    }

    fn tree(&mut self, nodes: &[Value]) -> Id {
        self.raw_tree(&json!({ "nodes": nodes }).to_string())
    }

    /// A compressed blob that claims to hold `claim` bytes.
    fn compressed(&mut self, kind: BlobKind, text: &[u8], claim: u32) -> Id {
        let frame = zstd::bulk::compress(text, 3).unwrap();
        let sealed = self.vault.cipher().sealed(&frame).unwrap();
        self.pack(kind, Id::of(text), &sealed, |b| b.uncompressed_length = Some(claim))
    }

    fn file(&mut self, name: &str, text: &[u8]) -> Value {
        let id = self.data(text);
        file(name, &[id], text.len() as u64)
    }

    fn reader(&self) -> Reader {
        let file = IndexFile { supersedes: Vec::new(), packs: self.packs.clone() };
        self.vault.put_json(Folder::Index, &file).unwrap();
        let mut index = BlobIndex::default();
        index.add(&self.packs, |_| true);
        index.sort();
        Reader::with_index(self.vault.clone(), index)
    }
}

fn file(name: &str, content: &[Id], size: u64) -> Value {
    json!({ "name": name, "type": "file", "mode": 0o640, "size": size, "content": content,
            "uid": uid(), "gid": gid(), "mtime": "2020-01-02T03:04:05.123456789Z" })
}

fn folder(name: &str, subtree: Id) -> Value {
    json!({ "name": name, "type": "dir", "mode": 0x8000_01ed_u32, "subtree": subtree, "uid": uid(), "gid": gid() })
}

fn symlink(name: &str, target: &str) -> Value {
    json!({ "name": name, "type": "symlink", "mode": 0o777, "linktarget": target, "uid": uid(), "gid": gid() })
}

fn with(mut node: Value, field: &str, value: impl Into<Value>) -> Value {
    node[field] = value.into();
    node
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn gid() -> u32 {
    rustix::process::getegid().as_raw()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A target with something beside it that must stay as it is.
struct Sandbox {
    dir: tempfile::TempDir,
    before: BTreeSet<(PathBuf, Vec<u8>)>,
}

impl Sandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("outside/folder")).unwrap();
        fs::create_dir(dir.path().join("target")).unwrap();
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        let before = beside(dir.path());
        Sandbox { dir, before }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    fn run(&self, reader: &Reader, tree: &Id, options: &RestoreOptions) -> RestoreOutcome {
        let host: Arc<dyn FileSystem> = Arc::new(Host);
        let began = Instant::now();
        let outcome =
            restore(reader, &host, tree, None, &self.target(), options, &Silent, &Cancel::new()).unwrap();
        assert!(began.elapsed() < Duration::from_secs(60), "took {:?}", began.elapsed());
        assert_eq!(beside(self.dir.path()), self.before, "something outside the target was changed");
        outcome
    }
}

/// All that is not in the target: paths, contents, modes.
fn beside(dir: &Path) -> BTreeSet<(PathBuf, Vec<u8>)> {
    let mut found = BTreeSet::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path == dir.join("target") {
                continue;
            }
            let meta = entry.metadata().unwrap();
            let mut what =
                format!("{:o} {}:{} {}", meta.mode(), meta.uid(), meta.gid(), meta.nlink()).into_bytes();
            if meta.is_dir() {
                pending.push(path.clone());
            } else {
                what.extend(fs::read(&path).unwrap());
            }
            found.insert((path, what));
        }
    }
    found
}

/// Restores the nodes between two good files and compares the problems, as (path, kind).
#[track_caller]
fn case(
    build: impl FnOnce(&mut Forge) -> Vec<Value>,
    expected: &[(&str, ProblemKind)],
    there: &[&str],
    not: &[&str],
) {
    let mut forge = Forge::new();
    let mut nodes = vec![forge.file("aa good", b"good")];
    nodes.extend(build(&mut forge));
    nodes.push(forge.file("zz good", b"also good"));
    let tree = forge.tree(&nodes);
    let sandbox = Sandbox::new();
    let outcome = sandbox.run(&forge.reader(), &tree, &RestoreOptions::default());
    let found: Vec<_> = outcome.problems.iter().map(|p| (p.path.as_str(), p.kind)).collect();
    assert_eq!(found, expected, "{:?}", outcome.problems);
    assert_eq!(fs::read(sandbox.target().join("aa good")).unwrap(), b"good");
    assert_eq!(fs::read(sandbox.target().join("zz good")).unwrap(), b"also good");
    for path in there {
        assert!(fs::symlink_metadata(sandbox.target().join(path)).is_ok(), "{path} should be there");
    }
    for path in not {
        assert!(fs::symlink_metadata(sandbox.target().join(path)).is_err(), "{path} should not be there");
    }
}

use ProblemKind::{Lost, Metadata, Socket, Unsafe, Unwritable};

#[test]
fn names_that_lead_elsewhere() {
    let long = "n".repeat(256);
    for name in ["/outside/x", "..", ".", "", "../outside/secret", "a/b", "a\\x00b", "\\x2e\\x2e", &long] {
        for kind in ["file", "dir", "symlink"] {
            let shown = match name {
                "a\\x00b" => "a\\x00b",
                "\\x2e\\x2e" => "..",
                other => other,
            };
            let build = |forge: &mut Forge| {
                let below = forge.file("secret", b"overwritten");
                let below = forge.tree(&[below]);
                vec![match kind {
                    "file" => forge.file(name, b"overwritten"),
                    "dir" => folder(name, below),
                    _ => symlink(name, "/"),
                }]
            };
            case(build, &[(shown, Unsafe)], &[], &["secret", "a"]);
        }
    }
    // As long as a name can be.
    case(|f| vec![f.file(&"n".repeat(255), b"x")], &[], &["n".repeat(255).as_str()], &[]);
}

#[test]
fn names_used_twice() {
    // A link out, then a folder of its name with a file that would land outside.
    for target in ["../outside", "/", "../outside/folder"] {
        let build = |forge: &mut Forge| {
            let below = forge.file("secret", b"overwritten");
            let below = forge.tree(&[below]);
            vec![symlink("out", target), folder("out", below)]
        };
        case(build, &[("out", Unsafe)], &["out"], &[]);
    }
    // The other way round: the folder stays a folder.
    let build = |forge: &mut Forge| {
        let below = forge.file("inside", b"text");
        let below = forge.tree(&[below]);
        vec![folder("out", below), symlink("out", "../outside")]
    };
    case(build, &[("out", Unsafe)], &["out/inside"], &[]);
    case(|f| vec![symlink("l", "../outside/secret"), f.file("l", b"x")], &[("l", Unsafe)], &["l"], &[]);
    case(|f| vec![f.file("f", b"1"), f.file("f", b"2"), f.file("f", b"3")], &[("f", Unsafe); 2], &["f"], &[]);
    case(
        |f| vec![symlink("out", "../outside"), f.file("out/secret", b"x")],
        &[("out/secret", Unsafe)],
        &["out"],
        &[],
    );
}

#[test]
fn links_are_data() {
    let long = "t".repeat(5000);
    let build = |_: &mut Forge| {
        vec![
            symlink("absolute", "/etc/passwd"),
            symlink("empty", ""),
            symlink("long", &long),
            symlink("nul", "a\0b"),
            symlink("up", "../../../../outside"),
        ]
    };
    let expected = [("empty", Unwritable), ("long", Unsafe), ("nul", Unsafe)];
    case(build, &expected, &["absolute", "up"], &["empty", "long", "nul"]);
}

#[test]
fn hard_links_that_do_not_fit() {
    let shared = |node: Value, links: u64| with(with(node, "links", links), "inode", 77);
    case(|f| vec![shared(f.file("alone", b"text"), 5)], &[], &["alone"], &[]);
    // Same number, other content: nobody may lose it. Or another kind of thing altogether.
    let build = |f: &mut Forge| {
        vec![
            shared(f.file("one", b"text"), 2),
            shared(f.file("two", b"other"), 2),
            shared(symlink("link", "../outside/secret"), 2),
            shared(f.file("three", b"text"), 2),
        ]
    };
    case(build, &[], &["one", "two", "link", "three"], &[]);
    // The first name is lost, so are the others.
    let build = |_: &mut Forge| {
        let lost = |name: &str| shared(file(name, &[Id::of(b"nowhere")], 9), 2);
        vec![lost("one"), lost("two")]
    };
    case(build, &[("one", Lost), ("two", Lost)], &[], &["one", "two"]);
}

#[test]
fn kinds_of_entries() {
    let node = |name: &str, kind: &str| json!({ "name": name, "type": kind, "mode": 0o600, "uid": uid(), "gid": gid() });
    case(
        |_| vec![node("odd", "irregular"), node("odder", "")],
        &[("odd", Unsafe), ("odder", Unsafe)],
        &[],
        &["odd"],
    );
    case(|_| vec![node("socket", "socket")], &[("socket", Socket)], &[], &["socket"]);
    case(|_| vec![node("fifo", "fifo")], &[], &["fifo"], &[]);
    let device = || {
        vec![with(node("device", "chardev"), "device", 0x103), with(node("disk", "dev"), "device", u64::MAX)]
    };
    let mut forge = Forge::new();
    let tree = forge.tree(&device());
    let sandbox = Sandbox::new();
    let outcome = sandbox.run(&forge.reader(), &tree, &RestoreOptions::default());
    let made = fs::symlink_metadata(sandbox.target().join("device"));
    // Root may make devices where the file system has them, others may not: there or told.
    let told = outcome.problems.iter().any(|p| p.path == "device" && p.kind == Unwritable);
    assert!(
        made.is_ok_and(|m| m.file_type().is_char_device() && is_root()) || told,
        "{:?}",
        outcome.problems
    );
}

#[test]
fn trees_that_are_none() {
    let dir = |name: &str, id: Option<Id>| {
        let node = json!({ "name": name, "type": "dir", "mode": 0o700, "uid": uid(), "gid": gid() });
        id.map_or(node.clone(), |id| with(node, "subtree", json!(id)))
    };
    let build = |f: &mut Forge| {
        let data = f.data(b"no tree");
        let said_to_be = f.blob(BlobKind::Tree, b"said to be a tree", |_| {});
        let list = f.raw_tree("[1,2]");
        let cut = f.raw_tree(r#"{"nodes":[{"name":"first","type":"fifo"},{"name":"sec"#);
        vec![
            dir("data", Some(data)),
            dir("list", Some(list)),
            dir("missing", Some(Id::of(b"missing"))),
            dir("none", None),
            dir("said", Some(said_to_be)),
            dir("shortened", Some(cut)),
        ]
    };
    let all = ["data", "list", "missing", "none", "said", "shortened"];
    case(build, &all.map(|name| (name, Lost)), &[&all[..], &["shortened/first"]].concat(), &[]);
    // What belongs to another kind is passed over.
    let build = |f: &mut Forge| {
        let tree = f.tree(&[]);
        let text = f.data(b"text");
        vec![
            with(folder("dir", tree), "content", json!([text])),
            with(f.file("file", b"text"), "subtree", json!(tree)),
        ]
    };
    case(build, &[], &["dir", "file"], &[]);
}

#[test]
fn nodes_that_cannot_be_read_cost_themselves_only() {
    let build = |f: &mut Forge| {
        vec![
            with(f.file("time", b"x"), "mtime", "yesterday"),
            f.file("\\q", b"x"),
            with(f.file("xattr", b"x"), "extended_attributes", json!([{ "name": "user.x", "value": "§" }])),
            f.file("fine", b"x"),
        ]
    };
    case(build, &[("", Lost); 3], &["fine"], &["time", "xattr"]);
    // The root itself is no tree.
    let mut forge = Forge::new();
    let tree = forge.raw_tree("null");
    let outcome = Sandbox::new().run(&forge.reader(), &tree, &RestoreOptions::default());
    assert_eq!(outcome.problems.iter().map(|p| (p.path.as_str(), p.kind)).collect::<Vec<_>>(), [("", Lost)]);
}

#[test]
fn content_that_is_not_there_or_not_as_claimed() {
    let build = |f: &mut Forge| {
        let tree = f.tree(&[]);
        let text = f.data(b"text");
        vec![
            file("huge", &[], u64::MAX),
            file("part", &[text, Id::of(b"nowhere")], 8),
            file("shorter", &[text], 3),
            file("tree", &[tree], 13),
            file("unknown", &[Id::of(b"nowhere")], 7),
        ]
    };
    let all = ["huge", "part", "shorter", "tree", "unknown"];
    case(build, &all.map(|name| (name, Lost)), &[], &all);
}

#[test]
fn blobs_that_lie() {
    let zeros = vec![0u8; 50 << 20];
    let build = |f: &mut Forge| {
        let bomb = f.compressed(BlobKind::Data, &zeros, 1000);
        let larger = f.compressed(BlobKind::Data, b"larger than it is", 18);
        let absurd = f.compressed(BlobKind::Data, b"absurd", u32::MAX);
        let beyond = f.blob(BlobKind::Data, b"beyond", |b| b.offset = 1000);
        let long = f.blob(BlobKind::Data, b"long", |b| b.length = u32::MAX);
        let short = f.blob(BlobKind::Data, b"short", |b| b.length = 3);
        let other = f.blob(BlobKind::Data, b"other", |b| b.id = Id::of(b"swapped"));
        let altered = f.data(b"altered");
        let name = Folder::Data.object(&f.packs.last().unwrap().id);
        let mut bytes = f.vault.storage().get(&name).unwrap();
        bytes[20] ^= 1;
        f.vault.storage().put(&name, &bytes, Put::Replace).unwrap();
        vec![
            file("absurd", &[absurd], u64::from(u32::MAX)),
            file("altered", &[altered], 7),
            file("beyond", &[beyond], 6),
            file("bomb", &[bomb], 1000),
            file("larger", &[larger], 18),
            file("long", &[long], u64::from(u32::MAX) - 32),
            file("other", &[other], 5),
            file("short", &[short], 0),
            // The same as large files, of which a part may be written before it shows.
            file("two", &[altered, altered], 14),
        ]
    };
    let all = ["absurd", "altered", "beyond", "bomb", "larger", "long", "other", "short", "two"];
    case(build, &all.map(|name| (name, Lost)), &[], &all);
}

#[test]
fn blobs_that_overlap_and_kinds_that_are_mixed_up() {
    let build = |f: &mut Forge| {
        let whole = f.data(b"the whole of it");
        let mut inner = f.packs.last().unwrap().blobs[0];
        inner.id = Id::of(b"inner");
        (inner.offset, inner.length) = (4, 40);
        f.packs.last_mut().unwrap().blobs.push(inner);
        // Sealed, authentic and of that id: what a pack's header calls it does not matter.
        let as_data = f.blob(BlobKind::Data, br#"{"nodes":[]}"#, |_| {});
        vec![file("inner", &[inner.id], 8), file("json", &[as_data], 12), file("whole", &[whole], 15)]
    };
    case(build, &[("inner", Lost)], &["json", "whole"], &["inner"]);
}

#[test]
fn metadata_out_of_all_bounds() {
    let value = |bytes: usize| "AAAA".repeat(bytes / 3);
    let build = |f: &mut Forge| {
        let attributes = json!([
            { "name": "user.large", "value": value(90_000) },
            { "name": "no namespace", "value": "AA==" },
            { "name": "", "value": "AA==" },
        ]);
        vec![
            with(f.file("attributes", b"x"), "extended_attributes", attributes),
            with(f.file("mode", b"x"), "mode", u32::MAX),
            with(f.file("time 0", b"x"), "mtime", "0000-01-01T00:00:00Z"),
            with(f.file("time 9999", b"x"), "mtime", "9999-12-30T00:00:00.999999999Z"),
        ]
    };
    case(build, &[("attributes", Metadata); 3], &["attributes", "mode", "time 0", "time 9999"], &[]);
    // Numbers that mean "leave it" to the kernel.
    let build = |f: &mut Forge| vec![with(with(f.file("owner", b"x"), "uid", u32::MAX), "gid", u32::MAX)];
    case(build, &[("owner", Metadata)], &["owner"], &[]);
}

#[test]
fn maps_of_holes_that_lie() {
    let mut forge = Forge::new();
    let text = b"not a hole".repeat(1000);
    let nodes = [forge.file("a", &text), forge.file("b", &text), forge.file("c", &[0; 10_000])];
    let tree = forge.tree(&nodes);
    let mut options = RestoreOptions::default();
    options.sparse.insert("a".into(), vec![]);
    options.sparse.insert("b".into(), vec![(u64::MAX, 3), (5000, 2), (7, u64::MAX), (1, 2), (1, 2)]);
    options.sparse.insert("c".into(), vec![(u64::MAX - 1, u64::MAX)]);
    let sandbox = Sandbox::new();
    let outcome = sandbox.run(&forge.reader(), &tree, &options);
    assert_eq!(outcome.problems, []);
    assert_eq!(fs::read(sandbox.target().join("a")).unwrap(), text);
    assert_eq!(fs::read(sandbox.target().join("b")).unwrap(), text);
    let c = sandbox.target().join("c");
    assert_eq!((fs::read(&c).unwrap(), fs::metadata(&c).unwrap().blocks()), (vec![0; 10_000], 0));
}

#[test]
fn selected_paths_only_and_unknown_ones_refused() {
    let mut forge = Forge::new();
    let inner = [forge.file("x", b"x"), forge.file("y", b"y")];
    let inner = forge.tree(&inner);
    let nodes = [folder("a", inner), folder("b", inner), forge.file("c", b"c")];
    let tree = forge.tree(&nodes);
    let select = |paths: &[&str]| RestoreOptions {
        select: Some(paths.iter().map(PathBuf::from).collect()),
        ..RestoreOptions::default()
    };
    let sandbox = Sandbox::new();
    let outcome = sandbox.run(&forge.reader(), &tree, &select(&["a/y", "c"]));
    assert_eq!((outcome.problems.len(), outcome.counts.files, outcome.counts.total_files), (0, 2, 2));
    let there = |path: &str| sandbox.target().join(path).exists();
    assert!(there("a/y") && there("c") && !there("a/x") && !there("b"));

    let host: Arc<dyn FileSystem> = Arc::new(Host);
    let sandbox = Sandbox::new();
    let run = |select: &RestoreOptions, cancel: &Cancel| {
        restore(&forge.reader(), &host, &tree, None, &sandbox.target(), select, &Silent, cancel)
            .unwrap_err()
            .code()
    };
    assert_eq!(run(&select(&["a/z"]), &Cancel::new()), Code::PathNotFound);
    assert_eq!(run(&select(&["../a"]), &Cancel::new()), Code::InvalidValue);
    let cancelled = Cancel::new();
    cancelled.cancel();
    assert_eq!(run(&RestoreOptions::default(), &cancelled), Code::Cancelled);
    assert_eq!(fs::read_dir(sandbox.target()).unwrap().count(), 0, "nothing is written by what is refused");
    fs::write(sandbox.target().join("there already"), "").unwrap();
    assert_eq!(run(&RestoreOptions::default(), &Cancel::new()), Code::TargetUnusable);
}

#[test]
fn what_a_prune_moves_meanwhile_is_found_again() {
    let mut forge = Forge::new();
    let nodes = [forge.file("moved", b"moved text"), forge.file("stays", b"stays")];
    let tree = forge.tree(&nodes);
    let reader = forge.reader();
    // After the index was read: the first pack is gone, its blob lies behind others in a new one.
    let old = forge.packs.remove(0);
    let storage = Arc::clone(forge.vault.storage());
    let mut moved = b"something else ".to_vec();
    moved.extend(storage.get(&Folder::Data.object(&old.id)).unwrap());
    forge.pack(BlobKind::Data, Id::of(b"moved text"), &moved, |b| (b.offset, b.length) = (15, b.length - 15));
    forge.reader();
    storage.delete(&Folder::Data.object(&old.id)).unwrap();
    let sandbox = Sandbox::new();
    let outcome = sandbox.run(&reader, &tree, &RestoreOptions::default());
    assert_eq!(outcome.problems, []);
    assert_eq!(fs::read(sandbox.target().join("moved")).unwrap(), b"moved text");
}

#[test]
fn names_that_steer_terminals_are_escaped_in_what_is_told() {
    let mut forge = Forge::new();
    let name = "\\x1b[2J\\nroot";
    let tree = forge.tree(&[file(name, &[Id::of(b"nowhere")], 1), symlink(name, "x")]);
    let outcome = Sandbox::new().run(&forge.reader(), &tree, &RestoreOptions::default());
    assert!(!outcome.problems.is_empty());
    for problem in &outcome.problems {
        assert!(!problem.path.chars().chain(problem.detail.chars()).any(char::is_control), "{problem:?}");
    }
}
