//! `backstay app …`

mod flags;

use backstay_engine::{
    AppDetails, AppState, Engine, InAppState, InAppView, NewApp, Operated, Places, parse_duration,
};
use backstay_model::app::{AppConfig, Check, Databases, Hashes, Moment, Runtime, VolumeSnapshot};
use backstay_model::{AppName, Result};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::{App, AppFlags};
use crate::commands::backup;
use crate::failure::say;
use crate::out::Out;
use crate::text::{Table, age, count, duration, time};
use crate::{ask, signals};

#[derive(Serialize)]
struct OneApp<'a> {
    app: &'a AppDetails,
}

#[derive(Serialize)]
struct Apps {
    apps: Vec<AppDetails>,
}

/// Runs one of the commands.
pub fn run(engine: &Engine, command: App, out: &mut Out) -> Result<u8> {
    match command {
        App::Add { name, folder, flags } => {
            let name: AppName = name.parse()?;
            let turn = Turn::begin(engine, &flags)?;
            let new = engine.app_add(&name, folder.as_deref(), &mut |c| flags::change(&flags, c))?;
            out.either(&new, added)?;
            out.finish()?;
            warn(&new.app);
            turn.tell(engine, &new.app);
        }
        App::List { removed } => list(engine, removed, out)?,
        App::Show { name } => show(&engine.app_show(&name.parse()?)?, out)?,
        App::Set { name, flags } => set(engine, &name.parse()?, &flags, out)?,
        App::Pause { name, reason, time } => {
            let time = time.as_deref().map(parse_duration).transpose()?;
            let app = engine.app_pause(&name.parse()?, reason.as_deref(), time)?;
            told(out, &app, |app| format!("Automatic backups of `{}` {}", app.name, automatic(&app.config)))?;
        }
        App::Resume { name } => {
            let app = engine.app_resume(&name.parse()?)?;
            told(out, &app, |app| {
                format!("Automatic backups of `{}`: {}", app.name, automatic(&app.config))
            })?;
        }
        App::Start { name } => {
            let cancel = signals::watch()?;
            operated(out, &engine.app_start(&name.parse()?, &cancel)?, |o| match o.was_running {
                true => "runs already",
                false => "was started",
            })?;
        }
        App::Stop { name } => {
            let cancel = signals::watch()?;
            operated(out, &engine.app_stop(&name.parse()?, &cancel)?, |o| match o.was_running {
                true => "was stopped",
                false => "was not running",
            })?;
        }
        App::Restart { name } => {
            let cancel = signals::watch()?;
            operated(out, &engine.app_restart(&name.parse()?, &cancel)?, |_| "was started again")?;
        }
        App::Remove { name, yes } => remove(engine, &name.parse()?, yes, out)?,
        App::RestoreDeleted { name } => {
            let app = engine.app_restore_deleted(&name.parse()?)?;
            told(out, &app, |app| format!("App `{}` is protected again{}", app.name, points(app)))?;
        }
    }
    Ok(0)
}

/// One app, as JSON or as a sentence.
fn told(out: &mut Out, app: &AppDetails, text: impl FnOnce(&AppDetails) -> String) -> Result<()> {
    out.either(&OneApp { app }, |one| text(one.app))
}

fn added(new: &NewApp) -> String {
    let app = &new.app;
    let home = app.home.as_deref().unwrap_or("-");
    let how = match (new.revived, new.home_made) {
        (true, _) => "protected again, with what was set before",
        (false, true) => "new, its home is empty",
        (false, false) => "known",
    };
    format!("App `{}` is {how}: {home}{}\n", app.name, points(app))
}

fn points(app: &AppDetails) -> String {
    match app.points {
        0 => String::new(),
        n => format!(", {}", count(u64::try_from(n).unwrap_or(u64::MAX), "point")),
    }
}

/// What a person should know about what was set.
fn warn(app: &AppDetails) {
    let Runtime::Command(it) = &app.config.runtime else { return };
    if it.user.is_none() && rustix::process::geteuid().is_root() {
        say(format!(
            "note: the command of `{}` runs as root; --run-as USER gives it another user.",
            app.name
        ));
    }
}

