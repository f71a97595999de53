//! What the journal's lock guards: the memory tail, the cursors, the ledgers, and the disk index.
//!
//! Owns: every decision about records: who leases what, who has acked it, what leaves the memory,
//! what is lost and why. Never does: I/O, waiting, logging (except the index, which logs changes of
//! the disk's condition). Bounds: the memory of all records; each part states its own.
//!
//! | part | owns |
//! |---|---|
//! | [`lease`], [`backlog`] | what a backend takes at once, from memory or by way of the disk |
//! | [`cursor`], [`lane`], [`tail`] | one backend's progress in one destination |
//! | [`memory`] | the memory bound, and which records leave the memory |
//! | [`index`], [`writing`], [`removal`] | what is on disk, what is written next, which segments are removed |
//! | [`resent`] | lines that one backend is owed once more |
//! | [`renewal`] | what remains when the disk has lost everything |
//! | [`barrier`] | where a backend waits for a statement |
//! | [`complete`] | which backend has what |
//! | [`ledger`], [`gaps`], [`figures`] | what became of every line, and how that is shown |

pub(in crate::journal) mod backlog;
pub(in crate::journal) mod barrier;
pub(in crate::journal) mod complete;
pub(in crate::journal) mod cursor;
pub(in crate::journal) mod figures;
pub(in crate::journal) mod gaps;
pub(in crate::journal) mod id;
pub(in crate::journal) mod index;
pub(in crate::journal) mod lane;
pub(in crate::journal) mod lease;
pub(in crate::journal) mod ledger;
pub(in crate::journal) mod limits;
mod memory;
pub(in crate::journal) mod options;
pub(in crate::journal) mod record;
mod removal;
mod renewal;
mod resent;
pub(in crate::journal) mod saved;
pub(in crate::journal) mod tail;
pub(in crate::journal) mod writing;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::{Index, IndexMut};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use crate::batch::{Batch, Destination, Span, Step, Ticket, WallTime};
use crate::journal::segment::{Position, Sequence};
use backlog::{Read, Request};
use barrier::{Barrier, open_below};
use cursor::Cursor;
use gaps::{Gap, Gaps, Loss};
use id::{BackendId, LogId};
use index::DiskIndex;
use lane::Missing;
use lease::{Lease, Ready};
use ledger::{DropReason, Ledger, Rejection};
use limits::Limits;
use record::{Record, cost};
use resent::Resent;
use saved::{MovedAt, SavedBackend};
use tail::Tail;

/// A backend as the journal knows it.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// Its identity: its cursors are saved under this name.
    pub name: String,
    /// Its address. If the journal last saw this name at another address, it may belong to another
    /// server: see [`Journal::moved_from`](crate::journal::Journal::moved_from).
    pub address: String,
    /// The share of requests that a backlog on disk gets while fresh records wait, from 0 to 1.
    /// With 1 the order is strict: fresh records wait until the backlog is delivered.
    pub replay_share: f64,
}

#[derive(Debug)]
pub(in crate::journal) struct State {
    pub(in crate::journal) next_sequence: Sequence,
    /// Records below this sequence were found at the start. Backends may have some of them already,
    /// because a crash left their acks unsaved.
    pub(in crate::journal) found_below: Sequence,
    /// One for each destination ever seen. Destinations come from the configuration, so there are
    /// few.
    pub(in crate::journal) logs: Vec<Log>,
    pub(in crate::journal) backends: Vec<Backend>,
    /// Saved backends that the configuration no longer has.
    pub(in crate::journal) orphans: Vec<SavedBackend>,
    pub(in crate::journal) gaps: Gaps,
    /// The bound of `memory`, in bytes.
    pub(in crate::journal) memory_bound: u64,
    /// Bytes held by all living records, wherever they are.
    pub(in crate::journal) memory: Arc<AtomicU64>,
    appended_lines: u64,
    closed: bool,
    /// Since when the memory has been scarce without any record being written.
    pub(in crate::journal) scarce_since: Option<Instant>,
    /// Tickets of records that are written and not synced, by sequence. Empty unless records are
    /// synced at once.
    tickets: VecDeque<(Sequence, Arc<Ticket>)>,
    /// `None` if records are kept in memory only.
    pub(in crate::journal) disk: Option<DiskIndex>,
}

