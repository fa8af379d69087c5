//! What a live folder is like now, as a tree, without storing anything.
//!
//! It is the walk of a backup over a session that is dry: content is read where the past does not tell it, hashed and
//! forgotten; trees that the vault does not have are kept in memory, where the survey's reader finds them.
//!
//! Invariants: nothing is written, neither in the vault nor in the file index, and nothing is locked. The tree has the
//! id that a backup at this moment would give it.

use std::path::Path;
use std::sync::Arc;

use backstay_model::{Cancel, Code, Counts, Error, Problem, Progress, Result};
use backstay_tree::fs::FileSystem;

use super::session::Session;
use super::{Filtered, SnapshotWriter, SparseFile, TreeOptions, TreeSummary};
use crate::id::Id;
use crate::node::Node;
use crate::reader::Reader;

/// A folder as it is now.
pub struct Survey {
    /// Its tree; the reader has it, the vault need not.
    pub tree: Id,
    /// The node of the folder itself.
    pub top: Node,
    /// The reader that was given, and the new trees.
    pub reader: Reader,
    /// Files and bytes of content in it.
    pub counts: Counts,
    /// What could not be read, what was left out.
    pub problems: Vec<Problem>,
    /// What the filter left out, where there was one.
    pub filtered: Option<Filtered>,
    /// Where the holes of its sparse files are.
    pub sparse: Vec<SparseFile>,
}

/// Looks at a folder as a backup of it as `name` would, and stores nothing.
#[allow(clippy::too_many_arguments)]
pub fn survey(
    reader: Reader,
    name: &str,
    fs: &Arc<dyn FileSystem>,
    home: &Path,
    options: TreeOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Survey> {
    let (vault, index, known) = reader.into_parts();
    let mut writer = SnapshotWriter::new(Session::dry(&vault, index, cancel), None);
    let TreeSummary { tree, counts, problems, filtered, sparse, .. } =
        writer.save_tree(name, fs, home, options, progress)?;
    let lost = || Error::new(Code::Internal, "The survey did not come to its end");
    let top = writer.nodes.pop().ok_or_else(lost)?;
    let SnapshotWriter { session, .. } = writer;
    let (index, trees) = Arc::into_inner(session).ok_or_else(lost)?.into_parts();
    let reader = Reader::with_index(vault, index).with_trees(known).with_trees(trees);
    Ok(Survey { tree, top, reader, counts, problems, filtered, sparse })
}
