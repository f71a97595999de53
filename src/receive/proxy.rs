//! Determines a connection's source behind a balancer, from the PROXY protocol 2 header of a
//! trusted proxy.
//!
//! Never does: believing a peer outside the configured networks. Bounds: a header of [`MAX_BYTES`],
//! received within [`HEADER_TIMEOUT`]. The format:
//! <https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt>.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The first bytes of a PROXY protocol 2 header.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Maximum length of a header after its first 16 bytes: addresses and a few extensions.
const MAX_BYTES: usize = 2048;

/// Time limit for receiving the header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether an address belongs to a trusted proxy.
pub(super) fn is_trusted(trusted: &[IpNet], address: IpAddr) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// Reads the PROXY header of a new connection, and returns the address that it names. `None` for
/// the proxy's own health checks.
///
/// # Errors
/// The header is missing, invalid, or not received in time.
pub(super) async fn read_header(stream: &TcpStream) -> io::Result<Option<IpAddr>> {
    timeout(HEADER_TIMEOUT, read(stream)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn read(stream: &TcpStream) -> io::Result<Option<IpAddr>> {
    // Some health checks connect and send nothing.
    if stream.peek(&mut [0]).await? == 0 {
        return Ok(None);
    }
    let mut head = [0; 16];
    read_exact(stream, &mut head).await?;
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if !head.starts_with(SIGNATURE) || length > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no header of PROXY protocol 2"));
    }
    let mut rest = vec![0; length];
    read_exact(stream, &mut rest).await?;
    parse(head[12], head[13], &rest).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a bad PROXY header"))
}

/// Parses the address from a header's fields. `None` if they are invalid.
fn parse(command: u8, family: u8, rest: &[u8]) -> Option<Option<IpAddr>> {
    match command {
        // LOCAL: the proxy's own connection.
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
        // A Unix socket's path names no source.
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