/// Turning the MySQL of an app on or off.
struct Turn {
    on: Option<bool>,
    /// Where everything is, when the state was made for it.
    first_run: Option<Places>,
}

impl Turn {
    fn begin(engine: &Engine, flags: &AppFlags) -> Result<Self> {
        let on = flags.in_app_mysql.map(|switch| switch.is_on());
        let first_run = if on == Some(true) { engine.set_up()? } else { None };
        Ok(Turn { on, first_run })
    }

    /// What a person should know about it.
    fn tell(&self, engine: &Engine, app: &AppDetails) {
        let name = &app.name;
        match (self.on, &app.in_app_mysql) {
            (Some(true), Some(view)) => {
                let how = match &app.config.runtime {
                    Runtime::Command(_) => "Its command finds it as MYSQLCONNSTR_localdb".to_owned(),
                    _ => format!("`backstay connection list {name} --reveal` shows how it is reached"),
                };
                say(format!(
                    "`{name}` has a MariaDB of its own in {}, which is in each of its points. {how} (docs/databases.md).",
                    view.folder
                ));
            }
            (Some(false), _) => {
                if let Some(folder) = engine.left_in_app(name) {
                    say(format!(
                        "note: what was in the MySQL in-app of `{name}` stays in {folder}, and in the points that hold it; `--in-app-mysql \
                         on` takes it up again."
                    ));
                }
            }
            _ => {}
        }
        if let Some(places) = &self.first_run {
            backup::tell_first_run("Made to keep its password", places);
        }
    }
}

fn set(engine: &Engine, name: &AppName, flags: &AppFlags, out: &mut Out) -> Result<()> {
    let turn = Turn::begin(engine, flags)?;
    let mut app = engine.app_set(name, &mut |config| flags::change(flags, config))?;
    if turn.on == Some(true) && engine.app_make_mysql(name)? {
        app = engine.app_show(name)?;
    }
    show(&app, out)?;
    out.finish()?;
    warn(&app);
    turn.tell(engine, &app);
    let runs = app.condition.as_ref().is_some_and(|c| c.state == AppState::Running);
    if runs && matches!(app.config.runtime, Runtime::Command(_)) {
        say(format!(
            "note: `{name}` runs; changes of its command take effect with `backstay app restart {name}`."
        ));
    }
    Ok(())
}

fn operated(out: &mut Out, it: &Operated, what: impl FnOnce(&Operated) -> &'static str) -> Result<()> {
    out.either(it, |o| {
        let pid = o.condition.pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
        let check = o.health.as_ref().and_then(|h| Some((h.check.as_ref()?, h.seconds)));
        let well = check.map(|(check, seconds)| {
            let took = duration(std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default());
            format!(", healthy after {took}: {check}")
        });
        let mysql = o.in_app_mysql.as_ref().map(|view| format!(", its MySQL in-app: {}", view.state.word()));
        let (well, mysql) = (well.unwrap_or_default(), mysql.unwrap_or_default());
        format!("App `{}` {}{pid}{well}{mysql}", o.name, what(o))
    })
}

fn remove(engine: &Engine, name: &AppName, yes: bool, out: &mut Out) -> Result<()> {
    let app = engine.app_show(name)?;
    if app.removed.is_none() {
        ask::confirm(&format!("No longer protect app `{name}`? Nothing is deleted."), yes)?;
    }
    let app = engine.app_remove(name)?;
    told(out, &app, |app| {
        let home = app.home.as_deref().unwrap_or("not known here");
        let mysql = app.in_app_mysql.as_ref().map(|view| format!(", its MySQL in-app ({})", view.folder));
        let (mysql, points) = (mysql.unwrap_or_default(), points(app));
        format!("App `{name}` is no longer protected. Kept: its home ({home}){mysql}{points}")
    })?;
    out.finish()?;
    say(format!("`backstay app restore-deleted {name}` takes it back."));
    Ok(())
}

