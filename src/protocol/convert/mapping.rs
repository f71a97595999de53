//! What becomes of another sender's names: which part is the measurement, which a tag, which the field.

use super::escape;
use super::metric::{Name, Parts};
use super::templates::Templates;

/// Default tags of one listener: below the number at which InfluxDB 1.6 panics, with room for a sender's own.
const MAX_DEFAULT_TAGS: usize = 32;
/// A default tag's key and value.
const MAX_TAG_BYTES: usize = 1024;

/// How names become measurements, tags and fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub(super) kind: Kind,
    /// Keys and values that each line gets unless it has the key.
    pub(super) tags: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Path,
    Netdata(Netdata),
    Templates(Templates),
}

/// How Netdata's names are taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Netdata {
    /// Whether the prefix (`netdata`) stays in front of the chart.
    pub keep_prefix: bool,
    /// How many parts the name of a host has in Graphite's paths, at least 1: dots in it cannot be told from others.
    pub host_parts: usize,
}

/// A mapping, separator or default tag that cannot be used: what is wrong, and what to write instead.
///
/// The message continues a sentence that begins with the setting's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidMapping(String);

impl InvalidMapping {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl Default for Mapping {
    fn default() -> Self {
        Self::path()
    }
}

impl Mapping {
    /// The whole path is the measurement, its field is `value`.
    pub fn path() -> Self {
        Self::new(Kind::Path)
    }

    /// A chart is the measurement, its dimensions are the fields, the host is a tag.
    pub fn netdata(netdata: Netdata) -> Self {
        Self::new(Kind::Netdata(netdata))
    }

    /// As these templates say, in the syntax of InfluxDB's Graphite listener.
    ///
    /// # Errors
    /// Which of them cannot be read, and what would be right.
    pub fn templates<S: AsRef<str>>(texts: &[S]) -> Result<Self, InvalidMapping> {
        Templates::parse(texts).map(|templates| Self::new(Kind::Templates(templates)))
    }

    fn new(kind: Kind) -> Self {
        Self { kind, tags: Vec::new() }
    }

    /// The same with this between several parts of a measurement, a field or a tag; a dot without it.
    ///
    /// # Errors
    /// What would be right, where there are no templates or it cannot stand in a name.
    pub fn with_separator(mut self, separator: &str) -> Result<Self, InvalidMapping> {
        match &mut self.kind {
            Kind::Templates(templates) => templates.set_separator(separator)?,
            Kind::Path | Kind::Netdata(_) => return Err(InvalidMapping::new("needs a list of templates as mapping")),
        }
        Ok(self)
    }

    /// The same with tags that each line gets unless it has the key.
    ///
    /// # Errors
    /// Which tag cannot be one, and what would be right.
    pub fn with_tags(self, tags: Vec<(String, String)>) -> Result<Self, InvalidMapping> {
        if tags.len() > MAX_DEFAULT_TAGS {
            return Err(InvalidMapping::new(format!("must be at most {MAX_DEFAULT_TAGS}")));
        }
        for (place, (key, value)) in tags.iter().enumerate() {
            let tag = format!("{key}={value}");
            if tag.len() > MAX_TAG_BYTES {
                return Err(InvalidMapping::new(format!("has a tag {key:?} of more than {MAX_TAG_BYTES} bytes")));
            }
            if ["time", "_field", "_measurement"].contains(&key.as_str()) {
                return Err(InvalidMapping::new(format!("has {tag:?}: InfluxDB keeps that key for itself")));
            }
            if [key, value].iter().any(|text| text.is_empty() || escape::key(&mut Vec::new(), text.as_bytes()).is_err())
            {
                return Err(InvalidMapping::new(format!(
                    "has {tag:?}: keys and values must not be empty, or hold control characters or a backslash before a comma, a space, a = or their end"
                )));
            }
            if tags[..place].iter().any(|(known, _)| known == key) {
                return Err(InvalidMapping::new(format!("has the key {key:?} twice")));
            }
        }
        Ok(Self { tags, ..self })
    }

