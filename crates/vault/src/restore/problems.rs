//! What went wrong, path by path, without drowning anybody in it.
//!
//! Invariant: every problem is counted; of each kind the first [`LISTED`] are listed one by one. What lack of rights
//! alone keeps from being set (owners, say, when another user than root restores) is one problem per attribute.
//! Lock: one, held for the time of an insertion.

use std::collections::BTreeMap;
use std::path::Path;

use backstay_model::Progress;
use backstay_model::{Problem, ProblemKind};
use backstay_tree::metadata::{self, Attribute};
use backstay_tree::path::escape;
use parking_lot::Mutex;

/// So many problems of a kind are listed; the rest are counted.
const LISTED: u64 = 10_000;

pub(super) struct Problems<'a> {
    progress: &'a dyn Progress,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    list: Vec<Problem>,
    counts: Vec<(ProblemKind, u64)>,
    /// By attribute: the first problem, and how many there were.
    rights: BTreeMap<&'static str, (Problem, u64)>,
}

impl<'a> Problems<'a> {
    pub(super) fn new(progress: &'a dyn Progress) -> Self {
        Problems { progress, found: Mutex::default() }
    }

    /// Notes a problem with a path.
    pub(super) fn add(&self, path: &Path, kind: ProblemKind, detail: impl Into<String>) {
        let problem = Problem { path: escape(path.as_os_str()), kind, detail: detail.into() };
        let mut found = self.found.lock();
        let count = match found.counts.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, count)) => {
                *count += 1;
                *count
            }
            None => {
                found.counts.push((kind, 1));
                1
            }
        };
        if count <= LISTED {
            self.progress.problem(&problem);
            found.list.push(problem);
        }
    }

    /// Notes metadata that could not be set.
    pub(super) fn metadata(&self, path: &Path, problems: Vec<metadata::Problem>) {
        for problem in problems {
            if !problem.is_lack_of_rights() {
                self.add(path, ProblemKind::Metadata, problem.to_string());
                continue;
            }
            let attribute = match &problem.what {
                Attribute::Owner => "owner",
                Attribute::Mode => "mode",
                Attribute::Times => "times",
                Attribute::Present => "present",
                Attribute::Xattr(_) => "attributes",
            };
            let first = || {
                let path = escape(path.as_os_str());
                (Problem { path, kind: ProblemKind::Metadata, detail: problem.to_string() }, 0)
            };
            self.found.lock().rights.entry(attribute).or_insert_with(first).1 += 1;
        }
    }

    /// All of them, sorted by path, with words about those that are not listed.
    pub(super) fn finish(self) -> Vec<Problem> {
        let Found { mut list, counts, rights } = self.found.into_inner();
        list.sort_by(|a, b| a.path.cmp(&b.path));
        let mut summaries = Vec::new();
        for (kind, count) in counts {
            if count > LISTED {
                let detail = format!("{} more problems of this kind are not listed", count - LISTED);
                summaries.push(Problem { path: String::new(), kind, detail });
            }
        }
        for (mut problem, count) in rights.into_values() {
            if count > 1 {
                problem.detail = format!("{} (and the same of {} more paths)", problem.detail, count - 1);
            }
            summaries.push(problem);
        }
        summaries.iter().for_each(|p| self.progress.problem(p));
        list.extend(summaries);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_model::Silent;
    use std::io;

    #[test]
    fn lack_of_rights_is_one_line_and_a_flood_is_cut() {
        let problems = Problems::new(&Silent);
        let lack = || {
            let error = io::Error::from(io::ErrorKind::PermissionDenied);
            vec![metadata::Problem { what: Attribute::Owner, error }]
        };
        problems.metadata(Path::new("a"), lack());
        problems.metadata(Path::new("b"), lack());
        for _ in 0..LISTED + 5 {
            problems.add(Path::new("x\n"), ProblemKind::Lost, "gone");
        }
        let list = problems.finish();
        assert_eq!(list.len() as u64, LISTED + 2);
        assert_eq!(list[0].path, "x\\x0a");
        assert!(list[list.len() - 2].detail.starts_with("5 more"));
        let owner = list.last().unwrap();
        assert!(owner.path == "a" && owner.detail.ends_with("1 more paths)"), "{owner:?}");
    }
}
