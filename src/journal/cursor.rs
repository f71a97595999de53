//! One backend's place in one destination's records.
//!
//! Records are leased in order, several leases may be out at once, and they may end in any order: settled, or
//! given back and then leased again before anything newer. The watermark is the lowest sequence not settled.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Record;

/// What a lease takes at most, and when it is worth taking.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Lines of all records together (one record is always taken).
    pub lines: u64,
    /// Bytes of all records together (one record is always taken).
    pub bytes: u64,
    /// How long a first record waits for more.
    pub linger: std::time::Duration,
}

#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// The lowest sequence that was never leased.
    unread: u64,
    leased: BTreeMap<u64, Arc<Record>>,
    /// Given back: to be leased again, first.
    returned: BTreeMap<u64, Arc<Record>>,
    available_lines: u64,
    available_bytes: u64,
}

impl Cursor {
    /// Every record below this sequence is settled.
    pub(super) fn watermark(&self) -> u64 {
        let held = [self.leased.first_key_value(), self.returned.first_key_value()];
        held.into_iter().flatten().map(|(sequence, _)| *sequence).fold(self.unread, u64::min)
    }

    pub(super) fn append(&mut self, record: &Record) {
        self.available_lines += record.batch.lines;
        self.available_bytes += record.bytes();
    }

    /// Whether a lease would be as large as it may be.
    pub(super) fn is_full(&self, limits: &Limits) -> bool {
        self.available_lines >= limits.lines || self.available_bytes >= limits.bytes
    }

    /// The record that the next lease begins with.
    pub(super) fn first_available<'a>(&'a self, records: &'a VecDeque<Arc<Record>>) -> Option<&'a Arc<Record>> {
        let returned = self.returned.first_key_value().map(|(_, record)| record);
        returned.or_else(|| records.get(records.partition_point(|record| record.sequence < self.unread)))
    }

    /// The oldest record that is not settled.
    pub(super) fn oldest_pending<'a>(&'a self, records: &'a VecDeque<Arc<Record>>) -> Option<&'a Arc<Record>> {
        let available = self.first_available(records);
        let leased = self.leased.first_key_value().map(|(_, record)| record);
        [available, leased].into_iter().flatten().min_by_key(|record| record.sequence)
    }

    /// Leases consecutive records within the limits, at least one where there is one.
    pub(super) fn lease(&mut self, records: &VecDeque<Arc<Record>>, limits: &Limits) -> Vec<Arc<Record>> {
        let mut taken = Vec::new();
        let (mut lines, mut bytes) = (0, 0);
        while let Some(record) = self.first_available(records).map(Arc::clone) {
            lines += record.batch.lines;
            bytes += record.bytes();
            if !taken.is_empty() && (lines > limits.lines || bytes > limits.bytes) {
                break;
            }
            if self.returned.remove(&record.sequence).is_none() {
                self.unread = record.sequence + 1;
            }
            self.unavail(&record);
            self.leased.insert(record.sequence, Arc::clone(&record));
            taken.push(record);
        }
        taken
    }

    /// Ends the lease of a settled record.
    pub(super) fn settle(&mut self, sequence: u64) {
        let leased = self.leased.remove(&sequence);
        debug_assert!(leased.is_some(), "BUG: only a leased record is settled");
    }

    /// Ends the lease of a record that is to be leased again.
    pub(super) fn give_back(&mut self, record: &Arc<Record>) {
        self.leased.remove(&record.sequence);
        self.append(record);
        self.returned.insert(record.sequence, Arc::clone(record));
    }

    /// A record leaves the journal. True where this cursor was still to read it, so that its lines are lost to
    /// the backend; a leased one may still be settled.
    pub(super) fn fall_off(&mut self, record: &Arc<Record>) -> bool {
        let lost = self.returned.remove(&record.sequence).is_some() || record.sequence >= self.unread;
        if lost {
            self.unread = self.unread.max(record.sequence + 1);
            self.unavail(record);
        }
        lost
    }

    fn unavail(&mut self, record: &Record) {
        self.available_lines -= record.batch.lines;
        self.available_bytes -= record.bytes();
    }
}
