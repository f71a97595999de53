//! One request's lines: from its body to the journal, and to what its sender is told.
//!
//! Nothing is answered before the lines are safe at the configured durability. Nothing of a body is kept but an unfinished line:
//! it is decompressed and scanned piece by piece. A sender that goes in the middle has sent the lines that ended.
//!
//! Bounds: a body, compressed and decompressed, how far it may grow, and in how many chunks; what all bodies keep; the time
//! for a body, and the time until it is safe.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http::Request;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, HeaderMap};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout, timeout_at};

use super::answer::MOST_SAMPLES;
use super::kept::Part;
use super::problem::Problem;
use super::serve::Serving;
use crate::batch::{Batch, Destination, Received, Submit, Ticket};
use crate::intake::framer::{self, Framer};
use crate::intake::{Body, Intake, Told};
use crate::protocol::{Format, JsonList, Precision, Refusal, Refused, Rules, Scanner};

/// How long a body may take to come.
const LONGEST_BODY: Duration = Duration::from_secs(60);
/// A body comes at least so fast, in bytes a second, once this time is over.
const LEAST_RATE: u64 = 1024;
const RATE_FROM: Duration = Duration::from_secs(5);
/// Compressed bytes that are decompressed at a time: a thousand times as many come of them at most.
const INFLATE_BYTES: usize = 1024;
/// Room for decompressed bytes that a request keeps while it waits for more: most pieces of 1,024 become no more.
const KEPT_BYTES: usize = 16 * 1024;
/// How far a body may grow by decompression, once it has so many bytes.
const MOST_GROWTH: u64 = 200;
const GROWTH_FROM: u64 = 1 << 20;
/// After so many bytes of a body, decompressed, it is the turn of the listener's other connections. On a thread that is never
/// idle, answers that are due and hosts with little to say would else wait for all large bodies that are there.
const TURN_BYTES: usize = 64 * 1024;
/// How long a body may wait in all for the journal. A client that gives up sends it again; Telegraf does after 5 s.
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// How often to look for room in front of the journal.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(1);
/// Bodies that are held whole, because none of their lines is taken if one is bad.
const WHOLE_BYTES: usize = 1 << 20;
/// Chunks of a body that may be tiny; later ones are at least so large on average.
const TINY_CHUNKS: u64 = 65_536;
const TINY_BYTES: u64 = 64;
/// How much of a body is read after its answer is known, and for how long: else the client gets a reset instead.
const DRAIN_BYTES: u64 = 1 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// What is to be done with a body.
pub(super) struct Job {
    pub(super) destination: Arc<Destination>,
    /// What it is written in; none: it is told apart.
    pub(super) format: Option<Format>,
    /// Whether good lines are taken although others are bad.
    pub(super) accepts_partial: bool,
    /// Whether the body may be a list of JSON, as exporters post it.
    pub(super) may_be_list: bool,
}

/// Why a request's lines are not answered for.
#[derive(Debug)]
pub(super) enum Failed {
    Problem(Problem),
    /// The client is gone, or the framing is broken. Any answer may make whoever is in between drop the rest.
    Cut,
    /// Bytes come too slowly. Clients send again what was not answered, and drop what was answered 4xx.
    Slow,
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// Takes a request's lines; returns what became of them once they are safe.
pub(super) async fn take<H: Submit + Sync + 'static>(
    serving: &Rc<Serving<H>>,
    job: Job,
    request: Request<Incoming>,
    source: IpAddr,
) -> Result<Told, Failed> {
    let limit = serving.setup.max_body;
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let is_gzip = match is_gzip(&request) {
        Ok(_) if length.is_some_and(|length| length > limit) => Err(Problem::TooLarge(limit)),
        known => known,
    };
    let is_gzip = match is_gzip {
        Ok(is_gzip) => is_gzip,
        Err(problem) => {
            drain(request).await;
            return Err(problem.into());
        }
    };
    let mut incoming = request.into_body();
    let mut taking = Taking::new(serving, &job, source);
    let arriving = serving.naps.arriving();
    let read = taking.read(&mut incoming, is_gzip.then(Inflater::new), limit, job.accepts_partial).await;
    drop(arriving);
    let is_whole = read.is_ok();
    let told = taking.finish(is_whole).await;
    if matches!(read, Err(Failed::Problem(_))) {
        drain_body(&mut incoming).await;
    }
    read?;
    Ok(told?)
}

