//! A relay's report to the other one of its pair: `/api/pair`, one line of JSON. Keys are only ever
//! added.
//!
//! Owns: the format. Never does: judge what a report says. Bounds: one entry per backend.

use serde::{Deserialize, Serialize};

use crate::journal::{Completeness, WallTime};

/// The state of a relay, as it reports itself.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Report {
    /// Version of the program.
    pub version: String,
    /// Id of its journal, as in `/api/status`. `None` if it keeps records in memory only.
    #[serde(default)]
    pub identity: Option<String>,
    /// Random number of the process. A relay that receives its own number polls itself.
    #[serde(default)]
    pub process: u64,
    /// Time since its start.
    pub uptime_seconds: f64,
    /// Its clock. `None` if it does not report it.
    #[serde(default)]
    pub wall: Option<WallTime>,
    /// Whether its machine holds the pair's address. `None` if no address is configured.
    #[serde(default)]
    pub holds_address: Option<bool>,
    /// Its pending lines per backend.
    pub backends: Vec<Owed>,
}

/// A relay's pending lines for one backend.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Owed {
    /// Name of the backend, which is the same in both relays.
    pub name: String,
    /// `unknown`, `up`, `retrying`, `held` or `down`.
    pub state: String,
    /// Lines not acked yet.
    pub pending_lines: u64,
    /// How long the oldest of them has waited.
    pub oldest_seconds: f64,
    /// What the backend lacks, as far as this relay knows.
    pub lacks: Completeness,
}

impl Owed {
    /// Whether the backend has everything that this relay received for it.
    pub fn is_settled(&self) -> bool {
        self.pending_lines == 0 && self.lacks.gap_count == 0
    }
}

/// Whether two versions are more than one upgrade apart: the relays of a pair are upgraded one
/// after the other.
pub fn are_far_apart(one: &str, other: &str) -> bool {
    let numbers = |version: &str| -> Option<(u64, u64)> {
        let mut parts = version.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    match (numbers(one), numbers(other)) {
        (Some((major, minor)), Some((other_major, other_minor))) => {
            major != other_major || minor.abs_diff(other_minor) > 1
        }
        _ => one != other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_may_differ_by_one_upgrade() {
        for (one, other, expected) in [
            ("0.1.0", "0.1.0", false),
            ("0.1.0", "0.2.3", false),
            ("0.3.0", "0.1.9", true),
            ("1.0.0", "0.9.0", true),
            ("1.x", "1.x", false),
            ("1.x", "1.0.0", true),
        ] {
            assert_eq!(are_far_apart(one, other), expected, "{one} and {other}");
        }
    }

    #[test]
    fn a_report_of_an_older_or_newer_relay_is_read() {
        let text = r#"{"version":"0.1.0","uptime_seconds":1.5,"news":1,"backends":[{"name":"a","state":"up","pending_lines":3,
            "oldest_seconds":0.5,"lacks":{"pending_from":1,"pending_until":2,"pending_since":3,"is_behind":true,"gaps":[],
            "gap_count":0,"has_statement":false}}]}"#;
        let report: Report = serde_json::from_str(text).expect("a report");
        assert_eq!((report.identity, report.holds_address, report.backends[0].pending_lines), (None, None, 3));
        assert!(!report.backends[0].is_settled() && Owed::default().is_settled());
    }
}
