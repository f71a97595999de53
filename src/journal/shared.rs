//! What the journal's handles share: the state under its lock, the ways to wake those who wait, and the files.
//!
//! The lock is taken per batch, lease and answer, never per line, and never held while the disk works. Where the slots are
//! locked too, they are locked first.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::segment::slots::Slots;
use super::segment::storage::Storage;
use super::state::State;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// One for each backend: there may be something to lease.
    pub(super) wake: Vec<Notify>,
    /// There may be something to write.
    pub(super) work: Condvar,
    /// There may be something to sync.
    pub(super) sync: Condvar,
    pub(super) disk: Option<Files>,
}

impl Shared {
    /// The state. A thread that panicked while it held the lock left whole numbers behind: each change is made
    /// of steps that cannot fail.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the threads of the disk share, beside the journal's lock.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) journal: u64,
    pub(super) cursors: Mutex<Slots>,
    pub(super) gaps: Mutex<Slots>,
}