fn list(engine: &Engine, removed: bool, out: &mut Out) -> Result<()> {
    let apps = engine.app_list(removed)?;
    if apps.is_empty() {
        let state = engine.state().display();
        say(match removed {
            true => format!("No removed apps in the state {state}."),
            false => format!(
                "No apps in the state {state}. `backstay backup PATH` or `backstay app add NAME` makes one."
            ),
        });
    }
    out.either(&Apps { apps }, |a| if a.apps.is_empty() { String::new() } else { table(&a.apps) })
}

/// The state as one word, also where it cannot be asked.
fn state(app: &AppDetails) -> &'static str {
    app.condition.as_ref().map_or("unknown", |c| c.state.word())
}

fn table(apps: &[AppDetails]) -> String {
    let now = Timestamp::now();
    let removed = apps.iter().any(|a| a.removed.is_some());
    let last = if removed { "REMOVED" } else { "AUTOMATIC" };
    let mut table = Table::new(&["APP", "RUNTIME", "STATE", " POINTS", "NEWEST", last, "HOME"]);
    for app in apps {
        table.row([
            app.name.to_string(),
            app.config.runtime.kind().to_owned(),
            state(app).to_owned(),
            app.points.to_string(),
            app.newest.map_or_else(|| "-".to_owned(), |t| age(t, now)),
            app.removed.map_or_else(|| automatic(&app.config), |t| age(t, now)),
            app.home.clone().unwrap_or_else(|| "not known here".to_owned()),
        ]);
    }
    table.to_string()
}

fn automatic(config: &AppConfig) -> String {
    match &config.paused {
        _ if !config.automatic => "off".to_owned(),
        Some(pause) if config.is_paused(Timestamp::now()) => {
            let until =
                pause.until.map_or_else(|| "until resumed".to_owned(), |t| format!("until {}", time(t)));
            let reason = pause.reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default();
            format!("rest {until}{reason}")
        }
        _ => "every hour".to_owned(),
    }
}

fn show(app: &AppDetails, out: &mut Out) -> Result<()> {
    told(out, app, |app| {
        let rows = details(app);
        rows.iter().map(|(name, value)| format!("{name:<16}{value}\n")).collect()
    })
}

fn details(app: &AppDetails) -> Vec<(&'static str, String)> {
    let config = &app.config;
    let missing = if app.home_exists { "" } else { " (not there)" };
    let home = app.home.as_ref().map_or_else(|| "not known here".to_owned(), |h| format!("{h}{missing}"));
    let mut rows = vec![("App", app.name.to_string()), ("Home", home)];
    rows.extend(app.removed.map(|t| ("Removed", time(t))));
    rows.extend(runtime(app));
    if let Some(health) = &config.health {
        let check = match &health.check {
            Check::Http { url, status_min, status_max } => {
                format!("GET {url} answers {status_min}-{status_max}")
            }
            Check::Command { command } => format!("`{command}` ends well"),
        };
        let limits =
            format!("within {}, each answer {}", duration(health.deadline), duration(health.timeout));
        rows.push(("Health", format!("{check} ({limits})")));
    }
    for moment in Moment::ALL {
        if let Some(hook) = config.hooks.get(moment) {
            rows.push((
                "Hook",
                format!("{}: {} (at most {})", moment.name(), hook.command, duration(hook.timeout)),
            ));
        }
    }
    rows.push(("Automatic", automatic(config)));
    rows.extend(app.in_app_mysql.as_ref().map(|view| ("MySQL in-app", in_app(view))));
    rows.extend(databases(&config.databases));
    rows.extend(
        config
            .references
            .iter()
            .map(|r| ("References", format!("{} in {}: {}", r.connection, r.folder, r.query))),
    );
    rows.push(("RPO", duration(config.rpo)));
    rows.extend(config.excludes.iter().map(|path| ("Left out", path.clone())));
    if config.filter_automatic {
        rows.push(("Filter", "also of points in the vault".to_owned()));
    }
    rows.extend(match config.snapshot {
        VolumeSnapshot::Off => None,
        VolumeSnapshot::Auto => Some(("Snapshot", "of its volume, where there can be one".to_owned())),
        VolumeSnapshot::Btrfs => Some(("Snapshot", "of its volume, by Btrfs".to_owned())),
        VolumeSnapshot::Zfs => Some(("Snapshot", "of its volume, by ZFS".to_owned())),
        VolumeSnapshot::Lvm => Some(("Snapshot", "of its volume, by LVM".to_owned())),
    });
    if config.undo_on_unhealthy {
        rows.push(("Restore", "taken back when the app is not healthy".to_owned()));
    }
    rows.extend(
        config.post_restore.iter().map(|r| ("Replace", format!("{}: `{}` by `{}`", r.file, r.from, r.to))),
    );
    rows.push(("Group, plan", format!("{}, {}", config.resource_group, config.plan)));
    let newest = app.newest.map(|t| format!(", newest {}", time(t))).unwrap_or_default();
    rows.push(("Points", format!("{}{newest}", app.points)));
    rows
}

