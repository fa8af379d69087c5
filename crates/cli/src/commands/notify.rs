//! `backstay notify …`

use backstay_engine::{Delivery, Engine};
use backstay_model::Result;
use serde::Serialize;

use crate::args;
use crate::failure::say;
use crate::out::Out;
use crate::text::Table;

#[derive(Serialize)]
struct Tested {
    channels: Vec<Delivery>,
}

/// Runs one of the commands.
pub fn run(engine: &Engine, command: args::Notify, out: &mut Out) -> Result<u8> {
    match command {
        args::Notify::Test => test(engine, out),
    }
}

/// Sends a test message through every channel; ends with 1 when one did not take it.
fn test(engine: &Engine, out: &mut Out) -> Result<u8> {
    let tested = Tested { channels: engine.notify_test() };
    out.either(&tested, |t| if t.channels.is_empty() { String::new() } else { table(&t.channels) })?;
    out.finish()?;
    if tested.channels.is_empty() {
        say(format!(
            "No channel is configured: see [notify] in {}/backstay.toml (docs/alerts.md).",
            engine.state().display()
        ));
        return Ok(1);
    }
    for failed in &tested.channels {
        if let Some(error) = &failed.error {
            say(format!("{}: {error}", failed.channel));
        }
    }
    Ok(u8::from(tested.channels.iter().any(|c| !c.delivered)))
}

fn table(channels: &[Delivery]) -> String {
    let mut table = Table::new(&["CHANNEL", "TO", "RESULT"]);
    for channel in channels {
        let result = if channel.delivered { "delivered" } else { "failed" };
        table.row([channel.channel.clone(), channel.target.clone(), result.to_owned()]);
    }
    table.to_string()
}
