//! A sealed batch with its position in the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::batch::Batch;
use crate::journal::segment::{Position, Sequence};

/// What a record costs beside its buffer: itself, its shared bytes and its entries in queues.
const OVERHEAD_BYTES: u64 = 256;

/// A sealed batch with a sequence number. It counts as memory from its creation until its last
/// reference is dropped, so that the journal's bound covers leased records, too.
#[derive(Debug)]
pub struct Record {
    /// Its number in the log, over all destinations.
    pub sequence: Sequence,
    /// The lines.
    pub batch: Batch,
    at: Written,
    memory: Arc<AtomicU64>,
}

/// A record's position on disk, once written. It changes only under the journal's lock.
#[derive(Debug)]
struct Written {
    /// [`NOWHERE`] while the record is only in memory.
    lines: AtomicU64,
    bytes: AtomicU64,
}

/// No position has this many lines.
const NOWHERE: u64 = u64::MAX;

impl Written {
    fn new(at: Option<Position>) -> Self {
        let Position { lines, bytes } = at.unwrap_or(Position { lines: NOWHERE, bytes: 0 });
        Self { lines: AtomicU64::new(lines), bytes: AtomicU64::new(bytes) }
    }
}

impl Record {
    pub(in crate::journal) fn new(
        sequence: Sequence,
        batch: Batch,
        at: Option<Position>,
        memory: &Arc<AtomicU64>,
    ) -> Arc<Self> {
        memory.fetch_add(cost(&batch), Ordering::Relaxed);
        Arc::new(Self { sequence, batch, at: Written::new(at), memory: Arc::clone(memory) })
    }

    /// Bytes of the lines.
    pub fn bytes(&self) -> u64 {
        self.batch.bytes().len() as u64
    }

    /// Its position on disk. `None` while it is only in memory.
    pub(in crate::journal) fn written(&self) -> Option<Position> {
        let lines = self.at.lines.load(Ordering::Relaxed);
        (lines != NOWHERE).then(|| Position { lines, bytes: self.at.bytes.load(Ordering::Relaxed) })
    }

    /// Notes that it was written at this position. Returns `false` if it had been written before.
    pub(in crate::journal) fn note_written(&self, at: Position) -> bool {
        if self.written().is_some() {
            return false;
        }
        self.at.bytes.store(at.bytes, Ordering::Relaxed);
        self.at.lines.store(at.lines, Ordering::Relaxed);
        true
    }

    /// Notes that the disk lost it: it is only in memory again.
    pub(in crate::journal) fn leave_disk(&self) {
        self.at.lines.store(NOWHERE, Ordering::Relaxed);
    }

    /// Whether it can be read from disk, which holds nothing below the sequence `kept_from`.
    pub(in crate::journal) fn is_on_disk(&self, kept_from: Sequence) -> bool {
        self.sequence >= kept_from && self.written().is_some()
    }

    /// Whether it was written, and its segment is gone.
    pub(in crate::journal) fn has_left_disk(&self, kept_from: Sequence) -> bool {
        self.sequence < kept_from && self.written().is_some()
    }

    /// The position after it, if it begins at `at`.
    pub(in crate::journal) fn end(&self, at: Position) -> Position {
        at.plus(self.batch.lines(), self.bytes())
    }
}

/// Memory reserved for records that are being read, so that the bound covers them before they
/// arrive.
#[derive(Debug)]
pub(in crate::journal) struct Reserve {
    bytes: u64,
    memory: Arc<AtomicU64>,
}

impl Reserve {
    /// Reserves bytes.
    pub(in crate::journal) fn new(bytes: u64, memory: &Arc<AtomicU64>) -> Self {
        memory.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes, memory: Arc::clone(memory) }
    }

    /// The bytes left.
    pub(in crate::journal) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Creates a record of what was read, at the reserve's expense.
    pub(in crate::journal) fn spend(&mut self, sequence: Sequence, batch: Batch, at: Position) -> Arc<Record> {
        let spent = self.bytes.min(cost(&batch));
        self.bytes -= spent;
        self.memory.fetch_sub(spent, Ordering::Relaxed);
        Record::new(sequence, batch, Some(at), &self.memory)
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.memory.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.memory.fetch_sub(cost(&self.batch), Ordering::Relaxed);
    }
}

/// The memory that a record of this batch holds.
pub(in crate::journal) fn cost(batch: &Batch) -> u64 {
    batch.capacity() as u64 + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Destination, Received};
    use crate::protocol::Precision;

    fn batch(capacity: usize) -> Batch {
        let destination = Arc::new(Destination::new("db", "", Precision::Nanoseconds));
        Batch::new(destination, "m v=1\n", 1, Received::now()).with_capacity(capacity)
    }

    #[test]
    fn a_record_that_the_disk_lost_is_in_memory_only_and_may_be_written_again() {
        let record = Record::new(Sequence::new(7), batch(6), None, &Arc::default());
        let positions = [Position { lines: 3, bytes: 30 }, Position { lines: 5, bytes: 50 }];
        assert_eq!(
            (record.written(), record.is_on_disk(Sequence::new(0)), record.has_left_disk(Sequence::new(8))),
            (None, false, false)
        );
        for position in positions {
            assert!(record.note_written(position));
            assert!(!record.note_written(Position { lines: 9, bytes: 90 }), "it is where it was written first");
            assert_eq!(record.written(), Some(position));
            assert_eq!([record.is_on_disk(Sequence::new(7)), record.is_on_disk(Sequence::new(8))], [true, false]);
            assert_eq!([record.has_left_disk(Sequence::new(7)), record.has_left_disk(Sequence::new(8))], [false, true]);
            record.leave_disk();
            assert_eq!(
                (record.written(), record.is_on_disk(Sequence::new(0)), record.has_left_disk(Sequence::new(8))),
                (None, false, false)
            );
        }
    }

    #[test]
    fn a_record_counts_as_memory_with_its_buffer_and_with_what_it_costs_itself_until_it_is_gone() {
        let memory = Arc::new(AtomicU64::new(0));
        let capacities = [0, 6, 100_000];
        let records = capacities.map(|capacity| Record::new(Sequence::new(0), batch(capacity), None, &memory));
        let (held, itself) = (memory.load(Ordering::Relaxed), size_of::<Record>() as u64);
        let buffers: u64 = capacities.iter().map(|capacity| *capacity as u64).sum();
        assert!((buffers + 3 * itself..buffers + 30 * itself).contains(&held), "{held}");
        drop(records);
        assert_eq!(memory.load(Ordering::Relaxed), 0);
    }
}
