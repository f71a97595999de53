//! The gap ledger: which lines a backend lacks, when they were received, and the times of their
//! points. It determines which questions a copy can answer, and is the work list for repairing a
//! mirror from its twin. Lines that never reached the journal (`ring_full`) are every backend's
//! gap: no twin has them, and no copy is worse than another for lacking them.
//!
//! A backend that joined after the journal was created has a gap from the beginning of time, until
//! an operator vouches for its copy.
//!
//! Bounds: [`MAX_GAPS`] entries. One more merges the two oldest of one kind into one that spans
//! both.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ledger::DropReason;
use super::record::Record;
use crate::batch::{Batch, Destination, Span, WallTime};
use crate::journal::segment::Sequence;
use crate::protocol::Precision;

/// Entries kept.
const MAX_GAPS: usize = 1000;
/// How many of the oldest entries are candidates for merging with a later one.
const OLDEST: usize = 16;
/// Losses within this time of a gap's last loss belong to the same gap.
const NEAR: Duration = Duration::from_secs(60);

/// Why a backend lacks something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// Lines were given up for it.
    Dropped(DropReason),
    /// It joined after the journal was created: what it has from before is unknown.
    Joined,
    /// Its database was gone, and had to be created again.
    Made,
    /// The pair's other relay owed it lines and is gone: whether it has them is unknown.
    Peer,
}

impl GapReason {
    /// The reason's name in JSON, and in the slots.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dropped(reason) => reason.name(),
            Self::Joined => "joined",
            Self::Made => "made",
            Self::Peer => "peer",
        }
    }

    /// The reason with this name.
    pub(in crate::journal) fn of_name(name: &str) -> Option<Self> {
        let dropped = DropReason::ALL.into_iter().map(Self::Dropped);
        dropped.chain([Self::Joined, Self::Made, Self::Peer]).find(|reason| reason.name() == name)
    }
}

/// Lines that are given up.
#[derive(Clone, Copy, Debug)]
pub(in crate::journal) struct Loss<'a> {
    pub(in crate::journal) destination: &'a Destination,
    pub(in crate::journal) lines: u64,
    /// When the first (if known) and the last of them were received.
    pub(in crate::journal) received: (Option<WallTime>, WallTime),
    /// The times of their points.
    pub(in crate::journal) points: Span,
    /// The backend may have some of them: a crash lost its acks.
    pub(in crate::journal) is_unsure: bool,
}

impl<'a> Loss<'a> {
    /// The loss of one record. Records below the sequence `found_below` were found at the start.
    pub(in crate::journal) fn of(record: &'a Record, found_below: Sequence) -> Self {
        Self { is_unsure: record.sequence < found_below, ..Self::of_batch(&record.batch) }
    }

    /// The loss of a batch that became no record.
    pub(in crate::journal) fn of_batch(batch: &'a Batch) -> Self {
        let (wall, points) = (batch.received().wall, batch.points());
        let (destination, lines) = (batch.destination(), batch.lines());
        Self { destination, lines, received: (Some(wall), wall), points, is_unsure: false }
    }
}

/// What the pair's other relay owed a backend when it was last heard from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// When the first (if known) and the last of the lines were received.
    pub received: (Option<WallTime>, WallTime),
    /// The times of their points.
    pub points: Span,
    /// How many lines.
    pub lines: u64,
}

/// Lines that a backend does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Its number, unique among all gaps this journal has or had.
    pub id: u64,
    /// The backend's name.
    pub backend: String,
    /// The lines' destination. An empty database stands for all databases.
    pub destination: Destination,
    /// No line was received earlier. `None` if unknown.
    pub from: Option<WallTime>,
    /// No line was received later.
    pub until: WallTime,
    /// The times of their points.
    pub points: Span,
    /// Whether the backend may have some of them, because a crash lost its acks.
    pub is_unsure: bool,
    /// How many lines; 0 if unknown.
    pub lines: u64,
    /// Why it lacks them.
    pub reason: GapReason,
}

impl Gap {
    /// A gap of lines that were given up for a backend.
    pub(in crate::journal) fn of(backend: &str, loss: Loss<'_>, reason: DropReason) -> Self {
        let Loss { destination, lines, received: (from, until), points, is_unsure } = loss;
        Self {
            id: 0,
            backend: backend.to_owned(),
            destination: destination.clone(),
            from,
            until,
            points,
            is_unsure,
            lines,
            reason: GapReason::Dropped(reason),
        }
    }

