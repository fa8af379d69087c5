//! Roots, manifests and snapshots that are not those of a point.

use backstay_model::Code;
use backstay_vault::Id;
use backstay_vault::blob::BlobKind;
use serde_json::{Value, json};

use crate::Must;
use crate::forge::{Forge, folder, symlink, with};
use crate::world::World;

const REFUSE: Must = Must::Refuse(Code::RestoreRefused);
const DAMAGED: Must = Must::Refuse(Code::VaultDamaged);

/// The sound content.
fn sound(f: &mut Forge) -> Value {
    let nodes = [f.file("aa good", b"good"), f.file("zz good", b"also good")];
    let tree = f.tree(&nodes);
    f.content(&tree)
}

/// A point with the sound content and a manifest of which some fields are others.
fn manifest(f: &mut Forge, change: impl FnOnce(&mut Value)) -> String {
    let mut text = f.text.clone();
    change(&mut text);
    let nodes = [f.manifest_of(text.to_string().as_bytes()), sound(f)];
    let root = f.tree(&nodes);
    f.snapshot(&root, |_| {})
}

fn root(f: &mut Forge, nodes: &[Value]) -> String {
    let root = f.tree(nodes);
    f.snapshot(&root, |_| {})
}

type Build = fn(&mut Forge) -> String;

fn all(cases: &[(&str, Must, Build)]) {
    let world = World::new();
    let mut forge = Forge::of(&world);
    let mut wrong = Vec::new();
    for (name, must, build) in cases {
        let point = build(&mut forge);
        println!("{name}");
        if let Err(e) = world.restores(&point, *must) {
            wrong.push(format!("{name}: {e}"));
        }
    }
    println!("{} hostile points", cases.len());
    assert!(wrong.is_empty(), "{}\n{} of {}", wrong.join("\n"), wrong.len(), cases.len());
}

const WHOLE: Must = Must::Restore { there: &[], not: &["file", "out"], told: false };

#[test]
fn roots_that_are_none() {
    all(&[
        ("the sound one", WHOLE, |f| {
            let nodes = [f.manifest(), sound(f)];
            root(f, &nodes)
        }),
        ("empty", REFUSE, |f| root(f, &[])),
        ("without content", DAMAGED, |f| {
            let nodes = [f.manifest()];
            root(f, &nodes)
        }),
        ("content that is a file", DAMAGED, |f| {
            let nodes = [f.manifest(), f.file("content", b"x")];
            root(f, &nodes)
        }),
        ("content that is a link", DAMAGED, |f| {
            let nodes = [f.manifest(), symlink("content", "/")];
            root(f, &nodes)
        }),
        ("content without a tree", DAMAGED, |f| {
            let nodes = [f.manifest(), with(sound(f), "subtree", Value::Null)];
            root(f, &nodes)
        }),
        ("content that is lost", REFUSE, |f| {
            let nodes = [f.manifest(), folder("content", Id::of(b"lost content"))];
            root(f, &nodes)
        }),
        ("content that is gone", REFUSE, |f| {
            let id = f.gone(BlobKind::Tree, b"{\"nodes\":[  ]}");
            let nodes = [f.manifest(), folder("content", id)];
            root(f, &nodes)
        }),
        ("content twice", WHOLE, |f| {
            let second = f.folder("content", "secret");
            let nodes = [f.manifest(), sound(f), second];
            root(f, &nodes)
        }),
        ("a root that is lost", REFUSE, |f| f.snapshot(&Id::of(b"lost root"), |_| {})),
        ("a root that is data", REFUSE, |f| {
            let id = f.data(b"{\"nodes\":[]}\t");
            f.snapshot(&id, |_| {})
        }),
        ("paths elsewhere", WHOLE, |f| {
            let nodes = [f.manifest(), sound(f)];
            let root = f.tree(&nodes);
            f.snapshot(&root, |snapshot| snapshot["paths"] = json!(["/", "../../outside"]))
        }),
        ("absurd totals", WHOLE, |f| {
            let nodes = [f.manifest(), sound(f)];
            let root = f.tree(&nodes);
            f.snapshot(&root, |snapshot| {
                snapshot["summary"]["total_files_processed"] = json!(u64::MAX);
                snapshot["summary"]["total_bytes_processed"] = json!(u64::MAX);
            })
        }),
    ]);
}

#[test]
fn manifests_that_lie() {
    all(&[
        ("none", REFUSE, |f| {
            let nodes = [sound(f)];
            root(f, &nodes)
        }),
        ("no JSON", REFUSE, |f| {
            let nodes = [f.manifest_of(b"backstay"), sound(f)];
            root(f, &nodes)
        }),
        ("of a later version", Must::Refuse(Code::VaultUnsupported), |f| {
            manifest(f, |m| m["backstay"] = json!(99))
        }),
        ("a link", REFUSE, |f| {
            let nodes = [symlink("backstay.json", "/etc/passwd"), sound(f)];
            root(f, &nodes)
        }),
        ("holes that go back", WHOLE, |f| {
            manifest(f, |m| m["sparse"] = json!([{ "path": "aa good", "size": 4, "data": [[3, 1], [9, 2]] }]))
        }),
        ("holes beyond everything", WHOLE, |f| {
            manifest(f, |m| {
                m["sparse"] =
                    json!([{ "path": "aa good", "size": u64::MAX, "data": [[0, u64::MAX], [u64::MAX, 0]] }]);
            })
        }),
        ("holes of a file outside", WHOLE, |f| {
            manifest(f, |m| {
                m["sparse"] = json!([{ "path": "../../outside/secret", "size": 17, "data": [] },
                                     { "path": "/etc/passwd", "size": 17, "data": [] }]);
            })
        }),
        ("problems elsewhere", WHOLE, |f| {
            manifest(f, |m| {
                m["problems"] = json!([{ "path": "../../outside", "kind": "unreadable", "detail": "x" },
                                       { "path": "/", "kind": "excluded", "detail": "x" }]);
            })
        }),
        ("another home", WHOLE, |f| manifest(f, |m| m["home"] = json!("/../../outside"))),
        ("another app", WHOLE, |f| manifest(f, |m| m["app"] = json!("neighbour"))),
        ("a filter of paths outside", WHOLE, |f| {
            manifest(f, |m| {
                m["filter"] = json!({ "rules": ["/../../outside", "..", "/nested"], "left_out": 0 })
            })
        }),
    ]);
}

#[test]
fn a_filter_of_everything_changes_nothing() {
    let world = World::new();
    let mut forge = Forge::of(&world);
    let point = manifest(&mut forge, |m| m["filter"] = json!({ "rules": ["**"], "left_out": 0 }));
    let report = world.restore(&point).unwrap();
    assert!(report.plan.changes.is_empty(), "{:?}", report.plan.changes);
    assert!(world.outside_is_untouched());
}
