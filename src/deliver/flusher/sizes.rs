//! Size of a backend's requests: as configured, as learned from the backend, and smaller after a
//! failure.
//!
//! Owns: the limits of the next request. Never does: divide a lease. Bounds: from [`MIN_BYTES`] to
//! the configured size, unless the backend accepts even less.

use std::time::{Duration, Instant};

use crate::journal::Limits;
use crate::sys::monotonic;

/// Minimum size after a failure, and growth with each success, in bytes.
pub(super) const MIN_BYTES: u64 = 64 * 1024;
/// How long a learned size holds before the double is tried.
const HOLDS: Duration = Duration::from_secs(60);

/// The sizes of one backend's requests.
pub(super) struct Sizes {
    /// Limits of the next request.
    limits: Limits,
    /// Configured maximum size of a request, in bytes.
    configured: u64,
    /// Current maximum size: as configured, or less if the backend accepts less.
    max: u64,
    /// When a larger size is tried.
    grows_at: Instant,
}

impl Sizes {
    /// Starts with the configured limits.
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, configured: limits.bytes, max: limits.bytes, grows_at: monotonic::now() }
    }

    /// Returns the limits of the next request.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Returns the part size to divide a lease of so many bytes into, if the backend does not
    /// accept it whole.
    pub(super) fn part_bytes(&self, bytes: u64) -> Option<u64> {
        (bytes > self.max && self.max < self.configured).then_some(self.max)
    }

    /// Records that the backend accepts at most so many bytes. Returns whether that is new.
    pub(super) fn learn(&mut self, bytes: u64) -> bool {
        let is_less = bytes < self.max;
        if is_less {
            (self.max, self.grows_at) = (bytes, monotonic::now() + HOLDS);
        }
        is_less
    }

    /// Grows the limits after an accepted request.
    pub(super) fn grow(&mut self) {
        if self.max < self.configured && self.grows_at <= monotonic::now() {
            (self.max, self.grows_at) = ((self.max * 2).min(self.configured), monotonic::now() + HOLDS);
        }
        self.limits.bytes = (self.limits.bytes + MIN_BYTES).min(self.max);
    }

    /// Slow start after a failure: starts with small requests, which grow with each success.
    pub(super) fn begin_small(&mut self) {
        self.limits.bytes = self.limits.bytes.min(MIN_BYTES);
    }
}
