//! What becomes of received bytes in one worker, whatever socket they came from: lines, batches, counters.
//!
//! Owns: the reader, the open batch, the tally, and what is logged of refusals. Never does: reading sockets, waiting
//! (what takes the batches may). For a line nothing in it allocates, locks, logs, or reads a clock.

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

/// The table of sources is published no more often: copying thousands of entries takes a good part of a millisecond.
pub(crate) const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);
/// How much of a refused line is logged, in bytes.
const SAMPLE_BYTES: usize = 200;

/// How the bytes of a listener are taken.
#[derive(Clone, Debug)]
pub struct IntakeConfig {
    /// Where the lines go.
    pub destination: Arc<Destination>,
    /// What the bytes are written in; none: it is told apart.
    pub format: Option<Format>,
    /// What names become that are not line protocol's.
    pub mapping: Mapping,
    /// The longest line, in bytes without its line feed.
    pub max_line: usize,
    /// What becomes of unsigned integers.
    pub unsigned: Unsigned,
    /// Networks whose bytes are taken.
    pub allow: Allow,
}

impl IntakeConfig {
    fn rules(&self) -> Rules {
        Rules { precision: self.destination.precision(), max_line: self.max_line, unsigned: self.unsigned }
    }

    /// Whether charts of Netdata are told from paths, in which dots of their names look like any others.
    pub fn splits_charts_at_dots(&self) -> bool {
        self.mapping.is_netdata() && matches!(self.format, None | Some(Format::Graphite | Format::Opentsdb))
    }

    /// Whether bytes of this source are taken.
    #[inline]
    pub(crate) fn allows(&self, source: Option<IpAddr>) -> bool {
        self.allow.lets_in(source)
    }
}

/// What one worker shares with those who look at it.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) counters: CachePadded<Counters>,
    /// Lines for whoever looks.
    pub(crate) tap: Tap,
    /// A copy of the worker's table. The worker never waits for it.
    sources: Mutex<Sources>,
}

impl Shown {
    /// The table of sources as it was published last.
    pub(crate) fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes bytes, and hands batches over.
#[derive(Debug)]
pub(crate) struct Intake<H> {
    setup: IntakeConfig,
    pool: Arc<Pool>,
    limits: Limits,
    /// Readers of requests' lines, and what stamps these, by what they are written in and the unit of their timestamps.
    readers: HashMap<(Option<Format>, Precision), (Reader, Stamper)>,
    reader: Reader,
    lines: Lines<H>,
    sources: Sources,
    /// When the table is to be published; none where it has not changed since.
    sources_due: Option<Instant>,
    sources_published: Option<Instant>,
}

/// What takes the reader's lines.
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
    /// The lines of the datagram or the piece at hand.
    arrival: Arrival,
    /// Whether somebody looks at the lines.
    is_tapped: bool,
    /// Times that the arrival's points may have, and the last one's that has none of these.
    plausible: Plausible,
    implausible: i64,
    /// Of the request at hand.
    told: Told,
    /// Lines in the builders of other requests.
    elsewhere: u64,
}

impl<H: Submit> Intake<H> {
    /// For a listener at this address.
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
            told: Told::default(),
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

    /// What comes from now on was received at this time.
    pub(crate) fn set_clock(&mut self, received: Received) {
        self.lines.stamper.set_clock(received.wall.nanoseconds());
        self.lines.received = received;
    }

    /// The sums since the counters were published, for what is counted elsewhere.
    pub(crate) fn tally(&mut self) -> &mut Tally {
        &mut self.lines.tally
    }

    /// Takes a datagram that is allowed and not empty.
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
        if self.lines.logs.may_hint(self.lines.received.monotonic) && source.tells_of_large_batches() {
            self.lines.logs.hint(address, self.lines.received.monotonic);
        }
        self.sources_changed(self.lines.received.monotonic);
    }

    /// Takes whole lines of a stream, as far as they are read ([`Found::consumed`]); with `is_end` all of them.
    pub(crate) fn stream(&mut self, bytes: &[u8], stream: &mut Stream, is_end: bool, source: IpAddr) -> Found {
        self.lines.begin(Some(source), Arrival::default());
        let found = self.reader.stream(bytes, stream, is_end, &mut self.lines);
        self.lines.count(found);
        self.note(bytes, found.first);
        found
    }

    /// Counts a line that was not even read.
    pub(crate) fn refuse(&mut self, refused: Refused<'_>, source: IpAddr) {
        self.lines.begin(Some(source), Arrival::default());
        self.lines.refused(refused);
        self.note(&[], None);
    }

    /// Notes an arrival, and the host that the first line of a burst names: its format, and where it is.
    #[inline]
    fn note(&mut self, bytes: &[u8], first: Option<(Format, usize)>) {
        let Some(address) = self.lines.source else { return };
        let source = self.sources.note(address, self.lines.arrival, self.lines.received.monotonic);
        if self.lines.arrival.implausible > 0 {
            let unit = self.lines.note_implausible(address);
            // A stream or a request may be of old points; a datagram is of now.
            if unit.is_some() || self.lines.arrival.datagrams > 0 {
                source.implausible = Some((self.lines.received.monotonic, unit));
            }
        }
        if let Some((format, place)) = first
            && source.wants_name()
        {
            let first = bytes[place..].split(|byte| *byte == b'\n').next().unwrap_or_default();
            if let Some(host) = self.reader.host(format, first) {
                source.name(host);
            }
        }
        self.sources_changed(self.lines.received.monotonic);
    }

    /// The table is published at once, or a while after the last time.
    #[inline]
    fn sources_changed(&mut self, now: Instant) {
        if self.sources_due.is_none() {
            self.sources_due = Some(self.sources_published.map_or(now, |before| before + PUBLISH_INTERVAL));
        }
    }

    /// When the table is to be published; none where it has not changed.
    pub(crate) fn sources_due(&self) -> Option<Instant> {
        self.sources_due
    }

    /// Publishes the table where that is due. Where somebody looks at the last one, the next time will do.
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

    /// Makes the sums visible.
    pub(crate) fn publish(&mut self) {
        self.lines.publish(0);
    }

    /// When the open batch is due; none while it is empty.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.lines.builder.due()
    }

    /// Hands the open batch over, where there is one.
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

    /// Counts lines whose points are far from the clock; the unit that they are probably in, if it is another.
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

    /// Gives a batch away, or counts its lines as dropped. What was accepted is published first, so that nobody sees a
    /// line delivered or dropped that was not accepted.
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

    /// Makes the sums visible, with the lines that are held: in the open batch, and in a sealed one that waits for room.
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
        self.told.accepted += 1;
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
        self.told.refuse(refused);
        self.shown.tap.refuse(refused, self.source, self.received.monotonic);
        self.logs.refused(refused, self.source, self.received.monotonic);
    }
}

/// What is logged, each event once a minute.
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
