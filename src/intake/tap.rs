//! Shows lines as they pass (`twinflux tail`), and keeps the last refused line of each reason.
//!
//! Owns: one queue per worker. A closed tap costs one load per datagram or piece. Never does:
//! making the worker wait. If the queue is full, or its lock is taken, a line is left out and
//! counted. Bounds: `MAX_LINES` of `LINE_BYTES`; one refused line per reason, recorded at most once
//! per `SAMPLE_INTERVAL`.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::protocol::line::anatomy;
use crate::protocol::{Refusal, Refused, cure};
use crate::sys::wildcard;

/// Maximum number of queued lines.
const MAX_LINES: usize = 256;
/// Maximum length of a shown line, in bytes.
const LINE_BYTES: usize = 1000;
/// Minimum interval between samples of one reason.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// The lines to show: those that match all given criteria.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Filter {
    /// Lines from this network.
    pub source: Option<IpNet>,
    /// Lines of this measurement; `*` matches any text.
    pub measurement: Option<String>,
    /// Lines of listeners of this kind, or at this address.
    pub listener: Option<String>,
    /// Refused lines only.
    pub refused: bool,
}

/// A line that passed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Passed {
    /// The line's source, if known.
    pub source: Option<IpAddr>,
    /// The line, truncated; bytes that are not text are escaped.
    pub line: String,
    /// The reason of the refusal; `None` if the line was accepted.
    pub refused: Option<String>,
}

/// A refused line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The line's source, if known.
    pub source: Option<IpAddr>,
    /// The line, truncated and escaped.
    pub line: String,
    /// How to fix the sender, if the line tells.
    pub cure: Option<&'static str>,
}

/// One worker's tap.
#[derive(Debug, Default)]
pub struct Tap {
    is_open: AtomicBool,
    left_out: AtomicU64,
    queue: Mutex<Queue>,
    samples: Mutex<[Option<(Instant, Sample)>; Refusal::COUNT]>,
    denied: Mutex<Option<(Instant, IpAddr)>>,
}

#[derive(Debug, Default)]
struct Queue {
    filter: Filter,
    passed: VecDeque<Passed>,
}

impl Tap {
    /// Opens the tap for matching lines.
    pub fn open(&self, filter: &Filter) {
        let mut queue = self.lock();
        (queue.filter, queue.passed) = (filter.clone(), VecDeque::new());
        self.left_out.store(0, Ordering::Relaxed);
        self.is_open.store(true, Ordering::Relaxed);
    }

    /// Closes the tap.
    pub fn close(&self) {
        self.is_open.store(false, Ordering::Relaxed);
        self.lock().passed = VecDeque::new();
    }

    /// Returns the lines since the last call, and the number of lines left out.
    pub fn take(&self) -> (Vec<Passed>, u64) {
        let passed = self.lock().passed.drain(..).collect();
        (passed, self.left_out.swap(0, Ordering::Relaxed))
    }

