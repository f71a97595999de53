//! Checks whether this machine holds the pair's address on an interface other than loopback.
//!
//! Both relays have the address on `lo`, so that the relay that released it still receives late
//! packets (docs, *Two relays*). Only the holder has it on an interface that its neighbours see.
//!
//! Never does: change an interface. Bounds: one listing of the interfaces.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// Whether this machine holds the address. `None` if the system does not say.
pub(super) fn holds(address: IpAddr) -> Option<bool> {
    let interfaces = getifaddrs().ok()?;
    let mut seen = interfaces.filter(|one| !one.flags.contains(InterfaceFlags::IFF_LOOPBACK));
    Some(seen.any(|one| {
        let storage = one.address.as_ref();
        let ipv4 = storage.and_then(|storage| storage.as_sockaddr_in()).map(|known| IpAddr::from(known.ip()));
        let ipv6 = storage.and_then(|storage| storage.as_sockaddr_in6()).map(|known| IpAddr::from(known.ip()));
        ipv4.or(ipv6) == Some(address)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_on_loopback_alone_is_not_held() {
        assert_eq!(holds([127, 0, 0, 1].into()), Some(false));
        assert_eq!(holds([192, 0, 2, 7].into()), Some(false), "nobody's");
    }
}
