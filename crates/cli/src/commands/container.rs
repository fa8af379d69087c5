//! `backstay container …`

use backstay_engine::{
    ContainerTest, ContainerView, Engine, NewContainer, PaceHours, StorageOptions, asked_for, parse_size,
};
use backstay_model::{Code, Error, Result};
use serde::Serialize;

use crate::args::{self, ContainerAdd};
use crate::ask;
use crate::commands::backup;
use crate::failure::say;
use crate::out::Out;
use crate::text::{Table, count, size, time};

#[derive(Serialize)]
struct Containers {
    containers: Vec<ContainerView>,
}

#[derive(Serialize)]
struct One {
    container: ContainerView,
}

/// Runs one of the commands.
pub fn run(engine: &Engine, command: args::Container, out: &mut Out) -> Result<u8> {
    match command {
        args::Container::Add(args) => add(engine, &args, out),
        args::Container::List => list(engine, out),
        args::Container::Show { name } => {
            out.either(&One { container: engine.container_show(&name)? }, |one| details(&one.container))?;
            Ok(0)
        }
        args::Container::Test { name } => test(engine, &name, out),
        args::Container::Remove { name, yes } => {
            let container = engine.container_show(&name)?;
            let left = match container.backups {
                0 => String::new(),
                n => format!(" The {} in it stay.", count(u64::try_from(n).unwrap_or(u64::MAX), "backup")),
            };
            ask::confirm(&format!("Forget the container `{name}` ({})?{left}", container.address), yes)?;
            let container = engine.container_remove(&name)?;
            say(format!("Container `{name}` is forgotten.{left}"));
            if out.json {
                out.value(&One { container })?;
            }
            Ok(0)
        }
    }
}

fn add(engine: &Engine, args: &ContainerAdd, out: &mut Out) -> Result<u8> {
    let credentials = match args.address.as_deref().map(asked_for).transpose()? {
        // A folder needs none.
        Some(None) => None,
        Some(Some(what)) => Some(ask::secret_text(what, args.credentials_file.as_deref())?),
        None => Some(ask::secret_text(
            "URL of the container with its signature",
            args.credentials_file.as_deref(),
        )?),
    };
    let added = engine.container_add(&NewContainer {
        name: &args.name,
        address: args.address.as_deref(),
        credentials,
        options: options(args)?,
        create: args.create,
        replace: args.replace,
        untested: args.untested,
    })?;
    let container = &added.container;
    if out.json {
        out.value(&added)?;
    } else {
        out.line(format!("Container `{}` is {}", container.name, container.address))?;
    }
    out.finish()?;
    if !added.test.passed {
        say("warning: it was kept although its test failed:");
        say(steps(&added.test));
    }
    tell(&added.test);
    if let Some(places) = &added.first_run {
        backup::tell_first_run("Made to keep its key", places);
    }
    Ok(0)
}

fn options(args: &ContainerAdd) -> Result<StorageOptions> {
    let mut options = StorageOptions::default();
    options.pace.bytes_per_second = args.limit.as_deref().map(pace).transpose()?.flatten();
    options.pace.hours = args.limit_hours.iter().map(|text| hours(text)).collect::<Result<_>>()?;
    options.network.source_address = args.source;
    options.network.interface.clone_from(&args.interface);
    options.network.proxy.clone_from(&args.proxy);
    if let Some(file) = &args.ca_file {
        let missing = |e: std::io::Error| {
            Error::new(Code::InvalidValue, format!("There is no file {}", file.display())).because(e)
        };
        options.network.ca_file = Some(file.canonicalize().map_err(missing)?);
    }
    Ok(options)
}

/// Bytes a second; none for no limit.
fn pace(text: &str) -> Result<Option<u64>> {
    if text == "none" {
        return Ok(None);
    }
    let bad = || {
        Error::new(Code::InvalidValue, format!("`{}` is not a pace", text.escape_debug()))
            .advise("Write 5MB/s, 500kB/s, or none.")
    };
    let bytes = text.strip_suffix("/s").ok_or_else(bad).and_then(parse_size)?;
    if bytes == 0 { Err(bad()) } else { Ok(Some(bytes)) }
}

/// `FROM-TO=PACE`
fn hours(text: &str) -> Result<PaceHours> {
    let bad = || {
        Error::new(Code::InvalidValue, format!("`{}` is not a pace for hours", text.escape_debug()))
            .advise("Write 22-6=50MB/s: from 22:00 to 6:00. Hours are 0 to 24.")
    };
    let (span, limit) = text.split_once('=').ok_or_else(bad)?;
    let (from, to) = span.split_once('-').ok_or_else(bad)?;
    let (from, to) =
        (from.parse().map_err(|_not_a_number| bad())?, to.parse().map_err(|_not_a_number| bad())?);
    if from > 23 || to > 24 {
        return Err(bad());
    }
    Ok(PaceHours { from, to, bytes_per_second: pace(limit)? })
}

