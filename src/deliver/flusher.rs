//! The loop of one backend: wait for lines, send them, do what the answer means.
//!
//! Every way back to the loop's head after a failure goes through a pause. A flusher knows nothing of the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::health::{Backoff, Health, State};
use super::outcome::Fate;
use super::{Endpoint, Outcome};
use crate::journal::{Lease, Limits, Reader, Rejection};

/// How long a destination or backend that needs an operator is left alone.
const HOLD_PAUSE: Duration = Duration::from_secs(30);
/// Pauses between the tries of a shutdown, at most.
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// Requests are not made smaller than this for a slow backend's sake.
const LEAST_BYTES: u64 = 64 * 1024;
/// One rejected batch in this time is logged.
const REJECTED_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How much of a rejected batch is logged, in bytes.
const SAMPLE_BYTES: usize = 200;

/// One backend's flusher.
pub(super) struct Flusher {
    pub(super) name: String,
    pub(super) endpoint: Endpoint,
    pub(super) reader: Reader,
    pub(super) limits: Limits,
    /// The bytes of a request, at most: what is configured, or less where the backend takes less.
    pub(super) most_bytes: u64,
    pub(super) health: Arc<Health>,
    /// True once the relay shuts down.
    pub(super) closing: watch::Receiver<bool>,
}

impl Flusher {
    /// Runs until the journal is closed and what can be delivered is.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut rejected_next = Instant::now();
        let mut is_retry = false;
        while let Some(lease) = self.reader.next(&self.limits).await {
            self.health.count_request();
            if is_retry {
                self.health.count_retry();
            }
            let outcome = self.endpoint.write(&lease).await;
            is_retry = !matches!(outcome.fate, Fate::Delivered | Fate::Rejected { .. });
            let pause = match outcome.fate {
                Fate::Delivered => {
                    self.reader.settle(lease, None);
                    self.succeed(&mut backoff);
                    continue;
                }
                Fate::Rejected { class, lines } => {
                    self.log_rejected(&lease, class, &outcome, &mut rejected_next);
                    self.health.note_error(&outcome.text);
                    let lines = lines.unwrap_or(lease.lines);
                    self.reader.settle(lease, Some((class, lines)));
                    self.succeed(&mut backoff);
                    continue;
                }
                Fate::TooLarge => {
                    self.shrink(lease, &outcome);
                    continue;
                }
                Fate::HoldDestination => {
                    self.fail(State::Held, &outcome);
                    self.reader.park(lease, Instant::now() + HOLD_PAUSE);
                    continue;
                }
                Fate::HoldBackend => {
                    self.reader.give_back(lease);
                    self.fail(State::Held, &outcome);
                    HOLD_PAUSE
                }
                Fate::Busy { retry_after } => {
                    self.reader.give_back(lease);
                    self.fail(State::Retrying, &outcome);
                    retry_after.unwrap_or_default().max(backoff.next_pause())
                }
                Fate::Transient => {
                    self.reader.give_back(lease);
                    self.fail(State::Retrying, &outcome);
                    backoff.next_pause()
                }
                Fate::Down | Fate::Stalled => {
                    if outcome.fate == Fate::Stalled {
                        // A slow line is not a dead one: less may pass in the same time.
                        self.limits.bytes = (lease.bytes / 2).max(LEAST_BYTES).min(self.limits.bytes);
                    }
                    self.reader.give_back(lease);
                    self.fail(State::Down, &outcome);
                    backoff.next_pause()
                }
            };
            let may_yet_pass = matches!(outcome.fate, Fate::Transient | Fate::Busy { .. });
            if *self.closing.borrow() {
                if !may_yet_pass {
                    break;
                }
                tokio::time::sleep(pause.min(LAST_PAUSE)).await;
            } else {
                // A shutdown ends the pause: what can still be delivered gets one more try.
                drop(tokio::time::timeout(pause, self.closing.changed()).await);
            }
        }
    }

    fn succeed(&mut self, backoff: &mut Backoff) {
        backoff.reset();
        self.limits.bytes = (self.limits.bytes + self.limits.bytes / 16).min(self.most_bytes);
        let now = if self.reader.has_parked() { State::Held } else { State::Up };
        let before = self.health.succeed(now);
        if before != now && now == State::Up {
            tracing::info!(backend = self.name, was = before.name(), "the backend takes lines again");
        }
    }

    fn fail(&self, state: State, outcome: &Outcome) {
        if self.health.fail(state, &outcome.text) != state {
            tracing::warn!(
                backend = self.name,
                state = state.name(),
                error = outcome.text,
                "cannot deliver; lines wait"
            );
        }
    }

    /// A request that was too large is sent again in halves; a single record that is too large is rejected.
    fn shrink(&mut self, lease: Lease, outcome: &Outcome) {
        self.health.note_error(&outcome.text);
        if lease.records.len() > 1 {
            self.most_bytes = lease.bytes / 2;
            self.limits.bytes = self.most_bytes;
            tracing::warn!(
                backend = self.name,
                bytes = self.limits.bytes,
                "requests were too large: sending smaller ones"
            );
            self.reader.give_back(lease);
        } else {
            tracing::warn!(backend = self.name, lines = lease.lines, "rejected: too large for the backend");
            let lines = lease.lines;
            self.reader.settle(lease, Some((Rejection::TooLarge, lines)));
        }
    }

    fn log_rejected(&self, lease: &Lease, class: Rejection, outcome: &Outcome, next: &mut Instant) {
        let now = Instant::now();
        if now < *next {
            return;
        }
        *next = now + REJECTED_LOG_INTERVAL;
        let sample = lease.records.first().map_or(&[][..], |record| &record.batch.bytes[..]);
        tracing::warn!(
            backend = self.name,
            class = class.name(),
            answer = outcome.text,
            batch = %sample[..sample.len().min(SAMPLE_BYTES)].escape_ascii(),
            "the backend rejected lines; at most one batch is shown in ten seconds, /metrics counts all"
        );
    }
}
