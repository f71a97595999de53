//! Leases: what a backend takes at once, and what is available to it.

use std::sync::Arc;
use std::time::Instant;

use super::backlog::Request;
use super::id::LogId;
use super::record::Record;
use crate::batch::Destination;

/// Records of one destination on their way to a backend. It must be acked or requeued.
#[derive(Debug)]
#[must_use = "a lease must be acked or requeued"]
pub struct Lease {
    /// The lines' destination.
    pub destination: Arc<Destination>,
    /// The records, oldest first.
    pub records: Vec<Arc<Record>>,
    /// Lines in all of them.
    pub lines: u64,
    /// Bytes in all of them.
    pub bytes: u64,
    /// The numbers of the lines' dead letters, if the lines were sent again.
    pub letters: Option<Arc<[u64]>>,
    pub(in crate::journal) log: LogId,
}

impl Lease {
    pub(in crate::journal) fn new(log: LogId, destination: &Arc<Destination>, records: Vec<Arc<Record>>) -> Self {
        let lines = records.iter().map(|record| record.batch.lines()).sum();
        let bytes = records.iter().map(|record| record.bytes()).sum();
        Self { destination: Arc::clone(destination), records, lines, bytes, letters: None, log }
    }

    /// Its destination's log: the same for every lease of that destination.
    pub fn log(&self) -> LogId {
        self.log
    }
}

/// What is available to lease.
pub(in crate::journal) enum Ready {
    Lease(Lease),
    /// This must be read from disk first.
    Read(Request),
    /// Nothing before this time, unless more is appended.
    At(Instant),
    /// Nothing, unless more is appended.
    Never,
    /// Nothing, and nothing more will come.
    Closed,
}
