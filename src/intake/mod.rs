//! Turns received bytes into lines, batches and counters, in one worker, for any kind of socket.
//!
//! Owns: the reader, the open batch, the tally, and the log of refusals. Never does: reading
//! sockets; waiting (the submission of batches may). Processing a line never allocates, locks,
//! logs, or reads a clock. Bounds: one open batch per worker, and one per request.

mod allow;
mod body;
mod counters;
pub(crate) mod framer;
mod source;
mod sources;
pub mod tap;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

pub use allow::Allow;
#[cfg(test)]
pub(crate) use body::Sample;
pub(crate) use body::{Body, Told};
pub(crate) use counters::each_counter;
pub use counters::{ANSWERS, Counters, Tally};
pub use source::{Arrival, Source};
pub use sources::Sources;
pub use tap::Tap;

use crate::batch::{Batch, Builder, Destination, Limits, Pool, Received, Submit, Time};
use crate::protocol::{
    Format, Found, Line, Mapping, Plausible, Precision, Reader, Refused, Rules, Sink, Stamper, Stream, Unsigned, cure,
};
use crate::sys::{Leave, Throttle};

/// Minimum interval between publications of the table of sources: copying thousands of entries
/// takes a good part of a millisecond.
pub(crate) const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum length of a refused line in the log, in bytes.
const SAMPLE_BYTES: usize = 200;

/// How a listener processes received bytes.
#[derive(Clone, Debug)]
pub struct IntakeConfig {
    /// The destination of the lines.
    pub destination: Arc<Destination>,
    /// The format of all lines; `None` detects it.
    pub format: Option<Format>,
    /// The mapping of other formats' names.
    pub mapping: Mapping,
    /// Maximum line length, in bytes without the line feed.
    pub max_line: usize,
    /// The treatment of unsigned integers.
    pub unsigned: Unsigned,
    /// Networks that bytes are accepted from.
    pub allow: Allow,
}

impl IntakeConfig {
    fn rules(&self) -> Rules {
        Rules { precision: self.destination.precision(), max_line: self.max_line, unsigned: self.unsigned }
    }

    /// Returns whether Netdata's charts are taken from paths, in which the dots of a name are
    /// ambiguous.
    pub fn splits_charts_at_dots(&self) -> bool {
        self.mapping.is_netdata() && matches!(self.format, None | Some(Format::Graphite | Format::Opentsdb))
    }

    /// Returns whether bytes from this source are accepted.
    #[inline]
    pub(crate) fn allows(&self, source: Option<IpAddr>) -> bool {
        self.allow.lets_in(source)
    }
}

/// What one worker shares with readers of its state.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) counters: CachePadded<Counters>,
    /// The lines that `twinflux tail` shows.
    pub(crate) tap: Tap,
    /// A copy of the worker's table. The worker never waits for its lock.
    sources: Mutex<Sources>,
}

