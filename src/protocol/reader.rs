//! From received bytes to lines of line protocol, whatever they are written in.
//!
//! Owns: telling formats apart where the listener is to do so, and cutting input into lines. A datagram is judged as a
//! whole, so that a string of line protocol may hold line feeds there; a stream is cut at each line feed, so that what
//! comes of it does not depend on how it was received.

use super::convert::{Converter, Mapping};
use super::line::MAX_LINE_BYTES;
use super::netdata_json::{self, Object};
use super::{Format, Line, Precision, Refusal, Refused, Scanner, graphite, opentsdb};

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
    /// What the input was written in; none where nothing told.
    pub format: Option<Format>,
    /// Lines of other formats that were taken; several may have become one line.
    pub converted: u64,
    /// Lines that held nothing to store: a `null`.
    pub skipped: u64,
    /// Words of converted lines that stood among the tags and were none.
    pub ignored_tags: u64,
    /// Whether the sender asked which version answers.
    pub asks_version: bool,
}

/// Reads the input of one worker of one listener.
#[derive(Debug)]
pub struct Reader {
    /// What all input is written in; none: it is to be told apart.
    format: Option<Format>,
    scanner: Scanner,
    converter: Converter,
}

impl Reader {
    /// A reader of one format, or of all where none is given.
    pub fn new(format: Option<Format>, mapping: Mapping, precision: Precision) -> Self {
        Self { format, scanner: Scanner::new(precision), converter: Converter::new(mapping, precision) }
    }

    /// Reads a datagram. `truncated` says that its end was cut off, so that a last line without a line feed is not
    /// whole.
    #[inline]
    pub fn datagram<S: Sink>(&mut self, input: &[u8], truncated: bool, sink: &mut S) -> Found {
        if self.format.is_none_or(|format| format == Format::Influx) {
            let mut lines = self.scanner.lines(input, truncated);
            let first = lines.next();
            // A valid line needs no further look: most datagrams hold nothing else.
            if self.format.is_some() || matches!(first, Some(Ok(_))) {
                first.into_iter().chain(lines).for_each(|line| give(line, self.format, sink));
                return Found { format: Some(Format::Influx), ..Found::default() };
            }
        }
        let Some(format) = self.format.or_else(|| detect(input)) else {
            return self.refuse_all(input, sink);
        };
        if format == Format::Influx {
            self.scanner.lines(input, truncated).for_each(|line| give(line, self.format, sink));
            return Found { format: Some(format), ..Found::default() };
        }
        let whole = if truncated { memchr::memrchr(b'\n', input).map_or(0, |feed| feed + 1) } else { input.len() };
        let found = self.convert(format, &input[..whole], sink);
        if whole < input.len() {
            sink.refused(Refused { reason: Refusal::Truncated, bytes: &input[whole..] });
        }
        found
    }

    /// Reads whole lines of a stream, each ended by a line feed. `known` is the stream's format once a line told: the first
    /// that did. Lines before it are refused, each for itself.
    pub fn lines<S: Sink>(&mut self, mut input: &[u8], known: &mut Option<Format>, sink: &mut S) -> Found {
        *known = self.format.or(*known);
        while known.is_none() && !input.is_empty() {
            let (line, rest) = input.split_at(memchr::memchr(b'\n', input).map_or(input.len(), |feed| feed + 1));
            *known = self.detect_line(line);
            if known.is_none() {
                self.refuse_all(line, sink);
                input = rest;
            }
        }
        match *known {
            None => Found::default(),
            Some(Format::Influx) => {
                for line in input.split_inclusive(|byte| *byte == b'\n') {
                    self.scanner.lines(line, false).for_each(|line| give(line, self.format, sink));
                }
                Found { format: *known, ..Found::default() }
            }
            Some(format) => self.convert(format, input, sink),
        }
    }

