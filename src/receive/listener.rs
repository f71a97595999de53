//! A listener of whatever kind, for those who start, stop and show them all alike.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::udp::Inherited;
use super::{IntakeSetup, Pulse, Sources, Tally, tcp, udp};
use crate::batch::{Destination, HandOver, Limits, Pool};

/// How a listener is set up.
#[derive(Clone, Debug)]
pub enum Setup {
    /// For datagrams.
    Udp(udp::Setup),
    /// For streams.
    Tcp(tcp::Setup),
}

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    /// Of datagrams.
    Udp(udp::Listener),
    /// Of streams.
    Tcp(tcp::Listener),
}

impl Setup {
    /// The address to listen on.
    pub fn listen(&self) -> SocketAddr {
        match self {
            Self::Udp(setup) => setup.listen,
            Self::Tcp(setup) => setup.listen,
        }
    }

    /// `udp` or `tcp`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Udp(_) => "udp",
            Self::Tcp(_) => "tcp",
        }
    }

    /// How the bytes are taken.
    pub fn intake(&self) -> &IntakeSetup {
        match self {
            Self::Udp(setup) => &setup.intake,
            Self::Tcp(setup) => &setup.intake,
        }
    }
}

impl Listener {
    /// Binds a listener, or adopts what was passed for its address.
    ///
    /// # Errors
    /// What the system says, `AddrInUse` where another process has the port.
    pub fn bind(setup: Setup, inherited: &mut Inherited) -> io::Result<Self> {
        match setup {
            Setup::Udp(setup) => udp::Listener::bind(setup, inherited).map(Self::Udp),
            Setup::Tcp(setup) => tcp::Listener::bind(setup).map(Self::Tcp),
        }
    }

    /// Starts its threads. Those that can wait for room get it in this order.
    ///
    /// # Errors
    /// What the system says where it gives no thread.
    pub fn start<H>(
        &self,
        pool: &Arc<Pool>,
        limits: Limits,
        out: &H,
        order: &tcp::Order,
    ) -> io::Result<Vec<JoinHandle<()>>>
    where
        H: HandOver + Clone + 'static,
    {
        match self {
            Self::Udp(listener) => listener.start(pool, limits, out),
            Self::Tcp(listener) => Ok(vec![listener.start(pool, limits, out, order)?]),
        }
    }

    /// Tells its threads to take what has come, to hand it over, and to end.
    pub fn stop(&self) {
        match self {
            Self::Udp(listener) => listener.stop(),
            Self::Tcp(listener) => listener.stop(),
        }
    }

    /// The pulses of its threads.
    pub fn pulses(&self) -> Vec<Arc<Pulse>> {
        match self {
            Self::Udp(listener) => listener.pulses(),
            Self::Tcp(listener) => vec![listener.pulse()],
        }
    }

    /// `udp` or `tcp`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Udp(_) => "udp",
            Self::Tcp(_) => "tcp",
        }
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Udp(listener) => listener.address(),
            Self::Tcp(listener) => listener.address(),
        }
    }

    /// Where its lines go.
    pub fn destination(&self) -> &Destination {
        match self {
            Self::Udp(listener) => listener.destination(),
            Self::Tcp(listener) => listener.destination(),
        }
    }

    /// The sums of its counters.
    pub fn tally(&self) -> Tally {
        match self {
            Self::Udp(listener) => listener.tally(),
            Self::Tcp(listener) => listener.tally(),
        }
    }

    /// Who sent.
    pub fn sources(&self) -> Sources {
        match self {
            Self::Udp(listener) => listener.sources(),
            Self::Tcp(listener) => listener.sources(),
        }
    }
}
