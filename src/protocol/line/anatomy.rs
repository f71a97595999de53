//! The parts of an accepted line: its measurement, its fields with their types, its timestamp.
//!
//! Owns: splitting a line, to find again the line that a backend's answer names. Never does:
//! validating (the parts of anything but an accepted line are meaningless); copying, except for
//! names with escapes. Bounds: each part is found in one pass over the line.

use std::borrow::Cow;

/// Returns the measurement, unescaped.
pub fn measurement(line: &[u8]) -> Cow<'_, [u8]> {
    unescape(&line[..end_of_token(line, 0, b", ")])
}

/// Returns each field's name, unescaped, and the name of its type as InfluxDB writes it.
pub fn fields(line: &[u8]) -> impl Iterator<Item = (Cow<'_, [u8]>, &'static str)> {
    let mut at = skip_spaces(line, end_of_token(line, 0, b" "));
    std::iter::from_fn(move || {
        let equals = end_of_token(line, at, b"=");
        let first = *line.get(equals + 1)?;
        let name = unescape(&line[at..equals]);
        let end = end_of_value(line, equals + 1);
        // The last field is followed by a space or nothing.
        at = if line.get(end) == Some(&b',') { end + 1 } else { line.len() };
        let last = line[end - 1];
        Some((name, type_of(first, last)))
    })
}

/// Returns the timestamp, in whatever unit it is.
pub fn timestamp(line: &[u8]) -> Option<i64> {
    let mut at = skip_spaces(line, end_of_token(line, 0, b" "));
    loop {
        at = end_of_value(line, end_of_token(line, at, b"=") + 1);
        if line.get(at) != Some(&b',') {
            break;
        }
        at += 1;
    }
    std::str::from_utf8(&line[at.min(line.len())..]).ok()?.trim().parse().ok()
}

fn type_of(first: u8, last: u8) -> &'static str {
    match (first, last) {
        (b'"', _) => "string",
        (b't' | b'T' | b'f' | b'F', _) => "boolean",
        (_, b'i') => "integer",
        (_, b'u') => "unsigned",
        _ => "float",
    }
}

/// Returns the offset of the first of `stops` that is not escaped, or the line's length.
fn end_of_token(line: &[u8], mut at: usize, stops: &[u8]) -> usize {
    while let Some(byte) = line.get(at) {
        match byte {
            b'\\' => at += 1,
            byte if stops.contains(byte) => return at,
            _ => {}
        }
        at += 1;
    }
    line.len()
}

/// Returns the offset after a field's value.
fn end_of_value(line: &[u8], mut at: usize) -> usize {
    if line.get(at) != Some(&b'"') {
        return line
            .iter()
            .skip(at)
            .position(|byte| matches!(byte, b',' | b' '))
            .map_or(line.len(), |length| at + length);
    }
    at += 1;
    while let Some(byte) = line.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    line.len()
}

fn skip_spaces(line: &[u8], at: usize) -> usize {
    line.iter().skip(at).position(|byte| *byte != b' ').map_or(line.len(), |length| at + length)
}

/// Unescapes a name as InfluxDB does.
fn unescape(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.contains(&b'\\') {
        return Cow::Borrowed(name);
    }
    let mut plain = Vec::with_capacity(name.len());
    for (at, byte) in name.iter().enumerate() {
        let escapes = *byte == b'\\' && matches!(name.get(at + 1), Some(b',' | b' ' | b'='));
        if !escapes {
            plain.push(*byte);
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(line: &str) -> (String, Vec<(String, &'static str)>, Option<i64>) {
        let text = |bytes: Cow<'_, [u8]>| String::from_utf8(bytes.into_owned()).expect("UTF-8");
        let fields = fields(line.as_bytes()).map(|(name, kind)| (text(name), kind)).collect();
        (text(measurement(line.as_bytes())), fields, timestamp(line.as_bytes()))
    }

    #[test]
    fn a_lines_parts_are_found_whatever_stands_in_them() {
        for (line, measurement, fields, time) in [
            ("m v=1 5", "m", &[("v", "float")][..], Some(5)),
            ("m,a=b v=1i,w=2u", "m", &[("v", "integer"), ("w", "unsigned")], None),
            (r"m\ n\,o,a\ b=c\,d  x\=y=t,z=False   -7", "m n,o", &[("x=y", "boolean"), ("z", "boolean")], Some(-7)),
            (r#"m s="a, b=\"c\" \\",v=-1e5 9"#, "m", &[("s", "string"), ("v", "float")], Some(9)),
            ("m s=\"two\nlines 1i,x=2\" 3", "m", &[("s", "string")], Some(3)),
            (r"a\b v=0 1", r"a\b", &[("v", "float")], Some(1)),
        ] {
            let fields: Vec<_> = fields.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
            assert_eq!(parts(line), (measurement.to_owned(), fields, time), "{line}");
        }
    }

    #[test]
    fn no_bytes_make_it_fail() {
        fastrand::seed(9);
        for _ in 0..100_000 {
            let line: Vec<u8> =
                (0..fastrand::usize(..12)).map(|_| *fastrand::choice(b"m,= \\\"1it").expect("a byte")).collect();
            let _ = (measurement(&line), fields(&line).count(), timestamp(&line));
        }
    }
}
