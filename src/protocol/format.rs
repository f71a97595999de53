//! The formats that senders speak, and how they are told apart by a line.
//!
//! | format | looks like | senders |
//! |---|---|---|
//! | `influx` | `cpu,host=a usage=1.5 1795400726000000000` | Telegraf |
//! | `graphite` | `netdata.a.system.cpu.user;role=web 1.5 1795400726` | Netdata, collectd, statsd |
//! | `opentsdb` | `put netdata.system.cpu.user 1795400726 1.5 host=a` | Netdata, tcollector |
//! | `netdata-json` | `{"prefix":"netdata","hostname":"a",…}` | Netdata |

use serde::{Deserialize, Serialize};

use super::token::{is_blank, trim};

/// What a line is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// InfluxDB line protocol.
    Influx,
    /// Graphite's plain text, with or without tags.
    Graphite,
    /// OpenTSDB's telnet commands.
    Opentsdb,
    /// Netdata's JSON, an object to a line.
    NetdataJson,
}

impl Format {
    /// What this line is written in; none where it is written in nothing known, blank or a comment.
    ///
    /// The second word decides: in line protocol it is a field and has a `=`, in Graphite's text it is a number. (A
    /// backslash before a space belongs to line protocol's first word.)
    #[inline]
    pub fn detect(line: &[u8]) -> Option<Self> {
        let line = trim(line);
        match line.first()? {
            b'{' => return Some(Self::NetdataJson),
            b'#' => return None,
            _ => {}
        }
        let mut first = 0;
        loop {
            first += line[first..].iter().position(|byte| is_blank(*byte)).unwrap_or(line.len() - first);
            if line.get(first) != Some(&b' ') || line[first - 1] != b'\\' {
                break;
            }
            first += 1;
        }
        let (first, rest) = line.split_at(first);
        let rest = trim(rest);
        let second = &rest[..rest.iter().position(|byte| is_blank(*byte)).unwrap_or(rest.len())];
        match second.first() {
            None if first == b"version" => Some(Self::Opentsdb),
            None => None,
            Some(_) if second.contains(&b'=') => Some(Self::Influx),
            Some(_) if first == b"put" => Some(Self::Opentsdb),
            Some(b'0'..=b'9' | b'-' | b'+' | b'.' | b'n' | b'N' | b'i' | b'I') => Some(Self::Graphite),
            Some(_) => None,
        }
    }

    /// The format's name in the configuration, JSON and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Influx => "influx",
            Self::Graphite => "graphite",
            Self::Opentsdb => "opentsdb",
            Self::NetdataJson => "netdata-json",
        }
    }
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
            ("POST /api/put HTTP/1.1", None),
            ("\u{16}\u{3}\u{1}", None),
        ] {
            assert_eq!(Format::detect(line.as_bytes()), expected, "{line}");
        }
    }
}
