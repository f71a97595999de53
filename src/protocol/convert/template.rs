//! Templates: which part of a dotted name is what, in the syntax of InfluxDB's and Telegraf's Graphite listeners.
//!
//! ```text
//! [filter] template [key=value,…]
//! servers.*  .host.measurement*  region=eu
//! ```
//!
//! A template's parts, from left to right: `measurement`, `measurement*` (this part and all behind it), `field`,
//! `field*`, the name of a tag, or nothing (the part is left out). Several parts of one tag or of the measurement are
//! joined by dots. A filter's parts stand for themselves, `*` for any; of several filters that fit a name's beginning, the
//! one whose parts say most counts, from left to right. A name that no filter fits has the template without a filter,
//! or else is the measurement as it stands.

use super::super::Refusal;
use super::escape;
use super::metric::Tags;
use super::tags::Keys;

/// All templates of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Templates {
    /// What names that no filter fits have; the measurement as it stands where there is none.
    otherwise: Option<Template>,
    filters: Node,
}

/// A part of the filters, and what may follow it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    template: Option<Template>,
    /// Each with its part; `*` last.
    children: Vec<(String, Self)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Template {
    parts: Vec<Part>,
    /// Each with the value it has in any case; empty: none.
    tags: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Skipped,
    Measurement,
    MeasurementAndRest,
    Field,
    FieldAndRest,
    /// The place in [`Template::tags`].
    Tag(usize),
}

impl Templates {
    /// Reads templates.
    ///
    /// # Errors
    /// Which one cannot be read, and what would be right.
    pub(super) fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, String> {
        let mut templates = Self::default();
        if texts.is_empty() {
            return Err("list of templates: it has none".to_owned());
        }
        for text in texts {
            let text = text.as_ref();
            let wrong = |what: String| format!("template {text:?}: {what}");
            let words: Vec<&str> = text.split_whitespace().collect();
            let (filter, template, tags) = match words[..] {
                [template] => ("", template, ""),
                [template, tags] if tags.contains('=') => ("", template, tags),
                [filter, template] => (filter, template, ""),
                [filter, template, tags] if tags.contains('=') => (filter, template, tags),
                _ => return Err(wrong("write \"[filter] template [key=value,…]\"".to_owned())),
            };
            let template = Template::parse(template, tags).map_err(wrong)?;
            let place = if filter.is_empty() { &mut templates.otherwise } else { templates.filters.place(filter) };
            if place.replace(template).is_some() {
                return Err(wrong("there is another one with the same filter".to_owned()));
            }
        }
        Ok(templates)
    }

    /// Writes the series of a name, its host where that is known, and its tags, and returns the field's name; an empty one where the template has none.
    ///
    /// # Errors
    /// A part cannot be written.
    pub(super) fn apply<'a>(
        &self,
        name: &'a [u8],
        host: &[u8],
        tags: Tags<'_>,
        keys: &mut Keys,
        out: &mut Vec<u8>,
    ) -> Result<&'a [u8], Refusal> {
        keys.clear();
        let Some(template) = self.filters.find(name).or(self.otherwise.as_ref()) else {
            escape::measurement(out, name)?;
            keys.push(out, b"host", host)?;
            keys.push_all(out, tags)?;
            keys.check()?;
            return Ok(b"");
        };
        template.write_measurement(name, out)?;
        for (place, (key, fixed)) in template.tags.iter().enumerate() {
            keys.push_joined(out, key.as_bytes(), template.tag_values(place, fixed, name))?;
        }
        keys.push(out, b"host", host)?;
        keys.push_all(out, tags)?;
        keys.check()?;
        Ok(template.field(name))
    }
}

impl Templates {
    /// The part of a name that is the tag `host`, or the first of several.
    pub(super) fn host<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        let template = self.filters.find(name).or(self.otherwise.as_ref())?;
        let host = template.tags.iter().position(|(key, _)| key == "host")?;
        template.parts(name).find(|(part, _)| *part == Part::Tag(host)).map(|(_, text)| text)
    }
}

