//! What backends answer, and what becomes of the lines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use loadgen::sink::{Behaviour, Sink, Store};
use twinflux::config::Udp;
use twinflux::journal::Durability;

use crate::support::{Running, Scripted, config, influx_error, no_content, wait_for};

/// A sink of loadgen's with its runtime.
struct Stored {
    store: Arc<Store>,
    sink: Option<Sink>,
    address: std::net::SocketAddr,
    runtime: tokio::runtime::Runtime,
}

impl Stored {
    fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let store = Arc::new(Store::default());
        let any = "127.0.0.1:0".parse().expect("address");
        let sink = runtime.block_on(Sink::start(any, Arc::clone(&store))).expect("sink");
        Self { store, address: sink.address(), sink: Some(sink), runtime }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn kill(&mut self) {
        self.sink = None;
        // The port is free once the runtime has dropped the listener.
        wait_for("the port to close", || std::net::TcpStream::connect(self.address).is_err().then_some(()));
    }

    fn revive(&mut self) {
        let again = || self.runtime.block_on(Sink::start(self.address, Arc::clone(&self.store))).ok();
        self.sink = Some(wait_for("the port", again));
    }
}

/// Host lines that the sinks' ledgers know again.
fn host_lines(rounds: u64) -> (Vec<Vec<u8>>, u64) {
    let mut host = loadgen::workload::Host::new(1, loadgen::workload::Shape::default());
    let mut lines = Vec::new();
    for round in 0..rounds {
        host.render(1_795_400_726_000_000_000 + round);
        lines.extend(host.lines().iter().map(|range| host.bytes()[range.clone()].to_vec()));
    }
    let count = lines.len() as u64;
    (lines, count)
}

#[test]
fn a_killed_backend_gets_everything_once_it_is_back_and_the_other_never_waits() {
    let (healthy, mut killed) = (Stored::start(), Stored::start());
    let relay = Running::start(config(&[healthy.url(), killed.url()]));
    let (lines, count) = host_lines(20);
    let third = lines.len() / 3;
    relay.send(&lines[..third]);
    relay.wait_delivered("b", third as u64);
    killed.kill();
    relay.send(&lines[third..2 * third]);
    relay.wait_delivered("a", 2 * third as u64);
    relay.wait_state("b", "down");
    assert_eq!(relay.get("/ready").0, 200);
    let down = relay.backend("b");
    assert_eq!(down.pending_lines, third as u64);
    assert!(down.oldest_pending_seconds > 0.0 && down.pending_bytes > 0);
    assert!(down.last_error.is_some_and(|error| error.contains("cannot connect")));
    killed.revive();
    relay.send(&lines[2 * third..]);
    relay.wait_delivered("a", count);
    relay.wait_delivered("b", count);
    relay.wait_state("b", "up");
    assert!(relay.backend("b").retries > 0);
    for stored in [&healthy, &killed] {
        let counts = stored.store.ledger.counts();
        assert_eq!((counts.distinct, counts.altered, counts.foreign), (count, 0, 0));
    }
}

/// Each way to misbehave that passes: the lines arrive in the end, the state says what is wrong
/// meanwhile.
#[test]
fn misbehaviour_delays_and_never_loses() {
    for (behaviour, state) in [
        (Behaviour::Status(500), "retrying"),
        (Behaviour::Status(503), "retrying"),
        (Behaviour::Status(429), "retrying"),
        (Behaviour::Reset, "retrying"),
        (Behaviour::HalfClose, "retrying"),
        (Behaviour::Hang, "down"),
    ] {
        let stored = Stored::start();
        stored.store.behave(behaviour);
        let mut config = config(&[stored.url()]);
        config.backend[0].timeout = Duration::from_millis(300);
        let relay = Running::start(config);
        let (lines, count) = host_lines(2);
        relay.send(&lines);
        relay.wait_state("a", state);
        assert_eq!(relay.get("/ready").0, 200, "the journal keeps what comes: {behaviour}");
        assert_eq!(relay.backend("a").pending_lines, count, "{behaviour}");
        stored.store.behave(Behaviour::Accept);
        relay.wait_delivered("a", count);
        relay.wait_state("a", "up");
        assert_eq!(stored.store.ledger.counts().distinct, count, "{behaviour}");
    }
}

