//! Streams: what arrives however it is cut, what is counted, what ends a connection.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use twinflux::control::config::{Config, DefaultTags, Format, Mapping, NamedMapping, Tcp};
use twinflux::control::status::{Receive, Status};

use crate::captures;
use crate::support::{LIMIT, Running, Scripted, config, free_address, no_content, wait_for};

/// A relay with a TCP listener beside its UDP listener.
fn with_tcp(backend: &Scripted, tcp: Tcp) -> Config {
    let mut config = config(&[backend.url()]);
    config.tcp.push(Tcp { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..tcp });
    config
}

fn target(relay: &Running) -> SocketAddr {
    relay.relay.as_ref().expect("running").view().listeners[1].address()
}

fn receive(relay: &Running) -> Receive {
    relay.status().receive[1].clone()
}

fn connect(relay: &Running) -> TcpStream {
    TcpStream::connect(target(relay)).expect("connect")
}

/// Waits until all connections are ended, and everything is delivered.
fn settled(relay: &Running, connections: u64) -> Status {
    wait_for("the connections to end", || {
        let status = relay.status();
        let receive = &status.receive[1];
        let is_done = receive.connections == connections && receive.open_connections == 0;
        (is_done && status.backends[0].pending_lines == 0).then_some(status)
    })
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn every_format_is_told_apart_by_its_connections_first_line() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp::default()));
    for text in [
        "# a comment\n\ncpu,host=a usage=1.5 1\ncpu,host=a usage=2.5 2\r\n",
        "a.b;role=web 1.5 1\na.b 2.5 2\r\n",
        "put a.c 1 1.5 host=h\nput a.c 2001 2.5 host=h \n",
        "{\"prefix\":\"netdata\",\"hostname\":\"h\",\"chart_name\":\"x.y\",\"name\":\"z\",\"value\":1,\"timestamp\": 1}\n",
    ] {
        connect(&relay).write_all(text.as_bytes()).expect("send");
    }
    let status = settled(&relay, 4);
    let expected = "cpu,host=a usage=1.5 1\ncpu,host=a usage=2.5 2\na.b,role=web value=1.5 1000000000\na.b value=2.5 2000000000\n\
                    a.c,host=h value=1.5 1000000000\na.c,host=h value=2.5 2001000000000\nnetdata.x.y.z,host=h value=1 1000000000\n";
    assert_eq!(sorted(&backend.text()), sorted(expected));
    assert_eq!((status.receive[1].lines, status.receive[1].converted, status.accepted_lines), (7, 5, 7));
    assert_eq!(status.receive[1].refused.values().sum::<u64>(), 0);
}

#[test]
fn tags_that_are_none_cost_no_value_and_are_counted() {
    let backend = Scripted::accepting();
    let mapping = Mapping::Templates(vec!["a.* .measurement*.field".to_owned()]);
    let tags = DefaultTags::List(vec!["dc=eu".to_owned()]);
    let relay = Running::start(with_tcp(&backend, Tcp { mapping, tags, separator: "_".to_owned(), ..Tcp::default() }));
    for text in ["put disk 1 5 host=h nico\nput disk 2 5 =x host=h\n", "a.b.c.d;t 1.5 1\na.b.c;=1;dc=us 2.5 2\n"] {
        connect(&relay).write_all(text.as_bytes()).expect("send");
    }
    let status = settled(&relay, 2);
    let expected = "disk,host=h,dc=eu value=5 1000000000\ndisk,host=h,dc=eu value=5 2000000000\n\
                    b_c,dc=eu d=1.5 1000000000\nb,dc=us c=2.5 2000000000\n";
    assert_eq!(sorted(&backend.text()), sorted(expected));
    assert_eq!((status.receive[1].converted, status.receive[1].ignored_tags), (4, 4));
    assert_eq!((status.receive[0].ignored_tags, status.receive[1].refused.values().sum::<u64>()), (0, 0));
    assert!(status.to_text().contains("4 tags had no key or no ="), "{}", status.to_text());
    let metrics = relay.get("/metrics").1;
    assert!(
        metrics
            .lines()
            .any(|line| line.starts_with("twinflux_ignored_tags_total{kind=\"tcp\"") && line.ends_with(" 4"))
    );
}

