//! Which filter counts: the file in the home and what is set about the app.
//!
//! Invariants: the file is read through the home's handle, is a regular file of at most 1 MiB and no link, since its
//! lines are shown to people (a link could show them somebody else's file). One that cannot be obeyed is never
//! half obeyed: a backup takes everything and is partial, a restore in place refuses. A safety point takes everything
//! always: it is what an undo needs. Nothing is written and no lock is taken here.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use backstay_model::app::AppConfig;
use backstay_model::{Code, Error, Origin, Problem, ProblemKind, Result};
use backstay_tree::filter::{FILES, Filter, Rule, SIZE_MAX};
use backstay_tree::fs::FileSystem;
use backstay_tree::open_regular;
use backstay_vault::backup::Filtered;
use backstay_vault::{Id, Reader};
use serde::{Deserialize, Serialize};

/// The filter that was obeyed by a point, as its manifest records it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterRecord {
    /// The file with rules, relative to the home, where there was one. It is in the point itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The rules: one path each, from the home on, as in `docs/filter.md`.
    pub rules: Vec<String>,
    /// Entries that were left out; a folder counts as one.
    pub left_out: u64,
    /// Rules that named nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmatched: Vec<String>,
}

impl FilterRecord {
    /// The rules to be asked again.
    pub fn filter(&self) -> Result<Filter> {
        let filter = Filter::from_texts(&self.rules)?;
        Ok(match &self.file {
            Some(file) => filter.never(Path::new(file)),
            None => filter,
        })
    }
}

/// An app's filter as it is now.
#[derive(Debug, Default)]
pub(crate) struct AppFilter {
    pub filter: Filter,
    /// The file that was found, relative to the home.
    file: Option<&'static str>,
    /// Why the file was not obeyed.
    refused: Option<Error>,
}

impl AppFilter {
    /// The filter, or why it is not known what it would be.
    pub fn obeyed(self) -> Result<Filter> {
        match self.refused {
            None => Ok(self.filter),
            Some(e) => Err(e),
        }
    }

    /// What a backup tells when the file was not obeyed.
    pub fn problem(&self) -> Option<Problem> {
        let path = self.file?.to_owned();
        let error = self.refused.as_ref()?;
        let cause = error.causes().first().cloned().unwrap_or_else(|| error.message().to_owned());
        let detail = format!("The rules were not obeyed, everything was taken: {cause}");
        Some(Problem { path, kind: ProblemKind::Filter, detail })
    }

    /// What the manifest says about it.
    pub fn record(&self, filtered: &Filtered) -> FilterRecord {
        let rules = self.filter.rules();
        let text = |rule: &Rule| rule.text.clone();
        FilterRecord {
            file: self.file.map(str::to_owned),
            rules: rules.iter().map(text).collect(),
            left_out: filtered.left_out,
            unmatched: filtered.unmatched.iter().filter_map(|n| rules.get(*n)).map(text).collect(),
        }
    }

    /// What is told of rules that named nothing, but for those that were told with the last point.
    pub fn notes(&self, filtered: &Filtered, before: Option<&FilterRecord>) -> Vec<Problem> {
        let told = |rule: &&Rule| before.is_none_or(|b| !b.unmatched.contains(&rule.text));
        let rules = filtered.unmatched.iter().filter_map(|n| self.filter.rules().get(*n)).filter(told);
        let note = |rule: &Rule| {
            let (path, place) = match (rule.line, self.file) {
                (Some(line), Some(file)) => (file, format!("Line {line}")),
                _ => ("", "An exclude of the app".to_owned()),
            };
            let detail = format!("{place} names nothing: {}{}", rule.text, hint(&rule.text));
            Problem { path: path.to_owned(), kind: ProblemKind::Unmatched, detail }
        };
        rules.map(note).collect()
    }
}

