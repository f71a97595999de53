//! Timestamps: a listener's unit, the range InfluxDB can store, and the stamp for a line without a
//! timestamp.
//!
//! A line must have its timestamp before it is copied to several backends. Otherwise each backend
//! stamps it with its own clock, the copies differ, and a batch that is sent twice stores its
//! points twice.
//!
//! Never reads a clock: the caller passes the receive time, read once per drain.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Refusal, number};

/// The largest magnitude of a timestamp in nanoseconds that every InfluxDB accepts
/// (`models.MaxNanoTime` of 1.x; the minimum is its negative).
pub(super) const MAX_NANOSECONDS: u64 = 9_223_372_036_854_775_806;

/// The unit of a destination's timestamps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub enum Precision {
    /// Nanoseconds (`ns`, `n`).
    #[default]
    #[serde(rename = "ns", alias = "n")]
    Nanoseconds,
    /// Microseconds (`us`, `u`).
    #[serde(rename = "us", alias = "u")]
    Microseconds,
    /// Milliseconds (`ms`).
    #[serde(rename = "ms")]
    Milliseconds,
    /// Seconds (`s`).
    #[serde(rename = "s")]
    Seconds,
    /// Minutes (`m`).
    #[serde(rename = "m")]
    Minutes,
    /// Hours (`h`).
    #[serde(rename = "h")]
    Hours,
}

impl Precision {
    /// Returns the unit's length in nanoseconds.
    pub const fn nanoseconds(self) -> u64 {
        match self {
            Self::Nanoseconds => 1,
            Self::Microseconds => 1_000,
            Self::Milliseconds => 1_000_000,
            Self::Seconds => 1_000_000_000,
            Self::Minutes => 60_000_000_000,
            Self::Hours => 3_600_000_000_000,
        }
    }

    /// Returns the name for `precision=` of InfluxDB 1.x. InfluxDB 1.6 silently reads unknown names
    /// as nanoseconds, so only these six may be sent.
    pub const fn v1_name(self) -> &'static str {
        match self {
            Self::Nanoseconds => "n",
            Self::Microseconds => "u",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::Minutes => "m",
            Self::Hours => "h",
        }
    }

    /// Returns the name for `precision=` of `/api/v2/write`, which knows neither minutes nor hours.
    pub const fn v2_name(self) -> Option<&'static str> {
        match self {
            Self::Nanoseconds => Some("ns"),
            Self::Microseconds => Some("us"),
            Self::Milliseconds => Some("ms"),
            Self::Seconds => Some("s"),
            Self::Minutes | Self::Hours => None,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nanoseconds => "ns",
            Self::Microseconds => "us",
            other => other.v1_name(),
        })
    }
}

/// A precision's name that is not known.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown precision {0:?}: one of ns, us, ms, s, m, h")]
pub struct UnknownPrecision(String);

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(text: &str) -> Result<Self, UnknownPrecision> {
        Ok(match text {
            "ns" | "n" => Self::Nanoseconds,
            "us" | "u" => Self::Microseconds,
            "ms" => Self::Milliseconds,
            "s" => Self::Seconds,
            "m" => Self::Minutes,
            "h" => Self::Hours,
            other => return Err(UnknownPrecision(other.to_owned())),
        })
    }
}

/// Reads the timestamp that starts at `start`; returns the offset after it, and its value.
///
/// # Errors
/// The reason, and the offset at which it was found.
#[inline]
pub fn read(input: &[u8], start: usize, precision: Precision) -> Result<(usize, i64), (Refusal, usize)> {
    let is_negative = input.get(start) == Some(&b'-');
    let first = start + usize::from(is_negative);
    let end = number::digits(input, first);
    if end == first {
        return Err((Refusal::InvalidTimestamp, end));
    }
    let digits = &input[first..end];
    let value = if digits.len() <= SHORT_DIGITS { value_of(digits) } else { value_of_long(digits) };
    if value > MAX_NANOSECONDS / precision.nanoseconds() {
        return Err((Refusal::TimestampOutOfRange, end));
    }
    let value = value.cast_signed();
    Ok((end, if is_negative { -value } else { value }))
}

