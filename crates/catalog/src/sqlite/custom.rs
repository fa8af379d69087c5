//! Containers and what is known of the custom backups in them.
//!
//! Invariants: a name belongs to one container; a container that an app's schedule names is not removed, which is
//! looked at in the same transaction. A record of a backup that cannot be read is as good as none: it is read again
//! from its container.

use backstay_model::{AppName, Code, CustomBackup, Error};
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::rows::{text, time, time_or_none, to_json};
use super::{Step, apps};
use crate::{Container, CustomChanges};

fn read(row: &SqliteRow) -> Step<Container> {
    Ok(Container {
        name: row.try_get("name")?,
        address: row.try_get("address")?,
        credentials: row.try_get("credentials")?,
        expires: time_or_none(row, "expires")?,
        options: row.try_get("options")?,
        created: time(row, "created")?,
    })
}

fn missing(name: &str) -> Error {
    Error::new(Code::ContainerNotFound, format!("There is no container `{name}`"))
}

pub(super) async fn containers(db: &mut SqliteConnection) -> Step<Vec<Container>> {
    sqlx::query("SELECT * FROM containers ORDER BY name").fetch_all(db).await?.iter().map(read).collect()
}

pub(super) async fn container(db: &mut SqliteConnection, name: &str) -> Step<Option<Container>> {
    let row = sqlx::query("SELECT * FROM containers WHERE name = ?").bind(name).fetch_optional(db).await?;
    row.as_ref().map(read).transpose()
}

pub(super) async fn put_container(db: &mut SqliteConnection, new: &Container, replace: bool) -> Step<()> {
    if !replace && container(db, &new.name).await?.is_some() {
        let message = format!("There is a container `{}` already", new.name);
        return Err(Error::new(Code::AlreadyExists, message).into());
    }
    sqlx::query(
        "INSERT INTO containers (name, address, credentials, expires, options, created) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (name) DO UPDATE SET address = excluded.address, credentials = excluded.credentials,
                                          expires = excluded.expires, options = excluded.options",
    )
    .bind(&new.name)
    .bind(&new.address)
    .bind(&new.credentials)
    .bind(new.expires.map(text))
    .bind(&new.options)
    .bind(text(new.created))
    .execute(db)
    .await?;
    Ok(())
}

pub(super) async fn remove_container(db: &mut SqliteConnection, name: &str) -> Step<Container> {
    let found = container(db, name).await?.ok_or_else(|| missing(name))?;
    // A removed app may come back, with its schedule.
    for app in apps::list(db, "1").await? {
        if app.config.schedule.as_ref().is_some_and(|s| s.container == name) {
            let message = format!("The schedule of app `{}` uses the container `{name}`", app.name);
            return Err(Error::new(Code::Conflict, message)
                .advise(format!(
                    "`backstay schedule clear {}` first, or give it another container.",
                    app.name
                ))
                .into());
        }
    }
    sqlx::query("DELETE FROM containers WHERE name = ?").bind(name).execute(db).await?;
    Ok(found)
}

pub(super) async fn backups(db: &mut SqliteConnection, app: Option<&AppName>) -> Step<Vec<CustomBackup>> {
    let rows = sqlx::query(
        "SELECT record FROM custom_backups WHERE ?1 IS NULL OR app = ?1 ORDER BY time DESC, id, container, name",
    )
    .bind(app.map(AppName::as_str))
    .fetch_all(db)
    .await?;
    Ok(rows.iter().filter_map(|row| serde_json::from_str(row.try_get::<&str, _>(0).ok()?).ok()).collect())
}

pub(super) async fn change_backups(db: &mut SqliteConnection, changes: &CustomChanges) -> Step<()> {
    for (container, name) in &changes.remove {
        sqlx::query("DELETE FROM custom_backups WHERE container = ? AND name = ?")
            .bind(container)
            .bind(name)
            .execute(&mut *db)
            .await?;
    }
    for backup in &changes.put {
        sqlx::query(
            "INSERT INTO custom_backups (container, name, id, app, time, record) VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT (container, name) DO UPDATE SET id = excluded.id, app = excluded.app,
                                                         time = excluded.time, record = excluded.record",
        )
        .bind(&backup.container)
        .bind(&backup.name)
        .bind(backup.id.to_string())
        .bind(backup.app.as_str())
        .bind(text(backup.time))
        .bind(to_json(backup)?)
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}
