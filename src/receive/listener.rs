//! A listener of any kind. Its users start, stop and observe all kinds alike.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::{Inherited, Pulse, http, tcp, udp};
use crate::batch::{Destination, Limits, Pool, Step, Submit};
use crate::intake::{Allow, IntakeConfig, Sources, Tally, Tap};
use crate::net::tls::Certificate;

/// Configuration of a listener.
#[derive(Clone, Debug)]
pub enum ListenerConfig {
    /// Datagrams.
    Udp(udp::UdpConfig),
    /// Streams.
    Tcp(tcp::TcpConfig),
    /// Requests.
    Http(http::HttpConfig),
}

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    /// Datagrams.
    Udp(udp::Listener),
    /// Streams.
    Tcp(tcp::Listener),
    /// Requests.
    Http(http::Listener),
}

impl ListenerConfig {
    /// The address to listen on.
    pub fn listen(&self) -> SocketAddr {
        match self {
            Self::Udp(setup) => setup.listen,
            Self::Tcp(setup) => setup.listen,
            Self::Http(setup) => setup.listen,
        }
    }

    /// `udp`, `tcp` or `http`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Udp(_) => "udp",
            Self::Tcp(_) => "tcp",
            Self::Http(_) => "http",
        }
    }

    /// How received bytes are processed.
    pub fn intake(&self) -> &IntakeConfig {
        match self {
            Self::Udp(setup) => &setup.intake,
            Self::Tcp(setup) => &setup.intake,
            Self::Http(setup) => &setup.intake,
        }
    }
}

impl ListenerConfig {
    /// The TLS certificate, if the listener speaks TLS.
    pub fn certificate(&self) -> Option<&Arc<Certificate>> {
        match self {
            Self::Udp(_) => None,
            Self::Tcp(setup) => setup.tls.as_ref(),
            Self::Http(setup) => setup.tls.as_ref(),
        }
    }
}

impl Listener {
    /// Binds a listener, or adopts sockets that were passed for its address.
    ///
    /// # Errors
    /// The system's error; `AddrInUse` if another process has the port.
    pub fn bind(setup: ListenerConfig, inherited: &mut Inherited) -> io::Result<Self> {
        match setup {
            ListenerConfig::Udp(setup) => udp::Listener::bind(setup, inherited).map(Self::Udp),
            ListenerConfig::Tcp(setup) => tcp::Listener::bind(setup, inherited).map(Self::Tcp),
            ListenerConfig::Http(setup) => http::Listener::bind(setup, inherited).map(Self::Http),
        }
    }

    /// Starts the threads. `order` is the order in which streams get capacity; `answers` says when
    /// and how requests are answered.
    ///
    /// # Errors
    /// The system's error if it cannot start a thread.
    pub fn start<H>(
        &self,
        pool: &Arc<Pool>,
        limits: Limits,
        out: &H,
        order: &tcp::Order,
        answers: (Step, &http::Host),
    ) -> io::Result<Vec<JoinHandle<()>>>
    where
        H: Submit + Clone + Sync + 'static,
    {
        match self {
            Self::Udp(listener) => listener.start(pool, limits, out),
            Self::Tcp(listener) => Ok(vec![listener.start(pool, limits, out, order)?]),
            Self::Http(listener) => Ok(vec![listener.start(pool, limits, out, answers)?]),
        }
    }

    /// Duplicates the sockets of these listeners for their successors. Call it before they stop.
    ///
    /// # Errors
    /// The system's error if it has no descriptor left.
    pub fn share(listeners: &[Self]) -> io::Result<Inherited> {
        let mut kept = Inherited::default();
        for listener in listeners {
            let address = listener.address();
            match listener {
                Self::Udp(listener) => {
                    for socket in listener.share()? {
                        kept.keep_datagrams(address, socket);
                    }
                }
                Self::Tcp(listener) => kept.keep_stream(address, listener.door().share()?),
                Self::Http(listener) => kept.keep_stream(address, listener.door().share()?),
            }
        }
        Ok(kept)
    }

    /// Records the kernel's drops that these stopped listeners have counted, so that their
    /// successors count on from there.
    pub fn note_last_drops(listeners: &[Self], kept: &mut Inherited) {
        let of_udp =
            listeners.iter().filter_map(|one| if let Self::Udp(udp) = one { Some(udp.last_drops()) } else { None });
        kept.note_drops(of_udp.flatten());
    }

    /// Tells the threads to read what has arrived, submit it, and end.
    pub fn stop(&self) {
        match self {
            Self::Udp(listener) => listener.stop(),
            Self::Tcp(listener) => listener.door().stop(),
            Self::Http(listener) => listener.door().stop(),
        }
    }

    /// The pulses of the threads.
    pub fn pulses(&self) -> Vec<Arc<Pulse>> {
        match self {
            Self::Udp(listener) => listener.pulses(),
            Self::Tcp(listener) => vec![listener.door().pulse()],
            Self::Http(listener) => vec![listener.door().pulse()],
        }
    }

