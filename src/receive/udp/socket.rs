//! A listening UDP socket: how it is bound, the size of its receive buffer, and the kernel's drops.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::{Domain, Protocol, SockRef, Type};

use super::mmsg;

/// One worker's socket. Several may share an address; the kernel assigns each sender to one of
/// them.
#[derive(Debug)]
pub struct Socket {
    address: SocketAddr,
    /// Size of the receive buffer in bytes as the kernel charges it: twice the requested size.
    charged_bytes: u64,
    seen: Mutex<Seen>,
}

/// State that survives closing the socket.
#[derive(Debug)]
struct Seen {
    /// `None` once it is closed.
    socket: Option<Arc<UdpSocket>>,
    /// The kernel's drop counter as last read; it has 32 bits and wraps.
    last_drops: u32,
    drops: u64,
}

impl Socket {
    /// Binds to `address`, shared with other sockets that do the same. An IPv6 wildcard also
    /// accepts IPv4.
    ///
    /// # Errors
    /// The system's error; `AddrInUse` if another process has the port.
    pub fn bind(address: SocketAddr, receive_buffer: u32) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() && address.ip().is_unspecified() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        Self::adopt(socket.into(), receive_buffer)
    }

    /// Adopts a bound socket. Its drops count from its creation.
    ///
    /// # Errors
    /// The system's error.
    pub fn adopt(socket: UdpSocket, receive_buffer: u32) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let bytes = i32::try_from(receive_buffer).unwrap_or(i32::MAX);
        if mmsg::force_receive_buffer(socket.as_fd(), bytes).is_err() {
            SockRef::from(&socket).set_recv_buffer_size(receive_buffer as usize)?;
        }
        let charged_bytes = SockRef::from(&socket).recv_buffer_size()? as u64;
        let address = socket.local_addr()?;
        let seen = Seen { socket: Some(Arc::new(socket)), last_drops: 0, drops: 0 };
        Ok(Self { address, charged_bytes, seen: Mutex::new(seen) })
    }

    /// Sets the value of the kernel's drop counter that has already been counted.
    #[must_use]
    pub fn after(self, drops: u32) -> Self {
        self.lock().last_drops = drops;
        self
    }

    /// The kernel's drop counter as last read.
    pub fn last_drops(&self) -> u32 {
        self.lock().last_drops
    }

    /// The address that it listens on, with the port that the kernel chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The socket, for its worker. `None` once it is closed.
    pub(super) fn open(&self) -> Option<Arc<UdpSocket>> {
        self.lock().socket.clone()
    }

    /// Releases the socket. It is closed with the last reference, which is the worker's.
    pub(super) fn close(&self) {
        self.kernel_drops();
        self.lock().socket = None;
    }

    /// Size of the receive buffer in bytes as the kernel charges datagrams.
    pub fn charged_bytes(&self) -> u64 {
        self.charged_bytes
    }

    /// Size of the receive buffer in bytes, comparable with the requested size.
    pub fn receive_buffer(&self) -> u64 {
        self.charged_bytes / 2
    }

    /// Datagrams that the kernel dropped at this socket because the buffer was full, since it was
    /// bound.
    pub fn kernel_drops(&self) -> u64 {
        let mut seen = self.lock();
        if let Some(memory) = seen.socket.as_ref().and_then(|socket| mmsg::socket_memory(socket.as_fd()).ok()) {
            seen.drops += u64::from(memory.drops.wrapping_sub(seen.last_drops));
            seen.last_drops = memory.drops;
        }
        seen.drops
    }

    /// Bytes that the kernel charges for datagrams queued at the socket.
    pub fn queued_bytes(&self) -> u64 {
        let seen = self.lock();
        let memory = seen.socket.as_ref().and_then(|socket| mmsg::socket_memory(socket.as_fd()).ok());
        memory.map_or(0, |memory| u64::from(memory.queued_bytes))
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fails if another process has the port. Otherwise, sockets that share an address could split its
/// datagrams with another program that also shares it.
///
/// # Errors
/// The system's error; `AddrInUse` if the port is taken.
pub(super) fn check_free(address: SocketAddr) -> io::Result<()> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_refused_even_where_its_owner_would_share_it() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = Socket::bind(any, 1 << 20).expect("bind");
        let taken = first.address();
        let error = check_free(taken).expect_err("taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        Socket::bind(taken, 1 << 20).expect("a second worker shares it");
    }

    #[test]
    fn a_dual_stack_socket_takes_both() {
        let socket = Socket::bind("[::]:0".parse().expect("address"), 1 << 20).expect("bind");
        let port = socket.address().port();
        let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
        assert_eq!(socket.queued_bytes(), 0);
        sender.send_to(&[b'x'; 1000], ("127.0.0.1", port)).expect("send");
        let stop = super::super::waiter::Stop::new().expect("an event");
        stop.wait_readable(&socket.open().expect("open"), None).expect("poll");
        assert!(socket.queued_bytes() >= 1000, "the kernel charges more than the payload");
    }

    #[test]
    fn wildcards_of_both_families_are_bound() {
        for wildcard in ["0.0.0.0:0", "[::]:0"] {
            let wildcard = wildcard.parse().expect("address");
            check_free(wildcard).expect("free");
            Socket::bind(wildcard, 1 << 20).expect("bind");
        }
    }

    /// 64 KiB is below every system's limit.
    #[test]
    fn the_receive_buffer_is_what_was_asked_for_and_charged_for_twice_that() {
        let socket = Socket::bind(([127, 0, 0, 1], 0).into(), 1 << 16).expect("bind");
        assert_eq!((socket.receive_buffer(), socket.charged_bytes()), (1 << 16, 1 << 17));
    }

    #[test]
    fn each_drop_counts_once_and_is_known_when_the_socket_is_closed() {
        const SENT: u64 = 500;
        let socket = Socket::bind(([127, 0, 0, 1], 0).into(), 4096).expect("bind");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
        sender.connect(socket.address()).expect("connect");
        let mut received = 0;
        for round in 1..=2 {
            (0..SENT).for_each(|_| assert_eq!(sender.send(&[0; 512]).expect("send"), 512));
            let open = socket.open().expect("open");
            while open.recv(&mut [0; 512]).is_ok() {
                received += 1;
            }
            for _ in 0..2 {
                assert_eq!(socket.kernel_drops() + received, SENT * round);
            }
        }
        (0..SENT).for_each(|_| assert_eq!(sender.send(&[0; 512]).expect("send"), 512));
        let before = socket.kernel_drops();
        socket.close();
        assert!(socket.open().is_none());
        assert_eq!((socket.kernel_drops(), socket.queued_bytes()), (before, 0));
    }
}
