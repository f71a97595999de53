//! The clock for all waiting: the monotonic clock of the system, which tests of a paused runtime
//! control.

use std::time::Instant;

/// Returns the current time as tokio's timers see it.
#[inline]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
