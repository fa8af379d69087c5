//! `backstay vault …`

use backstay_engine::Engine;
use backstay_model::Result;

use crate::commands::kit;
use crate::failure::say;
use crate::out::Out;
use crate::{args, ask};

mod keys;
mod maintain;

/// Runs one of the commands.
pub fn run(engine: &Engine, command: args::Vault, out: &mut Out) -> Result<u8> {
    match command {
        args::Vault::Init => init(engine, out),
        args::Vault::Attach { address, password_file } => {
            let attached = match engine.switch_vault(&address)? {
                Some(attached) => {
                    say(
                        "This state uses that vault from now on. Kits made before name the old one: make a new kit.",
                    );
                    attached
                }
                None => {
                    let password = ask::secret("Password of the vault", password_file.as_deref())?;
                    engine.attach(&address, &password)?
                }
            };
            kit::tell(&attached);
            if out.json { out.value(&attached).map(|()| 0) } else { Ok(0) }
        }
        args::Vault::Key(command) => keys::run(engine, command, out),
        args::Vault::Stats => maintain::stats(engine, out),
        args::Vault::Check { read_data } => maintain::check(engine, read_data, out),
        args::Vault::Repair(args) => maintain::repair(engine, &args, out),
        args::Vault::Prune { dry_run } => maintain::prune(engine, dry_run, out),
        args::Vault::Unlock { all, yes } => maintain::unlock(engine, all, yes, out),
        args::Vault::Copy { address, app, password_file } => {
            maintain::copy(engine, &address, app.as_deref(), password_file.as_deref(), out)
        }
    }
}

fn init(engine: &Engine, out: &mut Out) -> Result<u8> {
    let made = engine.vault_init()?;
    let places = &made.places;
    say(format!(
        "A new vault was made.\n  state    {}\n  secrets  {}\n  vault    {}",
        places.state, places.secrets, places.vault
    ));
    if made.default {
        say("Keep a recovery kit away from this machine: `backstay kit export FILE`.");
    } else {
        say(format!("It has the password of this state. Use it with --vault {}.", places.vault));
    }
    if out.json { out.value(&made).map(|()| 0) } else { Ok(0) }
}
