//! Counts the requests in progress of each source that connects through a balancer.
//!
//! Bounds: all connections together, and per source the limit of its own connections. An answer to
//! a query that is still being sent no longer counts; the backends' limits of concurrent queries
//! bound those.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;

use crate::receive::crowd::source_of;

/// Requests in progress that came through balancers, by the source that the balancers name.
#[derive(Debug, Default)]
pub(super) struct UnderWay(RefCell<HashMap<IpAddr, usize>>);

/// A request in progress; it is counted until this is dropped.
#[derive(Debug)]
pub(super) struct Entered<'a>(&'a UnderWay, IpAddr);

impl UnderWay {
    /// Counts one more request of this source. `None` if it already has `max`.
    pub(super) fn enter(&self, source: IpAddr, max: usize) -> Option<Entered<'_>> {
        let source = source_of(source);
        let mut counts = self.0.borrow_mut();
        let count = counts.entry(source).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Entered(self, source))
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut counts = self.0.0.borrow_mut();
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_so_many_at_a_time() {
        let under_way = UnderWay::default();
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let first = under_way.enter(one, 2).expect("room");
        let second = under_way.enter(one, 2).expect("room");
        assert!(under_way.enter(one, 2).is_none() && under_way.enter(other, 2).is_some());
        drop(first);
        assert!(under_way.enter(one, 2).is_some());
        drop(second);
        // A host with IPv6 can use any address of its network.
        let of_network = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
        let third = under_way.enter(of_network(1), 1).expect("room");
        assert!(under_way.enter(of_network(2), 1).is_none());
        drop(third);
        assert!(under_way.0.borrow().is_empty());
    }
}
