//! One value as a parser found it: name, tags, number and time, all in the sender's own notation.

use super::super::Refusal;
use super::super::{number, token};

/// One value from a sender of another format than line protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Metric<'a> {
    /// The name of what was measured.
    pub(crate) name: Name<'a>,
    /// The tags.
    pub(crate) tags: Tags<'a>,
    /// The number's text.
    pub(crate) value: &'a [u8],
    /// The time's text; empty if there is none.
    pub(crate) time: &'a [u8],
}

/// The name of what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    /// Parts joined by dots; a part may contain dots itself.
    Path(&'a [u8]),
    /// Parts that the format keeps apart.
    Parts(Parts<'a>),
}

/// The parts of one of Netdata's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts<'a> {
    /// `netdata`, unless configured otherwise; may be empty.
    pub(crate) prefix: &'a [u8],
    /// The host; may be empty.
    pub(crate) host: &'a [u8],
    /// The chart: `system.cpu`.
    pub(crate) chart: &'a [u8],
    /// The dimension: `user`.
    pub(crate) dimension: &'a [u8],
}

impl Metric<'_> {
    /// Returns whether the name has tags in line protocol's syntax, which indicates a broken line
    /// of it.
    #[inline]
    pub(crate) fn has_influx_tags(&self) -> bool {
        matches!(self.name, Name::Path(path) if token::has_influx_tags(path))
    }
}

impl<'a> Name<'a> {
    /// Returns the host if the format keeps it apart; empty otherwise.
    pub(super) fn host(&self) -> &'a [u8] {
        match self {
            Self::Path(_) => &[],
            Self::Parts(parts) => parts.host,
        }
    }

    /// Writes prefix, chart and dimension, joined by dots, or the path unchanged.
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

    /// Writes the common beginning of a chart's names: `before` bytes of a path, or prefix, host
    /// and chart, each followed by a NUL.
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

    /// Returns the dimension if the name begins as [`Self::write_chart`] wrote it.
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

/// Tags as the sender wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tags<'a> {
    pub(crate) text: &'a [u8],
    pub(crate) syntax: TagSyntax,
}

/// The syntax of tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TagSyntax {
    /// `a=b;c=d`
    Semicolons,
    /// `a=b c=d`
    Blanks,
    /// `{"a":"b","c":"d"}`
    Json,
}

/// Returns the text of a number as a float in line protocol: the same, without a plus sign.
///
/// # Errors
/// The text is not a number that every InfluxDB accepts.
#[inline]
pub(super) fn float(text: &[u8]) -> Result<&[u8], Refusal> {
    let unsigned = text.strip_prefix(b"+").filter(|rest| rest.first() != Some(&b'-')).unwrap_or(text);
    match number::skip(unsigned, 0) {
        // An `i` after digits would make an integer, and fields of two types conflict.
        Ok(end) if end == unsigned.len() && unsigned.last() != Some(&b'i') => Ok(unsigned),
        Err((Refusal::NumberOutOfRange, end)) if end == unsigned.len() => Err(Refusal::NumberOutOfRange),
        _ if unsigned.is_empty() => Err(Refusal::MissingField),
        _ if is_no_number(unsigned) => Err(Refusal::NotANumber),
        _ => Err(Refusal::InvalidValue),
    }
}

/// Returns whether the text is a float that is NaN or infinite, as programs write it.
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
