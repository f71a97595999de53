//! Lists of JSON objects, as exporters post them by HTTP: each object becomes a line.
//!
//! Owns: splitting the list. OpenTSDB's objects (`metric`, `timestamp`, `value`, `tags`) become its
//! telnet commands; any other object is passed on unchanged, for the parser of Netdata's. Anything
//! but an object becomes a line that no parser accepts. Never does: validating. Bounds: an object
//! may be as long as a line.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// Splits one body into objects, however it is received.
#[derive(Debug)]
pub struct JsonList {
    max_bytes: usize,
    /// The bytes of the current object or other value.
    open: Vec<u8>,
    /// Number of open braces.
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// Whether the current object is too long and is skipped to its end.
    is_skipping: bool,
}

/// A point as OpenTSDB's HTTP API accepts it.
#[derive(Deserialize)]
struct Point<'a> {
    #[serde(borrow)]
    metric: Cow<'a, str>,
    #[serde(borrow)]
    timestamp: &'a RawValue,
    #[serde(borrow)]
    value: &'a RawValue,
    #[serde(borrow, default)]
    tags: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
}

impl JsonList {
    /// Creates a splitter for a body whose objects have at most `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, open: Vec::new(), depth: 0, in_string: false, is_escaped: false, is_skipping: false }
    }

    /// Returns whether a body that begins with `bytes` is a list of JSON or one object; `None` if
    /// that is still open.
    pub fn begins_with(bytes: &[u8]) -> Option<bool> {
        bytes.trim_ascii_start().first().map(|first| matches!(first, b'[' | b'{'))
    }

    /// Processes received bytes; appends the lines that they complete.
    pub fn take(&mut self, bytes: &[u8], lines: &mut Vec<u8>) {
        for byte in bytes {
            self.byte(*byte, lines);
        }
    }

    /// Ends the body. An unfinished object becomes a line that no parser accepts.
    pub fn finish(&mut self, lines: &mut Vec<u8>) {
        self.end(lines);
        self.depth = 0;
    }

    fn byte(&mut self, byte: u8, lines: &mut Vec<u8>) {
        if self.depth == 0 && matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b',' | b'[' | b']') {
            return self.end(lines);
        }
        if self.open.len() < self.max_bytes {
            // A line feed between words is equivalent to a space; in a string it is invalid JSON
            // anyway.
            self.open.push(if byte == b'\n' { b' ' } else { byte });
        } else {
            self.is_skipping = true;
        }
        if self.in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => self.in_string = self.depth > 0,
            b'{' => self.depth += 1,
            b'}' if self.depth > 0 => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.end(lines);
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, lines: &mut Vec<u8>) {
        (self.in_string, self.is_escaped) = (false, false);
        let is_skipping = std::mem::take(&mut self.is_skipping);
        if self.open.is_empty() {
            return;
        }
        match command_of(&self.open).filter(|_| !is_skipping) {
            Some(command) => lines.extend_from_slice(command.as_bytes()),
            None => lines.extend_from_slice(&self.open),
        }
        lines.push(b'\n');
        self.open.clear();
    }
}

/// Returns OpenTSDB's telnet command for an object of its HTTP API. `None` if it is another object,
/// or a word contains white space.
fn command_of(object: &[u8]) -> Option<String> {
    let Point { metric, timestamp, value, tags } = serde_json::from_slice(object).ok()?;
    let mut words = vec!["put".to_owned(), metric.into_owned(), plain(timestamp), plain(value)];
    words.extend(tags.into_iter().map(|(key, value)| format!("{key}={value}")));
    let is_word = |word: &String| !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c.is_control());
    words.iter().all(is_word).then(|| words.join(" "))
}

/// Returns the text of a number, with or without quotes around it.
fn plain(value: &RawValue) -> String {
    value.get().trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines<'a>(pieces: impl IntoIterator<Item = &'a str>) -> String {
        let (mut list, mut lines) = (JsonList::new(200), Vec::new());
        for piece in pieces {
            list.take(piece.as_bytes(), &mut lines);
        }
        list.finish(&mut lines);
        String::from_utf8(lines).expect("text")
    }

    #[test]
    fn each_object_is_a_line_however_the_body_is_cut() {
        for (body, expected) in [
            (
                "[\n{\"metric\":\"a.b\",\"timestamp\":1795400726,\"value\":85.5,\"tags\":{\"host\":\"x\",\"b\":\"y\"}},\n{\"metric\":\"c\",\"timestamp\":\"1\",\"value\":\"2\"}\n]\n",
                "put a.b 1795400726 85.5 b=y host=x\nput c 1 2\n",
            ),
            ("{\"hostname\":\"a}b\\\"{\",\"value\":1}", "{\"hostname\":\"a}b\\\"{\",\"value\":1}\n"),
            ("[{\"x\":{\"y\":[1,2]}},{\n\"z\":1}]", "{\"x\":{\"y\":[1,2]}}\n{ \"z\":1}\n"),
            ("[\n\n]\n", ""),
            ("nonsense, [1]", "nonsense\n1\n"),
            ("[{\"open\":1", "{\"open\":1\n"),
            // Telnet commands cannot contain spaces in words: no parser accepts the unchanged
            // object.
            ("{\"metric\":\"a b\",\"timestamp\":1,\"value\":2}", "{\"metric\":\"a b\",\"timestamp\":1,\"value\":2}\n"),
        ] {
            assert_eq!(lines([body]), expected, "{body}");
            for cut in 0..body.len() {
                let (first, rest) = body.split_at(cut);
                assert_eq!(lines([first, rest]), expected, "{body} at {cut}");
            }
        }
    }

    #[test]
    fn an_object_that_is_too_long_costs_itself() {
        let long = format!(
            "[{{\"metric\":\"{}\",\"timestamp\":1,\"value\":2}},{{\"metric\":\"b\",\"timestamp\":1,\"value\":2}}]",
            "x".repeat(300)
        );
        let lines = lines([&*long]);
        assert!(lines.len() < 250 && lines.ends_with("\nput b 1 2\n"), "{lines}");
    }

    #[test]
    fn a_body_tells_what_it_is() {
        for (body, expected) in
            [("", None), (" \n", None), (" [", Some(true)), ("{", Some(true)), ("a.b 1 2", Some(false))]
        {
            assert_eq!(JsonList::begins_with(body.as_bytes()), expected, "{body:?}");
        }
    }
}
