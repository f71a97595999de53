//! The bounded ring between the workers and the journal's thread: lock-free, and full is full.
//!
//! Batches, never lines, pass here. A worker pushes and never waits; what finds no room is the worker's to count.

use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;

use crate::batch::{Batch, HandOver};

/// Makes a ring with room for this many batches.
pub fn ring(batches: usize) -> (Producer, Consumer) {
    let ring = Arc::new(Ring { queue: ArrayQueue::new(batches), consumer: OnceLock::new() });
    (Producer { ring: Arc::clone(&ring) }, Consumer { ring })
}

#[derive(Debug)]
struct Ring {
    queue: ArrayQueue<Batch>,
    /// The thread to wake; set by the first wait.
    consumer: OnceLock<Thread>,
}

/// A worker's end. Clones share the ring.
#[derive(Clone, Debug)]
pub struct Producer {
    ring: Arc<Ring>,
}

impl HandOver for Producer {
    fn hand_over(&self, batch: Batch) -> Result<(), Batch> {
        self.ring.queue.push(batch)?;
        self.wake();
        Ok(())
    }
}

impl Producer {
    /// Wakes the consumer, whether or not there is a batch.
    pub fn wake(&self) {
        if let Some(thread) = self.ring.consumer.get() {
            thread.unpark();
        }
    }
}

/// The journal thread's end.
#[derive(Debug)]
pub struct Consumer {
    ring: Arc<Ring>,
}

impl Consumer {
    /// The oldest batch.
    pub fn pop(&self) -> Option<Batch> {
        self.ring.queue.pop()
    }

    /// Waits on the calling thread, always the same one, until a batch may be there or the time is over.
    pub fn wait(&self, limit: Duration) {
        self.ring.consumer.get_or_init(std::thread::current);
        // A push between the last pop and here left its token, and `park` returns at once.
        if self.ring.queue.is_empty() {
            std::thread::park_timeout(limit);
        }
    }
}
