//! Looking at the databases of an app and beginning their dumps, for a point and for a custom backup.
//!
//! Order: every one is looked at, then the snapshot of each is begun, as soon after each other as they can be; what their rows name is asked in
//! that snapshot where it can be asked.
//!
//! Invariants: a database that cannot be looked at, or whose dump cannot be begun, is told and holds up nothing; only what concerns the
//! job itself ends the backup.

use backstay_catalog::App;
use backstay_database::{Database, Dump, Probe};
use backstay_model::{Code, Error, Phase, Problem, ProblemKind, Progress as _, Result};
use jiff::Timestamp;

use super::linked::{Due, Linked, options};
use super::references::Named;
use crate::job::Running;
use crate::manifest::Waiting;
use crate::state::Engine;

/// A database that is to be dumped.
pub(crate) struct Open<'l> {
    pub link: &'l Linked,
    database: Box<dyn Database>,
    probe: Probe,
}

impl Open<'_> {
    /// Whether a dump of it stands for as long as nobody reads it.
    pub fn waits(&self) -> bool {
        self.database.dump_waits()
    }
}

/// A database whose snapshot stands.
pub(crate) struct Begun<'l, 'd> {
    pub link: &'l Linked,
    /// Whether it stands for as long as nobody reads the dump.
    pub waits: bool,
    pub dump: Box<dyn Dump + 'd>,
    pub probe: Probe,
    pub started: Timestamp,
}

/// Why a database is not in the backup.
pub(crate) enum Failure {
    /// It is told; the others are saved all the same.
    OfDatabase(Error),
    /// The place that it is written to, or the job itself.
    OfBackup(Error),
}

/// What a person should know of the databases of a backup.
#[derive(Default)]
pub(crate) struct Told {
    pub problems: Vec<Problem>,
    /// Those that are not due.
    pub waiting: Vec<Waiting>,
}

impl Told {
    /// Tells of a database that is not in the backup; gives the error back where it ends the backup.
    pub fn tell<T>(
        &mut self,
        job: &Running<'_>,
        link: &Linked,
        result: Result<T, Failure>,
    ) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Failure::OfBackup(e)) => Err(e),
            Err(Failure::OfDatabase(e)) => {
                let problem = not_saved(link, &e);
                job.problem(&problem);
                self.problems.push(problem);
                Ok(None)
            }
        }
    }

    /// Tells what a dump that went well says of itself.
    pub fn notes(&mut self, link: &Linked, notes: &[String]) {
        let told =
            |note: &String| Problem { path: link.path(), kind: ProblemKind::Told, detail: note.clone() };
        self.problems.extend(notes.iter().map(told));
    }
}

impl Engine {
    /// Looks at all; gives those that can be dumped and are due, `due` being asked with their estimated bytes.
    pub(crate) fn look_at_linked<'l>(
        &self,
        job: &Running<'_>,
        app: &App,
        linked: &'l [Linked],
        due: impl Fn(&Linked, u64) -> Due,
        told: &mut Told,
    ) -> Result<Vec<Open<'l>>> {
        if !linked.is_empty() {
            job.phase(Phase::Dumping);
        }
        let mut open = Vec::new();
        for link in linked {
            let looked = look_at(job, app, link);
            let Some(looked) = told.tell(job, link, looked)? else { continue };
            if let Due::Later(waiting) = due(link, looked.probe.estimated_bytes) {
                told.problems.push(waiting.told());
                told.waiting.push(waiting);
                continue;
            }
            job.log(format!("{}: {}, {}", link.name, link.source(), looked.probe.version));
            open.push(looked);
        }
        Ok(open)
    }

    /// Begins the dumps of all, and asks what they name.
    pub(crate) fn begin_linked<'l, 'd>(
        &self,
        job: &Running<'_>,
        app: &App,
        open: &'d mut [Open<'l>],
        told: &mut Told,
    ) -> Result<(Vec<Begun<'l, 'd>>, Vec<Named>)> {
        let (mut begun, mut named) = (Vec::new(), Vec::new());
        for Open { link, database, probe } in open {
            let (started, waits) = (self.clock.now(), database.dump_waits());
            let before = self.names_of(app, link, job);
            let dump = database.dump().map_err(|e| judge(job, e));
            if let Some(mut dump) = told.tell(job, link, dump)? {
                // Where the snapshot cannot be asked: what it names was there before it or is there after it.
                let exact = before.as_ref().and_then(|before| before.in_snapshot(&mut *dump));
                named.extend(exact.or_else(|| Named::of_both(before, self.names_of(app, link, job))));
                begun.push(Begun { link, waits, dump, probe: probe.clone(), started });
            }
        }
        Ok((begun, named))
    }

    fn names_of(&self, app: &App, link: &Linked, job: &Running<'_>) -> Option<Named> {
        self.names(app, app.home.as_deref()?, (&link.name, link.endpoint().ok()?), job.cancel())
    }
}

/// Looks whether a database can be dumped.
fn look_at<'l>(job: &Running<'_>, app: &App, link: &'l Linked) -> Result<Open<'l>, Failure> {
    let endpoint = link.endpoint().map_err(Failure::OfDatabase)?;
    let opened = backstay_database::open(endpoint, options(app, job.cancel()));
    let mut database = opened.map_err(Failure::OfDatabase)?;
    let probe = database.probe().map_err(|e| judge(job, e))?;
    Ok(Open { link, database, probe })
}

/// An error of a database, unless the job was told to stop.
pub(crate) fn judge(job: &Running<'_>, e: Error) -> Failure {
    match job.cancel().check() {
        Err(cancelled) => Failure::OfBackup(cancelled),
        Ok(()) => Failure::OfDatabase(e),
    }
}

/// What is told of a database that is not in the backup.
fn not_saved(link: &Linked, e: &Error) -> Problem {
    let causes: String = e.causes().iter().map(|c| format!(": {c}")).collect();
    let code = if e.code() == Code::DatabaseFailed { String::new() } else { format!(" ({})", e.code()) };
    Problem {
        path: link.path(),
        kind: ProblemKind::Database,
        detail: format!("{}{code}{causes}", e.message()),
    }
}
