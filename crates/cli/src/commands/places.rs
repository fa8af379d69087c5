//! Places for databases that a restore is not to put where the app's connections lead.
//!
//! Invariants: a password never stands in arguments: a connection string with one comes from a file or from standard input.

use std::path::Path;

use backstay_engine::{Elsewhere, holds_password};
use backstay_model::{Code, Error, Result, Secret};

use crate::ask;

/// Reads `NAME=PLACE` words.
pub fn read(words: &[String]) -> Result<Vec<Elsewhere>> {
    let mut places: Vec<Elsewhere> = Vec::new();
    for word in words {
        let (name, place) = word.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
            let message = "--database wants NAME=PLACE, NAME being that of a connection of the point";
            Error::new(Code::InvalidValue, message)
        })?;
        if places.iter().any(|p| p.connection == name) {
            return Err(Error::new(Code::Usage, format!("Two places are named for `{name}`")));
        }
        places.push(Elsewhere { connection: name.to_owned(), value: value(name, place)? });
    }
    Ok(places)
}

fn value(name: &str, place: &str) -> Result<Secret> {
    let what = format!("Connection string for `{name}`");
    match place.strip_prefix('@') {
        Some(file) => ask::secret_text(&what, Some(Path::new(file))),
        None if place == "-" => ask::secret_text(&what, None),
        None if holds_password(place) => {
            let message = "A password does not belong into the arguments of a command";
            Err(Error::new(Code::Usage, message).advise(
                "Put the connection string into a file and write NAME=@FILE, or give it on standard input with NAME=-.",
            ))
        }
        None => Ok(Secret::new(place.to_owned())),
    }
}
