//! A stream's lines: what has come whole, and the rest that waits for its end.
//!
//! What comes of a stream does not depend on how it was cut on its way. An end without a line feed is never read: a cut
//! line may look like a whole one with another value.

use crate::protocol::line::MAX_LINE_BYTES;

/// The unfinished end of one stream.
#[derive(Debug, Default)]
pub(super) struct Framer {
    tail: Vec<u8>,
    /// Whether the line at hand was too long and is skipped to its end.
    is_skipping: bool,
}

/// What a piece of a stream brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// Whole lines, each with its line feed.
    pub(super) lines: &'a [u8],
    /// The beginning of a line that is too long.
    pub(super) too_long: Option<&'a [u8]>,
}

impl Framer {
    /// The end that waits: to be put in front of what comes next.
    pub(super) fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Whether a line has begun and not ended.
    pub(super) fn is_within_line(&self) -> bool {
        self.is_skipping || !self.tail.is_empty()
    }

    /// Takes the waiting end together with what came behind it.
    pub(super) fn take<'a>(&mut self, mut input: &'a [u8]) -> Piece<'a> {
        self.tail.clear();
        if self.is_skipping {
            let Some(feed) = memchr::memchr(b'\n', input) else { return Piece { lines: &[], too_long: None } };
            input = &input[feed + 1..];
            self.is_skipping = false;
        }
        let whole = memchr::memrchr(b'\n', input).map_or(0, |feed| feed + 1);
        let (lines, rest) = input.split_at(whole);
        self.is_skipping = rest.len() > MAX_LINE_BYTES;
        if self.is_skipping {
            return Piece { lines, too_long: Some(rest) };
        }
        self.tail.extend_from_slice(rest);
        if rest.is_empty() {
            // Thousands of connections wait most of the time.
            self.tail.shrink_to(0);
        }
        Piece { lines, too_long: None }
    }

    /// The stream ends; returns what is left of it without an end.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.is_skipping = false;
        std::mem::take(&mut self.tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines, the number of those too long, and what is left, of a stream that comes in these pieces.
    fn frame<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, usize, Vec<u8>) {
        let (mut framer, mut lines, mut too_long) = (Framer::default(), Vec::new(), 0);
        for piece in pieces {
            let input = [framer.tail(), piece].concat();
            let taken = framer.take(&input);
            lines.extend_from_slice(taken.lines);
            too_long += usize::from(taken.too_long.is_some());
        }
        (lines, too_long, framer.finish())
    }

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let stream = b"a 1\nbb 22\n\r\n\nccc 333\nunfinished";
        let expected = (b"a 1\nbb 22\n\r\n\nccc 333\n".to_vec(), 0, b"unfinished".to_vec());
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(frame(pieces), expected, "cut at {first} and {second}");
            }
        }
        assert_eq!(frame(stream.chunks(1)), expected);
    }

    #[test]
    fn a_line_too_long_is_skipped_to_its_end_and_counted_once() {
        let long = vec![b'x'; 3 * MAX_LINE_BYTES];
        for size in [1000, 10_000, 65_536] {
            let stream = [b"a 1\n", &long[..], b"\nb 2\n", &long[..], b"\nc"].concat();
            assert_eq!(frame(stream.chunks(size)), (b"a 1\nb 2\n".to_vec(), 2, b"c".to_vec()), "pieces of {size}");
        }
        // A line of the largest size waits for its end.
        let largest = vec![b'x'; MAX_LINE_BYTES];
        assert_eq!(frame([&largest[..], b"\n"]), ([&largest[..], b"\n"].concat(), 0, Vec::new()));
    }
}