    /// A gap of whatever a backend may lack until now.
    fn of_anything(backend: &str, now: WallTime, reason: GapReason) -> Self {
        let destination = Destination::new("", "", Precision::Nanoseconds);
        let backend = backend.to_owned();
        let points = Span::ALWAYS;
        Self { id: 0, backend, destination, from: None, until: now, points, is_unsure: true, lines: 0, reason }
    }

    /// Whether a point of this database may be in it.
    pub(in crate::journal) fn touches(&self, database: &str, points: &Span) -> bool {
        (self.destination.database().is_empty() || self.destination.database() == database) && self.points.meets(points)
    }

    /// Whether another backend certainly lacks the same. A database that is gone from all of them
    /// was dropped deliberately.
    pub(in crate::journal) fn is_shared_by(&self, other: &Self) -> bool {
        let until = |gap: &Self| (gap.reason != GapReason::Made).then_some(gap.until);
        !other.is_unsure
            && (&self.destination, self.from, until(self), self.points, self.lines, self.reason)
                == (&other.destination, other.from, until(other), other.points, other.lines, other.reason)
    }

    fn is_like(&self, other: &Self) -> bool {
        self.backend == other.backend && self.destination == other.destination && self.reason == other.reason
    }

    fn absorb(&mut self, other: &Self) {
        self.from = self.from.min(other.from);
        self.until = self.until.max(other.until);
        self.points = self.points.and(other.points);
        self.is_unsure |= other.is_unsure;
        self.lines += other.lines;
    }
}

/// All gaps, oldest first.
#[derive(Debug, Default)]
pub(in crate::journal) struct Gaps {
    gaps: VecDeque<Gap>,
    /// Increases with each change.
    version: u64,
    /// The next gap's number.
    next_id: u64,
    /// The time of the first change since [`Self::take_change`], if any.
    changed: Option<Instant>,
    /// Whether there were changes since [`Self::take_unwritten`].
    is_unwritten: bool,
}

impl Gaps {
    pub(in crate::journal) fn new(version: u64, next_id: u64, mut gaps: Vec<Gap>) -> Self {
        gaps.truncate(MAX_GAPS);
        let next_id = gaps.iter().map(|gap| gap.id + 1).fold(next_id, u64::max);
        Self { gaps: gaps.into(), version, next_id, changed: None, is_unwritten: false }
    }

    /// A number that increases with each change.
    pub(in crate::journal) fn version(&self) -> u64 {
        self.version
    }

    /// The next gap's number.
    pub(in crate::journal) fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Notes that the record of a backend's gaps is lost.
    pub(in crate::journal) fn note_unknown(&mut self, backend: &str, now: WallTime) {
        self.note(Gap::of_anything(backend, now, GapReason::Dropped(DropReason::Corrupt)));
    }

    /// Notes that a backend joined after the journal was created: what it lacks is unknown.
    pub(in crate::journal) fn note_joined(&mut self, backend: &str, now: WallTime) {
        self.note(Gap::of_anything(backend, now, GapReason::Joined));
    }

    /// Notes that a backend's database had lines and is gone: the backend lacks all of them.
    pub(in crate::journal) fn note_made(&mut self, backend: &str, database: &str, now: WallTime) {
        let gap = Gap::of_anything(backend, now, GapReason::Made);
        let destination = Destination::new(database, "", Precision::Nanoseconds);
        self.note(Gap { destination, is_unsure: false, ..gap });
    }

    /// Replaces what was suspected of a backend by what the other relay owed it when it went down.
    /// Returns whether anything was suspected before.
    pub(in crate::journal) fn replace_suspicion(&mut self, backend: &str, suspicion: Option<Suspicion>) -> bool {
        let closed = self.close(|gap| gap.backend == backend && gap.reason == GapReason::Peer);
        if let Some(Suspicion { received: (from, until), points, lines }) = suspicion {
            self.note(Gap { from, points, lines, ..Gap::of_anything(backend, until, GapReason::Peer) });
        }
        closed > 0
    }

