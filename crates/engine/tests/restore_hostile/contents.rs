//! Trees, contents and metadata that are not what they say.

use backstay_model::Code;
use backstay_vault::Id;
use backstay_vault::blob::BlobKind;
use serde_json::{Value, json};

use crate::forge::{Forge, file, folder, gid, uid, with};
use crate::{Must, all, case, whole};

const REFUSE: Must = Must::Refuse(Code::RestoreRefused);

fn node(name: &str, kind: &str) -> Value {
    json!({ "name": name, "type": kind, "mode": 0o600, "uid": uid(), "gid": gid() })
}

#[test]
fn kinds_of_entries() {
    all(vec![
        case("unknown", REFUSE, |_| vec![node("odd", "irregular")]),
        case("none", REFUSE, |_| vec![node("odd", "")]),
        case("a socket", Must::Restore { there: &[], not: &["odd"], told: false }, |_| {
            vec![node("odd", "socket")]
        }),
        case("a pipe", whole(&["odd"]), |_| vec![node("odd", "fifo")]),
        case("a file with a tree", whole(&["odd"]), |f| {
            let id = f.tree(&[]);
            vec![with(f.file("odd", b"x"), "subtree", json!(id))]
        }),
        case("a folder with content", whole(&["odd/x"]), |f| {
            let id = f.data(b"content");
            vec![with(f.folder("odd", "x"), "content", json!([id]))]
        }),
        case("a file without content", whole(&["odd"]), |_| {
            vec![with(file("odd", &[], 0), "content", Value::Null)]
        }),
    ]);
}

#[test]
fn trees_that_are_none() {
    let dir = |name: &str| node(name, "dir");
    all(vec![
        case("no tree", REFUSE, move |_| vec![dir("d")]),
        case("a tree that is not there", REFUSE, |_| vec![folder("d", Id::of(b"nowhere"))]),
        case("a tree in a pack that is not there", REFUSE, |f| {
            let id = f.gone(BlobKind::Tree, b"{\"nodes\":[]}");
            vec![folder("d", id)]
        }),
        case("data for a tree", REFUSE, |f| {
            let id = f.data(b"{\"nodes\":[ ]}");
            vec![folder("d", id)]
        }),
        case("a tree under another id", REFUSE, |f| {
            let id = Id::of(b"something else");
            f.blob(BlobKind::Tree, b"{\"nodes\":[]}\n", |blob| blob.id = id);
            vec![folder("d", id)]
        }),
        case("a tree in itself", REFUSE, |f| {
            let id = Id::of(b"the tree that holds itself");
            let text = json!({ "nodes": [folder("again", id)] }).to_string();
            f.blob(BlobKind::Tree, text.as_bytes(), |blob| blob.id = id);
            vec![folder("d", id)]
        }),
        case("no JSON", REFUSE, |f| {
            let id = f.raw_tree("nodes");
            vec![folder("d", id)]
        }),
        case("an array", REFUSE, |f| {
            let id = f.raw_tree("[]");
            vec![folder("d", id)]
        }),
        case("no nodes", whole(&["d"]), |f| {
            let id = f.raw_tree("{\"nodes\":null}");
            vec![folder("d", id)]
        }),
        case("nested brackets", REFUSE, |f| {
            let id = f.raw_tree(&format!("{{\"nodes\":{}", "[".repeat(100_000)));
            vec![folder("d", id)]
        }),
        case("a claim of 4 GiB", REFUSE, |f| {
            let id = f.compressed(BlobKind::Tree, Id::of(b"huge"), b"(\xb5/\xfd", u32::MAX);
            vec![folder("d", id)]
        }),
        case("1,500 levels", whole(&["d/d/d/d"]), |f| {
            let mut tree = f.tree(&[]);
            for _ in 0..1500 {
                tree = f.tree(&[folder("d", tree)]);
            }
            vec![folder("d", tree)]
        }),
        case("a tree used by 200 folders", whole(&["d0/x", "d199/x"]), |f| {
            let below = f.file("x", b"the same");
            let below = f.tree(&[below]);
            (0..200).map(|n| folder(&format!("d{n}"), below)).collect()
        }),
        case("trees in trees, 4,096 files of one", whole(&["bomb/a/b/a/b/a/b/a/b/a/b/a/b/x"]), |f| {
            let leaf = f.file("x", b"bomb");
            let mut tree = f.tree(&[leaf]);
            for _ in 0..12 {
                tree = f.tree(&[folder("a", tree), folder("b", tree)]);
            }
            vec![folder("bomb", tree)]
        }),
    ]);
}

