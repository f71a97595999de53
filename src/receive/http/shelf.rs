//! Holds sealed batches of requests while the journal has no capacity: the request waits, but its
//! thread does not.
//!
//! Bounds: the batches of one piece of a body. The next piece is read once the journal has taken
//! them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::batch::{Batch, Submit, Ticket};

/// Collects the batches of the current request, each with a ticket. Clones share the batches.
#[derive(Debug)]
pub(super) struct Shelf<H>(Arc<Inner<H>>);

#[derive(Debug)]
struct Inner<H> {
    /// Shared by all clones, because it counts what was submitted.
    out: H,
    batches: Mutex<Vec<Batch>>,
    /// Lines that were submitted here and that the journal has not taken, wherever their batches
    /// are.
    waiting: AtomicU64,
}

impl<H: Submit> Shelf<H> {
    pub(super) fn new(out: H) -> Self {
        Self(Arc::new(Inner { out, batches: Mutex::default(), waiting: AtomicU64::default() }))
    }

    /// Takes the batches submitted since the last call. The caller must pass on or lose every one
    /// of them.
    pub(super) fn take(&self) -> Vec<Batch> {
        std::mem::take(&mut *self.0.batches.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Submits a batch that was taken from here to the journal.
    ///
    /// # Errors
    /// The batch, if there is no capacity.
    pub(super) fn pass_on(&self, batch: Batch) -> Result<(), Batch> {
        let lines = batch.lines();
        self.0.out.submit(batch)?;
        self.0.waiting.fetch_sub(lines, Ordering::Relaxed);
        Ok(())
    }

    /// Records that a batch taken from here is lost. Returns the number of its lines, which the
    /// caller must count.
    pub(super) fn lose(&self, batch: &Batch) -> u64 {
        self.0.waiting.fetch_sub(batch.lines(), Ordering::Relaxed);
        batch.lose();
        self.0.out.lose(batch);
        batch.lines()
    }
}

impl<H> Clone for Shelf<H> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<H: Submit + Sync> Submit for Shelf<H> {
    fn has_capacity(&self) -> bool {
        self.0.out.has_capacity()
    }

    fn submit(&self, batch: Batch) -> Result<(), Batch> {
        let batch = batch.with_ticket(Ticket::new());
        self.0.waiting.fetch_add(batch.lines(), Ordering::Relaxed);
        self.0.batches.lock().unwrap_or_else(PoisonError::into_inner).push(batch);
        Ok(())
    }

    fn submitted(&self) -> u64 {
        self.0.out.submitted()
    }

    fn waiting(&self) -> u64 {
        self.0.waiting.load(Ordering::Relaxed)
    }

    fn is_full(&self) -> bool {
        self.0.out.is_full()
    }
}
