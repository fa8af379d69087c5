//! Blobs: what packs hold. Data (pieces of files) and trees (listings of folders) live in separate packs.

use serde::{Deserialize, Serialize};

use crate::id::Id;

/// What a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobKind {
    /// A piece of content.
    Data,
    /// A folder's listing.
    Tree,
}

/// Where a blob lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The pack.
    pub pack: Id,
    /// First byte in the pack.
    pub offset: u32,
    /// Bytes in the pack, sealing included.
    pub length: u32,
    /// Plain bytes when compressed; none when stored as it is.
    pub uncompressed: Option<u32>,
}

impl Place {
    /// Bytes of the plain content.
    #[must_use]
    pub fn plain_length(&self) -> u64 {
        let sealed = u64::from(self.length).saturating_sub(crate::crypto::OVERHEAD as u64);
        self.uncompressed.map_or(sealed, u64::from)
    }
}

/// Most plain bytes of a data blob that are accepted. restic cuts at 8 MiB, we at 4 MiB.
pub const DATA_MAX: u64 = 64 << 20;
/// Most plain bytes of a tree blob that are accepted: a folder of more than two million entries.
pub const TREE_MAX: u64 = 1 << 30;

impl BlobKind {
    /// Most plain bytes of a blob of this kind.
    #[must_use]
    pub fn limit(self) -> u64 {
        match self {
            BlobKind::Data => DATA_MAX,
            BlobKind::Tree => TREE_MAX,
        }
    }
}
