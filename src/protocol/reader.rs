//! Turns received bytes of any format into lines of line protocol.
//!
//! Owns: telling formats apart if the listener is configured to, and the refusal of lines that are
//! valid in no format. Never does: I/O. Bounds: an open line waits for at most `max_line` bytes.
//!
//! **Each line is judged on its own.** A line of valid line protocol is line protocol; otherwise
//! its own form decides ([`Format::detect`]). The format of the previous line is only tried first,
//! and decides the ambiguous case of Graphite lines with a name and a number alone. A broken line
//! therefore costs only itself, and senders of different formats may share a datagram or a
//! connection.
//!
//! **Strings with line feeds.** A datagram is judged as a whole, so a string of line protocol may
//! contain line feeds. On a stream a line whose string is still open waits for more input, up to
//! `max_line` bytes. If the result is not a valid line, only its first physical line is refused,
//! and reading continues with the next one as a line of its own: only balanced quotes protect a
//! string's text from being read as lines. The result does not depend on how the stream was split.

use super::convert::Mapping;
use super::line::{Judged, Lines, Open};
use super::others::{Input, Others};
use super::unsigned::write_signed;
use super::{Format, Line, Refusal, Refused, Rules, Scanner, Unsigned};

/// The byte order mark that some editors and programs write before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Receives lines and refusals.
pub trait Sink {
    /// Receives a valid line.
    fn line(&mut self, line: Line<'_>);
    /// Receives a line that is not valid.
    fn refused(&mut self, refused: Refused<'_>);
}

/// What else the input contained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Format and offset of the first accepted line; `None` if no line was accepted.
    pub first: Option<(Format, usize)>,
    /// Accepted lines of other formats; several may have become one line.
    pub converted: u64,
    /// Lines without a value to store: a `null`.
    pub skipped: u64,
    /// Words among the tags of converted lines that are not tags.
    pub ignored_tags: u64,
    /// Whether the sender asked for the server's version.
    pub asks_version: bool,
    /// Bytes of a stream's input that were read. The rest is a line whose string is still open.
    pub consumed: usize,
}

/// State carried from a stream's earlier pieces to the next one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stream {
    /// The format of the last accepted line.
    known: Option<Format>,
    /// Where the scan of the open line stopped.
    open: Option<Open>,
    has_begun: bool,
}

/// Reads the input of one worker of one listener.
#[derive(Debug)]
pub struct Reader {
    /// The format of all input; `None` detects it line by line.
    format: Option<Format>,
    scanner: Scanner,
    others: Others,
    /// Buffer for a line whose unsigned integers become signed; `None` if they are not converted.
    signed: Option<Vec<u8>>,
}

impl Reader {
    /// Creates a reader of one format, or of all formats if `format` is `None`.
    pub fn new(format: Option<Format>, mapping: Mapping, rules: Rules) -> Self {
        Self {
            format,
            scanner: Scanner::with(rules),
            others: Others::new(mapping, rules.precision, rules.max_line, format.is_some()),
            signed: (rules.unsigned == Unsigned::Signed).then(Vec::new),
        }
    }

    /// Reads a datagram. `truncated`: its end was cut off, so that a last line without a line feed
    /// is incomplete.
    #[inline]
    pub fn datagram<S: Sink>(&mut self, input: &[u8], truncated: bool, sink: &mut S) -> Found {
        let begin = begin(input);
        let mut reading = Reading { known: None, found: Found::default(), signed: &mut self.signed, sink };
        if let Some(format) = self.format.filter(|format| *format != Format::Influx) {
            let is_utf8 = std::str::from_utf8(input).is_ok();
            return reading.read_certain(&mut self.others, format, Input { bytes: input, is_utf8, truncated }, begin);
        }
        let mut lines = self.scanner.lines(input, truncated);
        lines.resume(begin);
        let input = Input { bytes: input, is_utf8: lines.is_utf8(), truncated };
        loop {
            let why = reading.convert(&mut self.others, input, &mut lines);
            match lines.next() {
                None => break,
                Some(Ok(line)) => reading.take(line, input),
                Some(Err(refused)) if self.format.is_some() => reading.refuse(refused, self.format),
                Some(Err(refused)) => reading.read_other(&mut self.others, (refused, why), input, &mut lines),
            }
        }
        reading.finish(&mut self.others, input.bytes.len())
    }

