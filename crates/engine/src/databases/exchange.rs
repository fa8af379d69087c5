//! What a restore does at the database servers, and with the settings: noted, staged, exchanged, cleared away.
//!
//! Invariants:
//! * The note of a job is on disk before anything is made at a server, and goes only after everything but the side in use is gone
//!   there. It holds no secret in clear.
//! * Which side is wanted is what the job's journal says ([`backstay_tree::apply`]); without one it is the old.
//! * Each step may be repeated. A server that cannot be reached leaves the note, and a later command goes on.
//!
//! Crash: [`Engine::exchange_to`] for jobs whose journal is found settled, [`resume`] for all others. Lock: the app's exclusive job,
//! or that of the journal.

use std::path::PathBuf;

use backstay_catalog::App;
use backstay_database::{ConnectionType, Database, DumpRecord, Endpoint, Exchange, Kind, Options, Side};
use backstay_model::{AppName, Cancel, Code, Error, JobId, JobState, Phase, Progress as _, Result, Secret};
use backstay_vault::{Id, Reader};
use serde::{Deserialize, Serialize};

use super::linked::options;
use crate::in_app::Hold;
use crate::job::Running;
use crate::manifest::{DATABASES, SavedDatabase};
use crate::private;
use crate::settings::SettingsSnapshot;
use crate::state::Engine;

/// The folder of the notes, in the state folder.
const FOLDER: &str = "exchanges";
const VERSION: u32 = 1;

/// A database of a point and where it is to be restored.
pub(crate) struct Chosen {
    pub saved: SavedDatabase,
    pub record: DumpRecord,
    pub kind: ConnectionType,
    /// The connection string.
    pub value: Secret,
    pub endpoint: Endpoint,
    /// Whether it goes to a place of its own, where nothing is replaced.
    pub elsewhere: bool,
    /// Whether it goes to the app's own MySQL; it has no connection string then.
    pub in_app: bool,
    /// That keeps running as long as this lives; none where it is yet to be made, for a new app.
    pub held: Option<Hold>,
}

/// The settings of both sides.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct BothSettings {
    pub old: SettingsSnapshot,
    pub new: SettingsSnapshot,
}

/// What a job exchanges beside files.
#[derive(Serialize, Deserialize)]
struct Note {
    version: u32,
    app: AppName,
    databases: Vec<Noted>,
    settings: Option<BothSettings>,
    /// Whether the other side stays although the job is over: the app was not well.
    kept: bool,
}

/// A database that is exchanged.
#[derive(Serialize, Deserialize)]
struct Noted {
    connection: String,
    kind: ConnectionType,
    /// Its connection string, sealed; empty for the app's own MySQL.
    sealed: String,
    #[serde(default)]
    in_app: bool,
    /// The type under which the connection string becomes the app's own with the new side: that of a new app, whose settings
    /// name the database of the app that it is a copy of.
    #[serde(default)]
    adopt: Option<ConnectionType>,
    exchange: Exchange,
}

/// A noted database, and what keeps its server running meanwhile.
struct Open {
    database: Box<dyn Database>,
    _held: Option<Hold>,
}

impl Chosen {
    pub fn open(&self, app: &App, cancel: &Cancel) -> Result<Box<dyn Database>> {
        backstay_database::open(&self.endpoint, options(app, cancel))
    }
}

/// What a job's databases are called at the servers.
pub(crate) fn tag(job: JobId) -> String {
    job.to_string().chars().take(8).collect()
}

fn record_name(job: JobId, connection: &str) -> String {
    format!("exchange/{job}/{connection}")
}

fn file(job: JobId) -> String {
    format!("{job}.json")
}

impl Engine {
    fn exchanges_folder(&self) -> PathBuf {
        self.state.join(FOLDER)
    }

