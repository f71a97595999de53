//! The one ordered log of records, and every backend's cursors in it.
//!
//! Owns: the ring in front of it ([`ring()`]), the numbering of records, the memory tail with its bound in bytes,
//! a cursor for each backend **and** destination (so that one missing database never holds up another), and
//! each backend's [`Ledger`].
//!
//! The interface, which does not depend on where records are kept:
//!
//! * [`Journal::append`] numbers a sealed batch. One thread appends.
//! * [`Reader::next`] waits until a destination has enough to be worth a request and leases its consecutive
//!   records. Several leases may be out at once.
//! * [`Reader::settle`] acknowledges a lease, in any order; [`Reader::give_back`] returns it, and it is leased
//!   again before anything newer. The watermark is the lowest sequence not settled, for each cursor.
//! * A record stays until every backend has settled it. When the tail is full its oldest record leaves; each
//!   backend that had still to read it counts its lines as dropped (`memory_full`).
//!
//! Never does: network, waiting in `append`. Its lock is taken per batch, lease and answer, never per line.

mod cursor;
mod ledger;
mod record;
pub mod ring;
mod state;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::batch::{Batch, Destination};
use state::{Ready, State};

pub use cursor::Limits;
pub use ledger::{DropReason, Ledger, Rejection};
pub use record::Record;
pub use ring::ring;

/// What a crash may cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Records are kept in memory only: a crash loses what was not delivered.
    #[default]
    Memory,
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
}

impl Shared {
    /// The state. A thread that panicked while it held the lock left whole numbers behind: each change is made
    /// of steps that cannot fail.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal {
    /// An empty journal that keeps at most `memory` bytes of records, for this many backends.
    pub fn new(memory: u64, backends: usize) -> Self {
        let wake = (0..backends).map(|_| Notify::new()).collect();
        Self { shared: Arc::new(Shared { state: Mutex::new(State::new(memory, backends)), wake }) }
    }

    /// Numbers a batch and makes it available to every backend.
    pub fn append(&self, batch: Batch) {
        let woken = self.shared.lock().append(batch);
        for backend in woken {
            self.shared.wake[backend].notify_one();
        }
    }

    /// The reading end of a backend. One is to be made for each.
    pub fn reader(&self, backend: usize) -> Reader {
        Reader { shared: Arc::clone(&self.shared), backend, parked: HashMap::new() }
    }

    /// Ends all waiting for more: from now on [`Reader::next`] leases what there is, and then returns none.
    pub fn close(&self) {
        self.shared.lock().close();
        for wake in &self.shared.wake {
            wake.notify_one();
        }
    }

    /// Lines given up by the journal so far, for each backend.
    pub fn dropped_lines(&self) -> Vec<u64> {
        self.shared.lock().dropped_lines()
    }

    /// All figures, taken at one moment.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.lock().snapshot(Instant::now())
    }
}

/// The journal's figures at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Lines that were appended since the start.
    pub appended_lines: u64,
    /// Memory held by records.
    pub memory_bytes: u64,
    /// Each backend's ledger.
    pub ledgers: Vec<Ledger>,
    /// How long each backend's oldest pending line has waited, in seconds.
    pub oldest_pending_seconds: Vec<f64>,
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
}

impl Reader {
    /// Waits for a destination that has a full lease or whose first record has lingered, and leases it. None
    /// once the journal is closed and nothing is left to lease.
    pub async fn next(&mut self, limits: &Limits) -> Option<Lease> {
        loop {
            let now = Instant::now();
            self.parked.retain(|_, until| *until > now);
            let ready = self.shared.lock().lease(self.backend, limits, &self.parked, now);
            let woken = self.shared.wake[self.backend].notified();
            match ready {
                Ready::Lease(lease) => return Some(lease),
                Ready::Closed => return None,
                Ready::At(time) => drop(tokio::time::timeout_at(time.into(), woken).await),
                Ready::Never => woken.await,
            }
        }
    }

    /// Acknowledges a lease: its lines are delivered, but for those that the backend rejected.
    #[expect(clippy::needless_pass_by_value, reason = "a lease ends here")]
    pub fn settle(&mut self, lease: Lease, rejected: Option<(Rejection, u64)>) {
        self.shared.lock().settle(self.backend, &lease, rejected, Instant::now());
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

impl Drop for Record {
    fn drop(&mut self) {
        self.memory.fetch_sub(self.cost(), Ordering::Relaxed);
    }
}
