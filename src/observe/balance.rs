//! Tests that the ledger balances in every snapshot while everything moves, and that it shows a
//! lost batch wherever the loss was.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::batch::{Batch, Builder, Limits, Pool, Step, Submit};
use crate::config::{Config, Http, Tcp, Udp};
use crate::journal::BackendId;
use crate::journal::ring::{Consumer, Producer};
use crate::journal::{self, BackendConfig, Durability, Journal, Rejection, ring};
use crate::observe::metrics;
use crate::observe::status::Status;
use crate::observe::view::View;
use crate::observe::view::tests::view;
use crate::receive::http::Host;
use crate::receive::tcp::Order;
use crate::receive::{Inherited, Listener};

/// Longer than the busiest machine needs.
const LIMIT: Duration = Duration::from_secs(180);

/// A relay without a disk and real backends: two UDP workers, a TCP and an HTTP listener, a ring, a
/// journal with two backends.
struct Rig {
    view: View,
    consumer: Consumer,
}

fn rig(ring_batches: usize) -> Rig {
    let any = ([127, 0, 0, 1], 0).into();
    let mut config = Config::default();
    config.udp.push(Udp { listen: any, workers: 2, ..Udp::default() });
    config.tcp.push(Tcp { listen: any, ..Tcp::default() });
    config.http.push(Http { listen: any, ..Http::default() });
    let setups = config.listeners(None).expect("setups");
    let listeners = setups.into_iter().map(|setup| Listener::bind(setup, &mut Inherited::default()).expect("bound"));
    let backends = ["a", "b"].map(str::to_owned);
    let setup = |name| BackendConfig { name, address: String::new(), replay_share: 0.5 };
    let (ring, consumer) = ring(ring_batches);
    let journal = Journal::new(1 << 30, &backends.clone().map(setup));
    let view = view(listeners.collect(), ring, journal, Durability::Memory, &backends);
    Rig { view, consumer }
}

/// Starts the workers, with batches of at most three lines.
fn start<H: Submit + Clone + Sync + 'static>(view: &View, out: &H) -> Vec<JoinHandle<()>> {
    let pool = Pool::new(4, Builder::least_buffer_bytes());
    let (limits, order) = (Limits { lines: 3, age: Duration::from_millis(1) }, Order::default());
    let host = Host::of_test();
    let answers = (Step::Accepted, &host);
    view.listeners
        .iter()
        .flat_map(|listener| listener.start(&pool, limits, out, &order, answers).expect("threads"))
        .collect()
}

