//! `backstay setting …`

use backstay_engine::{AppState, Engine, Rotated, SettingSet, SettingView};
use backstay_model::app::Runtime;
use backstay_model::{AppName, Code, Result};
use serde::Serialize;

use crate::args::{Deleted, Listed, Mark, Named, Setting};
use crate::ask;
use crate::commands::backup;
use crate::failure::{more, say};
use crate::out::Out;
use crate::text::{Table, count, time};

#[derive(Serialize)]
struct Settings {
    app: AppName,
    settings: Vec<Shown>,
}

/// A setting, with its value where that was asked for.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    setting: SettingView,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
}

#[derive(Serialize)]
struct One {
    setting: SettingView,
}

/// Runs one of the commands.
pub fn run(engine: &Engine, command: Setting, out: &mut Out) -> Result<u8> {
    match command {
        Setting::Set { of, mark } => set(engine, &of, &mark, out),
        Setting::List(args) => list(engine, &args, out),
        Setting::Delete(args) => delete(engine, &args, out),
        Setting::RotateKey => rotate(engine, out),
    }
}

fn set(engine: &Engine, of: &Named, mark: &Mark, out: &mut Out) -> Result<u8> {
    let app: AppName = of.app.parse()?;
    engine.setting_list(&app)?;
    let value = ask::value(&format!("Value of {}", of.name.escape_debug()))?;
    let set = engine.set_setting(&app, &of.name, &value, mark.said())?;
    out.either(&set, |set: &SettingSet| {
        let how = if set.replaced { "has another value" } else { "is set" };
        format!("Setting `{}` of app `{app}` {how}", set.setting.name)
    })?;
    out.finish()?;
    if let Some(places) = &set.first_run {
        backup::tell_first_run("Made to keep its key", places);
    }
    tell_effect(engine, &app);
    Ok(0)
}

/// Says when an app will find what was changed.
pub fn tell_effect(engine: &Engine, app: &AppName) {
    // What was asked for is done; a look that fails is no reason to say otherwise.
    let Ok(app) = engine.app_show(app) else { return };
    let name = &app.name;
    let runs = app.condition.as_ref().is_some_and(|c| c.state == AppState::Running);
    match (&app.config.runtime, runs) {
        (Runtime::Command(_), true) => {
            say(format!("note: `{name}` runs; it finds this with `backstay app restart {name}`."));
        }
        (Runtime::Command(_), false) => {}
        (other, _) => say(format!(
            "note: the runtime of `{name}` is {}: only a command that Backstay starts finds its settings.",
            other.kind()
        )),
    }
}

fn list(engine: &Engine, args: &Listed, out: &mut Out) -> Result<u8> {
    let app: AppName = args.app.parse()?;
    let settings: Vec<Shown> = match args.reveal {
        true => {
            let all = engine.settings_revealed(&app)?.into_iter();
            all.map(|(setting, value)| Shown { setting, value: Some(value.reveal().to_owned()) }).collect()
        }
        false => {
            engine.setting_list(&app)?.into_iter().map(|setting| Shown { setting, value: None }).collect()
        }
    };
    if settings.is_empty() {
        say(format!("App `{app}` has no settings. `backstay setting set {app} NAME` gives it one."));
    }
    out.either(&Settings { app, settings }, |all| match all.settings.as_slice() {
        [] => String::new(),
        settings => table(settings, args.reveal),
    })?;
    Ok(0)
}

fn table(settings: &[Shown], reveal: bool) -> String {
    let headings = ["NAME", "SLOT", "CHANGED", "VALUE"];
    let mut table = Table::new(headings.get(..if reveal { 4 } else { 3 }).unwrap_or_default());
    for shown in settings {
        let setting = &shown.setting;
        let mut row =
            vec![setting.name.clone(), sticky(setting.slot_sticky).to_owned(), time(setting.changed)];
        row.extend(shown.value.as_deref().map(one_line));
        table.row(row);
    }
    table.to_string()
}

/// Whether something belongs to the slot, as a word of a table.
pub fn sticky(sticky: bool) -> &'static str {
    if sticky { "sticky" } else { "-" }
}

/// A value on one line of a table; `--json` has it as it is.
pub fn one_line(value: &str) -> String {
    value.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn delete(engine: &Engine, args: &Deleted, out: &mut Out) -> Result<u8> {
    let app: AppName = args.of.app.parse()?;
    engine.setting_list(&app)?;
    let name = args.of.name.escape_debug();
    ask::confirm(
        &format!("Take the setting `{name}` of app `{app}` away? Points that have it keep it."),
        args.yes,
    )?;
    let setting = engine.delete_setting(&app, &args.of.name)?;
    out.either(&One { setting }, |one| format!("Setting `{}` of app `{app}` is gone", one.setting.name))?;
    out.finish()?;
    tell_effect(engine, &app);
    Ok(0)
}

fn rotate(engine: &Engine, out: &mut Out) -> Result<u8> {
    let rotated = engine.rotate_key()?;
    out.either(&rotated, |rotated: &Rotated| {
        let values = count(rotated.resealed, "value");
        format!("The key {} seals from now on; {values} sealed anew with it", rotated.key)
    })?;
    out.finish()?;
    say(
        "Older keys stay in secrets.json: what is sealed with them still opens. `backstay kit export FILE` makes a kit with the new one.",
    );
    let Some(first) = rotated.left.first() else { return Ok(0) };
    let code = Code::PartiallySucceeded;
    let mut lines = vec![format!("warning: {} cannot be opened and stay as they are", rotated.left.len())];
    lines.extend(rotated.left.iter().map(|left| format!("  {}: {}", left.what, left.reason)));
    lines.push(format!("  code: {code}"));
    lines.push(format!("  do: {}", first.code.advice()));
    lines.push(format!("  more: {}", more(code)));
    say(lines.join("\n"));
    Ok(code.exit())
}
