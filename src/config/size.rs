//! Sizes as text: in `"8MiB"` the unit is 2^20 bytes, in `"25MB"` 10^6 bytes; a bare number is
//! bytes.
//!
//! Parses both kinds of units exactly, and shows a size in a unit that divides it, never rounded.
//! Refuses `"8G"` and `"8M"`, which mean one unit in some programs and the other unit in others.

use bytesize::ByteSize;
use serde::{Deserializer, Serializer, de};

/// The units in bytes, in ascending order. If two fit equally, the first is shown.
const UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KB", 1000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("TB", 1_000_000_000_000),
    ("TiB", 1 << 40),
    ("PB", 1_000_000_000_000_000),
    ("PiB", 1 << 50),
];

/// A text that is not a size. The message says what would be right.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
struct InvalidSize(String);

/// Parses a size. Saturates at 64 bits; no key accepts as much.
fn parse(text: &str) -> Result<u64, InvalidSize> {
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = (&trimmed[..end], trimmed[end..].trim_start());
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let is_number = !whole.is_empty() && !part.contains('.') && (part.is_empty() != number.contains('.'));
    if !is_number {
        return Err(InvalidSize(format!("{text:?} is no size: write \"8MiB\" or \"8MB\"")));
    }
    let bytes = match unit_bytes(unit) {
        Some(bytes) => bytes,
        None if matches!(unit.to_ascii_uppercase().as_str(), "K" | "M" | "G" | "T" | "P") => {
            let letter = unit.to_ascii_uppercase();
            return Err(InvalidSize(format!(
                "{text:?} is ambiguous: write \"{number}{letter}iB\" or \"{number}{letter}B\""
            )));
        }
        None => {
            return Err(InvalidSize(format!(
                "{unit:?} is no unit of sizes: write B, KiB, MiB, GiB, TiB, or KB, MB, GB, TB"
            )));
        }
    };
    if part.len() > 18 {
        return Err(InvalidSize(format!("{text:?} has too many decimals: write a smaller unit")));
    }
    let scale = 10_u128.pow(u32::try_from(part.len()).unwrap_or(18));
    let parts = part.parse::<u128>().unwrap_or(0) * u128::from(bytes);
    if parts % scale != 0 {
        return Err(InvalidSize(format!("{text:?} is no whole number of bytes: write a smaller unit")));
    }
    let whole = whole.parse::<u128>().unwrap_or_else(|_| u64::MAX.into()).saturating_mul(u128::from(bytes));
    Ok(u64::try_from(whole.saturating_add(parts / scale)).unwrap_or(u64::MAX))
}

/// Returns the bytes of a unit in upper or lower case; `None` for a letter alone.
fn unit_bytes(unit: &str) -> Option<u64> {
    let is =
        |name: &str| name.eq_ignore_ascii_case(unit) || (name.ends_with("iB") && unit.eq_ignore_ascii_case(&name[..2]));
    if unit.is_empty() { Some(1) } else { UNITS.iter().find(|(name, _)| is(name)).map(|(_, bytes)| *bytes) }
}

/// Shows the size in the largest unit that divides it.
fn show(size: ByteSize) -> String {
    let bytes = size.as_u64();
    let fitting = UNITS.iter().filter(|(_, unit)| bytes.is_multiple_of(*unit) && (bytes > 0 || *unit == 1));
    let (name, unit) = fitting.max_by_key(|(_, unit)| *unit).unwrap_or(&UNITS[0]);
    format!("{}{name}", bytes / unit)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    deserializer.deserialize_any(Size)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
pub(super) fn serialize<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&show(*size))
}

/// The same for a key without a default.
pub(super) mod optional {
    use super::{ByteSize, Deserializer, Serializer};

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<ByteSize>, D::Error> {
        super::deserialize(deserializer).map(Some)
    }

    pub(in super::super) fn serialize<S: Serializer>(
        size: &Option<ByteSize>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match size {
            Some(size) => super::serialize(size, serializer),
            None => serializer.serialize_none(),
        }
    }
}

/// Visits a text, or a number of bytes.
struct Size;

impl de::Visitor<'_> for Size {
    type Value = ByteSize;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a size such as \"8MiB\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
        parse(text).map(ByteSize::b).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
        u64::try_from(bytes).map(ByteSize::b).map_err(|_| E::custom("a size is not negative"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_units_are_exact_and_shown_as_they_are() {
        for (text, bytes, shown) in [
            ("8MiB", 8 << 20, "8MiB"),
            ("25MB", 25_000_000, "25MB"),
            ("8GB", 8_000_000_000, "8GB"),
            ("8GiB", 8 << 30, "8GiB"),
            ("8 gib", 8 << 30, "8GiB"),
            ("8Gi", 8 << 30, "8GiB"),
            ("8gb", 8_000_000_000, "8GB"),
            ("1.5GiB", 3 << 29, "1536MiB"),
            ("0.25MB", 250_000, "250KB"),
            ("1024KiB", 1 << 20, "1MiB"),
            ("65507", 65_507, "65507B"),
            ("65507B", 65_507, "65507B"),
            ("0", 0, "0B"),
            ("1TB", 1_000_000_000_000, "1TB"),
            ("2PiB", 2 << 50, "2PiB"),
            ("9999999PiB", u64::MAX, "18446744073709551615B"),
            ("99999999999999999999999999999999999999999999B", u64::MAX, "18446744073709551615B"),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
            assert_eq!(show(ByteSize::b(bytes)), shown, "{text}");
            assert_eq!(parse(shown), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_ambiguous_or_no_size_is_refused_with_what_would_be_right() {
        for (text, part) in [
            ("8G", "\"8G\" is ambiguous: write \"8GiB\" or \"8GB\""),
            ("8M", "write \"8MiB\" or \"8MB\""),
            ("1.5 k", "write \"1.5KiB\" or \"1.5KB\""),
            ("8t", "write \"8TiB\" or \"8TB\""),
            ("8 parsecs", "\"parsecs\" is no unit"),
            ("8Gb/s", "no unit"),
            ("8i", "no unit"),
            ("MiB", "is no size"),
            ("", "is no size"),
            ("-8MiB", "is no size"),
            ("1.2.3MiB", "is no size"),
            ("1.MiB", "is no size"),
            (".5MiB", "is no size"),
            ("0.1KiB", "no whole number of bytes"),
            ("0.1234567890123456789MiB", "too many decimals"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
