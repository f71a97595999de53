//! Who sends, as `/api/status` and the terminal show it.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::intake::{Arrival, Source};
use crate::observe::status::Status;
use crate::observe::text::whole_seconds;
use crate::receive::Listener;

/// Sources that are listed; the others are summed.
const MOST_LISTED: usize = 1000;

/// What is longer ago is history.
const RECENT: Duration = Duration::from_secs(300);
/// Sources that the page is sent every few seconds.
const FEW: usize = 50;

/// Addresses that an operator does not want to see any more, until they send again. Bounds: `MOST_FORGOTTEN`.
#[derive(Debug, Default)]
pub struct Forgotten(Mutex<HashMap<IpAddr, Instant>>);

/// Addresses that are forgotten; then the first one is seen again.
const MOST_FORGOTTEN: usize = 4096;

impl Forgotten {
    /// Forgets what an address sent before `now`.
    pub fn forget(&self, address: IpAddr, now: Instant) {
        let mut known = self.lock();
        if known.len() >= MOST_FORGOTTEN
            && let Some(first) = known.iter().min_by_key(|(_, at)| **at).map(|(address, _)| *address)
        {
            known.remove(&first);
        }
        known.insert(address, now);
    }

    fn hides(&self, source: &Source) -> bool {
        self.lock().get(&source.address.to_canonical()).is_some_and(|at| source.last_seen <= *at)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All sources of all listeners.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct SourcesStatus {
    /// How many there are.
    pub known: u64,
    /// How many of them are silent.
    pub silent: u64,
    /// Those that are known best, and of these the ones that sent most; in the order of what they sent.
    pub top: Vec<SourceStatus>,
    /// The sums of the others.
    pub rest: RestStatus,
}

/// One address at one listener.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct SourceStatus {
    /// The address.
    pub address: String,
    /// The host that its lines name; empty where they name none.
    pub host: String,
    /// `udp` or `tcp`.
    pub kind: String,
    /// The listener's address.
    pub listen: String,
    /// Lines seen: accepted and refused.
    pub lines: u64,
    /// Lines refused.
    pub refused: u64,
    /// Datagrams taken.
    pub datagrams: u64,
    /// Datagrams without payload.
    pub empty: u64,
    /// Connections made.
    pub connections: u64,
    /// Lines whose points are far from the clock: an hour ahead or behind, or a day behind in streams and requests.
    #[serde(default)]
    pub implausible: u64,
    /// The unit in which these probably are; none if no unit makes them plausible.
    #[serde(default)]
    pub likely_unit: Option<String>,
    /// Whether one came in the last five minutes.
    #[serde(default)]
    pub implausible_recently: bool,
    /// Lines a second, over the last minute or so.
    pub lines_per_second: f64,
    /// How long ago it was seen last.
    pub last_seen_seconds: f64,
    /// The time from one of its bursts to the next; none until it is known.
    pub interval_seconds: Option<f64>,
    /// Whether it has sent nothing for three of these.
    pub silent: bool,
}

/// Sums of sources that are not listed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct RestStatus {
    /// How many they are; an address that was forgotten and came again counts twice.
    pub sources: u64,
    /// Lines seen: accepted and refused.
    pub lines: u64,
    /// Lines refused.
    pub refused: u64,
    /// Datagrams taken.
    pub datagrams: u64,
    /// Datagrams without payload.
    pub empty: u64,
    /// Connections made.
    pub connections: u64,
}

impl SourcesStatus {
    /// Puts the tables of all listeners together.
    pub(super) fn of(listeners: &[Listener], forgotten: &Forgotten) -> Self {
        let now = Instant::now();
        let (mut all, mut shown) = (Self::default(), Vec::new());
        for listener in listeners {
            let sources = listener.sources();
            let entries = sources.entries().iter().filter(|source| !forgotten.hides(source));
            shown.extend(entries.map(|source| (source.standing(), SourceStatus::new(source, listener, now))));
            let (sum, evicted) = sources.rest();
            all.rest.add(evicted, sum);
        }
        all.known = shown.len() as u64;
        all.silent = shown.iter().filter(|(_, source)| source.silent).count() as u64;
        // Whoever sends once, however much, is not to take the place of a host that comes regularly.
        shown.sort_by_key(|(standing, source)| Reverse((*standing, source.lines)));
        for (_, SourceStatus { lines, refused, datagrams, empty, connections, implausible, .. }) in
            shown.drain(MOST_LISTED.min(shown.len())..)
        {
            all.rest.add(1, Arrival { lines, refused, datagrams, empty, connections, implausible });
        }
        all.top = shown.into_iter().map(|(_, source)| source).collect();
        all.top.sort_by(|one, other| {
            other.lines.cmp(&one.lines).then_with(|| (&one.address, &one.listen).cmp(&(&other.address, &other.listen)))
        });
        all
    }
}

impl Status {
    /// The same with the sources that an operator looks for first: silent ones, and those whose lines are refused.
    pub(super) fn with_few_sources(&self) -> Self {
        let SourcesStatus { known, silent, ref top, ref rest } = self.sources;
        let mut first: Vec<&SourceStatus> = top.iter().collect();
        first.sort_by_key(|source| Reverse((source.silent, source.refused > 0, source.lines)));
        let top = first.into_iter().take(FEW).cloned().collect();
        let sources = SourcesStatus { known, silent, top, rest: rest.clone() };
        // Without copying what is left out.
        let Self { version, receive, backends, journal, certificates, pair, findings, .. } = self;
        Self {
            version: version.clone(),
            uptime_seconds: self.uptime_seconds,
            receive: receive.clone(),
            accepted_lines: self.accepted_lines,
            backends: backends.clone(),
            journal: journal.clone(),
            sources,
            certificates: certificates.clone(),
            log_lines_dropped: self.log_lines_dropped,
            pair: pair.clone(),
            findings: findings.clone(),
        }
    }
}

impl SourceStatus {
    fn new(source: &Source, listener: &Listener, now: Instant) -> Self {
        let Arrival { lines, refused, datagrams, empty, connections, implausible } = source.sum;
        Self {
            address: source.address.to_string(),
            host: source.host.clone(),
            kind: listener.kind().to_owned(),
            listen: listener.address().to_string(),
            lines,
            refused,
            datagrams,
            empty,
            connections,
            implausible,
            likely_unit: source.implausible.and_then(|(_, unit)| unit).map(|unit| unit.to_string()),
            implausible_recently: source.implausible.is_some_and(|(at, _)| now.saturating_duration_since(at) < RECENT),
            lines_per_second: source.rate(now),
            last_seen_seconds: now.saturating_duration_since(source.last_seen).as_secs_f64(),
            interval_seconds: source.interval().map(|interval| interval.as_secs_f64()),
            silent: source.is_silent(now),
        }
    }

    /// Its host, or else its address, and how long it has been silent.
    pub(super) fn describe_silence(&self) -> String {
        let name =
            if self.host.is_empty() { self.address.clone() } else { format!("{} ({})", self.host, self.address) };
        format!("{name} for {}", whole_seconds(self.last_seen_seconds))
    }
}

impl RestStatus {
    fn add(&mut self, sources: u64, sum: Arrival) {
        self.sources += sources;
        self.lines += sum.lines;
        self.refused += sum.refused;
        self.datagrams += sum.datagrams;
        self.empty += sum.empty;
        self.connections += sum.connections;
    }
}