/// The app's own MySQL.
fn in_app(view: &InAppView) -> String {
    let what = match view.state {
        InAppState::Running => "running",
        InAppState::Stopped => "stopped",
        InAppState::Failed => "FAILED: it should run and does not",
        InAppState::Gone => "GONE: its data is not there",
    };
    format!("{what}, in {}", view.folder)
}

/// What differs from the default about databases.
fn databases(databases: &Databases) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if !databases.take {
        rows.push(("Databases", "not in its points".to_owned()));
    }
    rows.extend(
        databases.every.map(|every| ("Databases", format!("every {} in automatic points", duration(every)))),
    );
    rows.extend(databases.without.iter().map(|name| ("Databases", format!("without that of `{name}`"))));
    match databases.hashes {
        Some(Hashes::None) => rows.push(("Databases", "rows counted, content not hashed".to_owned())),
        Some(Hashes::All) => rows.push(("Databases", "content of all tables hashed".to_owned())),
        Some(Hashes::Affordable) | None => {}
    }
    rows
}

fn runtime(app: &AppDetails) -> Vec<(&'static str, String)> {
    let how = match &app.config.runtime {
        Runtime::Static => "static".to_owned(),
        Runtime::Command(it) => format!("command: {}", it.command),
        Runtime::Systemd { unit, user } => {
            format!("systemd unit {unit}{}", if *user { " of the user" } else { "" })
        }
        Runtime::Compose { file, project } => {
            let project = project.as_ref().map(|p| format!(", project {p}")).unwrap_or_default();
            format!("compose file {file}{project}")
        }
    };
    let mut rows = vec![("Runtime", how)];
    if let Runtime::Command(it) = &app.config.runtime {
        rows.extend(it.folder.clone().map(|f| ("Folder", f)));
        rows.extend(it.user.clone().map(|u| ("Runs as", u)));
        rows.extend(it.env.iter().map(|(name, value)| ("Variable", format!("{name}={value}"))));
        rows.extend(it.env_file.clone().map(|f| ("Variables", format!("from {f}"))));
        let again = if it.restart { "started again when it ends" } else { "not started again when it ends" };
        let signal = format!("{:?}", it.stop_signal).to_uppercase();
        rows.push(("Stops by", format!("{signal} within {}; {again}", duration(it.grace))));
    }
    let condition = app.condition.as_ref().filter(|c| c.state != AppState::Static);
    if let Some(c) = condition {
        let pid = c.pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
        let since = c.since.map(|t| format!(", since {}", time(t))).unwrap_or_default();
        let detail = c.detail.as_ref().map(|d| format!(": {d}")).unwrap_or_default();
        rows.push(("State", format!("{}{pid}{since}{detail}", c.state.word())));
    }
    rows.extend(app.condition_unknown.clone().map(|why| ("State", format!("unknown: {why}"))));
    rows.extend(app.log.clone().map(|path| ("Log", path)));
    rows
}