/// Reads a body that nobody looks at, up to a bound, unless its client waits for a word before it sends it.
pub(super) async fn drain(request: Request<Incoming>) {
    if !waits(request.headers()) {
        drain_body(&mut request.into_body()).await;
    }
}

/// Whether a client asks whether it may send its body.
fn waits(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Reads what is left of a body, up to a bound.
async fn drain_body(incoming: &mut Incoming) {
    let until = tokio::time::Instant::now() + DRAIN_TIME;
    let mut left = DRAIN_BYTES;
    while let Ok(Some(Ok(frame))) = timeout_at(until, incoming.frame()).await {
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        let Some(less) = left.checked_sub(bytes) else { return };
        left = less;
    }
}

/// Whether a body is compressed.
fn is_gzip(request: &Request<Incoming>) -> Result<bool, Problem> {
    let Some(encoding) = request.headers().get(CONTENT_ENCODING) else { return Ok(false) };
    match encoding.to_str().unwrap_or("?").trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(false),
        "gzip" | "x-gzip" => Ok(true),
        _ => Err(Problem::Encoding),
    }
}

/// A body on its way.
struct Taking<H: Submit + Sync + 'static> {
    serving: Rc<Serving<H>>,
    source: IpAddr,
    /// Lines without a timestamp get the request's.
    received: Received,
    framer: Framer,
    /// None once it is finished.
    body: Option<Body>,
    precision: Precision,
    /// Whether the body may be a list of JSON, whether it is, once that is known, and what has come of it.
    may_be_list: bool,
    is_list: Option<bool>,
    list: JsonList,
    /// Bytes that were taken in this turn.
    turn: usize,
    /// Batches that wait for room, oldest first.
    batches: VecDeque<Batch>,
    tickets: Vec<Arc<Ticket>>,
    /// How long it has waited for room.
    waited: Duration,
    /// What it keeps of a line that is not whole, or of a body that must be.
    kept: Part,
}

