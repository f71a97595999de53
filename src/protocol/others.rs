//! Lines of formats other than line protocol: one parser for each, and the converter after them.
//!
//! Owns: which parser reads a line, and how a line is counted. Never does: telling formats apart
//! ([`super::Reader`] does). Bounds: lines of `max_line` bytes.

use super::convert::{Converter, Mapping};
use super::line::physical_bytes;
use super::netdata_json::{self, Object};
use super::reader::{Found, Sink};
use super::token::is_blank;
use super::{Format, Precision, Refusal, graphite, opentsdb};

/// Reads lines of other formats.
#[derive(Debug)]
pub(super) struct Others {
    converter: Converter,
    /// Maximum line length, in bytes without the line feed.
    max_line: usize,
    /// Whether all input is of one format, so that ambiguous lines are accepted as that format.
    is_certain: bool,
}

/// The lines to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a> {
    pub(super) bytes: &'a [u8],
    /// Whether the whole input is known to be UTF-8.
    pub(super) is_utf8: bool,
    /// Whether the end was cut off, so that a last line without a line feed is incomplete.
    pub(super) truncated: bool,
}

impl Others {
    pub(super) fn new(mapping: Mapping, precision: Precision, max_line: usize, is_certain: bool) -> Self {
        Self { converter: Converter::new(mapping, precision), max_line, is_certain }
    }

    pub(super) fn mapping(&self) -> &Mapping {
        self.converter.mapping()
    }

    /// Converts the lines from `at` on, up to the first that is not a complete, valid line of this
    /// format. Returns the offset of that line and what is wrong with it, if any. A point may still
    /// be under construction: see [`Self::finish`].
    pub(super) fn convert<S: Sink>(
        &mut self,
        format: Format,
        input: Input<'_>,
        mut at: usize,
        found: &mut Found,
        sink: &mut S,
    ) -> (usize, Option<Refusal>) {
        self.converter.begin(format, sink);
        let bytes = input.bytes;
        let mut stopped = None;
        while at < bytes.len() {
            let feed = memchr::memchr(b'\n', &bytes[at..]);
            if feed.is_none() && input.truncated {
                stopped = Some(Refusal::Truncated);
                break;
            }
            let end = feed.map_or(bytes.len(), |feed| at + feed);
            if let Err(reason) = self.line(format, &bytes[at..end], input.is_utf8, found, sink) {
                stopped = Some(reason);
                break;
            }
            at = bytes.len().min(end + 1);
        }
        (at, stopped)
    }

    /// Emits the point under construction.
    #[inline]
    pub(super) fn finish<S: Sink>(&mut self, sink: &mut S) {
        self.converter.flush(sink);
    }

    /// Converts one line, which has no line feed.
    #[inline]
    fn line<S: Sink>(
        &mut self,
        format: Format,
        line: &[u8],
        is_utf8: bool,
        found: &mut Found,
        sink: &mut S,
    ) -> Result<(), Refusal> {
        if physical_bytes(line) > self.max_line {
            return Err(Refusal::TooLong);
        }
        if is_nothing(line) {
            return Ok(());
        }
        if !is_utf8 {
            self.converter.set_doubtful(std::str::from_utf8(line).is_err());
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
            // Line protocol is not converted and never gets here.
            Format::Graphite | Format::Influx => {
                let metric = graphite::parse(line, self.converter.likely_tags())?;
                if !self.is_certain && metric.has_influx_tags() {
                    return Err(Refusal::MissingField);
                }
                found.ignored_tags += self.converter.add(&metric, sink)?;
            }
        }
        found.converted += 1;
        Ok(())
    }
}

/// Returns whether a line is blank or a comment.
#[inline]
fn is_nothing(line: &[u8]) -> bool {
    matches!(line.iter().find(|byte| !is_blank(**byte)), None | Some(b'#'))
}
