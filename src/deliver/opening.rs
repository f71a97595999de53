//! How a server begins to speak: what tells TLS from plain HTTP where the two ends of a connection differ.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What a server's first bytes were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Opening {
    /// There were none.
    Nothing,
    /// A TLS record: a handshake or an alert.
    Tls,
    /// A status line of HTTP.
    Http,
    /// Anything else.
    Other,
}

impl Opening {
    const ALL: [Self; 4] = [Self::Nothing, Self::Tls, Self::Http, Self::Other];

    fn of(bytes: &[u8]) -> Self {
        match bytes {
            [] => Self::Nothing,
            [0x15 | 0x16, 3, ..] => Self::Tls,
            bytes if bytes.starts_with(b"HTTP/") => Self::Http,
            _ => Self::Other,
        }
    }
}

/// The opening of one connection, for those who share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<AtomicU8>);

impl Heard {
    /// What was heard so far.
    pub(super) fn get(&self) -> Opening {
        Opening::ALL[usize::from(self.0.load(Ordering::Relaxed))]
    }
}

/// A connection that remembers how the server began.
#[derive(Debug)]
pub(super) struct Listening {
    stream: TcpStream,
    heard: Heard,
}

impl Listening {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, heard: Heard::default() }
    }

    pub(super) fn heard(&self) -> Heard {
        self.heard.clone()
    }
}

impl AsyncRead for Listening {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = room.filled().len();
        let ready = Pin::new(&mut self.stream).poll_read(context, room);
        if self.heard.get() == Opening::Nothing {
            let opening = Opening::of(&room.filled()[before..]);
            self.heard.0.store(opening as u8, Ordering::Relaxed);
        }
        ready
    }
}

impl AsyncWrite for Listening {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell() {
        for (bytes, expected) in [
            (&b""[..], Opening::Nothing),
            (b"\x15\x03\x01\x00\x02\x02\x46", Opening::Tls),
            (b"\x16\x03\x03", Opening::Tls),
            (b"HTTP/1.1 400 Bad Request\r\n", Opening::Http),
            (b"SSH-2.0-OpenSSH", Opening::Other),
            (b"\x15", Opening::Other),
        ] {
            assert_eq!(Opening::of(bytes), expected, "{}", bytes.escape_ascii());
        }
    }
}
