//! The loop of one backend: wait for lines, send them, do what the answer means.
//!
//! Every way back to the loop's head after a failure goes through a pause, or makes the next request smaller, down to
//! one record that is given up in the end: no loop is hot. A flusher knows nothing of the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::health::{Backoff, Health, State};
use super::outcome::Fate;
use super::{Endpoint, Outcome};
use crate::journal::{Lease, Limits, Reader, Rejection};
use crate::sys::{Leave, Throttle};

/// How long a destination or backend that needs an operator is left alone.
const HOLD_PAUSE: Duration = Duration::from_secs(30);
/// Pauses between the tries of a shutdown, at most.
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// Requests are not made smaller than this for a slow backend's sake.
const LEAST_BYTES: u64 = 64 * 1024;
/// How much of a rejected batch is logged, in bytes.
const SAMPLE_BYTES: usize = 200;

/// One backend's flusher.
pub(super) struct Flusher {
    name: String,
    endpoint: Endpoint,
    reader: Reader,
    limits: Limits,
    /// The bytes of a request, at most: what is configured, or less where the backend takes less.
    most_bytes: u64,
    health: Arc<Health>,
    /// True once the relay shuts down.
    closing: watch::Receiver<bool>,
    backoff: Backoff,
    /// Whether the next request repeats one that did not end well.
    is_retry: bool,
    /// The first record of the last lease that was refused as a whole.
    refused: Option<u64>,
    told: Told,
}

/// What the log was told of the backend: each event once a minute, however the backend flaps.
#[derive(Default)]
struct Told {
    /// The state that it was told last, where that was one of failure.
    failure: Option<State>,
    /// For each state.
    failures: [Throttle; State::ALL.len()],
    recovered: Throttle,
    rejected: Throttle,
    shrunk: Throttle,
}

impl Flusher {
    pub(super) fn new(
        name: String,
        endpoint: Endpoint,
        reader: Reader,
        limits: Limits,
        health: Arc<Health>,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self {
            name,
            endpoint,
            reader,
            limits,
            most_bytes: limits.bytes,
            health,
            closing,
            backoff: Backoff::default(),
            is_retry: false,
            refused: None,
            told: Told::default(),
        }
    }

    /// Runs until the journal is closed and what can be delivered is.
    pub(super) async fn run(mut self) {
        while let Some(lease) = self.reader.next(&self.limits).await {
            self.health.count_request(self.is_retry);
            let outcome = self.endpoint.write(&lease).await;
            self.is_retry = !matches!(outcome.fate, Fate::Delivered | Fate::Rejected { .. });
            if let Some(pause) = self.conclude(lease, &outcome)
                && !self.pause(pause, outcome.fate).await
            {
                break;
            }
        }
    }

    /// Does with a lease what its outcome means; returns how long to pause, where it failed.
    fn conclude(&mut self, lease: Lease, outcome: &Outcome) -> Option<Duration> {
        let fate = match outcome.fate {
            // There is nothing to halve.
            Fate::TooLarge if lease.records.len() == 1 => Fate::Rejected { class: Rejection::TooLarge, lines: None },
            fate => fate,
        };
        match fate {
            Fate::Delivered => {
                self.reader.settle(lease, None);
                self.succeed();
                return None;
            }
            Fate::Rejected { class, lines: None } if class != Rejection::TooLarge && !self.is_refused_again(&lease) => {
                self.health.note_error(&outcome.text);
                self.limits.bytes = 1;
                self.reader.give_back(lease);
                return None;
            }
            Fate::Rejected { class, lines } => {
                self.log_rejected(&lease, class, outcome);
                self.health.note_error(&outcome.text);
                let lines = lines.unwrap_or(lease.lines);
                self.reader.settle(lease, Some((class, lines)));
                self.succeed();
                return None;
            }
            Fate::TooLarge => {
                self.shrink(lease, outcome);
                return None;
            }
            Fate::HoldDestination => {
                self.fail(State::Held, outcome);
                self.reader.park(lease, Instant::now() + HOLD_PAUSE);
                return None;
            }
            Fate::Stalled | Fate::HoldBackend | Fate::Busy { .. } | Fate::Transient | Fate::Down => {}
        }
        // Slow start: whoever comes back from a failure finds small requests first, which grow with each that it takes.
        self.limits.bytes = self.limits.bytes.min(LEAST_BYTES);
        self.reader.give_back(lease);
        let state = match fate {
            Fate::HoldBackend => State::Held,
            Fate::Down | Fate::Stalled => State::Down,
            _ => State::Retrying,
        };
        self.fail(state, outcome);
        Some(match fate {
            Fate::HoldBackend => HOLD_PAUSE,
            Fate::Busy { retry_after } => retry_after.unwrap_or_default().max(self.backoff.next_pause()),
            _ => self.backoff.next_pause(),
        })
    }