    /// `udp`, `tcp` or `http`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Udp(_) => "udp",
            Self::Tcp(_) => "tcp",
            Self::Http(_) => "http",
        }
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Udp(listener) => listener.address(),
            Self::Tcp(listener) => listener.door().address(),
            Self::Http(listener) => listener.door().address(),
        }
    }

    /// The destination of its lines.
    pub fn destination(&self) -> &Destination {
        match self {
            Self::Udp(listener) => listener.destination(),
            Self::Tcp(listener) => listener.destination(),
            Self::Http(listener) => listener.destination(),
        }
    }

    /// Networks whose bytes are accepted.
    pub fn allow(&self) -> &Allow {
        match self {
            Self::Udp(listener) => listener.allow(),
            Self::Tcp(listener) => listener.allow(),
            Self::Http(listener) => listener.allow(),
        }
    }

    /// The counters, summed over all threads.
    pub fn tally(&self) -> Tally {
        match self {
            Self::Udp(listener) => listener.tally(),
            Self::Tcp(listener) => listener.door().tally(),
            Self::Http(listener) => listener.door().tally(),
        }
    }

    /// Calls `work` with each worker's tap.
    pub fn each_tap(&self, mut work: impl FnMut(&Tap)) {
        match self {
            Self::Udp(listener) => listener.each_tap(work),
            Self::Tcp(listener) => work(&listener.door().shown.tap),
            Self::Http(listener) => work(&listener.door().shown.tap),
        }
    }

    /// The sources that have sent.
    pub fn sources(&self) -> Sources {
        match self {
            Self::Udp(listener) => listener.sources(),
            Self::Tcp(listener) => listener.door().sources(),
            Self::Http(listener) => listener.door().sources(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpStream, UdpSocket};
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::batch::{Batch, Builder};
    use crate::protocol::line::MAX_LINE_BYTES;
    use crate::protocol::{Mapping, Precision, Unsigned};

    /// Accepts every batch.
    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<Batch>>>);

    impl Submit for Out {
        fn has_capacity(&self) -> bool {
            true
        }

        fn submit(&self, batch: Batch) -> Result<(), Batch> {
            self.0.lock().expect("no panic").push(batch);
            Ok(())
        }

        fn submitted(&self) -> u64 {
            self.0.lock().expect("no panic").iter().map(|batch| batch.lines()).sum()
        }
    }

    /// Creates a configuration of each kind, with any port.
    fn setups() -> [(&'static str, ListenerConfig); 2] {
        let intake = IntakeConfig {
            destination: Arc::new(Destination::new("db", "", Precision::Milliseconds)),
            format: None,
            mapping: Mapping::path(),
            max_line: MAX_LINE_BYTES,
            unsigned: Unsigned::Refuse,
            allow: Allow::default(),
        };
        // Use an address that belongs to this process alone. Workers share a port, so other
        // processes could share it as well.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let listen = SocketAddr::from(([127, 77, high, low], 0));
        let udp =
            udp::UdpConfig { listen, interface: None, intake: intake.clone(), workers: 2, receive_buffer: 1 << 20 };
        let minute = Duration::from_secs(60);
        let tcp = tcp::TcpConfig {
            listen,
            intake,
            proxies: Vec::new(),
            tls: None,
            max_connections: 10,
            max_connections_per_source: 10,
            idle_timeout: minute,
            line_timeout: minute,
            first_line_timeout: minute,
        };
        [("udp", ListenerConfig::Udp(udp)), ("tcp", ListenerConfig::Tcp(tcp))]
    }

    #[test]
    fn a_listener_of_either_kind_shows_what_it_took_and_ends_when_it_is_told() {
        for (kind, setup) in setups() {
            assert_eq!((setup.kind(), setup.listen().port()), (kind, 0));
            let destination = Arc::clone(&setup.intake().destination);
            let listener = Listener::bind(setup, &mut Inherited::default()).expect("bind");
            let address = listener.address();
            assert!(listener.kind() == kind && address.ip().is_loopback() && address.port() != 0);
            assert_eq!(*listener.destination(), *destination);

            let host = http::Host::of_test();
            let answers = (Step::Accepted, &host);
            let (out, pool) = (Out::default(), Pool::new(1, Builder::least_buffer_bytes()));
            let limits = Limits { lines: 100, age: Duration::from_secs(3600) };
            let threads = listener.start(&pool, limits, &out, &tcp::Order::default(), answers).expect("start");
            let pulses = listener.pulses();
            assert_eq!((threads.len(), pulses.len()), if kind == "udp" { (2, 2) } else { (1, 1) });
            for pulse in &pulses {
                pulse.ask();
                while !pulse.is_answered() {
                    std::thread::yield_now();
                }
            }
            if kind == "udp" {
                UdpSocket::bind("127.0.0.1:0").expect("bind").send_to(b"m v=1 1\n", address).expect("send");
            } else {
                TcpStream::connect(address).expect("connect").write_all(b"m v=1 1\n").expect("send");
            }
            while listener.tally().accepted == 0 || listener.sources().entries().is_empty() {
                std::thread::yield_now();
            }
            listener.stop();
            threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
            let (tally, sources) = (listener.tally(), listener.sources());
            assert_eq!((tally.accepted, tally.held, out.submitted()), (1, 0, 1), "{kind}: it submits what it has");
            let sent: Vec<_> = sources.entries().iter().map(|source| (source.address, source.sum.lines)).collect();
            assert_eq!(sent, [(SocketAddr::from(([127, 0, 0, 1], 0)).ip(), 1)], "{kind}");
        }
    }
}
