//! Netdata's JSON: one object per line, with the parts of a name in separate keys.
//!
//! Netdata before 2.11 does not escape what it writes: a family or unit with a quote makes the line
//! invalid JSON. Keys that are not used must not matter, so such a line is read a second time
//! ([`copy_used`]). In that reading the value of an unused key may be anything: it ends before the
//! next key or the object's end. Used keys are read strictly.
//!
//! A value of `null` stores nothing. Texts without escapes are not copied.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::Refusal;
use super::convert::{Metric, Name, Parts, TagSyntax, Tags};
use super::token::is_blank;

/// The keys of [`Object`].
const USED: [&str; 7] = ["prefix", "hostname", "labels", "chart_name", "name", "value", "timestamp"];
/// Maximum length of a key that ends the unused value before it. Netdata's longest key has 13
/// bytes.
const MAX_KEY_BYTES: usize = 64;

/// One line.
#[derive(Debug, Deserialize)]
pub(super) struct Object<'a> {
    #[serde(borrow, default)]
    prefix: Cow<'a, str>,
    #[serde(borrow, default)]
    hostname: Cow<'a, str>,
    #[serde(borrow, default)]
    labels: Option<&'a RawValue>,
    /// The configured name, or else the id; Graphite's and OpenTSDB's lines have it, too.
    #[serde(borrow)]
    chart_name: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    value: &'a RawValue,
    #[serde(borrow)]
    timestamp: &'a RawValue,
}

impl<'a> Object<'a> {
    /// Parses one line, which has no line feed.
    ///
    /// # Errors
    /// The line is not a JSON object, or not one of Netdata's.
    pub(super) fn parse(line: &'a [u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(line).map_err(|_| Refusal::InvalidJson)
    }

    /// Returns the value; `None` if it is `null`.
    pub(super) fn metric(&self) -> Option<Metric<'_>> {
        let parts = Parts {
            prefix: self.prefix.as_bytes(),
            host: self.hostname.as_bytes(),
            chart: self.chart_name.as_bytes(),
            dimension: self.name.as_bytes(),
        };
        let labels = self.labels.map_or("", RawValue::get);
        (self.value.get() != "null").then_some(Metric {
            name: Name::Parts(parts),
            tags: Tags { text: labels.as_bytes(), syntax: TagSyntax::Json },
            value: self.value.get().as_bytes(),
            time: self.timestamp.get().as_bytes(),
        })
    }
}

/// Copies the used keys and their values from one line to an object that contains no others.
///
/// # Errors
/// The end of a key or a value cannot be determined.
#[cold]
pub(super) fn copy_used(line: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
    copy(line, out).ok_or(Refusal::InvalidJson)
}

fn copy(line: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut rest = after(line, b'{')?;
    let mut separator = b'{';
    loop {
        let (key, value) = entry(rest)?;
        let is_used = USED.iter().any(|used| used.as_bytes() == key);
        let end = if is_used { strict_end(value)? } else { loose_end(value)? };
        if is_used {
            out.extend_from_slice(&[separator, b'"']);
            out.extend_from_slice(key);
            out.extend_from_slice(b"\":");
            out.extend_from_slice(&value[..end]);
            separator = b',';
        }
        rest = &value[end..];
        if is_object_end(rest) {
            out.push(b'}');
            return Some(());
        }
        rest = after(rest, b',')?;
    }
}

/// Returns the key at the beginning of a text, without quotes, and the text from its value on.
fn entry(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = after(text, b'"')?;
    memchr::memchr_iter(b'"', text).find_map(|end| Some((&text[..end], skip_blanks(after(&text[end + 1..], b':')?))))
}

/// Returns where the value at the beginning of a text ends, by JSON's grammar.
fn strict_end(text: &[u8]) -> Option<usize> {
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<IgnoredAny>();
    values.next()?.ok()?;
    Some(values.byte_offset())
}

/// Returns where the value of an unused key ends.
fn loose_end(text: &[u8]) -> Option<usize> {
    match text.first()? {
        b'{' | b'[' => nested_end(text),
        b'"' => memchr::memchr_iter(b'"', text).skip(1).map(|quote| quote + 1).find(|end| is_end(&text[*end..])),
        _ => memchr::memchr2_iter(b',', b'}', text).find(|end| is_end(&text[*end..])),
    }
}

/// Returns where an object or an array ends: after the bracket that balances the first, ignoring
/// brackets in strings.
fn nested_end(text: &[u8]) -> Option<usize> {
    let (mut depth, mut is_string, mut is_escaped) = (0_usize, false, false);
    for (index, byte) in text.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_string => is_escaped = true,
            b'"' => is_string = !is_string,
            b'{' | b'[' if !is_string => depth += 1,
            b'}' | b']' if !is_string => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(index + 1);
        }
    }
    None
}

