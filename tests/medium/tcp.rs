//! Connections: how many there are, what ends them, who is on them, and what is counted.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use twinflux::config::{Config, Tcp};
use twinflux::observe::status::{Receive, Status};

use crate::support::{LIMIT, Running, Scripted, config, no_content, wait_for};

/// A relay with a TCP listener beside its UDP listener.
pub(crate) fn with_tcp(backend: &Scripted, tcp: Tcp) -> Config {
    let mut config = config(&[backend.url()]);
    config.tcp.push(Tcp { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..tcp });
    config
}

pub(crate) fn target(relay: &Running) -> SocketAddr {
    relay.relay.as_ref().expect("running").view().listeners[1].address()
}

pub(crate) fn receive(relay: &Running) -> Receive {
    relay.status().receive[1].clone()
}

pub(crate) fn connect(relay: &Running) -> TcpStream {
    TcpStream::connect(target(relay)).expect("connect")
}

/// Waits until all connections are ended, and everything is delivered.
pub(crate) fn acked(relay: &Running, connections: u64) -> Status {
    wait_for("the connections to end", || {
        let status = relay.status();
        let receive = &status.receive[1];
        let is_done = receive.connections == connections && receive.open_connections == 0;
        (is_done && status.backends[0].pending_lines == 0).then_some(status)
    })
}

pub(crate) fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
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
    let figures = |receive: &Receive| {
        let Receive { connections, open_connections, limited, displaced, denied, .. } = *receive;
        [connections, open_connections, limited, displaced, denied]
    };
    wait_for("the limits to be met", || (figures(&receive(&relay)) == [6, 5, 1, 1, 1]).then_some(()));
    for (place, mut socket) in kept.iter().enumerate() {
        // The first one gave way: its source had most, and nothing had come on it.
        if [0, 3, 7].contains(&place) {
            assert_eq!(socket.read(&mut [0]).expect("the end"), 0, "{place}");
        } else {
            socket.set_nonblocking(true).expect("nonblocking");
            assert_eq!(socket.read(&mut [0]).expect_err("open").kind(), std::io::ErrorKind::WouldBlock, "{place}");
        }
    }
    // Room that is made is room for others.
    drop(kept);
    acked(&relay, 6);
    from(1).write_all(b"a.b 1 1\n").expect("send");
    let status = acked(&relay, 7);
    assert_eq!(status.accepted_lines, 1);
    assert_eq!(status.receive[1].connections, 7);
    wait_for("the sources", || {
        let sources = relay.status().sources.top;
        let sources: Vec<_> = sources.iter().map(|source| (source.address.as_str(), source.connections)).collect();
        (sources == [("127.0.0.1", 4), ("127.0.0.2", 3)]).then_some(())
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
    let status = acked(&relay, 3);
    assert_eq!((status.receive[1].timed_out, status.receive[1].refused["truncated"]), (2, 2));
    assert_eq!(status.accepted_lines, 11);
}

#[test]
fn a_connection_is_idle_from_its_last_byte_on() {
    let backend = Scripted::accepting();
    let idle_timeout = Duration::from_secs(1);
    let relay = Running::start(with_tcp(&backend, Tcp { idle_timeout, ..Tcp::default() }));
    // Where the machine leaves this test alone for too long, the connection is idle indeed: it is
    // tried again.
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
    let status = acked(&relay, 301);
    assert_eq!((backend.text().as_str(), status.receive[1].refused["truncated"]), ("a.b value=1 1000000000\n", 300));
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
    // Ten times the journal's memory, as fast as it goes: what the disk has not taken yet stays in
    // the senders' sockets.
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
    let status = acked(&relay, 20);
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
    acked(&relay, 1);
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

#[test]
fn a_proxy_names_the_host_of_a_connection() {
    let backend = Scripted::accepting();
    let (trusted_proxies, allow) =
        (vec!["127.0.0.0/8".parse().expect("network")], vec!["192.0.2.0/24".parse().expect("network")]);
    let relay =
        Running::start(with_tcp(&backend, Tcp { trusted_proxies, proxy_protocol: true, allow, ..Tcp::default() }));
    let header = |command: u8, source: [u8; 4]| {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        header.extend_from_slice(&[command, 0x11, 0, 12]);
        header.extend_from_slice(&source);
        header.extend_from_slice(&[127, 0, 0, 1, 0, 1, 0, 2]);
        header
    };
    let sends = [
        (header(0x21, [192, 0, 2, 8]), "taken v=1 1"),
        (header(0x21, [198, 51, 100, 1]), "stranger v=1 1"),
        // It asks for itself, and is not in `allow`.
        (header(0x20, [0, 0, 0, 0]), "proxy v=1 1"),
        (Vec::new(), "no_header,host=a v=1 1"),
    ];
    for (header, line) in &sends {
        // One byte first: a header may come in pieces.
        let bytes = [header, line.as_bytes(), b"\n"].concat();
        let mut stream = connect(&relay);
        stream.write_all(&bytes[..1]).expect("send");
        std::thread::sleep(Duration::from_millis(20));
        drop(stream.write_all(&bytes[1..]));
    }
    // It looks whether anybody listens.
    drop(connect(&relay));
    let status = acked(&relay, 5);
    let receive = &status.receive[1];
    assert_eq!((status.accepted_lines, receive.denied), (1, 2), "{receive:?}");
    assert_eq!(backend.text(), "taken v=1 1\n");
    wait_for("the source", || relay.status().sources.top.iter().any(|one| one.address == "192.0.2.8").then_some(()));
}
