//! Check: whether everything that snapshots need is there and is what it should be.
//!
//! Invariants: nothing is written. Every damage that is found is an error in the report, with the points and paths it
//! affects; what is merely left over is a note. An error that came from work that went on beside (a prune that replaced
//! the index) is not reported: the check starts again, the third time under a shared lock; else it takes none.

mod affected;
pub(crate) mod pack;
pub(crate) mod survey;

use std::collections::HashSet;
use std::time::Duration;

use backstay_model::{Cancel, Error, Phase, Progress, Result};
use backstay_tree::fs::Kind;
use backstay_tree::path::escape;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::blob::BlobKind;
use crate::id::Id;
use crate::lock::Strength;
use crate::node::{Node, parse_tree};
use crate::vault::{Folder, Vault};
use crate::walk::{Marks, Walk};
use survey::Survey;

/// What is checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Read every pack whole, compare it with its name, open every blob and compare it with its id.
    pub read_data: bool,
}

/// Findings and paths beyond so many are counted, not listed.
pub const LISTED: usize = 1000;
/// Paths of one point beyond so many are counted, not listed.
pub const PATHS_LISTED: usize = 100;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FindingKind {
    /// The config was altered since the vault was opened.
    ConfigDamaged,
    /// A key file cannot be read: its password opens nothing.
    KeyDamaged,
    /// A lock cannot be read: writers are stopped by it.
    LockDamaged,
    /// A snapshot cannot be read: its point is lost.
    SnapshotDamaged,
    /// An index object cannot be read.
    IndexDamaged,
    /// The index names a pack that does not exist.
    PackMissing,
    /// A pack is not what its name or the index says.
    PackDamaged,
    /// A blob cannot be read from its pack.
    BlobDamaged,
    /// A tree cannot be read from any place.
    TreeDamaged,
    /// A blob that a file needs is in no index.
    BlobMissing,
    /// An entry of a tree cannot be restored: its name, size or kind does not fit.
    EntryUnsound,
    /// A pack that no index names: left by what was killed, or of a backup that runs now.
    PackUnreferenced,
    /// Somebody holds a lock.
    Locked,
}

impl FindingKind {
    /// Whether it means that something is wrong, not merely left over.
    #[must_use]
    pub fn is_error(self) -> bool {
        !matches!(self, FindingKind::PackUnreferenced | FindingKind::Locked)
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was found.
    pub kind: FindingKind,
    /// The object or blob it was found in.
    pub object: String,
    /// In words.
    pub detail: String,
}

/// A point that lost something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AffectedPoint {
    /// The snapshot.
    pub snapshot: Id,
    /// When it was taken.
    pub time: Timestamp,
    /// Its tags.
    pub tags: Vec<String>,
    /// Files, and folders of which nothing can be read (they end in `/`), escaped; the first [`PATHS_LISTED`].
    pub paths: Vec<String>,
    /// How many there are.
    pub count: u64,
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// What is wrong; the first [`LISTED`].
    pub errors: Vec<Finding>,
    /// How many there are.
    pub error_count: u64,
    /// What is merely left over or worth knowing; the first [`LISTED`].
    pub notes: Vec<Finding>,
    /// How many there are.
    pub note_count: u64,
    /// The points that lost something.
    pub affected: Vec<AffectedPoint>,
    /// Snapshots read.
    pub snapshots: u64,
    /// Distinct trees read.
    pub trees: u64,
    /// Places of blobs in the index.
    pub blobs: u64,
    /// Packs there are.
    pub packs: u64,
    /// Bytes of packs read whole; 0 without `read_data`.
    pub read_bytes: u64,
}

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.error_count == 0
    }

    fn add(&mut self, kind: FindingKind, object: impl Into<String>, detail: impl Into<String>) {
        let finding = Finding { kind, object: object.into(), detail: detail.into() };
        let (list, count) = if kind.is_error() {
            (&mut self.errors, &mut self.error_count)
        } else {
            (&mut self.notes, &mut self.note_count)
        };
        *count += 1;
        if list.len() < LISTED {
            list.push(finding);
        }
    }
}

