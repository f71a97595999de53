//! Streams over TLS, and the admin listener's users and TLS.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use twinflux::config::{Auth, Right, Tcp};

use crate::certificates::{Made, certificate, client, connect};
use crate::support::{Running, Scripted, config, http, wait_for};

/// A relay with a TCP listener that speaks TLS.
struct Rig {
    relay: Running,
    address: SocketAddr,
    made: Made,
    backend: Scripted,
}

impl Rig {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let (cert, key, made) = certificate(folder.path(), "one");
        let backend = Scripted::accepting();
        let mut config = config(&[backend.url()]);
        let listen = ([127, 0, 0, 1], 0).into();
        let tcp = Tcp { listen, tls_cert_file: Some(cert), tls_key_file: Some(key), ..Tcp::default() };
        config.tcp.push(tcp);
        let relay = Running::start(config);
        let address = relay.listener("tcp");
        Self { relay, address, made, backend }
    }
}

#[test]
fn lines_come_over_tls_however_they_are_cut_and_the_version_is_answered() {
    let Rig { mut relay, address, made, backend } = Rig::start();
    // More than a record, a read, and a turn hold; the last line has no end.
    let lines = 40_000;
    let text: String = (0..lines).map(|n| format!("m,host=a v={n}i {}\n", n + 1)).collect();
    let mut stream = connect(address, &made).expect("TLS");
    let mut rest = text.as_bytes();
    for size in [1, 2, 3, 100, 16_384, 16_385, 70_000].into_iter().cycle() {
        let (piece, after) = rest.split_at(size.min(rest.len()));
        stream.write_all(piece).expect("send");
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    stream.write_all(b"version\nm v=1").expect("send");
    let mut version = [0; 8];
    stream.read_exact(&mut version).expect("an answer");
    assert_eq!(&version, b"twinflux");
    stream.conn.send_close_notify();
    stream.flush().expect("send");
    drop(stream);
    relay.wait_delivered("a", lines);

    // One that does not speak TLS: nothing of it is taken for anything else.
    let mut plain = TcpStream::connect(address).expect("connect");
    plain.write_all(b"m v=1 1\n").expect("send");
    plain.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    drop(plain.read(&mut [0]));
    // One whose bytes are no TLS after the handshake, or in it.
    let mut broken = connect(address, &made).expect("TLS");
    broken.sock.write_all(b"m v=1 1\nm v=1 1\n").expect("send");
    drop(broken.sock.read(&mut [0; 1024]));
    let mut broken = TcpStream::connect(address).expect("connect");
    broken.write_all(b"\x16\x03\x01\x00\x05hello").expect("send");
    drop(broken.read(&mut [0; 1024]));
    wait_for("the refusals", || {
        let status = relay.status();
        let tcp = status.receive.iter().find(|receive| receive.kind == "tcp").expect("a listener");
        (tcp.refused["truncated"] == 1 && tcp.refused["wrong_format"] == 1).then_some(())
    });
    let last = relay.stop();
    let tcp = last.receive.iter().find(|receive| receive.kind == "tcp").expect("a listener");
    assert_eq!(tcp.lines - tcp.refused.values().sum::<u64>(), lines);
    let stored = backend.text();
    let stored: HashSet<&str> = stored.lines().collect();
    assert!(text.lines().all(|line| stored.contains(line)));
}

#[test]
fn a_stop_takes_what_came_over_tls_and_waits_for_no_handshake() {
    let Rig { mut relay, address, made, backend: _backend } = Rig::start();
    let mut stream = connect(address, &made).expect("TLS");
    let silent = TcpStream::connect(address).expect("connect");
    let text: String = (0..20_000).map(|n| format!("m v={n}i {}\n", n + 1)).collect();
    stream.write_all(text.as_bytes()).expect("send");
    let last = relay.stop();
    let tcp = last.receive.iter().find(|receive| receive.kind == "tcp").expect("a listener");
    assert_eq!(tcp.lines, 20_000);
    drop(silent);
}

#[test]
fn a_stop_takes_lines_that_came_with_a_handshakes_last_word() {
    let Rig { mut relay, address, made, backend: _backend } = Rig::start();
    // So many that the listener is not done with the handshakes when it is told to stop.
    let mut senders: Vec<_> = (0..50)
        .map(|_| {
            let (mut tls, mut stream) = (client(&made), TcpStream::connect(address).expect("connect"));
            while tls.is_handshaking() {
                while tls.wants_write() {
                    tls.write_tls(&mut stream).expect("send");
                }
                tls.read_tls(&mut stream).expect("receive");
                tls.process_new_packets().expect("TLS");
            }
            tls.writer().write_all(b"m v=1 1\nm v=2 2\n").expect("a few lines");
            (tls, stream)
        })
        .collect();
    for (tls, stream) in &mut senders {
        while tls.wants_write() {
            tls.write_tls(stream).expect("send");
        }
    }
    let last = relay.stop();
    let tcp = last.receive.iter().find(|receive| receive.kind == "tcp").expect("a listener");
    assert_eq!(tcp.lines, 100);
}

#[test]
fn the_admin_listener_asks_for_a_user_that_may_administer() {
    let folder = tempfile::tempdir().expect("folder");
    let (users, tokens) = (folder.path().join("users"), folder.path().join("tokens"));
    std::fs::write(&users, format!("me:{}\n", bcrypt::hash("right", 4).expect("a hash"))).expect("write");
    std::fs::write(&tokens, "prometheus:abc\nhost:def\n").expect("write");
    let backend = Scripted::accepting();
    let mut config = config(&[backend.url()]);
    let right = |name: &str, admin| Right { name: name.to_owned(), admin, ..Right::default() };
    let rights = vec![right("me", true), right("prometheus", true), right("host", false)];
    config.auth = Auth { users_file: Some(users), tokens_file: Some(tokens), right: rights };
    config.admin.users = true;
    let relay = Running::start(config);
    let ask = |path: &str, header: &str| {
        http(relay.admin, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n"))
    };
    for (header, expected) in [
        ("Authorization: Basic bWU6cmlnaHQ=\r\n", 200),
        ("Authorization: Bearer abc\r\n", 200),
        ("Authorization: Token me:right\r\n", 200),
        ("Authorization: Bearer def\r\n", 403),
        ("Authorization: Basic bWU6d3Jvbmc=\r\n", 401),
        ("Authorization: Bearer none\r\n", 401),
        ("", 401),
    ] {
        for path in ["/metrics", "/api/status"] {
            let (code, body) = ask(path, header);
            assert_eq!(code, expected, "{path} {header}");
            assert!(expected == 200 || !body.contains("version"), "{body}");
        }
    }
    for path in ["/health", "/ready"] {
        assert_eq!(ask(path, "").0, 200, "{path}");
    }
}

#[test]
fn the_admin_listener_speaks_tls() {
    let folder = tempfile::tempdir().expect("folder");
    let (cert, key, made) = certificate(folder.path(), "one");
    let backend = Scripted::accepting();
    let mut config = config(&[backend.url()]);
    (config.admin.tls_cert_file, config.admin.tls_key_file) = (Some(cert.clone()), Some(key));
    let relay = Running::start(config);
    let mut stream = connect(relay.admin, &made).expect("TLS");
    stream.write_all(b"GET /api/status HTTP/1.0\r\n\r\n").expect("send");
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    let answer = String::from_utf8(answer).expect("text");
    assert!(answer.starts_with("HTTP/1.0 200") && answer.contains(&cert.display().to_string()), "{answer}");
    let (code, body) = http(relay.admin, "GET /health HTTP/1.0\r\n\r\n");
    assert!(code == 400 && body.contains("Client sent an HTTP request to an HTTPS server"), "{code} {body}");
}
