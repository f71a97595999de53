//! The last rejected line of each backend and class, with the hosts that such lines name: the first
//! things an operator looks at.
//!
//! Never does: read the disk. Bounds: one line per backend and class, [`MAX_HOSTS`] hosts,
//! [`SHOWN_BYTES`] of a line and of an answer.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::file::Refusal;
use crate::protocol::host_of;
use crate::sys::text::cut;

/// Maximum number of named hosts.
const MAX_HOSTS: usize = 5;
/// Maximum number of lines scanned for hosts.
const MAX_SCANNED: usize = 100;
/// Maximum length of a shown line or answer, in bytes.
const SHOWN_BYTES: usize = 200;

/// A rejected line that represents its class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Sample {
    /// Number of the letter.
    pub id: u64,
    /// The database it was for.
    pub database: String,
    /// First 200 bytes of the line.
    pub line: String,
    /// First 200 bytes of the backend's answer.
    pub answer: String,
    /// When it was rejected, in RFC 3339.
    pub at: String,
    /// Hosts named by the latest lines.
    pub hosts: Vec<String>,
}

/// Samples of all backends.
#[derive(Debug, Default)]
pub(super) struct Samples(BTreeMap<(String, String), Sample>);

impl Samples {
    /// Records the last of these lines.
    pub(super) fn note(&mut self, refusal: &Refusal) {
        let Some((last, line)) = (refusal.first..).zip(&refusal.lines).last() else { return };
        let sample = self.0.entry((refusal.backend.clone(), refusal.class.clone())).or_default();
        // Scans backwards, so that the scan can stop once enough hosts are found.
        let named = refusal.lines.iter().rev().filter_map(|line| host_of(line.as_bytes()));
        let named = named.take(MAX_SCANNED).map(|host| cut(&String::from_utf8_lossy(host), SHOWN_BYTES).to_owned());
        let mut hosts: Vec<String> = Vec::new();
        for host in named.chain(std::mem::take(&mut sample.hosts).into_iter().rev()) {
            if hosts.len() < MAX_HOSTS && !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        hosts.reverse();
        *sample = Sample {
            id: last,
            database: refusal.database.clone(),
            line: cut(line, SHOWN_BYTES).to_owned(),
            answer: cut(&refusal.answer, SHOWN_BYTES).to_owned(),
            at: humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(refusal.at)).to_string(),
            hosts,
        };
    }

    /// Removes the sample of a removed letter.
    pub(super) fn forget(&mut self, id: u64) {
        self.0.retain(|_, sample| sample.id != id);
    }

    /// Removes the samples of all letters below this number.
    pub(super) fn forget_below(&mut self, id: u64) {
        self.0.retain(|_, sample| sample.id >= id);
    }

    /// Returns the samples of one backend, by class.
    pub(super) fn of(&self, backend: &str) -> BTreeMap<String, Sample> {
        let own = self.0.iter().filter(|((known, _), _)| known == backend);
        own.map(|((_, class), sample)| (class.clone(), sample.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(first: u64, class: &str, lines: &[&str]) -> Refusal {
        Refusal {
            first,
            backend: "a".to_owned(),
            database: "db".to_owned(),
            retention_policy: String::new(),
            precision: "ns".to_owned(),
            class: class.to_owned(),
            status: Some(400),
            answer: "field type conflict".to_owned(),
            at: 1_795_400_726_000_000_000,
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    #[test]
    fn the_last_line_of_a_class_stands_for_the_others_until_it_is_gone() {
        let mut samples = Samples::default();
        samples.note(&refusal(7, "field_type", &["m,host=a v=1", "m,host=b,x=y v=2 5", "m v=3"]));
        samples.note(&refusal(10, "retention", &["m,host=old v=1 1"]));
        let found = samples.of("a");
        assert_eq!(found.keys().collect::<Vec<_>>(), ["field_type", "retention"]);
        let field = &found["field_type"];
        assert_eq!((field.id, field.line.as_str(), field.hosts.join(" ").as_str()), (9, "m v=3", "a b"));
        assert_eq!(field.at, "2026-11-23T02:25:26Z");
        let many: Vec<String> = (0..9).map(|number| format!("m,host=h{number} v=\"{}\"", "x".repeat(300))).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        samples.note(&refusal(11, "field_type", &many));
        let field = &samples.of("a")["field_type"];
        assert_eq!((field.hosts.join(" ").as_str(), field.line.len()), ("h4 h5 h6 h7 h8", SHOWN_BYTES));
        samples.forget(10);
        assert_eq!(samples.of("a").len(), 1);
        samples.forget_below(20);
        assert!(samples.of("a").is_empty() && samples.of("b").is_empty());
    }
}
