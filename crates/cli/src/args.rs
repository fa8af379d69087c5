//! The words of the command line.
//!
//! Invariants: texts use the words of the documentation and no others; secrets are never arguments.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};

mod app;
mod archive;
mod container;
mod setting;

pub use app::{App, AppFlags, SnapshotBy, Switch};
pub use archive::{Export, FromArchive, Import, Seal};
pub use container::{Container, ContainerAdd, Download, Schedule, ScheduleSet};
pub use setting::{Connection, Deleted, Discover, Listed, LookedAt, Mark, Named, Setting};

const POINTS: &str = "POINT is an id or a unique prefix of one, `latest`, `latest~2` (safety points do not count), or a time (the newest \
                      point not after it).";

const BOTH: &str = "POINT is an id or a unique prefix of one, `latest`, `latest~2` (safety points do not count), or a time (the newest \
                    point not after it). A custom backup is named by its name or id; `latest` and times mean points of the vault.";

/// Recovery points of whole web apps: taken with one command, brought back with one.
#[derive(Parser, Debug)]
#[command(name = "backstay", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// State folder [default: /var/lib/backstay for root, else $XDG_DATA_HOME/backstay]
    #[arg(long, global = true, value_name = "DIR", env = "BACKSTAY_HOME", hide_env_values = true)]
    pub home: Option<PathBuf>,
    /// Vault to use: a folder, azure://…, s3://…, gs://… [default: the one noted in the state, at first DIR/vault]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub vault: Option<String>,
    /// Print JSON on standard output (docs/cli-json.md)
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Take a recovery point of an app, or of a folder, which becomes one; with --container a custom backup: a zip that anybody
    /// can open
    Backup(Backup),
    /// List recovery points and custom backups, newest first
    List {
        /// Only those of this app
        app: Option<String>,
        /// Look into a container: its name, or its address
        #[arg(long, value_name = "NAME|ADDRESS", conflicts_with = "removed")]
        container: Option<String>,
        /// Also the points of removed apps
        #[arg(long)]
        removed: bool,
    },
    /// Show one recovery point or custom backup
    #[command(after_help = BOTH)]
    Show(PointRef),
    /// List the files in a recovery point
    #[command(after_help = POINTS)]
    Files(Files),
    /// Write one file of a recovery point to standard output
    #[command(after_help = POINTS)]
    Cat(Cat),
    /// Compare two recovery points, or one with the newest
    #[command(after_help = POINTS)]
    Diff(Diff),
    /// Bring an app back to a recovery point or custom backup, wholly or not at all; or bring one out into a new app or
    /// folder
    #[command(after_help = BOTH)]
    Restore(Restore),
    /// Take the last restore of an app back (or the last undo)
    Undo(Undo),
    /// Delete a recovery point, whose space is freed by `vault prune`, or a custom backup
    #[command(after_help = BOTH)]
    Delete(Delete),
    /// Keep a recovery point whatever its age
    #[command(after_help = POINTS)]
    Pin(OnePoint),
    /// Take the pin of a recovery point away
    #[command(after_help = POINTS)]
    Unpin(OnePoint),
    /// Read all data of a recovery point or custom backup and say whether it is whole
    #[command(after_help = BOTH)]
    Verify(PointRef),
    /// Write a recovery point as an archive that anybody can open: NAME.zip and NAME.xml
    #[command(after_help = POINTS)]
    Export(Export),
    /// Bring an archive into the vault as a recovery point
    Import(Import),
    /// Copy the files of a custom backup into a folder
    #[command(after_help = "POINT is the name of the backup, its id or a unique prefix of that.")]
    Download(Download),
    /// Look after the containers, where custom backups go (docs/custom-backups.md)
    #[command(subcommand)]
    Container(Container),
    /// Say when custom backups of an app are taken by themselves
    #[command(subcommand)]
    Schedule(Schedule),
    /// Look after the vault
    #[command(subcommand)]
    Vault(Vault),
    /// Make or open the recovery kit: what a blank machine needs
    #[command(subcommand)]
    Kit(Kit),
    /// Say how an app runs and is protected; start, stop, pause or remove it
    #[command(subcommand)]
    App(App),
    /// Say what an app finds in its environment; values are sealed and part of its points (docs/databases.md)
    #[command(subcommand)]
    Setting(Setting),
    /// Say where an app finds its databases (docs/databases.md)
    #[command(subcommand)]
    Connection(Connection),
    /// Look at jobs, or stop one
    #[command(subcommand)]
    Job(Job),
    /// See what the age of automatic points decides, or let it be done now
    #[command(subcommand)]
    Retention(Retention),
    /// Tell people what went wrong (docs/alerts.md)
    #[command(subcommand)]
    Notify(Notify),
    /// Take automatic points every hour until stopped (SIGHUP: read backstay.toml anew)
    Serve,
    /// Say whether all is well: the apps, their newest points, the vault; exit status 0 well, 3 partly, 1 not
    Status,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("sealed").args(["plain_settings", "passphrase_file", "recipients"]).requires("container"))]
