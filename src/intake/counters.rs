//! The counters of one worker: tallied in plain integers, published now and then.
//!
//! Four of the counters are the balance of the accepted lines: `accepted = held + submitted +
//! ring_full`. A reader sees these four as of one publication, so the equation holds at every
//! moment. Each is counted where its lines are: a line that is lost between two of these stages
//! breaks the equation.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::protocol::Refusal;

/// Number of retries of a reader before it yields; a publication takes a few stores.
const SPINS: u32 = 64;

/// Statuses with a counter of their own; 0 stands for any other.
pub const ANSWERS: [u16; 14] = [200, 204, 400, 401, 403, 404, 405, 408, 413, 414, 415, 500, 503, 0];

/// The listeners' plain counters. Each is declared once, with its field, the metric's name and
/// help, and the kinds of listeners that have it. The published counters, `/api/status` and
/// `/metrics` are all generated from this table.
macro_rules! each_counter {
    ($then:ident) => {
        $then! {
            /// Datagrams received from the socket, including refused ones.
            datagrams: "datagrams", "Datagrams taken from the socket", ["udp"];
            /// Bytes received from the sockets.
            bytes: "received_bytes", "Bytes taken from the sockets", ["udp", "tcp", "http"];
            /// Datagrams without payload.
            empty: "empty_datagrams", "Datagrams without payload", ["udp"];
            /// Datagrams larger than a slot.
            truncated: "truncated_datagrams", "Datagrams larger than a slot", ["udp"];
            /// Datagrams, or connections, from addresses that are not allowed.
            denied: "denied_datagrams", "Datagrams, or connections, from addresses that are not allowed", ["udp", "tcp", "http"];
            /// Connections accepted.
            connections: "connections", "Connections accepted", ["tcp", "http"];
            /// Connections refused because there were too many.
            limited: "limited_connections", "Connections turned away: there were too many", ["tcp", "http"];
            /// Connections closed to make room for one of a source with fewer.
            displaced: "displaced_connections", "Connections ended to make room for one of a source with fewer", ["tcp", "http"];
            /// Connections closed because no bytes, no first line, or no end of a line arrived in
            /// time.
            timed_out: "timed_out_connections", "Connections ended: nothing came, no first line, or no line's end", ["tcp", "http"];
            /// Lines of other formats that became line protocol; several may have become one line.
            converted: "converted_lines", "Lines of other formats that became line protocol", ["udp", "tcp", "http"];
            /// Lines of other formats without a value to store (`null`).
            skipped: "skipped_lines", "Lines of other formats that held nothing to store", ["udp", "tcp", "http"];
            /// Words among the tags of converted lines that are not tags: without a key, or without
            /// `=`.
            ignored_tags: "ignored_tags", "Tags without a key or a =, left out of converted lines", ["udp", "tcp", "http"];
            /// Lines whose times are far from the clock: an hour ahead or behind, or a day behind
            /// in streams and requests.
            implausible: "implausible_lines", "Lines whose points are far from the clock", ["udp", "tcp", "http"];
            /// Requests answered.
            requests: "http_requests", "Requests of senders, answered", ["http"];
            /// Requests without the right password or token.
            auth_failures: "auth_failures", "Requests without the right password or token", ["http"];
        }
    };
}
pub(crate) use each_counter;

