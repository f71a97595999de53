//! Lines pending at the other relay that may never be delivered.
//!
//! An entry is *open* while the other relay is up and more is pending there for a backend than what
//! is in transit. It is *closed* once that relay is gone; it is then a gap in the journal. A file
//! in the data folder keeps the entries, because the other relay may return after a restart of this
//! one, and both may lose power at once. Entries of several journals are kept separately: a relay
//! that returns with a new journal has not delivered the lines of its old one.
//!
//! Owns: the entries and their file. Never does: change the journal (the caller does). Bounds:
//! [`MAX_ENTRIES`], one per journal and backend. The file is written when an entry is added or
//! removed.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::journal::{Suspicion, WallTime};
use crate::pair::link::Heard;
use crate::pair::report::Owed;
use crate::protocol::Span;

/// Maximum number of entries. The oldest ones are evicted.
const MAX_ENTRIES: usize = 100;
/// Margin before the oldest pending line: earlier ones may not have been counted yet.
const MARGIN: Duration = Duration::from_secs(1);
/// Maximum difference of clocks that count as equal.
const NEAR: Duration = Duration::from_secs(60);
/// Name of the file.
const NAME: &str = "peer.json";

/// All entries.
#[derive(Debug)]
pub(super) struct Suspicions {
    entries: Vec<Entry>,
    file: PathBuf,
    has_changed: bool,
}

/// The lines of one journal that are or were pending for one backend.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Entry {
    /// Id of the journal. `None` for one in memory, which never returns.
    journal: Option<String>,
    backend: String,
    /// When the oldest line was received.
    from: WallTime,
    /// Latest time when the last line was received. `None` while that relay is up.
    until: Option<WallTime>,
    /// Time range of the points.
    points: (i64, i64),
    lines: u64,
}

impl Suspicions {
    /// Reads the entries from the data folder. Entries that were open when this relay ended are
    /// closed, that is suspected, until the other relay reports again.
    pub(super) fn open(data_dir: &Path, now: SystemTime) -> Self {
        let file = data_dir.join(NAME);
        let mut entries: Vec<Entry> = std::fs::read(&file).map_or_else(
            |_| Vec::new(),
            |text| {
                serde_json::from_slice(&text).unwrap_or_else(|error| {
                    tracing::warn!(%error, file = %file.display(), "cannot read what the other relay may owe; vouch for \
                        each backend that has all of it");
                    Vec::new()
                })
            },
        );
        entries.truncate(MAX_ENTRIES);
        entries.iter_mut().for_each(|entry| entry.close(now.into()));
        Self { entries, file, has_changed: false }
    }

    /// Records a report. Lines that were delivered are no longer suspected. `is_behind` tells
    /// whether more is pending for the backend than what is in transit.
    pub(super) fn note_heard(&mut self, heard: &Heard, owed: &Owed, is_behind: bool) {
        let journal = &heard.report.identity;
        let is_own = |entry: &Entry| entry.journal == *journal && entry.backend == owed.name;
        // Ages are measured by the other machine's clock. If it is wrong, they prove nothing.
        let here = WallTime::from(heard.wall);
        let is_near = |there: WallTime| there.since(here) < NEAR && here.since(there) < NEAR;
        let is_clock_right = heard.report.wall.is_some_and(is_near);
        let is_delivered =
            |until: WallTime| owed.pending_lines == 0 || (is_clock_right && heard.oldest(owed) > until.plus(MARGIN));
        let before = self.entries.len();
        if journal.is_some() {
            self.entries.retain(|entry| {
                !is_own(entry)
                    || match entry.until {
                        Some(until) => !is_delivered(until),
                        None => is_behind,
                    }
            });
        }
        let is_known = self.entries.iter().any(|entry| is_own(entry) && entry.until.is_none());
        if is_behind && !is_known {
            self.entries.push(Entry::new(journal.clone(), owed, heard));
        }
        self.has_changed |= before != self.entries.len() || (is_behind && !is_known);
        self.bound();
    }

    /// Records that the other relay is gone, with what was pending for this backend in its last
    /// report.
    pub(super) fn note_gone(&mut self, heard: &Heard, owed: &Owed, now: SystemTime) {
        let entry = Entry::new(heard.report.identity.clone(), owed, heard);
        let known =
            self.entries.iter().position(|known| known.journal == entry.journal && known.backend == entry.backend);
        let mut entry = match known.map(|index| self.entries.remove(index)) {
            Some(known) => Entry {
                from: known.from.min(entry.from),
                points: (known.points.0.min(entry.points.0), known.points.1.max(entry.points.1)),
                ..entry
            },
            None => entry,
        };
        entry.close(now.into());
        self.entries.push(entry);
        self.has_changed = true;
        self.bound();
    }

    /// Removes a backend's closed entries, because an operator vouches for it.
    pub(super) fn forget(&mut self, backend: &str) {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.backend != backend || entry.until.is_none());
        self.has_changed |= before != self.entries.len();
    }

    /// Returns what may be missing from a backend's copy, or `None` if nothing is suspected.
    pub(super) fn of(&self, backend: &str) -> Option<Suspicion> {
        let closed = self.entries.iter().filter(|entry| entry.backend == backend).filter_map(|entry| {
            let points = Span { from: entry.points.0, until: entry.points.1 };
            Some(Suspicion { received: (Some(entry.from), entry.until?), points, lines: entry.lines })
        });
        closed.reduce(|one, other| Suspicion {
            received: (one.received.0.min(other.received.0), one.received.1.max(other.received.1)),
            points: one.points.and(other.points),
            lines: one.lines + other.lines,
        })
    }

    /// Whether there is an unsaved change.
    pub(super) fn has_changed(&self) -> bool {
        self.has_changed
    }

    /// Returns the file and its new content, if that has changed.
    pub(super) fn take_change(&mut self) -> Option<(PathBuf, Vec<u8>)> {
        std::mem::take(&mut self.has_changed)
            .then(|| (self.file.clone(), serde_json::to_vec(&self.entries).unwrap_or_default()))
    }

    fn bound(&mut self) {
        self.entries.drain(..self.entries.len().saturating_sub(MAX_ENTRIES));
    }
}

