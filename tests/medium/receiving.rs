//! From the wire to both backends: what arrives, what is counted.

use std::net::UdpSocket;
use std::sync::Arc;

use bytesize::ByteSize;
use loadgen::sink::Store;
use twinflux::config::Udp;
use twinflux::protocol::{Precision, Refusal};

use crate::support::{Running, Scripted, config, wait_for};

#[test]
fn every_line_reaches_every_backend_byte_for_byte_and_in_order() {
    let backends = [Scripted::accepting(), Scripted::accepting()];
    let relay = Running::start(config(&[backends[0].url(), backends[1].url()]));
    let lines: Vec<String> = (0..2000).map(|n| format!("m,host=h\\ {} v=\"ä\n\\\"{n}\",w={n}i {n}\n", n % 7)).collect();
    relay.send(&lines);
    for (name, backend) in ["a", "b"].iter().zip(&backends) {
        relay.wait_delivered(name, 2000);
        assert_eq!(backend.text(), lines.concat());
        assert!(backend.requests().len() < 1000, "lines are gathered");
        let first = &backend.requests()[0];
        assert_eq!(first.uri.to_string(), "/write?db=telegraf&precision=n");
        assert!(first.header("user-agent").starts_with("twinflux/"));
    }
    let status = relay.status();
    assert_eq!((status.accepted_lines, status.receive[0].datagrams), (2000, 2000));
    assert_eq!(status.receive[0].bytes, lines.concat().len() as u64);
    assert_eq!(status.backends[0].delivered_bytes, lines.concat().len() as u64);
    assert!(status.backends[0].latency_ms.max > 0.0);
}

#[test]
fn missing_timestamps_are_filled_in_once_and_are_the_same_everywhere() {
    let backends = [Scripted::accepting(), Scripted::accepting()];
    let mut config = config(&[backends[0].url(), backends[1].url()]);
    config.udp[0].precision = Precision::Microseconds;
    let relay = Running::start(config);
    relay.send(&["m v=1\nm v=2\r\nm v=3 7\nm v=4", "m v=5"]);
    relay.wait_delivered("a", 5);
    relay.wait_delivered("b", 5);
    let text = backends[0].text();
    assert_eq!(text, backends[1].text());
    let stamps: Vec<u64> =
        text.lines().map(|line| line.rsplit_once(' ').expect("a stamp").1.parse().expect("a number")).collect();
    assert_eq!((stamps.len(), stamps[2]), (5, 7));
    let unique: std::collections::HashSet<_> = stamps.iter().collect();
    assert_eq!(unique.len(), 5);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_micros();
    assert!(stamps[0].abs_diff(u64::try_from(now).expect("fits")) < 60_000_000, "microseconds of now");
}

#[test]
fn each_reason_of_refusal_has_a_counter_that_moves() {
    let backend = Scripted::accepting();
    let relay = Running::start(config(&[backend.url()]));
    let hundred: String = (0..100).map(|tag| format!(",t{tag}=v")).collect();
    let cases: Vec<(Refusal, Vec<u8>)> = vec![
        (Refusal::MissingMeasurement, b",a=b v=1".to_vec()),
        (Refusal::MissingTagKey, b"m,=b v=1".to_vec()),
        (Refusal::InvalidTagValue, b"m,a v=1".to_vec()),
        (Refusal::DuplicateTag, b"m,a=b,a=c v=1".to_vec()),
        (Refusal::ReservedTag, b"m,time=b v=1".to_vec()),
        (Refusal::TooManyTags, format!("m{hundred} v=1").into_bytes()),
        (Refusal::MissingField, b"m".to_vec()),
        (Refusal::ReservedField, b"m time=1".to_vec()),
        (Refusal::InvalidValue, b"m v=x".to_vec()),
        (Refusal::NumberOutOfRange, b"m v=1e999".to_vec()),
        (Refusal::UnsignedInteger, b"m v=1u".to_vec()),
        (Refusal::UnterminatedString, b"m v=\"x".to_vec()),
        (Refusal::TrailingText, b"m v=1 1 2".to_vec()),
        (Refusal::InvalidTimestamp, b"m v=1 x".to_vec()),
        (Refusal::TimestampOutOfRange, b"m v=1 9223372036854775807".to_vec()),
        (Refusal::ControlByte, b"m\tv=1".to_vec()),
        (Refusal::InvalidUtf8, b"m\xff v=1".to_vec()),
        (Refusal::AmbiguousEscape, b"m,a=b\\".to_vec()),
    ];
    for (sent, (reason, line)) in (1..).zip(&cases) {
        relay.send(&[&[&b"good v=1 1\n"[..], line].concat()]);
        relay.wait_delivered("a", sent);
        let receive = &relay.status().receive[0];
        assert_eq!(receive.refused[reason.name()], 1, "{}", reason.name());
        assert_eq!((receive.lines, relay.status().accepted_lines), (2 * sent, sent));
    }
}

#[test]
fn empty_denied_and_large_datagrams_are_counted() {
    let backend = Scripted::accepting();
    let mut config = config(&[backend.url()]);
    config.udp[0].allow = vec!["127.0.0.1/32".parse().expect("network")];
    let relay = Running::start(config);
    relay.send(&[&b""[..], b"m v=1 1\n"]);
    let stranger = UdpSocket::bind("127.0.0.2:0").expect("bind");
    stranger.send_to(b"m v=2 2\n", relay.target).expect("send");
    // The largest payload that IPv4 carries, of whole lines.
    let line = format!("m,host=h v=\"{}\" 3\n", "x".repeat(65_507 - 16));
    assert_eq!(line.len(), 65_507);
    relay.send(&[line]);
    relay.wait_delivered("a", 2);
    let receive = relay.status().receive[0].clone();
    assert_eq!((receive.datagrams, receive.empty, receive.denied, receive.truncated), (4, 1, 1, 0));
    assert!(!backend.text().contains("m v=2"));
}

