//! The real file system through the seam, on a real folder.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod common;

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use backstay_tree::fs::{FileSystem, FileTime, Host, Kind, Rename};
use common::{acl, errno, folder, is_root};

const EINVAL: i32 = 22;
const EEXIST: i32 = 17;
const ELOOP: i32 = 40;
const ENOTDIR: i32 = 20;

#[test]
fn names_that_are_not_one_component_never_reach_the_kernel() {
    let (dir, root) = folder();
    std::fs::create_dir(dir.path().join("a")).unwrap();
    std::fs::write(dir.path().join("a/b"), b"x").unwrap();
    let fd = root.as_fd();
    for bad in ["", ".", "..", "a/b", "/etc", "a/", "nul\0byte", "../x"] {
        let bad = OsStr::new(bad);
        let ok = OsStr::new("ok");
        assert_eq!(errno(Host.open_dir(fd, bad)), EINVAL, "{bad:?}");
        assert_eq!(errno(Host.open_dir_beneath(fd, Path::new(&OsStr::new("a/..")))), EINVAL);
        assert_eq!(errno(Host.open_file(fd, bad)), EINVAL);
        assert_eq!(errno(Host.stat(fd, bad)), EINVAL);
        assert_eq!(errno(Host.read_link(fd, bad)), EINVAL);
        assert_eq!(errno(Host.xattrs_at(fd, bad)), EINVAL);
        assert_eq!(errno(Host.create_dir(fd, bad)), EINVAL);
        assert_eq!(errno(Host.create_file(fd, bad)), EINVAL);
        assert_eq!(errno(Host.rename(fd, bad, fd, ok, Rename::Replace)), EINVAL);
        assert_eq!(errno(Host.rename(fd, ok, fd, bad, Rename::Replace)), EINVAL);
        assert_eq!(errno(Host.link(fd, bad, fd, ok)), EINVAL);
        assert_eq!(errno(Host.link(fd, ok, fd, bad)), EINVAL);
        assert_eq!(errno(Host.unlink(fd, bad)), EINVAL);
        assert_eq!(errno(Host.remove_dir(fd, bad)), EINVAL);
        assert_eq!(errno(Host.symlink(ok, fd, bad)), EINVAL);
        assert_eq!(errno(Host.make_node(fd, bad, Kind::Fifo, 0)), EINVAL);
        assert_eq!(errno(Host.set_owner_at(fd, bad, 0, 0)), EINVAL);
        assert_eq!(errno(Host.set_mode_at(fd, bad, 0)), EINVAL);
        assert_eq!(errno(Host.set_times_at(fd, bad, FileTime::default())), EINVAL);
        assert_eq!(errno(Host.set_xattr_at(fd, bad, OsStr::new("user.x"), b"")), EINVAL);
    }
}

#[test]
fn odd_names_are_listed_as_they_are_with_their_kinds() {
    let (_dir, root) = folder();
    let fd = root.as_fd();
    let long = OsString::from("n".repeat(255));
    let odd: Vec<&OsStr> = vec![
        OsStr::from_bytes(b"latin-\xe9\xff"),
        OsStr::new("new\nline"),
        OsStr::new(" "),
        OsStr::new("-rf"),
        OsStr::new("..."),
    ];
    for name in &odd {
        Host.create_file(fd, name).unwrap();
    }
    Host.create_dir(fd, &long).unwrap();
    Host.symlink(OsStr::new("/nowhere"), fd, OsStr::new("link")).unwrap();
    Host.make_node(fd, OsStr::new("fifo"), Kind::Fifo, 0).unwrap();
    Host.make_node(fd, OsStr::new("sock"), Kind::Socket, 0).unwrap();
    for _ in 0..2 {
        let mut got = Host.entries(fd).unwrap();
        got.sort();
        let mut want: Vec<_> = odd.iter().map(|n| ((*n).to_owned(), Some(Kind::File))).collect();
        want.push((long.clone(), Some(Kind::Dir)));
        want.push(("link".into(), Some(Kind::Symlink)));
        want.push(("fifo".into(), Some(Kind::Fifo)));
        want.push(("sock".into(), Some(Kind::Socket)));
        want.sort();
        assert_eq!(got, want);
    }
    assert_eq!(Host.read_link(fd, OsStr::new("link")).unwrap(), "/nowhere");
    // Does not wait for a writer.
    let fifo = Host.open_file(fd, OsStr::new("fifo")).unwrap();
    assert_eq!(Host.stat_handle(fifo.as_fd()).unwrap().kind, Kind::Fifo);
}