    /// Notes what a job is about to exchange. Nothing to exchange, nothing noted. The connections of a new app come to lead to the
    /// places of its own that its databases go to.
    pub(crate) fn begin_exchange(
        &self,
        job: JobId,
        (app, is_new): (&App, bool),
        chosen: &[Chosen],
        settings: Option<BothSettings>,
    ) -> Result<()> {
        if chosen.is_empty() && settings.is_none() {
            return Ok(());
        }
        let mut databases = Vec::new();
        for chosen in chosen {
            let connection = chosen.saved.connection.clone();
            let exchange = chosen.open(app, &Cancel::new())?.exchange_names(&tag(job));
            let in_app = chosen.in_app;
            let sealed = match in_app {
                true => String::new(),
                false => self.seal_value(&record_name(job, &connection), &chosen.value)?,
            };
            let adopt = (is_new && chosen.elsewhere && !in_app).then(|| own_type(chosen.endpoint.kind));
            databases.push(Noted { connection, kind: chosen.kind, sealed, in_app, adopt, exchange });
        }
        let note = Note { version: VERSION, app: app.name.clone(), databases, settings, kept: false };
        private::make_folder(&*self.fs, &self.exchanges_folder())?;
        self.write_exchange(job, &note)
    }

    fn write_exchange(&self, job: JobId, note: &Note) -> Result<()> {
        let bytes = serde_json::to_vec(note)
            .map_err(|e| Error::new(Code::Internal, "A note cannot be written").because(e))?;
        private::replace(&*self.fs, &self.exchanges_folder(), &file(job), &bytes)
    }

    fn read_exchange(&self, job: JobId) -> Result<Option<Note>> {
        let path = self.exchanges_folder().join(file(job));
        let Some(bytes) = private::read(&path)? else { return Ok(None) };
        let damaged = |e: serde_json::Error| {
            let message = format!("{} cannot be understood", path.display());
            Error::new(Code::StateDamaged, message).because(e).advise(
                "It says which databases a restore was about to exchange. Look at the servers for databases with `_bs_` in \
                 their names before you remove it.",
            )
        };
        let note: Note = serde_json::from_slice(&bytes).map_err(damaged)?;
        match note.version {
            VERSION => Ok(Some(note)),
            newer => Err(Error::new(
                Code::StateUnsupported,
                format!("{} has version {newer}, newest known is {VERSION}", path.display()),
            )),
        }
    }

    /// Fills new databases beside those in use. The words are what a person should know.
    pub(crate) fn stage_databases(
        &self,
        job: &Running<'_>,
        app: &App,
        chosen: &[Chosen],
        (reader, root): (&Reader, &Id),
    ) -> Result<Vec<String>> {
        let mut told = Vec::new();
        if !chosen.is_empty() {
            job.phase(Phase::Loading);
        }
        for chosen in chosen {
            job.still_ours()?;
            let path = PathBuf::from(DATABASES).join(&chosen.saved.file);
            let node = reader.find(root, &path)?;
            let mut database = chosen.open(app, job.cancel())?;
            let exchange = database.exchange_names(&tag(job.id()));
            job.log(format!("{}: filling `{}`", chosen.saved.connection, exchange.staged));
            let mut dump = reader.stream(&node)?;
            let words = database.stage(&mut dump, &chosen.record, &exchange).map_err(|e| {
                match job.cancel().check() {
                    Err(cancelled) => cancelled,
                    Ok(()) => {
                        e.context(format!("The database of `{}` cannot be restored", chosen.saved.connection))
                    }
                }
            })?;
            told.extend(words.into_iter().map(|w| format!("{}: {w}", chosen.saved.connection)));
        }
        Ok(told)
    }

    /// Brings databases and settings of a job to a side. Nothing noted is no error.
    pub(crate) fn exchange_to(&self, job: JobId, side: Side) -> Result<()> {
        let Some(note) = self.read_exchange(job)? else { return Ok(()) };
        for noted in &note.databases {
            let mut open = self.open_noted(job, &note.app, noted).map_err(|e| of(noted, e))?;
            open.database.exchange(&noted.exchange, side).map_err(|e| of(noted, e))?;
        }
        match (&note.settings, side) {
            (Some(both), Side::Old) => self.put_settings_snapshot(&note.app, &both.old),
            (Some(both), Side::New) => self.put_settings_snapshot(&note.app, &both.new),
            (None, _) => Ok(()),
        }?;
        match side {
            Side::Old => Ok(()),
            Side::New => self.adopt_places(job, &note),
        }
    }

