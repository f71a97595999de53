//! The templates of a listener, in the syntax of InfluxDB's and Telegraf's Graphite listeners, and
//! the choice of a name's template.
//!
//! ```text
//! [filter] template [key=value,…]
//! servers.*  .host.measurement*  region=eu
//! ```
//!
//! A filter's parts match literally, `*` matches any part; a filter matches a name that begins with
//! its parts. If several filters match, the first part that differs decides: a word precedes `*`,
//! and `*` precedes the filter's end. A name that no filter matches gets the longest template
//! without a filter that has no more parts than the name, or else the shortest of them.
//!
//! Differences between the implementations:
//!
//! * The search backtracks from a filter that matches only in part, as in today's Telegraf;
//!   InfluxDB's does not. Unlike Telegraf's it also backtracks from a `*` to a shorter filter.
//! * Templates without a filter are chosen by their number of parts, as in Telegraf 1.1; later
//!   versions use only the longest one, InfluxDB allows only one.
//! * Several `field` parts are joined, and the separator joins the parts of a name without any
//!   template, as in Telegraf.

use super::super::Refusal;
use super::escape;
use super::mapping::InvalidMapping;
use super::tags::{Given, Keys};
use super::template::{MAX_PARTS, Part, Template, parts};

/// The default separator.
const SEPARATOR: &str = ".";
/// Maximum number of templates per listener.
const MAX_TEMPLATES: usize = 1024;
const MAX_SEPARATOR_BYTES: usize = 16;

/// All templates of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Templates {
    separator: String,
    filters: Node,
    /// Templates without a filter, by number of parts; no two have the same number.
    unfiltered: Vec<Template>,
}

/// A node of the filters' tree: a part's template, and the parts that may follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    template: Option<Template>,
    /// Children by part; `*` is last.
    children: Vec<(String, Self)>,
}

impl Templates {
    /// Parses templates.
    ///
    /// # Errors
    /// Which template is invalid, and what to write instead.
    pub(super) fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, InvalidMapping> {
        if texts.is_empty() {
            return Err(InvalidMapping::new("list of templates: it has none"));
        }
        if texts.len() > MAX_TEMPLATES {
            return Err(InvalidMapping::new(format!("list of templates: it has more than {MAX_TEMPLATES}")));
        }
        let mut templates = Self { separator: SEPARATOR.to_owned(), filters: Node::default(), unfiltered: Vec::new() };
        for text in texts {
            let text = text.as_ref();
            templates.add(text).map_err(|error| InvalidMapping::new(format!("template {text:?}: {error}")))?;
        }
        Ok(templates)
    }

