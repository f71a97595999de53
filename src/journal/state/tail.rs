//! One destination's records in memory, as its cursors see them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::lane::End;
use super::record::Record;
use crate::journal::segment::{Position, Sequence};

/// A destination's records as its cursors see them.
#[derive(Clone, Copy, Debug)]
pub(in crate::journal) struct Tail<'a> {
    /// In memory, oldest first.
    pub(in crate::journal) records: &'a VecDeque<Arc<Record>>,
    /// What was written of the destination.
    pub(in crate::journal) written: Position,
    /// The sequence of the next batch.
    pub(in crate::journal) next_sequence: Sequence,
}

impl<'a> Tail<'a> {
    /// The first record in memory from this sequence on.
    pub(super) fn next(&self, from: Sequence) -> Option<&'a Arc<Record>> {
        self.records.get(self.records.partition_point(|record| record.sequence < from))
    }

    /// Where memory begins for a lane at this sequence: records below it are only on disk.
    pub(in crate::journal) fn begin(&self, from: Sequence) -> End {
        match self.next(from) {
            Some(record) => End { sequence: record.sequence, at: record.written().unwrap_or(self.written) },
            None => End { sequence: self.next_sequence, at: self.written },
        }
    }
}
