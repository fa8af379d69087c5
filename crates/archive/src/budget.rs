//! A bound on the memory of everything that is on its way.
//!
//! Invariants: what was taken is given back by whoever ends the work on it. Somebody who wants more than the whole gets
//! it when nothing else is out, so no request waits for ever. Lock: one, held for arithmetic only.

use parking_lot::{Condvar, Mutex};

#[derive(Debug)]
pub(crate) struct Budget {
    state: Mutex<State>,
    changed: Condvar,
    total: u64,
}

#[derive(Debug, Default)]
struct State {
    out: u64,
    closed: bool,
}

impl Budget {
    pub(crate) fn new(total: u64) -> Self {
        Budget { state: Mutex::default(), changed: Condvar::new(), total }
    }

    /// Waits until `cost` may be used. False: the work has ended.
    pub(crate) fn take(&self, cost: u64) -> bool {
        let mut state = self.state.lock();
        while !state.closed && state.out > 0 && state.out.saturating_add(cost) > self.total {
            self.changed.wait(&mut state);
        }
        if !state.closed {
            state.out = state.out.saturating_add(cost);
        }
        !state.closed
    }

    pub(crate) fn give(&self, cost: u64) {
        let mut state = self.state.lock();
        state.out = state.out.saturating_sub(cost);
        drop(state);
        self.changed.notify_all();
    }

    /// Wakes everybody who waits, for good.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }
}