#[test]
fn captured_streams_arrive_whole_however_they_are_cut() {
    let backend = Scripted::accepting();
    let mapping = Mapping::Named(NamedMapping::Netdata);
    let relay = Running::start(with_tcp(&backend, Tcp { mapping, netdata_host_parts: 2, ..Tcp::default() }));
    let stream = captures::frames("netdata-graphite-tcp-all").concat();
    let stream = &stream[..200_000];
    let whole = stream.iter().rposition(|byte| *byte == b'\n').expect("lines") + 1;
    let lines = stream.iter().filter(|byte| **byte == b'\n').count() as u64;
    for (connection, size) in (1_u64..).zip([1 << 20, 65_536, 10_007, 997]) {
        let mut socket = connect(&relay);
        socket.set_nodelay(true).expect("no delay");
        for piece in stream.chunks(size) {
            socket.write_all(piece).expect("send");
        }
        drop(socket);
        let receive = settled(&relay, connection).receive[1].clone();
        // The end without a line feed is counted, and never read.
        assert!(whole < stream.len());
        assert_eq!((receive.converted, receive.refused["truncated"]), (connection * lines, connection));
        assert_eq!(receive.bytes, connection * stream.len() as u64);
        assert_eq!(receive.refused.values().sum::<u64>(), connection);
    }
    // However it was cut, each connection brought the same values: a field more or less in a line does not matter.
    let mut values: Vec<String> = Vec::new();
    for line in backend.text().lines() {
        let (series, rest) = line.split_once(' ').expect("a series");
        let (fields, time) = rest.split_once(' ').expect("a time");
        values.extend(fields.split(',').map(|field| format!("{series} {field} {time}")));
    }
    assert_eq!(values.len() as u64, 4 * lines);
    values.sort_unstable();
    assert!(values.chunks(4).all(|four| four.iter().all(|value| *value == four[0])));
}

#[test]
fn too_long_lines_are_skipped_and_counted() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp::default()));
    let mut socket = connect(&relay);
    socket.write_all(b"a.b 1 1\n").expect("send");
    socket.write_all(&vec![b'x'; 1 << 20]).expect("send");
    socket.write_all(b"\na.b 2 2\n").expect("send");
    drop(socket);
    let status = settled(&relay, 1);
    assert_eq!(backend.text(), "a.b value=1 1000000000\na.b value=2 2000000000\n");
    assert_eq!((status.receive[1].refused["too_long"], status.receive[1].lines), (1, 3));
}

#[test]
fn longer_lines_are_taken_where_the_listener_says_so() {
    let backend = Scripted::accepting();
    let tcp = Tcp { max_line: ByteSize::mib(1), ..Tcp::default() };
    let mut relay = Running::start(with_tcp(&backend, tcp));
    let line = |length: usize| format!("log,host=a message=\"{}\" 7\n", "x".repeat(length));
    let text = line(70_000) + &line(1) + &line((1 << 20) - 24) + &line(1 << 20) + &line(2);
    connect(&relay).write_all(text.as_bytes()).expect("send");
    let status = settled(&relay, 1);
    assert_eq!((status.receive[1].refused["too_long"], status.accepted_lines), (1, 4));
    assert!(sorted(&backend.text()) == sorted(&text.replace(&line(1 << 20), "")));
    // A record of this size is written to the disk, and found there.
    let address = free_address();
    let mut config = with_tcp(&backend, Tcp { max_line: ByteSize::mib(1), ..Tcp::default() });
    config.backend[0].url = format!("http://{address}").parse().expect("a URL");
    config.data_dir = relay.folder.path().join("other");
    let mut failing = Running::start_in(config);
    connect(&failing).write_all(text.as_bytes()).expect("send");
    wait_for("the lines", || (failing.status().accepted_lines == 4).then_some(()));
    failing.stop();
    relay.stop();
    let backend = Scripted::start_at(address, |_, _| no_content());
    let mut config = with_tcp(&backend, Tcp::default());
    config.data_dir = relay.folder.path().join("other");
    let again = Running::start_in(config);
    wait_for("the rest", || (again.backend("a").pending_lines == 0).then_some(()));
    assert_eq!((again.backend("a").recovered_lines, again.backend("a").delivered_lines), (4, 4));
}

