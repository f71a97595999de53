//! Multicast groups: chooses the interface on which a listener joins its group, and joins it.
//!
//! A listener on a multicast address has one worker. The kernel delivers a group's datagram to
//! every socket that is bound to it, so a second worker would store each line twice.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{InterfaceIndexOrAddress, SockRef};

/// The kernel's list of IPv6 addresses, each with the index of its interface.
const IPV6_ADDRESSES: &str = "/proc/self/net/if_inet6";

/// A group, and the interface on which to join it.
#[derive(Debug)]
pub(super) struct Group {
    address: SocketAddr,
    /// `None`: the interface on which the system has a route to the group.
    interface: Option<InterfaceIndexOrAddress>,
}

impl Group {
    /// Returns the group of a listener on this address, or `None` if it is not a multicast address.
    ///
    /// # Errors
    /// The interface does not exist or is ambiguous; says what to set.
    pub(super) fn of(listen: SocketAddr, interface: Option<&str>) -> io::Result<Option<Self>> {
        if !listen.ip().is_multicast() {
            return Ok(None);
        }
        let interface = interface.map(|interface| find(listen.ip(), interface)).transpose()?;
        if interface.is_none()
            && let SocketAddr::V6(group) = listen
            && group.scope_id() == 0
            && matches!(group.ip().segments()[0] & 0x000f, 1 | 2)
        {
            // RFC 4291, 2.7: groups of these scopes exist separately on each interface or link.
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the group exists on one link only: set udp.interface to the interface that it is sent on",
            ));
        }
        Ok(Some(Self { address: listen, interface }))
    }

    /// The address to bind to. A link-local group is bound together with its interface.
    pub(super) fn bind_address(&self) -> SocketAddr {
        match (self.address, &self.interface) {
            (SocketAddr::V6(mut address), Some(InterfaceIndexOrAddress::Index(index))) => {
                address.set_scope_id(*index);
                address.into()
            }
            (address, _) => address,
        }
    }

    /// Joins the group. A passed socket may have joined already in an earlier process.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn join(&self, socket: &UdpSocket) -> io::Result<()> {
        let socket = SockRef::from(socket);
        let joined = match (self.bind_address(), &self.interface) {
            (SocketAddr::V4(group), interface) => {
                // Otherwise the socket would receive what other programs on this machine joined the
                // group for on other interfaces.
                socket.set_multicast_all_v4(interface.is_none())?;
                let interface = interface.as_ref().unwrap_or(&InterfaceIndexOrAddress::Index(0));
                socket.join_multicast_v4_n(group.ip(), interface)
            }
            (SocketAddr::V6(group), interface) => {
                socket.set_multicast_all_v6(interface.is_none())?;
                socket.join_multicast_v6(group.ip(), group.scope_id())
            }
        };
        match joined {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(()),
            Err(error) if self.interface.is_none() => Err(io::Error::new(
                error.kind(),
                format!("cannot join the group ({error}): set udp.interface to the interface that it is sent on"),
            )),
            joined => joined,
        }
    }
}

/// Finds the interface with this name or address.
fn find(group: IpAddr, interface: &str) -> io::Result<InterfaceIndexOrAddress> {
    match (interface.parse(), group) {
        (Ok(IpAddr::V4(address)), IpAddr::V4(_)) => Ok(InterfaceIndexOrAddress::Address(address)),
        (Ok(IpAddr::V4(address)), IpAddr::V6(_)) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("udp.interface {address} is an IPv4 address, the group an IPv6 one: write the interface's name"),
        )),
        (Ok(IpAddr::V6(address)), _) => {
            let index = index_of_address(&std::fs::read_to_string(IPV6_ADDRESSES)?, address);
            index.map(InterfaceIndexOrAddress::Index).ok_or_else(|| not_found(interface))
        }
        (Err(_), _) => {
            let any = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
            let index = rustix::net::netdevice::name_to_index(&any, interface);
            index.map(InterfaceIndexOrAddress::Index).map_err(|_| not_found(interface))
        }
    }
}

