//! Tags of other formats, written as line protocol's.
//!
//! * A tag without a value is left out: to InfluxDB that is the same as none.
//! * A word without a key or without `=` is not a tag: it is ignored and counted, whatever bytes it
//!   contains. So is a label whose value is not text. A tag that has both distinguishes series: if
//!   it cannot be written, the line is refused.
//! * Of several tags with one key the first wins, so that a label cannot replace the host that a
//!   sender names.
//! * A key that InfluxDB reserves gets an underscore appended.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::super::Refusal;
use super::super::keys::{self, Added};
use super::super::line::TAGS_THAT_PANIC;
use super::super::token::is_blank;
use super::escape;
use super::metric::{TagSyntax, Tags};

/// The tags of a line in addition to those from its name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given<'a> {
    /// The host, if the format keeps it apart; empty otherwise.
    pub(super) host: &'a [u8],
    /// The sender's tags.
    pub(super) tags: Tags<'a>,
    /// Default tags, for lines that lack the key.
    pub(super) defaults: &'a [(String, String)],
}

/// The offsets of one line's tags in the text that they are written to.
#[derive(Debug, Default)]
pub(super) struct Keys {
    known: keys::Keys,
    /// Words that are not tags.
    ignored: u64,
    /// Buffer for a joined value.
    joined: Vec<u8>,
}

impl Keys {
    /// Removes all keys, for a new line.
    pub(super) fn clear(&mut self) {
        self.known.clear();
        self.ignored = 0;
    }

    /// Returns the number of the line's words that are not tags.
    pub(super) fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Appends one tag.
    ///
    /// # Errors
    /// The tag cannot be written, or there are too many.
    pub(super) fn push(&mut self, out: &mut Vec<u8>, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        if key.is_empty() {
            self.ignored += 1;
            return Ok(());
        }
        if value.is_empty() {
            return Ok(());
        }
        let start = out.len() + 1;
        out.push(b',');
        escape::key(out, key)?;
        if matches!(&out[start..], b"time" | b"_field" | b"_measurement") {
            out.push(b'_');
        }
        match self.known.add(out, start, out.len()) {
            Added::New => {
                out.push(b'=');
                escape::key(out, value)
            }
            Added::Twice => {
                out.truncate(start - 1);
                Ok(())
            }
            Added::TooMany => Err(Refusal::TooManyTags),
        }
    }

    /// Appends one tag whose value is the non-empty ones of `values`, joined by the separator.
    ///
    /// # Errors
    /// As for [`Self::push`].
    pub(super) fn push_joined<'a>(
        &mut self,
        out: &mut Vec<u8>,
        key: &[u8],
        values: impl Iterator<Item = &'a [u8]>,
        separator: &str,
    ) -> Result<(), Refusal> {
        let mut joined = std::mem::take(&mut self.joined);
        joined.clear();
        for value in values.filter(|value| !value.is_empty()) {
            if !joined.is_empty() {
                joined.extend_from_slice(separator.as_bytes());
            }
            joined.extend_from_slice(value);
        }
        let pushed = self.push(out, key, &joined);
        self.joined = joined;
        pushed
    }

    /// Appends the last tags of a line.
    ///
    /// # Errors
    /// A tag cannot be written, or there are as many as InfluxDB 1.6 panics at.
    pub(super) fn push_given(&mut self, out: &mut Vec<u8>, given: Given<'_>) -> Result<(), Refusal> {
        self.push(out, b"host", given.host)?;
        self.push_after_host(out, given)
    }

    fn push_after_host(&mut self, out: &mut Vec<u8>, given: Given<'_>) -> Result<(), Refusal> {
        let text = given.tags.text;
        match given.tags.syntax {
            _ if text.is_empty() => {}
            TagSyntax::Semicolons => self.push_words(out, text.split(|byte| *byte == b';'))?,
            TagSyntax::Blanks => self.push_words(out, text.split(|byte| is_blank(*byte)))?,
            TagSyntax::Json => self.push_labels(out, text)?,
        }
        for (key, value) in given.defaults {
            self.push(out, key.as_bytes(), value.as_bytes())?;
        }
        if self.known.count() == TAGS_THAT_PANIC { Err(Refusal::TooManyTags) } else { Ok(()) }
    }

    fn push_words<'a>(&mut self, out: &mut Vec<u8>, words: impl Iterator<Item = &'a [u8]>) -> Result<(), Refusal> {
        for word in words.filter(|word| !word.is_empty()) {
            match word.iter().position(|byte| *byte == b'=') {
                Some(equals) => self.push(out, &word[..equals], &word[equals + 1..])?,
                None => self.ignored += 1,
            }
        }
        Ok(())
    }

    fn push_labels(&mut self, out: &mut Vec<u8>, text: &[u8]) -> Result<(), Refusal> {
        if text.first() != Some(&b'{') {
            self.ignored += 1;
            return Ok(());
        }
        let mut labels = Labels { keys: self, out, refusal: None };
        let read = serde_json::Deserializer::from_slice(text).deserialize_map(&mut labels);
        match (labels.refusal, read) {
            (Some(refusal), _) => Err(refusal),
            (None, Err(_)) => Err(Refusal::InvalidJson),
            (None, Ok(())) => Ok(()),
        }
    }
}

