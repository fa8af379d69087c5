//! Scanning, metadata, holes, trails and comparing, on real trees.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod common;

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use backstay_tree::compare::{self, What};
use backstay_tree::fs::{Call, Fault, Faulty, FileSystem, Host, Kind};
use backstay_tree::{
    Exclusions, Metadata, Owners, Trail, Why, open_folder, open_regular, remove_tree, scan, sparse,
};
use common::{acl, as_user, errno, folder, host, is_root};

fn n(name: &str) -> &OsStr {
    OsStr::new(name)
}

const EIO: i32 = 5;
const ENOENT: i32 = 2;
const EXDEV: i32 = 18;
const EINVAL: i32 = 22;
const EMFILE: i32 = 24;
const ELOOP: i32 = 40;
const ESTALE: i32 = 116;

#[test]
fn a_folder_is_listed_in_byte_order_without_what_is_left_out() {
    let (dir, root) = folder();
    for name in [&b"b"[..], b"a", b"B", b"\xff", b"a-b", b"a\n", "\u{e4}".as_bytes()] {
        std::fs::write(dir.path().join(OsStr::from_bytes(name)), b"x").unwrap();
    }
    std::fs::create_dir_all(dir.path().join("state/vault")).unwrap();
    let mut skip = Exclusions::new();
    // Known by what it is, not by the name it was given.
    symlink("state", dir.path().join("alias")).unwrap();
    assert!(skip.add_folder(&Host, &dir.path().join("alias")).unwrap());
    assert!(!skip.add_folder(&Host, &dir.path().join("nothing")).unwrap());
    let device = Host.stat_handle(root.as_fd()).unwrap().device;
    let listing = scan(&Host, root.as_fd(), &skip, device).unwrap();
    let names: Vec<_> = listing.entries.iter().map(|e| e.name.as_bytes().to_vec()).collect();
    assert_eq!(names, [&b"B"[..], b"a", b"a\n", b"a-b", b"alias", b"b", "\u{e4}".as_bytes(), b"\xff"]);
    assert_eq!(listing.left_out.len(), 1);
    assert_eq!((listing.left_out[0].name.as_os_str(), listing.left_out[0].why), (n("state"), Why::Excluded));
    assert!(listing.problems.is_empty());
}

#[test]
fn what_cannot_be_looked_at_is_told_and_what_vanishes_is_not_there() {
    let (dir, _) = folder();
    for name in ["bad", "gone", "good"] {
        std::fs::write(dir.path().join(name), b"x").unwrap();
    }
    let fs = Faulty::new(host());
    fs.fail(Fault::of(Call::Stat, EIO).named("bad"));
    fs.fail(Fault::of(Call::Stat, ENOENT).named("gone"));
    let root = fs.open_root(dir.path()).unwrap();
    let listing = scan(&fs, root.as_fd(), &Exclusions::new(), 0).unwrap();
    assert_eq!(listing.entries.len(), 1);
    assert_eq!(listing.problems.len(), 1);
    assert_eq!(listing.problems[0].0, "bad");
}

