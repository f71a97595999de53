//! A backend's state as operators see it, and the pause between tries.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::TEXT_BYTES;
use crate::sys::text::cut;

/// The first pause's upper bound.
const BACKOFF_BASE: Duration = Duration::from_millis(250);
/// Every pause's upper bound in the first minute of an outage, and after it.
const BACKOFF_CAPS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(30)];
/// The first minute, as far as it was spent in pauses.
const EARLY: Duration = Duration::from_secs(60);
/// Every pause's lower bound: chance never makes a hot loop.
const BACKOFF_FLOOR: Duration = Duration::from_millis(50);

/// Exponential back-off with full jitter: a random time up to a bound that doubles.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
    spent: Duration,
}

impl Backoff {
    /// The next pause.
    pub(super) fn next_pause(&mut self) -> Duration {
        let cap = BACKOFF_CAPS[usize::from(self.spent >= EARLY)];
        let bound = BACKOFF_BASE.saturating_mul(1 << self.tries.min(10)).min(cap);
        self.tries += 1;
        let pause = bound.mul_f64(fastrand::f64()).max(BACKOFF_FLOOR);
        self.spent += pause;
        pause
    }

    /// Whether nothing failed since the last success.
    pub(super) fn is_fresh(&self) -> bool {
        self.tries == 0
    }

    /// Begins anew, after a success.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// A backend's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// It was not reached yet, and no line was sent.
    Unknown,
    /// It was reached, and the last request ended well.
    Up,
    /// It answers, but cannot take the lines now.
    Retrying,
    /// An operator must act: credentials, missing database.
    Held,
    /// It does not answer.
    Down,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Unknown, Self::Up, Self::Retrying, Self::Held, Self::Down];

    /// The state's name in metrics, JSON and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Retrying => "retrying",
            Self::Held => "held",
            Self::Down => "down",
        }
    }
}

/// What a flusher shows of its backend. Only the flusher changes it, and the probe while the state is unknown.
#[derive(Debug, Default)]
pub struct Health {
    state: AtomicU8,
    requests: AtomicU64,
    retries: AtomicU64,
    has_delivered: AtomicBool,
    has_failed: AtomicBool,
    last_error: Mutex<Option<String>>,
    held: Mutex<Vec<Held>>,
}

/// A destination that waits until an operator acts.
#[derive(Clone, Debug)]
pub struct Held {
    /// The database.
    pub database: String,
    /// The retention policy; empty for the database's default.
    pub retention_policy: String,
    /// Why, in a word.
    pub reason: &'static str,
    /// What the backend answered.
    pub answer: String,
    /// Since when.
    pub since: std::time::SystemTime,
    /// What would end it.
    pub what_to_do: String,
}

impl Health {
    /// The state now.
    pub fn state(&self) -> State {
        State::ALL[usize::from(self.state.load(Ordering::Relaxed))]
    }

