//! A connection's bytes on their way to the HTTP server, which is told nothing of this: when a request's head began, so that
//! one that comes too slowly is ended; when the last bytes came; and whether a head names a length. (The server drops that
//! where there is a `Transfer-Encoding` as well. A proxy before this relay may go by it, and see another request.)

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::receive::crowd::Member;

/// What a line that names a length begins with.
const LENGTH: &[u8] = b"content-length";

/// What a connection does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It waits for a request, since then.
    Idle(Instant),
    /// A request's head has begun, then, and is not whole.
    Head(Instant),
    /// A request is being worked at.
    Working,
}

/// What a connection's stream and its requests tell each other.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) phase: Cell<Phase>,
    /// A head is not whole although more would have to come.
    pub(super) is_slow: Notify,
    /// What came of the head so far, without its whole lines.
    line: RefCell<Vec<u8>>,
    /// Whether a line of the head names a length.
    pub(super) has_length: Cell<bool>,
}

impl Progress {
    pub(super) fn new(now: Instant) -> Rc<Self> {
        let (line, has_length) = Default::default();
        Rc::new(Self { phase: Cell::new(Phase::Idle(now)), is_slow: Notify::new(), line, has_length })
    }

    /// Bytes came.
    fn note(&self, bytes: &[u8], now: Instant) {
        match self.phase.get() {
            Phase::Working => return,
            Phase::Head(_) => {}
            Phase::Idle(_) => {
                self.phase.set(Phase::Head(now));
                self.has_length.set(false);
                self.line.borrow_mut().clear();
            }
        }
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

/// One connection's stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) member: Rc<Member<TcpStream>>,
    pub(super) progress: Rc<Progress>,
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = &self.member.stream;
        loop {
            let Poll::Ready(is_ready) = stream.poll_read_ready(context) else {
                if matches!(self.progress.phase.get(), Phase::Head(_)) {
                    self.progress.is_slow.notify_one();
                }
                return Poll::Pending;
            };
            is_ready?;
            let before = room.filled().len();
            // Room that nothing was read into is not touched: an idle connection's is no memory.
            match stream.try_read_buf(room) {
                Ok(_) => {
                    let now = Instant::now();
                    self.member.last.set(now);
                    self.progress.note(&room.filled()[before..], now);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(context, |stream| stream.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&self.member.stream).shutdown(std::net::Shutdown::Write))
    }
}

impl Stream {
    fn write(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let stream = &self.member.stream;
        loop {
            ready!(stream.poll_write_ready(context))?;
            match write(stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                ended => return Poll::Ready(ended),
            }
        }
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
}