#[test]
fn what_the_kernel_drops_is_counted_to_the_datagram() {
    let store = Arc::new(Store::default());
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let any = "127.0.0.1:0".parse().expect("address");
    let sink = runtime.block_on(loadgen::sink::Sink::start(any, Arc::clone(&store))).expect("sink");
    let mut config = config(&[format!("http://{}", sink.address())]);
    config.udp[0].receive_buffer = ByteSize::kib(4);
    let relay = Running::start(config);
    let plan = loadgen::send::Plan {
        target: relay.target,
        hosts: 20,
        first_host: 0,
        shape: loadgen::workload::Shape::default(),
        pace: loadgen::send::Pace::Max,
        duration: std::time::Duration::from_millis(300),
        payload: None,
    };
    let progress = loadgen::send::Progress::default();
    // However the machine divides its time, it overflows in the end.
    wait_for("the receive buffer to overflow", || {
        loadgen::send::send(&plan, &progress).expect("send");
        (relay.status().receive[0].kernel_dropped > 0).then_some(())
    });
    let sent = progress.sent();
    let status = wait_for("everything to be counted", || {
        let status = relay.status();
        let receive = &status.receive[0];
        (receive.datagrams + receive.kernel_dropped == sent.datagrams && status.backends[0].pending_lines == 0)
            .then_some(status)
    });
    // Each round of sending begins with the same lines.
    assert_eq!(store.ledger.counts().lines, status.accepted_lines);
    assert_eq!(store.ledger.counts().altered, 0);
}

#[test]
fn ipv6_ipv4_and_several_listeners_and_workers_work_side_by_side() {
    let backend = Scripted::accepting();
    let mut config = config(&[backend.url()]);
    config.udp[0].listen = "[::]:0".parse().expect("address");
    config.udp[0].workers = 3;
    let other = Udp {
        listen: "[::1]:0".parse().expect("address"),
        database: "other".into(),
        retention_policy: "two weeks".into(),
        precision: Precision::Seconds,
        ..Udp::default()
    };
    config.udp.push(other);
    let relay = Running::start(config);
    let listeners = &relay.relay.as_ref().expect("running").view().listeners;
    let (both, six) = (listeners[0].address().port(), listeners[1].address().port());
    for (from, to) in [("127.0.0.1:0", format!("127.0.0.1:{both}")), ("[::1]:0", format!("[::1]:{both}"))] {
        for n in 0..50 {
            let socket = UdpSocket::bind(from).expect("bind");
            socket.send_to(format!("m v={n} 1").as_bytes(), &to).expect("send");
        }
    }
    let socket = UdpSocket::bind("[::1]:0").expect("bind");
    socket.send_to(b"other v=1 5", format!("[::1]:{six}")).expect("send");
    relay.wait_delivered("a", 101);
    let to_other: Vec<_> = backend.requests().into_iter().filter(|one| one.text().contains("other")).collect();
    assert_eq!(to_other.len(), 1);
    assert_eq!(to_other[0].uri.to_string(), "/write?db=other&rp=two%20weeks&precision=s");
    assert_eq!(to_other[0].text(), "other v=1 5\n");
}

#[test]
fn the_admin_pages_show_the_same_figures() {
    let backend = Scripted::accepting();
    let relay = Running::start(config(&[backend.url()]));
    assert_eq!(relay.get("/health").0, 200);
    assert_eq!(relay.get("/ready").0, 200);
    assert_eq!(relay.get("/nothing").0, 404);
    relay.send(&["m v=1 1\nbad\nm v=2 2"]);
    relay.wait_delivered("a", 2);
    let (code, body) = relay.get("/api/status");
    let json: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(code, 200);
    assert_eq!(json["accepted_lines"], 2);
    assert_eq!(json["backends"][0]["delivered_lines"], 2);
    assert_eq!(json["receive"][0]["refused"]["missing_field"], 1);
    assert_eq!(json["journal"]["durability"], "written");
    let (code, metrics) = relay.get("/metrics");
    assert_eq!(code, 200);
    for expected in [
        "# TYPE twinflux_accepted_lines_total counter",
        "twinflux_accepted_lines_total 2",
        "twinflux_delivered_lines_total{backend=\"a\"} 2",
        "twinflux_pending_lines{backend=\"a\"} 0",
        "reason=\"missing_field\"} 1",
        "twinflux_backend_state{backend=\"a\",state=\"up\"} 1",
        "twinflux_dropped_lines_total{backend=\"a\",reason=\"memory_full\"} 0",
        "twinflux_journal_state{state=\"ok\"} 1",
        "twinflux_journal_gaps 0",
    ] {
        assert!(metrics.contains(expected), "{expected} is not in:\n{metrics}");
    }
    let request = "GET /metrics HTTP/1.0\r\nHost: x\r\nAccept: application/openmetrics-text\r\n\r\n";
    let open = crate::support::http(relay.admin, request).1;
    assert!(open.contains("# TYPE twinflux_accepted_lines counter") && open.ends_with("# EOF\n"), "{open}");
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with("twinflux_"), "{line}");
    }
}
