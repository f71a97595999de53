//! Escapes names for line protocol: commas, spaces and equals signs get a backslash.
//!
//! Line protocol has no escape for a backslash itself. Parsers differ on a backslash before one of
//! these signs or at the end of a name, so such names are refused. Control bytes are refused too.

use super::super::Refusal;
use super::super::token::{BACKSLASH, CLASS, COMMA, CONTROL, EQUALS, SPACE, find};

/// Appends a measurement or a part of one.
pub(super) fn measurement(out: &mut Vec<u8>, name: &[u8]) -> Result<(), Refusal> {
    escape::<{ COMMA | SPACE }>(out, name)
}

/// Appends a tag key, a tag value or a field key.
#[inline]
pub(super) fn key(out: &mut Vec<u8>, name: &[u8]) -> Result<(), Refusal> {
    escape::<{ COMMA | SPACE | EQUALS }>(out, name)
}

#[inline]
fn escape<const SIGNS: u8>(out: &mut Vec<u8>, name: &[u8]) -> Result<(), Refusal> {
    let mut start = 0;
    loop {
        let at = find(name, start, |byte| CLASS[byte as usize] & (SIGNS | BACKSLASH | CONTROL) != 0);
        out.extend_from_slice(&name[start..at]);
        let Some(byte) = name.get(at) else { return Ok(()) };
        match CLASS[*byte as usize] {
            CONTROL => return Err(Refusal::ControlByte),
            BACKSLASH if name.get(at + 1).is_none_or(|next| b",= \\".contains(next)) => {
                return Err(Refusal::AmbiguousEscape);
            }
            BACKSLASH => out.push(b'\\'),
            _ => out.extend_from_slice(&[b'\\', *byte]),
        }
        start = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_or_refused() {
        let all = |name: &str| {
            let (mut one, mut other) = (Vec::new(), Vec::new());
            let results = [measurement(&mut one, name.as_bytes()), key(&mut other, name.as_bytes())];
            let texts = [one, other].map(|text| String::from_utf8(text).expect("UTF-8"));
            (results, texts)
        };
        for (name, expected) in [
            ("system.cpu", ["system.cpu", "system.cpu"]),
            ("a,b c=d", ["a\\,b\\ c=d", "a\\,b\\ c\\=d"]),
            ("C:\\temp ä", ["C:\\temp\\ ä", "C:\\temp\\ ä"]),
            (" ", ["\\ ", "\\ "]),
        ] {
            assert_eq!(all(name), ([Ok(()), Ok(())], expected.map(str::to_owned)), "{name}");
        }
        for (name, reason) in [
            ("a\\", Refusal::AmbiguousEscape),
            ("a\\,b", Refusal::AmbiguousEscape),
            ("a\\\\b", Refusal::AmbiguousEscape),
            ("a\\=b", Refusal::AmbiguousEscape),
            ("a\tb", Refusal::ControlByte),
            ("a\nb", Refusal::ControlByte),
        ] {
            assert_eq!(all(name).0, [Err(reason), Err(reason)], "{name}");
        }
    }
}
