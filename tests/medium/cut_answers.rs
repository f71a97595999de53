//! A thousand questions to two backends that break off at any byte of their answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use twinflux::config::Http;

use crate::support::{Running, config};

const QUESTIONS: usize = 1000;
const THREADS: usize = 8;
const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A chunked answer, and what is in it.
fn answer() -> (String, String) {
    let pieces: Vec<String> = (0..20).map(|number| format!("{{\"row\":{number}}}\n")).collect();
    let chunks: String = pieces.iter().map(|piece| format!("{:x}\r\n{piece}\r\n", piece.len())).collect();
    (format!("{HEAD}{chunks}0\r\n\r\n"), pieces.concat())
}

/// A backend that takes lines, and breaks off most of its answers to questions, each at another
/// byte.
fn breaking(seed: u32) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let (whole, _) = answer();
    let state = Arc::new(AtomicU32::new(seed));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), state, whole) = (stream, Arc::clone(&state), whole.clone()) else { return };
            std::thread::spawn(move || {
                let mut bytes = [0; 65_536];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    if !bytes[..length].starts_with(b"POST /query") {
                        drop(stream.write_all(b"HTTP/1.1 204 No Content\r\nX-Influxdb-Version: 1.6.7\r\n\r\n"));
                        continue;
                    }
                    // A step that has no common divisor with the length visits every byte.
                    let step = state.fetch_add(101, Ordering::Relaxed);
                    let end = usize::try_from(step).expect("small") % (whole.len() + whole.len() / 4);
                    drop(stream.write_all(&whole.as_bytes()[..end.min(whole.len())]));
                    if end < whole.len() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn each_answer_is_whole_or_visibly_cut() {
    let addresses = [breaking(1), breaking(50)].map(|address| format!("http://{address}"));
    let mut config = config(&addresses);
    config.http.push(Http { listen: ([127, 0, 0, 1], 0).into(), ..Http::default() });
    let relay = Running::start(config);
    ["a", "b"].iter().for_each(|name| relay.wait_state(name, "up"));
    let door = relay.listener("http");
    let counts = [const { AtomicU32::new(0) }; 3];
    std::thread::scope(|threads| {
        for _ in 0..THREADS {
            threads.spawn(|| {
                for _ in 0..QUESTIONS / THREADS {
                    counts[outcome(door)].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let [whole, cut, refused] = counts.map(AtomicU32::into_inner);
    assert_eq!(usize::try_from(whole + cut + refused).expect("small"), QUESTIONS);
    assert!(whole > 0 && cut > 0, "{whole} whole, {cut} cut, {refused} refused");
    let told: u64 = ["a", "b"].map(|name| relay.backend(name).read.expect("figures").cut).iter().sum();
    assert_eq!(u64::from(cut), told, "each cut is counted");
    // Told to those who look at the figures with `--nocapture`.
    eprintln!("{whole} whole, {cut} visibly cut, {refused} refused");
}

/// Asks, and says what came: 0 = all of it, 1 = visibly less, 2 = an error with an error's status.
fn outcome(door: SocketAddr) -> usize {
    let mut stream = TcpStream::connect(door).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    let request = b"GET /query?db=d&q=SELECT+v+FROM+m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).expect("send");
    let mut bytes = Vec::new();
    // A connection that is reset is cut, too.
    drop(stream.read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if text.starts_with("HTTP/1.1 503 ") {
        return 2;
    }
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    let (_, rest) = text.split_once("\r\n\r\n").expect("a head");
    let (body, is_whole) = body_of(rest);
    let (_, expected) = answer();
    assert!(expected.starts_with(&body), "{body}");
    assert!(!is_whole || body == expected, "an end is told behind all of it only: {text}");
    usize::from(!is_whole)
}

/// What is in chunks, and whether their end came.
fn body_of(mut chunks: &str) -> (String, bool) {
    let mut body = String::new();
    while let Some((length, rest)) = chunks.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).expect("a length");
        if length == 0 {
            return (body, true);
        }
        let Some(piece) = rest.get(..length) else { return (body + rest, false) };
        body.push_str(piece);
        chunks = rest.get(length + 2..).unwrap_or_default();
    }
    (body, false)
}
