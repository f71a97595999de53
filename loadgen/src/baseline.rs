//! What receiving costs at the very least: a bare blocking `recvmmsg` loop that does nothing with
//! what it gets.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg};
use nix::time::{ClockId, clock_gettime};

/// Datagrams in one call: more than gather while the loop is awake, and few enough that describing
/// them to the kernel costs nothing.
const SLOTS: usize = 16;
/// Enough for the simulated hosts' datagrams.
const SLOT_BYTES: usize = 2048;

/// A running loop.
#[derive(Debug)]
pub struct Baseline {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<io::Result<Cost>>,
}

/// What the loop received, and the processor time of its thread.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Datagrams received.
    pub datagrams: u64,
    /// Processor time.
    pub cpu: Duration,
}

impl Baseline {
    /// Starts a loop on a port of its own.
    ///
    /// # Errors
    /// What the system says.
    pub fn start() -> io::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket2::SockRef::from(&socket).set_recv_buffer_size(8 << 20)?;
        // Only to see the stop: under load it never ends.
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let address = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread =
            std::thread::Builder::new().name("baseline".to_owned()).spawn(move || receive(&socket, &stopped))?;
        Ok(Self { address, stop, thread })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the loop.
    ///
    /// # Errors
    /// What the system said to the loop.
    pub fn stop(self) -> io::Result<Cost> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| io::Error::other("BUG: the baseline's thread panicked"))?
    }
}

fn receive(socket: &UdpSocket, stop: &AtomicBool) -> io::Result<Cost> {
    let mut buffers = [[0_u8; SLOT_BYTES]; SLOTS];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(SLOTS, None);
    let mut datagrams = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut slices = buffers.each_mut().map(|slot| [IoSliceMut::new(slot)]);
        match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None) {
            Ok(received) => datagrams += received.count() as u64,
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let cpu = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(Cost { datagrams, cpu: Duration::from(cpu) })
}
