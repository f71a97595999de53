//! UDP listeners: one thread and one socket per worker.
//!
//! A worker's loop: poll the socket until it is empty, scan each datagram in its slot, copy its
//! good lines into the open batch, publish the counters; then wait as `pace` decides. Per datagram,
//! nothing in the loop allocates, locks, logs, or reads a clock. (A sealed batch's buffer comes
//! from a pool; a new sender creates an entry in the table of sources.)
//!
//! Bounds: [`SLOTS`] datagrams per call, [`ROUNDS`] calls per poll, one open batch.

mod mmsg;
mod multicast;
mod pace;
mod socket;
mod waiter;
mod worker;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::{Inherited, Pulse};
use crate::batch::{Destination, Limits, Pool, Submit};
use crate::intake::{Allow, Intake, IntakeConfig, Shown, Sources, Tally, Tap};

use multicast::Group;
use waiter::Stop;

pub(super) use mmsg::passed_descriptors;
pub use mmsg::{Datagram, Method, Slots, use_small_pages};
pub use socket::Socket;

/// Maximum number of datagrams received per call.
pub const SLOTS: usize = 64;
/// Maximum number of calls per poll. After them, counters are published and timers are served.
pub const ROUNDS: usize = 64;
/// Size of a slot in bytes. The largest payload is 65,507 bytes over IPv4, and 65,527 over IPv6.
pub const SLOT_BYTES: usize = 64 * 1024;

/// Configuration of a listener.
#[derive(Clone, Debug)]
pub struct UdpConfig {
    /// The address to listen on; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Name or address of the interface on which to join a multicast group. `None`: the system's
    /// choice.
    pub interface: Option<String>,
    /// How received bytes are processed.
    pub intake: IntakeConfig,
    /// Number of workers, at least 1; exactly 1 for a multicast address.
    pub workers: usize,
    /// Receive buffer in bytes to request for each worker.
    pub receive_buffer: u32,
}

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    setup: UdpConfig,
    address: SocketAddr,
    workers: Vec<Arc<WorkerState>>,
}

/// State that a worker shares with its observers.
#[derive(Debug)]
struct WorkerState {
    socket: Socket,
    shown: Arc<Shown>,
    pulse: Arc<Pulse>,
    stop: Arc<Stop>,
}

impl Listener {
    /// Binds the listener's sockets, or adopts those that were passed for its address, one per
    /// worker. From then on the kernel queues datagrams for them. Joins the group of a multicast
    /// address.
    ///
    /// # Errors
    /// The system's error; `AddrInUse` if another process has the port.
    pub fn bind(setup: UdpConfig, inherited: &mut Inherited) -> io::Result<Self> {
        let group = Group::of(setup.listen, setup.interface.as_deref())?;
        let passed = inherited.take_datagrams(setup.listen);
        let sockets = if passed.is_empty() {
            bind_all(&setup, group.as_ref())?
        } else {
            adopt_all(passed, &setup, group.as_ref())?
        };
        let address = sockets.first().map_or(setup.listen, Socket::address);
        let state = |(index, socket)| -> io::Result<Arc<WorkerState>> {
            let stop = Arc::new(Stop::new()?);
            let woken = Arc::clone(&stop);
            let pulse = Arc::new(Pulse::new(thread_name(index)).woken_by(move || woken.wake()));
            Ok(Arc::new(WorkerState { socket, shown: Arc::default(), pulse, stop }))
        };
        let workers = sockets.into_iter().enumerate().map(state).collect::<io::Result<_>>()?;
        Ok(Self { setup, address, workers })
    }

    /// Starts the workers' threads.
    ///
    /// # Errors
    /// The system's error if it cannot start a thread.
    pub fn start<H>(&self, pool: &Arc<Pool>, limits: Limits, out: &H) -> io::Result<Vec<JoinHandle<()>>>
    where
        H: Submit + Clone + 'static,
    {
        let mut threads = Vec::with_capacity(self.workers.len());
        for (index, state) in self.workers.iter().enumerate() {
            let setup = self.setup.intake.clone();
            let parts = worker::WorkerArgs {
                state: Arc::clone(state),
                slot_bytes: SLOT_BYTES,
                intake: Intake::new((&setup, self.address), Arc::clone(&state.shown), pool, limits, out.clone()),
                setup,
            };
            let thread = std::thread::Builder::new().name(thread_name(index));
            threads.push(thread.spawn(move || worker::run(parts))?);
        }
        Ok(threads)
    }

