//! What the journal's lock guards: the memory tail, the cursors, the ledgers, and what is known of the disk.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::cursor::{Cursor, Limits, Missing, Read, Tail};
use super::disk::{Disk, Request, SavedBackend};
use super::gaps::{Gap, Gaps};
use super::ledger::{DropReason, Ledger, Rejection};
use super::record::{Position, Record, cost};
use super::{Lease, Snapshot};
use crate::batch::{Batch, Destination, Received};

#[derive(Debug)]
pub(super) struct State {
    pub(super) next_sequence: u64,
    /// One for each destination ever seen; destinations come from the configuration, so they are few.
    pub(super) logs: Vec<Log>,
    pub(super) backends: Vec<Backend>,
    /// Backends that the configuration no longer has, and where they were.
    pub(super) orphans: Vec<SavedBackend>,
    pub(super) gaps: Gaps,
    /// The bound of `memory`, in bytes.
    pub(super) memory_bound: u64,
    /// Bytes held by all records that are alive, wherever they are.
    pub(super) memory: Arc<AtomicU64>,
    appended_lines: u64,
    closed: bool,
    /// Since when the memory has been scarce, and no record was written.
    pub(super) scarce_since: Option<Instant>,
    /// None where records are kept in memory only.
    pub(super) disk: Option<Disk>,
}

/// The records of one destination, oldest first.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) destination: Arc<Destination>,
    pub(super) records: VecDeque<Arc<Record>>,
    /// What was written of it.
    pub(super) written: Position,
}

impl Log {
    pub(super) fn new(destination: Arc<Destination>, written: Position) -> Self {
        Self { destination, records: VecDeque::new(), written }
    }

    pub(super) fn tail(&self, next_sequence: u64) -> Tail<'_> {
        Tail { records: &self.records, written: self.written, next_sequence }
    }
}

#[derive(Debug, Default)]
pub(super) struct Backend {
    pub(super) name: String,
    /// The share of requests that the backlog gets while fresh records wait; 1 is strict order.
    replay_share: f64,
    /// What the backlog has saved up of it.
    credit: f64,
    /// One for each of the logs.
    pub(super) cursors: Vec<Cursor>,
    pub(super) ledger: Ledger,
    /// The limits that the backend waits for, and whether it waits.
    waiting: Option<Limits>,
}

impl Backend {
    pub(super) fn new(setup: &super::BackendSetup) -> Self {
        Self { name: setup.name.clone(), replay_share: setup.replay_share, ..Self::default() }
    }

    /// Gives lines up, and notes that for whoever repairs the mirror.
    pub(super) fn give_up(
        &mut self,
        gaps: &mut Gaps,
        reason: DropReason,
        lost: Position,
        gap: (&Destination, u64, u64),
    ) {
        let (destination, from, until) = gap;
        self.ledger.drop_lines(reason, lost.lines, lost.bytes);
        let (backend, destination) = (self.name.clone(), destination.clone());
        gaps.note(Gap { backend, destination, from, until, lines: lost.lines, reason });
    }
}

/// What there is to lease.
pub(super) enum Ready {
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

impl State {
    pub(super) fn new(memory_bound: u64, backends: Vec<Backend>) -> Self {
        Self {
            next_sequence: 0,
            logs: Vec::new(),
            backends,
            orphans: Vec::new(),
            gaps: Gaps::default(),
            memory_bound,
            memory: Arc::new(AtomicU64::new(0)),
            appended_lines: 0,
            closed: false,
            scarce_since: None,
            disk: None,
        }
    }

    /// Appends a batch; returns the backends that have a reason to look.
    pub(super) fn append(&mut self, batch: Batch) -> Vec<usize> {
        let log = self.log_of(&batch.destination);
        self.appended_lines += batch.lines;
        let size = Position { lines: batch.lines, bytes: batch.bytes.len() as u64 };
        for backend in &mut self.backends {
            backend.ledger.append(size.lines, size.bytes);
        }
        if !self.make_room(cost(&batch)) {
            // What is on its way to backends fills the memory: the newest is all that can be given up.
            let (destination, wall) = (&*batch.destination, batch.received.wall);
            for backend in &mut self.backends {
                backend.give_up(&mut self.gaps, DropReason::MemoryFull, size, (destination, wall, wall));
            }
            return Vec::new();
        }
        let record = Record::new(self.next_sequence, batch, None, &self.memory);
        let mut woken = Vec::new();
        let tail = self.logs[log].tail(self.next_sequence);
        for (place, backend) in self.backends.iter_mut().enumerate() {
            let cursor = &mut backend.cursors[log];
            let was_idle = cursor.first_available(tail).is_none();
            cursor.append(&record);
            if backend.waiting.is_some_and(|limits| was_idle || cursor.is_full(&limits)) {
                backend.waiting = None;
                woken.push(place);
            }
        }
        self.next_sequence += 1;
        self.logs[log].records.push_back(record);
        woken
    }

