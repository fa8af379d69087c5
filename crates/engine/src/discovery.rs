//! Databases that an app's own files name: found, shown, and linked when a person says so.
//!
//! Invariants: files are read through the home's handle, regular ones of at most 1 MiB beneath it, no link and no mount is followed, and
//! the numbers of folders and files are bounded. A value that is found leaves this module only sealed, as a connection string.
//! Nothing is linked by looking. A connection that exists is never replaced. Crash: as [`crate::settings`]; what was linked before
//! stays. Locks: none.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use backstay_catalog::App;
use backstay_database::{ConnectionType, Endpoint, Kind, Place, connection, discover};
use backstay_model::{AppName, Code, Error, Result, Secret};
use backstay_tree::beneath::Root;
use backstay_tree::fs::Kind as EntryKind;
use backstay_tree::open_regular;
use backstay_tree::path::escape;
use serde::Serialize;

use crate::backup::home_of;
use crate::checks::points_to;
use crate::recover::Places;
use crate::secrets::Secrets;
use crate::settings::Link;
use crate::state::Engine;

/// Folders of a home that are looked into, each with the folders in it.
const BASES: [&str; 2] = ["", "site/wwwroot"];
/// Most folders that are looked into.
const FOLDERS_MAX: usize = 500;
/// Most files that are looked at.
const FILES_MAX: usize = 500;

/// What is to be done with a string that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "connection")]
pub enum FoundState {
    /// It can be linked.
    New,
    /// There is a connection of its name, which stays as it is.
    Exists,
    /// A connection of that name leads to the same database.
    Linked(String),
    /// It is a file of SQLite in the home: content of each point.
    Content,
    /// Its kind cannot be dumped.
    Unsupported,
}

/// A connection string that was found.
#[derive(Clone, Debug, Serialize)]
pub struct FoundConnection {
    /// The name to link it under.
    pub name: String,
    /// The type to link it with.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The kind of database.
    pub database_kind: &'static str,
    /// Where it points, in words.
    pub points_to: String,
    /// The file that it stands in.
    pub found_in: String,
    /// What a person should know before it is linked.
    pub note: Option<String>,
    /// What is to be done with it.
    #[serde(flatten)]
    pub state: FoundState,
    #[serde(skip)]
    typed: ConnectionType,
    #[serde(skip)]
    value: Secret,
}

/// Something that looks like a connection string and could not be read.
#[derive(Clone, Debug, Serialize)]
pub struct UnreadConnection {
    /// What it is called there.
    pub name: String,
    /// The file that it stands in.
    pub found_in: String,
    /// Why not, as the end of a sentence.
    pub why: String,
}

/// What the files of an app name.
#[derive(Clone, Debug, Serialize)]
pub struct Discovery {
    /// The app.
    pub app: AppName,
    /// What was found.
    pub found: Vec<FoundConnection>,
    /// What was seen and cannot be read.
    pub unread: Vec<UnreadConnection>,
    /// Whether there were more folders or files than are looked at.
    pub bounded: bool,
}

impl Discovery {
    /// What can be linked.
    pub fn new_ones(&self) -> impl Iterator<Item = &FoundConnection> {
        self.found.iter().filter(|found| found.state == FoundState::New)
    }
}

impl Engine {
    /// Looks through the files of an app.
    pub fn discover(&self, app: &AppName) -> Result<Discovery> {
        let mut links = self.connections(app)?;
        links.extend(self.in_app_connection(app)?.map(|(link, _)| link));
        let app = self.known_app(app.as_str())?;
        self.look_through(&app, &links)
    }

    /// The same for a folder that would become an app by its first backup; none where the target is no such folder, or
    /// nothing in it can be linked. Makes nothing.
    pub fn discover_new(&self, target: &Path, named: Option<&AppName>) -> Result<Option<Discovery>> {
        self.check_target(target)?;
        let found = self.look_if_new(target, named)?;
        let found = found.filter(|found| found.new_ones().next().is_some());
        let has_vault = Secrets::load(&self.state)?.is_some_and(|secrets| secrets.vault.is_some());
        if found.is_none() || !has_vault {
            return Ok(found);
        }
        // Its name may be that of an app that another machine has in the vault.
        self.points()?;
        self.look_if_new(target, named)
    }

