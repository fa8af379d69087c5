//! New apps on their way: what is noted about a restore to a new app until the catalog knows it.
//!
//! Invariants: the note is durable before the folder gets its name, and goes when the app is known. What the next
//! command finds of a restore that was killed is decided by the folder alone: still under the name it is filled by, it
//! is not complete and is removed; under its own name, it is complete, and the app is made known. Never is a
//! folder taken that the restore did not make: its inode is in the note.

use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use backstay_catalog::App;
use backstay_model::{AppName, Code, Error, JobId, JobState, Result};
use backstay_tree::path::{escape, unescape};
use serde::{Deserialize, Serialize};

use super::resume::Resumed;
use super::target::{Target, remove};
use crate::private;
use crate::state::Engine;

/// The folder of the notes, in the state folder.
const FOLDER: &str = "arriving";

#[derive(Serialize, Deserialize)]
struct Note {
    app: AppName,
    /// The folder's name in the end.
    directory: String,
    /// Its name while it is filled.
    fill: String,
    inode: u64,
    /// Whether it gets a MySQL of its own.
    #[serde(default)]
    in_app_mysql: bool,
}

/// Notes that an app is being made. A folder that was there before the restore is not noted: it is nobody's to take.
pub(super) fn begin(
    engine: &Engine,
    app: &AppName,
    target: &Target,
    in_app_mysql: bool,
    job: JobId,
) -> Result<()> {
    if target.in_place() {
        return Ok(());
    }
    let inode = inode(&target.fill)
        .ok_or_else(|| Error::new(Code::Internal, "The folder of a new app is gone already"))?;
    let text = |path: &Path| escape(path.as_os_str());
    let (directory, fill) = (text(&target.directory), text(&target.fill));
    let note = Note { app: app.clone(), directory, fill, inode, in_app_mysql };
    let bytes = serde_json::to_vec(&note)
        .map_err(|e| Error::new(Code::Internal, "A note cannot be written").because(e))?;
    let folder = engine.state.join(FOLDER);
    private::make_folder(&*engine.fs, &folder)?;
    private::replace(&*engine.fs, &folder, &name(job), &bytes)
}

/// The jobs whose new apps have not arrived yet.
pub(super) fn pending(engine: &Engine) -> Vec<JobId> {
    let entries = std::fs::read_dir(engine.state.join(FOLDER)).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.strip_suffix(".json")?.parse().ok()).collect()
}

/// The app is known, or nothing of it is left.
pub(super) fn end(engine: &Engine, job: JobId) {
    let removed = engine.fs.open_root(&engine.state.join(FOLDER));
    // A note that stays tells the next command what is so already.
    removed.and_then(|dir| engine.fs.unlink(dir.as_fd(), name(job).as_ref())).unwrap_or_default();
}

/// Makes the app of a folder known; one that is known and has no home on this machine gets it.
pub(super) fn make_known(
    engine: &Engine,
    name: &AppName,
    directory: PathBuf,
    in_app_mysql: bool,
) -> Result<()> {
    let catalog = engine.catalog()?;
    match catalog.app(name)? {
        Some(known) if !is_settled(&known) => {
            if in_app_mysql {
                has_in_app(engine, name)?;
            }
            catalog.move_app(&App { home: Some(directory), ..known })?;
        }
        _ => {
            let mut app = app(engine, name, directory);
            app.config.in_app_mysql = in_app_mysql;
            catalog.add_app(&app)?;
        }
    }
    if in_app_mysql { engine.settle_in_app(name) } else { Ok(()) }
}

fn has_in_app(engine: &Engine, name: &AppName) -> Result<()> {
    let changed = engine.catalog()?.change_app_config(name, &mut |config| {
        config.in_app_mysql = true;
        Ok(())
    });
    changed.map(drop)
}

/// Whether an app has its home, or is not to get one.
fn is_settled(app: &App) -> bool {
    app.home.is_some() || app.removed.is_some()
}

/// The app of a folder, static until something else is set about it.
fn app(engine: &Engine, name: &AppName, directory: PathBuf) -> App {
    App {
        name: name.clone(),
        home: Some(directory),
        kind: "folder".to_owned(),
        created: engine.clock.now(),
        config: backstay_model::app::AppConfig::default(),
        removed: None,
    }
}

/// Finishes or clears away what killed restores to new apps left.
pub(super) fn resume(engine: &Engine) -> Result<Vec<Resumed>> {
    let folder = engine.state.join(FOLDER);
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some((job, is_half)) = private::note_of(&entry.file_name()) else { continue };
        if engine.catalog()?.job(&job)?.is_some_and(|j| j.state == JobState::Running) {
            continue;
        }
        if is_half {
            // A note that was just being written: its restore had only made the empty folder.
            remove(engine, &entry.path())?;
            continue;
        }
        let Some(bytes) = private::read(&entry.path())? else { continue };
        // One that cannot be read was made by nobody we know.
        let Ok(note) = serde_json::from_slice::<Note>(&bytes) else { continue };
        let (Some(directory), Some(fill)) = (unescape(&note.directory), unescape(&note.fill)) else {
            continue;
        };
        let what = finish(engine, &note, job, directory.into(), fill.into());
        let app = Some(note.app.clone());
        match what {
            Ok(what) => {
                end(engine, job);
                found.extend(what.map(|what| Resumed { job, app, what, stuck: false }));
            }
            Err(e) => {
                let what =
                    format!("What a restore to the new app `{}` left cannot be cleared away: {e}", note.app);
                found.push(Resumed { job, app, what, stuck: true });
            }
        }
    }
    Ok(found)
}

fn finish(
    engine: &Engine,
    note: &Note,
    job: JobId,
    directory: PathBuf,
    fill: PathBuf,
) -> Result<Option<String>> {
    if inode(&fill) == Some(note.inode) {
        engine.forget_in_app(&note.app, job)?;
        engine.end_exchange(job)?;
        remove(engine, &fill)?;
        let what = format!(
            "A restore to the new app `{}` was stopped before it was complete; it is removed",
            note.app
        );
        return Ok(Some(what));
    }
    let catalog = engine.catalog()?;
    let known = catalog.app(&note.app)?.as_ref().is_some_and(is_settled);
    if inode(&directory) != Some(note.inode) {
        return Ok(None);
    }
    if !known {
        make_known(engine, &note.app, directory, note.in_app_mysql)?;
    }
    if note.in_app_mysql {
        engine.settle_in_app(&note.app)?;
    }
    engine.exchange_to(job, backstay_database::Side::New)?;
    if known {
        return Ok(None);
    }
    Ok(Some(format!("A restore to the new app `{}` that was stopped is finished now", note.app)))
}

fn name(job: JobId) -> String {
    format!("{job}.json")
}

fn inode(path: &Path) -> Option<u64> {
    path.symlink_metadata().ok().map(|meta| meta.ino())
}
