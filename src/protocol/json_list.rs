//! JSON's objects in a list, as exporters post them by HTTP: each becomes a line of its own.
//!
//! OpenTSDB's objects (`metric`, `timestamp`, `value`, `tags`) become its telnet commands; any other object stays as it is, for
//! whoever reads Netdata's. What is no object is a line that nobody takes. Bounds: an object as long as a line may be.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The objects of one body, however it is cut.
#[derive(Debug)]
pub struct JsonList {
    most_bytes: usize,
    /// The object, or whatever else, that has begun.
    open: Vec<u8>,
    /// Braces that are open.
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// Whether the object at hand is too long, and skipped to its end.
    is_skipping: bool,
}

/// A point as OpenTSDB's HTTP API takes it.
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
    /// Of a body whose objects have at most so many bytes.
    pub fn new(most_bytes: usize) -> Self {
        Self { most_bytes, open: Vec::new(), depth: 0, in_string: false, is_escaped: false, is_skipping: false }
    }

    /// Whether a body that begins so is a list of JSON, or one object.
    pub fn begins_with(bytes: &[u8]) -> Option<bool> {
        bytes.trim_ascii_start().first().map(|first| matches!(first, b'[' | b'{'))
    }

    /// Takes what came; appends the lines that it made whole.
    pub fn take(&mut self, bytes: &[u8], lines: &mut Vec<u8>) {
        for byte in bytes {
            self.byte(*byte, lines);
        }
    }

    /// The body has ended; what has begun and not ended is a line that nobody takes.
    pub fn finish(&mut self, lines: &mut Vec<u8>) {
        self.end(lines);
        self.depth = 0;
    }

    fn byte(&mut self, byte: u8, lines: &mut Vec<u8>) {
        if self.depth == 0 && matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b',' | b'[' | b']') {
            return self.end(lines);
        }
        if self.open.len() < self.most_bytes {
            // A line feed between words is a space; in a string it is no JSON either way.
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

/// OpenTSDB's telnet command for an object of its HTTP API; none if it is none, or has words with blanks in them.
fn command_of(object: &[u8]) -> Option<String> {
    let Point { metric, timestamp, value, tags } = serde_json::from_slice(object).ok()?;
    let mut words = vec!["put".to_owned(), metric.into_owned(), plain(timestamp), plain(value)];
    words.extend(tags.into_iter().map(|(key, value)| format!("{key}={value}")));
    let is_word = |word: &String| !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c.is_control());
    words.iter().all(is_word).then(|| words.join(" "))
}

/// A number as it stands, or a number in a string.
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
            // No telnet command has blanks in its words: nobody takes it as it is.
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
