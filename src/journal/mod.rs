//! The one ordered log of records, and every backend's cursors in it.
//!
//! Owns: the ring in front of it ([`ring()`]), the numbering of records, the memory tail with its bound in bytes,
//! a cursor for each backend **and** destination (so that one missing database never holds up another), each
//! backend's [`Ledger`], the gap ledger, and the log on the disk ([`disk`]) behind the memory.
//!
//! The interface, which does not depend on where records are kept:
//!
//! * [`Journal::append`] numbers a sealed batch. One thread appends.
//! * [`Reader::next`] waits until a destination has enough to be worth a request and leases its consecutive
//!   records, from memory or from the disk. Several leases may be out at once.
//! * [`Reader::settle`] acknowledges a lease, in any order; [`Reader::give_back`] returns it, and it is leased
//!   again before anything newer.
//! * A record stays in memory until every backend has settled it, or until the memory is full. A written record is
//!   then read from the disk by whoever lags; one that is only in memory is lost to those backends, which count its
//!   lines as dropped (`memory_full`).
//!
//! Never does: network, waiting in `append`. Its lock is taken per batch, lease and answer, never per line, and never
//! held while the disk works.

mod cursor;
pub mod disk;
mod gaps;
mod ledger;
mod record;
pub mod ring;
mod state;

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::batch::{Batch, Destination, Received};
use cursor::Read;
use disk::{DiskFigures, DiskOptions, Files, OpenError, Request, Storage, Syncer, Writer};
use state::{Backend, Ready, State};

pub use cursor::Limits;
pub use gaps::Gap;
pub use ledger::{DropReason, Ledger, Rejection};
pub use record::Record;
pub use ring::ring;

/// What a crash may cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Records are kept in memory only: a crash loses what was not delivered.
    Memory,
    /// Records are written to the disk at once and synced by interval: the process may be killed, a power cut costs
    /// what was not synced.
    #[default]
    Written,
    /// Records are synced at once, several together: a power cut costs what was being synced.
    Synced,
}

/// A backend as the journal knows it.
#[derive(Clone, Debug)]
pub struct BackendSetup {
    /// Its identity: under this name its cursors are kept.
    pub name: String,
    /// Where it is. A name that was elsewhere when the journal last saw it may be another server's: see
    /// [`Journal::moved_from`].
    pub address: String,
    /// The share of requests that a backlog on the disk gets while fresh records wait, from 0 to 1. With 1 the order
    /// is strict: fresh records wait until the backlog is delivered.
    pub replay_share: f64,
}

/// The journal. Clones share it.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// One for each backend: there may be something to lease.
    wake: Vec<Notify>,
    /// There may be something to write.
    work: Condvar,
    /// There may be something to sync.
    sync: Condvar,
    disk: Option<Files>,
}

impl Shared {
    /// The state. A thread that panicked while it held the lock left whole numbers behind: each change is made
    /// of steps that cannot fail.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal {
    /// An empty journal that keeps at most `memory` bytes of records, and nothing on a disk.
    pub fn new(memory: u64, backends: &[BackendSetup]) -> Self {
        Self::with(State::new(memory, backends.iter().map(Backend::new).collect()), None)
    }

    /// Opens the journal in a folder. Its [`Writer`] and [`Syncer`] are to be run, as the [`disk::Keeper`] does.
    ///
    /// # Errors
    /// The disk does not let it, or a newer version wrote there. Damage is no error.
    pub fn open(
        storage: Arc<dyn Storage>,
        options: &DiskOptions,
        memory: u64,
        backends: &[BackendSetup],
    ) -> Result<Self, OpenError> {
        let (state, files) = disk::open(storage, options, memory, backends)?;
        Ok(Self::with(state, Some(files)))
    }

    fn with(state: State, disk: Option<Files>) -> Self {
        let wake = state.backends.iter().map(|_| Notify::new()).collect();
        let shared = Shared { state: Mutex::new(state), wake, work: Condvar::new(), sync: Condvar::new(), disk };
        Self { shared: Arc::new(shared) }
    }