    /// Returns the last refused line of each reason.
    pub fn samples(&self) -> Vec<(Refusal, Instant, Sample)> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let known = Refusal::ALL.into_iter().filter_map(|reason| {
            let (at, sample) = samples[reason.index()].clone()?;
            Some((reason, at, sample))
        });
        known.collect()
    }

    /// Returns the last address that was not allowed, and the time of its arrival.
    pub fn denied(&self) -> Option<(Instant, IpAddr)> {
        *self.denied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an address that is not allowed.
    pub(crate) fn deny(&self, source: IpAddr, now: Instant) {
        if let Ok(mut denied) = self.denied.try_lock()
            && denied.is_none_or(|(at, _)| now.saturating_duration_since(at) >= SAMPLE_INTERVAL)
        {
            *denied = Some((now, source));
        }
    }

    /// Returns whether the tap is open.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Queues an accepted line; the tap must be open.
    #[cold]
    pub(crate) fn accept(&self, line: &[u8], source: Option<IpAddr>) {
        self.offer(line, source, None);
    }

    /// Notes a refused line.
    #[cold]
    pub(crate) fn refuse(&self, refused: Refused<'_>, source: Option<IpAddr>, now: Instant) {
        if let Ok(mut samples) = self.samples.try_lock() {
            let known = &mut samples[refused.reason.index()];
            if known.as_ref().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= SAMPLE_INTERVAL) {
                *known = Some((now, Sample { source, line: shown(refused.bytes), cure: cure(refused) }));
            }
        }
        if self.is_open() {
            self.offer(refused.bytes, source, Some(refused.reason));
        }
    }

    fn offer(&self, line: &[u8], source: Option<IpAddr>, refused: Option<Refusal>) {
        let Ok(mut queue) = self.queue.try_lock() else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if !queue.filter.fits(line, source, refused.is_some()) {
            return;
        }
        if queue.passed.len() >= MAX_LINES {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let refused = refused.map(|reason| reason.name().to_owned());
        queue.passed.push_back(Passed { source, line: shown(line), refused });
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filter {
    /// Returns whether lines of a listener can match.
    pub fn fits_listener(&self, kind: &str, address: &str) -> bool {
        self.listener.as_ref().is_none_or(|wanted| wanted == kind || wanted == address)
    }

    fn fits(&self, line: &[u8], source: Option<IpAddr>, is_refused: bool) -> bool {
        let is_from = |network: &IpNet| source.is_some_and(|source| network.contains(&source.to_canonical()));
        let is_of = |pattern: &String| wildcard::fits(pattern, &String::from_utf8_lossy(&anatomy::measurement(line)));
        (is_refused || !self.refused)
            && self.source.as_ref().is_none_or(is_from)
            && self.measurement.as_ref().is_none_or(is_of)
    }
}

/// Returns a line as text, truncated; bytes that are not UTF-8 are escaped.
fn shown(line: &[u8]) -> String {
    let line = line[..line.len().min(LINE_BYTES)].trim_ascii_end();
    String::from_utf8_lossy(&crate::sys::text::printable_lines(line)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));

    fn refused(bytes: &[u8]) -> Refused<'_> {
        Refused { reason: Refusal::MissingField, bytes }
    }

    fn passed(filter: &Filter) -> Vec<String> {
        let tap = Tap::default();
        tap.open(filter);
        tap.accept(b"cpu,host=a v=1 5", Some(HOST));
        tap.accept(b"mem v=1", Some([10, 9, 9, 9].into()));
        tap.accept(b"disk\xff v=1", None);
        tap.refuse(refused(b"cpu nonsense\x1b\n"), Some(HOST), Instant::now());
        tap.take().0.into_iter().map(|one| one.line).collect()
    }

    #[test]
    fn what_fits_passes_and_bytes_that_act_are_escaped() {
        let all = ["cpu,host=a v=1 5", "mem v=1", "disk\\xff v=1", "cpu nonsense\\u{1b}"];
        assert_eq!(passed(&Filter::default()), all);
        let source = |text: &str| Filter { source: text.parse().ok(), ..Filter::default() };
        assert_eq!(passed(&source("10.1.0.0/16")), [all[0], all[3]]);
        let measurement = Filter { measurement: Some("*e*".to_owned()), ..Filter::default() };
        assert_eq!(passed(&measurement), [all[1]]);
        assert_eq!(passed(&Filter { refused: true, ..Filter::default() }), [all[3]]);
        let listener = Filter { listener: Some("udp".to_owned()), ..Filter::default() };
        assert!(listener.fits_listener("udp", "x") && !listener.fits_listener("tcp", "x"));
    }

    #[test]
    fn nothing_is_kept_while_nobody_looks_and_no_more_than_fits_while_somebody_does() {
        let tap = Tap::default();
        tap.open(&Filter::default());
        for _ in 0..MAX_LINES + 7 {
            tap.accept(&[b'x'; 5000], Some(HOST));
        }
        let (passed, left_out) = tap.take();
        assert_eq!((passed.len(), passed[0].line.len(), left_out), (MAX_LINES, LINE_BYTES, 7));
        tap.close();
        assert!(!tap.is_open() && tap.take().0.is_empty());
        tap.refuse(refused(b"m"), Some(HOST), Instant::now());
        assert!(tap.take().0.is_empty());
    }

    #[test]
    fn of_each_reason_one_line_is_kept_and_replaced_at_most_once_a_second() {
        let (tap, now) = (Tap::default(), Instant::now());
        for (line, at) in [(b"one", 0), (b"two", 900), (b"six", 1100)] {
            tap.refuse(refused(line), Some(HOST), now + Duration::from_millis(at));
            let samples = tap.samples();
            let expected = if at < 1000 { "one" } else { "six" };
            assert_eq!((samples.len(), samples[0].0, &*samples[0].2.line), (1, Refusal::MissingField, expected));
        }
    }
}