    fn add(&mut self, text: &str) -> Result<(), InvalidMapping> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (filter, template, tags) = match words[..] {
            [template] => ("", template, ""),
            [template, tags] if tags.contains('=') => ("", template, tags),
            [filter, template] => (filter, template, ""),
            [filter, template, tags] if tags.contains('=') => (filter, template, tags),
            _ => return Err(InvalidMapping::new("write \"[filter] template [key=value,…]\"")),
        };
        let template = Template::parse(template, tags)?;
        if filter.is_empty() {
            let index = self.unfiltered.binary_search_by_key(&template.len(), Template::len);
            let Err(index) = index else {
                return Err(InvalidMapping::new(
                    "another one without a filter has as many parts: give one of them a filter",
                ));
            };
            self.unfiltered.insert(index, template);
        } else if self.filters.slot(filter)?.replace(template).is_some() {
            return Err(InvalidMapping::new("there is another one with the same filter"));
        }
        Ok(())
    }

    /// Sets the separator that joins several parts.
    ///
    /// # Errors
    /// The separator cannot be part of a name; the error says what to write instead.
    pub(super) fn set_separator(&mut self, separator: &str) -> Result<(), InvalidMapping> {
        if separator.is_empty() || separator.len() > MAX_SEPARATOR_BYTES {
            return Err(InvalidMapping::new(format!(
                "must have 1 to {MAX_SEPARATOR_BYTES} bytes, such as \".\" or \"_\""
            )));
        }
        if separator.chars().any(|sign| sign.is_control() || sign == '\\') {
            return Err(InvalidMapping::new("must not hold backslashes or control characters: write \".\" or \"_\""));
        }
        separator.clone_into(&mut self.separator);
        Ok(())
    }

    /// Writes the series of a name to `out`, and the field's name to `field`, which stays empty if
    /// the template has none.
    ///
    /// # Errors
    /// A part cannot be written.
    pub(super) fn apply(
        &self,
        name: &[u8],
        given: Given<'_>,
        keys: &mut Keys,
        out: &mut Vec<u8>,
        field: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        keys.clear();
        // The field's buffer is unused until the series is written.
        field.clear();
        let template = self.find(name);
        match template {
            Some(template) => join(template.texts(Part::Measurement, name), &self.separator, field),
            None => join(parts(name), &self.separator, field),
        }
        escape::measurement(out, if field.is_empty() { name } else { field })?;
        field.clear();
        if let Some(template) = template {
            for (key, values) in template.tags(name) {
                keys.push_joined(out, key.as_bytes(), values, &self.separator)?;
            }
            join(template.texts(Part::Field, name), &self.separator, field);
        }
        keys.push_given(out, given)
    }

    /// Returns the part of a name that is the tag `host`, or the first of several.
    pub(super) fn host<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        self.find(name)?.first("host", name)
    }

    /// Returns the template for a name, if any.
    fn find(&self, name: &[u8]) -> Option<&Template> {
        self.filters.find(Some(name)).or_else(|| {
            let count = parts(name).count();
            let longest = self.unfiltered.iter().rfind(|template| template.len() <= count);
            longest.or_else(|| self.unfiltered.first())
        })
    }
}

impl Node {
    /// Returns the slot for a filter's template, creating nodes if missing.
    fn slot(&mut self, filter: &str) -> Result<&mut Option<Template>, InvalidMapping> {
        if filter.split('.').count() > MAX_PARTS {
            return Err(InvalidMapping::new(format!("its filter has more than {MAX_PARTS} parts")));
        }
        let mut node = self;
        for part in filter.split('.') {
            if part.is_empty() || (part.contains('*') && part != "*") {
                return Err(InvalidMapping::new(format!(
                    "{part:?} is no part of a filter: write a word, or \"*\" for any"
                )));
            }
            let known = node.children.iter().position(|(name, _)| name == part);
            let index = known.unwrap_or_else(|| {
                let index = if part == "*" { node.children.len() } else { 0 };
                node.children.insert(index, (part.to_owned(), Self::default()));
                index
            });
            node = &mut node.children[index].1;
        }
        Ok(&mut node.template)
    }

    /// Returns the template of the best filter for the remaining parts of a name; `None` as name:
    /// no parts remain.
    fn find(&self, name: Option<&[u8]>) -> Option<&Template> {
        let below = name.and_then(|name| {
            let end = memchr::memchr(b'.', name).unwrap_or(name.len());
            let (part, rest) = (&name[..end], name.get(end + 1..));
            let mut fitting = self.children.iter().filter(|(filter, _)| filter == "*" || filter.as_bytes() == part);
            fitting.find_map(|(_, child)| child.find(rest))
        });
        below.or(self.template.as_ref())
    }
}