    /// The writing end of the disk, of which there is to be one; none where there is no disk.
    pub fn writer(&self) -> Option<Writer> {
        self.shared.disk.as_ref().map(|_| Writer::new(Arc::clone(&self.shared)))
    }

    /// The syncing end of the disk, of which there is to be one; none where there is no disk.
    pub fn syncer(&self) -> Option<Syncer> {
        self.shared.disk.as_ref().map(|_| Syncer::new(Arc::clone(&self.shared)))
    }

    /// Numbers a batch and makes it available to every backend.
    pub fn append(&self, batch: Batch) {
        let woken = self.shared.lock().append(batch);
        for backend in woken {
            self.shared.wake[backend].notify_one();
        }
        self.shared.work.notify_one();
    }

    /// Whether records come faster than they are written or delivered, so that soon some would be lost, and waiting for a
    /// moment would help.
    pub fn is_pressed(&self) -> bool {
        self.shared.lock().is_pressed(Instant::now())
    }

    /// The reading end of a backend. One is to be made for each.
    pub fn reader(&self, backend: usize) -> Reader {
        Reader {
            shared: Arc::clone(&self.shared),
            backend,
            parked: HashMap::new(),
            ahead: None,
            read_from: Instant::now(),
        }
    }

    /// Ends all waiting for more: from now on [`Reader::next`] leases what there is, and then returns none.
    pub fn close(&self) {
        self.shared.lock().close();
        for wake in &self.shared.wake {
            wake.notify_one();
        }
    }

    /// Where each backend was when the journal last saw it, where it is elsewhere now. What the journal keeps under its
    /// name is owed to that server: nobody may be sent any of it until somebody says that both are one
    /// ([`disk::inspect::moved`]), or that they are not ([`disk::inspect::forget`]).
    pub fn moved_from(&self) -> Vec<Option<String>> {
        self.shared.lock().backends.iter().map(|backend| backend.moved_from.clone()).collect()
    }

    /// Returns every lease that is out, once those who had them are gone.
    pub fn requeue_leases(&self) {
        self.shared.lock().requeue_leases();
    }

    /// Lines given up by the journal so far, for each backend.
    pub fn dropped_lines(&self) -> Vec<u64> {
        self.shared.lock().dropped_lines()
    }

    /// All figures, taken at one moment.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.lock().snapshot(Received::now())
    }
}

/// The journal's figures at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Lines that were appended since the start.
    pub appended_lines: u64,
    /// Memory held by records.
    pub memory_bytes: u64,
    /// The bound of that, in bytes.
    pub memory_bound: u64,
    /// Each backend's pending lines that are not on the disk.
    pub memory_only_lines: Vec<u64>,
    /// Each backend's ledger.
    pub ledgers: Vec<Ledger>,
    /// How long each backend's oldest pending line has waited, in seconds.
    pub oldest_pending_seconds: Vec<f64>,
    /// What was given up, and when it was received; oldest first.
    pub gaps: Vec<Gap>,
    /// The disk; none where records are kept in memory only.
    pub disk: Option<DiskFigures>,
}

/// Records of one destination that are on their way to a backend. It must be settled or given back.
#[derive(Debug)]
#[must_use = "a lease is settled or given back"]
pub struct Lease {
    /// Where the lines go.
    pub destination: Arc<Destination>,
    /// The records, oldest first.
    pub records: Vec<Arc<Record>>,
    /// Lines in all of them.
    pub lines: u64,
    /// Bytes in all of them.
    pub bytes: u64,
    log: usize,
}

/// One backend's reading end.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    backend: usize,
    /// Destinations not to be leased before a time: their backend holds them up.
    parked: HashMap<usize, Instant>,
    /// What is being read from the disk while a lease is out.
    ahead: Option<Ahead>,
    /// The disk is not read before this time.
    read_from: Instant,
}

/// A reading under way: for which log, and from which sequence on.
#[derive(Debug)]
struct Ahead {
    log: usize,
    from: u64,
    until: u64,
    reading: JoinHandle<Read>,
}

