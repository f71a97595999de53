//! Tracks a listener's open connections by source, and chooses which one to close at the limit.
//!
//! A source is an IPv4 address or an IPv6 /64 network: a host that has one IPv6 address usually
//! controls all of its network. At the limit, the source with the most connections loses its idlest
//! one, provided that this leaves the source no worse off than the newcomer's source, or that the
//! connection never delivered a line. A few addresses therefore cannot lock out the others, and
//! unused connections make room for new ones.
//!
//! Never does: reading. Bounds: connections in total and per source. The search at the limit visits
//! each source once, and each connection of the sources that have the most.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::time::Instant;

use tokio::task::JoinSet;

/// The bits of an IPv6 address that name its network.
const NETWORK_BITS: u128 = u128::MAX << 64;

/// All open connections.
#[derive(Debug)]
pub(in crate::receive) struct Crowd<S> {
    max: usize,
    max_per_source: usize,
    open: usize,
    sources: HashMap<IpAddr, Vec<Rc<Member<S>>>>,
}

/// One open connection.
#[derive(Debug)]
pub(in crate::receive) struct Member<S> {
    pub(in crate::receive) stream: S,
    pub(in crate::receive) opened: Instant,
    /// When the last byte arrived; initially the time of opening.
    pub(in crate::receive) last: Cell<Instant>,
    /// Whether a whole line has arrived.
    pub(in crate::receive) has_line: Cell<bool>,
    source: Cell<IpAddr>,
    /// Index among the connections of its source. `None` once it has left.
    index: Cell<Option<usize>>,
}

/// Result of admitting a connection.
#[derive(Debug)]
pub(in crate::receive) enum Entered<S> {
    /// Admitted; there was capacity.
    Free(Rc<Member<S>>),
    /// Admitted (first) in index of another connection (second), which the caller must end.
    Instead(Rc<Member<S>>, Rc<Member<S>>),
    /// No capacity. Holds the number of connections that the source has.
    Full(usize),
}

impl<S> Crowd<S> {
    /// Creates an empty crowd with these limits: connections in total and per source.
    pub(in crate::receive) fn new(max: usize, max_per_source: usize) -> Self {
        Self { max, max_per_source, open: 0, sources: HashMap::new() }
    }

    /// Number of open connections.
    pub(in crate::receive) fn open(&self) -> usize {
        self.open
    }

    /// Whether more than half of the allowed connections are open.
    pub(in crate::receive) fn is_dense(&self) -> bool {
        self.open > self.max / 2
    }

    /// Admits a connection from this address if there is capacity or another connection can be
    /// evicted.
    pub(in crate::receive) fn enter(&mut self, stream: S, address: IpAddr, now: Instant) -> Entered<S> {
        let of_source = self.sources.get(&source_of(address)).map_or(0, Vec::len);
        if of_source >= self.max_per_source {
            return Entered::Full(of_source);
        }
        self.enter_proxys(stream, address, now)
    }

    /// Admits a connection from a proxy. A proxy stands for many sources, so only the total limit
    /// applies until it [names](Self::name) one.
    pub(in crate::receive) fn enter_proxys(&mut self, stream: S, address: IpAddr, now: Instant) -> Entered<S> {
        let source = source_of(address);
        let of_source = self.sources.get(&source).map_or(0, Vec::len);
        if self.open < self.max {
            return Entered::Free(self.insert(stream, source, now));
        }
        match self.idlest_of_greediest(of_source) {
            Some(idlest) => {
                self.leave(&idlest);
                Entered::Instead(self.insert(stream, source, now), idlest)
            }
            None => Entered::Full(of_source),
        }
    }

    /// Assigns a proxy's connection to the source that the proxy named.
    ///
    /// # Errors
    /// The source is at its limit; holds the number of its connections. The connection stays
    /// assigned to the proxy.
    pub(in crate::receive) fn name(&mut self, member: &Rc<Member<S>>, address: IpAddr) -> Result<(), usize> {
        let source = source_of(address);
        let of_source = self.sources.get(&source).map_or(0, Vec::len);
        if of_source >= self.max_per_source {
            return Err(of_source);
        }
        // A connection that was evicted in the meantime belongs to no source.
        if self.detach(member) {
            self.attach(member, source);
        }
        Ok(())
    }

