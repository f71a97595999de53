//! The open connections of a listener: how many each source has, and which one gives way at the limit.
//!
//! A source is an IPv4 address, or the 64 bits of an IPv6 address that name a network: whoever has one IPv6 address has
//! all of its network. At the limit the source with most connections loses its idlest one, if that leaves it no worse off
//! than the newcomer's source, or if nothing ever came on it. So a few addresses cannot lock out the others, and
//! connections that nobody uses make room for those that may be used.
//!
//! Never does: reading. Bounds: connections in all, and of one source. The search at the limit looks at each
//! source once, and at each connection of those that have most.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::time::Instant;

use tokio::task::JoinSet;

/// The bits of an IPv6 address that name a network.
const NETWORK_BITS: u128 = u128::MAX << 64;

/// All open connections.
#[derive(Debug)]
pub(in crate::receive) struct Crowd<S> {
    most: usize,
    most_per_source: usize,
    open: usize,
    sources: HashMap<IpAddr, Vec<Rc<Member<S>>>>,
}

/// One of them.
#[derive(Debug)]
pub(in crate::receive) struct Member<S> {
    pub(in crate::receive) stream: S,
    pub(in crate::receive) opened: Instant,
    /// When the last byte came; when it was opened, before.
    pub(in crate::receive) last: Cell<Instant>,
    /// Whether a whole line has come.
    pub(in crate::receive) has_line: Cell<bool>,
    source: Cell<IpAddr>,
    /// Its place among those of its source; none once it has left.
    place: Cell<Option<usize>>,
}

/// What became of a newcomer.
#[derive(Debug)]
pub(in crate::receive) enum Entered<S> {
    /// It is one of the crowd.
    Free(Rc<Member<S>>),
    /// It is one of the crowd instead of another one, which is to be ended.
    Instead(Rc<Member<S>>, Rc<Member<S>>),
    /// There is no room; so many connections has its source.
    Full(usize),
}

impl<S> Crowd<S> {
    /// An empty one with these bounds: connections in all, and of one source.
    pub(in crate::receive) fn new(most: usize, most_per_source: usize) -> Self {
        Self { most, most_per_source, open: 0, sources: HashMap::new() }
    }

    /// How many there are.
    pub(in crate::receive) fn open(&self) -> usize {
        self.open
    }

    /// Whether more than half of the room is taken.
    pub(in crate::receive) fn is_dense(&self) -> bool {
        self.open > self.most / 2
    }

    /// Lets a connection from this address in, where there is room or another one gives way.
    pub(in crate::receive) fn enter(&mut self, stream: S, address: IpAddr, now: Instant) -> Entered<S> {
        let of_source = self.sources.get(&source_of(address)).map_or(0, Vec::len);
        if of_source >= self.most_per_source {
            return Entered::Full(of_source);
        }
        self.enter_proxys(stream, address, now)
    }