    /// Whether a lease that was refused as a whole is one record, refused before. One bad line may be the cause:
    /// InfluxDB 1.x stores nothing of a request in which two types meet in a new field, and takes the rest once
    /// the field is there; 2.x stores nothing beside a line that it cannot read. So each record is tried alone,
    /// twice, before its lines are given up.
    fn is_refused_again(&mut self, lease: &Lease) -> bool {
        let first = lease.records.first().map(|record| record.sequence);
        let refused = std::mem::replace(&mut self.refused, first);
        lease.records.len() == 1 && (refused == first || lease.lines == 1)
    }

    /// Leaves the backend alone for a while; false where it is not worth waiting for. A shutdown ends the pause,
    /// gives everything one more try, and what answers as many as its time allows.
    async fn pause(&mut self, pause: Duration, fate: Fate) -> bool {
        if !*self.closing.borrow() {
            drop(tokio::time::timeout(pause, self.closing.changed()).await);
            return true;
        }
        tokio::time::sleep(pause.min(LAST_PAUSE)).await;
        matches!(fate, Fate::Transient | Fate::Busy { .. })
    }

    fn succeed(&mut self) {
        self.backoff.reset();
        self.limits.bytes = (self.limits.bytes + LEAST_BYTES).min(self.most_bytes);
        let now = if self.reader.has_parked() { State::Held } else { State::Up };
        let before = self.health.succeed(now);
        // The probe told that it was not reached.
        if before == State::Unknown && self.health.last_error().is_some() {
            self.told.failure = Some(before);
        }
        if let Some(was) = self.told.failure.filter(|_| now == State::Up)
            && (before != now || self.told.recovered.is_due())
            && let Some(Leave { untold }) = self.told.recovered.pass()
        {
            self.told.failure = None;
            tracing::info!(backend = self.name, was = was.name(), untold, "the backend takes lines again");
        }
    }

    fn fail(&mut self, state: State, outcome: &Outcome) {
        let before = self.health.fail(state, &outcome.text);
        // What was told still holds; a change that was not told is told with the next failure that may be.
        let (is_told, throttle) = (self.told.failure == Some(state), &self.told.failures[state as usize]);
        if is_told || (before == state && !throttle.is_due()) {
            return;
        }
        if let Some(Leave { untold }) = throttle.pass() {
            self.told.failure = Some(state);
            tracing::warn!(
                backend = self.name,
                state = state.name(),
                error = outcome.text,
                untold,
                "cannot deliver; lines wait"
            );
        }
    }

    /// What was too large as a whole is sent again in halves, and so is everything after it.
    fn shrink(&mut self, lease: Lease, outcome: &Outcome) {
        self.health.note_error(&outcome.text);
        self.most_bytes = lease.bytes / 2;
        self.limits.bytes = self.most_bytes;
        let bytes = self.most_bytes;
        if let Some(Leave { untold }) = self.told.shrunk.pass() {
            tracing::warn!(backend = self.name, bytes, untold, "requests were too large: sending smaller ones");
        }
        self.reader.give_back(lease);
    }

    fn log_rejected(&self, lease: &Lease, class: Rejection, outcome: &Outcome) {
        let Some(Leave { untold }) = self.told.rejected.pass() else { return };
        let sample = lease.records.first().map_or(&[][..], |record| &record.batch.bytes[..]);
        tracing::warn!(
            backend = self.name,
            class = class.name(),
            answer = outcome.text,
            batch = %sample[..sample.len().min(SAMPLE_BYTES)].escape_ascii(),
            untold,
            "the backend rejected lines; at most one batch is shown in a minute, /metrics counts all"
        );
    }
}

#[cfg(test)]
mod tests;
