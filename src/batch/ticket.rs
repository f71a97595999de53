//! Tells whoever handed a batch over what became of it: accepted, written, synced, or given up.
//!
//! A batch carries its ticket through the journal, which notes each step. Nothing polls: one wake-up for each step, and none
//! for batches without a ticket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

/// How far a batch has come. Each step includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Step {
    /// It is in the journal's memory.
    Accepted = 1,
    /// It is on the disk: the process may be killed.
    Written = 2,
    /// It survives a power cut, or every backend has it.
    Synced = 3,
}

/// The batch was given up for a backend before it came so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("given up before it was kept")]
pub struct Lost;

/// What became of one batch.
#[derive(Debug, Default)]
pub struct Ticket {
    /// A [`Step`]; 0 before the first one, [`LOST`] after the last.
    reached: AtomicU8,
    changed: Notify,
}

const LOST: u8 = u8::MAX;

impl Ticket {
    /// A ticket for a batch that is about to be handed over.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Waits until the batch has come so far.
    ///
    /// # Errors
    /// It was given up before.
    pub async fn wait(&self, step: Step) -> Result<(), Lost> {
        loop {
            let changed = self.changed.notified();
            match self.reached.load(Ordering::Acquire) {
                LOST => return Err(Lost),
                reached if reached >= step as u8 => return Ok(()),
                _ => changed.await,
            }
        }
    }

    /// Notes a step. What was lost stays lost, and no step is taken back.
    pub fn reach(&self, step: Step) {
        let raise = |reached: u8| (reached != LOST && reached < step as u8).then_some(step as u8);
        if self.reached.fetch_update(Ordering::AcqRel, Ordering::Acquire, raise).is_ok() {
            self.changed.notify_waiters();
        }
    }

    /// Notes that the batch is given up, unless it is safe.
    pub fn lose(&self) {
        let lose = |reached: u8| (reached < Step::Synced as u8).then_some(LOST);
        if self.reached.fetch_update(Ordering::AcqRel, Ordering::Acquire, lose).is_ok() {
            self.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_waits_learns_of_each_step_and_of_a_loss() {
        let ticket = Ticket::new();
        let waiting = |step| {
            let ticket = Arc::clone(&ticket);
            tokio::spawn(async move { ticket.wait(step).await })
        };
        let (written, synced) = (waiting(Step::Written), waiting(Step::Synced));
        tokio::task::yield_now().await;
        ticket.reach(Step::Accepted);
        tokio::task::yield_now().await;
        assert!(!written.is_finished());
        ticket.reach(Step::Written);
        assert_eq!(written.await.expect("no panic"), Ok(()));
        ticket.reach(Step::Accepted);
        assert_eq!(ticket.wait(Step::Written).await, Ok(()), "no step is taken back");
        assert!(!synced.is_finished());
        ticket.lose();
        assert_eq!(synced.await.expect("no panic"), Err(Lost));
        ticket.reach(Step::Synced);
        assert_eq!(ticket.wait(Step::Accepted).await, Err(Lost), "what is lost stays lost");

        let ticket = Ticket::new();
        ticket.reach(Step::Synced);
        ticket.lose();
        assert_eq!(ticket.wait(Step::Synced).await, Ok(()), "what is safe stays safe");
    }
}
