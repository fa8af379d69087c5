//! `backstay connection discover`, and the same for a folder that becomes an app.

use std::path::Path;

use backstay_engine::{Discovery, Engine, FoundConnection, FoundState, Places, UnreadConnection};
use backstay_model::{AppName, Result};
use serde::Serialize;

use crate::args::Discover;
use crate::ask::{self, Answer};
use crate::commands::backup;
use crate::commands::setting::tell_effect;
use crate::failure::say;
use crate::out::Out;
use crate::text::count;

#[derive(Serialize)]
struct Shown {
    app: AppName,
    found: Vec<One>,
    unread: Vec<UnreadConnection>,
    bounded: bool,
    first_run: Option<Places>,
}

/// A string that was found, and whether it was linked now.
#[derive(Serialize)]
struct One {
    #[serde(flatten)]
    found: FoundConnection,
    stored: bool,
}

/// A folder that was made an app for its databases, before its first point.
pub struct Adopted {
    /// Where everything is, when the state was made for it.
    pub first_run: Option<Places>,
}

/// Looks through the files of an app, and links what a person agrees to.
pub fn run(engine: &Engine, args: &Discover, out: &mut Out) -> Result<u8> {
    let app: AppName = args.app.parse()?;
    let discovery = engine.discover(&app)?;
    let asks = !args.yes && ask::is_terminal();
    let chosen = match (args.yes, asks) {
        (true, _) => discovery.new_ones().collect(),
        (false, true) => ask_each(&discovery)?,
        (false, false) => Vec::new(),
    };
    let first_run = engine.link_found(&app, chosen.iter().copied())?;
    let stored: Vec<String> = chosen.iter().map(|found| found.name.clone()).collect();
    let waiting = discovery.new_ones().count() - stored.len();
    let one = |found: FoundConnection| One { stored: stored.contains(&found.name) && is_new(&found), found };
    let Discovery { app, found, unread, bounded } = discovery;
    let found = found.into_iter().map(one).collect();
    let shown = Shown { app, found, unread, bounded, first_run };
    out.either(&shown, text)?;
    out.finish()?;
    if let Some(places) = &shown.first_run {
        backup::tell_first_run("Made to keep its key", places);
    }
    let app = &shown.app;
    if shown.bounded {
        say("note: there are more folders or files than are looked at; what is further down was not seen.");
    }
    if !stored.is_empty() {
        tell_effect(engine, app);
        say(format!("Do they work? `backstay connection check {app}` says so."));
    } else if waiting > 0 && !asks {
        say(format!("Nothing was stored. To link what is new: `backstay connection discover {app} --yes`."));
    }
    Ok(0)
}

fn is_new(found: &FoundConnection) -> bool {
    found.state == FoundState::New
}

/// Asks about each that can be linked.
fn ask_each(discovery: &Discovery) -> Result<Vec<&FoundConnection>> {
    let mut chosen = Vec::new();
    let mut all = false;
    for found in discovery.new_ones() {
        let answer = match all {
            true => Answer::Yes,
            false => ask::each(&format!("Link {}?", line(found)))?,
        };
        all |= answer == Answer::All;
        if answer != Answer::No {
            chosen.push(found);
        }
    }
    Ok(chosen)
}

fn line(found: &FoundConnection) -> String {
    format!("`{}` ({}, found in {})", found.name, found.points_to, found.found_in)
}

fn text(shown: &Shown) -> String {
    let mut lines: Vec<String> = Vec::new();
    for One { found, stored } in &shown.found {
        lines.push(format!("{} --type {}: {}", found.name, found.kind, found.points_to));
        lines.push(format!("  found in {}", found.found_in));
        lines.extend(found.note.iter().map(|note| format!("  note: {note}")));
        lines.push(format!("  {}", state(found, *stored)));
    }
    for unread in &shown.unread {
        let name = if unread.name.is_empty() { String::new() } else { format!("`{}` in ", unread.name) };
        lines.push(format!("not read: {name}{}: {}", unread.found_in, unread.why));
    }
    if lines.is_empty() {
        lines.push(format!(
            "No connection strings of databases were found in the files of app `{}`",
            shown.app
        ));
    }
    lines.join("\n")
}

fn state(found: &FoundConnection, stored: bool) -> String {
    match &found.state {
        FoundState::New if stored => "linked: each point from now on holds this database".to_owned(),
        FoundState::New => "not linked".to_owned(),
        FoundState::Exists => "a connection of that name exists and stays as it is".to_owned(),
        FoundState::Linked(name) => format!("the same database as connection `{name}`"),
        FoundState::Content => "a file of the home: a consistent copy is in each point anyway".to_owned(),
        FoundState::Unsupported => {
            format!("not linked: databases of {} cannot be dumped", found.database_kind)
        }
    }
}

/// Before the first backup of a folder: links the databases that its files name, when that is agreed to. None where the folder
/// is not made an app by this.
pub fn before_first_backup(
    engine: &Engine,
    (target, named): (&Path, Option<&AppName>),
    agreed: bool,
) -> Result<Option<Adopted>> {
    // What hinders a look hinders the backup too, which says it better.
    let Ok(Some(discovery)) = engine.discover_new(target, named) else { return Ok(None) };
    let new: Vec<&FoundConnection> = discovery.new_ones().collect();
    let n = u64::try_from(new.len()).unwrap_or(u64::MAX);
    let app = &discovery.app;
    say(format!("The files of `{app}` name {}:", count(n, "database")));
    for found in &new {
        say(format!("  {}", line(found)));
    }
    let question = "Link them, so that this point and each later one holds them?";
    let agreed = agreed || (ask::is_terminal() && ask::agrees(question)?);
    if !agreed {
        say(format!(
            "note: this point is without databases. `backstay connection discover {app}` shows and links them at any time."
        ));
        return Ok(None);
    }
    let (app, first_run) = engine.adopt(target, named)?;
    engine.link_found(&app, new)?;
    Ok(Some(Adopted { first_run }))
}
