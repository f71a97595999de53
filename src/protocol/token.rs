//! Where a run of bytes ends: the searches that most of a line's scan is spent in.
//!
//! Four bytes to a step leave one branch for each, where a plain loop has two; longer steps, words of eight bytes
//! and vectors of sixteen were all slower (the tokens of a line are short).

const STEP: usize = 4;

/// The place of the first byte from `at` on that `stops`, or the input's end.
#[inline(always)]
pub(super) fn find(input: &[u8], mut at: usize, stops: impl Fn(u8) -> bool) -> usize {
    while let Some(step) = input.get(at..at + STEP) {
        for (place, byte) in step.iter().enumerate() {
            if stops(*byte) {
                return at + place;
            }
        }
        at += STEP;
    }
    while at < input.len() && !stops(input[at]) {
        at += 1;
    }
    at
}

pub(super) const COMMA: u8 = 1;
pub(super) const EQUALS: u8 = 2;
pub(super) const SPACE: u8 = 4;
pub(super) const BACKSLASH: u8 = 8;
pub(super) const CONTROL: u8 = 16;

/// What each byte means between tokens.
pub(super) const CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut byte = 0;
    while byte < 32 {
        class[byte] = CONTROL;
        byte += 1;
    }
    class[0x7f] = CONTROL;
    class[b',' as usize] = COMMA;
    class[b'=' as usize] = EQUALS;
    class[b' ' as usize] = SPACE;
    class[b'\\' as usize] = BACKSLASH;
    class
};

/// Whether a byte stands between words in formats that take any white space.
#[inline]
pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | 0x0b | 0x0c)
}

/// The text without white space before and behind it.
#[inline]
pub(super) fn trim(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !is_blank(*byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_blank(*byte)).map_or(start, |last| last + 1);
    &text[start..end]
}

/// Whether a name has tags in the manner of line protocol: `cpu,host=a`. Names of other formats have no such pair.
#[inline]
pub(super) fn has_influx_tags(name: &[u8]) -> bool {
    memchr::memchr(b',', name).is_some_and(|comma| memchr::memchr(b'=', &name[comma..]).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_found_from_each_other() {
        for length in 0..20 {
            for place in 0..=length {
                let mut input = vec![b'x'; length];
                input[place..].fill(b',');
                for at in 0..=place {
                    assert_eq!(find(&input, at, |byte| byte == b','), place);
                }
            }
        }
    }
}
