//! What a power loss would take away.
//!
//! The model, on purpose harsher than most file systems: a change of a folder's entries is durable once the folder
//! has been synced (a rename between folders once both have); content is durable once the file has been synced;
//! changes of metadata are durable at once. A new name does not become durable by syncing the file it names. What
//! was moved out of a folder that is gone for good is durable where it is.
//!
//! Invariant: for every name that a change not yet durable is about, `base` tells what the disk has under it,
//! and every node that a name may get back is still linked somewhere, in the tree or in the folder `aside`.
//! Callers hold the lock of [`super::Faulty`].

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use crate::fs::{FileSystem, Kind, Rename};

type Id = (u64, u64);

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    id: Id,
    dir: bool,
}

/// A name in a folder.
type Place = (Id, OsString);

/// Places and what they lead to; none for a name that is not there. Ordered, so that a seed gives one result.
type Places = BTreeMap<Place, Option<Node>>;

#[derive(Debug)]
struct Set {
    place: Place,
    node: Option<Node>,
    synced: bool,
}

/// One call that changed names: its sets survive together.
#[derive(Debug)]
struct Change {
    sets: Vec<Set>,
    /// The folder that it removed. Once that is durable nothing can be synced in it any more.
    removed: Option<Id>,
}

impl Change {
    fn is_synced(&self) -> bool {
        self.sets.iter().all(|set| set.synced)
    }
}

/// A change of content.
#[derive(Debug)]
pub(super) enum Content {
    /// Bytes written at an offset.
    Written(u64, Vec<u8>),
    /// A new length.
    Length(u64),
}

/// A file with content that is not durable.
#[derive(Debug)]
struct Unsynced {
    handle: OwnedFd,
    durable_len: u64,
    /// Durable bytes that were overwritten or cut off, oldest first.
    undo: Vec<(u64, Vec<u8>)>,
    changes: Vec<Content>,
}

#[derive(Debug)]
pub(super) struct Ledger {
    fs: Arc<dyn FileSystem>,
    aside: OwnedFd,
    handles: HashMap<Id, OwnedFd>,
    base: Places,
    /// Changes that are not durable, oldest first.
    pending: Vec<Change>,
    files: BTreeMap<Id, Unsynced>,
}

impl Ledger {
    pub(super) fn new(fs: Arc<dyn FileSystem>, aside: &Path) -> io::Result<Self> {
        // Every folder and file with something not synced keeps a handle.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let most = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, most)?;
        let aside = fs.open_root(aside)?;
        Ok(Ledger {
            fs,
            aside,
            handles: HashMap::new(),
            base: Places::new(),
            pending: Vec::new(),
            files: BTreeMap::new(),
        })
    }