/// Writes the entries of a JSON object as tags.
struct Labels<'a> {
    keys: &'a mut Keys,
    out: &'a mut Vec<u8>,
    refusal: Option<Refusal>,
}

impl<'de> Visitor<'de> for &mut Labels<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("labels")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, value)) = map.next_entry::<Text<'_>, &RawValue>()? {
            if !value.get().starts_with('"') {
                self.keys.ignored += 1;
                continue;
            }
            let value: Text<'_> = serde_json::from_str(value.get()).map_err(A::Error::custom)?;
            if self.refusal.is_none() {
                self.refusal = self.keys.push(self.out, key.0.as_bytes(), value.0.as_bytes()).err();
            }
        }
        Ok(())
    }
}

/// Text that is copied only if it contains escapes.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The last line's tags and their written form: most lines of a sender have the same ones.
#[derive(Debug, Default)]
pub(super) struct LastTags {
    syntax: Option<TagSyntax>,
    /// Whether a host was written before them.
    has_host: bool,
    text: Vec<u8>,
    written: Vec<u8>,
    /// Words of the text that are not tags.
    ignored: u64,
    keys: Keys,
}

impl LastTags {
    /// Returns the tags' text as received; empty if it was in another syntax.
    #[inline]
    pub(super) fn text_as(&self, syntax: TagSyntax) -> &[u8] {
        if self.syntax == Some(syntax) { &self.text } else { &[] }
    }

    /// Returns whether these are the last tags. (Two empty texts are not passed to `memcmp`: its
    /// masked loads from unmapped memory cost a hundred nanoseconds each.)
    #[inline]
    pub(super) fn are(&self, tags: Tags<'_>) -> bool {
        let is_same = if tags.text.is_empty() { self.text.is_empty() } else { self.text == tags.text };
        is_same && self.syntax == Some(tags.syntax)
    }