    /// Reads whole physical lines of a stream; the first ones may be `stream`'s open line. If
    /// `is_end`, the stream has ended or the open line must not wait any longer, and all input is
    /// read.
    pub fn stream<S: Sink>(&mut self, input: &[u8], stream: &mut Stream, is_end: bool, sink: &mut S) -> Found {
        let begin = if std::mem::replace(&mut stream.has_begun, true) { 0 } else { begin(input) };
        let mut reading = Reading { known: stream.known, found: Found::default(), signed: &mut self.signed, sink };
        if let Some(format) = self.format.filter(|format| *format != Format::Influx) {
            let is_utf8 = std::str::from_utf8(input).is_ok();
            let input = Input { bytes: input, is_utf8, truncated: false };
            return reading.read_certain(&mut self.others, format, input, begin);
        }
        let mut open = stream.open.take();
        let mut lines = self.scanner.stream(input, open.is_some());
        lines.resume(begin);
        let input = Input { bytes: input, is_utf8: lines.is_utf8(), truncated: false };
        let consumed = loop {
            let why = if open.is_none() { reading.convert(&mut self.others, input, &mut lines) } else { None };
            match lines.next_of_stream(open.take(), is_end) {
                None => break input.bytes.len(),
                Some(Judged::Line(line)) => reading.take(line, input),
                Some(Judged::Refused(refused)) if self.format.is_some() => reading.refuse(refused, self.format),
                Some(Judged::Refused(refused)) => {
                    reading.read_other(&mut self.others, (refused, why), input, &mut lines);
                }
                Some(Judged::Open(at)) => {
                    stream.open = Some(at);
                    break lines.offset();
                }
            }
        };
        stream.known = reading.known;
        reading.finish(&mut self.others, consumed)
    }

    /// Returns the host that a line names, if its format tells.
    pub fn host<'a>(&self, format: Format, line: &'a [u8]) -> Option<&'a [u8]> {
        let after = |text: &[u8]| memchr::memmem::find(line, text).map(|at| &line[at + text.len()..]);
        match format {
            Format::Influx => host_of(line),
            Format::Opentsdb => until(after(b" host=")?, b" \r\n"),
            Format::NetdataJson => until(after(b"\"hostname\":\"")?, b"\""),
            Format::Graphite => self.others.mapping().host_in(until(line, b"; \t")?),
        }
    }
}

/// Returns the host that a line of line protocol names with the tag `host`.
pub fn host_of(line: &[u8]) -> Option<&[u8]> {
    const TAG: &[u8] = b",host=";
    let at = memchr::memmem::find(line, TAG)?;
    until(&line[at + TAG.len()..], b", ")
}

/// Returns the bytes before the first of `ends`, or `None` if there are none.
fn until<'a>(rest: &'a [u8], ends: &[u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|byte| ends.contains(byte)).unwrap_or(rest.len());
    Some(&rest[..end]).filter(|host| !host.is_empty())
}

/// Reads one datagram, or one piece of a stream.
struct Reading<'a, S> {
    /// The format of the last accepted line.
    known: Option<Format>,
    found: Found,
    signed: &'a mut Option<Vec<u8>>,
    sink: &'a mut S,
}

