//! The ordered log of records, and every backend's cursors in it.
//!
//! Owns: the ring in front of the log ([`ring()`]), the numbering of records, the memory tail and
//! its bound in bytes, one cursor for each backend **and** destination (so that one missing
//! database never blocks another), each backend's [`Ledger`], the gap ledger, and the log on disk
//! ([`disk`]) behind the memory.
//!
//! The interface does not depend on where records are kept:
//!
//! * [`Journal::append`] numbers a sealed batch; [`Journal::take`] does the same with the ring's
//!   oldest batch. Only one thread appends.
//! * [`Reader::next`] waits until a destination has enough records to be worth a request, and
//!   leases consecutive records from memory or from disk. Several leases may be out at once.
//! * [`Reader::ack`] acknowledges leases in any order. [`Reader::requeue`] returns a lease; its
//!   records are leased again before anything newer.
//! * A record stays in memory until every backend has acked it, or until the memory is full.
//!   Backends that lag then read a written record from disk. A record that is only in memory is
//!   lost to them, and each counts its lines as dropped (`memory_full`).
//!
//! | folder | knows | never does |
//! |---|---|---|
//! | `state` | every decision about records, under the lock | I/O |
//! | `segment` | bytes: segments, frames, slots, storage | cursors |
//! | [`disk`] | both: writing, syncing, reading a backlog, recovery, inspection | decisions |
//!
//! Dependencies point one way: `disk` uses `shared`, `shared` uses `state`, and all use `segment`.
//! A test enforces it.
//!
//! Never does: network I/O, or waiting in `append`. The lock is taken once per batch, lease and
//! answer, never per line, and is never held during disk I/O.

pub mod disk;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod reader;
pub mod ring;
mod segment;
mod shared;
mod state;

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::batch::{Batch, Received, Span};
use disk::{DiskOptions, DiskThreads, OpenError, Storage, Syncer, Writer};
use ring::{Consumer, RingLoss};
use shared::{Files, Shared};
use state::gaps::{Gaps, Loss};
use state::{Backend, State};

pub use crate::batch::WallTime;
pub use reader::Reader;
pub use ring::ring;
pub use segment::Sequence;
pub use state::BackendConfig;
pub use state::complete::Completeness;
pub use state::figures::Snapshot;
pub use state::gaps::{Gap, GapReason, Suspicion};
pub use state::id::{BackendId, LogId};
pub use state::lease::Lease;
pub use state::ledger::{DropReason, Ledger, Rejection};
pub use state::limits::Limits;
pub use state::record::Record;

/// How often to check whether a backend has reached a barrier.
const BARRIER_POLL: Duration = Duration::from_millis(10);

/// What a crash may cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Records are kept in memory only: a crash loses everything undelivered.
    Memory,
    /// Records are written at once and synced at intervals: a killed process loses nothing, a power
    /// cut loses what was not synced.
    #[default]
    Written,
    /// Records are synced at once, several together: a power cut loses only what was being synced.
    Synced,
}

/// The journal. Clones share one state.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
}

impl Journal {
    /// Creates an empty journal that keeps at most `memory` bytes of records, and nothing on disk.
    pub fn new(memory: u64, backends: &[BackendConfig]) -> Self {
        Self::with(State::new(memory, backends.iter().map(Backend::new).collect()), None)
    }

    /// Opens the journal in a folder. [`Self::start_disk`] starts the threads that write to it.
    ///
    /// # Errors
    /// The disk fails, or a newer version wrote the files. Damage is not an error.
    pub fn open(
        storage: Arc<dyn Storage>,
        options: &DiskOptions,
        memory: u64,
        backends: &[BackendConfig],
    ) -> Result<Self, OpenError> {
        let (state, files) = disk::open(storage, options, memory, backends)?;
        Ok(Self::with(state, Some(files)))
    }

    fn with(state: State, disk: Option<Files>) -> Self {
        let wake = state.backends.iter().map(|_| Notify::new()).collect();
        let shared = Shared { state: Mutex::new(state), wake, work: Condvar::new(), sync: Condvar::new(), disk };
        Self { shared: Arc::new(shared) }
    }

    /// Returns the writer; at most one may exist per journal. `None` for an in-memory journal.
    pub fn writer(&self) -> Option<Writer> {
        self.shared.disk.as_ref().map(|_| Writer::new(Arc::clone(&self.shared)))
    }

    /// Returns the syncer; at most one may exist per journal. `None` for an in-memory journal.
    pub fn syncer(&self) -> Option<Syncer> {
        self.shared.disk.as_ref().map(|_| Syncer::new(Arc::clone(&self.shared)))
    }

