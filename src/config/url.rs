//! A backend's URL.
//!
//! Owns its grammar: which kind of backend it names. Never accepts a secret in a URL, nor repeats
//! one in an error.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text that is not a backend's URL. The message never repeats the text, which may hold a
/// password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidUrl(String);

impl InvalidUrl {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// A backend's URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendUrl {
    /// `http://host:port` or `https://host:port`: an InfluxDB.
    Influx {
        /// The URL without the API's path.
        base: Uri,
        /// Whether the URL was written with a path of the v2 API.
        names_v2: bool,
    },
    /// `file:///path`: an archive.
    Archive(PathBuf),
    /// `udp://host:port`: another relay.
    Relay(String),
}

/// Paths of the API that people write into a backend's URL, and whether they belong to the v2 API.
/// A path that ends like another one comes before it.
const API_PATHS: [(&str, bool); 8] = [
    ("/api/v2/write", true),
    ("/api/v2/query", true),
    ("/api/v2", true),
    ("/api/v3/write_lp", false),
    ("/write", false),
    ("/query", false),
    ("/ping", false),
    ("/health", false),
];

/// Keys of a query string, and where in the configuration they belong.
const PARAMETERS: [(&str, &str); 8] = [
    ("db", "database of the listener (--database)"),
    ("rp", "retention_policy of the listener"),
    ("precision", "precision of the listener"),
    ("org", "org of the backend"),
    ("bucket", "bucket of the backend"),
    ("u", "username of the backend"),
    ("p", "the file that password_file of the backend names"),
    ("token", "the file that token_file of the backend names"),
];

/// Characters of a backend's name besides letters and digits.
pub(super) const NAME_SIGNS: &str = "-_.:/%[]";
/// Characters that are percent-encoded in a name derived from a URL.
const NOT_IN_NAMES: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b':').remove(b'/').remove(b'[').remove(b']');

impl BackendUrl {
    /// Returns the address in a normal form. Two addresses differ only if they mean different
    /// servers, paths or folders; a server that changes to TLS keeps its address.
    pub fn address(&self) -> String {
        match self {
            Self::Influx { base: uri, .. } => {
                let usual_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
                let port = uri.port_u16().unwrap_or(usual_port);
                let host = uri.host().unwrap_or_default().to_ascii_lowercase();
                format!("http://{host}:{port}{}", uri.path().trim_end_matches('/'))
            }
            // `components` drops doubled and trailing slashes.
            Self::Archive(path) => format!("file://{}", path.components().collect::<PathBuf>().display()),
            Self::Relay(host) => format!("udp://{}", host.to_ascii_lowercase()),
        }
    }

    /// Returns a name for the address: host, port and path, or the folder.
    pub fn name(&self) -> String {
        let address = self.address();
        let name = address.strip_prefix("http://").or_else(|| address.strip_prefix("file://")).unwrap_or(&address);
        utf8_percent_encode(name, NOT_IN_NAMES).to_string()
    }
}

impl FromStr for BackendUrl {
    type Err = InvalidUrl;

    /// Errors never repeat the text, which may hold a password.
    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        const KINDS: &str = "write http://HOST:8086 or https://HOST:8086 for an InfluxDB, \
                             file:///FOLDER for an archive, udp://HOST:8089 for another relay";
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| InvalidUrl(format!("a backend's URL needs a scheme: {KINDS}")))?;
        if rest.contains('@') {
            return Err(InvalidUrl::new("a URL must hold no user or password: use username and password_file"));
        }
        match scheme {
            "http" | "https" => {
                let authority = rest.split('/').next().unwrap_or_default();
                if authority.matches(':').count() > 1 && !authority.starts_with('[') {
                    return Err(InvalidUrl(format!("write an IPv6 address in brackets: {scheme}://[::1]:8086")));
                }
                let uri: Uri = text.parse().map_err(|error| InvalidUrl(format!("not a URL ({error}): {KINDS}")))?;
                if uri.host().unwrap_or_default().is_empty() {
                    return Err(InvalidUrl(format!("the URL names no host: {KINDS}")));
                }
                let after_host = rest.split('/').next().unwrap_or_default().rsplit(']').next().unwrap_or_default();
                if after_host.contains(':') && uri.port_u16().is_none() {
                    return Err(InvalidUrl(format!("the URL's port is no number up to 65535: {KINDS}")));
                }
                if let Some(query) = uri.query().filter(|query| !query.is_empty()) {
                    return Err(InvalidUrl(format!("the URL must end with its path: {}", advice_on(query))));
                }
                let (base, names_v2) = without_api_path(&uri)?;
                Ok(Self::Influx { base, names_v2 })
            }
            "file" if rest.starts_with('/') => Ok(Self::Archive(PathBuf::from(rest))),
            "file" => Err(InvalidUrl::new("a file URL needs an absolute path: file:///var/lib/twinflux/archive")),
            "udp" => match rest.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                    Ok(Self::Relay(rest.to_owned()))
                }
                _ => Err(InvalidUrl::new("a relay's URL needs a host and a port: udp://relay-2:8089")),
            },
            other => Err(InvalidUrl(format!("unknown scheme {other:?}: {KINDS}"))),
        }
    }
}

