//! The clock of everything that waits: the system's monotonic clock, which a test of a paused runtime moves.

use std::time::Instant;

/// Now, as tokio's timers see it.
#[inline]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
