//! One file per group of commands: from arguments to a use case of the engine, from its result to text or JSON.

pub mod app;
pub mod archive;
pub mod backup;
pub mod connection;
pub mod container;
pub mod custom;
pub mod job;
pub mod kit;
pub mod notify;
mod places;
mod plan_text;
pub mod points;
pub mod restore;
pub mod retention;
pub mod schedule;
pub mod serve;
pub mod setting;
pub mod status;
pub mod vault;

use std::io::Write as _;

use backstay_model::{Code, Error, Result};
use clap::CommandFactory as _;

use crate::args::Cli;
use crate::out::Out;

/// The completion script of a shell.
pub fn completions(shell: clap_complete::Shell, out: &mut Out) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "backstay", &mut script);
    match out.write_all(&script) {
        Err(e) if !out.gone() => Err(Error::new(Code::System, "Cannot write to standard output").because(e)),
        _ => Ok(0),
    }
}