macro_rules! define {
    ($($(#[$doc:meta])* $field:ident: $metric:literal, $help:literal, $kinds:tt;)*) => {
        /// The published counters of one worker. Only that worker adds to them; any thread may read
        /// them.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($field: AtomicU64,)*
            answers: [AtomicU64; ANSWERS.len()],
            /// Odd while the next four are being changed.
            version: AtomicU64,
            accepted: AtomicU64,
            held: AtomicU64,
            submitted: AtomicU64,
            ring_full: AtomicU64,
            refused: [AtomicU64; Refusal::COUNT],
        }

        /// A reading, or a worker's sums since the last publication.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Tally {
            $($(#[$doc])* pub $field: u64,)*
            /// Answers by status, in the order of [`ANSWERS`].
            pub answers: [u64; ANSWERS.len()],
            /// Lines accepted.
            pub accepted: u64,
            /// Accepted lines that the worker has not submitted yet; only in readings, never
            /// tallied.
            pub held: u64,
            /// Accepted lines that the ring took, as the ring counts them; only in readings, never
            /// tallied.
            pub submitted: u64,
            /// Accepted lines that were dropped because the ring was full.
            pub ring_full: u64,
            /// Lines refused, by [`Refusal::index`].
            pub refused: [u64; Refusal::COUNT],
        }

        impl Counters {
            /// Returns each plain counter with its sum.
            fn plain<'a>(&'a self, sums: &Tally) -> impl Iterator<Item = (&'a AtomicU64, u64)> + use<'a> {
                [$((&self.$field, sums.$field)),*].into_iter()
            }

            /// Reads the plain counters.
            fn read_plain(&self) -> Tally {
                Tally { $($field: self.$field.load(Ordering::Relaxed),)* ..Tally::default() }
            }
        }

        impl Tally {
            fn add_plain(&mut self, other: &Self) {
                $(self.$field += other.$field;)*
            }

            /// Returns each plain counter for a test to set.
            #[cfg(test)]
            fn plain_mut(&mut self) -> impl Iterator<Item = &mut u64> {
                [$(&mut self.$field),*].into_iter()
            }
        }
    };
}
each_counter!(define);

impl Counters {
    /// Adds a worker's sums and resets them to zero. `held`: lines that the worker holds;
    /// `submitted`: lines that the ring has taken.
    pub fn publish(&self, tally: &mut Tally, held: u64, submitted: u64) {
        let sums = std::mem::take(tally);
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        // A reader that sees any change below also sees the odd version above.
        fence(Ordering::Release);
        self.accepted.fetch_add(sums.accepted, Ordering::Relaxed);
        self.held.store(held, Ordering::Relaxed);
        self.submitted.store(submitted, Ordering::Relaxed);
        self.ring_full.fetch_add(sums.ring_full, Ordering::Relaxed);
        self.version.store(version + 2, Ordering::Release);
        let by_kind = self.refused.iter().zip(sums.refused).chain(self.answers.iter().zip(sums.answers));
        for (counter, sum) in self.plain(&sums).chain(by_kind) {
            if sum > 0 {
                counter.fetch_add(sum, Ordering::Relaxed);
            }
        }
    }

    /// Returns the four counters of accepted lines as of one publication. The worker never waits
    /// for a reader; a reader waits for the few stores of an ongoing publication.
    fn read_accepted(&self) -> [u64; 4] {
        let mut retries = 0;
        loop {
            let version = self.version.load(Ordering::Acquire);
            let counters = [&self.accepted, &self.held, &self.submitted, &self.ring_full];
            let values = counters.map(|counter| counter.load(Ordering::Relaxed));
            // Keeps the second read of the version after the reads of the values.
            fence(Ordering::Acquire);
            if version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version {
                return values;
            }
            retries += 1;
            if retries < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Reads all counters.
    pub fn read(&self) -> Tally {
        let [accepted, held, submitted, ring_full] = self.read_accepted();
        Tally {
            answers: std::array::from_fn(|index| self.answers[index].load(Ordering::Relaxed)),
            accepted,
            held,
            submitted,
            ring_full,
            refused: std::array::from_fn(|index| self.refused[index].load(Ordering::Relaxed)),
            ..self.read_plain()
        }
    }
}

impl Tally {
    /// Counts an answer with this status.
    pub fn count_answer(&mut self, status: u16) {
        let index = ANSWERS.iter().position(|known| *known == status).unwrap_or(ANSWERS.len() - 1);
        self.answers[index] += 1;
    }

    /// Returns the number of lines seen: accepted and refused.
    pub fn lines(&self) -> u64 {
        self.accepted + self.refused.iter().sum::<u64>()
    }

    /// Adds another worker's reading.
    pub fn add(&mut self, other: &Self) {
        self.add_plain(other);
        for (sum, more) in self.answers.iter_mut().zip(other.answers) {
            *sum += more;
        }
        self.accepted += other.accepted;
        self.held += other.held;
        self.submitted += other.submitted;
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

    /// Returns a tally in which all sums differ: `first` and the numbers after it.
    fn tally(first: u64) -> Tally {
        let mut sums = first..;
        let mut sum = || sums.next().expect("a number");
        let mut tally = Tally::default();
        tally.plain_mut().for_each(|plain| *plain = sum());
        tally.answers = std::array::from_fn(|_| sum());
        (tally.accepted, tally.held, tally.submitted, tally.ring_full) = (sum(), sum(), sum(), sum());
        tally.refused = std::array::from_fn(|_| sum());
        tally
    }

    #[test]
    fn what_is_read_is_the_sum_of_what_was_published() {
        let counters = Counters::default();
        counters.publish(&mut tally(100), 7, 8);
        let published = Tally { held: 7, submitted: 8, ..tally(100) };
        assert_eq!(counters.read(), published);
        let mut more = tally(1000);
        counters.publish(&mut more, 0, 30);
        assert_eq!(more, Tally::default(), "nothing is published twice");
        let mut both = published;
        both.add(&Tally { held: 0, submitted: 22, ..tally(1000) });
        // Held lines are a gauge: the last publication counts.
        assert_eq!(counters.read(), Tally { held: 0, ..both });
    }

    #[test]
    fn readings_of_two_workers_are_one() {
        let (mut sum, one, other) = (Tally::default(), tally(1), tally(1000));
        sum.add(&one);
        assert_eq!(sum, one);
        sum.add(&other);
        // Each sum is 999 more in the other tally, and they are consecutive.
        let mut next = (0..).map(|index| 1001 + 2 * index);
        let mut expect = |sum: u64| assert_eq!(Some(sum), next.next());
        sum.plain_mut().for_each(|plain| expect(*plain));
        sum.answers.into_iter().for_each(&mut expect);
        [sum.accepted, sum.held, sum.submitted, sum.ring_full].into_iter().for_each(&mut expect);
        sum.refused.into_iter().for_each(expect);
        assert_eq!(sum.lines(), sum.accepted + sum.refused.iter().sum::<u64>());
        assert_eq!((sum.datagrams, sum.bytes), (1001, 1003));
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
                    let submitted = before.submitted + before.held + 5;
                    let accepted = submitted + held + before.ring_full + ring_full - before.accepted;
                    counters.publish(&mut Tally { accepted, ring_full, ..Tally::default() }, held, submitted);
                }
                is_over.store(true, Ordering::Relaxed);
            });
            while !is_over.load(Ordering::Relaxed) {
                let sum = counters.read();
                assert_eq!(sum.accepted, sum.held + sum.submitted + sum.ring_full);
            }
        });
    }
}
