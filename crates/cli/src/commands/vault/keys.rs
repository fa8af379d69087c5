//! `backstay vault key …`

use backstay_engine::{Engine, KeyInfo};
use backstay_model::{Cancel, Result};
use serde::Serialize;

use crate::failure::say;
use crate::out::Out;
use crate::text::{Table, time};
use crate::{args, ask};

#[derive(Serialize)]
struct Keys {
    keys: Vec<KeyInfo>,
}

#[derive(Serialize)]
struct OneKey {
    id: String,
}

/// Runs one of the commands.
pub fn run(engine: &Engine, command: args::Key, out: &mut Out) -> Result<u8> {
    match command {
        args::Key::List => out.either(&Keys { keys: engine.keys()? }, |k| table(&k.keys))?,
        args::Key::Add { password_file } => {
            let password = ask::new_secret("New password of the vault", password_file.as_deref())?;
            let id = engine.key_add(&password, &Cancel::new())?;
            say(format!("Key {} added. It opens the vault beside the others.", short(&id)));
            if out.json {
                out.value(&OneKey { id })?;
            }
        }
        args::Key::Remove { id, yes } => {
            ask::confirm(&format!("Remove key {id}? Its password will not open the vault any more."), yes)?;
            let id = engine.key_remove(&id, &Cancel::new())?;
            say(format!(
                "Key {} removed. Whoever opened the vault with it before may have kept what it opens: for data that \
                 must be safe from them, copy the points into a new vault (`backstay vault copy`).",
                short(&id)
            ));
            if out.json {
                out.value(&OneKey { id })?;
            }
        }
    }
    Ok(0)
}

fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

fn table(keys: &[KeyInfo]) -> String {
    let mut table = Table::new(&["KEY", "CREATED", "BY", "HOST", "NOTE"]);
    for key in keys {
        let note = if key.in_use { "in use here" } else { "" };
        let (user, host) = (key.user.escape_debug().to_string(), key.host.escape_debug().to_string());
        table.row([short(&key.id), time(key.created), user, host, note.to_owned()]);
    }
    table.to_string()
}
