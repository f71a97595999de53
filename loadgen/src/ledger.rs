//! What arrived: for each host which of its lines, how often, whole or not.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;

use crate::line::{MAX_HOSTS, Verdict, verify};
use crate::netdata;

/// One line in this many has its latency taken.
const LATENCY_SAMPLE: u64 = 16;
/// The longest latency that is told from longer ones: one hour, in microseconds.
const MAX_LATENCY_MICROSECONDS: u64 = 3_600_000_000;
/// Sequence numbers beyond this are taken for altered: the bound of a host's bitmap, 32 MiB.
const MAX_SEQUENCE: u64 = 1 << 28;

/// The lines that one receiver got. Shared between its connections.
#[derive(Debug)]
pub struct Ledger {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    hosts: Vec<Vec<u64>>,
    counts: Counts,
    latency: Histogram<u64>,
}

/// A ledger's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Lines, of whatever kind.
    pub lines: u64,
    /// Different lines of ours, or values of Netdata's, that arrived whole.
    pub distinct: u64,
    /// Whole ones that had arrived before.
    pub duplicates: u64,
    /// Lines with our marks and a wrong checksum.
    pub altered: u64,
    /// Lines without our marks.
    pub foreign: u64,
}

impl Default for Ledger {
    fn default() -> Self {
        let latency = Histogram::new_with_bounds(1, MAX_LATENCY_MICROSECONDS, 2);
        let latency = latency.expect("BUG: constant bounds are valid");
        Self { inner: Mutex::new(Inner { hosts: Vec::new(), counts: Counts::default(), latency }) }
    }
}

impl Ledger {
    /// Notes every line of `text`, each ended by a line feed.
    pub fn note(&self, text: &[u8]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', text) {
            inner.note_line(&text[start..end], now);
            start = end + 1;
        }
        if start < text.len() {
            inner.note_line(&text[start..], now);
        }
    }

    /// The figures now.
    pub fn counts(&self) -> Counts {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).counts
    }

    /// How many of a host's lines from number `first` on did not arrive.
    pub fn missing(&self, host: u32, first: u64, lines: u64) -> u64 {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let bitmap = inner.hosts.get(host as usize).map_or(&[][..], Vec::as_slice);
        let has = |number: u64| {
            let word = usize::try_from(number / 64).unwrap_or(usize::MAX);
            bitmap.get(word).is_some_and(|word| word & 1 << (number % 64) != 0)
        };
        (first..first + lines).filter(|number| !has(*number)).count() as u64
    }

    /// From a line's timestamp to its arrival here, in milliseconds: the median, the 99th
    /// percentile, the longest.
    pub fn latency_ms(&self) -> [f64; 3] {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let latency = &inner.latency;
        [latency.value_at_quantile(0.5), latency.value_at_quantile(0.99), latency.max()]
            .map(|microseconds| f64::from(u32::try_from(microseconds).unwrap_or(u32::MAX)) / 1000.0)
    }
}

impl Inner {
    fn note_line(&mut self, line: &[u8], now: u64) {
        self.counts.lines += 1;
        if netdata::is_ours(line) {
            netdata::verify(line, |verdict| self.note(verdict, now));
        } else {
            self.note(verify(line), now);
        }
    }

    fn note(&mut self, verdict: Verdict, now: u64) {
        match verdict {
            Verdict::Foreign => self.counts.foreign += 1,
            Verdict::Whole { host, sequence, timestamp } if host < MAX_HOSTS && sequence < MAX_SEQUENCE => {
                self.note_whole(host, sequence);
                if sequence.is_multiple_of(LATENCY_SAMPLE) {
                    self.latency.saturating_record((now.saturating_sub(timestamp) / 1000).max(1));
                }
            }
            Verdict::Altered | Verdict::Whole { .. } => self.counts.altered += 1,
        }
    }

    fn note_whole(&mut self, host: u32, sequence: u64) {
        let host = host as usize;
        if self.hosts.len() <= host {
            self.hosts.resize_with(host + 1, Vec::new);
        }
        let bitmap = &mut self.hosts[host];
        let word = usize::try_from(sequence / 64).unwrap_or(usize::MAX);
        if bitmap.len() <= word {
            bitmap.resize(word + 1, 0);
        }
        let bit = 1 << (sequence % 64);
        if bitmap[word] & bit == 0 {
            bitmap[word] |= bit;
            self.counts.distinct += 1;
        } else {
            self.counts.duplicates += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{Host, Shape};

    #[test]
    fn every_line_is_told_apart() {
        let mut host = Host::new(3, Shape { cpus: 1, mounts: 0, disks: 0, interfaces: 0 });
        host.render(1);
        let text = host.bytes().to_vec();
        let lines = host.lines().len() as u64;
        let ledger = Ledger::default();
        ledger.note(&text);
        ledger.note(&text);
        ledger.note(b"stranger v=1 1\n");
        let mut altered = text[host.lines()[0].clone()].to_vec();
        altered[0] ^= 1;
        ledger.note(&altered);
        let expected = Counts { lines: 2 * lines + 2, distinct: lines, duplicates: lines, altered: 1, foreign: 1 };
        assert_eq!(ledger.counts(), expected);
    }
}
