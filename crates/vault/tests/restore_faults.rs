//! What a restore does when the vault is damaged or the target refuses: the rest is there, and what is not is told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_model::{Cancel, Code, Problem, ProblemKind, Result, Secret, Silent};
use backstay_storage::{Local, Op, Rule, Storage};
use backstay_testing::{Restic, fixtures, temp_dir};
use backstay_tree::compare::{self, Options, What};
use backstay_tree::fs::{Call, Fault, Faulty, FileSystem, Host};
use backstay_tree::path::escape;
use backstay_vault::blob::BlobKind;
use backstay_vault::restore::{RestoreOptions, RestoreOutcome, restore};
use backstay_vault::{Folder, Id, Reader, Vault};

const PASSWORD: &str = "a password";

/// A repository whose newest snapshot needs the packs of several backups, and the tree it was taken of.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new(backups: u64) -> Self {
        let dir = temp_dir();
        let fixture = Fixture { dir };
        let restic = Restic::new(fixture.repository(), PASSWORD);
        restic.init();
        for n in 0..backups {
            let part = fixture.source().join(format!("part-{n}"));
            fs::create_dir_all(&part).unwrap();
            fixtures::small(&part, n, 60);
            fs::write(part.join("two pieces"), fixtures::Random::new(n).bytes(9 << 20)).unwrap();
            restic.backup(&fixture.source(), &[]);
        }
        fixture
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn repository(&self) -> PathBuf {
        self.dir.path().join("repository")
    }

    fn target(&self, name: &str) -> PathBuf {
        let target = self.dir.path().join(name);
        fs::create_dir(&target).unwrap();
        target
    }

    fn open(&self) -> (Reader, Id) {
        let vault = Vault::open(self.storage(), &Secret::new(PASSWORD.to_owned())).unwrap();
        let (_, snapshot) = vault.snapshots().unwrap().pop().unwrap();
        (vault.reader().unwrap(), snapshot.tree)
    }

    fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(Local::open(self.repository()).unwrap())
    }

    fn restore(&self, fs: Arc<dyn FileSystem>, target: &Path) -> Result<RestoreOutcome> {
        let (reader, tree) = self.open();
        restore(&reader, &fs, &tree, None, target, &RestoreOptions::default(), &Silent, &Cancel::new())
    }
}

fn paths(problems: &[Problem], kind: ProblemKind) -> BTreeSet<String> {
    problems.iter().filter(|p| p.kind == kind).map(|p| p.path.clone()).collect()
}

/// The files that need a blob of that pack, from the trees themselves.
fn needing(reader: &Reader, tree: &Id, blobs: &BTreeSet<Id>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut pending = vec![(PathBuf::new(), *tree)];
    while let Some((path, tree)) = pending.pop() {
        for node in reader.tree(&tree).unwrap() {
            let path = path.join(&node.name);
            if node.content.iter().any(|id| blobs.contains(id)) {
                found.insert(escape(path.as_os_str()));
            }
            pending.extend(node.subtree.map(|tree| (path, tree)));
        }
    }
    found
}

#[test]
fn a_lost_pack_costs_the_files_that_need_it_and_no_other() {
    let fixture = Fixture::new(4);
    let (reader, tree) = fixture.open();
    let mut hit = 0;
    for (n, (pack, blobs)) in reader.index().by_pack().into_iter().enumerate() {
        if blobs.iter().any(|b| b.kind == BlobKind::Tree) {
            continue;
        }
        let object = fixture.repository().join(Folder::Data.object(&pack));
        let whole = fs::read(&object).unwrap();
        let ids: BTreeSet<Id> = blobs.iter().map(|b| b.id).collect();
        let needing = needing(&reader, &tree, &ids);
        hit += needing.len();
        for damage in ["lost", "shortened", "flipped"] {
            fs::remove_file(&object).ok();
            match damage {
                "lost" => {}
                "shortened" => fs::write(&object, &whole[..10]).unwrap(),
                _ => fs::write(&object, whole.iter().map(|b| b ^ 1).collect::<Vec<_>>()).unwrap(),
            }
            let target = fixture.target(&format!("{damage}-{n}"));
            let outcome = fixture.restore(Arc::new(Host), &target).unwrap();
            assert!(!outcome.is_complete());
            assert_eq!(paths(&outcome.problems, ProblemKind::Lost), needing, "{damage}");
            assert_eq!(outcome.problems.len(), needing.len());
            let options = Options { holes: false, root: false, hard_links: false, ..Options::default() };
            let differences = compare::trees(&fixture.source(), &target, &options);
            let missing: BTreeSet<_> = differences.iter().map(|d| escape(d.path.as_os_str())).collect();
            assert!(differences.iter().all(|d| d.what == What::OnlyInFirst), "{differences:?}");
            assert_eq!(missing, needing);
        }
        fs::write(&object, &whole).unwrap();
    }
    assert!(hit > 100, "only {hit} files needed a pack that was damaged");
    let target = fixture.target("all again");
    assert!(fixture.restore(Arc::new(Host), &target).unwrap().is_complete());
}

