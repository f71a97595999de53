//! One value as a parser found it: its name, tags, number and time, all still in the sender's own writing.

use super::super::Refusal;
use super::super::{number, token};

/// One value of a sender that speaks something other than line protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Metric<'a> {
    /// What was measured.
    pub(crate) name: Name<'a>,
    /// The tags.
    pub(crate) tags: Tags<'a>,
    /// The number's text.
    pub(crate) value: &'a [u8],
    /// The time's text; empty where there is none.
    pub(crate) time: &'a [u8],
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    /// Parts joined by dots, which parts may hold themselves.
    Path(&'a [u8]),
    /// Parts that are known apart.
    Parts(Parts<'a>),
}

/// The parts of one of Netdata's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts<'a> {
    /// `netdata`, unless it was set otherwise; it may be empty.
    pub(crate) prefix: &'a [u8],
    /// The host; it may be empty.
    pub(crate) host: &'a [u8],
    /// The chart: `system.cpu`.
    pub(crate) chart: &'a [u8],
    /// The dimension: `user`.
    pub(crate) dimension: &'a [u8],
}

impl Metric<'_> {
    /// Whether its name has tags in the manner of line protocol, so that it is likely to be a broken line of that.
    #[inline]
    pub(crate) fn has_influx_tags(&self) -> bool {
        matches!(self.name, Name::Path(path) if token::has_influx_tags(path))
    }
}

impl<'a> Name<'a> {
    /// The host, where it is known apart.
    pub(super) fn host(&self) -> &'a [u8] {
        match self {
            Self::Path(_) => &[],
            Self::Parts(parts) => parts.host,
        }
    }

    /// Writes prefix, chart and dimension, joined by dots, or the path as it came.
    pub(super) fn write_path(&self, out: &mut Vec<u8>) {
        let parts = match self {
            Self::Path(path) => [*path, &[], &[]],
            Self::Parts(Parts { prefix, chart, dimension, .. }) => [*prefix, *chart, *dimension],
        };
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            if !out.is_empty() {
                out.push(b'.');
            }
            out.extend_from_slice(part);
        }
    }

    /// Writes what all names of a chart begin with: this much of a path, or prefix, host and chart with a NUL behind each.
    pub(super) fn write_chart(&self, before: usize, out: &mut Vec<u8>) {
        out.clear();
        match self {
            Self::Path(path) => out.extend_from_slice(&path[..before]),
            Self::Parts(Parts { prefix, host, chart, .. }) => {
                for part in [prefix, host, chart] {
                    out.extend_from_slice(part);
                    out.push(0);
                }
            }
        }
    }

    /// The dimension, where the name begins as [`Self::write_chart`] wrote.
    #[inline]
    pub(super) fn field_in(&self, chart: &[u8]) -> Option<&'a [u8]> {
        match self {
            Self::Path(path) => path.strip_prefix(chart).filter(|rest| !rest.is_empty()),
            Self::Parts(Parts { prefix, host, chart: name, dimension }) => {
                let mut rest = chart;
                for part in [prefix, host, name] {
                    rest = rest.strip_prefix(*part)?.strip_prefix(b"\0")?;
                }
                rest.is_empty().then_some(*dimension)
            }
        }
    }
}

/// Tags as they were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tags<'a> {
    pub(crate) text: &'a [u8],
    pub(crate) syntax: TagSyntax,
}

/// How tags are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TagSyntax {
    /// `a=b;c=d`
    Semicolons,
    /// `a=b c=d`
    Blanks,
    /// `{"a":"b","c":"d"}`
    Json,
}

/// The text of a number as a float in line protocol: the same, without a plus sign.
///
/// # Errors
/// It is no number that every InfluxDB takes.
#[inline]
pub(super) fn float(text: &[u8]) -> Result<&[u8], Refusal> {
    let unsigned = text.strip_prefix(b"+").filter(|rest| rest.first() != Some(&b'-')).unwrap_or(text);
    match number::skip(unsigned, 0) {
        // Behind digits, an `i` would make an integer of it, and fields of two types conflict.
        Ok(end) if end == unsigned.len() && unsigned.last() != Some(&b'i') => Ok(unsigned),
        Err((Refusal::NumberOutOfRange, end)) if end == unsigned.len() => Err(Refusal::NumberOutOfRange),
        _ if unsigned.is_empty() => Err(Refusal::MissingField),
        _ if is_no_number(unsigned) => Err(Refusal::NotANumber),
        _ => Err(Refusal::InvalidValue),
    }
}

/// Whether the text is how a program writes a float that is no number, or none that is finite.
fn is_no_number(text: &[u8]) -> bool {
    let text = text.strip_prefix(b"-").unwrap_or(text);
    ["nan", "inf", "infinity"].iter().any(|name| text.eq_ignore_ascii_case(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_floats_in_the_senders_own_digits() {
        for (text, expected) in [
            ("85.0000000", Ok("85.0000000")),
            ("-0.8", Ok("-0.8")),
            ("81", Ok("81")),
            ("+1.5", Ok("1.5")),
            ("1e5", Ok("1e5")),
            ("nan", Err(Refusal::NotANumber)),
            ("-NaN", Err(Refusal::NotANumber)),
            ("+Inf", Err(Refusal::NotANumber)),
            ("Infinity", Err(Refusal::NotANumber)),
            ("1i", Err(Refusal::InvalidValue)),
            ("1u", Err(Refusal::InvalidValue)),
            ("+-1", Err(Refusal::InvalidValue)),
            ("0x10", Err(Refusal::InvalidValue)),
            ("1,5", Err(Refusal::InvalidValue)),
            ("1e999", Err(Refusal::NumberOutOfRange)),
            ("", Err(Refusal::MissingField)),
        ] {
            assert_eq!(float(text.as_bytes()), expected.map(str::as_bytes), "{text}");
        }
    }
}
