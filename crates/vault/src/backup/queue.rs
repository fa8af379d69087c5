//! The work that is left, as a stack: what was found last is done first, so that a folder is finished, and its
//! memory and handle given back, before its neighbour begins.
//!
//! Invariant: the queue is over when it is empty and nobody works on something that could add to it. Lock: one
//! mutex, held for pushing and popping only.

use parking_lot::{Condvar, Mutex};

struct State<T> {
    tasks: Vec<T>,
    working: usize,
    waiting: usize,
}

/// A stack of tasks for several threads.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
}

impl<T> Queue<T> {
    pub fn new(first: T) -> Self {
        let state = State { tasks: vec![first], working: 0, waiting: 0 };
        Queue { state: Mutex::new(state), ready: Condvar::new() }
    }

    /// Adds tasks; the last one is taken first.
    pub fn push(&self, tasks: impl IntoIterator<Item = T>) {
        let mut state = self.state.lock();
        let before = state.tasks.len();
        state.tasks.extend(tasks);
        for _ in 0..state.waiting.min(state.tasks.len() - before) {
            self.ready.notify_one();
        }
    }

    /// Whether somebody has nothing to do.
    pub fn has_idle(&self) -> bool {
        let state = self.state.lock();
        state.waiting > state.tasks.len()
    }

    /// The next task, waiting for one; none when all is done. The task counts as done when the [`Turn`] is dropped, by
    /// which time whatever it had to add was added.
    pub fn pop(&self) -> Option<(T, Turn<'_, T>)> {
        let mut state = self.state.lock();
        loop {
            if let Some(task) = state.tasks.pop() {
                state.working += 1;
                return Some((task, Turn(self)));
            }
            if state.working == 0 {
                self.ready.notify_all();
                return None;
            }
            state.waiting += 1;
            self.ready.wait(&mut state);
            state.waiting -= 1;
        }
    }

    fn done(&self) {
        let mut state = self.state.lock();
        state.working -= 1;
        if state.working == 0 && state.tasks.is_empty() {
            self.ready.notify_all();
        }
    }
}

/// A task under way. Even a thread that fails gives its turn back, so the others do not wait for ever.
pub(crate) struct Turn<'a, T>(&'a Queue<T>);

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        self.0.done();
    }
}