    /// Returns the number of the last line's words that are not tags.
    #[inline]
    pub(super) fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Writes the host's tag, if there is one, and the others. `defaults` must be the same each
    /// time.
    ///
    /// # Errors
    /// A tag cannot be written.
    pub(super) fn write(&mut self, out: &mut Vec<u8>, given: Given<'_>) -> Result<(), Refusal> {
        let Given { host, tags, .. } = given;
        let has_host = !host.is_empty();
        if self.are(tags) && self.has_host == has_host {
            if has_host {
                self.keys.clear();
                self.keys.push(out, b"host", host)?;
            }
            out.extend_from_slice(&self.written);
            return Ok(());
        }
        self.syntax = None;
        self.keys.clear();
        self.keys.push(out, b"host", host)?;
        let end_of_host = out.len();
        self.keys.push_after_host(out, given)?;
        self.ignored = self.keys.ignored();
        self.text.clear();
        self.text.extend_from_slice(tags.text);
        self.written.clear();
        self.written.extend_from_slice(&out[end_of_host..]);
        (self.syntax, self.has_host) = (Some(tags.syntax), has_host);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(last: &mut LastTags, host: &str, syntax: TagSyntax, text: &str) -> Result<String, Refusal> {
        let mut out = Vec::new();
        let tags = Tags { text: text.as_bytes(), syntax };
        last.write(&mut out, Given { host: host.as_bytes(), tags, defaults: &[] })?;
        Ok(String::from_utf8(out).expect("UTF-8"))
    }

    #[test]
    fn tags_of_each_syntax_are_written_alike() {
        use TagSyntax::{Blanks, Json, Semicolons};
        for (syntax, text) in [
            (Semicolons, "dc=eu;role=web=1;;none="),
            (Blanks, "dc=eu  role=web=1\tnone="),
            (Json, r#"{"dc":"eu","role":"web=1","none":""}"#),
        ] {
            let mut last = LastTags::default();
            for host in ["", "h", "h", "i j", ""] {
                let expected =
                    if host.is_empty() { String::new() } else { format!(",host={}", host.replace(' ', "\\ ")) };
                let expected = expected + ",dc=eu,role=web\\=1";
                assert_eq!(write(&mut last, host, syntax, text), Ok(expected), "{text}");
            }
        }
        assert_eq!(
            write(&mut LastTags::default(), "", Json, r#"{"a\"":"ä\u0020b,c"}"#),
            Ok(",a\"=ä\\ b\\,c".to_owned())
        );
        assert_eq!(write(&mut LastTags::default(), "", Json, ""), Ok(String::new()));
    }

    #[test]
    fn the_first_of_two_tags_counts_and_reserved_keys_are_changed() {
        let write = |host, text| write(&mut LastTags::default(), host, TagSyntax::Semicolons, text);
        assert_eq!(write("h", "a=1;host=label;a=2;ab=3"), Ok(",host=h,a=1,ab=3".to_owned()));
        assert_eq!(write("", "host=label"), Ok(",host=label".to_owned()));
        assert_eq!(write("", "time=1;_field=2;_measurement=3"), Ok(",time_=1,_field_=2,_measurement_=3".to_owned()));
    }

    #[test]
    fn what_cannot_be_written_is_refused_every_time() {
        let mut last = LastTags::default();
        let many = |count: usize| (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(";");
        for _ in 0..2 {
            let mut write = |text: &str| write(&mut last, "", TagSyntax::Semicolons, text).map(|_| ());
            assert_eq!(write("a=b\\"), Err(Refusal::AmbiguousEscape));
            assert_eq!(write("a=\x01"), Err(Refusal::ControlByte));
            assert_eq!(write(&many(99)), Ok(()));
            assert_eq!(write(&many(100)), Err(Refusal::TooManyTags));
            assert_eq!(write(&many(256)), Ok(()));
            assert_eq!(write(&many(257)), Err(Refusal::TooManyTags));
        }
        let mut json = |text: &str| write(&mut last, "", TagSyntax::Json, text).map(|_| ());
        assert_eq!(json(r#"{"a":"\ud800"}"#), Err(Refusal::InvalidJson));
        assert_eq!(json(r#"{"a":"b}"#), Err(Refusal::InvalidJson));
        assert_eq!(json(r#"{"a":"\u0001"}"#), Err(Refusal::ControlByte));
    }

    #[test]
    fn what_is_no_tag_is_ignored_and_counted_every_time() {
        use TagSyntax::{Blanks, Json, Semicolons};
        for (syntax, text, written, ignored) in [
            (Semicolons, "a", "", 1),
            (Semicolons, "=1;b;a=1;=", ",a=1", 3),
            (Semicolons, "\x01;=\x01\\;a\\;b=1;;c=", ",b=1", 3),
            (Blanks, "host=h nico", ",host=h", 1),
            (Blanks, "a = b =c", "", 4),
            (Json, r#"{"":"x","a":1,"b":null,"c":[{"d":"e"}],"f":"g","h":""}"#, ",f=g", 4),
            (Json, "[1]", "", 1),
            (Json, "\"a\"", "", 1),
        ] {
            let mut last = LastTags::default();
            for _ in 0..2 {
                assert_eq!(write(&mut last, "", syntax, text), Ok(written.to_owned()), "{text}");
                assert_eq!(last.ignored(), ignored, "{text}");
            }
            assert_eq!(write(&mut last, "", syntax, ""), Ok(String::new()));
            assert_eq!(last.ignored(), 0);
        }
    }

    #[test]
    fn default_tags_give_way_to_the_lines_own() {
        let defaults = [("dc", "eu"), ("host", "relay")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut last = LastTags::default();
        for (host, text, expected) in [
            ("", "", ",dc=eu,host=relay"),
            ("h", "", ",host=h,dc=eu"),
            ("", "dc=us;a=b", ",dc=us,a=b,host=relay"),
            ("", "dc=us;a=b", ",dc=us,a=b,host=relay"),
            ("i", "dc=us;a=b", ",host=i,dc=us,a=b"),
            ("", "dc=", ",dc=eu,host=relay"),
        ] {
            let mut out = Vec::new();
            let tags = Tags { text: text.as_bytes(), syntax: TagSyntax::Semicolons };
            last.write(&mut out, Given { host: host.as_bytes(), tags, defaults: &defaults }).expect("written");
            assert_eq!(String::from_utf8_lossy(&out), expected, "{host} {text}");
        }
    }
}
