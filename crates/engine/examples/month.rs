//! Hourly points under a clock of its own, for `bench/month`: a month passes in minutes.
//!
//!     month STATE HOME
//!
//! Each line on standard input is a time (RFC 3339): the clock is put there, an automatic point is taken, points expire. The
//! answer is one line of JSON with what it took. The product itself has no way to be told another time.

#![allow(missing_docs, clippy::print_stdout)]

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_engine::{BackupRequest, Clock as _, Engine, ExpireRequest, ManualClock, Setup};
use backstay_model::{Cancel, Code, Error, Origin, Result, Silent};
use jiff::Timestamp;
use serde::Serialize;

/// What an hour took.
#[derive(Serialize)]
struct Hour {
    backup_seconds: f64,
    expire_seconds: f64,
    /// Part of `expire_seconds`; 0 where space was not looked after.
    prune_seconds: f64,
    pruned: bool,
    points: usize,
    expired: usize,
}

fn main() -> std::process::ExitCode {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(state), Some(home)) = (args.next(), args.next()) else {
        println!("month STATE HOME, and a time on each line of standard input");
        return std::process::ExitCode::from(2);
    };
    match run(state, &home) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            println!("{e}: {:?}", e.causes());
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(state: PathBuf, home: &Path) -> Result<()> {
    let clock = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH, Duration::ZERO));
    let engine = Engine::new(Setup { state: Some(state), clock: clock.clone(), ..Setup::default() })?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::new(Code::System, "Cannot read the times").because(e))?;
        let time: Timestamp = line
            .trim()
            .parse()
            .map_err(|e| Error::new(Code::InvalidValue, format!("`{line}` is no time")).because(e))?;
        let step = time.duration_since(clock.now());
        clock.pass(step.try_into().unwrap_or(Duration::ZERO));
        let hour = hour(&engine, home)?;
        let json = serde_json::to_string(&hour)
            .map_err(|e| Error::new(Code::Internal, "Cannot write JSON").because(e))?;
        println!("{json}");
    }
    Ok(())
}

fn hour(engine: &Engine, home: &Path) -> Result<Hour> {
    let begun = Instant::now();
    let request = BackupRequest { origin: Origin::Automatic, ..BackupRequest::of(home) };
    let report = engine.backup(&request, &Silent, &Cancel::new())?;
    let backup_seconds = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let app = report.point.point.app.as_str();
    let request = ExpireRequest { app: Some(app), dry_run: false, origin: Origin::Automatic };
    let expiry = engine.expire(&request, &Silent, &Cancel::new())?;
    let expire_seconds = begun.elapsed().as_secs_f64();
    if let Some(e) = expiry.prune_failed {
        return Err(e);
    }
    Ok(Hour {
        backup_seconds,
        expire_seconds,
        prune_seconds: expiry.prune_seconds,
        pruned: expiry.pruned.is_some(),
        points: expiry.apps.iter().map(|a| a.kept).sum(),
        expired: expiry.apps.iter().map(|a| a.expired.len()).sum(),
    })
}
