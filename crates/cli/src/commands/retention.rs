//! `backstay retention`: what the automatic policy keeps, and doing what it says.

use backstay_engine::{Engine, ExpireRequest, Expiry, Simulation, Steady, simulate};
use backstay_model::retention::{Expire, Keep};
use backstay_model::{Origin, Result};
use jiff::Timestamp;

use crate::args::Retention;
use crate::failure::{self, say};
use crate::out::Out;
use crate::progress::Meter;
use crate::signals;
use crate::text::{Table, count, number, size, time};

/// One of the group.
pub fn run(engine: &Engine, command: &Retention, out: &mut Out) -> Result<u8> {
    match command {
        Retention::Simulate { hours } => {
            out.either(&simulate(Timestamp::now(), *hours), simulation_text)?;
            Ok(0)
        }
        Retention::Apply { app, dry_run } => apply(engine, app.as_deref(), *dry_run, out),
    }
}

fn many(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn simulation_text(simulation: &Simulation) -> String {
    let mut table = Table::new(&[" AGE (h)", "TAKEN", "KEPT AS"]);
    for point in &simulation.kept {
        table.row(vec![
            number(u64::try_from(point.age_hours).unwrap_or(0)),
            time(point.time),
            keep_name(point.why).to_owned(),
        ]);
    }
    let counts = &simulation.counts;
    let mut text = format!(
        "{table}\n{} of {} stay: {} of the first 3 days, {} until 14 days (one of three hours), {} until 30 days (one of \
         six hours)\n",
        number(many(simulation.kept_count)),
        count(u64::from(simulation.hours), "hourly point"),
        counts.hourly,
        counts.third_hour,
        counts.sixth_hour,
    );
    match simulation.steady {
        Some(Steady { least, most }) if least == most => {
            text.push_str(&format!("From day 31 on there were {least} at every hour\n"));
        }
        Some(Steady { least, most }) => {
            text.push_str(&format!("From day 31 on there were {least} to {most}\n"))
        }
        None => {}
    }
    text
}

fn keep_name(why: Keep) -> &'static str {
    match why {
        Keep::Hourly => "hourly",
        Keep::ThirdHour => "one of 3 hours",
        Keep::SixthHour => "one of 6 hours",
        _ => "kept",
    }
}

fn apply(engine: &Engine, app: Option<&str>, dry_run: bool, out: &mut Out) -> Result<u8> {
    let cancel = signals::watch()?;
    let result = {
        let meter = Meter::start();
        engine.expire(&ExpireRequest { app, dry_run, origin: Origin::Manual }, &meter, &cancel)?
    };
    out.either(&result, |r| apply_text(r, dry_run))?;
    out.finish()?;
    for app in &result.apps {
        if let Some(why) = &app.put_off {
            say(format!("note: points of {} did not expire this time: {why}", app.app));
        }
    }
    match &result.prune_failed {
        None => Ok(0),
        Some(e) => {
            say("The points expired; freeing their space failed:");
            Ok(failure::show(e, false))
        }
    }
}

fn apply_text(result: &Expiry, dry_run: bool) -> String {
    if let Some(hold) = &result.held {
        return format!("Nothing expires until {}: {}\n", time(hold.until), hold.why);
    }
    let word = if dry_run { "would expire" } else { "expired" };
    let mut text = String::new();
    for app in &result.apps {
        let gone = many(app.expired.len());
        text.push_str(&format!(
            "{}: {} {word}, {} stay\n",
            app.app,
            count(gone, "point"),
            number(many(app.kept))
        ));
        for point in &app.expired {
            text.push_str(&format!(
                "  {}  {}  {}\n",
                point.id.short(),
                time(point.time),
                expire_name(point.why)
            ));
        }
    }
    if let Some(outcome) = result.pruned.as_ref().and_then(|p| p.outcome.as_ref()) {
        let freed = outcome.deleted.bytes.saturating_sub(outcome.written.bytes);
        text.push_str(&format!("{} freed in the vault\n", size(freed)));
    }
    text
}

fn expire_name(why: Expire) -> &'static str {
    match why {
        Expire::Thinned => "thinned",
        _ => "older than 30 days",
    }
}