impl Node {
    /// The template's place of a filter, which is made where there is none.
    fn place(&mut self, filter: &str) -> &mut Option<Template> {
        let mut node = self;
        for part in filter.split('.') {
            let known = node.children.iter().position(|(name, _)| name == part);
            let place = known.unwrap_or_else(|| {
                let place = if part == "*" { node.children.len() } else { 0 };
                node.children.insert(place, (part.to_owned(), Self::default()));
                place
            });
            node = &mut node.children[place].1;
        }
        &mut node.template
    }

    /// The template of the filter that fits the name's beginning. As in InfluxDB, a part once chosen is kept to.
    fn find(&self, name: &[u8]) -> Option<&Template> {
        let mut node = self;
        for part in name.split(|byte| *byte == b'.') {
            let fits = |(filter, _): &&(String, Self)| filter == "*" || filter.as_bytes() == part;
            let Some((_, child)) = node.children.iter().find(fits) else { break };
            node = child;
        }
        node.template.as_ref()
    }
}

impl Template {
    fn parse(text: &str, fixed: &str) -> Result<Self, String> {
        let mut template = Self { parts: Vec::new(), tags: Vec::new() };
        for tag in fixed.split(',').filter(|tag| !tag.is_empty()) {
            match tag.split_once('=') {
                Some((key, _)) if template.tags.iter().any(|(known, _)| known == key) => {
                    return Err(format!("the tag {key:?} is there twice"));
                }
                Some((key, value)) if is_name(key) && is_name(value) => {
                    template.tags.push((key.to_owned(), value.to_owned()));
                }
                _ => return Err(format!("{tag:?} is no tag: write key=value")),
            }
        }
        for name in text.split('.') {
            let part = match name {
                "" => Part::Skipped,
                "measurement" => Part::Measurement,
                "measurement*" => Part::MeasurementAndRest,
                "field" => Part::Field,
                "field*" => Part::FieldAndRest,
                tag if !is_name(tag) => return Err(format!("{tag:?} is no name of a tag")),
                tag => Part::Tag(template.tag_place(tag)),
            };
            template.parts.push(part);
        }
        let count = |wanted: Part| template.parts.iter().filter(|part| **part == wanted).count();
        if count(Part::Measurement) + count(Part::MeasurementAndRest) == 0 {
            return Err("a part must be the measurement".to_owned());
        }
        if count(Part::Field) + count(Part::FieldAndRest) > 1 {
            return Err("field may be there once".to_owned());
        }
        if count(Part::MeasurementAndRest) + count(Part::FieldAndRest) > 1 {
            return Err("measurement* and field* exclude each other: nothing is left behind either".to_owned());
        }
        let last = template.parts.iter().position(|part| matches!(part, Part::MeasurementAndRest | Part::FieldAndRest));
        if last.is_some_and(|last| last + 1 < template.parts.len()) {
            return Err("nothing is left behind a part with *".to_owned());
        }
        Ok(template)
    }

    fn tag_place(&mut self, tag: &str) -> usize {
        let known = self.tags.iter().position(|(key, _)| key == tag);
        known.unwrap_or_else(|| {
            self.tags.push((tag.to_owned(), String::new()));
            self.tags.len() - 1
        })
    }

    /// The name's parts with what each of them is.
    fn parts<'a>(&self, name: &'a [u8]) -> impl Iterator<Item = (Part, &'a [u8])> {
        let mut rest = Some(name);
        self.parts.iter().map_while(move |part| {
            let from = rest?;
            let end = from.iter().position(|byte| *byte == b'.').unwrap_or(from.len());
            rest = from.get(end + 1..);
            let is_rest = matches!(part, Part::MeasurementAndRest | Part::FieldAndRest);
            Some((*part, if is_rest { from } else { &from[..end] }))
        })
    }

    fn write_measurement(&self, name: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        let start = out.len();
        for (part, text) in self.parts(name) {
            if matches!(part, Part::Measurement | Part::MeasurementAndRest) {
                if out.len() > start {
                    out.push(b'.');
                }
                escape::measurement(out, text)?;
            }
        }
        // As in InfluxDB: what has no measurement is one.
        if out.len() == start { escape::measurement(out, name) } else { Ok(()) }
    }

    /// The values of a tag that are to be joined.
    fn tag_values<'a>(&self, place: usize, fixed: &'a str, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let parts = self.parts(name).filter(move |(part, _)| *part == Part::Tag(place)).map(|(_, text)| text);
        std::iter::once(fixed.as_bytes()).chain(parts)
    }

    fn field<'a>(&self, name: &'a [u8]) -> &'a [u8] {
        let field = self.parts(name).find(|(part, _)| matches!(part, Part::Field | Part::FieldAndRest));
        field.map_or(&[], |(_, text)| text)
    }
}

