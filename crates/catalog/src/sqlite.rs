//! The state in one SQLite file.
//!
//! Invariants: write-ahead log; every change is one `BEGIN IMMEDIATE` transaction, so writers of several processes
//! queue up (up to [`BUSY`]) and never deadlock. `synchronous=NORMAL`: a kill loses nothing, a power loss at most
//! the last records, never the consistency (the vault holds what matters). One connection per process behind a
//! mutex that is held for one transaction only.

mod apps;
mod custom;
mod open;
mod rows;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstay_model::app::AppConfig;
use backstay_model::{AppName, Code, CustomBackup, Error, Job, JobId, JobState, Result};
use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection as _, Row as _};
use tokio::runtime::Runtime;

use self::rows::{JobRow, read_job, text};
use crate::lease::{Present, over};
use crate::{
    App, Catalog, Clock, Container, CustomChanges, End, LEASE, LogLine, NewJob, Owner, PointChanges,
    PointRecord, SealedRecord, SettingKind, SettingRecord, Work,
};

/// How long a writer waits for another one.
const BUSY: Duration = Duration::from_secs(20);
/// Ended jobs that are kept.
const KEEP_JOBS: i64 = 2_000;
/// Log lines that are kept of one job.
const KEEP_LINES: i64 = 10_000;

/// The catalog in a SQLite file.
pub struct Sqlite {
    path: PathBuf,
    owner: Owner,
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
}

struct Inner {
    runtime: Runtime,
    connection: SqliteConnection,
}

/// What ends a transaction early: the database, or an answer for the caller.
enum Stop {
    Database(sqlx::Error),
    Told(Error),
}

impl From<sqlx::Error> for Stop {
    fn from(e: sqlx::Error) -> Self {
        Stop::Database(e)
    }
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Stop::Told(e)
    }
}

type Step<T> = std::result::Result<T, Stop>;

