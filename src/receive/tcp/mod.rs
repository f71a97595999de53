//! TCP listeners: newline-framed text of every format. Each listener has one thread.
//!
//! The thread serves all connections of its listener, and processes each piece that it reads as a
//! UDP worker processes a datagram. If there is no capacity for a batch, the thread sleeps and
//! reads no socket: the kernel's buffers fill, and the senders wait (back-pressure). Half of the
//! ring is reserved for datagrams, which cannot wait. Connections take turns, and so do listeners
//! that wait.
//!
//! Bounds: connections in total and per source; a line; the unfinished lines of all connections
//! together (16 MiB); the time without a byte, the time to the first line, and the time for a line;
//! a connection's turn on the thread.

mod blocking;
mod connection;
mod logs;
mod serve;
mod turn;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;

use super::{Door, Inherited};
use crate::batch::{Destination, Limits, Pool, Submit};
use crate::intake::{Allow, Intake, IntakeConfig};
use crate::net::tls::Certificate;
use blocking::Blocking;
pub use blocking::Order;

/// Maximum size in bytes of the unfinished lines of all connections of a listener.
const MAX_TAIL_BYTES: usize = 16 << 20;
/// The name of the thread.
const THREAD_NAME: &str = "tcp";

/// Configuration of a listener.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// The address to listen on; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// How received bytes are processed.
    pub intake: IntakeConfig,
    /// Networks of proxies whose connections begin with a PROXY protocol 2 header that names the
    /// source.
    pub proxies: Vec<IpNet>,
    /// The TLS certificate. `None`: plain text.
    pub tls: Option<Arc<Certificate>>,
    /// Maximum number of open connections.
    pub max_connections: usize,
    /// Maximum number of open connections per source.
    pub max_connections_per_source: usize,
    /// A connection is closed if nothing arrives for this long.
    pub idle_timeout: Duration,
    /// A connection is closed if a line takes longer than this from its first to its last byte.
    pub line_timeout: Duration,
    /// A connection is closed if no whole line arrives within this time; sooner while many are
    /// open.
    pub first_line_timeout: Duration,
}

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    setup: TcpConfig,
    door: Door,
}

impl Listener {
    /// Binds a listener, or adopts a socket that was passed for its address. From now on the kernel
    /// accepts connections for it.
    ///
    /// # Errors
    /// The system's error; `AddrInUse` if another process has the port.
    pub fn bind(setup: TcpConfig, inherited: &mut Inherited) -> io::Result<Self> {
        let door = Door::bind(setup.listen, THREAD_NAME, inherited.take_stream(setup.listen))?;
        Ok(Self { setup, door })
    }

    /// Starts the thread, which submits batches in this order.
    ///
    /// # Errors
    /// The system's error if it cannot start a thread.
    pub fn start<H>(&self, pool: &Arc<Pool>, limits: Limits, out: &H, order: &Order) -> io::Result<JoinHandle<()>>
    where
        H: Submit + Clone + 'static,
    {
        let pulse = self.door.pulse();
        let (out, order, stop) = (out.clone(), order.clone(), self.door.stopping());
        let out = Blocking { out, order, stop, pulse: Arc::clone(&pulse) };
        let shown = Arc::clone(&self.door.shown);
        let intake = Intake::new((&self.setup.intake, self.door.address()), shown, pool, limits, out);
        let (setup, open, stop) = (self.setup.clone(), Arc::clone(&self.door.open), self.door.stopping());
        let parts = serve::ServeArgs { setup, open, stop, pulse, intake };
        self.door.start(|| (), move |runtime, socket| serve::run(runtime, socket, parts))
    }

    /// The socket and the thread's published state.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// Networks whose bytes are accepted.
    pub fn allow(&self) -> &Allow {
        &self.setup.intake.allow
    }

