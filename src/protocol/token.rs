//! Finds the end of a run of bytes: the searches that most of a line's scan consists of.
//!
//! Four bytes per step need one branch each, where a plain loop needs two. Longer steps, words of
//! eight bytes and vectors of sixteen were all slower, because the tokens of a line are short.

const STEP: usize = 4;

/// Returns the offset of the first byte from `at` on for which `stops` is true, or the input's
/// length.
#[inline(always)]
pub(super) fn find(input: &[u8], mut at: usize, stops: impl Fn(u8) -> bool) -> usize {
    while let Some(step) = input.get(at..at + STEP) {
        for (index, byte) in step.iter().enumerate() {
            if stops(*byte) {
                return at + index;
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

/// The class of each byte between tokens.
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

/// Returns whether a byte separates words in formats that accept any white space.
#[inline]
pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | 0x0b | 0x0c)
}

/// Returns the text without surrounding white space.
#[inline]
pub(super) fn trim(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !is_blank(*byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_blank(*byte)).map_or(start, |last| last + 1);
    &text[start..end]
}

/// Returns whether a name has tags in line protocol's syntax: `cpu,host=a`. Names of other formats
/// contain no such pair.
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
            for index in 0..=length {
                let mut input = vec![b'x'; length];
                input[index..].fill(b',');
                for at in 0..=index {
                    assert_eq!(find(&input, at, |byte| byte == b','), index);
                }
            }
        }
    }
}
