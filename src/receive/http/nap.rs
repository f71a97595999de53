//! Decides when the thread sleeps briefly before it polls for events: a pure function of past
//! requests.
//!
//! Many hosts that write rarely, as Telegraf does, send their requests one at a time. Waking up for
//! each request, and again once its lines are safe, costs more than it gains. If the thread naps
//! first, several requests have arrived when it wakes: the journal writes their lines together, and
//! their answers leave together. Such a host waits for its answer anyway, and does not send its
//! next request for seconds.
//!
//! A client that writes again as soon as it is answered would be slowed down. The thread therefore
//! does not nap while such a client is active, while a body is being received, or while there are
//! too few requests to gather.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Duration of a nap. A request is delayed by at most two: before it is read, and before it is
/// answered.
const NAP: Duration = Duration::from_millis(10);
/// Interval over which requests are counted. A client that returns within it is in a hurry.
const WINDOW: Duration = Duration::from_millis(100);
/// Minimum number of requests per window that makes naps worthwhile.
const WORTH_A_NAP: u32 = 15;

/// Nap state of a listener's thread. Only that thread uses it; the mutex satisfies the runtime's
/// `Sync` bound.
#[derive(Debug, Default)]
pub(super) struct Naps(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Number of bodies being received.
    bodies: usize,
    /// When a client was last in a hurry.
    hurried: Option<Instant>,
    /// Start of the current window, and the number of its requests.
    since: Option<Instant>,
    count: u32,
    /// Whether the previous window had enough requests.
    is_worth_it: bool,
}

/// A body that is being received.
#[derive(Debug)]
pub(super) struct Arriving(Arc<Naps>);

impl Naps {
    /// Records a request. `answered` is the time of the connection's previous answer; `None` for
    /// its first request.
    pub(super) fn request(&self, answered: Option<Instant>, now: Instant) {
        let mut inner = self.lock();
        if answered.is_some_and(|answered| now.saturating_duration_since(answered) < WINDOW) {
            inner.hurried = Some(now);
        }
        inner.turn(now);
        inner.count += 1;
    }

    /// Marks a body as being received until the returned guard is dropped.
    pub(super) fn arriving(self: &Arc<Self>) -> Arriving {
        self.lock().bodies += 1;
        Arriving(Arc::clone(self))
    }

    /// How long to sleep before polling. `None`: not at all.
    pub(super) fn due(&self, now: Instant) -> Option<Duration> {
        let mut inner = self.lock();
        inner.turn(now);
        let is_hurried = inner.hurried.is_some_and(|hurried| now.saturating_duration_since(hurried) < WINDOW);
        (inner.is_worth_it && inner.bodies == 0 && !is_hurried).then_some(NAP)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Starts a new window if the current one is over.
    fn turn(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(*self.since.get_or_insert(now));
        if elapsed >= WINDOW {
            self.is_worth_it = self.count >= WORTH_A_NAP && elapsed < 2 * WINDOW;
            (self.since, self.count) = (Some(now), 0);
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.lock().bodies -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates the state after one second of requests at this interval, from hosts that have not
    /// written for a long time.
    fn after_a_second(distance: Duration) -> (Arc<Naps>, Instant) {
        let (naps, begun) = (Arc::new(Naps::default()), Instant::now());
        let mut now = begun;
        while now < begun + Duration::from_secs(1) {
            now += distance;
            naps.request(now.checked_sub(Duration::from_secs(10)), now);
        }
        (naps, now)
    }

    #[test]
    fn many_hosts_that_write_seldom_make_naps_and_few_do_not() {
        let (naps, now) = after_a_second(Duration::from_millis(2));
        assert_eq!(naps.due(now), Some(NAP));
        assert_eq!(naps.due(now + Duration::from_secs(1)), None, "they are gone");
        let (naps, now) = after_a_second(Duration::from_millis(20));
        assert_eq!(naps.due(now), None);
    }

    #[test]
    fn a_client_in_a_hurry_and_a_body_on_its_way_end_the_naps() {
        let (naps, now) = after_a_second(Duration::from_millis(2));
        let body = naps.arriving();
        assert_eq!(naps.due(now), None);
        drop(body);
        assert_eq!(naps.due(now), Some(NAP));
        naps.request(Some(now), now + Duration::from_millis(1));
        assert_eq!(naps.due(now + Duration::from_millis(1)), None);
        naps.request(None, now + Duration::from_millis(50));
        assert_eq!(naps.due(now + Duration::from_millis(50)), None, "not yet over");
    }
}
