//! What a restore in place will do, as a value.
//!
//! Invariants: making a plan changes nothing, neither in the app nor in the vault. What is carried out is a plan too,
//! made anew from what the app is at that moment, never one that was shown earlier.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use backstay_catalog::{App, PointRecord};
use backstay_model::{AppName, Cancel, Code, Error, Origin, Problem, ProblemKind, Progress, Result};
use backstay_tree::apply::is_workplace;
use backstay_tree::beneath::Root;
use backstay_tree::filter::Filter;
use backstay_tree::fs::Kind;
use backstay_tree::path::{escape, unescape};
use backstay_vault::backup::{TreeOptions, survey};
use backstay_vault::change::{self, Action, ChangePlan, Keep, Rules, Side, Step};
use backstay_vault::{Id, Node, Reader};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{InPlace, RestoreRequest};
use crate::browse::content;
use crate::databases;
use crate::databases::choose::DatabasePlan;
use crate::databases::exchange::{BothSettings, Chosen};
use crate::filter::{FilterRecord, file_of, in_tree, kept_by_restore};
use crate::manifest::{CONTENT, Manifest, SETTINGS};
use crate::points::Points;
use crate::settings::SettingsDiff;
use crate::state::Engine;

/// What a restore in place will do. The same value is shown, sent, recorded and carried out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The app that changes.
    pub app: AppName,
    /// Its home.
    pub home: String,
    /// The point it goes to; none for an undo by the journal alone.
    pub point: Option<PointRecord>,
    /// How the app runs: `static`, `command`, `systemd`, `compose`.
    pub runtime: String,
    /// Whether the app runs and is stopped meanwhile.
    pub stops: bool,
    /// Whether what is there now is kept as a point first.
    pub safety_point: bool,
    /// The filter: what the app leaves as it is now, and what the point left out.
    pub filter: Vec<String>,
    /// What becomes of the databases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<DatabasePlan>,
    /// Which settings change; none where they stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<SettingsDiff>,
    /// What changes.
    #[serde(flatten)]
    pub changes: ChangePlan,
}

/// What a restore in place is about.
pub(super) struct Scene {
    pub points: Points,
    pub record: PointRecord,
    /// The app that changes.
    pub app: App,
    /// Its home, links resolved.
    pub home: PathBuf,
    pub select: Option<Vec<PathBuf>>,
    /// What the point says about itself; none for snapshots of other programs.
    pub manifest: Option<Manifest>,
    /// The databases that are restored too.
    pub databases: Vec<Chosen>,
    /// The settings that are restored too: those of now and those of the point.
    pub settings: Option<BothSettings>,
    /// What is to be told of the point.
    pub told: Vec<Problem>,
}

/// The app as it is now, as a tree of the vault or of a survey.
pub(super) struct Live {
    pub tree: Id,
    pub top: Option<Node>,
    /// What could not be read or was left out.
    pub problems: Vec<Problem>,
    /// SQLite files of which it has a copy, so that size and time of change are not theirs.
    pub sqlite: BTreeSet<PathBuf>,
    pub reader: Reader,
}