/// This many digits always fit into 64 bits.
const SHORT_DIGITS: usize = 19;

/// Returns the value of at most [`SHORT_DIGITS`], reading eight at a time.
#[inline]
fn value_of(digits: &[u8]) -> u64 {
    let (first, rest) = digits.split_at(digits.len() % 8);
    let first = first.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    let (eights, _) = rest.as_chunks();
    eights.iter().fold(first, |sum, eight| sum * 100_000_000 + eight_digits(*eight))
}

/// Sums neighbours in parallel: pairs, then fours, then eight.
#[inline]
fn eight_digits(digits: [u8; 8]) -> u64 {
    const PAIRS: u64 = 0x0000_00FF_0000_00FF;
    let digits = u64::from_le_bytes(digits) - 0x3030_3030_3030_3030;
    let pairs = digits * 10 + (digits >> 8);
    let high = (pairs & PAIRS).wrapping_mul(100 + (1_000_000 << 32));
    let low = (pairs >> 16 & PAIRS).wrapping_mul(1 + (10_000 << 32));
    high.wrapping_add(low) >> 32
}

/// Returns the value of any number of digits; `u64::MAX` if it does not fit.
#[cold]
fn value_of_long(digits: &[u8]) -> u64 {
    let value = digits.iter().try_fold(0_u64, |sum, digit| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')));
    value.unwrap_or(u64::MAX)
}

/// How far stamps may run ahead of the clock to stay unique. A tenth of a second is more than one
/// drain of a socket needs at microseconds, and too little to be seen in a graph.
const MAX_AHEAD_NANOSECONDS: u64 = 100_000_000;

/// Stamps lines without a timestamp, in a listener's precision.
///
/// Two lines of one series with the same timestamp overwrite each other, so stamps are unique as
/// far as the precision permits: at nano-, micro- and milliseconds, up to a tenth of a second ahead
/// of the clock. At seconds and above, and beyond that bound, lines share the clock's value.
#[derive(Debug)]
pub struct Stamper {
    precision: Precision,
    ahead: u64,
    now: u64,
    last: u64,
    /// The clock in nanoseconds since 1970.
    clock: u64,
    /// Plausible times for senders that may have held lines back, and for live senders.
    plausible: [Plausible; 2],
}

/// The range of times that are plausible for a received point.
#[derive(Clone, Copy, Debug)]
pub struct Plausible {
    first: i64,
    count: u64,
}

impl Plausible {
    /// Returns whether a point may have this time.
    #[inline]
    pub fn has(self, time: i64) -> bool {
        time.wrapping_sub(self.first).cast_unsigned() <= self.count
    }
}

/// Bound of a plausible time ahead of the clock, and behind it for live senders, in nanoseconds.
const HOUR: u64 = 3_600_000_000_000;
/// Bound of a plausible time behind the clock for senders that hold lines during an outage or
/// replay logs.
const DAY: u64 = 24 * HOUR;

impl Stamper {
    /// Creates a stamper for one worker of one listener.
    pub fn new(precision: Precision) -> Self {
        Self {
            precision,
            ahead: MAX_AHEAD_NANOSECONDS / precision.nanoseconds(),
            now: 0,
            last: 0,
            clock: 0,
            plausible: [Plausible { first: i64::MIN, count: u64::MAX }; 2],
        }
    }

    /// Sets the receive time of the following lines, in nanoseconds since 1970.
    pub fn set_clock(&mut self, nanoseconds: u64) {
        let unit = self.precision.nanoseconds();
        (self.now, self.clock) = (nanoseconds / unit, nanoseconds);
        self.plausible = [DAY, HOUR].map(|behind| Plausible {
            first: (nanoseconds.saturating_sub(behind) / unit).cast_signed(),
            count: (behind + HOUR) / unit + 1,
        });
    }

    /// Returns the plausible times of points received now: at most an hour ahead of the clock, and
    /// a day behind it, or an hour if the sender is live (`is_live`). All times are plausible
    /// before the clock is set.
    #[inline]
    pub fn plausible(&self, is_live: bool) -> Plausible {
        self.plausible[usize::from(is_live)]
    }

    /// Returns the unit of the stamps.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Returns the unit in which an implausible time would be within a year of the clock. If that
    /// is the listener's own unit, one of the clocks is wrong.
    pub fn likely_precision(&self, time: i64) -> Option<Precision> {
        const NEAR: u64 = 366 * 24 * 3_600_000_000_000;
        const UNITS: [Precision; 4] =
            [Precision::Nanoseconds, Precision::Microseconds, Precision::Milliseconds, Precision::Seconds];
        let now = self.clock;
        UNITS.into_iter().find(|unit| {
            let time = u64::try_from(time).ok().and_then(|time| time.checked_mul(unit.nanoseconds()));
            time.is_some_and(|time| time.abs_diff(now) <= NEAR)
        })
    }

    /// Returns the next line's stamp.
    pub fn next_stamp(&mut self) -> u64 {
        let taken = self.last >= self.now && self.last < self.now + self.ahead;
        self.last = if taken { self.last + 1 } else { self.now };
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str, precision: Precision) -> Result<(), Refusal> {
        match read(text.as_bytes(), 0, precision) {
            Ok((end, _)) if end == text.len() => Ok(()),
            Ok(_) => Err(Refusal::TrailingText),
            Err((reason, _)) => Err(reason),
        }
    }

    #[test]
    fn range_is_influxdbs_at_each_precision() {
        use Precision::{Hours, Milliseconds, Nanoseconds, Seconds};
        for (text, precision, expected) in [
            ("0", Nanoseconds, Ok(())),
            ("-1", Nanoseconds, Ok(())),
            ("9223372036854775806", Nanoseconds, Ok(())),
            ("-9223372036854775806", Nanoseconds, Ok(())),
            ("0000009223372036854775806", Nanoseconds, Ok(())),
            ("9223372036854775807", Nanoseconds, Err(Refusal::TimestampOutOfRange)),
            ("-9223372036854775807", Nanoseconds, Err(Refusal::TimestampOutOfRange)),
            ("99999999999999999999999", Nanoseconds, Err(Refusal::TimestampOutOfRange)),
            ("10000000000000000000", Nanoseconds, Err(Refusal::TimestampOutOfRange)),
            ("1000000000000000000000000", Nanoseconds, Err(Refusal::TimestampOutOfRange)),
            ("9223372036854", Milliseconds, Ok(())),
            ("9223372036855", Milliseconds, Err(Refusal::TimestampOutOfRange)),
            ("9223372036", Seconds, Ok(())),
            ("9223372037", Seconds, Err(Refusal::TimestampOutOfRange)),
            ("2562047", Hours, Ok(())),
            ("2562048", Hours, Err(Refusal::TimestampOutOfRange)),
            ("", Nanoseconds, Err(Refusal::InvalidTimestamp)),
            ("-", Nanoseconds, Err(Refusal::InvalidTimestamp)),
            ("x", Nanoseconds, Err(Refusal::InvalidTimestamp)),
            ("1.5", Nanoseconds, Err(Refusal::TrailingText)),
        ] {
            assert_eq!(whole(text, precision), expected, "{text} {precision}");
        }
    }

    #[test]
    fn times_far_from_the_clock_are_told_with_the_unit_that_they_are_probably_in() {
        use Precision::{Microseconds, Milliseconds, Nanoseconds, Seconds};
        const NOW: i64 = 1_795_400_726_000_000_000;
        const HOUR: i64 = 3_600_000_000_000;
        for precision in [Nanoseconds, Microseconds, Milliseconds, Seconds] {
            let (mut stamper, unit) = (Stamper::new(precision), precision.nanoseconds().cast_signed());
            stamper.set_clock(NOW.cast_unsigned());
            for (time, is_plausible) in [
                (NOW, true),
                (NOW - 23 * HOUR, true),
                (NOW - 25 * HOUR, false),
                (NOW + HOUR / 2, true),
                (NOW + 2 * HOUR, false),
            ] {
                assert_eq!(stamper.plausible(false).has(time / unit), is_plausible, "{time} {precision}");
            }
            // Live points are never hours old.
            for (time, is_plausible) in [(NOW - HOUR / 2, true), (NOW - 2 * HOUR, false), (NOW + 2 * HOUR, false)] {
                assert_eq!(stamper.plausible(true).has(time / unit), is_plausible, "{time} {precision}");
            }
            for other in [Nanoseconds, Microseconds, Milliseconds, Seconds] {
                let time = NOW / other.nanoseconds().cast_signed();
                assert_eq!(stamper.plausible(true).has(time), other == precision);
                assert_eq!(stamper.likely_precision(time), Some(other));
            }
            assert_eq!((stamper.plausible(false).has(0), stamper.likely_precision(0)), (false, None));
        }
        assert!(Stamper::new(Seconds).plausible(true).has(0), "nothing is known before there is a clock");
    }

    proptest::proptest! {
        #[test]
        fn a_value_is_what_its_digits_say(value in -(MAX_NANOSECONDS.cast_signed())..=MAX_NANOSECONDS.cast_signed(), shift in 0..63_u32,
                                          zeros in 0..12_usize) {
            let value = value >> shift;
            let text = format!("{}{}{}", if value < 0 { "-" } else { "" }, "0".repeat(zeros), value.unsigned_abs());
            proptest::prop_assert_eq!(read(text.as_bytes(), 0, Precision::Nanoseconds), Ok((text.len(), value)));
        }
    }

    #[test]
    fn names_are_read_back() {
        for name in ["ns", "us", "ms", "s", "m", "h"] {
            assert_eq!(name.parse::<Precision>().map(|p| p.to_string()), Ok(name.to_owned()));
        }
        assert!("zz".parse::<Precision>().is_err());
    }

    /// InfluxDB silently reads an unknown name as another unit.
    #[test]
    fn each_api_is_told_the_unit_by_the_name_that_it_knows() {
        use Precision::{Hours, Microseconds, Milliseconds, Minutes, Nanoseconds, Seconds};
        for (precision, nanoseconds, v1, v2) in [
            (Nanoseconds, 1, "n", Some("ns")),
            (Microseconds, 1_000, "u", Some("us")),
            (Milliseconds, 1_000_000, "ms", Some("ms")),
            (Seconds, 1_000_000_000, "s", Some("s")),
            (Minutes, 60_000_000_000, "m", None),
            (Hours, 3_600_000_000_000, "h", None),
        ] {
            let names = (precision.nanoseconds(), precision.v1_name(), precision.v2_name());
            assert_eq!(names, (nanoseconds, v1, v2), "{precision}");
        }
    }

    #[test]
    fn stamps_are_unique_where_the_precision_has_room() {
        let mut stamper = Stamper::new(Precision::Microseconds);
        stamper.set_clock(5_000_000);
        let stamps: Vec<u64> = (0..1000).map(|_| stamper.next_stamp()).collect();
        assert_eq!(stamps, (5_000..6_000).collect::<Vec<u64>>());
        stamper.set_clock(7_000_000);
        assert_eq!(stamper.next_stamp(), 7_000);
    }

    #[test]
    fn stamps_share_the_second_and_never_leave_the_clock_far_behind() {
        let mut seconds = Stamper::new(Precision::Seconds);
        seconds.set_clock(10_000_000_000);
        assert_eq!([seconds.next_stamp(), seconds.next_stamp()], [10, 10]);

        let mut milliseconds = Stamper::new(Precision::Milliseconds);
        milliseconds.set_clock(10_000_000_000);
        let most = (0..10_000).map(|_| milliseconds.next_stamp()).max();
        assert_eq!(most, Some(10_100));
    }

    #[test]
    fn a_clock_set_back_is_followed() {
        let mut stamper = Stamper::new(Precision::Nanoseconds);
        stamper.set_clock(3_600_000_000_000);
        stamper.next_stamp();
        stamper.set_clock(1_000);
        assert_eq!([stamper.next_stamp(), stamper.next_stamp()], [1_000, 1_001]);
    }
}
