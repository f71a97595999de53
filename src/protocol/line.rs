//! The line scanner: finds and validates every line of one datagram in place.
//!
//! The grammar is the strictest common one: what every InfluxDB accepts and none chokes on. InfluxDB 1.x has
//! lines that crash its process (a backslash before `=` and a quote), that answer 500 for a whole request
//! (bytes that are not UTF-8, exactly 100 tags), and that swallow the lines behind them (an open quote, a
//! trailing backslash, a comment holding either), so each datagram is judged alone, line by line: a good line
//! survives a bad neighbour.
//!
//! ```text
//! line  = *SP measurement *( "," key "=" value ) 1*SP field *( "," field ) [ 1*SP timestamp ] *SP [ CR ] LF
//! field = key "=" ( float | integer "i" | boolean | DQUOTE string DQUOTE )
//! ```
//!
//! * `\,` `\ ` and `\=` are escapes in keys and tag values, any other backslash is literal. There is no `\\`
//!   escape there, parsers differ on it, and so an even run of backslashes before a delimiter is refused, and
//!   a token that ends in a backslash too.
//! * A string may hold anything, a line feed included; `\"` and `\\` are its escapes.
//! * Comments (`#`) and blank lines are skipped and count as nothing.
//!
//! An accepted line is handed on byte for byte, without leading spaces, CR and LF. (InfluxDB frames lines before
//! it skips leading spaces, and takes a quote behind them for a string's: such a line could swallow others.) Never allocates, never copies, never
//! looks at a byte beyond the input; every step consumes at least one byte.

use super::token::{BACKSLASH, CLASS, COMMA, CONTROL, EQUALS, SPACE, find};
use super::{Precision, Refusal, number, timestamp};

/// The most tags a line may have.
pub const MAX_TAGS: usize = 256;
/// The one number of tags at which InfluxDB 1.6 panics (in `scanTags`) and answers 500 for the whole request,
/// at every retry.
pub(super) const TAGS_THAT_PANIC: usize = 100;
/// The longest line, in bytes without its line feed: a datagram's length.
pub const MAX_LINE_BYTES: usize = 64 * 1024;
/// The longest series key (measurement and tags as written) plus field key plus 4, as InfluxDB's index counts.
pub(super) const MAX_SERIES_BYTES: usize = 65_535;

/// An accepted line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The line as it came, without leading spaces, CR and LF.
    pub bytes: &'a [u8],
    /// Whether it has a timestamp of its own.
    pub has_timestamp: bool,
}

/// A refused line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused<'a> {
    /// Why.
    pub reason: Refusal,
    /// What was skipped, for the log's sample.
    pub bytes: &'a [u8],
}

/// Finds the lines of one datagram after the other, with timestamps of one precision.
#[derive(Debug)]
pub struct Scanner {
    precision: Precision,
    tags: TagKeys,
}

impl Scanner {
    /// A scanner for one worker of one listener.
    pub fn new(precision: Precision) -> Self {
        Self { precision, tags: TagKeys::default() }
    }

    /// The lines of `input`. `truncated` says that the input's end was cut off, so that a last line without a
    /// line feed is not whole.
    #[inline]
    pub fn lines<'a>(&'a mut self, input: &'a [u8], truncated: bool) -> Lines<'a> {
        let is_utf8 = std::str::from_utf8(input).is_ok();
        Lines { input, at: 0, precision: self.precision, is_utf8, truncated, tags: &mut self.tags }
    }
}

/// Walks over the lines of one datagram.
#[derive(Debug)]
pub struct Lines<'a> {
    input: &'a [u8],
    at: usize,
    precision: Precision,
    is_utf8: bool,
    truncated: bool,
    tags: &'a mut TagKeys,
}

