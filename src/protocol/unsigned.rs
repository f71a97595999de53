//! Converts unsigned integers to signed ones, for groups whose servers do not know them.
//!
//! Telegraf does the same if its output is configured for a server without unsigned integers:
//! values beyond the largest signed integer are capped.

use super::token::{BACKSLASH, CLASS, COMMA, EQUALS, SPACE, find};

/// The digits of the largest signed integer.
const LARGEST: &[u8] = b"9223372036854775807";

/// Writes a valid line with each unsigned integer as a signed one.
pub(super) fn write_signed(line: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let mut at = end_of_token(line, 0, SPACE);
    out.extend_from_slice(&line[..at]);
    while line.get(at).is_some_and(|byte| matches!(byte, b' ' | b',')) {
        let key = at;
        let equals = end_of_token(line, key + 1, EQUALS);
        if equals == line.len() {
            // The timestamp, or trailing spaces.
            break;
        }
        let value = equals + 1;
        at = end_of_value(line, value);
        out.extend_from_slice(&line[key..value]);
        match line[value..at].strip_suffix(b"u") {
            Some(digits) => {
                out.extend_from_slice(if is_within(digits) { digits } else { LARGEST });
                out.push(b'i');
            }
            None => out.extend_from_slice(&line[value..at]),
        }
    }
    out.extend_from_slice(&line[at..]);
}

/// Returns the offset of the first unescaped byte of class `end` from `at` on, or the line's
/// length.
fn end_of_token(line: &[u8], mut at: usize, end: u8) -> usize {
    loop {
        at = find(line, at, |byte| CLASS[byte as usize] & (end | BACKSLASH) != 0);
        if line.get(at) != Some(&b'\\') {
            return at;
        }
        at += 2;
    }
}

fn end_of_value(line: &[u8], value: usize) -> usize {
    if line.get(value) != Some(&b'"') {
        return find(line, value, |byte| CLASS[byte as usize] & (COMMA | SPACE) != 0);
    }
    let mut at = value + 1;
    while line.get(at).is_some_and(|byte| *byte != b'"') {
        at += if line[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn is_within(digits: &[u8]) -> bool {
    let significant = digits.iter().position(|digit| *digit != b'0').map_or(&[][..], |first| &digits[first..]);
    significant.len() < LARGEST.len() || (significant.len() == LARGEST.len() && significant <= LARGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_signed_and_nothing_else_changes() {
        for (line, expected) in [
            ("m v=5u", "m v=5i"),
            ("m v=5u 7", "m v=5i 7"),
            ("m v=9223372036854775807u,w=1", "m v=9223372036854775807i,w=1"),
            ("m v=9223372036854775808u  7 ", "m v=9223372036854775807i  7 "),
            ("m v=18446744073709551615u", "m v=9223372036854775807i"),
            ("m v=0000000000000000000000012u", "m v=0000000000000000000000012i"),
            ("m,t=5u v=t,u=5u,s=\"a=5u,b=6u \\\" 7u\" 1", "m,t=5u v=t,u=5i,s=\"a=5u,b=6u \\\" 7u\" 1"),
            ("m\\ n,a\\ b=c\\=d\\,e f\\ g\\=h=1u,i\\,j=2u", "m\\ n,a\\ b=c\\=d\\,e f\\ g\\=h=1i,i\\,j=2i"),
            ("m   v=1u", "m   v=1i"),
        ] {
            let mut out = Vec::new();
            write_signed(line.as_bytes(), &mut out);
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }
}
