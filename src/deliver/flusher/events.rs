//! What is logged of a backend: each event at most once a minute, however often the backend flaps.
//!
//! Owns: the throttles of these messages. Never does: count anything that the metrics show. Bounds:
//! one throttle per event and state, [`SAMPLE_BYTES`] of a line.

use std::time::SystemTime;

use super::{Refused, State};
use crate::batch::Destination;
use crate::protocol::line::anatomy;
use crate::sys::{Leave, Throttle};

/// Maximum length of a logged line, in bytes.
const SAMPLE_BYTES: usize = 200;

/// What was logged.
pub(super) struct Events {
    backend: String,
    /// The last logged state, if it was a failure.
    failure: Option<State>,
    /// One per state.
    failures: [Throttle; State::ALL.len()],
    recovered: Throttle,
    refused: Throttle,
    unkept: Throttle,
    shrunk: Throttle,
}

impl Events {
    pub(super) fn new(backend: String) -> Self {
        Self {
            backend,
            failure: None,
            failures: Default::default(),
            recovered: Throttle::default(),
            refused: Throttle::default(),
            unkept: Throttle::default(),
            shrunk: Throttle::default(),
        }
    }

    pub(super) fn backend(&self) -> &str {
        &self.backend
    }

    /// Logs that rejected lines could not be written to the dead letters.
    pub(super) fn unkept(&self, error: &std::io::Error) {
        if let Some(Leave { untold }) = self.unkept.pass() {
            tracing::error!(backend = self.backend, %error, untold, "cannot keep refused lines as dead letters; they are lost");
        }
    }

    /// Logs that lines could not be delivered, with the change of state.
    pub(super) fn failed(&mut self, before: State, state: State, error: &str) {
        // The logged state still holds. A change that was not logged is logged with the next
        // failure that may be.
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

    /// Logs that lines were delivered again, with the change of state. `has_missed` tells whether a
    /// probe had logged a failure, `since` is when the failure began.
    pub(super) fn recovered(&mut self, (before, has_missed): (State, bool), now: State, since: Option<SystemTime>) {
        if has_missed {
            self.failure = Some(before);
        }
        if let Some(was) = self.failure.filter(|_| now == State::Up)
            && (before != now || self.recovered.is_due())
            && let Some(Leave { untold }) = self.recovered.pass()
        {
            self.failure = None;
            let lasted = since.and_then(|since| since.elapsed().ok()).map(|lasted| lasted.as_secs());
            let lasted = lasted.map(|lasted| format!("{lasted}s"));
            tracing::info!(
                backend = self.backend,
                was = was.name(),
                lasted,
                untold,
                "backend recovered: it takes lines again"
            );
        }
    }

    /// Logs that the backend accepts no larger requests than this.
    pub(super) fn shrunk(&self, bytes: u64) {
        if let Some(Leave { untold }) = self.shrunk.pass() {
            tracing::warn!(backend = self.backend, bytes, untold, "requests were too large: sending smaller ones");
        }
    }

    /// Logs that lines were rejected for good.
    pub(super) fn refused(&self, destination: &Destination, refused: &[Refused]) {
        let Some(first) = refused.first() else { return };
        let Some(Leave { untold }) = self.refused.pass() else { return };
        let Refused { line, class, status, answer } = first;
        tracing::warn!(
            backend = self.backend,
            database = destination.database(),
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Returns how often an event was suppressed, as the next message would report it.
    fn untold(throttle: &Throttle) -> u64 {
        let later = Instant::now() + crate::sys::throttle::INTERVAL * 2;
        throttle.pass_at(later).expect("it is due").untold.unwrap_or(0)
    }

    /// Returns what was logged for a backend that was up and went through these states, one per
    /// request.
    fn events(course: &[State]) -> Events {
        let mut events = Events::new("a".to_owned());
        go_on(&mut events, State::Up, course);
        events
    }

    fn go_on(events: &mut Events, mut before: State, course: &[State]) {
        for state in course {
            if *state == State::Up {
                events.recovered((before, false), *state, None);
            } else {
                events.failed(before, *state, "");
            }
            before = *state;
        }
    }

    #[test]
    fn each_failure_and_its_end_are_told() {
        for state in [State::Retrying, State::Down, State::Held] {
            let failed = events(&[state, state]);
            assert_eq!(failed.failure, Some(state));
            assert!(failed.recovered.is_due(), "{state:?}: no end yet");
            let recovered = events(&[state, state, State::Up, State::Up]);
            assert_eq!(recovered.failure, None);
            assert!(!recovered.recovered.is_due(), "{state:?}: the end was told");
        }
        assert!(events(&[State::Up, State::Up]).recovered.is_due(), "where nothing failed, nothing is told");
        for (has_missed, is_told) in [(true, true), (false, false)] {
            let mut events = Events::new("a".to_owned());
            events.recovered((State::Unknown, has_missed), State::Up, None);
            assert_eq!(!events.recovered.is_due(), is_told, "the probe told that it was not reached");
        }
    }

    #[test]
    fn a_backend_that_flaps_is_told_once_a_minute_and_how_it_is_in_the_end() {
        use State::{Down, Held, Retrying, Up};
        // A failure that was not logged has no logged end.
        let flapping = events(&[Down, Down, Down, Up, Up].repeat(5));
        assert_eq!((untold(&flapping.failures[Down as usize]), untold(&flapping.recovered)), (4, 0));

        // A failure that was suppressed at first is logged with the next try, once it may be.
        let mut late = events(&[Down, Up, Down]);
        assert_eq!(late.failure, None);
        late.failures[Down as usize] = Throttle::default();
        go_on(&mut late, Down, &[Down]);
        assert_eq!(late.failure, Some(Down));

        // The same holds for a recovery.
        let mut late = events(&[Down, Up, Retrying, Up, Up, Up]);
        assert_eq!(late.failure, Some(Retrying));
        assert_eq!(untold(&std::mem::take(&mut late.recovered)), 1);
        go_on(&mut late, Up, &[Up]);
        assert_eq!(late.failure, None);

        // The last logged state still holds, whatever came between and was suppressed.
        let between = events(&[Held, Up, Down, Held, Down]);
        assert_eq!((between.failure, untold(&between.failures[Down as usize])), (Some(Down), 0));
    }

    #[test]
    fn refused_lines_are_told_once_with_the_first() {
        let events = Events::new("a".to_owned());
        let destination = Destination::new("db", "", crate::protocol::Precision::Nanoseconds);
        let (line, class) = (bytes::Bytes::from_static(b"m v=1 1"), crate::journal::Rejection::FieldType);
        let refused = Refused { line, class, status: Some(400), answer: "no".into() };
        events.refused(&destination, &[]);
        assert!(events.refused.is_due(), "nothing was refused");
        events.refused(&destination, &[refused.clone(), refused.clone()]);
        events.refused(&destination, &[refused]);
        assert_eq!(untold(&events.refused), 1);
    }

    #[test]
    fn what_cannot_be_kept_and_what_is_too_large_is_told_once_a_minute() {
        let events = Events::new("a".to_owned());
        for _ in 0..3 {
            events.unkept(&std::io::ErrorKind::StorageFull.into());
        }
        assert!(untold(&events.unkept) == 2 && events.shrunk.is_due());
        for bytes in [3000, 2000, 1000] {
            events.shrunk(bytes);
        }
        assert_eq!(untold(&events.shrunk), 2);
    }
}
