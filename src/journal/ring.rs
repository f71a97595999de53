//! The bounded channel between the workers and the journal's thread: lock-free, and never waits
//! when full.
//!
//! Owns: batches (never lines) on their way to the journal. A worker pushes and never waits; it
//! counts what finds no room. Workers that can wait (TCP listeners) leave half of the room to those
//! that cannot, and all of it while the consumer signals back-pressure.
//!
//! Lines are counted as they pass: each producer counts what it pushes, the consumer what it pops.
//! The difference is in the ring. Losses for want of room are summed up per destination, so that
//! each becomes a gap.
//!
//! Bounds: the number of batches; the number of destinations whose losses are told apart.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Select, Sender, TrySendError, bounded};

use crate::batch::{Batch, Destination, Span, Submit, WallTime};

/// Destinations whose losses are told apart.
const MAX_LOST: usize = 64;

/// Creates a ring with room for this many batches.
pub fn ring(batches: usize) -> (Producer, Consumer) {
    let ((batches, taken), (wake, woken)) = (bounded(batches), bounded(1));
    let (is_pressed, is_full, popped_lines, lost) = Default::default();
    let ring = Arc::new(Ring { batches, wake, is_pressed, is_full, popped_lines, lost });
    (Producer::of(&ring), Consumer { ring, batches: taken, woken })
}

#[derive(Debug)]
struct Ring {
    batches: Sender<Batch>,
    /// Ends the consumer's wait.
    wake: Sender<()>,
    /// Whether the consumer takes batches faster than it can keep them safe.
    is_pressed: AtomicBool,
    /// Whether new batches would be lost.
    is_full: AtomicBool,
    /// Lines popped.
    popped_lines: AtomicU64,
    /// Losses since the consumer last took them; almost always empty.
    lost: Mutex<Vec<RingLoss>>,
}

/// Lines of one destination that found no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingLoss {
    /// Their destination; an empty database stands for several destinations.
    pub destination: Destination,
    /// How many lines.
    pub lines: u64,
    /// When the first and the last of them were received.
    pub received: (WallTime, WallTime),
    /// The times of their points.
    pub points: Span,
}

/// A worker's end. A clone belongs to another worker: it shares the ring and counts its own lines.
#[derive(Debug)]
pub struct Producer {
    ring: Arc<Ring>,
    /// Lines pushed by this producer.
    pushed_lines: AtomicU64,
}

impl Clone for Producer {
    fn clone(&self) -> Self {
        Self::of(&self.ring)
    }
}

impl Submit for Producer {
    fn has_capacity(&self) -> bool {
        let Ring { batches, is_pressed, .. } = &*self.ring;
        batches.len() < batches.capacity().unwrap_or(0) / 2 && !is_pressed.load(Ordering::Relaxed)
    }

    fn submit(&self, batch: Batch) -> Result<(), Batch> {
        let lines = batch.lines();
        self.ring.batches.try_send(batch).map_err(TrySendError::into_inner)?;
        self.pushed_lines.fetch_add(lines, Ordering::Relaxed);
        Ok(())
    }

    fn lose(&self, batch: &Batch) {
        let mut lost = self.ring.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let wall = batch.received().wall;
        let known = lost.iter().position(|known| known.destination == **batch.destination());
        // Beyond the bound, the first entry absorbs the rest.
        let known = known.or_else(|| (lost.len() >= MAX_LOST).then_some(0));
        match known.and_then(|index| lost.get_mut(index)) {
            Some(known) => {
                if known.destination != **batch.destination() {
                    known.destination = Destination::new("", "", known.destination.precision());
                }
                known.lines += batch.lines();
                known.received = (known.received.0.min(wall), known.received.1.max(wall));
                known.points = known.points.and(batch.points());
            }
            None => lost.push(RingLoss {
                destination: Destination::clone(batch.destination()),
                lines: batch.lines(),
                received: (wall, wall),
                points: batch.points(),
            }),
        }
    }

    fn submitted(&self) -> u64 {
        self.pushed_lines.load(Ordering::Relaxed)
    }

    fn is_full(&self) -> bool {
        self.ring.is_full.load(Ordering::Relaxed)
    }
}

impl Producer {
    fn of(ring: &Arc<Ring>) -> Self {
        Self { ring: Arc::clone(ring), pushed_lines: AtomicU64::new(0) }
    }

    /// Lines popped, regardless of which producer pushed them.
    pub fn popped_lines(&self) -> u64 {
        self.ring.popped_lines.load(Ordering::Relaxed)
    }

    /// Wakes the consumer, whether or not there is a batch.
    pub fn wake(&self) {
        // A pending wake-up suffices.
        self.ring.wake.try_send(()).ok();
    }
}

/// The journal thread's end.
#[derive(Debug)]
pub struct Consumer {
    ring: Arc<Ring>,
    batches: Receiver<Batch>,
    woken: Receiver<()>,
}

impl Consumer {
    /// Pops the oldest batch.
    pub fn pop(&self) -> Option<Batch> {
        let batch = self.batches.try_recv().ok()?;
        self.ring.popped_lines.fetch_add(batch.lines(), Ordering::Relaxed);
        Some(batch)
    }

