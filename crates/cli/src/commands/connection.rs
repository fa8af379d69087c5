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
    /// Whether it is the app's own MySQL, which nobody set a string for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    in_app: bool,
    /// What is wrong with it, where it was set by hand for the app's own MySQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
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
            in_app: false,
            warning: None,
            value,
        }
    }

    /// What is wrong with it, on the other stream.
    fn warn(&self) {
        if let Some(warning) = &self.warning {
            say(format!("warning: {warning}"));
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
    let warning = by_hand(engine, &app, &set.link)?;
    let connection = Shown { warning, ..Shown::of(set.link, None) };
    let set = Set { connection, replaced: set.replaced, first_run: set.first_run };
    out.either(&set, |set| {
        let how = if set.replaced { "has another value" } else { "is set" };
        let to = set.connection.points_to.as_ref().map(|to| format!(": {to}")).unwrap_or_default();
        format!("Connection string `{}` of app `{app}` {how}{to}", set.connection.name)
    })?;
    out.finish()?;
    set.connection.warn();
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
    let own = engine.in_app_connection(&app)?.map(|(link, value)| (link, Some(value)));
    let mut connections: Vec<Shown> =
        own.into_iter().map(|own| Shown { in_app: true, ..shown(own) }).collect();
    for (link, value) in engine.connections_revealed(&app)? {
        let warning = by_hand(engine, &app, &link)?;
        connections.push(Shown { warning, ..shown((link, value)) });
    }
    if connections.is_empty() {
        say(format!(
            "App `{app}` has no connection strings. `backstay connection set {app} NAME --type TYPE` gives it one."
        ));
    }
    let all = Connections { app, connections };
    out.either(&all, |all| match all.connections.as_slice() {
        [] => String::new(),
        connections => table(connections, args.reveal),
    })?;
    out.finish()?;
    all.connections.iter().for_each(Shown::warn);
    Ok(0)
}

/// What is wrong with a string that was set by hand for the app's own MySQL.
fn by_hand(engine: &Engine, app: &AppName, link: &Link) -> Result<Option<String>> {
    Ok(engine.by_hand(app, link)?.map(|by_hand| by_hand.told))
}

fn table(connections: &[Shown], reveal: bool) -> String {
    let headings = ["NAME", "TYPE", "SLOT", "CHANGED", "POINTS TO", "VALUE"];
    let mut table = Table::new(headings.get(..if reveal { 6 } else { 5 }).unwrap_or_default());
    for it in connections {
        let to = match (&it.points_to, &it.problem) {
            (Some(to), _) if it.in_app => format!("{to}: its MySQL in-app"),
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
