//! The apps.
//!
//! Invariants: a name belongs to one app for ever, removed or not, until it is forgotten; a home belongs to at most one
//! app that is not removed. Both are held by the database itself.

use std::path::Path;

use backstay_model::app::AppConfig;
use backstay_model::{AppName, Code, Error, Result};
use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::rows::{path_bytes, read_app, text, to_json};
use super::{Step, settings};
use crate::App;

/// The apps of a condition, by name.
pub(super) async fn list(db: &mut SqliteConnection, condition: &'static str) -> Step<Vec<App>> {
    let query = AssertSqlSafe(format!("SELECT * FROM apps WHERE {condition} ORDER BY name"));
    sqlx::query(query).fetch_all(db).await?.iter().map(read_app).collect()
}

pub(super) async fn get(db: &mut SqliteConnection, name: &AppName) -> Step<Option<App>> {
    let row = sqlx::query("SELECT * FROM apps WHERE name = ?").bind(name.as_str()).fetch_optional(db).await?;
    row.as_ref().map(read_app).transpose()
}

pub(super) fn missing(name: &AppName) -> Error {
    Error::new(Code::AppNotFound, format!("There is no app `{name}`"))
}

fn home_taken(app: &App) -> Error {
    let home = app.home.as_deref().unwrap_or(Path::new("")).display();
    Error::new(Code::Conflict, format!("{home} belongs to another app already"))
}

pub(super) async fn add(db: &mut SqliteConnection, app: &App) -> Step<()> {
    if let Some(other) = get(db, &app.name).await? {
        let error = Error::new(Code::AlreadyExists, format!("App `{}` exists already", app.name));
        return Err(match other.removed {
            None => error.into(),
            Some(_) => {
                Error::new(Code::AlreadyExists, format!("App `{}` was removed and keeps its name", app.name))
                    .advise(format!(
                        "`backstay app restore-deleted {}` brings it back; else choose another name.",
                        app.name
                    ))
                    .into()
            }
        });
    }
    let same = sqlx::query("SELECT * FROM apps WHERE home = ? AND removed IS NULL")
        .bind(app.home.as_deref().map(path_bytes))
        .fetch_optional(&mut *db)
        .await?;
    if let Some(row) = same {
        let home = app.home.as_deref().unwrap_or(Path::new("")).display();
        let message = format!("{home} belongs to app `{}` already", read_app(&row)?.name);
        return Err(Error::new(Code::Conflict, message).into());
    }
    insert(db, app).await?;
    Ok(())
}

/// Adds an app unless its name or home is taken; gives the number of apps added.
pub(super) async fn insert(db: &mut SqliteConnection, app: &App) -> Step<u64> {
    let done = sqlx::query(
        "INSERT INTO apps (name, home, kind, created, config, removed) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT DO NOTHING",
    )
    .bind(app.name.as_str())
    .bind(app.home.as_deref().map(path_bytes))
    .bind(&app.kind)
    .bind(text(app.created))
    .bind(to_json(&app.config)?)
    .bind(app.removed.map(text))
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

pub(super) async fn change_config(
    db: &mut SqliteConnection,
    name: &AppName,
    change: &mut dyn FnMut(&mut AppConfig) -> Result<()>,
) -> Step<App> {
    let mut app = get(db, name).await?.ok_or_else(|| missing(name))?;
    change(&mut app.config)?;
    sqlx::query("UPDATE apps SET config = ? WHERE name = ?")
        .bind(to_json(&app.config)?)
        .bind(name.as_str())
        .execute(db)
        .await?;
    Ok(app)
}

pub(super) async fn remove(db: &mut SqliteConnection, name: &AppName, now: Timestamp) -> Step<App> {
    let mut app = get(db, name).await?.filter(|a| a.removed.is_none()).ok_or_else(|| missing(name))?;
    app.removed = Some(now);
    sqlx::query("UPDATE apps SET removed = ? WHERE name = ?")
        .bind(text(now))
        .bind(name.as_str())
        .execute(db)
        .await?;
    Ok(app)
}

pub(super) async fn revive(db: &mut SqliteConnection, name: &AppName) -> Step<App> {
    let gone = || Error::new(Code::AppNotFound, format!("There is no removed app `{name}`"));
    let mut app = get(db, name).await?.filter(|a| a.removed.is_some()).ok_or_else(gone)?;
    app.removed = None;
    let done =
        sqlx::query("UPDATE apps SET removed = NULL WHERE name = ?").bind(name.as_str()).execute(db).await;
    match done {
        Err(e) if e.as_database_error().is_some_and(|e| e.is_unique_violation()) => {
            Err(home_taken(&app).into())
        }
        Err(e) => Err(e.into()),
        Ok(_) => Ok(app),
    }
}

pub(super) async fn forget(db: &mut SqliteConnection, limit: Timestamp) -> Step<Vec<AppName>> {
    let rows = sqlx::query(
        "DELETE FROM apps WHERE removed < ? AND name NOT IN (SELECT app FROM points)
         AND name NOT IN (SELECT app FROM custom_backups) RETURNING name",
    )
    .bind(text(limit))
    .fetch_all(&mut *db)
    .await?;
    settings::forget(db).await?;
    let name = |row: &sqlx::sqlite::SqliteRow| Ok(row.try_get::<&str, _>(0)?.parse().map_err(Error::from)?);
    rows.iter().map(name).collect()
}

pub(super) async fn set_home(db: &mut SqliteConnection, app: &App) -> Step<()> {
    let done = sqlx::query("UPDATE apps SET home = ? WHERE name = ?")
        .bind(app.home.as_deref().map(path_bytes))
        .bind(app.name.as_str())
        .execute(db)
        .await;
    match done {
        Err(e) if e.as_database_error().is_some_and(|e| e.is_unique_violation()) => {
            Err(home_taken(app).into())
        }
        Err(e) => Err(e.into()),
        Ok(done) if done.rows_affected() == 0 => Err(missing(&app.name).into()),
        Ok(_) => Ok(()),
    }
}
