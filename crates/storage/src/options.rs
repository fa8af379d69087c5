//! How a place in an object store is talked to: path through the network, pace, patience.
//!
//! Every field has a default, so that a configuration names only what differs.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// All options of one place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The path through the network.
    pub network: Network,
    /// The greatest pace.
    pub pace: Pace,
    /// How long and how often a request is tried again.
    pub patience: Patience,
}

/// The path through the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// The proxy for all requests (`http://HOST:PORT`, `socks5` is not supported). Without it the environment
    /// (`HTTPS_PROXY`, `NO_PROXY`) says; `none` uses no proxy whatever the environment says.
    pub proxy: Option<String>,
    /// The address of this machine that connections come from. Where it is gone, requests fail with
    /// `NetworkPathGone`.
    pub source_address: Option<IpAddr>,
    /// The interface that connections leave by, whatever the routes say. Where it is gone, requests fail with
    /// `NetworkPathGone`.
    pub interface: Option<String>,
    /// Certificates (PEM) of authorities that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
}

impl Network {
    /// Whether only one path may be taken.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.source_address.is_some() || self.interface.is_some()
    }
}

/// The greatest pace, for sending and receiving together, over all connections to one place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pace {
    /// Bytes a second at hours that no entry of `hours` covers; none for no limit.
    pub bytes_per_second: Option<u64>,
    /// Other limits for hours of the day, in the machine's time zone. The first that covers an hour counts.
    pub hours: Vec<Hours>,
}

/// A limit for hours of the day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hours {
    /// The first hour, 0 to 23.
    pub from: u8,
    /// The hour it ends before, 0 to 24. Less than `from` or the same: over midnight.
    pub to: u8,
    /// Bytes a second; none for no limit.
    pub bytes_per_second: Option<u64>,
}

impl Pace {
    /// The limit at an hour of the day.
    #[must_use]
    pub fn at(&self, hour: u8) -> Option<u64> {
        let covers = |h: &&Hours| {
            if h.from < h.to { (h.from..h.to).contains(&hour) } else { hour >= h.from || hour < h.to }
        };
        self.hours.iter().find(covers).map_or(self.bytes_per_second, |h| h.bytes_per_second)
    }

    /// Whether there is any limit at any time.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.bytes_per_second.is_some() || self.hours.iter().any(|h| h.bytes_per_second.is_some())
    }
}

/// How long and how often a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Patience {
    /// How often a request is sent at most.
    pub attempts: u32,
    /// The pause before the second attempt is at most this, and doubles with each. Milliseconds.
    pub first_pause_ms: u64,
    /// The longest pause, unless the service asks for a longer one. Milliseconds.
    pub longest_pause_ms: u64,
    /// No attempt begins later than this after the first. Seconds.
    pub total_secs: u64,
    /// A connection must be made within this. Seconds.
    pub connect_secs: u64,
    /// A request on which nothing moves for this long has failed. Seconds.
    pub idle_secs: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            attempts: 6,
            first_pause_ms: 200,
            longest_pause_ms: 20_000,
            total_secs: 120,
            connect_secs: 20,
            idle_secs: 60,
        }
    }
}

impl Patience {
    pub(crate) fn total(&self) -> Duration {
        Duration::from_secs(self.total_secs)
    }

    pub(crate) fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_secs.max(1))
    }

    /// The longest pause before the n-th repetition (from 0).
    pub(crate) fn pause(&self, n: u32) -> Duration {
        let pause = self.first_pause_ms.saturating_mul(1_u64.checked_shl(n).unwrap_or(u64::MAX));
        Duration::from_millis(pause.min(self.longest_pause_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_by_hours_cover_midnight_and_the_first_counts() {
        let limit = |from, to, rate| Hours { from, to, bytes_per_second: rate };
        let pace = Pace {
            bytes_per_second: Some(10),
            hours: vec![limit(22, 6, None), limit(8, 18, Some(1)), limit(0, 24, Some(5))],
        };
        for (hour, want) in
            [(21, Some(5)), (22, None), (23, None), (0, None), (5, None), (6, Some(5)), (8, Some(1))]
        {
            assert_eq!(pace.at(hour), want, "{hour}");
        }
        assert_eq!(Pace { hours: vec![], ..pace }.at(3), Some(10));
        assert!(!Pace::default().is_limited());
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let p = Patience::default();
        let pauses: Vec<_> = [0, 1, 2, 6, 7, 63, 64, 1000].map(|n| p.pause(n).as_millis()).into();
        assert_eq!(pauses, [200, 400, 800, 12_800, 20_000, 20_000, 20_000, 20_000]);
    }

    #[test]
    fn a_configuration_names_only_what_differs() {
        let options: Options = serde_json::from_str(r#"{"network": {"interface": "wg0"}}"#).unwrap();
        assert!(options.network.is_bound() && options.patience == Patience::default());
        assert!(serde_json::from_str::<Options>(r#"{"netwrk": {}}"#).is_err());
    }
}
