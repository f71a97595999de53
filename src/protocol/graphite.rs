//! Graphite's plain text: `path value [time]`, separated by any white space, with or without
//! `;tag=value` after the path.
//!
//! A time of `-1`, or none, leaves the time to the receiver. The parser only splits words;
//! [`super::convert`] validates them.

use super::Refusal;
use super::convert::{Metric, Name, TagSyntax, Tags};
use super::token::{find, is_blank};

/// Splits one line, which has no line feed. `likely_tags` is the last line's tags: most lines of a
/// sender have the same ones, whose end then need not be searched.
///
/// # Errors
/// Why the line is not a metric.
#[inline]
pub(super) fn parse<'a>(line: &'a [u8], likely_tags: &[u8]) -> Result<Metric<'a>, Refusal> {
    let start = skip_blanks(line, 0);
    let name_end = find(line, start, |byte| byte == b';' || is_blank(byte));
    if name_end == start {
        return Err(Refusal::MissingMeasurement);
    }
    let (tags, at) =
        if line.get(name_end) == Some(&b';') { tags(line, name_end + 1, likely_tags) } else { (&[][..], name_end) };
    let (value, at) = word(line, at);
    let (time, at) = word(line, at);
    if value.is_empty() {
        return Err(Refusal::MissingField);
    }
    if skip_blanks(line, at) < line.len() {
        return Err(Refusal::TrailingText);
    }
    let tags = Tags { text: tags, syntax: TagSyntax::Semicolons };
    Ok(Metric { name: Name::Path(&line[start..name_end]), tags, value, time })
}

/// Returns the tags that begin at `at`, and the offset after them.
#[inline]
fn tags<'a>(line: &'a [u8], at: usize, likely: &[u8]) -> (&'a [u8], usize) {
    let likely_end = at + likely.len();
    let is_likely = line[at..].starts_with(likely) && line.get(likely_end).is_some_and(|byte| is_blank(*byte));
    let end = if is_likely { likely_end } else { find(line, at, is_blank) };
    (&line[at..end], end)
}

/// Returns the word after the white space at `at`, and the offset after it; an empty word at the
/// end of the line.
#[inline]
pub(super) fn word(line: &[u8], at: usize) -> (&[u8], usize) {
    let start = skip_blanks(line, at);
    let end = find(line, start, is_blank);
    (&line[start..end], end)
}

#[inline]
fn skip_blanks(line: &[u8], at: usize) -> usize {
    find(line, at, |byte| !is_blank(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns path, tags, value and time.
    fn parts(line: &str) -> Result<[String; 4], Refusal> {
        let metric = parse(line.as_bytes(), b"x=y")?;
        let Name::Path(path) = metric.name else { panic!("a path") };
        Ok([path, metric.tags.text, metric.value, metric.time].map(|part| String::from_utf8_lossy(part).into_owned()))
    }

    #[test]
    fn lines_are_taken_apart() {
        for (line, expected) in [
            ("a.b 1.5 1795400726", Ok(["a.b", "", "1.5", "1795400726"])),
            ("a.b;x=y;z=w 1.5 1795400726", Ok(["a.b", "x=y;z=w", "1.5", "1795400726"])),
            ("a.b;x=y 1.5 1795400726", Ok(["a.b", "x=y", "1.5", "1795400726"])),
            ("a.b;x=yz 1.5", Ok(["a.b", "x=yz", "1.5", ""])),
            ("a.b; 1.5", Ok(["a.b", "", "1.5", ""])),
            (" \ta.b\t\t1.5\x0b1795400726 \r", Ok(["a.b", "", "1.5", "1795400726"])),
            ("a.b 1.5 1 2", Err(Refusal::TrailingText)),
            ("a.b", Err(Refusal::MissingField)),
            ("a.b;x=y", Err(Refusal::MissingField)),
            ("a.b \r", Err(Refusal::MissingField)),
            (";x=y 1 2", Err(Refusal::MissingMeasurement)),
            ("", Err(Refusal::MissingMeasurement)),
        ] {
            assert_eq!(parts(line), expected.map(|parts| parts.map(str::to_owned)), "{line:?}");
        }
    }
}
