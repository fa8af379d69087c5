//! Homes on a real Btrfs, read from snapshots of it: points of one moment, the same as those read from the home, and nothing
//! left behind or taken that is not ours.
//!
//! `BACKSTAY_KILLS` says how many backups are killed; by default a few.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use backstay_testing::{Btrfs, fixtures, temp_dir};
use serde_json::Value;

use crate::kill::{Spread, duration};
use crate::{Ran, World};

/// A world with a Btrfs file system at `disk`, which goes first.
struct Volume {
    disk: Btrfs,
    world: World,
}

impl Volume {
    fn new(mib: u64) -> Option<Self> {
        let world = World::within(temp_dir());
        let disk = Btrfs::mount(&world.path("disk.img"), &world.path("disk"), mib)?;
        Some(Volume { disk, world })
    }

    /// With an app `shop` at `disk/shop`, a subvolume, with that setting.
    fn with_shop(setting: &str) -> Option<Self> {
        let volume = Self::new(256)?;
        volume.disk.subvolume("shop");
        volume.world.write("disk/shop/index.html", b"<h1>shop</h1>");
        for n in 0..40 {
            volume.world.write(&format!("disk/shop/files/{n}.bin"), &vec![n; 5_000]);
        }
        volume.world.ok(&["app", "add", "shop", volume.home().to_str().unwrap(), "--snapshot", setting]);
        Some(volume)
    }

    fn home(&self) -> PathBuf {
        self.world.path("disk/shop")
    }

    fn backup(&self) -> Ran {
        self.world.run(&["backup", "shop"])
    }

    /// The manifest of the newest point.
    fn manifest(&self) -> Value {
        self.world.json(&["show", "shop"])["manifest"].take()
    }

    #[track_caller]
    fn is_clean(&self, expected: &[&str]) {
        assert_eq!(self.disk.subvolumes(), expected);
        let left = |folder: &Path| -> Vec<_> {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries
                .map(|e| e.file_name().into_string().unwrap())
                .filter(|n| n.starts_with(".backstay"))
                .collect()
        };
        assert!(left(self.disk.path()).is_empty() && left(&self.home()).is_empty());
        let notes = std::fs::read_dir(self.world.path("home/snapshots")).into_iter().flatten().count();
        assert_eq!(notes, 0);
    }
}

fn notes(manifest: &Value, kind: &str) -> Vec<String> {
    let problems = manifest["problems"].as_array().unwrap().iter().filter(|p| p["kind"] == kind);
    problems.map(|p| format!("{}: {}", p["path"].as_str().unwrap(), p["detail"].as_str().unwrap())).collect()
}

/// What is changed is newer than the granularity of the file index.
fn settle() {
    std::thread::sleep(Duration::from_millis(2_100));
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn python(code: &str, args: &[&Path]) -> Running {
    Running(Command::new("python3").arg("-c").arg(code).args(args).spawn().unwrap())
}

#[test]
fn a_point_from_a_snapshot_is_the_one_from_the_home_and_nothing_stays() {
    let Some(volume) = Volume::with_shop("auto") else { return };
    let world = &volume.world;
    let made = fixtures::nasty(&volume.home().join("nasty"), &fixtures::Nasty::quick());
    println!("{made:?}");
    settle();
    let told = volume.backup().ok();
    assert!(
        told.stdout.contains(
            ", from a snapshot of Btrfs [DIR]/disk/shop\n"
                .replace("[DIR]", world.path("").to_str().unwrap().trim_end_matches('/'))
                .as_str()
        ),
        "{told:?}"
    );
    let manifest = volume.manifest();
    assert_eq!(manifest["consistency"], "snapshot");
    let steps: Vec<&str> =
        manifest["steps"].as_array().unwrap().iter().map(|s| s["what"].as_str().unwrap()).collect();
    assert_eq!(steps, ["snapshot", "files"]);
    assert_eq!(manifest["home"], volume.home().to_str().unwrap());
    volume.is_clean(&["shop"]);
    // Other file systems do not know all of these times.
    let out = world.path("disk/out");
    world.ok(&["restore", "shop", "--directory", out.to_str().unwrap()]);
    world.assert_same(volume.home(), &out);

    // Read from the home: nothing is new, and the other way round.
    for setting in ["off", "btrfs", "off"] {
        world.ok(&["app", "set", "shop", "--snapshot", setting]);
        let backup = world.json(&["backup", "shop"]);
        assert_eq!((&backup["files_new"], &backup["files_changed"]), (&0.into(), &0.into()), "{backup}");
        assert_eq!(backup["snapshot"].is_null(), setting == "off", "{backup}");
        // No tree of the home is new: what is written is the manifest and what names it.
        assert!(backup["point"]["added_bytes"].as_u64().unwrap() < 4_000, "{backup}");
        assert_eq!(volume.manifest()["consistency"] == "snapshot", setting != "off");
        let diff = world.json(&["diff", "shop", "latest~1", "latest"]);
        assert_eq!(diff["differences"].as_array().map(Vec::len), Some(0), "{diff}");
    }
    // A change between the snapshot of one point and the next point is seen, however small.
    world.ok(&["app", "set", "shop", "--snapshot", "btrfs"]);
    for n in 0..3 {
        world.write("disk/shop/files/1.bin", &vec![100 + n; 5_000]);
        world.ok(&["app", "set", "shop", "--snapshot", if n == 1 { "off" } else { "btrfs" }]);
        assert_eq!(world.json(&["backup", "shop"])["files_new"], 0);
        assert_eq!(world.ok(&["cat", "shop", "latest", "files/1.bin"]).into_bytes()[0], 100 + n);
    }
    volume.is_clean(&["shop"]);
}

/// Brings 300 files from one number to the next, one after the other, each synced.
const WRITER: &str = r"
import os, sys
n = 0
while True:
    n += 1
    for f in range(300):
        path = os.path.join(sys.argv[1], '%03d' % f)
        with open(path + '.new', 'w') as file:
            file.write('%09d' % n * 100)
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + '.new', path)
";

