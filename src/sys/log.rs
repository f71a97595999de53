//! Writes the log on a thread of its own, so that logging never waits for the reader of the log.
//!
//! Owns: a queue of lines between all threads and the one that writes them. A stopped terminal, a
//! hung collector or a full pipe blocks that thread and nothing else.
//!
//! Bounds: 256 KiB of lines, 8 KiB for each. If the queue is full, the oldest lines are dropped:
//! the newest explain the current state, and the lines of a shutdown are written. The number of
//! dropped lines is written in their position, and counted ([`lines_dropped`]). Lines that could
//! not be written are counted, too.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Maximum size of the queued lines, in bytes.
const MAX_BYTES: usize = 256 << 10;
/// Maximum length of a line; a longer one is truncated.
const LINE_BYTES: usize = 8 << 10;
/// Approximate size of one write, in bytes. Lines being written can no longer be dropped.
const CHUNK_BYTES: usize = 4 << 10;
/// Pause before retrying non-blocking output that is full.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// A process has one log, and one count.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Returns the number of log lines that were dropped or could not be written.
pub fn lines_dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// A log whose lines are written by its own thread, which ends with it. `&Log` implements
/// [`Write`]: each write is one line.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Signalled when there is something to write, or the log ends.
    filled: Condvar,
    /// Signalled when everything is written.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// Lines dropped since the number was last written.
    dropped: u64,
    is_writing: bool,
    is_closed: bool,
}

impl Log {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// The system refuses to create a thread.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || of_thread.write_lines(out))?;
        Ok(Self { shared })
    }

    /// Queues a line, which must end in a line feed.
    pub fn line(&self, line: &[u8]) {
        let mut queue = self.shared.lock();
        queue.push(line);
        drop(queue);
        self.shared.filled.notify_one();
    }

    /// Waits until every line is written, at most for `limit`.
    pub fn flush(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut queue = self.shared.lock();
        while !queue.is_empty() || queue.is_writing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            (queue, _) = self.shared.emptied.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.filled.notify_one();
    }
}

impl Write for &Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes lines until the log ends.
    fn write_lines(&self, mut out: impl Write) {
        let mut chunk = Vec::new();
        loop {
            let mut queue = self.lock();
            queue.is_writing = false;
            if queue.is_empty() {
                self.emptied.notify_all();
            }
            while queue.is_empty() && !queue.is_closed {
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            if queue.is_empty() {
                return;
            }
            let lines = queue.take(&mut chunk);
            queue.is_writing = true;
            drop(queue);
            if write_all(&mut out, &chunk).is_err() {
                DROPPED.fetch_add(lines, Ordering::Relaxed);
            }
        }
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.dropped == 0
    }

    fn push(&mut self, line: &[u8]) {
        let line: Box<[u8]> = if line.len() > LINE_BYTES { shorten(line) } else { line.into() };
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > MAX_BYTES {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.len();
            self.dropped += 1;
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Moves the oldest lines to a chunk, after a note of the lines dropped before them; returns
    /// the number of lines.
    fn take(&mut self, chunk: &mut Vec<u8>) -> u64 {
        chunk.clear();
        if self.dropped > 0 {
            let note = format!("twinflux: {} lines of the log are missing here: nobody read it\n", self.dropped);
            chunk.extend_from_slice(note.as_bytes());
            self.dropped = 0;
        }
        let mut lines = 0;
        while chunk.len() < CHUNK_BYTES
            && let Some(line) = self.lines.pop_front()
        {
            self.bytes -= line.len();
            chunk.extend_from_slice(&line);
            lines += 1;
        }
        lines
    }
}

/// Truncates a long line between characters.
fn shorten(line: &[u8]) -> Box<[u8]> {
    let end = (0..=LINE_BYTES).rev().find(|end| line[*end] & 0xc0 != 0x80).unwrap_or(0);
    [&line[..end], "…\n".as_bytes()].concat().into()
}

/// Writes all bytes, even to non-blocking output.
fn write_all(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(RETRY_PAUSE),
            Err(error) => return Err(error),
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    /// Output that blocks each write until the test reads; it sends what was written.
    struct Stuck(Receiver<()>, SyncSender<Vec<u8>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_out_in_order_and_a_flush_waits_for_them() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let log = Log::start(writer).expect("a thread");
        for number in 0..100 {
            (&log).write_all(format!("line {number}\n").as_bytes()).expect("never fails");
        }
        log.flush(LONG);
        drop(log);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("text");
        assert_eq!(text, (0..100).map(|number| format!("line {number}\n")).collect::<String>());
    }

    #[test]
    fn who_logs_never_waits_and_the_newest_lines_come_out_with_the_number_of_those_missing() {
        let (go, reads) = sync_channel(0);
        let (takes, taken) = sync_channel(1);
        let log = Log::start(Stuck(reads, takes)).expect("a thread");
        let before = lines_dropped();
        let lines = 3 * MAX_BYTES / 100;
        for number in 0..lines {
            log.line(format!("{number:099}\n").as_bytes());
        }
        log.flush(Duration::from_millis(1));
        let mut text = String::new();
        let expected_end = format!("{:099}\n", lines - 1);
        while !text.ends_with(&expected_end) {
            go.send(()).expect("a thread that writes");
            text += &String::from_utf8(taken.recv().expect("bytes")).expect("text");
        }
        log.flush(LONG);
        let (mut missing, mut written) = (0, 0);
        for line in text.lines() {
            match line.strip_prefix("twinflux: ") {
                Some(note) => missing += note.split(' ').next().expect("a number").parse::<usize>().expect("a number"),
                None => written += 1,
            }
        }
        assert_eq!(missing + written, lines);
        assert!(missing > 0 && lines_dropped() - before >= missing as u64, "{missing}");
        assert!(written * 100 <= MAX_BYTES + 2 * CHUNK_BYTES, "{written} lines waited");
    }

    #[test]
    fn a_log_that_cannot_be_written_counts_its_lines() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let log = Log::start(writer).expect("a thread");
        let before = lines_dropped();
        log.line(b"nobody reads this\n");
        log.flush(LONG);
        assert!(lines_dropped() > before);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let mut queue = Queue::default();
        queue.push(format!("{}\n", "ä".repeat(LINE_BYTES)).as_bytes());
        let mut chunk = Vec::new();
        assert_eq!(queue.take(&mut chunk), 1);
        let text = String::from_utf8(chunk).expect("text");
        assert_eq!(text, format!("{}…\n", "ä".repeat(LINE_BYTES / 2)));
    }
}
