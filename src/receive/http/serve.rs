//! The thread of an HTTP listener: accepts connections, reads requests, and answers them, all on
//! one runtime.
//!
//! Never does: answering a write before its lines are safe. Bounds: connections in total and per
//! source; a request's head, and the time for it; the time without a request.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, Shutdown, TcpListener as StdListener};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, sleep_until, timeout};

use super::act::gone;
use super::destinations::Destinations;
use super::gate::Gate;
use super::logs::Logs;
use super::nap::Naps;
use super::shelf::Shelf;
use super::stream::{Other, Phase, Progress, Stream};
use super::under_way::UnderWay;
use super::{Host, HttpConfig, kept};
use crate::batch::{Step, Submit};
use crate::intake::{Intake, PUBLISH_INTERVAL};
use crate::net::tls::answer_plain_http;
use crate::receive::Pulse;
use crate::receive::crowd::{Crowd, Entered, Member, reap};
use crate::receive::door::stopped;
use crate::receive::handshake::{Failed, shake_hands};
use crate::receive::proxy::{is_trusted, read_header};
use crate::receive::socket::Socket;

/// How long the thread pauses after it failed to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time limit for a connection's first request, and for a request's head from its first byte.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(15);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may read nothing of its answers.
const STUCK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection may be idle between requests; longer than any writer's interval.
const IDLE: Duration = Duration::from_secs(180);
/// Maximum size of a request head in bytes; Grafana's queries are long.
const HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 64;
/// How long requests in progress may take once the thread is told to stop.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// Arguments of the thread.
pub(super) struct ServeArgs<H> {
    pub(super) setup: HttpConfig,
    pub(super) host: Host,
    pub(super) open: Arc<AtomicU64>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) naps: Arc<Naps>,
    pub(super) shelf: Shelf<H>,
    pub(super) intake: Intake<Shelf<H>>,
    /// The stage that lines must reach before they are answered.
    pub(super) step: Step,
}

/// Runs until told to stop, then finishes the requests in progress.
pub(super) fn run<H: Submit + Sync + 'static>(runtime: &Runtime, socket: StdListener, parts: ServeArgs<H>) {
    let ServeArgs { setup, host, open, stop, pulse, naps, shelf, intake, step } = parts;
    let destinations = Destinations::new(
        Arc::clone(&setup.intake.destination),
        setup.databases.clone(),
        setup.max_databases,
        setup.max_destinations,
    );
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .half_close(true);
    let serving = Rc::new(Serving {
        crowd: RefCell::new(Crowd::new(setup.max_connections, setup.max_connections_per_source)),
        logs: Logs::new(socket.local_addr().unwrap_or(setup.listen)),
        destinations: RefCell::new(destinations),
        begun: Instant::now(),
        gate: Gate::new(setup.auth.clone()),
        kept: kept::All::default(),
        under_way: UnderWay::default(),
        turn: Mutex::new(()),
        intake: RefCell::new(intake),
        noted: Notify::new(),
        naps,
        setup,
        host,
        open,
        stop,
        shelf,
        http,
        step,
    });
    let tasks = LocalSet::new();
    tasks.spawn_local(async move { pulse.answer().await });
    tasks.block_on(runtime, serving.serve(socket));
}

/// State that all connections of a listener share, on one thread.
pub(super) struct Serving<H> {
    pub(super) setup: HttpConfig,
    pub(super) host: Host,
    open: Arc<AtomicU64>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) shelf: Shelf<H>,
    pub(super) gate: Gate,
    pub(super) intake: RefCell<Intake<Shelf<H>>>,
    crowd: RefCell<Crowd<TcpStream>>,
    pub(super) destinations: RefCell<Destinations>,
    pub(super) logs: Logs,
    /// The table of sources may have changed.
    noted: Notify,
    pub(super) naps: Arc<Naps>,
    pub(super) begun: Instant,
    pub(super) kept: kept::All,
    pub(super) under_way: UnderWay,
    /// Held while waiting for the journal's capacity, so that requests are served in turn.
    pub(super) turn: Mutex<()>,
    http: http1::Builder,
    pub(super) step: Step,
}

/// State of a query's answer that is being sent to the client.
#[derive(Default)]
struct Passing {
    /// True until the next request arrives.
    is_under_way: Cell<bool>,
    has_begun: Notify,
}

impl Passing {
    /// Waits until the client has disconnected while an answer was being sent.
    async fn abandoned(&self, member: &Member<TcpStream>) {
        while !self.is_under_way.get() {
            self.has_begun.notified().await;
        }
        gone(member).await;
    }
}