fn not_found(interface: &str) -> io::Error {
    let what =
        format!("udp.interface {interface:?} does not exist: write a name or an address that \"ip address\" shows");
    io::Error::new(io::ErrorKind::NotFound, what)
}

/// Returns the index of the interface with this address. A line starts with the address and the
/// index, both in hexadecimal digits.
fn index_of_address(list: &str, address: Ipv6Addr) -> Option<u32> {
    let wanted = format!("{:032x}", u128::from(address));
    let line = list.lines().find_map(|line| line.strip_prefix(&wanted))?;
    u32::from_str_radix(line.split_whitespace().next()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(listen: &str, interface: Option<&str>) -> io::Result<Option<Group>> {
        Group::of(listen.parse().expect("an address"), interface)
    }

    #[test]
    fn an_interface_is_found_by_its_name_and_by_its_address() {
        // The loopback interface has index 1 everywhere.
        for (listen, interface, bound) in [
            ("239.0.0.1:1", Some("lo"), "239.0.0.1:1"),
            ("239.0.0.1:1", None, "239.0.0.1:1"),
            ("[ff02::7]:1", Some("lo"), "[ff02::7%1]:1"),
            ("[ff02::7%3]:1", None, "[ff02::7%3]:1"),
        ] {
            let group = group(listen, interface).expect("found").expect("a group");
            assert_eq!(group.bind_address().to_string(), bound);
        }
        assert!(group("127.0.0.1:1", None).expect("fine").is_none());
        assert!(group("[::]:1", None).expect("fine").is_none());
    }

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        for (listen, interface, part) in [
            ("239.0.0.1:1", "nowhere9", "\"nowhere9\" does not exist"),
            ("239.0.0.1:1", "a-name-longer-than-any-interface-has", "does not exist"),
            ("[ff05::7]:1", "2001:db8::7", "\"2001:db8::7\" does not exist"),
            ("[ff05::7]:1", "127.0.0.1", "write the interface's name"),
        ] {
            let error = group(listen, Some(interface)).expect_err(interface).to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_group_of_one_link_needs_its_interface() {
        for listen in ["[ff02::7]:1", "[ff01::7]:1", "[ff12::7]:1"] {
            let error = group(listen, None).expect_err(listen).to_string();
            assert!(error.contains("set udp.interface"), "{error}");
        }
        group("[ff05::7]:1", None).expect("a group of a site");
    }

    #[test]
    fn the_kernels_list_of_addresses_is_read() {
        let list = "00000000000000000000000000000001 01 80 10 80       lo\n\
                    fe8000000000000000fc00fffe000001 0a 40 20 80     eth0\n";
        assert_eq!(index_of_address(list, "::1".parse().expect("IP")), Some(1));
        assert_eq!(index_of_address(list, "fe80::fc:ff:fe00:1".parse().expect("IP")), Some(10));
        assert_eq!(index_of_address(list, "fe80::1".parse().expect("IP")), None);
    }

    #[test]
    fn a_group_may_be_joined_twice() {
        let group = group("239.7.7.7:0", Some("127.0.0.1")).expect("fine").expect("a group");
        let socket = UdpSocket::bind(group.bind_address()).expect("bind");
        group.join(&socket).expect("joined");
        group.join(&socket).expect("joined already");
    }

    #[test]
    fn a_group_that_cannot_be_joined_is_an_error_that_asks_for_an_interface_where_none_is_set() {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
        // No machine has this address.
        let unknown = group("239.7.7.7:0", Some("192.0.2.77")).expect("fine").expect("a group");
        let error = unknown.join(&socket).expect_err("no such interface").to_string();
        assert!(!error.contains("udp.interface"), "{error}");
        // The number of groups per socket is limited. If the machine has no route to groups,
        // joining fails at once.
        let joined = (0..=255).map(|last| group(&format!("239.7.8.{last}:0"), None).expect("fine").expect("a group"));
        if let Some(error) = joined.map(|group| group.join(&socket)).find_map(Result::err) {
            assert!(error.to_string().contains("set udp.interface"), "{error}");
        }
    }
}
