//! Handing batches over as one that can wait: the thread sleeps until there is room for those that can.
//!
//! Listeners that wait get room in the order in which they came ([`Order`]), so that one whose senders send more does not
//! take what another one waits for. Once a listener is to stop, any room will do, so that a disk that hangs does not hold
//! the end up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::batch::{Batch, Submit};
use crate::receive::Pulse;

/// How long the thread sleeps before it looks for room again.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(1);

/// The order in which listeners that share a ring hand over. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Order(Arc<Places>);

#[derive(Debug, Default)]
struct Places {
    /// Batches that came.
    came: AtomicU64,
    /// Batches that were handed over.
    went: AtomicU64,
}

impl Order {
    /// The number of a batch that is to be handed over.
    fn come(&self) -> u64 {
        self.0.came.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether as many went as came before it. (A listener that stops may go out of turn: then another one goes early, and
    /// none waits for what has gone.)
    fn is_next(&self, number: u64) -> bool {
        self.0.went.load(Ordering::Relaxed) >= number
    }

    fn go(&self) {
        self.0.went.fetch_add(1, Ordering::Relaxed);
    }
}

/// One listener's way to hand over.
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
        let number = self.order.come();
        loop {
            self.pulse.beat();
            if (self.order.is_next(number) && self.has_capacity()) || *self.stop.borrow() {
                match self.out.submit(batch) {
                    Ok(()) => {
                        self.order.go();
                        return Ok(());
                    }
                    Err(returned) => batch = returned,
                }
            }
            std::thread::sleep(NO_ROOM_PAUSE);
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

    /// Has room for one batch each time that it is opened; keeps their lines.
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
        // The first one has a batch behind each that it hands over; the other one has one now and then.
        let waiting = |count: u64| {
            while order.0.came.load(Ordering::Relaxed) < count {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|threads| {
            let (greedy, modest) = (blocking("tcp"), blocking("tcp"));
            threads.spawn(move || (0..20).for_each(|_| greedy.submit(batch(1)).expect("handed over")));
            waiting(1);
            threads.spawn(move || (0..5).for_each(|_| modest.submit(batch(2)).expect("handed over")));
            for number in 0..25 {
                // Both wait, until the other one has no more.
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
