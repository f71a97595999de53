//! JSON that is safe to show on a terminal.
//!
//! Escapes characters that act on a terminal, such as C1 controls and bidirectional controls.
//! Parsing restores them.

use std::io::{self, Write};

use bytes::Bytes;
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use crate::sys::text::is_active;

/// Renders a value as compact JSON.
pub(crate) fn render(value: &impl Serialize) -> Bytes {
    let mut output = Vec::new();
    let written = value.serialize(&mut Serializer::with_formatter(&mut output, Printable));
    written.expect("BUG: the status has no keys but texts, and writing to memory does not fail");
    output.into()
}

/// Formats compact JSON, and escapes active characters that JSON itself need not escape.
struct Printable;

impl Formatter for Printable {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(index) = rest.find(is_active) {
            let (before, from) = rest.split_at(index);
            writer.write_all(before.as_bytes())?;
            let mut chars = from.chars();
            if let Some(active) = chars.next() {
                for unit in active.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_act_are_escaped_and_stay_what_they_were() {
        let hostile = "a\u{9b}31m\u{202e}b\u{2066}\u{1b}[2J\u{7f}\u{e0041}ä😀\"\\\n";
        let value = serde_json::json!({ hostile: [hostile, "plain"], "n": 1.5 });
        let text = String::from_utf8(render(&value).to_vec()).expect("text");
        assert!(!text.contains(is_active), "{text:?}");
        assert!(text.contains("a\\u009b31m\\u202eb\\u2066\\u001b[2J\\u007f\\udb40\\udc41ä😀"), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), value);
    }
}
