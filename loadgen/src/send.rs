//! The simulated hosts' sending: one UDP socket for each, paced by an open loop.
//!
//! The loop never waits for what it measures: each host's lines are due at a time fixed at the
//! start, and what falls behind is sent as fast as it goes. Many datagrams go in one call
//! (`sendmmsg`), and neighbours of one size in one buffer that the kernel cuts up (UDP GSO).

use std::io::{self, IoSlice};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, sendmsg};

use crate::workload::{Host, Shape};

/// Segments that the kernel cuts one buffer into, at most (`UDP_MAX_SEGMENTS` of older kernels).
const GSO_SEGMENTS: usize = 64;
/// The largest buffer for it.
const GSO_BYTES: usize = 60_000;
/// Fewer neighbours than this are not worth a call of their own.
const GSO_WORTH: usize = 3;
/// How far behind its plan the sending may fall before it ends.
const LATENESS: Duration = Duration::from_secs(2);
/// Datagrams in one `sendmmsg`.
const BATCH: usize = 64;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Where to.
    pub target: SocketAddr,
    /// How many hosts.
    pub hosts: u32,
    /// The number of the first of them.
    pub first_host: u32,
    /// What each of them has.
    pub shape: Shape,
    /// How fast.
    pub pace: Pace,
    /// For how long.
    pub duration: Duration,
    /// Bytes of whole lines in each datagram; none: one line, as Telegraf does.
    pub payload: Option<usize>,
}

/// How fast to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Each host once in this time, spread over it.
    Every(Duration),
    /// So many lines a second in all.
    Rate(f64),
    /// As fast as it goes.
    Max,
}

/// What was sent, readable while it goes on.
#[derive(Debug, Default)]
pub struct Progress {
    lines: AtomicU64,
    datagrams: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    stop: AtomicBool,
    /// Kept where someone wants to know when each line was sent.
    rounds: Option<Mutex<Vec<Round>>>,
}

/// The lines that one host sent at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// The host.
    pub host: u32,
    /// The first line's number; the others follow.
    pub first: u64,
    /// How many they are.
    pub lines: u64,
    /// When they were sent, in nanoseconds since 1970.
    pub time: u64,
}

/// Rounds kept, at most: 320 MB.
const MOST_ROUNDS: usize = 10_000_000;

/// One reading of [`Progress`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Sent {
    /// Lines.
    pub lines: u64,
    /// Datagrams.
    pub datagrams: u64,
    /// Bytes of payload.
    pub bytes: u64,
    /// Datagrams that the system did not take, whose lines do not count as sent, and those of which
    /// the other host said that nobody takes them.
    pub errors: u64,
}

impl Sent {
    /// The sums of both.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            lines: self.lines + other.lines,
            datagrams: self.datagrams + other.datagrams,
            bytes: self.bytes + other.bytes,
            errors: self.errors + other.errors,
        }
    }
}

impl Progress {
    /// One that keeps the times, too.
    pub fn with_rounds() -> Self {
        Self { rounds: Some(Mutex::default()), ..Self::default() }
    }

