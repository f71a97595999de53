//! Observes what a server sends: its first bytes, which distinguish TLS from plain HTTP, and the
//! number of bytes.
//!
//! Bounds: the client grants the number of bytes that an answer may have, including 1xx answers,
//! heads and the framing of chunks. Reading more fails, so that an endless answer blocks nobody.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A server's first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Opening {
    /// No bytes.
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

/// What was observed on one connection, and how much may be read; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    opening: AtomicU8,
    /// Bytes that may still be read.
    granted: AtomicUsize,
}

impl Heard {
    /// Returns the kind of the first bytes.
    pub(super) fn opening(&self) -> Opening {
        Opening::ALL[usize::from(self.0.opening.load(Ordering::Relaxed))]
    }

    /// Sets the number of bytes that may be read from now on.
    pub(super) fn grant(&self, bytes: usize) {
        self.0.granted.store(bytes, Ordering::Relaxed);
    }

    /// Returns whether all granted bytes have been read.
    pub(super) fn is_exhausted(&self) -> bool {
        self.0.granted.load(Ordering::Relaxed) == 0
    }
}

/// A connection that records the server's first bytes, and reads only granted bytes.
#[derive(Debug)]
pub(super) struct Listening {
    stream: TcpStream,
    heard: Heard,
}

impl Listening {
    /// Wraps a stream; `granted` bytes may be read before the first request.
    pub(super) fn new(stream: TcpStream, granted: usize) -> Self {
        let heard = Heard::default();
        heard.grant(granted);
        Self { stream, heard }
    }

    pub(super) fn heard(&self) -> Heard {
        self.heard.clone()
    }
}

impl AsyncRead for Listening {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let granted = self.heard.0.granted.load(Ordering::Relaxed);
        if granted == 0 {
            return Poll::Ready(Err(io::Error::other("more than an answer may have")));
        }
        let mut part = ReadBuf::new(room.initialize_unfilled_to(room.remaining().min(granted)));
        std::task::ready!(Pin::new(&mut self.stream).poll_read(context, &mut part))?;
        let read = part.filled().len();
        if self.heard.opening() == Opening::Nothing {
            self.heard.0.opening.store(Opening::of(part.filled()) as u8, Ordering::Relaxed);
        }
        room.advance(read);
        // A larger grant in the meantime must not be undone.
        self.heard.0.granted.fetch_sub(read.min(self.heard.0.granted.load(Ordering::Relaxed)), Ordering::Relaxed);
        Poll::Ready(Ok(()))
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