fn join<'a>(texts: impl Iterator<Item = &'a [u8]>, separator: &str, out: &mut Vec<u8>) {
    for (index, text) in texts.enumerate() {
        if index > 0 {
            out.extend_from_slice(separator.as_bytes());
        }
        out.extend_from_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::metric::{TagSyntax, Tags};
    use super::*;

    /// Returns the series and the field's name.
    fn write(templates: &Templates, name: &str) -> (String, String) {
        let (mut out, mut field) = (Vec::new(), Vec::new());
        let tags = Tags { text: b"host=label;dc=eu", syntax: TagSyntax::Semicolons };
        let given = Given { host: b"", tags, defaults: &[] };
        templates.apply(name.as_bytes(), given, &mut Keys::default(), &mut out, &mut field).expect("applied");
        (String::from_utf8(out).expect("UTF-8"), String::from_utf8(field).expect("UTF-8"))
    }

    fn apply(templates: &[&str], name: &str) -> (String, String) {
        write(&Templates::parse(templates).expect("templates"), name)
    }

    #[test]
    fn the_separator_joins_what_has_several_parts() {
        let separated = |separator: &str, template: &str, name: &str| {
            let mut templates = Templates::parse(&[template]).expect("templates");
            templates.set_separator(separator).expect("a separator");
            write(&templates, name)
        };
        for (separator, template, name, series, field) in [
            (
                "_",
                "measurement.measurement.field.field.region",
                "cpu.usage.idle.percent.eu",
                "cpu_usage,region=eu",
                "idle_percent",
            ),
            (
                "_",
                "measurement.measurement.region.field*",
                "cpu.usage.eu.idle.percent",
                "cpu_usage,region=eu",
                "idle_percent",
            ),
            ("_", "region.region.measurement*", "us.west.cpu.load", "cpu_load,region=us_west", ""),
            (", ", "r.r.measurement*", "us.west.cpu.load", "cpu\\,\\ load,r=us\\,\\ west", ""),
            // The separator also joins the parts of a name that no template matches.
            ("_", "other.* .measurement", "cpu.load", "cpu_load", ""),
        ] {
            let expected = (format!("{series},host=label,dc=eu"), field.to_owned());
            assert_eq!(separated(separator, template, name), expected, "{template} {name}");
        }
        let mut templates = Templates::parse(&["measurement"]).expect("a template");
        for separator in ["", "\\", "\n", "a separator of more bytes"] {
            assert!(templates.set_separator(separator).is_err(), "{separator:?}");
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
            // "servers.web" has no template of its own: the search backtracks to "servers.*".
            ("servers.web", "servers.web,host=web,dc=eu"),
            ("q.w.cpu.more", "cpu,x=q,y=w,host=label,dc=eu"),
        ] {
            assert_eq!(apply(&templates, name).0, series, "{name}");
        }
        // Names that no template matches become measurements unchanged.
        assert_eq!(apply(&["a.* .measurement"], "b.c").0, "b.c,host=label,dc=eu");
    }

    #[test]
    fn a_filter_that_fits_in_part_shadows_none_that_fits() {
        let templates = [
            "taskmanagerTask.alarm-detector.Assign.alarmDefinitionId type.process.node.x.id.measurement.field rule=1",
            "taskmanagerTask.*.*.*.* type.process.node.measurement rule=2",
        ];
        let (name, tags) =
            ("taskmanagerTask.alarm-detector.Assign", "type=taskmanagerTask,process=alarm-detector,node=Assign");
        let (series, field) = apply(&templates, &format!("{name}.numRecordsInPerSecond.m5_rate"));
        assert_eq!(series, format!("numRecordsInPerSecond,rule=2,{tags},host=label,dc=eu"));
        assert_eq!(field, "");
        let (series, field) = apply(&templates, &format!("{name}.alarmDefinitionId.timeout_errors.duration.p75"));
        assert_eq!(series, format!("duration,rule=1,{tags},x=alarmDefinitionId,id=timeout_errors,host=label,dc=eu"));
        assert_eq!(field, "p75");
        // Backtracking to a shorter filter, from a word and from a *.
        for longer in ["a.b.c", "a.*.c", "*.b.c", "*.*.c"] {
            let templates = ["a measurement r=1".to_owned(), format!("{longer} measurement r=2")];
            let templates = Templates::parse(&templates).expect("templates");
            assert_eq!(write(&templates, "a.b.x").0, "a,r=1,host=label,dc=eu", "{longer}");
        }
    }

    #[test]
    fn templates_without_a_filter_are_told_apart_by_their_parts() {
        let templates = ["measurement.host.metric.metric.metric", "measurement.host.metric", "x.* .measurement"];
        for (name, series) in [
            ("net.web.a.b.c", "net,host=web,metric=a.b.c,dc=eu"),
            ("net.web.a.b.c.d", "net,host=web,metric=a.b.c,dc=eu"),
            ("net.web.a.b", "net,host=web,metric=a,dc=eu"),
            ("net.web.a", "net,host=web,metric=a,dc=eu"),
            ("net.web", "net,host=web,dc=eu"),
            ("x.web.a.b.c", "web,host=label,dc=eu"),
        ] {
            assert_eq!(apply(&templates, name).0, series, "{name}");
        }
        let error = Templates::parse(&["measurement.host", ".measurement*"]).expect_err("two of two parts").to_string();
        assert!(error.contains("as many parts") && error.contains("\".measurement*\""), "{error}");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let long = ["measurement"; MAX_PARTS + 1].join(".");
        for (template, what) in [
            ("", "[filter] template"),
            ("a b c d", "[filter] template"),
            ("a b c", "[filter] template"),
            ("host.region", "must be the measurement"),
            ("measurement.a\\", "no name of a tag"),
            ("measurement.host*", "no name of a tag"),
            ("measurement a=b\\", "is no tag"),
            ("measurement a=b,a=c", "there twice"),
            ("measurement*.field*", "one part may have a *"),
            ("measurement*.measurement*", "one part may have a *"),
            ("measurement a=,b=1", "\"a=\" is no tag"),
            ("a..b measurement", "\"\" is no part of a filter"),
            ("a.b* measurement", "\"b*\" is no part of a filter"),
            (&long, "more than 64 parts"),
            (&format!("{long} measurement"), "more than 64 parts"),
        ] {
            let error = Templates::parse(&[template]).expect_err(template).to_string();
            assert!(error.contains(what) && error.contains(&format!("{template:?}")), "{error}");
        }
        let error = Templates::parse(&["a.* measurement", "a.* measurement.field"]).expect_err("twice").to_string();
        assert!(error.contains("same filter"), "{error}");
        let many: Vec<_> = (0..=MAX_TEMPLATES).map(|index| format!("a{index} measurement")).collect();
        assert!(Templates::parse(&many).expect_err("too many").to_string().contains("more than 1024"));
        assert!(Templates::parse(&many[1..]).is_ok());
    }

    /// Finds the best filter by comparing all matching ones part by part.
    fn best<'a>(filters: &'a [String], name: &str) -> Option<&'a String> {
        let fits = |filter: &&String| {
            let (filter, name): (Vec<_>, Vec<_>) = (filter.split('.').collect(), name.split('.').collect());
            filter.len() <= name.len() && filter.iter().zip(name).all(|(one, other)| *one == "*" || *one == other)
        };
        // Longer sequences are greater, and so are words than "*".
        let rank = |filter: &&String| filter.split('.').map(|part| part != "*").collect::<Vec<_>>();
        filters.iter().filter(fits).max_by_key(rank)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn any_search_finds_what_a_simple_one_finds(
            filters in prop::collection::btree_set("[ab*](\\.[ab*]){0,4}", 0..12),
            unfiltered in prop::collection::btree_set(1..6_usize, 0..4),
            name in "[abc](\\.[abc]){0,5}",
        ) {
            let filters: Vec<String> = filters.into_iter().collect();
            let numbered = filters.iter().enumerate().map(|(index, filter)| format!("{filter} measurement r={index}"));
            let by_parts = unfiltered.iter().map(|parts| format!("measurement{} r=parts{parts}", ".".repeat(parts - 1)));
            let texts: Vec<String> = numbered.chain(by_parts).collect();
            prop_assume!(!texts.is_empty());
            let parts = name.split('.').count();
            let rule = match best(&filters, &name) {
                Some(best) => filters.iter().position(|filter| filter == best).map(|index| index.to_string()),
                None => {
                    let longest = unfiltered.range(..=parts).next_back().or_else(|| unfiltered.first());
                    longest.map(|parts| format!("parts{parts}"))
                }
            };
            let (series, _) = write(&Templates::parse(&texts).expect("templates"), &name);
            let found = series.split(',').find_map(|tag| tag.strip_prefix("r=")).map(str::to_owned);
            prop_assert_eq!(found, rule, "{:?}", texts);
        }
    }
}