pub struct Backup {
    /// Name of a known app, or a folder
    #[arg(value_name = "PATH|APP")]
    pub target: PathBuf,
    /// Name for a folder that becomes an app [default: after the folder]
    #[arg(long, value_name = "NAME")]
    pub app: Option<String>,
    /// Take a custom backup instead, into this container: its name, or an address (a folder with a slash)
    #[arg(long, value_name = "NAME|ADDRESS", help_heading = "Custom backups")]
    pub container: Option<String>,
    /// What it is called in the container; a name in use is refused [default: APP_YYYYMMDDHHMM]
    #[arg(long, value_name = "NAME", requires = "container", help_heading = "Custom backups")]
    pub name: Option<String>,
    /// Leave the linked databases out
    #[arg(long)]
    pub no_databases: bool,
    /// Agree beforehand: the databases that the files of a new app name are linked, and in this first point
    #[arg(long)]
    pub yes: bool,
    #[command(flatten, next_help_heading = "Custom backups")]
    pub seal: Seal,
}

#[derive(Args, Debug)]
pub struct PointRef {
    /// The app
    pub app: String,
    /// The point
    #[arg(default_value = "latest")]
    pub point: String,
}

#[derive(Args, Debug)]
pub struct OnePoint {
    /// The app
    pub app: String,
    /// The point
    pub point: String,
}

#[derive(Args, Debug)]
pub struct Files {
    #[command(flatten)]
    pub at: PointRef,
    /// Folder or file in the point [default: its root]
    pub path: Option<String>,
    /// With everything below
    #[arg(short, long)]
    pub recursive: bool,
}

#[derive(Args, Debug)]
pub struct Cat {
    #[command(flatten)]
    pub at: OnePoint,
    /// The file, as `backstay files` shows it
    pub path: String,
}

#[derive(Args, Debug)]
pub struct Diff {
    /// The app
    pub app: String,
    /// The older point
    #[arg(default_value = "latest~1")]
    pub from: String,
    /// The newer point
    #[arg(default_value = "latest")]
    pub to: String,
}

#[derive(Args, Debug)]
pub struct Restore {
    /// The app [with an archive: by default the one that it names]
    #[arg(required_unless_present_any = ["file", "container"])]
    pub app: Option<String>,
    /// The point [default: latest]
    #[arg(conflicts_with_all = ["file", "container"])]
    pub point: Option<String>,
    /// Restore this archive (a zip, its xml beside it): it is brought into the vault as a point first
    #[arg(long, value_name = "ZIP", conflicts_with = "container")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub from: FromArchive,
    /// Another app instead: one that exists goes to the point, a name that is free becomes a new app
    #[arg(long, value_name = "APP2")]
    pub to: Option<String>,
    /// Folder to make instead of changing an app; it must not exist yet or be empty. With --to: the home of the new app
    /// [default: sites/APP2 in the state folder]
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Only this path of the point, and what is below it (may be given several times)
    #[arg(long = "path", value_name = "PATH")]
    pub paths: Vec<String>,
    #[command(flatten)]
    pub beside: Beside,
    /// Only show what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Do not keep what is there now as a point first
    #[arg(long)]
    pub no_safety_point: bool,
    /// Take everything back when the app does not work afterwards
    #[arg(long)]
    pub undo_on_unhealthy: bool,
    /// Agree beforehand
    #[arg(long)]
    pub yes: bool,
}