#[test]
fn strings_with_line_feeds_arrive_whole_however_they_are_cut() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp::default()));
    let text = "docker_log,host=a message=\"panic: boom\ngoroutine id=1\nmain.go line=42\n\" 7\ncpu v=1 7\n\
                log,host=a message=\"a.b 1 7\n\ncpu v=2 7\n\\\"\n\",code=1i 7\n";
    for size in [1, 7, text.len()] {
        let mut socket = connect(&relay);
        socket.set_nodelay(true).expect("option");
        text.as_bytes().chunks(size).for_each(|piece| socket.write_all(piece).expect("send"));
    }
    let status = settled(&relay, 3);
    assert_eq!(backend.text().matches(text).count(), 3);
    assert_eq!((status.accepted_lines, status.receive[1].lines), (9, 9));
}

#[test]
fn a_quote_that_nobody_closes_costs_its_line_and_holds_nothing_back() {
    let backend = Scripted::accepting();
    let tcp = Tcp { line_timeout: Duration::from_millis(300), ..Tcp::default() };
    let relay = Running::start(with_tcp(&backend, tcp));
    let mut socket = connect(&relay);
    socket.write_all(b"log,host=a message=\"never closed\ncpu v=1 7\ncpu v=2 7\n").expect("send");
    relay.wait_delivered("a", 2);
    assert_eq!((receive(&relay).refused["unterminated_string"], receive(&relay).open_connections), (1, 1));
    // At the connection's end, and at the longest line, nothing waits either.
    socket.write_all(b"log,host=a message=\"never closed\ncpu v=3 7\n").expect("send");
    drop(socket);
    let long: String = (0..10_000).map(|n| format!("cpu v={n} 8\n")).collect();
    connect(&relay).write_all(format!("log message=\"never closed\n{long}").as_bytes()).expect("send");
    let status = settled(&relay, 2);
    let refused = &status.receive[1].refused;
    assert_eq!((refused["unterminated_string"], refused["too_long"], status.accepted_lines), (3, 0, 10_003));
    assert!(backend.text().ends_with("cpu v=9999 8\n"));
}

#[test]
fn a_bad_first_line_costs_no_other() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp::default()));
    let good: String = (0..20_000).map(|n| format!("a.metric {n} 7\n")).collect();
    for bad in ["metric;tag1=aaa1;tag2=bb b2 2", "{", "put a=b", "cpu,dc=a.b 1.5", "version"] {
        let mut socket = connect(&relay);
        socket.write_all(format!("{bad}\n{good}").as_bytes()).expect("send");
        // Whoever closes without reading the answer resets the connection.
        socket.shutdown(Shutdown::Write).expect("shut down");
        socket.read_to_end(&mut Vec::new()).expect("read");
    }
    let status = settled(&relay, 5);
    assert_eq!((status.accepted_lines, status.receive[1].refused.values().sum::<u64>()), (100_000, 4));
    // A datagram's, too.
    relay.send(&["cpu,dc=a.b 1.5\ncpu,dc=a v=1 7\na.b 1 7", "\u{feff}a.b 1 7"]);
    relay.wait_delivered("a", 100_003);
    assert!(!backend.text().contains("cpu\\,") && !backend.text().contains('\u{feff}'));
}

#[test]
fn a_version_is_answered_and_http_is_turned_away() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp::default()));
    let mut socket = connect(&relay);
    socket.write_all(b"version\n").expect("send");
    socket.shutdown(Shutdown::Write).expect("shutdown");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    assert_eq!(answer, format!("twinflux {}\n", env!("CARGO_PKG_VERSION")));

    // Netdata's HTTP variants, by a wrong setting: their headers look like lines of Graphite's.
    for name in ["netdata-graphite-http-tcp", "netdata-opentsdb-http-tcp", "netdata-json-http-tcp"] {
        let mut socket = connect(&relay);
        // The relay ends the connection early.
        drop(socket.write_all(&captures::frames(name).concat()));
    }
    // A TLS client's first record, which holds no line feed.
    let mut tls = connect(&relay);
    tls.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").expect("send");
    assert_eq!(tls.read(&mut [0]).unwrap_or(0), 0, "it is turned away at once");
    let status = settled(&relay, 5);
    assert_eq!((status.receive[1].refused["wrong_format"], status.receive[1].lines, status.accepted_lines), (4, 4, 0));
}