    fn node(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Node>> {
        match self.fs.stat(dir, name) {
            Ok(stat) => Ok(Some(Node { id: stat.id(), dir: stat.kind == Kind::Dir })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes a change that is about these names, and notes what it did.
    pub(super) fn change<T>(
        &mut self,
        names: &[(BorrowedFd<'_>, &OsStr)],
        make: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let mut before = Vec::with_capacity(names.len());
        for (dir, name) in names {
            before.push((self.fs.stat_handle(*dir)?.id(), self.node(*dir, name)?));
        }
        let made = make()?;
        let mut sets = Vec::with_capacity(names.len());
        for ((dir, name), (dir_id, old)) in names.iter().zip(before) {
            let new = self.node(*dir, name)?;
            if new == old {
                continue;
            }
            if let std::collections::hash_map::Entry::Vacant(slot) = self.handles.entry(dir_id) {
                slot.insert(dir.try_clone_to_owned()?);
            }
            let place = (dir_id, (*name).to_owned());
            self.base.entry(place.clone()).or_insert(old);
            sets.push(Set { place, node: new, synced: false });
        }
        if !sets.is_empty() {
            self.pending.push(Change { sets, removed: None });
        }
        Ok(made)
    }

    /// Before a name of something that is no folder goes away: keeps the node.
    pub(super) fn keep_file(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        match self.node(dir, name)? {
            Some(node) if !node.dir => match self.fs.link(dir, name, self.aside.as_fd(), &kept_name(node)) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            },
            _ => Ok(()),
        }
    }

    /// Removes an empty folder by moving it aside.
    pub(super) fn remove_dir(&mut self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let fs = self.fs.clone();
        match self.node(dir, name)? {
            Some(node) if node.dir && fs.entries(fs.open_dir(dir, name)?.as_fd())?.is_empty() => {
                let aside = self.aside.try_clone()?;
                let name_aside = kept_name(node);
                self.change(&[(dir, name)], || {
                    fs.rename(dir, name, aside.as_fd(), &name_aside, Rename::NoReplace)
                })?;
                if let Some(change) = self.pending.last_mut() {
                    change.removed = Some(node.id);
                }
                Ok(())
            }
            // It fails; the kernel knows how.
            _ => fs.remove_dir(dir, name),
        }
    }

    pub(super) fn rename(
        &mut self,
        from: BorrowedFd<'_>,
        from_name: &OsStr,
        to: BorrowedFd<'_>,
        to_name: &OsStr,
        how: Rename,
    ) -> io::Result<()> {
        let fs = self.fs.clone();
        if how == Rename::Replace {
            match (self.node(from, from_name)?, self.node(to, to_name)?) {
                (Some(source), Some(target)) if source.dir && target.dir && source != target => {
                    return self.rename_over_folder((from, from_name), (to, to_name), target);
                }
                _ => self.keep_file(to, to_name)?,
            }
        }
        self.change(&[(from, from_name), (to, to_name)], || fs.rename(from, from_name, to, to_name, how))
    }

    /// Moves a folder over an empty one, by moving that one aside first.
    fn rename_over_folder(
        &mut self,
        from: (BorrowedFd<'_>, &OsStr),
        to: (BorrowedFd<'_>, &OsStr),
        target: Node,
    ) -> io::Result<()> {
        let fs = self.fs.clone();
        self.remove_dir(to.0, to.1)?;
        let moved = self.change(&[from, to], || fs.rename(from.0, from.1, to.0, to.1, Rename::NoReplace));
        if moved.is_err() {
            // Refused (into itself, say): as if nothing had been tried.
            fs.rename(self.aside.as_fd(), &kept_name(target), to.0, to.1, Rename::NoReplace)?;
            self.pending.pop();
            self.forget()?;
        }
        moved
    }

    /// After a file was created: its content is not durable until it is synced.
    pub(super) fn created(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        let id = self.fs.stat_handle(file)?.id();
        let handle = file.try_clone_to_owned()?;
        self.files.insert(id, Unsynced { handle, durable_len: 0, undo: Vec::new(), changes: Vec::new() });
        Ok(())
    }

    /// Before a change of content.
    pub(super) fn content(&mut self, file: BorrowedFd<'_>, change: Content) -> io::Result<()> {
        let stat = self.fs.stat_handle(file)?;
        let unsynced = match self.files.entry(stat.id()) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(slot) => slot.insert(Unsynced {
                handle: file.try_clone_to_owned()?,
                durable_len: stat.size,
                undo: Vec::new(),
                changes: Vec::new(),
            }),
        };
        let (start, end) = match &change {
            Content::Written(offset, bytes) => (*offset, offset.saturating_add(bytes.len() as u64)),
            Content::Length(len) => (*len, u64::MAX),
        };
        let end = end.min(unsynced.durable_len).min(stat.size);
        if let Some(len) = end.checked_sub(start).filter(|len| *len > 0) {
            let mut old = vec![0; usize::try_from(len).map_err(io::Error::other)?];
            let got = self.fs.read_at(file, &mut old, start)?;
            old.truncate(got);
            unsynced.undo.push((start, old));
        }
        unsynced.changes.push(change);
        Ok(())
    }

    /// After a file or folder was synced.
    pub(super) fn synced(&mut self, handle: BorrowedFd<'_>) -> io::Result<()> {
        let stat = self.fs.stat_handle(handle)?;
        if stat.kind != Kind::Dir {
            self.files.remove(&stat.id());
            return Ok(());
        }
        self.folder_synced(stat.id());
        self.forget()
    }

    /// What was changed in a folder, and what hangs on it, becomes durable.
    fn folder_synced(&mut self, folder: Id) {
        let mut folders = vec![folder];
        while let Some(folder) = folders.pop() {
            for set in self.pending.iter_mut().flat_map(|c| &mut c.sets).filter(|s| s.place.0 == folder) {
                set.synced = true;
            }
            let mut pending: Vec<Change> = Vec::new();
            for change in std::mem::take(&mut self.pending) {
                if !change.is_synced() {
                    pending.push(change);
                    continue;
                }
                folders.extend(change.removed);
                for set in change.sets {
                    // What an older change, not durable as a whole, did to this name is overtaken.
                    pending.iter_mut().for_each(|older| older.sets.retain(|o| o.place != set.place));
                    self.base.insert(set.place, set.node);
                }
            }
            pending.retain(|change| !change.sets.is_empty());
            self.pending = pending;
        }
    }

    /// Lets go of what no pending change needs.
    fn forget(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            self.base.clear();
            self.handles.clear();
            return self.clear_aside();
        }
        let pending = &self.pending;
        self.base.retain(|place, _| pending.iter().flat_map(|c| &c.sets).any(|set| set.place == *place));
        let base = &self.base;
        self.handles.retain(|id, _| base.keys().any(|(dir, _)| dir == id));
        Ok(())
    }

    fn clear_aside(&self) -> io::Result<()> {
        for (name, _) in self.fs.entries(self.aside.as_fd())? {
            crate::remove_tree(&*self.fs, self.aside.as_fd(), &name).map_err(io::Error::other)?;
        }
        Ok(())
    }

    pub(super) fn all_synced(&mut self) -> io::Result<()> {
        self.pending.clear();
        self.files.clear();
        self.forget()
    }

    /// Brings the disk into the state after a power loss.
    pub(super) fn lose(mut self, seed: Option<u64>) -> io::Result<()> {
        let mut dice = seed.map(Dice);
        for (_, file) in std::mem::take(&mut self.files) {
            self.lose_content(file, dice.as_mut())?;
        }
        let want = self.survivors(dice.as_mut());
        self.take_away(&want)?;
        self.give_back(&want)?;
        self.clear_aside()
    }

    /// What each name leads to after the loss.
    fn survivors(&mut self, mut dice: Option<&mut Dice>) -> Places {
        let mut want = std::mem::take(&mut self.base);
        for change in std::mem::take(&mut self.pending) {
            let survives = dice.as_mut().is_some_and(|dice| dice.below(2) == 0);
            if !survives {
                continue;
            }
            for set in change.sets {
                // A folder has one name: the newest one.
                if let Some(node) = set.node.filter(|node| node.dir) {
                    want.values_mut().filter(|other| **other == Some(node)).for_each(|other| *other = None);
                }
                want.insert(set.place, set.node);
            }
        }
        want
    }

    fn handle(&self, dir: Id) -> io::Result<BorrowedFd<'_>> {
        self.handles.get(&dir).map(AsFd::as_fd).ok_or_else(|| Errno::BADF.into())
    }

    /// Moves aside what is under a name that leads elsewhere after the loss.
    fn take_away(&self, want: &Places) -> io::Result<()> {
        for ((dir, name), wanted) in want {
            let dir = self.handle(*dir)?;
            let Some(found) = self.node(dir, name)? else { continue };
            if *wanted == Some(found) {
                continue;
            }
            match self.fs.rename(dir, name, self.aside.as_fd(), &kept_name(found), Rename::NoReplace) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && !found.dir => {
                    self.fs.unlink(dir, name)?
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Puts under each name what it leads to after the loss.
    fn give_back(&self, want: &Places) -> io::Result<()> {
        for ((dir, name), wanted) in want {
            let dir = self.handle(*dir)?;
            let Some(wanted) = *wanted else { continue };
            if self.node(dir, name)?.is_some() {
                continue;
            }
            let aside = self.aside.as_fd();
            if wanted.dir {
                self.fs.rename(aside, &kept_name(wanted), dir, name, Rename::NoReplace)?;
            } else if self.node(aside, &kept_name(wanted))?.is_some() {
                self.fs.link(aside, &kept_name(wanted), dir, name)?;
            } else {
                self.link_from_another(want, wanted, dir, name)?;
            }
        }
        Ok(())
    }

    /// Links a node that is under another of the names still.
    fn link_from_another(
        &self,
        want: &Places,
        wanted: Node,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> io::Result<()> {
        for (other_dir, other_name) in want.keys() {
            let other_dir = self.handle(*other_dir)?;
            if self.node(other_dir, other_name)? == Some(wanted) {
                return self.fs.link(other_dir, other_name, dir, name);
            }
        }
        Err(Errno::NOENT.into())
    }

    fn lose_content(&self, file: Unsynced, dice: Option<&mut Dice>) -> io::Result<()> {
        let handle = file.handle.as_fd();
        let last_len = self.fs.stat_handle(handle)?.size;
        for (offset, old) in file.undo.iter().rev() {
            self.fs.write_at(handle, old, *offset)?;
        }
        // What lay in between as a hole must read as zeros again, not as what was written since.
        self.fs.truncate(handle, file.durable_len)?;
        let Some(dice) = dice else { return Ok(()) };
        for change in &file.changes {
            match (change, dice.below(3)) {
                (_, 0) => {}
                (Content::Written(offset, bytes), 1) => {
                    let cut = dice.below(bytes.len() as u64 + 1);
                    let part = bytes.get(..usize::try_from(cut).map_err(io::Error::other)?).unwrap_or(bytes);
                    self.fs.write_at(handle, part, *offset)?;
                }
                (Content::Written(offset, bytes), _) => self.fs.write_at(handle, bytes, *offset)?,
                (Content::Length(len), _) => self.fs.truncate(handle, *len)?,
            }
        }
        // A length can be on disk before its data is.
        if dice.below(3) == 0 {
            self.fs.truncate(handle, last_len)?;
        }
        Ok(())
    }
}

/// Name of a node in the folder `aside`.
fn kept_name(node: Node) -> OsString {
    format!("{}-{}", node.id.0, node.id.1).into()
}

/// Small repeatable random numbers (splitmix64).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    /// A number below `bound` (which is at least 1).
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
