//! What keeps destinations of one backend from being delivered: since when, why, and when each is tried again.
//!
//! Bounds: one entry for each destination with trouble, and one for each that had lines given up as poison.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::super::health::{Backoff, Held, State};
use super::super::outcome::Fate;
use super::{Lease, Outcome};
use crate::batch::Destination;
use crate::sys::monotonic;

/// A failure that tells nothing is taken for the backend's own so often; then it is tried whether a line is the cause.
const TRIES: u32 = 5;
/// The same where each try costs the whole time-out.
const SILENT_TRIES: u32 = 2;
/// Lines of a destination that are given up for failures that tell nothing, in a minute, at most: a sick piece of time
/// answers 500 to thousands of good lines.
const MOST_POISON: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);

/// All of a backend's.
pub(super) struct Troubles {
    /// Every pause's bound.
    longest_pause: Duration,
    /// Why the whole backend waits for an operator.
    backend: Option<Held>,
    /// By the destination's place in the journal.
    by_place: HashMap<usize, Trouble>,
    /// Since when a minute is counted, and how many lines were given up in it.
    poison: HashMap<usize, (Instant, u32)>,
}

struct Trouble {
    destination: Arc<Destination>,
    state: State,
    backoff: Backoff,
    /// Failures in a row that may be a line's fault, and how many of them were silence.
    suspicious: (u32, u32),
    until: Instant,
    since: SystemTime,
    reason: &'static str,
    answer: String,
    what_to_do: String,
}

impl Troubles {
    /// None yet; pauses are to be so long at most.
    pub(super) fn new(longest_pause: Duration) -> Self {
        Self { longest_pause, backend: None, by_place: HashMap::new(), poison: HashMap::new() }
    }

    /// The whole backend waits for an operator, or does no more.
    pub(super) fn hold_backend(&mut self, outcome: Option<&Outcome>) {
        let since = self.backend.as_ref().map(|held| held.since);
        self.backend = outcome.map(|outcome| {
            let held = Held::backend("setup", &outcome.text, "see the answer: no request of any database can pass");
            Held { since: since.unwrap_or(held.since), ..held }
        });
    }

    /// A request for the lease's destination, sent at `begun`, failed. Returns until when the destination waits, and the state
    /// that it is in.
    pub(super) fn fail(&mut self, lease: &Lease, state: State, outcome: &Outcome, begun: Instant) -> (Instant, State) {
        let now = monotonic::now();
        let trouble = self.by_place.entry(lease.place()).or_insert_with(|| Trouble {
            destination: Arc::clone(&lease.destination),
            state,
            backoff: Backoff::default(),
            suspicious: (0, 0),
            until: begun,
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
        // What stands between goes on refusing everything: somebody must look at it.
        let is_refused = outcome.fate == Fate::Unexpected && trouble.suspicious.0 >= TRIES;
        let state = if is_refused { State::Held } else { state };
        if trouble.state != state {
            (trouble.state, trouble.since) = (state, SystemTime::now());
        }
        // Requests that were under way together fail together: that is one failure.
        if begun >= trouble.until || trouble.until <= now {
            let pause = trouble.backoff.next_pause(self.longest_pause);
            let pause = match outcome.fate {
                Fate::Busy { retry_after } => pause.max(retry_after.unwrap_or_default()),
                _ => pause,
            };
            trouble.until = now + pause;
        }
        (trouble.until, state)
    }

    /// The destination takes lines.
    pub(super) fn end(&mut self, place: usize) {
        self.by_place.remove(&place);
    }

    pub(super) fn has(&self, place: usize) -> bool {
        self.by_place.contains_key(&place)
    }

    /// Whether its failures may be a line's fault, and came often enough.
    pub(super) fn is_suspicious(&self, place: usize) -> bool {
        let tries = self.by_place.get(&place).map_or((0, 0), |trouble| trouble.suspicious);
        tries.0 >= TRIES || tries.1 >= SILENT_TRIES
    }

    /// The worst state of any destination; up where there is no trouble.
    pub(super) fn state(&self) -> State {
        let states = self.by_place.values().map(|trouble| trouble.state);
        let severity = |state: &State| match state {
            State::Unknown | State::Up => 0,
            State::Retrying => 1,
            State::Down => 2,
            State::Held => 3,
        };
        states.max_by_key(severity).unwrap_or(State::Up)
    }

    /// What waits for an operator.
    pub(super) fn held(&self) -> Vec<Held> {
        let held = self.by_place.values().filter(|trouble| trouble.state == State::Held);
        let mut held: Vec<Held> = held
            .map(|trouble| Held {
                database: trouble.destination.database.clone(),
                retention_policy: trouble.destination.retention_policy.clone(),
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

    /// When the first destination is tried again of those that were not due at this time.
    pub(super) fn next(&self, after: Instant) -> Option<Instant> {
        self.by_place.values().map(|trouble| trouble.until).filter(|until| *until > after).min()
    }

    /// Lets no destination wait longer than this. Returns each with the time until which it waits.
    pub(super) fn shorten(&mut self, latest: Instant) -> Vec<(usize, Instant)> {
        let shortened = self.by_place.iter_mut().map(|(place, trouble)| {
            trouble.until = trouble.until.min(latest);
            (*place, trouble.until)
        });
        shortened.collect()
    }

    /// How many more lines of the destination may be given up as poison now.
    pub(super) fn poison_left(&self, place: usize) -> u32 {
        let given_up = self
            .poison
            .get(&place)
            .filter(|(since, _)| monotonic::now().saturating_duration_since(*since) < MINUTE)
            .map_or(0, |(_, lines)| *lines);
        MOST_POISON.saturating_sub(given_up)
    }

    /// So many lines of the destination were given up as poison.
    pub(super) fn note_poison(&mut self, place: usize, lines: u32) {
        if lines == 0 {
            return;
        }
        let (since, count) = self.poison.entry(place).or_insert_with(|| (monotonic::now(), 0));
        if monotonic::now().saturating_duration_since(*since) >= MINUTE {
            (*since, *count) = (monotonic::now(), 0);
        }
        *count += lines;
    }
}

/// Why a destination waits, in a word, and what an operator is to do.
pub(in crate::deliver) fn advice(outcome: &Outcome, destination: &Destination) -> (&'static str, String) {
    let Destination { database, retention_policy, .. } = destination;
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
