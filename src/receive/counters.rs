//! What one worker has seen: tallied in plain numbers, published once in a while.
//!
//! Four of the counters say what became of the accepted lines: `accepted = held + handed_over + ring_full`. They are
//! read as they stood at one publishing, so that the sum can be trusted at every moment, and each is counted where its
//! lines are: a line that is lost between two of these places makes the sum differ.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::protocol::Refusal;

/// How often a reader looks again before it lets others run: publishing takes a few stores.
const SPINS: u32 = 64;

/// Statuses that have a counter of their own; 0 is any other.
pub const ANSWERS: [u16; 14] = [200, 204, 400, 401, 403, 404, 405, 408, 413, 414, 415, 500, 503, 0];

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
    implausible: AtomicU64,
    requests: AtomicU64,
    answers: [AtomicU64; ANSWERS.len()],
    auth_failures: AtomicU64,
    /// Odd while the next four are being changed.
    version: AtomicU64,
    accepted: AtomicU64,
    held: AtomicU64,
    handed_over: AtomicU64,
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
    /// Lines whose points are far from the clock: an hour ahead or behind, or a day behind in streams and requests.
    pub implausible: u64,
    /// Requests answered.
    pub requests: u64,
    /// Answers by their status, as [`ANSWERS`] lists them; the last is any other.
    pub answers: [u64; ANSWERS.len()],
    /// Requests without the right password or token.
    pub auth_failures: u64,
    /// Lines accepted.
    pub accepted: u64,
    /// Accepted lines that the worker has not handed over yet; a reading's, never tallied.
    pub held: u64,
    /// Accepted lines that the ring took, by its own count; a reading's, never tallied.
    pub handed_over: u64,
    /// Accepted lines that found no room in the ring.
    pub ring_full: u64,
    /// Lines refused, by [`Refusal::index`].
    pub refused: [u64; Refusal::COUNT],
}

impl Counters {
    /// Adds a worker's sums and sets them to zero; says how many lines the worker has, and how many the ring has taken.
    pub fn publish(&self, tally: &mut Tally, held: u64, handed_over: u64) {
        let sums = std::mem::take(tally);
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        // No reader sees a change below without the odd version above.
        fence(Ordering::Release);
        self.accepted.fetch_add(sums.accepted, Ordering::Relaxed);
        self.held.store(held, Ordering::Relaxed);
        self.handed_over.store(handed_over, Ordering::Relaxed);
        self.ring_full.fetch_add(sums.ring_full, Ordering::Relaxed);
        self.version.store(version + 2, Ordering::Release);
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
            (&self.implausible, sums.implausible),
            (&self.requests, sums.requests),
            (&self.auth_failures, sums.auth_failures),
        ];
        let by_kind = self.refused.iter().zip(sums.refused).chain(self.answers.iter().zip(sums.answers));
        for (counter, sum) in seldom.into_iter().chain(by_kind) {
            if sum > 0 {
                counter.fetch_add(sum, Ordering::Relaxed);
            }
        }
    }

    /// Accepted lines and what became of them, as they stood at one publishing. The worker never waits for a reader; a
    /// reader waits for the few stores of a publishing under way.
    fn read_accepted(&self) -> [u64; 4] {
        let mut looks = 0;
        loop {
            let version = self.version.load(Ordering::Acquire);
            let counters = [&self.accepted, &self.held, &self.handed_over, &self.ring_full];
            let values = counters.map(|counter| counter.load(Ordering::Relaxed));
            // The version is read after the values, whatever the processor would like.
            fence(Ordering::Acquire);
            if version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version {
                return values;
            }
            looks += 1;
            if looks < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Reads all counters.
    pub fn read(&self) -> Tally {
        let [accepted, held, handed_over, ring_full] = self.read_accepted();
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
            implausible: self.implausible.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            answers: std::array::from_fn(|place| self.answers[place].load(Ordering::Relaxed)),
            auth_failures: self.auth_failures.load(Ordering::Relaxed),
            accepted,
            held,
            handed_over,
            ring_full,
            refused: std::array::from_fn(|place| self.refused[place].load(Ordering::Relaxed)),
        }
    }
}

