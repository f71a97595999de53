//! Times of other formats: seconds since 1970, whole or with a fraction, or milliseconds.

use std::io::Write;

use super::super::timestamp::MAX_NANOSECONDS;
use super::super::{Format, Precision, Refusal};

/// OpenTSDB reads more digits than this as milliseconds, which have 13 digits.
const OPENTSDB_SECOND_DIGITS: usize = 10;
const OPENTSDB_MILLISECOND_DIGITS: usize = 13;

/// The last time read, and its form in line protocol: most lines of a batch have the same one.
#[derive(Debug)]
pub(super) struct Time {
    precision: Precision,
    /// `None` before the first time.
    format: Option<Format>,
    text: Vec<u8>,
    /// Empty if the sender leaves the time to the receiver.
    stamp: Vec<u8>,
    /// The stamp's value.
    value: i64,
}

impl Time {
    pub(super) fn new(precision: Precision) -> Self {
        Self { precision, format: None, text: Vec::new(), stamp: Vec::new(), value: 0 }
    }

    /// Returns whether `text` is the time that was read last, and was given by the sender.
    #[inline]
    pub(super) fn is(&self, text: &[u8]) -> bool {
        self.text == text && !self.stamp.is_empty()
    }

    /// Reads a time.
    pub(super) fn set(&mut self, format: Format, text: &[u8]) -> Result<(), Refusal> {
        if self.format == Some(format) && self.text == text {
            return Ok(());
        }
        self.format = None;
        let nanoseconds = match format {
            _ if text.is_empty() => None,
            // InfluxDB's and Telegraf's listeners read -1 as "now".
            Format::Graphite => Some(seconds(text)?).filter(|nanoseconds| *nanoseconds != -1_000_000_000),
            Format::Opentsdb => Some(opentsdb(text)?),
            _ => Some(seconds(text)?),
        };
        self.stamp.clear();
        if let Some(nanoseconds) = nanoseconds {
            let unit = i64::try_from(self.precision.nanoseconds()).unwrap_or(i64::MAX);
            self.value = nanoseconds.div_euclid(unit);
            write!(self.stamp, "{}", self.value).expect("BUG: writing to memory does not fail");
        }
        self.text.clear();
        self.text.extend_from_slice(text);
        self.format = Some(format);
        Ok(())
    }

    /// Returns the stamp; empty if the sender leaves the time to the receiver.
    #[inline]
    pub(super) fn stamp(&self) -> &[u8] {
        &self.stamp
    }

    /// Returns the stamp's value in the listener's unit; `None` if the sender leaves the time to
    /// the receiver.
    #[inline]
    pub(super) fn value(&self) -> Option<i64> {
        (!self.stamp.is_empty()).then_some(self.value)
    }
}

/// Reads seconds or, if they have 13 digits, milliseconds; returns nanoseconds.
fn opentsdb(text: &[u8]) -> Result<i64, Refusal> {
    if text.len() <= OPENTSDB_SECOND_DIGITS || !text.iter().all(u8::is_ascii_digit) {
        return seconds(text);
    }
    if text.len() != OPENTSDB_MILLISECOND_DIGITS {
        return Err(Refusal::TimestampOutOfRange);
    }
    let (whole, milliseconds) = text.split_at(OPENTSDB_SECOND_DIGITS);
    nanoseconds(whole, milliseconds)
}

/// Reads seconds, with or without a fraction; returns nanoseconds.
fn seconds(text: &[u8]) -> Result<i64, Refusal> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let point = digits.iter().position(|byte| *byte == b'.').unwrap_or(digits.len());
    let nanoseconds = nanoseconds(&digits[..point], digits.get(point + 1..).unwrap_or_default())?;
    Ok(if digits.len() < text.len() { -nanoseconds } else { nanoseconds })
}

/// Adds whole seconds and a fraction, whose digits after the ninth are ignored.
fn nanoseconds(whole: &[u8], fraction: &[u8]) -> Result<i64, Refusal> {
    if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return Err(Refusal::InvalidTimestamp);
    }
    let add = |sum: u64, digit: &u8| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'));
    let fraction = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let sum = whole.iter().chain(fraction).try_fold(0, add).filter(|sum| *sum <= MAX_NANOSECONDS);
    sum.and_then(|sum| i64::try_from(sum).ok()).ok_or(Refusal::TimestampOutOfRange)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(format: Format, precision: Precision, text: &str) -> Result<String, Refusal> {
        let mut time = Time::new(precision);
        time.set(format, text.as_bytes())?;
        // A second reading of the same text reuses the first result.
        time.set(format, text.as_bytes())?;
        Ok(String::from_utf8(time.stamp().to_vec()).expect("digits"))
    }

    #[test]
    fn seconds_become_the_listeners_unit() {
        use Format::{Graphite, NetdataJson, Opentsdb};
        use Precision::{Hours, Milliseconds, Nanoseconds, Seconds};
        for (format, precision, text, expected) in [
            (Graphite, Nanoseconds, "1795400726", Ok("1795400726000000000")),
            (Graphite, Seconds, "1795400726", Ok("1795400726")),
            (Graphite, Hours, "1795400726", Ok("498722")),
            (Graphite, Nanoseconds, "1795400726.25", Ok("1795400726250000000")),
            (Graphite, Nanoseconds, "1795400726.1234567899", Ok("1795400726123456789")),
            (Graphite, Milliseconds, "-0.5", Ok("-500")),
            (Graphite, Seconds, "-0.5", Ok("-1")),
            (Graphite, Nanoseconds, "-1", Ok("")),
            (Graphite, Nanoseconds, "-1.0", Ok("")),
            (Graphite, Nanoseconds, "", Ok("")),
            (Graphite, Nanoseconds, "1795400726123", Err(Refusal::TimestampOutOfRange)),
            (Graphite, Nanoseconds, "9223372036.854775806", Ok("9223372036854775806")),
            (Graphite, Nanoseconds, "9223372036.854775807", Err(Refusal::TimestampOutOfRange)),
            (Graphite, Nanoseconds, "99999999999999999999999", Err(Refusal::TimestampOutOfRange)),
            (Graphite, Nanoseconds, "1e9", Err(Refusal::InvalidTimestamp)),
            (Graphite, Nanoseconds, ".5", Err(Refusal::InvalidTimestamp)),
            (Graphite, Nanoseconds, "1.2.3", Err(Refusal::InvalidTimestamp)),
            (Graphite, Nanoseconds, "N", Err(Refusal::InvalidTimestamp)),
            (Opentsdb, Nanoseconds, "1795400726", Ok("1795400726000000000")),
            (Opentsdb, Nanoseconds, "1795400726123", Ok("1795400726123000000")),
            (Opentsdb, Nanoseconds, "1795400726.123", Ok("1795400726123000000")),
            (Opentsdb, Nanoseconds, "17954007261", Err(Refusal::TimestampOutOfRange)),
            (Opentsdb, Nanoseconds, "-1", Ok("-1000000000")),
            (NetdataJson, Nanoseconds, "1795400726", Ok("1795400726000000000")),
        ] {
            assert_eq!(stamp(format, precision, text), expected.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn the_same_digits_are_another_time_in_another_format() {
        let mut time = Time::new(Precision::Nanoseconds);
        time.set(Format::Opentsdb, b"1795400726123").expect("milliseconds");
        assert!(time.set(Format::Graphite, b"1795400726123").is_err());
        assert!(time.set(Format::Graphite, b"1795400726123").is_err());
        time.set(Format::Opentsdb, b"1795400726123").expect("milliseconds");
        assert_eq!(time.stamp(), b"1795400726123000000");
    }
}
