use std::sync::Mutex;

use super::tools::Call;
use super::*;

/// Records what is called and answers by the program's name.
#[derive(Default)]
struct Recorder {
    calls: Mutex<Vec<String>>,
    answers: Vec<(&'static str, std::result::Result<String, String>)>,
}

impl Recorder {
    fn answering(answers: &[(&'static str, std::result::Result<&str, &str>)]) -> Self {
        let owned = |a: &std::result::Result<&str, &str>| a.map(str::to_owned).map_err(str::to_owned);
        let answers = answers.iter().map(|(program, a)| (*program, owned(a))).collect();
        Recorder { answers, ..Recorder::default() }
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

impl Tools for Recorder {
    fn run(&self, call: &Call, _: &Cancel) -> Result<String> {
        let args = call.args.iter().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
        let line = format!("{}{} {args}", if call.whole { "!" } else { "" }, call.program);
        let answer = self.answers.iter().find(|(begin, _)| line.trim_start_matches('!').starts_with(begin));
        self.calls.lock().unwrap().push(line);
        match answer {
            None => Ok(String::new()),
            Some((_, Ok(said))) => Ok(said.clone()),
            Some((_, Err(said))) => Err(failed("It ended with status 1").because(said.clone())),
        }
    }
}

fn job() -> JobId {
    JobId::from_bytes([0xab; 16])
}

const NAME: &str = "backstay-abababababababababababababababab";

fn mount(at: &Path, root: &str, file_system: &str, source: &str) -> Mount {
    Mount {
        at: at.to_owned(),
        root: root.into(),
        device: (253, 7),
        file_system: file_system.into(),
        source: source.into(),
    }
}

fn wish<'w>(home: &'w Path, folder: &'w Path) -> Wish<'w> {
    Wish { home, folder, job: job(), kind: None, leaves_out: &|_| false }
}

#[test]
fn zfs_is_called_with_full_names_only() {
    let mount = mount(Path::new("/srv"), "/", "zfs", "tank/srv");
    let home = Path::new("/srv/blog");
    let nowhere = Path::new("/nowhere");
    let cancel = Cancel::new();
    let tools = Recorder::default();
    let planned = zfs::Zfs.plan(&wish(home, nowhere), &mount, &tools, &cancel).unwrap();
    assert_eq!(planned.name, format!("tank/srv@{NAME}"));
    assert_eq!(planned.home(), Path::new(&format!("/srv/.zfs/snapshot/{NAME}/blog")));
    assert!(tools.calls().is_empty(), "a plan changes nothing");
    zfs::Zfs.make(&planned, &tools, &cancel).unwrap();
    let job = job();
    assert_eq!(tools.calls(), [format!("zfs snapshot -o backstay:job={job} tank/srv@{NAME}")]);

    let full = format!("tank/srv@{NAME}\n");
    let tools = Recorder::answering(&[("zfs list", Ok(&full))]);
    assert_eq!(zfs::Zfs.remove(&planned, &tools).unwrap(), Removed::Now);
    let calls =
        [format!("zfs list -H -t snapshot -o name tank/srv@{NAME}"), format!("zfs destroy tank/srv@{NAME}")];
    assert_eq!(tools.calls(), calls);
    // What `zfs` says of one that is gone, and of a pool that is.
    let gone = format!("cannot open 'tank/srv@{NAME}': dataset does not exist");
    let tools = Recorder::answering(&[("zfs list", Err(&gone))]);
    assert_eq!(zfs::Zfs.remove(&planned, &tools).unwrap(), Removed::NotThere);
    let tools = Recorder::answering(&[("zfs list", Err("internal error: out of memory"))]);
    assert!(zfs::Zfs.remove(&planned, &tools).is_err());
    assert_eq!(tools.calls().len(), 1);
}

#[test]
fn zfs_destroys_nothing_that_is_not_named_as_ours() {
    let tools = Recorder::default();
    for name in [
        "tank/srv",
        "tank/srv@",
        "tank/srv@daily",
        "tank@backstay-abababababababababababababababab",
        "tank/srv@backstay-abababababababababababababababa",
        "tank/srv@backstay-abababababababababababababababab,daily",
        "-r",
    ] {
        let snapshot = Snapshot {
            kind: Kind::Zfs,
            volume: "tank/srv".into(),
            name: name.into(),
            folder: None,
            home: "/x".into(),
            details: None,
            holes: None,
        };
        assert!(zfs::Zfs.remove(&snapshot, &tools).is_err(), "{name}");
        assert!(zfs::Zfs.make(&snapshot, &tools, &Cancel::new()).is_err(), "{name}");
    }
    assert!(tools.calls().is_empty());
    let part = mount(Path::new("/srv"), "/blog", "zfs", "tank/srv");
    let (home, folder) = (Path::new("/srv"), Path::new("/nowhere"));
    assert!(zfs::Zfs.plan(&wish(home, folder), &part, &tools, &Cancel::new()).is_err());
    let odd = mount(Path::new("/srv"), "/", "zfs", "-tank");
    assert!(zfs::Zfs.plan(&wish(home, folder), &odd, &tools, &Cancel::new()).is_err());
}

fn report(pool: &str) -> String {
    format!(
        r#"{{"report":[{{"lv":[{{"vg_name":"vg-0","lv_name":"srv","lv_size":"1073741824","pool_lv":"{pool}","vg_free":"1073741824"}}]}}]}}"#
    )
}

#[test]
fn lvm_makes_a_writable_snapshot_and_mounts_it_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let (home, cancel) = (Path::new("/srv/www/blog"), Cancel::new());
    for (pool, file_system, room, options) in [
        ("", "xfs", "--size 214748160b", "ro,nodev,nosuid,noexec,nouuid"),
        ("pool", "ext4", "--setactivationskip n", "ro,nodev,nosuid,noexec"),
    ] {
        let folder = dir.path().join(file_system);
        // A folder of the file system is mounted, not its top.
        let mount = mount(Path::new("/srv"), "/data", file_system, "/dev/mapper/vg--0-srv");
        let said = report(pool);
        let tools = Recorder::answering(&[("lvs", Ok(&said))]);
        let planned = lvm::Lvm.plan(&wish(home, &folder), &mount, &tools, &cancel).unwrap();
        let inside = folder.join(job().to_string()).join("volume");
        assert_eq!(planned.home(), inside.join("data/www/blog"));
        assert!(!folder.exists(), "a plan makes nothing");
        let asked = "lvs --reportformat json --units b --nosuffix -o vg_name,lv_name,lv_size,pool_lv,vg_free \
                     /dev/mapper/vg--0-srv";
        assert_eq!(tools.calls(), [asked]);
        lvm::Lvm.make(&planned, &tools, &cancel).unwrap();
        let calls = [
            format!("!lvcreate --snapshot --name {NAME} --addtag backstay {room} vg-0/srv"),
            format!("!mount -t {file_system} -o {options} /dev/vg-0/{NAME} {}", inside.display()),
        ];
        assert_eq!(tools.calls(), calls);
        assert!(lvm::Lvm.make(&planned, &tools, &cancel).is_err(), "its folder is there");
        assert!(tools.calls().is_empty());

        let tagged = r#"{"report":[{"lv":[{"lv_name":"x","lv_tags":"a,backstay"}]}]}"#;
        let tools = Recorder::answering(&[("lvs", Ok(tagged))]);
        assert_eq!(lvm::Lvm.remove(&planned, &tools).unwrap(), Removed::Now);
        let calls = [
            format!("lvs --reportformat json --units b --nosuffix -o lv_name,lv_tags vg-0/{NAME}"),
            format!("!lvremove --yes vg-0/{NAME}"),
        ];
        assert_eq!(tools.calls(), calls);
        assert!(!folder.join(job().to_string()).exists());
        let gone = format!("  Failed to find logical volume \"vg-0/{NAME}\"");
        let tools = Recorder::answering(&[("lvs", Err(&gone))]);
        assert_eq!(lvm::Lvm.remove(&planned, &tools).unwrap(), Removed::NotThere);
    }
}

#[test]
fn lvm_removes_nothing_that_is_not_tagged_and_named_as_ours() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = |name: &str| Snapshot {
        kind: Kind::Lvm,
        volume: "vg-0/srv".into(),
        name: name.into(),
        folder: Some(dir.path().join("f").to_str().unwrap().into()),
        home: "/x".into(),
        details: None,
        holes: None,
    };
    let untagged = r#"{"report":[{"lv":[{"lv_name":"x","lv_tags":""}]}]}"#;
    let tools = Recorder::answering(&[("lvs", Ok(untagged))]);
    assert!(lvm::Lvm.remove(&snapshot(&format!("vg-0/{NAME}")), &tools).is_err());
    assert_eq!(tools.calls().len(), 1);
    for name in
        ["vg-0/srv", "vg-0", "vg-1/backstay-abababababababababababababababab", "--all", "vg-0/backstay-1"]
    {
        assert!(lvm::Lvm.remove(&snapshot(name), &tools).is_err(), "{name}");
    }
    assert!(tools.calls().is_empty());
}

#[test]
fn a_thick_snapshot_that_ran_full_is_noticed() {
    let snapshot = Snapshot {
        kind: Kind::Lvm,
        volume: "vg/srv".into(),
        name: format!("vg/{NAME}"),
        folder: None,
        home: "/x".into(),
        details: None,
        holes: None,
    };
    for (attributes, well) in [("swi-aos---", true), ("swi-Ios---", false), ("swi-Sos---", false)] {
        let said = format!(r#"{{"report":[{{"lv":[{{"lv_attr":"{attributes}"}}]}}]}}"#);
        let tools = Recorder::answering(&[("lvs", Ok(&said))]);
        assert_eq!(lvm::Lvm.check(&snapshot, &tools).is_ok(), well, "{attributes}");
    }
}

#[test]
fn a_record_reads_back_and_paths_that_are_no_text_survive() {
    use std::os::unix::ffi::OsStrExt as _;
    let odd = Path::new(std::ffi::OsStr::from_bytes(b"/srv/\xff\\"));
    let snapshot = Snapshot {
        kind: Kind::Btrfs,
        volume: text(odd),
        name: text(&odd.join("x")),
        folder: Some(text(odd)),
        home: text(odd),
        details: None,
        holes: Some((39, 2)),
    };
    let json = serde_json::to_string(&snapshot).unwrap();
    let back: Snapshot = serde_json::from_str(&json).unwrap();
    assert_eq!(back, snapshot);
    assert_eq!(back.home(), odd);
}

#[test]
fn a_home_on_a_file_system_without_snapshots_is_told() {
    let (home, folder) = (Path::new("/proc"), Path::new("/nowhere"));
    let why = |kind| plan(&Wish { kind, ..wish(home, folder) }, &Cancel::new()).unwrap_err();
    assert_eq!(why(None).message(), "The home lies on proc (proc), of which no snapshots can be made");
    assert_eq!(why(Some(Kind::Zfs)).message(), "The home lies on proc (proc), not on ZFS");
    assert_eq!(why(None).code(), Code::VolumeSnapshotFailed);
}

#[test]
fn a_private_folder_is_made_only_where_others_cannot_exchange_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let open = root.join("open");
    std::fs::create_dir(&open).unwrap();
    let with = |mode| std::fs::set_permissions(&open, std::fs::Permissions::from_mode(mode)).unwrap();
    for (mode, guarded) in [(0o755, true), (0o775, false), (0o777, false), (0o1777, true)] {
        with(mode);
        assert_eq!(is_guarded(&open), guarded, "{mode:o}");
    }
    std::os::unix::fs::symlink(&root, root.join("link")).unwrap();
    assert!(!is_guarded(&root.join("link")), "a link can be turned elsewhere");
    make_folder(&root.join("new")).unwrap();
    assert!(make_folder(&root.join("new")).is_err(), "one that exists is somebody else's");
}
