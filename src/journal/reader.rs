//! One backend's reader: waits for ready records, reads a backlog from disk, and reports outcomes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinHandle;

use super::disk;
use super::shared::Shared;
use super::state::backlog::{Read, Request};
use super::state::id::{BackendId, LogId};
use super::state::lease::{Lease, Ready};
use super::state::ledger::Rejection;
use super::state::limits::Limits;
use crate::batch::{Received, WallTime};
use crate::journal::segment::Sequence;
use crate::sys::monotonic;

/// One backend's reader.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    backend: BackendId,
    /// Destinations that are not leased before a time, because their backend holds them up.
    parked: HashMap<LogId, Instant>,
    /// A read-ahead under way while a lease is out.
    ahead: Option<Ahead>,
    /// The disk is not read before this time.
    read_from: Instant,
}

/// A read under way: its log, and its first sequence.
#[derive(Debug)]
struct Ahead {
    log: LogId,
    from: Sequence,
    until: WallTime,
    reading: JoinHandle<Read>,
}

impl Reader {
    /// Creates the reader of a backend.
    pub(super) fn new(shared: Arc<Shared>, backend: BackendId) -> Self {
        Self { shared, backend, parked: HashMap::new(), ahead: None, read_from: monotonic::now() }
    }

    /// The backend that it reads for.
    pub fn backend(&self) -> BackendId {
        self.backend
    }

    /// Waits for a destination that has a full lease, or whose first record has lingered, and
    /// leases it. Returns `None` once the journal is closed and nothing is left to lease.
    /// Cancel-safe.
    pub async fn next(&mut self, limits: &Limits) -> Option<Lease> {
        loop {
            match self.poll(limits) {
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

    /// Waits for a reason to poll again; a wake-up since the last poll counts.
    async fn woken(&self) {
        self.shared.wake[self.backend.index()].notified().await;
    }

    /// Leases what is ready now. Reads from disk on the calling thread.
    pub fn try_next(&mut self, limits: &Limits) -> Option<Lease> {
        loop {
            match self.poll(limits) {
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

    fn poll(&mut self, limits: &Limits) -> Ready {
        let now = monotonic::now();
        self.parked.retain(|_, until| *until > now);
        self.shared.lock().lease(self.backend, limits, &self.parked, self.read_from, now)
    }

    fn take_read(&mut self, log: LogId, read: Read, until: WallTime) -> Option<Lease> {
        let mut state = self.shared.lock();
        if read.failed {
            self.read_from = monotonic::now() + state.retry_after();
        }
        state.lease_read(self.backend, log, read, until)
    }

    /// Reads from disk on another thread, then reads ahead while the lease is out.
    async fn read(&mut self, request: Request, limits: &Limits) -> Option<Lease> {
        let (log, from) = (request.log, request.from);
        if self.ahead.as_ref().is_none_or(|ahead| (ahead.log, ahead.from) != (log, from)) {
            self.ahead = Some(self.read_ahead(request));
        }
        let Ahead { until, reading, .. } = self.ahead.as_mut()?;
        let (until, read) = (*until, reading.await);
        self.ahead = None;
        let lease = self.take_read(log, read.ok()?, until);
        if lease.is_some() && self.read_from <= monotonic::now() {
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

    /// Acknowledges a lease: its lines are delivered, except those that the backend rejected.
    #[expect(clippy::needless_pass_by_value, reason = "a lease ends here")]
    pub fn ack(&mut self, lease: Lease, rejected: impl IntoIterator<Item = (Rejection, u64)>) {
        let rejected: Vec<_> = rejected.into_iter().collect();
        self.shared.lock().ack(self.backend, &lease, &rejected, monotonic::now());
        self.shared.work.notify_one();
    }

    /// Notes that the backend took some of a lease's lines and is yet to be sent the others.
    pub fn note_partly(&mut self, lease: &Lease) {
        self.shared.lock().note_partly(self.backend, lease);
    }

    /// Notes that the backend has no such database. If it had lines of it, it lacks them now: that
    /// is a gap.
    pub fn note_missing(&mut self, database: &str) {
        self.shared.lock().note_missing(self.backend, database, Received::now().wall);
        self.shared.sync.notify_all();
    }

    /// Requeues a lease.
    #[expect(clippy::needless_pass_by_value, reason = "a lease ends here")]
    pub fn requeue(&mut self, lease: Lease) {
        self.shared.lock().requeue(self.backend, &lease);
    }

    /// Leases nothing more of a destination (see [`Lease::log`]) before `until`. Other destinations
    /// go on, and leases that are out stay valid.
    pub fn park(&mut self, log: LogId, until: Instant) {
        self.parked.insert(log, until);
    }

    /// Ends a [`park`](Self::park) early.
    pub fn unpark(&mut self, log: LogId) {
        self.parked.remove(&log);
    }
}