#[test]
fn a_slow_backend_is_only_slow() {
    let stored = Stored::start();
    stored.store.behave(Behaviour::Slow(Duration::from_millis(50)));
    let relay = Running::start(config(&[stored.url()]));
    let (lines, count) = host_lines(5);
    relay.send(&lines);
    relay.wait_delivered("a", count);
    assert_eq!(relay.backend("a").retries, 0);
    assert!(relay.backend("a").latency_ms.p50 >= 50.0);
}

#[test]
fn a_hanging_backend_never_delays_another() {
    let (healthy, hanging) = (Stored::start(), Stored::start());
    hanging.store.behave(Behaviour::Hang);
    let relay = Running::start(config(&[healthy.url(), hanging.url()]));
    let (lines, count) = host_lines(10);
    relay.send(&lines);
    relay.wait_delivered("a", count);
    assert_eq!(relay.backend("b").pending_lines, count);
    assert_eq!(relay.backend("b").delivered_lines, 0);
}

#[test]
fn rejected_lines_are_counted_by_class_and_the_rest_is_delivered() {
    for (status, text, class, rejected) in [
        (400, "partial write: field type conflict: … dropped=3", "field_type", 2),
        (400, "partial write: points beyond retention policy dropped=3", "retention", 1),
        (400, "partial write: max-values-per-tag limit exceeded (1/1) dropped=3", "series_limit", 3),
        (400, "partial write: unable to parse 'm v=1 1': missing field value dropped=0", "unparsable", 1),
        (400, "unable to parse 'm v': missing field value", "unparsable", 5),
        (413, "Request Entity Too Large", "too_large", 4),
    ] {
        let is_bad = move |line: &str| (1..=rejected).any(|number| line == format!("m v={number} {number}"));
        let backend =
            Scripted::start(move |_, request| match request.text().lines().filter(|line| is_bad(line)).count() {
                0 => no_content(),
                bad => influx_error(status, &text.replace("dropped=3", &format!("dropped={bad}"))),
            });
        let relay = Running::start(config(&[backend.url()]));
        relay.send(&["m v=1 1\nm v=2 2\nm v=3 3\nm v=4 4\nm v=5 5\n"]);
        wait_for("the answer", || (relay.backend("a").pending_lines == 0).then_some(()));
        let ledger = relay.backend("a");
        assert_eq!(ledger.rejected_lines[class], rejected, "{status} {text}");
        assert_eq!((ledger.rejected(), ledger.delivered_lines), (rejected, 5 - rejected), "{status} {text}");
        assert_eq!(ledger.state, "up");
        assert!(ledger.last_error.is_some_and(|error| error.contains(&status.to_string())));
    }
}

#[test]
fn an_answer_that_claims_more_than_was_sent_costs_what_was_sent() {
    for dropped in ["6", "1000", "18446744073709551615", "99999999999999999999999"] {
        let text = format!("partial write: points beyond retention policy dropped={dropped}");
        let backend = Scripted::start(move |_, _| influx_error(400, &text));
        let relay = Running::start(config(&[backend.url()]));
        relay.send(&["m v=1 1\nm v=2 2\nm v=3 3\nm v=4 4\nm v=5 5\n"]);
        wait_for("the answer", || (relay.backend("a").pending_lines == 0).then_some(()));
        let ledger = relay.backend("a");
        assert_eq!((ledger.rejected_lines["retention"], ledger.rejected()), (5, 5), "{dropped}");
        assert_eq!((ledger.delivered_lines, ledger.delivered_bytes, ledger.dropped()), (0, 0, 0), "{dropped}");
        assert_eq!((ledger.pending_bytes, ledger.state.as_str()), (0, "up"), "{dropped}");
    }
}

