//! A connection's bytes on their way to the HTTP server, which is told nothing of this: when a request's head began, so that
//! one that comes too slowly is ended, and when the last bytes came.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::receive::crowd::Member;

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
}

impl Progress {
    pub(super) fn new(now: Instant) -> Rc<Self> {
        Rc::new(Self { phase: Cell::new(Phase::Idle(now)), is_slow: Notify::new() })
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
            match stream.try_read(room.initialize_unfilled()) {
                Ok(count) => {
                    room.advance(count);
                    let now = Instant::now();
                    self.member.last.set(now);
                    if count > 0 && matches!(self.progress.phase.get(), Phase::Idle(_)) {
                        self.progress.phase.set(Phase::Head(now));
                    }
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
