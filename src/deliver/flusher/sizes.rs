//! How large a backend's requests may be: as configured, as the backend taught, and smaller after a failure.

use std::time::{Duration, Instant};

use crate::journal::Limits;
use crate::sys::monotonic;

/// Requests are not made smaller than this after a failure, and grow by as much with each success, in bytes.
pub(super) const LEAST_BYTES: u64 = 64 * 1024;
/// How long a smaller size that a backend taught holds, before twice as much is tried.
const HOLDS: Duration = Duration::from_secs(60);

/// The sizes of one backend's requests.
pub(super) struct Sizes {
    /// The limits of the next request.
    limits: Limits,
    /// The bytes of a request, at most, as configured.
    configured: u64,
    /// The same, or less if the backend takes less.
    most: u64,
    /// When more is tried.
    grows_at: Instant,
}

impl Sizes {
    /// As configured.
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, configured: limits.bytes, most: limits.bytes, grows_at: monotonic::now() }
    }

    /// The limits of the next request.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// The bytes that a lease is to be divided into, if it has more than the backend takes.
    pub(super) fn parts_of(&self, bytes: u64) -> Option<u64> {
        (bytes > self.most && self.most < self.configured).then_some(self.most)
    }

    /// The backend takes so many bytes at most; returns whether that is news.
    pub(super) fn learn(&mut self, bytes: u64) -> bool {
        let is_less = bytes < self.most;
        if is_less {
            (self.most, self.grows_at) = (bytes, monotonic::now() + HOLDS);
        }
        is_less
    }

    /// A request was taken.
    pub(super) fn grow(&mut self) {
        if self.most < self.configured && self.grows_at <= monotonic::now() {
            (self.most, self.grows_at) = ((self.most * 2).min(self.configured), monotonic::now() + HOLDS);
        }
        self.limits.bytes = (self.limits.bytes + LEAST_BYTES).min(self.most);
    }

    /// Slow start after a failure: small requests first, which grow with each that is taken.
    pub(super) fn begin_small(&mut self) {
        self.limits.bytes = self.limits.bytes.min(LEAST_BYTES);
    }
}