impl Sqlite {
    /// Opens the file, which is made (mode 0600) when it does not exist.
    ///
    /// `StateUnsupported` when a newer version wrote it, `StateDamaged` when it is not readable as a database.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::open_as(path, clock, Owner::current())
    }

    /// The same in the name of another process, for tests of what happens to dead ones.
    pub(crate) fn open_as(path: &Path, clock: Arc<dyn Clock>, owner: Owner) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::new(Code::System, "Cannot start the runtime of the state").because(e))?;
        let connection = runtime.block_on(open::connect(path))?;
        Ok(Sqlite { path: path.to_owned(), owner, clock, inner: Mutex::new(Inner { runtime, connection }) })
    }

    /// Closes the file and waits until that is done. Dropping does the same in the background; a process that ends
    /// without either loses nothing.
    pub fn close(self) -> Result<()> {
        let Inner { runtime, connection } = self.inner.into_inner().unwrap_or_else(PoisonError::into_inner);
        runtime.block_on(connection.close()).map_err(|e| open::explain(&self.path, e))
    }

    /// Reads, without a transaction of its own.
    fn read<T>(&self, work: impl AsyncFnOnce(&mut SqliteConnection) -> Step<T>) -> Result<T> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { runtime, connection } = &mut *inner;
        runtime.block_on(work(connection)).map_err(|stop| self.told(stop))
    }

    /// Does `work` in one transaction, which is rolled back when it fails.
    fn write<T>(&self, work: impl AsyncFnOnce(&mut SqliteConnection) -> Step<T>) -> Result<T> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { runtime, connection } = &mut *inner;
        let done = runtime.block_on(async {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            let value = work(&mut transaction).await?;
            transaction.commit().await?;
            Ok(value)
        });
        done.map_err(|stop| self.told(stop))
    }

    fn told(&self, stop: Stop) -> Error {
        match stop {
            Stop::Told(e) => e,
            Stop::Database(e) => open::explain(&self.path, e),
        }
    }

    fn present(&self) -> Present<'_> {
        Present { owner: &self.owner, now: self.clock.now(), uptime: self.clock.uptime() }
    }

    /// Wall clock and milliseconds since boot at which a lease taken now ends.
    fn lease_end(&self) -> (Option<String>, i64) {
        let until = self.clock.now().saturating_add(LEASE).ok().map(text);
        let uptime = (self.clock.uptime() + LEASE).as_millis();
        (until, i64::try_from(uptime).unwrap_or(i64::MAX))
    }

    async fn expire(&self, db: &mut SqliteConnection) -> Step<Vec<Job>> {
        let rows = sqlx::query("SELECT * FROM jobs WHERE state IN ('running', 'queued')")
            .fetch_all(&mut *db)
            .await?;
        let mut ended = Vec::new();
        for row in &rows {
            let JobRow { mut job, lease } = read_job(row)?;
            let Some(why) = over(&lease, &self.present()) else { continue };
            job.state = JobState::Failed;
            job.ended = Some(self.clock.now());
            job.message = Some(format!("Interrupted: {why}"));
            job.code = Some(Code::LeaseLost.as_str().to_owned());
            job.lease_until = None;
            sqlx::query(
                "UPDATE jobs SET state = 'failed', ended = ?, message = ?, code = ?, lease_until = NULL WHERE id = ?",
            )
            .bind(job.ended.map(text))
            .bind(&job.message)
            .bind(&job.code)
            .bind(job.id.to_string())
            .execute(&mut *db)
            .await?;
            ended.push(job);
        }
        Ok(ended)
    }

    async fn next_token(db: &mut SqliteConnection) -> Step<i64> {
        let token: i64 = sqlx::query("UPDATE fence SET token = token + 1 WHERE one = 1 RETURNING token")
            .fetch_one(&mut *db)
            .await?
            .try_get(0)?;
        if token % 100 == 0 {
            sqlx::query(
                "DELETE FROM jobs WHERE state NOT IN ('running', 'queued')
                 AND id NOT IN (SELECT id FROM jobs ORDER BY created DESC LIMIT ?)",
            )
            .bind(KEEP_JOBS)
            .execute(db)
            .await?;
        }
        Ok(token)
    }

    async fn store_work(db: &mut SqliteConnection, id: &JobId, work: &Work) -> Step<()> {
        sqlx::query("UPDATE jobs SET steps = ?, progress = ? WHERE id = ?")
            .bind(rows::to_json(&work.steps)?)
            .bind(rows::to_json(&work.progress)?)
            .bind(id.to_string())
            .execute(&mut *db)
            .await?;
        if work.log.is_empty() {
            return Ok(());
        }
        let next: i64 = sqlx::query("SELECT coalesce(max(seq), 0) + 1 FROM job_log WHERE job = ?")
            .bind(id.to_string())
            .fetch_one(&mut *db)
            .await?
            .try_get(0)?;
        for (seq, line) in (next..=KEEP_LINES).zip(&work.log) {
            sqlx::query("INSERT INTO job_log (job, seq, time, text) VALUES (?, ?, ?, ?)")
                .bind(id.to_string())
                .bind(seq)
                .bind(text(line.time))
                .bind(&line.text)
                .execute(&mut *db)
                .await?;
        }
        Ok(())
    }

    /// Whether a stop was asked for, after checking that the job is ours.
    async fn ours(db: &mut SqliteConnection, id: &JobId, token: i64) -> Step<bool> {
        let row =
            sqlx::query("SELECT cancel_requested FROM jobs WHERE id = ? AND token = ? AND state = 'running'")
                .bind(id.to_string())
                .bind(token)
                .fetch_optional(&mut *db)
                .await?;
        match row {
            Some(row) => Ok(row.try_get::<i64, _>(0)? != 0),
            None => {
                Err(Error::new(Code::LeaseLost, format!("The lease of job {} is gone", id.short())).into())
            }
        }
    }

    async fn job_row(db: &mut SqliteConnection, id: &JobId) -> Step<Option<Job>> {
        let row =
            sqlx::query("SELECT * FROM jobs WHERE id = ?").bind(id.to_string()).fetch_optional(db).await?;
        row.map(|row| Ok(read_job(&row)?.job)).transpose()
    }

    async fn busy(db: &mut SqliteConnection, app: &str) -> Step<Error> {
        let row = sqlx::query("SELECT * FROM jobs WHERE app = ? AND state = 'running' AND exclusive = 1")
            .bind(app)
            .fetch_one(db)
            .await?;
        let job = read_job(&row)?.job;
        let kind = rows::word(&job.kind)?;
        Ok(Error::new(Code::AppBusy, format!("A {kind} of app `{app}` is running (job {})", job.id.short())))
    }
}

