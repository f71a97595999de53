//! Networks that a listener accepts bytes from. The list can be replaced while the listener runs.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;

/// A list of networks; an empty one allows all. Clones share it.
#[derive(Clone, Debug)]
pub struct Allow(Arc<ArcSwap<Vec<IpNet>>>);

impl Default for Allow {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Allow {
    /// Creates a list of these networks. IPv4 networks must not be in IPv6-mapped form.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(networks)))
    }

    /// Returns the networks.
    pub fn networks(&self) -> Vec<IpNet> {
        self.0.load().to_vec()
    }

    /// Replaces the list. Open connections stay.
    pub fn replace(&self, networks: Vec<IpNet>) {
        self.0.store(Arc::new(networks));
    }

    /// Returns whether bytes from this source are accepted.
    #[inline]
    pub(crate) fn lets_in(&self, source: Option<IpAddr>) -> bool {
        let networks = self.0.load();
        let is_in = |source: IpAddr| networks.iter().any(|network| network.contains(&source));
        networks.is_empty() || source.is_some_and(is_in)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_replaced_for_all_that_share_it() {
        let allow = Allow::default();
        let (shared, host) = (allow.clone(), Some([10, 0, 0, 7].into()));
        assert!(shared.lets_in(host) && shared.lets_in(None));
        allow.replace(vec!["192.168.0.0/16".parse().expect("a network")]);
        assert!(!shared.lets_in(host) && !shared.lets_in(None));
        allow.replace(vec!["10.0.0.0/8".parse().expect("a network")]);
        assert!(shared.lets_in(host));
    }
}