fn stop(view: &View, workers: Vec<JoinHandle<()>>) {
    view.listeners.iter().for_each(Listener::stop);
    workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < limit, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn differences(status: &Status) -> Vec<i128> {
    status.backends.iter().map(|backend| backend.difference(status.accepted_lines)).collect()
}

/// Leases and acks until told to end; sometimes requeues a lease or rejects a line.
fn deliver(journal: &Journal, backend: usize, ends: &AtomicBool) {
    let limits = journal::Limits { lines: 20, bytes: 1 << 20, linger: Duration::ZERO };
    let mut reader = journal.reader(BackendId::new(backend));
    let mut turn = 0;
    loop {
        let is_last = ends.load(Ordering::Acquire);
        while let Some(lease) = reader.try_next(&limits) {
            turn += 1;
            match turn % 5 {
                0 => reader.requeue(lease),
                1 => reader.ack(lease, Some((Rejection::FieldType, 1))),
                _ => reader.ack(lease, None),
            }
        }
        if is_last {
            return;
        }
        std::thread::yield_now();
    }
}

#[test]
fn the_ledger_balances_at_every_look_while_everything_moves() {
    // The ring is so small that datagrams find it full.
    let Rig { view, consumer } = rig(4);
    let workers = start(&view, &view.ring);
    let [udp, tcp, http] = [0, 1, 2].map(|index| view.listeners[index].address());
    let (ends, delivered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let journal = view.journal.clone();
    let taking = Arc::clone(&ends);
    let taking = std::thread::spawn(move || {
        loop {
            let is_last = taking.load(Ordering::Acquire);
            while journal.take(&consumer) {}
            journal.note_lost(&consumer.take_lost());
            if is_last {
                return;
            }
            std::thread::yield_now();
        }
    });
    let delivering = [0, 1].map(|backend| {
        let (journal, ends) = (view.journal.clone(), Arc::clone(&delivered));
        std::thread::spawn(move || deliver(&journal, backend, &ends))
    });
    let sent = Arc::new(AtomicBool::new(false));
    let looks = Arc::new(AtomicU32::new(0));
    let looking = {
        let (view, sent, looks) = (view.clone(), Arc::clone(&sent), Arc::clone(&looks));
        std::thread::spawn(move || {
            while !sent.load(Ordering::Acquire) {
                let status = view.status();
                assert_eq!(differences(&status), [0, 0], "{status:?}");
                looks.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let stream: String = (0..60_000).map(|n| format!("t v={n} {n}\n")).collect();
    let streaming = std::thread::spawn(move || TcpStream::connect(tcp)?.write_all(stream.as_bytes()));
    let posted = Arc::clone(&sent);
    let posting = std::thread::spawn(move || post_until(http, &posted));
    let sockets = [0; 4].map(|_| UdpSocket::bind("127.0.0.1:0").expect("bind"));
    // Sends until there are many looks, however busy the machine is.
    wait_for("looks", || {
        for socket in sockets.iter().cycle().take(400) {
            socket.send_to(b"m v=1 1\nm v=2 2\nm v=3 3\nm v=4 4\n", udp).expect("send");
        }
        looks.load(Ordering::Relaxed) >= 400 || looking.is_finished()
    });
    streaming.join().expect("no panic").expect("sent");
    wait_for("the stream", || view.status().receive[1].lines == 60_000);
    sent.store(true, Ordering::Release);
    looking.join().expect("every look balances");
    let answered = posting.join().expect("no panic").expect("answers");
    assert_eq!((answered > 0, view.status().receive[2].lines), (true, answered));
    stop(&view, workers);
    ends.store(true, Ordering::Release);
    taking.join().expect("no panic");
    delivered.store(true, Ordering::Release);
    delivering.into_iter().for_each(|thread| thread.join().expect("no panic"));
    let last = view.status();
    assert_eq!(differences(&last), [0, 0], "{last:?}");
    for backend in &last.backends {
        assert_eq!(backend.pending_lines, 0);
        let gone = backend.delivered_lines + backend.rejected() + backend.dropped_lines["ring_full"];
        assert_eq!(gone, last.accepted_lines);
        // Each loss is a gap.
        let gaps = last.journal.gaps.iter().filter(|gap| gap.backend == backend.name && gap.reason == "ring_full");
        assert_eq!(gaps.map(|gap| gap.lines).sum::<u64>(), backend.dropped_lines["ring_full"]);
    }
}

/// Posts bodies of ten lines on one connection until told to end; returns the number of accepted
/// lines.
fn post_until(http: SocketAddr, ends: &AtomicBool) -> std::io::Result<u64> {
    let mut connection = TcpStream::connect(http)?;
    let body: String = (0..10).map(|n| format!("h v={n} {n}\n")).collect();
    let request = format!("POST /write?db=d HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut lines = 0;
    while !ends.load(Ordering::Acquire) {
        connection.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut room = [0; 1024];
            let count = connection.read(&mut room)?;
            assert!(count > 0, "{}", answer.escape_ascii());
            answer.extend_from_slice(&room[..count]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 204 "), "{}", answer.escape_ascii());
        lines += 10;
    }
    Ok(lines)
}

/// Submits batches, but loses the first one.
#[derive(Clone, Debug)]
struct Losing {
    out: Producer,
    has_lost: Arc<AtomicBool>,
}

impl Submit for Losing {
    fn has_capacity(&self) -> bool {
        true
    }

    fn submit(&self, batch: Batch) -> Result<(), Batch> {
        if self.has_lost.swap(true, Ordering::Relaxed) { self.out.submit(batch) } else { Ok(()) }
    }

    fn submitted(&self) -> u64 {
        self.out.submitted()
    }
}

/// Sends two batches' worth of lines, and stops the workers.
fn send_two_batches<H: Submit + Clone + Sync + 'static>(view: &View, out: &H) {
    let workers = start(view, out);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let datagram = b"m v=1 1\nm v=2 2\nm v=3 3\nm v=4 4\nm v=5 5\nm v=6 6\n";
    socket.send_to(datagram, view.listeners[0].address()).expect("send");
    wait_for("the lines", || view.status().accepted_lines == 6);
    stop(view, workers);
}

/// Checks that the text and the metrics report so many lost lines.
fn assert_told(view: &View, lines: i128) {
    let status = view.status();
    assert_eq!(differences(&status), [lines, lines], "{status:?}");
    let text = status.to_text();
    let metrics = metrics::render(Arc::new(status)).expect("metrics");
    for name in ["a", "b"] {
        let sentence = format!("the ledger of {name} does not balance: {lines} lines were lost without being counted");
        assert_eq!(text.contains(&sentence), lines > 0, "{text}");
        let gauge = format!("twinflux_ledger_difference_lines{{backend=\"{name}\"}} {lines}\n");
        assert!(metrics.contains(&gauge), "{metrics}");
    }
}

#[test]
fn a_batch_that_is_lost_before_the_ring_shows() {
    let Rig { view, consumer } = rig(16);
    assert_told(&view, 0);
    send_two_batches(&view, &Losing { out: view.ring.clone(), has_lost: Arc::default() });
    assert_told(&view, 3);
    while view.journal.take(&consumer) {}
    assert_told(&view, 3);
}

#[test]
fn a_batch_that_is_lost_between_ring_and_journal_shows() {
    let Rig { view, consumer } = rig(16);
    send_two_batches(&view, &view.ring);
    assert_told(&view, 0);
    drop(consumer.pop().expect("a batch"));
    assert_told(&view, 3);
    while view.journal.take(&consumer) {}
    assert_told(&view, 3);
}

#[test]
fn a_batch_that_is_appended_twice_shows() {
    let Rig { view, consumer } = rig(16);
    send_two_batches(&view, &view.ring);
    let batch = consumer.pop().expect("a batch");
    view.journal.append(batch.clone());
    view.journal.append(batch);
    let status = view.status();
    assert_eq!(differences(&status), [-3, -3]);
    assert!(status.to_text().contains("does not balance: 3 lines were counted more than once"));
}
