//! What the log is told of a backend: each event once a minute, however the backend flaps.

use super::{Refused, State};
use crate::batch::Destination;
use crate::protocol::line::anatomy;
use crate::sys::{Leave, Throttle};

/// How much of a refused line is logged, in bytes.
const SAMPLE_BYTES: usize = 200;

/// What was told.
pub(super) struct Told {
    backend: String,
    /// The state that was told last, where that was one of failure.
    failure: Option<State>,
    /// For each state.
    failures: [Throttle; State::ALL.len()],
    recovered: Throttle,
    refused: Throttle,
    shrunk: Throttle,
}

impl Told {
    pub(super) fn new(backend: String) -> Self {
        Self {
            backend,
            failure: None,
            failures: Default::default(),
            recovered: Throttle::default(),
            refused: Throttle::default(),
            shrunk: Throttle::default(),
        }
    }

    /// Lines could not be delivered; the state changed so.
    pub(super) fn failed(&mut self, before: State, state: State, error: &str) {
        // What was told still holds; a change that was not told is told with the next failure that may be.
        let (is_told, throttle) = (self.failure == Some(state), &self.failures[state as usize]);
        if is_told || (before == state && !throttle.is_due()) {
            return;
        }
        if let Some(Leave { untold }) = throttle.pass() {
            self.failure = Some(state);
            let state = state.name();
            tracing::warn!(backend = self.backend, state, error, untold, "cannot deliver; lines wait");
        }
    }

    /// Lines were delivered; the state changed so.
    pub(super) fn recovered(&mut self, before: State, now: State, has_missed: bool) {
        // The probe told that it was not reached.
        if before == State::Unknown && has_missed {
            self.failure = Some(before);
        }
        if let Some(was) = self.failure.filter(|_| now == State::Up)
            && (before != now || self.recovered.is_due())
            && let Some(Leave { untold }) = self.recovered.pass()
        {
            self.failure = None;
            tracing::info!(backend = self.backend, was = was.name(), untold, "the backend takes lines again");
        }
    }

    /// The backend takes no larger requests than this.
    pub(super) fn shrunk(&self, bytes: u64) {
        if let Some(Leave { untold }) = self.shrunk.pass() {
            tracing::warn!(backend = self.backend, bytes, untold, "requests were too large: sending smaller ones");
        }
    }

    /// Lines were refused for good.
    pub(super) fn refused(&self, destination: &Destination, refused: &[Refused]) {
        let Some(first) = refused.first() else { return };
        let Some(Leave { untold }) = self.refused.pass() else { return };
        let Refused { line, class, status, answer } = first;
        tracing::warn!(
            backend = self.backend,
            database = destination.database,
            class = class.name(),
            status,
            lines = refused.len(),
            measurement = %anatomy::measurement(line).escape_ascii(),
            line = %line[..line.len().min(SAMPLE_BYTES)].escape_ascii(),
            answer = crate::sys::text::cut(answer, super::super::TEXT_BYTES),
            untold,
            "the backend will never take lines; the first one is shown, /metrics counts all"
        );
    }
}
