//! One template: the role of each part of a dotted name.
//!
//! A template's parts, from left to right, are `measurement`, `field`, the name of a tag, or
//! nothing (the part is skipped). Several parts of the measurement, of the field or of one tag are
//! joined by the separator. One part may be `measurement*` or `field*`: it matches all parts of the
//! name that the others leave, so that the parts after it are counted from the end of the name.
//! InfluxDB ignores the parts after a starred one, and Telegraf uses parts of the name twice: both
//! count them from the left.

use super::escape;
use super::mapping::InvalidMapping;

/// Maximum number of parts of a template or a filter; it bounds the depth of the search.
pub(super) const MAX_PARTS: usize = 64;

/// The role of each part of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    parts: Vec<Part>,
    /// Index of the starred part, which matches all parts that the others leave.
    greedy: Option<usize>,
    /// Tags with their fixed values; an empty value is none.
    tags: Vec<(String, String)>,
}

/// The role of a part of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Skipped,
    Measurement,
    Field,
    /// The index in [`Template::tags`].
    Tag(usize),
}

impl Template {
    /// Parses a template and its fixed tags `key=value,…`.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub(super) fn parse(text: &str, fixed: &str) -> Result<Self, InvalidMapping> {
        let mut template = Self { parts: Vec::new(), greedy: None, tags: Vec::new() };
        for tag in fixed.split(',').filter(|tag| !tag.is_empty()) {
            match tag.split_once('=') {
                Some((key, _)) if template.tags.iter().any(|(known, _)| known == key) => {
                    return Err(InvalidMapping::new(format!("the tag {key:?} is there twice")));
                }
                Some((key, value)) if is_name(key) && is_name(value) => {
                    template.tags.push((key.to_owned(), value.to_owned()));
                }
                _ => return Err(InvalidMapping::new(format!("{tag:?} is no tag: write key=value"))),
            }
        }
        for name in text.split('.') {
            let part = match name {
                "" => Part::Skipped,
                "measurement" | "measurement*" => Part::Measurement,
                "field" | "field*" => Part::Field,
                tag if !is_name(tag) => return Err(InvalidMapping::new(format!("{tag:?} is no name of a tag"))),
                tag => Part::Tag(template.tag_index(tag)),
            };
            if name.ends_with('*') && template.greedy.replace(template.parts.len()).is_some() {
                return Err(InvalidMapping::new("one part may have a *: it takes what the others leave"));
            }
            template.parts.push(part);
        }
        if !template.parts.contains(&Part::Measurement) {
            return Err(InvalidMapping::new("a part must be the measurement"));
        }
        if template.parts.len() > MAX_PARTS {
            return Err(InvalidMapping::new(format!("it has more than {MAX_PARTS} parts")));
        }
        Ok(template)
    }

    fn tag_index(&mut self, tag: &str) -> usize {
        let known = self.tags.iter().position(|(key, _)| key == tag);
        known.unwrap_or_else(|| {
            self.tags.push((tag.to_owned(), String::new()));
            self.tags.len() - 1
        })
    }

    /// Returns the number of parts.
    pub(super) fn len(&self) -> usize {
        self.parts.len()
    }

    /// Returns the tags, each with the values to be joined; some may be empty.
    pub(super) fn tags<'a>(
        &'a self,
        name: &'a [u8],
    ) -> impl Iterator<Item = (&'a str, impl Iterator<Item = &'a [u8]>)> {
        self.tags.iter().enumerate().map(move |(index, (key, fixed))| {
            let values = std::iter::once(fixed.as_bytes()).chain(self.texts(Part::Tag(index), name));
            (key.as_str(), values)
        })
    }

    /// Returns the first part of a name that is this tag.
    pub(super) fn first<'a>(&self, tag: &str, name: &'a [u8]) -> Option<&'a [u8]> {
        let index = self.tags.iter().position(|(key, _)| key == tag)?;
        self.texts(Part::Tag(index), name).next()
    }

    /// Returns the parts of a name with this role.
    pub(super) fn texts<'a>(&self, wanted: Part, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let surplus = if self.greedy.is_some() { parts(name).count().saturating_sub(self.parts.len()) } else { 0 };
        let part_at = move |index: usize| {
            let own = match self.greedy {
                Some(greedy) if index > greedy => index - surplus.min(index - greedy),
                _ => index,
            };
            self.parts.get(own).copied()
        };
        parts(name).enumerate().filter(move |(index, _)| part_at(*index) == Some(wanted)).map(|(_, text)| text)
    }
}

