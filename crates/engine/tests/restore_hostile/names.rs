//! Names, links and shapes that lead elsewhere.

use backstay_model::Code;

use crate::forge::{file, folder, symlink, with};
use crate::{Must, all, case, whole};

const REFUSE: Must = Must::Refuse(Code::RestoreRefused);

#[test]
fn names_that_lead_elsewhere() {
    let long = "n".repeat(256);
    let names = [
        "/outside/x",
        "..",
        ".",
        "",
        "../outside/secret",
        "a/b",
        "a\\x00b",
        "\\x2e\\x2e",
        "out/secret",
        &long,
    ];
    let mut cases = Vec::new();
    for name in names {
        for kind in ["file", "dir", "symlink"] {
            let name = name.to_owned();
            cases.push(case(&format!("{kind} {name:.20?}"), REFUSE, move |f| {
                vec![match kind {
                    "file" => f.file(&name, b"overwritten"),
                    "dir" => f.folder(&name, "secret"),
                    _ => symlink(&name, "/"),
                }]
            }));
        }
    }
    all(cases);
}

#[test]
fn names_used_twice() {
    all(vec![
        case("a link out, then a folder of its name", REFUSE, |f| {
            vec![symlink("out", "../../outside"), f.folder("out", "secret")]
        }),
        case("a link to the root, then a folder", REFUSE, |f| {
            vec![symlink("l", "/"), f.folder("l", "secret")]
        }),
        case("a folder, then a link out", REFUSE, |f| {
            vec![f.folder("out", "inside"), symlink("out", "../../outside")]
        }),
        case("a link, then a file", REFUSE, |f| {
            vec![symlink("l", "../../outside/secret"), f.file("l", b"x")]
        }),
        case("three files", REFUSE, |f| vec![f.file("f", b"1"), f.file("f", b"2"), f.file("f", b"3")]),
        case("a file, then a folder", REFUSE, |f| vec![f.file("file", b"1"), f.folder("file", "x")]),
        case("two folders", REFUSE, |f| vec![f.folder("dir", "one"), f.folder("dir", "two")]),
        case("a child beside its folder", REFUSE, |f| {
            vec![symlink("out", "../../outside"), f.file("out/secret", b"x")]
        }),
        case("twins in case", whole(&["Twin", "twin", "TWIN"]), |f| {
            vec![f.file("TWIN", b"1"), f.file("Twin", b"2"), f.file("twin", b"3")]
        }),
        case("out of order", whole(&["b", "a"]), |f| vec![f.file("b", b"1"), f.file("a", b"2")]),
    ]);
}

#[test]
fn what_lies_behind_links_of_the_home() {
    all(vec![
        case("a folder where the home has a link out", whole(&["out/secret", "out/folder"]), |f| {
            let below = [f.folder("folder", "secret"), f.file("secret", b"overwritten")];
            let below = f.tree(&below);
            vec![folder("out", below)]
        }),
        case("a file where the home has a link out", whole(&["out"]), |f| vec![f.file("out", b"x")]),
        case("a file where the home's folder has a link out", whole(&["dir/link"]), |f| {
            vec![f.folder("dir", "link")]
        }),
        case("another link out", whole(&["out"]), |_| vec![symlink("out", "../../outside/folder")]),
        case("a file where a folder is", whole(&["dir"]), |f| vec![f.file("dir", b"x")]),
        case("a folder where a file is", whole(&["file/secret"]), |f| vec![f.folder("file", "secret")]),
        case(
            "an app in the app",
            Must::Restore { there: &["nested/index.html"], not: &[], told: false },
            |f| vec![f.folder("nested", "index.html")],
        ),
        case("a file where an app is", whole(&["nested/index.html"]), |f| vec![f.file("nested", b"x")]),
        case("a link where an app is", whole(&["nested/index.html"]), |_| vec![symlink("nested", "/")]),
        case("a workplace's name", REFUSE, |f| {
            vec![f.folder(&format!(".backstay-{}", "a".repeat(32)), "staged")]
        }),
        case("a file with a workplace's name", REFUSE, |f| {
            vec![f.file(&format!(".backstay-{}", "b".repeat(32)), b"x")]
        }),
        case("a workplace's name further down", REFUSE, |f| {
            let below = f.folder(&format!(".backstay-{}", "c".repeat(32)), "staged");
            let below = f.tree(&[below]);
            vec![folder("dir", below)]
        }),
        case("a filter that is a link", whole(&["_backup.filter"]), |_| {
            vec![symlink("_backup.filter", "/etc/passwd")]
        }),
        case("a filter that is a folder", whole(&["_backup.filter"]), |f| {
            vec![f.folder("_backup.filter", "x")]
        }),
    ]);
}

