//! What a restore in place brings back beside the files: databases and settings.
//!
//! Invariants: new databases are filled while the app goes on, and come into use only after the journal is committed; where one
//! cannot, the journal is turned round and everything goes back. What is not in use goes when the app is up again.
//!
//! Crash: [`super::resume`], by the note of [`crate::databases::exchange`].

use backstay_catalog::App;
use backstay_model::{Code, Error, Problem, ProblemKind, Result};
use backstay_tree::apply::{Journal, Side};

use super::in_place::{After, Note};
use super::plan::Scene;
use crate::backup::Taken;
use crate::databases::exchange::Chosen;
use crate::job::Running;
use crate::state::Engine;

impl Engine {
    /// Notes what is exchanged beside the files, and fills the new databases.
    pub(super) fn load(&self, scene: &Scene, job: &Running<'_>, problems: &mut Vec<Problem>) -> Result<()> {
        self.begin_exchange(job.id(), (&scene.app, false), &scene.databases, scene.settings.clone())?;
        if scene.databases.is_empty() {
            return Ok(());
        }
        let reader = scene.points.vault.vault.reader()?;
        let root = scene.record.tree.parse()?;
        let words = self.stage_databases(job, &scene.app, &scene.databases, (&reader, &root))?;
        problems.extend(words.into_iter().map(|detail| Problem {
            path: String::new(),
            kind: ProblemKind::Told,
            detail,
        }));
        Ok(())
    }

    /// Brings the new databases into use. Where that fails, all of the restore is taken back.
    pub(super) fn exchange_or_back(
        &self,
        note: &Note,
        app: &App,
        journal: &mut Journal,
        job: &Running<'_>,
    ) -> Result<()> {
        let Err(error) = self.exchange_to(job.id(), databases(Side::New)) else { return Ok(()) };
        job.log(format!("{error}: everything goes back"));
        // From here on the next command would bring it back, too.
        journal.settle(Side::Old)?;
        self.exchange_to(job.id(), databases(Side::Old))?;
        let started = if note.runs { self.start_again(app) } else { Ok(()) };
        journal.close()?;
        self.end_exchange(job.id()).unwrap_or_else(|e| job.log(later(&e)));
        Err(match started {
            Ok(()) => error,
            Err(e) => error.context(format!("The app could not be started again ({e})")),
        })
    }

    /// After the end: what is not in use at the servers goes, unless the app does not work. What is to be told of that.
    pub(super) fn conclude_exchange(&self, job: &Running<'_>, after: &After) -> Option<Problem> {
        let stays = after.healthy == Some(false) && !after.taken_back && self.has_exchange(job.id());
        if !stays {
            return self.clear_exchange(job);
        }
        let detail = match self.keep_exchange(job.id()) {
            Ok(()) => "The old databases stay at their servers until the next restore of the app".to_owned(),
            Err(e) => later(&e),
        };
        Some(told(job, detail))
    }

    /// Removes what is not in use at the servers. What is to be told of that.
    pub(super) fn clear_exchange(&self, job: &Running<'_>) -> Option<Problem> {
        self.end_exchange(job.id()).err().map(|e| told(job, later(&e)))
    }
}

fn told(job: &Running<'_>, detail: String) -> Problem {
    job.log(detail.clone());
    Problem { path: String::new(), kind: ProblemKind::Told, detail }
}

/// The same side, in the words of the databases.
pub(super) fn databases(side: Side) -> backstay_database::Side {
    match side {
        Side::Old => backstay_database::Side::Old,
        Side::New => backstay_database::Side::New,
    }
}

/// What is told where a server did not let go of what is not in use.
pub(super) fn later(e: &Error) -> String {
    format!("What is not in use any more could not be removed: {e}. The next command tries again.")
}

/// Refuses to replace a database that the safety point does not hold. One that is not there needs no keeping.
pub(super) fn refuse_unsaved(chosen: &[Chosen], taken: &Taken) -> Result<()> {
    let is_saved = |c: &&Chosen| taken.databases.iter().any(|d| d.connection == c.saved.connection);
    for lost in chosen.iter().filter(|c| !c.elsewhere && !is_saved(c)) {
        let path = format!("database {}", lost.saved.connection);
        let why = taken.problems.iter().find(|p| p.path == path && p.kind == ProblemKind::Database);
        let gone = format!("({})", Code::DatabaseNotFound);
        let Some(why) = why.filter(|p| !p.detail.contains(&gone)) else { continue };
        let message =
            format!("The database of `{}` cannot be kept first: {}", lost.saved.connection, why.detail);
        return Err(Error::new(Code::RestoreRefused, message).advise(
            "Nothing was changed. Mend that, or add --no-safety-point: then only the old database itself, which stays until the \
             restore has ended well, could bring it back.",
        ));
    }
    Ok(())
}