impl Shown {
    /// Returns the last published table of sources.
    pub(crate) fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Processes received bytes, and submits batches.
#[derive(Debug)]
pub(crate) struct Intake<H> {
    setup: IntakeConfig,
    pool: Arc<Pool>,
    limits: Limits,
    /// Readers and stampers for requests, by format and unit of the timestamps.
    readers: HashMap<(Option<Format>, Precision), (Reader, Stamper)>,
    reader: Reader,
    lines: Lines<H>,
    sources: Sources,
    /// When to publish the table; `None` if it has not changed.
    sources_due: Option<Instant>,
    sources_published: Option<Instant>,
}

/// The sink of the reader's lines.
#[derive(Debug)]
struct Lines<H> {
    shown: Arc<Shown>,
    stamper: Stamper,
    builder: Builder,
    out: H,
    tally: Tally,
    logs: Logs,
    received: Received,
    source: Option<IpAddr>,
    /// Lines of the current datagram or piece.
    arrival: Arrival,
    /// Whether `twinflux tail` is reading the lines.
    is_tapped: bool,
    /// The plausible times of the arrival's points, and the last implausible one.
    plausible: Plausible,
    implausible: i64,
    /// Outcome of the current request.
    outcome: Told,
    /// Lines in the builders of other requests.
    elsewhere: u64,
}

impl<H: Submit> Intake<H> {
    /// Creates the intake of a listener at this address.
    pub(crate) fn new(
        (setup, listen): (&IntakeConfig, SocketAddr),
        shown: Arc<Shown>,
        pool: &Arc<Pool>,
        limits: Limits,
        out: H,
    ) -> Self {
        let precision = setup.destination.precision();
        let lines = Lines {
            shown,
            stamper: Stamper::new(precision),
            builder: Builder::new(Arc::clone(&setup.destination), Arc::clone(pool), limits),
            out,
            tally: Tally::default(),
            logs: Logs::new(listen),
            received: Received::now(),
            source: None,
            arrival: Arrival::default(),
            is_tapped: false,
            plausible: Stamper::new(precision).plausible(false),
            implausible: 0,
            outcome: Told::default(),
            elsewhere: 0,
        };
        Self {
            setup: setup.clone(),
            pool: Arc::clone(pool),
            limits,
            readers: HashMap::new(),
            reader: Reader::new(setup.format, setup.mapping.clone(), setup.rules()),
            lines,
            sources: Sources::default(),
            sources_due: None,
            sources_published: None,
        }
    }

    /// Sets the receive time of the following bytes.
    pub(crate) fn set_clock(&mut self, received: Received) {
        self.lines.stamper.set_clock(received.wall.nanoseconds());
        self.lines.received = received;
    }

    /// Returns the sums since the last publication, for counts made elsewhere.
    pub(crate) fn tally(&mut self) -> &mut Tally {
        &mut self.lines.tally
    }

    /// Processes a datagram from an allowed source that is not empty.
    #[inline]
    pub(crate) fn datagram(&mut self, bytes: &[u8], truncated: bool, source: Option<IpAddr>) {
        self.lines.begin(source, Arrival { datagrams: 1, ..Arrival::default() });
        let found = self.reader.datagram(bytes, truncated, &mut self.lines);
        self.lines.count(found);
        self.note(bytes, found.first);
    }

    /// Counts a datagram, or a connection, from an address that is not allowed.
    #[cold]
    pub(crate) fn deny(&mut self, source: Option<IpAddr>) {
        self.lines.tally.denied += 1;
        if let Some(source) = source {
            self.lines.shown.tap.deny(source, self.lines.received.monotonic);
        }
    }

    /// Counts a connection.
    pub(crate) fn connect(&mut self, source: IpAddr, now: Instant) {
        self.lines.tally.connections += 1;
        self.sources.connect(source, now);
        self.sources_changed(now);
    }

    /// Notes a datagram without payload.
    pub(crate) fn empty(&mut self, source: Option<IpAddr>) {
        self.lines.tally.empty += 1;
        let arrival = Arrival { datagrams: 1, empty: 1, ..Arrival::default() };
        let Some(address) = source else { return };
        let source = self.sources.note(address, arrival, self.lines.received.monotonic);
        if self.lines.logs.may_hint(self.lines.received.monotonic) && source.indicates_large_batches() {
            self.lines.logs.hint(address, self.lines.received.monotonic);
        }
        self.sources_changed(self.lines.received.monotonic);
    }

    /// Processes whole lines of a stream, up to [`Found::consumed`]; if `is_end`, all of them.
    pub(crate) fn stream(&mut self, bytes: &[u8], stream: &mut Stream, is_end: bool, source: IpAddr) -> Found {
        self.lines.begin(Some(source), Arrival::default());
        let found = self.reader.stream(bytes, stream, is_end, &mut self.lines);
        self.lines.count(found);
        self.note(bytes, found.first);
        found
    }

