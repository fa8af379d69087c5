//! The vault: a deduplicated, encrypted store of snapshots in restic's repository format, version 2.
//!
//! Our own implementation, usable as a library: no async runtime, no printing. See `docs/format.md` for what lies
//! in the storage and `docs/design.md` for how it is written and read.
//!
//! | who | holds | writes, in this order | may run beside |
//! |---|---|---|---|
//! | backup | shared lock | packs, index, snapshot | backups, reads, the first phase of prune |
//! | forget, retag | shared lock | snapshot, deletes snapshots | the same |
//! | prune, phase 1 | shared lock | packs, index | backups, reads |
//! | prune, phase 2 | exclusive lock | index; deletes index, packs | reads |
//! | repair | exclusive lock | index, packs, snapshots | reads |
//! | check, restore, list | nothing | nothing | all (a read that meets a removed object starts again) |

mod ahead;
pub mod backup;
pub mod blob;
pub mod change;
pub mod check;
pub mod chunker;
pub mod compress;
pub mod config;
pub mod copy;
pub mod crypto;
pub mod diff;
pub mod hash;
pub mod id;
pub mod index;
pub mod key;
pub mod load;
pub mod lock;
pub mod node;
pub mod pack;
pub mod process;
pub mod prune;
mod quote;
pub mod reader;
pub mod repair;
pub mod restore;
pub mod snapshot;
pub mod stats;
mod transfer;
mod vault;
mod walk;

pub use id::Id;
pub use lock::{Lock, Strength};
pub use node::Node;
pub use reader::Reader;
pub use snapshot::Snapshot;
pub use vault::{Folder, Vault};

/// How many threads the engine uses: the processors of this machine, at least one, at most eight (beyond that the
/// storage is the limit and every worker costs a pack of memory).
#[must_use]
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).clamp(1, 8)
}
