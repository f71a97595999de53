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

use super::framer::{self, Framer};
use super::{MAX_TAIL_BYTES, Setup};
use crate::batch::{HandOver, Received};
use crate::protocol::{Refusal, Refused, Stream};
use crate::receive::Pulse;
use crate::receive::intake::{Intake, PUBLISH_INTERVAL};

/// Bytes read at once: then other connections have their turn.
const READ_BYTES: usize = 64 * 1024;
/// How long connections are read, once the thread is to end, whose senders go on sending.
const LAST_READS: Duration = Duration::from_secs(1);
/// How long the thread waits where it cannot accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// One note in this time is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// What a TLS client sends first: a handshake record of any version.
const TLS_HANDSHAKE: &[u8] = b"\x16\x03";
/// What a client that asks for the version is told.
const VERSION: &str = concat!("twinflux ", env!("CARGO_PKG_VERSION"), "\n");

/// What the thread is made of.
pub(super) struct Parts<H> {
    pub(super) setup: Setup,
    pub(super) open: Arc<AtomicU64>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) intake: Intake<H>,
}

/// Runs until told to stop, then takes what has come, and ends.
pub(super) fn run<H: HandOver + 'static>(runtime: &Runtime, socket: StdListener, parts: Parts<H>) {
    let Parts { setup, open, stop, pulse, intake } = parts;
    let serving = Rc::new(Serving {
        setup,
        open,
        stop,
        intake: RefCell::new(intake),
        buffer: RefCell::new(vec![0; READ_BYTES]),
        tail_bytes: Cell::new(0),
        sources: RefCell::default(),
        opened: Notify::new(),
        noted: Notify::new(),
        ends: Cell::new(None),
        log_next: Cell::new(Instant::now()),
    });
    let tasks = LocalSet::new();
    tasks.spawn_local(async move { pulse.answer().await });
    tasks.block_on(runtime, serving.serve(socket));
}

/// What all connections of a listener share; all of it is used on one thread.
struct Serving<H> {
    setup: Setup,
    open: Arc<AtomicU64>,
    stop: watch::Receiver<bool>,
    intake: RefCell<Intake<H>>,
    /// Room for a piece of a stream.
    buffer: RefCell<Vec<u8>>,
    /// The memory that all unfinished lines hold.
    tail_bytes: Cell<usize>,
    /// Open connections of each address.
    sources: RefCell<HashMap<IpAddr, usize>>,
    /// A batch may have been opened.
    opened: Notify,
    /// The table of sources may have changed.
    noted: Notify,
    /// When reading ends at last, once the thread is to end.
    ends: Cell<Option<Instant>>,
    log_next: Cell<Instant>,
}

/// What is known of one connection.
struct Connection {
    stream: TcpStream,
    source: IpAddr,
    framer: Framer,
    state: Stream,
    /// How many of its first bytes are those of a TLS client; none once one was not.
    tls_bytes: Option<usize>,
    /// Whether no whole line has come yet.
    has_no_line: bool,
    /// When the last byte came.
    last: Instant,
    /// When the unfinished line began.
    line_began: Instant,
    /// Its first line, where that is a request of HTTP.
    request: Option<Vec<u8>>,
}

impl Connection {
    /// Whether these next bytes make its beginning that of a TLS client.
    fn begins_as_tls(&mut self, bytes: &[u8]) -> bool {
        let Some(known) = self.tls_bytes.take() else { return false };
        let rest = &TLS_HANDSHAKE[known..];
        if bytes.len() < rest.len() && rest.starts_with(bytes) {
            self.tls_bytes = Some(known + bytes.len());
        }
        bytes.starts_with(rest)
    }
}

/// What takes a connection's lines.
struct Taking<'a, H> {
    intake: &'a mut Intake<H>,
    stream: &'a TcpStream,
    source: IpAddr,
    state: &'a mut Stream,
    has_no_line: &'a mut bool,
    request: &'a mut Option<Vec<u8>>,
}

