//! `backstay connection …`

mod check;
mod discover;

use std::ffi::OsStr;

use backstay_engine::{ConnectionType, Engine, Link, escape};
use backstay_model::{AppName, Code, Result};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::{Connection, Deleted, Listed, Mark, Named};
use crate::ask;
use crate::commands::backup;
use crate::commands::setting::{one_line, sticky, tell_effect};
use crate::failure::say;
use crate::out::Out;
use crate::text::{Table, time};

pub use discover::before_first_backup;

#[derive(Serialize)]
struct Connections {
    app: AppName,
    connections: Vec<Shown>,
}

/// A connection string, with its value where that was asked for.
#[derive(Serialize)]
struct Shown {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    slot_sticky: bool,
    changed: Timestamp,
    /// The kind of database it points to; none where it is no linked database.
    database_kind: Option<&'static str>,
    points_to: Option<String>,
    problem: Option<Problem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
}

/// Why it is no linked database.
#[derive(Serialize)]
struct Problem {
    code: Code,
    message: String,
}

#[derive(Serialize)]
struct Set {
    connection: Shown,
    replaced: bool,
    first_run: Option<backstay_engine::Places>,
}

#[derive(Serialize)]
struct Gone {
    app: AppName,
    name: String,
}

impl Shown {
    fn of(link: Link, value: Option<String>) -> Self {
        let (database_kind, points_to, problem) = match &link.endpoint {
            Ok(endpoint) => {
                (Some(endpoint.kind.name()), Some(escape(OsStr::new(&endpoint.to_string()))), None)
            }
            Err(e) => (None, None, Some(Problem { code: e.code(), message: e.message().to_owned() })),
        };
        Shown {
            name: link.name,
            kind: link.kind.as_str(),
            slot_sticky: link.sticky,
            changed: link.changed,
            database_kind,
            points_to,
            problem,
            value,
        }
    }
}

/// Runs one of the commands.
pub fn run(engine: &Engine, command: Connection, out: &mut Out) -> Result<u8> {
    match command {
        Connection::Set { of, kind, mark } => set(engine, &of, kind.as_deref(), &mark, out),
        Connection::List(args) => list(engine, &args, out),
        Connection::Check(args) => check::run(engine, &args, out),
        Connection::Discover(args) => discover::run(engine, &args, out),
        Connection::Delete(args) => delete(engine, &args, out),
    }
}

fn set(engine: &Engine, of: &Named, kind: Option<&str>, mark: &Mark, out: &mut Out) -> Result<u8> {
    let app: AppName = of.app.parse()?;
    let kind: Option<ConnectionType> = kind.map(str::parse).transpose()?;
    engine.setting_list(&app)?;
    let value = ask::value(&format!("Connection string {}", of.name.escape_debug()))?;
    let set = engine.set_connection(&app, &of.name, &value, kind, mark.said())?;
    let set = Set { connection: Shown::of(set.link, None), replaced: set.replaced, first_run: set.first_run };
    out.either(&set, |set| {
        let how = if set.replaced { "has another value" } else { "is set" };
        let to = set.connection.points_to.as_ref().map(|to| format!(": {to}")).unwrap_or_default();
        format!("Connection string `{}` of app `{app}` {how}{to}", set.connection.name)
    })?;
    out.finish()?;
    if let Some(problem) = &set.connection.problem {
        say(format!(
            "note: it is given to the app, but is no database that is backed up with it. {}",
            problem.message
        ));
    }
    if let Some(places) = &set.first_run {
        backup::tell_first_run("Made to keep its key", places);
    }
    tell_effect(engine, &app);
    Ok(0)
}

fn list(engine: &Engine, args: &Listed, out: &mut Out) -> Result<u8> {
    let app: AppName = args.app.parse()?;
    let shown = |(link, value): (Link, Option<backstay_model::Secret>)| {
        let value = value.filter(|_| args.reveal).map(|v| v.reveal().to_owned());
        Shown::of(link, value)
    };
    let connections: Vec<Shown> = engine.connections_revealed(&app)?.into_iter().map(shown).collect();
    if connections.is_empty() {
        say(format!(
            "App `{app}` has no connection strings. `backstay connection set {app} NAME --type TYPE` gives it one."
        ));
    }
    out.either(&Connections { app, connections }, |all| match all.connections.as_slice() {
        [] => String::new(),
        connections => table(connections, args.reveal),
    })?;
    Ok(0)
}

fn table(connections: &[Shown], reveal: bool) -> String {
    let headings = ["NAME", "TYPE", "SLOT", "CHANGED", "POINTS TO", "VALUE"];
    let mut table = Table::new(headings.get(..if reveal { 6 } else { 5 }).unwrap_or_default());
    for it in connections {
        let to = match (&it.points_to, &it.problem) {
            (Some(to), _) => to.clone(),
            (None, Some(problem)) => format!("no linked database: {}", problem.message),
            (None, None) => "-".to_owned(),
        };
        let mut row = vec![
            it.name.clone(),
            it.kind.to_owned(),
            sticky(it.slot_sticky).to_owned(),
            time(it.changed),
            to,
        ];
        row.extend(it.value.as_deref().map(one_line));
        table.row(row);
    }
    table.to_string()
}

fn delete(engine: &Engine, args: &Deleted, out: &mut Out) -> Result<u8> {
    let app: AppName = args.of.app.parse()?;
    engine.setting_list(&app)?;
    let name = args.of.name.escape_debug();
    let question =
        format!("Take the connection string `{name}` of app `{app}` away? Points that have it keep it.");
    ask::confirm(&question, args.yes)?;
    let gone = engine.delete_connection(&app, &args.of.name)?;
    out.either(&Gone { app: app.clone(), name: gone.name }, |gone| {
        format!("Connection string `{}` of app `{}` is gone", gone.name, gone.app)
    })?;
    out.finish()?;
    tell_effect(engine, &app);
    Ok(0)
}