/// What an overloaded or ailing server may answer, without a word of when to come back.
#[test]
fn no_answer_of_an_ailing_server_loses_a_line() {
    for (status, text) in [
        (408, "Request Timeout"),
        (425, "Too Early"),
        (429, "Too Many Requests"),
        (502, "Bad Gateway"),
        (504, "Gateway Timeout"),
        (507, "Insufficient Storage"),
        (400, "engine is closed"),
        (400, "write /x/_00001.wal: read-only file system"),
        (400, "partial write: shard is being deleted dropped=1"),
        (422, "timeout"),
    ] {
        let backend =
            Scripted::start(move |number, _| if number == 0 { influx_error(status, text) } else { no_content() });
        let relay = Running::start(config(&[backend.url()]));
        relay.send(&["m v=1 1\n"]);
        relay.wait_delivered("a", 1);
        let ledger = relay.backend("a");
        assert_eq!((ledger.rejected(), ledger.dropped(), ledger.retries), (0, 0, 1), "{status} {text}");
    }
}

#[test]
fn a_batch_refused_as_a_whole_is_tried_record_by_record() {
    // As 2.x: nothing of a request is stored in which a line cannot be read.
    let backend = Scripted::start(|_, request| match request.text().contains("bad") {
        true => (400, Vec::new(), r#"{"code":"invalid","message":"unable to parse 'bad'"}"#.to_owned()),
        false => no_content(),
    });
    let mut config = config(&[backend.url()]);
    config.backend[0].max_batch_lines = 10;
    config.backend[0].linger = Duration::from_millis(500);
    let relay = Running::start(config);
    // A record holds 10 lines at most; the bad one spoils its own record only.
    let lines: Vec<String> = (0..50).map(|n| format!("{} v={n} {n}\n", if n == 25 { "bad" } else { "m" })).collect();
    relay.send(&lines);
    wait_for("all answers", || (relay.backend("a").pending_lines == 0).then_some(()));
    let ledger = relay.backend("a");
    assert_eq!(ledger.rejected() + ledger.delivered_lines, 50);
    assert!((1..=10).contains(&ledger.rejected()), "{} rejected", ledger.rejected());
}

#[test]
fn a_full_disk_that_answers_400_loses_nothing() {
    let backend = Scripted::start(|number, _| match number {
        0 => influx_error(400, "partial write: write /var/lib/influxdb/x: no space left on device dropped=1"),
        _ => no_content(),
    });
    let relay = Running::start(config(&[backend.url()]));
    relay.send(&["m v=1 1\n"]);
    relay.wait_delivered("a", 1);
    assert_eq!(relay.backend("a").rejected(), 0);
}

#[test]
fn retry_after_is_waited_for() {
    let times = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = Arc::clone(&times);
    let backend = Scripted::start(move |number, _| {
        noted.lock().expect("no panic").push(Instant::now());
        match number {
            0 => (503, vec![("retry-after", "1".to_owned())], String::new()),
            _ => no_content(),
        }
    });
    let relay = Running::start(config(&[backend.url()]));
    relay.send(&["m v=1 1\n"]);
    relay.wait_delivered("a", 1);
    let times = times.lock().expect("no panic");
    assert!(times[1] - times[0] >= Duration::from_secs(1));
}

#[test]
fn too_large_requests_are_halved() {
    let backend = Scripted::start(|_, request| {
        if request.body.len() > 300_000 { influx_error(413, "Request Entity Too Large") } else { no_content() }
    });
    let mut config = config(&[backend.url()]);
    // Long enough for all of them to come.
    config.backend[0].linger = Duration::from_secs(3);
    let relay = Running::start(config);
    let line = format!("m v=\"{}\" 1\n", "x".repeat(60_000));
    relay.send(&vec![line; 16]);
    relay.wait_delivered("a", 16);
    assert_eq!(relay.backend("a").rejected(), 0);
    assert!(backend.requests().iter().any(|request| request.body.len() > 300_000));
}

#[test]
fn one_missing_database_holds_up_no_other() {
    let begun = Instant::now();
    let exists = Arc::new(AtomicBool::new(false));
    let shared = Arc::clone(&exists);
    let backend = Scripted::start(move |_, request| {
        let is_missing = request.uri.query().is_some_and(|query| query.contains("db=missing"));
        if is_missing && !shared.load(Ordering::Relaxed) {
            return influx_error(404, "database not found: \"missing\"");
        }
        no_content()
    });
    let mut config = config(&[backend.url()]);
    config.udp.push(Udp { listen: config.udp[0].listen, database: "missing".into(), ..Udp::default() });
    let relay = Running::start(config);
    let missing = relay.relay.as_ref().expect("running").view().listeners[1].address();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.send_to(b"m v=1 1\nm v=2 2\n", missing).expect("send");
    relay.wait_state("a", "held");
    for _ in 0..3 {
        let before = relay.backend("a").delivered_lines;
        relay.send(&["other v=1 1\n"]);
        wait_for("the other database", || (relay.backend("a").delivered_lines == before + 1).then_some(()));
    }
    let held = relay.backend("a");
    assert_eq!((held.pending_lines, held.dropped(), held.rejected(), held.state.as_str()), (2, 0, 0, "held"));
    let asked = backend.requests().iter().filter(|one| one.uri.query().is_some_and(|q| q.contains("missing"))).count();
    // Pauses double up to 5 s, and each is some part of that.
    let most = 10 + 2 * begun.elapsed().as_secs();
    assert!(asked as u64 <= most, "it is left alone for a while: {asked}");
}

#[test]
fn refused_credentials_hold_and_drop_nothing() {
    for status in [401, 403] {
        let code = Arc::new(AtomicU16::new(status));
        let shared = Arc::clone(&code);
        let backend = Scripted::start(move |_, _| influx_error(shared.load(Ordering::Relaxed), "authorization failed"));
        let relay = Running::start(config(&[backend.url()]));
        relay.send(&["m v=1 1\n"]);
        relay.wait_state("a", "held");
        let held = relay.backend("a");
        assert_eq!((held.pending_lines, held.dropped(), held.rejected()), (1, 0, 0));
    }
}

#[test]
fn what_is_no_influxdb_is_held() {
    for (status, body) in [(200, "<html>welcome</html>"), (302, ""), (404, "404 page not found")] {
        let backend =
            Scripted::start(move |_, _| (status, vec![("location", "http://127.0.0.1:1/".into())], body.into()));
        let relay = Running::start(config(&[backend.url()]));
        relay.send(&["m v=1 1\n"]);
        relay.wait_state("a", "held");
        assert_eq!((relay.backend("a").pending_lines, backend.requests().len()), (1, 1));
    }
}

#[test]
fn a_full_memory_drops_the_oldest_and_counts_them_for_that_backend_only() {
    let (healthy, mut dead) = (Stored::start(), Stored::start());
    dead.kill();
    let mut config = config(&[healthy.url(), dead.url()]);
    config.journal.memory = ByteSize::mib(4);
    config.journal.durability = Durability::Memory;
    let relay = Running::start(config);
    let (lines, count) = host_lines(600);
    for part in lines.chunks(1000) {
        relay.send(part);
        assert!(relay.status().journal.memory_bytes <= 4 << 20);
    }
    relay.wait_delivered("a", count);
    let full = wait_for("what has no room to be dropped", || {
        let dead = relay.backend("b");
        (dead.dropped() > 0).then_some(dead)
    });
    assert_eq!(full.dropped_lines["memory_full"], full.dropped());
    dead.revive();
    wait_for("what is left", || (relay.backend("b").pending_lines == 0).then_some(()));
    let after = relay.backend("b");
    assert_eq!(after.delivered_lines + after.dropped(), count);
    assert_eq!(dead.store.ledger.counts().distinct, after.delivered_lines);
    assert_eq!(healthy.store.ledger.counts().distinct, count);
}

#[test]
fn a_kept_connection_that_was_closed_costs_no_pause() {
    // `Connection: close` ends each connection after its answer, without the client being told
    // before.
    let backend = Scripted::start(|_, _| (204, vec![("connection", "close".into())], String::new()));
    let relay = Running::start(config(&[backend.url()]));
    for sent in 1..20 {
        relay.send(&["m v=1 1\n"]);
        relay.wait_delivered("a", sent);
    }
    let ledger = relay.backend("a");
    assert_eq!((ledger.retries, ledger.last_error), (0, None));
}
