//! One sending address: what it sent and when, whether it is silent, and how well it is known.
//!
//! A host sends its lines in bursts. The bursts determine its interval, whether it is silent, and
//! its rank against others in a full table.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::protocol::Precision;

/// Arrivals this far apart belong to different bursts.
const BURST_GAP: Duration = Duration::from_millis(500);
/// Number of bursts needed to know a usual interval.
const BURSTS_TO_KNOW: u32 = 4;
/// A source that has sent for this long without a gap sends steadily.
const STEADY_AFTER: Duration = Duration::from_secs(5);
/// Minimum interval, so that a short pause of a busy sender is not silence.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// A source is silent after this many of its intervals.
const SILENT_AFTER: u32 = 3;
/// The time over which a rate is measured: several intervals of a usual host.
const RATE_WINDOW: Duration = Duration::from_secs(60);
/// A source seen in several bursts is kept for this many times as long as it was seen.
const KEPT_TIMES: u32 = 8;
/// Minimum time to keep a source with a known interval, so that an operator can find out why it is
/// silent.
const KNOWN_KEPT: Duration = Duration::from_secs(24 * 3600);
/// A source seen for this long ranks above sources that have become known recently.
const LONG_KNOWN: Duration = Duration::from_secs(3600);
/// A source's sum halves for each such period of silence, for comparison with others.
const HALF_AFTER: Duration = Duration::from_secs(60);
/// Maximum length of a host name, in bytes: the limit of DNS.
const HOST_BYTES: usize = 255;
/// Number of empty datagrams of a source, and their minimum share (one in this many) of all its
/// datagrams, that indicate batches too large to be sent.
const MIN_EMPTY: u64 = 5;
const EMPTY_SHARE: u64 = 4;

/// One arrival: a datagram, or a piece of a stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival {
    /// Lines, accepted and refused.
    pub lines: u64,
    /// Refused lines.
    pub refused: u64,
    /// Datagrams.
    pub datagrams: u64,
    /// Datagrams without payload.
    pub empty: u64,
    /// Connections made.
    pub connections: u64,
    /// Lines whose times are far from the clock.
    pub implausible: u64,
}

/// One source.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its address.
    pub address: IpAddr,
    /// The host named last by the first line of a burst; empty if none was.
    pub host: String,
    /// What it sent.
    pub sum: Arrival,
    /// When it was last seen.
    pub last_seen: Instant,
    first_seen: Instant,
    /// The interval between bursts, smoothed.
    interval: Duration,
    bursts: u32,
    burst_began: Instant,
    /// The window over which a rate is measured: its start, and the lines until then.
    window: (Instant, u64),
    /// Lines per second in the previous window.
    rate: Option<f64>,
    /// Whether this burst's host has been looked up.
    was_named: bool,
    was_reported: bool,
    /// The time of its last implausible timestamp, and the probable unit of it.
    pub implausible: Option<(Instant, Option<Precision>)>,
}

impl Source {
    pub(crate) fn new(address: IpAddr, now: Instant) -> Self {
        Self {
            address,
            host: String::new(),
            sum: Arrival::default(),
            last_seen: now,
            first_seen: now,
            interval: Duration::ZERO,
            bursts: 0,
            burst_began: now,
            window: (now, 0),
            rate: None,
            was_named: false,
            was_reported: false,
            implausible: None,
        }
    }

    /// Counts an arrival.
    #[inline]
    pub(crate) fn note(&mut self, arrival: Arrival, now: Instant) {
        self.sum.add(arrival);
        if now == self.last_seen && self.bursts > 0 {
            return;
        }
        let gap = now.saturating_duration_since(self.last_seen);
        if self.bursts == 0 || gap >= BURST_GAP {
            self.begin_burst(gap, now);
        }
        if now.saturating_duration_since(self.window.0) >= RATE_WINDOW {
            self.begin_window(now);
        }
        self.last_seen = now;
    }

    #[cold]
    fn begin_burst(&mut self, gap: Duration, now: Instant) {
        match self.bursts {
            0 => {}
            1 => self.interval = gap,
            // Limits the weight of one long silence; several change the interval.
            _ => self.interval = (self.interval * 3 + gap.min(self.interval * 4)) / 4,
        }
        self.bursts = self.bursts.saturating_add(1);
        self.burst_began = now;
        self.was_named = false;
    }

    #[cold]
    fn begin_window(&mut self, now: Instant) {
        let (since, before) = self.window;
        self.rate = Some(per_second(self.sum.lines.saturating_sub(before), now.saturating_duration_since(since)));
        self.window = (now, self.sum.lines);
    }

