//! The growing batch of one destination in one worker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Batch, Destination, Pool, Received};
use crate::protocol::line::MAX_LINE_BYTES;

/// The longest stamp with its space, and the line feed.
const STAMP_AND_FEED_BYTES: usize = 22;

/// When a batch is sealed.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// At the latest with this many lines.
    pub lines: u64,
    /// At the latest this long after its first line.
    pub age: Duration,
}

/// Collects the lines of one destination into batches. The batch's size in bytes is the pool's buffer size; a line that is
/// longer than that is a batch of its own.
#[derive(Debug)]
pub struct Builder {
    destination: Arc<Destination>,
    pool: Arc<Pool>,
    limits: Limits,
    buffer: Vec<u8>,
    lines: u64,
    /// When the open batch's first line was received; none while it is empty.
    opened: Option<Received>,
}

impl Builder {
    /// A builder without lines.
    ///
    /// # Panics
    /// If the pool's buffers have no room for a datagram's longest line.
    pub fn new(destination: Arc<Destination>, pool: Arc<Pool>, limits: Limits) -> Self {
        assert!(pool.buffer_bytes() >= Self::least_buffer_bytes(), "BUG: buffers hold at least one line");
        let buffer = pool.take();
        Self { destination, pool, limits, buffer, lines: 0, opened: None }
    }

    /// The smallest buffer that has room for any line of a datagram.
    pub const fn least_buffer_bytes() -> usize {
        MAX_LINE_BYTES + STAMP_AND_FEED_BYTES
    }

    /// Copies one line, with a stamp where it has no timestamp. Returns the batch before it, where that was
    /// full.
    #[inline]
    pub fn append(&mut self, line: &[u8], stamp: Option<u64>, received: Received) -> Option<Batch> {
        let full = self.buffer.len() + line.len() + STAMP_AND_FEED_BYTES > self.pool.buffer_bytes();
        let sealed = if full || self.lines >= self.limits.lines { self.seal() } else { None };
        self.opened.get_or_insert(received);
        self.buffer.extend_from_slice(line);
        if let Some(stamp) = stamp {
            push_stamp(&mut self.buffer, stamp);
        }
        self.buffer.push(b'\n');
        self.lines += 1;
        sealed
    }

    /// Lines of the open batch.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// When the open batch is due; none while it is empty.
    pub fn due(&self) -> Option<Instant> {
        self.opened.map(|received| received.monotonic + self.limits.age)
    }

    /// Seals the open batch; none where it is empty.
    pub fn seal(&mut self) -> Option<Batch> {
        let received = self.opened.take()?;
        let lines = std::mem::take(&mut self.lines);
        let (bytes, capacity) = self.freeze();
        Some(Batch { destination: Arc::clone(&self.destination), bytes, lines, received, capacity, ticket: None })
    }

    /// The buffer's bytes for good, and the memory they hold. A batch that fills less than half of the buffer is
    /// copied into one of its own size, so that a quiet relay's backlog is not made of empty buffers.
    fn freeze(&mut self) -> (Bytes, usize) {
        if self.buffer.len() * 2 < self.pool.buffer_bytes() {
            let bytes = Bytes::copy_from_slice(&self.buffer);
            self.buffer.clear();
            let capacity = bytes.len();
            return (bytes, capacity);
        }
        let full = std::mem::replace(&mut self.buffer, self.pool.take());
        if full.capacity() > self.pool.buffer_bytes() {
            // A line that is larger than any of the pool's buffers: they stay of one size.
            let capacity = full.capacity();
            return (Bytes::from(full), capacity);
        }
        (self.pool.freeze(full), self.pool.buffer_bytes())
    }
}

fn push_stamp(buffer: &mut Vec<u8>, mut stamp: u64) {
    let mut digits = [b'0'; 20];
    let mut first = digits.len();
    while stamp > 0 || first == digits.len() {
        first -= 1;
        digits[first] += u8::try_from(stamp % 10).unwrap_or(0);
        stamp /= 10;
    }
    buffer.push(b' ');
    buffer.extend_from_slice(&digits[first..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Precision;

    fn builder(lines: u64) -> Builder {
        let destination =
            Destination { database: "db".into(), retention_policy: String::new(), precision: Precision::Nanoseconds };
        let limits = Limits { lines, age: Duration::from_millis(20) };
        Builder::new(Arc::new(destination), Pool::new(2, Builder::least_buffer_bytes()), limits)
    }

    #[test]
    fn lines_are_kept_byte_for_byte_and_stamped_where_needed() {
        let mut builder = builder(10);
        let received = Received::now();
        assert!(builder.seal().is_none());
        assert!(builder.append(b"m v=1 5", None, received).is_none());
        assert!(builder.append(b"m v=2", Some(1_795_400_726_000_000_001), received).is_none());
        assert!(builder.append(b"m v=3", Some(0), received).is_none());
        assert_eq!(builder.due(), Some(received.monotonic + Duration::from_millis(20)));
        let batch = builder.seal().expect("a batch");
        assert_eq!(&batch.bytes[..], b"m v=1 5\nm v=2 1795400726000000001\nm v=3 0\n");
        assert_eq!((batch.lines, batch.capacity), (3, batch.bytes.len()));
        assert!(builder.due().is_none());
    }

    #[test]
    fn a_full_batch_is_sealed_before_the_next_line_and_no_line_is_split() {
        let mut builder = builder(1_000_000);
        let line = vec![b'x'; 1000];
        let mut batches = Vec::new();
        for _ in 0..200 {
            batches.extend(builder.append(&line, None, Received::now()));
        }
        batches.extend(builder.seal());
        assert!(batches.len() > 2);
        assert_eq!(batches.iter().map(|batch| batch.lines).sum::<u64>(), 200);
        for batch in batches {
            assert!(batch.bytes.len() <= Builder::least_buffer_bytes());
            assert_eq!(batch.bytes.len() as u64, batch.lines * 1001);
        }
    }

    #[test]
    fn a_line_larger_than_a_buffer_is_a_batch_of_its_own() {
        let mut builder = builder(1_000_000);
        let (small, large) = (vec![b'x'; 1000], vec![b'y'; 1 << 20]);
        let mut batches = Vec::new();
        for line in [&small, &large, &small, &large, &large, &small] {
            batches.extend(builder.append(line, Some(7), Received::now()));
        }
        batches.extend(builder.seal());
        let sizes: Vec<(u64, usize)> = batches.iter().map(|batch| (batch.lines, batch.bytes.len())).collect();
        let (small, large) = ((1, small.len() + 3), (1, large.len() + 3));
        assert_eq!(sizes, [small, large, small, large, large, small]);
        assert!(batches.iter().all(|batch| batch.capacity >= batch.bytes.len()));
        assert_eq!(
            builder.pool.take().capacity(),
            Builder::least_buffer_bytes(),
            "the pool's buffers stay of one size"
        );
    }

    #[test]
    fn the_number_of_lines_bounds_a_batch() {
        let mut builder = builder(2);
        let sealed: Vec<u64> =
            (0..5).filter_map(|_| builder.append(b"m v=1 1", None, Received::now())).map(|batch| batch.lines).collect();
        assert_eq!(sealed, [2, 2]);
    }
}
