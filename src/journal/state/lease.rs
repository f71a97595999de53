//! Leases: what a backend takes at once, and what there is for it.

use std::sync::Arc;
use std::time::Instant;

use super::backlog::Request;
use super::id::LogId;
use super::record::Record;
use crate::batch::Destination;

/// Records of one destination that are on their way to a backend. It must be acked or given back.
#[derive(Debug)]
#[must_use = "a lease is acked or given back"]
pub struct Lease {
    /// Where the lines go.
    pub destination: Arc<Destination>,
    /// The records, oldest first.
    pub records: Vec<Arc<Record>>,
    /// Lines in all of them.
    pub lines: u64,
    /// Bytes in all of them.
    pub bytes: u64,
    /// The numbers of the lines' dead letters, where they were sent again.
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

/// What there is to lease.
pub(in crate::journal) enum Ready {
    Lease(Lease),
    /// This is to be read from the disk first.
    Read(Request),
    /// Nothing before this time, unless more comes.
    At(Instant),
    /// Nothing, unless more comes.
    Never,
    /// Nothing, and nothing will come.
    Closed,
}