    /// Adds what the same source sent to another worker.
    pub(crate) fn merge(&mut self, other: &Self) {
        let (sum, rates) = (self.sum, [self.rate, other.rate].into_iter().flatten());
        let window = (self.window.0.min(other.window.0), self.window.1 + other.window.1);
        let rate = rates.reduce(|one, other| one + other);
        let last_seen = self.last_seen.max(other.last_seen);
        let first_seen = self.first_seen.min(other.first_seen);
        let host = if self.last_seen < other.last_seen { &other.host } else { &self.host }.clone();
        if self.bursts < other.bursts {
            *self = other.clone();
            self.sum.add(sum);
        } else {
            self.sum.add(other.sum);
        }
        let implausible = self.implausible.max(other.implausible);
        *self = Self { host, last_seen, first_seen, window, rate, implausible, ..self.clone() };
    }

    /// Returns how well it is known: 0 after a single burst, 1 after several, 2 once its interval
    /// is known, 3 after a long time.
    pub fn standing(&self) -> u8 {
        match self.bursts {
            _ if self.interval().is_some() => 2 + u8::from(self.age() >= LONG_KNOWN),
            0 | 1 => 0,
            _ => 1,
        }
    }

    /// Returns for how long it has been seen.
    fn age(&self) -> Duration {
        self.last_seen.saturating_duration_since(self.first_seen)
    }

    /// Returns whether the source is protected from eviction.
    pub(crate) fn is_kept(&self, now: Instant) -> bool {
        let silence = now.saturating_duration_since(self.last_seen);
        let at_least = match self.standing() {
            0 => return false,
            1 => Duration::ZERO,
            _ => KNOWN_KEPT,
        };
        silence <= (self.age() * KEPT_TIMES).max(at_least)
    }

    /// Returns its rank among candidates for eviction; the lowest is evicted.
    pub(crate) fn weight(&self, now: Instant) -> (bool, u8, u64) {
        let halves = now.saturating_duration_since(self.last_seen).as_secs() / HALF_AFTER.as_secs();
        let sum = self.sum.datagrams + self.sum.lines;
        (self.is_kept(now), self.standing(), sum.checked_shr(u32::try_from(halves).unwrap_or(u32::MAX)).unwrap_or(0))
    }

    /// Returns whether to look up the host: once in each burst.
    #[inline]
    pub fn wants_name(&mut self) -> bool {
        !std::mem::replace(&mut self.was_named, true)
    }

    /// Notes the host that a line named.
    pub fn name(&mut self, host: &[u8]) {
        let host = &host[..host.len().min(HOST_BYTES)];
        if self.host.as_bytes() != host {
            self.host = String::from_utf8_lossy(host).into_owned();
        }
    }

    /// Returns, once, whether its empty datagrams indicate batches larger than a datagram: Netdata
    /// sends an empty datagram instead of such a batch. (It also sends one if it has nothing to
    /// send, but rarely.)
    pub fn indicates_large_batches(&mut self) -> bool {
        let Arrival { datagrams, empty, .. } = self.sum;
        let indicates = !self.was_reported && empty >= MIN_EMPTY && empty * EMPTY_SHARE >= datagrams;
        self.was_reported |= indicates;
        indicates
    }

    /// Returns its usual interval, once it is known.
    pub fn interval(&self) -> Option<Duration> {
        let is_steady = self.last_seen.saturating_duration_since(self.burst_began) >= STEADY_AFTER;
        match self.bursts {
            BURSTS_TO_KNOW.. => Some(self.interval.max(MIN_INTERVAL)),
            _ if is_steady => Some(MIN_INTERVAL),
            _ => None,
        }
    }

    /// Returns whether it has sent nothing for several of its usual intervals.
    pub fn is_silent(&self, now: Instant) -> bool {
        let silence = now.saturating_duration_since(self.last_seen);
        self.interval().is_some_and(|interval| silence > interval * SILENT_AFTER)
    }

    /// Returns the recent lines per second.
    pub fn rate(&self, now: Instant) -> f64 {
        let (since, before) = self.window;
        let elapsed = now.saturating_duration_since(since);
        let present = per_second(self.sum.lines.saturating_sub(before), elapsed.max(MIN_INTERVAL));
        match self.rate {
            // While the current window is short, the previous one is more accurate.
            Some(rate) if elapsed < RATE_WINDOW => rate,
            _ => present,
        }
    }
}

