//! The cursors as saved on disk.

use super::lane::SavedLane;
use crate::batch::Destination;
use crate::journal::segment::{Position, Sequence};

/// The progress of all backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::journal) struct Cursors {
    /// All records so far have a lower sequence.
    pub(in crate::journal) next_sequence: Sequence,
    /// Segments with a lower number could not be synced: they are neither written to nor synced
    /// again.
    pub(in crate::journal) abandoned_below: u64,
    /// The version of the gap ledger that has every loss these cursors have passed.
    pub(in crate::journal) gaps_version: u64,
    /// What was written of each destination.
    pub(in crate::journal) written: Vec<(Destination, Position)>,
    /// Where the log began for each destination when this was saved; anything before had been given
    /// up or was not needed.
    pub(in crate::journal) kept_from: Vec<(Destination, Position)>,
    pub(in crate::journal) backends: Vec<SavedBackend>,
}

/// One backend's progress in each destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::journal) struct SavedBackend {
    pub(in crate::journal) name: String,
    /// Its address. Empty: the next start accepts any.
    pub(in crate::journal) address: String,
    /// It was owed lines that were only in memory and could not be written: a crash takes them.
    pub(in crate::journal) is_unkept: bool,
    /// Where the log ended when the backend was first found at another address. Later lines are
    /// owed to the server that has the name now. `None` if the address has not changed.
    pub(in crate::journal) moved_at: Option<MovedAt>,
    pub(in crate::journal) destinations: Vec<(Destination, Vec<SavedLane>)>,
}

/// Where the log ended at some moment: the next sequence, and what was written of each destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::journal) struct MovedAt {
    pub(in crate::journal) sequence: Sequence,
    pub(in crate::journal) written: Vec<(Destination, Position)>,
}