impl<'a> Lines<'a> {
    /// Moves past blank lines, comments and leading spaces' lines; false at the end of the input.
    #[inline]
    fn seek_line(&mut self) -> bool {
        loop {
            let text = skip_spaces(self.input, self.at);
            match self.input.get(text) {
                None => return false,
                Some(b'\n') => self.at = text + 1,
                Some(b'\r') if ends_at(self.input, text) => self.at = (text + 2).min(self.input.len()),
                Some(b'#') => self.at = next_line(self.input, text),
                Some(_) => {
                    self.at = text;
                    return true;
                }
            }
        }
    }

    /// What only a look at the whole line tells.
    #[inline]
    fn check_whole(&self, start: usize, line: Scanned) -> Result<(), Refusal> {
        if line.end - start > MAX_LINE_BYTES - 1024 {
            let series = line.series_end - start + line.longest_field_key + 4;
            if line.end - start > MAX_LINE_BYTES || series > MAX_SERIES_BYTES {
                return Err(Refusal::TooLong);
            }
        }
        if !self.is_utf8 && std::str::from_utf8(&self.input[start..line.end]).is_err() {
            return Err(Refusal::InvalidUtf8);
        }
        if self.truncated && line.end == self.input.len() {
            return Err(Refusal::Truncated);
        }
        Ok(())
    }

    #[cold]
    fn refuse(&mut self, start: usize, reason: Refusal, at: usize) -> Refused<'a> {
        self.at = next_line(self.input, at);
        let cut = self.truncated && self.at == self.input.len() && self.input.last() != Some(&b'\n');
        let reason = if cut { Refusal::Truncated } else { reason };
        Refused { reason, bytes: &self.input[start..self.at] }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Result<Line<'a>, Refused<'a>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if !self.seek_line() {
            return None;
        }
        let start = self.at;
        let scanned = scan_line(self.input, start, self.precision, self.tags)
            .and_then(|line| self.check_whole(start, line).map(|()| line).map_err(|reason| (reason, line.end)));
        Some(match scanned {
            Ok(line) => {
                self.at = next_line(self.input, line.end);
                Ok(Line { bytes: &self.input[start..line.end], has_timestamp: line.has_timestamp })
            }
            Err((reason, at)) => Err(self.refuse(start, reason, at)),
        })
    }
}

/// Where the parts of one valid line end.
#[derive(Clone, Copy)]
struct Scanned {
    /// The end of the line, before CR and LF.
    end: usize,
    /// The end of measurement and tags.
    series_end: usize,
    longest_field_key: usize,
    has_timestamp: bool,
}

/// Why a line is refused, and the place from which the next line feed is looked for. It lies behind strings that
/// were closed, so that their text is not taken for lines; see [`scan_value`] for the one exception.
type Stop = (Refusal, usize);

fn scan_line(input: &[u8], start: usize, precision: Precision, tags: &mut TagKeys) -> Result<Scanned, Stop> {
    let mut at = token::<MEASUREMENT_END>(input, start)?;
    if at == start {
        return Err((at_control(input, at, Refusal::MissingMeasurement), at));
    }
    at = scan_tags(input, at, tags)?;
    let series_end = at;
    if input.get(at) != Some(&b' ') {
        return Err((at_control(input, at, Refusal::MissingField), at));
    }
    let (after, longest_field_key) = scan_fields(input, skip_spaces(input, at))?;
    let (end, has_timestamp) = scan_timestamp(input, after, precision)?;
    Ok(Scanned { end, series_end, longest_field_key, has_timestamp })
}

/// The tags, from the place after the measurement; returns the place after them.
#[inline]
fn scan_tags(input: &[u8], mut at: usize, tags: &mut TagKeys) -> Result<usize, Stop> {
    tags.clear();
    while input.get(at) == Some(&b',') {
        let key = at + 1;
        let key_end = token::<KEY_END>(input, key)?;
        if key_end == key {
            return Err((at_control(input, key, Refusal::MissingTagKey), key_end));
        }
        if input.get(key_end) != Some(&b'=') {
            return Err((at_control(input, key_end, Refusal::InvalidTagValue), key_end));
        }
        tags.add(input, key, key_end).map_err(|reason| (reason, key_end))?;
        let value = key_end + 1;
        at = token::<KEY_END>(input, value)?;
        if at == value || input.get(at) == Some(&b'=') {
            return Err((at_control(input, at, Refusal::InvalidTagValue), at));
        }
    }
    if tags.count == TAGS_THAT_PANIC {
        return Err((Refusal::TooManyTags, at));
    }
    Ok(at)
}

