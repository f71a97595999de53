//! What the journal's lock guards: the memory tail, the cursors, the ledgers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::cursor::{Cursor, Limits};
use super::ledger::{DropReason, Ledger, Rejection};
use super::record::{Record, cost};
use super::{Lease, Snapshot};
use crate::batch::{Batch, Destination};

#[derive(Debug)]
pub(super) struct State {
    next_sequence: u64,
    /// One for each destination ever seen; destinations come from the configuration, so they are few.
    logs: Vec<Log>,
    backends: Vec<Backend>,
    /// The bound of `memory`, in bytes.
    memory_bound: u64,
    /// Bytes held by all records that are alive, wherever they are.
    memory: Arc<AtomicU64>,
    appended_lines: u64,
    closed: bool,
}

/// The records of one destination, oldest first.
#[derive(Debug)]
struct Log {
    destination: Arc<Destination>,
    records: VecDeque<Arc<Record>>,
}

#[derive(Debug, Default)]
struct Backend {
    /// One for each of the logs.
    cursors: Vec<Cursor>,
    ledger: Ledger,
    /// The limits that the backend waits for, and whether it waits.
    waiting: Option<Limits>,
}

/// What there is to lease.
pub(super) enum Ready {
    Lease(Lease),
    /// Nothing before this time, unless more comes.
    At(Instant),
    /// Nothing, unless more comes.
    Never,
    /// Nothing, and nothing will come.
    Closed,
}

impl State {
    pub(super) fn new(memory_bound: u64, backends: usize) -> Self {
        Self {
            next_sequence: 0,
            logs: Vec::new(),
            backends: (0..backends).map(|_| Backend::default()).collect(),
            memory_bound,
            memory: Arc::new(AtomicU64::new(0)),
            appended_lines: 0,
            closed: false,
        }
    }

    /// Appends a batch; returns the backends that have a reason to look.
    pub(super) fn append(&mut self, batch: Batch) -> Vec<usize> {
        let log = self.log_of(&batch.destination);
        self.appended_lines += batch.lines;
        let (lines, bytes) = (batch.lines, batch.bytes.len() as u64);
        for backend in &mut self.backends {
            backend.ledger.append(lines, bytes);
        }
        if !self.make_room(cost(&batch)) {
            // What is on its way to backends fills the memory: the newest is all that can be given up.
            for backend in &mut self.backends {
                backend.ledger.drop_lines(DropReason::MemoryFull, lines, bytes);
            }
            return Vec::new();
        }
        let record = Record::new(self.next_sequence, batch, &self.memory);
        self.next_sequence += 1;
        let records = &mut self.logs[log].records;
        let mut woken = Vec::new();
        for (place, backend) in self.backends.iter_mut().enumerate() {
            let cursor = &mut backend.cursors[log];
            let was_idle = cursor.first_available(records).is_none();
            cursor.append(&record);
            if backend.waiting.is_some_and(|limits| was_idle || cursor.is_full(&limits)) {
                backend.waiting = None;
                woken.push(place);
            }
        }
        records.push_back(record);
        woken
    }

    /// Leases from the destination that is ready and whose first record is the oldest.
    pub(super) fn lease(
        &mut self,
        backend: usize,
        limits: &Limits,
        parked: &HashMap<usize, Instant>,
        now: Instant,
    ) -> Ready {
        let mut ready: Option<(u64, usize)> = None;
        let mut wake_at: Option<Instant> = None;
        let Backend { cursors, waiting, .. } = &mut self.backends[backend];
        for (place, (log, cursor)) in self.logs.iter().zip(cursors.iter()).enumerate() {
            let Some(first) = cursor.first_available(&log.records) else { continue };
            let due = first.batch.received.monotonic + limits.linger;
            let due = if self.closed || cursor.is_full(limits) { now } else { due };
            let due = parked.get(&place).map_or(due, |until| due.max(*until));
            if due <= now {
                ready = Some(ready.map_or((first.sequence, place), |known| known.min((first.sequence, place))));
            } else if !self.closed {
                wake_at = Some(wake_at.map_or(due, |known| known.min(due)));
            }
        }
        if let Some((_, log)) = ready {
            let Log { destination, records } = &self.logs[log];
            return Ready::Lease(Lease::new(log, destination, cursors[log].lease(records, limits)));
        }
        *waiting = Some(*limits);
        match wake_at {
            _ if self.closed => Ready::Closed,
            Some(time) => Ready::At(time),
            None => Ready::Never,
        }
    }

