//! A backend's state as operators see it, and the back-off between tries.
//!
//! Owns: [`Health`], which flusher and probe write and everybody else reads, and the back-off.
//! Never does: decide what is sent. Bounds: one entry per held destination, [`TEXT_BYTES`] of an
//! error.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::TEXT_BYTES;
use crate::sys::text::cut;

/// Upper bound of the first pause.
const BACKOFF_BASE: Duration = Duration::from_millis(250);
/// Upper bound of every pause in the first minute of an outage.
const EARLY_CAP: Duration = Duration::from_secs(5);
/// The first minute of an outage, counted in time spent in pauses.
const EARLY: Duration = Duration::from_secs(60);
/// Lower bound of every pause: a random pause must not make a hot loop.
const BACKOFF_FLOOR: Duration = Duration::from_millis(50);

/// Exponential back-off with full jitter: a random time up to a bound that doubles.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
    spent: Duration,
}

impl Backoff {
    /// Returns the next pause, at most `longest`.
    pub(super) fn next_pause(&mut self, longest: Duration) -> Duration {
        let cap = if self.spent < EARLY { longest.min(EARLY_CAP) } else { longest };
        let bound = BACKOFF_BASE.saturating_mul(1 << self.tries.min(10)).min(cap);
        self.tries += 1;
        let pause = bound.mul_f64(fastrand::f64()).max(BACKOFF_FLOOR);
        self.spent += pause;
        pause
    }

    /// Whether nothing has failed since the last success.
    pub(super) fn is_fresh(&self) -> bool {
        self.tries == 0
    }

    /// Starts again after a success.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// State of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// It has not been reached yet, and no line was sent.
    Unknown,
    /// It was reached, and the last request succeeded.
    Up,
    /// It answers, but cannot accept the lines now.
    Retrying,
    /// An operator must act: wrong credentials, missing database.
    Held,
    /// It does not answer.
    Down,
}

impl State {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Unknown, Self::Up, Self::Retrying, Self::Held, Self::Down];

    /// Returns the state's name in metrics, JSON and logs.
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

/// What is known of a backend. The flusher learns it from requests with lines, the probe while
/// there are none. What the flusher learns takes precedence, and replaces what the probe found.
#[derive(Debug, Default)]
pub struct Health {
    /// State set by the flusher.
    state: AtomicU8,
    /// State set by the probe.
    found: AtomicU8,
    /// Whether the probe's last report was a failure.
    has_missed: AtomicBool,
    requests: AtomicU64,
    retries: AtomicU64,
    /// Number of finished requests and probes.
    outcomes: AtomicU64,
    /// Requests in flight.
    in_flight: AtomicU64,
    /// Current maximum size of a request, in bytes.
    batch_bound: AtomicU64,
    times: Mutex<Times>,
    last_error: Mutex<Option<String>>,
    version: Mutex<Option<String>>,
    held: Mutex<Vec<Held>>,
    found_held: Mutex<Vec<Held>>,
    /// Whether an operator holds the backend: it gets no lines until it is released.
    is_held_back: AtomicBool,
    /// Incremented whenever somebody asks for a try, or holds or releases the backend.
    asked: watch::Sender<u64>,
}

/// Times of a backend's changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Since when it has not been up. `None` if it is up, or was not reached yet.
    pub unwell_since: Option<SystemTime>,
    /// Time of the last error.
    pub last_error_at: Option<SystemTime>,
    /// Time of the next try. `None` if no try is due.
    pub next_try: Option<SystemTime>,
}

/// A destination that is held until an operator acts.
#[derive(Clone, Debug)]
pub struct Held {
    /// The database. Empty if the whole backend is held.
    pub database: String,
    /// The retention policy. Empty for the database's default.
    pub retention_policy: String,
    /// The reason, in one word.
    pub reason: &'static str,
    /// The backend's answer.
    pub answer: String,
    /// Start of the hold.
    pub since: SystemTime,
    /// What the operator can do to end it.
    pub what_to_do: String,
}

