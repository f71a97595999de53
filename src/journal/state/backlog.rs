//! Requests to the disk for a lane's records, and the results.

use super::id::LogId;
use std::sync::Arc;

use super::lane::{End, SegmentOffset};
use super::limits::Limits;
use super::record::{Record, Reserve};
use crate::batch::Destination;
use crate::journal::segment::{Position, Sequence};

/// What to read for a lease.
#[derive(Debug)]
pub(in crate::journal) struct Request {
    pub(in crate::journal) log: LogId,
    pub(in crate::journal) destination: Arc<Destination>,
    /// The lane's next sequence and position.
    pub(in crate::journal) from: Sequence,
    pub(in crate::journal) at: Position,
    /// Where the lane ends.
    pub(in crate::journal) end: End,
    pub(in crate::journal) resume: Option<SegmentOffset>,
    /// How many reads here have failed in a row.
    pub(in crate::journal) failures: u32,
    /// Records from this sequence on must not be read yet.
    pub(in crate::journal) before: Sequence,
    pub(in crate::journal) limits: Limits,
    /// The memory for it. Reading stops when it is spent, but always returns at least one record.
    pub(in crate::journal) reserve: Reserve,
}

/// What was read from disk for a cursor's backlog.
#[derive(Debug)]
pub(in crate::journal) struct Read {
    /// The lane's next sequence when the read began.
    pub(in crate::journal) from: Sequence,
    /// The lane's next records.
    pub(in crate::journal) records: Vec<Arc<Record>>,
    /// Where to resume.
    pub(in crate::journal) resume: Option<SegmentOffset>,
    /// There are no more records below this end, and what follows must not be read yet.
    pub(in crate::journal) stopped: Option<End>,
    /// The lane's end, if nothing more comes before it.
    pub(in crate::journal) finished: Option<End>,
    /// The disk failed to return what comes next.
    pub(in crate::journal) failed: bool,
}
