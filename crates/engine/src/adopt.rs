//! Which app a word on the command line means, and making a folder an app.
//!
//! Invariants: the name of a known app wins over a folder; a folder belongs to one app. A home that is a symbolic
//! link stays one (`current -> releases/42`): it is followed anew at each backup. Backstay's own folders are never an
//! app.

use std::path::{Path, PathBuf};

use backstay_catalog::App;
use backstay_model::{AppName, Code, Error, Result};

use crate::state::Engine;

/// Folder of the homes that Backstay makes, in the state folder.
pub(crate) const SITES: &str = "sites";
/// The name under which snapshots of other programs are listed.
pub const FOREIGN: &str = "foreign";

/// What a backup is to be taken of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub app: App,
    /// Whether the catalog does not know the app (with this home) yet.
    pub new: bool,
}

impl Engine {
    /// All apps.
    pub fn apps(&self) -> Result<Vec<App>> {
        self.catalog()?.apps()
    }

    /// The app of that name, with what to do when there is none.
    pub(crate) fn known_app(&self, name: &str) -> Result<App> {
        let missing = || {
            let state = self.state.display();
            Error::new(Code::AppNotFound, format!("There is no app `{name}` in the state {state}"))
        };
        let name: AppName = name.parse().map_err(|_not_a_name| missing())?;
        match self.catalog()?.app(&name)? {
            Some(app) if app.removed.is_some() => Err(was_removed(&name)),
            found => found.ok_or_else(missing),
        }
    }

    /// The app that `target` names or whose home it is; a folder that no app has becomes a new one.
    pub(crate) fn subject(&self, target: &Path, named: Option<&AppName>) -> Result<Subject> {
        let apps = self.apps()?;
        let by_name = target.to_str().and_then(|t| t.parse::<AppName>().ok());
        if let Some(app) = by_name.and_then(|n| apps.iter().find(|a| a.name == n)) {
            if named.is_some_and(|n| *n != app.name) {
                let message = format!("`{}` is the name of an app; --app names another", app.name);
                return Err(Error::new(Code::Usage, message)
                    .advise(format!("For a folder of that name write ./{}.", app.name)));
            }
            return Ok(Subject { app: app.clone(), new: false });
        }
        let removed = self.catalog()?.removed_apps()?;
        let home = absolute_home(target).map_err(|e| {
            let of_name = |name: AppName| removed.iter().find(|a| a.name == name);
            match target.to_str().and_then(|t| of_name(t.parse().ok()?)) {
                Some(app) => was_removed(&app.name),
                None => e,
            }
        })?;
        self.refuse_own(&home)?;
        choose(&apps, &removed, home, named, self.clock.now())
    }

    /// The same before there is a catalog, without making one.
    pub(crate) fn subject_to_be(&self, target: &Path, named: Option<&AppName>) -> Result<Subject> {
        if self.has_catalog() {
            return self.subject(target, named);
        }
        let home = absolute_home(target)?;
        self.refuse_own(&home)?;
        choose(&[], &[], home, named, self.clock.now())
    }

    /// Whether a folder lies in the one for homes that Backstay makes.
    fn is_site(&self, real: &Path) -> bool {
        let sites = self.state.join(SITES);
        real.strip_prefix(sites.canonicalize().unwrap_or(sites)).is_ok_and(|below| below != Path::new(""))
    }

    /// A home must not be Backstay's own.
    pub(crate) fn refuse_own(&self, home: &Path) -> Result<()> {
        let real = home.canonicalize().unwrap_or_else(|_gone| home.to_owned());
        let secrets = crate::secrets::Secrets::load(&self.state)?;
        for own in self.own_folders(&self.vault_address(secrets.as_ref())?) {
            let own = own.canonicalize().unwrap_or(own);
            if real.starts_with(&own) && !self.is_site(&real) {
                let message = format!("{} is Backstay's own ({})", home.display(), own.display());
                return Err(Error::new(Code::Conflict, message)
                    .advise("Back up the folder of an app. What Backstay itself needs is in the kit: `backstay kit export FILE`."));
            }
        }
        Ok(())
    }
}

