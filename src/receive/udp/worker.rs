//! One worker's loop, from the socket to the sealed batch.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mmsg::{self, Datagram, Method, Slots};
use super::pace::{Pace, Polled, Wait};
use super::{ROUNDS, SLOTS, WorkerState};
use crate::batch::{Received, Submit};
use crate::intake::{Intake, IntakeConfig, PUBLISH_INTERVAL};
use crate::sys::{Leave, Throttle, throttle};

/// Maximum number of polls of a stopping worker whose socket never becomes empty.
const LAST_POLLS: usize = 64;
/// How long a worker pauses after a failed read.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// How often to check for datagrams that the kernel dropped.
const DROPS_INTERVAL: Duration = Duration::from_secs(10);

/// Arguments of a worker.
pub(super) struct WorkerArgs<H> {
    pub(super) state: Arc<WorkerState>,
    /// Size of the largest datagram that is received whole.
    pub(super) slot_bytes: usize,
    pub(super) setup: IntakeConfig,
    pub(super) intake: Intake<H>,
}

/// Runs until told to stop, then empties the socket.
pub(super) fn run<H: Submit>(parts: WorkerArgs<H>) {
    let Some(socket) = parts.state.socket.open() else { return };
    mmsg::precise_sleeps();
    let mut slots = Slots::new(SLOTS, parts.slot_bytes, Method::Recvmmsg);
    let mut pace = Pace::new(parts.state.socket.charged_bytes());
    let mut worker = Worker { socket, parts, polled_at: Instant::now(), nap: Duration::ZERO, logs: Logs::new() };
    while !worker.parts.state.stop.is_set() {
        worker.parts.state.pulse.beat();
        let polled = worker.poll(&mut slots);
        worker.wait(pace.after(polled));
    }
    for _ in 0..LAST_POLLS {
        if worker.poll(&mut slots).drained {
            break;
        }
    }
    worker.parts.intake.seal();
    worker.parts.intake.publish_sources(Instant::now() + PUBLISH_INTERVAL);
    worker.parts.state.socket.close();
}

struct Worker<H> {
    socket: Arc<UdpSocket>,
    parts: WorkerArgs<H>,
    /// When the last poll began.
    polled_at: Instant,
    /// The nap before the last poll.
    nap: Duration,
    logs: Logs,
}

impl<H: Submit> Worker<H> {
    /// Receives what is queued at the socket, publishes the counters, and seals a batch that is
    /// due.
    fn poll(&mut self, slots: &mut Slots) -> Polled {
        let received = Received::now();
        self.parts.intake.set_clock(received);
        let mut polled =
            Polled { datagrams: 0, bytes: 0, drained: false, elapsed: received.monotonic - self.polled_at };
        self.polled_at = received.monotonic;
        for _ in 0..ROUNDS {
            let count = match slots.receive(self.socket.as_fd()) {
                Ok(count) => count,
                Err(error) => {
                    // No error is final; the most likely one is a lack of memory.
                    self.logs.receive_error(&error, received.monotonic);
                    std::thread::sleep(ERROR_PAUSE);
                    0
                }
            };
            polled.datagrams += count;
            for datagram in slots.datagrams() {
                polled.bytes += datagram.bytes.len() as u64;
                self.take(datagram);
            }
            if count < slots.count() {
                polled.drained = true;
                break;
            }
        }
        self.parts.intake.publish();
        self.parts.intake.publish_sources(received.monotonic);
        self.logs.kernel_drops(&self.parts.state, received.monotonic);
        // The next poll is likely to be as late as this one was, so seal now what would be due
        // before it.
        if self.parts.intake.due().is_some_and(|due| due <= received.monotonic + self.nap) {
            self.parts.intake.seal();
        }
        polled
    }

