//! A storage with faults on order, around any other: for tests.
//!
//! Invariants: the call log and the numbers of mutating calls follow one order, that in which calls begin; the same
//! rules, seed and calls of one thread give the same faults. After a kill every call fails, as for a process that
//! is gone; what the calls before it did stays in the storage below, which a test then opens anew.
//! One lock, never held while the storage below works.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backstay_model::{Code, Error, Result};

use crate::{Object, Put, Storage};

/// The methods of [`Storage`] as values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// [`Storage::put`]
    Put,
    /// [`Storage::get`]
    Get,
    /// [`Storage::get_range`]
    GetRange,
    /// [`Storage::size`]
    Size,
    /// [`Storage::list`]
    List,
    /// [`Storage::delete`]
    Delete,
}

impl Op {
    /// Whether the call can change what is stored.
    #[must_use]
    pub fn mutates(self) -> bool {
        matches!(self, Op::Put | Op::Delete)
    }
}

/// A call that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which.
    pub op: Op,
    /// The name it was made with (the folder, for a listing).
    pub name: String,
    /// Bytes put or asked for, 0 where that means nothing.
    pub bytes: u64,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with this code and does nothing.
    Fail(Code),
    /// The call does its work, then fails with this code (an answer that was lost).
    FailAfter(Code),
    /// A put leaves only the first bytes under the name, then fails with this code: what a storage that breaks the
    /// contract does. Other calls fail with the code and do nothing.
    Torn(usize, Code),
    /// A listing that does not know of what was put or deleted through this wrapper.
    Stale,
    /// What is read has this bit (counted from the first of the answer, modulo its length) turned over.
    FlipBit(usize),
    /// What is read ends after so many bytes.
    Truncate(usize),
}

/// When a [`Fault`] strikes: every condition must hold.
#[derive(Clone, Debug)]
pub struct Rule {
    fault: Fault,
    op: Option<Op>,
    name: String,
    skip: u64,
    times: u64,
}

impl Rule {
    /// A fault on every call.
    #[must_use]
    pub fn new(fault: Fault) -> Self {
        Rule { fault, op: None, name: String::new(), skip: 0, times: u64::MAX }
    }

    /// Only on calls of this kind.
    #[must_use]
    pub fn on(mut self, op: Op) -> Self {
        self.op = Some(op);
        self
    }

    /// Only on names that start so.
    #[must_use]
    pub fn name(mut self, prefix: impl Into<String>) -> Self {
        self.name = prefix.into();
        self
    }

    /// Not before the n-th call (from 1) that fits.
    #[must_use]
    pub fn from_nth(mut self, n: u64) -> Self {
        self.skip = n.saturating_sub(1);
        self
    }

    /// Not more than so many times.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Whether it strikes this call; counts.
    fn strikes(&mut self, op: Op, name: &str) -> bool {
        if self.op.is_some_and(|o| o != op) || !name.starts_with(&self.name) || self.times == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

#[derive(Debug, Default)]
struct State {
    log: Vec<Call>,
    rules: Vec<Rule>,
    random: Option<(u64, u64, Code)>,
    mutating: u64,
    kill: Option<(u64, bool)>,
    killed: bool,
    added: BTreeSet<String>,
    deleted: BTreeMap<String, u64>,
}

/// What is to happen with one call.
enum Verdict {
    Pass,
    Strike(Fault),
    KillBefore,
    KillAfter,
}

/// A [`Storage`] that passes calls on, counts them, and lets them fail as told.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Storage>,
    state: Mutex<State>,
}

impl Faulty {
    /// Around a storage, without faults yet.
    #[must_use]
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Faulty { inner, state: Mutex::default() }
    }

    /// Adds a fault. Of several rules that fit a call the first one added strikes.
    pub fn add(&self, rule: Rule) {
        self.lock().rules.push(rule);
    }