impl<H: Submit + Sync + 'static> Serving<H> {
    async fn serve(self: Rc<Self>, socket: StdListener) {
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "cannot serve HTTP");
                return;
            }
        };
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
                        self.logs.crowd.accept_error(&error);
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
            reap(&mut connections, self.setup.max_connections).await;
        }
        drop(listener);
        let ending = async { while connections.join_next().await.is_some() {} };
        drop(timeout(LAST_REQUESTS, ending).await);
        connections.shutdown().await;
        publishing.abort();
        let mut intake = self.intake.borrow_mut();
        intake.publish();
        intake.publish_sources(Instant::now() + PUBLISH_INTERVAL);
    }

    /// Serves a connection, or turns it away.
    fn admit(self: &Rc<Self>, stream: TcpStream, source: IpAddr, connections: &mut JoinSet<()>) {
        let source = source.to_canonical();
        let mut intake = self.intake.borrow_mut();
        let is_proxy = is_trusted(&self.setup.trusted_proxies, source);
        if is_proxy || self.setup.intake.allows(Some(source)) {
            let now = Instant::now();
            let entered = {
                let mut crowd = self.crowd.borrow_mut();
                if is_proxy { crowd.enter_proxys(stream, source, now) } else { crowd.enter(stream, source, now) }
            };
            if let Entered::Instead(_, idlest) = &entered {
                intake.tally().displaced += 1;
                drop(SockRef::from(&idlest.stream).shutdown(Shutdown::Both));
                self.logs.crowd.displaced(self.setup.max_connections);
            }
            match entered {
                Entered::Free(member) | Entered::Instead(member, _) => {
                    intake.connect(source, now);
                    drop(member.stream.set_nodelay(true));
                    connections.spawn_local(Rc::clone(self).attend(member, source));
                }
                Entered::Full(of_source) => {
                    intake.tally().limited += 1;
                    self.logs.crowd.turned_away(source, of_source);
                }
            }
            self.show_open();
        } else {
            intake.deny(Some(source));
        }
        self.notify(&intake);
        intake.publish();
    }

    /// Serves one connection until it ends.
    async fn attend(self: Rc<Self>, member: Rc<Member<TcpStream>>, source: IpAddr) {
        let named = self.named_source(&member, source).await;
        let source = named.unwrap_or(source);
        match &self.setup.tls {
            _ if named.is_none() => {}
            None => self.serve_requests(Socket(Rc::clone(&member)), &member, source).await,
            Some(certificate) => match shake_hands(certificate, &member, self.stop.clone()).await {
                Ok(stream) => self.serve_requests(stream, &member, source).await,
                Err(failed) => self.end_handshake(&failed, &member, source),
            },
        }
        self.crowd.borrow_mut().leave(&member);
        self.show_open();
    }

    /// Returns the source that a trusted proxy names at the beginning of a connection, or the peer.
    /// `None`: close the connection.
    async fn named_source(&self, member: &Rc<Member<TcpStream>>, peer: IpAddr) -> Option<IpAddr> {
        if !self.setup.proxy_protocol || !is_trusted(&self.setup.trusted_proxies, peer) {
            return Some(peer);
        }
        match read_header(&member.stream).await {
            Ok(None) => return Some(peer),
            Ok(Some(source)) if self.setup.intake.allows(Some(source)) => {
                let Err(of_source) = self.crowd.borrow_mut().name(member, source) else { return Some(source) };
                self.logs.crowd.turned_away(source, of_source);
                let mut intake = self.intake.borrow_mut();
                intake.tally().limited += 1;
                intake.publish();
                return None;
            }
            Ok(Some(_)) => {}
            Err(_) => self.logs.crowd.no_header(peer),
        }
        let mut intake = self.intake.borrow_mut();
        intake.deny(Some(peer));
        intake.publish();
        None
    }

    /// Counts and logs a failed handshake. A client that speaks plain HTTP gets an answer that says
    /// so.
    fn end_handshake(&self, failed: &Failed, member: &Member<TcpStream>, source: IpAddr) {
        match failed {
            Failed::Handshake(error) => self.logs.crowd.handshake(source, error),
            Failed::PlainText => {
                answer_plain_http(&member.stream);
                self.logs.other_protocol(source, "plain HTTP to a listener with TLS: write https:// at the sender");
            }
            Failed::Stopped => {}
            Failed::TimedOut => {
                self.intake.borrow_mut().tally().timed_out += 1;
                self.logs.timed_out(source);
            }
        }
        self.intake.borrow_mut().publish();
    }

    /// Serves the requests of a connection until it ends.
    async fn serve_requests<S>(self: &Rc<Self>, stream: S, member: &Rc<Member<TcpStream>>, source: IpAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let progress = Progress::new(Instant::now());
        let stream = Stream { inner: stream, progress: Rc::clone(&progress) };
        let answered = Rc::new(Cell::new(None));
        let passing = Rc::new(Passing::default());
        let service = service_fn(|request| {
            member.has_line.set(true);
            self.naps.request(answered.get(), Instant::now());
            progress.phase.set(Phase::Working);
            let (serving, progress, answered) = (Rc::clone(self), Rc::clone(&progress), Rc::clone(&answered));
            let (member, passing) = (Rc::clone(member), Rc::clone(&passing));
            let is_query = request.uri().path() == "/query";
            passing.is_under_way.set(false);
            async move {
                // The next head may already have arrived, but has not been parsed.
                let has_length = progress.has_length.take();
                let response = Box::pin(serving.answer(request, source, &member, has_length)).await;
                let now = Instant::now();
                progress.phase.set(Phase::Idle(now));
                answered.set(Some(now));
                if is_query {
                    passing.is_under_way.set(true);
                    passing.has_begun.notify_one();
                }
                response.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted))
            }
        });
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(stream), service));
        let mut stop = self.stop.clone();
        let (mut is_stopping, mut head) = (false, self.kept.part());
        loop {
            let due = || due_at(member.opened, member.has_line.get(), &progress);
            let until = due();
            tokio::select! {
                // Client disconnects are not logged.
                _ = connection.as_mut() => break,
                // A backend must not work for a client that has disconnected, even if the head of
                // the answer has already been sent.
                () = passing.abandoned(member) => {
                    if passing.is_under_way.get() {
                        break;
                    }
                }
                () = stopped(&mut stop), if !is_stopping => {
                    connection.as_mut().graceful_shutdown();
                    is_stopping = true;
                }
                () = progress.is_slow.notified() => {
                    if !head.set(progress.head_bytes.get(), self.open_connections()) {
                        let mut intake = self.intake.borrow_mut();
                        intake.tally().limited += 1;
                        intake.publish();
                        self.logs.unfinished(source);
                        break;
                    }
                }
                () = sleep_until(until.unwrap_or_else(Instant::now).into()), if until.is_some() => {
                    if due().is_some_and(|due| due <= Instant::now()) {
                        let mut intake = self.intake.borrow_mut();
                        intake.tally().timed_out += 1;
                        intake.publish();
                        self.logs.timed_out(source);
                        break;
                    }
                }
            }
        }
        match progress.begins_as.get() {
            Some(Other::Tls) => {
                self.logs.other_protocol(source, "TLS to a listener without it: write http:// at the sender");
            }
            Some(Other::Http2) => self.logs.other_protocol(
                source,
                "HTTP/2, as Flight SQL does, which is not answered here: let it ask a backend itself",
            ),
            None => {}
        }
    }

    /// Publishes the table of sources even when nothing arrives any more.
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

    /// Wakes the publishing task if the table of sources is due.
    pub(super) fn notify(&self, intake: &Intake<Shelf<H>>) {
        if intake.sources_due().is_some() {
            self.noted.notify_one();
        }
    }

    pub(super) fn open_connections(&self) -> usize {
        self.crowd.borrow().open()
    }

    fn show_open(&self) {
        self.open.store(self.open_connections() as u64, Ordering::Relaxed);
    }
}