/// The numbers in the files of a folder, in the order in which they are written.
fn numbers(folder: &Path) -> Vec<u64> {
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.retain(|name| !name.to_str().unwrap().ends_with(".new"));
    names.sort();
    let number = |name| {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(text.len(), 900, "a file is half");
        text[..9].parse().unwrap()
    };
    names.into_iter().map(number).collect()
}

#[test]
fn files_that_change_all_the_time_are_those_of_one_moment() {
    let Some(volume) = Volume::with_shop("btrfs") else { return };
    let world = &volume.world;
    let folder = volume.home().join("busy");
    std::fs::create_dir(&folder).unwrap();
    let writer = python(WRITER, &[&folder]);
    let begin = Instant::now();
    while !folder.join("299").exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing is written");
        std::thread::sleep(Duration::from_millis(20));
    }
    for n in 0..5 {
        let before = numbers_of(&folder);
        volume.backup().ok();
        let out = world.path(&format!("out{n}"));
        world.ok(&["restore", "shop", "--directory", out.to_str().unwrap()]);
        let seen = numbers(&out.join("busy"));
        assert_eq!(seen.len(), 300);
        // Up to one place all are of a round, from there on of the round before.
        assert!(seen.windows(2).all(|two| two[0] >= two[1]) && seen[0] - seen[299] <= 1, "{seen:?}");
        assert!(seen[0] >= before, "older than what was safe before");
    }
    drop(writer);
    volume.is_clean(&["shop"]);
}

/// The number in the first file, which may be exchanged meanwhile.
fn numbers_of(folder: &Path) -> u64 {
    std::fs::read_to_string(folder.join("000")).unwrap()[..9].parse().unwrap()
}

/// Writes a file and then the row that names it; deletes the row and then the file.
const UPLOADER: &str = r"
import os, sqlite3, sys
home, mode = sys.argv[1], os.path.basename(sys.argv[2])
db = sqlite3.connect(os.path.join(home, 'shop.db'), isolation_level=None, timeout=60)
db.execute('PRAGMA journal_mode=' + mode)
db.execute('CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, body TEXT)')
db.execute('CREATE INDEX IF NOT EXISTS i ON files (body)')
n = 0
while True:
    n += 1
    name = '%06d' % n
    with open(os.path.join(home, 'uploads', name), 'w') as file:
        file.write(name * 100)
    db.execute('INSERT INTO files VALUES (?, ?)', (name, name * 30))
    with open(sys.argv[2], 'w') as file:
        file.write('%012d' % n)
";

/// Whether the database is whole, how many rows it has, and which of them name no file.
const LOOK: &str = r"
import os, sqlite3, sys
home = sys.argv[1]
db = sqlite3.connect(os.path.join(home, 'shop.db'))
names = [row[0] for row in db.execute('SELECT name FROM files')]
def whole(name):
    path = os.path.join(home, 'uploads', name)
    return os.path.exists(path) and open(path).read() == name * 100
