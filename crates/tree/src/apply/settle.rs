//! Bringing a home to the goal of its journal.
//!
//! Invariants: a step is judged by its slot alone (`is_done`), so it can be repeated after any kill; a live name is
//! never written over, only exchanged or moved; folders are the recorded inodes; metadata comes after all steps,
//! deepest first, and syncs after that. Killed anywhere, the same call goes on. Where the file system cannot
//! exchange, an entry takes three moves over `aside/<number of the step>`, each synced before the next one. Lock:
//! the job's is held.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use backstay_model::{Code, Error, Result};
use rustix::io::Errno;

use super::Settled;
use super::commit::{SYNC_EACH, locked_mode, look, no_mounts};
use super::place::{ASIDE, Place, cannot_say, move_to_free};
use super::record::{Id, Journal, MetaRecord, Side, StepRecord, split};
use crate::fs::{FileSystem, Kind, Rename, Stat};
use crate::metadata;
use crate::path::escape;
use crate::scan::open_folder;

/// How often a step is tried again when somebody else makes or removes its live entry meanwhile.
const PATIENCE: usize = 16;

/// Brings the home to the journal's goal.
pub(super) fn settle(place: &Place, journal: &Journal) -> Result<Settled> {
    no_mounts(place, journal.steps.iter().filter(|s| s.todo).map(|s| &*s.path)).map_err(|e| {
        let advice = "Unmount it, then run any command: the restore is finished then. Nothing on the mount was changed.";
        Error::new(Code::RestoreUnfinished, e.message()).advise(advice)
    })?;
    let mut turn = Turn::new(place, journal)?;
    turn.each(journal, |turn, at, step| turn.swap(at, step).map(|_now| ()))?;
    let settled = turn.metadata(journal)?;
    turn.sync(journal)?;
    Ok(settled)
}

/// The journal of the next turn: to the other side, from what is where now.
pub(super) fn turned(place: &Place, journal: &Journal, goal: Side) -> Result<Journal> {
    let mut steps = Vec::with_capacity(journal.steps.len());
    Turn::new(place, journal)?.each(journal, |turn, at, step| {
        // Half of a move in three parts has no words in a journal: it is finished first.
        let now = if turn.is_aside(&at.aside_name())? { turn.swap(at, step)? } else { at.look(turn.fs)? };
        let reached = !step.todo || now.is_done(step);
        steps.push(StepRecord {
            path: step.path.clone(),
            todo: (journal.goal == goal) != reached,
            slot: now.slot.as_ref().map(Id::from),
            live_mode: now.live.as_ref().and_then(locked_mode),
            slot_mode: now.slot.as_ref().and_then(locked_mode),
        });
        Ok(())
    })?;
    let metadata = journal.metadata.clone();
    Ok(Journal { turn: journal.turn.saturating_add(1), goal, steps, metadata, ..*journal })
}

/// The two places of a step.
#[derive(Clone, Copy)]
struct At<'a> {
    live: BorrowedFd<'a>,
    slots: BorrowedFd<'a>,
    name: &'a OsStr,
    /// Number of the step.
    index: usize,
}

impl At<'_> {
    fn look(&self, fs: &dyn FileSystem) -> io::Result<Now> {
        Ok(Now { live: look(fs, self.live, self.name)?, slot: look(fs, self.slots, self.name)? })
    }

    fn aside_name(&self) -> OsString {
        self.index.to_string().into()
    }
}

/// What lies in the two places of a step.
struct Now {
    live: Option<Stat>,
    slot: Option<Stat>,
}

impl Now {
    /// Whether the exchange has happened: the slot does not hold any more what it held before. Two names of one
    /// file (the app has linked it) need none.
    fn is_done(&self, step: &StepRecord) -> bool {
        if let (Some(live), Some(slot)) = (&self.live, &self.slot)
            && live.id() == slot.id()
        {
            return true;
        }
        match step.slot {
            Some(before) => self.slot.as_ref().map(Id::from) != Some(before),
            None => self.slot.is_some() || self.live.is_none(),
        }
    }
}

