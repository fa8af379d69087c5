//! What a database says lies in the home, compared with what lies there.
//!
//! Files and databases are two worlds: a file that was deleted while a point was taken may still be named in its database. That is
//! told after a backup and after a restore; it makes neither partial. Rules are those of the app (a query that lists paths, and
//! the folder that they are relative to), and one that is built in: the uploads of WordPress.
//!
//! Invariants: queries run in a transaction that can only read; paths are looked up beneath the home, links are followed as long as
//! they stay in it; what an error says is told and changes nothing.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use backstay_catalog::App;
use backstay_database::{Database, Dump, Endpoint, Kind};
use backstay_model::app::Reference;
use backstay_model::{Cancel, Error, Problem, ProblemKind, Result};
use backstay_tree::beneath::Root;
use backstay_tree::fs::FileTime;
use jiff::Timestamp;

use super::linked::options;
use crate::state::Engine;

/// Most paths that one rule lists.
const PATHS_MAX: usize = 1_000_000;
/// Paths that are named in what is told.
const NAMED: usize = 20;
/// Several ticks of a kernel.
const TICK: Duration = Duration::from_millis(50);
/// Where WordPress may lie in a home.
const WORDPRESS: [&str; 3] = ["", "site/wwwroot", "wordpress"];
const UPLOADS: &str = "wp-content/uploads";

/// What a database names, by rule.
pub(crate) struct Named {
    connection: String,
    rules: Vec<(Reference, Result<Vec<String>>)>,
}

/// The files that a database is compared with.
#[derive(Clone, Copy)]
pub(crate) struct Files<'f> {
    pub home: &'f Path,
    /// What has changed since then counts as not there: a backup that was read from then on need not have it.
    pub since: Option<Timestamp>,
    /// Whether a path below the home is in the backup, where that is known.
    pub has: Option<&'f dyn Fn(&Path) -> bool>,
}

impl<'f> Files<'f> {
    /// Those of a home as they lie there.
    pub fn of(home: &'f Path) -> Self {
        Files { home, since: None, has: None }
    }
}

impl Named {
    /// What the dump's own snapshot says; none where that cannot be asked.
    pub fn in_snapshot(&self, dump: &mut dyn Dump) -> Option<Named> {
        let mut ask = |(rule, _): &(Reference, _)| Some((rule.clone(), dump.texts(&rule.query, PATHS_MAX)?));
        let rules = self.rules.iter().map(&mut ask).collect::<Option<_>>()?;
        Some(Named { connection: self.connection.clone(), rules })
    }

    /// What either of two looks has found. A row that came and went between them is not known: that is some milliseconds.
    pub fn of_both(before: Option<Named>, after: Option<Named>) -> Option<Named> {
        let (Some(mut before), Some(after)) = (before, after) else { return None };
        for (rule, texts) in after.rules {
            match (before.rules.iter_mut().find(|(known, _)| *known == rule), texts) {
                (Some((_, Ok(known))), Ok(texts)) => {
                    let all: BTreeSet<String> = known.drain(..).chain(texts).collect();
                    known.extend(all);
                }
                (Some((_, known)), texts) => *known = texts,
                (None, texts) => before.rules.push((rule, texts)),
            }
        }
        Some(before)
    }
}

impl Engine {
    /// Asks a database what it names. Cheap where the app has no rules.
    pub(crate) fn names(
        &self,
        app: &App,
        home: &Path,
        (connection, endpoint): (&str, &Endpoint),
        cancel: &Cancel,
    ) -> Option<Named> {
        let open = || backstay_database::open(endpoint, options(app, cancel));
        let mut rules: Vec<Reference> =
            app.config.references.iter().filter(|r| r.connection == connection).cloned().collect();
        if let Some(uploads) = wordpress(home).filter(|_| endpoint.kind == Kind::MySql) {
            // A database that does not answer is told where it is dumped or restored.
            rules.extend(
                open().and_then(|mut d| wordpress_rule(&mut *d, connection, &uploads)).ok().flatten(),
            );
        }
        if rules.is_empty() {
            return None;
        }
        let ask = |rule: Reference| {
            let texts = open().and_then(|mut database| database.texts(&rule.query, PATHS_MAX));
            (rule, texts)
        };
        Some(Named { connection: connection.to_owned(), rules: rules.into_iter().map(ask).collect() })
    }

    /// What of it is not among the files.
    pub(crate) fn dangling(&self, named: &Named, files: &Files<'_>) -> Vec<Problem> {
        let told = |detail| Problem {
            path: format!("database {}", named.connection),
            kind: ProblemKind::Dangling,
            detail,
        };
        let mut problems = Vec::new();
        for (rule, texts) in &named.rules {
            let missing = match texts {
                Ok(texts) => self.missing(rule, texts, files),
                Err(e) => Err(Error::new(e.code(), e.message())),
            };
            match missing {
                Ok(missing) if missing.is_empty() => {}
                Ok(missing) => {
                    let checked = texts.as_ref().map_or(0, Vec::len);
                    problems.push(told(sentence(rule, checked, &missing)));
                }
                Err(e) => problems.push(told(format!("What it names could not be compared: {e}"))),
            }
        }
        problems
    }