#[test]
fn what_the_target_refuses_is_told_by_path() {
    const EIO: i32 = 5;
    const EPERM: i32 = 1;
    const ENOSPC: i32 = 28;
    let fixture = Fixture::new(1);
    symlink("x", fixture.source().join("a link")).unwrap();
    fs::create_dir_all(fixture.source().join("folder/below")).unwrap();
    fs::write(fixture.source().join("folder/below/file"), "text").unwrap();
    fs::write(fixture.source().join("one"), "text").unwrap();
    fs::hard_link(fixture.source().join("one"), fixture.source().join("other")).unwrap();
    fs::write(fixture.source().join("empty"), "").unwrap();
    Restic::new(fixture.repository(), PASSWORD).backup(&fixture.source(), &[]);
    let total = fixture.restore(Arc::new(Host), &fixture.target("whole")).unwrap().counts.files;

    let run = |name: &str, faults: Vec<Fault>| {
        let faulty = Faulty::new(Arc::new(Host));
        faults.into_iter().for_each(|fault| faulty.fail(fault));
        let target = fixture.target(name);
        let outcome = fixture.restore(Arc::new(faulty), &target);
        (outcome, target)
    };
    let unwritable = |outcome: &RestoreOutcome| -> Vec<String> {
        assert!(outcome.problems.iter().all(|p| p.kind == ProblemKind::Unwritable), "{:?}", outcome.problems);
        outcome.problems.iter().map(|p| p.path.clone()).collect()
    };
    for (call, name, told) in [
        (Call::CreateFile, "one", &["one"][..]),
        (Call::CreateFile, "empty", &["empty"]),
        (Call::WriteAt, "two pieces", &["part-0/two pieces"]),
        (Call::CreateDir, "folder", &["folder"]),
        (Call::Symlink, "a link", &["a link"]),
        (Call::Link, "other", &["other"]),
    ] {
        let (outcome, target) = run(&format!("{call:?} {name}"), vec![Fault::of(call, EIO).named(name)]);
        let outcome = outcome.unwrap();
        let mut problems = outcome.problems.clone();
        // The other name of a file that is not there is lost with it.
        problems.retain(|p| (p.path.as_str(), p.kind) != ("other", ProblemKind::Lost));
        assert_eq!(unwritable(&RestoreOutcome { problems, ..outcome.clone() }), told, "{call:?}");
        assert!(!target.join(told[0]).exists(), "{call:?}: half of it is there");
        assert!(outcome.counts.files < total || call == Call::Symlink);
    }
    // A full disk ends it; what could not be whole is not there.
    for name in ["one", "two pieces"] {
        let (outcome, target) =
            run(&format!("full {name}"), vec![Fault::of(Call::WriteAt, ENOSPC).named(name)]);
        assert_eq!(outcome.unwrap_err().code(), Code::TargetFull);
        assert!(!target.join(name).exists() && !target.join("part-0").join(name).exists());
    }
    // What only root may do is one line, however many files it concerns. Some owner must differ for that.
    if rustix::process::geteuid().is_root() {
        for name in ["one", "empty", "folder/below/file"] {
            chown(fixture.source().join(name), Some(1234), Some(1234)).unwrap();
        }
        Restic::new(fixture.repository(), PASSWORD).backup(&fixture.source(), &[]);
        let faults = [Call::SetOwner, Call::SetOwnerAt].map(|call| Fault::of(call, EPERM)).to_vec();
        let (outcome, target) = run("owners", faults);
        let outcome = outcome.unwrap();
        let [problem] = outcome.problems.as_slice() else { panic!("{:?}", outcome.problems) };
        assert_eq!(problem.kind, ProblemKind::Metadata);
        assert!(problem.detail.contains("owner not set") && problem.detail.contains("2 more"), "{problem:?}");
        assert_eq!(fs::read(target.join("folder/below/file")).unwrap(), b"text");
        assert_eq!(outcome.counts.files, total);
    }
}