#[test]
fn links_are_data() {
    let long = "t".repeat(5000);
    all(vec![
        case("absolute", whole(&["l"]), |_| vec![symlink("l", "/etc/passwd")]),
        case("up", whole(&["l"]), |_| vec![symlink("l", "../../../../outside")]),
        case("to itself", whole(&["l"]), |_| vec![symlink("l", "l")]),
        case("empty", REFUSE, |_| vec![symlink("l", "")]),
        case("too long", REFUSE, move |_| vec![symlink("l", &long)]),
        case("with NUL", REFUSE, |_| vec![symlink("l", "a\0b")]),
        case("with a child", whole(&["l"]), |f| {
            let below = f.file("secret", b"overwritten");
            let below = f.tree(&[below]);
            vec![with(symlink("l", "../../outside"), "subtree", serde_json::json!(below))]
        }),
        case("with content", whole(&["l"]), |f| {
            let id = f.data(b"overwritten");
            vec![with(symlink("l", "../../outside/secret"), "content", serde_json::json!([id]))]
        }),
    ]);
}

#[test]
fn hard_links_that_do_not_fit() {
    let shared = |node, links: u64| with(with(node, "links", links), "inode", 77);
    all(vec![
        case("alone", whole(&["one"]), move |f| vec![shared(f.file("one", b"text"), 5)]),
        case("other content", whole(&["one", "two", "link", "three"]), move |f| {
            vec![
                shared(f.file("link", b"text"), 3),
                shared(f.file("one", b"text"), 3),
                shared(f.file("three", b"other"), 3),
                shared(symlink("two", "../../outside/secret"), 3),
            ]
        }),
        case("of a file that is lost", REFUSE, move |f| {
            let id = backstay_vault::Id::of(b"nowhere");
            vec![
                shared(f.file("a", b"here"), 2),
                shared(file("one", &[id], 7), 2),
                shared(file("two", &[id], 7), 2),
            ]
        }),
        case("with more names than links", whole(&["one", "two", "three"]), move |f| {
            ["one", "three", "two"].map(|name| shared(f.file(name, b"text"), 2)).to_vec()
        }),
        case("with absurd numbers", whole(&["one", "two"]), move |f| {
            ["one", "two"]
                .map(|name| {
                    with(with(shared(f.file(name, b"t"), u64::MAX), "inode", u64::MAX), "device_id", u64::MAX)
                })
                .to_vec()
        }),
    ]);
}

#[test]
fn odd_names_are_names() {
    all(vec![
        case("controls", whole(&["\u{1b}[2J\n\r\t\u{7f}"]), |f| vec![f.file("\\x1b[2J\\n\\r\\t\\x7f", b"x")]),
        case("255 bytes", Must::Restore { there: &[], not: &[], told: false }, |f| {
            vec![f.file(&"n".repeat(255), b"x")]
        }),
        case("not text", whole(&[]), |f| vec![f.file("\\xff\\xfe", b"x")]),
        case("like options and patterns", whole(&["-rf", "*", "~", "$(reboot)", "..."]), |f| {
            ["$(reboot)", "*", "-rf", "...", "~"].map(|name| f.file(name, b"x")).to_vec()
        }),
    ]);
}
