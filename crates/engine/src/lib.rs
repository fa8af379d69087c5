//! The use cases of Backstay: back up, list, restore, verify, and what the vault and the kit need.
//!
//! Everything here returns values and errors; nothing prints and nothing asks. Long work reports to a
//! [`backstay_model::Progress`] and looks at a [`backstay_model::Cancel`].
//!
//! Locks, outermost first: the set-up lock of the state folder (only while secrets or vault do not exist yet), the
//! lease of the job in the catalog, the lock files of the vault. A catalog transaction is never held over any of
//! these or over work in the vault.

mod adopt;
mod alerts;
mod apps;
mod archive;
mod backup;
mod browse;
mod checks;
mod config;
mod containers;
mod custom;
mod databases;
mod discovery;
mod expire;
mod filter;
mod in_app;
mod job;
mod keys;
mod kit;
mod limits;
mod maintain;
mod manifest;
mod notify;
mod place;
mod points;
mod private;
mod recover;
mod restore;
mod runtime;
mod schedule;
mod sealed;
mod secrets;
mod select;
mod serve;
mod settings;
mod signing;
mod spool;
mod state;
mod status;

pub use adopt::FOREIGN;
pub use alerts::AlertView;
pub use apps::{AppChange, AppDetails, NewApp, Operated};
pub use archive::{ArchiveSource, ExportReport, ExportRequest, ImportReport, ImportRequest, SealBy};
pub use backstay_archive::Name as ArchiveName;
pub use backstay_catalog::{App, Clock, LogLine, ManualClock, PointRecord, SettingKind, SystemClock};
pub use backstay_database::{ConnectionType, Endpoint, TlsMode, sqlite};
pub use backstay_platform::{Condition as AppCondition, Healthy, State as AppState};
pub use backstay_storage::{Hours as PaceHours, Options as StorageOptions};
pub use backstay_tree::fs::Kind;
pub use backstay_tree::path::escape;
pub use backstay_vault::change;
pub use backstay_vault::check::Finding;
pub use backstay_vault::diff::{Change, Difference};
pub use backup::{BackupReport, BackupRequest, SnapshotTaken, problem_name};
pub use browse::{FileEntry, ManifestView, PointDetails, VerifyReport};
pub use checks::{Checked, ConnectionCheck};
pub use config::{parse_duration, parse_size};
pub use containers::{
    ContainerAdded, ContainerTest, ContainerView, NewContainer, OpenContainer, StepError, TestStep, asked_for,
};
pub use custom::{
    ContainerListing, CustomDetails, CustomExpiry, CustomReport, CustomRequest, CustomVerify, CustomView,
    Downloaded, PointOrCustom, UnreadableBackup,
};
pub use databases::choose::{DatabasePlan, Elsewhere, holds_password};
pub use discovery::{Discovery, FoundConnection, FoundState, UnreadConnection};
pub use expire::{
    AppExpiry, ExpireRequest, ExpiredPoint, Expiry, Hold, KeptCounts, KeptPoint, Simulation, Steady, simulate,
};
pub use filter::{FilterRecord, kept_by_restore};
pub use in_app::{ByHand, InAppState, InAppView};
pub use job::phase_name;
pub use keys::{KeyInfo, PASSWORD_MIN};
pub use kit::{PASSPHRASE_MIN, check_passphrase};
pub use maintain::{
    Affected, CheckResult, Compared, CopyResult, PruneResult, RepairResult, VaultStats, shown_path,
};
pub use manifest::{ArchiveRecord, Manifest, Proof, SavedDatabase, StepRecord, Waiting};
pub use notify::{Delivery, Event, Message};
pub use points::{DamagedSnapshot, Listing};
pub use recover::{Attached, Exported, Made, Places};
pub use restore::{InPlace, InPlaceReport, NewHome, RestorePlan, RestoreReport, RestoreRequest, Resumed};
pub use schedule::{ScheduleChange, ScheduleView};
pub use sealed::{LeftSealed, Rotated};
pub use secrets::VaultRef;
pub use select::Selector;
pub use serve::{Control, Log, serve};
pub use settings::{
    ConnectionSet, Link, SettingName, SettingSet, SettingView, SettingsDiff, SettingsSnapshot,
};
pub use state::{Engine, Setup, default_state};
pub use status::{
    AppStatus, CustomStatus, ExpiringContainer, LastResult, SpoolStatus, Status, VaultError, VaultStatus,
};