/// What is usually meant by a rule that names nothing.
fn hint(rule: &str) -> &'static str {
    let names: Vec<&str> = rule.split('/').filter(|n| !n.is_empty()).collect();
    match names.as_slice() {
        [first, ..] if first.eq_ignore_ascii_case("%home%") => {
            " (paths count from the home: leave out %HOME%)"
        }
        [drive, ..] if drive.len() == 2 && drive.ends_with(':') => {
            " (paths count from the home: leave out the drive and the home)"
        }
        [] => " (the home itself cannot be left out)",
        _ => "",
    }
}

/// Whether a point in the vault obeys the app's filter.
pub(crate) fn applies(origin: Origin, config: &AppConfig) -> bool {
    config.filter_automatic && matches!(origin, Origin::Automatic | Origin::Manual)
}

/// What a restore leaves as it is: what the filter in the target's home names now, and what the one recorded in the point
/// does. `FilterUnusable` where the target's cannot be obeyed.
pub fn kept_by_restore(
    fs: &dyn FileSystem,
    home: &Path,
    excludes: &[String],
    recorded: Option<&FilterRecord>,
) -> Result<Filter> {
    let now = load(fs, home, excludes)?.obeyed()?;
    match recorded {
        None => Ok(now),
        Some(record) => Ok(now.union(&record.filter()?)),
    }
}

/// The file with the rules of a home, where it has one.
pub(crate) fn file_of(fs: &dyn FileSystem, home: &Path) -> Option<&'static Path> {
    find(fs, home).map(|(file, _)| Path::new(file))
}

/// The filter that lies in a tree of the vault, with what is set about the app. A file there that cannot be obeyed is none.
pub(crate) fn in_tree(reader: &Reader, tree: &Id, excludes: &[String]) -> Result<Filter> {
    let set = Filter::from_lines(excludes)?;
    let parsed = FILES.iter().find_map(|file| {
        let node = reader.find(tree, Path::new(file)).ok()?;
        let mut bytes = Vec::new();
        if usize::try_from(node.size).is_ok_and(|size| size <= SIZE_MAX) {
            reader.cat(&node, &mut bytes).ok()?;
        }
        Some((file, Filter::parse(&bytes).ok()?))
    });
    Ok(match parsed {
        Some((file, rules)) => rules.union(&set).never(Path::new(file)),
        None => set,
    })
}

/// The filter of an app: the file in its home and what is set about it.
pub(crate) fn load(fs: &dyn FileSystem, home: &Path, excludes: &[String]) -> Result<AppFilter> {
    let set = Filter::from_lines(excludes)?;
    let Some((file, read)) = find(fs, home) else {
        return Ok(AppFilter { filter: set, ..AppFilter::default() });
    };
    let parsed = read
        .map_err(|e| Error::new(Code::FilterUnusable, format!("The filter {file} cannot be read")).because(e))
        .and_then(|bytes| {
            Filter::parse(&bytes).map_err(|e| {
                Error::new(Code::FilterUnusable, format!("The filter {file} is too large")).because(e)
            })
        });
    Ok(match parsed {
        Ok(rules) => {
            AppFilter { filter: rules.union(&set).never(Path::new(file)), file: Some(file), refused: None }
        }
        Err(e) => AppFilter { filter: set.never(Path::new(file)), file: Some(file), refused: Some(e) },
    })
}

/// The file with the rules, where there is one, and its content. A home that cannot be opened is told by whoever walks
/// it.
fn find(fs: &dyn FileSystem, home: &Path) -> Option<(&'static str, io::Result<Vec<u8>>)> {
    let root = fs.open_root(home).ok()?;
    let device = fs.stat_handle(root.as_fd()).ok()?.device;
    for file in FILES {
        let path = Path::new(file);
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { continue };
        let opened = if folder.as_os_str().is_empty() {
            open_regular(fs, root.as_fd(), name, device)
        } else {
            // Behind a link or a mount it is not part of the home.
            let Ok(folder) = fs.open_dir_beneath(root.as_fd(), folder) else { continue };
            open_regular(fs, folder.as_fd(), name, device)
        };
        match opened {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Some((file, Err(e))),
            Ok((handle, _)) => return Some((file, read(fs, &handle))),
        }
    }
    None
}