    fn look_if_new(&self, target: &Path, named: Option<&AppName>) -> Result<Option<Discovery>> {
        let subject = self.subject_to_be(target, named)?;
        let name = &subject.app.name;
        if !subject.new || (self.has_catalog() && self.catalog()?.app(name)?.is_some()) {
            return Ok(None);
        }
        self.look_through(&subject.app, &[]).map(Some)
    }

    /// Makes a folder an app before its first backup, so that it can have connections. The vault comes first: a place for it
    /// that cannot be used leaves nothing behind. Gives where everything is, when that was made.
    pub fn adopt(&self, target: &Path, named: Option<&AppName>) -> Result<(AppName, Option<Places>)> {
        let first_run = self.secrets_or_new()?.1;
        let subject = self.subject(target, named)?;
        self.remember_app(&subject)?;
        Ok((subject.app.name, first_run))
    }

    /// Links what was found; gives where everything is, when the state was made for it.
    pub fn link_found<'f>(
        &self,
        app: &AppName,
        found: impl IntoIterator<Item = &'f FoundConnection>,
    ) -> Result<Option<Places>> {
        let mut first_run = None;
        for found in found {
            let exists = self.connections(app)?.iter().any(|link| link.name == found.name);
            if exists || found.state != FoundState::New {
                let message = format!("The connection `{}` of app `{app}` exists already", found.name);
                return Err(Error::new(Code::AlreadyExists, message)
                    .advise("Nothing was replaced. Look again: `backstay connection discover`."));
            }
            let set = self.set_connection(app, &found.name, &found.value, Some(found.typed), None)?;
            first_run = first_run.or(set.first_run);
        }
        Ok(first_run)
    }

    fn look_through(&self, app: &App, links: &[Link]) -> Result<Discovery> {
        let home = home_of(app)?;
        let root = Root::open(self.fs.clone(), &home)?;
        let mut look =
            Look { root: &root, others: self.homes_inside(app, &home)?, folders: 0, bounded: false };
        let files = look.files();
        let bounded = look.bounded;
        let read = discover::files(&files, |path| read(&root, Path::new(path)));
        let mut found: Vec<FoundConnection> = Vec::new();
        for string in read.strings {
            // It was read once already.
            let Ok(endpoint) = connection::parse(string.value.reveal(), string.kind) else { continue };
            let name = plain(&string.name);
            let state = state_of((&name, &endpoint), &home, links, &found);
            found.push(FoundConnection {
                name,
                kind: string.kind.as_str(),
                database_kind: endpoint.kind.name(),
                points_to: points_to(&endpoint),
                found_in: escape(OsStr::new(&string.found_in)),
                note: string.note,
                state,
                typed: string.kind,
                value: string.value,
            });
        }
        let unread = read.unread.into_iter().map(|u| UnreadConnection {
            name: plain(&u.name),
            found_in: escape(OsStr::new(&u.found_in)),
            why: u.why,
        });
        Ok(Discovery { app: app.name.clone(), found, unread: unread.collect(), bounded })
    }

    /// The homes of other apps in a home, relative to it: their databases are theirs.
    fn homes_inside(&self, app: &App, home: &Path) -> Result<BTreeSet<PathBuf>> {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_gone| path.to_owned());
        let home = real(home);
        let all = if self.has_catalog() { self.apps()? } else { Vec::new() };
        let others = all.into_iter().filter(|other| other.name != app.name);
        let inside = |other: App| real(&other.home?).strip_prefix(&home).map(Path::to_owned).ok();
        Ok(others.filter_map(inside).collect())
    }
}

