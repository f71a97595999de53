//! Decides how far to trust the wall clock for ages.
//!
//! A clock may be wrong at start-up and be corrected a minute later; trusting it at once would give
//! up lines that are minutes old. A [`SteadyClock`] compares both clocks at each look. It trusts
//! the wall clock once both have run evenly for [`PATIENCE`] and the wall clock is not behind the
//! newest known time. From then on it follows the monotonic clock.
//!
//! | event | consequence |
//! |---|---|
//! | the wall clock steps before it is trusted | the waiting period starts again |
//! | it steps back later | it was ahead: trusted again once it has run evenly; ages shrink |
//! | it steps forward later | the monotonic clock counts, unless a newer time becomes known |
//!
//! Never does: reading clocks, logging. Ages may lack the time that a machine was suspended.

use std::time::{Duration, Instant};

/// How long both clocks must run evenly before the wall clock is trusted.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Minimum difference that is a step. Smaller ones occur when a clock is slewed.
const STEP: Duration = Duration::from_secs(2);

/// Both clocks at one point in time; the wall clock in nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Moment {
    monotonic: Instant,
    wall: u64,
}

impl Moment {
    /// Returns the wall clock's value at another time, if both clocks run evenly.
    fn wall_at(self, monotonic: Instant) -> u64 {
        self.wall.saturating_add(nanoseconds(monotonic.saturating_duration_since(self.monotonic)))
    }
}

/// A step of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was set forward by this much.
    Forward(Duration),
    /// It was set back by this much.
    Back(Duration),
}

/// Judges a wall clock by the monotonic clock.
#[derive(Debug, Default)]
pub struct SteadyClock {
    last: Option<Moment>,
    steady_since: Option<Instant>,
    trusted: Option<Moment>,
}

impl SteadyClock {
    /// Compares both clocks. `newest` is the latest wall time of any known event. Returns the step
    /// since the last call, if there was one.
    pub fn look(&mut self, monotonic: Instant, wall: u64, newest: u64) -> Option<Step> {
        let step = self.last.and_then(|last| step(last.wall_at(monotonic), wall));
        self.last = Some(Moment { monotonic, wall });
        if step.is_some() {
            self.steady_since = None;
        }
        let since = *self.steady_since.get_or_insert(monotonic);
        let is_steady = monotonic.saturating_duration_since(since) >= PATIENCE;
        let is_behind = |wall: u64| wall.saturating_add(nanoseconds(STEP)) < newest;
        let trusted = self.now(monotonic);
        if is_steady && !is_behind(wall) && trusted.is_none_or(|trusted| wall < trusted || is_behind(trusted)) {
            self.trusted = Some(Moment { monotonic, wall });
        }
        step
    }

    /// Returns the wall time for judging ages; `None` while the clock is not trusted.
    pub fn now(&self, monotonic: Instant) -> Option<u64> {
        self.trusted.map(|trusted| trusted.wall_at(monotonic))
    }
}

fn step(expected: u64, wall: u64) -> Option<Step> {
    let by = Duration::from_nanos(expected.abs_diff(wall));
    (by > STEP).then_some(if wall > expected { Step::Forward(by) } else { Step::Back(by) })
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60;
    const DAY: u64 = 24 * 3600;
    /// The wall clock's initial value, in seconds.
    const BEGIN: u64 = 1000 * DAY;

    /// Calls `look` at these seconds since the start, with the wall clock ahead by this much.
    /// Returns by how many seconds the trusted time is ahead in the end.
    fn trusted(looks: &[(u64, i64)], newest: u64) -> Option<i64> {
        let (start, mut clock) = (Instant::now(), SteadyClock::default());
        let mut end = 0;
        for (seconds, ahead) in looks {
            end = *seconds;
            let wall = (BEGIN + seconds).checked_add_signed(*ahead).expect("in range");
            clock.look(start + Duration::from_secs(*seconds), wall * 1_000_000_000, newest * 1_000_000_000);
        }
        let now = clock.now(start + Duration::from_secs(end))? / 1_000_000_000;
        Some(i64::try_from(now).expect("small") - i64::try_from(BEGIN + end).expect("small"))
    }

    #[test]
    fn a_clock_is_believed_once_it_has_run_evenly_for_minutes() {
        let day = i64::try_from(DAY).expect("small");
        let newest = BEGIN - MINUTE;
        for (looks, expected) in [
            (&[][..], None),
            (&[(0, 0)], None),
            (&[(0, 0), (299, 0)], None),
            (&[(0, 0), (150, 0), (300, 0)], Some(0)),
            // The clock is wrong all the time.
            (&[(0, day), (300, day)], Some(day)),
            // The clock was ahead, and is corrected.
            (&[(0, day), (60, 0), (310, 0)], None),
            (&[(0, day), (60, 0), (360, 0)], Some(0)),
            (&[(0, day), (300, day), (301, 0)], Some(day)),
            (&[(0, day), (300, day), (301, 0), (601, 0)], Some(0)),
            // The clock was right, and is set ahead.
            (&[(0, 0), (300, 0), (301, day), (601, day), (9000, day)], Some(0)),
            // The clock is behind a known time, and is corrected.
            (&[(0, -day), (300, -day), (9000, -day)], None),
            (&[(0, -day), (300, -day), (301, 0), (600, 0)], None),
            (&[(0, -day), (300, -day), (301, 0), (601, 0)], Some(0)),
            // Small differences are not steps.
            (&[(0, 0), (100, 1), (200, -1), (300, 0)], Some(0)),
        ] {
            assert_eq!(trusted(looks, newest), expected, "{looks:?}");
        }
        // If a newer time becomes known, the step forward is trusted.
        let mut clock = SteadyClock::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for seconds in [0, 300] {
            clock.look(at(seconds), (BEGIN + seconds) * 1_000_000_000, 0);
        }
        for seconds in [301, 601] {
            clock.look(at(seconds), (BEGIN + DAY + seconds) * 1_000_000_000, (BEGIN + DAY) * 1_000_000_000);
        }
        assert_eq!(clock.now(at(601)), Some((BEGIN + DAY + 601) * 1_000_000_000));
    }

    #[test]
    fn steps_are_told() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut clock = SteadyClock::default();
        assert_eq!(clock.look(start, 50_000_000_000, 0), None);
        assert_eq!(clock.look(start + second, 51_500_000_000, 0), None);
        assert_eq!(clock.look(start + 2 * second, 62_500_000_000, 0), Some(Step::Forward(10 * second)));
        assert_eq!(clock.look(start + 3 * second, 0, 0), Some(Step::Back(Duration::from_nanos(63_500_000_000))));
    }
}