    /// Closes a backend's gaps: somebody who knows vouches that its copy is complete. Returns how
    /// many were closed.
    pub(in crate::journal) fn vouch(&mut self, backend: &str) -> usize {
        self.close(|gap| gap.backend == backend)
    }

    /// Notes a gap. It gets its own number unless it belongs to a known one.
    pub(in crate::journal) fn note(&mut self, mut gap: Gap) {
        self.note_change();
        let near = |known: &&mut Gap| {
            known.is_like(&gap) && gap.from <= Some(known.until.plus(NEAR)) && known.from <= Some(gap.until.plus(NEAR))
        };
        if let Some(known) = self.gaps.iter_mut().rev().find(near) {
            known.absorb(&gap);
            return;
        }
        gap.id = self.next_id;
        self.next_id += 1;
        self.gaps.push_back(gap);
        if self.gaps.len() > MAX_GAPS {
            self.join_oldest();
        }
    }

    pub(in crate::journal) fn iter(&self) -> impl ExactSizeIterator<Item = &Gap> {
        self.gaps.iter()
    }

    /// Marks the ledger as changed: all of it must be saved again.
    pub(in crate::journal) fn note_change(&mut self) {
        self.changed.get_or_insert_with(Instant::now);
        self.is_unwritten = true;
        self.version += 1;
    }

    /// Takes whether the ledger must be written before cursors that have passed its gaps are saved.
    pub(in crate::journal) fn take_unwritten(&mut self) -> bool {
        std::mem::take(&mut self.is_unwritten)
    }

    /// Takes whether there is something to save.
    pub(in crate::journal) fn take_change(&mut self) -> bool {
        self.is_unwritten = false;
        self.changed.take().is_some()
    }

    /// Since when there is something to save, if there is.
    pub(in crate::journal) fn changed(&self) -> Option<Instant> {
        self.changed
    }

    fn close(&mut self, is_closed: impl Fn(&Gap) -> bool) -> usize {
        let before = self.gaps.len();
        self.gaps.retain(|gap| !is_closed(gap));
        let closed = before - self.gaps.len();
        if closed > 0 {
            self.note_change();
        }
        closed
    }

