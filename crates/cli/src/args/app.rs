//! `backstay app …`

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// What can be done with an app.
#[derive(Subcommand, Debug)]
pub enum App {
    /// Make an app known, with a folder that exists or a new, empty home
    Add {
        /// The app
        name: String,
        /// Its home: a folder that exists [default: a new one, sites/NAME in the state folder]
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
        #[command(flatten)]
        flags: Box<AppFlags>,
    },
    /// List the apps and whether they run
    List {
        /// The removed apps that can be brought back
        #[arg(long)]
        removed: bool,
    },
    /// Show what is set about an app and how it is
    Show {
        /// The app
        name: String,
    },
    /// Change what is set about an app
    Set {
        /// The app
        name: String,
        #[command(flatten)]
        flags: Box<AppFlags>,
    },
    /// Let automatic backups of an app rest
    Pause {
        /// The app
        name: String,
        /// Why, for those who look later
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// End the pause by itself after this time (2h, 3d) [default: until resumed]
        #[arg(long = "for", value_name = "TIME")]
        time: Option<String>,
    },
    /// End a pause
    Resume {
        /// The app
        name: String,
    },
    /// Start an app and wait until it is well
    Start {
        /// The app
        name: String,
    },
    /// Stop an app with everything it has started
    Stop {
        /// The app
        name: String,
    },
    /// Stop an app, start it and wait until it is well
    Restart {
        /// The app
        name: String,
    },
    /// No longer protect an app; its home, its points and what is set about it stay
    Remove {
        /// The app
        name: String,
        /// Agree beforehand
        #[arg(long)]
        yes: bool,
    },
    /// Bring a removed app back
    RestoreDeleted {
        /// The app
        name: String,
    },
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

impl Switch {
    /// As a truth value.
    pub fn is_on(self) -> bool {
        self == Switch::On
    }
}

/// Of which kind a snapshot of a volume is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SnapshotBy {
    /// None: the files are read as they are.
    Off,
    /// Whatever the volume of the home can do.
    Auto,
    /// Btrfs.
    Btrfs,
    /// ZFS.
    Zfs,
    /// LVM.
    Lvm,
}