    /// Duplicates the sockets for a successor.
    ///
    /// # Errors
    /// The system's error if it has no descriptor left.
    pub(super) fn share(&self) -> io::Result<Vec<UdpSocket>> {
        self.workers.iter().filter_map(|worker| worker.socket.open()).map(|socket| socket.try_clone()).collect()
    }

    /// The kernel's drop counters as last read, one per socket.
    pub(super) fn last_drops(&self) -> impl Iterator<Item = u32> {
        self.workers.iter().map(|worker| worker.socket.last_drops())
    }

    /// Tells the workers to empty their sockets, submit their batches, and end.
    pub fn stop(&self) {
        self.workers.iter().for_each(|worker| worker.stop.set());
    }

    /// The pulses of the threads.
    pub fn pulses(&self) -> Vec<Arc<Pulse>> {
        self.workers.iter().map(|worker| Arc::clone(&worker.pulse)).collect()
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Networks whose bytes are accepted.
    pub fn allow(&self) -> &Allow {
        &self.setup.intake.allow
    }

    /// The destination of its lines.
    pub fn destination(&self) -> &Destination {
        &self.setup.intake.destination
    }

    /// The requested receive buffer, and the smallest that a socket got, in bytes.
    pub fn receive_buffer(&self) -> (u64, u64) {
        let got = self.workers.iter().map(|worker| worker.socket.receive_buffer()).min();
        (u64::from(self.setup.receive_buffer), got.unwrap_or(0))
    }

    /// Calls `work` with each worker's tap.
    pub fn each_tap(&self, work: impl FnMut(&Tap)) {
        self.workers.iter().map(|worker| &worker.shown.tap).for_each(work);
    }

    /// The counters, summed over all workers.
    pub fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        for worker in &self.workers {
            sum.add(&worker.shown.counters.read());
        }
        sum
    }

    /// The sources that have sent, merged over all workers.
    pub fn sources(&self) -> Sources {
        let mut all = Sources::default();
        for worker in &self.workers {
            all.merge(&worker.shown.sources());
        }
        all
    }

    /// Bytes that the kernel charges for datagrams queued at the sockets.
    pub fn queued_bytes(&self) -> u64 {
        self.workers.iter().map(|worker| worker.socket.queued_bytes()).sum()
    }

    /// Datagrams that the kernel dropped because a receive buffer was full.
    pub fn kernel_drops(&self) -> u64 {
        self.workers.iter().map(|worker| worker.socket.kernel_drops()).sum()
    }
}

fn thread_name(index: usize) -> String {
    format!("udp-{index}")
}

fn bind_all(setup: &UdpConfig, group: Option<&Group>) -> io::Result<Vec<Socket>> {
    let listen = group.map_or(setup.listen, Group::bind_address);
    socket::check_free(listen)?;
    let first = Socket::bind(listen, setup.receive_buffer)?;
    let address = first.address();
    let mut sockets = vec![first];
    for _ in 1..setup.workers {
        sockets.push(Socket::bind(address, setup.receive_buffer)?);
    }
    join(&sockets, group)?;
    Ok(sockets)
}

