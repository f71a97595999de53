//! The failing destinations of one backend: since when and why they fail, and when each is tried
//! again.
//!
//! Owns: the destinations' back-off and advice. Never does: send, or park a destination (the
//! flusher does). Bounds: one entry per failing destination, and one per destination with lines
//! given up as poison.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::super::health::{Backoff, Held, State};
use super::super::outcome::Fate;
use super::{Lease, Outcome};
use crate::batch::Destination;
use crate::journal::LogId;
use crate::sys::monotonic;

/// Failures without a reason before a line is suspected as the cause.
const TRIES: u32 = 5;
/// The same for time-outs, each of which takes the whole time limit.
const SILENT_TRIES: u32 = 2;
/// Maximum number of a destination's lines given up as poison in a minute: during an incident a
/// backend answers 500 to thousands of good lines.
const MAX_POISON: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);

/// The troubles of one backend.
pub(super) struct Troubles {
    /// Upper bound of every pause.
    longest_pause: Duration,
    /// Why the whole backend is held.
    backend: Option<Held>,
    /// By the destination's log in the journal.
    by_log: HashMap<LogId, Trouble>,
    /// Start of the current minute, and lines given up in it.
    poison: HashMap<LogId, (Instant, u32)>,
}

struct Trouble {
    destination: Arc<Destination>,
    state: State,
    backoff: Backoff,
    /// Failures in a row that a line may have caused, and how many of them were time-outs.
    suspicious: (u32, u32),
    until: Instant,
    since: SystemTime,
    reason: &'static str,
    answer: String,
    what_to_do: String,
}

impl Troubles {
    /// Starts without troubles. No pause is longer than `longest_pause`.
    pub(super) fn new(longest_pause: Duration) -> Self {
        Self { longest_pause, backend: None, by_log: HashMap::new(), poison: HashMap::new() }
    }

    /// Holds the whole backend until an operator acts; `None` releases it.
    pub(super) fn hold_backend(&mut self, outcome: Option<&Outcome>) {
        let since = self.backend.as_ref().map(|held| held.since);
        self.backend = outcome.map(|outcome| {
            let held = Held::backend("setup", &outcome.text, "see the answer: no request of any database can pass");
            Held { since: since.unwrap_or(held.since), ..held }
        });
    }

    /// Records a failed request for the lease's destination. Returns the end of the back-off, and
    /// the destination's state.
    pub(super) fn fail(&mut self, lease: &Lease, state: State, outcome: &Outcome) -> (Instant, State) {
        let now = monotonic::now();
        let trouble = self.by_log.entry(lease.log()).or_insert_with(|| Trouble {
            destination: Arc::clone(&lease.destination),
            state,
            backoff: Backoff::default(),
            suspicious: (0, 0),
            until: now,
            since: SystemTime::now(),
            reason: "",
            answer: String::new(),
            what_to_do: String::new(),
        });
        trouble.answer.clone_from(&outcome.text);
        (trouble.reason, trouble.what_to_do) = advice(outcome, &lease.destination);
        if outcome.may_be_a_lines_fault() {
            trouble.suspicious.0 += 1;
            trouble.suspicious.1 += u32::from(outcome.fate == Fate::Stalled);
        } else {
            trouble.suspicious = (0, 0);
        }
        // An intermediary that keeps refusing everything needs an operator.
        let is_refused = outcome.fate == Fate::Unexpected && trouble.suspicious.0 >= TRIES;
        let state = if is_refused { State::Held } else { state };
        if trouble.state != state {
            (trouble.state, trouble.since) = (state, SystemTime::now());
        }
        // Requests that were in flight together fail together, and count as one failure.
        if trouble.until <= now {
            let pause = trouble.backoff.next_pause(self.longest_pause);
            let pause = match outcome.fate {
                Fate::Busy { retry_after } => pause.max(retry_after.unwrap_or_default()),
                _ => pause,
            };
            trouble.until = now + pause;
        }
        (trouble.until, state)
    }

    /// Removes a destination that accepts lines again.
    pub(super) fn end(&mut self, log: LogId) {
        self.by_log.remove(&log);
    }

    pub(super) fn has(&self, log: LogId) -> bool {
        self.by_log.contains_key(&log)
    }