#[test]
fn connections_are_limited_and_strangers_are_turned_away() {
    let backend = Scripted::accepting();
    let allow = vec!["127.0.0.1/32".parse().expect("network"), "127.0.0.2/32".parse().expect("network")];
    let tcp = Tcp { max_connections: 5, max_connections_per_source: 3, allow, ..Tcp::default() };
    let relay = Running::start(with_tcp(&backend, tcp));
    let from = |host: u8| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, host], 0)).into()).expect("bind");
        socket.connect(&target(&relay).into()).expect("connect");
        TcpStream::from(socket)
    };
    let kept: Vec<_> = [1, 1, 1, 1, 2, 2, 2, 3].into_iter().map(from).collect();
    let figures = |receive: &Receive| [receive.connections, receive.open_connections, receive.limited, receive.denied];
    wait_for("the limits to be met", || (figures(&receive(&relay)) == [5, 5, 2, 1]).then_some(()));
    for (place, mut socket) in kept.iter().enumerate() {
        if [3, 6, 7].contains(&place) {
            assert_eq!(socket.read(&mut [0]).expect("the end"), 0, "{place}");
        } else {
            socket.set_nonblocking(true).expect("nonblocking");
            assert_eq!(socket.read(&mut [0]).expect_err("open").kind(), std::io::ErrorKind::WouldBlock, "{place}");
        }
    }
    // Room that is made is room for others.
    drop(kept);
    settled(&relay, 5);
    from(1).write_all(b"a.b 1 1\n").expect("send");
    let status = settled(&relay, 6);
    assert_eq!(status.accepted_lines, 1);
    assert_eq!(status.receive[1].connections, 6);
    wait_for("the sources", || {
        let sources = relay.status().sources.top;
        let sources: Vec<_> = sources.iter().map(|source| (source.address.as_str(), source.connections)).collect();
        (sources == [("127.0.0.1", 4), ("127.0.0.2", 2)]).then_some(())
    });
}

#[test]
fn endless_lines_are_ended_and_whole_ones_keep_a_connection() {
    let backend = Scripted::accepting();
    let (idle_timeout, line_timeout) = (Duration::from_secs(3600), Duration::from_millis(100));
    let relay = Running::start(with_tcp(&backend, Tcp { idle_timeout, line_timeout, ..Tcp::default() }));
    let mut slow = connect(&relay);
    slow.write_all(b"a.b 2 2\na.b 3").expect("send");
    assert_eq!(slow.read(&mut [0]).expect("the end"), 0);
    // Whole lines keep a connection for longer than one of them may take.
    let mut lively = connect(&relay);
    for _ in 0..10 {
        lively.write_all(b"a.b 4 4\n").expect("send");
        std::thread::sleep(line_timeout / 2);
    }
    // One that goes on sending is ended all the same, for its line has no end.
    let mut endless = connect(&relay);
    while endless.write_all(b"x").is_ok() {
        std::thread::sleep(Duration::from_millis(5));
    }
    lively.set_nonblocking(true).expect("nonblocking");
    assert_eq!(lively.read(&mut [0]).expect_err("open").kind(), std::io::ErrorKind::WouldBlock);
    drop(lively);
    let status = settled(&relay, 3);
    assert_eq!((status.receive[1].timed_out, status.receive[1].refused["truncated"]), (2, 2));
    assert_eq!(status.accepted_lines, 11);
}

#[test]
fn a_connection_is_idle_from_its_last_byte_on() {
    let backend = Scripted::accepting();
    let idle_timeout = Duration::from_secs(1);
    let relay = Running::start(with_tcp(&backend, Tcp { idle_timeout, ..Tcp::default() }));
    // Where the machine leaves this test alone for too long, the connection is idle indeed: it is tried again.
    let mut idle = wait_for("a connection that is kept", || {
        let (mut lively, mut is_late) = (connect(&relay), false);
        for _ in 0..20 {
            let sent = Instant::now();
            let is_open = lively.write_all(b"a.b 4 4\n").is_ok();
            std::thread::sleep(idle_timeout / 10);
            is_late = is_late || sent.elapsed() > idle_timeout / 2;
            assert!(is_open || is_late, "it was ended within its time");
        }
        (!is_late).then_some(lively)
    });
    assert_eq!(idle.read(&mut [0]).expect("the end"), 0);
    wait_for("the end to be counted", || (receive(&relay).timed_out > 0).then_some(()));
}

