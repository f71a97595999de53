//! A backend's URL: what kind of backend it names, and that it holds no secret.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A backend's URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendUrl {
    /// `http://host:port` or `https://host:port`: an InfluxDB.
    Influx(Uri),
    /// `file:///path`: an archive.
    Archive(PathBuf),
    /// `udp://host:port`: another relay.
    Relay(String),
}

/// What a backend's name may hold beside letters and digits.
pub(super) const NAME_SIGNS: &str = "-_.:/%[]";
/// What a name that comes from a URL has as `%XX`.
const NOT_IN_NAMES: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b':').remove(b'/').remove(b'[').remove(b']');

impl BackendUrl {
    /// What it addresses, in a form that differs only where another server, path or folder is meant: a server that goes over
    /// to TLS stays the same.
    pub fn address(&self) -> String {
        match self {
            Self::Influx(uri) => {
                let usual_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
                let port = uri.port_u16().unwrap_or(usual_port);
                let host = uri.host().unwrap_or_default().to_ascii_lowercase();
                format!("http://{host}:{port}{}", uri.path().trim_end_matches('/'))
            }
            Self::Archive(path) => format!("file://{}", path.display()),
            Self::Relay(host) => format!("udp://{}", host.to_ascii_lowercase()),
        }
    }

    /// A name for what it addresses: host, port and path, or the folder.
    pub fn name(&self) -> String {
        let address = self.address();
        let name = address.strip_prefix("http://").or_else(|| address.strip_prefix("file://")).unwrap_or(&address);
        utf8_percent_encode(name, NOT_IN_NAMES).to_string()
    }
}

impl FromStr for BackendUrl {
    type Err = String;

    /// Errors never repeat the text: it may hold a password.
    fn from_str(text: &str) -> Result<Self, String> {
        const KINDS: &str = "write http://HOST:8086 or https://HOST:8086 for an InfluxDB, \
                             file:///FOLDER for an archive, udp://HOST:8089 for another relay";
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| format!("a backend's URL needs a scheme: {KINDS}"))?;
        if rest.contains('@') {
            return Err("a URL must hold no user or password: use username and password_file".to_owned());
        }
        match scheme {
            "http" | "https" => {
                let uri: Uri = text.parse().map_err(|error| format!("not a URL ({error}): {KINDS}"))?;
                if uri.host().unwrap_or_default().is_empty() {
                    return Err(format!("the URL names no host: {KINDS}"));
                }
                let after_host = rest.split('/').next().unwrap_or_default().rsplit(']').next().unwrap_or_default();
                if after_host.contains(':') && uri.port_u16().is_none() {
                    return Err(format!("the URL's port is no number up to 65535: {KINDS}"));
                }
                if uri.query().is_some() {
                    return Err("the URL must end with the path: database and retention policy belong to the \
                                listener, credentials into username, password_file and token_file"
                        .to_owned());
                }
                Ok(Self::Influx(uri))
            }
            "file" if rest.starts_with('/') => Ok(Self::Archive(PathBuf::from(rest))),
            "file" => Err("a file URL needs an absolute path: file:///var/lib/twinflux/archive".to_owned()),
            "udp" => match rest.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                    Ok(Self::Relay(rest.to_owned()))
                }
                _ => Err("a relay's URL needs a host and a port: udp://relay-2:8089".to_owned()),
            },
            other => Err(format!("unknown scheme {other:?}: {KINDS}")),
        }
    }
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A bare `/` for a path was not in the text.
            Self::Influx(uri) => f.write_str(uri.to_string().trim_end_matches('/')),
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
            ("udp://relay-2:8089", "udp://relay-2:8089", "udp://relay-2:8089"),
        ] {
            let url: BackendUrl = text.parse().expect(text);
            assert_eq!((url.address().as_str(), url.name().as_str()), (address, name), "{text}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || NAME_SIGNS.contains(c)));
        }
    }

    #[test]
    fn errors_say_what_would_be_right_and_repeat_no_secret() {
        for (text, part) in [
            ("10.0.0.1:8086", "needs a scheme"),
            ("tcp://10.0.0.1:8086", "unknown scheme"),
            ("http://", "http://HOST"),
            ("http://10.0.0.1:99999", "65535"),
            ("http://10.0.0.1:/x", "65535"),
            ("http://admin:hunter2@10.0.0.1:8086", "password_file"),
            ("http://10.0.0.1:8086/write?db=x&p=hunter2", "username"),
            ("file://relative", "absolute"),
            ("udp://relay-2", "port"),
        ] {
            let error = text.parse::<BackendUrl>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("hunter2"));
        }
    }
}
