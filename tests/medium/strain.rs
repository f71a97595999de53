//! What one host does does not stop the others.
//!
//! * A sender that goes on sending, whatever it sends, leaves others their turns on its listener,
//!   timers included.
//! * Connections that nobody uses lock nobody out: they end by `first_line_timeout`, and at
//!   `max_connections` the idlest one of the greediest source gives way.
//! * Forged addresses drive no host out of the table of sources.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use twinflux::config::Tcp;

use crate::support::{LIMIT, Running, Scripted, config, wait_for};
use crate::tcp::{connect, receive, target, with_tcp};

/// A connection from this address of the loopback network.
fn connect_from(relay: &Running, host: [u8; 4]) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    socket.bind(&SocketAddr::from((host, 0)).into()).expect("bind");
    socket.connect(&target(relay).into()).expect("connect");
    TcpStream::from(socket)
}

/// Sends a line and a question behind it; returns once the question is answered, and so the line
/// taken.
fn exchange(socket: &mut TcpStream, line: &str) {
    socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
    socket.write_all(format!("{line}\nversion\n").as_bytes()).expect("send");
    let mut answer = String::new();
    BufReader::new(&*socket).read_line(&mut answer).expect("an answer");
    assert!(answer.starts_with("twinflux "), "{answer:?}");
}

/// Whether the other end has ended a connection.
fn is_ended(socket: &mut TcpStream) -> bool {
    socket.set_nonblocking(true).expect("nonblocking");
    let ended =
        socket.read(&mut [0]).map_or_else(|error| error.kind() != std::io::ErrorKind::WouldBlock, |read| read == 0);
    socket.set_nonblocking(false).expect("blocking");
    ended
}

#[test]
fn greedy_senders_leave_the_others_their_turns() {
    // Cheap to send and costly to read; cheap both ways; ordinary ones.
    for text in ["x\n", "# a comment that nobody needs\n", "m,host=greedy v=1 1\n"] {
        let backend = Scripted::accepting();
        let relay = Running::start(with_tcp(&backend, Tcp::default()));
        let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|threads| {
            for _ in 0..3 {
                let mut socket = connect(&relay);
                let (piece, done, sent) = (text.repeat((1 << 18) / text.len()), &done, &sent);
                threads.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        socket.write_all(piece.as_bytes()).expect("send");
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            wait_for("the greedy ones to be at it", || (sent.load(Ordering::Relaxed) > 10).then_some(()));
            let mut hosts: Vec<_> = (0..20).map(|_| connect(&relay)).collect();
            for round in 0..5 {
                for (number, host) in hosts.iter_mut().enumerate() {
                    exchange(host, &format!("m,host=h{number} v=2 {round}"));
                }
            }
            // What lingers in a batch is handed over in time, and the table of sources is
            // published.
            wait_for("the lines to be delivered", || {
                (backend.text().lines().filter(|line| line.starts_with("m,host=h")).count() == 100).then_some(())
            });
            wait_for("the sources", || (relay.status().sources.top.first()?.connections == 23).then_some(()));
            done.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn one_listener_leaves_another_its_turns_where_both_wait_for_room() {
    // A backend that does not answer, and a journal in memory that soon has no room: senders wait.
    let backend = Scripted::start(|_, _| {
        std::thread::sleep(Duration::from_millis(20));
        crate::support::no_content()
    });
    let mut config = with_tcp(&backend, Tcp::default());
    config.tcp.push(Tcp { listen: ([127, 0, 0, 1], 0).into(), ..Tcp::default() });
    config.journal.memory = bytesize::ByteSize::mib(4);
    let relay = Running::start(config);
    let other = relay.relay.as_ref().expect("running").view().listeners[2].address();
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for _ in 0..3 {
            let mut socket = connect(&relay);
            let (piece, done) = ("m,host=greedy v=1 1\n".repeat(1 << 13), &done);
            threads.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    socket.write_all(piece.as_bytes()).expect("send");
                }
            });
        }
        wait_for("the greedy ones to be at it", || (receive(&relay).lines > 500_000).then_some(()));
        let mut host = TcpStream::connect(other).expect("connect");
        for round in 0..20 {
            exchange(&mut host, &format!("m,host=other v=2 {round}"));
        }
        wait_for("the lines", || (backend.text().matches("host=other").count() == 20).then_some(()));
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn silent_connections_of_few_addresses_lock_nobody_out() {
    let backend = Scripted::accepting();
    let tcp = Tcp { max_connections: 40, max_connections_per_source: 10, ..Tcp::default() };
    let relay = Running::start(with_tcp(&backend, tcp));
    let mut silent: Vec<_> = (0..40).map(|n| connect_from(&relay, [127, 0, 0, 10 + n % 4])).collect();
    wait_for("the connections", || (receive(&relay).open_connections == 40).then_some(()));
    // Hosts that come later each find a place, and keep it.
    let mut hosts: Vec<_> = (0..5).map(|n| connect_from(&relay, [127, 0, 1, n])).collect();
    for (number, host) in hosts.iter_mut().enumerate() {
        exchange(host, &format!("m,host=h{number} v=1 1"));
    }
    let figures = receive(&relay);
    assert_eq!((figures.displaced, figures.limited, figures.open_connections), (5, 0, 40));
    let ended = silent.iter_mut().map(|socket| u32::from(is_ended(socket))).sum::<u32>();
    assert_eq!(ended, 5, "the idlest ones, one for each");
    assert!((0..4).all(|place| is_ended(&mut silent[place])), "each of the four had ten");
    // More of the same addresses only take each other's places.
    for n in 0..40 {
        drop(connect_from(&relay, [127, 0, 0, 10 + n % 4]));
    }
    wait_for("them to come and go", || (receive(&relay).connections + receive(&relay).limited >= 85).then_some(()));
    for (number, host) in hosts.iter_mut().enumerate() {
        exchange(host, &format!("m,host=h{number} v=1 2"));
    }
    wait_for("the lines to be counted", || (relay.status().accepted_lines == 10).then_some(()));
    let metrics = relay.get("/metrics").1;
    assert!(metrics.contains("\ntwinflux_displaced_connections_total{kind=\"tcp\""), "{metrics}");
    assert!(relay.status().to_text().contains("connections ended to make room"));
}

#[test]
fn what_came_on_a_connection_that_gives_way_is_taken() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp { max_connections: 4, ..Tcp::default() }));
    let mut greedy: Vec<_> = (0..4).map(|_| connect(&relay)).collect();
    for (number, socket) in greedy.iter_mut().enumerate() {
        exchange(socket, &format!("m,host=greedy v=1 {number}"));
    }
    greedy[0].write_all(b"m,host=greedy v=2 5\nunfinished").expect("send");
    exchange(&mut connect_from(&relay, [127, 0, 0, 2]), "m,host=other v=1 6");
    wait_for("the end", || greedy.iter_mut().any(is_ended).then_some(()));
    wait_for("the lines", || (relay.status().accepted_lines == 6).then_some(()));
    assert_eq!((receive(&relay).displaced, receive(&relay).timed_out), (1, 0));
}