/// Says where the parameters of a query string belong. Never repeats their values.
fn advice_on(query: &str) -> String {
    let keys: Vec<&str> = query.split('&').filter_map(|pair| pair.split('=').next()).collect();
    let places = PARAMETERS.iter().filter(|(key, _)| keys.contains(key));
    let places: Vec<String> = places.map(|(key, place)| format!("{key} belongs into {place}")).collect();
    if places.is_empty() { "leave out what begins with '?'".to_owned() } else { places.join(", ") }
}

/// Strips the API's path from the URL's end, if there is one; returns whether it was the v2 API's.
fn without_api_path(uri: &Uri) -> Result<(Uri, bool), InvalidUrl> {
    let path = uri.path().trim_end_matches('/');
    let found = API_PATHS.iter().find_map(|(api, is_v2)| path.strip_suffix(api).map(|base| (base, *is_v2)));
    let (base, is_v2) = found.unwrap_or((path, false));
    let mut parts = uri.clone().into_parts();
    let path = if base.is_empty() { "/" } else { base };
    parts.path_and_query = Some(path.parse().map_err(|error| InvalidUrl(format!("not a URL ({error})")))?);
    let base = Uri::from_parts(parts).map_err(|error| InvalidUrl(format!("not a URL ({error})")))?;
    Ok((base, is_v2))
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // `Uri` adds a bare `/` that the text did not have.
            Self::Influx { base, .. } => f.write_str(base.to_string().trim_end_matches('/')),
            Self::Archive(path) => write!(f, "file://{}", path.display()),
            Self::Relay(host) => write!(f, "udp://{host}"),
        }
    }
}

impl<'de> Deserialize<'de> for BackendUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for BackendUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scheme_names_a_kind_and_is_shown_as_written() {
        for text in [
            "http://10.0.0.1:8086",
            "https://influx.example/prefix",
            "http://[::1]:8086",
            "file:///var/lib/archive",
            "udp://relay-2:8089",
        ] {
            assert_eq!(text.parse::<BackendUrl>().map(|url| url.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn names_and_addresses_tell_servers_apart_and_nothing_else() {
        for (text, address, name) in [
            ("http://10.0.0.1:8086", "http://10.0.0.1:8086", "10.0.0.1:8086"),
            ("https://10.0.0.1:8086/", "http://10.0.0.1:8086", "10.0.0.1:8086"),
            ("https://Influx.example/prefix/", "http://influx.example:443/prefix", "influx.example:443/prefix"),
            ("http://[::1]:8086", "http://[::1]:8086", "[::1]:8086"),
            ("file:///var/lib/my archive", "file:///var/lib/my archive", "/var/lib/my%20archive"),
            ("file:////var//lib/archive/", "file:///var/lib/archive", "/var/lib/archive"),
            ("http://A:80", "http://a:80", "a:80"),
            ("udp://A:1", "udp://a:1", "udp://a:1"),
            ("udp://relay-2:8089", "udp://relay-2:8089", "udp://relay-2:8089"),
        ] {
            let url: BackendUrl = text.parse().expect(text);
            assert_eq!((url.address().as_str(), url.name().as_str()), (address, name), "{text}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || NAME_SIGNS.contains(c)));
        }
    }

    #[test]
    fn a_path_of_the_api_is_taken_as_meant() {
        for (text, shown, is_v2) in [
            ("http://10.0.0.1:8086/write", "http://10.0.0.1:8086", false),
            ("http://10.0.0.1:8086/write?", "http://10.0.0.1:8086", false),
            ("http://10.0.0.1:8086/query/", "http://10.0.0.1:8086", false),
            ("http://[::1]:8086/ping", "http://[::1]:8086", false),
            ("https://influx.example/one/api/v2/write/", "https://influx.example/one", true),
            ("https://influx.example/api/v2/", "https://influx.example", true),
            ("https://influx.example/prefix//", "https://influx.example/prefix", false),
            ("https://influx.example/overwrite", "https://influx.example/overwrite", false),
        ] {
            let url: BackendUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), shown);
            assert!(matches!(url, BackendUrl::Influx { names_v2, .. } if names_v2 == is_v2), "{text}");
        }
    }

    #[test]
    fn errors_say_what_would_be_right_and_repeat_no_secret() {
        for (text, part) in [
            ("10.0.0.1:8086", "needs a scheme"),
            ("tcp://10.0.0.1:8086", "unknown scheme"),
            ("http://", "http://HOST"),
            ("http://::1:8086", "in brackets: http://[::1]:8086"),
            ("https://fe80::1/influx", "in brackets: https://[::1]:8086"),
            ("http://10.0.0.1:99999", "65535"),
            ("http://10.0.0.1:/x", "65535"),
            ("http://admin:hunter2@10.0.0.1:8086", "password_file"),
            ("http://10.0.0.1:8086/write?db=x&u=me&p=hunter2", "db belongs into database of the listener"),
            ("http://10.0.0.1:8086/write?db=x&p=hunter2", "p belongs into the file that password_file"),
            ("https://10.0.0.1/api/v2/write?org=o&bucket=b&token=hunter2", "token_file"),
            ("https://10.0.0.1/api/v2/write?org=o&bucket=b", "org belongs into org of the backend"),
            ("http://10.0.0.1:8086/write?pretty=hunter2", "leave out"),
            ("file://relative", "absolute"),
            ("udp://relay-2", "port"),
        ] {
            let error = text.parse::<BackendUrl>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("hunter2"));
        }
    }
}
