//! Asks a backend whether it accepts lines while it gets none: at the start, and at intervals while
//! it is idle.
//!
//! A probe delays neither the start nor delivery: it has its own connection, and what requests with
//! lines find takes precedence. It asks for the version, and for each known database whether it
//! exists and may be written. A change is logged once.
//!
//! Never does: write a line. Bounds: one request at a time; the longest back-off between two tries.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::flusher::advice;
use super::health::{Backoff, Health, Held, State};
use super::influx::Pong;
use super::outcome::Fate;
use super::{Archive, Influx};
use crate::batch::Destination;
use crate::sys::{Leave, Throttle};

/// How long to wait for the first lines, whose answer would make a question needless.
const FIRST_LINES: Duration = Duration::from_secs(2);

/// What a probe asks.
#[derive(Debug)]
pub(super) enum Probed {
    /// `GET /ping`, and a write without lines.
    Influx(Box<Influx>),
    /// Whether the folder is writable.
    Archive(Archive),
    /// Whether `name:port` resolves: UDP gives no answer.
    Relay(String),
}

/// The probe of one backend.
#[derive(Debug)]
pub(super) struct Probe {
    name: String,
    probed: Probed,
    /// One per database.
    destinations: Vec<Arc<Destination>>,
    /// Interval of the probe. Zero: only at the start.
    interval: Duration,
    longest_pause: Duration,
    /// The last logged state, unless requests changed it since.
    logged: Option<State>,
    throttle: Throttle,
}

/// A finding.
struct Found {
    state: State,
    /// How the backend describes itself, or what is wrong.
    what: String,
    held: Vec<Held>,
    /// Whether something answers that does not look like an InfluxDB.
    is_strange: bool,
    version: Option<String>,
}

impl Probe {
    /// Creates a probe for a backend with these destinations.
    pub(super) fn new(
        name: String,
        probed: Probed,
        mut destinations: Vec<Arc<Destination>>,
        (interval, longest_pause): (Duration, Duration),
    ) -> Self {
        let mut databases = HashSet::new();
        destinations.retain(|destination| databases.insert(destination.database().to_owned()));
        Self { name, probed, destinations, interval, longest_pause, logged: None, throttle: Throttle::default() }
    }

    /// Probes until the relay shuts down.
    pub(super) async fn run(mut self, health: Arc<Health>, mut closing: watch::Receiver<bool>) {
        let mut asked = health.asked();
        let mut backoff = Backoff::default();
        let mut has_begun = false;
        while !*closing.borrow() {
            let requests = health.requests().0;
            let is_idle = || health.requests().0 == requests;
            let mut found = self.reach().await;
            self.note(&health, requests, &found);
            let is_answered = found.is_well() || found.is_strange;
            if is_answered && !has_begun && !self.destinations.is_empty() {
                // The first lines, if any, soon answer the question.
                drop(tokio::time::timeout(FIRST_LINES, closing.changed()).await);
                has_begun = true;
            }
            if is_answered && is_idle() {
                match self.ask().await {
                    Some(missed) => found = missed,
                    // A proxy in front of an InfluxDB may pass writes and nothing else.
                    None if found.is_strange => {
                        found = Found::new(State::Up, format!("it takes writes; {}", found.what));
                    }
                    None => {}
                }
                self.note(&health, requests, &found);
            }
            health.end_probe();
            let mut pause = if found.is_well() { self.interval } else { backoff.next_pause(self.longest_pause) };
            if found.is_well() {
                backoff.reset();
            }
            // Lines tell more than a question, so a probe waits for an interval without a request.
            loop {
                let requests = health.requests().0;
                tokio::select! {
                    _ = closing.changed() => return,
                    Ok(()) = asked.changed() => break,
                    () = tokio::time::sleep(pause), if !pause.is_zero() => {}
                }
                if health.requests().0 == requests {
                    break;
                }
                (pause, self.logged) = (self.interval, None);
            }
        }
    }

    /// Records and logs a finding, unless requests found more.
    fn note(&mut self, health: &Health, requests: u64, found: &Found) {
        if let Some(version) = &found.version {
            health.note_version(version);
        }
        if health.find(requests, found.state, Some(&*found.what).filter(|_| !found.is_well()), &found.held) {
            self.log(found.state, &found.what);
        }
    }

    /// Logs a change of state.
    fn log(&mut self, state: State, what: &str) {
        if self.logged == Some(state) {
            return;
        }
        let backend = &self.name;
        if state == State::Up {
            tracing::info!(backend, found = what, "backend reached");
        } else if state == State::Unknown {
            tracing::info!(backend, sends_to = what, "backend cannot be probed: UDP gives no answer");
        } else if let Some(Leave { untold }) = self.throttle.pass() {
            let state = state.name();
            tracing::warn!(backend, error = what, state, untold, "backend not reached; its lines wait");
        } else {
            return;
        }
        self.logged = Some(state);
    }

    /// Asks whether the backend can be reached.
    async fn reach(&mut self) -> Found {
        match &mut self.probed {
            Probed::Influx(influx) => match influx.ping().await {
                Ok(Pong { version: Some(version), .. }) => {
                    let what = format!("InfluxDB {version}");
                    Found { version: Some(version), ..Found::new(State::Up, what) }
                }
                Ok(Pong { version: None, .. }) => Found::new(State::Up, "InfluxDB's API, without a version".to_owned()),
                Err(missed) => {
                    let is_strange = missed.fate == Fate::HoldBackend;
                    Found { is_strange, ..Found::new(State::Down, missed.text) }
                }
            },
            Probed::Archive(archive) => match archive.check().await {
                Ok(what) => Found::new(State::Up, what),
                Err(error) => Found::new(State::Down, error.to_string()),
            },
            Probed::Relay(host) => match tokio::net::lookup_host(&**host).await {
                Err(error) => Found::new(State::Down, format!("cannot resolve {host}: {error}")),
                Ok(mut addresses) => match addresses.next() {
                    Some(address) => Found::new(State::Unknown, address.to_string()),
                    None => Found::new(State::Down, format!("{host} has no address")),
                },
            },
        }
    }

    /// Asks whether each database accepts lines. Returns what is wrong.
    async fn ask(&mut self) -> Option<Found> {
        let Probed::Influx(influx) = &mut self.probed else { return None };
        let mut found: Option<Found> = None;
        for destination in &self.destinations {
            let outcome = influx.ask(destination).await;
            match outcome.fate {
                Fate::HoldDestination => {
                    let (reason, what_to_do) = advice(&outcome, destination);
                    let found = found.get_or_insert_with(|| Found::new(State::Held, outcome.text.clone()));
                    found.held.push(Held {
                        database: destination.database().to_owned(),
                        retention_policy: destination.retention_policy().to_owned(),
                        reason,
                        answer: outcome.text,
                        since: SystemTime::now(),
                        what_to_do,
                    });
                }
                Fate::HoldBackend => {
                    let held =
                        Held::backend("setup", &outcome.text, "correct the backend's url, or what answers there");
                    return Some(Found { held: vec![held], ..Found::new(State::Held, outcome.text) });
                }
                Fate::Down | Fate::Stalled => return Some(Found::new(State::Down, outcome.text)),
                // Any other answer to a write without lines says little of a write with lines.
                _ => {}
            }
        }
        found
    }
}

impl Found {
    fn new(state: State, what: String) -> Self {
        Self { state, what, held: Vec::new(), is_strange: false, version: None }
    }

    fn is_well(&self) -> bool {
        matches!(self.state, State::Up | State::Unknown)
    }
}
