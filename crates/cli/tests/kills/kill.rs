//! Starting the program and killing it.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use backstay_testing::fixtures::Random;
use rustix::process::{Pid, Signal, kill_process};

use crate::World;

/// What became of a run that was to be killed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blow {
    /// Its process.
    pub(crate) process: u32,
    /// Whether it had ended before the signal came.
    pub(crate) late: bool,
}

impl Blow {
    /// A run that was too late to be killed must have ended well.
    fn of(process: u32, status: ExitStatus, what: &str) -> Self {
        let late = status.signal() != Some(9);
        assert!(!late || status.success(), "{what}: {status}");
        Blow { process, late }
    }
}

/// Runs the program undisturbed and says how long it took, from when it was started.
pub(crate) fn duration(world: &World, args: &[&str]) -> Duration {
    let mut child = world.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    let status = child.wait().unwrap();
    assert!(status.success(), "{args:?}: {status}");
    started.elapsed()
}

/// When to kill: fractions of the measured duration, evenly spread.
pub(crate) struct Spread {
    fractions: Vec<f64>,
    /// How long undisturbed runs took.
    measured: Vec<Duration>,
}

impl Spread {
    /// In a mixed order, so that a machine whose speed changes meanwhile does not favour a phase.
    pub(crate) fn new(kills: u32, seed: u64) -> Self {
        let mut fractions: Vec<f64> = (0..kills).map(|n| (f64::from(n) + 0.5) / f64::from(kills)).collect();
        let mut random = Random::new(seed);
        for at in (1..fractions.len()).rev() {
            fractions.swap(at, usize::try_from(random.below(at as u64 + 1)).unwrap());
        }
        Spread { fractions, measured: Vec::new() }
    }

    /// How many undisturbed runs are to be measured before the next kill: some at first, then now and then, since other
    /// work on the machine comes and goes. Short runs suffer most from that.
    pub(crate) fn to_measure(&self) -> u32 {
        if self.measured.is_empty() {
            return 5;
        }
        let every = if self.span() < Duration::from_millis(80) { 2 } else { 10 };
        u32::from(self.fractions.len().is_multiple_of(every))
    }

    pub(crate) fn measured(&mut self, took: Duration) {
        self.measured.push(took);
    }

    /// What the kills are spread over: the second shortest of the last five runs, since a kill that comes too late
    /// proves nothing and the last steps are hit at their system calls.
    pub(crate) fn span(&self) -> Duration {
        let mut last: Vec<Duration> = self.measured.iter().rev().take(5).copied().collect();
        last.sort();
        last[last.len().min(2) - 1]
    }

    /// Whether there are kills left.
    pub(crate) fn goes_on(&self) -> bool {
        !self.fractions.is_empty()
    }

    /// Runs the program and kills it at the next fraction.
    pub(crate) fn strike(&mut self, world: &World, args: &[&str]) -> Blow {
        let delay = self.span().mul_f64(self.fractions.pop().unwrap());
        let mut child = world.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        while let Some(rest) = delay.checked_sub(started.elapsed()) {
            std::thread::sleep(rest.min(Duration::from_micros(500)));
            if child.try_wait().unwrap().is_some() {
                self.measured.push(started.elapsed());
                break;
            }
        }
        child.kill().unwrap_or_default();
        Blow::of(child.id(), child.wait().unwrap(), &format!("{args:?}"))
    }
}

/// The system calls that change something in a file system. Plain `write` is not among them: the program uses it for
/// its output and to wake its threads only.
const CALLS: &str = "pwrite64,fsync,fdatasync,syncfs,ftruncate,rename,renameat,renameat2,unlink,unlinkat,link,linkat,\
                     symlinkat,mknodat,mkdir,mkdirat,fchmod,fchmodat,fchown,fchownat,utimensat,fsetxattr";
/// How long each of them is held after it is done, so that the signal comes before the next.
const HOLD_US: u32 = 4_000;

/// Whether system calls can be traced here; if not, why.
pub(crate) fn tracing() -> Result<(), String> {
    match Command::new("strace").args(["-f", "-qq", "-o", "/dev/null", "true"]).output() {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
        Err(e) => Err(format!("strace: {e}")),
    }
}

/// Runs the program under strace and kills it when `number` changing calls were done, of all its threads together.
/// Gives the calls that were seen until it was gone.
pub(crate) fn at_call(world: &World, args: &[&str], number: usize) -> (Blow, usize) {
    let program = world.command(args);
    // The shell gives strace a pipe of its own as descriptor 3, so that nothing mixes with the program's output.
    let script = format!(
        "exec strace -f -qq -o /dev/fd/3 -e trace={CALLS} -e inject={CALLS}:delay_exit={HOLD_US} \"$@\" \
         3>&1 >/dev/null 2>&1"
    );
    let mut strace = Command::new("sh");
    strace.args(["-c", &script, "sh"]).arg(program.get_program()).args(program.get_args());
    strace.current_dir(world.path("")).env_clear().stdin(Stdio::null()).stdout(Stdio::piped());
    strace.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = strace.spawn().unwrap();
    let (mut seen, mut process) = (0, 0);
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let traced: u32 = line.split(' ').next().unwrap().parse().unwrap();
        // Threads have higher numbers than their process.
        process = if process == 0 { traced } else { process.min(traced) };
        // A call is done when its result is told; others are in the middle of theirs.
        seen += usize::from(line.contains(" = "));
        if seen == number && line.contains(" = ") {
            // It may have ended by itself meanwhile.
            kill_process(Pid::from_raw(process.try_into().unwrap()).unwrap(), Signal::KILL)
                .unwrap_or_default();
        }
    }
    // strace ends as the program did: by the same signal, or with the same status.
    (Blow::of(process, child.wait().unwrap(), &format!("{args:?} under strace")), seen)
}
