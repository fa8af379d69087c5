//! The command reference `docs/cli.md`, made from the definition of the command line and held equal to it.
//!
//! `BACKSTAY_WRITE_DOCS=1 cargo test -p backstay reference` writes it anew.

use std::fmt::Write as _;
use std::path::Path;

use backstay_model::Code;
use clap::CommandFactory as _;

use crate::args::Cli;

const HEAD: &str = "# Commands\n\nMade from the program itself (`BACKSTAY_WRITE_DOCS=1 cargo test -p backstay reference`): do not edit.\n\
    Exit status and error codes: [errors.md](errors.md). JSON: [cli-json.md](cli-json.md).\n";

fn docs(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

fn write(text: &mut String, command: &mut clap::Command, path: &str) {
    let name = format!("{path} {}", command.get_name()).trim().to_owned();
    let help = command.clone().bin_name(name.clone()).term_width(100).render_long_help().to_string();
    writeln!(text, "\n## `{name}`\n\n```text").unwrap();
    help.trim_end().lines().for_each(|line| writeln!(text, "{}", line.trim_end()).unwrap());
    writeln!(text, "```").unwrap();
    let below: Vec<clap::Command> =
        command.get_subcommands().filter(|c| c.get_name() != "help").cloned().collect();
    for mut sub in below {
        write(text, &mut sub, &name);
    }
}

#[test]
fn the_reference_is_that_of_the_program() {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut text = HEAD.to_owned();
    write(&mut text, &mut command, "");
    if std::env::var_os("BACKSTAY_WRITE_DOCS").is_some() {
        std::fs::write(docs("cli.md"), &text).unwrap();
    }
    let written = std::fs::read_to_string(docs("cli.md")).unwrap_or_default();
    assert!(
        written == text,
        "docs/cli.md is not up to date: BACKSTAY_WRITE_DOCS=1 cargo test -p backstay reference"
    );
}

#[test]
fn every_code_has_its_entry_with_its_status_and_no_entry_is_left_over() {
    let text = std::fs::read_to_string(docs("errors.md")).unwrap();
    let entries: Vec<(&str, &str)> =
        text.split("\n## ").skip(1).map(|e| e.split_once('\n').unwrap_or((e, ""))).collect();
    let names: Vec<&str> = entries.iter().map(|(name, _)| *name).collect();
    let codes: Vec<&str> = Code::ALL.iter().map(|c| c.as_str()).collect();
    assert_eq!(names, codes, "docs/errors.md has one entry per code, in their order");
    for (code, (name, body)) in Code::ALL.iter().zip(entries) {
        assert!(
            body.starts_with(&format!("Status {}", code.exit())),
            "{name}: the exit status is {}",
            code.exit()
        );
        let told = body.lines().next().unwrap_or_default().contains("try again");
        assert_eq!(told, code.retry() == backstay_model::Retry::Later, "{name}: `try again`");
    }
}