#[test]
fn contents_that_are_not_there() {
    let piece = |f: &mut Forge| (f.data(b"0123456789"), 10u64);
    all(vec![
        case("shorter than it says", REFUSE, move |f| {
            let (id, size) = piece(f);
            vec![file("f", &[id], size + 1)]
        }),
        case("longer than it says", REFUSE, |f| {
            let id = f.data(b"longer");
            vec![file("f", &[id], 1)]
        }),
        case("of a size that nobody has", Must::Refuse(Code::TargetFull), |f| {
            let id = f.data(b"huge");
            vec![file("f", &[id], u64::MAX)]
        }),
        case("of an exabyte", Must::Refuse(Code::TargetFull), |f| {
            let id = f.data(b"an exabyte");
            vec![file("f", &[id], 1 << 60)]
        }),
        case("negative", REFUSE, |f| {
            let id = f.data(b"negative");
            let bad = f.tree(&[with(file("f", &[id], 1), "size", -1)]);
            vec![folder("d", bad)]
        }),
        case("ids that are none", REFUSE, |f| {
            let bad = f.tree(&[with(file("f", &[], 1), "content", json!(["../../outside/secret"]))]);
            vec![folder("d", bad)]
        }),
        case("lost", REFUSE, |_| vec![file("f", &[Id::of(b"lost")], 4)]),
        case("in a pack that is gone", REFUSE, |f| {
            let id = f.gone(BlobKind::Data, b"gone");
            vec![file("f", &[id], 4)]
        }),
        case("under another id", REFUSE, |f| {
            let id = Id::of(b"what it says");
            f.blob(BlobKind::Data, b"what it is", |blob| blob.id = id);
            vec![file("f", &[id], 10)]
        }),
        case("beyond the end of the pack", REFUSE, |f| {
            let id = f.blob(BlobKind::Data, b"beyond", |blob| blob.offset = 1 << 30);
            vec![file("f", &[id], 6)]
        }),
        case("shorter than a seal", REFUSE, |f| {
            let id = f.blob(BlobKind::Data, b"short", |blob| blob.length = 3);
            vec![file("f", &[id], 5)]
        }),
        case("not sealed", REFUSE, |f| {
            let id = f.pack(BlobKind::Data, Id::of(b"plain"), &[b'x'; 64], |_| {});
            vec![file("f", &[id], 5)]
        }),
        case("a bomb", REFUSE, |f| {
            let id = f.compressed(BlobKind::Data, Id::of(b"bomb of zeros"), b"(\xb5/\xfd\x60\x00", 100);
            vec![file("f", &[id], 100)]
        }),
        case("one of two pieces", REFUSE, move |f| {
            let (id, size) = piece(f);
            vec![file("f", &[id, Id::of(b"the second piece")], size * 2)]
        }),
        case(
            "100,000 times the same piece",
            Must::Restore { there: &["f"], not: &[], told: false },
            move |f| {
                let (id, size) = piece(f);
                vec![file("f", &vec![id; 100_000], size * 100_000)]
            },
        ),
    ]);
}

#[test]
fn metadata_that_is_absurd() {
    let xattr = |name: &str, value: &str| json!([{ "name": name, "value": value }]);
    all(vec![
        case("all bits of a mode", Must::Restore { there: &["f"], not: &[], told: false }, |f| {
            vec![with(f.file("f", b"x"), "mode", u32::MAX)]
        }),
        case("the owner -1", Must::Restore { there: &["f"], not: &[], told: true }, |f| {
            vec![with(with(f.file("f", b"x"), "uid", u32::MAX), "gid", u32::MAX)]
        }),
        case("the year 9999", REFUSE, |f| vec![with(f.file("f", b"x"), "mtime", "9999-12-31T22:59:59Z")]),
        case("the year 0", whole(&["f"]), |f| vec![with(f.file("f", b"x"), "mtime", "0000-01-01T00:00:00Z")]),
        case("no time", REFUSE, |f| {
            let bad = with(f.file("f", b"x"), "mtime", "yesterday");
            let bad = f.tree(&[bad]);
            vec![folder("d", bad)]
        }),
        case(
            "an attribute without a name",
            Must::Restore { there: &["f"], not: &[], told: true },
            move |f| vec![with(f.file("f", b"x"), "extended_attributes", xattr("", "eA=="))],
        ),
        case(
            "an attribute of no known kind",
            Must::Restore { there: &["f"], not: &[], told: true },
            move |f| vec![with(f.file("f", b"x"), "extended_attributes", xattr("../../x", "eA=="))],
        ),
        case("an ACL that is none", Must::Restore { there: &["f"], not: &[], told: true }, move |f| {
            vec![with(f.file("f", b"x"), "extended_attributes", xattr("system.posix_acl_access", "eA=="))]
        }),
        case("an attribute of 100 kB", Must::Restore { there: &["f"], not: &[], told: true }, move |f| {
            let value = "QUFB".repeat(25_000);
            vec![with(f.file("f", b"x"), "extended_attributes", xattr("user.x", &value))]
        }),
        case("no base64", REFUSE, move |f| {
            let bad = with(f.file("f", b"x"), "extended_attributes", xattr("user.x", "*"));
            let bad = f.tree(&[bad]);
            vec![folder("d", bad)]
        }),
        case("a folder nobody may enter", whole(&["d"]), |f| {
            vec![with(f.folder("d", "x"), "mode", 0x8000_0000_u32)]
        }),
    ]);
}
