//! The gap ledger: what was given up for a backend, and when it was received. It is the work list for repairing a
//! mirror from its twin. Lines that never reached the journal (`ring_full`) are not in it: no twin has them.
//!
//! Bounds: [`MOST_GAPS`] entries. One more, and the two oldest of one kind become one that spans both.

use std::collections::VecDeque;
use std::time::Instant;

use super::ledger::DropReason;
use crate::batch::Destination;

/// Entries kept.
const MOST_GAPS: usize = 1000;
/// Of the oldest entries so many are tried to be joined with a later one.
const OLDEST: usize = 16;
/// What is lost within this time of the last loss belongs to the same gap, in nanoseconds.
const NEAR: u64 = 60_000_000_000;

/// Lines that a backend does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The backend's name.
    pub backend: String,
    /// Where the lines were to go.
    pub destination: Destination,
    /// None of them was received earlier; nanoseconds since 1970.
    pub from: u64,
    /// None of them was received later; nanoseconds since 1970.
    pub until: u64,
    /// How many they are.
    pub lines: u64,
    /// Why they were given up.
    pub reason: DropReason,
}

impl Gap {
    fn is_like(&self, other: &Self) -> bool {
        self.backend == other.backend && self.destination == other.destination && self.reason == other.reason
    }

    fn absorb(&mut self, other: &Self) {
        self.from = self.from.min(other.from);
        self.until = self.until.max(other.until);
        self.lines += other.lines;
    }
}

/// All gaps, oldest first.
#[derive(Debug, Default)]
pub(in crate::journal) struct Gaps {
    gaps: VecDeque<Gap>,
    /// When it changed first since [`Self::take_change`]; none where it did not.
    changed: Option<Instant>,
}

impl Gaps {
    pub(in crate::journal) fn new(mut gaps: Vec<Gap>) -> Self {
        gaps.truncate(MOST_GAPS);
        Self { gaps: gaps.into(), changed: None }
    }

    pub(in crate::journal) fn note(&mut self, gap: Gap) {
        self.note_change();
        let near = |known: &&mut Gap| {
            known.is_like(&gap)
                && gap.from <= known.until.saturating_add(NEAR)
                && known.from <= gap.until.saturating_add(NEAR)
        };
        if let Some(known) = self.gaps.iter_mut().rev().find(near) {
            known.absorb(&gap);
            return;
        }
        self.gaps.push_back(gap);
        if self.gaps.len() > MOST_GAPS {
            self.join_oldest();
        }
    }

    pub(in crate::journal) fn iter(&self) -> impl ExactSizeIterator<Item = &Gap> {
        self.gaps.iter()
    }

    /// All of it is to be saved again.
    pub(in crate::journal) fn note_change(&mut self) {
        self.changed.get_or_insert_with(Instant::now);
    }

    /// Whether there is something to save.
    pub(in crate::journal) fn take_change(&mut self) -> bool {
        self.changed.take().is_some()
    }

    /// Since when there is something to save; none where there is not.
    pub(in crate::journal) fn changed(&self) -> Option<Instant> {
        self.changed
    }

    fn join_oldest(&mut self) {
        let pair = (0..OLDEST.min(self.gaps.len())).find_map(|first| {
            let second = (first + 1..self.gaps.len()).find(|second| self.gaps[first].is_like(&self.gaps[*second]))?;
            Some((first, second))
        });
        // Without a pair there are more backends and destinations than entries: the oldest goes.
        let Some(oldest) = self.gaps.remove(pair.map_or(0, |(first, _)| first)) else { return };
        if let Some((_, second)) = pair {
            self.gaps[second - 1].absorb(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Precision;

    fn gap(backend: &str, from: u64, lines: u64) -> Gap {
        let destination =
            Destination { database: "db".into(), retention_policy: String::new(), precision: Precision::Nanoseconds };
        Gap { backend: backend.into(), destination, from, until: from + 1, lines, reason: DropReason::Quota }
    }

    #[test]
    fn what_is_near_is_one_gap_and_what_is_not_is_another() {
        let mut gaps = Gaps::default();
        gaps.note(gap("a", 0, 1));
        gaps.note(gap("b", 0, 1));
        gaps.note(gap("a", NEAR, 2));
        gaps.note(gap("a", 3 * NEAR, 4));
        let seen: Vec<_> = gaps.iter().map(|gap| (gap.backend.as_str(), gap.from, gap.until, gap.lines)).collect();
        assert_eq!(seen, [("a", 0, NEAR + 1, 3), ("b", 0, 1, 1), ("a", 3 * NEAR, 3 * NEAR + 1, 4)]);
        assert!(gaps.take_change() && !gaps.take_change());
    }

    #[test]
    fn the_list_is_bounded_and_no_line_leaves_it() {
        let mut gaps = Gaps::default();
        for number in 0..3000 {
            gaps.note(gap("a", number * 3 * NEAR, 1));
        }
        assert_eq!(gaps.iter().len(), MOST_GAPS);
        assert_eq!(gaps.iter().map(|gap| gap.lines).sum::<u64>(), 3000);
        assert_eq!(gaps.iter().last().map(|gap| gap.from), Some(2999 * 3 * NEAR));
        // One more, and the two oldest are one that spans both.
        let two: Vec<Gap> = gaps.iter().take(2).cloned().collect();
        gaps.note(gap("a", 3000 * 3 * NEAR, 1));
        let first = gaps.iter().next().expect("a gap");
        assert_eq!((first.from, first.until, first.lines), (two[0].from, two[1].until, two[0].lines + two[1].lines));
    }
}
