//! The table of sources: one entry per address, with what it sent and when.
//!
//! Each worker has its own table and publishes copies of it. The copies of a listener's workers are
//! merged when they are shown.
//!
//! Bounds: [`CAPACITY`] entries, and one more. Addresses can be forged, so a full table is not
//! rare. A new address evicts the lowest-ranked of [`CANDIDATES`] entries, if that one was seen in
//! a single burst or has been silent for too long ([`Source::is_kept`]). If all candidates are
//! kept, the new address gets the extra slot, until the next one arrives. The counts of evicted
//! entries move to `rest`, so that totals stay exact.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use super::source::{Arrival, Source};

/// Maximum number of addresses in a table: eight times the hosts that a relay is designed for.
const CAPACITY: usize = 4096;
/// Number of candidates for eviction, spread over the table.
const CANDIDATES: usize = 8;

/// All sources of one worker.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    indexes: HashMap<IpAddr, usize>,
    entries: Vec<Source>,
    /// Index of the last arrival's source: hosts send many datagrams in a row.
    last: usize,
    /// Index of the first of the next candidates.
    next_candidate: usize,
    /// The counts of evicted entries, and the number of evictions.
    rest: Arrival,
    evicted: u64,
}

impl Sources {
    /// Notes an arrival; returns its source.
    #[inline]
    pub fn note(&mut self, address: IpAddr, arrival: Arrival, now: Instant) -> &mut Source {
        if self.entries.get(self.last).is_none_or(|entry| entry.address != address) {
            self.last = self.index_of(address, now);
        }
        let source = &mut self.entries[self.last];
        source.note(arrival, now);
        source
    }

    /// Counts a connection, which is not an arrival.
    pub fn connect(&mut self, address: IpAddr, now: Instant) {
        self.last = self.index_of(address, now);
        self.entries[self.last].sum.connections += 1;
    }

    /// Adds another worker's table of the same listener.
    pub fn merge(&mut self, other: &Self) {
        for entry in &other.entries {
            let Some(index) = self.indexes.get(&entry.address) else {
                self.indexes.insert(entry.address, self.entries.len());
                self.entries.push(entry.clone());
                continue;
            };
            self.entries[*index].merge(entry);
        }
        self.rest.add(other.rest);
        self.evicted += other.evicted;
    }

    /// Returns the sources, in no particular order.
    pub fn entries(&self) -> &[Source] {
        &self.entries
    }

    /// Returns the counts of evicted sources, and the number of evictions.
    pub fn rest(&self) -> (Arrival, u64) {
        (self.rest, self.evicted)
    }

    fn index_of(&mut self, address: IpAddr, now: Instant) -> usize {
        let known = self.indexes.get(&address).copied();
        known.unwrap_or_else(|| self.insert(address, now))
    }

    #[cold]
    fn insert(&mut self, address: IpAddr, now: Instant) -> usize {
        let entry = Source::new(address, now);
        let index = if self.entries.len() < CAPACITY { self.entries.len() } else { self.evicted_index(now) };
        match self.entries.get_mut(index) {
            None => self.entries.push(entry),
            Some(gone) => {
                let gone = std::mem::replace(gone, entry);
                self.indexes.remove(&gone.address);
                self.rest.add(gone.sum);
                self.evicted += 1;
            }
        }
        self.indexes.insert(address, index);
        index
    }

    /// Returns the index for a new address in a full table: that of the entry to evict.
    fn evicted_index(&mut self, now: Instant) -> usize {
        self.next_candidate = (self.next_candidate + 1) % CAPACITY;
        let candidates = (0..CANDIDATES).map(|step| (self.next_candidate + step * (CAPACITY / CANDIDATES)) % CAPACITY);
        let lowest = candidates.min_by_key(|index| self.entries[*index].weight(now));
        lowest.filter(|index| !self.entries[*index].is_kept(now)).unwrap_or(CAPACITY)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    const ONE: Arrival = Arrival { lines: 3, refused: 1, datagrams: 1, empty: 0, connections: 0, implausible: 0 };

    #[test]
    fn what_makes_room_is_in_the_rest_and_busy_hosts_stay() {
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
    fn forged_addresses_drive_out_no_host_that_came_twice() {
        let (mut sources, start) = (Sources::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        // 500 hosts with an interval of ten seconds; the first ten of them die; the last ten start
        // shortly before the attack.
        for burst in 0..6 {
            (if burst < 4 { 0 } else { 10 }..if burst < 4 { 490 } else { 500 }).for_each(|host| {
                sources.note(address(host), ONE, at(burst * 10));
            });
        }
        // Ten times as many forged addresses as the table holds, each of which sends more than a
        // host did, while hosts continue.
        for forged in 0..100_000_u32 {
            let now = at(60) + Duration::from_millis(u64::from(forged) / 10);
            for _ in 0..3 {
                sources.note(address(1_000_000 + forged), Arrival { lines: 100, ..ONE }, now);
            }
            if forged % 10_000 == 0 {
                for host in 10..500 {
                    sources.note(address(host), ONE, now);
                }
            }
        }
        let known: Vec<_> = sources.entries().iter().filter(|entry| entry.address < address(500)).collect();
        assert_eq!((known.len(), sources.entries().len()), (500, CAPACITY));
        let silent = known.iter().filter(|entry| entry.is_silent(at(71)));
        assert!(silent.map(|entry| entry.address).eq((0..10).map(address)));
        // Sources of a single burst are evicted by any new address.
        assert_eq!(sources.rest().1, 100_500 - CAPACITY as u64);
    }

    #[test]
    fn a_table_full_of_known_hosts_has_one_place_for_others() {
        let (mut sources, start) = (Sources::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let hosts = u32::try_from(CAPACITY).expect("few");
        for burst in 0..4 {
            for host in 0..hosts {
                sources.note(address(host), ONE, at(burst * 10));
            }
        }
        for (number, stranger) in (1..).zip(hosts..hosts + 1000) {
            sources.note(address(stranger), ONE, at(40)).name(b"stranger");
            assert_eq!((sources.entries().len(), sources.rest().1), (CAPACITY + 1, number - 1));
            assert_eq!(sources.entries()[CAPACITY].address, address(stranger));
        }
        // A day later they may be evicted.
        sources.note(address(0), ONE, at(86_400 + 41));
        sources.note(address(hosts), ONE, at(86_400 + 41));
        assert!(sources.entries()[..CAPACITY].iter().any(|entry| entry.address == address(hosts)));
        assert!(sources.entries().iter().any(|entry| entry.address == address(0)));
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
}
