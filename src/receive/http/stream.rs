//! Observes a connection's bytes on their way to the HTTP server, without changing them.
//!
//! Records when a request's head began, so that a slow one can be closed; since when the client
//! reads no answers; and whether a head has a `Content-Length`. The server discards that header if
//! there is also a `Transfer-Encoding`, but an upstream proxy may go by it and see a different
//! request.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// The header name to look for.
const LENGTH: &[u8] = b"content-length";

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waiting for a request since this time.
    Idle(Instant),
    /// A request's head began at this time and is not complete.
    Head(Instant),
    /// A request is being handled.
    Working,
}

/// A protocol other than HTTP/1 that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Other {
    /// TLS.
    Tls,
    /// HTTP/2, as gRPC uses.
    Http2,
}

/// State shared between a connection's stream and its requests.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) phase: Cell<Phase>,
    /// A head is still incomplete and no more bytes are available, or answers cannot be written.
    pub(super) is_slow: Notify,
    /// Since when answers cannot be written.
    pub(super) stuck: Cell<Option<Instant>>,
    /// Number of bytes of the current head that have arrived.
    pub(super) head_bytes: Cell<usize>,
    /// The beginning of the head's current line.
    line: RefCell<Vec<u8>>,
    /// Whether the head has a `Content-Length`.
    pub(super) has_length: Cell<bool>,
    /// The protocol of its first bytes, if that is not HTTP/1.
    pub(super) begins_as: Cell<Option<Other>>,
    has_begun: Cell<bool>,
}

impl Progress {
    pub(super) fn new(now: Instant) -> Rc<Self> {
        let (stuck, head_bytes, line, has_length, begins_as, has_begun) = Default::default();
        let (phase, is_slow) = (Cell::new(Phase::Idle(now)), Notify::new());
        Rc::new(Self { phase, is_slow, stuck, head_bytes, line, has_length, begins_as, has_begun })
    }

    /// Records whether the socket took an answer's bytes.
    fn note_written(&self, waits: bool) {
        if !waits {
            self.stuck.set(None);
        } else if self.stuck.get().is_none() {
            self.stuck.set(Some(Instant::now()));
            self.is_slow.notify_one();
        }
    }

    /// Processes received bytes.
    fn note(&self, bytes: &[u8], now: Instant) {
        if !self.has_begun.replace(true) {
            self.begins_as.set(match bytes {
                [0x16, ..] => Some(Other::Tls),
                bytes if bytes.starts_with(b"PRI * HTTP/2") => Some(Other::Http2),
                _ => None,
            });
        }
        match self.phase.get() {
            Phase::Working => return,
            Phase::Head(_) => {}
            // Some clients send a line end after a body that is not part of it.
            Phase::Idle(_) if bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n')) => return,
            Phase::Idle(_) => {
                self.phase.set(Phase::Head(now));
                self.has_length.set(false);
                self.head_bytes.set(0);
                self.line.borrow_mut().clear();
            }
        }
        self.head_bytes.set(self.head_bytes.get() + bytes.len());
        let mut line = self.line.borrow_mut();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            // An empty line ends the head.
            if line.is_empty() && matches!(part, b"\n" | b"\r\n") {
                return;
            }
            let room = LENGTH.len().saturating_sub(line.len());
            line.extend_from_slice(&part[..part.len().min(room)]);
            if line.eq_ignore_ascii_case(LENGTH) {
                self.has_length.set(true);
            }
            if part.ends_with(b"\n") {
                line.clear();
            }
        }
    }
}

/// A stream of decrypted requests whose progress is recorded.
#[derive(Debug)]
pub(super) struct Stream<S> {
    pub(super) inner: S,
    pub(super) progress: Rc<Progress>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Stream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = room.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, room);
        if read.is_pending() && matches!(self.progress.phase.get(), Phase::Head(_)) {
            self.progress.is_slow.notify_one();
        }
        let came = &room.filled()[before..];
        if !came.is_empty() {
            self.progress.note(came, Instant::now());
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.progress.note_written(written.is_pending());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, parts);
        self.progress.note_written(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        self.progress.note_written(flushed.is_pending());
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_length(pieces: &[&str]) -> bool {
        let progress = Progress::new(Instant::now());
        for piece in pieces {
            progress.note(piece.as_bytes(), Instant::now());
        }
        progress.has_length.get()
    }

    #[test]
    fn a_length_in_the_head_is_seen_however_it_comes() {
        let head = "POST /write HTTP/1.1\r\nHost: x\r\nContent-LENGTH: 4\r\nTransfer-Encoding: chunked\r\n\r\n";
        for cut in 0..head.len() {
            let (first, rest) = head.split_at(cut);
            assert!(has_length(&[first, rest]), "{cut}");
        }
        assert!(has_length(&[&head.replace("\r\n", "\n")]));
        assert!(!has_length(&[&head.replace("Content", "X-Content")]));
        let without = "POST /write HTTP/1.1\r\nHost: x\r\n\r\nContent-Length: 4\r\n";
        assert!(!has_length(&[without]), "a body may say anything");
    }

    #[test]
    fn a_head_begins_with_its_first_letter() {
        let progress = Progress::new(Instant::now());
        progress.note(b"\r\n\r\n", Instant::now());
        assert!(matches!(progress.phase.get(), Phase::Idle(_)), "a line end behind a body");
        progress.note(b"\r\nGET /", Instant::now());
        assert!(matches!(progress.phase.get(), Phase::Head(_)));
        progress.note(b"ping", Instant::now());
        assert_eq!(progress.head_bytes.get(), 11);
    }
}