    /// Removes a connection that has ended or is about to end.
    pub(in crate::receive) fn leave(&mut self, member: &Member<S>) {
        self.detach(member);
    }

    fn detach(&mut self, member: &Member<S>) -> bool {
        let Some(index) = member.index.take() else { return false };
        let source = member.source.get();
        let Some(members) = self.sources.get_mut(&source) else { return false };
        members.swap_remove(index);
        if let Some(moved) = members.get(index) {
            moved.index.set(Some(index));
        }
        if members.is_empty() {
            self.sources.remove(&source);
        }
        self.open -= 1;
        true
    }

    fn attach(&mut self, member: &Rc<Member<S>>, source: IpAddr) {
        let members = self.sources.entry(source).or_default();
        member.source.set(source);
        member.index.set(Some(members.len()));
        members.push(Rc::clone(member));
        self.open += 1;
    }

    fn insert(&mut self, stream: S, source: IpAddr, now: Instant) -> Rc<Member<S>> {
        let (last, has_line) = (Cell::new(now), Cell::new(false));
        let (source, index) = (Cell::new(source), Cell::new(None));
        let member = Rc::new(Member { stream, opened: now, last, has_line, source, index });
        self.attach(&member, member.source.get());
        member
    }

    /// Finds the connection to evict for a newcomer whose source has this many connections.
    fn idlest_of_greediest(&self, newcomers: usize) -> Option<Rc<Member<S>>> {
        let most = self.sources.values().map(Vec::len).max()?;
        let greediest = self.sources.values().filter(|members| members.len() == most).flatten();
        let idlest = greediest.min_by_key(|member| (member.has_line.get(), member.last.get()))?;
        (most > newcomers + 1 || !idlest.has_line.get()).then(|| Rc::clone(idlest))
    }
}

/// Reaps the tasks of ended connections, and waits while there are more than `max` tasks.
///
/// An evicted connection keeps its file descriptor until its task ends. Without the wait, a crowd
/// in the kernel's accept queue would use up descriptors that delivery and the journal need.
pub(in crate::receive) async fn reap(tasks: &mut JoinSet<()>, max: usize) {
    while tasks.try_join_next().is_some() {}
    while tasks.len() > max && tasks.join_next().await.is_some() {}
}

