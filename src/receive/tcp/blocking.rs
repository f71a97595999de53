//! Submits batches on behalf of a thread that can wait: the thread sleeps until there is capacity.
//!
//! Listeners that wait get capacity in the order in which they asked for it ([`Order`]), so that a
//! listener with busier senders does not starve another one. Once a listener is told to stop, it no
//! longer waits for its turn or for the unreserved part of the capacity, so that a hung disk does
//! not delay the stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::batch::{Batch, Submit};
use crate::receive::Pulse;

/// How long the thread sleeps before it polls for capacity again.
const CAPACITY_POLL: Duration = Duration::from_millis(1);

/// The order in which listeners that share a ring submit. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Order(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Batches that have queued up.
    queued: AtomicU64,
    /// Batches that have been submitted.
    done: AtomicU64,
}

impl Order {
    /// Queues a batch and returns its number.
    fn enqueue(&self) -> u64 {
        self.0.queued.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether all batches queued before this one have been submitted. A stopping listener may
    /// submit out of turn; another batch is then submitted early, but none waits for a batch that
    /// is already gone.
    fn is_next(&self, number: u64) -> bool {
        self.0.done.load(Ordering::Relaxed) >= number
    }

    fn dequeue(&self) {
        self.0.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// The submitting end of one listener.
#[derive(Debug)]
pub(super) struct Blocking<H> {
    pub(super) out: H,
    pub(super) order: Order,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) pulse: Arc<Pulse>,
}

impl<H: Submit> Submit for Blocking<H> {
    fn has_capacity(&self) -> bool {
        self.out.has_capacity()
    }

    fn submit(&self, mut batch: Batch) -> Result<(), Batch> {
        let number = self.order.enqueue();
        loop {
            self.pulse.beat();
            if (self.order.is_next(number) && self.has_capacity()) || *self.stop.borrow() {
                match self.out.submit(batch) {
                    Ok(()) => {
                        self.order.dequeue();
                        return Ok(());
                    }
                    Err(returned) => batch = returned,
                }
            }
            std::thread::sleep(CAPACITY_POLL);
        }
    }

    fn submitted(&self) -> u64 {
        self.out.submitted()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::batch::{Destination, Received};
    use crate::protocol::Precision;

    /// Has capacity for one batch each time it is opened; records the number of lines.
    #[derive(Clone, Debug, Default)]
    struct Gate {
        is_open: Arc<AtomicBool>,
        taken: Arc<Mutex<Vec<u64>>>,
    }

    impl Submit for Gate {
        fn has_capacity(&self) -> bool {
            self.is_open.load(Ordering::Relaxed)
        }

        fn submit(&self, batch: Batch) -> Result<(), Batch> {
            if !self.is_open.swap(false, Ordering::Relaxed) {
                return Err(batch);
            }
            self.taken.lock().expect("no panic").push(batch.lines());
            Ok(())
        }

        fn submitted(&self) -> u64 {
            self.taken.lock().expect("no panic").iter().sum()
        }
    }

    fn batch(lines: u64) -> Batch {
        let destination = Arc::new(Destination::new("db", "", Precision::Nanoseconds));
        Batch::new(destination, "m v=1\n", lines, Received::now())
    }

    #[test]
    fn room_goes_to_whoever_waits_longest() {
        let (gate, order) = (Gate::default(), Order::default());
        let (stop, _) = watch::channel(false);
        let blocking = |name: &str| Blocking {
            out: gate.clone(),
            order: order.clone(),
            stop: stop.subscribe(),
            pulse: Arc::new(Pulse::new(name)),
        };
        // The greedy thread always has another batch; the modest one has one now and then.
        let waiting = |count: u64| {
            while order.0.queued.load(Ordering::Relaxed) < count {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|threads| {
            let (greedy, modest) = (blocking("tcp"), blocking("tcp"));
            threads.spawn(move || (0..20).for_each(|_| greedy.submit(batch(1)).expect("submitted")));
            waiting(1);
            threads.spawn(move || (0..5).for_each(|_| modest.submit(batch(2)).expect("submitted")));
            for number in 0..25 {
                // Both wait until the modest one has no more.
                waiting(number + if number < 10 { 2 } else { 1 });
                gate.is_open.store(true, Ordering::Relaxed);
                while gate.taken.lock().expect("no panic").len() as u64 <= number {
                    std::thread::yield_now();
                }
            }
        });
        let taken = gate.taken.lock().expect("no panic").clone();
        assert_eq!(taken[..10], [1, 2, 1, 2, 1, 2, 1, 2, 1, 2]);
        assert_eq!(taken[10..], [1; 15]);
    }
}
