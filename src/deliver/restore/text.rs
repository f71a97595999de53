//! Splits a text of line protocol with headers into batches of whole lines.
//!
//! Uses the scanner to find lines, because strings may hold line feeds, and reads the text in
//! pieces. Skips a last line without a line feed: a cut line may look like a whole one with another
//! value. Skips a line without a timestamp: each run would store another point.
//!
//! Never does: send anything. Bounds: 8 MiB of the text, one batch.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;

use super::super::header::{self, HeaderError};
use crate::batch::Destination;
use crate::protocol::{Precision, Scanner};

/// Maximum number of lines in a batch.
const BATCH_LINES: usize = 5000;
/// Maximum size of a batch in bytes, unless a single line is longer.
const BATCH_BYTES: usize = 1 << 20;
/// More than the maximum length of a line: a line that begins so far before the end of the read
/// text is complete.
const LOOK_AHEAD: usize = 2 << 20;
/// Maximum size of the text held in memory, in bytes.
const HELD_BYTES: usize = 8 << 20;
/// Maximum length of a shown line, in bytes.
const SAMPLE_BYTES: usize = 100;

/// Whole lines of one destination.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) destination: Arc<Destination>,
    /// The lines, each ended by one line feed.
    pub(super) bytes: Bytes,
    /// Offset of each line's end in `bytes`.
    ends: Vec<usize>,
}

impl Batch {
    pub(super) fn lines(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Splits the batch in halves. `None` for a single line.
    pub(super) fn halves(&self) -> Option<(Self, Self)> {
        let (first, second) = self.ends.split_at(self.ends.len() / 2);
        let at = *first.last()?;
        let part = |bytes, ends| Self { destination: Arc::clone(&self.destination), bytes, ends };
        let rest = second.iter().map(|end| end - at).collect();
        Some((part(self.bytes.slice(..at), first.to_vec()), part(self.bytes.slice(at..), rest)))
    }
}

/// An item found in the text.
#[derive(Debug)]
pub(super) enum Found {
    /// Lines to send.
    Batch(Batch),
    /// A line that cannot be sent: its position and the reason.
    Unreadable(String),
}

/// A text cannot be read further.
#[derive(Debug, thiserror::Error)]
pub(super) enum TextError {
    /// The system reported an error.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// The header at this offset is malformed.
    #[error("byte {0}: {1}")]
    Header(u64, HeaderError),
    /// There is no header before the first line.
    #[error("nothing tells the database of its lines: it is no archive's file and no dump")]
    NoHeader,
    /// The text behind this offset holds no line.
    #[error("byte {0}: {LOOK_AHEAD} bytes without a line")]
    NoLine(u64),
}

/// Reads one text from beginning to end.
pub(super) struct Text<R> {
    input: R,
    held: Vec<u8>,
    /// Number of bytes of `held` that were taken.
    taken: usize,
    /// Offset of `held` in the text.
    offset: u64,
    /// Why reading ended: the end of the text, or an error.
    ended: Option<io::Result<()>>,
    destination: Option<Arc<Destination>>,
}

impl<R: Read> Text<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, held: Vec::new(), taken: 0, offset: 0, ended: None, destination: None }
    }

    /// Returns the next item, or `None` at the end of the text.
    ///
    /// # Errors
    /// The text cannot be read further, or a header is malformed, or there is none before the first
    /// line. Lines before the error were returned.
    pub(super) fn next(&mut self) -> Result<Option<Found>, TextError> {
        loop {
            self.fill();
            if let Some(found) = self.scan()? {
                return Ok(Some(found));
            }
            if self.held.len() == self.taken
                && let Some(ended) = self.ended.take()
            {
                ended?;
                return Ok(None);
            }
        }
    }

    /// Reads more if little is left.
    fn fill(&mut self) {
        if self.ended.is_some() || self.held.len() - self.taken > HELD_BYTES / 2 {
            return;
        }
        self.held.drain(..self.taken);
        self.offset += self.taken as u64;
        self.taken = 0;
        let room = (HELD_BYTES - self.held.len()) as u64;
        match (&mut self.input).take(room).read_to_end(&mut self.held) {
            Ok(0) => self.ended = Some(Ok(())),
            Ok(_) => {}
            Err(error) => self.ended = Some(Err(error)),
        }
    }

    /// Scans the held text. Returns a batch or an unreadable line, or `None` if more text must be
    /// read.
    fn scan(&mut self) -> Result<Option<Found>, TextError> {
        let text = &self.held[self.taken..];
        let limit = if self.ended.is_some() { text.len() } else { text.len().saturating_sub(LOOK_AHEAD) };
        let precision = self.destination.as_ref().map_or_else(Precision::default, |one| one.precision());
        let mut scanner = Scanner::of_accepted(precision);
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        let (mut end, mut unreadable, mut new) = (0, None, None);
        for found in scanner.lines(text, true) {
            let line = found.as_ref().map_or_else(|refused| refused.bytes, |line| line.bytes);
            let start = line.as_ptr() as usize - text.as_ptr() as usize;
            let is_full = ends.len() == BATCH_LINES || (!ends.is_empty() && bytes.len() + line.len() >= BATCH_BYTES);
            if start >= limit || is_full {
                break;
            }
            let before = header::read(&String::from_utf8_lossy(&text[end..start]))
                .map_err(|error| TextError::Header(self.offset + (self.taken + end) as u64, error))?;
            if let Some(destination) = before.filter(|one| self.destination.as_deref() != Some(one)) {
                if ends.is_empty() {
                    // This line and those behind it are scanned again with the new precision.
                    (new, end) = (Some(destination), start);
                }
                break;
            }
            if self.destination.is_none() {
                return Err(TextError::NoHeader);
            }
            let why = match &found {
                Ok(line) if line.time.is_some() => None,
                Ok(_) => Some("no_timestamp"),
                Err(refused) => Some(refused.reason.name()),
            };
            if let Some(why) = why {
                if ends.is_empty() {
                    let sample = line[..line.len().min(SAMPLE_BYTES)].escape_ascii();
                    let at = self.offset + (self.taken + start) as u64;
                    unreadable = Some(format!("byte {at}: {why}: {sample}"));
                    end = after(text, start + line.len());
                }
                break;
            }
            bytes.extend_from_slice(line);
            bytes.push(b'\n');
            ends.push(bytes.len());
            end = after(text, start + line.len());
        }
        self.taken += end;
        if let Some(destination) = new {
            self.destination = Some(Arc::new(destination));
            return Ok(None);
        }
        if unreadable.is_some() {
            return Ok(unreadable.map(Found::Unreadable));
        }
        if let (Some(destination), false) = (&self.destination, ends.is_empty()) {
            let destination = Arc::clone(destination);
            return Ok(Some(Found::Batch(Batch { destination, bytes: bytes.into(), ends })));
        }
        // The text holds only comments, or lines whose end may not have been read.
        if self.ended.is_some() {
            self.taken = self.held.len();
        } else if self.held.len() - self.taken > HELD_BYTES / 2 {
            return Err(TextError::NoLine(self.offset + self.taken as u64));
        }
        Ok(None)
    }
}

