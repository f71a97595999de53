//! What one worker has seen: tallied in plain numbers, published once in a while.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::Refusal;

/// The published counters of one worker. Only that worker adds to them; anybody reads.
#[derive(Debug, Default)]
pub struct Counters {
    datagrams: AtomicU64,
    bytes: AtomicU64,
    empty: AtomicU64,
    truncated: AtomicU64,
    denied: AtomicU64,
    connections: AtomicU64,
    limited: AtomicU64,
    displaced: AtomicU64,
    timed_out: AtomicU64,
    converted: AtomicU64,
    skipped: AtomicU64,
    ignored_tags: AtomicU64,
    accepted: AtomicU64,
    ring_full: AtomicU64,
    refused: [AtomicU64; Refusal::COUNT],
}

/// One reading, or one worker's sums since the last publishing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams taken from the socket, whatever became of them.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Datagrams without payload.
    pub empty: u64,
    /// Datagrams that did not fit the slot.
    pub truncated: u64,
    /// Datagrams, and connections, from addresses that are not allowed.
    pub denied: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections turned away because there were too many.
    pub limited: u64,
    /// Connections ended to make room for one of another source.
    pub displaced: u64,
    /// Connections ended because nothing came, no first line, or no line's end.
    pub timed_out: u64,
    /// Lines of other formats that became line protocol; several may have become one line.
    pub converted: u64,
    /// Lines that held nothing to store.
    pub skipped: u64,
    /// Words of converted lines that stood among the tags and were none.
    pub ignored_tags: u64,
    /// Lines accepted.
    pub accepted: u64,
    /// Accepted lines that found no room in the ring; counted at once, never tallied.
    pub ring_full: u64,
    /// Lines refused, by [`Refusal::index`].
    pub refused: [u64; Refusal::COUNT],
}

impl Counters {
    /// Adds a worker's sums and sets them to zero.
    pub fn publish(&self, tally: &mut Tally) {
        let sums = std::mem::take(tally);
        self.accepted.fetch_add(sums.accepted, Ordering::Release);
        self.datagrams.fetch_add(sums.datagrams, Ordering::Relaxed);
        self.bytes.fetch_add(sums.bytes, Ordering::Relaxed);
        let seldom = [
            (&self.empty, sums.empty),
            (&self.truncated, sums.truncated),
            (&self.denied, sums.denied),
            (&self.connections, sums.connections),
            (&self.limited, sums.limited),
            (&self.displaced, sums.displaced),
            (&self.timed_out, sums.timed_out),
            (&self.converted, sums.converted),
            (&self.skipped, sums.skipped),
            (&self.ignored_tags, sums.ignored_tags),
        ];
        for (counter, sum) in seldom.into_iter().chain(self.refused.iter().zip(sums.refused)) {
            if sum > 0 {
                counter.fetch_add(sum, Ordering::Relaxed);
            }
        }
    }

    /// Counts accepted lines, published before, that found no room.
    pub fn drop_ring_full(&self, lines: u64) {
        self.ring_full.fetch_add(lines, Ordering::Release);
    }

    /// Reads all counters.
    pub fn read(&self) -> Tally {
        // Read in the opposite order of writing: what was given up never exceeds what was accepted.
        let ring_full = self.ring_full.load(Ordering::Acquire);
        let accepted = self.accepted.load(Ordering::Acquire);
        Tally {
            datagrams: self.datagrams.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            empty: self.empty.load(Ordering::Relaxed),
            truncated: self.truncated.load(Ordering::Relaxed),
            denied: self.denied.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            limited: self.limited.load(Ordering::Relaxed),
            displaced: self.displaced.load(Ordering::Relaxed),
            timed_out: self.timed_out.load(Ordering::Relaxed),
            converted: self.converted.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
            ignored_tags: self.ignored_tags.load(Ordering::Relaxed),
            accepted,
            ring_full,
            refused: std::array::from_fn(|place| self.refused[place].load(Ordering::Relaxed)),
        }
    }
}

impl Tally {
    /// Lines seen: accepted and refused.
    pub fn lines(&self) -> u64 {
        self.accepted + self.refused.iter().sum::<u64>()
    }

    /// Adds another worker's reading.
    pub fn add(&mut self, other: &Self) {
        self.datagrams += other.datagrams;
        self.bytes += other.bytes;
        self.empty += other.empty;
        self.truncated += other.truncated;
        self.denied += other.denied;
        self.connections += other.connections;
        self.limited += other.limited;
        self.displaced += other.displaced;
        self.timed_out += other.timed_out;
        self.converted += other.converted;
        self.skipped += other.skipped;
        self.ignored_tags += other.ignored_tags;
        self.accepted += other.accepted;
        self.ring_full += other.ring_full;
        for (sum, more) in self.refused.iter_mut().zip(other.refused) {
            *sum += more;
        }
    }
}
