//! Writing beneath a root, metadata, deleting: on real trees, against races, mounts and missing rights.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod common;

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use backstay_model::Code;
use backstay_tree::beneath::{Root, writing};
use backstay_tree::fs::{Call, Fault, Faulty, FileSystem, FileTime, Host, Kill, Kind, Rename};
use backstay_tree::metadata::{Attribute, Wanted, apply, apply_at};
use backstay_tree::remove_tree;
use common::{acl, as_user, folder, host, is_root};

fn n(name: &str) -> &OsStr {
    OsStr::new(name)
}

const ENOSYS: i32 = 38;

fn want(mode: u32, xattrs: &[(OsString, Vec<u8>)]) -> Wanted<'_> {
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    Wanted { uid: user, gid: group, mode, mtime: FileTime { secs: -5, nanos: 999_999_999 }, xattrs }
}

#[test]
fn folders_are_made_and_opened_beneath_the_root_only() {
    let (dir, _) = folder();
    std::fs::create_dir(dir.path().join("root")).unwrap();
    std::fs::create_dir(dir.path().join("outside")).unwrap();
    symlink("../outside", dir.path().join("root/link")).unwrap();
    for slow in [false, true] {
        let fs = Faulty::new(host());
        if slow {
            fs.fail(Fault::of(Call::OpenDirBeneath, ENOSYS));
        }
        let root = Root::open(std::sync::Arc::new(fs), &dir.path().join("root")).unwrap();
        let path = PathBuf::from(if slow { "s/b/c" } else { "a/b/c" });
        assert_eq!(root.open_dir(&path).unwrap_err().code(), Code::RestoreIncomplete);
        let made = root.make_dirs(&path).unwrap();
        let again = root.make_dirs(&path).unwrap();
        let opened = root.open_dir(&path).unwrap();
        let id = |fd: &std::os::fd::OwnedFd| Host.stat_handle(fd.as_fd()).unwrap().id();
        assert_eq!((id(&made), id(&made)), (id(&again), id(&opened)));
        assert_eq!(id(&root.open_dir(Path::new("")).unwrap()), Host.stat_handle(root.handle()).unwrap().id());
        assert_eq!(Host.stat_handle(made.as_fd()).unwrap().mode, 0o700);
        for bad in ["/etc", "..", "a/../..", "a//b", "./a", "a/", "link", "link/x", "a\0b"] {
            let e = root.make_dirs(Path::new(bad)).unwrap_err();
            assert!(matches!(e.code(), Code::UnsafePath | Code::RestoreIncomplete), "{bad}: {e:?}");
            root.open_dir(Path::new(bad)).unwrap_err();
        }
        for bad in ["link", "link/x"] {
            assert_eq!(root.make_dirs(Path::new(bad)).unwrap_err().code(), Code::UnsafePath, "{bad}");
        }
        std::fs::write(dir.path().join("root/file"), b"x").unwrap();
        assert_eq!(root.make_dirs(Path::new("file")).unwrap_err().code(), Code::RestoreIncomplete);
    }
    assert_eq!(std::fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
    let e = Root::open(host(), &dir.path().join("nothing\n")).unwrap_err();
    assert_eq!(e.code(), Code::TargetUnusable);
    assert!(e.message().ends_with("nothing\\x0a"), "{e}");
}

#[test]
fn paths_longer_than_the_kernel_takes_work() {
    let (dir, top) = folder();
    let root = Root::open(host(), dir.path()).unwrap();
    let long = PathBuf::from(vec!["x".repeat(255); 60].join("/"));
    let made = root.make_dirs(&long).unwrap();
    Host.create_file(made.as_fd(), n("f")).unwrap();
    let opened = root.open_dir(&long).unwrap();
    Host.stat(opened.as_fd(), n("f")).unwrap();
    remove_tree(&Host, top.as_fd(), OsStr::new(&"x".repeat(255))).unwrap();
}

#[test]
fn a_mount_below_the_root_is_not_written_into_nor_deleted() {
    let (dir, _) = folder();
    std::fs::create_dir_all(dir.path().join("root/data/share")).unwrap();
    std::fs::create_dir_all(dir.path().join("root/data/bound")).unwrap();
    std::fs::create_dir(dir.path().join("beside")).unwrap();
    std::fs::write(dir.path().join("beside/precious"), b"x").unwrap();
    let ran = common::mounts::private(|| {
        let share = dir.path().join("root/data/share");
        for bind in [false, true] {
            if bind {
                std::fs::create_dir_all(dir.path().join("root/data/bound")).unwrap();
                // On the same device, so that only the kernel's word tells that it is a mount.
                common::mounts::bind(&dir.path().join("beside"), &dir.path().join("root/data/bound"));
            } else {
                common::mounts::tmpfs(&share);
                std::fs::write(share.join("precious"), b"x").unwrap();
            }
            let name = if bind { "data/bound" } else { "data/share" };
            let root = Root::open(host(), &dir.path().join("root")).unwrap();
            assert_eq!(root.make_dirs(&Path::new(name).join("new")).unwrap_err().code(), Code::UnsafePath);
            let data = root.open_dir(Path::new("data")).unwrap();
            root.make_dir(data.as_fd(), Path::new(name).file_name().unwrap()).unwrap_err();
            let e = remove_tree(&Host, root.handle(), n("data")).unwrap_err();
            assert_eq!(e.code(), Code::Conflict);
            assert!(e.message().starts_with("Something is mounted in data"), "{e}");
            assert!(dir.path().join("root").join(name).join("precious").exists());
            let e = remove_tree(&Host, data.as_fd(), Path::new(name).file_name().unwrap()).unwrap_err();
            assert_eq!(e.code(), Code::Conflict, "{e:?}");
        }
    });
    match ran {
        Ok(()) => assert!(dir.path().join("beside/precious").exists()),
        Err(reason) => println!("skipped: cannot mount here: {reason}"),
    }
}

/// A thread swaps a folder of the target for a link out of it, again and again, while files are restored there.
#[test]
fn links_swapped_in_while_writing_lead_nothing_outside() {
    let (dir, _) = folder();
    let (target, outside) = (dir.path().join("target"), dir.path().join("outside"));
    for path in [&target, &outside, &target.join("d"), &outside.join("sub")] {
        std::fs::create_dir(path).unwrap();
    }
    symlink(&outside, target.join("link")).unwrap();
    let stop = AtomicBool::new(false);
    let before = std::fs::metadata(&outside).unwrap();
    let (mut written, mut refused) = (0, 0);
    for slow in [false, true] {
        let fs = Faulty::new(host());
        if slow {
            fs.fail(Fault::of(Call::OpenDirBeneath, ENOSYS));
        }
        stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let dir = common::open(&target);
                while !stop.load(Ordering::Relaxed) {
                    Host.rename(dir.as_fd(), n("d"), dir.as_fd(), n("link"), Rename::Exchange).unwrap();
                }
            });
            let root = Root::open(if slow { std::sync::Arc::new(fs) } else { host() }, &target).unwrap();
            for turn in 0..12_000u32 {
                let attempt = || -> Result<(), ()> {
                    let at = root.make_dirs(Path::new("d/sub")).map_err(drop)?;
                    let name = format!("f{turn}");
                    let file = root.fs().create_file(at.as_fd(), n(&name)).map_err(drop)?;
                    root.fs().write_at(file.as_fd(), b"x", 0).map_err(drop)?;
                    apply(&**root.fs(), file.as_fd(), &want(0o640, &[]));
                    root.fs().unlink(at.as_fd(), n(&name)).map_err(drop)?;
                    // By name: what is there may be the link.
                    apply_at(&**root.fs(), root.handle(), n("d"), &want(0o711, &[]));
                    Ok(())
                };
                match attempt() {
                    Ok(()) => written += 1,
                    Err(()) => refused += 1,
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
    println!("{written} written, {refused} refused");
    assert!(written > 100 && refused > 100);
    let after = std::fs::metadata(&outside).unwrap();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(outside.join("sub")).unwrap().count(), 0);
    assert_eq!((before.mode(), before.mtime_nsec()), (after.mode(), after.mtime_nsec()));
}

#[test]
fn links_swapped_in_while_deleting_lead_nothing_outside() {
    let (dir, root) = folder();
    let outside = dir.path().join("outside");
    std::fs::create_dir_all(outside.join("sub")).unwrap();
    std::fs::write(outside.join("precious"), b"x").unwrap();
    std::fs::write(outside.join("sub/precious"), b"x").unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if let Ok(victim) = Host.open_dir(root.as_fd(), n("victim")) {
                    let v = victim.as_fd();
                    let _gone = Host.rename(v, n("d"), v, n("link"), Rename::Exchange);
                }
            }
        });
        for _ in 0..2_000 {
            let victim = dir.path().join("victim");
            std::fs::create_dir_all(victim.join("d/sub")).unwrap();
            std::fs::write(victim.join("d/sub/f"), b"x").unwrap();
            std::fs::write(victim.join("d/precious"), b"x").unwrap();
            symlink(&outside, victim.join("link")).unwrap();
            // While it is swapped it may have to be tried again.
            while remove_tree(&Host, root.as_fd(), n("victim")).is_err() {}
            assert!(!victim.exists());
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(outside.join("precious").exists() && outside.join("sub/precious").exists());
}

