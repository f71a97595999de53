//! Maps names of other formats: which part is the measurement, which a tag, which the field.

use super::escape;
use super::metric::{Name, Parts};
use super::templates::Templates;

/// Maximum number of default tags per listener. It is below the number at which InfluxDB 1.6
/// panics, with room for the sender's own tags.
const MAX_DEFAULT_TAGS: usize = 32;
/// Maximum length of a default tag's key and value together.
const MAX_TAG_BYTES: usize = 1024;

/// How names become measurements, tags and fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub(super) kind: Kind,
    /// Default tags: keys and values added to each line that lacks the key.
    pub(super) tags: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Path,
    Netdata(Netdata),
    Templates(Templates),
}

/// How to split Netdata's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Netdata {
    /// Whether to keep the prefix (`netdata`) in front of the chart.
    pub keep_prefix: bool,
    /// Number of parts of a host's name in Graphite's paths, at least 1. Dots in a host cannot be
    /// told from others.
    pub host_parts: usize,
}

/// A mapping, separator or default tag that cannot be used: what is wrong, and what to write
/// instead.
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
    /// The whole path becomes the measurement; its field is `value`.
    pub fn path() -> Self {
        Self::new(Kind::Path)
    }

    /// The chart becomes the measurement, its dimensions the fields, the host a tag.
    pub fn netdata(netdata: Netdata) -> Self {
        Self::new(Kind::Netdata(netdata))
    }

    /// Maps names with templates in the syntax of InfluxDB's Graphite listener.
    ///
    /// # Errors
    /// Which template is invalid, and what to write instead.
    pub fn templates<S: AsRef<str>>(texts: &[S]) -> Result<Self, InvalidMapping> {
        Templates::parse(texts).map(|templates| Self::new(Kind::Templates(templates)))
    }

    fn new(kind: Kind) -> Self {
        Self { kind, tags: Vec::new() }
    }

    /// Sets the separator that joins several parts of a measurement, a field or a tag; a dot by
    /// default.
    ///
    /// # Errors
    /// The mapping has no templates, or the separator cannot be part of a name.
    pub fn with_separator(mut self, separator: &str) -> Result<Self, InvalidMapping> {
        match &mut self.kind {
            Kind::Templates(templates) => templates.set_separator(separator)?,
            Kind::Path | Kind::Netdata(_) => return Err(InvalidMapping::new("needs a list of templates as mapping")),
        }
        Ok(self)
    }

    /// Sets the default tags: each line gets those whose key it lacks.
    ///
    /// # Errors
    /// Which tag is invalid, and what to write instead.
    pub fn with_tags(self, tags: Vec<(String, String)>) -> Result<Self, InvalidMapping> {
        if tags.len() > MAX_DEFAULT_TAGS {
            return Err(InvalidMapping::new(format!("must be at most {MAX_DEFAULT_TAGS}")));
        }
        for (index, (key, value)) in tags.iter().enumerate() {
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
            if tags[..index].iter().any(|(known, _)| known == key) {
                return Err(InvalidMapping::new(format!("has the key {key:?} twice")));
            }
        }
        Ok(Self { tags, ..self })
    }

    /// Returns whether Netdata's charts become measurements.
    pub fn is_netdata(&self) -> bool {
        matches!(self.kind, Kind::Netdata(_))
    }

    /// Splits a name whose chart becomes the measurement. Returns its parts, and the number of
    /// bytes of a path before the dimension. `None` if the mapping is another one, or the name has
    /// too few parts.
    pub(super) fn chart<'a>(&self, name: Name<'a>, has_host: bool) -> Option<(Parts<'a>, usize)> {
        match (&self.kind, name) {
            (Kind::Netdata(netdata), Name::Path(path)) => netdata.split(path, has_host),
            (Kind::Netdata(_), Name::Parts(parts)) => Some((parts, 0)),
            _ => None,
        }
    }

    /// Returns whether Netdata's prefix stays in front of the chart.
    pub(super) fn keeps_prefix(&self) -> bool {
        matches!(self.kind, Kind::Netdata(Netdata { keep_prefix: true, .. }))
    }

    /// Returns the host in a Graphite path, if the mapping tells.
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
    /// Splits a path `prefix[.host].type.id.dimension`. Returns its parts, and the number of bytes
    /// before the dimension. `None` if it has too few parts.
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
