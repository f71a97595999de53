//! Converts lines of other formats to line protocol: takes one value at a time, emits one point at
//! a time.
//!
//! Owns: how a name, its tags, number and time are written as line protocol ([`Mapping`]), and the
//! point under construction. Adjacent values of one chart and time become one point with several
//! fields.
//!
//! * Numbers keep the sender's digits and are always floats, so that fields never conflict by type.
//! * Names are escaped. A line whose name cannot be escaped is refused. [`super::Scanner`] accepts
//!   every line that is written.
//! * The last line's tags and time are kept in written form: nearly every line of a batch has the
//!   same ones.
//!
//! Never does: allocating, once its buffers have grown to a sender's lines, except for escapes in
//! JSON.
//!
//! Bounds: a point of [`MAX_POINT_BYTES`]; names and tags as InfluxDB's index allows.

mod epoch;
mod escape;
mod mapping;
mod metric;
mod tags;
mod template;
mod templates;

use super::line::{MAX_LINE_BYTES, MAX_SERIES_BYTES};
use super::reader::Sink;
use super::{Format, Line, Precision, Refusal};
use epoch::Time;
use mapping::Kind;
use tags::{Given, Keys, LastTags};

pub use mapping::{InvalidMapping, Mapping, Netdata};
pub(super) use metric::{Metric, Name, Parts, TagSyntax, Tags};

/// A point that has reached this size accepts no further field. The rest of the maximum line length
/// leaves room for any one field.
const MAX_POINT_BYTES: usize = 32 * 1024;
/// Maximum length of a stamp and its space.
const STAMP_BYTES: usize = 21;
/// The field of a value without a field name of its own.
const VALUE: &[u8] = b"value";

/// Writes one worker's lines of other formats as line protocol.
#[derive(Debug)]
pub(super) struct Converter {
    mapping: Mapping,
    /// The format of the current lines.
    format: Format,
    /// Whether the output may contain bytes that are not UTF-8.
    is_doubtful: bool,
    time: Time,
    tags: LastTags,
    keys: Keys,
    /// Buffer for a field's name.
    field: Vec<u8>,
    point: Point,
}

/// The point under construction.
#[derive(Debug, Default)]
struct Point {
    is_open: bool,
    /// The common beginning of its values' names: a path up to the dimension, or prefix, host and
    /// chart, each followed by a NUL.
    chart: Vec<u8>,
    /// Series and fields.
    text: Vec<u8>,
    /// Length of the series, if the point is open.
    series: usize,
}

impl Converter {
    pub(super) fn new(mapping: Mapping, precision: Precision) -> Self {
        Self {
            mapping,
            format: Format::Graphite,
            is_doubtful: false,
            time: Time::new(precision),
            tags: LastTags::default(),
            keys: Keys::default(),
            field: Vec::new(),
            point: Point::default(),
        }
    }

    pub(super) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Sets the format of the following lines. An open point of another format goes to the sink.
    pub(super) fn begin(&mut self, format: Format, sink: &mut impl Sink) {
        if self.format != format {
            self.flush(sink);
            self.format = format;
        }
        self.is_doubtful = false;
    }

    /// Sets whether the next line contains bytes that are not UTF-8. They matter only if they get
    /// into the output.
    pub(super) fn set_doubtful(&mut self, is_doubtful: bool) {
        self.is_doubtful = is_doubtful;
    }

    /// Returns the last tags that were written in Graphite's syntax.
    #[inline]
    pub(super) fn likely_tags(&self) -> &[u8] {
        self.tags.text_as(TagSyntax::Semicolons)
    }

    /// Adds one value to the open point if it belongs there, otherwise to a new one. Returns the
    /// number of its tags that were ignored.
    ///
    /// # Errors
    /// The value cannot be written. The open point is unchanged, or has been passed to the sink.
    #[inline]
    pub(super) fn add(&mut self, metric: &Metric<'_>, sink: &mut impl Sink) -> Result<u64, Refusal> {
        let value = metric::float(metric.value)?;
        if let Some(field) = self.point.field_of(metric.name)
            && self.tags.are(metric.tags)
            && self.time.is(metric.time)
            && self.point.text.len() < MAX_POINT_BYTES
            && !self.is_doubtful
        {
            self.point.add(field, value)?;
            return Ok(self.tags.ignored());
        }
        self.flush(sink);
        self.time.set(self.format, metric.time)?;
        let ignored_tags = self.write_point(metric, value)?;
        if self.is_doubtful && std::str::from_utf8(&self.point.text).is_err() {
            self.point.is_open = false;
            return Err(Refusal::InvalidUtf8);
        }
        if !self.point.is_open {
            self.give(sink);
        }
        Ok(ignored_tags)
    }

