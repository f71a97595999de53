//! A stream's lines: what has come whole, and the rest that waits for its end.
//!
//! What comes of a stream does not depend on how it was cut on its way. An end without a line feed is never read: a cut
//! line may look like a whole one with another value.

use crate::protocol::line::MAX_LINE_BYTES;

/// A waiting end keeps no more memory than this beyond its length.
const SPARE_BYTES: usize = 4096;

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
    /// Whole lines, each with its line feed, behind the one that had waited for its end.
    pub(super) lines: &'a [u8],
    /// The beginning of a line that is too long.
    pub(super) too_long: Option<&'a [u8]>,
    /// Whether the line that waits now began in this piece.
    pub(super) begins: bool,
}

impl Framer {
    /// The memory that the waiting end holds, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        self.tail.capacity()
    }

    /// Whether a line has begun and not ended.
    pub(super) fn is_within_line(&self) -> bool {
        self.is_skipping || !self.tail.is_empty()
    }

    /// Takes what came. The line that had waited for its end, where that came, is put into `first`.
    pub(super) fn take<'a>(&mut self, mut input: &'a [u8], first: &mut Vec<u8>) -> Piece<'a> {
        first.clear();
        let mut begins = true;
        if self.is_within_line() {
            let Some(feed) = memchr::memchr(b'\n', input) else { return self.go_on(input) };
            let (end, rest) = input.split_at(feed + 1);
            if !self.is_skipping {
                first.extend_from_slice(&self.tail);
                first.extend_from_slice(end);
            }
            self.is_skipping = false;
            self.tail.clear();
            input = rest;
        }
        let whole = memchr::memrchr(b'\n', input).map_or(0, |feed| feed + 1);
        let (lines, rest) = input.split_at(whole);
        begins &= !rest.is_empty();
        let too_long = self.go_on(rest).too_long;
        Piece { lines, too_long, begins }
    }

    /// The line at hand goes on, without an end.
    fn go_on<'a>(&mut self, more: &'a [u8]) -> Piece<'a> {
        let mut piece = Piece { lines: &[], too_long: None, begins: false };
        if !self.is_skipping && self.tail.len() + more.len() > MAX_LINE_BYTES {
            self.is_skipping = true;
            self.tail = Vec::new();
            piece.too_long = Some(more);
        } else if !self.is_skipping {
            self.tail.extend_from_slice(more);
            if self.tail.capacity() > self.tail.len() + SPARE_BYTES {
                self.tail.shrink_to_fit();
            }
        }
        piece
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
        let (mut framer, mut first, mut lines, mut too_long) = (Framer::default(), Vec::new(), Vec::new(), 0);
        for piece in pieces {
            let taken = framer.take(piece, &mut first);
            assert!(first.is_empty() || (first.ends_with(b"\n") && memchr::memchr_iter(b'\n', &first).count() == 1));
            assert!(framer.held_bytes() <= framer.tail.len() + SPARE_BYTES);
            lines.extend_from_slice(&first);
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
    fn a_netdatas_stream_is_the_same_cut_at_every_byte() {
        let stream = b"put netdata.system.load.load1 1795400726 0.5000000 host=web-01 role=web_server\n\
            put netdata.system.load.load5 1795400726 0.2500000 host=web-01 role=web_server\n\
            put netdata.system.load.load15 1795400726 0.1250000 host=web-01 role=web_ser";
        let whole = frame([&stream[..]]);
        for cut in 0..=stream.len() {
            assert_eq!(frame([&stream[..cut], &stream[cut..]]), whole);
        }
    }

    #[test]
    fn it_is_told_where_the_waiting_line_began() {
        let (mut framer, mut first) = (Framer::default(), Vec::new());
        let long = vec![b'x'; MAX_LINE_BYTES + 1];
        for (piece, begins) in [
            (&b"a 1\nb"[..], true),
            (b" 2", false),
            (b"2\n", false),
            (b"c", true),
            (b" 3\nd", true),
            (&long, false),
            (b"x\ne", true),
            (b"f", false),
        ] {
            assert_eq!(framer.take(piece, &mut first).begins, begins, "{}", piece.escape_ascii());
        }
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