    /// Leases from the destination that is ready and whose first record is the oldest; where there is a backlog on
    /// the disk as well, it gets its share of the leases; it is not read before `read_from`.
    pub(super) fn lease(
        &mut self,
        backend: usize,
        limits: &Limits,
        parked: &HashMap<usize, Instant>,
        read_from: Instant,
        now: Instant,
    ) -> Ready {
        // The first sequence, and the log.
        let mut fresh: Option<(u64, usize)> = None;
        let mut backlog: Option<(u64, usize)> = None;
        let mut wake_at: Option<Instant> = None;
        let Backend { cursors, waiting, replay_share, credit, .. } = &mut self.backends[backend];
        for (place, (log, cursor)) in self.logs.iter().zip(cursors.iter_mut()).enumerate() {
            let tail = log.tail(self.next_sequence);
            let held_until = parked.get(&place).copied().unwrap_or(now);
            if *replay_share < 1.0 {
                cursor.part(tail);
            }
            if let Some((lane, _)) = cursor.backlog(tail) {
                let due = held_until.max(read_from);
                if due <= now {
                    backlog = Some(backlog.map_or((lane.from, place), |known| known.min((lane.from, place))));
                } else if !self.closed {
                    wake_at = Some(wake_at.map_or(due, |known| known.min(due)));
                }
            }
            let Some(first) = cursor.first_available(tail) else { continue };
            let due = first.batch.received.monotonic + limits.linger;
            let due = if self.closed || cursor.is_full(limits) { now } else { due };
            let due = due.max(held_until);
            if due <= now {
                fresh = Some(fresh.map_or((first.sequence, place), |known| known.min((first.sequence, place))));
            } else if !self.closed {
                wake_at = Some(wake_at.map_or(due, |known| known.min(due)));
            }
        }
        if let (Some(_), Some(_)) = (fresh, backlog) {
            *credit += *replay_share;
            if *credit >= 1.0 {
                *credit -= 1.0;
                fresh = None;
            }
        }
        if let Some((_, log)) = fresh {
            let Log { destination, .. } = &self.logs[log];
            let records = cursors[log].lease(self.logs[log].tail(self.next_sequence), limits);
            return Ready::Lease(Lease::new(log, destination, records));
        }
        if let Some((_, log)) = backlog {
            return self.request(backend, log, limits).map_or(Ready::Never, Ready::Read);
        }
        *waiting = Some(*limits);
        match wake_at {
            _ if self.closed => Ready::Closed,
            Some(time) => Ready::At(time),
            None => Ready::Never,
        }
    }

    /// What is to be read next from a cursor's backlog; none where there is none.
    pub(super) fn request(&self, backend: usize, log: usize, limits: &Limits) -> Option<Request> {
        let tail = self.logs[log].tail(self.next_sequence);
        let (lane, end) = self.backends[backend].cursors[log].backlog(tail)?;
        Some(Request {
            log,
            destination: Arc::clone(&self.logs[log].destination),
            from: lane.from,
            at: lane.at,
            end,
            place: lane.place.clone(),
            failures: lane.failures,
            limits: *limits,
        })
    }

    /// Leases what was read; none where there was nothing, or where the cursor has moved meanwhile.
    pub(super) fn lease_read(&mut self, backend: usize, log: usize, read: Read, until: u64) -> Option<Lease> {
        let (records, missing) = self.backends[backend].cursors[log].lease_read(read, until)?;
        let destination = Arc::clone(&self.logs[log].destination);
        for Missing { size, from, until } in missing {
            self.backends[backend].give_up(&mut self.gaps, DropReason::Corrupt, size, (&destination, from, until));
        }
        self.note_progress();
        (!records.is_empty()).then(|| Lease::new(log, &destination, records))
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
        self.note_progress();
    }

