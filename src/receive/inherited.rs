//! Sockets that were passed by a service manager or by a predecessor in the same process.
//!
//! Datagrams and connections queue in such a socket while the process is replaced, so a restart
//! loses none that fit its buffer or queue. The protocol is systemd's (`LISTEN_FDS`, `LISTEN_PID`,
//! `LISTEN_FDNAMES`; see `sd_listen_fds(3)`). A passed socket belongs to the listener of its kind
//! whose address it has. A relay that replaces another one in the same process receives its sockets
//! in the same way.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{SockRef, Type};

use super::udp::passed_descriptors;

/// Passed sockets that no listener has taken yet.
#[derive(Debug, Default)]
pub struct Inherited {
    datagrams: Vec<Named<UdpSocket>>,
    streams: Vec<Named<TcpListener>>,
}

#[derive(Debug)]
struct Named<S> {
    name: String,
    address: SocketAddr,
    socket: S,
    /// The value of the kernel's drop counter that an earlier relay of this process has already
    /// counted.
    drops: u32,
}

impl Inherited {
    /// Collects the sockets passed to this process, if any. Call it once, at the start.
    ///
    /// # Errors
    /// The environment is malformed, or a passed descriptor is unusable: which one, and what it
    /// must be.
    pub fn from_environment() -> io::Result<Self> {
        let mut inherited = Self::default();
        for (name, descriptor) in passed_descriptors()? {
            let kind = SockRef::from(&descriptor).r#type();
            let no_address = |error: io::Error| {
                io::Error::new(error.kind(), format!("the passed socket {name:?} has no internet address: {error}"))
            };
            match kind {
                Ok(Type::DGRAM) => {
                    let socket = UdpSocket::from(descriptor);
                    let address = socket.local_addr().map_err(no_address)?;
                    inherited.datagrams.push(Named { name, address, socket, drops: 0 });
                }
                Ok(Type::STREAM) if SockRef::from(&descriptor).is_listener().unwrap_or(false) => {
                    let socket = TcpListener::from(descriptor);
                    let address = socket.local_addr().map_err(no_address)?;
                    socket.set_nonblocking(true)?;
                    inherited.streams.push(Named { name, address, socket, drops: 0 });
                }
                _ => {
                    let what = format!(
                        "the passed descriptor {name:?} is no UDP socket and no TCP listener: use ListenDatagram= or \
                         ListenStream= with Accept=no"
                    );
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
                }
            }
        }
        Ok(inherited)
    }

    /// Keeps a UDP socket for the next listener of this address.
    pub(super) fn keep_datagrams(&mut self, address: SocketAddr, socket: UdpSocket) {
        self.datagrams.push(Named { name: "kept".to_owned(), address, socket, drops: 0 });
    }

    /// Keeps a TCP socket for the next listener of this address.
    pub(super) fn keep_stream(&mut self, address: SocketAddr, socket: TcpListener) {
        self.streams.push(Named { name: "kept".to_owned(), address, socket, drops: 0 });
    }

    /// Sets the drop counts that were already counted, for each UDP socket in the order in which
    /// they were kept.
    pub(super) fn note_drops(&mut self, drops: impl Iterator<Item = u32>) {
        for (kept, drops) in self.datagrams.iter_mut().zip(drops) {
            kept.drops = drops;
        }
    }

    /// Duplicates the sockets.
    ///
    /// # Errors
    /// The system's error if it has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let mut other = Self::default();
        for Named { address, socket, .. } in &self.datagrams {
            other.keep_datagrams(*address, socket.try_clone()?);
        }
        other.note_drops(self.datagrams.iter().map(|kept| kept.drops));
        for Named { address, socket, .. } in &self.streams {
            other.keep_stream(*address, socket.try_clone()?);
        }
        Ok(other)
    }

    /// Takes the UDP sockets with this address, and their drop counts.
    pub(super) fn take_datagrams(&mut self, listen: SocketAddr) -> Vec<(UdpSocket, u32)> {
        take(&mut self.datagrams, listen)
    }

    /// Takes a TCP socket with this address.
    pub(super) fn take_stream(&mut self, listen: SocketAddr) -> Option<TcpListener> {
        take(&mut self.streams, listen).pop().map(|(socket, _)| socket)
    }

    /// The sockets that no listener took: their kinds, names and addresses.
    pub fn left_over(&self) -> Vec<(&'static str, String, SocketAddr)> {
        let datagrams = self.datagrams.iter().map(|one| ("udp", one.name.clone(), one.address));
        let streams = self.streams.iter().map(|one| ("tcp or http", one.name.clone(), one.address));
        datagrams.chain(streams).collect()
    }
}

/// Takes the sockets with this address. All wildcards are equal: systemd binds `[::]` when only a
/// port is given, and that accepts IPv4 as well.
fn take<S>(sockets: &mut Vec<Named<S>>, listen: SocketAddr) -> Vec<(S, u32)> {
    let is_same = |address: SocketAddr| {
        let both_wild = address.ip().is_unspecified() && listen.ip().is_unspecified();
        address.port() == listen.port() && (address.ip() == listen.ip() || both_wild)
    };
    sockets.extract_if(.., |one| is_same(one.address)).map(|one| (one.socket, one.drops)).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Creates the state as if these sockets had been passed.
    pub(in super::super) fn of(sockets: impl IntoIterator<Item = UdpSocket>) -> Inherited {
        let sockets = sockets.into_iter().map(|socket| {
            let address = socket.local_addr().expect("address");
            Named { name: "passed".to_owned(), address, socket, drops: 0 }
        });
        Inherited { datagrams: sockets.collect(), streams: Vec::new() }
    }

    fn passed(addresses: &[&str]) -> Inherited {
        of(addresses.iter().map(|address| UdpSocket::bind(address).expect("bind")))
    }

    #[test]
    fn a_listener_takes_the_sockets_of_its_address_only() {
        let mut inherited = passed(&["127.0.0.1:0", "127.0.0.1:0", "[::]:0"]);
        let addresses: Vec<SocketAddr> = inherited.datagrams.iter().map(|one| one.address).collect();
        assert_eq!(inherited.take_datagrams(addresses[0]).len(), 1);
        assert_eq!(inherited.take_datagrams(addresses[0]).len(), 0);
        assert!(inherited.take_stream(addresses[1]).is_none(), "a datagram's socket is no stream's");
        let other_host = SocketAddr::new("127.0.0.2".parse().expect("IP"), addresses[1].port());
        assert_eq!(inherited.take_datagrams(other_host).len(), 0);
        assert_eq!(inherited.take_datagrams(SocketAddr::from(([0, 0, 0, 0], addresses[2].port()))).len(), 1);
        let any_host = SocketAddr::from(([0, 0, 0, 0], addresses[1].port()));
        assert_eq!(inherited.take_datagrams(any_host).len(), 0, "it takes less than a wildcard");
        assert_eq!(inherited.left_over(), [("udp", "passed".to_owned(), addresses[1])]);
    }
}
