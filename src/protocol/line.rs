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
//! * A field `time` is forwarded: every InfluxDB stores the line without it. A line that has no other field is refused.
//! * Unsigned integers (`5u`) are refused unless the [`Rules`] take them: stock InfluxDB 1.x does not know them.
//!
//! A **datagram** is complete: a string that nothing closes makes its line invalid, and the lines behind it are judged for
//! themselves. A **stream** goes on: a line whose string is still open waits for more (`Judged::Open`), and the scan
//! resumes where it stopped, so that the work is linear however the stream was cut.
//!
//! An accepted line is handed on byte for byte, without leading spaces, CR and LF. (InfluxDB frames lines before it
//! skips leading spaces, and takes a quote behind them for a string's: such a line could swallow others.) Never
//! allocates, never copies, never looks at a byte beyond the input; every step consumes at least one byte.

pub mod anatomy;
mod grammar;

use serde::{Deserialize, Serialize};

use super::keys::{Keys, MAX_KEYS};
use super::{Precision, Refusal};
use grammar::{Scanned, Seen, Stop, ends_at, find_quote, next_line, resume_line, scan_line, skip_spaces};

/// The most tags a line may have.
pub const MAX_TAGS: usize = MAX_KEYS;
/// The one number of tags at which InfluxDB 1.6 panics (in `scanTags`) and answers 500 for the whole request,
/// at every retry.
pub(super) const TAGS_THAT_PANIC: usize = 100;
/// The longest line unless a listener says otherwise, in bytes without its line feed: a datagram's length.
pub const MAX_LINE_BYTES: usize = 64 * 1024;
/// The longest line that any listener takes, in bytes without its line feed.
pub const LONGEST_LINE_BYTES: usize = 1024 * 1024;
/// The longest series key (measurement and tags as written) plus field key plus 4, as InfluxDB's index counts.
pub(super) const MAX_SERIES_BYTES: usize = 65_535;

/// An accepted line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The line as it came, without leading spaces, CR and LF.
    pub bytes: &'a [u8],
    /// Its own timestamp, in the unit of the listener's precision; none if it came without one.
    pub time: Option<i64>,
    /// Whether one of its fields is an unsigned integer.
    pub has_unsigned: bool,
}

/// A refused line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused<'a> {
    /// Why.
    pub reason: Refusal,
    /// What was skipped, for the log's sample.
    pub bytes: &'a [u8],
}

/// What a listener takes beyond the grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The unit of timestamps.
    pub precision: Precision,
    /// The longest line, in bytes without its line feed, at most [`LONGEST_LINE_BYTES`].
    pub max_line: usize,
    /// What becomes of unsigned integers.
    pub unsigned: Unsigned,
}

/// What becomes of unsigned integers (`5u`), which stock InfluxDB 1.x does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unsigned {
    /// Their line is refused.
    #[default]
    Refuse,
    /// They are forwarded: for mirrors whose servers all take them.
    Keep,
    /// They are forwarded as signed ones, at most the largest, as Telegraf converts them.
    Signed,
}

impl Rules {
    /// The strictest ones: what every InfluxDB takes, in lines of at most [`MAX_LINE_BYTES`].
    pub fn strict(precision: Precision) -> Self {
        Self { precision, max_line: MAX_LINE_BYTES, unsigned: Unsigned::Refuse }
    }
}

/// Finds lines, in one input after the other.
#[derive(Debug)]
pub struct Scanner {
    rules: Rules,
    tags: Keys,
}

impl Scanner {
    /// A scanner with the strictest rules.
    pub fn new(precision: Precision) -> Self {
        Self::with(Rules::strict(precision))
    }

    /// A scanner with these rules.
    pub fn with(rules: Rules) -> Self {
        Self { rules, tags: Keys::default() }
    }

    /// A scanner that finds again what any listener may have accepted.
    pub fn of_accepted(precision: Precision) -> Self {
        Self::with(Rules { precision, max_line: LONGEST_LINE_BYTES, unsigned: Unsigned::Keep })
    }

    /// The lines of `input`. `truncated` says that the input's end was cut off, so that a last line without a
    /// line feed is not whole.
    #[inline]
    pub fn lines<'a>(&'a mut self, input: &'a [u8], truncated: bool) -> Lines<'a> {
        let is_utf8 = std::str::from_utf8(input).is_ok();
        Lines { input, at: 0, rules: self.rules, is_utf8, truncated, tags: &mut self.tags }
    }

    /// The lines of a piece of a stream, which begins with the line that was `open` before, where there is one. To be
    /// read with [`Lines::next_of_stream`].
    #[inline]
    pub(super) fn stream<'a>(&'a mut self, input: &'a [u8], is_open: bool) -> Lines<'a> {
        // What waited is not looked through again at each piece: its line is, once, when it is whole.
        let is_utf8 = !is_open && std::str::from_utf8(input).is_ok();
        Lines { input, at: 0, rules: self.rules, is_utf8, truncated: false, tags: &mut self.tags }
    }
}

/// Where the scan of a stream's line stopped because its string is still open. Places are relative to the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Open {
    seen: Seen,
    /// The place of the string's opening quote.
    quote: usize,
    /// The closing quote is not before this place.
    searched: usize,
}

/// What the next line of a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged<'a> {
    /// A valid line.
    Line(Line<'a>),
    /// A line, up to its first line feed, that is not valid.
    Refused(Refused<'a>),
    /// The rest of the input is a line whose string is still open.
    Open(Open),
}

/// Walks over the lines of one datagram.
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

    /// The place behind what was read so far.
    #[inline]
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    /// Goes on at another place: what lies before it was read by somebody else.
    #[inline]
    pub(super) fn resume(&mut self, at: usize) {
        self.at = at;
    }

    /// Whether the whole input is known to be UTF-8.
    #[inline]
    pub(super) fn is_utf8(&self) -> bool {
        self.is_utf8
    }

    /// The next line of a stream, of which `input` holds whole physical lines. `open` is where the scan of the first one
    /// stopped. At the stream's end (`is_end`) nothing waits for more.
    ///
    /// A line that turns out to be invalid, or too long, costs its first physical line only; reading goes on with the next.
    /// What is decided depends on the line's first `max_line` bytes, never on how much of the stream is at hand.
    #[inline]
    pub(super) fn next_of_stream(&mut self, open: Option<Open>, is_end: bool) -> Option<Judged<'a>> {
        if open.is_none() {
            // Spaces, comments and blank lines count like any other bytes of a physical line.
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

    /// The first of the physical lines from `begin` up to the one at hand that is too long.
    #[inline]
    fn too_long(&mut self, begin: usize) -> Option<Refused<'a>> {
        // None of them can be where there is less than that.
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

    /// The input up to where the line at `start` is too long: its longest length, and CR and LF.
    #[inline]
    fn window(&self, start: usize) -> &'a [u8] {
        &self.input[..self.input.len().min(start + self.rules.max_line + 2)]
    }

    /// Refuses a line of a stream, unless its string is still open and may be closed by what comes.
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

    /// What only a look at the whole line tells.
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

/// The length of a physical line without its line feed, and a CR before that.
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
