//! Determines a request's source behind a balancer, from the `X-Forwarded-For` header of a trusted
//! proxy.
//!
//! Never does: believing a peer outside the configured networks. Bounds: those of a request's head.

use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;

use crate::receive::proxy::is_trusted;

/// The source address of a request. If a trusted proxy sent it, this is the last address in
/// `X-Forwarded-For` that is not a trusted proxy's; otherwise it is the peer's.
pub(super) fn source_of(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    if !is_trusted(trusted, peer) {
        return peer;
    }
    let mut source = peer;
    let listed: Vec<&str> = headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .collect();
    for text in listed.iter().rev() {
        // A trustworthy proxy would not have written an unparsable address.
        let Some(address) = address_of(text) else { break };
        source = address;
        if !is_trusted(trusted, address) {
            break;
        }
    }
    source
}

/// Parses an address in the forms that proxies write: with a port, in brackets, or plain.
fn address_of(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let plain = text.parse().ok();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    plain.or_else(with_port).or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_last_address_that_is_no_proxys_counts() {
        let trusted = ["10.0.0.0/8".parse().expect("a network"), "::1/128".parse().expect("a network")];
        for (peer, listed, expected) in [
            ("192.0.2.1", &["1.2.3.4"][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.0.0.2"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6", "1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4, nonsense"], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("::1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("::1", &["::ffff:1.2.3.4"], "1.2.3.4"),
            ("::1", &["1.2.3.4:80"], "1.2.3.4"),
        ] {
            let mut headers = HeaderMap::new();
            for value in listed {
                headers.append("x-forwarded-for", value.parse().expect("a value"));
            }
            assert_eq!(source_of(&headers, ip(peer), &trusted), ip(expected), "{peer} {listed:?}");
        }
    }
}
