//! The words of `backstay setting …` and `backstay connection …`.

use clap::{Args, Subcommand};

/// What apps find in their environment.
#[derive(Subcommand, Debug)]
pub enum Setting {
    /// Give an app a setting; its value is read from a terminal (hidden) or from standard input, and sealed
    Set {
        #[command(flatten)]
        of: Named,
        #[command(flatten)]
        mark: Mark,
    },
    /// List the settings of an app, without their values
    List(Listed),
    /// Take a setting away from an app; points that have it keep it
    Delete(Deleted),
    /// Seal everything that is sealed in the state (settings, connection strings, keys of containers) with a new key; the old
    /// ones stay in secrets.json
    RotateKey,
}

/// Where apps find their databases.
#[derive(Subcommand, Debug)]
pub enum Connection {
    /// Give an app a connection string; it is read from a terminal (hidden) or from standard input, and sealed
    Set {
        #[command(flatten)]
        of: Named,
        /// SQLAzure, SQLServer, MySql, PostgreSQL, or Custom: anything, also a database that the string itself tells [default: as
        /// before, at first Custom]
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<String>,
        #[command(flatten)]
        mark: Mark,
    },
    /// List the connection strings of an app with where they point, without their passwords
    List(Listed),
    /// Open the databases of an app, as a backup does, and say whether they can be dumped
    Check(LookedAt),
    /// Look for connection strings in the files of an app, show where they point, and link them when agreed to
    Discover(Discover),
    /// Take a connection string away from an app; points that have it keep it
    Delete(Deleted),
}

#[derive(Args, Debug)]
pub struct LookedAt {
    /// The app
    pub app: String,
    /// One connection [default: all]
    pub name: Option<String>,
}

#[derive(Args, Debug)]
pub struct Discover {
    /// The app
    pub app: String,
    /// Link all that is new without asking
    #[arg(long)]
    pub yes: bool,
}

#[derive(Args, Debug)]
pub struct Named {
    /// The app
    pub app: String,
    /// Its name: 1 to 128 characters of a-z, A-Z, 0-9, `_`, `.`, `-` and `:`
    pub name: String,
}

/// Whether it belongs to the slot.
#[derive(Args, Debug)]
pub struct Mark {
    /// It belongs to this app or slot: a restore into another one leaves it behind, and one from another leaves it alone
    #[arg(long)]
    slot_sticky: bool,
    /// It goes where the app goes, as at first
    #[arg(long, conflicts_with = "slot_sticky")]
    no_slot_sticky: bool,
}

impl Mark {
    /// What was said about it, where something was.
    pub fn said(&self) -> Option<bool> {
        (self.slot_sticky || self.no_slot_sticky).then_some(self.slot_sticky)
    }
}

#[derive(Args, Debug)]
pub struct Listed {
    /// The app
    pub app: String,
    /// Show the values too
    #[arg(long)]
    pub reveal: bool,
}

#[derive(Args, Debug)]
pub struct Deleted {
    #[command(flatten)]
    pub of: Named,
    /// Agree beforehand
    #[arg(long)]
    pub yes: bool,
}
