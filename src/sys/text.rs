//! Makes external text safe for a terminal, a log or a page: truncates it, and escapes active
//! characters.
//!
//! A terminal interprets control characters, in C1's form (U+009B) as in ESC's. Bidirectional
//! controls and invisible characters make a text look like another one. None of them is legitimate
//! in a name, an answer or a version.

use std::borrow::Cow;
use std::fmt::Write;

/// Returns whether a character has an effect other than being displayed.
pub fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Escapes each active character: `\u{1b}`, `\n`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_active(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// Escapes active characters in lines of possibly invalid text: line feeds and tabs stay, bytes
/// that are not UTF-8 become `\xff`.
pub fn printable_lines(bytes: &[u8]) -> Cow<'_, [u8]> {
    let is_harmless = |c: char| matches!(c, '\n' | '\t') || !is_active(c);
    if std::str::from_utf8(bytes).is_ok_and(|text| text.chars().all(is_harmless)) {
        return Cow::Borrowed(bytes);
    }
    let mut shown = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_harmless(c) { shown.push(c) } else { shown.extend(c.escape_default()) }
        }
        for byte in chunk.invalid() {
            write!(shown, "\\x{byte:02x}").expect("BUG: writing to memory does not fail");
        }
    }
    Cow::Owned(shown.into_bytes())
}

/// Appends a line, escaping active characters: names, answers and versions may come from strangers.
pub fn write_line(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.push_str(&printable(&line.to_string()));
    text.push('\n');
}

/// Returns the beginning of a text, at most this many bytes, cut between characters.
pub fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_act_are_escaped_and_no_others() {
        for (text, shown) in [
            ("", ""),
            ("InfluxDB 1.8.10 ä € 中 😀 \\", "InfluxDB 1.8.10 ä € 中 😀 \\"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("a\u{9b}31m", "a\\u{9b}31m"),
            ("a\nb\rc\td\u{7f}", "a\\nb\\rc\\td\\u{7f}"),
            ("user\u{202e}nimda", "user\\u{202e}nimda"),
            ("\u{2066}\u{200b}\u{feff}\u{e0041}", "\\u{2066}\\u{200b}\\u{feff}\\u{e0041}"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn lines_stay_lines_and_bytes_that_are_no_text_are_shown() {
        for (bytes, shown) in [
            (&b"m v=1 1\nm\ts=\"x\" 2\n"[..], &b"m v=1 1\nm\ts=\"x\" 2\n"[..]),
            (b"m s=\"\x1b[2J\" 1\n", b"m s=\"\\u{1b}[2J\" 1\n"),
            (b"m s=\"\xc2\x9b\x9b\xff\" 1\n", b"m s=\"\\u{9b}\\x9b\\xff\" 1\n"),
            ("ä\r\n".as_bytes(), "ä\\r\n".as_bytes()),
        ] {
            assert_eq!(printable_lines(bytes), shown);
        }
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!((cut("äöü", 3), cut("äöü", 4), cut("abc", 500), cut("ä", 0)), ("ä", "äö", "abc", ""));
    }
}
