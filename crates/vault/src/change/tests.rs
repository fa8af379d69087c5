//! Rules, links and hostile trees, on trees that no file system would give.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use backstay_model::{Cancel, Code, ProblemKind, Result, Secret};
use backstay_storage::Memory;
use backstay_tree::fs::{FileTime, Kind};

use super::{Action, ChangePlan, Keep, LeftOut, Rules, Side, Unknown, WhyLeftOut, plan};
use crate::id::Id;
use crate::key::Cost;
use crate::node::{Node, TreeBuilder};
use crate::vault::Vault;

/// Trees that are in no vault.
#[derive(Default)]
struct Forge(Vec<Vec<u8>>);

impl Forge {
    fn tree(&mut self, nodes: &[Node]) -> Id {
        let mut builder = TreeBuilder::new(Vec::new());
        nodes.iter().for_each(|node| builder.push(node));
        self.0.push(builder.finish());
        Id::of(self.0.last().unwrap())
    }

    /// A tree of entries by path; folders are as they are needed.
    fn build(&mut self, entries: &[(&str, Node)]) -> Id {
        let mut folders: BTreeMap<&str, Vec<(&str, Node)>> = BTreeMap::new();
        let mut nodes = Vec::new();
        for (path, node) in entries {
            match path.split_once('/') {
                Some((folder, rest)) => folders.entry(folder).or_default().push((rest, node.clone())),
                None => nodes.push(Node { name: path.into(), ..node.clone() }),
            }
        }
        for (name, below) in folders {
            let subtree = self.build(&below);
            nodes.retain(|node| node.name != name);
            nodes.push(folder(name, subtree));
        }
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        self.tree(&nodes)
    }

    fn try_plan(self, live: Id, target: Id, rules: &Rules<'_>) -> Result<ChangePlan> {
        let vault = Vault::init(Arc::new(Memory::new()), &Secret::new("x"), Cost::RANDOM).unwrap();
        let reader = vault.reader().unwrap().with_trees(self.0);
        let (live_top, target_top) = (folder("content", live), folder("content", target));
        let side = |tree, top| Side { tree, top: Some(top) };
        plan(&reader, &side(live, &live_top), &side(target, &target_top), rules, &Cancel::new())
    }
}

fn folder(name: &str, subtree: Id) -> Node {
    Node {
        name: name.into(),
        kind: Some(Kind::Dir),
        mode: 0o755,
        inode: 1,
        subtree: Some(subtree),
        ..Node::default()
    }
}

fn file(text: &str) -> Node {
    let (content, size) = (vec![Id::of(text.as_bytes())], text.len() as u64);
    Node { kind: Some(Kind::File), mode: 0o644, inode: 2, links: 1, content, size, ..Node::default() }
}

fn empty_dir() -> Node {
    folder("", Id::of(b"{\"nodes\":[]}\n"))
}

fn linked(text: &str, inode: u64, links: u64) -> Node {
    Node { inode, links, device_id: 1, ..file(text) }
}

fn of_kind(kind: Option<Kind>) -> Node {
    Node { kind, mode: 0o644, links: 1, ..Node::default() }
}

