//! A backend's state as operators see it, and the pause between tries.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::TEXT_BYTES;
use crate::sys::text::cut;

/// The first pause's upper bound.
const BACKOFF_BASE: Duration = Duration::from_millis(250);
/// Every pause's upper bound in the first minute of an outage.
const EARLY_CAP: Duration = Duration::from_secs(5);
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
    /// The next pause, `longest` at most.
    pub(super) fn next_pause(&mut self, longest: Duration) -> Duration {
        let cap = if self.spent < EARLY { longest.min(EARLY_CAP) } else { longest };
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

/// What is known of a backend: by its flusher from requests with lines, and by its probe while there are none. What the
/// flusher learned counts for more, and ends what the probe found.
#[derive(Debug, Default)]
pub struct Health {
    /// The flusher's.
    state: AtomicU8,
    /// The probe's.
    found: AtomicU8,
    /// Whether the probe found, after it had told that something is wrong, nothing better yet.
    has_missed: AtomicBool,
    requests: AtomicU64,
    retries: AtomicU64,
    /// Outcomes of requests and probes.
    outcomes: AtomicU64,
    /// Requests under way.
    in_flight: AtomicU64,
    /// The bytes of a request, at most, as it is now.
    batch_bound: AtomicU64,
    times: Mutex<Times>,
    last_error: Mutex<Option<String>>,
    version: Mutex<Option<String>>,
    held: Mutex<Vec<Held>>,
    found_held: Mutex<Vec<Held>>,
    /// Whether an operator holds it: it gets no lines until it is released.
    is_held_back: AtomicBool,
    /// How often somebody asked for a try, or held or released it.
    asked: watch::Sender<u64>,
}

/// When something became as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Since when it has not been up; none if it is, or was not reached yet.
    pub unwell_since: Option<SystemTime>,
    /// When the last error came.
    pub last_error_at: Option<SystemTime>,
    /// When it is tried next; none if nothing waits for that.
    pub next_try: Option<SystemTime>,
}

/// A destination that waits until an operator acts.
#[derive(Clone, Debug)]
pub struct Held {
    /// The database; empty where it is the whole backend that waits.
    pub database: String,
    /// The retention policy; empty for the database's default.
    pub retention_policy: String,
    /// Why, in a word.
    pub reason: &'static str,
    /// What the backend answered.
    pub answer: String,
    /// Since when.
    pub since: SystemTime,
    /// What would end it.
    pub what_to_do: String,
}

impl Held {
    /// A whole backend, from now on.
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
    /// The state now.
    pub fn state(&self) -> State {
        if self.is_held_back() { State::Held } else { self.found_state() }
    }

    /// The state now, whether or not an operator holds it.
    pub fn found_state(&self) -> State {
        let [state, found] =
            [&self.state, &self.found].map(|state| State::ALL[usize::from(state.load(Ordering::Relaxed))]);
        match (state, found) {
            (State::Unknown | State::Up, found) if found != State::Unknown => found,
            (state, _) => state,
        }
    }