    /// When what was sent, as far as it is kept.
    pub fn rounds(&self) -> Vec<Round> {
        self.rounds
            .as_ref()
            .map_or_else(Vec::new, |rounds| rounds.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    pub(crate) fn note_round(&self, round: Round) {
        if let Some(rounds) = &self.rounds {
            let mut rounds = rounds.lock().unwrap_or_else(PoisonError::into_inner);
            if rounds.len() < MOST_ROUNDS {
                rounds.push(round);
            }
        }
    }

    /// What was sent so far.
    pub fn sent(&self) -> Sent {
        Sent {
            lines: self.lines.load(Ordering::Relaxed),
            datagrams: self.datagrams.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }

    /// Ends the sending early.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether the sending is to end early.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Counts what was sent.
    pub(crate) fn add(&self, lines: u64, datagrams: u64, bytes: u64, errors: u64) {
        self.lines.fetch_add(lines, Ordering::Relaxed);
        self.datagrams.fetch_add(datagrams, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.errors.fetch_add(errors, Ordering::Relaxed);
    }
}

/// Sends on the calling thread until the time is over; returns how long it took.
///
/// # Errors
/// What the system says when it gives no socket.
pub fn send(plan: &Plan, progress: &Progress) -> io::Result<Duration> {
    let mut hosts = Vec::new();
    for number in plan.first_host..plan.first_host + plan.hosts {
        let any: SocketAddr =
            if plan.target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect(plan.target)?;
        hosts.push(Sender { number, host: Host::new(number, plan.shape), socket, datagrams: Vec::new() });
    }
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let lines: usize = hosts.iter().map(|sender| sender.host.lines().len()).sum();
    let round = match plan.pace {
        Pace::Every(interval) => interval,
        Pace::Rate(rate) => Duration::from_secs_f64(f64::from(u32::try_from(lines).unwrap_or(u32::MAX)) / rate),
        Pace::Max => Duration::ZERO,
    };
    let start = Instant::now();
    for turn in 0.. {
        for (place, sender) in (0_u32..).zip(&mut hosts) {
            let due = start + round * turn + round * place / plan.hosts;
            if due.duration_since(start) >= plan.duration
                // Far behind, or as fast as it goes: the time ends it.
                || start.elapsed() >= plan.duration + if plan.pace == Pace::Max { Duration::ZERO } else { LATENESS }
                || progress.is_stopped()
            {
                return Ok(start.elapsed());
            }
            wait_until(due);
            sender.send(plan.payload, &mut headers, progress);
        }
    }
    Ok(start.elapsed())
}

/// Sleeps for most of the time; a sleep's end is never exact.
fn wait_until(due: Instant) {
    let left = due.saturating_duration_since(Instant::now());
    if left > Duration::from_micros(100) {
        std::thread::sleep(left);
    }
}

struct Sender {
    number: u32,
    host: Host,
    socket: UdpSocket,
    /// Where each datagram of the host's buffer begins and ends, and how many lines it holds.
    datagrams: Vec<Datagram>,
}

#[derive(Clone, Copy)]
struct Datagram {
    start: usize,
    end: usize,
    lines: u64,
}

impl Sender {
    /// Sends all lines of one interval.
    fn send(&mut self, payload: Option<usize>, headers: &mut MultiHeaders<SockaddrStorage>, progress: &Progress) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let (time, first) = (u64::try_from(now).unwrap_or(0), self.host.rendered());
        self.host.render(time);
        progress.note_round(Round { host: self.number, first, lines: self.host.rendered() - first, time });
        if self.datagrams.is_empty() {
            self.datagrams = cut(self.host.lines(), payload.unwrap_or(0));
        }
        let mut singles: Vec<Datagram> = Vec::with_capacity(BATCH);
        let mut rest = &self.datagrams[..];
        while let Some(first) = rest.first() {
            let run = equal_run(rest);
            if run >= GSO_WORTH {
                let run_end = rest[run - 1].end;
                let buffer = &self.host.bytes()[first.start..run_end];
                let size = u16::try_from(first.end - first.start).unwrap_or(u16::MAX);
                let message = [ControlMessage::UdpGsoSegments(&size)];
                let fd = self.socket.as_raw_fd();
                let sent = progress.retry(|| {
                    sendmsg::<()>(fd, &[IoSlice::new(buffer)], &message, MsgFlags::empty(), None).map(|_| run)
                });
                progress.note(&rest[..run], sent);
                rest = &rest[run..];
                continue;
            }
            singles.push(*first);
            rest = &rest[1..];
            if singles.len() == BATCH {
                self.send_singly(&singles, headers, progress);
                singles.clear();
            }
        }
        self.send_singly(&singles, headers, progress);
    }

    fn send_singly(&self, datagrams: &[Datagram], headers: &mut MultiHeaders<SockaddrStorage>, progress: &Progress) {
        let mut rest = datagrams;
        while !rest.is_empty() {
            let slices: Vec<[IoSlice<'_>; 1]> =
                rest.iter().map(|one| [IoSlice::new(&self.host.bytes()[one.start..one.end])]).collect();
            let addresses: Vec<Option<SockaddrStorage>> = vec![None; slices.len()];
            let fd = self.socket.as_raw_fd();
            let sent = progress.retry(|| {
                sendmmsg(fd, headers, &slices, &addresses, [], MsgFlags::empty()).map(|results| results.count())
            });
            let count = if sent == 0 { 1 } else { sent };
            progress.note(&rest[..count], sent);
            rest = &rest[count..];
        }
    }
}

impl Progress {
    /// Counts datagrams of which the first `sent` were sent.
    fn note(&self, datagrams: &[Datagram], sent: usize) {
        let (gone, failed) = datagrams.split_at(sent.min(datagrams.len()));
        let lines = gone.iter().map(|one| one.lines).sum();
        let bytes = gone.iter().map(|one| (one.end - one.start) as u64).sum();
        self.add(lines, gone.len() as u64, bytes, failed.len() as u64);
    }
}

impl Progress {
    /// Tries twice: the first error may be what an earlier datagram came to (nobody listens), and
    /// counts as one. 0 where nothing was sent.
    fn retry(&self, mut call: impl FnMut() -> nix::Result<usize>) -> usize {
        if let Ok(sent) = call() {
            return sent;
        }
        self.errors.fetch_add(1, Ordering::Relaxed);
        call().unwrap_or(0)
    }
}

/// Whole lines, as many as fit into `payload` bytes, at least one.
fn cut(lines: &[std::ops::Range<usize>], payload: usize) -> Vec<Datagram> {
    let mut datagrams: Vec<Datagram> = Vec::new();
    for line in lines {
        match datagrams.last_mut() {
            Some(last) if line.end - last.start <= payload => {
                last.end = line.end;
                last.lines += 1;
            }
            _ => datagrams.push(Datagram { start: line.start, end: line.end, lines: 1 }),
        }
    }
    datagrams
}

/// How many datagrams from the first on have its size.
fn equal_run(datagrams: &[Datagram]) -> usize {
    let size = datagrams[0].end - datagrams[0].start;
    let most = (GSO_BYTES / size).clamp(1, GSO_SEGMENTS);
    datagrams.iter().take(most).take_while(|one| one.end - one.start == size).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    fn receive_all(payload: Option<usize>) -> (Sent, Ledger, u64) {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("bind");
        socket2::SockRef::from(&receiver).set_recv_buffer_size(4 << 20).expect("buffer");
        receiver.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
        let plan = Plan {
            target: receiver.local_addr().expect("address"),
            hosts: 3,
            first_host: 10,
            shape: Shape::default(),
            pace: Pace::Every(Duration::from_millis(100)),
            duration: Duration::from_millis(100),
            payload,
        };
        let progress = Progress::default();
        send(&plan, &progress).expect("send");
        let ledger = Ledger::default();
        let mut buffer = vec![0; 65536];
        let mut datagrams = 0;
        while let Ok(bytes) = receiver.recv(&mut buffer) {
            ledger.note(&buffer[..bytes]);
            datagrams += 1;
        }
        (progress.sent(), ledger, datagrams)
    }

    #[test]
    fn each_line_is_a_datagram_of_its_own_and_arrives_whole() {
        let (sent, ledger, datagrams) = receive_all(None);
        assert_eq!((sent.lines, sent.datagrams, sent.errors), (3 * 37, 3 * 37, 0));
        assert_eq!((ledger.counts().distinct, datagrams), (3 * 37, 3 * 37));
        assert_eq!(ledger.counts().altered + ledger.counts().foreign, 0);
    }

    #[test]
    fn a_payload_packs_whole_lines() {
        let (sent, ledger, datagrams) = receive_all(Some(1400));
        assert_eq!(ledger.counts().distinct, 3 * 37);
        assert_eq!(sent.datagrams, datagrams);
        assert!(datagrams < 3 * 37 / 2);
    }
}
