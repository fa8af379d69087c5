//! `backstay restore`

use backstay_engine::{Engine, RestoreReport, RestoreRequest};
use backstay_model::Result;

use crate::args;
use crate::failure::{partial, say};
use crate::out::Out;
use crate::progress::Meter;
use crate::signals;
use crate::text::{count, duration, size, time};

/// Brings a point out into a new folder.
pub fn run(engine: &Engine, args: &args::Restore, out: &mut Out) -> Result<u8> {
    let cancel = signals::watch()?;
    let point = args.at.point.parse()?;
    let request =
        RestoreRequest { app: &args.at.app, point: &point, directory: &args.directory, paths: &args.paths };
    let report = {
        let meter = Meter::start();
        engine.restore(&request, &meter, &cancel)?
    };
    out.either(&report, text)?;
    out.finish()?;
    for note in report.problems.iter().filter(|p| !p.kind.is_failure()).take(5) {
        say(format!("note: {}: {}", note.path, note.detail));
    }
    let failures = report.failures();
    if failures.is_empty() {
        return Ok(0);
    }
    let n = u64::try_from(failures.len()).unwrap_or(u64::MAX);
    Ok(partial(&format!("the folder is not complete: {}", count(n, "problem")), &failures))
}

fn text(report: &RestoreReport) -> String {
    let point = &report.point.point;
    let took = duration(std::time::Duration::try_from_secs_f64(report.seconds).unwrap_or_default());
    format!(
        "Point {} of {} ({}) is in {}: {}, {}, {took}",
        point.id.short(),
        point.app,
        time(point.time),
        report.directory,
        count(report.counts.files, "file"),
        size(report.counts.bytes),
    )
}