    /// Takes the losses since the last call.
    pub fn take_lost(&self) -> Vec<RingLoss> {
        std::mem::take(&mut *self.ring.lost.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets whether batches arrive faster than they can be kept safe.
    pub fn set_pressed(&self, is_pressed: bool) {
        self.ring.is_pressed.store(is_pressed, Ordering::Relaxed);
    }

    /// Sets whether new batches would be lost.
    pub fn set_full(&self, is_full: bool) {
        self.ring.is_full.store(is_full, Ordering::Relaxed);
    }

    /// Waits until there is a batch, a producer wakes it, or the limit has passed.
    pub fn wait(&self, limit: Duration) {
        let mut waiting = Select::new();
        waiting.recv(&self.batches);
        let woken = waiting.recv(&self.woken);
        if waiting.ready_timeout(limit) == Ok(woken) {
            self.woken.try_recv().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Received;
    use crate::protocol::Precision;

    fn batch() -> Batch {
        batch_of(1)
    }

    fn batch_of(lines: u64) -> Batch {
        let destination = Arc::new(Destination::new("db", "", Precision::Nanoseconds));
        Batch::new(destination, "m v=1\n", lines, Received::now())
    }

    #[test]
    fn those_that_can_wait_leave_half_of_the_room() {
        let (producer, consumer) = ring(4);
        for index in 0..4 {
            assert_eq!(producer.has_capacity(), index < 2);
            producer.submit(batch()).expect("room");
        }
        producer.submit(batch()).expect_err("no room");
        for _ in 0..3 {
            consumer.pop().expect("a batch");
        }
        assert!(producer.has_capacity());
        consumer.set_pressed(true);
        assert!(!producer.has_capacity());
        producer.submit(batch()).expect("those that cannot wait go on");
    }

    #[test]
    fn what_passes_is_counted_at_both_ends() {
        let (one, consumer) = ring(2);
        let other = one.clone();
        one.submit(batch_of(5)).expect("room");
        other.submit(batch_of(70)).expect("room");
        one.submit(batch()).expect_err("no room");
        assert_eq!((one.submitted(), other.submitted(), one.popped_lines()), (5, 70, 0));
        consumer.pop().expect("a batch");
        assert_eq!((one.popped_lines(), other.popped_lines()), (5, 5));
        consumer.pop().expect("a batch");
        assert!(consumer.pop().is_none());
        assert_eq!(one.popped_lines(), 75);
    }

    #[test]
    fn what_finds_no_room_is_summed_up_for_each_destination() {
        let (producer, consumer) = ring(1);
        let of = |database: &str, wall: u64| {
            let destination = Arc::new(Destination::new(database, "", Precision::Nanoseconds));
            let received = Received { wall: WallTime::at(wall), ..Received::now() };
            let points = Span { from: wall.cast_signed(), until: wall.cast_signed() };
            Batch::new(destination, "m v=1\n", 1, received).with_points(points)
        };
        assert!(consumer.take_lost().is_empty());
        for (database, wall) in [("a", 5), ("b", 6), ("a", 9), ("a", 3)] {
            producer.lose(&of(database, wall));
        }
        let lost = consumer.take_lost();
        let seen: Vec<_> = lost
            .iter()
            .map(|one| {
                let (from, until) = one.received;
                (one.destination.database(), one.lines, (from.nanoseconds(), until.nanoseconds()))
            })
            .collect();
        assert_eq!(seen, [("a", 3, (3, 9)), ("b", 1, (6, 6))]);
        assert_eq!(lost[0].points, Span { from: 3, until: 9 });
        assert!(consumer.take_lost().is_empty());
        for number in 1..=MAX_LOST as u64 + 10 {
            producer.lose(&of(&number.to_string(), number));
        }
        let lost = consumer.take_lost();
        assert_eq!((lost.len(), lost[0].destination.database(), lost[0].lines), (MAX_LOST, "", 11));
        assert_eq!(lost.iter().map(|one| one.lines).sum::<u64>(), MAX_LOST as u64 + 10);
    }

    #[test]
    fn a_consumer_that_waits_is_woken_by_a_batch_and_without_one() {
        const HOUR: Duration = Duration::from_secs(3600);
        let (producer, consumer) = ring(2);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| consumer.wait(HOUR));
            // The wait may not have begun yet.
            while !waiting.is_finished() {
                producer.wake();
                std::thread::yield_now();
            }
        });
        // Meanwhile it sleeps: it does not poll the ring more often than it is woken.
        let (producer, consumer) = ring(2);
        let polls = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while consumer.pop().is_none() {
                    polls.fetch_add(1, Ordering::Relaxed);
                    consumer.wait(HOUR);
                }
            });
            for wakes in 0..20 {
                while polls.load(Ordering::Relaxed) <= wakes {
                    producer.wake();
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            producer.submit(batch()).expect("room");
        });
        assert!(polls.load(Ordering::Relaxed) < 1000);
        let (producer, consumer) = ring(2);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || {
                while consumer.pop().is_none() {
                    consumer.wait(HOUR);
                }
            });
            producer.submit(batch()).expect("room");
            waiting.join().expect("no panic");
        });
    }
}
