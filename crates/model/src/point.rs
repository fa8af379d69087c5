//! Recovery points.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{AppName, PointId};

/// Where a point came from; decides who may expire it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Origin {
    /// Taken on the hour by the scheduler; kept by age.
    Automatic,
    /// Asked for by a person; kept until deleted.
    Manual,
    /// Taken by Backstay before something dangerous.
    Safety,
    /// Brought in from an archive; kept until deleted.
    Imported,
    /// A snapshot in the vault that Backstay did not write (restic or rustic did).
    Foreign,
}

/// How complete a point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PointStatus {
    /// Everything that was asked for is in it.
    Succeeded,
    /// Something could not be read; the list says what.
    PartiallySucceeded,
}

/// The kinds of [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ProblemKind {
    /// Could not be opened or read; it is not in the point (an older copy is not substituted).
    Unreadable,
    /// It changed while it was read; the copy in the point may mix old and new.
    Changed,
    /// It became longer while it was read (a log, say): the point has it up to the length it had. Not a failure.
    Grew,
    /// It belongs to Backstay itself (state, vault): left out. Not a failure.
    Excluded,
    /// It was there when the folder was listed and gone when it was read. Not a failure.
    Vanished,
    /// A socket: it has no content to save.
    Socket,
    /// A mount inside the home: left out.
    Mount,
    /// Part of its metadata could not be read or set.
    Metadata,
    /// It could not be written in the target of a restore.
    Unwritable,
    /// Its data is missing or damaged in the vault.
    Lost,
    /// Its name or place is not acceptable (it would lead outside the target).
    Unsafe,
    /// It holds the rules of a filter and could not be obeyed: everything was taken.
    Filter,
    /// A rule of a filter names nothing. Not a failure.
    Unmatched,
    /// The app did not work after a restore.
    Unhealthy,
    /// A hook of the app failed after the work was done.
    Hook,
    /// It is sealed, and nothing that was given opens it.
    Sealed,
    /// A linked database is not in the point, or not wholly.
    Database,
    /// A database names files that are not there. Not a failure: an app may have lost them long ago.
    Dangling,
    /// The snapshot of the home's volume that was asked for could not be had, or does not hold all of the home.
    Volume,
    /// Something that went as it should and that a person should hear of. Not a failure.
    Told,
}

impl ProblemKind {
    /// Whether it makes the result partial. What is left out by design does not.
    #[must_use]
    pub fn is_failure(self) -> bool {
        !matches!(
            self,
            ProblemKind::Vanished
                | ProblemKind::Grew
                | ProblemKind::Socket
                | ProblemKind::Mount
                | ProblemKind::Excluded
                | ProblemKind::Unmatched
                | ProblemKind::Told
                | ProblemKind::Dangling
        )
    }
}

/// Something about one path that a person should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The path relative to the root of the tree, bytes that are not UTF-8 escaped as `\xNN`.
    pub path: String,
    /// What kind.
    pub kind: ProblemKind,
    /// What the system said.
    pub detail: String,
}

/// A recovery point as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Its id.
    pub id: PointId,
    /// Whose.
    pub app: AppName,
    /// When it was taken (start of the reading), by the clock of the machine that took it.
    pub time: Timestamp,
    /// Where it came from.
    pub origin: Origin,
    /// How complete it is.
    pub status: PointStatus,
    /// Kept whatever its age.
    pub pinned: bool,
    /// Files in it.
    pub files: u64,
    /// Bytes of file content in it.
    pub bytes: u64,
    /// Bytes it added to the vault, as stored.
    pub added_bytes: u64,
    /// The vault's id of the snapshot that holds it (64 hexadecimal digits).
    pub snapshot: String,
}
