//! OpenTSDB's telnet commands: `put metric time value [tag=value …]`, separated by spaces.
//!
//! Netdata writes such lines, in some versions with a space after the last tag. `version` is a
//! question that a listener answers; other commands are refused.

use super::Refusal;
use super::convert::{Metric, Name, TagSyntax, Tags};
use super::graphite::word;
use super::token::trim;

/// Splits one line, which has no line feed.
///
/// # Errors
/// Why the line is not a metric.
#[inline]
pub(super) fn parse(line: &[u8]) -> Result<Metric<'_>, Refusal> {
    let (command, at) = word(line, 0);
    if command != b"put" {
        return Err(Refusal::WrongFormat);
    }
    let (name, at) = word(line, at);
    let (time, at) = word(line, at);
    let (value, at) = word(line, at);
    if name.is_empty() {
        return Err(Refusal::MissingMeasurement);
    }
    if time.is_empty() {
        return Err(Refusal::InvalidTimestamp);
    }
    if value.is_empty() {
        return Err(Refusal::MissingField);
    }
    let tags = Tags { text: trim(&line[at..]), syntax: TagSyntax::Blanks };
    Ok(Metric { name: Name::Path(name), tags, value, time })
}

/// Returns whether the line asks for the version.
#[inline]
pub(super) fn is_version(line: &[u8]) -> bool {
    trim(line) == b"version"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns metric, tags, value and time.
    fn parts(line: &str) -> Result<[String; 4], Refusal> {
        let metric = parse(line.as_bytes())?;
        let Name::Path(path) = metric.name else { panic!("a path") };
        Ok([path, metric.tags.text, metric.value, metric.time].map(|part| String::from_utf8_lossy(part).into_owned()))
    }

    #[test]
    fn lines_are_taken_apart() {
        for (line, expected) in [
            ("put a.b 1795400726 1.5 host=h x=y", Ok(["a.b", "host=h x=y", "1.5", "1795400726"])),
            ("put a.b 1795400726123 1.5 host=h \r", Ok(["a.b", "host=h", "1.5", "1795400726123"])),
            ("put  a.b\t1795400726  1.5", Ok(["a.b", "", "1.5", "1795400726"])),
            ("put", Err(Refusal::MissingMeasurement)),
            ("put a.b", Err(Refusal::InvalidTimestamp)),
            ("put a.b 1795400726", Err(Refusal::MissingField)),
            ("stats", Err(Refusal::WrongFormat)),
            ("a.b 1 2", Err(Refusal::WrongFormat)),
            ("puta.b 1 2 h=i", Err(Refusal::WrongFormat)),
            ("", Err(Refusal::WrongFormat)),
        ] {
            assert_eq!(parts(line), expected.map(|parts| parts.map(str::to_owned)), "{line:?}");
        }
    }
}