/// Returns the offset after the line that ends at `end`, skipping its CR and line feed.
fn after(text: &[u8], end: usize) -> usize {
    if text[..end].last() == Some(&b'\n') {
        return end;
    }
    memchr::memchr(b'\n', &text[end..]).map_or(text.len(), |feed| end + feed + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "# DML\n# CONTEXT-DATABASE: db\n# CONTEXT-RETENTION-POLICY: \n# precision: ms\n";

    /// Returns at most so many bytes per read, and an error at its end if there is one.
    struct Slow<'a>(&'a [u8], usize, Option<&'static str>);

    impl Read for Slow<'_> {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            let count = room.len().min(self.1).min(self.0.len());
            let error = self.2.filter(|_| count == 0);
            if let Some(error) = error {
                return Err(io::Error::other(error));
            }
            room[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    /// All batches as destination and text, the unreadable lines, and the result.
    type Outcome = (Vec<(Destination, String)>, Vec<String>, Result<(), String>);

    fn read(input: impl Read) -> Outcome {
        let (mut text, mut batches, mut unreadable) = (Text::new(input), Vec::new(), Vec::new());
        loop {
            match text.next() {
                Ok(Some(Found::Batch(batch))) => {
                    assert!(batch.lines() <= BATCH_LINES as u64);
                    assert!(batch.bytes.len() <= BATCH_BYTES || batch.lines() == 1);
                    let bytes = String::from_utf8(batch.bytes.to_vec()).expect("text");
                    batches.push(((*batch.destination).clone(), bytes));
                }
                Ok(Some(Found::Unreadable(why))) => unreadable.push(why),
                Ok(None) => return (batches, unreadable, Ok(())),
                Err(error) => return (batches, unreadable, Err(error.to_string())),
            }
        }
    }

    fn joined(batches: &[(Destination, String)]) -> String {
        batches.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn headers_stand_between_lines_only_and_tell_the_precision() {
        let awkward =
            "m,t=a\\ b s=\"x\n# DML\n# CONTEXT-DATABASE: other\n# precision: s\n\\\"y\\\\\",v=1 1795400726000\n";
        let minutes = Destination::new("my\ndb", "rp", Precision::Minutes);
        let text = format!("{HEADER}{awkward}\n# a remark\n{awkward}{}m v=2 29923345\n", header::write(&minutes));
        let (batches, unreadable, ended) = read(text.as_bytes());
        assert_eq!((unreadable, ended), (Vec::new(), Ok(())));
        assert_eq!(batches.len(), 2);
        assert_eq!((batches[0].0.database(), batches[0].0.precision()), ("db", Precision::Milliseconds));
        assert_eq!(batches[0].1, awkward.repeat(2));
        assert_eq!(batches[1], (minutes, "m v=2 29923345\n".to_owned()));
    }

    #[test]
    fn a_long_text_comes_whole_in_batches_however_it_is_read() {
        let lines: String = (0..60_000).map(|n| format!("m,h=ü s=\"{}\n{n}\" {n}\n", "x".repeat(300))).collect();
        let text = format!("{HEADER}{lines}");
        for most in [usize::MAX, 1 << 20, 4097] {
            let (batches, unreadable, ended) = read(Slow(text.as_bytes(), most, None));
            assert_eq!((unreadable, ended), (Vec::new(), Ok(())));
            assert!(joined(&batches) == lines, "in pieces of {most}");
        }
    }

    #[test]
    fn what_is_no_whole_line_with_a_time_is_told_and_never_taken() {
        let text = format!("{HEADER}m v=1 1\nm v=\nm v=2\nm v=3 3\r\nm s=\"a\nm v=4 4\nm v=5 5");
        let (batches, unreadable, ended) = read(text.as_bytes());
        assert_eq!((joined(&batches).as_str(), ended), ("m v=1 1\nm v=3 3\nm v=4 4\n", Ok(())));
        let offset = HEADER.len() + 8;
        assert!(unreadable[0].starts_with(&format!("byte {offset}: invalid_value: m v=")), "{unreadable:?}");
        let reasons: Vec<&str> = unreadable.iter().filter_map(|why| why.split(": ").nth(1)).collect();
        assert_eq!(reasons, ["invalid_value", "no_timestamp", "unterminated_string", "truncated"]);
    }

    #[test]
    fn lines_before_an_error_are_taken() {
        let text = format!("{HEADER}m v=1 1\nm v=2 2\nm v=3 12");
        let (batches, unreadable, ended) = read(Slow(text.as_bytes(), 10, Some("corrupt")));
        assert_eq!((joined(&batches).as_str(), unreadable.len()), ("m v=1 1\nm v=2 2\n", 1));
        assert!(ended.is_err_and(|error| error.contains("corrupt")));
    }

    #[test]
    fn a_text_that_tells_no_database_is_an_error() {
        let (batches, _, ended) = read(&b"# a remark\nm v=1 1\n"[..]);
        assert!(batches.is_empty() && ended.is_err_and(|error| error.contains("database")));
        let (batches, unreadable, ended) = read(&b""[..]);
        assert_eq!((batches.len(), unreadable.len(), ended), (0, 0, Ok(())));
        let endless = format!("{HEADER}{}m v=1 1\n", "# a remark\n".repeat(1 << 20));
        assert!(read(endless.as_bytes()).2.is_err_and(|error| error.contains("without a line")));
    }

    #[test]
    fn halves_are_whole_lines_down_to_one() {
        let text = format!("{HEADER}m v=1 1\nm s=\"a\nb\" 2\nm v=3 3\n");
        let Ok(Some(Found::Batch(batch))) = Text::new(text.as_bytes()).next() else { panic!("a batch") };
        let (first, rest) = batch.halves().expect("three lines");
        assert_eq!((&first.bytes[..], first.lines()), (&b"m v=1 1\n"[..], 1));
        assert!(first.halves().is_none());
        let (second, third) = rest.halves().expect("two lines");
        assert_eq!((&second.bytes[..], &third.bytes[..]), (&b"m s=\"a\nb\" 2\n"[..], &b"m v=3 3\n"[..]));
    }
}
