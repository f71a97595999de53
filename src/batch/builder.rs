//! The growing batch of one destination in one worker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Batch, Destination, Pool, Received, Span};
use crate::protocol::line::MAX_LINE_BYTES;

/// Maximum size of a builder's own buffer, in bytes.
const SMALL_BYTES: usize = 64 * 1024;
/// Maximum length of a stamp with its space, and the line feed.
const STAMP_AND_FEED_BYTES: usize = 22;

/// The limits at which a batch is sealed.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of lines.
    pub lines: u64,
    /// Maximum age of the first line.
    pub age: Duration,
}

/// A line's time, in the unit of its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// The line's own timestamp.
    Own(i64),
    /// A stamp for a line without a timestamp.
    Stamp(u64),
}

/// Collects the lines of one destination into batches. The maximum size of a batch is the pool's
/// buffer size; a longer line becomes a batch of its own.
#[derive(Debug)]
pub struct Builder {
    destination: Arc<Destination>,
    pool: Arc<Pool>,
    limits: Limits,
    buffer: Vec<u8>,
    lines: u64,
    /// The times of the open batch's points, in the unit of the destination.
    points: Span,
    /// When the open batch's first line was received; `None` if the batch is empty.
    opened: Option<Received>,
}

impl Builder {
    /// Creates an empty builder.
    ///
    /// # Panics
    /// If the pool's buffers cannot hold the longest line of a datagram.
    pub fn new(destination: Arc<Destination>, pool: Arc<Pool>, limits: Limits) -> Self {
        assert!(pool.buffer_bytes() >= Self::least_buffer_bytes(), "BUG: buffers hold at least one line");
        let buffer = pool.take();
        Self { destination, pool, limits, buffer, lines: 0, points: Span::NONE, opened: None }
    }

    /// Creates a builder for the lines of one request. It starts with a small buffer of its own,
    /// and uses the pool's once it has many lines.
    pub fn small(destination: Arc<Destination>, pool: Arc<Pool>, limits: Limits) -> Self {
        Self { destination, pool, limits, buffer: Vec::new(), lines: 0, points: Span::NONE, opened: None }
    }

    /// Returns the destination of its lines.
    pub fn destination(&self) -> &Arc<Destination> {
        &self.destination
    }

    /// Returns the minimum size of a buffer that can hold any line of a datagram.
    pub const fn least_buffer_bytes() -> usize {
        MAX_LINE_BYTES + STAMP_AND_FEED_BYTES
    }

    /// Copies one line, and appends a stamp if it has no timestamp. Returns the previous batch if
    /// it was full.
    #[inline]
    pub fn append(&mut self, line: &[u8], time: Time, received: Received) -> Option<Batch> {
        let full = self.buffer.len() + line.len() + STAMP_AND_FEED_BYTES > self.pool.buffer_bytes();
        let sealed = if full || self.lines >= self.limits.lines { self.seal() } else { None };
        self.opened.get_or_insert(received);
        if self.buffer.capacity() - self.buffer.len() < line.len() + STAMP_AND_FEED_BYTES {
            self.grow();
        }
        self.buffer.extend_from_slice(line);
        match time {
            Time::Own(time) => self.points.add(time),
            Time::Stamp(stamp) => {
                push_stamp(&mut self.buffer, stamp);
                self.points.add(stamp.cast_signed());
            }
        }
        self.buffer.push(b'\n');
        self.lines += 1;
        sealed
    }

    /// Returns the number of lines in the open batch.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Returns when the open batch is due; `None` if it is empty.
    pub fn due(&self) -> Option<Instant> {
        self.opened.map(|received| received.monotonic + self.limits.age)
    }

    /// Seals the open batch; returns `None` if it is empty.
    pub fn seal(&mut self) -> Option<Batch> {
        let received = self.opened.take()?;
        let lines = std::mem::take(&mut self.lines);
        let points = self.take_points();
        let (bytes, capacity) = self.freeze();
        Some(
            Batch::new(Arc::clone(&self.destination), bytes, lines, received)
                .with_points(points)
                .with_capacity(capacity),
        )
    }

    /// Seals the last batch; returns `None` if it is empty.
    pub fn finish(mut self) -> Option<Batch> {
        let is_pooled = self.buffer.capacity() == self.pool.buffer_bytes();
        let is_large = self.buffer.len() * 2 >= self.pool.buffer_bytes();
        if self.lines > 0 && is_pooled && is_large {
            // The batch takes the buffer; no other one is needed.
            let (received, points) = (self.opened?, self.take_points());
            let buffer = std::mem::take(&mut self.buffer);
            let (destination, lines, capacity) = (Arc::clone(&self.destination), self.lines, buffer.capacity());
            return Some(
                Batch::new(destination, self.pool.freeze(buffer), lines, received)
                    .with_points(points)
                    .with_capacity(capacity),
            );
        }
        let batch = self.seal();
        if is_pooled {
            self.pool.requeue(self.buffer);
        }
        batch
    }