    /// Requests made, and how many of them were made again.
    pub fn requests(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.retries.load(Ordering::Relaxed))
    }

    /// The last error's text, whether or not it is over.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When it became as it is.
    pub fn times(&self) -> Times {
        *self.lock_times()
    }

    /// Requests under way, and the bytes that one may have now.
    pub fn load(&self) -> (u64, u64) {
        (self.in_flight.load(Ordering::Relaxed), self.batch_bound.load(Ordering::Relaxed))
    }

    /// The version of InfluxDB that it told; none while none is known.
    pub fn version(&self) -> Option<String> {
        self.version.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes the version that it told.
    pub(super) fn note_version(&self, version: &str) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some(version.to_owned());
    }

    /// What waits until an operator acts, by name.
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

    /// Notes, before anything is sent, that an operator must act first: why, and what to do.
    pub fn hold(&self, why: &str, what_to_do: &str) {
        self.set_held(vec![Held::backend("moved", why, what_to_do)]);
        self.fail(State::Held, why);
    }

    /// Asks for a try at once, whatever was to be waited for.
    pub fn ask(&self) {
        self.asked.send_modify(|asked| *asked += 1);
    }

    /// Holds it, or releases it.
    pub fn hold_back(&self, is_held_back: bool) {
        self.is_held_back.store(is_held_back, Ordering::Relaxed);
        self.note_state();
        self.ask();
    }

    /// Whether an operator holds it.
    pub fn is_held_back(&self) -> bool {
        self.is_held_back.load(Ordering::Relaxed)
    }

    /// Outcomes of requests and probes so far: with the next one something new is known.
    pub fn outcomes(&self) -> u64 {
        self.outcomes.load(Ordering::Relaxed)
    }

    /// Tells when somebody asks for a try.
    pub(super) fn asked(&self) -> watch::Receiver<u64> {
        self.asked.subscribe()
    }

    /// Notes what a probe found, unless lines told more since it began, when there had been so many requests; returns whether
    /// it was noted. A backend that was never reached stays unknown while nobody answers.
    pub(super) fn find(&self, requests: u64, state: State, error: Option<&str>, held: &[Held]) -> bool {
        let of_flusher = State::ALL[usize::from(self.state.load(Ordering::Relaxed))];
        // What keeps lines from being taken has been told, and is tried again with them.
        if self.requests().0 != requests || !matches!(of_flusher, State::Unknown | State::Up) {
            return false;
        }
        match error {
            Some(error) => self.note_error(error),
            // One that gives no answer has no success either that would tell that an error is over.
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
        // What is held still is held since it was found first.
        let since = |held: &Held| {
            let was = known.iter().find(|one| one.database == held.database && one.answer == held.answer);
            was.map_or(held.since, |was| was.since)
        };
        let held = held.iter().map(|held| Held { since: since(held), ..held.clone() }).collect();
        *known = held;
        true
    }

    /// A probe has found what it can.
    pub(super) fn end_look(&self) {
        self.outcomes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_held(&self, held: Vec<Held>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// A request begins, of so many bytes at most.
    pub(super) fn count_request(&self, is_retry: bool, bound: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.batch_bound.store(bound, Ordering::Relaxed);
        self.retries.fetch_add(u64::from(is_retry), Ordering::Relaxed);
    }

    /// A request has ended.
    pub(super) fn end_request(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// It is left alone for so long.
    pub(super) fn note_pause(&self, pause: Duration) {
        self.lock_times().next_try = Some(SystemTime::now() + pause);
    }

    /// Notes a success, and the state it leaves the backend in. Returns the state before, and whether a probe had told that
    /// something is wrong.
    pub(super) fn succeed(&self, state: State) -> (State, bool) {
        let before = self.change(state);
        (before, self.has_missed.swap(false, Ordering::Relaxed))
    }

    /// Notes a failure and its text; returns the state before.
    pub(super) fn fail(&self, state: State, error: &str) -> State {
        self.note_error(error);
        self.change(state)
    }

    /// Notes an error that does not change the state.
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

    /// Notes since when it is not well.
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

    /// The shortest and the longest of many pauses after so many failures, in milliseconds.
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

    /// Dashboards and alerts go by them.
    #[test]
    fn the_states_names_stay() {
        assert_eq!(State::ALL.map(State::name), ["unknown", "up", "retrying", "held", "down"]);
    }

    #[test]
    fn a_backend_is_unknown_until_it_is_reached_and_lines_tell_more() {
        let health = Health::default();
        health.find(0, State::Down, Some("refused"), &[]);
        assert_eq!((health.state(), health.last_error().as_deref()), (State::Unknown, Some("refused")));
        // As of one that gives no answer, but whose name has an address again.
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
        let held = || vec![Held::backend("setup", "404", "mend it")];
        // It began before lines were sent: they told more.
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
        // What the flusher holds is not held twice.
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