    /// Processes one datagram: good lines go into the batch, bad ones into the counters.
    #[inline]
    fn take(&mut self, datagram: Datagram<'_>) {
        let WorkerArgs { intake, setup, .. } = &mut self.parts;
        let tally = intake.tally();
        tally.datagrams += 1;
        tally.bytes += datagram.bytes.len() as u64;
        if !setup.allows(datagram.source) {
            intake.deny(datagram.source);
        } else if datagram.bytes.is_empty() {
            intake.empty(datagram.source);
        } else {
            tally.truncated += u64::from(datagram.truncated);
            intake.datagram(datagram.bytes, datagram.truncated, datagram.source);
        }
    }

    /// Waits. A blocking wait ends when the open batch or the table of sources is due.
    fn wait(&mut self, wait: Wait) {
        self.nap = Duration::ZERO;
        match wait {
            Wait::Not => {}
            Wait::Nap(nap) => {
                self.nap = nap;
                std::thread::sleep(nap);
            }
            Wait::Block => {
                let now = Instant::now();
                let due = [self.parts.intake.due(), self.parts.intake.sources_due()].into_iter().flatten().min();
                let limit = due.map(|due| due.saturating_duration_since(now));
                if let Err(error) = self.parts.state.stop.wait_readable(&self.socket, limit) {
                    self.logs.receive_error(&error, now);
                    std::thread::sleep(ERROR_PAUSE);
                }
            }
        }
    }
}

/// Log messages of a worker, and when the next ones may be written.
struct Logs {
    trouble: Throttle,
    drops_next: Instant,
    drops_logged: u64,
}

impl Logs {
    fn new() -> Self {
        let now = Instant::now();
        Self { trouble: Throttle::default(), drops_next: now, drops_logged: 0 }
    }

    #[cold]
    fn receive_error(&self, error: &std::io::Error, now: Instant) {
        if let Some(Leave { untold }) = self.trouble.pass_at(now) {
            tracing::warn!(%error, untold, "cannot receive; trying again");
        }
    }