impl<H: HandOver> framer::Lines for Taking<'_, H> {
    fn read(&mut self, lines: &[u8], is_end: bool) -> usize {
        if std::mem::take(self.has_no_line) {
            *self.request = http_request(lines).map(<[u8]>::to_vec);
        }
        if self.request.is_some() {
            // Headers and body are no lines.
            return lines.len();
        }
        let found = self.intake.stream(lines, self.state, is_end, self.source);
        if found.asks_version {
            // One who does not read the answer does without it.
            drop(self.stream.try_write(VERSION.as_bytes()));
        }
        found.consumed
    }

    fn too_long(&mut self, bytes: &[u8]) {
        self.intake.refuse(Refused { reason: Refusal::TooLong, bytes }, self.source);
    }
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
        let publishing = tokio::task::spawn_local(Rc::clone(&self).publish_sources());
        let mut connections = JoinSet::new();
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
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
            for _ in 0..self.setup.max_connections {
                let Ok((stream, address)) = listener.accept() else { break };
                if stream.set_nonblocking(true).is_ok()
                    && let Ok(stream) = TcpStream::from_std(stream)
                {
                    self.admit(stream, address.ip(), &mut connections);
                }
            }
        }
        while connections.join_next().await.is_some() {}
        sealing.abort();
        publishing.abort();
        let mut intake = self.intake.borrow_mut();
        intake.seal();
        intake.publish();
        intake.publish_sources(Instant::now() + PUBLISH_INTERVAL);
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
            self.log(|| tracing::warn!(%source, open, of_source, "too many connections: turned one away; max_connections and max_connections_per_source bound them"));
        } else {
            let now = Instant::now();
            intake.connect(source, now);
            *self.sources.borrow_mut().entry(source).or_default() += 1;
            self.open.fetch_add(1, Ordering::Relaxed);
            let framer = Framer::new(self.setup.intake.max_line);
            let connection = Connection {
                stream,
                source,
                framer,
                state: Stream::default(),
                tls_bytes: Some(0),
                has_no_line: true,
                last: now,
                line_began: now,
                request: None,
            };
            connections.spawn_local(Rc::clone(self).attend(connection));
        }
        self.notify(&intake);
        intake.publish();
    }

    /// One connection, from its first byte to its end.
    async fn attend(self: Rc<Self>, mut connection: Connection) {
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => {
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
                    // What a quote that nobody closed holds back is not to wait longer.
                    Err(_) if connection.framer.is_joining() => self.end_joining(&mut connection),
                    Err(_) => {
                        self.intake.borrow_mut().tally().timed_out += 1;
                        let (source, in_line) = (connection.source, connection.framer.is_within_line());
                        self.log(|| tracing::info!(%source, in_line, "a connection timed out (idle_timeout, or in_line: line_timeout)"));
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

    /// Takes what has come and was not read yet: until nothing is left or, for a sender that goes on, all that is queued at
    /// the end of the time. (The runtime would first have to be told that there is something.)
    fn read_last(&self, connection: &mut Connection) {
        let end = self.ends.get().unwrap_or_else(|| Instant::now() + LAST_READS);
        self.ends.set(Some(end));
        let mut left = u64::MAX;
        while left > 0 {
            if left == u64::MAX && Instant::now() >= end {
                left = rustix::io::ioctl_fionread(&connection.stream).unwrap_or(0);
            }
            match self.read(connection, |stream, room| (&*SockRef::from(stream)).read(room)) {
                Ok(count @ 1..) if left < u64::MAX => left = left.saturating_sub(count as u64),
                Ok(1..) => {}
                _ => break,
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
        let count = read(&connection.stream, &mut buffer)?;
        let goes_on = count > 0 && self.take(connection, &buffer[..count]);
        Ok(if goes_on { count } else { 0 })
    }

    /// Takes what came; false where the connection is to end.
    fn take(&self, connection: &mut Connection, bytes: &[u8]) -> bool {
        let received = Received::now();
        let mut intake = self.intake.borrow_mut();
        intake.set_clock(received);
        intake.tally().bytes += bytes.len() as u64;
        connection.last = received.monotonic;
        let mut goes_on = true;
        if connection.begins_as_tls(bytes) {
            self.turn_away(&mut intake, connection, bytes, "TLS");
            goes_on = false;
        } else if self.read_lines(&mut intake, connection, |framer, lines| framer.take(bytes, lines)) {
            connection.line_began = received.monotonic;
        }
        if let Some(request) = connection.request.take() {
            self.turn_away(&mut intake, connection, &request, "HTTP");
            goes_on = false;
        }
        goes_on = goes_on && self.has_room_for(connection, &mut intake);
        intake.publish();
        intake.publish_sources(received.monotonic);
        self.notify(&intake);
        goes_on
    }

    /// Lets no line wait any longer for the end of a string.
    fn end_joining(&self, connection: &mut Connection) {
        let received = Received::now();
        let mut intake = self.intake.borrow_mut();
        intake.set_clock(received);
        self.read_lines(&mut intake, connection, |framer, lines| framer.end_joining(lines));
        connection.line_began = received.monotonic;
        intake.publish();
        self.notify(&intake);
    }

    /// Tells those that wait for a time that there may be one.
    fn notify(&self, intake: &Intake<H>) {
        if intake.due().is_some() {
            self.opened.notify_one();
        }
        if intake.sources_due().is_some() {
            self.noted.notify_one();
        }
    }

    /// Has the framer give lines to the intake, and keeps account of the memory that it holds.
    fn read_lines<T>(
        &self,
        intake: &mut Intake<H>,
        connection: &mut Connection,
        frame: impl FnOnce(&mut Framer, &mut Taking<'_, H>) -> T,
    ) -> T {
        let Connection { stream, source, framer, state, has_no_line, request, .. } = connection;
        let before = framer.held_bytes();
        let result = frame(framer, &mut Taking { intake, stream, source: *source, state, has_no_line, request });
        self.tail_bytes.set(self.tail_bytes.get() + framer.held_bytes() - before);
        result
    }

    /// Counts and tells that a sender speaks another protocol; its connection is to end.
    fn turn_away(&self, intake: &mut Intake<H>, connection: &mut Connection, bytes: &[u8], speaks: &str) {
        intake.refuse(Refused { reason: Refusal::WrongFormat, bytes }, connection.source);
        // What follows of it is no line that was cut.
        self.tail_bytes.set(self.tail_bytes.get() - connection.framer.held_bytes());
        connection.framer.clear();
        let (source, listen) = (connection.source, self.setup.listen);
        self.log(
            || tracing::warn!(%source, %listen, "a sender speaks {speaks} to a TCP listener: set it to plain text"),
        );
    }

    /// Whether there is room for its unfinished line. Where there is none, those with more than their share make it.
    fn has_room_for(&self, connection: &Connection, intake: &mut Intake<H>) -> bool {
        let open = usize::try_from(self.open.load(Ordering::Relaxed)).unwrap_or(1).max(1);
        if self.tail_bytes.get() <= MAX_TAIL_BYTES || connection.framer.held_bytes() <= MAX_TAIL_BYTES / open {
            return true;
        }
        intake.tally().limited += 1;
        self.log(|| tracing::warn!(source = %connection.source, "too many unfinished lines: ended a connection"));
        false
    }

    /// Counts what is left without an end, which is never read.
    fn end(&self, connection: &mut Connection) {
        let mut intake = self.intake.borrow_mut();
        intake.set_clock(Received::now());
        let tail = self.read_lines(&mut intake, connection, |framer, lines| framer.finish(lines));
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

    /// Publishes the table of sources also when nothing comes any more.
    async fn publish_sources(self: Rc<Self>) {
        loop {
            let due = self.intake.borrow().sources_due();
            match due {
                None => self.noted.notified().await,
                Some(due) if due <= Instant::now() => self.intake.borrow_mut().publish_sources(Instant::now()),
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

/// Waits until the listener is to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The other end is never gone before that.
    drop(stop.wait_for(|stop| *stop).await);
}

/// The first line, where it is a request of HTTP: its headers and body look like lines of Graphite's.
fn http_request(lines: &[u8]) -> Option<&[u8]> {
    let first = lines.split(|byte| *byte == b'\n').next()?;
    let request = first.strip_suffix(b"\r").unwrap_or(first);
    (request.ends_with(b" HTTP/1.1") || request.ends_with(b" HTTP/1.0")).then_some(request)
}
