//! Where sealed batches of requests wait for room in front of the journal: a request waits, and its thread does not.
//!
//! Bounds: what one piece of a body makes; the next one is read once there was room.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::batch::{Batch, Submit, Ticket};

/// Takes batches of the request at hand, each with a ticket. Clones share it.
#[derive(Debug)]
pub(super) struct Shelf<H>(Arc<Inner<H>>);

#[derive(Debug)]
struct Inner<H> {
    /// One for all clones: it counts what it was given.
    out: H,
    batches: Mutex<Vec<Batch>>,
    /// Lines that were put here and have not found room, wherever their batches are.
    waiting: AtomicU64,
}

impl<H: Submit> Shelf<H> {
    pub(super) fn new(out: H) -> Self {
        Self(Arc::new(Inner { out, batches: Mutex::default(), waiting: AtomicU64::default() }))
    }

    /// Takes what was put here since the last time. It is the caller's to give away, to the last batch.
    pub(super) fn take(&self) -> Vec<Batch> {
        std::mem::take(&mut *self.0.batches.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives a batch away that was taken from here.
    ///
    /// # Errors
    /// The batch, if there is no room.
    pub(super) fn pass_on(&self, batch: Batch) -> Result<(), Batch> {
        let lines = batch.lines();
        self.0.out.submit(batch)?;
        self.0.waiting.fetch_sub(lines, Ordering::Relaxed);
        Ok(())
    }

    /// A batch that was taken from here is lost; returns its lines, which are the caller's to count.
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