impl Entry {
    /// Creates an open entry.
    fn new(journal: Option<String>, owed: &Owed, heard: &Heard) -> Self {
        let from = heard.oldest(owed).minus(MARGIN);
        let lacks = &owed.lacks;
        let is_anything = lacks.gap_count > 0 || lacks.has_statement;
        let (earliest, latest) = if is_anything { (i64::MIN, i64::MAX) } else { (signed(from), signed(from)) };
        let points = (
            lacks.pending_from.map_or(earliest, |known| known.min(earliest)),
            lacks.pending_until.map_or(latest, |known| known.max(latest)),
        );
        Self { journal, backend: owed.name.clone(), from, until: None, points, lines: owed.pending_lines }
    }

    /// Closes the entry. As far as is known, the last line's points have the time of its arrival.
    fn close(&mut self, now: WallTime) {
        if self.until.is_none() {
            (self.until, self.points.1) = (Some(now), self.points.1.max(signed(now)));
        }
    }
}

fn signed(time: WallTime) -> i64 {
    i64::try_from(time.nanoseconds()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::pair::report::Report;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn at(seconds: u64) -> SystemTime {
        NOW + Duration::from_secs(1_000_000 + seconds)
    }

    fn heard(journal: &str, seconds: u64) -> Heard {
        let wall = at(seconds);
        let report = Report { identity: Some(journal.to_owned()), wall: Some(wall.into()), ..Report::default() };
        Heard { report, at: Instant::now(), wall }
    }

    fn owed(lines: u64, age: f64) -> Owed {
        Owed { name: "b".to_owned(), pending_lines: lines, oldest_seconds: age, ..Owed::default() }
    }

    #[test]
    fn what_was_owed_is_suspected_until_the_same_journal_has_delivered_it() {
        let folder = tempfile::tempdir().expect("folder");
        let mut known = Suspicions::open(folder.path(), at(0));
        known.note_heard(&heard("x", 0), &owed(40, 0.3), false);
        assert!(known.take_change().is_none() && known.of("b").is_none(), "what is on its way is no news");
        known.note_gone(&heard("x", 10), &owed(40, 5.0), at(16));
        // A repeated report after a short interruption does not count twice.
        known.note_gone(&heard("x", 10), &owed(40, 5.0), at(20));
        let found = known.of("b").expect("suspected");
        assert_eq!((found.lines, found.received), (40, (Some(at(4).into()), at(20).into())));
        assert_eq!(found.points, Span { from: signed(at(4).into()), until: signed(at(20).into()) });
        // Another journal has not delivered these lines, and may have pending ones of its own.
        known.note_heard(&heard("y", 30), &owed(0, 0.0), false);
        known.note_gone(&heard("y", 40), &owed(2, 1.0), at(46));
        assert_eq!(known.of("b").map(|found| found.lines), Some(42));
        known.note_heard(&heard("y", 50), &owed(0, 0.0), false);
        assert_eq!(known.of("b").map(|found| found.lines), Some(40));
        // The first relay is back. Its pending lines are as old at first, then younger.
        known.note_heard(&heard("x", 60), &owed(40, 50.0), true);
        assert!(known.of("b").is_some());
        let mut slow = heard("x", 61);
        slow.report.wall = Some(WallTime::from(at(0)).minus(Duration::from_secs(3600)));
        known.note_heard(&slow, &owed(40, 0.0), false);
        assert!(known.of("b").is_some(), "a clock that is off says nothing");
        known.note_heard(&heard("x", 62), &owed(7, 1.0), false);
        assert!(known.of("b").is_none());
    }

    #[test]
    fn whoever_owed_something_when_both_lost_power_is_suspected() {
        let folder = tempfile::tempdir().expect("folder");
        let mut known = Suspicions::open(folder.path(), at(0));
        known.note_heard(&heard("x", 0), &owed(40, 9.0), true);
        known.note_heard(&heard("x", 1), &owed(50, 10.0), true);
        assert!(known.of("b").is_none(), "it is there");
        let (file, content) = known.take_change().expect("a change");
        assert!(known.take_change().is_none());
        std::fs::write(&file, content).expect("write");
        let mut again = Suspicions::open(folder.path(), at(500));
        assert_eq!(again.of("b").map(|found| found.received.1), Some(at(500).into()));
        again.note_heard(&heard("x", 510), &owed(0, 0.0), false);
        assert!(again.of("b").is_none() && again.take_change().is_some());
        // An operator's vouching ends it, too.
        again.note_gone(&heard("x", 520), &owed(3, 3.0), at(530));
        again.forget("b");
        assert!(again.of("b").is_none());
        for number in 0..300 {
            again.note_gone(&heard(&number.to_string(), 540), &owed(1, 1.0), at(550));
        }
        assert_eq!(again.entries.len(), MAX_ENTRIES);
    }
}