    /// Passes the open point to the sink, if there is one.
    pub(super) fn flush(&mut self, sink: &mut impl Sink) {
        if std::mem::take(&mut self.point.is_open) {
            self.give(sink);
        }
    }

    fn give(&mut self, sink: &mut impl Sink) {
        let stamp = self.time.stamp();
        if !stamp.is_empty() {
            self.point.text.push(b' ');
            self.point.text.extend_from_slice(stamp);
        }
        sink.line(Line { bytes: &self.point.text, time: self.time.value(), has_unsigned: false });
    }

    /// Writes a new point with its first field, and keeps it open if others may follow. Returns the
    /// number of its tags that were ignored.
    fn write_point(&mut self, metric: &Metric<'_>, value: &[u8]) -> Result<u64, Refusal> {
        let Self { mapping, format, tags, keys, field, point, .. } = self;
        let Point { text, chart, .. } = point;
        text.clear();
        chart.clear();
        let given = Given { host: metric.name.host(), tags: metric.tags, defaults: &mapping.tags };
        if let Kind::Templates(templates) = &mapping.kind {
            metric.name.write_path(chart);
            templates.apply(chart, given, keys, text, field)?;
            write_first(text, if field.is_empty() { VALUE } else { field }, value)?;
            return Ok(keys.ignored());
        }
        let Some((parts, before)) = mapping.chart(metric.name, *format == Format::Graphite) else {
            metric.name.write_path(chart);
            escape::measurement(text, chart)?;
            tags.write(text, given)?;
            write_first(text, VALUE, value)?;
            return Ok(tags.ignored());
        };
        if mapping.keeps_prefix() && !parts.prefix.is_empty() {
            escape::measurement(text, parts.prefix)?;
            text.push(b'.');
        }
        escape::measurement(text, parts.chart)?;
        tags.write(text, Given { host: parts.host, ..given })?;
        point.series = text.len();
        write_first(text, parts.dimension, value)?;
        metric.name.write_chart(before, chart);
        point.is_open = true;
        Ok(tags.ignored())
    }
}

impl Point {
    /// Returns the field that the name stands for in this point; `None` if it belongs to another
    /// point.
    #[inline]
    fn field_of<'a>(&self, name: Name<'a>) -> Option<&'a [u8]> {
        if self.is_open { name.field_in(&self.chart) } else { None }
    }

    /// Appends a further field.
    #[inline]
    fn add(&mut self, field: &[u8], value: &[u8]) -> Result<(), Refusal> {
        let before = self.text.len();
        self.text.push(b',');
        let written = write_field(&mut self.text, self.series, field, value);
        if written.is_err() {
            self.text.truncate(before);
        }
        written
    }
}

/// Writes the first field after the series.
fn write_first(text: &mut Vec<u8>, field: &[u8], value: &[u8]) -> Result<(), Refusal> {
    // Commas in a name are escaped: an unescaped one begins the tags, and the measurement is empty.
    if matches!(text.first(), None | Some(b',' | b'#')) {
        return Err(Refusal::MissingMeasurement);
    }
    let series = text.len();
    text.push(b' ');
    write_field(text, series, field, value)
}

#[inline]
fn write_field(text: &mut Vec<u8>, series: usize, field: &[u8], value: &[u8]) -> Result<(), Refusal> {
    if field.is_empty() {
        return Err(Refusal::MissingField);
    }
    let start = text.len();
    escape::key(text, field)?;
    if &text[start..] == b"time" {
        // InfluxDB reserves this name.
        text.push(b'_');
    }
    let is_too_long = series + text.len() - start + 4 > MAX_SERIES_BYTES;
    text.push(b'=');
    text.extend_from_slice(value);
    if is_too_long || text.len() > MAX_LINE_BYTES - STAMP_BYTES { Err(Refusal::TooLong) } else { Ok(()) }
}
