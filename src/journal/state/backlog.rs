//! What is asked of the disk for a lane, and what comes back.

use super::id::LogId;
use std::sync::Arc;

use super::lane::{End, Place};
use super::limits::Limits;
use super::record::{Record, Reserve};
use crate::batch::Destination;
use crate::journal::segment::{Position, Sequence};

/// What is to be read for a lease.
#[derive(Debug)]
pub(in crate::journal) struct Request {
    pub(in crate::journal) log: LogId,
    pub(in crate::journal) destination: Arc<Destination>,
    /// The lane's next sequence and position.
    pub(in crate::journal) from: Sequence,
    pub(in crate::journal) at: Position,
    /// Where the lane ends.
    pub(in crate::journal) end: End,
    pub(in crate::journal) place: Option<Place>,
    /// How often reading here has failed in a row.
    pub(in crate::journal) failures: u32,
    /// Records from this sequence on are not to be read yet.
    pub(in crate::journal) before: Sequence,
    pub(in crate::journal) limits: Limits,
    /// The memory for it: records are read until that is spent, but one always is.
    pub(in crate::journal) reserve: Reserve,
}

/// What was read from the disk for a cursor's backlog.
#[derive(Debug)]
pub(in crate::journal) struct Read {
    /// Where the lane was.
    pub(in crate::journal) from: Sequence,
    /// The lane's next records.
    pub(in crate::journal) records: Vec<Arc<Record>>,
    /// Where to go on.
    pub(in crate::journal) place: Option<Place>,
    /// There is none below this sequence any more, and what follows is not to be read yet; where that is.
    pub(in crate::journal) stopped: Option<End>,
    /// Its end, where there is nothing more before that.
    pub(in crate::journal) finished: Option<End>,
    /// The disk did not give what comes next.
    pub(in crate::journal) failed: bool,
}
