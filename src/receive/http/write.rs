//! The path of a request's lines: from its body to the journal, and to the answer.
//!
//! A request is not answered before its lines are safe at the configured durability. A body is
//! decompressed and scanned piece by piece; only an unfinished line is buffered. If a sender
//! disconnects in the middle of a body, its complete lines are kept.
//!
//! Bounds: a body, both compressed and decompressed, its growth, and its number of chunks; the
//! memory of all bodies; the time to receive a body, and the time until it is safe.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, HeaderMap};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout, timeout_at};

use super::answer::MAX_SAMPLES;
use super::inflate::{INFLATE_BYTES, Inflater};
use super::kept::Part;
use super::problem::Problem;
use super::serve::Serving;
use crate::batch::{Batch, Destination, Received, Submit, Ticket};
use crate::intake::framer::{self, Framer};
use crate::intake::{Body, Intake, Told};
use crate::protocol::{Format, JsonList, Precision, Refusal, Refused, Rules, Scanner};

/// Time limit for receiving a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Minimum rate of a body in bytes per second, enforced once [`RATE_FROM`] has passed.
const MIN_RATE: u64 = 1024;
const RATE_FROM: Duration = Duration::from_secs(5);
/// Number of decompressed bytes of a body after which the task yields to the listener's other
/// connections. Otherwise, on a thread that is never idle, answers that are due and hosts with
/// little to send would wait for all large bodies that have arrived.
const TURN_BYTES: usize = 64 * 1024;
/// How long a body may wait for the journal in total. A client that gives up sends the body again;
/// Telegraf does so after 5 s.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(4);
/// How often to poll the journal for capacity.
const CAPACITY_POLL: Duration = Duration::from_millis(1);
/// Maximum size in bytes of a body that is buffered as a whole, because none of its lines is
/// accepted if one is bad.
const WHOLE_BYTES: usize = 1 << 20;
/// Number of chunks of a body that may be tiny. Beyond it, chunks must have at least [`TINY_BYTES`]
/// on average.
const TINY_CHUNKS: u64 = 65_536;
const TINY_BYTES: u64 = 64;
/// How much of a body is read after its answer is known, and for how long. Without this, the client
/// would get a connection reset instead of the answer.
const DRAIN_BYTES: u64 = 1 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// How to process a body.
pub(super) struct Job {
    pub(super) destination: Arc<Destination>,
    /// Format of the lines. `None`: detected.
    pub(super) format: Option<Format>,
    /// Whether good lines are accepted when others are bad.
    pub(super) accepts_partial: bool,
    /// Whether the body may be a JSON list, as exporters send it.
    pub(super) may_be_list: bool,
}

/// Why a request's lines were not confirmed.
#[derive(Debug)]
pub(super) enum Failed {
    Problem(Problem),
    /// The client disconnected, or the framing is broken. Any answer could make an intermediary
    /// discard the rest.
    Cut,
    /// The body arrives too slowly. Clients send again what was not answered, and drop what was
    /// answered with 4xx.
    Slow,
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// Takes a request's lines, and returns their outcome once they are safe.
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

/// Reads and discards a body up to a bound, unless its client waits for `100 Continue` before it
/// sends it.
pub(super) async fn drain(request: Request<Incoming>) {
    if !waits(request.headers()) {
        drain_body(&mut request.into_body()).await;
    }
}

/// Whether a client waits for permission to send its body.
fn waits(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Reads and discards the rest of a body up to a bound.
async fn drain_body(incoming: &mut Incoming) {
    let until = tokio::time::Instant::now() + DRAIN_TIME;
    let mut left = DRAIN_BYTES;
    while let Ok(Some(Ok(frame))) = timeout_at(until, incoming.frame()).await {
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        let Some(less) = left.checked_sub(bytes) else { return };
        left = less;
    }
}

/// Whether a body is compressed with gzip.
///
/// # Errors
/// Its encoding is not supported.
fn is_gzip(request: &Request<Incoming>) -> Result<bool, Problem> {
    let Some(encoding) = request.headers().get(CONTENT_ENCODING) else { return Ok(false) };
    match encoding.to_str().unwrap_or("?").trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(false),
        "gzip" | "x-gzip" => Ok(true),
        _ => Err(Problem::Encoding),
    }
}

/// A body that is being received.
struct Taking<H: Submit + Sync + 'static> {
    serving: Rc<Serving<H>>,
    source: IpAddr,
    /// Time of the request; lines without a timestamp get it.
    received: Received,
    framer: Framer,
    /// `None` once it is finished.
    body: Option<Body>,
    precision: Precision,
    /// Whether the body may be a JSON list, whether it is one (once known), and the list's parser.
    may_be_list: bool,
    is_list: Option<bool>,
    list: JsonList,
    /// Bytes processed in this turn.
    turn: usize,
    /// Batches that wait for the journal's capacity, oldest first.
    batches: VecDeque<Batch>,
    tickets: Vec<Arc<Ticket>>,
    /// How long it has waited for the journal's capacity.
    waited: Duration,
    /// Account of the memory for an unfinished line, or for a body that is buffered as a whole.
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
            body: Some(intake.begin_body(job.format, Arc::clone(&job.destination), MAX_SAMPLES)),
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