/// The content, or one byte more than is taken.
fn read(fs: &dyn FileSystem, handle: &std::os::fd::OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; SIZE_MAX + 1];
    let mut filled = 0;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        let offset = u64::try_from(filled).unwrap_or(u64::MAX);
        match fs.read_at(handle.as_fd(), room, offset)? {
            0 => break,
            n => filled += n,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_tree::fs::Host;
    use std::os::unix::fs::symlink;

    fn home() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("site/wwwroot")).unwrap();
        dir
    }

    fn now(home: &Path, excludes: &[&str]) -> AppFilter {
        let excludes: Vec<String> = excludes.iter().map(|e| (*e).to_owned()).collect();
        load(&Host, home, &excludes).unwrap()
    }

    #[test]
    fn the_file_beside_the_site_counts_before_the_one_in_the_home_and_excludes_always() {
        let home = home();
        assert!(now(home.path(), &[]).filter.is_empty());
        std::fs::write(home.path().join("_backup.filter"), "a\n").unwrap();
        let found = now(home.path(), &["b"]);
        assert_eq!(found.filter.matches(Path::new("a")), Some(0));
        assert_eq!(found.filter.matches(Path::new("b")), Some(1));
        std::fs::write(home.path().join("site/wwwroot/_backup.filter"), "site\n").unwrap();
        let record = FilterRecord {
            file: Some("_backup.filter".into()),
            rules: vec!["/a".into()],
            ..FilterRecord::default()
        };
        let both = kept_by_restore(&Host, home.path(), &[], Some(&record)).unwrap();
        assert!(both.matches(Path::new("site/x")).is_some() && both.matches(Path::new("a/x")).is_some());
        let found = now(home.path(), &["b"]).obeyed().unwrap();
        assert_eq!(found.matches(Path::new("a")), None);
        assert_eq!(found.matches(Path::new("site/x")), Some(0));
        assert_eq!(found.matches(Path::new("site/wwwroot/_backup.filter")), None);
        // A home that is not there has no filter.
        assert!(now(&home.path().join("gone"), &[]).filter.is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_obeyed_is_told_and_refused() {
        let large = vec![b'\n'; SIZE_MAX + 1];
        type Make<'a> = &'a dyn Fn(&Path);
        let make: [(&str, Make<'_>); 3] = [
            ("a link", &|p| symlink("/etc/hostname", p).unwrap()),
            ("a folder", &|p| std::fs::create_dir(p).unwrap()),
            ("too large", &|p| std::fs::write(p, &large).unwrap()),
        ];
        for (what, make) in make {
            let home = home();
            make(&home.path().join("_backup.filter"));
            let found = now(home.path(), &["logs"]);
            let problem = found.problem().unwrap();
            assert!(problem.kind.is_failure() && problem.path == "_backup.filter", "{what}: {problem:?}");
            // What the operator has set holds.
            assert_eq!(found.filter.matches(Path::new("logs")), Some(0));
            assert_eq!(found.obeyed().unwrap_err().code(), Code::FilterUnusable, "{what}");
        }
        // Behind a link there is no file of this home.
        let home = tempfile::tempdir().unwrap();
        symlink("/", home.path().join("site")).unwrap();
        assert!(now(home.path(), &[]).problem().is_none());
    }

    #[test]
    fn rules_that_name_nothing_are_told_once() {
        let home = home();
        std::fs::write(home.path().join("_backup.filter"), "# x\n%HOME%\\logs\nD:\\home\\x\nlogs\n/\n")
            .unwrap();
        let found = now(home.path(), &["old"]);
        let filtered = Filtered { left_out: 3, unmatched: vec![0, 1, 3, 4] };
        let told: Vec<_> = found.notes(&filtered, None).into_iter().map(|p| (p.path, p.detail)).collect();
        let expected = [
            (
                "_backup.filter",
                "Line 2 names nothing: /%HOME%/logs (paths count from the home: leave out %HOME%)",
            ),
            (
                "_backup.filter",
                "Line 3 names nothing: /D:/home/x (paths count from the home: leave out the drive and the home)",
            ),
            ("_backup.filter", "Line 5 names nothing: / (the home itself cannot be left out)"),
            ("", "An exclude of the app names nothing: /old"),
        ];
        assert_eq!(told, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        let record = found.record(&filtered);
        assert_eq!(record.rules, ["/%HOME%/logs", "/D:/home/x", "/logs", "/", "/old"]);
        assert!(found.notes(&filtered, Some(&record)).is_empty());
        let again = record.filter().unwrap();
        assert_eq!(again.matches(Path::new("logs/1")), Some(2));
        assert_eq!(again.matches(Path::new("_backup.filter")), None);
    }

    #[test]
    fn a_point_obeys_it_where_the_app_says_so_and_records_it() {
        use crate::{BackupRequest, Engine, Manifest, Selector, Setup};
        use backstay_model::{Cancel, Silent};
        let dir = home();
        let app = dir.path().join("app");
        std::fs::create_dir_all(app.join("logs")).unwrap();
        for (file, text) in [("index.html", "x"), ("logs/1", "x"), ("_backup.filter", "logs\r\ngone\r\n")] {
            std::fs::write(app.join(file), text).unwrap();
        }
        let engine =
            Engine::new(Setup { state: Some(dir.path().join("state")), ..Setup::default() }).unwrap();
        let back_up = |origin| {
            let request = BackupRequest { origin, ..BackupRequest::of(&app) };
            engine.backup(&request, &Silent, &Cancel::new()).unwrap()
        };
        let plain = back_up(Origin::Manual);
        assert_eq!((plain.point.point.files, plain.filter), (3, None));
        let name = plain.point.point.app.clone();
        engine
            .catalog()
            .unwrap()
            .change_app_config(&name, &mut |config| {
                config.filter_automatic = true;
                config.excludes = vec!["ind*".to_owned()];
                Ok(())
            })
            .unwrap();
        let filtered = back_up(Origin::Automatic);
        assert_eq!(filtered.point.point.files, 1, "only the filter itself");
        let told: Vec<_> = filtered.problems.iter().map(|p| (p.kind, p.detail.as_str())).collect();
        assert_eq!(told, [(ProblemKind::Unmatched, "Line 2 names nothing: /gone")]);
        let record = filtered.filter.unwrap();
        assert_eq!((record.left_out, record.rules.len()), (2, 3));
        // Told once; a safety point has everything.
        assert_eq!(back_up(Origin::Manual).problems, []);
        assert_eq!(back_up(Origin::Safety).point.point.files, 3);
        // The manifest says it, and a file that cannot be obeyed makes the point whole and partial.
        std::fs::write(app.join("_backup.filter"), vec![b'x'; SIZE_MAX + 1]).unwrap();
        let partial = back_up(Origin::Automatic);
        assert_eq!(partial.point.point.files, 2, "the operator's exclude holds");
        assert_eq!(partial.failures().len(), 1, "{:?}", partial.problems);
        let found = engine.find(name.as_str(), &Selector::Latest(2)).unwrap();
        let tree = found.record.tree.parse().unwrap();
        let manifest = Manifest::load(&found.vault.vault.reader().unwrap(), &tree).unwrap().unwrap();
        assert_eq!(manifest.filter.unwrap().rules, ["/logs", "/gone", "/ind*"]);
    }

    #[test]
    fn only_points_that_were_asked_to_obey_it() {
        let mut config = AppConfig::default();
        assert!(!applies(Origin::Automatic, &config));
        config.filter_automatic = true;
        assert!(applies(Origin::Automatic, &config) && applies(Origin::Manual, &config));
        assert!(!applies(Origin::Safety, &config));
    }
}
