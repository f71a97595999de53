//! The grammar of one line, in the order of the line: measurement, tags, fields, timestamp.
//!
//! Owns: where a line ends, or why and where it is invalid. Never does: deciding how the lines
//! after it are read. Bounds: each byte is read a fixed number of times, including the bytes of tag
//! keys.

use super::{Rules, TAGS_THAT_PANIC, Unsigned};
use crate::protocol::keys::{Added, Keys};
use crate::protocol::token::{BACKSLASH, CLASS, COMMA, CONTROL, EQUALS, SPACE, find};
use crate::protocol::{Precision, Refusal, number, timestamp};

/// The end of a valid line.
#[derive(Clone, Copy)]
pub(super) struct Scanned {
    /// Offset before CR and LF.
    pub(super) end: usize,
    /// The line's timestamp, if any.
    pub(super) time: Option<i64>,
}

/// State of a line's scan so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Length of measurement and tags.
    pub(super) series_bytes: usize,
    pub(super) longest_field_key: usize,
    /// Whether any field has a name other than `time`, so that there is something to store.
    is_stored: bool,
    pub(super) has_unsigned: bool,
}

/// Why a line is refused, and the offset from which to search for the next line feed. The offset
/// lies after all closed strings, so that their text is not read as lines; see [`scan_value`] for
/// the one exception.
pub(super) type Stop = (Refusal, usize);

pub(super) fn scan_line(
    input: &[u8],
    start: usize,
    rules: &Rules,
    tags: &mut Keys,
    seen: &mut Seen,
) -> Result<Scanned, Stop> {
    let mut at = token::<MEASUREMENT_END>(input, start)?;
    if at == start {
        return Err((at_control(input, at, Refusal::MissingMeasurement), at));
    }
    at = scan_tags(input, at, tags)?;
    seen.series_bytes = at - start;
    if input.get(at) != Some(&b' ') {
        return Err((at_control(input, at, Refusal::MissingField), at));
    }
    let after = scan_fields(input, skip_spaces(input, at), rules, seen)?;
    scan_end(input, after, rules, seen)
}

/// Resumes a line in its open string. The opening quote is at `quote`; the closing quote is not
/// before `searched`.
#[cold]
pub(super) fn resume_line(
    input: &[u8],
    quote: usize,
    searched: usize,
    rules: &Rules,
    seen: &mut Seen,
) -> Result<Scanned, Stop> {
    let end = find_quote(input, searched).map_err(|_| (Refusal::UnterminatedString, quote))?;
    let mut at = end_value(input, quote, end, Refusal::TrailingText)?;
    if input.get(at) == Some(&b',') {
        at = scan_fields(input, at + 1, rules, seen)?;
    }
    scan_end(input, at, rules, seen)
}

/// Scans the tags from the offset after the measurement; returns the offset after them.
#[inline]
fn scan_tags(input: &[u8], mut at: usize, tags: &mut Keys) -> Result<usize, Stop> {
    tags.clear();
    while input.get(at) == Some(&b',') {
        let key = at + 1;
        let key_end = token::<KEY_END>(input, key)?;
        if key_end == key {
            return Err((at_control(input, key, Refusal::MissingTagKey), key_end));
        }
        if input.get(key_end) != Some(&b'=') {
            return Err((at_control(input, key_end, Refusal::InvalidTagValue), key_end));
        }
        if matches!(&input[key..key_end], b"time" | b"_field" | b"_measurement") {
            return Err((Refusal::ReservedTag, key_end));
        }
        match tags.add(input, key, key_end) {
            Added::New => {}
            Added::Twice => return Err((Refusal::DuplicateTag, key_end)),
            Added::TooMany => return Err((Refusal::TooManyTags, key_end)),
        }
        let value = key_end + 1;
        at = token::<KEY_END>(input, value)?;
        if at == value || input.get(at) == Some(&b'=') {
            return Err((at_control(input, at, Refusal::InvalidTagValue), at));
        }
    }
    if tags.count() == TAGS_THAT_PANIC {
        return Err((Refusal::TooManyTags, at));
    }
    Ok(at)
}

/// Scans the fields from the first field's key; returns the offset after them.
#[inline]
fn scan_fields(input: &[u8], mut at: usize, rules: &Rules, seen: &mut Seen) -> Result<usize, Stop> {
    loop {
        let key_end = token::<KEY_END>(input, at)?;
        if key_end == at {
            return Err((at_control(input, at, Refusal::MissingField), at));
        }
        if input.get(key_end) != Some(&b'=') {
            return Err((at_control(input, key_end, Refusal::InvalidValue), key_end));
        }
        seen.is_stored |= &input[at..key_end] != b"time";
        seen.longest_field_key = seen.longest_field_key.max(key_end - at);
        at = scan_value(input, key_end + 1, rules, seen)?;
        if input.get(at) != Some(&b',') {
            return Ok(at);
        }
        at += 1;
    }
}

/// Scans one field's value. Returns the offset after it, which is a comma, a space or the end of
/// the line.
#[inline]
fn scan_value(input: &[u8], at: usize, rules: &Rules, seen: &mut Seen) -> Result<usize, Stop> {
    let first = input.get(at).copied().unwrap_or(b'\n');
    let (end, otherwise) = match first {
        b'0'..=b'9' | b'-' | b'.' => match number::skip(input, at) {
            Err((Refusal::UnsignedInteger, suffix)) if rules.unsigned != Unsigned::Refuse => {
                seen.has_unsigned = true;
                (number::skip_unsigned(input, at, suffix)?, Refusal::InvalidValue)
            }
            skipped => (skipped?, Refusal::InvalidValue),
        },
        b'"' => {
            let end = find_quote(input, at + 1).map_err(|_| (Refusal::UnterminatedString, at))?;
            (end, Refusal::TrailingText)
        }
        _ => (skip_boolean(input, at), Refusal::InvalidValue),
    };
    end_value(input, at, end, otherwise)
}

