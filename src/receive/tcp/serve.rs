//! The thread of a TCP listener: accepts connections, and serves each as a task on one runtime, all
//! on this thread.
//!
//! Every task yields after its turn, so a busy sender cannot starve the timers or other
//! connections.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Shutdown, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, sleep_until};

use super::TcpConfig;
use super::connection::Connection;
use super::logs::Logs;
use super::turn::TURN_BYTES;
use super::wire::Wire;
use crate::batch::Submit;
use crate::intake::{Intake, PUBLISH_INTERVAL};
use crate::protocol::{Refusal, Refused};
use crate::receive::Pulse;
use crate::receive::crowd::{Crowd, Entered, Member, reap};
use crate::receive::door::stopped;
use crate::receive::handshake::{Failed, shake_hands};
use crate::receive::proxy::{is_trusted, read_header};

/// How long the thread pauses after it failed to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many bytes of a sender that does not speak TLS are shown as a sample.
const SAMPLE_BYTES: usize = 512;

/// Arguments of the thread.
pub(super) struct ServeArgs<H> {
    pub(super) setup: TcpConfig,
    pub(super) open: Arc<AtomicU64>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) intake: Intake<H>,
}

/// Runs until told to stop, then reads what has arrived.
pub(super) fn run<H: Submit + 'static>(runtime: &Runtime, socket: StdListener, parts: ServeArgs<H>) {
    let ServeArgs { setup, open, stop, pulse, intake } = parts;
    let serving = Rc::new(Serving {
        crowd: RefCell::new(Crowd::new(setup.max_connections, setup.max_connections_per_source)),
        logs: Logs::new(socket.local_addr().unwrap_or(setup.listen)),
        setup,
        open,
        stop,
        intake: RefCell::new(intake),
        buffer: RefCell::new(vec![0; TURN_BYTES]),
        tail_bytes: Cell::new(0),
        opened: Notify::new(),
        noted: Notify::new(),
        ends: Cell::new(None),
    });
    let tasks = LocalSet::new();
    tasks.spawn_local(async move { pulse.answer().await });
    tasks.block_on(runtime, serving.serve(socket));
}

/// State that all connections of a listener share, on one thread.
pub(super) struct Serving<H> {
    pub(super) setup: TcpConfig,
    /// Number of open connections, for observers.
    open: Arc<AtomicU64>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) intake: RefCell<Intake<H>>,
    pub(super) crowd: RefCell<Crowd<TcpStream>>,
    /// Read buffer, shared by all connections.
    pub(super) buffer: RefCell<Vec<u8>>,
    /// Memory in bytes that all unfinished lines hold.
    pub(super) tail_bytes: Cell<usize>,
    /// A batch may have been opened.
    opened: Notify,
    /// The table of sources may have changed.
    noted: Notify,
    /// When reading ends once the thread was told to stop.
    pub(super) ends: Cell<Option<Instant>>,
    pub(super) logs: Logs,
}

impl<H: Submit + 'static> Serving<H> {
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
                        self.logs.crowd.accept_error(&error);
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
            reap(&mut connections, self.setup.max_connections).await;
        }
        // Connections that the kernel has already accepted may have sent everything they have.
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
        debug_assert_eq!(self.tail_bytes.get(), 0, "BUG: the account of unfinished lines is wrong");
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
        let is_proxy = is_trusted(&self.setup.proxies, source);
        if is_proxy || self.setup.intake.allows(Some(source)) {
            let now = Instant::now();
            let entered = {
                let mut crowd = self.crowd.borrow_mut();
                if is_proxy { crowd.enter_proxys(stream, source, now) } else { crowd.enter(stream, source, now) }
            };
            if let Entered::Instead(_, idlest) = &entered {
                intake.tally().displaced += 1;
                // The bytes that have already arrived are still read before the connection ends.
                drop(SockRef::from(&idlest.stream).shutdown(Shutdown::Both));
                self.logs.crowd.displaced(self.setup.max_connections);
            }
            match entered {
                Entered::Free(member) | Entered::Instead(member, _) => {
                    intake.connect(source, now);
                    connections.spawn_local(Rc::clone(self).attend(member, source, is_proxy));
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
    async fn attend(self: Rc<Self>, member: Rc<Member<TcpStream>>, peer: IpAddr, is_proxy: bool) {
        let source = if is_proxy { self.named_source(&member, peer).await } else { Some(peer) };
        let begun = match source {
            Some(source) => self.begin(&member, source).await.map(|wire| (source, wire)),
            None => None,
        };
        match begun {
            Some((source, wire)) => {
                Connection::new(member, wire, source, self.setup.intake.max_line).attend(self).await;
            }
            None => self.leave(&member),
        }
    }

    /// Performs the TLS handshake if the listener speaks TLS. `None`: close the connection.
    async fn begin(&self, member: &Rc<Member<TcpStream>>, source: IpAddr) -> Option<Wire> {
        let Some(certificate) = &self.setup.tls else { return Some(Wire::Plain) };
        let shaken = shake_hands(certificate, member, self.stop.clone()).await;
        let begun = shaken.and_then(|stream| Wire::tls(stream.into_inner().1).map_err(Failed::Handshake));
        let failed = match begun {
            Ok(wire) => return Some(wire),
            Err(failed) => failed,
        };
        let mut intake = self.intake.borrow_mut();
        match failed {
            Failed::Handshake(error) => self.logs.crowd.handshake(source, &error),
            Failed::PlainText => {
                let mut bytes = [0; SAMPLE_BYTES];
                let count = member.stream.try_read(&mut bytes).unwrap_or(0);
                intake.refuse(Refused { reason: Refusal::WrongFormat, bytes: &bytes[..count] }, source);
                self.logs.other_protocol(source, "plain text to a listener with TLS", "switch TLS on at the sender");
            }
            Failed::Stopped => {}
            Failed::TimedOut => {
                intake.tally().timed_out += 1;
                self.logs.timed_out(source, "the TLS handshake");
            }
        }
        intake.publish();
        None
    }

    /// Returns the source that a proxy names, or the proxy itself. `None`: close the connection.
    async fn named_source(&self, member: &Rc<Member<TcpStream>>, peer: IpAddr) -> Option<IpAddr> {
        match read_header(&member.stream).await {
            // The proxy's own health check.
            Ok(None) => return self.setup.intake.allows(Some(peer)).then_some(peer),
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

    /// Submits the open batch when it is due.
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
}

impl<H: Submit> Serving<H> {
    /// Wakes the timers' tasks if a batch or the table of sources is due.
    pub(super) fn notify(&self, intake: &Intake<H>) {
        if intake.due().is_some() {
            self.opened.notify_one();
        }
        if intake.sources_due().is_some() {
            self.noted.notify_one();
        }
    }
}

impl<H> Serving<H> {
    /// Removes a connection that has ended.
    pub(super) fn leave(&self, member: &Member<TcpStream>) {
        self.crowd.borrow_mut().leave(member);
        self.show_open();
    }

    fn show_open(&self) {
        self.open.store(self.crowd.borrow().open() as u64, Ordering::Relaxed);
    }
}