type Entries<'e> = &'e [(&'e str, Node)];

fn try_planned(live: Entries<'_>, target: Entries<'_>, rules: &Rules<'_>) -> Result<ChangePlan> {
    let mut forge = Forge::default();
    forge.tree(&[]);
    let (live, target) = (forge.build(live), forge.build(target));
    forge.try_plan(live, target, rules)
}

fn planned(live: Entries<'_>, target: Entries<'_>, rules: &Rules<'_>) -> ChangePlan {
    try_planned(live, target, rules).unwrap()
}

/// Steps as `+path`, `-path`, `~path`.
fn steps(plan: &ChangePlan) -> Vec<String> {
    let sign = |action| match action {
        Action::Add => '+',
        Action::Replace => '~',
        Action::Remove => '-',
    };
    plan.steps.iter().map(|step| format!("{}{}", sign(step.action), step.path.display())).collect()
}

fn metadata(plan: &ChangePlan) -> Vec<&str> {
    plan.metadata.iter().map(|change| change.path.to_str().unwrap()).collect()
}

fn paths(list: &[&str]) -> Vec<PathBuf> {
    list.iter().map(PathBuf::from).collect()
}

fn left_out(path: &str, why: WhyLeftOut) -> LeftOut {
    LeftOut { path: path.into(), why }
}

// --- links

#[test]
fn names_in_folders_that_were_not_read_are_found() {
    let target =
        [("a/p", linked("x", 5, 2)), ("u/deep/q", linked("x", 5, 2)), ("u/other", linked("y", 6, 2))];
    let restored_alone = [("a/p", file("x")), target[1].clone(), target[2].clone()];
    let plan = planned(&restored_alone, &target, &Rules::none());
    assert_eq!(steps(&plan), ["~a/p", "~u/deep/q"]);
    assert_eq!(metadata(&plan), ["u/deep", "a"]);
    assert_eq!(plan.totals.stage_bytes, 1);
    assert_eq!(plan.steps[1].seen.unwrap().inode, 5);

    let changed = [("a/p", linked("changed", 5, 2)), target[1].clone(), target[2].clone()];
    assert_eq!(steps(&planned(&changed, &target, &Rules::none())), ["~a/p", "~u/deep/q"]);

    // What is kept stays, though the file then loses a name.
    let keep = |path: &Path, _| if path.starts_with("u/deep") { Keep::Yes } else { Keep::No };
    let rules = Rules { keep: &keep, ..Rules::none() };
    assert_eq!(steps(&planned(&changed, &target, &rules)), ["~a/p"]);
    let protected = paths(&["u"]);
    let rules = Rules { protected: &protected, ..Rules::none() };
    assert_eq!(steps(&planned(&changed, &target, &rules)), ["~a/p"]);
}

#[test]
fn names_outside_the_home_are_no_reason_to_replace() {
    // Two names in the point, of which one was elsewhere; restored it has one.
    let target = [("a/p", linked("x", 5, 2)), ("b", file("1"))];
    let plan = planned(&[("a/p", linked("x", 9, 1)), ("b", file("1"))], &target, &Rules::none());
    assert_eq!(steps(&plan), [""; 0]);
    // Metadata of a file that has other names is not changed in place: they would change too.
    let live = [("a/p", Node { mode: 0o600, ..linked("x", 5, 2) }), ("b", file("1"))];
    assert_eq!(steps(&planned(&live, &target, &Rules::none())), ["~a/p"]);
    assert_eq!(
        metadata(&planned(&[("b", Node { mode: 0o600, ..file("1") })], &target[1..], &Rules::none())),
        ["b"]
    );
}

#[test]
fn of_names_that_were_joined_some_may_keep_the_file() {
    let live = [("a/p", linked("x", 5, 3)), ("b/q", linked("x", 5, 3)), ("b/r", linked("x", 5, 3))];
    let target = [("a/p", file("x")), ("b/q", linked("x", 7, 2)), ("b/r", linked("x", 7, 2))];
    assert_eq!(steps(&planned(&live, &target, &Rules::none())), ["~a/p"]);
    // The others in a folder that was not read.
    let target = [("a/p", file("x")), live[1].clone(), live[2].clone()];
    assert_eq!(steps(&planned(&live, &target, &Rules::none())), ["~a/p"]);
    // A name that is replaced anyway does not count.
    let target = [("a/p", file("else")), live[1].clone(), live[2].clone()];
    assert_eq!(steps(&planned(&live, &target, &Rules::none())), ["~a/p"]);
}

// --- rules

#[test]
fn a_folder_that_goes_stays_with_what_is_kept_in_it() {
    let live =
        [("d/cache/x", file("1")), ("d/e/y", file("22")), ("d/z", file("333")), ("plain/a/b", file("1"))];
    let keep = |path: &Path, _: bool| match path.to_str().unwrap() {
        "d/cache" => Keep::Yes,
        "d" | "plain" => Keep::MaybeBelow,
        _ => Keep::No,
    };
    let rules = Rules { keep: &keep, ..Rules::none() };
    let plan = planned(&live, &[], &rules);
    assert_eq!(steps(&plan), ["-d/e", "-d/z", "-plain"]);
    assert_eq!(metadata(&plan), ["d", ""]);
    assert_eq!(plan.metadata[0].before, plan.metadata[0].after);
    assert_eq!((plan.totals.removed.files, plan.totals.removed.bytes, plan.totals.kept), (3, 6, 1));
    assert!(plan.kept[0].live && !plan.kept[0].in_point);
    // Something else takes its place: it cannot.
    let plan = planned(&live, &[("d", file("a file"))], &rules);
    assert_eq!(steps(&plan), ["-plain"]);
    assert_eq!(plan.conflicts.len(), 1);
    assert_eq!(plan.conflicts[0].path, Path::new("d"));
    // Nothing of it comes where it is not there.
    let plan = planned(&[], &live, &rules);
    assert_eq!((steps(&plan), &plan.omit), (vec!["+d".into(), "+plain".into()], &paths(&["d/cache"])));
    assert_eq!(plan.totals.added.files, 3);
}

#[test]
fn what_is_protected_stays_though_the_live_tree_does_not_show_it() {
    let protected = paths(&["m", "apps/nested"]);
    let rules = Rules { protected: &protected, ..Rules::none() };
    let live = [("m/x", file("1")), ("apps", empty_dir()), ("other/y", file("1"))];
    let told = [left_out("m", WhyLeftOut::Protected), left_out("apps/nested", WhyLeftOut::Protected)];
    for (target, expected) in [
        (vec![], vec!["-other"]),
        (vec![("m/else", file("2")), ("other/y", file("1"))], vec![]),
        (vec![("m", file("2"))], vec!["-other"]),
        (vec![("apps/nested/x", file("2")), ("apps/z", file("3"))], vec!["+apps/z", "-other"]),
    ] {
        let plan = planned(&live, &target, &rules);
        assert_eq!(steps(&plan), expected);
        assert_eq!((plan.left_out.as_slice(), plan.conflicts.len()), (&told[..], 0));
    }
    let plan = planned(&live, &[("apps", file("2"))], &rules);
    assert_eq!((steps(&plan), plan.conflicts.len()), (vec!["-other".to_owned()], 1));
}

#[test]
fn what_could_not_be_read_is_taken_to_differ() {
    let unknown: Vec<Unknown> = ["same/grown", "lost", "gone", "dir"]
        .iter()
        .map(|path| Unknown { path: path.into(), is_dir: *path == "dir" })
        .collect();
    let rules = Rules { unknown: &unknown, ..Rules::none() };
    let live = [("same/grown", file("1")), ("same/other", file("2")), ("dir/x", file("3"))];
    let target = [live[0].clone(), live[1].clone(), live[2].clone(), ("lost", file("4"))];
    let plan = planned(&live, &target, &rules);
    // `gone` and `lost` are there, though the live tree does not have them.
    assert_eq!(steps(&plan), ["-gone", "~lost", "~same/grown"]);
    assert_eq!(metadata(&plan), ["dir", "same", ""]);
    assert!(plan.steps[1].seen.is_none() && plan.steps[1].before.is_none());
    assert_eq!(steps(&planned(&live, &target, &Rules::none())), ["+lost"]);
}

#[test]
fn what_the_point_does_not_know_stays() {
    let not_in_point = paths(&["d/secret", "m"]);
    let rules = Rules { not_in_point: &not_in_point, ..Rules::none() };
    let live = [("d/secret", file("1")), ("d/x", file("2")), ("m/y", file("3"))];
    let plan = planned(&live, &[("m", empty_dir())], &rules);
    assert_eq!(steps(&plan), ["-d/x"]);
    assert_eq!(
        plan.left_out,
        [left_out("d/secret", WhyLeftOut::NotInPoint), left_out("m", WhyLeftOut::NotInPoint)]
    );
    assert_eq!(metadata(&plan), ["d"]);
    // What is not there comes as the point has it.
    assert_eq!(steps(&planned(&live[..1], &[("m", empty_dir())], &rules)), ["+m"]);
}

#[test]
fn selected_paths_and_nothing_else() {
    let live = [("a/x", file("1")), ("b", file("2")), ("c/d", file("3"))];
    let target = [
        ("a/x", file("one")),
        ("a/y", file("two")),
        ("b/z/1", file("3")),
        ("n/m/x", file("4")),
        ("n/y", file("5")),
    ];
    let select = |list: &[&str]| {
        let list = paths(list);
        try_planned(&live, &target, &Rules { select: Some(&list), ..Rules::none() })
    };
    let plan = select(&["a/x", "n/m"]).unwrap();
    assert_eq!(steps(&plan), ["~a/x", "+n"]);
    assert_eq!(plan.staged(), paths(&["a/x", "n/m"]));
    assert_eq!(metadata(&plan), ["a", ""]);
    assert!(plan.metadata.iter().all(|change| change.before == change.after));
    assert_eq!(plan.totals.stage_bytes, 4);
    assert_eq!(select(&["a"]).unwrap().staged(), paths(&["a/x", "a/y"]));
    assert_eq!(steps(&select(&["b"]).unwrap()), ["~b"]);
    for (list, code) in [
        ("nothing", Code::PathNotFound),
        ("c", Code::PathNotFound),
        ("a/x/y", Code::PathNotFound),
        ("../a", Code::InvalidValue),
    ] {
        assert_eq!(select(&[list]).unwrap_err().code(), code, "{list}");
    }
    // A file is where a folder on the way must be, and was not asked for.
    let plan = select(&["b/z"]).unwrap();
    assert_eq!((plan.steps.len(), plan.conflicts.len()), (0, 1));
    // What is asked for is kept, or lies in what is protected.
    let (list, protected) = (paths(&["a/y", "n/m/x"]), paths(&["n"]));
    let keep = |path: &Path, _| if path.starts_with("a/y") { Keep::Yes } else { Keep::No };
    let rules = Rules { keep: &keep, protected: &protected, select: Some(&list), ..Rules::none() };
    let plan = planned(&live, &target, &rules);
    assert_eq!((plan.steps.len(), plan.kept.len(), plan.conflicts.len()), (0, 1, 1));
}

#[test]
fn entries_that_no_restore_makes() {
    let live = [("s", of_kind(Some(Kind::Socket))), ("t", file("1")), ("u", file("2"))];
    let target =
        [("s", of_kind(Some(Kind::Socket))), ("t", of_kind(Some(Kind::Socket))), ("u", of_kind(None))];
    let plan = planned(&live, &target, &Rules::none());
    assert_eq!(steps(&plan), ["-t"]);
    let problems: Vec<_> = plan.problems.iter().map(|p| (p.path.as_str(), p.kind)).collect();
    assert_eq!(problems, [("t", ProblemKind::Socket), ("u", ProblemKind::Unsafe)]);
}

#[test]
fn what_a_restore_would_not_change_is_the_same() {
    let xattr = |name: &str| (name.into(), vec![1]);
    let target = Node { user: "www".into(), inode: 7, ctime: FileTime { secs: 9, nanos: 1 }, ..file("1") };
    let label = Node { xattrs: vec![xattr("security.selinux")], ..file("1") };
    assert!(planned(&[("a", label.clone())], &[("a", target.clone())], &Rules::none()).is_empty());
    let mine = Node { xattrs: vec![xattr("user.mine")], ..file("1") };
    assert_eq!(metadata(&planned(&[("a", mine)], &[("a", target.clone())], &Rules::none())), ["a"]);
    assert_eq!(metadata(&planned(&[("a", target)], &[("a", label)], &Rules::none())), ["a"]);
    let link = |mode| Node { mode, link_target: "x".into(), ..of_kind(Some(Kind::Symlink)) };
    assert!(planned(&[("l", link(0o755))], &[("l", link(0o777))], &Rules::none()).is_empty());
}

// --- hostile trees

#[test]
fn what_cannot_be_read_is_never_taken_for_empty() {
    let lost = folder("d", Id::of(b"nowhere"));
    let live = [("d/x", file("1")), ("y", file("2"))];
    for (live, target) in [(&live[..], &[("d", lost.clone())][..]), (&[("d", lost)][..], &live[..])] {
        let plan = planned(live, target, &Rules::none());
        assert!(!plan.steps.iter().any(|step| step.path.starts_with("d")), "{:?}", plan.steps);
        assert_eq!((plan.problems.len(), plan.problems[0].kind), (1, ProblemKind::Lost));
    }
}

#[test]
fn names_that_cannot_be_and_names_that_come_twice() {
    let mut forge = Forge::default();
    let named = |name: &str, text: &str| Node { name: name.into(), ..file(text) };
    let live = forge.tree(&[named("a", "1"), named("b", "2")]);
    let long = "n".repeat(256);
    let hostile: Vec<Node> =
        ["..", ".", "", "a/b", "/etc/passwd", &long].iter().map(|n| named(n, "x")).collect();
    let mut nodes = vec![named("b", "2"), named("a", "1"), named("a", "other"), named("c", "3")];
    nodes.extend(hostile);
    let target = forge.tree(&nodes);
    let plan = forge.try_plan(live, target, &Rules::none()).unwrap();
    assert_eq!(steps(&plan), ["+c"]);
    assert!(plan.problems.iter().all(|p| p.kind == ProblemKind::Unsafe) && plan.problems.len() == 2);
}

#[test]
fn depth_and_repetition_are_bounded() {
    let began = Instant::now();
    let mut forge = Forge::default();
    let mut deep = forge.tree(&[Node { name: "x".into(), ..file("1") }]);
    let mut other = forge.tree(&[Node { name: "x".into(), ..file("2") }]);
    for _ in 0..6000 {
        deep = forge.tree(&[folder("d", deep)]);
        other = forge.tree(&[folder("d", other)]);
    }
    let mut bomb = forge.tree(&[Node { name: "x".into(), ..file("1") }]);
    let names: Vec<String> = (0..40).map(|n| format!("{n:02}")).collect();
    for _ in 0..12 {
        bomb = forge.tree(&names.iter().map(|name| folder(name, bomb)).collect::<Vec<_>>());
    }
    let live = forge.tree(&[folder("deep", deep), folder("gone", deep)]);
    let target = forge.tree(&[folder("bomb", bomb), folder("deep", other), folder("new", other)]);
    let plan = forge.try_plan(live, target, &Rules::none()).unwrap();
    assert_eq!(steps(&plan), ["+bomb", "-gone", "+new"]);
    let kinds: Vec<_> = plan.problems.iter().map(|p| p.kind).collect();
    assert_eq!(kinds, [ProblemKind::Unsafe; 3]);
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
}
