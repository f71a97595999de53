//! The lines of a request: they have a destination of their own, and a sender who waits for the
//! outcome.
//!
//! Owns: each request's builder, which replaces the listener's while a piece of the request is
//! read. Lines of one request therefore never wait for those of another. Never does: reading
//! sockets. Bounds: `max_samples` samples per request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::{Intake, SAMPLE_BYTES};
use crate::batch::{Builder, Destination, Submit};
use crate::protocol::{Format, Found, Precision, Reader, Refusal, Refused, Rules, Stamper, Stream};

/// The lines of one request: their destination, and their outcome so far.
#[derive(Debug)]
pub(crate) struct Body {
    kind: (Option<Format>, Precision),
    stream: Stream,
    builder: Builder,
    outcome: Told,
}

/// The outcome of a request's lines, for its sender.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Lines accepted.
    pub(crate) accepted: u64,
    /// Lines refused.
    pub(crate) refused: u64,
    /// The first refused lines.
    pub(crate) samples: Vec<Sample>,
    /// Maximum number of samples; 0 for anything but a request.
    max_samples: usize,
}

/// A refused line, for its sender.
#[derive(Debug)]
pub(crate) struct Sample {
    /// The line's number in the request, from 1.
    pub(crate) number: u64,
    /// The beginning of the line.
    pub(crate) line: Vec<u8>,
    pub(crate) reason: Refusal,
}

impl Body {
    /// Returns when the accumulated lines are due for submission; `None` if there are none.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.builder.due()
    }

    /// Notes a refused line that is counted nowhere else, because nothing of the body is accepted.
    pub(crate) fn tell(&mut self, number: u64, refused: Refused<'_>) {
        self.outcome.refuse(refused);
        if let Some(sample) = self.outcome.samples.last_mut() {
            sample.number = number;
        }
    }
}

impl<H: Submit> Intake<H> {
    /// Begins a request whose lines are in this format and go to this destination. Keeps at most
    /// `max_samples` refused lines for its sender.
    pub(crate) fn begin_body(
        &mut self,
        format: Option<Format>,
        destination: Arc<Destination>,
        max_samples: usize,
    ) -> Body {
        let kind = (format, destination.precision());
        self.readers.entry(kind).or_insert_with(|| {
            let rules = Rules { precision: kind.1, ..self.setup.rules() };
            (Reader::new(format, self.setup.mapping.clone(), rules), Stamper::new(kind.1))
        });
        let builder = Builder::small(destination, Arc::clone(&self.pool), self.limits);
        Body { kind, stream: Stream::default(), builder, outcome: Told { max_samples, ..Told::default() } }
    }

    /// Processes whole lines of a request, as [`Self::stream`] does.
    pub(crate) fn body(&mut self, body: &mut Body, bytes: &[u8], is_end: bool, source: IpAddr) -> Found {
        let mut stream = body.stream;
        let found = self.within(body, |intake| intake.stream(bytes, &mut stream, is_end, source));
        body.stream = stream;
        found
    }

    /// Counts a refused line of a request that was not read.
    pub(crate) fn refuse_in(&mut self, body: &mut Body, refused: Refused<'_>, source: IpAddr) {
        self.within(body, |intake| intake.refuse(refused, source));
    }

    /// Submits a request's lines once they have waited for the maximum age of a batch, so that a
    /// slow request holds no buffer.
    pub(crate) fn seal_aged(&mut self, body: &mut Body, now: Instant) {
        if body.builder.due().is_some_and(|due| due <= now) {
            let empty = Builder::small(Arc::clone(body.builder.destination()), Arc::clone(&self.pool), self.limits);
            self.finish(std::mem::replace(&mut body.builder, empty));
        }
    }

    /// Submits a request's remaining lines, and returns their outcome.
    pub(crate) fn end_body(&mut self, body: Body) -> Told {
        let Body { builder, outcome, .. } = body;
        self.finish(builder);
        outcome
    }

    fn finish(&mut self, builder: Builder) {
        self.lines.elsewhere -= builder.lines();
        if let Some(batch) = builder.finish() {
            self.lines.submit(batch);
        }
    }

    /// Calls `work` with a request's reader and builder in place of the listener's own.
    fn within<T>(&mut self, body: &mut Body, work: impl FnOnce(&mut Self) -> T) -> T {
        let Some((mut reader, mut stamper)) = self.readers.remove(&body.kind) else {
            unreachable!("BUG: a request that has begun has a reader")
        };
        self.lines.elsewhere -= body.builder.lines();
        let received = self.lines.received;
        stamper.set_clock(received.wall.nanoseconds());
        self.swap(body, &mut reader, &mut stamper);
        let result = work(self);
        self.swap(body, &mut reader, &mut stamper);
        self.lines.elsewhere += body.builder.lines();
        self.readers.insert(body.kind, (reader, stamper));
        result
    }

    fn swap(&mut self, body: &mut Body, reader: &mut Reader, stamper: &mut Stamper) {
        std::mem::swap(&mut self.reader, reader);
        std::mem::swap(&mut self.lines.stamper, stamper);
        std::mem::swap(&mut self.lines.builder, &mut body.builder);
        std::mem::swap(&mut self.lines.outcome, &mut body.outcome);
    }
}

impl Told {
    pub(crate) fn refuse(&mut self, Refused { reason, bytes }: Refused<'_>) {
        self.refused += 1;
        if self.samples.len() < self.max_samples {
            let line = bytes[..bytes.len().min(SAMPLE_BYTES)].trim_ascii_end().to_vec();
            self.samples.push(Sample { number: self.accepted + self.refused, line, reason });
        }
    }
}
