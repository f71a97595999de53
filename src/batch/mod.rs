//! Lines of one destination, growing in one worker, then sealed and never changed again.
//!
//! Owns: the [`Destination`], the sealed [`Batch`], the [`Builder`] that grows one, the [`Pool`] of buffers
//! that builders fill, the [`Submit`] by which a worker gives a sealed batch away, and the [`Ticket`] that tells what became
//! of it.
//!
//! Never does: I/O, parsing, waiting. The one copy of a line's bytes happens in [`Builder::append`].
//! Bounds: a batch by bytes, lines and age ([`Limits`]); the pool by the number of idle buffers it keeps.

mod builder;
mod pool;
mod ticket;
mod wall_time;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::protocol::Precision;

pub use crate::protocol::Span;
pub use builder::{Builder, Limits, Time};
pub use pool::Pool;
pub use ticket::{Lost, Step, Ticket};
pub use wall_time::WallTime;

/// Where lines are to be written: database, retention policy and the unit of their timestamps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The InfluxDB database.
    pub database: String,
    /// The retention policy; empty for the database's default.
    pub retention_policy: String,
    /// The unit of the lines' timestamps.
    pub precision: Precision,
}

/// When a line was received.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// By the clock that only moves forward, for ages and latencies.
    pub monotonic: Instant,
    /// By the wall clock, for stamps and for what people read.
    pub wall: WallTime,
}

impl Received {
    /// Now; reads both clocks.
    pub fn now() -> Self {
        Self { monotonic: Instant::now(), wall: WallTime::now() }
    }
}

/// A sealed batch: whole lines, each ended by one LF, all for one destination.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Where the lines go.
    pub destination: Arc<Destination>,
    /// The lines, ready to be sent.
    pub bytes: Bytes,
    /// How many lines there are.
    pub lines: u64,
    /// The points' own times.
    pub points: Span,
    /// When the first of them was received.
    pub received: Received,
    /// The memory that the bytes hold on to: their buffer's capacity.
    pub capacity: usize,
    /// Tells whoever waits what became of it.
    pub ticket: Option<Arc<Ticket>>,
}

impl Batch {
    /// Notes how far it has come.
    pub fn reach(&self, step: Step) {
        if let Some(ticket) = &self.ticket {
            ticket.reach(step);
        }
    }

    /// Notes that it is given up.
    pub fn lose(&self) {
        if let Some(ticket) = &self.ticket {
            ticket.lose();
        }
    }
}

/// What takes sealed batches from a worker. It never waits, unless it is made for workers that can.
pub trait Submit: Send {
    /// Whether a worker that can wait may give a batch away now: it is to leave room for those that cannot.
    fn has_capacity(&self) -> bool;

    /// Gives a batch away.
    ///
    /// # Errors
    /// The batch, where there is no room; its lines are the caller's to count as dropped.
    fn submit(&self, batch: Batch) -> Result<(), Batch>;

    /// A batch found no room, and its lines are counted as dropped: whoever shows what is missing is to know which.
    fn lose(&self, batch: &Batch) {
        let _ = batch;
    }

    /// Lines of all batches that it has taken from this worker, by its own count.
    fn submitted(&self) -> u64;

    /// Lines that the worker gave and that wait for room; they are the worker's still.
    fn waiting(&self) -> u64 {
        0
    }

    /// Whether nothing is to be taken: memory and disk are used up, and what is given would be lost.
    fn is_full(&self) -> bool {
        false
    }
}
