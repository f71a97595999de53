//! Who is let in, by address family and listener; and that nobody locks others out of the admin
//! page.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use bytesize::ByteSize;
use socket2::{Domain, Socket, Type};
use twinflux::config::Tcp;
use twinflux::journal::Durability;

use crate::support::{Running, Scripted, config, wait_for};

/// Sends a line from this address, as a datagram and on a connection, to the listener's port at the
/// same address family; tells for each whether it was let in.
fn is_let_in(relay: &Running, from: IpAddr) -> [bool; 2] {
    let ports = relay.relay.as_ref().expect("running").view().listeners.iter().map(|one| one.address().port());
    let ports: Vec<u16> = ports.collect();
    let host: IpAddr = if from.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
    let figures = |place: usize| {
        let receive = relay.status().receive[place].clone();
        (receive.lines, receive.denied)
    };
    let before = [figures(0), figures(1)];
    let socket = UdpSocket::bind((from, 0)).expect("bind");
    socket.send_to(b"m v=1 1\n", (host, ports[0])).expect("send");
    let socket = Socket::new(Domain::for_address((from, 0).into()), Type::STREAM, None).expect("socket");
    socket.bind(&SocketAddr::new(from, 0).into()).expect("bind");
    socket.connect(&SocketAddr::new(host, ports[1]).into()).expect("connect");
    // One that is turned away may be told so before.
    drop(TcpStream::from(socket).write_all(b"m v=1 1\n"));
    [0, 1].map(|place| {
        let (lines, denied) = before[place];
        wait_for("the line, or its refusal", || match figures(place) {
            now if now == (lines + 1, denied) => Some(true),
            now if now == (lines, denied + 1) => Some(false),
            now => {
                assert_eq!(now, before[place]);
                None
            }
        })
    })
}

#[test]
fn friends_are_let_in_and_strangers_are_not_in_both_families() {
    for (listen, allow, senders) in [
        ("127.0.0.1:0", &["127.0.0.2/32"][..], &[("127.0.0.2", true), ("127.0.0.1", false)][..]),
        ("[::1]:0", &["::1/128"], &[("::1", true)]),
        ("[::1]:0", &["2001:db8::/32", "0.0.0.0/0"], &[("::1", false)]),
        // IPv4 senders come to these with a mapped address.
        ("[::]:0", &["127.0.0.1/32"], &[("127.0.0.1", true), ("127.0.0.2", false), ("::1", false)]),
        ("127.0.0.1:0", &["::ffff:127.0.0.2/128"], &[("127.0.0.2", true), ("127.0.0.1", false)]),
        ("[::]:0", &["::ffff:127.0.0.0/127"], &[("127.0.0.1", true), ("127.0.0.2", false), ("::1", false)]),
        ("[::]:0", &["::1/128"], &[("::1", true), ("127.0.0.1", false)]),
        ("[::]:0", &["10.0.0.0/8", "2001:db8::/32"], &[("127.0.0.1", false), ("::1", false)]),
        ("[::]:0", &["127.0.0.0/8", "::1/128"], &[("127.0.0.1", true), ("127.0.0.2", true), ("::1", true)]),
        ("[::]:0", &[], &[("127.0.0.1", true), ("::1", true)]),
    ] {
        let backend = Scripted::accepting();
        let mut config = config(&[backend.url()]);
        config.udp[0].listen = listen.parse().expect("an address");
        config.udp[0].allow = allow.iter().map(|network| network.parse().expect("a network")).collect();
        let (listen, allow) = (config.udp[0].listen, config.udp[0].allow.clone());
        config.tcp.push(Tcp { listen, allow: allow.clone(), ..Tcp::default() });
        let relay = Running::start(config);
        for (from, expected) in senders {
            let from: IpAddr = from.parse().expect("an address");
            assert_eq!(is_let_in(&relay, from), [*expected; 2], "{listen} {allow:?}: {from}, UDP and TCP");
        }
        let let_in = 2 * senders.iter().filter(|(_, expected)| *expected).count() as u64;
        assert_eq!(relay.status().accepted_lines, let_in);
    }
}

#[test]
fn idle_connections_to_the_admin_page_lock_nobody_out() {
    let backend = Scripted::accepting();
    let relay = Running::start(config(&[backend.url()]));
    // More than are served at a time; some say nothing, some begin to.
    let mut idle: Vec<_> = (0..40).map(|_| TcpStream::connect(relay.admin).expect("connect")).collect();
    for stream in idle.iter_mut().step_by(2) {
        stream.write_all(b"GET /health HTTP/1.1\r\n").expect("send");
    }
    assert_eq!(relay.get("/health").0, 200);
    relay.send(&["m v=1 1\n"]);
    relay.wait_delivered("a", 1);
    drop(idle);
}

#[test]
fn a_relay_is_ready_until_it_cannot_keep_what_it_is_given() {
    let mut config = config(&["http://127.0.0.1:1".to_owned()]);
    config.journal.durability = Durability::Memory;
    config.journal.memory = ByteSize::mib(4);
    let relay = Running::start(config);
    relay.send(&["m v=1 1\n"]);
    relay.wait_state("a", "down");
    assert_eq!(relay.get("/ready"), (200, "ready\n".to_owned()), "a backend that is down is no reason");
    let line = format!("m text=\"{}\" 1\n", "x".repeat(60_000));
    let told = wait_for("a full journal", || {
        relay.send(&[line.as_str(); 20]);
        let (status, told) = relay.get("/ready");
        (status != 200).then_some((status, told))
    });
    assert_eq!(told, (503, "the journal is full, and no backend makes room\n".to_owned()));
    assert_eq!(relay.get("/health").0, 200);
}