    /// Checks for new kernel drops at intervals.
    fn kernel_drops(&mut self, state: &WorkerState, now: Instant) {
        if now < self.drops_next {
            return;
        }
        self.drops_next = now + DROPS_INTERVAL;
        let drops = state.socket.kernel_drops();
        if drops > self.drops_logged {
            self.drops_next = now + throttle::INTERVAL;
            tracing::warn!(
                datagrams = drops - self.drops_logged,
                receive_buffer = state.socket.receive_buffer(),
                "the kernel dropped datagrams: raise receive_buffer"
            );
            self.drops_logged = drops;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::batch::{Batch, Builder, Destination, Limits, Pool};
    use crate::intake::Shown;
    use crate::intake::Tally;
    use crate::protocol::line::MAX_LINE_BYTES;
    use crate::protocol::{Mapping, Precision, Unsigned};
    use crate::receive::Pulse;
    use crate::receive::udp::Socket;
    use crate::receive::udp::waiter::Stop;

    /// Accepts up to this many batches. Asserts that lines are published as held before they are
    /// submitted.
    struct Few(usize, Arc<Mutex<Vec<Batch>>>, Arc<Shown>);

    impl Submit for Few {
        fn has_capacity(&self) -> bool {
            true
        }

        fn submit(&self, batch: Batch) -> Result<(), Batch> {
            let shown = self.2.counters.read();
            let mut taken = self.1.lock().expect("no panic");
            let submitted = taken.iter().map(|batch| batch.lines()).sum::<u64>();
            assert_eq!(shown.accepted, shown.held + shown.submitted + shown.ring_full);
            assert_eq!(shown.submitted, submitted, "the worker publishes at once what was taken");
            assert!(shown.held >= batch.lines(), "lines are accepted and held before they are submitted");
            if taken.len() == self.0 {
                return Err(batch);
            }
            taken.push(batch);
            Ok(())
        }

        fn submitted(&self) -> u64 {
            self.1.lock().expect("no panic").iter().map(|batch| batch.lines()).sum()
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    /// A worker on its own socket, and the batches that it submits.
    struct Bench {
        state: Arc<WorkerState>,
        sender: UdpSocket,
        taken: Arc<Mutex<Vec<Batch>>>,
        parts: WorkerArgs<Few>,
    }

    impl Bench {
        /// Creates one with slots of this size, batches of this many lines, and capacity for `room`
        /// batches.
        fn new(slot_bytes: usize, lines: u64, room: usize) -> Self {
            let socket = Socket::bind(([127, 0, 0, 1], 0).into(), 1 << 20).expect("bind");
            let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
            sender.connect(socket.address()).expect("connect");
            let destination = Arc::new(Destination::new("db", "", Precision::Nanoseconds));
            let limits = Limits { lines, age: HOUR };
            let state = Arc::new(WorkerState {
                socket,
                shown: Arc::default(),
                pulse: Arc::new(Pulse::new("udp")),
                stop: Arc::new(Stop::new().expect("an event")),
            });
            let taken = Arc::new(Mutex::new(Vec::new()));
            let setup = IntakeConfig {
                destination,
                format: None,
                mapping: Mapping::default(),
                max_line: MAX_LINE_BYTES,
                unsigned: Unsigned::Refuse,
                allow: crate::intake::Allow::default(),
            };
            let pool = Pool::new(1, Builder::least_buffer_bytes());
            let out = Few(room, Arc::clone(&taken), Arc::clone(&state.shown));
            let intake = Intake::new((&setup, state.socket.address()), Arc::clone(&state.shown), &pool, limits, out);
            let parts = WorkerArgs { state: Arc::clone(&state), slot_bytes, intake, setup };
            Self { state, sender, taken, parts }
        }

        fn worker(self) -> (Worker<Few>, UdpSocket, Arc<Mutex<Vec<Batch>>>) {
            let Self { state, sender, taken, parts } = self;
            let socket = state.socket.open().expect("open");
            let (polled_at, nap, logs) = (Instant::now(), Duration::ZERO, Logs::new());
            (Worker { socket, parts, polled_at, nap, logs }, sender, taken)
        }
    }

    /// Runs a worker over these datagrams. Returns its counters and the submitted batches.
    fn run_over(datagrams: &[&[u8]], slot_bytes: usize, lines: u64, room: usize) -> (Tally, Vec<Batch>) {
        let Bench { state, sender, taken, parts } = Bench::new(slot_bytes, lines, room);
        for datagram in datagrams {
            sender.send(datagram).expect("send");
        }
        state.stop.set();
        run(parts);
        let batches = std::mem::take(&mut *taken.lock().expect("no panic"));
        (state.shown.counters.read(), batches)
    }

    #[test]
    fn a_cut_off_datagram_is_counted_and_keeps_its_whole_lines() {
        let (tally, batches) = run_over(&[b"m v=1 1\nm v=2 22222\n", b"m v=3 3\n"], 16, 100, 10);
        assert_eq!((tally.datagrams, tally.truncated, tally.accepted, tally.lines()), (2, 1, 2, 3));
        assert_eq!(tally.refused[crate::protocol::Refusal::Truncated.index()], 1);
        assert_eq!(&batches[0].bytes()[..], b"m v=1 1\nm v=3 3\n");
    }

    #[test]
    fn what_finds_no_room_is_counted_and_the_worker_goes_on() {
        let datagram: Vec<u8> = (0..10).flat_map(|n| format!("m v={n} {n}\n").into_bytes()).collect();
        let (tally, batches) = run_over(&[&datagram[..]; 30], 1024, 25, 3);
        assert_eq!((tally.accepted, tally.ring_full), (300, 300 - 75));
        assert_eq!(batches.iter().map(|batch| batch.lines()).sum::<u64>(), 75);
        assert_eq!(tally.bytes, 30 * datagram.len() as u64);
    }

    #[test]
    fn who_is_not_allowed_is_counted_and_not_read() {
        let Bench { state, sender, taken, parts } = Bench::new(64, 1_000, 10);
        parts.setup.allow.replace(vec!["192.0.2.0/24".parse().expect("a network")]);
        for _ in 0..3 {
            sender.send(b"m v=1 1\n").expect("send");
        }
        state.stop.set();
        run(parts);
        let tally = state.shown.counters.read();
        assert_eq!((tally.datagrams, tally.denied, tally.lines()), (3, 3, 0));
        assert!(taken.lock().expect("no panic").is_empty() && state.shown.sources().entries().is_empty());
    }

    #[test]
    fn a_look_tells_what_it_brought_and_whether_that_was_all() {
        let (mut worker, sender, _) = Bench::new(64, 1_000, 10).worker();
        let datagram = b"m v=1 1\n";
        for _ in 0..=ROUNDS {
            sender.send(datagram).expect("send");
        }
        // One datagram per call.
        let mut slots = Slots::new(1, 64, Method::Recvmmsg);
        for (datagrams, drained) in [(ROUNDS, false), (1, true), (0, true)] {
            let polled = worker.poll(&mut slots);
            let bytes = (datagrams * datagram.len()) as u64;
            assert_eq!((polled.datagrams, polled.bytes, polled.drained), (datagrams, bytes, drained));
        }
    }

    #[test]
    fn what_would_be_due_within_the_next_nap_is_sealed_before_it() {
        let (mut worker, sender, taken) = Bench::new(64, 1_000, 10).worker();
        let mut slots = Slots::new(2, 64, Method::Recvmmsg);
        sender.send(b"m v=1 1\n").expect("send");
        worker.wait(Wait::Nap(Duration::from_millis(1)));
        worker.poll(&mut slots);
        assert!(taken.lock().expect("no panic").is_empty(), "an hour is longer than the nap");
        worker.nap *= 1_000 * 3_600 * 2;
        worker.poll(&mut slots);
        assert_eq!(taken.lock().expect("no panic").len(), 1);
        worker.parts.state.stop.wake();
        worker.wait(Wait::Block);
        assert!(worker.nap.is_zero(), "a worker that blocks wakes for what is due");
    }

    #[test]
    fn who_sent_shortly_before_the_end_is_shown() {
        let Bench { state, sender, parts, .. } = Bench::new(64, 1_000, 10);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| run(parts));
            // The second datagram arrives before the table of sources is due again.
            for count in 1..=2 {
                sender.send(b"m v=1 1\n").expect("send");
                while state.shown.counters.read().datagrams < count || state.shown.sources().entries().is_empty() {
                    std::thread::yield_now();
                }
            }
            state.stop.set();
            running.join().expect("no panic");
        });
        assert_eq!(state.shown.sources().entries()[0].sum.datagrams, 2);
    }

    /// Sends until the kernel has dropped more datagrams, and returns its counter.
    fn flood(state: &WorkerState, sender: &UdpSocket) -> u64 {
        let before = state.socket.kernel_drops();
        while state.socket.kernel_drops() == before {
            sender.send(&[0; 8_192]).expect("send");
        }
        state.socket.kernel_drops()
    }

    #[test]
    fn the_kernels_drops_are_told_at_intervals() {
        let Bench { state, sender, .. } = Bench::new(64, 1_000, 10);
        let mut logs = Logs::new();
        let start = logs.drops_next;
        logs.kernel_drops(&state, start);
        let drops = flood(&state, &sender);
        logs.kernel_drops(&state, start + Duration::from_millis(1));
        assert_eq!(logs.drops_logged, 0, "not checked again so soon");
        logs.kernel_drops(&state, start + DROPS_INTERVAL);
        assert_eq!(logs.drops_logged, drops);
        let more = flood(&state, &sender);
        logs.kernel_drops(&state, start + DROPS_INTERVAL * 2);
        assert_eq!(logs.drops_logged, drops, "what was just told is not told so soon again");
        logs.kernel_drops(&state, start + DROPS_INTERVAL + throttle::INTERVAL);
        assert_eq!(logs.drops_logged, more);
    }

    #[test]
    fn an_error_is_told_once_a_minute() {
        let (logs, now) = (Logs::new(), Instant::now());
        for seconds in 0..3 {
            let error = std::io::ErrorKind::OutOfMemory.into();
            logs.receive_error(&error, now + Duration::from_secs(seconds));
        }
        let told = logs.trouble.pass_at(now + throttle::INTERVAL).expect("it is due");
        assert_eq!(told.untold, Some(2));
    }
}