    fn take_points(&mut self) -> Span {
        std::mem::replace(&mut self.points, Span::NONE).in_nanoseconds(self.destination.precision)
    }

    /// Doubles a small buffer; replaces one that would become large by one of the pool's.
    #[cold]
    fn grow(&mut self) {
        if (SMALL_BYTES..self.pool.buffer_bytes()).contains(&self.buffer.capacity()) {
            let mut large = self.pool.take();
            large.extend_from_slice(&self.buffer);
            self.buffer = large;
        }
    }

    /// Returns the buffer's bytes, now immutable, and the memory they hold. A batch that fills less
    /// than half of the buffer is copied into memory of its own size, so that a quiet relay's
    /// backlog does not consist of mostly empty buffers.
    fn freeze(&mut self) -> (Bytes, usize) {
        if self.buffer.capacity() < self.pool.buffer_bytes() {
            let small = std::mem::take(&mut self.buffer);
            let capacity = small.capacity();
            return (Bytes::from(small), capacity);
        }
        if self.buffer.len() * 2 < self.pool.buffer_bytes() {
            let bytes = Bytes::copy_from_slice(&self.buffer);
            self.buffer.clear();
            let capacity = bytes.len();
            return (bytes, capacity);
        }
        let full = std::mem::replace(&mut self.buffer, self.pool.take());
        if full.capacity() > self.pool.buffer_bytes() {
            // The line is larger than the pool's buffers, which must stay of one size.
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
        let destination = Destination::new("db", "", Precision::Nanoseconds);
        let limits = Limits { lines, age: Duration::from_millis(20) };
        Builder::new(Arc::new(destination), Pool::new(2, Builder::least_buffer_bytes()), limits)
    }

    #[test]
    fn lines_are_kept_byte_for_byte_and_stamped_where_needed() {
        let mut builder = builder(10);
        let received = Received::now();
        assert!(builder.seal().is_none());
        assert!(builder.append(b"m v=1 5", Time::Own(5), received).is_none());
        assert!(builder.append(b"m v=2", Time::Stamp(1_795_400_726_000_000_001), received).is_none());
        assert!(builder.append(b"m v=3", Time::Stamp(0), received).is_none());
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
            batches.extend(builder.append(&line, Time::Own(1), Received::now()));
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
            batches.extend(builder.append(line, Time::Stamp(7), Received::now()));
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
    fn a_small_builder_holds_what_its_lines_need_and_gives_large_buffers_back() {
        let destination = builder(1).destination;
        let limits = Limits { lines: u64::MAX, age: Duration::from_millis(20) };
        let pool = Pool::new(2, 256 * 1024);
        let small = || Builder::small(Arc::clone(&destination), Arc::clone(&pool), limits);
        assert!(small().finish().is_none());
        for lines in [1, 100, 1_000, 20_000] {
            let mut builder = small();
            let mut batches = Vec::new();
            for number in 0..lines {
                batches.extend(builder.append(
                    format!("m v={number} {number}").as_bytes(),
                    Time::Own(1),
                    Received::now(),
                ));
            }
            batches.extend(builder.finish());
            let text: Vec<u8> = batches.iter().flat_map(|batch| batch.bytes.to_vec()).collect();
            let expected: String = (0..lines).map(|number| format!("m v={number} {number}\n")).collect();
            assert_eq!(text, expected.as_bytes());
            assert_eq!(batches.iter().map(|batch| batch.lines).sum::<u64>(), lines);
            for batch in &batches {
                assert!(batch.bytes.len() <= batch.capacity && batch.capacity <= pool.buffer_bytes());
            }
            let held: usize = batches.iter().map(|batch| batch.capacity).sum();
            assert!(lines >= 1_000 || held <= 4 * text.len().max(64), "{held} for {}", text.len());
        }
    }

    #[test]
    fn the_number_of_lines_bounds_a_batch() {
        let mut builder = builder(2);
        let sealed: Vec<u64> = (0..5)
            .filter_map(|_| builder.append(b"m v=1 1", Time::Own(1), Received::now()))
            .map(|batch| batch.lines)
            .collect();
        assert_eq!(sealed, [2, 2]);
    }
}
