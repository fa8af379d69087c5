//! Whether a lease still holds.
//!
//! Invariants: pure arithmetic. On the same boot the time since boot decides, so setting the wall clock back or
//! forward neither keeps a dead job alive nor kills a living one.

use std::time::Duration;

use jiff::Timestamp;

use crate::owner::{Life, Owner};

/// A lease as stored.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    /// Whose.
    pub owner: Option<Owner>,
    /// Until when, by the wall clock.
    pub until: Option<Timestamp>,
    /// Until when, in time since the owner's boot.
    pub until_uptime: Option<Duration>,
}

/// The present, as one process sees it.
#[derive(Clone, Debug)]
pub(crate) struct Present<'a> {
    /// Who looks.
    pub owner: &'a Owner,
    /// The wall clock.
    pub now: Timestamp,
    /// Time since boot.
    pub uptime: Duration,
}

/// Why a lease does not hold any more; none while it does.
pub(crate) fn over(lease: &Lease, present: &Present<'_>) -> Option<&'static str> {
    let Some(owner) = &lease.owner else { return Some("nobody is known to work on it") };
    if owner.life(present.owner) == Life::Dead {
        return Some("its process is gone");
    }
    let ran_out = match (owner.same_boot(present.owner), lease.until_uptime, lease.until) {
        (true, Some(until), _) => until <= present.uptime,
        (_, _, Some(until)) => until <= present.now,
        (_, _, None) => true,
    };
    ran_out.then_some("its process has given no sign of life for too long")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(secs).unwrap()
    }

    #[test]
    fn on_one_boot_the_wall_clock_has_no_say() {
        let me = Owner::current();
        let lease = Lease {
            owner: Some(me.clone()),
            until: Some(at(1_000)),
            until_uptime: Some(Duration::from_secs(100)),
        };
        for wall in [0, 999, 1_000_000] {
            let here = |uptime| Present { owner: &me, now: at(wall), uptime: Duration::from_secs(uptime) };
            assert_eq!(over(&lease, &here(99)), None, "wall clock {wall}");
            assert!(over(&lease, &here(100)).is_some(), "wall clock {wall}");
        }
    }

    #[test]
    fn between_machines_the_wall_clock_decides_and_a_reboot_ends_the_lease() {
        let me = Owner { machine: "m".into(), ..Owner::current() };
        let far = Owner { host: "far".into(), boot: "b".into(), machine: "f".into(), ..me.clone() };
        let lease = |owner: Owner| Lease {
            owner: Some(owner),
            until: Some(at(1_000)),
            until_uptime: Some(Duration::from_secs(5)),
        };
        let here = |now| Present { owner: &me, now: at(now), uptime: Duration::from_secs(99) };
        assert_eq!(over(&lease(far.clone()), &here(999)), None);
        assert!(over(&lease(far), &here(1_000)).is_some());
        assert!(over(&lease(Owner { boot: "before".into(), ..me.clone() }), &here(0)).is_some());
        assert!(over(&Lease { owner: None, until: Some(at(9_999)), until_uptime: None }, &here(0)).is_some());
    }
}