    /// The host that a line names, as far as its format tells.
    pub fn host<'a>(&self, format: Format, line: &'a [u8]) -> Option<&'a [u8]> {
        let behind = |text: &[u8]| memchr::memmem::find(line, text).map(|at| &line[at + text.len()..]);
        let until = |rest: &'a [u8], ends: &[u8]| {
            let end = rest.iter().position(|byte| ends.contains(byte)).unwrap_or(rest.len());
            Some(&rest[..end]).filter(|host| !host.is_empty())
        };
        match format {
            Format::Influx => until(behind(b",host=")?, b", "),
            Format::Opentsdb => until(behind(b" host=")?, b" \r\n"),
            Format::NetdataJson => until(behind(b"\"hostname\":\"")?, b"\""),
            Format::Graphite => self.converter.mapping().host_in(until(line, b"; \t")?),
        }
    }

    fn convert<S: Sink>(&mut self, format: Format, input: &[u8], sink: &mut S) -> Found {
        let mut found = Found { format: Some(format), ..Found::default() };
        let is_utf8 = std::str::from_utf8(input).is_ok();
        self.converter.begin(format);
        let mut start = 0;
        while start < input.len() {
            let end = memchr::memchr(b'\n', &input[start..]).map_or(input.len(), |feed| start + feed);
            let line = &input[start..end];
            start = end + 1;
            let read = if line.len() > MAX_LINE_BYTES {
                Err(Refusal::TooLong)
            } else {
                if !is_utf8 {
                    self.converter.set_doubtful(std::str::from_utf8(line).is_err());
                }
                self.convert_line(format, line, &mut found, sink)
            };
            if let Err(reason) = read {
                refuse(line, reason, Some(format), sink);
            }
        }
        self.converter.flush(sink);
        found
    }

    #[inline]
    fn convert_line<S: Sink>(
        &mut self,
        format: Format,
        line: &[u8],
        found: &mut Found,
        sink: &mut S,
    ) -> Result<(), Refusal> {
        if is_nothing(line) {
            return Ok(());
        }
        match format {
            Format::Opentsdb if opentsdb::is_version(line) => {
                found.asks_version = true;
                return Ok(());
            }
            Format::Opentsdb => found.ignored_tags += self.converter.add(&opentsdb::parse(line)?, sink)?,
            Format::NetdataJson => {
                let mut copy = Vec::new();
                let object = Object::parse(line).or_else(|_| {
                    netdata_json::copy_used(line, &mut copy)?;
                    Object::parse(&copy)
                })?;
                let Some(metric) = object.metric() else {
                    found.skipped += 1;
                    return Ok(());
                };
                found.ignored_tags += self.converter.add(&metric, sink)?;
            }
            // Line protocol never comes here: it is not converted.
            Format::Graphite | Format::Influx => {
                let metric = graphite::parse(line, self.converter.likely_tags())?;
                found.ignored_tags += self.converter.add(&metric, sink)?;
            }
        }
        found.converted += 1;
        Ok(())
    }

    /// The format of one line. What is valid line protocol is line protocol, whatever else it looks like.
    fn detect_line(&mut self, line: &[u8]) -> Option<Format> {
        let is_influx = matches!(self.scanner.lines(line, false).next(), Some(Ok(_)));
        if is_influx { Some(Format::Influx) } else { Format::detect(line) }
    }

    #[cold]
    fn refuse_all<S: Sink>(&self, input: &[u8], sink: &mut S) -> Found {
        for line in input.split(|byte| *byte == b'\n').filter(|line| !is_nothing(line)) {
            sink.refused(Refused { reason: Refusal::WrongFormat, bytes: line });
        }
        Found::default()
    }
}

/// Whether a line is blank or a comment.
#[inline]
fn is_nothing(line: &[u8]) -> bool {
    matches!(line.iter().find(|byte| !super::token::is_blank(**byte)), None | Some(b'#'))
}

/// The format of the first line that tells.
#[inline]
fn detect(input: &[u8]) -> Option<Format> {
    input.split(|byte| *byte == b'\n').find_map(Format::detect)
}

#[inline]
fn give<S: Sink>(line: Result<Line<'_>, Refused<'_>>, format: Option<Format>, sink: &mut S) {
    match line {
        Ok(line) => sink.line(line),
        Err(Refused { reason, bytes }) => refuse(bytes, reason, format, sink),
    }
}

/// Refuses a line; where it is of another format than all input is to be, that is the reason.
#[cold]
fn refuse<S: Sink>(line: &[u8], reason: Refusal, format: Option<Format>, sink: &mut S) {
    let is_other = format.is_some_and(|format| Format::detect(line).is_some_and(|detected| detected != format));
    sink.refused(Refused { reason: if is_other { Refusal::WrongFormat } else { reason }, bytes: line });
}
