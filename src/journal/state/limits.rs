//! How much a backend takes at once.

use std::time::Duration;

/// The bounds of a lease, and when it is worth taking.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Lines of all records together. One record is always taken.
    pub lines: u64,
    /// Bytes of all records together. One record is always taken.
    pub bytes: u64,
    /// How long a first record waits for more.
    pub linger: Duration,
}
