//! Who sends: one entry for each address, with what it sent and when.
//!
//! A worker has a table of its own, and publishes copies of it; those of one listener are put together where they are shown.
//! Bounds: [`CAPACITY`] entries. Where a new address finds no room, the least of a few others makes it: its sums go on in
//! the rest, so that no line is missing from the whole.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Addresses that a table holds, at most: eight times the hosts that a relay is made for.
const CAPACITY: usize = 4096;
/// Entries that are looked at for one that makes room.
const CANDIDATES: usize = 8;
/// Two arrivals this far apart belong to two bursts: hosts send what they have at one time, and then wait.
const BURST_GAP: Duration = Duration::from_millis(500);
/// Bursts whose distances tell a usual interval.
const BURSTS_TO_KNOW: u32 = 4;
/// One that has sent so long without a gap sends steadily.
const STEADY_AFTER: Duration = Duration::from_secs(5);
/// A shorter interval is taken for this one, so that a busy sender's hiccup is no silence.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);
/// After so many of its intervals a source is silent.
const SILENT_AFTER: u32 = 3;
/// The time over which a rate is taken: several of the intervals at which hosts send.
const RATE_WINDOW: Duration = Duration::from_secs(60);
/// Empty datagrams of one source, and one in this many of all it sends, that tell of batches too large to be sent.
const EMPTY_TO_TELL: u64 = 5;
const EMPTY_SHARE: u64 = 4;
/// The longest host name that is kept, in bytes: DNS allows no longer one.
const HOST_BYTES: usize = 255;

/// One arrival: a datagram, or a piece of a stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival {
    /// Lines, accepted and refused.
    pub lines: u64,
    /// Those refused.
    pub refused: u64,
    /// Datagrams.
    pub datagrams: u64,
    /// Datagrams without payload.
    pub empty: u64,
    /// Connections made.
    pub connections: u64,
}

/// One source.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its address.
    pub address: IpAddr,
    /// The host that a burst's first line named last; empty where none did.
    pub host: String,
    /// What it sent.
    pub sum: Arrival,
    /// When it was seen last.
    pub last_seen: Instant,
    /// From burst to burst, smoothed.
    interval: Duration,
    bursts: u32,
    burst_began: Instant,
    /// The window that a rate is taken over: when it began, and the lines until then.
    window: (Instant, u64),
    /// Lines a second in the window before.
    rate: Option<f64>,
    /// Whether its host was asked for in this burst.
    was_named: bool,
    was_told: bool,
}

/// All sources of one worker.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    places: HashMap<IpAddr, usize>,
    entries: Vec<Source>,
    /// The place of the last arrival: hosts send many datagrams in a row.
    last: usize,
    /// Where the next candidates are.
    next_candidate: usize,
    /// What those sent that made room, and how often one did.
    rest: Arrival,
    evicted: u64,
}

impl Sources {
    /// Notes an arrival; returns the source.
    #[inline]
    pub fn note(&mut self, address: IpAddr, arrival: Arrival, now: Instant) -> &mut Source {
        if self.entries.get(self.last).is_none_or(|entry| entry.address != address) {
            self.last = self.place_of(address, now);
        }
        let source = &mut self.entries[self.last];
        source.note(arrival, now);
        source
    }

    /// Counts a connection, which is no arrival yet.
    pub fn connect(&mut self, address: IpAddr, now: Instant) {
        self.last = self.place_of(address, now);
        self.entries[self.last].sum.connections += 1;
    }

    /// Adds another worker's table of the same listener.
    pub fn merge(&mut self, other: &Self) {
        for entry in &other.entries {
            let Some(place) = self.places.get(&entry.address) else {
                self.places.insert(entry.address, self.entries.len());
                self.entries.push(entry.clone());
                continue;
            };
            self.entries[*place].merge(entry);
        }
        self.rest.add(other.rest);
        self.evicted += other.evicted;
    }

    /// The sources, in no order.
    pub fn entries(&self) -> &[Source] {
        &self.entries
    }

    /// What those sent that are not kept any more, and how many they were.
    pub fn rest(&self) -> (Arrival, u64) {
        (self.rest, self.evicted)
    }

    fn place_of(&mut self, address: IpAddr, now: Instant) -> usize {
        let known = self.places.get(&address).copied();
        known.unwrap_or_else(|| self.insert(address, now))
    }

    #[cold]
    fn insert(&mut self, address: IpAddr, now: Instant) -> usize {
        let entry = Source::new(address, now);
        let place = if self.entries.len() < CAPACITY {
            self.entries.push(entry);
            self.entries.len() - 1
        } else {
            // Of a few, the one that sent least: forged addresses drive each other out, and no real host.
            let candidates = (0..CANDIDATES).map(|step| (self.next_candidate + step) % CAPACITY);
            let place =
                candidates.min_by_key(|place| self.entries[*place].sum.datagrams + self.entries[*place].sum.lines);
            let place = place.unwrap_or(0);
            self.next_candidate = (self.next_candidate + CANDIDATES) % CAPACITY;
            let gone = std::mem::replace(&mut self.entries[place], entry);
            self.places.remove(&gone.address);
            self.rest.add(gone.sum);
            self.evicted += 1;
            place
        };
        self.places.insert(address, place);
        place
    }
}