#[test]
fn a_place_that_cannot_be_reached_ends_the_restore() {
    let fixture = Fixture::new(1);
    let storage = Arc::new(backstay_storage::Faulty::new(fixture.storage()));
    let at: Arc<dyn Storage> = Arc::<backstay_storage::Faulty>::clone(&storage);
    let vault = Vault::open(at, &Secret::new(PASSWORD.to_owned())).unwrap();
    let (_, snapshot) = vault.snapshots().unwrap().pop().unwrap();
    let reader = vault.reader().unwrap();
    let unreachable = backstay_storage::Fault::Fail(Code::StorageUnavailable);
    // The trees are read before, then one pack, then nothing any more.
    storage.add(Rule::new(unreachable).on(Op::GetRange).from_nth(4));
    let host: Arc<dyn FileSystem> = Arc::new(Host);
    let target = fixture.target("target");
    let options = RestoreOptions::default();
    let error = restore(&reader, &host, &snapshot.tree, None, &target, &options, &Silent, &Cancel::new())
        .unwrap_err();
    assert_eq!(error.code(), Code::StorageUnavailable);
}

/// As a user without any rights and with few descriptors: everything but owners (and what is their own) comes back.
#[test]
fn another_user_with_few_descriptors_gets_all_content() {
    const CHILD: &str = "BACKSTAY_TEST_RESTORE_AS_CHILD";
    if let Some(dir) = std::env::var_os(CHILD) {
        return as_child(Path::new(&dir));
    }
    if !rustix::process::geteuid().is_root() {
        println!("not root: the restore by another user is the restore that all other tests do");
        return;
    }
    let dir = temp_dir();
    let fixture = Fixture { dir };
    for n in 0..100 {
        let folder = fixture.source().join(format!("{n}/{}", "deep/".repeat(n % 40)));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("file"), format!("{n}")).unwrap();
        fs::set_permissions(folder.join("file"), fs::Permissions::from_mode(0o4440)).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
    }
    let restic = Restic::new(fixture.repository(), PASSWORD);
    restic.init();
    restic.backup(&fixture.source(), &[]);
    let target = fixture.target("target");
    assert!(
        std::process::Command::new("chmod")
            .arg("-R")
            .arg("a+rX")
            .arg(fixture.repository())
            .status()
            .unwrap()
            .success()
    );
    for open in [fixture.dir.path().to_owned(), fixture.repository()] {
        fs::set_permissions(open, fs::Permissions::from_mode(0o755)).unwrap();
    }
    chown(&target, Some(65534), Some(65534)).unwrap();
    // Where the tests are built others may not look; a copy they can run.
    let program = fixture.dir.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = std::process::Command::new(&program)
        .args(["--exact", "another_user_with_few_descriptors_gets_all_content", "--nocapture"])
        .env(CHILD, fixture.dir.path())
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Root's files now belong to somebody else, and so must not lend root's rights.
    let options = Options { holes: false, root: false, owner: false, mode: false, ..Options::default() };
    let differences = compare::trees(&fixture.source(), &target, &options);
    assert!(differences.is_empty(), "{differences:?}");
    let mode = fs::metadata(target.join("0/file")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o440);
}

fn as_child(dir: &Path) {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Nofile, Rlimit { current: Some(128), maximum: Some(128) }).unwrap();
    let fixture_repository = dir.join("repository");
    let storage = Arc::new(Local::open(fixture_repository).unwrap());
    let vault = Vault::open(storage, &Secret::new(PASSWORD.to_owned())).unwrap();
    let (_, snapshot) = vault.snapshots().unwrap().pop().unwrap();
    let reader = vault.reader().unwrap();
    let host: Arc<dyn FileSystem> = Arc::new(Host);
    let (options, target) = (RestoreOptions::default(), dir.join("target"));
    let outcome =
        restore(&reader, &host, &snapshot.tree, None, &target, &options, &Silent, &Cancel::new()).unwrap();
    assert_eq!(outcome.counts.files, 100);
    assert!(outcome.problems.len() <= 2, "{:?}", outcome.problems);
    assert!(outcome.problems.iter().all(|p| p.kind == ProblemKind::Metadata), "{:?}", outcome.problems);
}