    /// Starts the threads that write and sync the journal's disk. `None` for an in-memory journal.
    /// If the folder is removed or replaced meanwhile, `guard` ensures that no other process uses
    /// the new one.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn start_disk(&self, guard: impl Fn() -> io::Result<()> + Send + 'static) -> io::Result<Option<DiskThreads>> {
        self.shared.disk.as_ref().map(|_| DiskThreads::start(&self.shared, guard)).transpose()
    }

    /// Numbers a batch and makes it available to every backend.
    pub fn append(&self, batch: Batch) {
        let woken = self.shared.lock().append(batch);
        self.wake(woken);
    }

    /// Appends the ring's oldest batch. Returns `false` if the ring is empty. A snapshot sees the
    /// batch either in the ring or in the journal ([`Self::snapshot_with`]).
    pub fn take(&self, ring: &Consumer) -> bool {
        let mut state = self.shared.lock();
        let Some(batch) = ring.pop() else { return false };
        let woken = state.append(batch);
        drop(state);
        self.wake(woken);
        true
    }

    fn wake(&self, woken: Vec<BackendId>) {
        for backend in woken {
            self.shared.wake[backend.index()].notify_one();
        }
        self.shared.work.notify_one();
    }

    /// Whether records arrive faster than they are written or delivered, so that some will soon be
    /// lost, and waiting a moment would help.
    pub fn is_pressed(&self) -> bool {
        self.shared.lock().is_pressed(Instant::now())
    }

    /// Whether new records would be lost: the memory is used up, and neither the disk nor the
    /// backends free any.
    pub fn is_full(&self) -> bool {
        self.shared.lock().is_full(Instant::now())
    }

    /// Makes one backend owed lines once more, given the numbers of their dead letters. The lines
    /// wait in memory.
    pub fn resend(&self, backend: BackendId, batch: Batch, letters: Vec<u64>) {
        self.shared.lock().resend(backend, batch, letters);
        self.shared.wake[backend.index()].notify_one();
    }

    /// Creates a backend's reader. Create one for each backend.
    pub fn reader(&self, backend: BackendId) -> Reader {
        Reader::new(Arc::clone(&self.shared), backend)
    }

    /// The journal's unique number. `None` for an in-memory journal.
    pub fn identity(&self) -> Option<u64> {
        self.shared.disk.as_ref().map(|files| files.journal)
    }

    /// What a backend lacks of a database's points in this range, compared with the others of its
    /// group. `None` for `database` means all databases.
    pub fn completeness(
        &self,
        backend: BackendId,
        database: Option<&str>,
        range: &Span,
        others: &[BackendId],
    ) -> Completeness {
        self.shared.lock().completeness(backend, database, range, others)
    }

    /// Sets a barrier behind everything appended so far. These backends receive nothing newer of
    /// the database until they [pass](Self::pass_barrier) it. Returns the barrier's sequence.
    pub fn set_barrier(&self, backends: &[BackendId], database: Option<&str>) -> Sequence {
        self.shared.lock().set_barrier(backends, database)
    }

    /// Restores a barrier that was set before a restart.
    pub fn restore_barrier(&self, backends: &[BackendId], sequence: Sequence, database: Option<&str>) {
        self.shared.lock().restore_barrier(backends, sequence, database);
    }

    /// Waits until a backend has everything before a barrier.
    pub async fn reach_barrier(&self, backend: BackendId, sequence: Sequence) {
        // Polling is cheap enough: statements are few, and a request takes longer than the
        // interval.
        while !self.is_at_barrier(backend, sequence) {
            tokio::time::sleep(BARRIER_POLL).await;
        }
    }

    /// Whether a backend has everything before a barrier.
    pub fn is_at_barrier(&self, backend: BackendId, sequence: Sequence) -> bool {
        self.shared.lock().is_at_barrier(backend, sequence)
    }

    /// Lets a backend continue past a barrier.
    pub fn pass_barrier(&self, backend: BackendId, sequence: Sequence) {
        self.shared.lock().pass_barrier(backend, sequence);
        self.shared.wake[backend.index()].notify_one();
    }

    /// Records losses for want of room in the ring: no backend has these lines.
    pub fn note_lost(&self, lost: &[RingLoss]) {
        if !lost.is_empty() {
            self.shared.lock().note_lost(lost.iter().map(|one| Loss {
                destination: &one.destination,
                lines: one.lines,
                received: (Some(one.received.0), one.received.1),
                points: one.points,
                is_unsure: false,
            }));
            self.shared.sync.notify_all();
        }
    }

    /// Closes a backend's gaps: somebody who knows vouches that its copy is complete. Returns how
    /// many were closed.
    pub fn vouch(&self, backend: BackendId) -> usize {
        self.change_gaps(backend, Gaps::vouch)
    }

    /// Replaces what was suspected of a backend by what the pair's other relay owed it when it went
    /// down. `None`: nothing is suspected.
    pub fn replace_suspicion(&self, backend: BackendId, suspicion: Option<Suspicion>) {
        self.change_gaps(backend, |gaps, name| gaps.replace_suspicion(name, suspicion));
    }

    /// What is suspected of a backend. `None` if nothing is, or if an operator has vouched for it.
    pub fn suspicion(&self, backend: BackendId) -> Option<Suspicion> {
        let state = self.shared.lock();
        let name = &state.backends[backend].name;
        let gap = state.gaps.iter().find(|gap| gap.reason == GapReason::Peer && gap.backend == *name)?;
        Some(Suspicion { received: (gap.from, gap.until), points: gap.points, lines: gap.lines })
    }

    /// Waits until everything appended so far is written. Returns whether that happened in time;
    /// always `true` without a disk.
    pub fn wait_written(&self, limit: Duration) -> bool {
        let (until, sequence) = (Instant::now() + limit, self.shared.lock().next_sequence);
        while !self.shared.lock().is_written_below(sequence) {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(BARRIER_POLL);
        }
        true
    }

    fn change_gaps<T>(&self, backend: BackendId, change: impl FnOnce(&mut Gaps, &str) -> T) -> T {
        let mut state = self.shared.lock();
        let name = state.backends[backend].name.clone();
        let changed = change(&mut state.gaps, &name);
        drop(state);
        self.shared.sync.notify_all();
        changed
    }

    /// Ends all waiting: from now on [`Reader::next`] leases what is left, then returns `None`.
    pub fn close(&self) {
        self.shared.lock().close();
        for wake in &self.shared.wake {
            wake.notify_one();
        }
    }

    /// For each backend whose address has changed, the address at which the journal last saw it.
    /// Records kept under its name are owed to that server: nothing may be sent until somebody
    /// states that both are the same server ([`disk::inspect::moved`]) or that they are not
    /// ([`disk::inspect::forget`]).
    pub fn moved_from(&self) -> Vec<Option<String>> {
        self.shared.lock().backends.iter().map(|backend| backend.moved_from.clone()).collect()
    }

    /// Requeues every lease that is out. Call it once all lease holders are gone.
    pub fn requeue_leases(&self) {
        self.shared.lock().requeue_leases();
    }

    /// Lines that the journal has dropped so far, for each backend.
    pub fn dropped_lines(&self) -> Vec<u64> {
        self.shared.lock().dropped_lines()
    }

    /// Takes all figures at one moment.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_with(|| ()).0
    }

    /// Takes all figures, and what `beside` reads at the same moment; nothing is taken from the
    /// ring meanwhile.
    pub fn snapshot_with<T>(&self, beside: impl FnOnce() -> T) -> (Snapshot, T) {
        let state = self.shared.lock();
        (state.snapshot(Received::now()), beside())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Destination, Span};
    use crate::protocol::Precision;

    #[test]
    fn pending_lines_are_counted_where_they_are() {
        let backend = BackendConfig { name: "a".to_owned(), address: String::new(), replay_share: 0.5 };
        let journal = Journal::new(1 << 20, &[backend]);
        let destination = Arc::new(Destination::new("db", "", Precision::Nanoseconds));
        for lines in [1, 20, 300] {
            let bytes = vec![b'x'; usize::try_from(lines).expect("small") * 2];
            let destination = Arc::clone(&destination);
            journal.append(Batch::new(destination, bytes, lines, Received::now()).with_capacity(0));
        }
        let pending = || {
            let ledger = journal.snapshot().ledgers.remove(0);
            (ledger.pending, ledger.pending_bytes)
        };
        assert_eq!(pending(), (321, 642));
        let mut reader = journal.reader(BackendId::new(0));
        let limits = Limits { lines: 1, bytes: 1 << 20, linger: Duration::ZERO };
        let lease = reader.try_next(&limits).expect("a lease");
        assert_eq!(pending(), (321, 642), "what is leased is pending");
        reader.ack(lease, None);
        assert_eq!(pending(), (320, 640));
        let lease = reader.try_next(&limits).expect("a lease");
        reader.requeue(lease);
        assert_eq!(pending(), (320, 640));
        // A lost record is not pending for ever: the ledger's identity fails instead.
        journal.shared.lock().logs[0].records.pop_back();
        assert_eq!(pending(), (20, 40));
    }

    #[test]
    fn what_found_no_room_is_every_backends_gap_and_makes_none_worse() {
        let setup = |name: &str| BackendConfig { name: name.to_owned(), address: String::new(), replay_share: 0.5 };
        let journal = Journal::new(1 << 20, &[setup("a"), setup("b")]);
        let destination = Destination::new("db", "", Precision::Nanoseconds);
        let points = Span { from: 5, until: 9 };
        journal.note_lost(&[]);
        journal.note_lost(&[RingLoss { destination, lines: 7, received: (WallTime::at(1), WallTime::at(2)), points }]);
        let gaps = journal.shared.lock().gaps.iter().cloned().collect::<Vec<_>>();
        let seen: Vec<_> = gaps.iter().map(|gap| (gap.backend.as_str(), gap.lines, gap.reason.name())).collect();
        assert_eq!(seen, [("a", 7, "ring_full"), ("b", 7, "ring_full")]);
        assert!(journal.completeness(BackendId::new(0), Some("db"), &points, &[BackendId::new(1)]).is_complete());
        assert_eq!(journal.dropped_lines(), [0, 0], "the worker that lost them counts them");
        // If one copy was repaired, the other one lacks the lines.
        journal.vouch(BackendId::new(1));
        assert_eq!(journal.completeness(BackendId::new(0), Some("db"), &points, &[BackendId::new(1)]).gap_count, 1);
    }
}