#[test]
fn unfinished_lines_of_many_connections_are_bounded_together() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp::default()));
    // More than the bound for all of them, and each more than its share.
    let half = vec![b'x'; 64_000];
    let mut modest = connect(&relay);
    modest.write_all(b"a.b 1").expect("send");
    let sockets: Vec<_> = (0..300)
        .map(|_| {
            let mut socket = connect(&relay);
            // One that is ended early may say so.
            drop(socket.write_all(&half));
            socket
        })
        .collect();
    let ended = wait_for("connections to be ended", || {
        let receive = receive(&relay);
        let has_all = receive.connections == 301 && receive.bytes >= 16 << 20;
        (has_all && receive.limited > 0 && receive.refused["truncated"] == receive.limited).then_some(receive.limited)
    });
    assert!(ended < 200, "those with room stay: {ended} were ended");
    // One with less than its share is none of them.
    modest.write_all(b" 1\n").expect("send");
    drop((modest, sockets));
    let status = settled(&relay, 301);
    assert_eq!((backend.text().as_str(), status.receive[1].refused["truncated"]), ("a.b value=1 1000000000\n", 300));
}

#[test]
fn another_formats_lines_are_refused_by_their_kind_and_the_connection_goes_on() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp { format: Format::Graphite, ..Tcp::default() }));
    connect(&relay).write_all(b"cpu,host=a usage=1 1\na.b nan 1\na.b 1 1\n{}\n").expect("send");
    let status = settled(&relay, 1);
    let refused = &status.receive[1].refused;
    assert_eq!((refused["wrong_format"], refused["not_a_number"], status.accepted_lines), (2, 1, 1));
}

#[test]
fn broken_json_is_refused_and_null_is_skipped() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp::default()));
    let line = |value: &str, unit: &str, name: &str| {
        format!(
            "{{\"prefix\":\"p\",\"chart_name\":\"c\",\"units\":\"{unit}\",\"name\":\"{name}\",\"value\":{value},\"timestamp\":1}}\n"
        )
    };
    // A quote that is not escaped matters where it is used.
    let text = [line("1", "s", "d"), line("2", "s", "15\" disk"), line("null", "s", "d"), line("3", "15\" disks", "d")]
        .concat();
    connect(&relay).write_all(text.as_bytes()).expect("send");
    let receive = settled(&relay, 1).receive[1].clone();
    assert_eq!((receive.refused["invalid_json"], receive.skipped, receive.converted), (1, 1, 2));
    assert_eq!(backend.text(), "p.c.d value=1 1000000000\np.c.d value=3 1000000000\n");
}

#[test]
fn a_stop_takes_what_has_come_and_waits_until_it_is_delivered() {
    // It takes its time, so that whoever does not wait for it has lines left.
    let backend = Scripted::start(|_, _| {
        std::thread::sleep(Duration::from_millis(500));
        no_content()
    });
    let mut config = with_tcp(&backend, Tcp::default());
    config.shutdown_timeout = LIMIT;
    let mut relay = Running::start(config);
    let sockets: Vec<_> = (0..50)
        .map(|host| {
            let mut socket = connect(&relay);
            let lines: String = (0..200).map(|n| format!("h{host}.m{n} 1 1\n")).collect();
            socket.write_all((lines + "unfinished").as_bytes()).expect("send");
            socket
        })
        .collect();
    let last = relay.stop();
    assert_eq!((last.accepted_lines, last.backends[0].delivered_lines), (10_000, 10_000));
    assert_eq!((last.receive[1].refused["truncated"], last.receive[1].open_connections), (50, 0));
    assert_eq!(backend.text().lines().count(), 10_000);
    drop(sockets);
}

#[test]
fn a_burst_waits_for_the_disk_and_nothing_is_dropped() {
    // Ten times the journal's memory, as fast as it goes: what the disk has not taken yet stays in the senders' sockets.
    let backend = Scripted::start(|_, _| {
        std::thread::sleep(Duration::from_millis(20));
        no_content()
    });
    let mut config = with_tcp(&backend, Tcp::default());
    config.journal.memory = ByteSize::mib(4);
    let relay = Running::start(config);
    let lines: String = (0..40_000).map(|n| format!("a.very.long.name.of.a.metric.number.{n} {n} 1\n")).collect();
    let senders: Vec<_> = (0..20)
        .map(|_| {
            let (target, lines) = (target(&relay), lines.clone());
            std::thread::spawn(move || TcpStream::connect(target).expect("connect").write_all(lines.as_bytes()))
        })
        .collect();
    for sender in senders {
        sender.join().expect("no panic").expect("sent");
    }
    let status = settled(&relay, 20);
    assert_eq!((status.accepted_lines, status.backends[0].delivered_lines), (800_000, 800_000));
    assert_eq!(status.backends[0].dropped(), 0, "{:?}", status.backends[0].dropped_lines);
}

