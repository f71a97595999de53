//! Lanes: stretches of one destination's records that a cursor has still to lease.
//!
//! Owns: where a lane is, where it ends, what is missing between two records of it, and the form in which it is kept on the
//! disk. Never does: records, leases.

use crate::journal::segment::Position;
use crate::journal::segment::format::SegmentName;

/// A place in a segment: where a lane's next record is, or something before it.
#[derive(Clone, Debug)]
pub(in crate::journal) struct Place {
    pub(in crate::journal) name: SegmentName,
    pub(in crate::journal) offset: u64,
}

/// Consecutive records of a destination that are to be leased.
#[derive(Debug, Default)]
pub(in crate::journal) struct Lane {
    /// No record below this sequence is left.
    pub(in crate::journal) from: u64,
    /// The position of the next record on the disk.
    pub(in crate::journal) at: Position,
    /// Where it ends; none for the open lane.
    pub(in crate::journal) end: Option<End>,
    /// Wall time when its oldest line on the disk was received, or earlier; 0 where that is not known.
    pub(in crate::journal) since: u64,
    /// Where the disk was read last.
    pub(in crate::journal) place: Option<Place>,
    /// How often reading it has failed in a row.
    pub(in crate::journal) failures: u32,
}

/// A lane's end: the first sequence and position that are not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::journal) struct End {
    pub(in crate::journal) sequence: u64,
    pub(in crate::journal) at: Position,
}

impl End {
    /// The nearer of the two.
    pub(in crate::journal) fn min(self, other: Self) -> Self {
        if other.at.lines < self.at.lines { other } else { self }
    }
}

/// A lane as it is kept on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::journal) struct SavedLane {
    pub(in crate::journal) from: u64,
    pub(in crate::journal) at: Position,
    pub(in crate::journal) since: u64,
    pub(in crate::journal) end: Option<(u64, Position)>,
}

impl Lane {
    /// Whether it has an end, and was read up to there.
    pub(super) fn is_read(&self) -> bool {
        self.end.is_some_and(|end| self.at.lines >= end.at.lines)
    }

    pub(super) fn pending(&self, written: Position) -> Position {
        self.end.map_or(written, |end| end.at).since(self.at)
    }
}

/// Lines that should have been between two that are there.
#[derive(Clone, Copy, Debug)]
pub(in crate::journal) struct Missing {
    pub(in crate::journal) size: Position,
    /// When what stands before them was received, and what stands behind them.
    pub(in crate::journal) from: u64,
    pub(in crate::journal) until: u64,
}

impl Missing {
    pub(super) fn between(lane: &Lane, at: Position, until: u64) -> Option<Self> {
        let size = at.since(lane.at);
        (size != Position::default()).then(|| Self { size, from: lane.since, until: until.max(lane.since) })
    }
}

impl SavedLane {
    /// Lines that it holds, where so much is written.
    pub(in crate::journal) fn pending(&self, written: Position) -> u64 {
        self.end.map_or(written, |(_, at)| at).since(self.at).lines
    }
}

/// Moves lanes on to where the log begins; returns the lines that costs.
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
