//! The line scanner: finds and validates every line of a datagram in place.
//!
//! The grammar is the strictest common one: it accepts only lines that every InfluxDB handles.
//! InfluxDB 1.x has lines that crash its process (a backslash before `=` and a quote), lines that
//! answer 500 for a whole request (bytes that are not UTF-8, exactly 100 tags), and lines that
//! swallow the lines after them (an open quote, a trailing backslash, a comment containing either).
//! Each datagram is therefore judged alone, line by line, and a good line survives a bad neighbour.
//!
//! ```text
//! line  = *SP measurement *( "," key "=" value ) 1*SP field *( "," field ) [ 1*SP timestamp ] *SP [ CR ] LF
//! field = key "=" ( float | integer "i" | boolean | DQUOTE string DQUOTE )
//! ```
//!
//! * `\,` `\ ` and `\=` are escapes in keys and tag values; any other backslash is literal. `\\` is
//!   not an escape there, but parsers differ on it, so an even run of backslashes before a
//!   delimiter is refused. A token that ends in a backslash is refused too.
//! * A string may contain anything, including a line feed; `\"` and `\\` are its escapes.
//! * Comments (`#`) and blank lines are skipped and not counted.
//! * A field `time` is forwarded: every InfluxDB stores the line without it. A line that has no
//!   other field is refused.
//! * Unsigned integers (`5u`) are refused unless the [`Rules`] allow them: stock InfluxDB 1.x does
//!   not know them.
//!
//! A **datagram** is complete: an unterminated string makes its line invalid, and the lines after
//! it are judged on their own. A **stream** continues: a line whose string is still open waits for
//! more input (`Judged::Open`), and the scan resumes where it stopped. The work is therefore linear
//! regardless of how the stream is split.
//!
//! An accepted line is passed on byte for byte, without leading spaces, CR and LF. (InfluxDB frames
//! lines before it skips leading spaces, and treats a quote after them as the start of a string.
//! Such a line could swallow others.)
//!
//! Never does: allocating, copying, reading beyond the input. Bounds: every step consumes at least
//! one byte.

pub mod anatomy;
mod grammar;

use serde::{Deserialize, Serialize};

use super::keys::{Keys, MAX_KEYS};
use super::{Precision, Refusal};
use grammar::{Scanned, Seen, Stop, ends_at, find_quote, next_line, resume_line, scan_line, skip_spaces};

/// Maximum number of tags in a line.
pub const MAX_TAGS: usize = MAX_KEYS;
/// The number of tags at which InfluxDB 1.6 panics (in `scanTags`) and answers 500 for the whole
/// request, on every retry.
pub(super) const TAGS_THAT_PANIC: usize = 100;
/// Default maximum line length, in bytes without the line feed: the length of a datagram.
pub const MAX_LINE_BYTES: usize = 64 * 1024;
/// Maximum line length that a listener can be configured for, in bytes without the line feed.
pub const LONGEST_LINE_BYTES: usize = 1024 * 1024;
/// Maximum length of the series key (measurement and tags as written) plus field key plus 4, as
/// InfluxDB's index counts it.
pub(super) const MAX_SERIES_BYTES: usize = 65_535;

/// An accepted line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The line as received, without leading spaces, CR and LF.
    pub bytes: &'a [u8],
    /// The line's own timestamp, in the listener's precision. `None` if the line has none.
    pub time: Option<i64>,
    /// Whether any field is an unsigned integer.
    pub has_unsigned: bool,
}

/// A refused line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused<'a> {
    /// The reason.
    pub reason: Refusal,
    /// The skipped bytes, for the log's sample.
    pub bytes: &'a [u8],
}

/// What a listener accepts beyond the grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The unit of timestamps.
    pub precision: Precision,
    /// Maximum line length, in bytes without the line feed; at most [`LONGEST_LINE_BYTES`].
    pub max_line: usize,
    /// The treatment of unsigned integers.
    pub unsigned: Unsigned,
}

/// The treatment of unsigned integers (`5u`), which stock InfluxDB 1.x does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unsigned {
    /// Refuses the line.
    #[default]
    Refuse,
    /// Forwards them, for groups whose servers all accept them.
    Keep,
    /// Forwards them as signed integers, capped at the largest one, as Telegraf does.
    Signed,
}

impl Rules {
    /// The strictest rules: what every InfluxDB accepts, in lines of at most [`MAX_LINE_BYTES`].
    pub fn strict(precision: Precision) -> Self {
        Self { precision, max_line: MAX_LINE_BYTES, unsigned: Unsigned::Refuse }
    }
}