    /// Whether the destination failed often enough to suspect a line.
    pub(super) fn is_suspicious(&self, log: LogId) -> bool {
        let tries = self.by_log.get(&log).map_or((0, 0), |trouble| trouble.suspicious);
        tries.0 >= TRIES || tries.1 >= SILENT_TRIES
    }

    /// Returns the worst state of any destination, or `Up` if there is no trouble.
    pub(super) fn state(&self) -> State {
        let states = self.by_log.values().map(|trouble| trouble.state);
        let severity = |state: &State| match state {
            State::Unknown | State::Up => 0,
            State::Retrying => 1,
            State::Down => 2,
            State::Held => 3,
        };
        states.max_by_key(severity).unwrap_or(State::Up)
    }

    /// Returns everything that is held until an operator acts, sorted by name.
    pub(super) fn held(&self) -> Vec<Held> {
        let held = self.by_log.values().filter(|trouble| trouble.state == State::Held);
        let mut held: Vec<Held> = held
            .map(|trouble| Held {
                database: trouble.destination.database().to_owned(),
                retention_policy: trouble.destination.retention_policy().to_owned(),
                reason: trouble.reason,
                answer: trouble.answer.clone(),
                since: trouble.since,
                what_to_do: trouble.what_to_do.clone(),
            })
            .collect();
        held.sort_by(|one, other| {
            (&one.database, &one.retention_policy).cmp(&(&other.database, &other.retention_policy))
        });
        self.backend.iter().cloned().chain(held).collect()
    }

    /// Returns the time of the next try after `after`.
    pub(super) fn next(&self, after: Instant) -> Option<Instant> {
        self.by_log.values().map(|trouble| trouble.until).filter(|until| *until > after).min()
    }

    /// Ends every pause at this time at the latest. Returns each destination with the end of its
    /// pause.
    pub(super) fn shorten(&mut self, latest: Instant) -> Vec<(LogId, Instant)> {
        let shortened = self.by_log.iter_mut().map(|(log, trouble)| {
            trouble.until = trouble.until.min(latest);
            (*log, trouble.until)
        });
        shortened.collect()
    }

    /// Returns how many more lines of the destination may be given up as poison now.
    pub(super) fn poison_left(&self, log: LogId) -> u32 {
        let given_up = self
            .poison
            .get(&log)
            .filter(|(since, _)| monotonic::now().saturating_duration_since(*since) < MINUTE)
            .map_or(0, |(_, lines)| *lines);
        MAX_POISON.saturating_sub(given_up)
    }

    /// Records that so many lines of the destination were given up as poison.
    pub(super) fn note_poison(&mut self, log: LogId, lines: u32) {
        if lines == 0 {
            return;
        }
        let (since, count) = self.poison.entry(log).or_insert_with(|| (monotonic::now(), 0));
        if monotonic::now().saturating_duration_since(*since) >= MINUTE {
            (*since, *count) = (monotonic::now(), 0);
        }
        *count += lines;
    }
}