/// The walk for files that may hold connection strings.
struct Look<'r> {
    root: &'r Root,
    /// Folders that are other apps.
    others: BTreeSet<PathBuf>,
    folders: usize,
    bounded: bool,
}

impl Look<'_> {
    /// The files, those of upper folders first.
    fn files(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        for base in BASES {
            let (mut files, folders) = self.folder(base);
            for folder in folders.iter().filter(|folder| !BASES.contains(&folder.as_str())) {
                files.extend(self.folder(folder).0);
            }
            all.append(&mut files);
        }
        self.bounded |= all.len() > FILES_MAX;
        all.truncate(FILES_MAX);
        all
    }

    /// The files of a folder that count, and its folders, by name. What cannot be read holds nothing that could be used.
    fn folder(&mut self, path: &str) -> (Vec<String>, Vec<String>) {
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        if self.others.contains(Path::new(path)) {
            return (files, folders);
        }
        if self.folders == FOLDERS_MAX {
            self.bounded = true;
            return (files, folders);
        }
        self.folders += 1;
        let fs = self.root.fs();
        let opened = self.root.open_dir(Path::new(path)).ok();
        let entries = opened.as_ref().and_then(|dir| fs.entries(dir.as_fd()).ok()).unwrap_or_default();
        for (name, kind) in entries {
            let Some(name) = name.to_str() else { continue };
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            let is_folder = kind.is_none_or(|kind| kind == EntryKind::Dir);
            if kind.is_none_or(|kind| kind == EntryKind::File) && discover::is_candidate(&path) {
                files.push(path);
            } else if is_folder && discover::is_candidate(&format!("{path}/.env")) {
                folders.push(path);
            }
        }
        files.sort();
        folders.sort();
        (files, folders)
    }
}

/// The content of a file beneath a home, or one byte more than is looked at.
fn read(root: &Root, path: &Path) -> Option<Vec<u8>> {
    let folder = root.open_dir(path.parent()?).ok()?;
    let (file, _) = open_regular(&**root.fs(), folder.as_fd(), path.file_name()?, root.device()).ok()?;
    let mut bytes = vec![0; discover::SIZE_MAX + 1];
    let mut filled = 0;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match root.fs().read_at(file.as_fd(), room, u64::try_from(filled).ok()?).ok()? {
            0 => break,
            n => filled += n,
        }
    }
    bytes.truncate(filled);
    Some(bytes)
}

/// What is to be done with a string, given the connections that exist and what was found before it.
fn state_of(
    (name, endpoint): (&str, &Endpoint),
    home: &Path,
    links: &[Link],
    before: &[FoundConnection],
) -> FoundState {
    if is_content(endpoint, home) {
        return FoundState::Content;
    }
    if let Some(link) = links.iter().find(|l| l.endpoint.as_ref().is_ok_and(|e| same(e, endpoint))) {
        return FoundState::Linked(link.name.clone());
    }
    if endpoint.kind == Kind::SqlServer {
        return FoundState::Unsupported;
    }
    if links.iter().any(|link| link.name == name) {
        return FoundState::Exists;
    }
    let same_as = |found: &&FoundConnection| {
        found.state == FoundState::New
            && connection::parse(found.value.reveal(), found.typed).is_ok_and(|e| same(&e, endpoint))
    };
    match before.iter().find(same_as) {
        Some(found) => FoundState::Linked(found.name.clone()),
        None if before.iter().any(|found| found.name == name) => FoundState::Exists,
        None => FoundState::New,
    }
}

fn same(a: &Endpoint, b: &Endpoint) -> bool {
    (a.kind, &a.place, &a.database) == (b.kind, &b.place, &b.database)
}

/// Whether it is a file in the home.
fn is_content(endpoint: &Endpoint, home: &Path) -> bool {
    let Place::File(file) = &endpoint.place else { return false };
    let real = |path: &Path| path.canonicalize().ok();
    let folder = file.parent().and_then(real);
    file.is_relative() || folder.is_some_and(|folder| real(home).is_some_and(|home| folder.starts_with(home)))
}