/// Finds the lines of one input after another.
#[derive(Debug)]
pub struct Scanner {
    rules: Rules,
    tags: Keys,
}

impl Scanner {
    /// Creates a scanner with the strictest rules.
    pub fn new(precision: Precision) -> Self {
        Self::with(Rules::strict(precision))
    }

    /// Creates a scanner with these rules.
    pub fn with(rules: Rules) -> Self {
        Self { rules, tags: Keys::default() }
    }

    /// Creates a scanner that accepts every line that any listener may have accepted.
    pub fn of_accepted(precision: Precision) -> Self {
        Self::with(Rules { precision, max_line: LONGEST_LINE_BYTES, unsigned: Unsigned::Keep })
    }

    /// Returns the lines of `input`. `truncated`: the end of the input was cut off, so that a last
    /// line without a line feed is incomplete.
    #[inline]
    pub fn lines<'a>(&'a mut self, input: &'a [u8], truncated: bool) -> Lines<'a> {
        let is_utf8 = std::str::from_utf8(input).is_ok();
        Lines { input, at: 0, rules: self.rules, is_utf8, truncated, tags: &mut self.tags }
    }

    /// Returns the lines of a piece of a stream. If `is_open`, the piece begins with the line that
    /// was left open before. Read them with [`Lines::next_of_stream`].
    #[inline]
    pub(super) fn stream<'a>(&'a mut self, input: &'a [u8], is_open: bool) -> Lines<'a> {
        // An open line is not validated again with each piece: it is validated once, when complete.
        let is_utf8 = !is_open && std::str::from_utf8(input).is_ok();
        Lines { input, at: 0, rules: self.rules, is_utf8, truncated: false, tags: &mut self.tags }
    }
}

/// Where the scan of a stream's line stopped in an open string. Offsets are relative to the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Open {
    seen: Seen,
    /// Offset of the string's opening quote.
    quote: usize,
    /// The closing quote is not before this offset.
    searched: usize,
}

/// The next line of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged<'a> {
    /// A valid line.
    Line(Line<'a>),
    /// An invalid line, up to its first line feed.
    Refused(Refused<'a>),
    /// The rest of the input is a line whose string is still open.
    Open(Open),
}

/// Iterates over the lines of one datagram.
#[derive(Debug)]
pub struct Lines<'a> {
    input: &'a [u8],
    at: usize,
    rules: Rules,
    is_utf8: bool,
    truncated: bool,
    tags: &'a mut Keys,
}

impl<'a> Lines<'a> {
    /// Skips blank lines, comments and leading spaces. Returns `false` at the end of the input.
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

    /// Returns the offset after everything read so far.
    #[inline]
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    /// Continues at another offset; the caller has read what lies before it.
    #[inline]
    pub(super) fn resume(&mut self, at: usize) {
        self.at = at;
    }

    /// Returns whether the whole input is known to be UTF-8.
    #[inline]
    pub(super) fn is_utf8(&self) -> bool {
        self.is_utf8
    }