impl Tally {
    /// Counts an answer with this status.
    pub fn count_answer(&mut self, status: u16) {
        let place = ANSWERS.iter().position(|known| *known == status).unwrap_or(ANSWERS.len() - 1);
        self.answers[place] += 1;
    }

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
        self.implausible += other.implausible;
        self.requests += other.requests;
        self.auth_failures += other.auth_failures;
        for (sum, more) in self.answers.iter_mut().zip(other.answers) {
            *sum += more;
        }
        self.accepted += other.accepted;
        self.held += other.held;
        self.handed_over += other.handed_over;
        self.ring_full += other.ring_full;
        for (sum, more) in self.refused.iter_mut().zip(other.refused) {
            *sum += more;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// A tally in which each sum is another one: this one, and those that follow it.
    fn tally(first: u64) -> Tally {
        let mut sums = first..;
        let mut sum = || sums.next().expect("a number");
        Tally {
            datagrams: sum(),
            bytes: sum(),
            empty: sum(),
            truncated: sum(),
            denied: sum(),
            connections: sum(),
            limited: sum(),
            displaced: sum(),
            timed_out: sum(),
            converted: sum(),
            skipped: sum(),
            ignored_tags: sum(),
            implausible: sum(),
            requests: sum(),
            answers: std::array::from_fn(|_| sum()),
            auth_failures: sum(),
            accepted: sum(),
            held: sum(),
            handed_over: sum(),
            ring_full: sum(),
            refused: std::array::from_fn(|_| sum()),
        }
    }

    #[test]
    fn what_is_read_is_the_sum_of_what_was_published() {
        let counters = Counters::default();
        counters.publish(&mut tally(100), 7, 8);
        let published = Tally { held: 7, handed_over: 8, ..tally(100) };
        assert_eq!(counters.read(), published);
        let mut more = tally(1000);
        counters.publish(&mut more, 0, 30);
        assert_eq!(more, Tally::default(), "nothing is published twice");
        let mut both = published;
        both.add(&Tally { held: 0, handed_over: 22, ..tally(1000) });
        // Lines at hand are as many as there are now.
        assert_eq!(counters.read(), Tally { held: 0, ..both });
    }

    #[test]
    fn readings_of_two_workers_are_one() {
        let (mut sum, one, other) = (Tally::default(), tally(1), tally(1000));
        sum.add(&one);
        assert_eq!(sum, one);
        sum.add(&other);
        // Each sum is 999 more in the other.
        assert_eq!((sum.datagrams, sum.bytes, sum.empty, sum.truncated), (1001, 1003, 1005, 1007));
        assert_eq!((sum.denied, sum.connections, sum.limited, sum.displaced), (1009, 1011, 1013, 1015));
        assert_eq!((sum.timed_out, sum.converted, sum.skipped, sum.ignored_tags), (1017, 1019, 1021, 1023));
        assert_eq!(sum.implausible, 1025);
        let from = |first: u64| (0..).map(move |place| first + 2 * place);
        let answers: Vec<u64> = from(1029).take(ANSWERS.len()).collect();
        assert_eq!((sum.requests, &sum.answers[..]), (1027, &answers[..]));
        let next = from(1029).nth(ANSWERS.len()).expect("a number");
        let accepted = [sum.auth_failures, sum.accepted, sum.held, sum.handed_over, sum.ring_full];
        assert_eq!(accepted, [next, next + 2, next + 4, next + 6, next + 8]);
        let refused: Vec<u64> = from(next + 10).take(Refusal::COUNT).collect();
        assert_eq!((&sum.refused[..], sum.lines()), (&refused[..], next + 2 + refused.iter().sum::<u64>()));
    }

    #[test]
    fn an_answer_is_counted_by_its_status() {
        let mut tally = Tally::default();
        for status in [204, 204, 503, 418] {
            tally.count_answer(status);
        }
        let counted: Vec<(u16, u64)> = ANSWERS.into_iter().zip(tally.answers).filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [(204, 2), (503, 1), (0, 1)]);
    }

    #[test]
    fn a_reading_balances_while_the_worker_publishes() {
        let (counters, is_over) = (Counters::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..200_000 {
                    let (held, ring_full) = (round % 10, u64::from(round % 3 == 0));
                    let before = counters.read();
                    let handed_over = before.handed_over + before.held + 5;
                    let accepted = handed_over + held + before.ring_full + ring_full - before.accepted;
                    counters.publish(&mut Tally { accepted, ring_full, ..Tally::default() }, held, handed_over);
                }
                is_over.store(true, Ordering::Relaxed);
            });
            while !is_over.load(Ordering::Relaxed) {
                let sum = counters.read();
                assert_eq!(sum.accepted, sum.held + sum.handed_over + sum.ring_full);
            }
        });
    }
}