/// The fields, from the first one's key; returns the place after them and the longest key's length.
#[inline]
fn scan_fields(input: &[u8], mut at: usize) -> Result<(usize, usize), Stop> {
    let mut longest = 0;
    loop {
        let key_end = token::<KEY_END>(input, at)?;
        if key_end == at {
            return Err((at_control(input, at, Refusal::MissingField), at));
        }
        if input.get(key_end) != Some(&b'=') {
            return Err((at_control(input, key_end, Refusal::InvalidValue), key_end));
        }
        if &input[at..key_end] == b"time" {
            return Err((Refusal::ReservedField, key_end));
        }
        longest = longest.max(key_end - at);
        at = scan_value(input, key_end + 1)?;
        if input.get(at) != Some(&b',') {
            return Ok((at, longest));
        }
        at += 1;
    }
}

/// One field's value; returns the place after it, which is a comma, a space or the line's end.
///
/// Text right behind a string that goes over a line's end tells that its closing quote is another line's opening
/// one, and that its own was never closed: then the lines inside are judged for themselves.
#[inline]
fn scan_value(input: &[u8], at: usize) -> Result<usize, Stop> {
    let first = input.get(at).copied().unwrap_or(b'\n');
    let (end, otherwise) = match first {
        b'0'..=b'9' | b'-' | b'.' => (number::skip(input, at)?, Refusal::InvalidValue),
        b'"' => (skip_string(input, at)?, Refusal::TrailingText),
        _ => (skip_boolean(input, at), Refusal::InvalidValue),
    };
    if end > at && (matches!(input.get(end), None | Some(b',' | b' ')) || ends_at(input, end)) {
        return Ok(end);
    }
    let is_open = first == b'"' && memchr::memchr(b'\n', &input[at..end]).is_some();
    if is_open { Err((Refusal::UnterminatedString, at)) } else { Err((at_control(input, end, otherwise), end)) }
}

/// The place after the boolean at `at`, or `at` where there is none.
fn skip_boolean(input: &[u8], at: usize) -> usize {
    let rest = &input[at..];
    let names: [&[u8]; 8] = [b"true", b"True", b"TRUE", b"false", b"False", b"FALSE", b"t", b"f"];
    let longest = names.iter().find(|name| rest.starts_with(name)).map(|name| name.len());
    let length = longest.unwrap_or_else(|| usize::from(matches!(rest.first(), Some(b'T' | b'F'))));
    at + length
}

/// The place after the string whose opening quote is at `open`.
fn skip_string(input: &[u8], open: usize) -> Result<usize, Stop> {
    let mut at = open + 1;
    while let Some(found) = input.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found;
        if input[at] == b'"' {
            return Ok(at + 1);
        }
        at += 2;
    }
    // Nothing closes it: the lines behind are judged for themselves.
    Err((Refusal::UnterminatedString, open))
}

/// What stands after the fields; returns the line's end and whether there was a timestamp.
#[inline]
fn scan_timestamp(input: &[u8], at: usize, precision: Precision) -> Result<(usize, bool), Stop> {
    if ends_at(input, at) {
        return Ok((at, false));
    }
    let first = skip_spaces(input, at);
    if ends_at(input, first) {
        return Ok((first, false));
    }
    let after = timestamp::skip(input, first, precision)?;
    let end = if ends_at(input, after) { after } else { skip_spaces(input, after) };
    if ends_at(input, end) { Ok((end, true)) } else { Err((at_control(input, end, Refusal::TrailingText), end)) }
}

// === Bytes and tokens ===

