//! Allow lists: normalizes their networks, and checks that some sender can match.
//!
//! Senders' addresses are compared in canonical form: an IPv4 sender has an IPv4 address, even on a
//! dual-stack socket. Therefore networks are made canonical, too: `::ffff:10.0.0.0/104` becomes
//! `10.0.0.0/8`.

use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

/// Length of the prefix before the IPv4 address in an IPv4-mapped IPv6 address.
const MAPPED_BITS: u8 = 96;

/// An allow list that cannot work. The message follows the name of its key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct InvalidAllow(String);

/// Returns the networks in canonical form.
pub(super) fn canonical(allow: &[IpNet]) -> Vec<IpNet> {
    allow.iter().map(|network| as_ipv4(*network).unwrap_or(*network)).collect()
}

/// Checks that each network is meaningful, and that some sender can reach the listener through one.
///
/// # Errors
/// A network is meaningless, or nobody can come in. The message says what would be right.
pub(super) fn check(allow: &[IpNet], listen: SocketAddr) -> Result<(), InvalidAllow> {
    let too_wide = allow.iter().find(|network| is_mapped(network.addr()) && as_ipv4(**network).is_none());
    if let Some(network) = too_wide {
        let (address, length) = (network.addr().to_canonical(), network.prefix_len());
        let plain = if length <= 32 { length } else { 32 };
        return Err(InvalidAllow(format!(
            "has {network}, of which no sender can be: write {address}/{plain}, or a prefix of 96 bits or more"
        )));
    }
    let host = listen.ip().to_canonical();
    let reaches = |network: &IpNet| match (host, network) {
        (IpAddr::V4(_), IpNet::V4(_)) => true,
        (IpAddr::V4(_), IpNet::V6(_)) => false,
        (IpAddr::V6(host), network) => host.is_unspecified() || matches!(network, IpNet::V6(_)),
    };
    if allow.is_empty() || canonical(allow).iter().any(reaches) {
        return Ok(());
    }
    let (family, example) = if host.is_ipv4() { ("IPv4", "10.0.0.0/8") } else { ("IPv6", "2001:db8::/32") };
    Err(InvalidAllow(format!(
        "lets nobody in: senders to {listen} have {family} addresses, write a network such as \"{example}\""
    )))
}

/// Returns the IPv4 network that an IPv4-mapped network stands for.
fn as_ipv4(network: IpNet) -> Option<IpNet> {
    let IpAddr::V4(address) = network.addr().to_canonical() else { return None };
    let length = match network {
        IpNet::V4(network) => network.prefix_len(),
        IpNet::V6(network) => network.prefix_len().checked_sub(MAPPED_BITS)?,
    };
    Ipv4Net::new(address, length).ok().map(IpNet::V4)
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    #[test]
    fn mapped_networks_are_ipv4_networks() {
        for (text, expected) in [
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3/128", "10.1.2.3/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(canonical(&networks(&[text])), networks(&[expected]), "{text}");
        }
    }

    #[test]
    fn a_list_through_which_nobody_can_come_is_an_error() {
        for (listen, allow, part) in [
            ("0.0.0.0:1", &["::ffff:10.0.0.0/8"][..], Some("write 10.0.0.0/8")),
            ("[::]:1", &["10.0.0.0/8", "::ffff:10.0.0.0/95"], Some("write 10.0.0.0/32")),
            ("0.0.0.0:1", &["2001:db8::/32", "::/0"], Some("have IPv4 addresses")),
            ("[::1]:1", &["10.0.0.0/8", "::ffff:0:0/96"], Some("have IPv6 addresses")),
            ("[::ffff:127.0.0.1]:1", &["::1/128"], Some("have IPv4 addresses")),
            ("0.0.0.0:1", &["::ffff:10.0.0.0/104"], None),
            ("0.0.0.0:1", &["10.0.0.0/8", "2001:db8::/32"], None),
            ("[::]:1", &["10.0.0.0/8"], None),
            ("[::1]:1", &["::/0"], None),
            ("[::1]:1", &[], None),
        ] {
            let checked = check(&networks(allow), listen.parse().expect("an address"));
            match part {
                Some(part) => {
                    assert!(checked.clone().is_err_and(|what| what.0.contains(part)), "{allow:?}: {checked:?}");
                }
                None => assert_eq!(checked, Ok(()), "{allow:?}"),
            }
        }
    }
}
