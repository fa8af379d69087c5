//! The binary `backstay`: a table of contents.
//!
//! `args` says what can be asked, `commands` does it through the engine, `out`, `failure`, `progress`, `text` show
//! it, `ask` and `signals` listen to the person.

mod args;
mod ask;
mod commands;
mod failure;
mod out;
mod progress;
#[cfg(test)]
mod reference;
mod signals;
mod text;

use std::process::ExitCode;

use backstay_engine::{Engine, Setup, sqlite};
use backstay_model::{Code, Error, Result};
use clap::Parser as _;

use crate::args::{Cli, Command, Global};
use crate::out::Out;

fn main() -> ExitCode {
    // The child that reads files of SQLite: it is for no person, so it is no command.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == sqlite::CHILD_WORD) {
        return ExitCode::from(sqlite::child_main(words));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    let mut out = Out::new(cli.global.json);
    let json = cli.global.json;
    let result = run(cli, &mut out).and_then(|status| out.finish().map(|()| status));
    // Whatever failed after the reader had gone, nobody waits for it.
    let status = match result {
        Err(_) if out.gone() => 0,
        other => other.unwrap_or_else(|e| {
            drop(out);
            failure::show(&e, json)
        }),
    };
    ExitCode::from(status)
}

/// Help and version are data; everything else is a mistake in the words of the command.
fn usage(e: &clap::Error) -> ExitCode {
    if !e.use_stderr() {
        // Nobody reads it when this fails.
        let _unread = e.print();
        return ExitCode::SUCCESS;
    }
    let text = e.to_string();
    let (first, rest) = text.trim_end().split_once('\n').unwrap_or((text.trim_end(), ""));
    let message = first.trim_start_matches("error: ").trim_end_matches(':').to_owned();
    if e.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        failure::say(text.trim_end());
        return ExitCode::from(Code::Usage.exit());
    }
    let mut letters = message.chars();
    let message: String =
        letters.next().map(|c| c.to_uppercase().chain(letters).collect()).unwrap_or_default();
    let mut error = Error::new(Code::Usage, message);
    let said = |line: &&str| !line.is_empty() && !line.starts_with("For more information");
    let rest: Vec<&str> = rest.lines().map(str::trim).filter(said).collect();
    if !rest.is_empty() {
        error = error.because(rest.join("\n"));
    }
    let json = std::env::args_os().any(|a| a == "--json");
    ExitCode::from(failure::show(&error, json))
}

fn engine(global: Global) -> Result<Engine> {
    Engine::new(Setup { state: global.home, vault: global.vault, ..Setup::default() })
}

fn run(cli: Cli, out: &mut Out) -> Result<u8> {
    if let Command::Completions { shell } = cli.command {
        return commands::completions(shell, out);
    }
    if let Command::Serve = cli.command {
        return commands::serve::run(&|| engine(cli.global.clone()));
    }
    let engine = engine(cli.global)?;
    for resumed in engine.resume()? {
        let word = if resumed.stuck { "warning" } else { "note" };
        failure::say(format!("{word}: {}", resumed.what));
    }
    match cli.command {
        Command::Backup(args) => commands::backup::run(&engine, &args, out),
        Command::List { app, container: Some(container), .. } => {
            commands::custom::list(&engine, app.as_deref(), &container, out)
        }
        Command::List { app, removed, .. } => commands::points::list(&engine, app.as_deref(), removed, out),
        Command::Download(args) => commands::custom::download(&engine, &args, out),
        Command::Container(command) => commands::container::run(&engine, command, out),
        Command::Schedule(command) => commands::schedule::run(&engine, command, out),
        Command::Show(at) => commands::points::show(&engine, &at, out),
        Command::Files(args) => commands::points::files(&engine, &args, out),
        Command::Cat(args) => commands::points::cat(&engine, &args, out),
        Command::Diff(args) => commands::points::diff(&engine, &args, out),
        Command::Restore(args) => commands::restore::run(&engine, &args, out),
        Command::Undo(args) => commands::restore::undo(&engine, &args, out),
        Command::Delete(args) => commands::points::delete(&engine, &args, out),
        Command::Pin(at) => commands::points::pin(&engine, &at, true, out),
        Command::Unpin(at) => commands::points::pin(&engine, &at, false, out),
        Command::Verify(at) => commands::points::verify(&engine, &at, out),
        Command::Export(args) => commands::archive::export(&engine, &args, out),
        Command::Import(args) => commands::archive::import(&engine, &args, out),
        Command::Vault(command) => commands::vault::run(&engine, command, out),
        Command::Kit(command) => commands::kit::run(&engine, command, out),
        Command::App(command) => commands::app::run(&engine, command, out),
        Command::Setting(command) => commands::setting::run(&engine, command, out),
        Command::Connection(command) => commands::connection::run(&engine, command, out),
        Command::Job(command) => commands::job::run(&engine, command, out),
        Command::Retention(command) => commands::retention::run(&engine, &command, out),
        Command::Notify(command) => commands::notify::run(&engine, command, out),
        Command::Status => commands::status::run(&engine, out),
        Command::Serve | Command::Completions { .. } => Ok(0),
    }
}
