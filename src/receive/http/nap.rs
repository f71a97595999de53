//! When the thread sleeps a little before it waits for what comes next: a pure function of the requests so far.
//!
//! Many hosts that write seldom, as Telegrafs do, come one by one. To wake for each of them, and once more when its lines are
//! safe, costs more than what it brings. If the thread naps first, several requests are there when it wakes; the journal
//! writes their lines at once; and their answers go out together. Such a host waits for its answer anyway, and seconds
//! pass until its next request.
//!
//! A client that writes again as soon as it is answered would be slowed down. So there are no naps while one is there, nor while
//! a body is on its way, nor if requests are too few to gather.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A nap. A request waits for two of them at most: until it is read, and until it is answered.
const NAP: Duration = Duration::from_millis(10);
/// Requests are counted for so long; and a client that comes back within this time is in a hurry.
const WINDOW: Duration = Duration::from_millis(100);
/// Requests in that time that make naps worth it, at least.
const WORTH_A_NAP: u32 = 15;

/// The naps of a listener's thread. Used by that thread alone, but where the runtime asks for more.
#[derive(Debug, Default)]
pub(super) struct Naps(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Bodies that are on their way.
    bodies: usize,
    /// When a client was in a hurry.
    hurried: Option<Instant>,
    /// Since when requests are counted, and how many came.
    since: Option<Instant>,
    count: u32,
    /// Whether there were enough in the time before.
    is_worth_it: bool,
}

/// A body that is on its way.
#[derive(Debug)]
pub(super) struct Arriving(Arc<Naps>);

impl Naps {
    /// Notes a request on a connection whose last answer was then; none: it is the first one.
    pub(super) fn request(&self, answered: Option<Instant>, now: Instant) {
        let mut inner = self.lock();
        if answered.is_some_and(|answered| now.saturating_duration_since(answered) < WINDOW) {
            inner.hurried = Some(now);
        }
        inner.turn(now);
        inner.count += 1;
    }

    /// A body is on its way until what this returns is dropped.
    pub(super) fn arriving(self: &Arc<Self>) -> Arriving {
        self.lock().bodies += 1;
        Arriving(Arc::clone(self))
    }

    /// How long to sleep before waiting; none: not at all.
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
    /// Begins to count anew once the time is over.
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

    /// The naps after a second of requests at this distance, of hosts that have not written for long.
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
