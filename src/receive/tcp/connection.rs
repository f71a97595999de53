//! One connection, from its first byte to its end.
//!
//! Owns: its unfinished line, and the reasons for closing it. Never does: accepting or counting
//! connections. Everything runs on the listener's thread.

use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use super::MAX_TAIL_BYTES;
use super::serve::Serving;
use super::turn::Turn;
use super::wire::{Read, Wire};
use crate::batch::{Received, Submit};
use crate::intake::Intake;
use crate::intake::framer::{self, Framer};
use crate::protocol::{Refusal, Refused, Stream};
use crate::receive::crowd::Member;
use crate::receive::door::stopped;

/// Time limit for a connection's first line while more than half of the allowed connections are
/// open. Also the interval at which a connection without a line checks whether they are.
const DENSE_FIRST_LINE: Duration = Duration::from_secs(10);
/// How long connections with busy senders are still read once the thread is told to stop.
const LAST_READS: Duration = Duration::from_secs(1);
/// The first bytes of a TLS client: a handshake record of any version.
const TLS_HANDSHAKE: &[u8] = b"\x16\x03";
/// The answer to a client that asks for the version.
const VERSION: &str = concat!("twinflux ", env!("CARGO_PKG_VERSION"), "\n");

/// The state of one connection.
pub(super) struct Connection {
    member: Rc<Member<TcpStream>>,
    wire: Wire,
    source: IpAddr,
    framer: Framer,
    state: Stream,
    turn: Turn,
    /// How many first bytes match those of a TLS client. `None` once one did not.
    tls_bytes: Option<usize>,
    /// When the unfinished line began.
    line_began: Instant,
    /// Its first line, if that is an HTTP request.
    request: Option<Vec<u8>>,
}

/// Passes a connection's lines to the intake.
struct Taking<'a, H> {
    intake: &'a mut Intake<H>,
    member: &'a Member<TcpStream>,
    wire: &'a mut Wire,
    source: IpAddr,
    state: &'a mut Stream,
    request: &'a mut Option<Vec<u8>>,
}

impl<H: Submit> framer::Lines for Taking<'_, H> {
    fn read(&mut self, lines: &[u8], is_end: bool) -> usize {
        if !self.member.has_line.replace(true) {
            *self.request = http_request(lines).map(<[u8]>::to_vec);
        }
        if self.request.is_some() {
            // The headers and the body are not lines.
            return lines.len();
        }
        let found = self.intake.stream(lines, self.state, is_end, self.source);
        if found.asks_version {
            // A client that does not read the answer misses it.
            self.wire.write(&self.member.stream, VERSION.as_bytes());
        }
        found.consumed
    }

    fn too_long(&mut self, bytes: &[u8]) {
        self.intake.refuse(Refused { reason: Refusal::TooLong, bytes }, self.source);
    }
}

impl Connection {
    /// Creates the state of a connection that has received nothing yet.
    pub(super) fn new(member: Rc<Member<TcpStream>>, wire: Wire, source: IpAddr, max_line: usize) -> Self {
        let (framer, line_began) = (Framer::new(max_line), member.opened);
        let (state, turn, request) = Default::default();
        Self { member, wire, source, framer, state, turn, tls_bytes: Some(0), line_began, request }
    }