    /// Removes all faults and revives a killed storage; the log stays.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.rules.clear();
        state.random = None;
        state.kill = None;
        state.killed = false;
    }

    /// Lets about one call in `one_in` fail with `code`, chosen by `seed`.
    pub fn fail_at_random(&self, seed: u64, one_in: u64, code: Code) {
        self.lock().random = Some((seed, one_in.max(1), code));
    }

    /// Stops the world at the n-th mutating call from now (from 1): before it is done, or after. That call and all
    /// later ones, of any kind, fail.
    pub fn kill_at(&self, nth_mutating: u64, after: bool) {
        let mut state = self.lock();
        state.kill = Some((state.mutating.saturating_add(nth_mutating), after));
    }

    /// Whether the kill has struck.
    #[must_use]
    pub fn was_killed(&self) -> bool {
        self.lock().killed
    }

    /// Every call so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.lock().log.clone()
    }

    /// How many calls of a kind were made with names that start so.
    #[must_use]
    pub fn count(&self, op: Op, prefix: &str) -> usize {
        self.lock().log.iter().filter(|c| c.op == op && c.name.starts_with(prefix)).count()
    }

    /// How many calls were made that could change something.
    #[must_use]
    pub fn mutating_calls(&self) -> u64 {
        self.lock().mutating
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, op: Op, name: &str, bytes: u64) -> Result<Verdict> {
        let mut state = self.lock();
        if state.killed {
            return Err(killed());
        }
        state.log.push(Call { op, name: name.to_owned(), bytes });
        if op.mutates() {
            state.mutating += 1;
            if let Some((at, after)) = state.kill
                && state.mutating == at
            {
                state.killed = true;
                return Ok(if after { Verdict::KillAfter } else { Verdict::KillBefore });
            }
        }
        if let Some(rule) = state.rules.iter_mut().find_map(|r| r.strikes(op, name).then_some(r.fault)) {
            return Ok(Verdict::Strike(rule));
        }
        if let Some((seed, one_in, code)) = &mut state.random {
            *seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            if mix(*seed).is_multiple_of(*one_in) {
                return Ok(Verdict::Strike(Fault::Fail(*code)));
            }
        }
        Ok(Verdict::Pass)
    }

    /// A call without an answer that could be spoilt.
    fn act<T>(&self, op: Op, name: &str, bytes: u64, call: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.begin(op, name, bytes)? {
            Verdict::Strike(Fault::Fail(code) | Fault::Torn(_, code)) => Err(ordered(code, op, name)),
            Verdict::Strike(Fault::FailAfter(code)) => call().and(Err(ordered(code, op, name))),
            Verdict::KillBefore => Err(killed()),
            Verdict::KillAfter => call().and(Err(killed())),
            Verdict::Pass | Verdict::Strike(_) => call(),
        }
    }

    fn read(&self, op: Op, name: &str, len: u64, call: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        match self.begin(op, name, len)? {
            Verdict::Strike(Fault::FlipBit(bit)) => {
                let mut bytes = call()?;
                let at = (bit / 8).checked_rem(bytes.len()).unwrap_or(0);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (bit % 8);
                }
                Ok(bytes)
            }
            Verdict::Strike(Fault::Truncate(len)) => {
                let mut bytes = call()?;
                bytes.truncate(len);
                Ok(bytes)
            }
            Verdict::Strike(Fault::Fail(code) | Fault::FailAfter(code) | Fault::Torn(_, code)) => {
                Err(ordered(code, op, name))
            }
            Verdict::KillBefore | Verdict::KillAfter => Err(killed()),
            Verdict::Pass | Verdict::Strike(Fault::Stale) => call(),
        }
    }

    fn list_stale(&self, folder: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        let (added, deleted) = {
            let state = self.lock();
            (state.added.clone(), state.deleted.clone())
        };
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        self.inner.list(folder, &mut |o| if added.contains(&o.name) { Ok(()) } else { each(o) })?;
        deleted
            .into_iter()
            .filter(|(name, _)| name.starts_with(&prefix))
            .try_for_each(|(name, size)| each(Object { name, size }))
    }
}

impl Storage for Faulty {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn is_distant(&self) -> bool {
        self.inner.is_distant()
    }

    fn put(&self, name: &str, bytes: &[u8], mode: Put) -> Result<()> {
        let put = || {
            self.inner.put(name, bytes, mode)?;
            let mut state = self.lock();
            if state.deleted.remove(name).is_none() {
                state.added.insert(name.to_owned());
            }
            Ok(())
        };
        match self.begin(Op::Put, name, bytes.len() as u64)? {
            Verdict::Strike(Fault::Torn(len, code)) => {
                let some = bytes.get(..len).unwrap_or(bytes);
                self.inner.put(name, some, mode).and(Err(ordered(code, Op::Put, name)))
            }
            Verdict::Strike(Fault::Fail(code)) => Err(ordered(code, Op::Put, name)),
            Verdict::Strike(Fault::FailAfter(code)) => put().and(Err(ordered(code, Op::Put, name))),
            Verdict::KillBefore => Err(killed()),
            Verdict::KillAfter => put().and(Err(killed())),
            Verdict::Pass | Verdict::Strike(_) => put(),
        }
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.read(Op::Get, name, 0, || self.inner.get(name))
    }

    fn get_range(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.read(Op::GetRange, name, len as u64, || self.inner.get_range(name, offset, len))
    }

    fn size(&self, name: &str) -> Result<u64> {
        self.act(Op::Size, name, 0, || self.inner.size(name))
    }