missing = [name for name in names if not whole(name)]
print(db.execute('PRAGMA integrity_check').fetchone()[0], len(names), len(missing))
";

#[test]
fn rows_of_sqlite_name_files_that_are_there() {
    for mode in ["WAL", "DELETE"] {
        let Some(volume) = Volume::with_shop("auto") else { return };
        let world = &volume.world;
        std::fs::create_dir(volume.home().join("uploads")).unwrap();
        let safe = world.path(mode);
        std::fs::write(&safe, "0").unwrap();
        let count = || std::fs::read_to_string(&safe).ok().and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
        let writer = python(UPLOADER, &[&volume.home(), &safe]);
        let begin = Instant::now();
        while count() < 50 {
            assert!(begin.elapsed() < Duration::from_secs(60), "nothing is written");
            std::thread::sleep(Duration::from_millis(20));
        }
        let first = volume.backup().ok();
        assert!(first.stderr.contains("note: shop.db: "), "{first:?}");
        for n in 0..5 {
            let before = count();
            volume.backup().ok();
            let manifest = volume.manifest();
            assert_eq!(
                (&manifest["sqlite"][0], &manifest["consistency"]),
                (&"shop.db".into(), &"snapshot".into())
            );
            let out = world.path(&format!("out{n}"));
            world.ok(&["restore", "shop", "--directory", out.to_str().unwrap()]);
            assert!(!out.join("shop.db-wal").exists() && !out.join("shop.db-journal").exists());
            let said = Command::new("python3").arg("-c").arg(LOOK).arg(&out).output().unwrap();
            let said = String::from_utf8(said.stdout).unwrap();
            let [whole, rows, missing] = said.split_whitespace().collect::<Vec<_>>()[..] else {
                panic!("{said}")
            };
            assert_eq!((whole, missing), ("ok", "0"), "{mode}, point {n}");
            assert!(rows.parse::<u64>().unwrap() >= before, "{mode}: {rows} of {before} rows that were safe");
        }
        drop(writer);
        volume.is_clean(&["shop"]);
    }
}

#[test]
fn a_nested_subvolume_is_not_lost_in_silence() {
    let Some(volume) = Volume::with_shop("auto") else { return };
    let world = &volume.world;
    volume.disk.subvolume("shop/cache");
    world.write("disk/shop/cache/page", b"page");
    let told = volume.backup().ok();
    let why = "Read without a snapshot: The subvolume cache lies in the home: a snapshot does not hold it";
    assert!(told.stderr.contains(&format!("note: volume: to be looked at ({why})")), "{told:?}");
    assert_eq!(world.ok(&["cat", "shop", "latest", "cache/page"]), "page");
    assert_eq!(volume.manifest()["consistency"], "files-only");
    world.ok(&["app", "set", "shop", "--snapshot", "btrfs"]);
    volume.backup().ends(3);
    assert_eq!(notes(&volume.manifest(), "volume"), [format!("volume: {why}")]);
    assert_eq!(world.ok(&["cat", "shop", "latest", "cache/page"]), "page");
    // What is left out anyway may be missing in a snapshot.
    world.ok(&["app", "set", "shop", "--exclude", "cache", "--filter-automatic", "on"]);
    volume.backup().ok();
    let manifest = volume.manifest();
    assert_eq!(manifest["consistency"], "snapshot", "{manifest}");
    assert_eq!(notes(&manifest, "mount"), [""; 0]);
    volume.is_clean(&["shop", "shop/cache"]);
}