    /// Processes what arrives until the connection is closed.
    pub(super) async fn attend<H: Submit>(mut self, serving: Rc<Serving<H>>) {
        let (mut stop, member) = (serving.stop.clone(), Rc::clone(&self.member));
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => {
                    self.read_last(&serving);
                    break;
                }
                ready = timeout_at(self.wakes(&serving).into(), self.wire.readable(&member.stream)) => match ready {
                    Ok(Ok(())) => match self.read(&serving, TcpStream::try_read) {
                        Ok(0) => break,
                        Ok(count) => if self.turn.is_over(count, self.member.last.get(), Instant::now) {
                            tokio::task::yield_now().await;
                            self.turn.end();
                        },
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.turn.end(),
                        Err(_) => break,
                    },
                    Ok(Err(_)) => break,
                    Err(_) if Instant::now() < self.deadline(&serving).0 => {}
                    // Lines held back by an unclosed quote must not wait longer.
                    Err(_) if self.framer.is_joining() => self.end_joining(&serving),
                    Err(_) => {
                        serving.intake.borrow_mut().tally().timed_out += 1;
                        let (source, limit) = (self.source, self.deadline(&serving).1);
                        serving.logs.timed_out(source, limit);
                        break;
                    }
                },
            }
        }
        self.end(&serving);
    }

    /// When the connection is closed unless bytes arrive, and the setting that says so.
    fn deadline<H>(&self, serving: &Serving<H>) -> (Instant, &'static str) {
        let setup = &serving.setup;
        let mut deadline = (self.member.last.get() + setup.idle_timeout, "idle_timeout");
        if self.framer.is_within_line() {
            deadline = deadline.min((self.line_began + setup.line_timeout, "line_timeout"));
        }
        if !self.member.has_line.get() {
            let is_dense = serving.crowd.borrow().is_dense();
            let limit =
                if is_dense { DENSE_FIRST_LINE.min(setup.first_line_timeout) } else { setup.first_line_timeout };
            deadline = deadline.min((self.member.opened + limit, "first_line_timeout"));
        }
        deadline
    }

    /// When to check the deadline again. Before the first line, it may have to move earlier.
    fn wakes<H>(&self, serving: &Serving<H>) -> Instant {
        let deadline = self.deadline(serving).0;
        if self.member.has_line.get() { deadline } else { deadline.min(Instant::now() + DENSE_FIRST_LINE) }
    }

    /// Reads what has already arrived: until nothing is left, or, for a busy sender, what is queued
    /// when the time is over. Reads the socket directly, because the runtime may not know yet that
    /// it is readable.
    fn read_last<H: Submit>(&mut self, serving: &Serving<H>) {
        let end = serving.ends.get().unwrap_or_else(|| Instant::now() + LAST_READS);
        serving.ends.set(Some(end));
        let mut left = u64::MAX;
        while left > 0 {
            if left == u64::MAX && Instant::now() >= end {
                left = rustix::io::ioctl_fionread(&self.member.stream).unwrap_or(0);
            }
            match self.read(serving, |stream, room| io::Read::read(&mut &*SockRef::from(stream), room)) {
                Ok(count @ 1..) if left < u64::MAX => left = left.saturating_sub(count as u64),
                Ok(1..) => {}
                _ => break,
            }
        }
    }

    /// Reads once without waiting, and processes the bytes. Returns 0 at the end of the stream, or
    /// if the connection must be closed.
    fn read<H: Submit>(&mut self, serving: &Serving<H>, read: Read) -> io::Result<usize> {
        let mut buffer = serving.buffer.borrow_mut();
        let count = self.wire.read(&self.member.stream, read, &mut buffer[..self.turn.room()])?;
        let goes_on = count > 0 && self.take(serving, &buffer[..count]);
        Ok(if goes_on { count } else { 0 })
    }

    /// Processes received bytes. `false`: close the connection.
    fn take<H: Submit>(&mut self, serving: &Serving<H>, bytes: &[u8]) -> bool {
        let received = Received::now();
        let mut intake = serving.intake.borrow_mut();
        intake.set_clock(received);
        intake.tally().bytes += bytes.len() as u64;
        self.member.last.set(received.monotonic);
        let mut goes_on = true;
        if self.begins_as_tls(bytes) {
            self.turn_away(serving, &mut intake, bytes, "TLS");
            goes_on = false;
        } else if self.read_lines(serving, &mut intake, |framer, lines| framer.take(bytes, lines)) {
            self.line_began = received.monotonic;
        }
        if let Some(request) = self.request.take() {
            self.turn_away(serving, &mut intake, &request, "HTTP");
            goes_on = false;
        }
        goes_on = goes_on && self.has_room(serving, &mut intake);
        intake.publish();
        intake.publish_sources(received.monotonic);
        serving.notify(&intake);
        goes_on
    }

    /// Whether these bytes complete the beginning of a TLS handshake.
    fn begins_as_tls(&mut self, bytes: &[u8]) -> bool {
        let Some(known) = self.tls_bytes.take() else { return false };
        let rest = &TLS_HANDSHAKE[known..];
        if bytes.len() < rest.len() && rest.starts_with(bytes) {
            self.tls_bytes = Some(known + bytes.len());
        }
        bytes.starts_with(rest)
    }

    /// Releases the lines that wait for the end of a quoted string.
    fn end_joining<H: Submit>(&mut self, serving: &Serving<H>) {
        let received = Received::now();
        let mut intake = serving.intake.borrow_mut();
        intake.set_clock(received);
        self.read_lines(serving, &mut intake, |framer, lines| framer.end_joining(lines));
        self.line_began = received.monotonic;
        intake.publish();
        serving.notify(&intake);
    }

    /// Lets the framer pass lines to the intake, and updates the account of its memory.
    fn read_lines<H: Submit, T>(
        &mut self,
        serving: &Serving<H>,
        intake: &mut Intake<H>,
        frame: impl FnOnce(&mut Framer, &mut Taking<'_, H>) -> T,
    ) -> T {
        let Self { member, wire, source, framer, state, request, .. } = self;
        let before = framer.held_bytes();
        let result = frame(framer, &mut Taking { intake, member, wire, source: *source, state, request });
        serving.tail_bytes.set(serving.tail_bytes.get() + framer.held_bytes() - before);
        result
    }

    /// Counts and logs a sender that speaks another protocol. The caller closes the connection.
    fn turn_away<H: Submit>(&mut self, serving: &Serving<H>, intake: &mut Intake<H>, bytes: &[u8], speaks: &str) {
        intake.refuse(Refused { reason: Refusal::WrongFormat, bytes }, self.source);
        // The buffered rest is not a truncated line.
        serving.tail_bytes.set(serving.tail_bytes.get() - self.framer.held_bytes());
        self.framer.clear();
        serving.logs.other_protocol(self.source, &format!("{speaks} to a TCP listener"), "set it to plain text");
    }

    /// Whether the connection may keep its unfinished line. Past the limit, connections with more
    /// than their share may not.
    fn has_room<H: Submit>(&self, serving: &Serving<H>, intake: &mut Intake<H>) -> bool {
        let open = serving.crowd.borrow().open().max(1);
        if is_share(self.framer.held_bytes(), serving.tail_bytes.get(), open) {
            return true;
        }
        intake.tally().limited += 1;
        serving.logs.unfinished(self.source);
        false
    }

    /// Counts an unfinished last line, which is never processed.
    fn end<H: Submit>(&mut self, serving: &Serving<H>) {
        let mut intake = serving.intake.borrow_mut();
        intake.set_clock(Received::now());
        let tail = self.read_lines(serving, &mut intake, |framer, lines| framer.finish(lines));
        if !tail.is_empty() {
            intake.refuse(Refused { reason: Refusal::Truncated, bytes: &tail }, self.source);
        }
        intake.publish();
        serving.leave(&self.member);
    }
}