impl<H: Submit + Sync + 'static> Taking<H> {
    fn new(serving: &Rc<Serving<H>>, job: &Job, source: IpAddr) -> Self {
        let received = Received::now();
        let mut intake = serving.intake.borrow_mut();
        intake.set_clock(received);
        Self {
            serving: Rc::clone(serving),
            source,
            received,
            framer: Framer::new(serving.setup.intake.max_line),
            body: Some(intake.begin_body(job.format, Arc::clone(&job.destination), MOST_SAMPLES)),
            precision: job.destination.precision(),
            may_be_list: job.may_be_list,
            is_list: None,
            list: JsonList::new(serving.setup.intake.max_line),
            turn: 0,
            batches: VecDeque::new(),
            tickets: Vec::new(),
            waited: Duration::ZERO,
            kept: serving.kept.part(),
        }
    }

    /// Reads the body to its end.
    async fn read(
        &mut self,
        incoming: &mut Incoming,
        mut inflater: Option<Inflater>,
        limit: u64,
        accepts_partial: bool,
    ) -> Result<(), Failed> {
        let begun = Instant::now();
        let (mut wire, mut chunks, mut whole) = (0, 0, (!accepts_partial).then(Vec::new));
        while let Some(data) = self.next_data(incoming, begun, wire).await? {
            (wire, chunks) = (wire + data.len() as u64, chunks + 1);
            if wire > limit {
                return Err(Problem::TooLarge(limit).into());
            }
            if chunks > TINY_CHUNKS && wire / chunks < TINY_BYTES {
                return Err(Problem::Framing("too many tiny chunks").into());
            }
            self.serving.intake.borrow_mut().tally().bytes += data.len() as u64;
            match &mut inflater {
                None => self.piece(&data, &mut whole).await?,
                Some(inflater) => {
                    for piece in data.chunks(INFLATE_BYTES) {
                        let inflated = inflater.inflate(piece, limit)?;
                        self.piece(inflated, &mut whole).await?;
                    }
                }
            }
        }
        if let Some(inflater) = inflater.filter(|_| wire > 0) {
            let rest = inflater.finish()?;
            self.piece(&rest, &mut whole).await?;
        }
        if let Some(whole) = whole {
            // Seldom, and large: every request would have room for it.
            Box::pin(self.take_whole(&whole)).await?;
        }
        Ok(())
    }

    /// The body's next bytes; none at its end.
    async fn next_data(&mut self, incoming: &mut Incoming, begun: Instant, wire: u64) -> Result<Option<Bytes>, Failed> {
        loop {
            let by_rate = RATE_FROM + Duration::from_secs(wire / LEAST_RATE);
            // The time for which it had to wait here is not the client's.
            let deadline = begun + self.waited + LONGEST_BODY.min(by_rate);
            let aged = self.body.as_ref().and_then(Body::due);
            let until = aged.map_or(deadline, |aged| aged.min(deadline));
            match timeout_at(until.into(), incoming.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Ok(Some(Err(_))) => return Err(Failed::Cut),
                Ok(None) => return Ok(None),
                Err(_) if Instant::now() >= deadline => return Err(Failed::Slow),
                // A slow body's lines do not wait for its end.
                Err(_) => {
                    let serving = Rc::clone(&self.serving);
                    if let Some(body) = &mut self.body {
                        serving.intake.borrow_mut().seal_aged(body, Instant::now());
                    }
                    self.pass_on().await?;
                }
            }
        }
    }

    /// Takes a piece of the body, or keeps it.
    async fn piece(&mut self, bytes: &[u8], whole: &mut Option<Vec<u8>>) -> Result<(), Problem> {
        if let Some(whole) = whole {
            if whole.len() + bytes.len() > WHOLE_BYTES {
                return Err(Problem::TooLargeForWhole);
            }
            whole.extend_from_slice(bytes);
            return self.keep(whole.capacity());
        }
        if self.is_list.is_none() && self.may_be_list {
            self.is_list = JsonList::begins_with(bytes);
        }
        let mut objects = Vec::new();
        let bytes = if self.is_list == Some(true) {
            self.list.take(bytes, &mut objects);
            &objects
        } else {
            bytes
        };
        self.lines(|framer, lines| {
            framer.take(bytes, lines);
        });
        self.keep(self.framer.held_bytes())?;
        self.pass_on().await?;
        self.turn += bytes.len();
        if self.turn >= TURN_BYTES {
            self.turn = 0;
            yield_now().await;
        }
        Ok(())
    }

    /// Takes a body, unless one of its lines is bad: then none.
    async fn take_whole(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        let setup = &self.serving.setup.intake;
        let rules = Rules { precision: self.precision, max_line: setup.max_line, unsigned: setup.unsigned };
        let mut scanner = Scanner::with(rules);
        let is_bad = scanner.lines(bytes, false).any(|line| line.is_err());
        if is_bad && let Some(body) = &mut self.body {
            let mut number = 0;
            for line in scanner.lines(bytes, false) {
                number += 1;
                if let Err(refused) = line {
                    body.tell(number, refused);
                }
            }
            return Ok(());
        }
        self.lines(|framer, lines| {
            framer.take(bytes, lines);
        });
        self.pass_on().await
    }

    /// Has the framer give lines to the intake.
    fn lines(&mut self, frame: impl FnOnce(&mut Framer, &mut Lines<'_, H>)) {
        let Some(body) = &mut self.body else { return };
        let mut intake = self.serving.intake.borrow_mut();
        intake.set_clock(Received { monotonic: Instant::now(), wall: self.received.wall });
        frame(&mut self.framer, &mut Lines { intake: &mut intake, body, source: self.source });
        intake.publish();
        intake.publish_sources(self.received.monotonic);
        self.serving.notify(&intake);
    }

    /// Keeps so many bytes, if there is room.
    fn keep(&mut self, bytes: usize) -> Result<(), Problem> {
        if self.kept.set(bytes, self.serving.open_connections()) { Ok(()) } else { Err(Problem::Half) }
    }

    /// Gives the batches that were sealed to the journal, each once there is room.
    async fn pass_on(&mut self) -> Result<(), Problem> {
        self.collect();
        while let Some(batch) = self.batches.pop_front() {
            let shelf = &self.serving.shelf;
            let refused = if shelf.has_capacity() { shelf.pass_on(batch).err() } else { Some(batch) };
            let Some(batch) = refused else { continue };
            self.batches.push_front(batch);
            self.wait_for_room().await?;
        }
        self.serving.intake.borrow_mut().publish();
        Ok(())
    }

    /// Waits until there is room. Only the first of those that wait looks for it: thousands may wait.
    async fn wait_for_room(&mut self) -> Result<(), Problem> {
        let (serving, since) = (Rc::clone(&self.serving), Instant::now());
        let room = async {
            let _turn = serving.turn.lock().await;
            while !serving.shelf.has_capacity() {
                sleep(NO_ROOM_PAUSE).await;
            }
        };
        let is_there = timeout(LONGEST_WAIT.saturating_sub(self.waited), room).await.is_ok();
        self.waited += since.elapsed();
        if is_there { Ok(()) } else { Err(Problem::Half) }
    }

    /// Takes what the intake sealed since the last time: it is this request's.
    fn collect(&mut self) {
        for batch in self.serving.shelf.take() {
            self.tickets.extend(batch.ticket().cloned());
            self.batches.push_back(batch);
        }
    }

    /// Ends the body, whole or cut, and waits until all of its lines are safe.
    async fn finish(mut self, is_whole: bool) -> Result<Told, Problem> {
        let told = self.end(is_whole);
        self.pass_on().await?;
        let until = tokio::time::Instant::now() + LONGEST_WAIT.saturating_sub(self.waited);
        for ticket in std::mem::take(&mut self.tickets) {
            match timeout_at(until, ticket.wait(self.serving.step)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Problem::Half),
                Err(_) => return Err(Problem::Late),
            }
        }
        Ok(told)
    }

    /// Reads the last line, which a whole body's end ends, and seals what there is.
    fn end(&mut self, is_whole: bool) -> Told {
        let mut objects = Vec::new();
        self.list.finish(&mut objects);
        self.lines(|framer, lines| {
            framer.take(&objects, lines);
        });
        if is_whole && self.framer.is_within_line() {
            self.lines(|framer, lines| {
                framer.take(b"\n", lines);
            });
            self.lines(|framer, lines| framer.end_joining(lines));
        }
        // What was cut may look like a whole line with another value.
        self.lines(|framer, lines| {
            let tail = framer.finish(lines);
            if !tail.is_empty() {
                lines.refuse(Refused { reason: Refusal::Truncated, bytes: &tail });
            }
        });
        let Some(body) = self.body.take() else { return Told::default() };
        let mut intake = self.serving.intake.borrow_mut();
        let told = intake.end_body(body);
        intake.publish();
        drop(intake);
        self.collect();
        told
    }
}