impl Held {
    /// Creates an entry for a whole backend, held from now on.
    pub(super) fn backend(reason: &'static str, answer: &str, what_to_do: &str) -> Self {
        Self {
            database: String::new(),
            retention_policy: String::new(),
            reason,
            answer: cut(answer, TEXT_BYTES).to_owned(),
            since: SystemTime::now(),
            what_to_do: what_to_do.to_owned(),
        }
    }
}

impl Health {
    /// Returns the current state.
    pub fn state(&self) -> State {
        if self.is_held_back() { State::Held } else { self.found_state() }
    }

    /// Returns the current state, ignoring an operator's hold.
    pub fn found_state(&self) -> State {
        let [state, found] =
            [&self.state, &self.found].map(|state| State::ALL[usize::from(state.load(Ordering::Relaxed))]);
        match (state, found) {
            (State::Unknown | State::Up, found) if found != State::Unknown => found,
            (state, _) => state,
        }
    }

    /// Returns the number of requests, and how many of them were retries.
    pub fn requests(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.retries.load(Ordering::Relaxed))
    }

    /// Returns the last error's text, even if the error is over.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the times of the backend's changes.
    pub fn times(&self) -> Times {
        *self.lock_times()
    }

    /// Returns the number of requests in flight, and the current maximum size of a request in
    /// bytes.
    pub fn load(&self) -> (u64, u64) {
        (self.in_flight.load(Ordering::Relaxed), self.batch_bound.load(Ordering::Relaxed))
    }

    /// Returns the version of InfluxDB, or `None` if it is not known.
    pub fn version(&self) -> Option<String> {
        self.version.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records the version.
    pub(super) fn note_version(&self, version: &str) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some(version.to_owned());
    }

    /// Returns everything that is held until an operator acts, sorted by name.
    pub fn held(&self) -> Vec<Held> {
        let [mut held, found] =
            [&self.held, &self.found_held].map(|held| held.lock().unwrap_or_else(PoisonError::into_inner).clone());
        for found in found {
            let index = |one: &Held| (one.database.clone(), one.retention_policy.clone());
            if !held.iter().any(|known| index(known) == index(&found)) {
                held.push(found);
            }
        }
        if self.is_held_back() {
            let since = self.times().unwell_since.unwrap_or_else(SystemTime::now);
            held.insert(
                0,
                Held { since, ..Held::backend("operator", "an operator holds it", "twinflux backend NAME release") },
            );
        }
        held
    }

    /// Records, before anything is sent, that an operator must act first: why, and what to do.
    pub fn hold(&self, why: &str, what_to_do: &str) {
        self.set_held(vec![Held::backend("moved", why, what_to_do)]);
        self.fail(State::Held, why);
    }

    /// Asks for a try at once, ending any pause.
    pub fn ask(&self) {
        self.asked.send_modify(|asked| *asked += 1);
    }

    /// Holds or releases the backend.
    pub fn hold_back(&self, is_held_back: bool) {
        self.is_held_back.store(is_held_back, Ordering::Relaxed);
        self.note_state();
        self.ask();
    }

    /// Whether an operator holds the backend.
    pub fn is_held_back(&self) -> bool {
        self.is_held_back.load(Ordering::Relaxed)
    }

    /// Returns the number of finished requests and probes. When it changes, something new is known.
    pub fn outcomes(&self) -> u64 {
        self.outcomes.load(Ordering::Relaxed)
    }

    /// Returns a receiver that changes when somebody asks for a try.
    pub(super) fn asked(&self) -> watch::Receiver<u64> {
        self.asked.subscribe()
    }

    /// Records what a probe found, and returns whether it was recorded. `requests` is the number of
    /// requests when the probe began: if lines were sent since, the finding is discarded. A backend
    /// that was never reached stays unknown while it does not answer.
    pub(super) fn find(&self, requests: u64, state: State, error: Option<&str>, held: &[Held]) -> bool {
        let of_flusher = State::ALL[usize::from(self.state.load(Ordering::Relaxed))];
        // The flusher has reported the failure, and tries again with lines.
        if self.requests().0 != requests || !matches!(of_flusher, State::Unknown | State::Up) {
            return false;
        }
        match error {
            Some(error) => self.note_error(error),
            // A backend that never answers has no success that could clear the error.
            None if state == State::Unknown => self.forget_error(),
            None => {}
        }
        let is_unreached = self.state() == State::Unknown && state == State::Down;
        self.has_missed.store(error.is_some(), Ordering::Relaxed);
        if !is_unreached {
            self.found.store(state as u8, Ordering::Relaxed);
            self.note_state();
        }
        let mut known = self.found_held.lock().unwrap_or_else(PoisonError::into_inner);
        // A destination that is still held keeps the time when it was first found held.
        let since = |held: &Held| {
            let was = known.iter().find(|one| one.database == held.database && one.answer == held.answer);
            was.map_or(held.since, |was| was.since)
        };
        let held = held.iter().map(|held| Held { since: since(held), ..held.clone() }).collect();
        *known = held;
        true
    }

    /// Counts a finished probe.
    pub(super) fn end_probe(&self) {
        self.outcomes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_held(&self, held: Vec<Held>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// Counts the start of a request, of at most `bound` bytes.
    pub(super) fn count_request(&self, is_retry: bool, bound: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.batch_bound.store(bound, Ordering::Relaxed);
        self.retries.fetch_add(u64::from(is_retry), Ordering::Relaxed);
    }

    /// Counts the end of a request.
    pub(super) fn end_request(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Records that the next try comes after this pause.
    pub(super) fn note_pause(&self, pause: Duration) {
        self.lock_times().next_try = Some(SystemTime::now() + pause);
    }

    /// Records a success, and the state it leaves the backend in. Returns the state before, and
    /// whether a probe had reported a failure.
    pub(super) fn succeed(&self, state: State) -> (State, bool) {
        let before = self.change(state);
        (before, self.has_missed.swap(false, Ordering::Relaxed))
    }

    /// Records a failure and its text. Returns the state before.
    pub(super) fn fail(&self, state: State, error: &str) -> State {
        self.note_error(error);
        self.change(state)
    }

    /// Records an error that does not change the state.
    pub(super) fn note_error(&self, error: &str) {
        let kept = Some(cut(error, TEXT_BYTES).to_owned());
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        self.lock_times().last_error_at = Some(SystemTime::now());
    }

    fn forget_error(&self) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.lock_times().last_error_at = None;
    }

    fn change(&self, state: State) -> State {
        let before = self.state();
        self.state.store(state as u8, Ordering::Relaxed);
        if self.found.swap(State::Unknown as u8, Ordering::Relaxed) != State::Unknown as u8 {
            self.found_held.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        self.outcomes.fetch_add(1, Ordering::Relaxed);
        self.note_state();
        before
    }

    fn lock_times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates the time since when the backend is not well.
    fn note_state(&self) {
        let is_well = matches!(self.state(), State::Unknown | State::Up);
        let mut times = self.lock_times();
        if is_well {
            (times.unwell_since, times.next_try) = (None, None);
        } else {
            times.unwell_since.get_or_insert_with(SystemTime::now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the shortest and the longest of many pauses after so many failures, in milliseconds.
    fn pauses(backoffs: &mut [Backoff]) -> (u128, u128) {
        let pauses: Vec<u128> =
            backoffs.iter_mut().map(|backoff| backoff.next_pause(Duration::from_secs(30)).as_millis()).collect();
        (pauses.iter().copied().min().unwrap_or(0), pauses.iter().copied().max().unwrap_or(0))
    }

    #[test]
    fn pauses_grow_to_a_bound_at_random_and_are_never_none() {
        let mut backoffs: Vec<Backoff> = (0..2000).map(|_| Backoff::default()).collect();
        for (failures, bound) in [250, 500, 1000, 2000, 4000, 5000, 5000, 5000, 5000].into_iter().enumerate() {
            let (shortest, longest) = pauses(&mut backoffs);
            // Pauses spread over the whole range, so that relays that failed together do not retry
            // together.
            assert!((50..bound / 5 + 50).contains(&shortest), "{failures}: {shortest} ms of {bound} ms");
            assert!((bound * 9 / 10..=bound).contains(&longest), "{failures}: {longest} ms of {bound} ms");
        }
        // After a minute they grow further, up to a bound, however long the outage is.
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
    fn an_error_is_over_once_it_took_a_write() {
        let health = Health::default();
        assert_eq!(health.fail(State::Down, "refused"), State::Unknown);
        assert_eq!(health.succeed(State::Up), (State::Down, false));
        assert_eq!((health.state(), health.last_error().as_deref()), (State::Up, Some("refused")));
        assert!(health.times().unwell_since.is_none() && health.times().last_error_at.is_some());
        health.fail(State::Down, "refused");
        let since = health.times().unwell_since;
        health.fail(State::Held, "refused");
        assert!(since.is_some() && health.times().unwell_since == since, "since it was last up");
    }

    #[test]
    fn an_operator_holds_and_releases_it_whatever_else_is_so() {
        let health = Health::default();
        health.succeed(State::Up);
        health.hold_back(true);
        assert_eq!((health.state(), health.held()[0].reason), (State::Held, "operator"));
        assert!(health.times().unwell_since.is_some());
        health.succeed(State::Up);
        assert_eq!(health.state(), State::Held);
        health.hold_back(false);
        assert_eq!((health.state(), health.held().len(), health.times().unwell_since), (State::Up, 0, None));
    }

    #[test]
    fn a_backend_may_be_held_before_anything_was_sent() {
        let health = Health::default();
        health.hold("no password", "write one");
        assert_eq!(health.state(), State::Held);
        assert_eq!(health.last_error().as_deref(), Some("no password"));
        let held = health.held();
        assert_eq!((held.len(), &*held[0].answer, &*held[0].what_to_do), (1, "no password", "write one"));
    }

    /// Dashboards and alerts use these names.
    #[test]
    fn the_states_names_stay() {
        assert_eq!(State::ALL.map(State::name), ["unknown", "up", "retrying", "held", "down"]);
    }

    #[test]
    fn a_backend_is_unknown_until_it_is_reached_and_lines_tell_more() {
        let health = Health::default();
        health.find(0, State::Down, Some("refused"), &[]);
        assert_eq!((health.state(), health.last_error().as_deref()), (State::Unknown, Some("refused")));
        // As with a backend that gives no answer, but whose name resolves again.
        health.find(0, State::Unknown, None, &[]);
        assert!(health.last_error().is_none() && health.times().last_error_at.is_none());
        health.find(0, State::Up, None, &[]);
        assert_eq!(health.state(), State::Up);
        assert_eq!(health.fail(State::Held, "no database"), State::Up);
        assert!(!health.find(0, State::Up, None, &[]));
        assert!(!health.find(0, State::Down, Some("refused"), &[]));
        assert_eq!((health.state(), health.last_error().as_deref()), (State::Held, Some("no database")));
    }

    #[test]
    fn what_a_probe_finds_counts_until_lines_tell_more() {
        let health = Health::default();
        health.count_request(false, 1);
        assert_eq!(health.succeed(State::Up), (State::Unknown, false));
        let held = || vec![Held::backend("setup", "404", "fix it")];
        // The probe began before lines were sent: what the lines learned takes precedence.
        health.find(0, State::Down, Some("old"), &held());
        assert_eq!((health.state(), health.held().len(), health.last_error()), (State::Up, 0, None));
        for state in [State::Down, State::Held, State::Retrying] {
            health.find(1, state, Some("new"), &held());
            assert_eq!((health.state(), health.held().len()), (state, 1));
            assert_eq!(health.succeed(State::Up), (state, true), "the probe had told");
            assert_eq!((health.state(), health.held().len()), (State::Up, 0));
        }
        health.find(1, State::Down, Some("gone"), &held());
        health.find(1, State::Up, None, &[]);
        assert_eq!(health.succeed(State::Up), (State::Up, false), "the probe told of the end, too");
        // A destination that the flusher holds is not listed twice.
        health.set_held(held());
        health.find(1, State::Held, None, &held());
        assert_eq!(health.held().len(), 1);
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let health = Health::default();
        health.note_error(&"ä".repeat(TEXT_BYTES));
        assert_eq!(health.last_error().map(|text| text.len()), Some(TEXT_BYTES));
    }
}
