//! The formats that senders use, and how to tell them apart from a single line.
//!
//! | format | looks like | senders |
//! |---|---|---|
//! | `influx` | `cpu,host=a usage=1.5 1795400726000000000` | Telegraf |
//! | `graphite` | `netdata.a.system.cpu.user;role=web 1.5 1795400726` | Netdata, collectd, statsd |
//! | `opentsdb` | `put netdata.system.cpu.user 1795400726 1.5 host=a` | Netdata, tcollector |
//! | `netdata-json` | `{"prefix":"netdata","hostname":"a",…}` | Netdata |

use serde::{Deserialize, Serialize};

use super::number;
use super::token::{has_influx_tags, is_blank, trim};

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// InfluxDB line protocol.
    Influx,
    /// Graphite's plain text, with or without tags.
    Graphite,
    /// OpenTSDB's telnet commands.
    Opentsdb,
    /// Netdata's JSON, one object per line.
    NetdataJson,
}

impl Format {
    /// Returns the format that this line, with or without its line feed, looks like. `None` if it
    /// is blank, a comment, or like no known format.
    ///
    /// The second word decides: in line protocol it is a field and contains a `=`, in Graphite's
    /// text it is a number. (A backslash before a space is part of a line protocol word.) A word
    /// and a number alone can be many other things, such as broken line protocol: they are
    /// Graphite's only with a time after them, or with a path of several parts. Tags in line
    /// protocol's syntax indicate a line of line protocol that lacks a field's key.
    pub fn detect(line: &[u8]) -> Option<Self> {
        let line = trim(line.split(|byte| *byte == b'\n').next().unwrap_or_default());
        match line.first()? {
            b'{' => return Some(Self::NetdataJson),
            b'#' => return None,
            _ => {}
        }
        let (first, rest) = split_word(line);
        let (second, rest) = split_word(rest);
        let (third, rest) = split_word(rest);
        if second.is_empty() {
            return (first == b"version").then_some(Self::Opentsdb);
        }
        if second.contains(&b'=') {
            return Some(Self::Influx);
        }
        if first == b"put" {
            return Some(Self::Opentsdb);
        }
        let path = first.split(|byte| *byte == b';').next().unwrap_or_default();
        if has_influx_tags(path) {
            return Some(Self::Influx);
        }
        let is_graphite = match third {
            // The end of a string of line protocol and its timestamp look like a name and a number.
            b"" => {
                let has_parts = first.iter().any(|byte| matches!(byte, b'.' | b';'));
                has_parts && !first.contains(&b'"') && is_number(second) && second.len() < STAMP_DIGITS
            }
            time => is_number(second) && is_number(time) && time.len() < STAMP_DIGITS && rest.is_empty(),
        };
        is_graphite.then_some(Self::Graphite)
    }

    /// Returns the format's name in the configuration, JSON and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Influx => "influx",
            Self::Graphite => "graphite",
            Self::Opentsdb => "opentsdb",
            Self::NetdataJson => "netdata-json",
        }
    }
}

/// Timestamps of line protocol have at least this many digits; no number of a Graphite line does.
const STAMP_DIGITS: usize = 18;

/// Returns the first word, and the text after the white space that follows it.
fn split_word(line: &[u8]) -> (&[u8], &[u8]) {
    let mut end = 0;
    loop {
        end += line[end..].iter().position(|byte| is_blank(*byte)).unwrap_or(line.len() - end);
        if end == 0 || line.get(end) != Some(&b' ') || line[end - 1] != b'\\' {
            break;
        }
        end += 1;
    }
    (&line[..end], trim(&line[end..]))
}

/// Returns whether a word is a number as any sender writes it, including NaN.
fn is_number(word: &[u8]) -> bool {
    let digits = word.strip_prefix(b"-").or_else(|| word.strip_prefix(b"+")).unwrap_or(word);
    let is_name = ["nan", "inf", "infinity"].iter().any(|name| digits.eq_ignore_ascii_case(name.as_bytes()));
    is_name || (digits.last() != Some(&b'i') && number::skip(digits, 0) == Ok(digits.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_is_known_by_one_line() {
        for (line, expected) in [
            ("cpu,host=a usage=1.5 1795400726000000000", Some(Format::Influx)),
            ("  my\\ cpu usage=1.5", Some(Format::Influx)),
            ("put v=1 1795400726000000000", Some(Format::Influx)),
            ("put,host=a v=1", Some(Format::Influx)),
            ("netdata.a.system.cpu.user 1.5 1795400726", Some(Format::Graphite)),
            ("a.b;role=web\t1.5", Some(Format::Graphite)),
            ("collectd.a.cpu-0.cpu-user nan 1795400975\r", Some(Format::Graphite)),
            ("put netdata.system.cpu.user 1795400726 1.5 host=a", Some(Format::Opentsdb)),
            ("version", Some(Format::Opentsdb)),
            (r#"{"prefix":"netdata","hostname":"a"}"#, Some(Format::NetdataJson)),
            ("", None),
            ("  \r", None),
            ("# a comment of 1 line=1", None),
            ("garbage", None),
            // Broken line protocol, and text that is not a metric.
            ("cpu idle\\ time=5 1", Some(Format::Influx)),
            ("second\" 1795400726000000000", None),
            ("of.a.string\" 1795400726000000000", None),
            ("a.b 1795400726000000000", None),
            ("broken 5", None),
            ("ERROR 404", None),
            ("net in 5", None),
            ("a.b nanny 7", None),
            ("a.b 1i 7", None),
            ("a.b 1 7 8", None),
            ("a 1 1795400726", Some(Format::Graphite)),
            ("a.b;c=d 1", Some(Format::Graphite)),
            ("a.b -inf -1", Some(Format::Graphite)),
            (r#""web.cgroups-dev\x2d1_swap.cpu-user" 0 1795400726"#, Some(Format::Graphite)),
            ("a.b;c=d,e=f 1", Some(Format::Graphite)),
            ("cpu,dc=a.b 1.5", Some(Format::Influx)),
            ("cpu,dc=a.b 1.5 1795400726", Some(Format::Influx)),
            ("metric;tag1=aaa1;tag2=bb b2 2", None),
            ("put a=b", Some(Format::Influx)),
            ("POST /api/put HTTP/1.1", None),
            ("\u{16}\u{3}\u{1}", None),
        ] {
            assert_eq!(Format::detect(line.as_bytes()), expected, "{line}");
        }
    }
}