/// An error with its causes on one line.
pub(crate) fn told(e: &Error) -> String {
    std::iter::once(e.message().to_owned()).chain(e.causes()).collect::<Vec<_>>().join("; ")
}

/// The blobs that no place gives.
pub(crate) type Lost = HashSet<(BlobKind, Id)>;

/// How often the check is made without a lock, while others change the vault, before it takes one.
const FREE_ATTEMPTS: usize = 2;
/// How long it then waits for a prune to finish.
const WAIT: Duration = Duration::from_secs(60);

/// Checks a vault. Damage is in the report; an error means that the check itself could not be made.
pub fn check(
    vault: &Vault,
    options: CheckOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<CheckReport> {
    for _ in 0..FREE_ATTEMPTS {
        progress.phase(Phase::Checking);
        let before = vault.ids(Folder::Index)?;
        let (report, ..) = examine(vault, options, progress, cancel)?;
        if report.is_clean() {
            return Ok(report);
        }
        let after: HashSet<Id> = vault.ids(Folder::Index)?.into_iter().collect();
        if before.iter().all(|id| after.contains(id)) {
            return Ok(report);
        }
    }
    // Prune deletes under the exclusive lock: with this one held, what is found is true.
    let lock = vault.lock(Strength::Shared, WAIT, cancel)?;
    progress.phase(Phase::Checking);
    let (report, ..) = examine(vault, options, progress, cancel)?;
    lock.release()?;
    Ok(report)
}

/// One check, with what repair needs to know beside the report.
pub(crate) fn examine(
    vault: &Vault,
    options: CheckOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(CheckReport, Survey, Lost)> {
    let survey = Survey::take(vault, options.read_data, progress, cancel)?;
    let mut report = CheckReport {
        snapshots: count(survey.snapshots.len()),
        blobs: count(survey.index.len()),
        packs: count(survey.packs.len()),
        read_bytes: survey.read_bytes,
        ..CheckReport::default()
    };
    check_others(vault, &mut report)?;
    report_survey(&survey, &mut report);
    let mut lost = survey.lost();
    check_trees(vault, &survey, &mut lost, &mut report, cancel)?;
    if !lost.is_empty() {
        report.affected = affected::find(vault, &survey, &lost, cancel)?;
    }
    for list in [&mut report.errors, &mut report.notes] {
        list.sort_by(|a, b| (a.kind, &a.object).cmp(&(b.kind, &b.object)));
    }
    Ok((report, survey, lost))
}

/// What stays lost with the index of `survey`, and the points that need it.
pub(crate) fn affected_by_loss(
    vault: &Vault,
    survey: &Survey,
    cancel: &Cancel,
) -> Result<(Vec<AffectedPoint>, Lost)> {
    let mut lost = survey.lost();
    check_trees(vault, survey, &mut lost, &mut CheckReport::default(), cancel)?;
    if lost.is_empty() {
        return Ok((Vec::new(), lost));
    }
    Ok((affected::find(vault, survey, &lost, cancel)?, lost))
}

pub(crate) fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Config, keys and locks.
fn check_others(vault: &Vault, report: &mut CheckReport) -> Result<()> {
    if let Err(e) = vault.reread_config() {
        report.add(FindingKind::ConfigDamaged, "config", told(&e));
    }
    for id in vault.ids(Folder::Keys)? {
        if let Err(e) = vault.read_key_file(&id)
            && e.code() != backstay_model::Code::ObjectNotFound
        {
            report.add(FindingKind::KeyDamaged, Folder::Keys.object(&id), told(&e));
        }
    }
    for id in vault.ids(Folder::Locks)? {
        match vault.get_json::<crate::lock::LockFile>(Folder::Locks, &id) {
            Ok(lock) => report.add(FindingKind::Locked, Folder::Locks.object(&id), lock.holder()),
            Err(e) if e.code() == backstay_model::Code::ObjectNotFound => {}
            Err(e) => report.add(FindingKind::LockDamaged, Folder::Locks.object(&id), told(&e)),
        }
    }
    Ok(())
}

fn report_survey(survey: &Survey, report: &mut CheckReport) {
    for (id, e) in &survey.bad_snapshots {
        report.add(FindingKind::SnapshotDamaged, Folder::Snapshots.object(id), told(e));
    }
    for (id, e) in &survey.bad_index {
        report.add(FindingKind::IndexDamaged, Folder::Index.object(id), told(e));
    }
    for id in &survey.missing_packs {
        let detail = "The index names it, but it is not there";
        report.add(FindingKind::PackMissing, Folder::Data.object(id), detail);
    }
    for (id, fault) in &survey.faults {
        for what in &fault.what {
            report.add(FindingKind::PackDamaged, Folder::Data.object(id), what.clone());
        }
        for (blob, what) in &fault.blobs {
            let detail = format!("In {}: {what}", Folder::Data.object(id));
            report.add(FindingKind::BlobDamaged, blob.to_string(), detail);
        }
    }
    for (id, size) in &survey.unindexed {
        let detail = format!("{size} bytes that no index names; the next prune removes them");
        report.add(FindingKind::PackUnreferenced, Folder::Data.object(id), detail);
    }
}

/// What the trees showed.
#[derive(Default)]
struct Trees {
    count: u64,
    findings: Vec<(FindingKind, String, String)>,
    lost: Lost,
}

/// Reads every tree and looks whether what its entries need is there. Adds to `lost` what is not, and the trees with
/// entries that cannot be restored.
fn check_trees(
    vault: &Vault,
    survey: &Survey,
    lost: &mut Lost,
    report: &mut CheckReport,
    cancel: &Cancel,
) -> Result<()> {
    let marks = Marks::new(&survey.index);
    let found = Mutex::new(Trees::default());
    let walk = Walk { vault, index: &survey.index, marks: &marks, cancel };
    walk.trees(survey.roots(), &|id, json, subtrees| {
        let nodes = json.and_then(parse_tree);
        let mut here = Trees { count: 1, ..Trees::default() };
        match nodes {
            Err(e) => {
                here.lost.insert((BlobKind::Tree, *id));
                here.findings.push((FindingKind::TreeDamaged, id.to_string(), told(&e)));
            }
            Ok(nodes) => {
                subtrees.extend(nodes.iter().filter_map(|n| n.subtree));
                check_nodes(survey, id, &nodes, &mut here);
            }
        }
        let mut all = found.lock();
        all.count += here.count;
        all.findings.append(&mut here.findings);
        all.lost.extend(here.lost);
        Ok(())
    })?;
    let found = found.into_inner();
    report.trees = found.count;
    for (kind, object, detail) in found.findings {
        report.add(kind, object, detail);
    }
    lost.extend(found.lost);
    Ok(())
}

fn check_nodes(survey: &Survey, tree: &Id, nodes: &[Node], here: &mut Trees) {
    let mut names = HashSet::new();
    let ascending = nodes.is_sorted_by(|a, b| a.name < b.name);
    for node in nodes {
        let name = || escape(&node.name);
        let mut unsound = |what: String| {
            here.findings.push((FindingKind::EntryUnsound, tree.to_string(), format!("`{}` {what}", name())));
        };
        if node.safe_name().is_none() {
            unsound("is no name a file can have".into());
        }
        if !ascending && !names.insert(&node.name) {
            unsound("is there twice".into());
        }
        match node.kind {
            Some(Kind::Dir) if node.subtree.is_none() => unsound("is a folder without entries".into()),
            Some(Kind::File) => {
                let mut size = 0u64;
                let mut missing = Vec::new();
                for blob in &node.content {
                    match survey.index.find(BlobKind::Data, blob) {
                        Some(place) => size = size.saturating_add(place.plain_length()),
                        None => missing.push(*blob),
                    }
                }
                if missing.is_empty() && size != node.size {
                    unsound(format!("says it has {} bytes, its content has {size}", node.size));
                }
                for blob in missing {
                    let detail = format!("`{}` needs it, no index lists it", name());
                    if here.lost.insert((BlobKind::Data, blob)) {
                        here.findings.push((FindingKind::BlobMissing, blob.to_string(), detail));
                    }
                }
            }
            _ => {}
        }
    }
}
