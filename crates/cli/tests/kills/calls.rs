//! Kills right after the n-th system call that changes something, of all threads together.

use crate::World;
use crate::kill::{Blow, at_call, tracing};
use crate::phase::{Kind, Tally};

/// What a command is killed on: put back before each kill, so that there is the same to do every time.
pub(crate) trait Scene {
    /// What is known of it before the kill.
    type Before;

    /// Where it lies.
    fn world(&self) -> &World;

    /// Puts it back.
    fn reset(&mut self) -> Self::Before;
}

/// Kills `args` on the scene after each call, or after so many of them evenly, and lets `settle` look at what is left.
pub(crate) fn at_calls<S: Scene>(
    runs: usize,
    scene: &mut S,
    args: &[&str],
    tally: &mut Tally,
    settle: &mut dyn FnMut(&mut S, &S::Before, Blow) -> &'static str,
) {
    if let Err(reason) = tracing() {
        println!("left out: {args:?} at system calls, which cannot be traced here ({reason})");
        return;
    }
    // A process may end before its last thread has closed the catalog, so runs differ in their last calls.
    let mut undisturbed = || {
        scene.reset();
        at_call(scene.world(), args, usize::MAX).1
    };
    let calls = (0..3).map(|_| undisturbed()).min().unwrap();
    // `BACKSTAY_EVERY_CALL=1` takes its time and leaves none out.
    let runs = if std::env::var_os("BACKSTAY_EVERY_CALL").is_some() { calls } else { runs.min(calls) };
    println!("{}: {calls} system calls that change something, killed at {runs} of them", args[..2].join(" "));
    for run in 1..=runs {
        let before = scene.reset();
        let (blow, _) = at_call(scene.world(), args, run * calls / runs);
        let phase = settle(scene, &before, blow);
        tally.add(Kind::AtCall, blow, phase);
    }
}
