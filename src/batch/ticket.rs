//! Reports a batch's progress to its sender: accepted, written, synced, or lost.
//!
//! A batch carries its ticket through the journal, which reports each step. Waiters are never
//! polled: each step wakes them once, and batches without a ticket cost nothing.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

/// A batch's progress. Each step includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Step {
    /// The batch is in the journal's memory.
    Accepted = 1,
    /// The batch has been written to disk, and survives if the process is killed.
    Written = 2,
    /// The batch survives a power failure, or every backend has it.
    Synced = 3,
}

/// The batch was given up for a backend before it reached the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("given up before it was kept")]
pub struct Lost;

/// The progress of one batch.
#[derive(Debug, Default)]
pub struct Ticket {
    /// A [`Step`]; 0 before the first one, [`LOST`] after a loss.
    reached: AtomicU8,
    /// The wakers of waiting tasks.
    wakers: Mutex<Vec<Waker>>,
}

const LOST: u8 = u8::MAX;

impl Ticket {
    /// Creates a ticket for a batch that is about to be submitted.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Waits until the batch has reached this step.
    ///
    /// # Errors
    /// The batch was given up before.
    pub async fn wait(&self, step: Step) -> Result<(), Lost> {
        poll_fn(|context| {
            if let Some(known) = self.known(step) {
                return Poll::Ready(known);
            }
            self.wakers.lock().unwrap_or_else(PoisonError::into_inner).push(context.waker().clone());
            // A step reported in the meantime did not wake this task.
            self.known(step).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Returns whether the batch has reached this step or is lost; `None` while that is open.
    fn known(&self, step: Step) -> Option<Result<(), Lost>> {
        match self.reached.load(Ordering::Acquire) {
            LOST => Some(Err(Lost)),
            reached => (reached >= step as u8).then_some(Ok(())),
        }
    }

    /// Reports a step. Steps are never undone, and a lost batch stays lost.
    pub fn reach(&self, step: Step) {
        let raise = |reached: u8| (reached != LOST && reached < step as u8).then_some(step as u8);
        if self.reached.fetch_update(Ordering::AcqRel, Ordering::Acquire, raise).is_ok() {
            self.wake();
        }
    }

    /// Reports the loss of the batch, unless it has been synced.
    pub fn lose(&self) {
        let lose = |reached: u8| (reached < Step::Synced as u8).then_some(LOST);
        if self.reached.fetch_update(Ordering::AcqRel, Ordering::Acquire, lose).is_ok() {
            self.wake();
        }
    }
}

impl Ticket {
    fn wake(&self) {
        let wakers = std::mem::take(&mut *self.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Wake};

    use super::*;

    /// Returns a ticket's state; `None` while it is open.
    fn state(ticket: &Ticket, step: Step, waker: &Waker) -> Option<Result<(), Lost>> {
        match pin!(ticket.wait(step)).poll(&mut Context::from_waker(waker)) {
            Poll::Ready(known) => Some(known),
            Poll::Pending => None,
        }
    }

    /// Counts wake-ups.
    #[derive(Default)]
    struct Woken(AtomicU8);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn whoever_waits_learns_of_each_step_and_of_a_loss() {
        let (ticket, woken) = (Ticket::new(), Arc::<Woken>::default());
        let waker = Waker::from(Arc::clone(&woken));
        assert_eq!(state(&ticket, Step::Written, &waker), None);
        assert_eq!(state(&ticket, Step::Synced, &waker), None);
        ticket.reach(Step::Written);
        assert_eq!(woken.0.load(Ordering::Relaxed), 2, "all waiters are woken");
        ticket.reach(Step::Accepted);
        assert_eq!(state(&ticket, Step::Written, &waker), Some(Ok(())), "no step is taken back");
        assert_eq!(state(&ticket, Step::Synced, &waker), None);
        ticket.lose();
        assert_eq!((woken.0.load(Ordering::Relaxed), state(&ticket, Step::Synced, &waker)), (3, Some(Err(Lost))));
        ticket.reach(Step::Synced);
        assert_eq!(state(&ticket, Step::Accepted, &waker), Some(Err(Lost)), "a lost batch stays lost");

        let ticket = Ticket::new();
        ticket.reach(Step::Synced);
        ticket.lose();
        assert_eq!(state(&ticket, Step::Synced, &waker), Some(Ok(())), "a synced batch stays synced");
    }
}