#[test]
fn mounts_and_other_apps_in_the_home_are_left_out_as_without_a_snapshot() {
    let Some(volume) = Volume::with_shop("btrfs") else { return };
    let world = &volume.world;
    world.write("disk/shop/mnt/hidden", b"below the mount");
    world.write("disk/shop/inner/file", b"of another app");
    world.ok(&["app", "add", "inner", world.path("disk/shop/inner").to_str().unwrap()]);
    let mnt = volume.home().join("mnt");
    let mount =
        |words: &[&std::ffi::OsStr]| assert!(Command::new("mount").args(words).status().unwrap().success());
    mount(
        &["-t", "tmpfs", "-o", "mode=711", "tmpfs"]
            .map(std::ffi::OsStr::new)
            .into_iter()
            .chain([mnt.as_os_str()])
            .collect::<Vec<_>>(),
    );
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            Command::new("umount").arg(&self.0).status().ok();
        }
    }
    let mounted = Mounted(mnt);
    settle();
    let with = volume.backup().ok();
    assert!(with.stderr.contains("note: mnt: a mount, left out"), "{with:?}");
    assert_eq!(notes(&volume.manifest(), "excluded"), ["inner: Left out"]);
    world.run(&["cat", "shop", "latest", "mnt/hidden"]).fails("PathNotFound", 4);
    world.run(&["cat", "shop", "latest", "inner/file"]).fails("PathNotFound", 4);
    world.ok(&["app", "set", "shop", "--snapshot", "off"]);
    let without = world.json(&["backup", "shop"]);
    assert_eq!((&without["files_new"], &without["files_changed"]), (&0.into(), &0.into()), "{without}");
    let diff = world.json(&["diff", "shop", "latest~1", "latest"]);
    assert_eq!(diff["differences"].as_array().map(Vec::len), Some(0), "{diff}");
    drop(mounted);
    volume.is_clean(&["shop"]);
}