    fn list(&self, folder: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        match self.begin(Op::List, folder, 0)? {
            Verdict::Strike(Fault::Stale) => self.list_stale(folder, each),
            Verdict::Strike(Fault::Fail(code) | Fault::Torn(_, code)) => Err(ordered(code, Op::List, folder)),
            Verdict::Strike(Fault::FailAfter(code)) => {
                self.inner.list(folder, each).and(Err(ordered(code, Op::List, folder)))
            }
            _ => self.inner.list(folder, each),
        }
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.act(Op::Delete, name, 0, || {
            let size = self.inner.size(name)?;
            self.inner.delete(name)?;
            let mut state = self.lock();
            if !state.added.remove(name) {
                state.deleted.insert(name.to_owned(), size);
            }
            Ok(())
        })
    }
}

fn killed() -> Error {
    Error::new(Code::StorageFailed, "The storage was stopped by the test")
}

fn ordered(code: Code, op: Op, name: &str) -> Error {
    Error::new(code, format!("The test let {op:?} of {name} fail"))
}

/// SplitMix64: a well mixed number from a counter.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;

    fn place() -> (Memory, Faulty) {
        let memory = Memory::new();
        (memory.clone(), Faulty::new(Arc::new(memory)))
    }

    fn names(storage: &dyn Storage) -> Vec<String> {
        let mut names = Vec::new();
        storage
            .list("", &mut |o| {
                names.push(o.name);
                Ok(())
            })
            .unwrap();
        names.sort();
        names
    }

    #[test]
    fn without_faults_it_keeps_the_contract() {
        crate::conformance::suite(|| Box::new(place().1));
    }

    #[test]
    fn a_kill_strikes_before_or_after_and_nothing_works_any_more() {
        for after in [false, true] {
            let (below, faulty) = place();
            faulty.put("a", b"1", Put::IfAbsent).unwrap();
            faulty.kill_at(2, after);
            faulty.get("a").unwrap();
            faulty.put("b", b"2", Put::IfAbsent).unwrap();
            assert!(!faulty.was_killed());
            assert!(faulty.delete("a").is_err() && faulty.was_killed());
            assert!(faulty.get("b").is_err() && faulty.list("", &mut |_| Ok(())).is_err());
            assert_eq!(names(&below), if after { vec!["b"] } else { vec!["a", "b"] });
            faulty.clear();
            assert_eq!(faulty.get("b").unwrap(), b"2");
            assert_eq!(faulty.mutating_calls(), 3);
        }
    }

    #[test]
    fn rules_choose_by_kind_name_and_number() {
        let (_, faulty) = place();
        faulty.add(Rule::new(Fault::Fail(Code::StorageFull)).on(Op::Put).name("x").from_nth(2).times(1));
        faulty.add(Rule::new(Fault::FailAfter(Code::StorageUnavailable)).name("y"));
        faulty.put("x1", b"", Put::IfAbsent).unwrap();
        assert_eq!(faulty.put("x2", b"", Put::IfAbsent).unwrap_err().code(), Code::StorageFull);
        faulty.put("x2", b"", Put::IfAbsent).unwrap();
        assert_eq!(faulty.put("y", b"", Put::IfAbsent).unwrap_err().code(), Code::StorageUnavailable);
        faulty.clear();
        assert_eq!(faulty.put("y", b"", Put::IfAbsent).unwrap_err().code(), Code::ObjectExists);
        assert_eq!((faulty.count(Op::Put, "x"), faulty.count(Op::Put, "y")), (3, 2));
    }

    #[test]
    fn reads_are_spoilt_and_puts_torn_and_listings_stale() {
        let (below, faulty) = place();
        faulty.put("a", b"abc", Put::IfAbsent).unwrap();
        below.put("old", b"1", Put::IfAbsent).unwrap();
        faulty.delete("old").unwrap();
        faulty.add(Rule::new(Fault::FlipBit(8)).on(Op::Get).times(1));
        faulty.add(Rule::new(Fault::Truncate(1)).on(Op::Get).times(1));
        faulty.add(Rule::new(Fault::Torn(2, Code::StorageFailed)).on(Op::Put));
        faulty.add(Rule::new(Fault::Stale).on(Op::List).times(1));
        assert_eq!(faulty.get("a").unwrap(), b"acc");
        assert_eq!(faulty.get("a").unwrap(), b"a");
        assert_eq!(names(&faulty), ["old"]);
        assert_eq!(names(&faulty), ["a"]);
        assert!(faulty.put("t", b"torn", Put::IfAbsent).is_err());
        assert_eq!(below.get("t").unwrap(), b"to");
    }

    #[test]
    fn random_faults_come_at_the_rate_and_by_the_seed() {
        let run = |seed| {
            let (_, faulty) = place();
            faulty.fail_at_random(seed, 10, Code::StorageUnavailable);
            (0..1000).map(|_| faulty.put("a", b"", Put::Replace).is_err()).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let failed = run(3).into_iter().filter(|f| *f).count();
        assert!((60..150).contains(&failed), "{failed}");
    }
}