    /// The connections of a new app lead to its own databases, whatever the settings that came along say.
    fn adopt_places(&self, job: JobId, note: &Note) -> Result<()> {
        for noted in &note.databases {
            let Some(kind) = noted.adopt else { continue };
            let value = self.open_value(&record_name(job, &noted.connection), &noted.sealed)?;
            self.set_connection(&note.app, &noted.connection, &value, Some(kind), None)?;
        }
        Ok(())
    }

    /// Removes what a job has exchanged and is not in use, and its note.
    pub(crate) fn end_exchange(&self, job: JobId) -> Result<()> {
        let Some(note) = self.read_exchange(job)? else { return Ok(()) };
        for noted in &note.databases {
            if noted.in_app && !self.in_app(&note.app, None).is_ok_and(|server| server.exists()) {
                // It was to be made for a new app and is gone with all that was in it, or was lost otherwise.
                continue;
            }
            let mut open = self.open_noted(job, &note.app, noted).map_err(|e| of(noted, e))?;
            open.database.discard(&noted.exchange).map_err(|e| of(noted, e))?;
        }
        let path = self.exchanges_folder().join(file(job));
        private::remove(&*self.fs, &self.exchanges_folder(), &file(job))
            .map_err(|e| e.context(format!("{} stays", path.display())))
    }

    /// Keeps both sides for an undo.
    pub(crate) fn keep_exchange(&self, job: JobId) -> Result<()> {
        match self.read_exchange(job)? {
            Some(note) => self.write_exchange(job, &Note { kept: true, ..note }),
            None => Ok(()),
        }
    }

    /// Whether a job that is over can be taken back by exchanging again.
    pub(crate) fn has_exchange(&self, job: JobId) -> bool {
        matches!(self.read_exchange(job), Ok(Some(_)))
    }

    fn open_noted(&self, job: JobId, app: &AppName, noted: &Noted) -> Result<Open> {
        if noted.in_app {
            let held = self.hold_in_app(app, &Cancel::new())?;
            let database = backstay_database::open(&held.endpoint()?, Options::default())?;
            return Ok(Open { database, _held: Some(held) });
        }
        let value = self.open_value(&record_name(job, &noted.connection), &noted.sealed)?;
        let endpoint = backstay_database::connection::parse(value.reveal(), noted.kind)?;
        let database = backstay_database::open(&endpoint, Options::default())?;
        Ok(Open { database, _held: None })
    }
}

/// The type under which a connection to such a database is kept.
fn own_type(kind: Kind) -> ConnectionType {
    match kind {
        Kind::PostgreSql => ConnectionType::PostgreSql,
        Kind::MySql => ConnectionType::MySql,
        Kind::SqlServer => ConnectionType::SqlServer,
        Kind::Sqlite => ConnectionType::Custom,
    }
}

fn of(noted: &Noted, e: Error) -> Error {
    e.context(format!("The database of `{}`", noted.connection))
}

/// Clears away what jobs that were killed have left at servers: those without a journal, and those whose journal was
/// closed. `is_open` tells of jobs that are not finished. Gives what could not be done, in sentences.
pub(crate) fn resume(
    engine: &Engine,
    is_open: &dyn Fn(&JobId) -> bool,
) -> Result<Vec<(JobId, AppName, Error)>> {
    let Ok(entries) = std::fs::read_dir(engine.exchanges_folder()) else { return Ok(Vec::new()) };
    let mut failed = Vec::new();
    for entry in entries.flatten() {
        let Some((job, is_half)) = private::note_of(&entry.file_name()) else { continue };
        let runs = engine.catalog()?.job(&job)?.is_some_and(|j| j.state == JobState::Running);
        if is_half && !runs {
            // What it would have said has not begun, or is said by the note that stands.
            std::fs::remove_file(entry.path()).unwrap_or_default();
            continue;
        }
        if is_open(&job) {
            continue;
        }
        let note = match engine.read_exchange(job) {
            Ok(Some(note)) if !note.kept && !runs => note,
            _ => continue,
        };
        if let Err(e) = engine.end_exchange(job) {
            failed.push((job, note.app, e));
        }
    }
    Ok(failed)
}