#[test]
fn a_connection_without_a_line_is_ended_and_one_with_a_line_stays() {
    let backend = Scripted::accepting();
    let tcp = Tcp { first_line_timeout: Duration::from_millis(500), ..Tcp::default() };
    let relay = Running::start(with_tcp(&backend, tcp));
    // Where the machine leaves this test alone for too long, a host is late indeed: it is tried
    // again.
    let mut host = wait_for("a host that is in time", || {
        let mut host = connect(&relay);
        host.write_all(b"m v=1 1\n").is_ok().then_some(())?;
        wait_for("the line, or the end", || (relay.status().accepted_lines > 0 || is_ended(&mut host)).then_some(()));
        (!is_ended(&mut host)).then_some(host)
    });
    let (mut silent, mut half) = (connect(&relay), connect(&relay));
    half.write_all(b"m v=1 ").expect("send");
    for socket in [&mut silent, &mut half] {
        socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
        assert_eq!(socket.read(&mut [0]).unwrap_or(0), 0, "the end");
    }
    exchange(&mut host, "m v=1 2");
    assert!(receive(&relay).timed_out >= 2);
}

#[test]
fn forged_addresses_drive_no_host_out_of_the_table() {
    let backend = Scripted::accepting();
    let relay = Running::start(config(&[backend.url()]));
    let hosts: Vec<_> = (0..500).map(|n| Ipv4Addr::from(0x7f0a_0000 + n)).collect();
    let sockets: Vec<_> = hosts.iter().map(|host| UdpSocket::bind((*host, 0)).expect("bind")).collect();
    let mut sent = 0;
    let mut send = |socket: &UdpSocket, text: &[u8]| {
        socket.send_to(text, relay.target).expect("send");
        sent += 1;
        if sent % 100 == 0 {
            let listener = &relay.relay.as_ref().expect("running").view().listeners[0];
            wait_for("the datagrams to be taken", || (listener.tally().datagrams == sent).then_some(()));
        }
    };
    for burst in 0..4 {
        if burst > 0 {
            std::thread::sleep(Duration::from_millis(600));
        }
        sockets.iter().for_each(|socket| send(socket, b"m,host=real v=1 1"));
    }
    // Each of the forged ones sends more than a host did. The hosts are silent by now: nothing
    // reminds of them.
    for forged in 0..100_000 {
        let socket = UdpSocket::bind((Ipv4Addr::from(0x7f20_0000 + forged), 0)).expect("bind");
        send(&socket, b"m v=1 1\nm v=1 2\nm v=1 3\nm v=1 4\nm v=1 5");
    }
    let status = wait_for("the hosts to be silent", || {
        let status = relay.status();
        let is_last = status.sources.rest.sources + 1000 == 100_500;
        (is_last && status.sources.silent == 500).then_some(status)
    });
    let listed: Vec<IpAddr> =
        status.sources.top.iter().map(|source| source.address.parse().expect("an address")).collect();
    assert!(hosts.iter().all(|host| listed.contains(&IpAddr::V4(*host))), "each host is listed");
    let sources = &status.sources;
    assert_eq!((sources.known, sources.top.len()), (4096, 1000));
    let lines: u64 = sources.top.iter().map(|source| source.lines).sum();
    assert_eq!(lines + sources.rest.lines, 4 * 500 + 5 * 100_000);
    assert!(status.to_text().contains("500 of them silent"), "{}", status.to_text());
}
