//! Lines that one backend is owed once more: dead letters that an operator sent again. They are
//! leased before everything else.
//!
//! They are in memory only. Their letters stay on disk until the backend has them, so a crash loses
//! nothing.

use super::id::{BackendId, LogId};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::State;
use super::lease::Lease;
use super::record::Record;
use crate::batch::Batch;
use crate::journal::segment::Position;

/// What one backend is owed once more.
#[derive(Debug, Default)]
pub(in crate::journal) struct Resent {
    /// To be leased, oldest first.
    waiting: VecDeque<Waiting>,
    /// Waiting or leased.
    pending: Position,
}

/// A record with the numbers of its lines' letters.
#[derive(Debug)]
struct Waiting {
    log: LogId,
    record: Arc<Record>,
    letters: Arc<[u64]>,
}

impl Resent {
    pub(in crate::journal) fn pending(&self) -> Position {
        self.pending
    }
}

impl State {
    /// Makes one backend owed a batch once more.
    pub(in crate::journal) fn resend(&mut self, backend: BackendId, batch: Batch, letters: Vec<u64>) {
        let log = self.log_of(batch.destination());
        let record = Record::new(self.next_sequence, batch, None, &self.memory);
        let owed = &mut self.backends[backend];
        owed.ledger.resent += record.batch.lines();
        owed.resent.pending = record.end(owed.resent.pending);
        owed.resent.waiting.push_back(Waiting { log, record, letters: letters.into() });
    }

    /// Leases the oldest record whose destination is not parked.
    pub(in crate::journal) fn lease_resent(
        &mut self,
        backend: BackendId,
        parked: &HashMap<LogId, Instant>,
        now: Instant,
    ) -> Option<Lease> {
        let waiting = &mut self.backends[backend].resent.waiting;
        let index = waiting.iter().position(|one| parked.get(&one.log).is_none_or(|until| *until <= now))?;
        let Waiting { log, record, letters } = waiting.remove(index)?;
        let lease = Lease::new(log, &self.logs[log].destination, vec![record]);
        Some(Lease { letters: Some(letters), ..lease })
    }

    /// Acknowledges a lease of resent lines.
    pub(in crate::journal) fn ack_resent(&mut self, backend: BackendId, lease: &Lease) {
        let resent = &mut self.backends[backend].resent;
        resent.pending = resent.pending.since(Position { lines: lease.lines, bytes: lease.bytes });
    }

    /// Requeues a lease of resent lines.
    pub(in crate::journal) fn requeue_resent(&mut self, backend: BackendId, lease: &Lease, letters: &Arc<[u64]>) {
        let (log, waiting) = (lease.log, &mut self.backends[backend].resent.waiting);
        for record in &lease.records {
            waiting.push_front(Waiting { log, record: Arc::clone(record), letters: Arc::clone(letters) });
        }
    }
}
