//! `backstay export`, `backstay import`, and the archive of a `backstay restore`

use std::path::Path;

use backstay_engine::{
    ArchiveName, ArchiveSource, Engine, ExportReport, ExportRequest, ImportReport, ImportRequest, Proof,
    SealBy,
};
use backstay_model::{AppName, Code, Result};

use crate::args::{self, FromArchive};
use crate::failure::{partial, partial_as, say};
use crate::out::Out;
use crate::progress::Meter;
use crate::text::{count, duration, size, time};
use crate::{ask, signals};

/// By what settings are sealed that go into an archive.
pub fn seal_by(args: &args::Seal) -> Result<SealBy> {
    Ok(match &args.passphrase_file {
        Some(file) => SealBy::Passphrase(ask::secret("Passphrase for the settings", Some(file))?),
        None if args.plain_settings => SealBy::Plain,
        None if !args.recipients.is_empty() => SealBy::Recipients(args.recipients.clone()),
        None => SealBy::Server,
    })
}

/// Writes a point as an archive.
pub fn export(engine: &Engine, args: &args::Export, out: &mut Out) -> Result<u8> {
    let point = args.at.point.parse()?;
    let name = args.name.as_deref().map(ArchiveName::parse).transpose()?;
    let seal = seal_by(&args.seal)?;
    let to = match (&args.directory, args.container.as_deref()) {
        (Some(folder), _) => engine.folder_container(folder)?,
        (None, container) => engine.container_open(container.unwrap_or_default())?.storage,
    };
    let request =
        ExportRequest { app: &args.at.app, point: &point, to: &to, name: name.as_ref(), seal: &seal };
    let cancel = signals::watch()?;
    let report = {
        let meter = Meter::start();
        engine.export(&request, &meter, &cancel)?
    };
    // Known by its name from now on, as what `backup --container` writes.
    if let Some(container) = &args.container
        && let Err(e) = engine.list_container(container)
    {
        say(format!("note: the container could not be looked into afterwards: {e}"));
    }
    out.either(&report, exported)?;
    out.finish()?;
    if report.settings == Some("plain") {
        say("The settings in it are plain: whoever has the zip reads them.");
    }
    let failures = report.failures();
    if failures.is_empty() {
        return Ok(0);
    }
    let n = u64::try_from(failures.len()).unwrap_or(u64::MAX);
    Ok(partial(&format!("the archive is not all of the point: {}", count(n, "problem")), &failures))
}

fn exported(report: &ExportReport) -> String {
    let point = &report.point.point;
    let took = duration(std::time::Duration::try_from_secs_f64(report.seconds).unwrap_or_default());
    format!(
        "Point {} of {} ({}) is {}.zip and {}.xml in {}: {}, {took}",
        point.id.short(),
        point.app,
        time(point.time),
        report.name,
        report.name,
        report.container,
        size(report.bytes),
    )
}

/// Brings an archive into the vault as a point.
pub fn import(engine: &Engine, args: &args::Import, out: &mut Out) -> Result<u8> {
    let app = args.app.as_deref().map(str::parse::<AppName>).transpose()?;
    let Some(from) = source(engine, args.file.as_deref(), &args.from)? else { return Ok(0) };
    let report = bring_in(engine, &from, &args.from, app.as_ref())?;
    out.either(&report, imported)?;
    out.finish()?;
    tell(&report);
    if report.new_app {
        let (app, id) = (&report.point.point.app, report.point.point.id.short());
        say(format!(
            "App `{app}` has no home on this machine. To make an app of the point: backstay restore {app} {id} --to NAME"
        ));
    }
    let failures = report.failures();
    if report.settings_sealed || failures.is_empty() {
        return Ok(sealed(&report).unwrap_or(0));
    }
    let n = u64::try_from(failures.len()).unwrap_or(u64::MAX);
    Ok(partial(&format!("the archive was not complete when it was made: {}", count(n, "problem")), &failures))
}

/// The archive that arguments name; none where they name none.
pub fn source(engine: &Engine, file: Option<&Path>, from: &FromArchive) -> Result<Option<ArchiveSource>> {
    Ok(match (file, &from.container, &from.name) {
        (Some(file), ..) => Some(ArchiveSource::File(file.to_owned())),
        (None, Some(container), Some(name)) => Some(ArchiveSource::Stored {
            container: engine.container_open(container)?.storage,
            name: ArchiveName::parse(name)?,
        }),
        _ => None,
    })
}

/// Brings in an archive, as `import` and `restore` do.
pub fn bring_in(
    engine: &Engine,
    from: &ArchiveSource,
    how: &FromArchive,
    app: Option<&AppName>,
) -> Result<ImportReport> {
    let passphrase = how.passphrase_file.as_deref();
    let passphrase = passphrase.map(|file| ask::secret("The passphrase", Some(file))).transpose()?;
    let request = ImportRequest {
        from,
        app,
        accept_unverified: how.accept_unverified,
        passphrase: passphrase.as_ref(),
    };
    let cancel = signals::watch()?;
    let meter = Meter::start();
    engine.import(&request, &meter, &cancel)
}

/// What was brought in, as a line.
pub fn imported(report: &ImportReport) -> String {
    let point = &report.point.point;
    let what = format!("Point {} of {} ({})", point.id.short(), point.app, time(point.time));
    if report.already {
        return format!("{what} is in the vault already: nothing was written");
    }
    let took = duration(std::time::Duration::try_from_secs_f64(report.seconds).unwrap_or_default());
    format!(
        "{what} brought in: {}, {}, {} added to the vault, {took}",
        count(point.files, "file"),
        size(point.bytes),
        size(point.added_bytes),
    )
}

/// What a person should know of an archive that was brought in.
pub fn tell(report: &ImportReport) {
    if let Some(places) = &report.first_run {
        say(format!(
            "Made for it:\n  state    {}\n  secrets  {}\n  vault    {}\nKeep a recovery kit away from this machine: backstay \
             kit export FILE",
            places.state, places.secrets, places.vault
        ));
    }
    let proof = report.archive.as_ref().map_or(Proof::Signed, |a| a.proof);
    match proof {
        Proof::Signed => {}
        Proof::UnknownKey => {
            say("note: the archive is whole; it was signed by a server that is not known here.")
        }
        Proof::Unsigned => say("note: the archive is whole; nobody signed it."),
        Proof::Nothing => say("note: nothing vouches for the archive: it was taken as it is."),
    }
    if let Some(other) = report.archive.as_ref().map(|a| &a.app)
        && !other.is_empty()
        && *other != report.point.point.app.as_str()
    {
        say(format!("note: the archive is of the app `{}`.", other.escape_debug()));
    }
    for note in report.problems.iter().filter(|p| !p.kind.is_failure()).take(5) {
        say(format!("note: {}: {}", note.path, note.detail));
    }
}

/// Tells that settings could not be opened; gives the exit status then.
pub fn sealed(report: &ImportReport) -> Option<u8> {
    report.settings_sealed.then(|| partial_as(Code::SettingsSealed, "the settings stay sealed", &[]))
}
