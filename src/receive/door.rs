//! The part that all connection-oriented listeners share: the socket, the thread that serves it,
//! and the state that the thread publishes.
//!
//! Never does: accepting or reading.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use socket2::{Domain, Protocol, Type};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::Pulse;
use crate::intake::{Shown, Sources, Tally};

/// Length of the accept queue. It must hold all hosts of a site that start in the same second.
const BACKLOG: i32 = 4096;

/// A bound socket, and the published state of the thread that serves it.
#[derive(Debug)]
pub struct Door {
    name: &'static str,
    address: SocketAddr,
    /// `None` once the listener stops. Connections that arrive afterwards are refused, unless
    /// another holder still has the socket.
    pub(super) socket: Mutex<Option<TcpListener>>,
    pub(super) shown: Arc<Shown>,
    pub(super) open: Arc<AtomicU64>,
    stop: watch::Sender<bool>,
    pulse: Arc<Pulse>,
}

impl Door {
    /// Binds a socket, or adopts a passed one. `name` is the name of the thread that will serve it.
    /// From now on the kernel accepts connections for it.
    ///
    /// # Errors
    /// The system's error; `AddrInUse` if another process has the port.
    pub(super) fn bind(listen: SocketAddr, name: &'static str, passed: Option<TcpListener>) -> io::Result<Self> {
        let socket = passed.map_or_else(|| bind_socket(listen), Ok)?;
        let address = socket.local_addr()?;
        let (stop, _) = watch::channel(false);
        let (shown, open) = Default::default();
        let pulse = Arc::new(Pulse::new(name));
        Ok(Self { name, address, socket: Mutex::new(Some(socket)), shown, open, stop, pulse })
    }

    /// Starts the thread with its own runtime. `parks` is called whenever the runtime becomes idle.
    ///
    /// # Errors
    /// The system's error if it cannot start a thread.
    pub(super) fn start(
        &self,
        parks: impl Fn() + Send + Sync + 'static,
        serve: impl FnOnce(&Runtime, TcpListener) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let socket = self.share()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().on_thread_park(parks).build()?;
        std::thread::Builder::new().name(self.name.to_owned()).spawn(move || serve(&runtime, socket))
    }

    /// Duplicates the socket for another holder, which may serve it at the same time or later.
    ///
    /// # Errors
    /// The listener has stopped, or the system's error.
    pub(super) fn share(&self) -> io::Result<TcpListener> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.as_ref().ok_or_else(|| io::Error::other("the listener has stopped"))?.try_clone()
    }

    /// Tells the thread to stop accepting, read what has already arrived on every connection,
    /// submit its batches, and end.
    pub fn stop(&self) {
        drop(self.socket.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.stop.send_replace(true);
    }

    /// Returns a receiver that turns true when the thread is to end.
    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// The thread's pulse.
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// The address that the socket is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The listener's counters.
    pub fn tally(&self) -> Tally {
        self.shown.counters.read()
    }

    /// Number of connections that are open now.
    pub fn open_connections(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// The sources that have sent.
    pub fn sources(&self) -> Sources {
        self.shown.sources().clone()
    }
}

/// Waits until the listener is told to stop.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender outlives this wait.
    drop(stop.wait_for(|stop| *stop).await);
}

fn bind_socket(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Connections in TIME_WAIT must not prevent a restart.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from(socket))
}