impl Catalog for Sqlite {
    fn location(&self) -> String {
        self.path.display().to_string()
    }

    fn apps(&self) -> Result<Vec<App>> {
        self.read(async |db| apps::list(db, "removed IS NULL").await)
    }

    fn removed_apps(&self) -> Result<Vec<App>> {
        self.read(async |db| apps::list(db, "removed IS NOT NULL").await)
    }

    fn app(&self, name: &AppName) -> Result<Option<App>> {
        self.read(async |db| apps::get(db, name).await)
    }

    fn add_app(&self, app: &App) -> Result<()> {
        self.write(async |db| apps::add(db, app).await)
    }

    fn change_app_config(
        &self,
        name: &AppName,
        change: &mut dyn FnMut(&mut AppConfig) -> Result<()>,
    ) -> Result<App> {
        self.write(async |db| apps::change_config(db, name, change).await)
    }

    fn remove_app(&self, name: &AppName) -> Result<App> {
        self.write(async |db| apps::remove(db, name, self.clock.now()).await)
    }

    fn revive_app(&self, name: &AppName) -> Result<App> {
        self.write(async |db| apps::revive(db, name).await)
    }

    fn forget_removed(&self, limit: Timestamp) -> Result<Vec<AppName>> {
        self.write(async |db| apps::forget(db, limit).await)
    }

    fn move_app(&self, app: &App) -> Result<()> {
        self.write(async |db| apps::set_home(db, app).await)
    }

    fn points(&self, vault: &str) -> Result<Vec<PointRecord>> {
        self.read(async |db| {
            let rows = sqlx::query("SELECT record FROM points WHERE vault = ? ORDER BY time DESC, id")
                .bind(vault)
                .fetch_all(db)
                .await?;
            // A record that cannot be read is as good as none: it is read again from the vault.
            Ok(rows
                .iter()
                .filter_map(|row| serde_json::from_str(row.try_get::<&str, _>(0).ok()?).ok())
                .collect())
        })
    }

    fn change_points(&self, vault: &str, changes: &PointChanges, apps: &[App]) -> Result<()> {
        self.write(async |db| {
            for snapshot in &changes.remove {
                sqlx::query("DELETE FROM points WHERE vault = ? AND snapshot = ?")
                    .bind(vault)
                    .bind(snapshot)
                    .execute(&mut *db)
                    .await?;
            }
            for record in &changes.add {
                let point = &record.point;
                sqlx::query(
                    "INSERT INTO points (vault, snapshot, id, app, time, record) VALUES (?, ?, ?, ?, ?, ?)
                     ON CONFLICT (vault, snapshot) DO UPDATE SET record = excluded.record",
                )
                .bind(vault)
                .bind(&point.snapshot)
                .bind(point.id.to_string())
                .bind(point.app.as_str())
                .bind(text(point.time))
                .bind(rows::to_json(record)?)
                .execute(&mut *db)
                .await?;
            }
            for app in apps {
                if apps::insert(db, app).await? == 0 {
                    // The home belongs to another app of this machine: only the name is taken on.
                    apps::insert(db, &App { home: None, ..app.clone() }).await?;
                }
            }
            Ok(())
        })
    }

    fn containers(&self) -> Result<Vec<Container>> {
        self.read(async |db| custom::containers(db).await)
    }

    fn container(&self, name: &str) -> Result<Option<Container>> {
        self.read(async |db| custom::container(db, name).await)
    }

    fn put_container(&self, container: &Container, replace: bool) -> Result<()> {
        self.write(async |db| custom::put_container(db, container, replace).await)
    }

