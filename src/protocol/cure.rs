//! What a refused line looks like, and how to fix its sender: for the log and for people.
//!
//! Guesses from the line alone. Never decides anything.

use crate::protocol::{Refusal, Refused};

/// Returns what to do about a refused line; `None` if the reason is sufficient.
pub fn cure(refused: Refused<'_>) -> Option<&'static str> {
    let Refused { reason, bytes } = refused;
    if is_http(bytes) {
        return Some("this is HTTP: let it write to an [[http]] listener");
    }
    if bytes.starts_with(&[0x16, 0x03]) {
        return Some("this is TLS: set tls_cert_file in the listener, or let it send plain text");
    }
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return Some("this is compressed by gzip: only [[http]] takes that");
    }
    if bytes.trim_ascii_start().starts_with(b"{") {
        return Some("this is JSON: Netdata's is taken with format = \"netdata-json\"");
    }
    match reason {
        Refusal::TimestampOutOfRange => Some("the timestamp is of a smaller unit than the listener's precision"),
        _ if has_unescaped_space(bytes) => Some(
            "a space in a measurement or a tag is to be written as \"\\ \"; text in a field stands in double quotes",
        ),
        _ => None,
    }
}

fn is_http(bytes: &[u8]) -> bool {
    const METHODS: [&[u8]; 7] = [b"GET /", b"POST /", b"PUT /", b"HEAD /", b"OPTIONS ", b"DELETE /", b"PRI * HTTP/2"];
    METHODS.iter().any(|method| bytes.starts_with(method))
}

/// Returns whether fields follow where only a timestamp may: an unescaped space before them started
/// the fields too early.
fn has_unescaped_space(bytes: &[u8]) -> bool {
    let (mut token, mut is_quoted, mut is_escaped) = (0, false, false);
    for byte in bytes.trim_ascii() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b' ' if !is_quoted => token += 1,
            b'=' if !is_quoted && token >= 2 => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_line_looks_like_tells_its_cure() {
        for (line, expected) in [
            (&b"GET /write HTTP/1.1"[..], "this is HTTP"),
            (b"POST /api/put HTTP/1.1", "this is HTTP"),
            (b"\x16\x03\x01\x02\x00", "this is TLS"),
            (b"\x1f\x8b\x08", "gzip"),
            (b" {\"a\":1}", "this is JSON"),
            (b"cpu,host=my host v=1 5", "a space in"),
            (b"cpu usage,host=a v=1", "a space in"),
            (b"cpu,host=a\\ b v=\"x y=z\" 5 6", ""),
            (b"cpu,host=a v=\"a b c=d\"", ""),
            (b"cpu usage 1 2 3", ""),
        ] {
            let hint = cure(Refused { reason: Refusal::WrongFormat, bytes: line }).unwrap_or_default();
            assert!(hint.starts_with(expected) || (expected == "gzip" && hint.contains(expected)), "{line:?}: {hint}");
            assert_eq!(hint.is_empty(), expected.is_empty(), "{line:?}: {hint}");
        }
        let early = Refused { reason: Refusal::TimestampOutOfRange, bytes: b"m v=1 1795400726000000000" };
        assert!(cure(early).is_some_and(|cure| cure.contains("unit")));
    }
}
