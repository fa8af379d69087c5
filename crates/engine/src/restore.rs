//! Restoring: out into a folder, into a new app, over an app.
//!
//! - [`directory`]: a folder is made and filled; nothing that exists is replaced.
//! - [`arrival`]: what is known of a new app until it is complete.
//! - [`beside`]: databases and settings that go with the files.
//! - [`in_place`]: the app itself goes to a point, wholly or not at all; [`undo`] takes that back.
//! - [`safety`]: points that no restore has made use of yet are no way back.
//! - [`resume`]: what a restore that was killed left behind is finished or cleared away by the next command.

mod arrival;
mod beside;
mod directory;
mod in_place;
mod plan;
mod resume;
mod safety;
mod target;
mod undo;

use std::path::PathBuf;

use backstay_model::{Counts, Origin, Problem, ProblemKind, Result};
use backstay_vault::restore::{RestoreOptions, restore};

use self::target::Target;
use crate::browse::{content, typed_path};
use crate::job::Running;
use crate::manifest::Manifest;
use crate::points::Found;
use crate::select::Selector;
use crate::state::Engine;

pub use self::directory::{NewHome, RestoreReport};
pub use self::in_place::{InPlace, InPlaceReport};
pub use self::plan::RestorePlan;
pub use self::resume::Resumed;
pub(crate) use self::safety::note as note_safety;

/// What is to be restored.
#[derive(Clone, Copy, Debug)]
pub struct RestoreRequest<'a> {
    /// The app whose point it is.
    pub app: &'a str,
    /// The point.
    pub point: &'a Selector,
    /// Only these paths and what is below them, escaped; everything when empty.
    pub paths: &'a [String],
}

impl RestoreRequest<'_> {
    /// The paths as they are; none for everything.
    fn selected(&self) -> Result<Option<Vec<PathBuf>>> {
        let paths = self.paths.iter().map(|p| typed_path(p)).collect::<Result<Vec<_>>>()?;
        Ok((!paths.is_empty()).then_some(paths))
    }
}

impl Engine {
    /// Fills a new folder from a point.
    fn fill(
        &self,
        found: &Found,
        target: &Target,
        options: RestoreOptions,
        job: &Running<'_>,
    ) -> Result<(Counts, Vec<Problem>)> {
        let reader = found.vault.vault.reader()?;
        let (tree, top) = content(&reader, &found.record)?;
        let mut problems = Vec::new();
        let manifest = match found.record.point.origin {
            Origin::Foreign => None,
            // Without it the files are restored all the same; only holes become zeros.
            _ => Manifest::load(&reader, &found.record.tree.parse()?).unwrap_or_else(|e| {
                let detail = format!("Files with holes are restored with zeros: {}", e.message());
                problems.push(Problem { path: String::new(), kind: ProblemKind::Metadata, detail });
                None
            }),
        };
        let sparse = manifest.as_ref().map(Manifest::holes).unwrap_or_default();
        let options = RestoreOptions { sparse, ..options };
        let outcome =
            restore(&reader, &self.fs, &tree, top.as_ref(), &target.fill, &options, job, job.cancel())?;
        problems.extend(outcome.problems);
        Ok((outcome.counts, problems))
    }
}
