//! Settings and connection strings of apps, and sealing all that is sealed anew.
//!
//! Invariants: settings are those of an app that is known, removed or not; they are forgotten with it. Names are
//! compared byte by byte.

use backstay_model::{AppName, Code, Error, Result};
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::rows::{odd, text, time};
use super::{Step, apps};
use crate::{SealedRecord, SettingKind, SettingRecord};

fn kind(row: &SqliteRow) -> Step<SettingKind> {
    let word: &str = row.try_get("kind")?;
    Ok(SettingKind::of(word).ok_or_else(|| odd("the kind of a setting", word))?)
}

fn read(row: &SqliteRow) -> Step<SettingRecord> {
    Ok(SettingRecord {
        kind: kind(row)?,
        name: row.try_get("name")?,
        value: row.try_get("value")?,
        connection_type: row.try_get("type")?,
        sticky: row.try_get::<i64, _>("sticky")? != 0,
        changed: time(row, "changed")?,
    })
}

fn missing(app: &AppName, kind: SettingKind, name: &str) -> Error {
    let code = match kind {
        SettingKind::Setting => Code::SettingNotFound,
        SettingKind::Connection => Code::ConnectionNotFound,
    };
    Error::new(code, format!("App `{app}` has no {kind} `{}`", name.escape_debug()))
}

async fn known(db: &mut SqliteConnection, app: &AppName) -> Step<()> {
    apps::get(db, app).await?.map(drop).ok_or_else(|| apps::missing(app).into())
}

pub(super) async fn list(db: &mut SqliteConnection, app: &AppName, slot: &str) -> Step<Vec<SettingRecord>> {
    let rows = sqlx::query("SELECT * FROM settings WHERE app = ? AND slot = ? ORDER BY kind, name")
        .bind(app.as_str())
        .bind(slot)
        .fetch_all(db)
        .await?;
    rows.iter().map(read).collect()
}

pub(super) async fn set(
    db: &mut SqliteConnection,
    app: &AppName,
    slot: &str,
    new: &SettingRecord,
) -> Step<()> {
    known(db, app).await?;
    sqlx::query("DELETE FROM settings WHERE app = ? AND slot = ? AND kind = ? AND name = ?")
        .bind(app.as_str())
        .bind(slot)
        .bind(new.kind.word())
        .bind(&new.name)
        .execute(&mut *db)
        .await?;
    insert(db, app, slot, new).await
}

/// Adds one unless there is one of that kind and name.
async fn insert(db: &mut SqliteConnection, app: &AppName, slot: &str, new: &SettingRecord) -> Step<()> {
    sqlx::query(
        "INSERT INTO settings (app, slot, kind, name, value, type, sticky, changed) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT DO NOTHING",
    )
    .bind(app.as_str())
    .bind(slot)
    .bind(new.kind.word())
    .bind(&new.name)
    .bind(&new.value)
    .bind(&new.connection_type)
    .bind(i64::from(new.sticky))
    .bind(text(new.changed))
    .execute(db)
    .await?;
    Ok(())
}

pub(super) async fn put(
    db: &mut SqliteConnection,
    app: &AppName,
    slot: &str,
    new: &[SettingRecord],
    keep_sticky: bool,
) -> Step<()> {
    known(db, app).await?;
    sqlx::query("DELETE FROM settings WHERE app = ? AND slot = ? AND (sticky = 0 OR NOT ?)")
        .bind(app.as_str())
        .bind(slot)
        .bind(keep_sticky)
        .execute(&mut *db)
        .await?;
    for record in new {
        insert(db, app, slot, record).await?;
    }
    Ok(())
}

pub(super) async fn delete(
    db: &mut SqliteConnection,
    app: &AppName,
    slot: &str,
    kind: SettingKind,
    name: &str,
) -> Step<SettingRecord> {
    known(db, app).await?;
    let row =
        sqlx::query("DELETE FROM settings WHERE app = ? AND slot = ? AND kind = ? AND name = ? RETURNING *")
            .bind(app.as_str())
            .bind(slot)
            .bind(kind.word())
            .bind(name)
            .fetch_optional(db)
            .await?;
    read(&row.ok_or_else(|| missing(app, kind, name))?)
}

/// Forgets the settings of apps that are known no more.
pub(super) async fn forget(db: &mut SqliteConnection) -> Step<()> {
    sqlx::query("DELETE FROM settings WHERE app NOT IN (SELECT name FROM apps)").execute(db).await?;
    Ok(())
}

/// Gives every sealed text to `change` and stores what that gives back.
pub(super) async fn reseal(
    db: &mut SqliteConnection,
    change: &mut dyn FnMut(&SealedRecord, &str) -> Result<Option<String>>,
) -> Step<u64> {
    let mut changed = 0;
    let rows = sqlx::query("SELECT name, credentials FROM containers WHERE credentials IS NOT NULL")
        .fetch_all(&mut *db)
        .await?;
    for row in &rows {
        let name: String = row.try_get("name")?;
        let record = SealedRecord::Container { name: name.clone() };
        let Some(new) = change(&record, row.try_get("credentials")?)? else { continue };
        sqlx::query("UPDATE containers SET credentials = ? WHERE name = ?")
            .bind(new)
            .bind(name)
            .execute(&mut *db)
            .await?;
        changed += 1;
    }
    let rows = sqlx::query("SELECT app, slot, kind, name, value FROM settings").fetch_all(&mut *db).await?;
    for row in &rows {
        let (app, slot, name): (&str, String, String) =
            (row.try_get("app")?, row.try_get("slot")?, row.try_get("name")?);
        let kind = kind(row)?;
        let app: AppName = app.parse().map_err(|_bad_name| odd("the name of an app", app))?;
        let record = SealedRecord::Setting { app: app.clone(), slot: slot.clone(), kind, name: name.clone() };
        let Some(new) = change(&record, row.try_get("value")?)? else { continue };
        sqlx::query("UPDATE settings SET value = ? WHERE app = ? AND slot = ? AND kind = ? AND name = ?")
            .bind(new)
            .bind(app.as_str())
            .bind(slot)
            .bind(kind.word())
            .bind(name)
            .execute(&mut *db)
            .await?;
        changed += 1;
    }
    Ok(changed)
}
