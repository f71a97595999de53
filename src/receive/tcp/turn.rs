//! A connection's turn: how many bytes are read from it before other connections are served.
//!
//! All connections of a listener, and its timers, share one thread. The socket of a busy sender
//! never blocks, so its connection must yield by itself: after [`TURN_BYTES`], or after [`TURN`] on
//! the thread, whichever comes first. Lines differ in cost, and a read is always processed as a
//! whole. If a turn took too long, later reads are therefore smaller. A connection with nothing
//! more to read simply waits.
//!
//! A round of ten busy senders takes a few milliseconds, and all others are served between two
//! rounds.

use std::time::{Duration, Instant};

/// Maximum number of bytes per turn, and per read.
pub(super) const TURN_BYTES: usize = 64 * 1024;
/// Maximum duration of a turn.
const TURN: Duration = Duration::from_micros(250);
/// Minimum size of a read in bytes. Below it, the system call dominates the cost.
const MIN_BYTES: usize = 2 * 1024;

/// One connection's turn, and the size of its reads as learnt from earlier turns.
#[derive(Debug)]
pub(super) struct Turn {
    /// When the first bytes of this turn arrived. `None` before.
    began: Option<Instant>,
    bytes: usize,
    room: usize,
}

impl Default for Turn {
    fn default() -> Self {
        Self { began: None, bytes: 0, room: TURN_BYTES }
    }
}

impl Turn {
    /// Maximum size of the next read in bytes.
    pub(super) fn room(&self) -> usize {
        self.room
    }

    /// Records bytes that arrived at `came` and have been processed. Calls `now` only if they
    /// filled the buffer. Returns true if the connection must yield.
    pub(super) fn is_over(&mut self, bytes: usize, came: Instant, now: impl FnOnce() -> Instant) -> bool {
        let began = *self.began.get_or_insert(came);
        self.bytes += bytes;
        let has_more = bytes >= self.room;
        let elapsed = if has_more { now() } else { came }.saturating_duration_since(began);
        let is_over = elapsed >= TURN || self.bytes >= TURN_BYTES;
        if is_over && has_more {
            let affordable = self.bytes as u128 * TURN.as_nanos() / elapsed.as_nanos().max(1);
            self.room = usize::try_from(affordable).unwrap_or(TURN_BYTES).clamp(MIN_BYTES, TURN_BYTES);
        }
        is_over
    }

    /// Ends the turn: the connection has yielded, or waits.
    pub(super) fn end(&mut self) {
        (self.began, self.bytes) = (None, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the sizes of the reads in one turn of a sender that always has more, and whose bytes
    /// cost this many nanoseconds each.
    fn reads(turn: &mut Turn, cost: u64) -> Vec<usize> {
        let (start, mut elapsed, mut sizes) = (Instant::now(), Duration::ZERO, Vec::new());
        turn.end();
        loop {
            let (room, came) = (turn.room(), start + elapsed);
            elapsed += Duration::from_nanos(cost * room as u64);
            sizes.push(room);
            if turn.is_over(room, came, || start + elapsed) {
                return sizes;
            }
        }
    }

    #[test]
    fn cheap_lines_end_a_turn_by_bytes_and_costly_ones_by_time() {
        let mut turn = Turn::default();
        assert_eq!(reads(&mut turn, 1), [TURN_BYTES]);
        // The first turn has no earlier measurement.
        assert_eq!(reads(&mut turn, 25), [TURN_BYTES]);
        for _ in 0..3 {
            assert_eq!(reads(&mut turn, 25), [10_000]);
        }
        assert_eq!(reads(&mut turn, 1000), [10_000]);
        assert_eq!(reads(&mut turn, 1000), [MIN_BYTES]);
        // Cheap lines restore the full size.
        assert!(reads(&mut turn, 1).len() > 1);
        assert_eq!(reads(&mut turn, 1), [TURN_BYTES]);
    }

    #[test]
    fn a_sender_that_trickles_gives_way_too_and_no_clock_is_read_for_it() {
        let (mut turn, start) = (Turn::default(), Instant::now());
        let clock = || panic!("nothing was full");
        for step in 0..10 {
            assert_eq!(turn.is_over(10, start + step * TURN / 9, clock), step == 9);
        }
        turn.end();
        assert!(!turn.is_over(10, start + 5 * TURN, clock));
        assert_eq!(turn.room(), TURN_BYTES);
    }
}