#[test]
fn a_folder_larger_than_the_buffer_is_listed_once_each() {
    let (_dir, root) = folder();
    for n in 0..10_000 {
        Host.create_file(root.as_fd(), OsStr::new(&format!("file-with-a-longer-name-{n:05}"))).unwrap();
    }
    let mut names: Vec<_> = Host.entries(root.as_fd()).unwrap().into_iter().map(|(n, _)| n).collect();
    assert_eq!(names.len(), 10_000);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 10_000);
}

#[test]
fn links_are_not_followed() {
    let (dir, root) = folder();
    let fd = root.as_fd();
    std::fs::create_dir_all(dir.path().join("real/deep")).unwrap();
    std::fs::write(dir.path().join("file"), b"x").unwrap();
    std::os::unix::fs::symlink("real", dir.path().join("todir")).unwrap();
    std::os::unix::fs::symlink("file", dir.path().join("tofile")).unwrap();
    let (todir, tofile) = (OsStr::new("todir"), OsStr::new("tofile"));
    assert!([ELOOP, ENOTDIR].contains(&errno(Host.open_dir(fd, todir))));
    assert_eq!(errno(Host.open_dir_beneath(fd, Path::new("todir/deep"))), ELOOP);
    assert_eq!(errno(Host.open_file(fd, tofile)), ELOOP);
    assert_eq!(Host.stat(fd, tofile).unwrap().kind, Kind::Symlink);
    Host.open_dir_beneath(fd, Path::new("real/deep")).unwrap();
    assert!(Host.set_mode_at(fd, tofile, 0o777).is_err());
    let before = Host.stat(fd, OsStr::new("file")).unwrap();
    let when = FileTime { secs: 5, nanos: 6 };
    Host.set_times_at(fd, tofile, when).unwrap();
    assert_eq!(Host.stat(fd, tofile).unwrap().mtime, when);
    assert_eq!(Host.stat(fd, OsStr::new("file")).unwrap(), before);
    // A link to a link's own inode, not to what it names.
    Host.link(fd, tofile, fd, OsStr::new("hard")).unwrap();
    assert_eq!(Host.stat(fd, OsStr::new("hard")).unwrap().kind, Kind::Symlink);
}

#[test]
fn content_holes_times_and_modes() {
    let (_dir, root) = folder();
    let fd = root.as_fd();
    let name = OsStr::new("f");
    let file = Host.create_file(fd, name).unwrap();
    assert_eq!(errno(Host.create_file(fd, name)), EEXIST);
    assert_eq!(Host.stat(fd, name).unwrap().mode, 0o600);
    Host.truncate(file.as_fd(), 1 << 20).unwrap();
    assert_eq!(Host.next_data(file.as_fd(), 0).unwrap(), None);
    Host.write_at(file.as_fd(), &[7; 4096], 65536).unwrap();
    Host.sync(file.as_fd()).unwrap();
    Host.sync(fd).unwrap();
    assert_eq!(Host.next_data(file.as_fd(), 0).unwrap(), Some((65536, 69632)));
    assert_eq!(Host.next_data(file.as_fd(), 69632).unwrap(), None);
    assert_eq!(Host.next_data(file.as_fd(), 1 << 21).unwrap(), None);
    let mut buf = vec![1; 8192];
    assert_eq!(Host.read_at(file.as_fd(), &mut buf, (1 << 20) - 100).unwrap(), 100);
    assert_eq!(Host.read_at(file.as_fd(), &mut buf, 65536 - 10).unwrap(), 8192);
    assert_eq!((buf[9], buf[10], buf[4105], buf[4106]), (0, 7, 7, 0));
    for when in [
        FileTime { secs: -1, nanos: 999_999_999 },
        FileTime { secs: 0, nanos: 0 },
        FileTime { secs: 4_102_444_800, nanos: 1 },
    ] {
        Host.set_times(file.as_fd(), when).unwrap();
        assert_eq!(Host.stat(fd, name).unwrap().mtime, when);
    }
    for mode in [0o4755, 0o2000, 0o1777, 0] {
        Host.set_mode(file.as_fd(), mode).unwrap();
        assert_eq!(Host.stat_handle(file.as_fd()).unwrap().mode, mode);
    }
    Host.make_node(fd, OsStr::new("p"), Kind::Fifo, 0).unwrap();
    Host.set_mode_at(fd, OsStr::new("p"), 0o642).unwrap();
    assert_eq!(Host.stat(fd, OsStr::new("p")).unwrap().mode, 0o642);
}

