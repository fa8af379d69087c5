//! `backstay schedule …`

use backstay_engine::{Engine, ScheduleChange, ScheduleView};
use backstay_model::Result;

use crate::args::{self, ScheduleSet};
use crate::failure::say;
use crate::out::Out;
use crate::text::time;

/// Runs one of the commands.
pub fn run(engine: &Engine, command: args::Schedule, out: &mut Out) -> Result<u8> {
    let view = match command {
        args::Schedule::Set(args) => set(engine, &args)?,
        args::Schedule::Show { app } => engine.schedule_show(&app)?,
        args::Schedule::Clear { app } => {
            let view = engine.schedule_clear(&app)?;
            say(format!(
                "No custom backups of `{}` are taken by themselves. Those that were stay.",
                view.app
            ));
            if out.json {
                out.value(&view)?;
            }
            return Ok(0);
        }
    };
    out.either(&view, text)?;
    out.finish()?;
    if view.schedule.is_some() && !view.server {
        say("warning: no scheduler runs: `backstay serve` takes them (docs/operations.md)");
    }
    Ok(0)
}

fn set(engine: &Engine, args: &ScheduleSet) -> Result<ScheduleView> {
    engine.schedule_set(
        &args.app,
        &ScheduleChange {
            every: args.every.as_deref(),
            start: args.start.as_deref(),
            keep: args.keep.as_deref(),
            keep_one: (args.keep_one || args.no_keep_one).then_some(args.keep_one),
            container: args.container.as_deref(),
        },
    )
}

fn text(view: &ScheduleView) -> String {
    let Some(schedule) = &view.schedule else {
        return format!("No custom backups of `{}` are taken by themselves.\n", view.app);
    };
    let mut rows = vec![
        ("App", view.app.to_string()),
        ("Schedule", schedule.to_string()),
        ("First", time(schedule.start)),
        ("Next", view.next_run.map_or_else(|| "-".to_owned(), time)),
    ];
    if let Some(last) = &view.last_result {
        let how = match (&last.failed, &last.code) {
            (true, code) => format!("failed ({})", code.as_deref().unwrap_or("no code")),
            (false, Some(_)) => "partial".to_owned(),
            (false, None) => "succeeded".to_owned(),
        };
        rows.push(("Last", format!("{} {how}: {}", time(last.time), last.message)));
    }
    rows.iter().map(|(name, value)| format!("{name:<10}{value}\n")).collect()
}