/// Whether an unfinished line of `held` bytes is within bounds, given the total bytes and the
/// number of connections.
fn is_share(held: usize, of_all: usize, connections: usize) -> bool {
    of_all <= MAX_TAIL_BYTES || held <= MAX_TAIL_BYTES / connections
}

/// Returns the first line if it is an HTTP request. The headers and body of a request look like
/// Graphite lines.
fn http_request(lines: &[u8]) -> Option<&[u8]> {
    let first = lines.split(|byte| *byte == b'\n').next()?;
    let request = first.strip_suffix(b"\r").unwrap_or(first);
    (request.ends_with(b" HTTP/1.1") || request.ends_with(b" HTTP/1.0")).then_some(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receive::crowd::{Crowd, Entered};

    /// Creates a connection for tests that do not use its stream.
    fn connection() -> Connection {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let stream = std::net::TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        stream.set_nonblocking(true).expect("nonblocking");
        let stream = TcpStream::from_std(stream).expect("a stream");
        let source = IpAddr::from([127, 0, 0, 1]);
        let Entered::Free(member) = Crowd::new(1, 1).enter(stream, source, Instant::now()) else { panic!("room") };
        Connection::new(member, Wire::Plain, source, 1024)
    }

    #[tokio::test]
    async fn a_tls_client_is_known_by_its_first_bytes_however_they_are_cut() {
        for (pieces, expected) in [
            (&[&b"\x16\x03\x01\x02"[..]][..], true),
            (&[b"\x16\x03"], true),
            (&[b"\x16", b"\x03"], true),
            (&[b"\x16", b"\x03\x01\x02"], true),
            (&[b"\x16", b"m v=1 1\n"], false),
            (&[b"\x16"], false),
            // A TLS handshake is recognised only at the beginning.
            (&[b"m", b"\x03"], false),
            (&[b"m v=1 1\n", b"\x16\x03\x01"], false),
            (&[b"m\x16\x03"], false),
            (&[b"\x16", b"m", b"\x03"], false),
        ] {
            let mut connection = connection();
            let found: Vec<bool> = pieces.iter().map(|piece| connection.begins_as_tls(piece)).collect();
            let (last, before) = found.split_last().expect("a piece");
            assert!(*last == expected && before.iter().all(|found| !found), "{pieces:?}: {found:?}");
        }
    }

    #[test]
    fn where_unfinished_lines_fill_their_room_each_may_have_its_share() {
        // A quarter of the bound: the share of one of four.
        let quarter = MAX_TAIL_BYTES / 4;
        for (held, of_all, connections, expected) in [
            (quarter, MAX_TAIL_BYTES + 1, 4, true),
            (quarter + 1, MAX_TAIL_BYTES + 1, 4, false),
            (quarter + 1, MAX_TAIL_BYTES, 4, true),
            (MAX_TAIL_BYTES, MAX_TAIL_BYTES, 4, true),
            (1, MAX_TAIL_BYTES + 1, MAX_TAIL_BYTES * 2, false),
        ] {
            assert_eq!(is_share(held, of_all, connections), expected, "{held} of {of_all}, {connections}");
        }
    }

    #[test]
    fn a_request_of_http_is_known_by_its_first_line() {
        for (lines, expected) in [
            (&b"GET / HTTP/1.1\r\nHost: x\r\n"[..], Some(&b"GET / HTTP/1.1"[..])),
            (b"POST /write?db=x HTTP/1.0\n", Some(b"POST /write?db=x HTTP/1.0")),
            (b"GET / HTTP/1.1", Some(b"GET / HTTP/1.1")),
            (b"a.b 1 1\nGET / HTTP/1.1\r\n", None),
            (b"m,proto=HTTP/1.1 v=1 1\n", None),
            (b"a.b 1 1\n", None),
            (b"\n", None),
        ] {
            assert_eq!(http_request(lines), expected, "{}", lines.escape_ascii());
        }
    }
}
