//! Points in time by the wall clock.

use std::num::NonZeroU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in time by the wall clock, in nanoseconds since 1970. It is never 0: unknown times are
/// `None`, and 0 in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(from = "u64", into = "u64")]
pub struct WallTime(NonZeroU64);

impl WallTime {
    /// The earliest value.
    pub const MIN: Self = Self(NonZeroU64::MIN);

    /// Returns the current time; [`Self::MIN`] if the clock is before 1970.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// Creates a time from nanoseconds since 1970; `None` for 0.
    pub const fn new(nanoseconds: u64) -> Option<Self> {
        match NonZeroU64::new(nanoseconds) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Creates a time from nanoseconds since 1970, which must not be 0.
    #[cfg(test)]
    pub(crate) const fn at(nanoseconds: u64) -> Self {
        Self::new(nanoseconds).expect("some")
    }

    /// Returns the nanoseconds since 1970.
    pub const fn nanoseconds(self) -> u64 {
        self.0.get()
    }

    /// Returns the time this much later.
    #[must_use]
    pub fn plus(self, time: Duration) -> Self {
        Self(
            self.0.saturating_add(
                time.as_secs().saturating_mul(1_000_000_000).saturating_add(time.subsec_nanos() as u64),
            ),
        )
    }

    /// Returns the time this much earlier, but not before 1970.
    #[must_use]
    pub fn minus(self, time: Duration) -> Self {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self::new(self.nanoseconds().saturating_sub(nanoseconds)).unwrap_or(Self::MIN)
    }

    /// Returns the time since `earlier`; zero if that is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanoseconds().saturating_sub(earlier.nanoseconds()))
    }
}

impl From<WallTime> for u64 {
    fn from(time: WallTime) -> Self {
        time.nanoseconds()
    }
}

impl From<u64> for WallTime {
    /// A 0, as older versions wrote it for an unknown time, becomes the earliest moment.
    fn from(nanoseconds: u64) -> Self {
        Self::new(nanoseconds).unwrap_or(Self::MIN)
    }
}

impl From<WallTime> for SystemTime {
    fn from(time: WallTime) -> Self {
        UNIX_EPOCH + Duration::from_nanos(time.nanoseconds())
    }
}

impl From<SystemTime> for WallTime {
    fn from(time: SystemTime) -> Self {
        let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::new(u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)).unwrap_or(Self::MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_time_of_an_older_version_is_read() {
        for (text, expected) in [("0", Some(WallTime::MIN)), ("7", WallTime::new(7)), ("null", None)] {
            let read: Option<WallTime> = serde_json::from_str(text).expect("a time");
            assert_eq!(read, expected, "{text}");
        }
        assert_eq!(serde_json::to_string(&WallTime::at(7)).expect("JSON"), "7");
    }

    #[test]
    fn times_move_within_their_bounds() {
        let (second, time) = (Duration::from_secs(1), WallTime::at(1_500_000_000));
        assert_eq!((time.plus(second), time.minus(second)), (WallTime::at(2_500_000_000), WallTime::at(500_000_000)));
        assert_eq!(
            (time.minus(second * 2), WallTime::at(u64::MAX).plus(second)),
            (WallTime::MIN, WallTime::at(u64::MAX))
        );
        assert_eq!((time.since(WallTime::at(500_000_000)), WallTime::MIN.since(time)), (second, Duration::ZERO));
        assert_eq!(WallTime::from(SystemTime::from(time)), time);
        assert_eq!(WallTime::from(UNIX_EPOCH - second), WallTime::MIN, "a clock before 1970");
    }
}