/// Returns whether the text can follow a value: a comma and a key as Netdata writes them, or the
/// object's end.
fn is_end(text: &[u8]) -> bool {
    let is_key_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.".contains(byte);
    let next_key = after(text, b',').and_then(|next| after(next, b'"'));
    let after_key = next_key.and_then(|key| {
        let end = key.iter().take(MAX_KEY_BYTES + 1).position(|byte| !is_key_byte(byte))?;
        key[end..].strip_prefix(b"\"")
    });
    after_key.is_some_and(|rest| after(rest, b':').is_some()) || is_object_end(text)
}

/// Returns whether only the object's end follows.
fn is_object_end(text: &[u8]) -> bool {
    after(text, b'}').is_some_and(|rest| skip_blanks(rest).is_empty())
}

/// Returns the text after this byte, if only white space precedes the byte.
fn after(text: &[u8], byte: u8) -> Option<&[u8]> {
    skip_blanks(text).strip_prefix(&[byte])
}

fn skip_blanks(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !is_blank(*byte)).unwrap_or(text.len());
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"prefix":"netdata","hostname":"web-01.example","labels":{"role":"web server"},"chart_id":"system.load","chart_name":"system.load","chart_family":"load","chart_context": "system.load","chart_type":"system","units": "load","id":"load1","name":"load1","value":0.5,"timestamp": 1795400726}"#;

    #[test]
    fn a_line_is_taken_apart() {
        let object = Object::parse(LINE.as_bytes()).expect("an object");
        let metric = object.metric().expect("a value");
        let parts = Parts { prefix: b"netdata", host: b"web-01.example", chart: b"system.load", dimension: b"load1" };
        assert_eq!(metric.name, Name::Parts(parts));
        assert_eq!(metric.tags.text, br#"{"role":"web server"}"#);
        assert_eq!((metric.value, metric.time), (&b"0.5"[..], &b"1795400726"[..]));
    }

    #[test]
    fn null_is_nothing_to_store() {
        let object = LINE.replace("0.5", "null");
        assert_eq!(Object::parse(object.as_bytes()).expect("an object").metric(), None);
    }

    /// Returns the copy that a second reading parses.
    fn copied(line: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut out = Vec::new();
        copy_used(line, &mut out).map(|()| out)
    }

    #[test]
    fn the_values_of_unused_keys_may_be_anything() {
        let plain = copied(LINE.as_bytes()).expect("a copy");
        assert_eq!(
            Object::parse(&plain).expect("an object").metric(),
            Object::parse(LINE.as_bytes()).expect("an object").metric()
        );
        for value in [
            &b"\"15\" disks\""[..],
            b"\"C:\\\"",
            b"\"\\x \xff \x01 \0\"",
            b"\"\"\"\"",
            b"\"a\",\"b\"",
            b"\"a,\"",
            b"\"a\"}\"",
            b"\"a\",\"odd key\":\"\"",
            b"\"a\",\"plain\":\"\\x\"",
            b"{\"name\":\"\\x}\",\"value\":[1,2]}",
            b"[\"]\"]",
            b"nan",
            b"1,5",
            b"0x1f } ",
            b"",
            b"'single'",
        ] {
            for unused in [r#""chart_type":"system""#, r#""units": "load""#, r#""id":"load1""#] {
                let key = unused.split_inclusive(':').next().expect("a key").as_bytes();
                let at = memchr::memmem::find(LINE.as_bytes(), unused.as_bytes()).expect("the key");
                let (before, after) = (&LINE.as_bytes()[..at], &LINE.as_bytes()[at + unused.len()..]);
                let line = [before, key, value, after].concat();
                assert_eq!(copied(&line).as_deref(), Ok(&plain[..]), "{}", line.escape_ascii());
                // The same as the object's last key.
                let line = [before, &after[1..after.len() - 1], b" , ", key, value, b" } \r"].concat();
                assert_eq!(copied(&line).as_deref(), Ok(&plain[..]), "{}", line.escape_ascii());
            }
        }
    }

    #[test]
    fn what_is_none_of_netdatas_objects_is_refused() {
        for line in [
            LINE.replace(r#""name":"load1","#, ""),
            LINE.replace(r#""value":0.5,"#, r#""value":0.5.1,"#),
            LINE.replace(r#""value":0.5,"#, ""),
            LINE[..LINE.len() - 1].to_owned(),
            LINE.to_owned() + LINE,
            format!("[{LINE}]"),
            LINE.replace("load1", "\\x"),
            LINE.replace("web server", "15\" disk"),
            // Which of the two values is meant is ambiguous.
            LINE.replace(r#""units": "load""#, r#""units": "\x","value":2"#),
            "{}".to_owned(),
            "{".to_owned(),
            r#"{"name""#.to_owned(),
            r#"{"a":{"#.to_owned(),
            String::new(),
        ] {
            assert_eq!(Object::parse(line.as_bytes()).err(), Some(Refusal::InvalidJson), "{line}");
            let again = copied(line.as_bytes()).and_then(|copy| Object::parse(&copy).map(|_| ()));
            assert_eq!(again.err(), Some(Refusal::InvalidJson), "{line}");
        }
    }
}
