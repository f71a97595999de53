//! The admin listener under strain, and who may ask it by which name.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{Running, Scripted, config, get, http, wait_for};

/// Connections for anything but probes that are open at a time.
const PAGES: usize = 24;

/// How long a connection may be open.
const LONGEST: Duration = Duration::from_secs(60);

/// A connection that asks more than it can be answered in a minute, and reads no answer.
fn stuck(relay: &Running, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(relay.admin).expect("connect");
    stream.set_nonblocking(true).expect("nonblocking");
    let requests = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").repeat(1000);
    drop(stream.write(requests.as_bytes()));
    stream
}

/// Whether the relay still has the connection.
fn is_open(mut stream: &TcpStream) -> bool {
    !matches!(stream.write(b"\r\n"), Err(error) if error.kind() != ErrorKind::WouldBlock)
}

#[test]
fn whoever_comes_to_the_admin_listener_is_answered_and_the_oldest_give_way() {
    let backend = Scripted::accepting();
    let relay = Running::start(config(&[backend.url()]));
    let begun = Instant::now();
    let silent: Vec<_> = (0..100).map(|_| TcpStream::connect(relay.admin).expect("connect")).collect();
    let stuck: Vec<_> = (0..PAGES + 8)
        .map(|_| {
            let stream = stuck(&relay, "/api/status");
            assert_eq!(relay.get("/health").0, 200);
            stream
        })
        .collect();
    for path in ["/health", "/ready", "/metrics", "/api/status"] {
        assert_eq!(relay.get(path).0, 200, "{path}");
    }
    wait_for("the oldest to give way", || {
        let open = stuck.iter().filter(|stream| is_open(stream)).count();
        (open < stuck.len()).then_some(())
    });
    // All others are where they were: those that are answered waited for none of them to time out.
    // (On a machine that takes so long for this, their minute is over.)
    let are_open = stuck.iter().rev().take(PAGES - 8).all(is_open);
    assert!(are_open || begun.elapsed() > LONGEST);
    drop(silent);
}

#[test]
fn a_page_of_another_name_reads_nothing_and_probes_are_asked_by_any() {
    let backend = Scripted::accepting();
    let mut config = config(&[backend.url()]);
    config.admin.hosts = vec!["relay.example.org".to_owned()];
    let relay = Running::start(config);
    let ask = |path: &str, host: &str| {
        http(relay.admin, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
    };
    for host in ["localhost", "127.0.0.1:9097", "[::1]", "relay.example.org:80", &relay.admin.to_string()] {
        assert_eq!(ask("/api/status", host).0, 200, "{host}");
    }
    for host in ["evil.example", "evil.example:9097", "localhost.evil.example", "10.9.9.9"] {
        for path in ["/", "/api/status", "/api/anything", "/nowhere"] {
            let (code, body) = ask(path, host);
            assert_eq!(code, 403, "{path} of {host}");
            assert!(body.contains("[admin] hosts") && !body.contains("version"), "{body}");
        }
        for path in ["/health", "/ready", "/metrics"] {
            assert_eq!(ask(path, host).0, 200, "{path} of {host}");
        }
    }
    assert_eq!(http(relay.admin, "GET /api/status HTTP/1.1\r\nConnection: close\r\n\r\n").0, 403);
    assert_eq!(http(relay.admin, "GET /api/status HTTP/1.0\r\n\r\n").0, 200);
    assert_eq!((get(relay.admin, "/").0, get(relay.admin, "/other").0), (200, 404));
}

#[test]
fn every_answer_says_what_it_is_and_none_is_for_other_sites() {
    use std::io::Read;
    let backend = Scripted::accepting();
    let relay = Running::start(config(&[backend.url()]));
    for (path, host) in [
        ("/health", "x"),
        ("/ready", "x"),
        ("/metrics", "x"),
        ("/api/status", "localhost"),
        ("/nowhere", "localhost"),
        ("/api/status", "evil.example"),
    ] {
        let mut stream = TcpStream::connect(relay.admin).expect("connect");
        let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nOrigin: http://evil.example\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answer");
        let head = answer.split("\r\n\r\n").next().expect("a head").to_ascii_lowercase();
        assert!(head.contains("x-content-type-options: nosniff"), "{path}: {head}");
        assert!(!head.contains("access-control"), "{path}: {head}");
    }
}

#[test]
fn many_that_poll_share_what_is_shown_and_each_sees_what_was_done_before() {
    let backend = Scripted::accepting();
    let relay = Running::start(config(&[backend.url()]));
    std::thread::scope(|scope| {
        let polling: Vec<_> = (0..12)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..5 {
                        assert_eq!(relay.get("/api/status").0, 200);
                    }
                })
            })
            .collect();
        for sent in 1..=5 {
            relay.send(&["m v=1 1\n"]);
            let status: serde_json::Value = serde_json::from_str(&relay.get("/api/status").1).expect("JSON");
            assert_eq!(status["accepted_lines"], sent);
        }
        polling.into_iter().for_each(|one| one.join().expect("no panic"));
    });
}
