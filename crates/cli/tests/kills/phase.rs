//! Where a killed command was, as told by what it left.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::World;
use crate::kill::Blow;

/// The names of a vault's objects.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) packs: BTreeSet<String>,
    pub(crate) index: BTreeSet<String>,
    pub(crate) snapshots: BTreeSet<String>,
    pub(crate) locks: BTreeSet<String>,
    /// Files in the making.
    pub(crate) making: BTreeSet<PathBuf>,
}

impl Disk {
    pub(crate) fn of(world: &World) -> Self {
        let vault = world.path("home/vault");
        let mut making = BTreeSet::new();
        let mut folder = |path: &Path| {
            let mut names = BTreeSet::new();
            for entry in std::fs::read_dir(path).unwrap().flatten() {
                let name = entry.file_name().into_string().unwrap();
                if name.starts_with(".tmp-") {
                    making.insert(entry.path());
                } else {
                    names.insert(name);
                }
            }
            names
        };
        let mut packs = BTreeSet::new();
        for part in folder(&vault.join("data")) {
            packs.extend(folder(&vault.join("data").join(part)));
        }
        let [index, snapshots, locks] = ["index", "snapshots", "locks"].map(|name| folder(&vault.join(name)));
        Disk { packs, index, snapshots, locks, making }
    }

    /// Whether there is a lock that was not there before.
    fn locked_since(&self, before: &Disk) -> bool {
        !self.locks.is_subset(&before.locks)
    }
}

/// What the record says of the job that a process began: none, or its state.
pub(crate) fn job_of(world: &World, process: u32) -> Option<String> {
    let list = world.json(&["job", "list"]);
    let jobs = list["jobs"].as_array().unwrap();
    for job in jobs {
        assert!(job["state"] != "running" && job["state"] != "queued", "a job stays {job}");
    }
    let owner = format!(" pid={process} ");
    let job = jobs.iter().find(|job| job["owner"].as_str().unwrap().contains(&owner))?;
    Some(job["state"].as_str().unwrap().to_owned())
}

pub(crate) const BACKUP: &[&str] = &[
    "before its job",
    "job begun, no lock yet",
    "reading, nothing stored yet",
    "packs stored, not indexed",
    "indexed, no point yet",
    "point there, lock held",
    "lock given back, job open",
    "job ended",
];

pub(crate) fn of_backup(before: &Disk, after: &Disk, job: Option<&str>) -> &'static str {
    let point = !after.snapshots.is_subset(&before.snapshots);
    let locked = after.locked_since(before);
    let storing = !after.packs.is_subset(&before.packs)
        || after.making.iter().any(|path| path.to_string_lossy().contains("/data/"));
    match job {
        None => BACKUP[0],
        Some("succeeded") => BACKUP[7],
        Some(_) if point && !locked => BACKUP[6],
        Some(_) if point => BACKUP[5],
        Some(_) if !after.index.is_subset(&before.index) => BACKUP[4],
        Some(_) if storing => BACKUP[3],
        Some(_) if locked => BACKUP[2],
        Some(_) => BACKUP[1],
    }
}

pub(crate) const DELETE: &[&str] = &[
    "before its job",
    "job begun, no lock yet",
    "lock held, point there",
    "point gone, lock held",
    "lock given back, job open",
    "job ended",
];

pub(crate) fn of_delete(before: &Disk, after: &Disk, job: Option<&str>) -> &'static str {
    let gone = !before.snapshots.is_subset(&after.snapshots);
    match (job, gone, after.locked_since(before)) {
        (None, ..) => DELETE[0],
        (Some("succeeded"), ..) => DELETE[5],
        (_, true, false) => DELETE[4],
        (_, true, true) => DELETE[3],
        (_, false, true) => DELETE[2],
        (_, false, false) => DELETE[1],
    }
}

pub(crate) const PRUNE: &[&str] = &[
    "before its job",
    "job begun, no lock yet",
    "planning, nothing written yet",
    "data moved, not indexed",
    "moved data indexed",
    "old index going",
    "packs going",
    "packs gone, lock held",
    "lock given back, job open",
    "job ended",
];

/// `going` are the packs that the plan named.
pub(crate) fn of_prune(
    before: &Disk,
    after: &Disk,
    going: &BTreeSet<String>,
    job: Option<&str>,
) -> &'static str {
    let locked = after.locked_since(before);
    let moving = !after.packs.is_subset(&before.packs) || !after.making.is_empty();
    match job {
        None => PRUNE[0],
        Some("succeeded") => PRUNE[9],
        Some(_) if going.is_disjoint(&after.packs) => PRUNE[if locked { 7 } else { 8 }],
        Some(_) if !going.is_subset(&after.packs) => PRUNE[6],
        Some(_) if !before.index.is_subset(&after.index) => PRUNE[5],
        Some(_) if !after.index.is_subset(&before.index) => PRUNE[4],
        Some(_) if moving => PRUNE[3],
        Some(_) if locked => PRUNE[2],
        Some(_) => PRUNE[1],
    }
}

/// How many kills hit which phase: those spread over time, and those at system calls.
pub(crate) struct Tally {
    phases: &'static [&'static str],
    hits: [Vec<u32>; 2],
    late: [u32; 2],
}

/// Which kind of kill.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Spread,
    AtCall,
}

impl Tally {
    pub(crate) fn new(phases: &'static [&'static str]) -> Self {
        Tally { phases, hits: [vec![0; phases.len()], vec![0; phases.len()]], late: [0; 2] }
    }

    pub(crate) fn add(&mut self, kind: Kind, blow: Blow, phase: &str) {
        if blow.late {
            self.late[kind as usize] += 1;
        } else {
            self.hits[kind as usize][self.phases.iter().position(|p| *p == phase).unwrap()] += 1;
        }
    }

    /// Prints the counts. At least four of five kills at system calls, and half of those spread over time (a delete
    /// takes 20 ms, and a busy machine starts it late), must have hit a process at work. Every phase must have been hit
    /// but the last, in which all is done; where system calls cannot be traced, half of them: some are over within a
    /// thousandth of the time.
    pub(crate) fn tell(&self, what: &str) {
        let [spread, at_calls] = [0, 1].map(|kind| (self.hits[kind].iter().sum::<u32>(), self.late[kind]));
        println!("{what}: kills spread over time, at system calls");
        for (n, phase) in self.phases.iter().enumerate() {
            println!("  {:4} {:4}  {phase}", self.hits[0][n], self.hits[1][n]);
        }
        println!("  {:4} {:4}  came too late", spread.1, at_calls.1);
        for ((hit, late), tenths) in [(spread, 5), (at_calls, 8)] {
            assert!(
                hit * 10 >= (hit + late) * tenths,
                "{what}: {late} of {} kills came too late",
                hit + late
            );
        }
        let missed: Vec<_> =
            (0..self.phases.len() - 1).filter(|n| self.hits[0][*n] + self.hits[1][*n] == 0).collect();
        let allowed = if at_calls.0 == 0 { self.phases.len() / 2 } else { 0 };
        let names: Vec<_> = missed.iter().map(|n| self.phases[*n]).collect();
        assert!(missed.len() <= allowed, "{what}: never hit: {names:?}");
    }
}
