//! From received bytes to lines of line protocol, whatever they are written in.
//!
//! Owns: telling formats apart where the listener is to do so, and what becomes of a line that is valid in none.
//!
//! **Each line is judged for itself.** What is valid line protocol is line protocol; else the line's own look decides
//! ([`Format::detect`]). The format of the line before is only tried first, and settles what would be Graphite's if
//! anything told (a name and a number alone). So a broken line costs itself, wherever it stands, and senders of different
//! formats may share a datagram or a connection.
//!
//! **Strings with line feeds.** A datagram is judged as a whole, so that a string of line protocol may hold line feeds. On a
//! stream a line whose string is still open waits for more, up to `max_line` bytes. If the result is no valid line, only its
//! first physical line is refused and reading goes on with the next one as a line of its own: so only balanced quotes
//! protect a string's text from being read as lines. What comes of a stream does not depend on how it was cut.

use super::convert::Mapping;
use super::line::{Judged, Lines, Open};
use super::others::{Input, Others};
use super::unsigned::write_signed;
use super::{Format, Line, Refusal, Refused, Rules, Scanner, Unsigned};

/// What some editors and programs write in front of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What takes lines and refusals.
pub trait Sink {
    /// A valid line.
    fn line(&mut self, line: Line<'_>);
    /// A line that is not valid.
    fn refused(&mut self, refused: Refused<'_>);
}

/// What else was in the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The format of the first line that was taken, and its place; none where none was.
    pub first: Option<(Format, usize)>,
    /// Lines of other formats that were taken; several may have become one line.
    pub converted: u64,
    /// Lines that held nothing to store: a `null`.
    pub skipped: u64,
    /// Words of converted lines that stood among the tags and were none.
    pub ignored_tags: u64,
    /// Whether the sender asked which version answers.
    pub asks_version: bool,
    /// How much of a stream's input was read: the rest is a line whose string is still open.
    pub consumed: usize,
}

/// What a stream's earlier pieces say about the next one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stream {
    /// The format of the last line that was taken.
    known: Option<Format>,
    /// Where the scan of the line at hand stopped.
    open: Option<Open>,
    has_begun: bool,
}

/// Reads the input of one worker of one listener.
#[derive(Debug)]
pub struct Reader {
    /// What all input is written in; none: it is to be told apart.
    format: Option<Format>,
    scanner: Scanner,
    others: Others,
    /// Room for a line whose unsigned integers are made signed; none where they are not.
    signed: Option<Vec<u8>>,
}

impl Reader {
    /// A reader of one format, or of all where none is given.
    pub fn new(format: Option<Format>, mapping: Mapping, rules: Rules) -> Self {
        Self {
            format,
            scanner: Scanner::with(rules),
            others: Others::new(mapping, rules.precision, rules.max_line, format.is_some()),
            signed: (rules.unsigned == Unsigned::Signed).then(Vec::new),
        }
    }

    /// Reads a datagram. `truncated` says that its end was cut off, so that a last line without a line feed is not
    /// whole.
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

    /// Reads whole physical lines of a stream, of which the first ones may have been `stream`'s open line before. At the
    /// stream's end, or where the line is to wait no longer (`is_end`), all of it is read.
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

    /// The host that a line names, as far as its format tells.
    pub fn host<'a>(&self, format: Format, line: &'a [u8]) -> Option<&'a [u8]> {
        let behind = |text: &[u8]| memchr::memmem::find(line, text).map(|at| &line[at + text.len()..]);
        match format {
            Format::Influx => host_of(line),
            Format::Opentsdb => until(behind(b" host=")?, b" \r\n"),
            Format::NetdataJson => until(behind(b"\"hostname\":\"")?, b"\""),
            Format::Graphite => self.others.mapping().host_in(until(line, b"; \t")?),
        }
    }
}

/// The host that a line of line protocol names by the tag `host`.
pub fn host_of(line: &[u8]) -> Option<&[u8]> {
    const TAG: &[u8] = b",host=";
    let at = memchr::memmem::find(line, TAG)?;
    until(&line[at + TAG.len()..], b", ")
}

/// What stands before the first of these bytes; none if that is nothing.
fn until<'a>(rest: &'a [u8], ends: &[u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|byte| ends.contains(byte)).unwrap_or(rest.len());
    Some(&rest[..end]).filter(|host| !host.is_empty())
}

/// The reading of one datagram, or of one piece of a stream.
struct Reading<'a, S> {
    /// The format of the last line that was taken.
    known: Option<Format>,
    found: Found,
    signed: &'a mut Option<Vec<u8>>,
    sink: &'a mut S,
}

impl<S: Sink> Reading<'_, S> {
    /// A line of line protocol.
    #[inline]
    fn take(&mut self, line: Line<'_>, input: Input<'_>) {
        self.known = Some(Format::Influx);
        if self.found.first.is_none() {
            let place = line.bytes.as_ptr() as usize - input.bytes.as_ptr() as usize;
            self.found.first = Some((Format::Influx, place));
        }
        match self.signed {
            Some(room) if line.has_unsigned => {
                write_signed(line.bytes, room);
                self.sink.line(Line { bytes: room, ..line });
            }
            _ => self.sink.line(line),
        }
    }

    /// All lines are of this format, or refused.
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

    /// Converts the lines that follow, where the last one was of another format than line protocol, as long as they are
    /// of that format; returns what is wrong with the one behind them.
    #[inline]
    fn convert(&mut self, others: &mut Others, input: Input<'_>, lines: &mut Lines<'_>) -> Option<Refusal> {
        let format = self.known.filter(|format| *format != Format::Influx)?;
        let (at, before) = (lines.offset(), self.found.converted);
        let (stopped, why) = others.convert(format, input, at, &mut self.found, self.sink);
        self.note_first(format, at, before);
        lines.resume(stopped);
        why
    }

    /// A line that is not valid line protocol: one of another format, and then those behind it are likely to be, or none at
    /// all. `why` it is none of the format before, where that was tried.
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
                let place = refused.bytes.as_ptr() as usize - input.bytes.as_ptr() as usize;
                lines.resume(place);
                let before = self.known.replace(format);
                let why = self.convert(others, input, lines);
                if lines.offset() > place {
                    return;
                }
                // It looks like one, and is none.
                self.known = before;
                lines.resume(place + first_line(refused.bytes).len());
                why.unwrap_or(refused.reason)
            }
        };
        self.sink.refused(Refused { reason, ..refused });
    }

    /// Refuses a line; where it is of another format than all input is to be, that is the reason.
    #[cold]
    fn refuse(&mut self, refused: Refused<'_>, format: Option<Format>) {
        let is_other = |format| Format::detect(refused.bytes).is_some_and(|detected| detected != format);
        let reason = if format.is_some_and(is_other) { Refusal::WrongFormat } else { refused.reason };
        self.sink.refused(Refused { reason, ..refused });
    }

    /// Gives what is still being put together.
    fn finish(mut self, others: &mut Others, consumed: usize) -> Found {
        others.finish(self.sink);
        self.found.consumed = consumed;
        self.found
    }

    fn note_first(&mut self, format: Format, place: usize, before: u64) {
        if self.found.converted > before {
            self.found.first.get_or_insert((format, place));
        }
    }
}

/// Where the text begins.
#[inline]
fn begin(input: &[u8]) -> usize {
    if input.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 }
}

/// The first physical line, with its line feed.
fn first_line(input: &[u8]) -> &[u8] {
    &input[..memchr::memchr(b'\n', input).map_or(input.len(), |feed| feed + 1)]
}