fn list(engine: &Engine, out: &mut Out) -> Result<u8> {
    let containers = engine.container_list()?;
    if containers.is_empty() {
        say(format!(
            "No containers yet in the state {}. `backstay container add NAME` makes one known.",
            engine.state().display()
        ));
    }
    out.either(&Containers { containers }, |all| {
        if all.containers.is_empty() { String::new() } else { table(&all.containers) }
    })?;
    Ok(0)
}

fn table(containers: &[ContainerView]) -> String {
    let mut table =
        Table::new(&["NAME", "KIND", "OPENED BY", "VALID UNTIL", " BACKUPS", "USED BY", "ADDRESS"]);
    for container in containers {
        let used: Vec<String> = container.used_by.iter().map(ToString::to_string).collect();
        table.row([
            container.name.clone(),
            container.kind.clone(),
            container.opened_by.clone(),
            until(container),
            container.backups.to_string(),
            if used.is_empty() { "-".to_owned() } else { used.join(",") },
            container.address.clone(),
        ]);
    }
    table.to_string()
}

fn until(container: &ContainerView) -> String {
    match container.expires {
        None => "-".to_owned(),
        Some(until) if container.expires_soon => format!("{} SOON", time(until)),
        Some(until) => time(until),
    }
}

fn details(container: &ContainerView) -> String {
    let used: Vec<String> = container.used_by.iter().map(ToString::to_string).collect();
    let network = &container.options.network;
    let mut rows = vec![
        ("Name", container.name.clone()),
        ("Address", container.address.clone()),
        ("Kind", container.kind.clone()),
        ("Opened by", container.opened_by.clone()),
        ("Valid until", until(container)),
        ("Backups", container.backups.to_string()),
        ("Used by", if used.is_empty() { "-".to_owned() } else { used.join(", ") }),
        ("Added", time(container.created)),
    ];
    let pace = |bytes: Option<u64>| bytes.map_or_else(|| "no limit".to_owned(), |b| format!("{}/s", size(b)));
    if container.options.pace.is_limited() {
        rows.push(("Pace", pace(container.options.pace.bytes_per_second)));
    }
    for hours in &container.options.pace.hours {
        rows.push(("Pace", format!("{}:00 to {}:00 {}", hours.from, hours.to, pace(hours.bytes_per_second))));
    }
    rows.extend(network.source_address.map(|a| ("Source", a.to_string())));
    rows.extend(network.interface.clone().map(|i| ("Interface", i)));
    rows.extend(network.proxy.clone().map(|p| ("Proxy", p)));
    rows.extend(network.ca_file.as_ref().map(|f| ("CA file", f.display().to_string())));
    rows.iter().map(|(name, value)| format!("{name:<13}{value}\n")).collect()
}

fn test(engine: &Engine, name: &str, out: &mut Out) -> Result<u8> {
    let test = engine.container_test(name)?;
    out.either(&test, |test| {
        let end = if test.passed { "passed" } else { "FAILED" };
        format!("{}\nContainer `{}` {end}: {}", steps(test), test.name, test.address)
    })?;
    out.finish()?;
    tell(&test);
    let failed = test.steps.iter().find_map(|s| s.error.as_ref());
    Ok(failed.map_or(0, |e| e.code.exit()))
}

fn steps(test: &ContainerTest) -> String {
    let mut lines = Vec::new();
    for step in &test.steps {
        let how = match step.passed {
            Some(true) => "ok",
            Some(false) => "FAILED",
            None => "not tried",
        };
        lines.push(format!("{:<8}{how}", step.step));
        if let Some(error) = &step.error {
            lines.push(format!("  {}", error.message));
            lines.push(format!("  code: {}", error.code));
            lines.extend(error.cause.iter().map(|cause| format!("  cause: {cause}")));
            lines.push(format!("  do: {}", error.advice));
        }
    }
    lines.join("\n")
}

fn tell(test: &ContainerTest) {
    for warning in &test.warnings {
        say(format!("warning: {warning}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paces_and_their_hours_are_read_or_refused() {
        assert_eq!(pace("5MB/s").unwrap(), Some(5_000_000));
        assert_eq!(pace("none").unwrap(), None);
        let night = hours("22-6=50MB/s").unwrap();
        assert_eq!((night.from, night.to, night.bytes_per_second), (22, 6, Some(50_000_000)));
        assert_eq!(hours("0-24=none").unwrap().bytes_per_second, None);
        for bad in ["5MB", "/s", "0MB/s", "fast"] {
            assert_eq!(pace(bad).unwrap_err().code(), Code::InvalidValue, "{bad}");
        }
        for bad in ["22-6", "22=1MB/s", "24-6=1MB/s", "1-25=1MB/s", "a-b=1MB/s", "-1-2=1MB/s"] {
            assert_eq!(hours(bad).unwrap_err().code(), Code::InvalidValue, "{bad}");
        }
    }
}
