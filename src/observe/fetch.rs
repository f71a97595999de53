//! Fetches a running relay's status over HTTP. Whoever answers at the address may be a stranger.
//!
//! Bounds: 5 s to connect, 5 s for the whole answer, 16 MiB of it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::observe::status::Status;
use crate::sys::text::{cut, printable};

/// The longest time for connecting, and for the answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer that is read.
const FETCH_BYTES: usize = 16 << 20;
/// The most bytes of an error about the answer, because it repeats parts of the answer.
const ERROR_BYTES: usize = 500;

/// Why a status cannot be fetched. The message is part of a sentence, and safe for a terminal.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The answer was not complete in time.
    #[error("no whole answer within {FETCH_TIMEOUT:?}")]
    Late,
    /// The answer is not HTTP.
    #[error("what answers there speaks no HTTP")]
    NotHttp,
    /// The admin listener asks for a user, or speaks TLS.
    #[error("it asks for a user or speaks TLS: use --config or --data-dir instead of --admin")]
    Guarded,
    /// The answer is not a relay's status.
    #[error("what answers there is no relay ({0})")]
    NotRelay(String),
}

impl Status {
    /// Asks a running relay for its status.
    ///
    /// # Errors
    /// The relay does not answer, or the answer is not a status.
    pub fn fetch(admin: SocketAddr) -> Result<Self, FetchError> {
        let mut stream = TcpStream::connect_timeout(&admin, FETCH_TIMEOUT)?;
        let request = format!("GET /api/status HTTP/1.0\r\nHost: {admin}\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let answer = read_whole(&mut stream)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(FetchError::NotHttp)?;
        if head.split(' ').nth(1) == Some("401") || body.starts_with("Client sent an HTTP request") {
            return Err(FetchError::Guarded);
        }
        serde_json::from_str(body).map_err(|error| {
            let error = error.to_string();
            FetchError::NotRelay(printable(cut(&error, ERROR_BYTES)).to_string())
        })
    }
}

fn read_whole(stream: &mut TcpStream) -> Result<String, FetchError> {
    let until = Instant::now() + FETCH_TIMEOUT;
    let (mut answer, mut part) = (Vec::new(), vec![0; 64 << 10]);
    while answer.len() < FETCH_BYTES {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(FetchError::Late);
        }
        let read = stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut part));
        match read {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&part[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(FetchError::Late);
            }
            Err(error) => return Err(error.into()),
        }
    }
    String::from_utf8(answer).map_err(|_| FetchError::NotRelay("its answer is no text".to_owned()))
}