fn adopt_all(passed: Vec<(UdpSocket, u32)>, setup: &UdpConfig, group: Option<&Group>) -> io::Result<Vec<Socket>> {
    if group.is_some() && passed.len() > 1 {
        let what = "several passed sockets have this multicast address, and each would get every datagram: pass one";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let adopt = |(socket, drops)| Ok(Socket::adopt(socket, setup.receive_buffer)?.after(drops));
    let sockets = passed.into_iter().map(adopt).collect::<io::Result<Vec<_>>>()?;
    join(&sockets, group)?;
    Ok(sockets)
}

fn join(sockets: &[Socket], group: Option<&Group>) -> io::Result<()> {
    let Some(group) = group else { return Ok(()) };
    sockets.iter().filter_map(Socket::open).try_for_each(|socket| group.join(&socket))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::batch::{Batch, Builder};
    use crate::protocol::line::MAX_LINE_BYTES;
    use crate::protocol::{Mapping, Precision, Unsigned};

    /// Keeps all batches.
    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<Batch>>>);

    impl Submit for Kept {
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

    fn setup(listen: SocketAddr, workers: usize) -> UdpConfig {
        let (database, retention_policy) = ("db".to_owned(), String::new());
        UdpConfig {
            listen,
            interface: listen.ip().is_multicast().then(|| "127.0.0.1".to_owned()),
            intake: IntakeConfig {
                destination: Arc::new(Destination::new(database, retention_policy, Precision::Nanoseconds)),
                format: None,
                mapping: Mapping::default(),
                max_line: MAX_LINE_BYTES,
                unsigned: Unsigned::Refuse,
                allow: Allow::default(),
            },
            workers,
            receive_buffer: 1 << 16,
        }
    }

    fn wait_for(mut is_so: impl FnMut() -> bool) {
        while !is_so() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn what_came_before_the_start_is_taken_and_all_workers_are_shown_as_one() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Listener::bind(setup(any, 2), &mut Inherited::default()).expect("bind");
        assert_eq!((listener.receive_buffer(), listener.queued_bytes()), ((1 << 16, 1 << 16), 0));
        // The kernel assigns each sender to one of the workers.
        let senders: Vec<UdpSocket> = (0..16).map(|_| UdpSocket::bind(any).expect("bind")).collect();
        let send = || {
            for sender in &senders {
                sender.send_to(b"m v=1 1\n", listener.address()).expect("send");
            }
        };
        send();
        assert!(listener.queued_bytes() >= 16 * 8, "the kernel charges more than the payload");
        assert_eq!((listener.kernel_drops(), listener.tally().datagrams), (0, 0));
        let kept = Kept::default();
        let limits = Limits { lines: 1000, age: Duration::from_secs(3600) };
        let threads = listener.start(&Pool::new(1, Builder::least_buffer_bytes()), limits, &kept).expect("start");
        wait_for(|| listener.tally().accepted == 16 && listener.queued_bytes() == 0);
        let pulses = listener.pulses();
        assert_eq!(pulses.iter().map(|pulse| pulse.name()).collect::<Vec<_>>(), ["udp-0", "udp-1"]);
        pulses.iter().for_each(|pulse| pulse.ask());
        wait_for(|| pulses.iter().all(|pulse| pulse.is_answered()));
        send();
        listener.stop();
        assert_eq!(threads.len(), 2);
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        let sources = listener.sources();
        let [source] = sources.entries() else { panic!("one source") };
        assert_eq!((source.sum.datagrams, listener.tally().datagrams, kept.submitted()), (32, 32, 32));
    }

    #[test]
    fn the_largest_datagrams_are_taken_whole() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Listener::bind(setup(any, 1), &mut Inherited::default()).expect("bind");
        let sender = UdpSocket::bind(any).expect("bind");
        let kept = Kept::default();
        let limits = Limits { lines: 10_000, age: Duration::from_secs(3600) };
        let threads = listener.start(&Pool::new(1, Builder::least_buffer_bytes()), limits, &kept).expect("start");
        // 65,507 bytes is the maximum payload over IPv4.
        let lines = 65_507 / 8;
        sender.send_to("m v=1 1\n".repeat(lines).as_bytes(), listener.address()).expect("send");
        wait_for(|| listener.tally().datagrams == 1);
        listener.stop();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        let tally = listener.tally();
        assert_eq!((tally.truncated, tally.accepted, kept.submitted()), (0, lines as u64, lines as u64));
    }

    #[test]
    fn the_drops_of_all_workers_are_counted() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Listener::bind(setup(any, 2), &mut Inherited::default()).expect("bind");
        let sender = UdpSocket::bind(any).expect("bind");
        assert_eq!(listener.kernel_drops(), 0);
        // Nothing reads, so the buffer fills up.
        wait_for(|| {
            for _ in 0..10 {
                sender.send_to(&[0; 8192], listener.address()).expect("send");
            }
            listener.kernel_drops() > 1
        });
    }

    #[test]
    fn passed_sockets_have_a_worker_each_and_a_group_has_one_of_them() {
        for (address, counts) in
            [("127.0.0.1:0", &[(1, true), (2, true)][..]), ("239.77.3.1:0", &[(1, true), (2, false)])]
        {
            for (count, is_fine) in counts {
                let socket = UdpSocket::bind(address).expect("bind");
                let listen = socket.local_addr().expect("address");
                let sockets = (0..*count).map(|_| socket.try_clone().expect("clone"));
                let bound = Listener::bind(setup(listen, 1), &mut crate::receive::inherited::tests::of(sockets));
                match bound {
                    Ok(listener) => {
                        assert!(*is_fine, "{count} of {address}");
                        assert_eq!((listener.address(), listener.pulses().len()), (listen, *count));
                    }
                    Err(error) => assert!(!is_fine && error.to_string().contains("pass one"), "{error}"),
                }
            }
        }
    }
}
