//! How many requests of each source are under way whose connections are a balancer's.
//!
//! Bounds: those of all connections together, and of one source what its own connections could be. An answer to a question that
//! is on its way counts no more: the backends' places bound those.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;

use crate::receive::crowd::source_of;

/// Requests that came through balancers, by the source that these name.
#[derive(Debug, Default)]
pub(super) struct UnderWay(RefCell<HashMap<IpAddr, usize>>);

/// One of them, until this goes.
#[derive(Debug)]
pub(super) struct Entered<'a>(&'a UnderWay, IpAddr);

impl UnderWay {
    /// One more of this source; none if it has `most`.
    pub(super) fn enter(&self, source: IpAddr, most: usize) -> Option<Entered<'_>> {
        let source = source_of(source);
        let mut counts = self.0.borrow_mut();
        let count = counts.entry(source).or_default();
        if *count >= most {
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
        // A host with IPv6 has as many addresses as it likes.
        let of_network = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
        let third = under_way.enter(of_network(1), 1).expect("room");
        assert!(under_way.enter(of_network(2), 1).is_none());
        drop(third);
        assert!(under_way.0.borrow().is_empty());
    }
}
