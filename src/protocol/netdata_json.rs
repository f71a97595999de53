//! Netdata's JSON: one object to a line, with all parts of a name apart.
//!
//! Netdata before 2.11 does not escape what it writes: a family or unit with a quote makes a line that is no JSON, and
//! is refused. A value of `null` is nothing to store. Keys that are of no use here are skipped unread; texts without
//! escapes are not copied.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Refusal;
use super::convert::{Metric, Name, Parts, TagSyntax, Tags};

/// One line.
#[derive(Debug, Deserialize)]
pub(super) struct Object<'a> {
    #[serde(borrow, default)]
    prefix: Cow<'a, str>,
    #[serde(borrow, default)]
    hostname: Cow<'a, str>,
    #[serde(borrow, default)]
    labels: Option<&'a RawValue>,
    /// The name that was set, or else the id; Graphite's and OpenTSDB's lines have it, too.
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
    /// Reads one line, which has no line feed.
    ///
    /// # Errors
    /// It is no object, or not one of Netdata's.
    pub(super) fn parse(line: &'a [u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(line).map_err(|_| Refusal::InvalidJson)
    }

    /// Its value; none where that is `null`.
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

    #[test]
    fn what_is_none_of_netdatas_objects_is_refused() {
        for line in [
            LINE.replace(r#""units": "load""#, r#""units": "15" disks""#),
            LINE.replace(r#""name":"load1","#, ""),
            LINE.replace(r#""value":0.5,"#, r#""value":0.5.1,"#),
            LINE.replace(r#""value":0.5,"#, ""),
            LINE[..LINE.len() - 1].to_owned(),
            LINE.to_owned() + LINE,
            format!("[{LINE}]"),
            "{}".to_owned(),
            String::new(),
        ] {
            assert_eq!(Object::parse(line.as_bytes()).err(), Some(Refusal::InvalidJson), "{line}");
        }
    }
}