/// What is told about an app that was removed.
pub(crate) fn was_removed(name: &AppName) -> Error {
    Error::new(Code::AppNotFound, format!("App `{name}` was removed")).advise(format!(
        "`backstay app restore-deleted {name}` brings it back; `backstay list {name}` shows its points."
    ))
}

/// The app whose home that folder is, also under another name of the folder.
pub(crate) fn app_at<'a>(apps: &'a [App], home: &Path) -> Option<&'a App> {
    let real = |p: &Path| p.canonicalize().unwrap_or_else(|_gone| p.to_owned());
    let same_home = |a: &&App| a.home.as_ref().is_some_and(|h| *h == home || real(h) == real(home));
    apps.iter().find(same_home)
}

/// The folder's absolute path; the last link, if it is one, stays a link.
pub(crate) fn absolute_home(target: &Path) -> Result<PathBuf> {
    let shown = target.display();
    let missing = |e: std::io::Error| {
        let error = match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::new(Code::SourceNotFound, format!("`{shown}` is neither a known app nor a folder"))
                    .advise("Check the path. `backstay list` shows the known apps.")
            }
            _ => Error::new(Code::SourceNotFound, format!("`{shown}` cannot be looked at"))
                .advise("Check the path and the rights of this user."),
        };
        error.because(e)
    };
    let real = target.canonicalize().map_err(missing)?;
    if !real.is_dir() {
        return Err(Error::new(Code::SourceNotFound, format!("`{shown}` is not a folder"))
            .advise("Give the folder that holds it."));
    }
    let is_link = target.symlink_metadata().is_ok_and(|m| m.is_symlink());
    match (is_link, target.parent(), target.file_name()) {
        (true, Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(parent.canonicalize().map_err(missing)?.join(name))
        }
        _ => Ok(real),
    }
}

/// Pure but for looking at which homes are the same folder. A removed app is taken up again by its name, or by its home
/// where no other name is given; it is told by [`App::removed`] then.
fn choose(
    apps: &[App],
    removed: &[App],
    home: PathBuf,
    named: Option<&AppName>,
    now: jiff::Timestamp,
) -> Result<Subject> {
    if let Some(app) = app_at(apps, &home) {
        if let Some(named) = named.filter(|n| **n != app.name) {
            let message = format!("{} belongs to app `{}`, not to `{named}`", home.display(), app.name);
            return Err(Error::new(Code::Conflict, message)
                .advise(format!("Run it with --app {}, or without --app.", app.name)));
        }
        return Ok(Subject { app: app.clone(), new: false });
    }
    let new = |name: AppName| Subject { app: App::new(name, Some(home.clone()), "folder", now), new: true };
    let again = |app: &App| Subject { app: App { home: Some(home.clone()), ..app.clone() }, new: true };
    let back = match named {
        Some(name) => removed.iter().find(|a| a.name == *name),
        None => app_at(removed, &home),
    };
    if let Some(app) = back {
        return Ok(again(app));
    }
    let Some(name) = named else { return Ok(new(free_name(apps, removed, &home))) };
    if name.as_str() == FOREIGN {
        let message = format!("`{FOREIGN}` is kept for the snapshots of other programs");
        return Err(Error::new(Code::InvalidValue, message).advise("Choose another name with --app."));
    }
    match apps.iter().find(|a| a.name == *name) {
        None => Ok(new(name.clone())),
        // Known from the vault, not from this machine; or its folder is gone and it lives on here.
        Some(app) if app.home.as_ref().is_none_or(|h| !h.exists()) => Ok(again(app)),
        Some(app) => {
            let other = app.home.as_deref().unwrap_or(Path::new("")).display();
            Err(Error::new(Code::Conflict, format!("App `{name}` is {other}, not {}", home.display()))
                .advise("Choose another name with --app. A home cannot be changed while the old one exists."))
        }
    }
}

