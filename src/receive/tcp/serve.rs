//! The thread of a TCP listener: its connections as tasks on one runtime, all on this thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{IpAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, sleep_until, timeout_at};

use super::framer::Framer;
use super::{MAX_TAIL_BYTES, Setup};
use crate::batch::{HandOver, Received};
use crate::protocol::line::MAX_LINE_BYTES;
use crate::protocol::{Format, Refusal, Refused};
use crate::receive::intake::{Intake, Shown};

/// Bytes read at once: then other connections have their turn.
const READ_BYTES: usize = 64 * 1024;
/// Pieces read of one connection, at most, once the thread is to end.
const LAST_READS: usize = 1024;
/// How long the thread waits where it cannot accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// One note of each kind in this time is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// What a client that asks for the version is told.
const VERSION: &str = concat!("twinflux ", env!("CARGO_PKG_VERSION"), "\n");

/// What the thread is made of.
pub(super) struct Parts<H> {
    pub(super) setup: Setup,
    pub(super) shown: Arc<Shown>,
    pub(super) open: Arc<AtomicU64>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) intake: Intake<H>,
}

/// Runs until told to stop, then takes what has come, and ends.
pub(super) fn run<H: HandOver + 'static>(runtime: &Runtime, socket: StdListener, parts: Parts<H>) {
    let Parts { setup, shown, open, stop, intake } = parts;
    let serving = Rc::new(Serving {
        setup,
        shown,
        open,
        stop,
        intake: RefCell::new(intake),
        buffer: RefCell::new(vec![0; MAX_LINE_BYTES + READ_BYTES]),
        tail_bytes: Cell::new(0),
        sources: RefCell::default(),
        opened: Notify::new(),
        log_next: Cell::new(Instant::now()),
    });
    let tasks = LocalSet::new();
    tasks.block_on(runtime, serving.serve(socket));
}

/// What all connections of a listener share; all of it is used on one thread.
struct Serving<H> {
    setup: Setup,
    shown: Arc<Shown>,
    open: Arc<AtomicU64>,
    stop: watch::Receiver<bool>,
    intake: RefCell<Intake<H>>,
    /// Room for a connection's unfinished line and what comes behind it.
    buffer: RefCell<Vec<u8>>,
    /// The sum of all unfinished lines.
    tail_bytes: Cell<usize>,
    /// Open connections of each address.
    sources: RefCell<HashMap<IpAddr, usize>>,
    /// A batch may have been opened.
    opened: Notify,
    log_next: Cell<Instant>,
}

/// What is known of one connection.
struct Connection {
    stream: TcpStream,
    source: IpAddr,
    framer: Framer,
    /// Its format, once its first line told.
    format: Option<Format>,
    has_read: bool,
    /// When the last byte came.
    last: Instant,
    /// When the unfinished line began.
    line_began: Instant,
}

