//! The senders, as `/api/status` and the terminal show them.
//!
//! Owns which sources are listed and which are hidden. Bounds: `MAX_LISTED` sources in a status,
//! `FEW` in an event of the page, `MAX_FORGOTTEN` hidden addresses.

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

/// The most sources in the list; the others are summed.
const MAX_LISTED: usize = 1000;

/// Limit of what counts as recent.
const RECENT: Duration = Duration::from_secs(300);
/// The most sources in the page's events.
const FEW: usize = 50;

/// Addresses hidden by an operator until they send again. Bounds: `MAX_FORGOTTEN`.
#[derive(Debug, Default)]
pub struct Forgotten(Mutex<HashMap<IpAddr, Instant>>);

/// The most hidden addresses; a further one evicts the oldest.
const MAX_FORGOTTEN: usize = 4096;

impl Forgotten {
    /// Hides an address unless it sends after `now`.
    pub fn forget(&self, address: IpAddr, now: Instant) {
        let mut known = self.lock();
        if known.len() >= MAX_FORGOTTEN
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
    /// Number of sources.
    pub known: u64,
    /// Number of silent sources.
    pub silent: u64,
    /// The sources in the highest standing, and among equals those that sent most; ordered by
    /// lines.
    pub top: Vec<SourceStatus>,
    /// Sums of the other sources.
    pub rest: RestStatus,
}

/// One address at one listener.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct SourceStatus {
    /// The address.
    pub address: String,
    /// Host named in its lines; empty if they name none.
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
    /// Lines whose points are far from the clock: an hour ahead or behind, or a day behind in
    /// streams and requests.
    #[serde(default)]
    pub implausible: u64,
    /// The probable unit of their timestamps; `None` if no unit makes them plausible.
    #[serde(default)]
    pub likely_unit: Option<String>,
    /// Whether such a line came in the last five minutes.
    #[serde(default)]
    pub implausible_recently: bool,
    /// Lines a second over the last minute or so.
    pub lines_per_second: f64,
    /// Seconds since it was last seen.
    pub last_seen_seconds: f64,
    /// Interval between its bursts; `None` until known.
    pub interval_seconds: Option<f64>,
    /// Whether it has sent nothing for three intervals.
    pub silent: bool,
}

/// Sums of sources that are not listed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct RestStatus {
    /// Number of sources; an address that was evicted and came again counts twice.
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
    /// Merges the tables of all listeners.
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
        // A source that sends once, however much, must not displace a host that sends regularly.
        shown.sort_by_key(|(standing, source)| Reverse((*standing, source.lines)));
        for (_, SourceStatus { lines, refused, datagrams, empty, connections, implausible, .. }) in
            shown.drain(MAX_LISTED.min(shown.len())..)
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
    /// Returns the status with few sources: the ones an operator looks for first, which are silent
    /// or have refused lines.
    pub(super) fn with_few_sources(&self) -> Self {
        let SourcesStatus { known, silent, ref top, ref rest } = self.sources;
        let mut first: Vec<&SourceStatus> = top.iter().collect();
        first.sort_by_key(|source| Reverse((source.silent, source.refused > 0, source.lines)));
        let top = first.into_iter().take(FEW).cloned().collect();
        let sources = SourcesStatus { known, silent, top, rest: rest.clone() };
        // Copies only what is kept.
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

    /// Describes the source by host or address, and how long it has been silent.
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