    /// Returns the next line of a stream. `input` holds whole physical lines, `open` is where the
    /// scan of the first one stopped. At the end of the stream (`is_end`) no line is left open.
    ///
    /// A line that turns out to be invalid or too long loses its first physical line only; the scan
    /// continues with the next one. The decision depends on the line's first `max_line` bytes,
    /// never on how much of the stream has been received.
    #[inline]
    pub(super) fn next_of_stream(&mut self, open: Option<Open>, is_end: bool) -> Option<Judged<'a>> {
        if open.is_none() {
            // Spaces, comments and blank lines count as bytes of a physical line like any others.
            let (begin, goes_on) = (self.at, self.seek_line());
            if let Some(refused) = self.too_long(begin) {
                return Some(Judged::Refused(refused));
            }
            if !goes_on {
                return None;
            }
        }
        let (start, mut seen) = (self.at, open.map(|open| open.seen).unwrap_or_default());
        let window = self.window(start);
        let scanned = match open {
            Some(Open { quote, searched, .. }) => {
                resume_line(window, start + quote, start + searched, &self.rules, &mut seen)
            }
            None => scan_line(window, start, &self.rules, self.tags, &mut seen),
        };
        Some(match scanned.and_then(|line| self.check_whole(start, line, &seen)) {
            Ok(line) => Judged::Line(self.accept(start, line, &seen)),
            Err(stop) => self.judge_open(start, open, stop, seen, is_end),
        })
    }

    /// Refuses the first overlong physical line between `begin` and the current line, if any.
    #[inline]
    fn too_long(&mut self, begin: usize) -> Option<Refused<'a>> {
        // An input of at most `max_line` bytes cannot contain an overlong line.
        if self.input.len() - begin <= self.rules.max_line { None } else { self.find_too_long(begin) }
    }

    #[cold]
    fn find_too_long(&mut self, mut begin: usize) -> Option<Refused<'a>> {
        let until = self.at.max(begin + 1).min(self.input.len());
        while begin < until {
            let end = next_line(self.input, begin);
            let bytes = &self.input[begin..end];
            if physical_bytes(bytes) > self.rules.max_line {
                self.at = end;
                return Some(Refused { reason: Refusal::TooLong, bytes });
            }
            begin = end;
        }
        None
    }

    /// Returns the input up to the offset where the line at `start` is too long: the maximum length
    /// plus CR and LF.
    #[inline]
    fn window(&self, start: usize) -> &'a [u8] {
        &self.input[..self.input.len().min(start + self.rules.max_line + 2)]
    }

    /// Refuses a line of a stream, unless its string is still open and more input may close it.
    #[cold]
    fn judge_open(&mut self, start: usize, open: Option<Open>, stop: Stop, seen: Seen, is_end: bool) -> Judged<'a> {
        let (reason, quote) = stop;
        let window = self.window(start);
        if reason == Refusal::UnterminatedString {
            let known = open.filter(|open| start + open.quote == quote);
            if let Err(searched) = find_quote(window, known.map_or(quote + 1, |open| start + open.searched)) {
                let is_beyond = window.len() - start == self.rules.max_line + 2;
                if !is_beyond && !is_end {
                    return Judged::Open(Open { seen, quote: quote - start, searched: searched - start });
                }
            }
        }
        self.at = next_line(self.input, start);
        let bytes = &self.input[start..self.at];
        let is_too_long = physical_bytes(bytes) > self.rules.max_line;
        Judged::Refused(Refused { reason: if is_too_long { Refusal::TooLong } else { reason }, bytes })
    }

    /// Checks what depends on the whole line.
    #[inline]
    fn check_whole(&self, start: usize, line: Scanned, seen: &Seen) -> Result<Scanned, Stop> {
        let length = line.end - start;
        if length > self.rules.max_line.min(MAX_LINE_BYTES - 1024) {
            let series = seen.series_bytes + seen.longest_field_key + 4;
            if length > self.rules.max_line || series > MAX_SERIES_BYTES {
                return Err((Refusal::TooLong, line.end));
            }
        }
        if !self.is_utf8 && std::str::from_utf8(&self.input[start..line.end]).is_err() {
            return Err((Refusal::InvalidUtf8, line.end));
        }
        if self.truncated && line.end == self.input.len() {
            return Err((Refusal::Truncated, line.end));
        }
        Ok(line)
    }

    #[inline]
    fn accept(&mut self, start: usize, line: Scanned, seen: &Seen) -> Line<'a> {
        self.at = next_line(self.input, line.end);
        let bytes = &self.input[start..line.end];
        Line { bytes, time: line.time, has_unsigned: seen.has_unsigned }
    }

    #[cold]
    fn refuse(&mut self, start: usize, reason: Refusal, at: usize) -> Refused<'a> {
        self.at = next_line(self.input, at);
        let cut = self.truncated && self.at == self.input.len() && self.input.last() != Some(&b'\n');
        let reason = if cut { Refusal::Truncated } else { reason };
        Refused { reason, bytes: &self.input[start..self.at] }
    }
}

/// Returns the length of a physical line without its line feed and a CR before it.
pub(super) fn physical_bytes(line: &[u8]) -> usize {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line).len()
}

impl<'a> Iterator for Lines<'a> {
    type Item = Result<Line<'a>, Refused<'a>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if !self.seek_line() {
            return None;
        }
        let (start, mut seen) = (self.at, Seen::default());
        let scanned = scan_line(self.input, start, &self.rules, self.tags, &mut seen);
        Some(match scanned.and_then(|line| self.check_whole(start, line, &seen)) {
            Ok(line) => Ok(self.accept(start, line, &seen)),
            Err((reason, at)) => Err(self.refuse(start, reason, at)),
        })
    }
}
