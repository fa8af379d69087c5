//! Archives: `export`, `import`, and where a restore finds one.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::PointRef;

/// Where an archive goes, and how.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("to").required(true).args(["directory", "container"]))]
pub struct Export {
    #[command(flatten)]
    pub at: PointRef,
    /// Folder that it goes to; made when it does not exist
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Container that it goes to, or the address of a place: a folder that exists, azure://…, s3://…, gs://…
    #[arg(long, value_name = "NAME|URL")]
    pub container: Option<String>,
    /// Name of the archive, without ending [default: APP_YYYYMMDDHHMM of the point's time]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub seal: Seal,
}

/// By what the app's settings are sealed in an archive; for this server without any of these.
#[derive(Args, Debug)]
#[group(id = "seal", multiple = false)]
pub struct Seal {
    /// Leave the app's settings readable for whoever has the zip
    #[arg(long)]
    pub plain_settings: bool,
    /// Seal the app's settings with the passphrase in this file (its first line) [default: for this server]
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Seal the app's settings for this age recipient, `age1…` (may be given several times)
    #[arg(long = "recipient", value_name = "RECIPIENT")]
    pub recipients: Vec<String>,
}

/// Where an archive is, and how it is looked at.
#[derive(Args, Debug)]
pub struct FromArchive {
    /// Container with the archive, or the address of a place: a folder, azure://…, s3://…, gs://…
    #[arg(long, value_name = "NAME|URL", requires = "name")]
    pub container: Option<String>,
    /// Name of the archive in the container, without ending
    #[arg(long, value_name = "NAME", requires = "container")]
    pub name: Option<String>,
    /// Take a zip that no manifest vouches for: one that another program made, or one without its xml
    #[arg(long)]
    pub accept_unverified: bool,
    /// The passphrase that the archive's settings are sealed with is in this file (its first line)
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// What is brought in.
#[derive(Args, Debug)]
pub struct Import {
    /// The zip; its manifest lies beside it, with the ending .xml
    #[arg(required_unless_present = "container", conflicts_with = "container")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub from: FromArchive,
    /// The app whose point it becomes [default: the one that the archive names]
    #[arg(long, value_name = "NAME")]
    pub app: Option<String>,
}
