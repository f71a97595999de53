//! A connection's turn: how much of it is read before others have theirs.
//!
//! All connections of a listener, and its timers, share one thread. A sender that goes on sending never lets its
//! connection wait for the socket, so the connection gives way by itself: after [`TURN_BYTES`], or after [`TURN`] on the
//! thread, whichever comes first. Lines differ in what they cost, and a read is processed whole: so where a turn took
//! longer than it should, less is read at a time from then on. A connection that has nothing more to read just waits.
//!
//! A round of ten greedy senders takes some milliseconds, and everybody else is served between two rounds.

use std::time::{Duration, Instant};

/// Bytes of a turn, and the most that is read at a time.
pub(super) const TURN_BYTES: usize = 64 * 1024;
/// The time of a turn.
const TURN: Duration = Duration::from_micros(250);
/// The least that is read at a time: below this the read itself costs most.
const LEAST_BYTES: usize = 2 * 1024;

/// One connection's turn, and what was learnt from those before.
#[derive(Debug)]
pub(super) struct Turn {
    /// When its first bytes came; none before.
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
    /// How many bytes are read at a time.
    pub(super) fn room(&self) -> usize {
        self.room
    }

    /// Notes bytes that came at this time and are processed. `now` is asked for the time only where they filled the
    /// room. True where the connection is to give way.
    pub(super) fn is_over(&mut self, bytes: usize, came: Instant, now: impl FnOnce() -> Instant) -> bool {
        let began = *self.began.get_or_insert(came);
        self.bytes += bytes;
        let has_more = bytes >= self.room;
        let elapsed = if has_more { now() } else { came }.saturating_duration_since(began);
        let is_over = elapsed >= TURN || self.bytes >= TURN_BYTES;
        if is_over && has_more {
            let affordable = self.bytes as u128 * TURN.as_nanos() / elapsed.as_nanos().max(1);
            self.room = usize::try_from(affordable).unwrap_or(TURN_BYTES).clamp(LEAST_BYTES, TURN_BYTES);
        }
        is_over
    }

    /// The connection gave way, or waits: what comes next is another turn.
    pub(super) fn end(&mut self) {
        (self.began, self.bytes) = (None, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads of a sender that always has more, whose bytes cost this many nanoseconds each: the size of each read in a turn.
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
        // The first turn cannot know.
        assert_eq!(reads(&mut turn, 25), [TURN_BYTES]);
        for _ in 0..3 {
            assert_eq!(reads(&mut turn, 25), [10_000]);
        }
        assert_eq!(reads(&mut turn, 1000), [10_000]);
        assert_eq!(reads(&mut turn, 1000), [LEAST_BYTES]);
        // Cheap ones get all of it back.
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