#[test]
fn mounts_are_left_out_and_never_entered() {
    let (dir, _) = folder();
    for name in ["tmpfs", "bind", "plain", "mnt-of-file"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    std::fs::create_dir(dir.path().join("plain/inner")).unwrap();
    for name in ["file", "other"] {
        std::fs::write(dir.path().join(name), b"x").unwrap();
    }
    let ran = common::mounts::private(|| {
        common::mounts::tmpfs(&dir.path().join("tmpfs"));
        // A bind mount has the device of its parent: only the kernel can tell it.
        common::mounts::bind(&dir.path().join("plain"), &dir.path().join("bind"));
        common::mounts::bind(&dir.path().join("other"), &dir.path().join("file"));
        let root = Host.open_root(dir.path()).unwrap();
        let fd = root.as_fd();
        let device = Host.stat_handle(fd).unwrap().device;
        let listing = scan(&Host, fd, &Exclusions::new(), device).unwrap();
        let names: Vec<_> = listing.entries.iter().map(|e| e.name.clone()).collect();
        assert_eq!(names, ["mnt-of-file", "other", "plain"]);
        let left: Vec<_> = listing.left_out.iter().map(|l| (l.name.clone(), l.why)).collect();
        assert_eq!(
            left,
            [("bind".into(), Why::Mount), ("file".into(), Why::Mount), ("tmpfs".into(), Why::Mount)]
        );
        assert_eq!(errno(open_folder(&Host, fd, n("bind"), device)), EXDEV);
        assert_eq!(errno(open_folder(&Host, fd, n("tmpfs"), device)), EXDEV);
        assert_eq!(errno(open_regular(&Host, fd, n("file"), device)), EXDEV);
        open_folder(&Host, fd, n("plain"), device).unwrap();
        let mut trail = Trail::new(&Host, root.try_clone().unwrap()).unwrap();
        assert_eq!(errno(trail.enter(n("bind"))), EXDEV);
        assert_eq!(trail.depth(), 0);
    });
    if let Err(reason) = ran {
        println!("skipped: cannot mount here: {reason}");
    }
}

#[test]
fn a_swapped_entry_is_noticed_when_it_is_opened() {
    let (dir, root) = folder();
    Host.make_node(root.as_fd(), n("f"), Kind::Fifo, 0).unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    let device = Host.stat_handle(root.as_fd()).unwrap().device;
    assert_eq!(errno(open_regular(&Host, root.as_fd(), n("f"), device)), ESTALE);
    assert_eq!(errno(open_regular(&Host, root.as_fd(), n("d"), device)), ESTALE);
    std::fs::create_dir(dir.path().join("d/e")).unwrap();
    for bad in ["d/e", "..", ".", "/"] {
        assert_eq!(errno(open_folder(&Host, root.as_fd(), n(bad), device)), EINVAL, "{bad}");
    }
    symlink("d", dir.path().join("l")).unwrap();
    assert_eq!(errno(open_folder(&Host, root.as_fd(), n("l"), device)), ELOOP);
}

#[test]
fn another_users_file_is_read_without_the_right_to_leave_its_access_time_alone() {
    if !is_root() {
        println!("skipped: needs root to be two users");
        return;
    }
    let (dir, _) = folder();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(dir.path().join("open"), b"x").unwrap();
    std::fs::write(dir.path().join("closed"), b"x").unwrap();
    std::fs::set_permissions(dir.path().join("open"), PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::set_permissions(dir.path().join("closed"), PermissionsExt::from_mode(0o600)).unwrap();
    as_user(12345, || {
        let root = common::open(dir.path());
        Host.open_file(root.as_fd(), n("open")).unwrap();
        let e = Host.open_file(root.as_fd(), n("closed")).unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::PermissionDenied);
    });
}

#[test]
fn metadata_has_names_attributes_and_targets() {
    let (dir, root) = folder();
    let owners = Owners::new();
    let file = Host.create_file(root.as_fd(), n("f")).unwrap();
    Host.set_xattr(file.as_fd(), n("user.a"), b"1").unwrap();
    Host.set_xattr(file.as_fd(), n("system.posix_acl_access"), &acl(7)).unwrap();
    symlink(OsStr::from_bytes(b"to\xff"), dir.path().join("l")).unwrap();
    let stat = Host.stat_handle(file.as_fd()).unwrap();
    let of_file = Metadata::of_handle(&Host, file.as_fd(), stat, &owners).unwrap();
    assert_eq!(of_file.user, owners.user(stat.uid));
    let want: Vec<(OsString, Vec<u8>)> =
        vec![("system.posix_acl_access".into(), acl(7)), ("user.a".into(), b"1".to_vec())];
    assert_eq!(of_file.xattrs, want);
    let stat = Host.stat(root.as_fd(), n("l")).unwrap();
    let of_link = Metadata::of_entry(&Host, root.as_fd(), n("l"), stat, &owners).unwrap();
    assert_eq!(of_link.link_target.unwrap().as_bytes(), b"to\xff");
    if is_root() {
        assert_eq!((of_file.user.as_deref(), of_file.group.as_deref()), (Some("root"), Some("root")));
    }
}

#[test]
fn data_of_a_sparse_file_is_found_and_bounded() {
    let (_dir, root) = folder();
    let file = Host.create_file(root.as_fd(), n("f")).unwrap();
    let fd = file.as_fd();
    let size = 4 << 30;
    Host.truncate(fd, size).unwrap();
    for at in [0u64, 1 << 20, (4 << 30) - 4096] {
        Host.write_at(fd, &[1; 4096], at).unwrap();
    }
    let stat = Host.stat_handle(fd).unwrap();
    assert!(sparse::may_have_holes(&stat));
    let all = [(0, 4096), (1 << 20, (1 << 20) + 4096), (size - 4096, size)];
    assert_eq!(sparse::extents(&Host, fd, size, 100).unwrap(), all);
    assert_eq!(sparse::extents(&Host, fd, size, 3).unwrap(), all);
    assert_eq!(sparse::extents(&Host, fd, size, 2).unwrap(), [(0, 4096), (1 << 20, size)]);
    assert_eq!(sparse::extents(&Host, fd, 4000, 9).unwrap(), [(0, 4000)]);
    assert_eq!(sparse::extents(&Host, fd, 0, 9).unwrap(), []);
    // Shorter than when it was looked at.
    Host.truncate(fd, 100).unwrap();
    assert_eq!(sparse::extents(&Host, fd, size, 100).unwrap(), [(0, 100)]);
}

/// A file system that knows no holes answers too.
#[test]
fn files_of_proc_are_all_data() {
    let root = Host.open_root(Path::new("/proc/self")).unwrap();
    let file = Host.open_file(root.as_fd(), n("status")).unwrap();
    assert!(Host.next_data(file.as_fd(), 0).unwrap().is_none_or(|(start, _)| start == 0));
    assert!(Host.xattrs(file.as_fd()).unwrap().is_empty());
}

fn dig(root: &Path, depth: usize) {
    let mut at = common::open(root);
    for _ in 0..depth {
        Host.create_dir(at.as_fd(), n("a-folder-name")).unwrap();
        at = Host.open_dir(at.as_fd(), n("a-folder-name")).unwrap();
    }
    Host.create_file(at.as_fd(), n("bottom")).unwrap();
}

fn open_handles() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn trails_go_three_thousand_levels_down_and_up_with_few_handles() {
    let (dir, root) = folder();
    dig(dir.path(), 3000);
    let mut trail = Trail::new(&Host, root.try_clone().unwrap()).unwrap();
    let mut ids = Vec::new();
    for _ in 0..3000 {
        ids.push(trail.enter(n("a-folder-name")).unwrap().id());
    }
    assert_eq!(trail.depth(), 3000);
    assert!(open_handles() < 500);
    assert_eq!(trail.path().as_os_str().len(), 3000 * 14 - 1);
    Host.stat(trail.handle().unwrap(), n("bottom")).unwrap();
    while let Some(id) = ids.pop() {
        assert_eq!(Host.stat_handle(trail.handle().unwrap()).unwrap().id(), id);
        assert_eq!(trail.leave().unwrap(), "a-folder-name");
    }
    assert_eq!(trail.leave(), None);
    assert!(compare::trees(dir.path(), dir.path(), &compare::Options::default()).is_empty());
    remove_tree(&Host, root.as_fd(), n("a-folder-name")).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_trail_is_not_led_astray_by_moved_folders() {
    let (dir, root) = folder();
    dig(dir.path(), 100);
    let mut trail = Trail::new(&Host, root.try_clone().unwrap()).unwrap();
    for _ in 0..100 {
        trail.enter(n("a-folder-name")).unwrap();
    }
    let inner = dir.path().join("a-folder-name/a-folder-name");
    std::fs::rename(&inner, dir.path().join("elsewhere")).unwrap();
    dig(&dir.path().join("a-folder-name"), 100);
    let refused = (0..99).any(|_| {
        trail.leave();
        trail.handle().map(|_| ()).is_err_and(|e| e.raw_os_error() == Some(ESTALE))
    });
    assert!(refused);
}

#[test]
fn no_more_handles_is_an_error_and_not_a_wrong_answer() {
    let (dir, _) = folder();
    std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
    let fs = Faulty::new(host());
    let root = fs.open_root(dir.path()).unwrap();
    let mut trail = Trail::new(&fs, root).unwrap();
    trail.enter(n("a")).unwrap();
    fs.fail(Fault::of(Call::OpenDirBeneath, EMFILE).times(1));
    assert_eq!(errno(trail.enter(n("b"))), EMFILE);
    assert_eq!(trail.depth(), 1);
    trail.enter(n("b")).unwrap();
    assert_eq!(trail.path(), Path::new("a/b"));
}

fn run(dir: &Path, script: &str) {
    let done = Command::new("bash").arg("-ec").arg(script).current_dir(dir).status().unwrap();
    assert!(done.success(), "{script}");
}

/// Every kind of difference is found, alone, and none where there is none.
#[test]
fn each_difference_is_found() {
    let cases: &[(&str, What)] = &[
        ("rm f", What::OnlyInFirst),
        ("touch -r f new; touch -d @5 .", What::OnlyInSecond),
        ("rm f; mkdir f", What::Kind),
        ("printf longer >> f; touch -d @1 f", What::Size),
        ("printf X | dd of=f bs=1 seek=2 conv=notrunc status=none; touch -d @1 f", What::Content),
        ("chmod 4755 f", What::Mode),
        ("chmod 700 d", What::Mode),
        ("touch -d @1.000000001 f", What::Mtime),
        ("touch -d @2 d", What::Mtime),
        ("touch -h -d @3 l", What::Mtime),
        ("touch -d @4 .", What::Mtime),
        ("ln -sfn other l; touch -h -d @1 l", What::LinkTarget),
        ("cp -a h1 x; rm h2; mv x h2", What::HardLinks),
        ("cp -a --sparse=never s x; mv x s", What::Holes),
        ("printf Y | dd of=s bs=1 seek=1048577 conv=notrunc status=none; touch -d @1 s", What::Content),
        ("chown -h 5 l", What::Owner),
        ("chgrp 5 d/inner", What::Owner),
        ("rm n; mknod n c 1 5; touch -d @1 n", What::Device),
    ];
    let (dir, _) = folder();
    std::fs::create_dir(dir.path().join("a")).unwrap();
    run(
        &dir.path().join("a"),
        "printf 0123456789 > f; mkdir d; printf i > d/inner; ln -s target l; printf h > h1; ln h1 h2; mkfifo p
         truncate -s 3M s; printf X | dd of=s bs=1 seek=1M conv=notrunc status=none; touch -d @1 f d/inner h1 s p
         touch -h -d @1 l; [ $EUID != 0 ] || { mknod n c 1 3; touch -d @1 n; }; touch -d @1 d; touch -d @1 .",
    );
    let options = compare::Options::default();
    for (script, what) in cases {
        if !is_root() && (matches!(what, What::Owner | What::Device)) {
            println!("skipped: {what:?} needs root");
            continue;
        }
        run(dir.path(), "rm -rf b; cp -a --sparse=always a b");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        assert_eq!(compare::trees(&a, &b, &options), []);
        run(&b, script);
        if !script.contains(" .") {
            run(&b, "touch -d @1 .");
        }
        let found = compare::trees(&a, &b, &options);
        assert!(found.iter().any(|d| d.what == *what), "{script}: {found:?}");
        let strange: Vec<_> = found.iter().filter(|d| d.what != *what && d.what != What::Mtime).collect();
        assert!(
            strange.iter().all(|d| *what == What::Content && d.what == What::Holes),
            "{script}: {found:?}"
        );
        println!("{script}: {}", found[0]);
    }
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    run(dir.path(), "rm -rf b; cp -a --sparse=always a b");
    let file = common::open(&b);
    let handle = Host.open_file(file.as_fd(), n("f")).unwrap();
    Host.set_xattr(handle.as_fd(), n("user.x"), b"1").unwrap();
    assert_eq!(compare::trees(&a, &b, &options)[0].what, What::Xattrs);
    Host.remove_xattr(handle.as_fd(), n("user.x")).unwrap();
    assert_eq!(compare::trees(&a, &b, &options), []);
    let folder = Host.open_dir(file.as_fd(), n("d")).unwrap();
    Host.set_xattr(folder.as_fd(), n("system.posix_acl_default"), &acl(3)).unwrap();
    assert_eq!(compare::trees(&a, &b, &options)[0].what, What::Xattrs);
    assert_eq!(compare::trees(&a, &dir.path().join("nothing"), &options)[0].what, What::Unreadable);
    run(&b, "rm -rf f d l; touch x y z");
    assert_eq!(compare::trees(&a, &b, &compare::Options { limit: 2, ..options }).len(), 2);
}

#[test]
fn what_the_comparison_cannot_read_is_a_difference() {
    if !is_root() {
        println!("skipped: needs root to be two users");
        return;
    }
    let (dir, _) = folder();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    run(dir.path(), "mkdir -p a/d b/d; touch a/f b/f; chmod 600 b/f; chmod 700 b/d; chmod 755 . a b");
    let found = as_user(12345, || {
        let options =
            compare::Options { mode: false, mtime: false, folder_mtime: false, ..Default::default() };
        compare::trees(&dir.path().join("a"), &dir.path().join("b"), &options)
    });
    let mut unreadable: Vec<_> =
        found.iter().filter(|d| d.what == What::Unreadable).map(|d| d.path.to_str().unwrap()).collect();
    unreadable.dedup();
    assert!(unreadable.contains(&"d") && unreadable.contains(&"f"), "{found:?}");
}