    fn remove_container(&self, name: &str) -> Result<Container> {
        self.write(async |db| custom::remove_container(db, name).await)
    }

    fn custom_backups(&self, app: Option<&AppName>) -> Result<Vec<CustomBackup>> {
        self.read(async |db| custom::backups(db, app).await)
    }

    fn change_custom_backups(&self, changes: &CustomChanges) -> Result<()> {
        self.write(async |db| custom::change_backups(db, changes).await)
    }

    fn settings(&self, app: &AppName, slot: &str) -> Result<Vec<SettingRecord>> {
        self.read(async |db| settings::list(db, app, slot).await)
    }

    fn set_setting(&self, app: &AppName, slot: &str, setting: &SettingRecord) -> Result<()> {
        self.write(async |db| settings::set(db, app, slot, setting).await)
    }

    fn delete_setting(
        &self,
        app: &AppName,
        slot: &str,
        kind: SettingKind,
        name: &str,
    ) -> Result<SettingRecord> {
        self.write(async |db| settings::delete(db, app, slot, kind, name).await)
    }

    fn put_settings(
        &self,
        app: &AppName,
        slot: &str,
        new: &[SettingRecord],
        keep_sticky: bool,
    ) -> Result<()> {
        self.write(async |db| settings::put(db, app, slot, new, keep_sticky).await)
    }

    fn reseal(&self, change: &mut dyn FnMut(&SealedRecord, &str) -> Result<Option<String>>) -> Result<u64> {
        self.write(async |db| settings::reseal(db, change).await)
    }

