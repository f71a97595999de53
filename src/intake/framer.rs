//! Frames a stream's lines: passes on complete lines and keeps incomplete ones.
//!
//! Owns: bytes of a stream that have not been read as lines yet. The result does not depend on how
//! the stream was split in transit. A physical line is read once its line feed has arrived, because
//! a truncated line may look like a complete one with another value. The reader may leave complete
//! physical lines that belong to an open string; they are kept here until the reader consumes them.
//!
//! Bounds: an unfinished physical line of `max_line` bytes, after lines of an open string of as
//! many.

/// Bytes of a physical line that may not count towards its length: a byte order mark before the
/// stream's first line, and a CR. The reader checks which of them are present.
const UNCOUNTED_BYTES: usize = 4;
/// Maximum spare capacity of the kept bytes.
const SPARE_BYTES: usize = 4096;

/// Reads a stream's lines.
pub(crate) trait Lines {
    /// Reads whole physical lines; returns the number of bytes consumed. The rest is a line whose
    /// string is still open, and is passed again with more bytes after it. If `is_end`, all bytes
    /// are consumed.
    fn read(&mut self, lines: &[u8], is_end: bool) -> usize;

    /// A physical line is too long; `line` is the part received last.
    fn too_long(&mut self, line: &[u8]);
}

/// The unread bytes of one stream.
#[derive(Debug)]
pub(crate) struct Framer {
    max_line: usize,
    /// The lines of an open string, if any, followed by an unfinished physical line.
    tail: Vec<u8>,
    /// Length of the open string's lines at the beginning of the tail.
    joined: usize,
    /// Whether the current line was too long and is skipped to its end.
    is_skipping: bool,
}

impl Framer {
    /// Creates a framer for lines of at most `max_line` bytes.
    pub(crate) fn new(max_line: usize) -> Self {
        Self { max_line, tail: Vec::new(), joined: 0, is_skipping: false }
    }

