//! The words of `backstay container …`, `schedule …` and `download`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::OnePoint;

/// Places for custom backups.
#[derive(Subcommand, Debug)]
pub enum Container {
    /// Make a container known and try it: a folder, an Azure Blob container, a bucket of S3 or Google Cloud Storage. Its key,
    /// signature or connection string, or the URL that holds it, is read from a terminal, a file or standard input,
    /// and sealed
    Add(Box<ContainerAdd>),
    /// List the containers
    List,
    /// Show one container
    Show {
        /// The container
        name: String,
    },
    /// Try a container: write, read, list and delete a small object
    Test {
        /// The container
        name: String,
    },
    /// Forget a container that no schedule uses; the backups in it stay
    Remove {
        /// The container
        name: String,
        /// Agree beforehand
        #[arg(long)]
        yes: bool,
    },
}

/// A container to be made known.
#[derive(Args, Debug)]
pub struct ContainerAdd {
    /// Its name
    pub name: String,
    /// A folder, azure://ACCOUNT/CONTAINER[/PREFIX], s3://BUCKET[/PREFIX][?region=R&endpoint=URL], gs://BUCKET[/PREFIX]; never with
    /// a key or signature in it [default: it is in the URL that is read]
    pub address: Option<String>,
    /// Read the key, signature or URL from this file
    #[arg(long, value_name = "FILE")]
    pub credentials_file: Option<PathBuf>,
    /// Make the place when it does not exist
    #[arg(long)]
    pub create: bool,
    /// Give a container of that name another place, key or other options
    #[arg(long)]
    pub replace: bool,
    /// Keep it also when the test fails
    #[arg(long)]
    pub untested: bool,
    /// Greatest pace of sending and receiving (5MB/s)
    #[arg(long, value_name = "PACE", help_heading = "Network")]
    pub limit: Option<String>,
    /// Another pace for hours of the day: 22-6=50MB/s, 22-6=none (may be given several times; the first that covers an hour
    /// counts)
    #[arg(long, value_name = "FROM-TO=PACE", help_heading = "Network")]
    pub limit_hours: Vec<String>,
    /// Address of this machine that connections come from; where it is gone, no other way is taken
    #[arg(long, value_name = "ADDRESS", help_heading = "Network", conflicts_with = "interface")]
    pub source: Option<IpAddr>,
    /// Interface that connections leave by; where it is gone, no other way is taken
    #[arg(long, value_name = "IF", help_heading = "Network")]
    pub interface: Option<String>,
    /// Proxy for all requests (http://HOST:PORT; `none` for none whatever the environment says)
    #[arg(long, value_name = "URL", help_heading = "Network")]
    pub proxy: Option<String>,
    /// Certificates (PEM) of authorities to trust besides the system's
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub ca_file: Option<PathBuf>,
}

/// Custom backups by themselves.
#[derive(Subcommand, Debug)]
pub enum Schedule {
    /// Take custom backups of an app by themselves (by `backstay serve`); what is not given stays as it is
    Set(ScheduleSet),
    /// Show the schedule of an app
    Show {
        /// The app
        app: String,
    },
    /// Take the schedule of an app away; what it took stays until it is deleted
    Clear {
        /// The app
        app: String,
    },
}

/// A schedule to be set.
#[derive(Args, Debug)]
pub struct ScheduleSet {
    /// The app
    pub app: String,
    /// Time from one backup to the next, in whole hours or days of 24 hours (6h, 1d, 7d)
    #[arg(long, value_name = "TIME")]
    pub every: Option<String>,
    /// The first one: 02:30, 2026-11-21T02:30, 2026-11-21T02:30:00Z [default: at once]
    #[arg(long, value_name = "TIME")]
    pub start: Option<String>,
    /// How long they stay; 0 for ever [default: 30d]
    #[arg(long, value_name = "DAYS")]
    pub keep: Option<String>,
    /// The newest whole one stays whatever its age
    #[arg(long, conflicts_with = "no_keep_one")]
    pub keep_one: bool,
    /// It goes like all others
    #[arg(long)]
    pub no_keep_one: bool,
    /// The container they go into
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,
}

/// A custom backup to be copied out.
#[derive(Args, Debug)]
pub struct Download {
    #[command(flatten)]
    pub at: OnePoint,
    /// Folder for its files, which is made when it does not exist
    pub directory: PathBuf,
}