/// The records of one destination, oldest first.
#[derive(Debug)]
pub(in crate::journal) struct Log {
    pub(in crate::journal) destination: Arc<Destination>,
    pub(in crate::journal) records: VecDeque<Arc<Record>>,
    /// What was written of it.
    pub(in crate::journal) written: Position,
}

impl Log {
    pub(in crate::journal) fn new(destination: Arc<Destination>, written: Position) -> Self {
        Self { destination, records: VecDeque::new(), written }
    }

    pub(in crate::journal) fn tail(&self, next_sequence: Sequence) -> Tail<'_> {
        Tail { records: &self.records, written: self.written, next_sequence }
    }
}

#[derive(Debug, Default)]
pub(in crate::journal) struct Backend {
    pub(in crate::journal) name: String,
    /// Its address.
    pub(in crate::journal) address: String,
    /// Where the journal last saw it, if that was another address: it is unknown whether it is the
    /// same server.
    pub(in crate::journal) moved_from: Option<String>,
    /// Where the log ended when the move was found.
    pub(in crate::journal) moved_at: Option<MovedAt>,
    /// The share of requests that the backlog gets while fresh records wait; 1 is strict order.
    replay_share: f64,
    /// The share that the backlog has saved up.
    credit: f64,
    /// One per log.
    pub(in crate::journal) cursors: Vec<Cursor>,
    /// Logs of which it has, or had, lines.
    pub(in crate::journal) taken: BTreeSet<LogId>,
    /// Records that it has not acked, but of which it has some lines.
    partly: BTreeSet<Sequence>,
    pub(in crate::journal) ledger: Ledger,
    pub(in crate::journal) resent: Resent,
    /// Where it waits, by sequence.
    pub(in crate::journal) barriers: Vec<Barrier>,
    /// The limits that the backend waits for, if it waits.
    waiting: Option<Limits>,
}

impl Backend {
    pub(in crate::journal) fn new(setup: &BackendConfig) -> Self {
        let BackendConfig { name, address, replay_share } = setup.clone();
        Self { name, address, replay_share, ..Self::default() }
    }

    /// Gives lines up, and records the gap for whoever repairs the mirror.
    pub(in crate::journal) fn give_up(&mut self, gaps: &mut Gaps, reason: DropReason, loss: Loss<'_>) {
        self.ledger.drop_lines(reason, loss.lines);
        gaps.note(Gap::of(&self.name, loss, reason));
    }
}

impl State {
    pub(in crate::journal) fn new(memory_bound: u64, backends: Vec<Backend>) -> Self {
        Self {
            next_sequence: Sequence::FIRST,
            found_below: Sequence::FIRST,
            logs: Vec::new(),
            backends,
            orphans: Vec::new(),
            gaps: Gaps::default(),
            memory_bound,
            memory: Arc::new(AtomicU64::new(0)),
            appended_lines: 0,
            closed: false,
            scarce_since: None,
            tickets: VecDeque::new(),
            disk: None,
        }
    }

    /// Reports unsynced records as lost to whoever waits for them. They may be sent again: the same
    /// points are stored once.
    fn lose_unsynced(&mut self) {
        self.tickets.drain(..).for_each(|(_, ticket)| ticket.lose());
    }

