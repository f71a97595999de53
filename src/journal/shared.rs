//! What the journal's handles share: the locked state, the wake-ups, and the files.
//!
//! The lock is taken once per batch, lease and answer, never per line, and is never held during
//! disk I/O. Lock order: slots before state.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::segment::slots::Slots;
use super::segment::storage::Storage;
use super::state::State;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// One per backend: there may be something to lease.
    pub(super) wake: Vec<Notify>,
    /// There may be something to write.
    pub(super) work: Condvar,
    /// There may be something to sync.
    pub(super) sync: Condvar,
    pub(super) disk: Option<Files>,
}

impl Shared {
    /// Locks the state. A thread that panicked with the lock held left consistent numbers: each
    /// change consists of steps that cannot fail.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the disk's threads share beside the journal's lock.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) journal: u64,
    pub(super) cursors: Mutex<Slots>,
    pub(super) gaps: Mutex<Slots>,
}