/// Returns the reason for a hold in one word, and what an operator should do.
pub(in crate::deliver) fn advice(outcome: &Outcome, destination: &Destination) -> (&'static str, String) {
    let (database, retention_policy) = (destination.database(), destination.retention_policy());
    match outcome.status {
        Some(401) => (
            "credentials",
            "check username and password_file, or token_file: they are read again for each try".to_owned(),
        ),
        Some(403) => ("rights", format!("let this user write to database {database:?}")),
        Some(404 | 500) if outcome.text.contains("retention policy not found") => {
            ("missing", format!("make retention policy {retention_policy:?} on database {database:?} there"))
        }
        Some(404) if outcome.text.contains("database not found") => {
            ("missing", format!("run CREATE DATABASE \"{database}\" there, or set create_database = true"))
        }
        Some(404) => ("missing", "make what the answer names there, or correct the backend's url".to_owned()),
        Some(413) => ("size", "raise the limit of a request's size there, or in what stands before it".to_owned()),
        Some(_) => {
            ("refused", "see the answer: every line is refused alike, so the cause is not in the lines".to_owned())
        }
        None => ("setup", "see the answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Batch, Received, WallTime};
    use crate::journal::{BackendConfig, BackendId, Journal, Limits};
    use crate::protocol::Precision;

    /// Returns leases of one line for each of these databases; the retention policy has the same
    /// name.
    fn leases(databases: &[&str]) -> Vec<Lease> {
        let backend = BackendConfig { name: "a".to_owned(), address: String::new(), replay_share: 0.5 };
        let journal = Journal::new(1 << 30, &[backend]);
        for database in databases {
            let (database, retention_policy) = ((*database).to_owned(), (*database).to_owned());
            let destination = Arc::new(Destination::new(database, retention_policy, Precision::Nanoseconds));
            let received = Received { monotonic: monotonic::now(), wall: WallTime::MIN };
            journal.append(Batch::new(destination, "m v=1\n", 1, received));
        }
        let limits = Limits { lines: u64::MAX, bytes: u64::MAX, linger: Duration::ZERO };
        let mut reader = journal.reader(BackendId::new(0));
        databases.iter().map(|_| reader.try_next(&limits).expect("a lease")).collect()
    }

    fn outcome(fate: Fate) -> Outcome {
        Outcome::new(fate, "it fails".to_owned())
    }

    /// Records a failure a day after the previous one.
    async fn fail(troubles: &mut Troubles, lease: &Lease, state: State, fate: Fate) -> State {
        tokio::time::advance(Duration::from_secs(24 * 3600)).await;
        troubles.fail(lease, state, &outcome(fate)).1
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_fail_together_are_one_failure_with_one_pause() {
        let (mut troubles, leases) = (Troubles::new(Duration::from_secs(30)), leases(&["x", "y"]));
        for failure in 0..20 {
            let now = monotonic::now();
            let (until, state) = troubles.fail(&leases[0], State::Retrying, &outcome(Fate::Transient));
            assert!(until > now && state == State::Retrying, "failure {failure}");
            for _ in 0..5 {
                assert_eq!(troubles.fail(&leases[0], State::Retrying, &outcome(Fate::Transient)).0, until);
            }
            let (of_other, _) = troubles.fail(&leases[1], State::Retrying, &outcome(Fate::Transient));
            assert!(of_other > now, "each has a pause of its own");
            tokio::time::advance(until - now).await;
        }
        assert!(troubles.has(LogId::new(0)) && troubles.has(LogId::new(1)) && !troubles.has(LogId::new(2)));
        troubles.end(LogId::new(0));
        assert!(!troubles.has(LogId::new(0)) && troubles.has(LogId::new(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_is_suspected_after_several_failures_in_a_row_that_tell_nothing() {
        let lease = leases(&["x"]).remove(0);
        for (fate, tries) in [(Fate::Failed, Some(TRIES)), (Fate::Stalled, Some(SILENT_TRIES)), (Fate::Transient, None)]
        {
            let mut troubles = Troubles::new(Duration::from_secs(30));
            for failure in 1..=TRIES {
                fail(&mut troubles, &lease, State::Retrying, fate).await;
                assert_eq!(
                    troubles.is_suspicious(LogId::new(0)),
                    tries.is_some_and(|tries| failure >= tries),
                    "{fate:?} {failure}"
                );
            }
            // A failure with a reason is no line's fault, and clears earlier suspicions.
            fail(&mut troubles, &lease, State::Retrying, Fate::Transient).await;
            assert!(!troubles.is_suspicious(LogId::new(0)));
            fail(&mut troubles, &lease, State::Retrying, fate).await;
            assert!(!troubles.is_suspicious(LogId::new(0)), "{fate:?}: counted from there");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_stands_between_and_refuses_everything_is_to_be_looked_at() {
        let (mut troubles, lease) = (Troubles::new(Duration::from_secs(30)), leases(&["x"]).remove(0));
        for failure in 1..=TRIES + 2 {
            let state = fail(&mut troubles, &lease, State::Retrying, Fate::Unexpected).await;
            let expected = if failure < TRIES { State::Retrying } else { State::Held };
            assert_eq!((state, troubles.state()), (expected, expected), "failure {failure}");
            assert_eq!(troubles.held().len(), usize::from(expected == State::Held));
        }
        assert_eq!(fail(&mut troubles, &lease, State::Retrying, Fate::Failed).await, State::Retrying);
    }

    #[tokio::test(start_paused = true)]
    async fn the_state_is_the_worst_of_any_destination_and_those_held_are_listed_by_name() {
        let (mut troubles, leases) = (Troubles::new(Duration::from_secs(30)), leases(&["c", "a", "b"]));
        assert_eq!(troubles.state(), State::Up);
        for (log, state) in [(0, State::Retrying), (1, State::Down), (2, State::Held), (0, State::Held)] {
            assert_eq!(fail(&mut troubles, &leases[log], state, Fate::HoldDestination).await, state);
            assert_eq!(troubles.state(), state);
        }
        let held = troubles.held();
        let names: Vec<_> = held.iter().map(|held| (&held.database[..], &held.retention_policy[..])).collect();
        assert_eq!(names, [("b", "b"), ("c", "c")]);
        assert!(held.iter().all(|held| held.answer == "it fails" && held.reason == "setup"));
        // A destination is held since it was first held.
        fail(&mut troubles, &leases[2], State::Held, Fate::HoldDestination).await;
        assert_eq!(troubles.held()[0].since, held[0].since);
        for (log, state) in [(2, State::Held), (0, State::Down), (1, State::Up)] {
            troubles.end(LogId::new(log));
            assert_eq!(troubles.state(), state);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_try_is_the_first_that_is_not_due_yet_and_none_waits_longer_than_it_may() {
        let (mut troubles, leases, now) =
            (Troubles::new(Duration::from_secs(30)), leases(&["x", "y"]), monotonic::now());
        let mut busy = |log: usize, seconds| {
            let retry_after = Some(Duration::from_secs(seconds));
            troubles.fail(&leases[log], State::Retrying, &outcome(Fate::Busy { retry_after })).0
        };
        let (late, early) = (busy(0, 100), busy(1, 50));
        assert!(late >= now + Duration::from_secs(100) && early < late);
        assert_eq!([now, early, late].map(|after| troubles.next(after)), [Some(early), Some(late), None]);
        let latest = early + Duration::from_secs(1);
        let mut shortened = troubles.shorten(latest);
        shortened.sort_unstable();
        assert_eq!(shortened, [(LogId::new(0), latest), (LogId::new(1), early)]);
        assert_eq!(troubles.next(early), Some(latest));
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_lines_may_be_given_up_in_a_minute_of_each_destination() {
        let mut troubles = Troubles::new(Duration::from_secs(30));
        assert_eq!(troubles.poison_left(LogId::new(0)), MAX_POISON);
        troubles.note_poison(LogId::new(0), 0);
        for given_up in 1..=2 {
            tokio::time::advance(MINUTE / 4).await;
            troubles.note_poison(LogId::new(0), 3);
            assert_eq!(
                (troubles.poison_left(LogId::new(0)), troubles.poison_left(LogId::new(1))),
                (MAX_POISON - 3 * given_up, MAX_POISON)
            );
        }
        troubles.note_poison(LogId::new(0), MAX_POISON);
        assert_eq!(troubles.poison_left(LogId::new(0)), 0);
        // The minute began with the first poison line.
        tokio::time::advance(MINUTE * 3 / 4).await;
        assert_eq!(troubles.poison_left(LogId::new(0)), MAX_POISON);
        troubles.note_poison(LogId::new(0), 1);
        assert_eq!(troubles.poison_left(LogId::new(0)), MAX_POISON - 1);
    }

    #[test]
    fn each_answer_has_its_advice() {
        let destination = leases(&["db"]).remove(0).destination;
        for (status, text, reason, part) in [
            (Some(401), "", "credentials", "password_file"),
            (Some(403), "", "rights", "\"db\""),
            (Some(404), "retention policy not found: db", "missing", "make retention policy \"db\""),
            (Some(500), "retention policy not found: db", "missing", "make retention policy \"db\""),
            (Some(404), "database not found: db", "missing", "CREATE DATABASE \"db\""),
            (Some(404), "bucket not found", "missing", "what the answer names"),
            (Some(413), "", "size", "limit"),
            (Some(500), "database not found", "refused", "see the answer"),
            (Some(400), "", "refused", "see the answer"),
            (None, "", "setup", "see the answer"),
        ] {
            let outcome = Outcome { status, ..Outcome::new(Fate::HoldDestination, text.to_owned()) };
            let (found, advice) = advice(&outcome, &destination);
            assert!(found == reason && advice.contains(part), "{status:?} {text}: {found}, {advice}");
        }
    }
}