/// A name that a connection can have.
fn plain(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::Arc;

    use backstay_tree::fs::Host;

    use super::*;

    fn found(home: &Path, others: &[&str]) -> (Vec<String>, bool) {
        let root = Root::open(Arc::new(Host), home).unwrap();
        let others = others.iter().map(PathBuf::from).collect();
        let mut look = Look { root: &root, others, folders: 0, bounded: false };
        (look.files(), look.bounded)
    }

    #[test]
    fn files_are_looked_for_near_the_top_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        for file in [
            "home/.env",
            "home/config/database.yml",
            "home/blog/wp-config.php",
            "home/other/.env",
            "home/node_modules/.env",
            "home/a/b/.env",
            "home/site/wwwroot/appsettings.json",
            "home/site/wwwroot/api/web.config",
            "home/site/wwwroot/a/b/web.config",
            "outside/.env",
        ] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "DATABASE_URL=postgres://a@b/c").unwrap();
        }
        symlink("../outside", home.join("linked")).unwrap();
        symlink("../outside/.env", home.join("web.config")).unwrap();
        let all = [
            ".env",
            "blog/wp-config.php",
            "config/database.yml",
            "other/.env",
            "site/wwwroot/appsettings.json",
            "site/wwwroot/api/web.config",
        ];
        assert_eq!(found(&home, &[]), (all.map(str::to_owned).to_vec(), false));
        assert!(!found(&home, &["other"]).0.contains(&"other/.env".to_owned()), "another app's");
        let root = Root::open(Arc::new(Host), &home).unwrap();
        for path in ["web.config", "linked/.env", "nothing", "config"] {
            assert_eq!(read(&root, Path::new(path)), None, "{path}");
        }
        assert!(read(&root, Path::new(".env")).unwrap().starts_with(b"DATABASE_URL"));
    }

    #[test]
    fn a_large_file_is_read_no_further_than_it_is_looked_at_and_folders_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".env"), vec![b'#'; discover::SIZE_MAX * 3]).unwrap();
        let root = Root::open(Arc::new(Host), dir.path()).unwrap();
        assert_eq!(read(&root, Path::new(".env")).unwrap().len(), discover::SIZE_MAX + 1);
        for n in 0..=FOLDERS_MAX {
            std::fs::create_dir(dir.path().join(n.to_string())).unwrap();
        }
        assert!(found(dir.path(), &[]).1);
    }

    #[test]
    fn what_is_linked_already_and_what_lies_in_the_home_is_not_linked() {
        let dir = tempfile::tempdir().unwrap();
        let parse = |text: &str| connection::parse(text, ConnectionType::Custom).unwrap();
        let link = Link {
            name: "main".to_owned(),
            kind: ConnectionType::Custom,
            endpoint: Ok(parse("postgres://web:old@db/shop")),
            sticky: false,
            changed: jiff::Timestamp::UNIX_EPOCH,
        };
        let links = [link];
        let state = |name: &str, text: &str| state_of((name, &parse(text)), dir.path(), &links, &[]);
        let inside = format!("sqlite:///{}/a.db", dir.path().display());
        assert_eq!(state("x", &inside), FoundState::Content);
        assert_eq!(state("x", "sqlite:data/a.db"), FoundState::Content);
        assert_eq!(state("x", "sqlite:////var/lib/other/a.db"), FoundState::New);
        assert_eq!(state("x", "sqlserver://sa:p@db/shop"), FoundState::Unsupported);
        assert_eq!(state("x", "postgres://web:new@db/shop"), FoundState::Linked("main".to_owned()));
        assert_eq!(state("main", "postgres://web:new@db/other"), FoundState::Exists);
        assert_eq!(state("x", "postgres://web:new@db/other"), FoundState::New);
    }

    #[test]
    fn names_are_those_that_connections_may_have() {
        assert_eq!(plain("Größe.db-1_x y"), "Gr__e.db-1_x_y");
    }
}