    /// Requests made, and how many of them were made again.
    pub fn requests(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.retries.load(Ordering::Relaxed))
    }

    /// The last error's text, whether or not it is over.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What waits until an operator acts, by name.
    pub fn held(&self) -> Vec<Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it took a write or has not yet failed.
    pub fn is_ready(&self) -> bool {
        self.has_delivered.load(Ordering::Relaxed) || !self.has_failed.load(Ordering::Relaxed)
    }

    /// Notes, before anything is sent, that an operator must act first.
    pub fn hold(&self, why: &str) {
        self.fail(State::Held, why);
    }

    /// Notes that it was reached, unless lines told more already.
    pub(super) fn reach(&self) {
        let (from, to) = (State::Unknown as u8, State::Up as u8);
        // Whatever the flusher found out meanwhile stays.
        self.state.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).ok();
    }

    /// Notes why it was not reached, unless lines told more already.
    pub(super) fn miss(&self, error: &str) {
        if self.state() == State::Unknown {
            self.note_error(error);
        }
    }

    pub(super) fn set_held(&self, held: Vec<Held>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    pub(super) fn count_request(&self, is_retry: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.retries.fetch_add(u64::from(is_retry), Ordering::Relaxed);
    }

    /// Notes a success, and the state it leaves the backend in; returns the state before.
    pub(super) fn succeed(&self, state: State) -> State {
        self.has_delivered.store(true, Ordering::Relaxed);
        self.change(state)
    }

    /// Notes a failure and its text; returns the state before.
    pub(super) fn fail(&self, state: State, error: &str) -> State {
        self.has_failed.store(true, Ordering::Relaxed);
        self.note_error(error);
        self.change(state)
    }

    /// Notes an error that does not change the state.
    pub(super) fn note_error(&self, error: &str) {
        let kept = Some(cut(error, TEXT_BYTES).to_owned());
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }

    fn change(&self, state: State) -> State {
        State::ALL[usize::from(self.state.swap(state as u8, Ordering::Relaxed))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shortest and the longest of many pauses after so many failures, in milliseconds.
    fn pauses(backoffs: &mut [Backoff]) -> (u128, u128) {
        let pauses: Vec<u128> = backoffs.iter_mut().map(|backoff| backoff.next_pause().as_millis()).collect();
        (pauses.iter().copied().min().unwrap_or(0), pauses.iter().copied().max().unwrap_or(0))
    }

    #[test]
    fn pauses_grow_to_a_bound_at_random_and_are_never_none() {
        let mut backoffs: Vec<Backoff> = (0..2000).map(|_| Backoff::default()).collect();
        for (failures, bound) in [250, 500, 1000, 2000, 4000, 5000, 5000, 5000, 5000].into_iter().enumerate() {
            let (shortest, longest) = pauses(&mut backoffs);
            // Chance spreads them over all of the time, so that relays that failed together do not come back together.
            assert!((50..bound / 5 + 50).contains(&shortest), "{failures}: {shortest} ms of {bound} ms");
            assert!((bound * 9 / 10..=bound).contains(&longest), "{failures}: {longest} ms of {bound} ms");
        }
        // After a minute they grow on, to a bound, however long an outage is.
        for _ in 0..40 {
            pauses(&mut backoffs);
        }
        for _ in 0..100 {
            let (shortest, longest) = pauses(&mut backoffs);
            assert!(
                (50..6000).contains(&shortest) && (27_000..=30_000).contains(&longest),
                "{shortest} to {longest} ms"
            );
        }
        backoffs.iter_mut().for_each(Backoff::reset);
        let (shortest, longest) = pauses(&mut backoffs);
        assert!(shortest >= 50 && (225..=250).contains(&longest), "{shortest} to {longest} ms");
    }

    #[test]
    fn a_backend_is_ready_until_it_fails_and_again_once_it_took_a_write() {
        let health = Health::default();
        assert!(health.is_ready());
        assert_eq!(health.fail(State::Down, "refused"), State::Unknown);
        assert!(!health.is_ready());
        assert_eq!(health.succeed(State::Up), State::Down);
        assert!(health.is_ready());
        assert_eq!((health.state(), health.last_error().as_deref()), (State::Up, Some("refused")));
    }

    #[test]
    fn a_backend_that_is_held_before_anything_was_sent_is_not_ready() {
        let health = Health::default();
        health.hold("no password");
        assert_eq!((health.state(), health.is_ready()), (State::Held, false));
        assert_eq!(health.last_error().as_deref(), Some("no password"));
    }

    /// Dashboards and alerts go by them.
    #[test]
    fn the_states_names_stay() {
        assert_eq!(State::ALL.map(State::name), ["unknown", "up", "retrying", "held", "down"]);
    }

    #[test]
    fn a_backend_is_unknown_until_it_is_reached_and_lines_tell_more() {
        let health = Health::default();
        health.miss("refused");
        assert_eq!((health.state(), health.last_error().as_deref()), (State::Unknown, Some("refused")));
        health.reach();
        assert_eq!(health.state(), State::Up);
        health.fail(State::Held, "no database");
        health.reach();
        health.miss("refused");
        assert_eq!((health.state(), health.last_error().as_deref()), (State::Held, Some("no database")));
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let health = Health::default();
        health.note_error(&"ä".repeat(TEXT_BYTES));
        assert_eq!(health.last_error().map(|text| text.len()), Some(TEXT_BYTES));
    }
}