    fn begin_job(&self, new: &NewJob) -> Result<Job> {
        self.write(async |db| {
            self.expire(db).await?;
            let token = Self::next_token(db).await?;
            let (until, uptime) = self.lease_end();
            let now = text(self.clock.now());
            let done = sqlx::query(
                "INSERT INTO jobs (id, kind, app, exclusive, state, created, started, owner, token, lease_until,
                                   lease_uptime_ms, automatic, steps, progress)
                 VALUES (?, ?, ?, ?, 'running', ?, ?, ?, ?, ?, ?, ?, '[]', ?)",
            )
            .bind(new.id.to_string())
            .bind(rows::word(&new.kind)?)
            .bind(new.app.as_ref().map(|a| a.as_str()))
            .bind(i64::from(new.exclusive))
            .bind(&now)
            .bind(&now)
            .bind(self.owner.to_string())
            .bind(token)
            .bind(until)
            .bind(uptime)
            .bind(i64::from(new.automatic))
            .bind(rows::to_json(&backstay_model::Counts::default())?)
            .execute(&mut *db)
            .await;
            match (done, &new.app) {
                (Err(e), Some(app)) if e.as_database_error().is_some_and(|e| e.is_unique_violation()) => {
                    Err(Self::busy(db, app.as_str()).await?.into())
                }
                (Err(e), _) => Err(e.into()),
                (Ok(_), _) => match Self::job_row(db, &new.id).await? {
                    Some(job) => Ok(job),
                    None => Err(Error::new(Code::Internal, "The job just written is not there").into()),
                },
            }
        })
    }

    fn renew_job(&self, id: &JobId, token: i64, work: &Work) -> Result<bool> {
        self.write(async |db| {
            let cancelled = Self::ours(db, id, token).await?;
            let (until, uptime) = self.lease_end();
            sqlx::query("UPDATE jobs SET lease_until = ?, lease_uptime_ms = ? WHERE id = ?")
                .bind(until)
                .bind(uptime)
                .bind(id.to_string())
                .execute(&mut *db)
                .await?;
            Self::store_work(db, id, work).await?;
            Ok(cancelled)
        })
    }

    fn watch_job(&self, id: &JobId, token: i64) -> Result<bool> {
        self.read(async |db| Self::ours(db, id, token).await)
    }

    fn end_job(&self, id: &JobId, token: i64, work: &Work, end: &End) -> Result<()> {
        self.write(async |db| {
            Self::ours(db, id, token).await?;
            Self::store_work(db, id, work).await?;
            sqlx::query(
                "UPDATE jobs SET state = ?, ended = ?, message = ?, code = ?, lease_until = NULL,
                 lease_uptime_ms = NULL WHERE id = ?",
            )
            .bind(rows::word(&end.state)?)
            .bind(text(self.clock.now()))
            .bind(&end.message)
            .bind(&end.code)
            .bind(id.to_string())
            .execute(&mut *db)
            .await?;
            Ok(())
        })
    }

    fn expire_jobs(&self) -> Result<Vec<Job>> {
        // Reading first: in nearly all cases there is nothing to end, and readers wait for nobody.
        let open = self.read(async |db| {
            let row = sqlx::query("SELECT count(*) FROM jobs WHERE state IN ('running', 'queued')");
            Ok(row.fetch_one(db).await?.try_get::<i64, _>(0)?)
        })?;
        if open == 0 {
            return Ok(Vec::new());
        }
        self.write(async |db| self.expire(db).await)
    }

    fn jobs(&self, limit: u32) -> Result<Vec<Job>> {
        self.read(async |db| {
            let rows = sqlx::query("SELECT * FROM jobs ORDER BY created DESC, token DESC LIMIT ?")
                .bind(i64::from(limit))
                .fetch_all(db)
                .await?;
            rows.iter().map(|row| Ok(read_job(row)?.job)).collect()
        })
    }

    fn job(&self, id: &JobId) -> Result<Option<Job>> {
        self.read(async |db| Self::job_row(db, id).await)
    }

    fn exclusive_job(&self, app: &AppName) -> Result<Option<Job>> {
        self.expire_jobs()?;
        self.read(async |db| {
            let query = "SELECT * FROM jobs WHERE app = ? AND state = 'running' AND exclusive = 1";
            let row = sqlx::query(query).bind(app.as_str()).fetch_optional(db).await?;
            row.map(|row| Ok(read_job(&row)?.job)).transpose()
        })
    }

    fn cancel_job(&self, id: &JobId) -> Result<Job> {
        self.write(async |db| {
            sqlx::query(
                "UPDATE jobs SET cancel_requested = 1
                 WHERE id = ? AND state IN ('running', 'queued') AND automatic = 0",
            )
            .bind(id.to_string())
            .execute(&mut *db)
            .await?;
            let gone = || Error::new(Code::JobNotFound, format!("There is no job {}", id.short()));
            let job = Self::job_row(db, id).await?.ok_or_else(gone)?;
            if job.automatic && matches!(job.state, JobState::Running | JobState::Queued) {
                let message = format!("Job {} belongs to the automatic points", id.short());
                return Err(Error::new(Code::AutomaticJob, message).into());
            }
            Ok(job)
        })
    }

    fn job_log(&self, id: &JobId) -> Result<Vec<LogLine>> {
        self.read(async |db| {
            let rows = sqlx::query("SELECT time, text FROM job_log WHERE job = ? ORDER BY seq")
                .bind(id.to_string())
                .fetch_all(db)
                .await?;
            rows.iter()
                .map(|row| Ok(LogLine { time: rows::time(row, "time")?, text: row.try_get("text")? }))
                .collect()
        })
    }

    fn notes(&self, prefix: &str) -> Result<BTreeMap<String, String>> {
        self.read(async |db| {
            let rows = sqlx::query("SELECT name, value FROM notes WHERE substr(name, 1, length(?1)) = ?1")
                .bind(prefix)
                .fetch_all(db)
                .await?;
            rows.iter().map(|row| Ok((row.try_get("name")?, row.try_get("value")?))).collect()
        })
    }

    fn set_notes(&self, changes: &[(String, Option<String>)]) -> Result<()> {
        self.write(async |db| {
            for (name, value) in changes {
                let query = match value {
                    Some(value) => sqlx::query(
                        "INSERT INTO notes (name, value) VALUES (?, ?)
                         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    )
                    .bind(name)
                    .bind(value),
                    None => sqlx::query("DELETE FROM notes WHERE name = ?").bind(name),
                };
                query.execute(&mut *db).await?;
            }
            Ok(())
        })
    }
}
