//! Another relay as a backend: packs lines into datagrams.
//!
//! UDP has no answer, so a line counts as delivered once it was sent. An error that the other host
//! reports (nobody listens) arrives with a later datagram; the whole lease is then sent again. A
//! host that moved away reports nothing, so the name is resolved again every 30 s ([`Addresses`]).
//!
//! Never does: split a line. Bounds: one socket, `mtu` bytes per datagram of more than one line,
//! [`MAX_DATAGRAM_BYTES`] per datagram.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use tokio::net::UdpSocket;

use super::Outcome;
use super::outcome::Fate;
use crate::batch::Destination;
use crate::journal::Rejection;
use crate::net::addresses::Addresses;
use crate::protocol::Scanner;

/// Largest payload of a datagram over IPv4.
pub const MAX_DATAGRAM_BYTES: usize = 65_507;

/// A backend that sends datagrams.
#[derive(Debug)]
pub(super) struct Relay {
    host: String,
    mtu: usize,
    addresses: Addresses,
    /// The socket, and the address it is connected to.
    socket: Option<(SocketAddr, UdpSocket)>,
}

impl Relay {
    /// Creates a backend that sends to `host` (`name:port`), at most `mtu` bytes per datagram
    /// unless a single line is longer.
    pub(super) fn new(host: String, mtu: usize) -> Self {
        Self { addresses: Addresses::new(host.clone()), host, mtu, socket: None }
    }

    /// `name:port`
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Sends lines. Each part holds whole lines.
    pub(super) async fn write(&mut self, destination: &Destination, parts: &[Bytes]) -> Outcome {
        match self.send(destination, parts).await {
            Ok(0) => Outcome::new(Fate::Delivered, String::new()),
            Ok(lines) => {
                let text = format!("{lines} lines are longer than a datagram to {} can be", self.host);
                Outcome::new(Fate::Rejected { class: Rejection::TooLarge, lines: Some(lines) }, text)
            }
            Err(error) => {
                self.socket = None;
                self.addresses.fail();
                Outcome::new(Fate::Down, format!("cannot send to {}: {error}", self.host))
            }
        }
    }

    /// Sends lines. Returns how many are too long for a datagram; if there is any, it sends
    /// nothing. (Such a line just fitted before it was stamped.)
    async fn send(&mut self, destination: &Destination, parts: &[Bytes]) -> io::Result<u64> {
        let mut scanner = Scanner::of_accepted(destination.precision());
        let datagrams: Vec<Bytes> = parts
            .iter()
            .flat_map(|part| pack(part, &mut scanner, self.mtu).into_iter().map(|range| part.slice(range)))
            .collect();
        let too_long = datagrams.iter().filter(|datagram| datagram.len() > MAX_DATAGRAM_BYTES).count() as u64;
        if too_long == 0 {
            let socket = self.socket().await?;
            for datagram in &datagrams {
                socket.send(datagram).await?;
            }
        }
        Ok(too_long)
    }

    /// Returns a socket that is connected to the name's current address.
    async fn socket(&mut self) -> io::Result<&UdpSocket> {
        let address = self.addresses.current().await?;
        let (connected, socket) = match self.socket.take() {
            Some((connected, socket)) if connected == address => (connected, socket),
            before => {
                if let Some((was, _)) = before {
                    tracing::info!(host = self.host, %was, %address, "the name has another address now: sending there");
                }
                (address, connect(address).await?)
            }
        };
        Ok(&self.socket.insert((connected, socket)).1)
    }
}

async fn connect(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr =
        if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// Returns the ranges that cut `bytes` into parts of whole lines, as many lines per part as `mtu`
/// allows. Uses the scanner to find lines, because a string may hold line feeds.
fn pack(bytes: &[u8], scanner: &mut Scanner, mtu: usize) -> Vec<std::ops::Range<usize>> {
    let mut parts = Vec::new();
    let (mut start, mut end) = (0, 0);
    for line in scanner.lines(bytes, false) {
        let line = match line {
            Ok(line) => line.bytes,
            Err(refused) => refused.bytes.strip_suffix(b"\n").unwrap_or(refused.bytes),
        };
        let after = end + line.len() + 1;
        if after - start > mtu && end > start {
            parts.push(start..end);
            start = end;
        }
        end = after;
    }
    if end > start {
        parts.push(start..end);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Precision;

    #[test]
    fn datagrams_hold_whole_lines_up_to_the_mtu() {
        let lines = b"m v=1 1\nm s=\"a\nb\" 2\nm v=3 3\nm v=44444444444444444444444444 4\nm v=5 5\n";
        for mtu in 1..lines.len() + 2 {
            let mut scanner = Scanner::new(Precision::Nanoseconds);
            let parts = pack(lines, &mut scanner, mtu);
            let joined: Vec<u8> = parts.iter().flat_map(|part| lines[part.clone()].to_vec()).collect();
            assert_eq!(joined, lines);
            let mut total = 0;
            for part in parts {
                let inside: Vec<_> = scanner.lines(&lines[part.clone()], false).collect();
                assert!(inside.iter().all(Result::is_ok), "mtu {mtu}");
                assert!(part.len() <= mtu || inside.len() == 1, "mtu {mtu}");
                total += inside.len();
            }
            assert_eq!(total, 5);
        }
    }
}