impl Arrival {
    pub(crate) fn add(&mut self, other: Self) {
        self.lines += other.lines;
        self.refused += other.refused;
        self.datagrams += other.datagrams;
        self.empty += other.empty;
        self.connections += other.connections;
        self.implausible += other.implausible;
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn per_second(lines: u64, elapsed: Duration) -> f64 {
    lines as f64 / elapsed.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::super::Sources;
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    const ONE: Arrival = Arrival { lines: 3, refused: 1, datagrams: 1, empty: 0, connections: 0, implausible: 0 };

    #[test]
    fn a_host_is_silent_after_three_of_its_intervals() {
        let (mut sources, start) = (Sources::default(), Instant::now());
        let at = |seconds: u64, milliseconds: u64| start + Duration::from_millis(seconds * 1000 + milliseconds);
        for burst in 0..6 {
            for datagram in 0..40 {
                let source = sources.note(address(1), ONE, at(burst * 10, datagram));
                assert_eq!(source.wants_name(), datagram == 0);
            }
            let source = &sources.entries()[0];
            assert_eq!(source.interval().is_some(), burst >= 3, "burst {burst}");
        }
        let source = &sources.entries()[0];
        let interval = source.interval().expect("known");
        assert!(interval.abs_diff(Duration::from_secs(10)) < Duration::from_millis(100), "{interval:?}");
        assert!(!source.is_silent(at(79, 0)) && source.is_silent(at(81, 0)));
        // An hour's silence does not become the interval.
        sources.note(address(1), ONE, at(3650, 0));
        sources.note(address(1), ONE, at(3660, 0));
        let source = &sources.entries()[0];
        assert!(!source.is_silent(at(3670, 0)) && source.is_silent(at(3660 + 60, 0)));
    }

    #[test]
    fn a_busy_sender_has_an_interval_of_a_second_at_least() {
        let (mut sources, start) = (Sources::default(), Instant::now());
        for step in 0..20_u32 {
            sources.note(address(1), ONE, start + step * Duration::from_millis(600));
        }
        assert_eq!(sources.entries()[0].interval(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_steady_sender_is_silent_soon_and_its_rate_falls() {
        let (mut sources, start) = (Sources::default(), Instant::now());
        for step in 0..36_000_u32 {
            sources.note(address(1), ONE, start + step * Duration::from_millis(100));
        }
        let (source, end) = (&sources.entries()[0], start + Duration::from_secs(3600));
        assert_eq!(source.interval(), Some(Duration::from_secs(1)));
        assert!((29.0..31.0).contains(&source.rate(end)), "{}", source.rate(end));
        assert!(!source.is_silent(end + Duration::from_secs(2)) && source.is_silent(end + Duration::from_secs(4)));
        assert!(source.rate(end + Duration::from_secs(3600)) < 1.0);
    }

    #[test]
    fn the_rate_is_the_last_minutes() {
        let (mut sources, start) = (Sources::default(), Instant::now());
        for step in 0..30_u32 {
            sources.note(address(1), ONE, start + step * Duration::from_secs(10));
        }
        let now = start + Duration::from_secs(290);
        let rate = sources.entries()[0].rate(now);
        assert!((0.29..0.36).contains(&rate), "{rate}");
        assert!(sources.entries()[0].rate(now + Duration::from_secs(600)) < 0.05);
    }

    #[test]
    fn empty_datagrams_tell_once() {
        let (mut sources, now) = (Sources::default(), Instant::now());
        let empty = Arrival { datagrams: 1, empty: 1, ..Arrival::default() };
        let mut reported = 0;
        for _ in 0..20 {
            reported += u32::from(sources.note(address(1), empty, now).indicates_large_batches());
        }
        assert_eq!(reported, 1);
        // A small share of empty datagrams indicates nothing.
        for step in 0..200 {
            let arrival = if step % 5 == 0 { empty } else { ONE };
            assert!(!sources.note(address(2), arrival, now).indicates_large_batches(), "{step}");
        }
    }

    #[test]
    fn rates_and_intervals_of_two_workers_are_one() {
        let (mut one, mut other, start) = (Sources::default(), Sources::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for burst in 0..10 {
            one.note(address(1), ONE, at(burst * 10));
        }
        other.note(address(1), ONE, at(100));
        let (alone, now) = (one.entries()[0].rate(at(100)), at(100));
        one.merge(&other);
        let both = &one.entries()[0];
        assert_eq!(both.interval(), Some(Duration::from_secs(10)));
        assert!(!both.is_silent(at(120)) && both.is_silent(at(131)));
        assert!((alone..alone + 3.1).contains(&both.rate(now)), "{} and {alone}", both.rate(now));
    }
}
