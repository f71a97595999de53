//! The throttle of all logs: a repeated event is logged once a minute, with the number of
//! suppressed repetitions.
//!
//! Each event of each part has its own [`Throttle`], so that an event of one backend or listener
//! never hides that of another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Minimum interval between two log lines of an event.
pub const INTERVAL: Duration = Duration::from_secs(60);

/// Decides when one event may be logged. Threads may share it.
#[derive(Debug)]
pub struct Throttle {
    made: Instant,
    /// When the event may be logged next, in milliseconds since `made`.
    next: AtomicU64,
    untold: AtomicU64,
}

/// The permission to log an event now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave {
    /// How often the event was suppressed since it was last logged; `None` for never.
    pub untold: Option<u64>,
}

impl Default for Throttle {
    fn default() -> Self {
        Self { made: Instant::now(), next: AtomicU64::new(0), untold: AtomicU64::new(0) }
    }
}

impl Throttle {
    /// Counts an event; returns the permission to log it if the last time is long enough ago.
    pub fn pass(&self) -> Option<Leave> {
        self.pass_at(Instant::now())
    }

    /// Returns whether the event may be logged now; counts nothing.
    pub fn is_due(&self) -> bool {
        self.is_due_at(Instant::now())
    }

    /// Does the same as [`Self::is_due`] at a given time.
    pub fn is_due_at(&self, now: Instant) -> bool {
        milliseconds(now.saturating_duration_since(self.made)) >= self.next.load(Ordering::Relaxed)
    }

    /// Does the same as [`Self::pass`] at a given time.
    pub fn pass_at(&self, now: Instant) -> Option<Leave> {
        let now = milliseconds(now.saturating_duration_since(self.made));
        let next = self.next.load(Ordering::Relaxed);
        let is_due = now >= next;
        // Of two threads that find the event due, one logs it.
        if !is_due
            || self
                .next
                .compare_exchange(next, now + milliseconds(INTERVAL), Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            self.untold.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Leave { untold: Some(self.untold.swap(0, Ordering::Relaxed)).filter(|untold| *untold > 0) })
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_told_once_a_minute_with_the_number_of_the_others() {
        let throttle = Throttle::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(throttle.pass_at(at(1)), Some(Leave { untold: None }));
        for seconds in 2..=60 {
            assert_eq!(throttle.pass_at(at(seconds)), None, "{seconds} s");
        }
        assert_eq!(throttle.pass_at(at(62)), Some(Leave { untold: Some(59) }));
        assert_eq!(throttle.pass_at(at(200)), Some(Leave { untold: None }));
        // A time before its creation must not panic.
        assert_eq!(Throttle::default().pass_at(start), Some(Leave { untold: None }));
    }
}