/// When to close the connection unless bytes are received or sent before.
fn due_at(opened: Instant, has_asked: bool, progress: &Progress) -> Option<Instant> {
    let read = match progress.phase.get() {
        Phase::Head(since) => Some(since + HEAD_TIMEOUT),
        Phase::Idle(_) if !has_asked => Some(opened + FIRST_BYTE_TIMEOUT),
        Phase::Idle(_) | Phase::Working => None,
    };
    let written = progress.stuck.get().map(|since| since + STUCK_TIMEOUT);
    [read, written].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_that_does_nothing_ends() {
        let now = Instant::now();
        let progress = Progress::new(now);
        assert_eq!(due_at(now, false, &progress), Some(now + FIRST_BYTE_TIMEOUT));
        assert_eq!(due_at(now, true, &progress), None, "the server's own limit for idle connections holds");
        progress.phase.set(Phase::Head(now));
        assert_eq!(due_at(now, true, &progress), Some(now + HEAD_TIMEOUT));
        progress.phase.set(Phase::Working);
        assert_eq!(due_at(now, true, &progress), None, "a body has limits of its own");
        progress.stuck.set(Some(now));
        assert_eq!(due_at(now, true, &progress), Some(now + STUCK_TIMEOUT));
        progress.phase.set(Phase::Head(now));
        assert_eq!(due_at(now, true, &progress), Some(now + HEAD_TIMEOUT), "whatever is first");
    }
}
