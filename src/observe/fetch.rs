//! A running relay's status, asked over HTTP: by whoever answers at that address, who may be anyone.
//!
//! Bounds: 5 s to connect, 5 s for the whole answer, 16 MiB of it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::observe::status::Status;
use crate::sys::text::{cut, printable};

/// How long a relay may take to connect, and to answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer that is read.
const FETCH_BYTES: usize = 16 << 20;
/// How much of an error about the answer is shown, in bytes: it repeats parts of that.
const ERROR_BYTES: usize = 500;

impl Status {
    /// Asks a running relay.
    ///
    /// # Errors
    /// What went wrong, as a sentence's part that a terminal may show.
    pub fn fetch(admin: SocketAddr) -> Result<Self, String> {
        let mut stream = TcpStream::connect_timeout(&admin, FETCH_TIMEOUT).map_err(|error| error.to_string())?;
        let request = format!("GET /api/status HTTP/1.0\r\nHost: {admin}\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
        let answer = read_whole(&mut stream)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("what answers there speaks no HTTP")?;
        if head.split(' ').nth(1) == Some("401") || body.starts_with("Client sent an HTTP request") {
            return Err("it asks for a user or speaks TLS: use --config or --data-dir instead of --admin".to_owned());
        }
        serde_json::from_str(body).map_err(|error| {
            let error = error.to_string();
            format!("what answers there is no relay ({})", printable(cut(&error, ERROR_BYTES)))
        })
    }
}

fn read_whole(stream: &mut TcpStream) -> Result<String, String> {
    let late = || format!("no whole answer within {FETCH_TIMEOUT:?}");
    let until = Instant::now() + FETCH_TIMEOUT;
    let (mut answer, mut part) = (Vec::new(), vec![0; 64 << 10]);
    while answer.len() < FETCH_BYTES {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        let read = stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut part));
        match read {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&part[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(late());
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    String::from_utf8(answer).map_err(|_| "what answers there is no relay (its answer is no text)".to_owned())
}