/// Whether a tag may have this key or value.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains('*') && escape::key(&mut Vec::new(), text.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::metric::TagSyntax;
    use super::*;

    fn apply(templates: &[&str], name: &str) -> (String, String) {
        let templates = Templates::parse(templates).expect("templates");
        let mut out = Vec::new();
        let tags = Tags { text: b"host=label;dc=eu", syntax: TagSyntax::Semicolons };
        let field = templates.apply(name.as_bytes(), b"", tags, &mut Keys::default(), &mut out).expect("applied");
        (String::from_utf8(out).expect("UTF-8"), String::from_utf8_lossy(field).into_owned())
    }

    #[test]
    fn parts_become_measurement_tags_and_field() {
        for (template, name, series, field) in [
            ("measurement*", "a.b.c", "a.b.c,host=label,dc=eu", ""),
            (".host.measurement*", "servers.web.cpu.load", "cpu.load,host=web,dc=eu", ""),
            (".host.measurement.field*", "servers.web.cpu.load.one", "cpu,host=web,dc=eu", "load.one"),
            ("measurement.host.measurement.field", "a.web.b.f", "a.b,host=web,dc=eu", "f"),
            (".host.host.measurement*", "x.web.example.cpu", "cpu,host=web.example,dc=eu", ""),
            (".host.measurement* region=eu,zone=1", "x.web.cpu", "cpu,region=eu,zone=1,host=web,dc=eu", ""),
            (".host.region.measurement* region=eu", "x.web.west.cpu", "cpu,region=eu.west,host=web,dc=eu", ""),
            // Fewer parts than the template has.
            (".host.measurement.field", "x.web.cpu", "cpu,host=web,dc=eu", ""),
            (".host.measurement", "x", "x,host=label,dc=eu", ""),
            ("..measurement", "x..cpu", "cpu,host=label,dc=eu", ""),
        ] {
            assert_eq!(apply(&[template], name), (series.to_owned(), field.to_owned()), "{template} {name}");
        }
    }

    #[test]
    fn the_filter_that_says_most_counts() {
        let templates = [
            "measurement*",
            "servers.* .host.measurement*",
            "servers.web.* .a.measurement*",
            "*.*.cpu x.y.measurement",
        ];
        for (name, series) in [
            ("other.a", "other.a,host=label,dc=eu"),
            ("servers.db.load", "load,host=db,dc=eu"),
            ("servers.web.load", "load,a=web,host=label,dc=eu"),
            // A part once chosen is kept to: "servers.web" has no template of its own.
            ("servers.web", "servers.web,host=label,dc=eu"),
            ("q.w.cpu.more", "cpu,x=q,y=w,host=label,dc=eu"),
        ] {
            assert_eq!(apply(&templates, name).0, series, "{name}");
        }
        // Without a template for the rest, the rest are measurements as they stand.
        assert_eq!(apply(&["a.* .measurement"], "b.c").0, "b.c,host=label,dc=eu");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (template, what) in [
            ("", "[filter] template"),
            ("a b c d", "[filter] template"),
            ("a b c", "[filter] template"),
            ("host.region", "must be the measurement"),
            ("measurement.a\\", "no name of a tag"),
            ("measurement.host*", "no name of a tag"),
            ("measurement a=b\\", "is no tag"),
            ("measurement a=b,a=c", "there twice"),
            ("measurement.field.field", "field may be there once"),
            ("measurement*.field*", "exclude each other"),
            ("measurement*.host", "nothing is left behind"),
            ("measurement a=,b=1", "\"a=\" is no tag"),
        ] {
            let error = Templates::parse(&[template]).expect_err(template);
            assert!(error.contains(what) && error.contains(&format!("{template:?}")), "{error}");
        }
        let error = Templates::parse(&["a.* measurement", "a.* measurement.field"]).expect_err("twice");
        assert!(error.contains("same filter"), "{error}");
    }
}