#[test]
fn everything_is_set_and_the_times_last() {
    let (_dir, root) = folder();
    let (fd, root_user) = (root.as_fd(), is_root());
    let mut xattrs: Vec<(OsString, Vec<u8>)> =
        vec![("system.posix_acl_access".into(), acl(77)), ("user.a".into(), vec![0, 1])];
    if root_user {
        // VFS_CAP_REVISION_2 with CAP_NET_BIND_SERVICE: a change of owner afterwards would drop it.
        let mut cap = vec![1, 0, 0, 2, 0, 4, 0, 0];
        cap.resize(20, 0);
        xattrs.push(("security.capability".into(), cap));
        xattrs.push(("trusted.t".into(), b"t".to_vec()));
    }
    xattrs.sort();
    let file = Host.create_file(fd, n("f")).unwrap();
    Host.write_at(file.as_fd(), b"content", 0).unwrap();
    let mut all = want(0o6640, &xattrs);
    if root_user {
        (all.uid, all.gid) = (1234, 4321);
    }
    let problems = apply(&Host, file.as_fd(), &all);
    assert!(problems.is_empty(), "{problems:?}");
    let stat = Host.stat(fd, n("f")).unwrap();
    assert_eq!((stat.mode, stat.uid, stat.gid, stat.mtime), (0o6640, all.uid, all.gid, all.mtime));
    assert_eq!(Host.xattrs(file.as_fd()).unwrap(), xattrs);
    // Again is quiet: nothing but the times is set.
    let fs = Faulty::new(host());
    assert!(apply(&fs, file.as_fd(), &all).is_empty());
    assert_eq!(fs.points(), 1);
    // Attributes that are not wanted go.
    let none = Wanted { xattrs: &[], ..all };
    assert!(apply(&Host, file.as_fd(), &none).is_empty());
    assert_eq!(Host.xattrs(file.as_fd()).unwrap(), []);
    assert_eq!(Host.stat(fd, n("f")).unwrap().mode, 0o6640);
}

