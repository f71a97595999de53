//! Streams an answer from a backend to a reader. If the backend cuts it, the reader's answer is
//! cut, too.
//!
//! Owns: the answer's connection and slot. Never does: hold more than one piece, or continue with
//! another copy's answer. Bounds: the time without a piece.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use super::backend::Backend;
use super::slots::Slot;
use crate::deliver::Link;

/// The body of a backend's answer.
pub(super) struct Passing {
    /// Data that was read before the body was passed on.
    first: Option<Bytes>,
    /// `None` once the body has ended.
    incoming: Option<Incoming>,
    link: Option<Link>,
    backend: Arc<Backend>,
    _slot: Slot,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Passing {
    pub(super) fn new(
        first: Option<Bytes>,
        incoming: Incoming,
        link: Link,
        backend: Arc<Backend>,
        slot: Slot,
        timeout: Duration,
    ) -> Self {
        let timer = Box::pin(sleep(timeout));
        Self { first, incoming: Some(incoming), link: Some(link), backend, _slot: slot, timeout, timer }
    }

    /// Ends an answer of known length with its last piece, because the body is not polled again.
    fn keep_link_at_the_end(&mut self) {
        if self.incoming.as_ref().is_some_and(Body::is_end_stream) {
            self.end();
        }
    }

    /// Ends a whole answer. Its connection is kept for another question.
    fn end(&mut self) {
        self.incoming = None;
        if let Some(link) = self.link.take() {
            self.backend.keep(link);
        }
    }

    fn cut(&mut self, error: io::Error) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.backend.figures.note_cut();
        (self.incoming, self.link) = (None, None);
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for Passing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(first) = self.first.take() {
            self.keep_link_at_the_end();
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(incoming).poll_frame(context) else {
            ready!(self.timer.as_mut().poll(context));
            return self.cut(io::ErrorKind::TimedOut.into());
        };
        let until = Instant::now() + self.timeout;
        self.timer.as_mut().reset(until);
        match frame {
            Some(Ok(frame)) => {
                self.keep_link_at_the_end();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => self.cut(io::Error::other(error)),
            None => {
                self.end();
                Poll::Ready(None)
            }
        }
    }
}