#[test]
fn killed_backups_leave_a_snapshot_that_the_next_command_removes_and_no_other() {
    let kills = std::env::var("BACKSTAY_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    let Some(volume) = Volume::with_shop("btrfs") else { return };
    let world = &volume.world;
    for n in 0..400 {
        world.write(&format!("disk/shop/many/{n}"), format!("{n}").repeat(700).as_bytes());
    }
    // A user's own, under names that look like ours.
    volume.disk.snapshot("shop", "shop-daily");
    volume.disk.snapshot("shop", ".backstay");
    let other = ".backstay-0123456789abcdef0123456789abcdef";
    std::fs::create_dir(volume.disk.path().join(other)).unwrap();
    volume.disk.snapshot("shop", &format!("{other}/volume"));
    let before = volume.disk.subvolumes();
    let mut spread = Spread::new(kills, 11);
    let (mut left, mut late, mut n) = (0, 0, 0_u8);
    while spread.goes_on() {
        let mut change = || {
            n = n.wrapping_add(1);
            (0..400).for_each(|f| world.write(&format!("disk/shop/many/{f}"), &vec![n; 2_000]));
        };
        for _ in 0..spread.to_measure().min(3) {
            change();
            spread.measured(duration(world, &["backup", "shop"]));
        }
        change();
        let blow = spread.strike(world, &["backup", "shop"]);
        late += u32::from(blow.late);
        let noted = std::fs::read_dir(world.path("home/snapshots")).into_iter().flatten().count();
        left += u32::from(noted > 0);
        let next = world.run(&["job", "list"]).ok();
        assert_eq!(volume.disk.subvolumes(), before, "{next:?}");
        let noted = std::fs::read_dir(world.path("home/snapshots")).into_iter().flatten().count();
        assert_eq!(noted, 0, "{next:?}");
        let ours = std::fs::read_dir(volume.disk.path()).unwrap().map(|e| e.unwrap().file_name());
        let ours: Vec<_> = ours.filter(|n| n.to_str().unwrap().starts_with(".backstay")).collect();
        assert_eq!(ours.len(), 2, "{ours:?}");
    }
    println!("{kills} kills: {left} left a note or a snapshot, {late} were too late");
    assert!(left > 0, "no kill has met a snapshot");
    volume.backup().ok();
    world.ok(&["vault", "check"]);
    assert_eq!(volume.disk.subvolumes(), before);
}

#[test]
fn a_full_disk_costs_the_snapshot_at_most() {
    let Some(volume) = Volume::new(128) else { return };
    let world = &volume.world;
    volume.disk.subvolume("shop");
    for n in 0..50 {
        world.write(&format!("disk/shop/{n}"), &[n; 3_000]);
    }
    world.ok(&["app", "add", "shop", volume.home().to_str().unwrap(), "--snapshot", "btrfs"]);
    // Data first, then what is left for metadata.
    let mut written = 0;
    for size in [1 << 20, 1 << 16, 1 << 12, 1 << 10] {
        while std::fs::write(volume.home().join(format!("fill{written}")), vec![7; size]).is_ok()
            && written < 60_000
        {
            written += 1;
        }
        Command::new("sync").status().unwrap();
    }
    let ran = volume.backup();
    assert!([0, 3].contains(&ran.status), "{ran:#?}");
    println!("a full disk: status {}, {}", ran.status, ran.stderr.trim());
    let manifest = volume.manifest();
    assert_eq!(manifest["consistency"] == "snapshot", ran.status == 0, "{manifest}");
    let out = world.path("out");
    world.ok(&["restore", "shop", "--directory", out.to_str().unwrap()]);
    world.assert_same(volume.home(), &out);
    world.ok(&["job", "list"]);
    volume.is_clean(&["shop"]);
}

#[test]
fn without_root_the_files_are_read_as_they_are_and_that_is_told() {
    let Some(volume) = Volume::with_shop("auto") else { return };
    let world = &volume.world;
    let user = |args: &[&str]| {
        let program = world.command(args);
        let mut as_user = Command::new("setpriv");
        as_user.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        as_user.arg(program.get_program()).args(program.get_args()).current_dir(world.path("")).env_clear();
        as_user.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Ran::of(as_user.env("BACKSTAY_HOME", world.path("own")).output().unwrap())
    };
    std::fs::set_permissions(world.path(""), std::fs::Permissions::from_mode(0o777)).unwrap();
    let home = volume.home();
    for (setting, status) in [("auto", 0), ("btrfs", 3)] {
        user(
            &["app", if status == 0 { "add" } else { "set" }, "shop"]
                .into_iter()
                .chain((status == 0).then_some(home.to_str().unwrap()))
                .chain(["--snapshot", setting])
                .collect::<Vec<_>>(),
        )
        .ok();
        let told = user(&["backup", "shop"]).ends(status);
        let why = "Read without a snapshot: Snapshots of Btrfs can be made and removed by root only";
        assert!(told.stderr.contains(why), "{told:?}");
        assert!(told.stdout.contains(": 41 files,"), "{told:?}");
    }
    volume.is_clean(&["shop"]);
}

#[test]
fn another_file_system_is_told_or_is_a_failure() {
    let world = World::with_blog();
    world.ok(&["app", "add", "blog", world.path("blog").to_str().unwrap(), "--snapshot", "auto"]);
    let told = world.run(&["backup", "blog"]).ok();
    assert!(told.stderr.contains("(Read without a snapshot: The home lies on "), "{told:?}");
    for kind in ["zfs", "btrfs"] {
        world.ok(&["app", "set", "blog", "--snapshot", kind]);
        let told = world.run(&["backup", "blog"]).ends(3);
        assert!(told.stderr.contains("Read without a snapshot: The home lies on "), "{told:?}");
    }
    world.ok(&["app", "set", "blog", "--snapshot", "off"]);
    let told = world.run(&["backup", "blog"]).ok();
    assert!(!told.stderr.contains("snapshot"), "{told:?}");
}

#[test]
fn the_snapshot_lies_where_only_root_can_exchange_it() {
    let Some(volume) = Volume::new(128) else { return };
    let world = &volume.world;
    // The home is a folder of the top subvolume, below one that its user owns.
    world.write("disk/home/user/shop/index.html", b"x");
    std::os::unix::fs::chown(world.path("disk/home/user"), Some(65534), Some(65534)).unwrap();
    let seen = world.path("seen");
    let find =
        format!("ls -a {0} {0}/home {0}/home/user > {1}", volume.disk.path().display(), seen.display());
    world.ok(&[
        "app",
        "add",
        "shop",
        world.path("disk/home/user/shop").to_str().unwrap(),
        "--snapshot",
        "btrfs",
        "--quiesce",
        "true",
        "--resume",
        &find,
    ]);
    world.run(&["backup", "shop"]).ok();
    // The resume hook runs when the snapshot stands.
    let listed = std::fs::read_to_string(&seen).unwrap();
    let places: Vec<&str> = listed
        .split("\n\n")
        .filter(|part| part.contains("\n.backstay-"))
        .map(|part| part.lines().next().unwrap())
        .collect();
    assert_eq!(places, [format!("{}/home:", volume.disk.path().display())], "{listed}");
    assert_eq!(volume.disk.subvolumes(), [""; 0]);
    // With the state on the same file system it lies there.
    let state = world.path("disk/state");
    let mut command = world.command(["backup", world.path("disk/home/user/shop").to_str().unwrap()]);
    Ran::of(command.env("BACKSTAY_HOME", &state).output().unwrap()).ok();
    let find = format!(
        "ls -d {}/snapshots/*/volume/home/user/shop/index.html > {}",
        state.display(),
        seen.display()
    );
    let run = |args: &[&str]| Ran::of(world.command(args).env("BACKSTAY_HOME", &state).output().unwrap());
    run(&["app", "set", "shop", "--snapshot", "btrfs", "--quiesce", "true", "--resume", &find]).ok();
    run(&["backup", "shop"]).ok();
    assert_eq!(std::fs::read_to_string(&seen).unwrap().lines().count(), 1);
    assert_eq!(volume.disk.subvolumes(), [""; 0]);
    // A mount of a part of a subvolume has no place for a snapshot of the whole.
    let part = world.path("part");
    std::fs::create_dir(&part).unwrap();
    assert!(
        Command::new("mount")
            .arg("--bind")
            .arg(world.path("disk/home/user"))
            .arg(&part)
            .status()
            .unwrap()
            .success()
    );
    let ran = world.run(&["backup", part.join("shop").to_str().unwrap(), "--app", "part"]);
    let set = world.run(&["app", "set", "part", "--snapshot", "btrfs"]);
    let told = world.run(&["backup", "part"]);
    assert!(Command::new("umount").arg(&part).status().unwrap().success());
    ran.ok();
    set.ok();
    assert!(told.stderr.contains("Only a part of its subvolume is mounted"), "{told:?}");
    told.ends(3);
}

#[test]
fn a_snapshot_that_fails_leaves_nothing_and_the_files_are_read_as_they_are() {
    let Some(volume) = Volume::with_shop("btrfs") else { return };
    let world = &volume.world;
    let log = world.path("hooks");
    let hook = |word: &str| format!("echo {word} >> {}", log.display());
    world.ok(&["app", "set", "shop", "--quiesce", &hook("quiet"), "--resume", &hook("on")]);
    let remount = |how: &str| {
        let done = Command::new("mount").args(["-o", how]).arg(volume.disk.path()).status().unwrap();
        assert!(done.success());
    };
    // Nothing can be made there any more.
    remount("remount,ro");
    let told = volume.backup().ends(3);
    assert!(told.stderr.contains("Read without a snapshot: Cannot make the folder "), "{told:?}");
    assert!(told.stdout.contains(": 41 files,"), "{told:?}");
    world.ok(&["app", "set", "shop", "--snapshot", "auto"]);
    let told = volume.backup().ok();
    assert!(told.stderr.contains("(Read without a snapshot: Cannot make the folder "), "{told:?}");
    remount("remount,rw");
    volume.backup().ok();
    assert_eq!(volume.manifest()["consistency"], "snapshot");
    // Without a linked database the hooks run for the snapshot alone; each time the app was told to go on.
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "quiet\non\n".repeat(3));
    volume.is_clean(&["shop"]);
}