impl Engine {
    /// What a restore in place would do. Nothing is changed, in the app or in the vault.
    pub fn plan_restore(
        &self,
        request: &RestoreRequest<'_>,
        how: &InPlace<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<RestorePlan> {
        let scene = self.scene(request, how)?;
        let live = self.survey(&scene, progress, cancel)?;
        self.plan(&scene, &live, how, cancel)
    }

    /// The app as it is, without keeping it.
    pub(super) fn survey(&self, scene: &Scene, progress: &dyn Progress, cancel: &Cancel) -> Result<Live> {
        let vault = &scene.points.vault;
        let newest = scene.points.records.iter().find(|r| r.point.app == scene.app.name);
        let options = TreeOptions {
            exclusions: self.exclusions(&scene.app, &scene.home, &vault.address)?,
            filter: None,
            parent: newest.map(|r| r.point.snapshot.parse()).transpose()?,
            file_index: Some(self.file_index(&vault.id, &scene.app.name)?),
            still: None,
        };
        let reader = vault.vault.reader()?;
        let seen = survey(reader, CONTENT, &self.fs, &scene.home, options, progress, cancel)?;
        Ok(Live {
            tree: seen.tree,
            top: Some(seen.top),
            problems: seen.problems,
            sqlite: BTreeSet::new(),
            reader: seen.reader,
        })
    }

    /// Finds the point and the app that a request speaks of.
    pub(super) fn scene(&self, request: &RestoreRequest<'_>, how: &InPlace<'_>) -> Result<Scene> {
        let select = request.selected()?;
        let (points, record) = self.find_among(request.app, request.point)?;
        self.check_restorable(&record)?;
        let app = self.known_app(how.target.unwrap_or(&record.point.app).as_str())?;
        self.scene_of(points, record, app, select, how)
    }

    pub(super) fn scene_of(
        &self,
        points: Points,
        record: PointRecord,
        app: App,
        select: Option<Vec<PathBuf>>,
        how: &InPlace<'_>,
    ) -> Result<Scene> {
        let home = self.home_of(&app)?;
        let manifest = match record.point.origin {
            Origin::Foreign => None,
            _ => {
                let found = Manifest::load(&points.vault.vault.reader()?, &record.tree.parse()?);
                Some(found.map_err(refused)?.ok_or_else(|| without_manifest("It is not there"))?)
            }
        };
        // A safety point has the databases exactly where a restore was about to replace them.
        let back = record.point.origin == Origin::Safety;
        let databases = match how.databases || back {
            true => self.choose_databases(&app, manifest.as_ref(), how.elsewhere, !back, &Cancel::new())?,
            false => Vec::new(),
        };
        let mut told = Vec::new();
        // Those of another app would lead this one to the databases of that.
        let own = record.point.app == app.name;
        let settings = match how.settings && own && select.is_none() {
            true => {
                let reader = points.vault.vault.reader()?;
                self.settings_in(&reader, &record.tree.parse()?, &app.name, &mut told)?
            }
            false => None,
        };
        Ok(Scene { points, record, app, home, select, manifest, databases, settings, told })
    }

    /// The settings of an app as they are and as they are in a point; none where the point has none.
    pub(super) fn settings_in(
        &self,
        reader: &Reader,
        root: &Id,
        app: &AppName,
        told: &mut Vec<Problem>,
    ) -> Result<Option<BothSettings>> {
        let node = match reader.find(root, SETTINGS.as_ref()) {
            Err(e) if e.code() == Code::PathNotFound => return Ok(None),
            found => found?,
        };
        let mut document = Zeroizing::new(Vec::new());
        reader.cat(&node, &mut *document)?;
        let new = match self.snapshot_of_document(app, &document) {
            // An archive of another program brought it in.
            Err(e) if matches!(e.code(), Code::VaultUnsupported | Code::VaultDamaged) => {
                let detail = format!("The settings stay as they are: {}", e.message());
                told.push(Problem { path: SETTINGS.to_owned(), kind: ProblemKind::Told, detail });
                return Ok(None);
            }
            new => new?,
        };
        let old = self.settings_snapshot(app)?;
        let differ = !new.is_silent() && !self.settings_diff(app, &new)?.is_empty();
        Ok(differ.then_some(BothSettings { old, new }))
    }

    /// The home of an app that is to change, links resolved.
    pub(super) fn home_of(&self, app: &App) -> Result<PathBuf> {
        let home = app.home.clone().ok_or_else(|| no_home(app))?;
        let home = home.canonicalize().map_err(|e| {
            let message = format!("The home of app `{}`, {}, cannot be opened", app.name, home.display());
            Error::new(Code::TargetUnusable, message).because(e).advise(format!(
                "To bring the app back there, make the empty folder first. To a new place: `backstay restore {} --to NAME`.",
                app.name
            ))
        })?;
        self.refuse_own(&home)?;
        Ok(home)
    }

    /// Plans from the app as it is.
    pub(super) fn plan(
        &self,
        scene: &Scene,
        live: &Live,
        how: &InPlace<'_>,
        cancel: &Cancel,
    ) -> Result<RestorePlan> {
        let (tree, top) = content(&live.reader, &scene.record)?;
        let problems_then = scene.manifest.as_ref().map(|m| m.problems.as_slice()).unwrap_or_default();
        let root = Root::open(self.fs.clone(), &scene.home)?;
        let recorded = scene.manifest.as_ref().and_then(|m| m.filter.as_ref());
        let (filter, ignored) = self.kept(scene, recorded)?;
        let protected = self.protected(scene, &live.problems);
        // A filter goes on keeping what it names: one that the point does not have stays, one that it has is replaced.
        // A safety point is all that there was, so an undo takes away what a restore has brought.
        let own = file_of(&*self.fs, &scene.home)
            .filter(|_| scene.record.point.origin != Origin::Safety)
            .filter(|file| is_missing(&live.reader, &tree, file));
        let then = match scene.record.point.origin {
            Origin::Safety => Some(in_tree(&live.reader, &tree, &scene.app.config.excludes)?),
            _ => None,
        };
        let rules = Rules {
            keep: &|path, is_dir| match (kept_by(&filter, then.as_ref(), path, is_dir), own) {
                (_, Some(file)) if path == file => Keep::Yes,
                (Keep::No, Some(file)) if is_dir && file.starts_with(path) => Keep::MaybeBelow,
                (other, _) => other,
            },
            protected: &protected,
            unknown: &change::unknown(&root, &live.problems),
            not_in_point: &change::not_in_point(problems_then),
            select: scene.select.as_deref(),
        };
        let side = |tree: Id, top: &Option<Node>| (tree, top.clone());
        let (live_tree, live_top) = side(live.tree, &live.top);
        let mut changes = change::plan(
            &live.reader,
            &Side { tree: live_tree, top: live_top.as_ref() },
            &Side { tree, top: top.as_ref() },
            &rules,
            cancel,
        )?;
        changes.problems.extend(ignored);
        changes.problems.extend(scene.told.iter().cloned());
        if !scene.databases.is_empty() && !scene.app.config.runtime.runs() {
            let detail = "Backstay does not know how the app runs and cannot stop it: what it writes into its databases meanwhile \
                          is lost. Stop it before"
                .to_owned();
            changes.problems.push(Problem { path: String::new(), kind: ProblemKind::Told, detail });
        }
        self.with_siblings(scene, live, &mut changes);
        Ok(RestorePlan {
            app: scene.app.name.clone(),
            home: escape(scene.home.as_os_str()),
            point: Some(scene.record.clone()),
            runtime: scene.app.config.runtime.kind().to_owned(),
            stops: self.is_running(&scene.app)?,
            safety_point: how.safety_point,
            databases: databases::choose::plan(&scene.app, &scene.databases, cancel)?,
            settings: scene
                .settings
                .as_ref()
                .map(|both| self.settings_diff(&scene.app.name, &both.new))
                .transpose()?,
            filter: filter.rules().iter().map(|rule| rule.text.clone()).collect(),
            changes,
        })
    }

    /// Beside a SQLite file that changes nothing may stay of what belongs to the old one: its log would be played into the
    /// new. Neither tree has those files, so they are looked for now.
    fn with_siblings(&self, scene: &Scene, live: &Live, changes: &mut ChangePlan) {
        let then = scene.manifest.as_ref().map(Manifest::sqlite_paths).unwrap_or_default();
        let is_sqlite = |path: &PathBuf| then.contains(path) || live.sqlite.contains(path);
        let mut more = Vec::new();
        for step in changes.steps.iter_mut().filter(|step| is_sqlite(&step.path)) {
            step.seen = None;
            for sibling in backstay_database::sqlite::siblings(&step.path) {
                if scene.home.join(&sibling).symlink_metadata().is_ok() {
                    more.push(Step {
                        path: sibling,
                        action: Action::Remove,
                        before: None,
                        after: None,
                        seen: None,
                    });
                }
            }
        }
        let named: BTreeSet<&PathBuf> = changes.steps.iter().map(|step| &step.path).collect();
        more.retain(|step| !named.contains(&step.path));
        if !more.is_empty() {
            changes.steps.extend(more);
            changes.steps.sort_by(|a, b| a.path.cmp(&b.path));
        }
    }

    /// What is kept by filters. One that cannot be obeyed refuses the restore, but not an undo: a restore may have brought it, and
    /// nothing is lost, as a safety point has everything.
    fn kept(&self, scene: &Scene, recorded: Option<&FilterRecord>) -> Result<(Filter, Option<Problem>)> {
        let excludes = &scene.app.config.excludes;
        match kept_by_restore(&*self.fs, &scene.home, excludes, recorded) {
            Err(e) if e.code() == Code::FilterUnusable && scene.record.point.origin == Origin::Safety => {
                let detail = format!("{}: it was not obeyed", e.message());
                let problem = Problem { path: String::new(), kind: ProblemKind::Told, detail };
                Ok((Filter::from_lines(excludes)?, Some(problem)))
            }
            kept => Ok((kept?, None)),
        }
    }

    /// What lies in the home and must not be touched: mounts, homes of other apps, Backstay's own folders. The walk of
    /// the home has told it.
    fn protected(&self, scene: &Scene, problems: &[Problem]) -> Vec<PathBuf> {
        let told = problems.iter().filter(|p| matches!(p.kind, ProblemKind::Mount | ProblemKind::Excluded));
        let mut paths: Vec<PathBuf> = told.filter_map(|p| unescape(&p.path).map(PathBuf::from)).collect();
        let below = |path: PathBuf| path.strip_prefix(&scene.home).ok().map(Path::to_owned);
        paths.extend(
            backstay_tree::mounts::below(&scene.home).unwrap_or_default().into_iter().filter_map(below),
        );
        paths.sort();
        paths.dedup();
        paths
    }
}

/// Whether a tree has a file's folder, and in it not the file.
fn is_missing(reader: &Reader, tree: &Id, file: &Path) -> bool {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let is_dir = |folder: &Path| reader.find(tree, folder).is_ok_and(|node| node.kind == Some(Kind::Dir));
    folder.is_none_or(is_dir) && reader.find(tree, file).is_err_and(|e| e.code() == Code::PathNotFound)
}

/// What the filter says of a path; in an undo both of now and of then, so that what one of them has let a restore replace
/// comes back.
fn kept_by(filter: &Filter, then: Option<&Filter>, path: &Path, is_dir: bool) -> Keep {
    let now = keep(filter, path, is_dir);
    match (now, then.map(|then| keep(then, path, is_dir))) {
        (now, None) => now,
        (Keep::No, _) | (_, Some(Keep::No)) => Keep::No,
        (Keep::Yes, Some(Keep::Yes)) => Keep::Yes,
        _ => Keep::MaybeBelow,
    }
}

/// What the filter says of a path.
fn keep(filter: &Filter, path: &Path, is_dir: bool) -> Keep {
    if filter.matches(path).is_some() {
        Keep::Yes
    } else if is_dir && filter.may_match_below(path) {
        Keep::MaybeBelow
    } else {
        Keep::No
    }
}

impl RestorePlan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.databases.is_empty() && self.settings.is_none()
    }

    /// Refuses a plan that cannot be carried out.
    pub(super) fn refuse(&self) -> Result<()> {
        let lost = |p: &&Problem| matches!(p.kind, ProblemKind::Lost | ProblemKind::Unsafe);
        if let Some(lost) = self.changes.problems.iter().find(lost) {
            let path = if lost.path.is_empty() { "The content" } else { &lost.path };
            let message = format!("{path} of the point cannot be restored: {}", lost.detail);
            return Err(Error::new(Code::RestoreRefused, message));
        }
        let is_ours = |path: &Path| path.iter().any(is_workplace);
        if let Some(step) = self.changes.steps.iter().find(|step| is_ours(&step.path)) {
            let path = escape(step.path.as_os_str());
            let message = format!("{path} of the point has a name that only Backstay's own folders have");
            return Err(Error::new(Code::RestoreRefused, message));
        }
        let Some(first) = self.changes.conflicts.first() else { return Ok(()) };
        let more = match self.changes.conflicts.len() {
            1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        let path = escape(first.path.as_os_str());
        Err(Error::new(Code::Conflict, format!("{path} cannot be restored{more}: {}", first.why)).advise(
            "Nothing was changed. Move what is in the way, or restore other paths with --path, or into a folder with --directory.",
        ))
    }
}

/// A point that does not say what it holds and what it left out is not put over an app.
fn refused(e: Error) -> Error {
    match e.code() {
        Code::VaultDamaged | Code::InvalidValue => without_manifest(e),
        _ => e,
    }
}

fn without_manifest(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(Code::RestoreRefused, "The manifest of the point cannot be read").because(why)
}

fn no_home(app: &App) -> Error {
    Error::new(Code::TargetUnusable, format!("The home of app `{}` on this machine is not known", app.name))
        .advise(format!(
            "`backstay restore {0} --to {0}` gives it one, in the state folder or where --directory says; `--to NAME` makes a new app \
             of it.",
            app.name
        ))
}