    /// Returns the memory held by the kept bytes, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.tail.capacity()
    }

    /// Returns whether a line has begun and not ended.
    pub(crate) fn is_within_line(&self) -> bool {
        self.is_skipping || !self.tail.is_empty()
    }

    /// Returns whether a string is open that spans a line feed.
    pub(crate) fn is_joining(&self) -> bool {
        self.joined > 0
    }

    /// Processes received bytes. `true`: the line that is kept now began in them.
    pub(crate) fn take(&mut self, mut input: &[u8], lines: &mut impl Lines) -> bool {
        let mut begins = !self.is_within_line();
        while self.is_within_line() {
            let feed = if self.joined > 0 { memchr::memrchr(b'\n', input) } else { memchr::memchr(b'\n', input) };
            let Some(feed) = feed else {
                self.wait(input, lines);
                return begins;
            };
            let (end, rest) = input.split_at(feed + 1);
            input = rest;
            if std::mem::take(&mut self.is_skipping) {
                begins = true;
                continue;
            }
            self.tail.extend_from_slice(end);
            begins |= self.read_tail(lines, false);
        }
        let whole = memchr::memrchr(b'\n', input).map_or(0, |feed| feed + 1);
        let (whole, rest) = input.split_at(whole);
        let read = if whole.is_empty() { 0 } else { lines.read(whole, false) };
        self.tail.extend_from_slice(&whole[read..]);
        self.joined = self.tail.len();
        self.wait(rest, lines);
        begins
    }

    /// Has the lines of an open string read at once.
    pub(crate) fn end_joining(&mut self, lines: &mut impl Lines) {
        let unfinished = self.tail.split_off(self.joined);
        if !self.tail.is_empty() {
            self.read_tail(lines, true);
        }
        self.tail = unfinished;
    }

    /// Ends the stream; returns the last line, which has no end.
    pub(crate) fn finish(&mut self, lines: &mut impl Lines) -> Vec<u8> {
        self.end_joining(lines);
        self.is_skipping = false;
        std::mem::take(&mut self.tail)
    }

    /// Drops all kept bytes.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.max_line);
    }

    /// Has the tail read, which must hold whole lines only; returns whether any of it was consumed.
    fn read_tail(&mut self, lines: &mut impl Lines, is_end: bool) -> bool {
        let read = lines.read(&self.tail, is_end);
        self.tail.drain(..read);
        self.joined = self.tail.len();
        read > 0
    }

    /// Keeps more bytes of a physical line without an end.
    fn wait(&mut self, more: &[u8], lines: &mut impl Lines) {
        if self.is_skipping {
            return;
        }
        if self.tail.len() - self.joined + more.len() > self.max_line + UNCOUNTED_BYTES {
            // No open string can end within its bound.
            self.end_joining(lines);
            self.clear();
            self.is_skipping = true;
            lines.too_long(more);
            return;
        }
        self.tail.extend_from_slice(more);
        if self.tail.capacity() > self.tail.len() + SPARE_BYTES {
            self.tail.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_LINE: usize = 64 * 1024;

    /// Keeps lines; the lines of a string in brackets are one.
    #[derive(Debug, Default, PartialEq)]
    struct Kept {
        lines: Vec<String>,
        too_long: usize,
    }

    impl Lines for Kept {
        fn read(&mut self, lines: &[u8], is_end: bool) -> usize {
            assert!(lines.ends_with(b"\n"));
            let text = std::str::from_utf8(lines).expect("text");
            let mut read = 0;
            while read < text.len() {
                let rest = &text[read..];
                let end = |text: &str| text.find('\n').map(|feed| feed + 1);
                let first = end(rest).expect("whole lines");
                let whole = if rest[..first].contains('[') {
                    rest.find(']').and_then(|close| end(&rest[close..]).map(|after| close + after))
                } else {
                    Some(first)
                };
                let Some(length) = whole.or_else(|| is_end.then_some(first)) else { break };
                self.lines.push(rest[..length].to_owned());
                read += length;
            }
            read
        }

        fn too_long(&mut self, _: &[u8]) {
            self.too_long += 1;
        }
    }

    /// Returns the lines, the number of overlong ones, and the remaining bytes, for a stream
    /// received in these pieces.
    fn frame<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Kept, Vec<u8>) {
        let (mut framer, mut kept) = (Framer::new(MAX_LINE), Kept::default());
        for piece in pieces {
            framer.take(piece, &mut kept);
            assert!(framer.held_bytes() <= framer.tail.len() + SPARE_BYTES.max(2 * piece.len()));
        }
        let left = framer.finish(&mut kept);
        (kept, left)
    }

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let stream = b"a 1\nb[\n\r\n2\n\n]22\n\r\n\nccc[ 333\nd]\ne[\nf\nunfinished";
        let lines = ["a 1\n", "b[\n\r\n2\n\n]22\n", "\r\n", "\n", "ccc[ 333\nd]\n", "e[\n", "f\n"];
        let kept = Kept { lines: lines.map(str::to_owned).to_vec(), too_long: 0 };
        let expected = (kept, b"unfinished".to_vec());
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(frame(pieces), expected, "cut at {first} and {second}");
            }
        }
        assert_eq!(frame(stream.chunks(1)), expected);
    }

    #[test]
    fn what_waits_holds_memory_and_tells_whether_its_string_is_open() {
        let (mut framer, mut kept) = (Framer::new(MAX_LINE), Kept::default());
        for (piece, is_joining, is_within_line) in [
            ("", false, false),
            ("a 1\nhal", false, true),
            ("f\n", false, false),
            ("b[\n", true, true),
            ("and more", true, true),
            ("]\n", false, false),
        ] {
            framer.take(piece.as_bytes(), &mut kept);
            assert_eq!((framer.is_joining(), framer.is_within_line()), (is_joining, is_within_line), "{piece:?}");
            assert!(framer.held_bytes() >= framer.tail.len() && framer.held_bytes() >= usize::from(is_within_line) * 2);
        }
        assert_eq!(kept.lines, ["a 1\n", "half\n", "b[\nand more]\n"]);
        framer.take(b"half", &mut kept);
        framer.clear();
        assert_eq!((framer.held_bytes(), framer.is_within_line()), (0, false));
    }

    #[test]
    fn a_line_waits_up_to_its_bound_behind_a_string_that_is_as_long() {
        let most = "x".repeat(MAX_LINE + UNCOUNTED_BYTES);
        let string = format!("[{}\n", "y".repeat(MAX_LINE - 2));
        for before in ["", string.as_str()] {
            let fits = format!("{before}{most}");
            let (kept, left) = frame(fits.as_bytes().chunks(1000));
            assert_eq!((kept.too_long, left.len()), (0, most.len()));
            let one_more = format!("{fits}x");
            let (kept, left) = frame(one_more.as_bytes().chunks(1000).chain([&b"\na 1\n"[..]]));
            assert_eq!((kept.too_long, left.len(), kept.lines.last().map(String::as_str)), (1, 0, Some("a 1\n")));
        }
    }

    #[test]
    fn it_is_told_where_the_waiting_line_began() {
        let (mut framer, mut kept) = (Framer::new(MAX_LINE), Kept::default());
        let long = vec![b'x'; MAX_LINE + UNCOUNTED_BYTES + 1];
        for (piece, begins) in [
            (&b"a 1\nb"[..], true),
            (b" 2", false),
            (b"2\n", true),
            (b"c", true),
            (b" 3\nd[", true),
            (b"\ne", false),
            (b"\nf", false),
            (b"]\ng", true),
            (&long, false),
            (b"x\ne", true),
            (b"f", false),
        ] {
            assert_eq!(framer.take(piece, &mut kept), begins, "{}", piece[..piece.len().min(9)].escape_ascii());
        }
    }

    #[test]
    fn a_line_that_is_too_long_costs_itself() {
        let long = vec![b'x'; 3 * MAX_LINE];
        for size in [1, 7, 1000, MAX_LINE, 4 * MAX_LINE] {
            let stream = [b"a 1\n", &long[..], b"\nb 2\n"].concat();
            let (kept, left) = frame(stream.chunks(size));
            let lines = kept.lines.iter().map(String::as_str).filter(|line| line.len() <= MAX_LINE).collect::<Vec<_>>();
            assert_eq!((lines, left.len()), (vec!["a 1\n", "b 2\n"], 0), "{size}");
            // Overlong lines that arrive complete are the reader's to refuse.
            assert_eq!(kept.too_long + kept.lines.iter().filter(|line| line.len() > MAX_LINE).count(), 1, "{size}");
        }
        // Lines inside an open string are not lost if the string cannot end within the bound.
        let stream = [b"a[\nb 2\n", &long[..], b"]\nc 3\n"].concat();
        for size in [1, 7, 1000, MAX_LINE] {
            let (kept, _) = frame(stream.chunks(size));
            assert_eq!(
                (kept.lines, kept.too_long),
                (["a[\n", "b 2\n", "c 3\n"].map(str::to_owned).to_vec(), 1),
                "{size}"
            );
        }
        let largest = vec![b'x'; MAX_LINE];
        let (kept, left) = frame(largest.chunks(100));
        assert_eq!((kept.lines.len(), kept.too_long, left.len()), (0, 0, MAX_LINE));
    }
}
