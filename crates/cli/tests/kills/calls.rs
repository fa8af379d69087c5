//! Kills right after the n-th system call that changes something, of all threads together.

use crate::kill::{Blow, at_call, tracing};
use crate::phase::{Disk, Kind, Tally};
use crate::site::Template;

/// Kills `args` on the template after each call, or after so many of them evenly, and lets `settle` look at what is
/// left.
pub(crate) fn at_calls(
    runs: usize,
    template: &mut Template,
    args: &[&str],
    tally: &mut Tally,
    settle: &mut dyn FnMut(&mut Template, &Disk, Blow) -> &'static str,
) {
    if let Err(reason) = tracing() {
        println!("left out: {args:?} at system calls, which cannot be traced here ({reason})");
        return;
    }
    // A process may end before its last thread has closed the catalog, so runs differ in their last calls.
    let mut undisturbed = || {
        template.reset();
        at_call(&template.site.world, args, usize::MAX).1
    };
    let calls = (0..3).map(|_| undisturbed()).min().unwrap();
    let runs = runs.min(calls);
    println!("{}: {calls} system calls that change something, killed at {runs} of them", args[..2].join(" "));
    for run in 1..=runs {
        let before = template.reset();
        let (blow, _) = at_call(&template.site.world, args, run * calls / runs);
        let phase = settle(template, &before, blow);
        tally.add(Kind::AtCall, blow, phase);
    }
}