#[test]
fn inherited_acls_do_not_stay() {
    let (_dir, root) = folder();
    let fd = root.as_fd();
    Host.set_xattr(fd, n("system.posix_acl_default"), &acl(55)).unwrap();
    let file = Host.create_file(fd, n("f")).unwrap();
    Host.make_node(fd, n("p"), Kind::Fifo, 0).unwrap();
    Host.create_dir(fd, n("d")).unwrap();
    assert!(!Host.xattrs(file.as_fd()).unwrap().is_empty());
    assert!(!Host.xattrs_at(fd, n("p")).unwrap().is_empty());
    let sub = Host.open_dir(fd, n("d")).unwrap();
    assert_eq!(Host.xattrs(sub.as_fd()).unwrap().len(), 2);
    assert!(apply(&Host, file.as_fd(), &want(0o664, &[])).is_empty());
    assert!(apply_at(&Host, fd, n("p"), &want(0o664, &[])).is_empty());
    assert!(apply(&Host, sub.as_fd(), &want(0o775, &[])).is_empty());
    for (name, mode) in [("f", 0o664), ("p", 0o664), ("d", 0o775)] {
        assert_eq!(Host.xattrs_at(fd, n(name)).unwrap(), [], "{name}");
        assert_eq!(Host.stat(fd, n(name)).unwrap().mode, mode, "{name}");
    }
}

