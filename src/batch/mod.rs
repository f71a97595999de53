//! Batches: lines of one destination that grow in one worker, and are immutable once sealed.
//!
//! Owns: the [`Destination`], the sealed [`Batch`], the [`Builder`] of the next one, the [`Pool`]
//! of the builders' buffers, the [`Submit`] trait by which a worker submits a sealed batch, and the
//! [`Ticket`] that reports its progress.
//!
//! Never does: I/O, parsing, waiting. A line's bytes are copied once, in [`Builder::append`].
//!
//! Bounds: a batch by bytes, lines and age ([`Limits`]); the pool by the number of idle buffers.

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

/// Where to write lines: database, retention policy and the unit of their timestamps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    database: String,
    retention_policy: String,
    precision: Precision,
}

impl Destination {
    /// Creates a destination from an InfluxDB database, a retention policy (empty for the
    /// database's default), and the unit of the lines' timestamps.
    pub fn new(database: impl Into<String>, retention_policy: impl Into<String>, precision: Precision) -> Self {
        Self { database: database.into(), retention_policy: retention_policy.into(), precision }
    }

    /// Returns the database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Returns the retention policy; empty for the database's default.
    pub fn retention_policy(&self) -> &str {
        &self.retention_policy
    }

    /// Returns the unit of the lines' timestamps.
    pub fn precision(&self) -> Precision {
        self.precision
    }
}

/// When a line was received.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// By the monotonic clock, for ages and latencies.
    pub monotonic: Instant,
    /// By the wall clock, for stamps and for display.
    pub wall: WallTime,
}

impl Received {
    /// Reads both clocks.
    pub fn now() -> Self {
        Self { monotonic: Instant::now(), wall: WallTime::now() }
    }
}

/// A sealed batch: whole lines for one destination, each terminated by one LF.
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
    /// Creates a batch of lines, the first of which was received at `received`. Its points' times
    /// are unknown, and it has no ticket.
    pub fn new(destination: Arc<Destination>, bytes: impl Into<Bytes>, lines: u64, received: Received) -> Self {
        let bytes = bytes.into();
        let capacity = bytes.len();
        Self { destination, bytes, lines, points: Span::ALWAYS, received, capacity, ticket: None }
    }

    /// Sets the range of the points' times.
    #[must_use]
    pub fn with_points(self, points: Span) -> Self {
        Self { points, ..self }
    }

    /// Sets the memory that the bytes hold, if that is more than their length: their buffer's
    /// capacity.
    #[must_use]
    pub fn with_capacity(self, capacity: usize) -> Self {
        Self { capacity, ..self }
    }

    /// Sets the ticket that reports the batch's progress.
    #[must_use]
    pub fn with_ticket(self, ticket: Arc<Ticket>) -> Self {
        Self { ticket: Some(ticket), ..self }
    }

    /// Returns the destination of the lines.
    pub fn destination(&self) -> &Arc<Destination> {
        &self.destination
    }

    /// Returns the lines, ready to be sent.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the number of lines.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Returns the range of the points' times.
    pub fn points(&self) -> Span {
        self.points
    }

    /// Returns when the first line was received.
    pub fn received(&self) -> Received {
        self.received
    }

    /// Returns the memory that the bytes hold, in bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the ticket that reports the batch's progress.
    pub fn ticket(&self) -> Option<&Arc<Ticket>> {
        self.ticket.as_ref()
    }

    /// Reports a step to the ticket, if any.
    pub fn reach(&self, step: Step) {
        if let Some(ticket) = &self.ticket {
            ticket.reach(step);
        }
    }

    /// Reports the loss of the batch to the ticket, if any.
    pub fn lose(&self) {
        if let Some(ticket) = &self.ticket {
            ticket.lose();
        }
    }
}

/// Accepts sealed batches from a worker. Never waits, except in implementations for workers that
/// can wait.
pub trait Submit: Send {
    /// Returns whether a worker that can wait may submit a batch now; capacity is reserved for
    /// workers that cannot.
    fn has_capacity(&self) -> bool;

    /// Submits a batch.
    ///
    /// # Errors
    /// The batch, if there is no capacity; the caller counts its lines as dropped.
    fn submit(&self, batch: Batch) -> Result<(), Batch>;

    /// Notes a batch that was dropped for lack of capacity, to record the gap.
    fn lose(&self, batch: &Batch) {
        let _ = batch;
    }

    /// Returns the number of lines in all batches accepted from this worker, as counted by the
    /// receiver.
    fn submitted(&self) -> u64;

    /// Returns the number of submitted lines that wait for capacity; they still count as the
    /// worker's.
    fn waiting(&self) -> u64 {
        0
    }

    /// Returns whether memory and disk are exhausted, so that submitted batches would be lost.
    fn is_full(&self) -> bool {
        false
    }
}