/// Checks that a value from `at` ends at `end`.
///
/// Text right after a string that spans a line feed shows that the closing quote is another line's
/// opening quote, and that this string was never closed. The lines inside are then judged on their
/// own.
#[inline]
fn end_value(input: &[u8], at: usize, end: usize, otherwise: Refusal) -> Result<usize, Stop> {
    if end > at && (matches!(input.get(end), None | Some(b',' | b' ')) || ends_at(input, end)) {
        return Ok(end);
    }
    let is_open = input.get(at) == Some(&b'"') && memchr::memchr(b'\n', &input[at..end]).is_some();
    if is_open { Err((Refusal::UnterminatedString, at)) } else { Err((at_control(input, end, otherwise), end)) }
}

/// Returns the offset after the boolean at `at`, or `at` if there is none.
fn skip_boolean(input: &[u8], at: usize) -> usize {
    let rest = &input[at..];
    let names: [&[u8]; 8] = [b"true", b"True", b"TRUE", b"false", b"False", b"FALSE", b"t", b"f"];
    let longest = names.iter().find(|name| rest.starts_with(name)).map(|name| name.len());
    let length = longest.unwrap_or_else(|| usize::from(matches!(rest.first(), Some(b'T' | b'F'))));
    at + length
}

/// Returns the offset after the first unescaped quote from `at` on.
///
/// # Errors
/// No quote was found; the error is the offset before which there is none.
pub(super) fn find_quote(input: &[u8], mut at: usize) -> Result<usize, usize> {
    while let Some(found) = input.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found;
        // A run of escapes needs no search for each.
        loop {
            match input.get(at) {
                Some(b'"') => return Ok(at + 1),
                Some(b'\\') => at += 2,
                _ => break,
            }
        }
    }
    Err(at.max(input.len()))
}

/// Scans what follows the fields: a timestamp or nothing.
#[inline]
fn scan_end(input: &[u8], at: usize, rules: &Rules, seen: &Seen) -> Result<Scanned, Stop> {
    let (end, time) = scan_timestamp(input, at, rules.precision)?;
    if seen.is_stored { Ok(Scanned { end, time }) } else { Err((Refusal::ReservedField, end)) }
}

/// Returns the end of the line and its timestamp, if any.
#[inline]
fn scan_timestamp(input: &[u8], at: usize, precision: Precision) -> Result<(usize, Option<i64>), Stop> {
    if ends_at(input, at) {
        return Ok((at, None));
    }
    let first = skip_spaces(input, at);
    if ends_at(input, first) {
        return Ok((first, None));
    }
    let (after, time) = timestamp::read(input, first, precision)?;
    let end = if ends_at(input, after) { after } else { skip_spaces(input, after) };
    if ends_at(input, end) { Ok((end, Some(time))) } else { Err((at_control(input, end, Refusal::TrailingText), end)) }
}

// === Bytes and tokens ===

/// Bytes that end a measurement (`=` does not).
const MEASUREMENT_END: u8 = COMMA | SPACE | BACKSLASH | CONTROL;
/// Bytes that end a key or a tag value.
const KEY_END: u8 = COMMA | EQUALS | SPACE | BACKSLASH | CONTROL;

/// Returns the offset after the token that starts at `at`: the first unescaped byte of `ENDS`, or
/// the input's length.
#[inline]
fn token<const ENDS: u8>(input: &[u8], mut at: usize) -> Result<usize, Stop> {
    loop {
        at = find(input, at, |byte| CLASS[byte as usize] & ENDS != 0);
        if input.get(at) != Some(&b'\\') {
            return Ok(at);
        }
        at = skip_backslashes::<ENDS>(input, at)?;
    }
}

/// Returns the offset after the run of backslashes at `at` and the byte it escapes.
#[cold]
fn skip_backslashes<const ENDS: u8>(input: &[u8], at: usize) -> Result<usize, Stop> {
    let run = input[at..].iter().take_while(|byte| **byte == b'\\').count();
    let after = at + run;
    match input.get(after).map(|byte| CLASS[*byte as usize] & ENDS) {
        Some(0) => Ok(after),
        Some(CONTROL) | None => Err((at_control(input, after, Refusal::AmbiguousEscape), after)),
        Some(_) if run % 2 == 1 => Ok(after + 1),
        Some(_) => Err((Refusal::AmbiguousEscape, after)),
    }
}

/// Returns `reason`, or `ControlByte` if the byte at `at` is a control byte other than the end of
/// the line.
fn at_control(input: &[u8], at: usize, reason: Refusal) -> Refusal {
    match input.get(at) {
        Some(byte) if CLASS[*byte as usize] == CONTROL && !ends_at(input, at) => Refusal::ControlByte,
        _ => reason,
    }
}

/// Returns whether a line ends at `at`: at the input's end, an LF, or a CR before either.
#[inline]
pub(super) fn ends_at(input: &[u8], at: usize) -> bool {
    match input.get(at) {
        None | Some(b'\n') => true,
        Some(b'\r') => matches!(input.get(at + 1), None | Some(b'\n')),
        Some(_) => false,
    }
}

#[inline]
pub(super) fn skip_spaces(input: &[u8], mut at: usize) -> usize {
    while input.get(at) == Some(&b' ') {
        at += 1;
    }
    at
}

/// Returns the offset after the next line feed from `at` on.
#[inline]
pub(super) fn next_line(input: &[u8], at: usize) -> usize {
    if input.get(at) == Some(&b'\n') {
        return at + 1;
    }
    memchr::memchr(b'\n', &input[at..]).map_or(input.len(), |found| at + found + 1)
}
