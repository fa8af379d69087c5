//! Reading from a vault: trees, paths, contents.
//!
//! Invariants: everything read is checked against its id; a hostile tree can cost no more than its size (depth and
//! number of entries are bounded by the caller's walk, a folder that contains itself cannot be made because an id
//! is the hash of what it holds). Trees that are in no vault yet can be laid over it ([`Reader::with_trees`]); they are
//! known by the same hash.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Component, Path};

use backstay_model::{Code, Error, Result};
use backstay_tree::fs::Kind;

use crate::blob::BlobKind;
use crate::id::Id;
use crate::index::BlobIndex;
use crate::node::{Node, parse_tree};
use crate::vault::{Folder, Vault};

/// A vault with its index in memory.
pub struct Reader {
    vault: Vault,
    index: BlobIndex,
    /// Trees that the vault need not have.
    trees: HashMap<Id, Vec<u8>>,
}

impl Vault {
    /// Loads the index for reading.
    pub fn reader(&self) -> Result<Reader> {
        let (index, _) = self.load_index(&|_| true)?;
        Ok(Reader::with_index(self.clone(), index))
    }
}

impl Reader {
    /// A reader over an index that is loaded already.
    #[must_use]
    pub fn with_index(vault: Vault, index: BlobIndex) -> Self {
        Reader { vault, index, trees: HashMap::new() }
    }

    /// The same reader, which also finds these trees (the JSON of tree blobs).
    #[must_use]
    pub fn with_trees(mut self, trees: impl IntoIterator<Item = Vec<u8>>) -> Self {
        self.trees.extend(trees.into_iter().map(|json| (Id::of(&json), json)));
        self
    }

    /// The vault, the index, and the trees that were laid over it.
    pub(crate) fn into_parts(self) -> (Vault, BlobIndex, Vec<Vec<u8>>) {
        (self.vault, self.index, self.trees.into_values().collect())
    }

    /// The vault.
    #[must_use]
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// The index.
    #[must_use]
    pub fn index(&self) -> &BlobIndex {
        &self.index
    }

    /// The plain content of a blob. Where one place is damaged and there is another, that one is taken.
    pub fn blob(&self, kind: BlobKind, id: &Id) -> Result<Vec<u8>> {
        let mut problem = None;
        for place in self.index.find_all(kind, id) {
            match self.vault.read_blob(kind, id, &place) {
                Ok(plain) => return Ok(plain),
                Err(e) if e.code() == Code::ObjectNotFound => {
                    let message = format!("The pack {} is missing", Folder::Data.object(&place.pack));
                    problem = Some(Error::new(Code::VaultDamaged, message).because(e));
                }
                Err(e) => problem = Some(e),
            }
        }
        let missing =
            || Error::new(Code::VaultDamaged, format!("The blob {} is not in the index", id.short()));
        Err(problem.unwrap_or_else(missing))
    }

    /// The entries of a tree.
    pub fn tree(&self, id: &Id) -> Result<Vec<Node>> {
        let stored;
        let json = match self.trees.get(id) {
            Some(json) => json,
            None => {
                stored = self.blob(BlobKind::Tree, id)?;
                &stored
            }
        };
        parse_tree(json).map_err(|e| e.context(format!("Tree {}", id.short())))
    }

    /// The node at a path below a tree; `PathNotFound` when there is none. The empty path is no node: it is the
    /// tree itself.
    pub fn find(&self, root: &Id, path: &Path) -> Result<Node> {
        let absent =
            || Error::new(Code::PathNotFound, format!("There is no `{}` in the point", path.display()));
        let mut at: Option<Node> = None;
        for part in path.components() {
            let name: &OsStr = match part {
                Component::Normal(name) => name,
                Component::CurDir | Component::RootDir => continue,
                Component::ParentDir | Component::Prefix(_) => return Err(absent()),
            };
            let tree = match &at {
                None => *root,
                Some(node) => node.subtree.ok_or_else(absent)?,
            };
            at = Some(self.tree(&tree)?.into_iter().find(|n| n.name == name).ok_or_else(absent)?);
        }
        at.ok_or_else(absent)
    }

    /// Writes a file's content; gives its bytes.
    pub fn cat(&self, node: &Node, out: &mut dyn Write) -> Result<u64> {
        if node.kind != Some(Kind::File) {
            return Err(Error::new(Code::InvalidValue, format!("`{}` is not a file", node.name.display())));
        }
        let mut written = 0;
        for id in &node.content {
            let plain = self.blob(BlobKind::Data, id)?;
            out.write_all(&plain)
                .map_err(|e| Error::new(Code::System, "Cannot write the content").because(e))?;
            written += u64::try_from(plain.len()).unwrap_or(0);
        }
        Ok(written)
    }
}