    pub(super) fn settle(&mut self, backend: usize, lease: &Lease, rejected: Option<(Rejection, u64)>, now: Instant) {
        let Backend { cursors, ledger, .. } = &mut self.backends[backend];
        let (class, rejected) = rejected.unwrap_or((Rejection::Other, 0));
        ledger.settle(lease.lines, lease.bytes, class, rejected.min(lease.lines));
        for record in &lease.records {
            cursors[lease.log].settle(record.sequence);
            if rejected < lease.lines {
                let latency = now.saturating_duration_since(record.batch.received.monotonic);
                ledger.record_latency(latency, record.batch.lines);
            }
        }
        self.retire(lease.log);
    }

    pub(super) fn give_back(&mut self, backend: usize, lease: &Lease) {
        let records = &self.logs[lease.log].records;
        let Backend { cursors, ledger, .. } = &mut self.backends[backend];
        let cursor = &mut cursors[lease.log];
        for record in &lease.records {
            cursor.give_back(record);
            let kept = records.binary_search_by_key(&record.sequence, |kept| kept.sequence).is_ok();
            if !kept && cursor.fall_off(record) {
                ledger.drop_lines(DropReason::MemoryFull, record.batch.lines, record.bytes());
            }
        }
        self.retire(lease.log);
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn dropped_lines(&self) -> Vec<u64> {
        self.backends.iter().map(|backend| backend.ledger.dropped.iter().sum()).collect()
    }

    pub(super) fn snapshot(&self, now: Instant) -> Snapshot {
        let oldest = |backend: &Backend| {
            let pending = self.logs.iter().zip(&backend.cursors);
            let received = pending.filter_map(|(log, cursor)| cursor.oldest_pending(&log.records));
            let oldest = received.map(|record| record.batch.received.monotonic).min();
            oldest.map_or(0.0, |oldest| now.saturating_duration_since(oldest).as_secs_f64())
        };
        Snapshot {
            appended_lines: self.appended_lines,
            memory_bytes: self.memory.load(Ordering::Relaxed),
            ledgers: self.backends.iter().map(|backend| backend.ledger.clone()).collect(),
            oldest_pending_seconds: self.backends.iter().map(oldest).collect(),
        }
    }

    /// The place of a destination's log, which is made where there is none.
    fn log_of(&mut self, destination: &Arc<Destination>) -> usize {
        let known = self
            .logs
            .iter()
            .position(|log| Arc::ptr_eq(&log.destination, destination) || log.destination == *destination);
        known.unwrap_or_else(|| {
            self.logs.push(Log { destination: Arc::clone(destination), records: VecDeque::new() });
            for backend in &mut self.backends {
                backend.cursors.push(Cursor::default());
            }
            self.logs.len() - 1
        })
    }

    /// Lets the oldest records go until there is room for this many bytes more; false where there is none.
    fn make_room(&mut self, bytes: u64) -> bool {
        while self.memory.load(Ordering::Relaxed) + bytes > self.memory_bound {
            let fronts = self.logs.iter().enumerate();
            let oldest = fronts.filter_map(|(place, log)| Some((log.records.front()?.sequence, place))).min();
            let Some((_, log)) = oldest else { return false };
            let Some(record) = self.logs[log].records.pop_front() else { return false };
            for backend in &mut self.backends {
                if backend.cursors[log].fall_off(&record) {
                    backend.ledger.drop_lines(DropReason::MemoryFull, record.batch.lines, record.bytes());
                }
            }
            // The watermark of a cursor that lost its lowest record rises over what it had settled behind that.
            self.retire(log);
        }
        true
    }

    /// Lets go of the records that every backend has settled.
    fn retire(&mut self, log: usize) {
        let watermark = self.backends.iter().map(|backend| backend.cursors[log].watermark()).min();
        let records = &mut self.logs[log].records;
        while records.front().is_some_and(|record| Some(record.sequence) < watermark) {
            records.pop_front();
        }
    }
}

impl Lease {
    fn new(log: usize, destination: &Arc<Destination>, records: Vec<Arc<Record>>) -> Self {
        let lines = records.iter().map(|record| record.batch.lines).sum();
        let bytes = records.iter().map(|record| record.bytes()).sum();
        Self { destination: Arc::clone(destination), records, lines, bytes, log }
    }
}