/// Returns the parts of a name.
pub(super) fn parts(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    name.split(|byte| *byte == b'.')
}

/// Returns whether a template's tag may have this key or value.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains('*') && escape::key(&mut Vec::new(), text.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns measurement, tags and field, with a dot between several parts.
    fn apply(template: &str, name: &str) -> [String; 3] {
        let (text, fixed) = template.split_once(' ').unwrap_or((template, ""));
        let (template, name) = (Template::parse(text, fixed).expect("a template"), name.as_bytes());
        let joined = |texts: Vec<&[u8]>| String::from_utf8(texts.join(&b'.')).expect("UTF-8");
        let tags = template.tags(name).map(|(key, values)| {
            let values = values.filter(|value| !value.is_empty()).collect();
            format!("{key}={}", joined(values))
        });
        let tags = tags.collect::<Vec<_>>().join(",");
        let texts = |part: Part| joined(template.texts(part, name).collect());
        [texts(Part::Measurement), tags, texts(Part::Field)]
    }

    #[test]
    fn parts_become_measurement_tags_and_field() {
        for (template, name, expected) in [
            ("measurement*", "a.b.c", ["a.b.c", "", ""]),
            ("measurement*", ".a..b.", [".a..b.", "", ""]),
            (".host.measurement*", "servers.web.cpu.load", ["cpu.load", "host=web", ""]),
            (".host.measurement.field*", "servers.web.cpu.load.one", ["cpu", "host=web", "load.one"]),
            ("measurement.host.measurement.field", "a.web.b.f", ["a.b", "host=web", "f"]),
            ("measurement.field.host.field", "a.f.web.g", ["a", "host=web", "f.g"]),
            ("measurement.field.field*", "a.f.g.h.i", ["a", "", "f.g.h.i"]),
            (".host.host.measurement*", "x.web.example.cpu", ["cpu", "host=web.example", ""]),
            (".host.measurement* region=eu,zone=1", "x.web.cpu", ["cpu", "region=eu,zone=1,host=web", ""]),
            (".host.region.measurement* region=eu", "x.web.west.cpu", ["cpu", "region=eu.west,host=web", ""]),
            // Parts after a starred one are counted from the end.
            ("foo.bar.measurement*.field", "biz.bang.a.b.c.m1", ["a.b.c", "foo=biz,bar=bang", "m1"]),
            ("measurement*.host.field", "a.b.web.f", ["a.b", "host=web", "f"]),
            ("field*.measurement", "a.b.c", ["c", "", "a.b"]),
            ("measurement*.field.measurement", "a.b.c.d", ["a.b.d", "", "c"]),
            ("measurement*.field", "a.b", ["a", "", "b"]),
            // The name has fewer parts than the template.
            ("measurement*.field", "a", ["a", "", ""]),
            (".host.measurement*.field", "x.web.cpu", ["cpu", "host=web", ""]),
            (".host.measurement.field", "x.web.cpu", ["cpu", "host=web", ""]),
            (".host.measurement", "x", ["", "host=", ""]),
            ("..measurement", "x..cpu", ["cpu", "", ""]),
        ] {
            assert_eq!(apply(template, name), expected, "{template} {name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        /// A starred part is equivalent to as many plain ones as the name leaves.
        #[test]
        fn a_part_with_a_star_stands_for_as_many_as_are_left(
            before in prop::collection::vec("measurement|field|t|u|", 0..4),
            star in "measurement|field",
            after in prop::collection::vec("measurement|field|t|u|", 0..4),
            more in 0..5_usize,
        ) {
            let whole = |star: Vec<String>| [before.clone(), star, after.clone()].concat().join(".");
            let greedy = whole(vec![format!("{star}*")]);
            let plain = whole(vec![star; more + 1]);
            prop_assume!(greedy.contains("measurement"));
            let parts = before.len() + after.len() + more + 1;
            let name = (0..parts).map(|index| format!("p{index}")).collect::<Vec<_>>().join(".");
            prop_assert_eq!(apply(&greedy, &name), apply(&plain, &name));
        }
    }
}