/// What ends a measurement (`=` does not).
const MEASUREMENT_END: u8 = COMMA | SPACE | BACKSLASH | CONTROL;
/// What ends a key or a tag value.
const KEY_END: u8 = COMMA | EQUALS | SPACE | BACKSLASH | CONTROL;

/// The place after the token that starts at `at`: the first unescaped byte of `ENDS`, or the input's end.
#[inline]
fn token<const ENDS: u8>(input: &[u8], mut at: usize) -> Result<usize, Stop> {
    loop {
        at = find(input, at, |byte| CLASS[byte as usize] & ENDS != 0);
        if input.get(at) != Some(&b'\\') {
            return Ok(at);
        }
        at = skip_backslashes::<ENDS>(input, at)?;
    }
}

/// The place after the run of backslashes at `at` and what it escapes.
#[cold]
fn skip_backslashes<const ENDS: u8>(input: &[u8], at: usize) -> Result<usize, Stop> {
    let run = input[at..].iter().take_while(|byte| **byte == b'\\').count();
    let after = at + run;
    match input.get(after).map(|byte| CLASS[*byte as usize] & ENDS) {
        Some(0) => Ok(after),
        Some(CONTROL) | None => Err((at_control(input, after, Refusal::AmbiguousEscape), after)),
        Some(_) if run % 2 == 1 => Ok(after + 1),
        Some(_) => Err((Refusal::AmbiguousEscape, after)),
    }
}

/// `reason`, unless what stands at `at` is a control byte (other than the line's end), which is the nearer one.
fn at_control(input: &[u8], at: usize, reason: Refusal) -> Refusal {
    match input.get(at) {
        Some(byte) if CLASS[*byte as usize] == CONTROL && !ends_at(input, at) => Refusal::ControlByte,
        _ => reason,
    }
}

/// Whether a line ends at `at`: the input's end, an LF, or a CR before either.
#[inline]
fn ends_at(input: &[u8], at: usize) -> bool {
    match input.get(at) {
        None | Some(b'\n') => true,
        Some(b'\r') => matches!(input.get(at + 1), None | Some(b'\n')),
        Some(_) => false,
    }
}

#[inline]
fn skip_spaces(input: &[u8], mut at: usize) -> usize {
    while input.get(at) == Some(&b' ') {
        at += 1;
    }
    at
}

/// The place after the next line feed from `at` on.
#[inline]
fn next_line(input: &[u8], at: usize) -> usize {
    if input.get(at) == Some(&b'\n') {
        return at + 1;
    }
    memchr::memchr(b'\n', &input[at..]).map_or(input.len(), |found| at + found + 1)
}

// === Tag keys ===

/// The tag keys of the line at hand, to find one that comes twice.
#[derive(Debug)]
struct TagKeys {
    count: usize,
    /// First byte and length of each key: two keys are compared only where these agree.
    prints: [u32; MAX_TAGS],
    starts: [u32; MAX_TAGS],
}

impl Default for TagKeys {
    fn default() -> Self {
        Self { count: 0, prints: [0; MAX_TAGS], starts: [0; MAX_TAGS] }
    }
}

impl TagKeys {
    fn clear(&mut self) {
        self.count = 0;
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "one input is far below 4 GiB; a print need not be exact")]
    fn add(&mut self, input: &[u8], start: usize, end: usize) -> Result<(), Refusal> {
        let key = &input[start..end];
        if matches!(key, b"time" | b"_field" | b"_measurement") {
            return Err(Refusal::ReservedTag);
        }
        if self.count == MAX_TAGS {
            return Err(Refusal::TooManyTags);
        }
        let print = (key.len() as u32) << 8 | u32::from(key[0]);
        for place in 0..self.count {
            let other = self.starts[place] as usize;
            if self.prints[place] == print && &input[other..other + key.len()] == key {
                return Err(Refusal::DuplicateTag);
            }
        }
        self.prints[self.count] = print;
        self.starts[self.count] = start as u32;
        self.count += 1;
        Ok(())
    }
}
