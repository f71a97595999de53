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
    database: String,
    retention_policy: String,
    precision: Precision,
}

impl Destination {
    /// An InfluxDB database; a retention policy, empty for the database's default; and the unit of the lines' timestamps.
    pub fn new(database: impl Into<String>, retention_policy: impl Into<String>, precision: Precision) -> Self {
        Self { database: database.into(), retention_policy: retention_policy.into(), precision }
    }

    /// The database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The retention policy; empty for the database's default.
    pub fn retention_policy(&self) -> &str {
        &self.retention_policy
    }

    /// The unit of the lines' timestamps.
    pub fn precision(&self) -> Precision {
        self.precision
    }
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
    destination: Arc<Destination>,
    bytes: Bytes,
    lines: u64,
    points: Span,
    received: Received,
    capacity: usize,
    ticket: Option<Arc<Ticket>>,
}

impl Batch {
    /// So many lines, of which the first was received then. Nothing is known of the points' times, and nobody waits for it.
    pub fn new(destination: Arc<Destination>, bytes: impl Into<Bytes>, lines: u64, received: Received) -> Self {
        let bytes = bytes.into();
        let capacity = bytes.len();
        Self { destination, bytes, lines, points: Span::ALWAYS, received, capacity, ticket: None }
    }

    /// With the points' own times.
    #[must_use]
    pub fn with_points(self, points: Span) -> Self {
        Self { points, ..self }
    }

    /// With the memory that the bytes hold on to, where that is more than they need: their buffer's capacity.
    #[must_use]
    pub fn with_capacity(self, capacity: usize) -> Self {
        Self { capacity, ..self }
    }

    /// With what tells whoever waits what became of it.
    #[must_use]
    pub fn with_ticket(self, ticket: Arc<Ticket>) -> Self {
        Self { ticket: Some(ticket), ..self }
    }

    /// Where the lines go.
    pub fn destination(&self) -> &Arc<Destination> {
        &self.destination
    }

    /// The lines, ready to be sent.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How many lines there are.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// The points' own times.
    pub fn points(&self) -> Span {
        self.points
    }

    /// When the first line was received.
    pub fn received(&self) -> Received {
        self.received
    }

    /// The memory that the bytes hold on to.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What tells whoever waits what became of it.
    pub fn ticket(&self) -> Option<&Arc<Ticket>> {
        self.ticket.as_ref()
    }

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