/// Maps an address to its source: the address itself, or the IPv6 network.
pub(super) fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK_BITS).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Creates a crowd whose connections arrived one second apart from these sources. Each stream
    /// is its own number.
    fn crowd(max: usize, sources: &[&str], start: Instant) -> (Crowd<usize>, Vec<Rc<Member<usize>>>) {
        let mut crowd = Crowd::new(max, max);
        let members = sources.iter().enumerate().map(|(number, source)| {
            let now = start + Duration::from_secs(number as u64);
            let Entered::Free(member) = crowd.enter(number, address(source), now) else { panic!("there is room") };
            member
        });
        let members = members.collect();
        (crowd, members)
    }

    /// Returns the connection that is evicted for one from this source.
    fn instead_of(crowd: &mut Crowd<usize>, source: &str, now: Instant) -> Option<usize> {
        match crowd.enter(99, address(source), now) {
            Entered::Instead(_, gone) => Some(gone.stream),
            Entered::Full(_) => None,
            Entered::Free(_) => panic!("there is no room"),
        }
    }

    #[test]
    fn the_idlest_of_the_greediest_gives_way() {
        let start = Instant::now();
        let late = start + Duration::from_secs(60);
        let (mut crowd, members) =
            crowd(6, &["10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.3"], start);
        for member in &members {
            member.has_line.set(true);
        }
        members[0].last.set(late);
        assert_eq!(instead_of(&mut crowd, "10.0.0.4", late), Some(2));
        // A connection that never delivered a line counts as idler than any that did.
        members[4].has_line.set(false);
        assert_eq!(instead_of(&mut crowd, "10.0.0.5", late), Some(4));
        // No source has more than two connections now, so used connections stay.
        assert_eq!((crowd.open(), instead_of(&mut crowd, "10.0.0.1", late)), (6, None));
    }

    #[test]
    fn used_connections_stay_unless_their_source_has_more_than_its_share() {
        let start = Instant::now();
        let (mut crowd, members) = crowd(3, &["10.0.0.1", "10.0.0.1", "10.0.0.2"], start);
        for member in &members {
            member.has_line.set(true);
        }
        assert_eq!(instead_of(&mut crowd, "10.0.0.2", start), None, "it would only be the other way round");
        assert_eq!(instead_of(&mut crowd, "10.0.0.1", start), None, "the greediest itself");
        assert_eq!(instead_of(&mut crowd, "10.0.0.3", start), Some(0));
        assert_eq!(instead_of(&mut crowd, "10.0.0.4", start), Some(99), "one that never brought a line");
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let now = Instant::now();
        let mut crowd = Crowd::new(10, 2);
        let mut enters = |text| matches!(crowd.enter((), address(text), now), Entered::Free(_));
        for (text, expected) in [
            ("2001:db8:0:1::1", true),
            ("2001:db8:0:1:ffff::2", true),
            ("2001:db8:0:1::3", false),
            ("2001:db8:0:2::1", true),
            ("10.0.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("10.0.0.1", false),
            ("10.0.0.2", true),
        ] {
            assert_eq!(enters(text), expected, "{text}");
        }
    }

    #[test]
    fn a_connection_is_the_sources_that_its_proxy_names() {
        let now = Instant::now();
        let mut crowd = Crowd::new(10, 2);
        let mut enter = || match crowd.enter_proxys((), address("10.0.0.1"), now) {
            Entered::Free(member) => member,
            other => panic!("there is room: {other:?}"),
        };
        let members: Vec<_> = (0..4).map(|_| enter()).collect();
        let host = address("192.0.2.7");
        assert_eq!(crowd.name(&members[0], host), Ok(()));
        assert_eq!(crowd.name(&members[2], host), Ok(()));
        assert_eq!(crowd.name(&members[1], host), Err(2));
        assert!(matches!(crowd.enter((), host, now), Entered::Full(2)));
        crowd.leave(&members[0]);
        assert_eq!(crowd.name(&members[1], host), Ok(()));
        assert_eq!(crowd.open(), 3);
        // A connection that was evicted before its proxy named a source is not counted again.
        assert_eq!((crowd.name(&members[0], address("192.0.2.8")), crowd.open()), (Ok(()), 3));
        members.iter().for_each(|member| crowd.leave(member));
        assert_eq!((crowd.open(), crowd.sources.len()), (0, 0));
    }

    #[test]
    fn whoever_leaves_makes_room_once() {
        let start = Instant::now();
        let (mut crowd, members) = crowd(3, &["10.0.0.1", "10.0.0.1", "10.0.0.1"], start);
        for index in [0, 0, 2, 1] {
            crowd.leave(&members[index]);
        }
        assert_eq!((crowd.open(), crowd.sources.len()), (0, 0));
        assert!(!crowd.is_dense());
        for number in 0..2 {
            assert!(matches!(crowd.enter(number, address("10.0.0.1"), start), Entered::Free(_)));
        }
        assert!(crowd.is_dense());
    }

    #[test]
    fn a_crowd_is_dense_once_more_than_half_of_its_room_is_taken() {
        for (max, first_dense) in [(9, 5), (10, 6)] {
            let (mut crowd, _) = crowd(max, &[], Instant::now());
            for number in 1..=max {
                assert!(matches!(crowd.enter(number, address("10.0.0.1"), Instant::now()), Entered::Free(_)));
                assert_eq!(crowd.is_dense(), number >= first_dense, "{number} of {max}");
            }
        }
    }
}