#[test]
fn rows_of_postgresql_name_files_that_are_there_or_are_told() {
    let Some(disk) = Volume::new(256) else { return };
    let shop = crate::Shop::new();
    disk.disk.subvolume("shop");
    let (world, home) = (&shop.world, disk.home());
    world.ok(&["backup", home.to_str().unwrap(), "--app", "pairs"]);
    world.ok(&["app", "set", "pairs", "--snapshot", "btrfs"]);
    world.ok(&["app", "set", "pairs", "--reference", "main", "SELECT path FROM files", "files"]);
    let address = shop.pg_address("shop");
    world.run_with("home", &["connection", "set", "pairs", "main", "--type", "PostgreSQL"], &address).ok();
    shop.pg.psql("shop", "SET ROLE web; CREATE TABLE files (path text PRIMARY KEY);");
    std::fs::create_dir(home.join("files")).unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    let mut dangling = 0;
    std::thread::scope(|scope| {
        let _ends = crate::uploads::Over(&over);
        // A row that comes and goes while the dump's tool starts is not known to anybody.
        scope.spawn(|| crate::uploads::upload(&shop, &home.join("files"), 400, &over));
        for run in 0..6 {
            let ran = world.run(&["backup", "pairs"]).ok();
            let manifest = world.json(&["show", "pairs"])["manifest"].take();
            assert_eq!(manifest["consistency"], "snapshot");
            let told = notes(&manifest, "dangling");
            dangling += crate::uploads::compare(&shop, "pairs", run, &told, &ran.stderr);
        }
    });
    println!(
        "6 points from snapshots while files and rows came and went: {dangling} rows without a file, each told"
    );
    assert_eq!(disk.disk.subvolumes(), ["shop"]);
}
