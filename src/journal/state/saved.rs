//! The cursors as they are kept on the disk.

use super::lane::SavedLane;
use crate::batch::Destination;
use crate::journal::segment::{Position, Sequence};

/// Where all backends are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::journal) struct Cursors {
    /// No record has been numbered as high as this.
    pub(in crate::journal) next_sequence: Sequence,
    /// Segments with a lower number could not be synced: none is written on, and none is synced again.
    pub(in crate::journal) abandoned_below: u64,
    /// Which state of the gap ledger has whatever they have passed.
    pub(in crate::journal) gaps_version: u64,
    /// What was written of each destination.
    pub(in crate::journal) written: Vec<(Destination, Position)>,
    /// What the log begins with of each destination: what lies before was given up, or was not needed, when this was saved.
    pub(in crate::journal) kept_from: Vec<(Destination, Position)>,
    pub(in crate::journal) backends: Vec<SavedBackend>,
}

/// Where one backend is in each destination's records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::journal) struct SavedBackend {
    pub(in crate::journal) name: String,
    /// Where it was; empty where the next start is to say so.
    pub(in crate::journal) address: String,
    /// Lines that it was owed were in memory only, and could not be written: a crash takes them.
    pub(in crate::journal) is_unkept: bool,
    /// Where the log ended when the backend was first found at another address: what came since is owed to whoever has the
    /// name now. None while it is where it was.
    pub(in crate::journal) moved_at: Option<MovedAt>,
    pub(in crate::journal) destinations: Vec<(Destination, Vec<SavedLane>)>,
}

/// Where the log ended at some moment: the next sequence, and what was written of each destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::journal) struct MovedAt {
    pub(in crate::journal) sequence: Sequence,
    pub(in crate::journal) written: Vec<(Destination, Position)>,
}