    fn missing(&self, rule: &Reference, texts: &[String], files: &Files<'_>) -> Result<Vec<String>> {
        let root = Root::open(self.fs.clone(), files.home)?;
        let folder = Path::new(&rule.folder);
        let is_missing = |text: &&String| {
            !text.is_empty() && !is_there(self, &root, &folder.join(text.trim_start_matches('/')), files)
        };
        Ok(texts.iter().filter(is_missing).map(|text| text.escape_debug().to_string()).collect())
    }
}

fn sentence(rule: &Reference, checked: usize, missing: &[String]) -> String {
    let named: Vec<&str> = missing.iter().take(NAMED).map(String::as_str).collect();
    let more = match missing.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "{} of {checked} paths that it names are not in `{}`: {}{more}",
        missing.len(),
        rule.folder,
        named.join(", ")
    )
}

fn is_there(engine: &Engine, root: &Root, path: &Path, files: &Files<'_>) -> bool {
    let plain: Option<PathBuf> = path
        .components()
        .filter(|c| !matches!(c, Component::CurDir))
        .map(|c| matches!(c, Component::Normal(_)).then_some(c))
        .collect();
    let Some(plain) = plain else { return false };
    let by_link = || {
        let home = files.home.canonicalize().ok()?;
        let real = files.home.join(&plain).canonicalize().ok()?;
        real.strip_prefix(home).map(Path::to_owned).ok().filter(|real| *real != plain)
    };
    lies_there(engine, root, &plain, files)
        || by_link().is_some_and(|real| lies_there(engine, root, &real, files))
}

/// Whether a file lies at a path without links, `..` and the like.
fn lies_there(engine: &Engine, root: &Root, plain: &Path, files: &Files<'_>) -> bool {
    if files.has.is_some_and(|has| has(plain)) {
        return true;
    }
    let (Some(folder), Some(name)) = (plain.parent(), plain.file_name()) else { return false };
    let stat = root.open_dir(folder).ok().and_then(|dir| engine.fs.stat(dir.as_fd(), name).ok());
    stat.is_some_and(|stat| files.since.is_none_or(|since| is_before(stat.ctime, since)))
}

/// Whether a file was changed before a time for certain: its stamps are as coarse as the ticks of the kernel, on some file systems as
/// seconds.
fn is_before(changed: FileTime, time: Timestamp) -> bool {
    let whole_seconds = changed.nanos == 0;
    let stamp = i128::from(changed.secs) * 1_000_000_000 + i128::from(changed.nanos);
    match whole_seconds {
        true => changed.secs < time.as_second(),
        false => stamp + TICK.as_nanos().cast_signed() < time.as_nanosecond(),
    }
}

/// The uploads of a WordPress in a home, relative to that.
fn wordpress(home: &Path) -> Option<String> {
    let has = |base: &&&str| home.join(base).join("wp-includes").is_dir();
    let base = WORDPRESS.iter().find(has)?;
    Some(if base.is_empty() { UPLOADS.to_owned() } else { format!("{base}/{UPLOADS}") })
}

/// The rule for the uploads of WordPress, where the database is one of WordPress.
fn wordpress_rule(database: &mut dyn Database, connection: &str, uploads: &str) -> Result<Option<Reference>> {
    const TABLES: &str = "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND \
                          TABLE_NAME LIKE '%postmeta'";
    let tables = database.texts(TABLES, 100)?;
    let is_plain = |name: &&String| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$');
    Ok(tables.iter().find(is_plain).map(|table| Reference {
        connection: connection.to_owned(),
        query: format!("SELECT meta_value FROM `{table}` WHERE meta_key = '_wp_attached_file'"),
        folder: uploads.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_was_changed_before_only_where_its_stamp_proves_it() {
        let time = |secs, millis: i32| Timestamp::new(secs, millis * 1_000_000).unwrap();
        let stamp = |secs, millis: u32| FileTime { secs, nanos: millis * 1_000_000 };
        assert!(is_before(stamp(9, 900), time(10, 0)));
        assert!(is_before(stamp(10, 1), time(10, 900)));
        for same_tick in [stamp(10, 880), stamp(10, 900), stamp(10, 901), stamp(11, 1)] {
            assert!(!is_before(same_tick, time(10, 900)));
        }
        // A file system that knows no more than seconds.
        assert!(is_before(stamp(9, 0), time(10, 0)) && !is_before(stamp(10, 0), time(10, 900)));
        // Before 1970.
        assert!(is_before(stamp(-2, 500), time(-1, 0)) && !is_before(stamp(-1, 500), time(-1, 0)));
    }
}