impl<H: HandOver + 'static> Serving<H> {
    async fn serve(self: Rc<Self>, socket: StdListener) {
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "cannot serve TCP");
                return;
            }
        };
        let sealing = tokio::task::spawn_local(Rc::clone(&self).seal_in_time());
        let mut connections = JoinSet::new();
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => self.admit(stream, address.ip(), &mut connections),
                    Err(error) => {
                        self.log(|| tracing::warn!(%error, "cannot accept a connection; is the limit of open files too low?"));
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
            while connections.try_join_next().is_some() {}
        }
        // Those that the kernel has accepted already may have sent all they have.
        if let Ok(listener) = listener.into_std() {
            while let Ok((stream, address)) = listener.accept() {
                if stream.set_nonblocking(true).is_ok()
                    && let Ok(stream) = TcpStream::from_std(stream)
                {
                    self.admit(stream, address.ip(), &mut connections);
                }
            }
        }
        while connections.join_next().await.is_some() {}
        sealing.abort();
        self.intake.borrow_mut().seal();
        self.intake.borrow_mut().publish();
    }

    /// Serves a connection, or turns it away.
    fn admit(self: &Rc<Self>, stream: TcpStream, source: IpAddr, connections: &mut JoinSet<()>) {
        let source = source.to_canonical();
        let mut intake = self.intake.borrow_mut();
        let open = usize::try_from(self.open.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        let of_source = self.sources.borrow().get(&source).copied().unwrap_or(0);
        if !self.setup.intake.allows(Some(source)) {
            intake.tally().denied += 1;
        } else if open >= self.setup.max_connections || of_source >= self.setup.max_connections_per_source {
            intake.tally().limited += 1;
            self.log(|| tracing::warn!(%source, open, of_source, "too many connections: turned one away"));
        } else {
            intake.tally().connections += 1;
            let now = Instant::now();
            self.shown.sources().connect(source, now);
            *self.sources.borrow_mut().entry(source).or_default() += 1;
            self.open.fetch_add(1, Ordering::Relaxed);
            let framer = Framer::default();
            let connection =
                Connection { stream, source, framer, format: None, has_read: false, last: now, line_began: now };
            connections.spawn_local(Rc::clone(self).attend(connection));
        }
        intake.publish();
    }

    /// One connection, from its first byte to its end.
    async fn attend(self: Rc<Self>, mut connection: Connection) {
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => {
                    self.read_last(&mut connection);
                    break;
                }
                ready = timeout_at(self.deadline(&connection).into(), connection.stream.readable()) => match ready {
                    Ok(Ok(())) => match self.read(&mut connection, |stream, room| stream.try_read(room)) {
                        Ok(0) => break,
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_) => break,
                    },
                    Ok(Err(_)) => break,
                    Err(_) => {
                        self.intake.borrow_mut().tally().timed_out += 1;
                        break;
                    }
                },
            }
        }
        self.end(&mut connection);
    }

    /// When a connection on which nothing comes is ended.
    fn deadline(&self, connection: &Connection) -> Instant {
        let idle = connection.last + self.setup.idle_timeout;
        let line = connection.line_began + self.setup.line_timeout;
        if connection.framer.is_within_line() { idle.min(line) } else { idle }
    }

    /// Takes what has come and was not read yet. (The runtime would first have to be told that there is something.)
    fn read_last(&self, connection: &mut Connection) {
        for _ in 0..LAST_READS {
            let read = self.read(connection, |stream, room| (&*SockRef::from(stream)).read(room));
            if !matches!(read, Ok(1..)) {
                break;
            }
        }
    }

    /// Reads once, without waiting, and takes what came; 0 at the stream's end, or where it is to end.
    fn read(
        &self,
        connection: &mut Connection,
        read: impl FnOnce(&TcpStream, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut buffer = self.buffer.borrow_mut();
        let tail = connection.framer.tail().len();
        buffer[..tail].copy_from_slice(connection.framer.tail());
        let count = read(&connection.stream, &mut buffer[tail..tail + READ_BYTES])?;
        if count == 0 {
            return Ok(0);
        }
        let goes_on = self.take(connection, &buffer[..tail + count], count as u64);
        Ok(if goes_on { count } else { 0 })
    }

    /// Takes what came behind the unfinished line; false where the connection is to end.
    fn take(&self, connection: &mut Connection, bytes: &[u8], count: u64) -> bool {
        let received = Received::now();
        let mut intake = self.intake.borrow_mut();
        intake.set_clock(received);
        intake.tally().bytes += count;
        let before = connection.framer.tail().len();
        let was_within_line = connection.framer.is_within_line();
        let piece = connection.framer.take(bytes);
        self.tail_bytes.set(self.tail_bytes.get() + connection.framer.tail().len() - before);
        if !was_within_line || !piece.lines.is_empty() {
            connection.line_began = received.monotonic;
        }
        connection.last = received.monotonic;
        let mut goes_on = true;
        let is_first = !connection.has_read && !piece.lines.is_empty();
        connection.has_read |= is_first;
        if is_first && let Some(request) = http_request(piece.lines) {
            intake.refuse(Refused { reason: Refusal::WrongFormat, bytes: request }, connection.source);
            self.log(|| {
                tracing::warn!(source = %connection.source, "speaks HTTP to a TCP listener: use its plain text format, without http");
            });
            goes_on = false;
        } else if !piece.lines.is_empty() {
            let found = intake.stream(piece.lines, &mut connection.format, connection.source);
            if found.asks_version {
                // One who does not read the answer does without it.
                drop(connection.stream.try_write(VERSION.as_bytes()));
            }
        }
        if let Some(bytes) = piece.too_long {
            intake.refuse(Refused { reason: Refusal::TooLong, bytes }, connection.source);
        }
        if self.tail_bytes.get() > MAX_TAIL_BYTES {
            intake.tally().limited += 1;
            self.log(|| tracing::warn!(source = %connection.source, "too many unfinished lines: ended a connection"));
            goes_on = false;
        }
        intake.publish();
        if intake.due().is_some() {
            self.opened.notify_one();
        }
        goes_on
    }

    /// Counts what is left without an end, which is never read.
    fn end(&self, connection: &mut Connection) {
        let mut intake = self.intake.borrow_mut();
        let tail = connection.framer.finish();
        self.tail_bytes.set(self.tail_bytes.get() - tail.len());
        if !tail.is_empty() {
            intake.refuse(Refused { reason: Refusal::Truncated, bytes: &tail }, connection.source);
        }
        intake.publish();
        let mut sources = self.sources.borrow_mut();
        if let Some(open) = sources.get_mut(&connection.source) {
            *open -= 1;
            if *open == 0 {
                sources.remove(&connection.source);
            }
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Hands the open batch over when it is due.
    async fn seal_in_time(self: Rc<Self>) {
        loop {
            let due = self.intake.borrow().due();
            match due {
                None => self.opened.notified().await,
                Some(due) if due <= Instant::now() => self.intake.borrow_mut().seal(),
                Some(due) => sleep_until(due.into()).await,
            }
        }
    }

    /// Logs, seldom.
    fn log(&self, write: impl FnOnce()) {
        let now = Instant::now();
        if self.log_next.get() <= now {
            self.log_next.set(now + LOG_INTERVAL);
            write();
        }
    }
}

/// The first line, where it is a request of HTTP: its headers and body look like lines of Graphite's.
fn http_request(lines: &[u8]) -> Option<&[u8]> {
    let first = lines.split(|byte| *byte == b'\n').next()?;
    let request = first.strip_suffix(b"\r").unwrap_or(first);
    (request.ends_with(b" HTTP/1.1") || request.ends_with(b" HTTP/1.0")).then_some(request)
}
