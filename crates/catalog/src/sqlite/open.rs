//! Opening the file: mode, version, damage.
//!
//! Invariants: a file written by a newer version is refused before anything in it is changed. Migrations run in one
//! immediate transaction, so of two processes that open a new file at once, one makes it and the other finds it
//! made; killed in between, the file is as before.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use backstay_model::{Code, Error, Result};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqlSafeStr as _};

use super::{BUSY, Step, Stop};

/// All migrations of the SQLite dialect, oldest first. Never change one that was released; add one.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "state", include_str!("../../migrations/sqlite/0001_state.sql")),
    (2, "apps", include_str!("../../migrations/sqlite/0002_apps.sql")),
    (3, "watch", include_str!("../../migrations/sqlite/0003_watch.sql")),
    (4, "containers", include_str!("../../migrations/sqlite/0004_containers.sql")),
    (5, "settings", include_str!("../../migrations/sqlite/0005_settings.sql")),
];

pub(super) async fn connect(path: &Path) -> Result<SqliteConnection> {
    make_private(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(BUSY);
    let started = Instant::now();
    loop {
        match try_connect(&options).await {
            Ok(connection) => return Ok(connection),
            // Turning on the write-ahead log of a new file does not wait for others by itself.
            Err(Stop::Database(e)) if is_busy(&e) && started.elapsed() < BUSY => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(Stop::Database(e)) => return Err(explain(path, e)),
            Err(Stop::Told(e)) => return Err(e.context(path.display())),
        }
    }
}

/// SQLite gives its side files the mode of the main file: so the main file is made first, for the owner alone.
fn make_private(path: &Path) -> Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(Error::new(Code::StateAccess, format!("Cannot make {}", path.display())).because(e)),
    }
}

async fn try_connect(options: &SqliteConnectOptions) -> Step<SqliteConnection> {
    let mut db = options.clone().disable_statement_logging().connect().await?;
    let newest = MIGRATIONS.last().map_or(0, |m| m.0);
    match version(&mut db).await? {
        found if found == newest => Ok(db),
        found if found > newest => Err(Error::new(
            Code::StateUnsupported,
            format!("The state has version {found}, newest known is {newest}"),
        )
        .into()),
        _ => {
            migrate(&mut db).await?;
            Ok(db)
        }
    }
}

/// The newest migration the file has seen; 0 for a new file.
async fn version(db: &mut SqliteConnection) -> Step<i64> {
    let known = sqlx::query("SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations'")
        .fetch_optional(&mut *db)
        .await?;
    if known.is_none() {
        return Ok(0);
    }
    let row = sqlx::query("SELECT coalesce(max(version), 0) FROM _sqlx_migrations").fetch_one(db).await?;
    Ok(row.try_get(0)?)
}

async fn migrate(db: &mut SqliteConnection) -> Step<()> {
    let all = MIGRATIONS.iter().map(|(version, name, sql)| {
        Migration::new(*version, (*name).into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    let migrator = Migrator::with_migrations(all.collect());
    let mut transaction = db.begin_with("BEGIN IMMEDIATE").await?;
    migrator.run_direct(None, &mut *transaction, false).await.map_err(|e| match e {
        sqlx::migrate::MigrateError::Execute(e) | sqlx::migrate::MigrateError::ExecuteMigration(e, _) => {
            Stop::Database(e)
        }
        other => {
            Stop::Told(Error::new(Code::StateUnsupported, "The state has another history").because(other))
        }
    })?;
    transaction.commit().await?;
    Ok(())
}

/// SQLite's own result code (the low byte of the extended one).
fn sqlite_code(e: &sqlx::Error) -> Option<u32> {
    let code = e.as_database_error()?.code()?.parse::<u32>().ok()?;
    Some(code & 0xff)
}

fn is_busy(e: &sqlx::Error) -> bool {
    matches!(sqlite_code(e), Some(5 | 6))
}

/// A database error as a person should read it.
pub(super) fn explain(path: &Path, e: sqlx::Error) -> Error {
    let path = path.display();
    let error = match sqlite_code(&e) {
        Some(11 | 26) => Error::new(Code::StateDamaged, format!("{path} is damaged"))
            .advise(format!("Points are safe in the vault. Move {path} away (with its -wal and -shm): it is rebuilt from the vault.")),
        Some(5 | 6) => Error::new(Code::StateAccess, format!("{path} is in use by another process for too long"))
            .advise("Try again. If it stays so, look which process holds the file (fuser, lsof)."),
        Some(13) => Error::new(Code::StateAccess, format!("{path} cannot be written: the disk is full")),
        Some(3 | 8 | 10 | 14) => Error::new(Code::StateAccess, format!("{path} cannot be read or written"))
            .advise(format!("Check the folder, {path} and its -wal and -shm: owner, mode, free space.")),
        _ => Error::new(Code::StateDamaged, format!("{path} does not hold what it should")),
    };
    error.because(e)
}
