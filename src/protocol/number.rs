//! A field's number: its grammar and range, checked without converting it.
//!
//! The grammar is what InfluxDB 1.x, 2.x and Telegraf all accept: an optional `-`, digits with at
//! most one point (including `1.` and `.5`), an optional exponent; or digits with the suffix `i`.
//! All of them refuse `NaN`, `inf`, `+1`, `0x10` and `1_000`.
//!
//! Never converts text to a number unless its length leaves the range open; never allocates.

use super::Refusal;
use super::token::find;

/// Every integer of this many digits fits into a signed 64-bit integer.
const INTEGER_DIGITS_THAT_FIT: usize = 18;
/// Every number of this many digits before the point, without an exponent, is a finite float.
const FLOAT_DIGITS_THAT_FIT: usize = 300;

/// Skips the number that starts at `start` and returns the offset after it.
///
/// # Errors
/// The reason, and the offset at which the number became invalid.
#[inline]
pub fn skip(input: &[u8], start: usize) -> Result<usize, (Refusal, usize)> {
    let mut at = start;
    if byte(input, at) == b'-' {
        at += 1;
    }
    let whole = at;
    at = digits(input, at);
    let whole_digits = at - whole;
    match byte(input, at) {
        b'i' if whole_digits > 0 => return integer(input, start, whole_digits, at),
        b'u' if whole_digits > 0 => return Err((Refusal::UnsignedInteger, at)),
        _ => {}
    }
    let mut fraction_digits = 0;
    if byte(input, at) == b'.' {
        let fraction = at + 1;
        at = digits(input, fraction);
        fraction_digits = at - fraction;
    }
    if whole_digits + fraction_digits == 0 {
        return Err((Refusal::InvalidValue, at));
    }
    if byte(input, at) | 0x20 == b'e' {
        return exponent(input, start, at);
    }
    if whole_digits > FLOAT_DIGITS_THAT_FIT {
        return finite(input, start, at);
    }
    Ok(at)
}

/// Checks the range of an integer whose suffix is at `suffix`.
fn integer(input: &[u8], start: usize, digits: usize, suffix: usize) -> Result<usize, (Refusal, usize)> {
    if digits <= INTEGER_DIGITS_THAT_FIT || parse::<i64>(input, start, suffix).is_some() {
        return Ok(suffix + 1);
    }
    Err((Refusal::NumberOutOfRange, suffix))
}

/// Checks the range of an unsigned integer between `start` and its suffix; returns the offset after
/// the suffix.
///
/// # Errors
/// The number has a sign, or does not fit into 64 bits.
#[cold]
pub(super) fn skip_unsigned(input: &[u8], start: usize, suffix: usize) -> Result<usize, (Refusal, usize)> {
    if byte(input, start) == b'-' {
        return Err((Refusal::InvalidValue, suffix));
    }
    parse::<u64>(input, start, suffix).map_or(Err((Refusal::NumberOutOfRange, suffix)), |_| Ok(suffix + 1))
}

/// Skips the exponent whose letter is at `at`, and checks the range of the number.
#[cold]
fn exponent(input: &[u8], start: usize, at: usize) -> Result<usize, (Refusal, usize)> {
    let mut first = at + 1;
    if matches!(byte(input, first), b'+' | b'-') {
        first += 1;
    }
    let end = digits(input, first);
    if end == first {
        return Err((Refusal::InvalidValue, end));
    }
    finite(input, start, end)
}

/// Checks that the float between `start` and `end` is finite.
#[cold]
fn finite(input: &[u8], start: usize, end: usize) -> Result<usize, (Refusal, usize)> {
    match parse::<f64>(input, start, end) {
        Some(value) if value.is_finite() => Ok(end),
        _ => Err((Refusal::NumberOutOfRange, end)),
    }
}

fn parse<T: std::str::FromStr>(input: &[u8], start: usize, end: usize) -> Option<T> {
    std::str::from_utf8(&input[start..end]).ok()?.parse().ok()
}

/// Returns the offset after the digits that start at `at`.
#[inline]
pub(super) fn digits(input: &[u8], at: usize) -> usize {
    find(input, at, |byte| !byte.is_ascii_digit())
}

/// Returns the byte at `at`, or 0 at the end of the input; no number contains a 0 byte.
#[inline]
fn byte(input: &[u8], at: usize) -> u8 {
    input.get(at).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Result<(), Refusal> {
        match skip(text.as_bytes(), 0) {
            Ok(end) if end == text.len() => Ok(()),
            Ok(_) => Err(Refusal::InvalidValue),
            Err((reason, _)) => Err(reason),
        }
    }

    #[test]
    fn takes_what_every_influxdb_takes() {
        let long = "1".repeat(308);
        for text in [
            "1",
            "1.",
            ".5",
            "-.5",
            "01",
            "-0",
            "1e5",
            "1E+5",
            "1.e10",
            ".5e1",
            "1e-400",
            "0.0000000",
            "1i",
            "-1i",
            "-0i",
            "01i",
            "9223372036854775807i",
            "-9223372036854775808i",
            "000000000000000000000001i",
            long.as_str(),
        ] {
            assert_eq!(whole(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn refuses_what_any_of_them_refuses() {
        let long = "9".repeat(310);
        for (text, reason) in [
            ("+1", Refusal::InvalidValue),
            (".", Refusal::InvalidValue),
            ("-", Refusal::InvalidValue),
            ("1e", Refusal::InvalidValue),
            ("1e+", Refusal::InvalidValue),
            ("1.1.1", Refusal::InvalidValue),
            ("1-1", Refusal::InvalidValue),
            ("0x10", Refusal::InvalidValue),
            ("1f", Refusal::InvalidValue),
            ("1_000", Refusal::InvalidValue),
            ("i", Refusal::InvalidValue),
            ("1.5i", Refusal::InvalidValue),
            ("1e3i", Refusal::InvalidValue),
            ("1ii", Refusal::InvalidValue),
            ("1I", Refusal::InvalidValue),
            ("1u", Refusal::UnsignedInteger),
            ("1e309", Refusal::NumberOutOfRange),
            ("1.7976931348623159e308", Refusal::NumberOutOfRange),
            ("9223372036854775808i", Refusal::NumberOutOfRange),
            ("-9223372036854775809i", Refusal::NumberOutOfRange),
            (long.as_str(), Refusal::NumberOutOfRange),
        ] {
            assert_eq!(whole(text), Err(reason), "{text}");
        }
    }
}