#[test]
fn attributes_of_all_lengths() {
    let (_dir, root) = folder();
    let fd = root.as_fd();
    let file = Host.create_file(fd, OsStr::new("f")).unwrap();
    let at = file.as_fd();
    let before = Host.xattrs(at).unwrap();
    assert_eq!(before.iter().filter(|(n, _)| n.as_bytes().starts_with(b"user.")).count(), 0);
    let mut want: Vec<(OsString, Vec<u8>)> = vec![
        ("user.empty".into(), vec![]),
        ("user.binary".into(), vec![0, 255, 10, 0]),
        ("user.long".into(), vec![9; 1500]),
        (OsString::from("user.".to_owned() + &"k".repeat(250)), b"v".to_vec()),
        (OsString::from("user.".to_owned() + &"m".repeat(250)), b"w".to_vec()),
        (OsString::from("user.".to_owned() + &"o".repeat(250)), b"w".to_vec()),
    ];
    for (name, value) in &want {
        Host.set_xattr(at, name, value).unwrap();
    }
    want.sort();
    assert_eq!(Host.xattrs(at).unwrap(), want);
    Host.remove_xattr(at, OsStr::new("user.long")).unwrap();
    assert_eq!(Host.xattrs(at).unwrap().len(), want.len() - 1);
    let acl = acl(1234);
    Host.set_xattr(at, OsStr::new("system.posix_acl_access"), &acl).unwrap();
    assert!(Host.xattrs(at).unwrap().contains(&("system.posix_acl_access".into(), acl)));
    assert_eq!(Host.stat_handle(at).unwrap().mode, 0o640);
    if is_root() {
        Host.symlink(OsStr::new("f"), fd, OsStr::new("l")).unwrap();
        Host.set_xattr_at(fd, OsStr::new("l"), OsStr::new("trusted.t"), b"of the link").unwrap();
        let got = Host.xattrs_at(fd, OsStr::new("l")).unwrap();
        assert_eq!(got, [("trusted.t".into(), b"of the link".to_vec())]);
        assert!(!Host.xattrs(at).unwrap().iter().any(|(n, _)| n == "trusted.t"));
    }
}

#[test]
fn devices_and_owners_as_root() {
    if !is_root() {
        println!("skipped: device nodes need root");
        return;
    }
    let (_dir, root) = folder();
    let fd = root.as_fd();
    let (null, disk, link) = (OsStr::new("null"), OsStr::new("disk"), OsStr::new("link"));
    let rdev = rustix::fs::makedev(1, 3);
    let large = rustix::fs::makedev(259, 1_000_000);
    Host.make_node(fd, null, Kind::CharDevice, rdev).unwrap();
    Host.make_node(fd, disk, Kind::BlockDevice, large).unwrap();
    Host.symlink(OsStr::new("null"), fd, link).unwrap();
    Host.set_owner_at(fd, link, 1001, 4_000_000_000).unwrap();
    let stat = Host.stat(fd, null).unwrap();
    assert_eq!((stat.kind, stat.rdev, stat.uid), (Kind::CharDevice, rdev, 0));
    let stat = Host.stat(fd, disk).unwrap();
    assert_eq!((stat.kind, stat.rdev), (Kind::BlockDevice, large));
    let stat = Host.stat(fd, link).unwrap();
    assert_eq!((stat.uid, stat.gid), (1001, 4_000_000_000));
}

#[test]
fn renames_replace_only_where_asked() {
    let (dir, root) = folder();
    let fd = root.as_fd();
    let (a, b) = (OsStr::new("a"), OsStr::new("b"));
    std::fs::write(dir.path().join("a"), b"a").unwrap();
    std::fs::write(dir.path().join("b"), b"b").unwrap();
    assert_eq!(errno(Host.rename(fd, a, fd, b, Rename::NoReplace)), EEXIST);
    Host.rename(fd, a, fd, b, Rename::Exchange).unwrap();
    assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), b"b");
    Host.rename(fd, a, fd, b, Rename::Replace).unwrap();
    assert_eq!(std::fs::read(dir.path().join("b")).unwrap(), b"b");
    assert!(!dir.path().join("a").exists());
}