    /// The destination of its lines.
    pub fn destination(&self) -> &Destination {
        &self.setup.intake.destination
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::batch::{Batch, Builder};
    use crate::protocol::line::MAX_LINE_BYTES;
    use crate::protocol::{Mapping, Precision, Unsigned};

    /// Accepts batches while it is open.
    #[derive(Clone, Debug, Default)]
    struct Gate {
        is_open: Arc<AtomicBool>,
        taken: Arc<Mutex<Vec<Batch>>>,
    }

    impl Submit for Gate {
        fn has_capacity(&self) -> bool {
            self.is_open.load(Ordering::Relaxed)
        }

        fn submit(&self, batch: Batch) -> Result<(), Batch> {
            self.taken.lock().expect("no panic").push(batch);
            Ok(())
        }

        fn submitted(&self) -> u64 {
            self.taken.lock().expect("no panic").iter().map(|batch| batch.lines()).sum()
        }
    }

    fn bind(listen: &str) -> Listener {
        let destination = Arc::new(Destination::new("db", "", Precision::Nanoseconds));
        let listener = Listener::bind(
            TcpConfig {
                listen: listen.parse().expect("an address"),
                intake: IntakeConfig {
                    destination,
                    format: None,
                    mapping: Mapping::path(),
                    max_line: MAX_LINE_BYTES,
                    unsigned: Unsigned::Refuse,
                    allow: Allow::default(),
                },
                proxies: Vec::new(),
                tls: None,
                max_connections: 10,
                max_connections_per_source: 10,
                idle_timeout: Duration::from_secs(60),
                line_timeout: Duration::from_secs(60),
                first_line_timeout: Duration::from_secs(60),
            },
            &mut Inherited::default(),
        );
        listener.expect("bind")
    }

    fn start(gate: &Gate) -> (Listener, JoinHandle<()>) {
        let listener = bind("127.0.0.1:0");
        let thread = run(&listener, gate);
        (listener, thread)
    }

    fn run(listener: &Listener, gate: &Gate) -> JoinHandle<()> {
        let limits = Limits { lines: u64::MAX, age: Duration::from_millis(20) };
        let pool = Pool::new(1, Builder::least_buffer_bytes());
        listener.start(&pool, limits, gate, &Order::default()).expect("start")
    }

    #[test]
    fn senders_wait_while_there_is_no_room_and_nothing_is_lost() {
        let gate = Gate::default();
        let (listener, thread) = start(&gate);
        // More than the socket buffers of both sides hold.
        let (lines, address) = (1_000_000_u64, listener.door().address());
        let sender = std::thread::spawn(move || {
            let text: String = (0..lines).map(|n| format!("a.metric.with.a.number {n} 1\n")).collect();
            TcpStream::connect(address).expect("connect").write_all(text.as_bytes()).expect("send");
        });
        let mut before = (0, 0);
        // The listener stalls once its first batch is full.
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let tally = listener.door().tally();
            if before == (tally.accepted, tally.bytes) && tally.accepted > 0 {
                break;
            }
            before = (tally.accepted, tally.bytes);
        }
        assert!(!sender.is_finished() && listener.door().tally().accepted < lines / 2);
        assert!(gate.taken.lock().expect("no panic").is_empty());
        gate.is_open.store(true, Ordering::Relaxed);
        sender.join().expect("sent");
        // A stop reads only for a short time, which may be too short on a busy machine.
        while listener.door().tally().accepted < lines {
            std::thread::sleep(Duration::from_millis(10));
        }
        listener.door().stop();
        thread.join().expect("ended");
        let taken: u64 = gate.taken.lock().expect("no panic").iter().map(|batch| batch.lines()).sum();
        let tally = listener.door().tally();
        assert_eq!((taken, tally.accepted, tally.ring_full), (lines, lines, 0));
    }

