//! Peers that stall, at every stage of a request: each has a limit, and the lines wait.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::support::{Running, config, wait_for};

/// A relay that writes to this address, and has a line for it that waits.
fn start(scheme: &str, address: SocketAddr) -> Running {
    let mut config = config(&[format!("{scheme}://{address}")]);
    config.backend[0].timeout = Duration::from_millis(500);
    let relay = Running::start(config);
    relay.send(&["m v=1 1\n"]);
    relay
}

/// Waits until the stall is noticed, and tried again.
fn assert_noticed(relay: &Running, told: &str) {
    relay.wait_state("a", "down");
    wait_for("another try", || (relay.backend("a").retries > 0).then_some(()));
    let waiting = relay.backend("a");
    assert!(waiting.last_error.as_ref().is_some_and(|error| error.contains(told)), "{waiting:?}");
    assert_eq!((waiting.pending_lines, waiting.dropped(), waiting.rejected()), (1, 0, 0));
}

/// Serves connections: what was asked is answered with these bytes while it stalls, and with 204
/// after.
fn serve(listener: TcpListener, stalled: &'static [u8]) -> Arc<AtomicBool> {
    let is_well = Arc::new(AtomicBool::new(false));
    let shared = Arc::clone(&is_well);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let is_well = Arc::clone(&shared);
            std::thread::spawn(move || {
                let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    request.extend_from_slice(&buffer[..count]);
                    if !request.ends_with(b"m v=1 1\n") {
                        continue;
                    }
                    request.clear();
                    let is_well = is_well.load(Ordering::Relaxed);
                    let answer = if is_well { b"HTTP/1.1 204 No Content\r\n\r\n" } else { stalled };
                    if stream.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    is_well
}

#[test]
fn a_peer_that_stalls_before_or_within_its_answer_is_left_and_asked_again() {
    let head: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Le";
    let body: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n{\"error\":";
    let chunk: &[u8] = b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab";
    for stalled in [b"", head, body, chunk] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let is_well = serve(listener, stalled);
        let relay = start("http", address);
        assert_noticed(&relay, "did not answer within 500ms");
        is_well.store(true, Ordering::Relaxed);
        relay.wait_delivered("a", 1);
        relay.wait_state("a", "up");
    }
}

#[test]
fn a_peer_that_stalls_in_the_tls_handshake_is_left_and_asked_again() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    // The kernel accepts connections, and nobody says a word on them.
    let relay = start("https", listener.local_addr().expect("address"));
    assert_noticed(&relay, "no connection to");
}

#[test]
fn a_peer_that_does_not_even_connect_is_left_and_asked_again() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
    socket.listen(0).expect("listen");
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().expect("address");
    // Once the kernel's queue of connections is full, it answers no other.
    let mut queued = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
        queued.push(stream);
    }
    let relay = start("http", address);
    assert_noticed(&relay, "no connection to");
    let is_well = serve(listener, b"");
    is_well.store(true, Ordering::Relaxed);
    drop(queued);
    relay.wait_delivered("a", 1);
}
