//! `backstay kit …`, and what is told when a vault was taken on.

use backstay_engine::{Attached, Engine};
use backstay_model::Result;

use crate::failure::say;
use crate::out::Out;
use crate::text::count;
use crate::{args, ask};

/// Runs one of the commands.
pub fn run(engine: &Engine, command: args::Kit, out: &mut Out) -> Result<u8> {
    match command {
        args::Kit::Export { file, passphrase_file } => {
            let passphrase = ask::new_secret("Passphrase for the kit", passphrase_file.as_deref())?;
            let kit = engine.kit_export(&file, &passphrase)?;
            say(format!("The kit for {} is in {}.", kit.vault, kit.file));
            if kit.same_disk_as_vault {
                say(
                    "It lies on the disk of the vault. Keep it elsewhere: whoever has lost that disk needs it.",
                );
            }
            say("Keep the passphrase apart from it. Without kit and password nobody can open the vault.");
            if out.json { out.value(&kit).map(|()| 0) } else { Ok(0) }
        }
        args::Kit::Open { file, passphrase_file } => {
            let passphrase = ask::secret("Passphrase of the kit", passphrase_file.as_deref())?;
            let attached = engine.kit_open(&file, &passphrase)?;
            tell(&attached);
            if out.json { out.value(&attached).map(|()| 0) } else { Ok(0) }
        }
    }
}

/// Tells what a vault that was taken on holds, and how to go on.
pub fn tell(attached: &Attached) {
    let places = &attached.places;
    say(format!("State    {}\nSecrets  {}\nVault    {}", places.state, places.secrets, places.vault));
    let points = count(u64::try_from(attached.points).unwrap_or(u64::MAX), "point");
    match attached.apps.as_slice() {
        [] => say(format!("The vault holds {points}.")),
        apps => say(format!("The vault holds {points} of {}.", apps.join(", "))),
    }
    if let Some(app) = attached.apps.first() {
        say(format!("Go on with `backstay list` and `backstay restore {app} --directory DIR`."));
    }
}