impl<S: Sink> Reading<'_, S> {
    /// Accepts a line of line protocol.
    #[inline]
    fn take(&mut self, line: Line<'_>, input: Input<'_>) {
        self.known = Some(Format::Influx);
        if self.found.first.is_none() {
            let offset = line.bytes.as_ptr() as usize - input.bytes.as_ptr() as usize;
            self.found.first = Some((Format::Influx, offset));
        }
        match self.signed {
            Some(room) if line.has_unsigned => {
                write_signed(line.bytes, room);
                self.sink.line(Line { bytes: room, ..line });
            }
            _ => self.sink.line(line),
        }
    }

    /// Reads lines that are all of this format, and refuses any other.
    fn read_certain(mut self, others: &mut Others, format: Format, input: Input<'_>, begin: usize) -> Found {
        let mut at = begin;
        while at < input.bytes.len() {
            let before = self.found.converted;
            let (stopped, why) = others.convert(format, input, at, &mut self.found, self.sink);
            self.note_first(format, at, before);
            at = stopped;
            if let Some(reason) = why {
                let bytes = first_line(&input.bytes[at..]);
                self.refuse(Refused { reason, bytes }, Some(format));
                at += bytes.len();
            }
        }
        self.finish(others, input.bytes.len())
    }

    /// If the last line was of another format than line protocol, converts the following lines as
    /// long as they are of that format. Returns what is wrong with the first line that is not.
    #[inline]
    fn convert(&mut self, others: &mut Others, input: Input<'_>, lines: &mut Lines<'_>) -> Option<Refusal> {
        let format = self.known.filter(|format| *format != Format::Influx)?;
        let (at, before) = (lines.offset(), self.found.converted);
        let (stopped, why) = others.convert(format, input, at, &mut self.found, self.sink);
        self.note_first(format, at, before);
        lines.resume(stopped);
        why
    }

    /// Handles a line that is not valid line protocol: converts it and the lines after it that are
    /// of the same format, or refuses it. `why`: the reason it is not of the previous line's
    /// format, if that was tried.
    #[cold]
    fn read_other(
        &mut self,
        others: &mut Others,
        (refused, why): (Refused<'_>, Option<Refusal>),
        input: Input<'_>,
        lines: &mut Lines<'_>,
    ) {
        let is_plain = matches!(refused.reason, Refusal::Truncated | Refusal::TooLong);
        let detected = if is_plain { Some(Format::Influx) } else { Format::detect(refused.bytes) };
        let reason = match detected {
            Some(Format::Influx) => refused.reason,
            None if self.known.is_none() => Refusal::WrongFormat,
            None => why.unwrap_or(refused.reason),
            Some(format) => {
                let offset = refused.bytes.as_ptr() as usize - input.bytes.as_ptr() as usize;
                lines.resume(offset);
                let before = self.known.replace(format);
                let why = self.convert(others, input, lines);
                if lines.offset() > offset {
                    return;
                }
                // The line looks like this format but is not valid.
                self.known = before;
                lines.resume(offset + first_line(refused.bytes).len());
                why.unwrap_or(refused.reason)
            }
        };
        self.sink.refused(Refused { reason, ..refused });
    }

    /// Refuses a line. If all input must be of one format and the line looks like another, the
    /// reason is the wrong format.
    #[cold]
    fn refuse(&mut self, refused: Refused<'_>, format: Option<Format>) {
        let is_other = |format| Format::detect(refused.bytes).is_some_and(|detected| detected != format);
        let reason = if format.is_some_and(is_other) { Refusal::WrongFormat } else { refused.reason };
        self.sink.refused(Refused { reason, ..refused });
    }

    /// Emits the point under construction.
    fn finish(mut self, others: &mut Others, consumed: usize) -> Found {
        others.finish(self.sink);
        self.found.consumed = consumed;
        self.found
    }

    fn note_first(&mut self, format: Format, offset: usize, before: u64) {
        if self.found.converted > before {
            self.found.first.get_or_insert((format, offset));
        }
    }
}

/// Returns the offset of the text, after a byte order mark.
#[inline]
fn begin(input: &[u8]) -> usize {
    if input.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 }
}

/// Returns the first physical line, with its line feed.
fn first_line(input: &[u8]) -> &[u8] {
    &input[..memchr::memchr(b'\n', input).map_or(input.len(), |feed| feed + 1)]
}
