//! What every listener of connections has: its socket, which a thread of its own takes, and what that thread shows.
//!
//! Never does: accepting, or reading.

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

/// Connections that wait to be accepted: all hosts of a site that start in the same second.
const BACKLOG: i32 = 4096;

/// A bound socket, and what its thread shows.
#[derive(Debug)]
pub struct Door {
    name: &'static str,
    address: SocketAddr,
    /// None once the listener is to stop: connections that come then are refused, unless somebody else holds the socket, too.
    pub(super) socket: Mutex<Option<TcpListener>>,
    pub(super) shown: Arc<Shown>,
    pub(super) open: Arc<AtomicU64>,
    stop: watch::Sender<bool>,
    pulse: Arc<Pulse>,
}

impl Door {
    /// Binds a socket, or takes the one that was passed, which a thread of this name is to serve. From now on the kernel accepts connections for it.
    ///
    /// # Errors
    /// What the system says, `AddrInUse` if another process has the port.
    pub(super) fn bind(listen: SocketAddr, name: &'static str, passed: Option<TcpListener>) -> io::Result<Self> {
        let socket = passed.map_or_else(|| bind_socket(listen), Ok)?;
        let address = socket.local_addr()?;
        let (stop, _) = watch::channel(false);
        let (shown, open) = Default::default();
        let pulse = Arc::new(Pulse::new(name));
        Ok(Self { name, address, socket: Mutex::new(Some(socket)), shown, open, stop, pulse })
    }

    /// Starts the thread, on a runtime of its own; `parks` is called whenever it has nothing to do.
    ///
    /// # Errors
    /// What the system says if it gives no thread.
    pub(super) fn start(
        &self,
        parks: impl Fn() + Send + Sync + 'static,
        serve: impl FnOnce(&Runtime, TcpListener) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let socket = self.share()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().on_thread_park(parks).build()?;
        std::thread::Builder::new().name(self.name.to_owned()).spawn(move || serve(&runtime, socket))
    }

    /// The socket, for somebody who serves it as well, or later.
    ///
    /// # Errors
    /// The listener has stopped, or what the system says.
    pub(super) fn share(&self) -> io::Result<TcpListener> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.as_ref().ok_or_else(|| io::Error::other("the listener has stopped"))?.try_clone()
    }

    /// Tells the thread to accept no more, to take what has come on every connection, to hand over what it has, and end.
    pub fn stop(&self) {
        drop(self.socket.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.stop.send_replace(true);
    }

    /// Tells the thread when it is to end.
    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// The pulse of its thread.
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its counters.
    pub fn tally(&self) -> Tally {
        self.shown.counters.read()
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Who sent.
    pub fn sources(&self) -> Sources {
        self.shown.sources().clone()
    }
}

/// Waits until the listener is to stop.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The other end is never gone before that.
    drop(stop.wait_for(|stop| *stop).await);
}

fn bind_socket(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Connections that ended a moment ago are no reason not to start again.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from(socket))
}