#[test]
fn a_silent_source_is_marked_and_those_beyond_a_thousand_are_summed() {
    let backend = Scripted::accepting();
    let relay = Running::start(config(&[backend.url()]));
    let host = UdpSocket::bind("127.9.9.9:0").expect("bind");
    for burst in 0..4 {
        if burst > 0 {
            std::thread::sleep(Duration::from_millis(600));
        }
        for _ in 0..2 {
            host.send_to(b"cpu,host=web-01 usage=1 1\nbroken", relay.target).expect("send");
        }
    }
    for other in 0..1100_u32 {
        let socket = UdpSocket::bind((Ipv4Addr::from(0x7f02_0001 + other), 0)).expect("bind");
        socket.send_to(b"cpu usage=1 1", relay.target).expect("send");
        if other % 100 == 0 {
            socket.send_to(b"", relay.target).expect("send");
            let sent = 8 + u64::from(other) + 1 + u64::from(other / 100) + 1;
            wait_for("the datagrams to be taken", || (relay.status().receive[0].datagrams == sent).then_some(()));
        }
    }
    let status = wait_for("the host to be silent", || {
        let status = relay.status();
        (status.sources.silent == 1 && status.sources.known == 1101).then_some(status)
    });
    let first = &status.sources.top[0];
    assert_eq!((first.host.as_str(), first.silent, first.lines, first.refused), ("web-01", true, 16, 8));
    assert!(first.interval_seconds.is_some_and(|interval| interval >= 0.9), "{first:?}");
    let rest = &status.sources.rest;
    assert_eq!((status.sources.top.len(), rest.sources, rest.lines, rest.refused), (1000, 101, 101, 0));
    let empty: u64 = status.sources.top.iter().map(|source| source.empty).sum();
    let datagrams: u64 = status.sources.top.iter().map(|source| source.datagrams).sum();
    assert_eq!((empty + rest.empty, datagrams + rest.datagrams), (11, 8 + 1100 + 11));
    assert!(status.to_text().contains("silent: web-01 (127.9.9.9) for"), "{}", status.to_text());
    assert!(relay.get("/metrics").1.contains("\ntwinflux_silent_sources 1\n"));
}

#[test]
fn sources_are_listed_with_their_hosts_and_empty_datagrams() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp::default()));
    connect(&relay).write_all(b"netdata.web-01.system.cpu.user 1 1\nbroken\n").expect("send");
    settled(&relay, 1);
    relay.send(&["cpu,host=web-02 usage=1 1", "cpu,host=web-02 usage", ""]);
    for _ in 0..2 {
        relay.send(&[b"".as_slice(), b"", b""]);
    }
    let status = wait_for("the sources", || {
        let status = relay.status();
        let datagrams: u64 = status.sources.top.iter().map(|source| source.datagrams).sum();
        (datagrams == 9).then_some(status)
    });
    assert_eq!((status.sources.known, status.sources.silent, status.sources.top.len()), (2, 0, 2));
    let of = |kind: &str| status.sources.top.iter().find(|source| source.kind == kind).expect("a source");
    let (first, second) = (of("tcp"), of("udp"));
    assert_eq!((first.kind.as_str(), first.host.as_str(), first.lines, first.refused), ("tcp", "web-01", 2, 1));
    assert_eq!((first.connections, first.datagrams, first.address.as_str()), (1, 0, "127.0.0.1"));
    assert_eq!((second.kind.as_str(), second.host.as_str(), second.lines, second.refused), ("udp", "web-02", 2, 1));
    assert_eq!((second.datagrams, second.empty), (9, 7));
    assert_eq!(second.listen, relay.target.to_string());
    let sum: u64 = status.sources.top.iter().map(|source| source.lines).sum();
    assert_eq!(sum, status.receive.iter().map(|receive| receive.lines).sum::<u64>());
    let (_, metrics) = relay.get("/metrics");
    assert!(metrics.contains("\ntwinflux_sources 2\n") && metrics.contains("\ntwinflux_silent_sources 0\n"));
    assert!(status.to_text().contains("sources  2, 0 of them silent"));
}