#[test]
fn links_and_nodes_get_theirs_by_name() {
    let (dir, root) = folder();
    let fd = root.as_fd();
    std::fs::write(dir.path().join("target"), b"x").unwrap();
    symlink("target", dir.path().join("l")).unwrap();
    Host.make_node(fd, n("p"), Kind::Fifo, 0).unwrap();
    Host.make_node(fd, n("s"), Kind::Socket, 0).unwrap();
    let untouched = Host.stat(fd, n("target")).unwrap();
    let mut wanted = want(0o1642, &[]);
    if is_root() {
        (wanted.uid, wanted.gid) = (3, 4);
        Host.make_node(fd, n("c"), Kind::CharDevice, rustix::fs::makedev(1, 3)).unwrap();
    }
    for name in ["l", "p", "s", "c"] {
        let Ok(before) = Host.stat(fd, n(name)) else { continue };
        assert!(apply_at(&Host, fd, n(name), &wanted).is_empty(), "{name}");
        let stat = Host.stat(fd, n(name)).unwrap();
        let mode = if before.kind == Kind::Symlink { before.mode } else { 0o1642 };
        assert_eq!((stat.mode, stat.uid, stat.gid, stat.mtime), (mode, wanted.uid, wanted.gid, wanted.mtime));
    }
    assert_eq!(Host.stat(fd, n("target")).unwrap(), untouched);
}

#[test]
fn without_rights_the_owner_is_a_problem_and_set_uid_is_left_out() {
    if !is_root() {
        println!("skipped: needs root to become another user");
        return;
    }
    let (dir, _) = folder();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    as_user(12345, || {
        let root = common::open(dir.path());
        let file = Host.create_file(root.as_fd(), n("f")).unwrap();
        let foreign = Wanted { uid: 0, gid: 0, ..want(0o6755, &[]) };
        let problems = apply(&Host, file.as_fd(), &foreign);
        let what: Vec<_> = problems.iter().map(|p| p.what.clone()).collect();
        assert_eq!(what, [Attribute::Owner, Attribute::Mode]);
        assert!(problems.iter().all(backstay_tree::metadata::Problem::is_lack_of_rights));
        assert!(problems[0].to_string().starts_with("owner not set: "), "{}", problems[0]);
        let stat = Host.stat_handle(file.as_fd()).unwrap();
        assert_eq!((stat.mode, stat.mtime), (0o755, foreign.mtime));
        // One's own file is set without a problem, set-uid included, and read-only comes after the attributes.
        let file = Host.create_file(root.as_fd(), n("g")).unwrap();
        let xattrs = [("user.a".into(), b"1".to_vec())];
        let own = Wanted { uid: 12345, gid: 12345, ..want(0o4400, &xattrs) };
        assert!(apply(&Host, file.as_fd(), &own).is_empty());
        assert_eq!(Host.stat_handle(file.as_fd()).unwrap().mode, 0o4400);
        assert_eq!(Host.xattrs(file.as_fd()).unwrap(), xattrs);
        let trusted = [("trusted.t".into(), b"1".to_vec())];
        let file = Host.create_file(root.as_fd(), n("h")).unwrap();
        let problems = apply(&Host, file.as_fd(), &Wanted { xattrs: &trusted, ..own });
        assert_eq!(problems[0].what, Attribute::Xattr("trusted.t".into()));
        assert_eq!(Host.stat_handle(file.as_fd()).unwrap().mode, 0o4400);
    });
}

#[test]
fn a_tree_with_everything_in_it_is_deleted() {
    let (dir, root) = folder();
    let victim = dir.path().join("victim");
    std::fs::create_dir_all(victim.join("a/b/c")).unwrap();
    std::fs::create_dir(dir.path().join("kept")).unwrap();
    std::fs::write(dir.path().join("kept/f"), b"x").unwrap();
    symlink("../kept", victim.join("link")).unwrap();
    symlink("../../kept/f", victim.join("a/link")).unwrap();
    std::fs::hard_link(dir.path().join("kept/f"), victim.join("hard")).unwrap();
    let v = common::open(&victim);
    Host.make_node(v.as_fd(), n("fifo"), Kind::Fifo, 0).unwrap();
    Host.make_node(v.as_fd(), n("sock"), Kind::Socket, 0).unwrap();
    for i in 0..3000 {
        Host.create_file(v.as_fd(), n(&format!("f{i}"))).unwrap();
        if i % 10 == 0 {
            Host.create_dir(v.as_fd(), n(&format!("d{i}"))).unwrap();
        }
    }
    remove_tree(&Host, root.as_fd(), n("victim")).unwrap();
    remove_tree(&Host, root.as_fd(), n("victim")).unwrap();
    assert!(!victim.exists());
    assert_eq!(std::fs::read(dir.path().join("kept/f")).unwrap(), b"x");
    assert_eq!(std::fs::metadata(dir.path().join("kept/f")).unwrap().nlink(), 1);
    // Things that are no folder, named directly.
    symlink("kept", dir.path().join("link")).unwrap();
    remove_tree(&Host, root.as_fd(), n("link")).unwrap();
    remove_tree(&Host, common::open(&dir.path().join("kept")).as_fd(), n("f")).unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("kept")).unwrap().count(), 0);
    assert!(remove_tree(&Host, root.as_fd(), n("..")).is_err());
}

