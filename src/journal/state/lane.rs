//! Lanes: runs of one destination's records that a cursor has yet to lease.
//!
//! Owns: where a lane is, where it ends, what is missing between two of its records, and its saved
//! form. Never does: records, leases.

use crate::batch::WallTime;
use crate::journal::segment::format::SegmentName;
use crate::journal::segment::{Position, Sequence};

/// An offset in a segment, at or before a lane's next record.
#[derive(Clone, Debug)]
pub(in crate::journal) struct SegmentOffset {
    pub(in crate::journal) name: SegmentName,
    pub(in crate::journal) offset: u64,
}

/// Consecutive records of a destination that are to be leased.
#[derive(Debug, Default)]
pub(in crate::journal) struct Lane {
    /// No record below this sequence is left.
    pub(in crate::journal) from: Sequence,
    /// The position of the next record on disk.
    pub(in crate::journal) at: Position,
    /// Where it ends. `None` for the open lane.
    pub(in crate::journal) end: Option<End>,
    /// Wall time when its oldest line on disk was received, or earlier. `None` if unknown.
    pub(in crate::journal) since: Option<WallTime>,
    /// Where the last read stopped.
    pub(in crate::journal) resume: Option<SegmentOffset>,
    /// How many reads have failed in a row.
    pub(in crate::journal) failures: u32,
}

/// A lane's end: the first sequence and position that are not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::journal) struct End {
    pub(in crate::journal) sequence: Sequence,
    pub(in crate::journal) at: Position,
}

impl End {
    /// The nearer of the two.
    pub(in crate::journal) fn min(self, other: Self) -> Self {
        if other.at.lines < self.at.lines { other } else { self }
    }
}

/// A lane as saved on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::journal) struct SavedLane {
    pub(in crate::journal) from: Sequence,
    pub(in crate::journal) at: Position,
    pub(in crate::journal) since: Option<WallTime>,
    pub(in crate::journal) end: Option<(Sequence, Position)>,
}

impl Lane {
    /// Whether it has an end and has been read up to there.
    pub(super) fn is_read(&self) -> bool {
        self.end.is_some_and(|end| self.at.lines >= end.at.lines)
    }

    pub(super) fn pending(&self, written: Position) -> Position {
        self.end.map_or(written, |end| end.at).since(self.at)
    }
}

/// Lines missing between two records.
#[derive(Clone, Copy, Debug)]
pub(in crate::journal) struct Missing {
    pub(in crate::journal) size: Position,
    /// When the record before them and the record after them were received.
    pub(in crate::journal) from: Option<WallTime>,
    pub(in crate::journal) until: WallTime,
}

impl Missing {
    pub(super) fn between(lane: &Lane, at: Position, until: WallTime) -> Option<Self> {
        let size = at.since(lane.at);
        (size != Position::default()).then(|| Self {
            size,
            from: lane.since,
            until: lane.since.map_or(until, |since| since.max(until)),
        })
    }
}

impl SavedLane {
    /// The lines that it holds, if this much is written.
    pub(in crate::journal) fn pending(&self, written: Position) -> u64 {
        self.end.map_or(written, |(_, at)| at).since(self.at).lines
    }
}

/// Advances lanes to where the log begins. Returns the lines lost.
pub(in crate::journal) fn cut_saved(lanes: &mut Vec<SavedLane>, begin: End, written: Position) -> u64 {
    let mut lost = 0;
    for lane in lanes.iter_mut() {
        let to = lane.end.map_or(written, |(_, at)| at).min(begin.at);
        lost += to.since(lane.at).lines;
        if to.lines > lane.at.lines {
            (lane.from, lane.at) = (lane.from.max(begin.sequence), to);
        }
    }
    lanes.retain(|lane| lane.end.is_none_or(|(_, at)| lane.at.lines < at.lines));
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten bytes per line.
    fn at(lines: u64) -> Position {
        Position { lines, bytes: lines * 10 }
    }

    fn end(sequence: Sequence, lines: u64) -> End {
        End { sequence, at: at(lines) }
    }

    #[test]
    fn of_two_ends_the_nearer_one_is_taken() {
        let (near, far) = (end(Sequence::new(3), 30), end(Sequence::new(5), 50));
        assert_eq!([near.min(far), far.min(near), near.min(near)], [near; 3]);
    }

    #[test]
    fn what_lies_between_two_records_is_missing_and_was_received_between_them() {
        let lane = Lane { at: at(30), since: WallTime::new(500), ..Lane::default() };
        assert!(Missing::between(&lane, at(30), WallTime::at(900)).is_none());
        for (until, expected) in [(900, 900), (400, 500)] {
            let missing = Missing::between(&lane, at(42), WallTime::at(until)).expect("twelve lines");
            assert_eq!(
                (missing.size, missing.from, missing.until),
                (at(12), WallTime::new(500), WallTime::at(expected))
            );
        }
    }

    #[test]
    fn a_lane_is_cut_where_the_log_begins_and_what_lies_before_is_lost() {
        let lane = |from, lines, end: Option<u64>| SavedLane {
            from,
            at: at(lines),
            since: None,
            end: end.map(|lines| (Sequence::new(lines / 10), at(lines))),
        };
        // Read up to 20, 30 of 40 written; the log begins at 30.
        for (lanes, expected, lost) in [
            (vec![lane(Sequence::new(2), 20, None)], vec![lane(Sequence::new(3), 30, None)], 10),
            (vec![lane(Sequence::new(4), 40, None)], vec![lane(Sequence::new(4), 40, None)], 0),
            (
                vec![lane(Sequence::new(1), 10, Some(20)), lane(Sequence::new(2), 25, Some(40))],
                vec![lane(Sequence::new(3), 30, Some(40))],
                15,
            ),
            (vec![lane(Sequence::new(1), 10, Some(30))], vec![], 20),
            (vec![lane(Sequence::new(3), 30, Some(50))], vec![lane(Sequence::new(3), 30, Some(50))], 0),
        ] {
            let mut cut = lanes.clone();
            assert_eq!((cut_saved(&mut cut, end(Sequence::new(3), 30), at(60)), cut), (lost, expected), "{lanes:?}");
        }
        // If less was written than where the log claims to begin, no more than that is lost.
        let mut cut = vec![lane(Sequence::new(2), 20, None)];
        assert_eq!(cut_saved(&mut cut, end(Sequence::new(9), 90), at(60)), 40);
    }
}