struct Turn<'a> {
    place: &'a Place,
    fs: &'a dyn FileSystem,
    folders: BTreeMap<&'a Path, Id>,
    /// The folder for entries on the way, on file systems that cannot exchange.
    aside: Option<OwnedFd>,
    /// Set when the file system has refused an exchange.
    plain: bool,
}

impl<'a> Turn<'a> {
    fn new(place: &'a Place, journal: &'a Journal) -> Result<Self> {
        let fs = &**place.fs();
        let aside = match open_folder(fs, place.work.handle(), OsStr::new(ASIDE), place.work.device()) {
            Ok((handle, _)) => Some(handle),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(stuck(place, Path::new(""), e)),
        };
        Ok(Turn { place, fs, folders: journal.folders(), aside, plain: false })
    }

    /// Does something with each step, folder by folder.
    fn each(
        &mut self,
        journal: &Journal,
        mut work: impl FnMut(&mut Self, At<'_>, &StepRecord) -> io::Result<()>,
    ) -> Result<()> {
        let mut index = 0;
        for steps in journal.steps.chunk_by(|a, b| split(&a.path).0 == split(&b.path).0) {
            let Some(first) = steps.first() else { continue };
            let folder = split(&first.path).0;
            let (live, slots) = self.open(folder).map_err(|e| stuck(self.place, folder, e))?;
            for step in steps {
                let at = At { live: live.as_fd(), slots: slots.as_fd(), name: split(&step.path).1, index };
                work(self, at, step).map_err(|e| stuck(self.place, &step.path, e))?;
                index += 1;
            }
        }
        Ok(())
    }

    /// A folder of the home and the folder of its slots.
    fn open(&self, folder: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
        Ok((self.open_live(folder)?, self.place.slots.descend(folder)?))
    }

    /// A folder of the home; `ESTALE` when it is not the recorded one.
    fn open_live(&self, folder: &Path) -> io::Result<OwnedFd> {
        let live = self.place.home.descend(folder)?;
        let now = Id::from(&self.fs.stat_handle(live.as_fd())?);
        if self.folders.get(folder) == Some(&now) { Ok(live) } else { Err(Errno::STALE.into()) }
    }

    /// Makes a step; returns what is where afterwards.
    fn swap(&mut self, at: At<'_>, step: &StepRecord) -> io::Result<Now> {
        for _ in 0..PATIENCE {
            let now = at.look(self.fs)?;
            if now.live.as_ref().is_some_and(|live| live.mount_root) {
                return Err(Errno::XDEV.into());
            }
            let aside = self.is_aside(&at.aside_name())?;
            let made = match (&now.slot, &now.live) {
                (None, _) if aside => self.third_move(at),
                _ if !step.todo || now.is_done(step) => {
                    self.set_modes_again(at, step, &now)?;
                    return Ok(now);
                }
                (Some(_), Some(_)) if aside || self.plain => self.make_way(at, aside),
                (Some(_), Some(_)) => self.exchange(at),
                (Some(_), None) if aside => self.move_synced((at.slots, at.name), (at.live, at.name)),
                (Some(_), None) => self.move_entry((at.slots, at.name), (at.live, at.name)),
                (None, _) => self.move_entry((at.live, at.name), (at.slots, at.name)),
            };
            match made {
                // The app was faster, or (first of three moves) there is more to do.
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {}
                other => other?,
            }
        }
        Err(Errno::BUSY.into())
    }

    fn exchange(&mut self, at: At<'_>) -> io::Result<()> {
        let exchange = || self.fs.rename(at.slots, at.name, at.live, at.name, Rename::Exchange);
        match self.opened((at.slots, at.name), (at.live, at.name), exchange) {
            Err(e) if cannot_say(&e) => {
                self.plain = true;
                self.make_way(at, false)
            }
            other => other,
        }
    }

    fn move_entry(&self, from: (BorrowedFd<'_>, &OsStr), to: (BorrowedFd<'_>, &OsStr)) -> io::Result<()> {
        self.opened(from, to, || move_to_free(self.fs, from, to))
    }

    fn move_synced(&self, from: (BorrowedFd<'_>, &OsStr), to: (BorrowedFd<'_>, &OsStr)) -> io::Result<()> {
        self.move_entry(from, to)?;
        self.fs.sync(to.0)?;
        self.fs.sync(from.0)
    }

    /// First of three moves: the live entry goes aside. When the old one is there already, this one was made
    /// meanwhile; it is kept beside it.
    fn make_way(&mut self, at: At<'_>, occupied: bool) -> io::Result<()> {
        let aside = match self.aside.take() {
            Some(aside) => aside,
            None => {
                let aside = self.place.work.make_dir(self.place.work.handle(), OsStr::new(ASIDE))?;
                self.fs.sync(self.place.work.handle())?;
                aside
            }
        };
        let mut name = at.aside_name();
        let mut stray = 0u32;
        while occupied && look(self.fs, aside.as_fd(), &name)?.is_some() {
            stray = stray.saturating_add(1);
            name = format!("{}.{stray}", at.index).into();
        }
        let moved = self.move_synced((at.live, at.name), (aside.as_fd(), &name));
        self.aside = Some(aside);
        moved
    }

    /// Last of three moves.
    fn third_move(&self, at: At<'_>) -> io::Result<()> {
        let Some(aside) = &self.aside else { return Ok(()) };
        self.move_synced((aside.as_fd(), &at.aside_name()), (at.slots, at.name))
    }

    fn is_aside(&self, name: &OsStr) -> io::Result<bool> {
        match &self.aside {
            Some(aside) => Ok(look(self.fs, aside.as_fd(), name)?.is_some()),
            None => Ok(false),
        }
    }

    /// Makes a rename; where modes forbid it to an ordinary user, gives ourselves the right first. Modes of folders
    /// that stay are set again with all metadata, those of what is moved by `set_modes_again`.
    fn opened(
        &self,
        from: (BorrowedFd<'_>, &OsStr),
        to: (BorrowedFd<'_>, &OsStr),
        rename: impl Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        match rename() {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::ACCESS) => {}
            other => return other,
        }
        for (dir, name) in [from, to] {
            let folder = self.fs.stat_handle(dir)?;
            if folder.mode & 0o300 != 0o300 {
                self.fs.set_mode(dir, folder.mode | 0o300)?;
            }
            if let Some(mode) = look(self.fs, dir, name)?.as_ref().and_then(locked_mode) {
                self.fs.set_mode_at(dir, name, mode | 0o200)?;
            }
        }
        rename()
    }

    /// Gives folders that had to be opened for their move the mode they had.
    fn set_modes_again(&self, at: At<'_>, step: &StepRecord, now: &Now) -> io::Result<()> {
        let swapped = step.todo && now.is_done(step);
        let (live, slot) =
            if swapped { (step.slot_mode, step.live_mode) } else { (step.live_mode, step.slot_mode) };
        for (dir, stat, mode) in [(at.live, &now.live, live), (at.slots, &now.slot, slot)] {
            if let (Some(stat), Some(mode)) = (stat, mode)
                && stat.kind == Kind::Dir
                && stat.mode == mode | 0o200
            {
                self.fs.set_mode_at(dir, at.name, mode)?;
            }
        }
        Ok(())
    }

    /// Sets the metadata of what stays, deepest first.
    fn metadata(&self, journal: &Journal) -> Result<Settled> {
        let mut settled = Settled::default();
        let mut order: Vec<&MetaRecord> = journal.metadata.iter().collect();
        order.sort_by_cached_key(|meta| std::cmp::Reverse(meta.path.components().count()));
        let parents: BTreeSet<&Path> = journal.steps.iter().map(|s| split(&s.path).0).collect();
        for meta in order {
            match self.set(meta, journal.goal) {
                Ok(problems) => {
                    settled.problems.extend(problems.into_iter().map(|p| (meta.path.clone(), p)));
                }
                Err(e) if is_gone(&e) && !parents.contains(&*meta.path) => {
                    settled.skipped.push(meta.path.clone());
                }
                Err(e) => return Err(stuck(self.place, &meta.path, e)),
            }
        }
        Ok(settled)
    }

    fn set(&self, meta: &MetaRecord, goal: Side) -> io::Result<Vec<metadata::Problem>> {
        let values = match goal {
            Side::Old => &meta.old,
            Side::New => &meta.new,
        };
        let want = values.wanted();
        if meta.id.kind == Kind::Dir {
            return Ok(metadata::apply(self.fs, self.open_live(&meta.path)?.as_fd(), &want));
        }
        let (folder, name) = split(&meta.path);
        let parent = self.place.home.descend(folder)?;
        match self.open_file(parent.as_fd(), name, meta) {
            Ok(file) => Ok(metadata::apply(self.fs, file.as_fd(), &want)),
            // Its owner need not be able to read it to change its mode.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                check_file(&self.fs.stat(parent.as_fd(), name)?, meta)?;
                Ok(metadata::apply_at(self.fs, parent.as_fd(), name, &want))
            }
            Err(e) => Err(e),
        }
    }

    fn open_file(&self, parent: BorrowedFd<'_>, name: &OsStr, meta: &MetaRecord) -> io::Result<OwnedFd> {
        let file = self.fs.open_file(parent, name)?;
        check_file(&self.fs.stat_handle(file.as_fd())?, meta)?;
        Ok(file)
    }

    /// Makes all of the turn survive a power loss.
    fn sync(&self, journal: &Journal) -> Result<()> {
        let folders: BTreeSet<&Path> = journal.steps.iter().map(|s| split(&s.path).0).collect();
        let home = self.place.home.handle();
        let others = || journal.metadata.iter().filter(|meta| !folders.contains(&*meta.path));
        if 2 * folders.len() + others().count() > SYNC_EACH {
            return self.fs.sync_all(home).map_err(|e| stuck(self.place, Path::new(""), e));
        }
        for folder in &folders {
            let sync = || {
                let (live, slots) = self.open(folder)?;
                self.fs.sync(live.as_fd())?;
                self.fs.sync(slots.as_fd())
            };
            sync().map_err(|e| stuck(self.place, folder, e))?;
        }
        for meta in others() {
            let sync = || {
                if meta.id.kind == Kind::Dir {
                    return self.fs.sync(self.open_live(&meta.path)?.as_fd());
                }
                let (folder, name) = split(&meta.path);
                let parent = self.place.home.descend(folder)?;
                match self.open_file(parent.as_fd(), name, meta) {
                    Ok(file) => self.fs.sync(file.as_fd()),
                    // What cannot be opened is synced with the whole file system.
                    Err(e) if e.kind() == io::ErrorKind::PermissionDenied => self.fs.sync_all(home),
                    Err(e) => Err(e),
                }
            };
            match sync() {
                // It was skipped before, or is gone since.
                Err(e) if is_gone(&e) => {}
                other => other.map_err(|e| stuck(self.place, &meta.path, e))?,
            }
        }
        Ok(())
    }
}

/// Whether an entry that stays is no longer there as it was.
fn is_gone(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE))
}

/// `ESTALE` when a file is not the recorded one, or has got other names.
fn check_file(now: &Stat, meta: &MetaRecord) -> io::Result<()> {
    if Id::from(now) == meta.id && now.links == 1 { Ok(()) } else { Err(Errno::STALE.into()) }
}

/// The error for what hinders a turn at a path of the home.
fn stuck(place: &Place, path: &Path, e: io::Error) -> Error {
    let path = escape(place.home.path().join(path).as_os_str());
    let why = match Errno::from_io_error(&e) {
        Some(Errno::XDEV) => ": something is mounted there, or the file system cannot move it",
        Some(Errno::LOOP) => ": a symbolic link is in the way",
        Some(Errno::STALE) => ": it is another folder now",
        Some(Errno::BUSY) => ": something else keeps changing it, or is mounted there",
        _ => "",
    };
    Error::new(Code::RestoreUnfinished, format!("Cannot finish the restore at {path}{why}")).because(e)
}