    /// Appends a batch. Returns the backends that have a reason to poll.
    pub(in crate::journal) fn append(&mut self, batch: Batch) -> Vec<BackendId> {
        let log = self.log_of(batch.destination());
        self.appended_lines += batch.lines();
        if !self.make_room(cost(&batch)) {
            // Records on their way to backends fill the memory, so only the newest can be given up.
            for backend in &mut self.backends {
                backend.give_up(&mut self.gaps, DropReason::MemoryFull, Loss::of_batch(&batch));
            }
            batch.lose();
            return Vec::new();
        }
        let record = Record::new(self.next_sequence, batch, None, &self.memory);
        let mut woken = Vec::new();
        let tail = self.logs[log].tail(self.next_sequence);
        for (id, backend) in BackendId::all().zip(&mut self.backends) {
            let cursor = &mut backend.cursors[log];
            let was_idle = cursor.first_available(tail).is_none();
            cursor.append(&record);
            if backend.waiting.is_some_and(|limits| was_idle || cursor.is_full(&limits)) {
                backend.waiting = None;
                woken.push(id);
            }
        }
        self.next_sequence = self.next_sequence.next();
        record.batch.reach(Step::Accepted);
        self.logs[log].records.push_back(record);
        woken
    }

    /// Leases from the ready destination whose first record is the oldest. A backlog on disk gets
    /// its share of the leases; it is not read before `read_from`.
    pub(in crate::journal) fn lease(
        &mut self,
        backend: BackendId,
        limits: &Limits,
        parked: &HashMap<LogId, Instant>,
        read_from: Instant,
        now: Instant,
    ) -> Ready {
        if let Some(lease) = self.lease_resent(backend, parked, now) {
            return Ready::Lease(lease);
        }
        // The first sequence, and the log.
        let mut fresh: Option<(Sequence, LogId)> = None;
        let mut backlog: Option<(Sequence, LogId)> = None;
        let mut wake_at: Option<Instant> = None;
        let Backend { cursors, barriers, waiting, replay_share, credit, .. } = &mut self.backends[backend];
        for (id, (log, cursor)) in LogId::all().zip(self.logs.iter().zip(cursors.iter_mut())) {
            let tail = log.tail(self.next_sequence);
            let before = open_below(barriers, log.destination.database());
            let held_until = parked.get(&id).copied().unwrap_or(now);
            if *replay_share < 1.0 {
                cursor.split_backlog(tail);
            }
            if let Some((lane, _)) = cursor.backlog(tail).filter(|(lane, _)| lane.from < before) {
                let due = held_until.max(read_from);
                if due <= now {
                    backlog = Some(backlog.map_or((lane.from, id), |known| known.min((lane.from, id))));
                } else if !self.closed {
                    wake_at = Some(wake_at.map_or(due, |known| known.min(due)));
                }
            }
            let first = cursor.first_available(tail).filter(|first| first.sequence < before);
            let Some(first) = first else { continue };
            let due = first.batch.received().monotonic + limits.linger;
            let due = if self.closed || cursor.is_full(limits) { now } else { due };
            let due = due.max(held_until);
            if due <= now {
                fresh = Some(fresh.map_or((first.sequence, id), |known| known.min((first.sequence, id))));
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
            let before = open_below(barriers, destination.database());
            let records = cursors[log].lease(self.logs[log].tail(self.next_sequence), limits, before);
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

    /// What to read next from a cursor's backlog. `None` if there is no backlog.
    pub(in crate::journal) fn request(&self, backend: BackendId, log: LogId, limits: &Limits) -> Option<Request> {
        let tail = self.logs[log].tail(self.next_sequence);
        let (lane, end) = self.backends[backend].cursors[log].backlog(tail)?;
        let before = open_below(&self.backends[backend].barriers, self.logs[log].destination.database());
        (lane.from < before).then(|| Request {
            log,
            destination: Arc::clone(&self.logs[log].destination),
            from: lane.from,
            at: lane.at,
            end,
            resume: lane.resume.clone(),
            failures: lane.failures,
            before,
            limits: *limits,
            reserve: self.reserve_for(limits),
        })
    }

    /// Leases what was read. Returns `None` if nothing was read, or if the cursor has moved
    /// meanwhile.
    pub(in crate::journal) fn lease_read(
        &mut self,
        backend: BackendId,
        log: LogId,
        read: Read,
        until: WallTime,
    ) -> Option<Lease> {
        let (records, missing) = self.backends[backend].cursors[log].lease_read(read, until)?;
        let destination = Arc::clone(&self.logs[log].destination);
        for Missing { size, from, until } in missing {
            // The damage took the records, and with them their points' times.
            let points = Span::ALWAYS;
            let loss =
                Loss { destination: &destination, lines: size.lines, received: (from, until), points, is_unsure: true };
            self.backends[backend].give_up(&mut self.gaps, DropReason::Corrupt, loss);
        }
        self.note_progress();
        (!records.is_empty()).then(|| Lease::new(log, &destination, records))
    }

    pub(in crate::journal) fn ack(
        &mut self,
        backend: BackendId,
        lease: &Lease,
        rejected: &[(Rejection, u64)],
        now: Instant,
    ) {
        let Backend { cursors, ledger, taken, partly, .. } = &mut self.backends[backend];
        let delivered = ledger.ack(lease.lines, lease.bytes, rejected);
        if lease.letters.is_some() {
            self.ack_resent(backend, lease);
            return;
        }
        taken.insert(lease.log);
        for record in &lease.records {
            cursors[lease.log].ack(record.sequence);
            partly.remove(&record.sequence);
            if delivered > 0 {
                let latency = now.saturating_duration_since(record.batch.received().monotonic);
                ledger.record_latency(latency, record.batch.lines());
            }
        }
        self.retire(lease.log);
        self.note_progress();
    }

    pub(in crate::journal) fn requeue(&mut self, backend: BackendId, lease: &Lease) {
        if let Some(letters) = &lease.letters {
            self.requeue_resent(backend, lease, letters);
            return;
        }
        for record in &lease.records {
            self.backends[backend].cursors[lease.log].requeue(record);
        }
    }

    pub(in crate::journal) fn close(&mut self) {
        self.closed = true;
    }

    pub(in crate::journal) fn dropped_lines(&self) -> Vec<u64> {
        self.backends.iter().map(|backend| backend.ledger.dropped.iter().sum()).collect()
    }

    /// The log's end as it is now.
    pub(in crate::journal) fn end_of_log(&self) -> MovedAt {
        let written = self.logs.iter().map(|log| ((*log.destination).clone(), log.written));
        MovedAt { sequence: self.next_sequence, written: written.collect() }
    }

    /// A destination's log, created if missing.
    pub(in crate::journal) fn log_of(&mut self, destination: &Arc<Destination>) -> LogId {
        let known = self
            .logs
            .iter()
            .position(|log| Arc::ptr_eq(&log.destination, destination) || log.destination == *destination);
        LogId::new(known.unwrap_or_else(|| {
            self.logs.push(Log::new(Arc::clone(destination), Position::default()));
            for backend in &mut self.backends {
                backend.cursors.push(Cursor::new(self.next_sequence, Position::default()));
            }
            self.logs.len() - 1
        }))
    }

    pub(in crate::journal) fn disk(&mut self) -> &mut DiskIndex {
        self.disk.as_mut().expect("BUG: only a journal with a disk has a writer")
    }
}

macro_rules! indexed {
    ($item:ty, $id:ty) => {
        impl Index<$id> for Vec<$item> {
            type Output = $item;

            fn index(&self, id: $id) -> &$item {
                &self[id.index()]
            }
        }

        impl IndexMut<$id> for Vec<$item> {
            fn index_mut(&mut self, id: $id) -> &mut $item {
                &mut self[id.index()]
            }
        }
    };
}

indexed!(Log, LogId);
indexed!(Cursor, LogId);
indexed!(Backend, BackendId);

#[cfg(test)]
mod tests;
