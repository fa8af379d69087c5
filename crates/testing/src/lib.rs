//! What the tests of all crates share: trees to back up, foreign programs as witnesses.
//!
//! Development only. A helper that cannot do its work panics with the reason: that is a failed test, not a case to
//! handle. What a machine does not allow (device nodes without root, say) is told in the result and printed, never
//! skipped in silence.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "development only: a helper that fails is a failed test"
)]

mod azurite;
mod btrfs;
pub mod endpoint;
pub mod fixtures;
mod gcs;
pub mod http;
mod mariadb;
mod postgres;
pub mod program;
mod proxy;
mod s3;
pub mod scripted;
pub mod server;
pub mod tls;

pub use azurite::{Azurite, Terms, signature, signed};
pub use btrfs::Btrfs;
pub use endpoint::{Answer, HttpEndpoint};
pub use gcs::Gcs;
pub use mariadb::MariaDb;
pub use postgres::{Postgres, PostgresSetup};
pub use program::{Outcome, Restic, Rustic, SmtpServer};
pub use proxy::{Dice, Fault, FaultProxy};
pub use s3::{Moto, S3};
pub use scripted::Scripted;
pub use tls::Certificates;

/// A folder that is removed when dropped, on the file system that `BACKSTAY_TEST_DIR` names, else the system's
/// temporary folder.
///
/// Read-only folders below do not hinder the removal as root only: others call [`unlock`] first.
#[must_use]
pub fn temp_dir() -> tempfile::TempDir {
    let base = std::env::var_os("BACKSTAY_TEST_DIR").map_or_else(std::env::temp_dir, Into::into);
    tempfile::Builder::new().prefix("backstay-test-").tempdir_in(base).expect("a temporary folder")
}

/// The same in memory (`/dev/shm`) where there is such a file system: for tests that make thousands of small trees,
/// sync each of them and look only at what the file system was told, not at the disk.
#[must_use]
pub fn quick_dir() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let builder = || tempfile::Builder::new().prefix("backstay-test-").tempdir_in(memory);
    match std::env::var_os("BACKSTAY_TEST_DIR") {
        None if memory.is_dir() => builder().unwrap_or_else(|_| temp_dir()),
        _ => temp_dir(),
    }
}

/// Makes every folder of a tree writable and searchable for its owner, so that the tree can be removed.
pub fn unlock(root: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let mode = std::fs::Permissions::from_mode(0o700);
        if std::fs::set_permissions(&dir, mode).is_err() {
            continue;
        }
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                pending.push(entry.path());
            }
        }
    }
}
