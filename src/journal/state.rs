//! What the journal's lock guards: the memory tail, the cursors, the ledgers, and what is known of the disk.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
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
    /// Where it is.
    pub(super) address: String,
    /// Where it was when the journal last saw it, where that was elsewhere: whether it is the same server is not known.
    pub(super) moved_from: Option<String>,
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
        let super::BackendSetup { name, address, replay_share } = setup.clone();
        Self { name, address, replay_share, ..Self::default() }
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
        let memory_only: Vec<MemoryOnly> = self.backends.iter().map(|backend| self.memory_only(backend)).collect();
        let oldest_memory_only = memory_only.iter().filter_map(|one| one.since).min();
        let unkept = oldest_memory_only.map(|since| now.monotonic.saturating_duration_since(since));
        Snapshot {
            appended_lines: self.appended_lines,
            memory_bound: self.memory_bound,
            memory_only_lines: memory_only.iter().map(|one| one.lines).collect(),
            memory_bytes: self.memory.load(Ordering::Relaxed),
            ledgers: self.backends.iter().map(|backend| backend.ledger.clone()).collect(),
            oldest_pending_seconds: self.backends.iter().map(oldest).collect(),
            gaps: self.gaps.iter().cloned().collect(),
            disk: self.disk_figures(unkept.unwrap_or_default()),
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

    /// Records below this sequence have left the disk, whether or not they were written: the quota, the age or the floor took
    /// their segment. What of them is in memory is all there is.
    fn kept_from(&self) -> u64 {
        self.disk.as_ref().map_or(0, Disk::first_sequence)
    }

    /// Lets the oldest records go until there is room for this many bytes more; false where there is none.
    fn make_room(&mut self, bytes: u64) -> bool {
        while self.memory.load(Ordering::Relaxed) + bytes > self.memory_bound {
            let (pinned, kept_from) = (self.disk.as_ref().map_or(0..0, Disk::being_written), self.kept_from());
            let candidates = self.logs.iter().enumerate().filter_map(|(place, log)| {
                let first = self.first_to_forget(place, &pinned, kept_from)?;
                Some((log.records[first].sequence, place, first))
            });
            let candidate = candidates.min();
            let is_on_disk = |(_, log, place): (u64, usize, usize)| self.logs[log].records[place].is_on_disk(kept_from);
            // What was given back and is on the disk can be read again: nothing is lost for its sake.
            if !candidate.is_some_and(is_on_disk) && self.release_returned() {
                continue;
            }
            let Some((_, log, place)) = candidate else { return false };
            self.forget(log, place);
        }
        true
    }

    /// The place of the oldest record of a log that may leave the memory. What is on its way would not free its memory, and
    /// what is not on the disk would be lost with a crash. Of those that have left the disk the oldest goes first: cursors
    /// pass them in order.
    fn first_to_forget(&self, log: usize, pinned: &Range<u64>, kept_from: u64) -> Option<usize> {
        let is_leased =
            |record: &Record| self.backends.iter().any(|backend| backend.cursors[log].has_leased(record.sequence));
        let is_pinned =
            |record: &Record| !record.is_on_disk(kept_from) && (pinned.contains(&record.sequence) || is_leased(record));
        let records = &self.logs[log].records;
        let left_disk = records.partition_point(|record| record.has_left_disk(kept_from));
        let skipped = if left_disk > 0 && is_pinned(&records[0]) { left_disk } else { 0 };
        records.iter().skip(skipped).position(|record| !is_pinned(record)).map(|place| skipped + place)
    }

    /// Lets go of what was given back and can be read from the disk again; false where there is none.
    fn release_returned(&mut self) -> bool {
        let (mut has_released, kept_from) = (false, self.kept_from());
        for (place, log) in self.logs.iter().enumerate() {
            for backend in &mut self.backends {
                has_released |= backend.cursors[place].release_returned(log.tail(self.next_sequence), kept_from);
            }
        }
        has_released
    }

    /// Lets one record in memory go: what is on the disk is read from there, what is not is lost.
    pub(super) fn forget(&mut self, log: usize, place: usize) {
        let reason = self.disk.as_ref().map_or(DropReason::MemoryFull, Disk::reason);
        let kept_from = self.kept_from();
        let Log { records, destination, .. } = &mut self.logs[log];
        let Some(record) = records.remove(place) else { return };
        let reason = if record.has_left_disk(kept_from) { DropReason::Quota } else { reason };
        let (size, wall) = (record.end(Position::default()), record.batch.received.wall);
        for backend in &mut self.backends {
            if record.is_on_disk(kept_from) {
                backend.cursors[log].fall_behind(&record, records);
            } else if backend.cursors[log].fall_off(&record, records) {
                backend.give_up(&mut self.gaps, reason, size, (destination, wall, wall));
            }
        }
        // The watermark of a cursor that lost its lowest record rises over what it had settled behind that.
        self.retire(log);
    }

    /// Returns every lease: whoever had them is gone.
    pub(super) fn requeue_leases(&mut self) {
        self.backends.iter_mut().flat_map(|backend| &mut backend.cursors).for_each(Cursor::give_all_back);
    }

    /// Gives up what is not on the disk, at the end; returns each backend's lines. `reason` is that of what was never written.
    pub(super) fn give_up_memory_only(&mut self, reason: DropReason) -> Vec<u64> {
        let (kept_from, before) = (self.kept_from(), self.dropped_lines());
        for place in 0..self.logs.len() {
            let log = &mut self.logs[place];
            let records = std::mem::take(&mut log.records).into_iter();
            let (kept, gone): (VecDeque<Arc<Record>>, VecDeque<Arc<Record>>) =
                records.partition(|record| record.is_on_disk(kept_from));
            log.records = kept;
            for backend in &mut self.backends {
                let cursor = &mut backend.cursors[place];
                let mut lost: Vec<_> =
                    gone.iter().filter(|record| cursor.fall_off(record, &log.records)).map(Arc::clone).collect();
                // What was read from the disk and given back is in no log.
                lost.extend(cursor.take_returned(kept_from));
                for record in lost {
                    let (size, wall) = (record.end(Position::default()), record.batch.received.wall);
                    let reason = if record.has_left_disk(kept_from) { DropReason::Quota } else { reason };
                    backend.give_up(&mut self.gaps, reason, size, (&log.destination, wall, wall));
                }
            }
            self.retire(place);
        }
        self.note_progress();
        self.dropped_lines().iter().zip(before).map(|(after, before)| after - before).collect()
    }

    /// The lines of a backend that are in memory only, and when the oldest of them was received.
    fn memory_only(&self, backend: &Backend) -> MemoryOnly {
        let kept_from = self.kept_from();
        let mut sum = MemoryOnly::default();
        for (log, cursor) in self.logs.iter().zip(&backend.cursors) {
            let left_disk = log.records.iter().take_while(|record| record.has_left_disk(kept_from));
            let unwritten = log.records.iter().rev().take_while(|record| record.written().is_none());
            for record in left_disk.chain(unwritten).filter(|record| cursor.is_yet_to_lease(record)) {
                sum.add(record);
            }
            cursor.held().filter(|record| !record.is_on_disk(kept_from)).for_each(|record| sum.add(record));
        }
        sum
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

/// Lines of a backend that are in memory only.
#[derive(Clone, Copy, Debug, Default)]
struct MemoryOnly {
    lines: u64,
    /// When the oldest of them was received; none where there is none.
    since: Option<Instant>,
}

impl MemoryOnly {
    fn add(&mut self, record: &Record) {
        let received = record.batch.received.monotonic;
        self.lines += record.batch.lines;
        self.since = Some(self.since.map_or(received, |since| since.min(received)));
    }
}

impl Lease {
    fn new(log: usize, destination: &Arc<Destination>, records: Vec<Arc<Record>>) -> Self {
        let lines = records.iter().map(|record| record.batch.lines).sum();
        let bytes = records.iter().map(|record| record.bytes()).sum();
        Self { destination: Arc::clone(destination), records, lines, bytes, log }
    }
}