#[test]
fn read_only_folders_of_ones_own_are_deleted_and_foreign_ones_are_not() {
    if !is_root() {
        println!("skipped: needs root to become another user");
        return;
    }
    let (dir, _) = folder();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    as_user(12345, || {
        let root = common::open(dir.path());
        for mode in [0o000, 0o500, 0o300, 0o444] {
            let path = dir.path().join("victim");
            std::fs::create_dir_all(path.join("sub/deep")).unwrap();
            std::fs::write(path.join("sub/f"), b"x").unwrap();
            std::fs::set_permissions(path.join("sub/deep"), PermissionsExt::from_mode(mode)).unwrap();
            std::fs::set_permissions(path.join("sub"), PermissionsExt::from_mode(mode)).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            remove_tree(&Host, root.as_fd(), n("victim")).unwrap();
            assert!(!path.exists(), "{mode:o}");
        }
    });
    std::fs::create_dir_all(dir.path().join("foreign/sub")).unwrap();
    std::fs::write(dir.path().join("foreign/f"), b"x").unwrap();
    as_user(12345, || {
        let root = common::open(dir.path());
        let e = remove_tree(&Host, root.as_fd(), n("foreign")).unwrap_err();
        assert_eq!(e.code(), Code::System);
        assert!(e.message().starts_with("Cannot delete foreign"), "{e}");
    });
    assert!(dir.path().join("foreign/f").exists() && dir.path().join("foreign/sub").exists());
}

#[test]
fn a_folder_that_is_filled_while_it_is_deleted_is_emptied_again() {
    let (dir, root) = folder();
    std::fs::create_dir_all(dir.path().join("victim/log")).unwrap();
    let log = dir.path().join("victim/log");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0.. {
                if done.load(Ordering::Relaxed) || std::fs::write(log.join(format!("{i}")), b"x").is_err() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
        });
        let result = remove_tree(&Host, root.as_fd(), n("victim"));
        done.store(true, Ordering::Relaxed);
        result.unwrap();
    });
    assert!(!dir.path().join("victim").exists());
}

#[test]
fn failed_writes_get_the_code_that_says_what_to_do() {
    for (errno, code) in [
        (28, Code::TargetFull),
        (122, Code::TargetFull),
        (18, Code::UnsafePath),
        (40, Code::UnsafePath),
        (13, Code::RestoreIncomplete),
        (5, Code::RestoreIncomplete),
    ] {
        let e = writing("Cannot write", Path::new("a\nb"), std::io::Error::from_raw_os_error(errno));
        assert_eq!(e.code(), code);
        assert!(e.message().starts_with("Cannot write a\\x0ab"), "{e}");
        assert_eq!(e.causes().len(), 1);
    }
}

#[test]
fn a_removal_killed_at_any_point_goes_on_where_it_was() {
    let mut points = 0;
    for point in 1.. {
        let (dir, root) = folder();
        std::fs::create_dir_all(dir.path().join("victim/a/b")).unwrap();
        std::fs::create_dir_all(dir.path().join("victim/c")).unwrap();
        for name in ["f", "a/f", "a/b/f", "a/b/g"] {
            std::fs::write(dir.path().join("victim").join(name), b"x").unwrap();
        }
        let fs = Faulty::new(host());
        fs.kill_at(point, if point % 2 == 0 { Kill::Before } else { Kill::After });
        let result = remove_tree(&fs, root.as_fd(), n("victim"));
        assert_eq!(result.is_ok(), fs.killed_at().is_none());
        remove_tree(&Host, root.as_fd(), n("victim")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        if result.is_ok() {
            break;
        }
        points += 1;
    }
    println!("{points} points");
    assert_eq!(points, 8);
}