impl Reader {
    /// Waits for a destination that has a full lease or whose first record has lingered, and leases it. None
    /// once the journal is closed and nothing is left to lease. It may be dropped while it waits.
    pub async fn next(&mut self, limits: &Limits) -> Option<Lease> {
        loop {
            match self.look(limits) {
                Ready::Lease(lease) => return Some(lease),
                Ready::Read(request) => {
                    if let Some(lease) = self.read(request, limits).await {
                        return Some(lease);
                    }
                }
                Ready::Closed => return None,
                Ready::At(time) => drop(tokio::time::timeout_at(time.into(), self.woken()).await),
                Ready::Never => self.woken().await,
            }
        }
    }

    /// Waits for a reason to look again; one that came since the last look counts.
    async fn woken(&self) {
        self.shared.wake[self.backend].notified().await;
    }

    /// Leases what is ready now; reads from the disk on the calling thread.
    pub fn try_next(&mut self, limits: &Limits) -> Option<Lease> {
        loop {
            match self.look(limits) {
                Ready::Lease(lease) => return Some(lease),
                Ready::Read(request) => {
                    let (log, until) = (request.log, Received::now().wall);
                    let read = disk::load(&self.shared, request);
                    let lease = self.take_read(log, read, until);
                    if lease.is_some() {
                        return lease;
                    }
                }
                Ready::Closed | Ready::At(_) | Ready::Never => return None,
            }
        }
    }

    fn look(&mut self, limits: &Limits) -> Ready {
        let now = Instant::now();
        self.parked.retain(|_, until| *until > now);
        self.shared.lock().lease(self.backend, limits, &self.parked, self.read_from, now)
    }

    fn take_read(&mut self, log: usize, read: Read, until: u64) -> Option<Lease> {
        let mut state = self.shared.lock();
        if read.failed {
            self.read_from = Instant::now() + state.retry_after();
        }
        state.lease_read(self.backend, log, read, until)
    }

    /// Reads from the disk beside this thread, and then goes on reading ahead while the lease is out.
    async fn read(&mut self, request: Request, limits: &Limits) -> Option<Lease> {
        let (log, from) = (request.log, request.from);
        if self.ahead.as_ref().is_none_or(|ahead| (ahead.log, ahead.from) != (log, from)) {
            self.ahead = Some(self.read_ahead(request));
        }
        let Ahead { until, reading, .. } = self.ahead.as_mut()?;
        let (until, read) = (*until, reading.await);
        self.ahead = None;
        let lease = self.take_read(log, read.ok()?, until);
        if lease.is_some() && self.read_from <= Instant::now() {
            let next = self.shared.lock().request(self.backend, log, limits);
            self.ahead = next.map(|request| self.read_ahead(request));
        }
        lease
    }

    fn read_ahead(&self, request: Request) -> Ahead {
        let (log, from, until) = (request.log, request.from, Received::now().wall);
        let shared = Arc::clone(&self.shared);
        Ahead { log, from, until, reading: tokio::task::spawn_blocking(move || disk::load(&shared, request)) }
    }

    /// Acknowledges a lease: its lines are delivered, but for those that the backend rejected.
    #[expect(clippy::needless_pass_by_value, reason = "a lease ends here")]
    pub fn settle(&mut self, lease: Lease, rejected: Option<(Rejection, u64)>) {
        self.shared.lock().settle(self.backend, &lease, rejected, Instant::now());
        self.shared.work.notify_one();
    }

    /// Returns a lease, to be leased again.
    #[expect(clippy::needless_pass_by_value, reason = "a lease ends here")]
    pub fn give_back(&mut self, lease: Lease) {
        self.shared.lock().give_back(self.backend, &lease);
    }

    /// Returns a lease whose destination is not to be leased again before `until`. Others are.
    pub fn park(&mut self, lease: Lease, until: Instant) {
        self.parked.insert(lease.log, until);
        self.give_back(lease);
    }

    /// Whether a destination is parked.
    pub fn has_parked(&self) -> bool {
        self.parked.values().any(|until| *until > Instant::now())
    }
}
