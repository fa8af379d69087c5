//! The tree of an archive, as the vault saves it.
//!
//! Invariant: what could not be read to its end when the archive was made is left out and told; a further name of such a
//! file is a file of its own.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use backstay_archive::{Contents, Node as ArchiveNode, Record, RecordKind};
use backstay_model::{Problem, ProblemKind, Result};
use backstay_tree::path::escape;
use backstay_vault::Node;
use backstay_vault::backup::{Listed, Listing, Receive};

/// See the module.
pub(super) struct ArchiveListing<'c> {
    contents: &'c Contents,
    /// Numbers of the nodes that are saved, ascending.
    nodes: Vec<usize>,
    left_out: HashSet<&'c Path>,
    root: Record,
}

impl<'c> ArchiveListing<'c> {
    /// The listing; none for an archive that holds nothing, not even a home.
    pub fn new(contents: &'c Contents) -> Option<Self> {
        let is_whole = |node: &ArchiveNode| !node.record.incomplete;
        let all = contents.nodes();
        let nodes = all.iter().enumerate().filter(|(_, n)| is_whole(n)).map(|(at, _)| at).collect();
        let left_out = all.iter().filter(|n| !is_whole(n)).map(|n| n.record.path.as_path()).collect();
        let root = all.first()?.record.clone();
        Some(ArchiveListing { contents, nodes, left_out, root })
    }

    /// What is told of files that were left out.
    pub fn problems(&self) -> Vec<Problem> {
        let mut paths: Vec<&Path> = self.left_out.iter().copied().collect();
        paths.sort_unstable();
        let problem = |path: &Path| Problem {
            path: escape(path.as_os_str()),
            kind: ProblemKind::Unreadable,
            detail: "It could not be read to its end when the archive was made".to_owned(),
        };
        paths.into_iter().map(problem).collect()
    }

    /// Whether a path is among the files.
    pub fn has(&self, path: &Path) -> bool {
        self.contents.nodes().iter().any(|n| n.record.path == path && n.record.kind == RecordKind::File)
    }

    fn at(&self, number: usize) -> Option<&'c ArchiveNode> {
        self.contents.nodes().get(*self.nodes.get(number)?)
    }

    fn record(&self, number: usize) -> &Record {
        self.at(number).map_or(&self.root, |node| &node.record)
    }
}

impl Listing for ArchiveListing<'_> {
    fn count(&self) -> usize {
        self.nodes.len()
    }

    fn path(&self, number: usize) -> &Path {
        &self.record(number).path
    }

    fn entry(&self, number: usize) -> Listed<'_> {
        let record = self.record(number);
        match (&record.link, record.kind) {
            (_, RecordKind::Folder) => Listed::Folder,
            (Some(first), _) if !self.left_out.contains(first.as_path()) => Listed::Further(first),
            (_, RecordKind::File) => Listed::File {
                size: record.size,
                place: self.at(number).map_or(0, |node| self.contents.place(node)),
                sparse: record.sparse.as_deref(),
            },
            _ => Listed::Special,
        }
    }

    fn node(&self, number: usize) -> Node {
        let record = self.record(number);
        let details = &record.details;
        let name = |name: &Option<Arc<str>>| name.clone().unwrap_or_else(|| Arc::from(""));
        Node {
            kind: Some(record.kind.kind()),
            mode: details.mode,
            mtime: details.mtime,
            uid: details.uid,
            gid: details.gid,
            user: name(&details.user),
            group: name(&details.group),
            link_target: record.target.clone().unwrap_or_default(),
            xattrs: details.xattrs.clone(),
            device: record.device,
            ..Node::default()
        }
    }

    fn read(&self, files: &[usize], receive: &mut Receive<'_>) -> Result<()> {
        let numbers: Vec<usize> = files.iter().filter_map(|n| self.nodes.get(*n).copied()).collect();
        self.contents.read_nodes(&numbers, &mut |node, bytes| {
            // The numbers ascend: where one stands is its number here.
            receive(self.nodes.partition_point(|known| *known < node), bytes)
        })
    }
}
