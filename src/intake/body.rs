//! A request's lines: they have a destination of their own, and a sender who waits to hear what became of them.
//!
//! Each request has a builder of its own, which takes the place of the listener's while a piece of it is read. So lines of
//! one request never wait for those of another.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::{Intake, SAMPLE_BYTES};
use crate::batch::{Builder, Destination, Submit};
use crate::protocol::{Format, Found, Precision, Reader, Refusal, Refused, Rules, Stamper, Stream};

/// The lines of one request: where they go, and what became of them so far.
#[derive(Debug)]
pub(crate) struct Body {
    kind: (Option<Format>, Precision),
    stream: Stream,
    builder: Builder,
    told: Told,
}

/// What a request's sender is to be told of its lines.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Lines accepted.
    pub(crate) accepted: u64,
    /// Lines refused.
    pub(crate) refused: u64,
    /// The first of them.
    pub(crate) samples: Vec<Sample>,
    /// How many samples are kept; 0 of anything but a request.
    most_samples: usize,
}

/// A refused line, for its sender.
#[derive(Debug)]
pub(crate) struct Sample {
    /// Its number among the lines, from 1 on.
    pub(crate) number: u64,
    /// Its beginning.
    pub(crate) line: Vec<u8>,
    pub(crate) reason: Refusal,
}

impl Body {
    /// When what it has so far is to be handed over; none while it has nothing.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.builder.due()
    }

    /// Notes a refused line that is counted nowhere else: of a body of which nothing is taken.
    pub(crate) fn tell(&mut self, number: u64, refused: Refused<'_>) {
        self.told.refuse(refused);
        if let Some(sample) = self.told.samples.last_mut() {
            sample.number = number;
        }
    }
}

impl<H: Submit> Intake<H> {
    /// Begins a request, whose lines are of this format and go to this destination; so many refused ones are kept for its
    /// sender.
    pub(crate) fn begin_body(
        &mut self,
        format: Option<Format>,
        destination: Arc<Destination>,
        most_samples: usize,
    ) -> Body {
        let kind = (format, destination.precision());
        self.readers.entry(kind).or_insert_with(|| {
            let rules = Rules { precision: kind.1, ..self.setup.rules() };
            (Reader::new(format, self.setup.mapping.clone(), rules), Stamper::new(kind.1))
        });
        let builder = Builder::small(destination, Arc::clone(&self.pool), self.limits);
        Body { kind, stream: Stream::default(), builder, told: Told { most_samples, ..Told::default() } }
    }

    /// Takes whole lines of a request, as [`Self::stream`] does.
    pub(crate) fn body(&mut self, body: &mut Body, bytes: &[u8], is_end: bool, source: IpAddr) -> Found {
        let mut stream = body.stream;
        let found = self.within(body, |intake| intake.stream(bytes, &mut stream, is_end, source));
        body.stream = stream;
        found
    }

    /// Counts a line of a request that was not even read.
    pub(crate) fn refuse_in(&mut self, body: &mut Body, refused: Refused<'_>, source: IpAddr) {
        self.within(body, |intake| intake.refuse(refused, source));
    }

    /// Hands over what a request has so far, if it waits for as long as lines may. A slow request keeps no buffer.
    pub(crate) fn seal_aged(&mut self, body: &mut Body, now: Instant) {
        if body.builder.due().is_some_and(|due| due <= now) {
            let empty = Builder::small(Arc::clone(body.builder.destination()), Arc::clone(&self.pool), self.limits);
            self.finish(std::mem::replace(&mut body.builder, empty));
        }
    }

    /// Hands over what a request has left, and says what its sender is to be told.
    pub(crate) fn end_body(&mut self, body: Body) -> Told {
        let Body { builder, told, .. } = body;
        self.finish(builder);
        told
    }

    fn finish(&mut self, builder: Builder) {
        self.lines.elsewhere -= builder.lines();
        if let Some(batch) = builder.finish() {
            self.lines.submit(batch);
        }
    }

    /// Does something with a request's reader and builder in the place of the listener's own.
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
        std::mem::swap(&mut self.lines.told, &mut body.told);
    }
}

impl Told {
    pub(crate) fn refuse(&mut self, Refused { reason, bytes }: Refused<'_>) {
        self.refused += 1;
        if self.samples.len() < self.most_samples {
            let line = bytes[..bytes.len().min(SAMPLE_BYTES)].trim_ascii_end().to_vec();
            self.samples.push(Sample { number: self.accepted + self.refused, line, reason });
        }
    }
}