    /// Counts a refused line that was not read.
    pub(crate) fn refuse(&mut self, refused: Refused<'_>, source: IpAddr) {
        self.lines.begin(Some(source), Arrival::default());
        self.lines.refused(refused);
        self.note(&[], None);
    }

    /// Notes an arrival, and the host in the first line of a burst. `first`: that line's format and
    /// offset.
    #[inline]
    fn note(&mut self, bytes: &[u8], first: Option<(Format, usize)>) {
        let Some(address) = self.lines.source else { return };
        let source = self.sources.note(address, self.lines.arrival, self.lines.received.monotonic);
        if self.lines.arrival.implausible > 0 {
            let unit = self.lines.note_implausible(address);
            // A stream or a request may send old points; a datagram is live.
            if unit.is_some() || self.lines.arrival.datagrams > 0 {
                source.implausible = Some((self.lines.received.monotonic, unit));
            }
        }
        if let Some((format, offset)) = first
            && source.wants_name()
        {
            let first = bytes[offset..].split(|byte| *byte == b'\n').next().unwrap_or_default();
            if let Some(host) = self.reader.host(format, first) {
                source.name(host);
            }
        }
        self.sources_changed(self.lines.received.monotonic);
    }

    /// Schedules the publication of the table: at once, or one interval after the last one.
    #[inline]
    fn sources_changed(&mut self, now: Instant) {
        if self.sources_due.is_none() {
            self.sources_due = Some(self.sources_published.map_or(now, |before| before + PUBLISH_INTERVAL));
        }
    }

    /// Returns when to publish the table; `None` if it has not changed.
    pub(crate) fn sources_due(&self) -> Option<Instant> {
        self.sources_due
    }

    /// Publishes the table if due. If a reader holds the last one, tries again after an interval.
    pub(crate) fn publish_sources(&mut self, now: Instant) {
        if self.sources_due.is_none_or(|due| now < due) {
            return;
        }
        let Ok(mut shown) = self.lines.shown.sources.try_lock() else {
            self.sources_due = Some(now + PUBLISH_INTERVAL);
            return;
        };
        shown.clone_from(&self.sources);
        (self.sources_due, self.sources_published) = (None, Some(now));
    }

    /// Publishes the sums.
    pub(crate) fn publish(&mut self) {
        self.lines.publish(0);
    }

    /// Returns when the open batch is due; `None` if it is empty.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.lines.builder.due()
    }

    /// Submits the open batch, if any.
    pub(crate) fn seal(&mut self) {
        if let Some(batch) = self.lines.builder.seal() {
            self.lines.submit(batch);
        }
    }
}

impl<H: Submit> Lines<H> {
    fn begin(&mut self, source: Option<IpAddr>, arrival: Arrival) {
        (self.source, self.arrival) = (source, arrival);
        self.is_tapped = self.shown.tap.is_open();
        self.plausible = self.stamper.plausible(arrival.datagrams > 0);
    }

    fn count(&mut self, found: Found) {
        self.tally.converted += found.converted;
        self.tally.skipped += found.skipped;
        self.tally.ignored_tags += found.ignored_tags;
    }

    /// Counts lines whose times are far from the clock. Returns the unit that they are probably in,
    /// if it is not the listener's.
    #[cold]
    fn note_implausible(&mut self, source: IpAddr) -> Option<Precision> {
        self.tally.implausible += self.arrival.implausible;
        let likely = self.stamper.likely_precision(self.implausible);
        let other = likely.filter(|unit| *unit != self.stamper.precision());
        if other.is_some() || self.arrival.datagrams > 0 {
            self.logs.implausible(source, self.implausible, other, self.received.monotonic);
        }
        other
    }

    /// Submits a batch, or counts its lines as dropped. Publishes the accepted lines first, so that
    /// no reader sees a line delivered or dropped before it is accepted.
    #[cold]
    fn submit(&mut self, batch: Batch) {
        self.publish(batch.lines());
        if let Err(batch) = self.out.submit(batch) {
            self.tally.ring_full += batch.lines();
            self.out.lose(&batch);
            self.logs.ring_full(&batch);
        }
        self.publish(0);
    }

