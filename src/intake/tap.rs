//! Lines as they pass, for whoever looks (`twinflux tail`), and the last refused line of each reason.
//!
//! Each worker has one. While nobody looks it costs a load for each datagram or piece. The worker never waits: where the
//! queue is full, or somebody takes from it, a line is left out and counted. Bounds: `MAX_LINES` of `LINE_BYTES`; one
//! refused line for each reason, written down at most once in `SAMPLE_INTERVAL`.

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

/// Lines that wait for whoever looks.
const MAX_LINES: usize = 256;
/// How much of a line is shown, in bytes.
const LINE_BYTES: usize = 1000;
/// A reason's sample is replaced no more often.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Which lines are shown: those that fit everything that is named.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Filter {
    /// Lines from this network.
    pub source: Option<IpNet>,
    /// Lines of this measurement, with `*` for any text.
    pub measurement: Option<String>,
    /// Lines of listeners of this kind, or at this address.
    pub listener: Option<String>,
    /// Refused lines only.
    pub refused: bool,
}

/// A line that passed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Passed {
    /// Where it came from, where that is known.
    pub source: Option<IpAddr>,
    /// The line, cut; bytes that are no text are escaped.
    pub line: String,
    /// Why it was refused; none if it was accepted.
    pub refused: Option<String>,
}

/// A refused line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Where it came from, where that is known.
    pub source: Option<IpAddr>,
    /// The line, cut and escaped.
    pub line: String,
    /// What would cure its sender, where the line tells.
    pub cure: Option<&'static str>,
}

/// One worker's.
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
    /// Lets lines through that fit.
    pub fn open(&self, filter: &Filter) {
        let mut queue = self.lock();
        (queue.filter, queue.passed) = (filter.clone(), VecDeque::new());
        self.left_out.store(0, Ordering::Relaxed);
        self.is_open.store(true, Ordering::Relaxed);
    }

    /// Lets no more through.
    pub fn close(&self) {
        self.is_open.store(false, Ordering::Relaxed);
        self.lock().passed = VecDeque::new();
    }

    /// What passed since the last time, and how many lines were left out.
    pub fn take(&self) -> (Vec<Passed>, u64) {
        let passed = self.lock().passed.drain(..).collect();
        (passed, self.left_out.swap(0, Ordering::Relaxed))
    }

    /// The last refused line of each reason.
    pub fn samples(&self) -> Vec<(Refusal, Instant, Sample)> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let known = Refusal::ALL.into_iter().filter_map(|reason| {
            let (at, sample) = samples[reason.index()].clone()?;
            Some((reason, at, sample))
        });
        known.collect()
    }

    /// The last address that was not allowed, and when it came.
    pub fn denied(&self) -> Option<(Instant, IpAddr)> {
        *self.denied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An address is not allowed.
    pub(crate) fn deny(&self, source: IpAddr, now: Instant) {
        if let Ok(mut denied) = self.denied.try_lock()
            && denied.is_none_or(|(at, _)| now.saturating_duration_since(at) >= SAMPLE_INTERVAL)
        {
            *denied = Some((now, source));
        }
    }

    /// Whether somebody looks.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// An accepted line passes while somebody looks.
    #[cold]
    pub(crate) fn accept(&self, line: &[u8], source: Option<IpAddr>) {
        self.offer(line, source, None);
    }

    /// A refused line passes.
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
    /// Whether lines of a listener may fit.
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

/// A line as text, cut: what is no UTF-8 is escaped.
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