    /// The same for a proxy's connection: these stand for many sources, and only all connections together are bounded until
    /// the proxy [names](Self::name) one.
    pub(in crate::receive) fn enter_proxys(&mut self, stream: S, address: IpAddr, now: Instant) -> Entered<S> {
        let source = source_of(address);
        let of_source = self.sources.get(&source).map_or(0, Vec::len);
        if self.open < self.most {
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

    /// A proxy says whom its connection is from: from now on it is that source's.
    ///
    /// # Errors
    /// That source has this many, and no room for another one. The connection stays the proxy's.
    pub(in crate::receive) fn name(&mut self, member: &Rc<Member<S>>, address: IpAddr) -> Result<(), usize> {
        let source = source_of(address);
        let of_source = self.sources.get(&source).map_or(0, Vec::len);
        if of_source >= self.most_per_source {
            return Err(of_source);
        }
        // One that gave way meanwhile is nobody's any more.
        if self.take_out(member) {
            self.put(member, source);
        }
        Ok(())
    }

    /// A connection has ended, or is to end.
    pub(in crate::receive) fn leave(&mut self, member: &Member<S>) {
        self.take_out(member);
    }

    fn take_out(&mut self, member: &Member<S>) -> bool {
        let Some(place) = member.place.take() else { return false };
        let source = member.source.get();
        let Some(members) = self.sources.get_mut(&source) else { return false };
        members.swap_remove(place);
        if let Some(moved) = members.get(place) {
            moved.place.set(Some(place));
        }
        if members.is_empty() {
            self.sources.remove(&source);
        }
        self.open -= 1;
        true
    }

    fn put(&mut self, member: &Rc<Member<S>>, source: IpAddr) {
        let members = self.sources.entry(source).or_default();
        member.source.set(source);
        member.place.set(Some(members.len()));
        members.push(Rc::clone(member));
        self.open += 1;
    }

    fn insert(&mut self, stream: S, source: IpAddr, now: Instant) -> Rc<Member<S>> {
        let (last, has_line) = (Cell::new(now), Cell::new(false));
        let (source, place) = (Cell::new(source), Cell::new(None));
        let member = Rc::new(Member { stream, opened: now, last, has_line, source, place });
        self.put(&member, member.source.get());
        member
    }

    /// The connection that gives way to one whose source has this many.
    fn idlest_of_greediest(&self, newcomers: usize) -> Option<Rc<Member<S>>> {
        let most = self.sources.values().map(Vec::len).max()?;
        let greediest = self.sources.values().filter(|members| members.len() == most).flatten();
        let idlest = greediest.min_by_key(|member| (member.has_line.get(), member.last.get()))?;
        (most > newcomers + 1 || !idlest.has_line.get()).then(|| Rc::clone(idlest))
    }
}

/// Takes out the tasks of connections that have ended, and waits while there are more than `most`.
///
/// A connection that gives way holds its file until its task has ended: without the wait, a crowd in the kernel's queue
/// would take files that delivery and the journal need.
pub(in crate::receive) async fn settle(tasks: &mut JoinSet<()>, most: usize) {
    while tasks.try_join_next().is_some() {}
    while tasks.len() > most && tasks.join_next().await.is_some() {}
}

/// What counts as one source.
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

    /// A crowd in which connections of these sources came one second after the other; each knows its number.
    fn crowd(most: usize, sources: &[&str], start: Instant) -> (Crowd<usize>, Vec<Rc<Member<usize>>>) {
        let mut crowd = Crowd::new(most, most);
        let members = sources.iter().enumerate().map(|(number, source)| {
            let now = start + Duration::from_secs(number as u64);
            let Entered::Free(member) = crowd.enter(number, address(source), now) else { panic!("there is room") };
            member
        });
        let members = members.collect();
        (crowd, members)
    }

    /// Which connection gives way to one of this source.
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
        // One that never brought a line is idler than any that did.
        members[4].has_line.set(false);
        assert_eq!(instead_of(&mut crowd, "10.0.0.5", late), Some(4));
        // Now nobody has more than two: those that are used stay, whoever comes.
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
        // One that gave way while its proxy was asked is not counted again.
        assert_eq!((crowd.name(&members[0], address("192.0.2.8")), crowd.open()), (Ok(()), 3));
        members.iter().for_each(|member| crowd.leave(member));
        assert_eq!((crowd.open(), crowd.sources.len()), (0, 0));
    }

    #[test]
    fn whoever_leaves_makes_room_once() {
        let start = Instant::now();
        let (mut crowd, members) = crowd(3, &["10.0.0.1", "10.0.0.1", "10.0.0.1"], start);
        for place in [0, 0, 2, 1] {
            crowd.leave(&members[place]);
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
        for (most, first_dense) in [(9, 5), (10, 6)] {
            let (mut crowd, _) = crowd(most, &[], Instant::now());
            for number in 1..=most {
                assert!(matches!(crowd.enter(number, address("10.0.0.1"), Instant::now()), Entered::Free(_)));
                assert_eq!(crowd.is_dense(), number >= first_dense, "{number} of {most}");
            }
        }
    }
}