impl<H: Submit + Sync + 'static> Drop for Taking<H> {
    /// The request goes, whatever it had still to wait for: its lines do not.
    fn drop(&mut self) {
        if self.body.is_some() {
            self.end(false);
        }
        if self.batches.is_empty() {
            return;
        }
        let mut intake = self.serving.intake.borrow_mut();
        for batch in self.batches.drain(..) {
            if let Err(batch) = self.serving.shelf.pass_on(batch) {
                intake.tally().ring_full += self.serving.shelf.lose(&batch);
            }
        }
        intake.publish();
    }
}

/// What takes a body's lines.
struct Lines<'a, H> {
    intake: &'a mut Intake<super::shelf::Shelf<H>>,
    body: &'a mut Body,
    source: IpAddr,
}

impl<H: Submit + Sync> Lines<'_, H> {
    fn refuse(&mut self, refused: Refused<'_>) {
        self.intake.refuse_in(self.body, refused, self.source);
    }
}

impl<H: Submit + Sync> framer::Lines for Lines<'_, H> {
    fn read(&mut self, lines: &[u8], is_end: bool) -> usize {
        self.intake.body(self.body, lines, is_end, self.source).consumed
    }

    fn too_long(&mut self, bytes: &[u8]) {
        self.refuse(Refused { reason: Refusal::TooLong, bytes });
    }
}

/// Decompresses a body, piece by piece.
struct Inflater {
    decoder: MultiGzDecoder<Vec<u8>>,
    wire: u64,
    inflated: u64,
}

impl Inflater {
    fn new() -> Self {
        Self { decoder: MultiGzDecoder::new(Vec::new()), wire: 0, inflated: 0 }
    }

    /// What comes of the next bytes. It has the place of what came before.
    fn inflate(&mut self, bytes: &[u8], limit: u64) -> Result<&[u8], Problem> {
        self.wire += bytes.len() as u64;
        self.decoder.get_mut().clear();
        self.decoder.get_mut().shrink_to(KEPT_BYTES);
        self.decoder.write_all(bytes).map_err(|error| Problem::Gzip(error.to_string()))?;
        self.inflated += self.decoder.get_ref().len() as u64;
        let is_bomb = self.inflated > GROWTH_FROM && self.inflated / self.wire > MOST_GROWTH;
        if self.inflated > limit || is_bomb { Err(Problem::TooLarge(limit)) } else { Ok(self.decoder.get_ref()) }
    }

    /// What comes of the end.
    fn finish(mut self) -> Result<Vec<u8>, Problem> {
        self.decoder.get_mut().clear();
        self.decoder.finish().map_err(|error| Problem::Gzip(error.to_string()))
    }
}
