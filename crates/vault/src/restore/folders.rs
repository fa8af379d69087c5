//! Folders of the target: making them, opening them again, giving them their metadata at the end.
//!
//! Invariants: a folder is reached from the target's handle only, through folders and nothing else, never into
//! another mount. Folders are private (0700) while the restore runs, so nobody else can get in between, and get
//! their own mode and times last, the deepest first. Each thread has its own few open handles ([`OPEN`]), so a
//! restore needs far less than the 1024 descriptors a process may have. Nothing is locked.

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use backstay_model::{Cancel, Code, Error, ProblemKind, Result};
use backstay_tree::beneath::{Root, writing};
use backstay_tree::fs::Kind;
use backstay_tree::metadata::{self, Wanted};
use parking_lot::Mutex;

use super::crew;
use super::plan::{File, Plan};
use super::problems::Problems;

/// Folders of one depth from which a further thread is worth its start.
const SHARED: usize = 64;
/// Folders that a thread keeps open.
const OPEN: usize = 24;

/// The target of a restore, and what all its threads share.
pub(super) struct Target<'a> {
    pub(super) root: Root,
    pub(super) plan: &'a Plan,
    pub(super) problems: &'a Problems<'a>,
    cancel: &'a Cancel,
    /// By folder: it could not be made.
    unusable: Vec<AtomicBool>,
    fatal: Mutex<Option<Error>>,
    stopped: AtomicBool,
}

impl<'a> Target<'a> {
    pub(super) fn new(root: Root, plan: &'a Plan, problems: &'a Problems<'a>, cancel: &'a Cancel) -> Self {
        let unusable = plan.folders.iter().map(|_| AtomicBool::new(false)).collect();
        let (fatal, stopped) = (Mutex::default(), AtomicBool::new(false));
        Target { root, plan, problems, cancel, unusable, fatal, stopped }
    }