/// What can be set about an app. What is not given stays as it is.
#[derive(Args, Debug, Default)]
pub struct AppFlags {
    /// Nothing is started or stopped
    #[arg(long = "static", help_heading = "Runtime", group = "runtime")]
    pub static_files: bool,
    /// Backstay runs this line of the shell
    #[arg(long, value_name = "LINE", help_heading = "Runtime", group = "runtime")]
    pub command: Option<String>,
    /// It is this unit of systemd
    #[arg(long, value_name = "UNIT", help_heading = "Runtime", group = "runtime")]
    pub systemd: Option<String>,
    /// It is the services of this compose file
    #[arg(long, value_name = "FILE", help_heading = "Runtime", group = "runtime")]
    pub compose: Option<PathBuf>,
    /// The unit is one of the user's own service manager
    #[arg(long, help_heading = "Runtime", requires = "systemd")]
    pub user: bool,
    /// Name of the compose project [default: compose's own choice]
    #[arg(long, value_name = "NAME", help_heading = "Runtime", requires = "compose")]
    pub project: Option<String>,
    /// Working folder of the command, absolute or relative to the home [default: the home]
    #[arg(long, value_name = "DIR", help_heading = "Command")]
    pub work_in: Option<String>,
    /// User that the command runs as [default: the one that starts it]
    #[arg(long, value_name = "USER", help_heading = "Command")]
    pub run_as: Option<String>,
    /// Variable for the command; an empty value takes it away. Not for secrets (may be given several times)
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Command")]
    pub env: Vec<String>,
    /// File of NAME=VALUE lines that is read at each start; the place for secrets ("" for none)
    #[arg(long, value_name = "FILE", help_heading = "Command")]
    pub env_file: Option<String>,
    /// Signal that asks the command to stop: TERM, INT, QUIT, HUP, USR1, USR2, WINCH
    #[arg(long, value_name = "SIGNAL", help_heading = "Command")]
    pub stop_signal: Option<String>,
    /// Time that it may take to stop before it is killed (10s)
    #[arg(long, value_name = "TIME", help_heading = "Command")]
    pub grace: Option<String>,
    /// Whether `backstay serve` starts it again when it ends by itself
    #[arg(long, value_name = "on|off", help_heading = "Command")]
    pub restart: Option<Switch>,
    /// Address that must answer with a status from 200 to 399
    #[arg(long, value_name = "URL", help_heading = "Health", group = "check")]
    pub health: Option<String>,
    /// Line of the shell that must end with status 0
    #[arg(long, value_name = "LINE", help_heading = "Health", group = "check")]
    pub health_command: Option<String>,
    /// No health check: to run is enough
    #[arg(long, help_heading = "Health", group = "check")]
    pub no_health: bool,
    /// Statuses that are well
    #[arg(long, value_name = "MIN-MAX", help_heading = "Health")]
    pub health_status: Option<String>,
    /// Time for one answer (5s)
    #[arg(long, value_name = "TIME", help_heading = "Health")]
    pub health_timeout: Option<String>,
    /// Time until the app must be well after a start (30s)
    #[arg(long, value_name = "TIME", help_heading = "Health")]
    pub health_deadline: Option<String>,
    /// Line of the shell that runs before a backup; a failure stops it ("" for none)
    #[arg(long, value_name = "LINE", help_heading = "Hooks")]
    pub before_backup: Option<String>,
    /// Line of the shell that runs after a backup, also a failed one ("" for none)
    #[arg(long, value_name = "LINE", help_heading = "Hooks")]
    pub after_backup: Option<String>,
    /// Line of the shell that runs before the app is stopped for a restore; a failure stops it ("" for none)
    #[arg(long, value_name = "LINE", help_heading = "Hooks")]
    pub before_restore: Option<String>,
    /// Line of the shell that runs after a restore ("" for none)
    #[arg(long, value_name = "LINE", help_heading = "Hooks")]
    pub after_restore: Option<String>,
    /// Line of the shell that holds the app's writing still while the snapshots of its databases, and of its volume, are begun
    /// ("" for none)
    #[arg(long, value_name = "LINE", help_heading = "Hooks")]
    pub quiesce: Option<String>,
    /// Line of the shell that lets the app write again; runs whatever has happened ("" for none)
    #[arg(long, value_name = "LINE", help_heading = "Hooks")]
    pub resume: Option<String>,
    /// Time for each of the hooks (5m)
    #[arg(long, value_name = "TIME", help_heading = "Hooks")]
    pub hook_timeout: Option<String>,
    /// Path to leave out, as in `_backup.filter`; replaces those set before (may be given several times)
    #[arg(long, value_name = "PATH", help_heading = "Protection", conflicts_with = "no_excludes")]
    pub exclude: Vec<String>,
    /// Leave nothing out but what a `_backup.filter` says
    #[arg(long, help_heading = "Protection")]
    pub no_excludes: bool,
    /// Whether points in the vault obey the filter too
    #[arg(long, value_name = "on|off", help_heading = "Protection")]
    pub filter_automatic: Option<Switch>,
    /// Greatest age of the newest point before it is told (2h)
    #[arg(long, value_name = "TIME", help_heading = "Protection")]
    pub rpo: Option<String>,
    /// Whether a point is taken every hour
    #[arg(long, value_name = "on|off", help_heading = "Protection")]
    pub automatic: Option<Switch>,
    /// Read the home from a snapshot of its volume, so that all files are of one moment; needs root. `auto` takes what the volume
    /// can do, and reads without a snapshot where there can be none
    #[arg(long, value_name = "off|auto|btrfs|zfs|lvm", help_heading = "Protection")]
    pub snapshot: Option<SnapshotBy>,
    /// Whether a restore in place is taken back when the app is not healthy afterwards
    #[arg(long, value_name = "on|off", help_heading = "Protection")]
    pub undo_on_unhealthy: Option<Switch>,
    /// Whether it has a MariaDB of its own that Backstay starts, stops and backs up with it (MySQL in-app); `off` keeps the data
    #[arg(long, value_name = "on|off", help_heading = "Databases")]
    pub in_app_mysql: Option<Switch>,
    /// Whether its linked databases are in its points
    #[arg(long, value_name = "on|off", help_heading = "Databases")]
    pub databases: Option<Switch>,
    /// How often they are in automatic points (every hour, those of more than 2 GB every 6h; "" for that)
    #[arg(long, value_name = "TIME", help_heading = "Databases")]
    pub databases_every: Option<String>,
    /// Connection whose database is left out; replaces those set before (may be given several times; "" for none)
    #[arg(long, value_name = "NAME", help_heading = "Databases")]
    pub without_database: Vec<String>,
    /// Connection whose database is read through another connection for a dump, one of a replica; replaces those set before
    /// (may be given several times; "" for none)
    #[arg(long, value_name = "NAME=REPLICA", help_heading = "Databases")]
    pub replica: Vec<String>,
    /// Which tables get a hash of their content in the record of a dump: none, affordable (small ones), all
    #[arg(long, value_name = "WHICH", help_heading = "Databases")]
    pub database_hashes: Option<String>,
    /// Query that lists paths relative to FOLDER of the home, to be compared after backups and restores; replaces those set
    /// before (may be given several times)
    #[arg(long, num_args = 3, value_names = ["CONNECTION", "QUERY", "FOLDER"], help_heading = "Databases", conflicts_with = "no_references")]
    pub reference: Vec<String>,
    /// Compare nothing but what is known of WordPress
    #[arg(long, help_heading = "Databases")]
    pub no_references: bool,
    /// Text to replace in a new app made from a point: FILE is relative to the home (`*`, `?`, `**`), {app} and {home}
    /// stand for name and home; replaces the rules set before (may be given several times)
    #[arg(long, num_args = 3, value_names = ["FILE", "FROM", "TO"], help_heading = "New apps from points", conflicts_with = "no_replace")]
    pub replace: Vec<String>,
    /// Replace nothing in new apps
    #[arg(long, help_heading = "New apps from points")]
    pub no_replace: bool,
    /// Resource group
    #[arg(long, value_name = "NAME", help_heading = "Place")]
    pub group: Option<String>,
    /// Plan
    #[arg(long, value_name = "NAME", help_heading = "Place")]
    pub plan: Option<String>,
}