    fn join_oldest(&mut self) {
        let pair = (0..OLDEST.min(self.gaps.len())).find_map(|first| {
            let second = (first + 1..self.gaps.len()).find(|second| self.gaps[first].is_like(&self.gaps[*second]))?;
            Some((first, second))
        });
        // Without a pair there are more backends and destinations than entries. The oldest gap then
        // covers all databases.
        let (first, second) = pair.unwrap_or_else(|| {
            let backend = &self.gaps[0].backend;
            (0, (1..self.gaps.len()).find(|second| self.gaps[*second].backend == *backend).unwrap_or(1))
        });
        let Some(oldest) = self.gaps.remove(first) else { return };
        let joined = &mut self.gaps[second - 1];
        joined.absorb(&oldest);
        if pair.is_none() {
            let anything = Gap::of_anything(&joined.backend, joined.until, joined.reason);
            *joined = Gap { id: joined.id, from: joined.from, lines: joined.lines, ..anything };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In nanoseconds.
    const MINUTE: u64 = 60_000_000_000;

    fn gap(backend: &str, from: u64, lines: u64) -> Gap {
        let destination = Destination::new("db", "", Precision::Nanoseconds);
        let points = Span { from: from.cast_signed(), until: from.cast_signed() };
        let loss = Loss {
            destination: &destination,
            lines,
            received: (WallTime::new(from), WallTime::at(from + 1)),
            points,
            is_unsure: false,
        };
        Gap::of(backend, loss, DropReason::Quota)
    }

    #[test]
    fn what_is_near_is_one_gap_and_what_is_not_is_another() {
        let mut gaps = Gaps::default();
        gaps.note(gap("a", 0, 1));
        gaps.note(gap("b", 0, 1));
        gaps.note(gap("a", MINUTE, 2));
        gaps.note(gap("a", 3 * MINUTE, 4));
        let seen: Vec<_> = gaps.iter().map(|gap| (gap.backend.as_str(), gap.from, gap.until, gap.lines)).collect();
        let expected = [("a", 0, MINUTE + 1, 3), ("b", 0, 1, 1), ("a", 3 * MINUTE, 3 * MINUTE + 1, 4)];
        let expected =
            expected.map(|(backend, from, until, lines)| (backend, WallTime::new(from), WallTime::at(until), lines));
        assert_eq!(seen, expected);
        assert!(gaps.take_change() && !gaps.take_change());
        let first = gaps.iter().next().expect("a gap");
        assert_eq!(first.points, Span { from: 0, until: MINUTE.cast_signed() });
        assert_eq!(gaps.iter().map(|gap| gap.id).collect::<Vec<_>>(), [0, 1, 2]);
        // A number is never reused, not even after a restart.
        assert_eq!((gaps.vouch("a"), gaps.vouch("a")), (2, 0));
        let mut gaps = Gaps::new(gaps.version(), gaps.next_id(), gaps.iter().cloned().collect());
        gaps.note_joined("c", WallTime::at(9));
        assert_eq!(
            gaps.iter().last().map(|gap| (gap.id, gap.points, gap.reason.name())),
            Some((3, Span::ALWAYS, "joined"))
        );
    }

    #[test]
    fn what_the_other_relay_owed_is_one_gap_until_it_has_delivered_that() {
        let mut gaps = Gaps::default();
        gaps.note(gap("a", 0, 1));
        let points = Span { from: 3, until: 9 };
        let suspicion = Suspicion { received: (WallTime::new(5), WallTime::at(8)), points, lines: 40 };
        assert!(!gaps.replace_suspicion("a", Some(suspicion)));
        // Reported again, it is the same.
        assert!(gaps.replace_suspicion("a", Some(suspicion)));
        let known = gaps.iter().last().cloned().expect("a gap");
        assert_eq!(
            (known.reason.name(), known.from, known.until, known.lines),
            ("peer", WallTime::new(5), WallTime::at(8), 40)
        );
        assert!(known.is_unsure && known.points == points && known.touches("any", &Span { from: 9, until: 10 }));
        // Both backends may lack it, and one of them may not.
        gaps.replace_suspicion("b", Some(suspicion));
        assert!(!known.is_shared_by(gaps.iter().last().expect("a gap")));
        assert_eq!(GapReason::of_name("peer"), Some(GapReason::Peer));
        assert!(gaps.replace_suspicion("a", None) && !gaps.replace_suspicion("a", None));
        assert_eq!(gaps.iter().len(), 2);
    }

    #[test]
    fn with_more_destinations_than_entries_the_oldest_is_of_all_databases() {
        let mut gaps = Gaps::default();
        for number in 0..600 {
            let of = |backend| {
                let known = gap(backend, number, 1);
                let database = number.to_string();
                Gap { destination: Destination::new(database, "", Precision::Nanoseconds), ..known }
            };
            gaps.note(of("a"));
            gaps.note(of("b"));
        }
        assert_eq!(gaps.iter().len(), MAX_GAPS);
        assert_eq!(gaps.iter().map(|gap| gap.lines).sum::<u64>(), 1200);
        for backend in ["a", "b"] {
            let is_known = |database: &str| {
                gaps.iter().any(|gap| gap.backend == backend && gap.touches(database, &Span { from: 0, until: 0 }))
            };
            assert!(is_known("0") && is_known("599"), "{backend}");
        }
    }

    #[test]
    fn the_list_is_bounded_and_no_line_leaves_it() {
        let mut gaps = Gaps::default();
        for number in 0..3000 {
            gaps.note(gap("a", number * 3 * MINUTE, 1));
        }
        assert_eq!(gaps.iter().len(), MAX_GAPS);
        assert_eq!(gaps.iter().map(|gap| gap.lines).sum::<u64>(), 3000);
        assert_eq!(gaps.iter().last().map(|gap| gap.from), Some(WallTime::new(2999 * 3 * MINUTE)));
        // One more merges the two oldest into one that spans both.
        let two: Vec<Gap> = gaps.iter().take(2).cloned().collect();
        gaps.note(gap("a", 3000 * 3 * MINUTE, 1));
        let first = gaps.iter().next().expect("a gap");
        assert_eq!((first.from, first.until, first.lines), (two[0].from, two[1].until, two[0].lines + two[1].lines));
    }
}