    /// Ends the whole restore.
    pub(super) fn stop(&self, error: Error) {
        self.fatal.lock().get_or_insert(error);
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// Whether it has ended, or was asked to.
    pub(super) fn is_stopped(&self) -> bool {
        if let Err(e) = self.cancel.check() {
            self.stop(e);
        }
        self.stopped.load(Ordering::Relaxed)
    }

    /// What ended it.
    pub(super) fn into_error(self) -> Option<Error> {
        self.fatal.into_inner()
    }

    pub(super) fn is_usable(&self, folder: u32) -> bool {
        let flag = usize::try_from(folder).ok().and_then(|n| self.unusable.get(n));
        flag.is_some_and(|flag| !flag.load(Ordering::Relaxed))
    }

    fn give_up(&self, folder: u32) {
        if let Some(flag) = usize::try_from(folder).ok().and_then(|n| self.unusable.get(n)) {
            flag.store(true, Ordering::Relaxed);
        }
    }

    /// Notes that an entry could not be written. A full disk ends the restore.
    pub(super) fn failed(&self, what: &str, folder: u32, name: &OsStr, e: io::Error) {
        let path = self.plan.path(folder, name);
        let cause = e.to_string();
        let error = writing(&format!("Cannot {what}"), &self.root.path().join(&path), e);
        match error.code() {
            Code::TargetFull => self.stop(error),
            Code::UnsafePath => {
                self.problems.add(&path, ProblemKind::Unsafe, format!("Cannot {what}: {cause}"))
            }
            _ => self.problems.add(&path, ProblemKind::Unwritable, format!("Cannot {what}: {cause}")),
        }
    }

    /// Makes all folders; what cannot be made is told, and nothing below it is tried.
    pub(super) fn make_folders(&self) -> Result<()> {
        self.levels()
            .into_iter()
            .try_for_each(|level| self.share(level, |handles, number| self.make_folder(handles, number)))
    }

    fn make_folder(&self, handles: &mut Handles<'_>, number: u32) {
        let Some(folder) = self.plan.folder(number) else { return };
        if number == 0 {
            return;
        }
        if !self.is_usable(folder.parent) {
            return self.give_up(number);
        }
        let fs = self.root.fs();
        let made = handles.get(folder.parent).and_then(|dir| fs.create_dir(dir.as_fd(), &folder.name));
        if let Err(e) = made {
            self.give_up(number);
            self.failed("make the folder and all that is in it", folder.parent, &folder.name, e);
        }
    }

    /// The numbers of the folders of each depth: a plan has them in the order of their depth.
    fn levels(&self) -> Vec<Range<u32>> {
        let mut levels: Vec<Range<u32>> = Vec::new();
        let mut depth = None;
        for (number, folder) in (0u32..).zip(&self.plan.folders) {
            match levels.last_mut() {
                Some(level) if depth == Some(folder.depth) => level.end = number + 1,
                _ => levels.push(number..number + 1),
            }
            depth = Some(folder.depth);
        }
        levels
    }

    /// Does something with the folders of one depth, in as many threads as that is worth.
    fn share(&self, level: Range<u32>, work: impl Fn(&mut Handles<'_>, u32) + Sync) -> Result<()> {
        let workers = crate::workers().min(level.len() / SHARED).max(1);
        crew(workers, |worker| {
            let mut handles = Handles::new(self);
            let mine = level.len() * worker / workers..level.len() * (worker + 1) / workers;
            for number in level.clone().skip(mine.start).take(mine.len()) {
                if self.is_stopped() {
                    break;
                }
                work(&mut handles, number);
            }
            Ok(())
        })
    }

    /// Makes links, FIFOs and devices.
    pub(super) fn make_specials(&self) {
        let mut handles = Handles::new(self);
        for special in &self.plan.specials {
            if self.is_stopped() {
                return;
            }
            if !self.is_usable(special.folder) {
                continue;
            }
            let fs = &**self.root.fs();
            let name = &*special.name;
            let made = handles.get(special.folder).and_then(|dir| {
                match special.kind {
                    Kind::Symlink => fs.symlink(&special.target, dir.as_fd(), name),
                    kind => fs.make_node(dir.as_fd(), name, kind, special.device),
                }?;
                Ok(metadata::apply_at(fs, dir.as_fd(), name, &special.meta.wanted()))
            });
            match made {
                Ok(problems) if problems.is_empty() => {}
                Ok(problems) => self.problems.metadata(&self.plan.path(special.folder, name), problems),
                Err(e) => self.failed("make it", special.folder, name, e),
            }
        }
    }

    /// Makes the further names of files. Gives how many of them are regular files.
    pub(super) fn make_links(&self) -> u64 {
        let mut from = Handles::new(self);
        let mut to = Handles::new(self);
        let mut files = 0;
        for link in &self.plan.links {
            if self.is_stopped() {
                break;
            }
            if !self.is_usable(link.folder) {
                continue;
            }
            let (first_folder, first_name) = &link.first;
            let fs = self.root.fs();
            let made = from.get(*first_folder).and_then(|from| {
                let to = to.get(link.folder)?;
                fs.link(from.as_fd(), first_name, to.as_fd(), &link.name)
            });
            match made {
                Ok(()) => files += u64::from(link.is_file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let first = self.plan.path(*first_folder, first_name);
                    let why = format!(
                        "It is another name of {}, which is not restored",
                        backstay_tree::path::escape(first.as_os_str())
                    );
                    self.problems.add(&self.plan.path(link.folder, &link.name), ProblemKind::Lost, why);
                }
                Err(e) => self.failed("link it", link.folder, &link.name, e),
            }
        }
        files
    }

    /// Gives all folders their metadata, the deepest first, the target itself last.
    pub(super) fn finish_folders(&self) -> Result<()> {
        let finish = |handles: &mut Handles<'_>, number| self.finish_folder(handles, number);
        self.levels().into_iter().rev().try_for_each(|level| self.share(level, finish))
    }

    fn finish_folder(&self, handles: &mut Handles<'_>, number: u32) {
        let Some(folder) = self.plan.folder(number) else { return };
        let Some(meta) = folder.meta.as_ref().filter(|_| self.is_usable(number)) else { return };
        let fs = &**self.root.fs();
        match handles.get(number).map(|dir| metadata::apply(fs, dir.as_fd(), &meta.wanted())) {
            Ok(problems) if problems.is_empty() => {}
            Ok(problems) => self.problems.metadata(&self.plan.folder_path(number), problems),
            Err(e) => self.failed("set the metadata", folder.parent, &folder.name, e),
        }
    }
}

/// What the system gives to every file that is made in a folder.
#[derive(Clone, Copy, Debug)]
struct Newborn {
    uid: u32,
    gid: u32,
    /// No attributes: no ACL is inherited.
    bare: bool,
}

/// An open folder of the target.
pub(super) struct Open {
    folder: u32,
    handle: OwnedFd,
    newborn: Option<Newborn>,
}

impl AsFd for Open {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Open {
    /// Gives a file that was just made here its metadata, with as few system calls as it takes.
    pub(super) fn finish_file(&mut self, target: &Target<'_>, handle: BorrowedFd<'_>, file: &File) {
        let fs = &**target.root.fs();
        let wanted = file.meta.wanted();
        let newborn = match self.newborn {
            Some(newborn) => newborn,
            // The first one tells what all others in this folder will be like.
            None => {
                let like = fs.stat_handle(handle).and_then(|stat| Ok((stat, fs.xattrs(handle)?.is_empty())));
                let newborn = like.map_or(Newborn { uid: 0, gid: 0, bare: false }, |(stat, bare)| Newborn {
                    uid: stat.uid,
                    gid: stat.gid,
                    bare,
                });
                *self.newborn.insert(newborn)
            }
        };
        // Whatever is not plain, or does not work, is left to the careful way, which also finds the words.
        let plain = newborn.bare && wanted.xattrs.is_empty() && wanted.mode & 0o6000 == 0;
        if plain && set_plain(fs, handle, newborn, &wanted).is_ok() {
            return;
        }
        let problems = metadata::apply(fs, handle, &wanted);
        if !problems.is_empty() {
            target.problems.metadata(&target.plan.path(file.folder, &file.name), problems);
        }
    }
}

fn set_plain(
    fs: &dyn backstay_tree::fs::FileSystem,
    handle: BorrowedFd<'_>,
    newborn: Newborn,
    wanted: &Wanted<'_>,
) -> io::Result<()> {
    if (newborn.uid, newborn.gid) != (wanted.uid, wanted.gid) {
        fs.set_owner(handle, wanted.uid, wanted.gid)?;
    }
    if wanted.mode != 0o600 {
        fs.set_mode(handle, wanted.mode)?;
    }
    fs.set_times(handle, wanted.mtime)
}

/// The folders that a thread has open, the one used last at the end.
pub(super) struct Handles<'t> {
    target: &'t Target<'t>,
    open: Vec<Open>,
}

impl<'t> Handles<'t> {
    pub(super) fn new(target: &'t Target<'t>) -> Self {
        Handles { target, open: Vec::with_capacity(OPEN) }
    }

    /// The folder of that number.
    pub(super) fn get(&mut self, folder: u32) -> io::Result<&mut Open> {
        match self.open.iter().rposition(|open| open.folder == folder) {
            Some(at) => {
                let last = self.open.len() - 1;
                // Mostly it is the last one.
                if at != last
                    && let Some(tail) = self.open.get_mut(at..)
                {
                    tail.rotate_left(1);
                }
            }
            None => {
                let handle = self.open_folder(folder)?;
                if self.open.len() == OPEN {
                    self.open.remove(0);
                }
                self.open.push(Open { folder, handle, newborn: None });
            }
        }
        self.open.last_mut().ok_or_else(|| rustix::io::Errno::BADF.into())
    }

    fn open_folder(&self, folder: u32) -> io::Result<OwnedFd> {
        let (root, plan) = (&self.target.root, self.target.plan);
        if folder == 0 {
            return root.handle().try_clone_to_owned();
        }
        let planned = plan.folder(folder).ok_or(rustix::io::Errno::NOENT)?;
        if let Some(parent) = self.open.iter().find(|open| open.folder == planned.parent) {
            return root.fs().open_dir_beneath(parent.as_fd(), Path::new(&*planned.name));
        }
        let path = plan.folder_path(folder);
        match path.as_os_str().len() {
            0..3072 => root.fs().open_dir_beneath(root.handle(), &path),
            _ => root.open_dir(&path).map_err(io::Error::other),
        }
    }
}
