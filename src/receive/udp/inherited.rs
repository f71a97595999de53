//! Sockets that are held by someone else, a service manager or an own parent, and passed at the start.
//!
//! Datagrams queue in such a socket while the process is replaced, so that a restart loses none that the receive
//! buffer has room for. The protocol is systemd's (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`, see
//! `sd_listen_fds(3)`). A passed socket belongs to the listener whose address it has.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use socket2::{SockRef, Type};

use super::mmsg;

/// The UDP sockets passed to this process that no listener has taken yet.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<Named>,
}

#[derive(Debug)]
struct Named {
    name: String,
    address: SocketAddr,
    socket: UdpSocket,
}

impl Inherited {
    /// What was passed to this process; none where nothing was. To be called once, at the start.
    ///
    /// # Errors
    /// What is wrong with the environment, or with a passed descriptor: which, and that it must be a UDP socket.
    pub fn from_environment() -> io::Result<Self> {
        let mut sockets = Vec::new();
        for (name, descriptor) in mmsg::passed_descriptors()? {
            let kind = SockRef::from(&descriptor).r#type();
            if !kind.is_ok_and(|kind| kind == Type::DGRAM) {
                let what = format!("the passed descriptor {name:?} is no UDP socket: use ListenDatagram=");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
            let socket = UdpSocket::from(descriptor);
            let address = socket.local_addr().map_err(|error| {
                io::Error::new(error.kind(), format!("the passed socket {name:?} has no internet address: {error}"))
            })?;
            sockets.push(Named { name, address, socket });
        }
        Ok(Self { sockets })
    }

    /// Takes the sockets that have this address. Wildcards are one address: `[::]` is what systemd binds where
    /// only a port is given, and takes IPv4, too.
    pub(super) fn take(&mut self, listen: SocketAddr) -> Vec<UdpSocket> {
        let is_same = |address: SocketAddr| {
            let both_wild = address.ip().is_unspecified() && listen.ip().is_unspecified();
            address.port() == listen.port() && (address.ip() == listen.ip() || both_wild)
        };
        let (taken, rest) = std::mem::take(&mut self.sockets).into_iter().partition(|one| is_same(one.address));
        self.sockets = rest;
        let taken: Vec<Named> = taken;
        taken.into_iter().map(|one| one.socket).collect()
    }

    /// A socket that no listener took: its name and address.
    pub fn left_over(&self) -> Option<(&str, SocketAddr)> {
        self.sockets.first().map(|one| (one.name.as_str(), one.address))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As if these had been passed.
    pub(in super::super) fn of(sockets: impl IntoIterator<Item = UdpSocket>) -> Inherited {
        let sockets = sockets.into_iter().map(|socket| {
            let address = socket.local_addr().expect("address");
            Named { name: "passed".to_owned(), address, socket }
        });
        Inherited { sockets: sockets.collect() }
    }

    fn passed(addresses: &[&str]) -> Inherited {
        of(addresses.iter().map(|address| UdpSocket::bind(address).expect("bind")))
    }

    #[test]
    fn a_listener_takes_the_sockets_of_its_address_only() {
        let mut inherited = passed(&["127.0.0.1:0", "127.0.0.1:0", "[::]:0"]);
        let addresses: Vec<SocketAddr> = inherited.sockets.iter().map(|one| one.address).collect();
        assert_eq!(inherited.take(addresses[0]).len(), 1);
        assert_eq!(inherited.take(addresses[0]).len(), 0);
        let other_host = SocketAddr::new("127.0.0.2".parse().expect("IP"), addresses[1].port());
        assert_eq!(inherited.take(other_host).len(), 0);
        assert_eq!(inherited.take(SocketAddr::from(([0, 0, 0, 0], addresses[2].port()))).len(), 1);
        let any_host = SocketAddr::from(([0, 0, 0, 0], addresses[1].port()));
        assert_eq!(inherited.take(any_host).len(), 0, "it takes less than a wildcard");
        assert_eq!(inherited.left_over(), Some(("passed", addresses[1])));
    }
}
