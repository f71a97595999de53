//! Snapshots of the status, at most ten a second however many clients ask, because each takes locks
//! that receiving and delivery need.
//!
//! A client gets a snapshot taken after its request, so earlier changes show. Clients that ask too
//! soon after the last snapshot wait for the next one, and share it. Readiness is polled from the
//! threads at the same rate.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use super::super::{json, metrics};
use crate::observe::history::History;
use crate::observe::status::Status;
use crate::observe::view::View;
use crate::pair::Report;
use crate::receive::Pulse;

/// The least interval between snapshots.
const INTERVAL: Duration = Duration::from_millis(100);

/// A thread whose loop takes longer for one turn reads no socket.
const MAX_TURN: Duration = Duration::from_secs(2);
/// Interval of polling the threads' answers.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A snapshot and its forms, which are rendered on demand.
#[derive(Debug)]
pub(super) struct Snapshot {
    status: Arc<Status>,
    json: OnceLock<Bytes>,
    event: OnceLock<Bytes>,
    metrics: OnceLock<Result<Bytes, fmt::Error>>,
}

/// The snapshots of a relay.
#[derive(Debug)]
pub(super) struct Snapshots {
    view: View,
    shared: Shared<Snapshot>,
    reports: Shared<Report>,
    /// Time and result of the last check of readiness.
    readiness: Mutex<Option<(Instant, Option<String>)>>,
}

impl Snapshots {
    pub(super) fn new(view: View) -> Self {
        Self { view, shared: Shared::default(), reports: Shared::default(), readiness: Mutex::default() }
    }

    /// Returns a snapshot taken after the call.
    pub(super) async fn next(&self) -> Arc<Snapshot> {
        self.shared.next(|| Snapshot::of(self.view.status())).await
    }

    /// Returns a report for the pair's other relay, taken after the call.
    pub(super) async fn report(&self) -> Arc<Report> {
        let report = self.reports.next(|| self.view.report()).await;
        self.view.reports.note();
        report
    }

    /// Returns the earlier figures.
    pub(super) fn history(&self) -> &History {
        &self.view.history
    }

    /// Returns why senders cannot use the relay; `None` if its sockets are read and it can store
    /// what it receives.
    pub(super) async fn unready(&self) -> Option<String> {
        if self.view.is_stopping.load(Ordering::Acquire) {
            return Some("the relay stops".to_owned());
        }
        if self.view.is_followed.load(Ordering::Acquire) {
            return None;
        }
        let mut asked = self.readiness.lock().await;
        if let Some((at, answer)) = &*asked
            && at.elapsed() < INTERVAL
        {
            return answer.clone();
        }
        let answer = self.ask_threads().await;
        *asked = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn ask_threads(&self) -> Option<String> {
        if let Some(silent) = silent(&self.view.pulses()).await {
            return Some(format!("the thread {silent} has stood still for {} s", MAX_TURN.as_secs()));
        }
        self.view.journal.is_full().then(|| "the journal is full, and no backend makes room".to_owned())
    }
}

impl Snapshot {
    fn of(status: Status) -> Self {
        Self { status: Arc::new(status), json: OnceLock::new(), event: OnceLock::new(), metrics: OnceLock::new() }
    }

    /// Renders JSON.
    pub(super) fn json(&self) -> Bytes {
        self.json.get_or_init(|| json::render(&*self.status)).clone()
    }

    /// Renders JSON for the page, which asks for the full list of sources less often.
    pub(super) fn event(&self) -> Bytes {
        self.event.get_or_init(|| json::render(&self.status.with_few_sources())).clone()
    }

    /// Renders OpenMetrics.
    ///
    /// # Errors
    /// Only those of writing to memory, which does not fail.
    pub(super) fn metrics(&self) -> Result<Bytes, fmt::Error> {
        self.metrics.get_or_init(|| metrics::render(Arc::clone(&self.status)).map(Bytes::from)).clone()
    }
}

/// The newest value of something that is computed rarely, shared by all who ask.
#[derive(Debug)]
struct Shared<T>(Mutex<Option<(Instant, Arc<T>)>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Shared<T> {
    async fn next(&self, take: impl FnOnce() -> T) -> Arc<T> {
        let asked = Instant::now();
        // The one that waits for the next value holds the lock; the others find that value taken.
        let mut newest = self.0.lock().await;
        if let Some((taken, one)) = &*newest {
            if *taken >= asked {
                return Arc::clone(one);
            }
            sleep_until(*taken + INTERVAL).await;
        }
        let taken = Instant::now();
        let one = Arc::new(take());
        *newest = Some((taken, Arc::clone(&one)));
        one
    }
}

/// Returns the name of a thread that does not answer in time.
async fn silent(pulses: &[Arc<Pulse>]) -> Option<&str> {
    pulses.iter().for_each(|pulse| pulse.ask());
    let until = Instant::now() + MAX_TURN;
    loop {
        let silent = pulses.iter().find(|pulse| !pulse.is_answered())?;
        if Instant::now() >= until {
            return Some(silent.name());
        }
        sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_thread_that_stands_still_is_named() {
        let (udp, journal) = (Arc::new(Pulse::new("udp-0")), Arc::new(Pulse::new("journal")));
        let answering = Arc::clone(&journal);
        tokio::spawn(async move { answering.answer().await });
        assert_eq!(silent(&[Arc::clone(&journal)]).await, None);
        assert_eq!(silent(&[journal, udp]).await, Some("udp-0"));
    }

    #[test]
    fn however_many_ask_they_share_what_is_taken_after_the_question() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
        let (shared, taken) = (Shared::default(), Cell::new(0_u32));
        let take = || {
            taken.set(taken.get() + 1);
            taken.get()
        };
        let local = tokio::task::LocalSet::new();
        runtime.block_on(local.run_until(async {
            assert_eq!(*shared.next(take).await, 1);
            let mut asking: Vec<_> = (0..50).map(|_| Box::pin(shared.next(take))).collect();
            let mut got = Vec::new();
            // All ask before any is served.
            std::future::poll_fn(|context| {
                asking.retain_mut(|one| match one.as_mut().poll(context) {
                    std::task::Poll::Ready(number) => {
                        got.push(*number);
                        false
                    }
                    std::task::Poll::Pending => true,
                });
                if asking.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            })
            .await;
            assert_eq!(got, vec![2; 50]);
            // A later request gets a later value.
            assert_eq!(*shared.next(take).await, 3);
        }));
    }
}