    #[test]
    fn the_thread_answers_while_it_is_idle_and_while_it_waits_for_room() {
        let gate = Gate::default();
        let (listener, thread) = start(&gate);
        let answers = || {
            listener.door().pulse().ask();
            while !listener.door().pulse().is_answered() {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        answers();
        TcpStream::connect(listener.door().address()).expect("connect").write_all(b"a.b 1 1\n").expect("send");
        while listener.door().tally().accepted == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        // The batch is due now or soon. From then on the thread only waits for the gate.
        std::thread::sleep(Duration::from_millis(100));
        answers();
        listener.door().stop();
        thread.join().expect("ended");
    }

    fn wait_for(mut is_so: impl FnMut() -> bool) {
        while !is_so() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn wildcards_of_both_families_are_bound() {
        for (wildcard, to) in [("0.0.0.0:0", "127.0.0.1"), ("[::]:0", "127.0.0.1"), ("[::]:0", "::1")] {
            let listener = bind(wildcard);
            assert_ne!(listener.door().address().port(), 0);
            TcpStream::connect((to, listener.door().address().port())).expect("connect");
        }
    }

    #[test]
    fn connections_and_their_sources_are_shown_while_they_are_open_and_after() {
        let gate = Gate { is_open: Arc::new(true.into()), ..Gate::default() };
        let (listener, thread) = start(&gate);
        let mut senders = [1, 2].map(|_| TcpStream::connect(listener.door().address()).expect("connect"));
        wait_for(|| listener.door().open_connections() == 2);
        // One sender sends in pieces, the last of which has no end. Nothing is accepted from the
        // other one.
        for (accepted, piece) in [(1, "a.b 1 1\na.c"), (2, " 1 1\na.d 1")] {
            senders[1].write_all(piece.as_bytes()).expect("send");
            wait_for(|| listener.door().tally().accepted == accepted);
        }
        // Accepted lines are submitted and published even when nothing arrives any more.
        wait_for(|| gate.submitted() == 2 && listener.door().sources().entries().iter().any(|one| one.sum.lines == 2));
        senders[0].write_all(b"GET / HTTP/1.1\r\nHost").expect("send");
        wait_for(|| listener.door().open_connections() == 1);
        drop(senders);
        wait_for(|| listener.door().open_connections() == 0);
        listener.door().stop();
        thread.join().expect("ended");
        let sources = listener.door().sources();
        let [source] = sources.entries() else { panic!("one source") };
        assert_eq!((source.address, source.sum.connections), ([127, 0, 0, 1].into(), 2));
        assert_eq!((source.sum.lines, source.sum.refused), (4, 2), "a request and a line without an end are refused");
        let taken = gate.taken.lock().expect("no panic").iter().map(|batch| batch.lines()).sum::<u64>();
        let tally = listener.door().tally();
        assert_eq!((taken, tally.accepted, tally.submitted), (2, 2, 2));
    }

    #[test]
    fn lines_are_gathered_as_long_as_a_batch_may_wait() {
        let gate = Gate { is_open: Arc::new(true.into()), ..Gate::default() };
        let listener = bind("127.0.0.1:0");
        let limits = Limits { lines: u64::MAX, age: Duration::from_secs(3600) };
        let pool = Pool::new(1, Builder::least_buffer_bytes());
        let thread = listener.start(&pool, limits, &gate, &Order::default()).expect("start");
        let mut sender = TcpStream::connect(listener.door().address()).expect("connect");
        for accepted in 1..=5 {
            sender.write_all(b"a.b 1 1\n").expect("send");
            wait_for(|| listener.door().tally().accepted == accepted);
            // The thread has finished its pending work once it answers.
            listener.door().pulse().ask();
            wait_for(|| listener.door().pulse().is_answered());
        }
        assert_eq!(gate.submitted(), 0);
        listener.door().stop();
        thread.join().expect("ended");
        assert_eq!((gate.submitted(), gate.taken.lock().expect("no panic").len()), (5, 1));
    }

    #[test]
    fn a_stop_takes_what_is_queued_however_many_reads_that_takes() {
        let gate = Gate::default();
        let listener = bind("127.0.0.1:0");
        // Larger than one read, and inherited by accepted connections.
        let queue = listener
            .door()
            .socket
            .lock()
            .expect("no panic")
            .as_ref()
            .map(|socket| socket2::SockRef::from(socket).set_recv_buffer_size(1 << 20));
        queue.expect("a socket").expect("a buffer");
        let thread = run(&listener, &gate);
        let mut sender = TcpStream::connect(listener.door().address()).expect("connect");
        sender.write_all(b"a.b 1 1\n").expect("send");
        wait_for(|| listener.door().tally().accepted == 1);
        // While the thread waits for the gate, it reads nothing; bytes sent earlier are read at
        // once.
        std::thread::sleep(Duration::from_millis(100));
        let lines = 12_000;
        sender.write_all("a.b 1 1\n".repeat(lines).as_bytes()).expect("send");
        drop(sender);
        listener.door().stop();
        thread.join().expect("ended");
        assert_eq!(listener.door().tally().accepted, 1 + lines as u64);
    }

    #[test]
    fn a_stop_ends_whatever_is_sent_on_and_on() {
        let gate = Gate { is_open: Arc::new(true.into()), ..Gate::default() };
        let (listener, thread) = start(&gate);
        let address = listener.door().address();
        let sender = std::thread::spawn(move || {
            let mut socket = TcpStream::connect(address).expect("connect");
            let text = "a.b 1 1\n".repeat(10_000);
            while socket.write_all(text.as_bytes()).is_ok() {}
        });
        wait_for(|| listener.door().tally().accepted > 0);
        listener.door().stop();
        thread.join().expect("ended");
        sender.join().expect("no panic");
    }

    #[test]
    fn a_stop_does_not_wait_for_more_than_room() {
        let gate = Gate::default();
        let (listener, thread) = start(&gate);
        let mut sender = TcpStream::connect(listener.door().address()).expect("connect");
        sender.write_all(b"a.b 1 1\n").expect("send");
        while listener.door().tally().accepted == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        listener.door().stop();
        thread.join().expect("ended");
        assert_eq!(gate.taken.lock().expect("no panic").len(), 1);
    }
}
