//! Texts that are replaced in a new app.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use backstay_model::app::Replace;
use backstay_model::{Cancel, Code};
use backstay_platform::{Names, Replaced, replace};
use backstay_tree::fs::{Call, Fault, Faulty, FileSystem, Host};

const FROM: Names<'static> = Names { app: "blog", home: "/srv/blog" };
const TO: Names<'static> = Names { app: "copy", home: "/var/lib/backstay/sites/copy" };

fn rule(file: &str, from: &str, to: &str) -> Replace {
    Replace { file: file.into(), from: from.into(), to: to.into() }
}

fn host() -> Arc<dyn FileSystem> {
    Arc::new(Host)
}

fn run(folder: &Path, rules: &[Replace]) -> backstay_model::Result<Vec<Replaced>> {
    replace(&host(), folder, rules, (FROM, TO), &Cancel::new())
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
    std::fs::write(folder.join(name), bytes).unwrap();
}

fn brief(all: &[Replaced]) -> Vec<(&str, u64, Option<&str>)> {
    all.iter().map(|r| (r.path.as_str(), r.count, r.left.as_deref())).collect()
}

#[test]
fn texts_are_replaced_in_the_files_that_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(root, "config.php", b"host=blog.example;\xff path=/srv/blog/data; host=blog.example");
    write(root, "a/b/site.env", b"URL=http://blog.example");
    write(root, "a/other.txt", b"blog.example");
    std::fs::set_permissions(root.join("config.php"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let rules = [
        rule("config.php", "{app}.example", "{app}.test.example"),
        rule("config.php", "{home}", "{home}"),
        rule("**/*.env", "blog.example", "$1 {other}"),
        rule("gone.ini", "x", "y"),
    ];
    let done = run(root, &rules).unwrap();
    assert_eq!(
        brief(&done),
        [("a/b/site.env", 1, None), ("config.php", 3, None), ("gone.ini", 0, Some("no such file"))]
    );
    let config = std::fs::read(root.join("config.php")).unwrap();
    let wanted =
        b"host=copy.test.example;\xff path=/var/lib/backstay/sites/copy/data; host=copy.test.example";
    assert_eq!(config, wanted);
    assert_eq!(std::fs::read(root.join("a/b/site.env")).unwrap(), b"URL=http://$1 {other}", "literally");
    assert_eq!(std::fs::read(root.join("a/other.txt")).unwrap(), b"blog.example");
    assert_eq!(root.join("config.php").metadata().unwrap().mode() & 0o7777, 0o640);
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 2, "nothing else is left");
}

#[test]
fn what_is_not_a_plain_text_is_left_as_it_is_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let outside = tempfile::tempdir().unwrap();
    write(outside.path(), "secret", b"blog");
    write(root, "binary", b"blog\0blog");
    write(root, "large", &vec![b'x'; 17 * 1024 * 1024]);
    write(root, "linked", b"blog");
    std::fs::hard_link(root.join("linked"), root.join("twin")).unwrap();
    symlink(outside.path().join("secret"), root.join("link")).unwrap();
    symlink(outside.path(), root.join("folder")).unwrap();
    let done = run(root, &[rule("**", "blog", "X")]).unwrap();
    assert_eq!(
        brief(&done),
        [
            ("binary", 0, Some("it is not a text")),
            ("large", 0, Some("larger than 16 MiB")),
            ("linked", 0, Some("it has several hard links")),
            ("twin", 0, Some("it has several hard links")),
        ]
    );
    assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"blog");
    assert_eq!(std::fs::read(root.join("binary")).unwrap(), b"blog\0blog");
    assert_eq!(run(root, &[rule("a[", "x", "y")]).unwrap_err().code(), Code::InvalidValue);
    let cancel = Cancel::new();
    cancel.cancel();
    let stopped = replace(&host(), root, &[rule("**", "b", "c")], (FROM, TO), &cancel);
    assert_eq!(stopped.unwrap_err().code(), Code::Cancelled);
}

#[test]
fn a_full_disk_leaves_the_file_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "config", b"blog");
    let faulty = Faulty::new(Arc::new(Host));
    faulty.fail(Fault::of(Call::WriteAt, 28));
    let fs: Arc<dyn FileSystem> = Arc::new(faulty);
    let full = replace(&fs, dir.path(), &[rule("config", "blog", "x")], (FROM, TO), &Cancel::new());
    assert_eq!(full.unwrap_err().code(), Code::TargetFull);
    assert_eq!(std::fs::read(dir.path().join("config")).unwrap(), b"blog");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