impl Source {
    fn new(address: IpAddr, now: Instant) -> Self {
        Self {
            address,
            host: String::new(),
            sum: Arrival::default(),
            last_seen: now,
            interval: Duration::ZERO,
            bursts: 0,
            burst_began: now,
            window: (now, 0),
            rate: None,
            was_named: false,
            was_told: false,
        }
    }

    /// Counts an arrival.
    #[inline]
    fn note(&mut self, arrival: Arrival, now: Instant) {
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
            // One long silence is no new habit; several are.
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
    fn merge(&mut self, other: &Self) {
        let (sum, rates) = (self.sum, [self.rate, other.rate].into_iter().flatten());
        let window = (self.window.0.min(other.window.0), self.window.1 + other.window.1);
        let rate = rates.reduce(|one, other| one + other);
        let last_seen = self.last_seen.max(other.last_seen);
        let host = if self.last_seen < other.last_seen { &other.host } else { &self.host }.clone();
        if self.bursts < other.bursts {
            *self = other.clone();
            self.sum.add(sum);
        } else {
            self.sum.add(other.sum);
        }
        *self = Self { host, last_seen, window, rate, ..self.clone() };
    }

    /// Whether its host is to be looked for: once in each burst.
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

    /// Whether its empty datagrams tell, for the first time, that it has batches larger than a datagram: then Netdata
    /// sends an empty one instead. (It sends one, too, where it has nothing, but not often.)
    pub fn tells_of_large_batches(&mut self) -> bool {
        let Arrival { datagrams, empty, .. } = self.sum;
        let tells = !self.was_told && empty >= EMPTY_TO_TELL && empty * EMPTY_SHARE >= datagrams;
        self.was_told |= tells;
        tells
    }

    /// Its usual interval, once it is known.
    pub fn interval(&self) -> Option<Duration> {
        let is_steady = self.last_seen.saturating_duration_since(self.burst_began) >= STEADY_AFTER;
        match self.bursts {
            BURSTS_TO_KNOW.. => Some(self.interval.max(LEAST_INTERVAL)),
            _ if is_steady => Some(LEAST_INTERVAL),
            _ => None,
        }
    }

    /// Whether it has sent nothing for several of its usual intervals.
    pub fn is_silent(&self, now: Instant) -> bool {
        let silence = now.saturating_duration_since(self.last_seen);
        self.interval().is_some_and(|interval| silence > interval * SILENT_AFTER)
    }

    /// Lines a second of late.
    pub fn rate(&self, now: Instant) -> f64 {
        let (since, before) = self.window;
        let elapsed = now.saturating_duration_since(since);
        let present = per_second(self.sum.lines.saturating_sub(before), elapsed.max(LEAST_INTERVAL));
        match self.rate {
            // The window before says it better, while the present one is short.
            Some(rate) if elapsed < RATE_WINDOW => rate,
            _ => present,
        }
    }
}

impl Arrival {
    fn add(&mut self, other: Self) {
        self.lines += other.lines;
        self.refused += other.refused;
        self.datagrams += other.datagrams;
        self.empty += other.empty;
        self.connections += other.connections;
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn per_second(lines: u64, elapsed: Duration) -> f64 {
    lines as f64 / elapsed.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    const ONE: Arrival = Arrival { lines: 3, refused: 1, datagrams: 1, empty: 0, connections: 0 };

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
        // An hour's silence is no new habit.
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
        let mut told = 0;
        for _ in 0..20 {
            told += u32::from(sources.note(address(1), empty, now).tells_of_large_batches());
        }
        assert_eq!(told, 1);
        // A few among many tell nothing.
        for step in 0..200 {
            let arrival = if step % 5 == 0 { empty } else { ONE };
            assert!(!sources.note(address(2), arrival, now).tells_of_large_batches(), "{step}");
        }
    }

    #[test]
    fn what_makes_room_is_in_the_rest_and_real_hosts_stay() {
        let (mut sources, now) = (Sources::default(), Instant::now());
        for _ in 0..10 {
            sources.note(address(0), ONE, now);
        }
        for forged in 1..20_000 {
            sources.note(address(forged), ONE, now);
        }
        assert_eq!(sources.entries().len(), CAPACITY);
        assert!(sources.entries().iter().any(|entry| entry.address == address(0) && entry.sum.lines == 30));
        let mut sum = sources.rest().0;
        for entry in sources.entries() {
            sum.add(entry.sum);
        }
        assert_eq!((sum.lines, sum.refused, sum.datagrams), (3 * 20_009, 20_009, 20_009));
        assert_eq!(sources.rest().1, 20_000 - CAPACITY as u64);
    }

    #[test]
    fn tables_of_two_workers_are_one() {
        let (mut one, mut other, now) = (Sources::default(), Sources::default(), Instant::now());
        one.note(address(1), ONE, now).name(b"old");
        one.note(address(2), ONE, now);
        other.note(address(1), ONE, now + Duration::from_secs(1)).name(b"new");
        one.merge(&other);
        assert_eq!(one.entries().len(), 2);
        assert_eq!((one.entries()[0].sum.lines, one.entries()[0].host.as_str()), (6, "new"));
        assert_eq!(one.entries()[0].last_seen, now + Duration::from_secs(1));
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
