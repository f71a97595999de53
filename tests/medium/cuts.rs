//! What comes of a stream at the limits of a line does not depend on where it was cut.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use bytesize::ByteSize;
use twinflux::config::Tcp;
use twinflux::observe::status::Receive;

use crate::support::{Running, Scripted, config, wait_for};

const MAX_LINE: usize = 1024;

fn line(length: usize) -> String {
    format!("m s=\"{}\" 7", "x".repeat(length - 8))
}

/// What became of a stream that came in two pieces: stored lines, and the listener's figures.
fn outcome(stream: &str, cut: usize) -> (String, Receive) {
    let backend = Scripted::accepting();
    let mut config = config(&[backend.url()]);
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.tcp.push(Tcp { listen, max_line: ByteSize::b(MAX_LINE as u64), ..Tcp::default() });
    let relay = Running::start(config);
    let target = relay.relay.as_ref().expect("running").view().listeners[1].address();
    let mut socket = TcpStream::connect(target).expect("connect");
    let (first, second) = stream.as_bytes().split_at(cut.min(stream.len()));
    socket.write_all(first).expect("send");
    // So that the pieces are read one by one.
    wait_for("the first piece", || (relay.status().receive[1].bytes == first.len() as u64).then_some(()));
    // Whoever is turned away reads no more.
    drop(socket.write_all(second));
    drop(socket);
    wait_for("the connection's end", || {
        let receive = &relay.status().receive[1];
        (receive.connections == 1 && receive.open_connections == 0).then_some(())
    });
    // Its figures are whole once it has ended, and not in the moment when it does.
    let mut receive = wait_for("the delivery", || {
        let status = relay.status();
        (status.backends[0].pending_lines == 0).then(|| status.receive[1].clone())
    });
    receive.refused.retain(|_, lines| *lines > 0);
    (backend.text(), receive)
}

fn count(receive: &Receive, reason: &str) -> u64 {
    receive.refused.get(reason).copied().unwrap_or_default()
}

#[test]
fn lines_at_the_limit_are_judged_alike_wherever_they_are_cut() {
    let (exact, more, good) = (line(MAX_LINE), line(MAX_LINE + 1), "good v=1 7\n");
    let name = "a.".to_owned() + &"b".repeat(MAX_LINE - 6);
    for (stream, stored, too_long) in [
        (format!("{exact}\r\n{good}"), 2, 0),
        (format!("{more}\r\n{good}"), 1, 1),
        (format!("\u{feff}{exact}\n{good}"), 2, 0),
        (format!("{name} 1 7\r\n{good}"), 2, 0),
        (format!("{}{}\n{good}", " ".repeat(600), line(600)), 1, 1),
        (format!("#{}\n{good}", "c".repeat(MAX_LINE)), 1, 1),
        (format!("#{}\n{good}", "c".repeat(MAX_LINE - 1)), 1, 0),
        (format!("{}\n{good}", " ".repeat(MAX_LINE + 1)), 1, 1),
        (format!("log s=\"open\n{}\n{good}", "y".repeat(2 * MAX_LINE)), 1, 1),
    ] {
        for cut in [1, 2, 700, MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, MAX_LINE + 2, MAX_LINE + 4, MAX_LINE + 7, 2000] {
            let (text, receive) = outcome(&stream, cut);
            let shown: String = stream.chars().take(20).collect();
            assert_eq!(text.lines().count(), stored, "{shown:?} cut at {cut}: {:?}", receive.refused);
            assert_eq!(count(&receive, "too_long"), too_long, "{shown:?} cut at {cut}: {:?}", receive.refused);
            let others = receive.refused.values().sum::<u64>() - too_long;
            assert_eq!(others, u64::from(shown.starts_with("log")), "{shown:?} cut at {cut}: {:?}", receive.refused);
        }
    }
}

#[test]
fn a_tls_client_is_known_however_its_first_bytes_come() {
    for cut in [1, 2, 3] {
        let (text, receive) = outcome("\u{16}\u{3}\u{1}\u{0}rest\na.b 1 7\n", cut);
        assert_eq!((text.as_str(), count(&receive, "wrong_format"), receive.lines), ("", 1, 1), "{cut}");
    }
}