/// What a restore brings back beside the files.
#[derive(Args, Debug)]
pub struct Beside {
    /// Bring the linked databases back too
    #[arg(long, conflicts_with_all = ["paths", "content_only"])]
    pub with_databases: bool,
    /// Restore the database of this connection into another place: a connection string without a password, @FILE that holds
    /// one, or - for standard input. The database must not exist yet (may be given several times)
    #[arg(long = "database", value_name = "NAME=PLACE", requires = "with_databases")]
    pub databases: Vec<String>,
    /// Leave settings and connection strings as they are
    #[arg(long)]
    pub content_only: bool,
}

#[derive(Args, Debug)]
pub struct Undo {
    /// The app
    pub app: String,
    /// Only show what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Do not keep what is there now as a point first
    #[arg(long)]
    pub no_safety_point: bool,
    /// Agree beforehand
    #[arg(long)]
    pub yes: bool,
}

#[derive(Args, Debug)]
pub struct Delete {
    #[command(flatten)]
    pub at: OnePoint,
    /// Agree beforehand
    #[arg(long)]
    pub yes: bool,
}

#[derive(Subcommand, Debug)]
pub enum Vault {
    /// Make a new vault (the first backup does so by itself)
    Init,
    /// Show what the vault holds and saves
    Stats,
    /// Check that everything the points need is there
    Check {
        /// Read all data too and compare it with its checksums
        #[arg(long)]
        read_data: bool,
    },
    /// Mend what can be mended, and say what cannot; nothing is deleted unless asked for
    Repair(Repair),
    /// Free the space that no point needs
    Prune {
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove locks of programs that are gone
    Unlock {
        /// Remove every lock, also of programs that may still work
        #[arg(long)]
        all: bool,
        /// Agree beforehand
        #[arg(long)]
        yes: bool,
    },
    /// Use an existing vault: in an empty state (its password is read from a terminal, a file or standard input), or
    /// in this state from now on, when it opens with this state's password (a copy, say)
    Attach {
        /// The vault
        address: String,
        /// Read the password from this file (its first line)
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Copy points to another vault, which is made when it does not exist (with the same password)
    Copy {
        /// The other vault
        address: String,
        /// Only the points of this app
        #[arg(long)]
        app: Option<String>,
        /// The other vault's password, when it has one of its own, is in this file (its first line)
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Add, list or remove passwords of the vault
    #[command(subcommand)]
    Key(Key),
}

#[derive(Args, Debug)]
pub struct Repair {
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Delete points that lost something once what is left of them is written anew
    #[arg(long)]
    pub remove_originals: bool,
    /// Agree beforehand
    #[arg(long)]
    pub yes: bool,
}

#[derive(Subcommand, Debug)]
pub enum Key {
    /// Add a password; it is read from a terminal, a file or standard input
    Add {
        /// Read the password from this file (its first line)
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// List the keys
    List,
    /// Remove a key
    Remove {
        /// Its id or a unique prefix
        id: String,
        /// Agree beforehand
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Subcommand, Debug)]
pub enum Kit {
    /// Write the kit to a new file, sealed with a passphrase read from a terminal, a file or standard input
    Export {
        /// The new file
        file: PathBuf,
        /// Read the passphrase from this file (its first line)
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Take on what a kit holds, in an empty state; `--vault` names the vault's place where it has moved
    Open {
        /// The kit
        file: PathBuf,
        /// Read the passphrase from this file (its first line)
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
}

#[derive(Subcommand, Debug)]
pub enum Notify {
    /// Send a test message through every channel of the configuration and tell what became of each
    Test,
}

#[derive(Subcommand, Debug)]
pub enum Retention {
    /// Show which hourly points stay, by the code that lets them expire; nothing is read or changed
    Simulate {
        /// How many hours, one point each
        #[arg(long, value_name = "N", default_value_t = 2_160, value_parser = clap::value_parser!(u32).range(1..=87_600))]
        hours: u32,
    },
    /// Let points expire now, as the scheduler does by itself
    Apply {
        /// Only the points of this app
        app: Option<String>,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Subcommand, Debug)]
pub enum Job {
    /// List jobs, newest first
    List {
        /// How many at most
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Show one job
    Show {
        /// Its id or a unique prefix
        id: String,
    },
    /// Show the log of a job
    Log {
        /// Its id or a unique prefix
        id: String,
    },
    /// Ask a running job to stop
    Cancel {
        /// Its id or a unique prefix
        id: String,
    },
}
