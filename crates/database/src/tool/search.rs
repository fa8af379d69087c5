//! Where programs are found, and which version they are.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use backstay_model::{Code, Error, Result};

use super::{Ended, Limits, Program};

/// A program that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its path.
    pub path: PathBuf,
    /// What it says to `--version`, its first line.
    pub version: String,
}

/// Every program of one of those names: in `folders` where some are named, else on PATH and in the folders that `usual`
/// names (the last but one part may be `*` for all there are). Each is asked for its version; what does not answer is
/// none. `DatabaseToolMissing` naming `package` where there is none.
pub(crate) fn find(
    names: &[&str],
    folders: &[PathBuf],
    usual: &[&str],
    package: &str,
    limits: &Limits,
) -> Result<Vec<Found>> {
    let places = if folders.is_empty() { places(usual) } else { folders.to_vec() };
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for path in places.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name))) {
        let Some(real) = executable(&path) else { continue };
        if !seen.insert(real) {
            continue;
        }
        match version(&path, limits) {
            Ok(version) => found.push(Found { path, version }),
            Err(e) if e.code() == Code::Cancelled => return Err(e),
            Err(_) => {}
        }
    }
    if found.is_empty() {
        let names = names.join("` or `");
        let message = format!("`{names}` is not installed");
        return Err(
            Error::new(Code::DatabaseToolMissing, message).advise(format!("Install the package {package}."))
        );
    }
    Ok(found)
}

/// The real path of a program. Debian's wrapper around the versions of PostgreSQL is none: it chooses one by itself.
fn executable(path: &Path) -> Option<PathBuf> {
    let real = path.canonicalize().ok()?;
    let meta = real.metadata().ok()?;
    let wrapper = real.file_name().is_some_and(|name| name == "pg_wrapper");
    (meta.is_file() && meta.permissions().mode() & 0o111 != 0 && !wrapper).then_some(real)
}

fn places(usual: &[&str]) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).filter(|p| p.is_absolute()).collect();
    for pattern in usual {
        match pattern.split_once('*') {
            Some((before, after)) => places.extend(matching(before, after.trim_start_matches('/'))),
            None => places.push(PathBuf::from(pattern)),
        }
    }
    places
}

/// The folders `BEFORE*/AFTER` in the order of their names.
fn matching(before: &str, after: &str) -> Vec<PathBuf> {
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let entries = std::fs::read_dir(format!("{parent}/")).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join(after))
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

fn version(path: &Path, limits: &Limits) -> Result<String> {
    let mut program = Program::new(path);
    program.arg("--version");
    let explain = |ended: &Ended| {
        let message = format!("`{} --version` ended with {}", ended.program, ended.status_text());
        Error::new(Code::DatabaseToolMissing, message)
    };
    let said = program.said(limits, Box::new(explain))?;
    Ok(said.lines().next().unwrap_or_default().trim().to_owned())
}
