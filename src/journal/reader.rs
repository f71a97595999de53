//! One backend's reading end: it waits for what is ready, reads a backlog from the disk, and tells what became of it.

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

/// One backend's reading end.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    backend: BackendId,
    /// Destinations not to be leased before a time: their backend holds them up.
    parked: HashMap<LogId, Instant>,
    /// What is being read from the disk while a lease is out.
    ahead: Option<Ahead>,
    /// The disk is not read before this time.
    read_from: Instant,
}

/// A reading under way: for which log, and from which sequence on.
#[derive(Debug)]
struct Ahead {
    log: LogId,
    from: Sequence,
    until: WallTime,
    reading: JoinHandle<Read>,
}

impl Reader {
    /// The reading end of a backend, by its place among all.
    pub(super) fn new(shared: Arc<Shared>, backend: BackendId) -> Self {
        Self { shared, backend, parked: HashMap::new(), ahead: None, read_from: monotonic::now() }
    }

    /// Which backend it is.
    pub fn backend(&self) -> BackendId {
        self.backend
    }

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
        self.shared.wake[self.backend.index()].notified().await;
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

    /// Acknowledges a lease: its lines are delivered, but for those that the backend rejected.
    #[expect(clippy::needless_pass_by_value, reason = "a lease ends here")]
    pub fn ack(&mut self, lease: Lease, rejected: impl IntoIterator<Item = (Rejection, u64)>) {
        let rejected: Vec<_> = rejected.into_iter().collect();
        self.shared.lock().ack(self.backend, &lease, &rejected, monotonic::now());
        self.shared.work.notify_one();
    }

    /// The backend took some of a lease's lines, and is yet to be sent others.
    pub fn note_partly(&mut self, lease: &Lease) {
        self.shared.lock().note_partly(self.backend, lease);
    }

    /// The backend has no such database. If it had lines of it, it lacks them now: that is a gap.
    pub fn note_missing(&mut self, database: &str) {
        self.shared.lock().note_missing(self.backend, database, Received::now().wall);
        self.shared.sync.notify_all();
    }

    /// Returns a lease, to be leased again.
    #[expect(clippy::needless_pass_by_value, reason = "a lease ends here")]
    pub fn requeue(&mut self, lease: Lease) {
        self.shared.lock().requeue(self.backend, &lease);
    }

    /// Leases nothing more of a destination, by its [`Lease::log`], before `until`. Others are leased. What is leased stays so.
    pub fn park(&mut self, log: LogId, until: Instant) {
        self.parked.insert(log, until);
    }

    /// Leases what was parked of a destination at once again.
    pub fn unpark(&mut self, log: LogId) {
        self.parked.remove(&log);
    }
}