    /// Publishes the sums, and the number of lines held: in the open batch, and in a sealed one
    /// that waits for capacity.
    fn publish(&mut self, sealed: u64) {
        let held = self.builder.lines() + sealed + self.elsewhere + self.out.waiting();
        self.shown.counters.publish(&mut self.tally, held, self.out.submitted());
    }
}

impl<H: Submit> Sink for Lines<H> {
    #[inline]
    fn line(&mut self, line: Line<'_>) {
        let time = line.time.map_or_else(|| Time::Stamp(self.stamper.next_stamp()), Time::Own);
        if let Time::Own(time) = time
            && !self.plausible.has(time)
        {
            self.arrival.implausible += 1;
            self.implausible = time;
        }
        if self.is_tapped {
            self.shown.tap.accept(line.bytes, self.source);
        }
        let sealed = self.builder.append(line.bytes, time, self.received);
        self.tally.accepted += 1;
        self.outcome.accepted += 1;
        self.arrival.lines += 1;
        if let Some(batch) = sealed {
            self.submit(batch);
        }
    }

    #[cold]
    fn refused(&mut self, refused: Refused<'_>) {
        self.tally.refused[refused.reason.index()] += 1;
        self.arrival.lines += 1;
        self.arrival.refused += 1;
        self.outcome.refuse(refused);
        self.shown.tap.refuse(refused, self.source, self.received.monotonic);
        self.logs.refused(refused, self.source, self.received.monotonic);
    }
}

/// The log of a worker; each event at most once a minute.
#[derive(Debug)]
struct Logs {
    listen: SocketAddr,
    refused: Throttle,
    ring_full: Throttle,
    hint: Throttle,
    implausible: Throttle,
}

impl Logs {
    fn new(listen: SocketAddr) -> Self {
        let (refused, ring_full, hint, implausible) = Default::default();
        Self { listen, refused, ring_full, hint, implausible }
    }

    fn refused(&self, refused: Refused<'_>, source: Option<IpAddr>, now: Instant) {
        let Some(Leave { untold }) = self.refused.pass_at(now) else { return };
        let sample = &refused.bytes[..refused.bytes.len().min(SAMPLE_BYTES)];
        let source = source.map_or_else(String::new, |source| source.to_string());
        tracing::warn!(
            reason = refused.reason.name(),
            line = %sample.escape_ascii(),
            source,
            listen = %self.listen,
            cure = cure(refused),
            untold,
            "refused a line; at most one is shown in a minute, /metrics counts all"
        );
    }

    fn implausible(&self, source: IpAddr, time: i64, likely: Option<Precision>, now: Instant) {
        let Some(Leave { untold }) = self.implausible.pass_at(now) else { return };
        let advice = match likely {
            Some(unit) => format!("it probably sends {unit}: set the precision of a listener for it"),
            None => "its clock is probably off".to_owned(),
        };
        tracing::warn!(%source, listen = %self.listen, time, untold, "a point's time is far from now: {advice}");
    }

    fn ring_full(&self, batch: &Batch) {
        if let Some(Leave { untold }) = self.ring_full.pass() {
            tracing::warn!(lines = batch.lines(), untold, "dropped a batch: the journal is not keeping up");
        }
    }

    fn may_hint(&self, now: Instant) -> bool {
        self.hint.is_due_at(now)
    }

    #[cold]
    fn hint(&self, source: IpAddr, now: Instant) {
        if self.hint.pass_at(now).is_none() {
            return;
        }
        tracing::warn!(
            %source,
            "sends empty datagrams: a Netdata whose batch is larger than a datagram (65,507 bytes) loses it at the sender; \
             use tcp: as its destination, or export fewer charts (/api/status counts empty datagrams by source)"
        );
    }
}

#[cfg(test)]
mod tests;
