//! Snapshots of the state, at most ten a second however many ask: each costs locks that receiving and delivery need.
//!
//! Whoever asks gets a snapshot that was taken after the question, so that what was done before shows. Those who ask too
//! soon after the last one wait for the next one, and share it. Readiness is asked of the threads as seldom.

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

/// The time from one snapshot to the next, at least.
const INTERVAL: Duration = Duration::from_millis(100);

/// A thread that takes longer for one turn of its loop reads no socket.
const LONGEST_TURN: Duration = Duration::from_secs(2);
/// How often to look whether the threads have answered.
const LOOK: Duration = Duration::from_millis(2);

/// One snapshot, and what is made of it once somebody asks for that.
#[derive(Debug)]
pub(super) struct Snapshot {
    status: Arc<Status>,
    json: OnceLock<Bytes>,
    event: OnceLock<Bytes>,
    metrics: OnceLock<Result<Bytes, fmt::Error>>,
}

/// The snapshots of one relay.
#[derive(Debug)]
pub(super) struct Snapshots {
    view: View,
    shared: Shared<Snapshot>,
    reports: Shared<Report>,
    /// When readiness was asked for last, and the answer.
    readiness: Mutex<Option<(Instant, Option<String>)>>,
}

impl Snapshots {
    pub(super) fn new(view: View) -> Self {
        Self { view, shared: Shared::default(), reports: Shared::default(), readiness: Mutex::default() }
    }

    /// A snapshot taken after this was called.
    pub(super) async fn next(&self) -> Arc<Snapshot> {
        self.shared.next(|| Snapshot::of(self.view.status())).await
    }

    /// What this relay says to the other one of its pair, taken after this was called.
    pub(super) async fn report(&self) -> Arc<Report> {
        let report = self.reports.next(|| self.view.report()).await;
        self.view.reports.note();
        report
    }

    /// What the figures were.
    pub(super) fn history(&self) -> &History {
        &self.view.history
    }

    /// Why the relay is of no use to senders; none if it is: its sockets are read, and it can keep what it is given.
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
            return Some(format!("the thread {silent} has stood still for {} s", LONGEST_TURN.as_secs()));
        }
        self.view.journal.is_full().then(|| "the journal is full, and no backend makes room".to_owned())
    }
}

impl Snapshot {
    fn of(status: Status) -> Self {
        Self { status: Arc::new(status), json: OnceLock::new(), event: OnceLock::new(), metrics: OnceLock::new() }
    }

    /// As JSON.
    pub(super) fn json(&self) -> Bytes {
        self.json.get_or_init(|| json::render(&*self.status)).clone()
    }

    /// As JSON for the page, which asks for most sources more seldom.
    pub(super) fn event(&self) -> Bytes {
        self.event.get_or_init(|| json::render(&self.status.with_few_sources())).clone()
    }

    /// As OpenMetrics.
    ///
    /// # Errors
    /// None that writing to memory could have.
    pub(super) fn metrics(&self) -> Result<Bytes, fmt::Error> {
        self.metrics.get_or_init(|| metrics::render(Arc::clone(&self.status)).map(Bytes::from)).clone()
    }
}

/// The newest of something that is taken seldom, and by whoever needs it.
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
        // Who waits for the next one holds the lock; the others find it taken.
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

/// A thread that does not answer in time.
async fn silent(pulses: &[Arc<Pulse>]) -> Option<&str> {
    pulses.iter().for_each(|pulse| pulse.ask());
    let until = Instant::now() + LONGEST_TURN;
    loop {
        let silent = pulses.iter().find(|pulse| !pulse.is_answered())?;
        if Instant::now() >= until {
            return Some(silent.name());
        }
        sleep(LOOK).await;
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
            // All of them ask before any of them is served.
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
            // One that asks later gets a later one.
            assert_eq!(*shared.next(take).await, 3);
        }));
    }
}