    /// Whether Netdata's charts become measurements.
    pub fn is_netdata(&self) -> bool {
        matches!(self.kind, Kind::Netdata(_))
    }

    /// The parts of a name whose charts become measurements, and how much of a path comes before the dimension; none
    /// where that is not the mapping, or the name has too few parts.
    pub(super) fn chart<'a>(&self, name: Name<'a>, has_host: bool) -> Option<(Parts<'a>, usize)> {
        match (&self.kind, name) {
            (Kind::Netdata(netdata), Name::Path(path)) => netdata.split(path, has_host),
            (Kind::Netdata(_), Name::Parts(parts)) => Some((parts, 0)),
            _ => None,
        }
    }

    /// Whether Netdata's prefix stays in front of the chart.
    pub(super) fn keeps_prefix(&self) -> bool {
        matches!(self.kind, Kind::Netdata(Netdata { keep_prefix: true, .. }))
    }

    /// The host in a path of Graphite's, where it can be told.
    pub(crate) fn host_in<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        match &self.kind {
            Kind::Netdata(netdata) => netdata.split(path, true).map(|(parts, _)| parts.host),
            Kind::Templates(templates) => templates.host(path),
            Kind::Path if path.starts_with(b"netdata.") => {
                Netdata { keep_prefix: false, host_parts: 1 }.split(path, true).map(|(parts, _)| parts.host)
            }
            Kind::Path => None,
        }
    }
}

impl Netdata {
    /// The parts of a path `prefix[.host].type.id.dimension`, and how much of it comes before the dimension; none where
    /// it has too few.
    fn split<'a>(&self, path: &'a [u8], has_host: bool) -> Option<(Parts<'a>, usize)> {
        let host_parts = if has_host { self.host_parts } else { 0 };
        let mut dots = memchr::memchr_iter(b'.', path);
        let prefix_end = dots.next()?;
        let mut host_end = prefix_end;
        for _ in 0..host_parts {
            host_end = dots.next()?;
        }
        let chart_end = dots.nth(1)?;
        let parts = Parts {
            prefix: &path[..prefix_end],
            host: path.get(prefix_end + 1..host_end).unwrap_or_default(),
            chart: &path[host_end + 1..chart_end],
            dimension: &path[chart_end + 1..],
        };
        let is_whole = !parts.dimension.is_empty() && (!has_host || !parts.host.is_empty());
        is_whole.then_some((parts, chart_end + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_by_the_number_of_dots() {
        let split = |path: &str, has_host, host_parts| {
            let (parts, before) = Netdata { keep_prefix: false, host_parts }.split(path.as_bytes(), has_host)?;
            let texts = [parts.prefix, parts.host, parts.chart, parts.dimension].map(String::from_utf8_lossy);
            assert_eq!(&path.as_bytes()[before..], parts.dimension);
            Some(texts.join("|"))
        };
        for (path, has_host, host_parts, expected) in [
            ("netdata.web.system.cpu.user", true, 1, Some("netdata|web|system.cpu|user")),
            ("netdata.web.apps.cpu.apps.plugin", true, 1, Some("netdata|web|apps.cpu|apps.plugin")),
            ("netdata.web.example.system.cpu.user", true, 2, Some("netdata|web.example|system.cpu|user")),
            ("netdata.system.cpu.user", false, 2, Some("netdata||system.cpu|user")),
            ("netdata.web.system.cpu", true, 1, None),
            ("netdata.web.system.cpu.", true, 1, None),
            ("netdata..system.cpu.user", true, 1, None),
            ("netdata.system.cpu", false, 1, None),
            ("", true, 1, None),
        ] {
            assert_eq!(split(path, has_host, host_parts).as_deref(), expected, "{path}");
        }
    }
}