    /// Reads the body until it ends.
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
            // Boxed because it is rare and large; its state would otherwise enlarge every request's
            // future.
            Box::pin(self.take_whole(&whole)).await?;
        }
        Ok(())
    }

    /// Returns the body's next bytes, or `None` at its end.
    async fn next_data(&mut self, incoming: &mut Incoming, begun: Instant, wire: u64) -> Result<Option<Bytes>, Failed> {
        loop {
            let by_rate = RATE_FROM + Duration::from_secs(wire / MIN_RATE);
            // Time spent waiting for the journal does not count against the client.
            let deadline = begun + self.waited + BODY_TIMEOUT.min(by_rate);
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
                // The lines of a slow body do not wait for its end.
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

    /// Processes a piece of the body, or buffers it if `whole` is given.
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

    /// Takes a whole body if none of its lines is bad. Otherwise takes none of them.
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

    /// Lets the framer pass lines to the intake.
    fn lines(&mut self, frame: impl FnOnce(&mut Framer, &mut Lines<'_, H>)) {
        let Some(body) = &mut self.body else { return };
        let mut intake = self.serving.intake.borrow_mut();
        intake.set_clock(Received { monotonic: Instant::now(), wall: self.received.wall });
        frame(&mut self.framer, &mut Lines { intake: &mut intake, body, source: self.source });
        intake.publish();
        intake.publish_sources(self.received.monotonic);
        self.serving.notify(&intake);
    }

    /// Accounts for this many buffered bytes. Fails if they exceed the connection's share.
    fn keep(&mut self, bytes: usize) -> Result<(), Problem> {
        if self.kept.set(bytes, self.serving.open_connections()) { Ok(()) } else { Err(Problem::Half) }
    }

    /// Submits the sealed batches to the journal, each once there is capacity.
    async fn pass_on(&mut self) -> Result<(), Problem> {
        self.collect();
        while let Some(batch) = self.batches.pop_front() {
            let shelf = &self.serving.shelf;
            let refused = if shelf.has_capacity() { shelf.pass_on(batch).err() } else { Some(batch) };
            let Some(batch) = refused else { continue };
            self.batches.push_front(batch);
            self.wait_for_capacity().await?;
        }
        self.serving.intake.borrow_mut().publish();
        Ok(())
    }

    /// Waits for the journal's capacity. Of thousands of waiting requests, only the first polls.
    async fn wait_for_capacity(&mut self) -> Result<(), Problem> {
        let (serving, since) = (Rc::clone(&self.serving), Instant::now());
        let capacity = async {
            let _turn = serving.turn.lock().await;
            while !serving.shelf.has_capacity() {
                sleep(CAPACITY_POLL).await;
            }
        };
        let is_there = timeout(JOURNAL_TIMEOUT.saturating_sub(self.waited), capacity).await.is_ok();
        self.waited += since.elapsed();
        if is_there { Ok(()) } else { Err(Problem::Half) }
    }

    /// Collects the batches that the intake has sealed since the last call. They belong to this
    /// request.
    fn collect(&mut self) {
        for batch in self.serving.shelf.take() {
            self.tickets.extend(batch.ticket().cloned());
            self.batches.push_back(batch);
        }
    }

    /// Ends the body, complete or cut off, and waits until all of its lines are safe.
    async fn finish(mut self, is_whole: bool) -> Result<Told, Problem> {
        let told = self.end(is_whole);
        self.pass_on().await?;
        let until = tokio::time::Instant::now() + JOURNAL_TIMEOUT.saturating_sub(self.waited);
        for ticket in std::mem::take(&mut self.tickets) {
            match timeout_at(until, ticket.wait(self.serving.step)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Problem::Half),
                Err(_) => return Err(Problem::Late),
            }
        }
        Ok(told)
    }

    /// Processes the last line and seals the rest. The end of a complete body terminates its last
    /// line.
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
        // A line that was cut off may look like a complete line with another value.
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
    /// Saves the lines of a request that is cancelled while it waits.
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

/// Passes a body's lines to the intake.
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
