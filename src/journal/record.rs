//! A sealed batch with its place in the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::batch::Batch;

/// What a record costs beside its buffer: itself, its shared bytes and its places in queues.
const OVERHEAD_BYTES: u64 = 256;

/// A sealed batch with a sequence number. It counts as memory from its making to the end of its last reference,
/// so that the journal's bound holds for what is on its way to a backend, too.
#[derive(Debug)]
pub struct Record {
    /// The place in the log, over all destinations.
    pub sequence: u64,
    /// The lines.
    pub batch: Batch,
    pub(super) memory: Arc<AtomicU64>,
}

impl Record {
    pub(super) fn new(sequence: u64, batch: Batch, memory: &Arc<AtomicU64>) -> Arc<Self> {
        memory.fetch_add(cost(&batch), Ordering::Relaxed);
        Arc::new(Self { sequence, batch, memory: Arc::clone(memory) })
    }

    /// Bytes of the lines.
    pub fn bytes(&self) -> u64 {
        self.batch.bytes.len() as u64
    }

    pub(super) fn cost(&self) -> u64 {
        cost(&self.batch)
    }
}

/// The memory that a record of this batch holds.
pub(super) fn cost(batch: &Batch) -> u64 {
    batch.capacity as u64 + OVERHEAD_BYTES
}