    pub(super) fn give_back(&mut self, backend: usize, lease: &Lease) {
        for record in &lease.records {
            self.backends[backend].cursors[lease.log].give_back(record);
        }
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn dropped_lines(&self) -> Vec<u64> {
        self.backends.iter().map(|backend| backend.ledger.dropped.iter().sum()).collect()
    }

    pub(super) fn snapshot(&self, now: Received) -> Snapshot {
        let oldest = |backend: &Backend| {
            let pending = self.logs.iter().zip(&backend.cursors);
            let ages = pending.flat_map(|(log, cursor)| {
                let (record, since) = cursor.oldest_pending(log.tail(self.next_sequence));
                let in_memory = record.map(|record| {
                    now.monotonic.saturating_duration_since(record.batch.received.monotonic).as_secs_f64()
                });
                let on_disk = since.map(|since| now.wall.saturating_sub(since) as f64 / 1e9);
                [in_memory, on_disk]
            });
            ages.flatten().fold(0.0, f64::max)
        };
        Snapshot {
            appended_lines: self.appended_lines,
            memory_bytes: self.memory.load(Ordering::Relaxed),
            ledgers: self.backends.iter().map(|backend| backend.ledger.clone()).collect(),
            oldest_pending_seconds: self.backends.iter().map(oldest).collect(),
            gaps: self.gaps.iter().cloned().collect(),
            disk: self.disk_figures(),
        }
    }

    /// The place of a destination's log, which is made where there is none.
    pub(super) fn log_of(&mut self, destination: &Arc<Destination>) -> usize {
        let known = self
            .logs
            .iter()
            .position(|log| Arc::ptr_eq(&log.destination, destination) || log.destination == *destination);
        known.unwrap_or_else(|| {
            self.logs.push(Log::new(Arc::clone(destination), Position::default()));
            for backend in &mut self.backends {
                backend.cursors.push(Cursor::new(self.next_sequence, Position::default()));
            }
            self.logs.len() - 1
        })
    }

    /// Lets the oldest records go until there is room for this many bytes more; false where there is none.
    fn make_room(&mut self, bytes: u64) -> bool {
        while self.memory.load(Ordering::Relaxed) + bytes > self.memory_bound {
            let pinned = self.disk.as_ref().map_or(0..0, Disk::being_written);
            // What is on its way would not free its memory, and what is not on the disk yet would be lost with a crash.
            let is_pinned = |log: usize, record: &Record| {
                let is_leased = |backend: &Backend| backend.cursors[log].has_leased(record.sequence);
                record.written().is_none() && (pinned.contains(&record.sequence) || self.backends.iter().any(is_leased))
            };
            let candidates = self.logs.iter().enumerate().filter_map(|(place, log)| {
                let first = log.records.iter().position(|record| !is_pinned(place, record))?;
                Some((log.records[first].sequence, place, first))
            });
            let candidate = candidates.min();
            let is_written = |(_, log, place): (u64, usize, usize)| self.logs[log].records[place].written().is_some();
            // What was given back and is on the disk can be read again: nothing is lost for its sake.
            if !candidate.is_some_and(is_written) && self.release_returned() {
                continue;
            }
            let Some((_, log, place)) = candidate else { return false };
            self.forget(log, place);
        }
        true
    }

    /// Lets go of what was given back and can be read from the disk again; false where there is none.
    fn release_returned(&mut self) -> bool {
        let mut has_released = false;
        for (place, log) in self.logs.iter().enumerate() {
            for backend in &mut self.backends {
                has_released |= backend.cursors[place].release_returned(log.tail(self.next_sequence));
            }
        }
        has_released
    }

    /// Lets one record in memory go: what was written is read from the disk, what was not is lost.
    pub(super) fn forget(&mut self, log: usize, place: usize) {
        let reason = self.disk.as_ref().map_or(DropReason::MemoryFull, Disk::reason);
        let Log { records, destination, .. } = &mut self.logs[log];
        let Some(record) = records.remove(place) else { return };
        let (size, wall) = (record.end(Position::default()), record.batch.received.wall);
        for backend in &mut self.backends {
            if record.written().is_some() {
                backend.cursors[log].fall_behind(&record);
            } else if backend.cursors[log].fall_off(&record) {
                backend.give_up(&mut self.gaps, reason, size, (destination, wall, wall));
            }
        }
        // The watermark of a cursor that lost its lowest record rises over what it had settled behind that.
        self.retire(log);
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
