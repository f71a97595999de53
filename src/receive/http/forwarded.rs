//! Whom a request comes from behind a balancer: what a trusted proxy says, by `X-Forwarded-For` or by PROXY protocol 2.
//!
//! Believes nobody but the networks that are named. Bounds: a PROXY header of [`MOST_BYTES`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::HeaderMap;
use ipnet::IpNet;
use tokio::net::TcpStream;

/// What a header of PROXY protocol 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The bytes of a PROXY header behind its first 16, at most: addresses and a few extensions.
const MOST_BYTES: usize = 2048;

/// Whether an address is a trusted proxy's.
pub(super) fn is_trusted(trusted: &[IpNet], address: IpAddr) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// The address that a request comes from: the last one in `X-Forwarded-For` that is no trusted proxy's, if a trusted proxy
/// sent it; else the peer's.
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
        // What cannot be read was not written by a proxy that can be trusted.
        let Some(address) = address_of(text) else { break };
        source = address;
        if !is_trusted(trusted, address) {
            break;
        }
    }
    source
}

/// An address, as proxies write it: with a port, in brackets, or plain.
fn address_of(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let plain = text.parse().ok();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    plain.or_else(with_port).or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

/// Reads a PROXY header from a connection that has just begun; the address that it names, none for the proxy's own checks.
///
/// # Errors
/// There is none, or it cannot be read.
pub(super) async fn read_header(stream: &TcpStream) -> io::Result<Option<IpAddr>> {
    let mut head = [0; 16];
    read_exact(stream, &mut head).await?;
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if !head.starts_with(SIGNATURE) || length > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no header of PROXY protocol 2"));
    }
    let mut rest = vec![0; length];
    read_exact(stream, &mut rest).await?;
    parse(head[12], head[13], &rest).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a bad PROXY header"))
}

/// The address in a PROXY header, by its third and fourth field; none if it cannot be read.
fn parse(command: u8, family: u8, rest: &[u8]) -> Option<Option<IpAddr>> {
    match command {
        // LOCAL: the proxy itself asks.
        0x20 => return Some(None),
        0x21 => {}
        _ => return None,
    }
    match family >> 4 {
        1 => {
            let bytes: [u8; 4] = rest.get(..12)?[..4].try_into().ok()?;
            Some(Some(Ipv4Addr::from(bytes).into()))
        }
        2 => {
            let bytes: [u8; 16] = rest.get(..36)?[..16].try_into().ok()?;
            Some(Some(IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()))
        }
        // A socket's path names nobody.
        0 | 3 => Some(None),
        _ => None,
    }
}

async fn read_exact(stream: &TcpStream, mut room: &mut [u8]) -> io::Result<()> {
    while !room.is_empty() {
        stream.readable().await?;
        match stream.try_read(room) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => room = &mut room[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
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

    #[test]
    fn a_proxy_header_names_the_client() {
        let v4 = [&[1, 2, 3, 4, 9, 9, 9, 9, 0, 1, 0, 2][..], b"extension"].concat();
        assert_eq!(parse(0x21, 0x11, &v4), Some(Some(ip("1.2.3.4"))));
        let v6 = [&ip("2001:db8::1").to_string().parse::<Ipv6Addr>().expect("v6").octets()[..], &[0; 20]].concat();
        assert_eq!(parse(0x21, 0x21, &v6), Some(Some(ip("2001:db8::1"))));
        assert_eq!(parse(0x20, 0, &[]), Some(None));
        assert_eq!(parse(0x21, 0x31, &[0; 216]), Some(None));
        for (command, family, rest) in
            [(0x21, 0x11, &v4[..11]), (0x21, 0x21, &v6[..35]), (0x11, 0x11, &v4), (0x21, 0x41, &v4)]
        {
            assert_eq!(parse(command, family, rest), None);
        }
    }
}