/// A name after the folder that no app has.
fn free_name(apps: &[App], removed: &[App], home: &Path) -> AppName {
    let folder = home.file_name().map_or_else(|| "root".into(), |n| n.to_string_lossy());
    let base = AppName::suggest(&folder);
    let taken = |n: &AppName| n.as_str() == FOREIGN || apps.iter().chain(removed).any(|a| a.name == *n);
    let short: String = base.as_str().chars().take(50).collect();
    let numbered = (2_u32..).map(|n| AppName::suggest(&format!("{}-{n}", short.trim_end_matches('-'))));
    std::iter::once(base).chain(numbered).find(|n| !taken(n)).unwrap_or_else(|| AppName::suggest("app"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn name(text: &str) -> AppName {
        text.parse().unwrap()
    }

    fn app(app_name: &str, home: Option<&Path>) -> App {
        App::new(name(app_name), home.map(Path::to_owned), "folder", Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_folder_is_one_app_and_names_are_made_unique() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (one, two) = (root.join("a/Blog"), root.join("b/blog"));
        std::fs::create_dir_all(&one).unwrap();
        std::fs::create_dir_all(&two).unwrap();
        let apps = [app("blog", Some(&one)), app("bare", None), app("moved", Some(&root.join("gone")))];
        let mut left = app("left", Some(&root.join("c")));
        left.removed = Some(Timestamp::UNIX_EPOCH);
        std::fs::create_dir_all(root.join("c")).unwrap();
        let gone = [left.clone()];
        let pick = |home: &Path, named: Option<&str>| {
            choose(&apps, &gone, home.to_owned(), named.map(name).as_ref(), Timestamp::UNIX_EPOCH)
        };
        assert_eq!(pick(&one, None).unwrap(), Subject { app: apps[0].clone(), new: false });
        assert_eq!(pick(&one, Some("blog")).unwrap().app, apps[0]);
        assert_eq!(pick(&one, Some("other")).unwrap_err().code(), Code::Conflict);
        assert_eq!(pick(&two, None).unwrap().app, app("blog-2", Some(&two)));
        assert_eq!(pick(&two, Some("shop")).unwrap().app, app("shop", Some(&two)));
        assert_eq!(pick(&two, Some("blog")).unwrap_err().code(), Code::Conflict);
        assert_eq!(pick(&two, Some("foreign")).unwrap_err().code(), Code::InvalidValue);
        assert_eq!(pick(&root.join("c"), None).unwrap(), Subject { app: left.clone(), new: true });
        assert_eq!(pick(&root.join("c"), Some("shop")).unwrap().app.removed, None);
        let moved = App { home: Some(two.clone()), ..left };
        assert_eq!(pick(&two, Some("left")).unwrap(), Subject { app: moved, new: true });
        for known in ["bare", "moved"] {
            let it = pick(&two, Some(known)).unwrap();
            assert_eq!((it.app.home.as_deref(), it.new), (Some(two.as_path()), true));
        }
    }

    #[test]
    fn long_names_stay_valid_when_numbered() {
        let long = "x".repeat(80);
        let apps = [app(&"x".repeat(60), None)];
        let free = free_name(&apps, &[], Path::new(&long));
        assert_eq!(free.as_str(), format!("{}-2", "x".repeat(50)));
        assert_eq!(free_name(&[], &[], Path::new("/")).as_str(), "root");
        assert_eq!(
            free_name(&[], &[app("foreign-2", None)], Path::new("/srv/foreign")).as_str(),
            "foreign-3"
        );
    }

    #[test]
    fn a_home_that_is_a_link_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("releases/42")).unwrap();
        std::os::unix::fs::symlink("releases/42", root.join("current")).unwrap();
        assert_eq!(absolute_home(&root.join("current")).unwrap(), root.join("current"));
        assert_eq!(absolute_home(&root.join("releases/../releases/42")).unwrap(), root.join("releases/42"));
        assert_eq!(absolute_home(&root.join("nothing")).unwrap_err().code(), Code::SourceNotFound);
        std::fs::write(root.join("file"), "").unwrap();
        assert_eq!(absolute_home(&root.join("file")).unwrap_err().code(), Code::SourceNotFound);
    }
}
