//! Addresses to listen on, as people write them: `8089`, `:8089`, `0.0.0.0:8089`, `[::]:8089`,
//! `localhost:8089`.
//!
//! A name is resolved once, when the configuration is loaded. Of several addresses the first IPv4
//! address is taken, so that `localhost` is 127.0.0.1 everywhere; `twinflux check` and the start
//! show the result.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};

use serde::{Deserializer, de};

/// A text that is not an address to listen on. The message says what would be right.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InvalidAddress(String);

/// Parses the address of a data listener; without a host it is every address of this machine.
///
/// # Errors
/// The text is no address, or its name cannot be resolved.
pub(crate) fn parse_data(text: &str) -> Result<SocketAddr, InvalidAddress> {
    parse(text, Ipv4Addr::UNSPECIFIED)
}

/// Parses the address of the admin listener; without a host it is loopback, because the page has no
/// password.
///
/// # Errors
/// The text is no address, or its name cannot be resolved.
pub(crate) fn parse_admin(text: &str) -> Result<SocketAddr, InvalidAddress> {
    parse(text, Ipv4Addr::LOCALHOST)
}

fn parse(text: &str, default: Ipv4Addr) -> Result<SocketAddr, InvalidAddress> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = split(text, default)?;
    let port = port.parse::<u16>().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()));
    let port = port.ok_or_else(|| {
        InvalidAddress(format!("{text:?} has no port between 0 and 65535: write {}", examples(default)))
    })?;
    let host = match host {
        "" => return Ok((default, port).into()),
        host => host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host),
    };
    resolve(host, port)
        .map_err(|error| InvalidAddress(format!("cannot resolve {host:?}: {error}; write {}", examples(default))))
}

/// Splits host and port; the host is empty if there is none.
fn split(text: &str, default: Ipv4Addr) -> Result<(&str, &str), InvalidAddress> {
    let has_port = !(text.starts_with('[') && text.ends_with(']'));
    let Some((host, port)) = text.rsplit_once(':').filter(|_| has_port) else {
        let is_port = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        return if is_port {
            Ok(("", text))
        } else {
            Err(InvalidAddress(format!("{text:?} has no port: write {}", examples(default))))
        };
    };
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        let what = format!("{text:?} is ambiguous: write an IPv6 address in brackets, \"[::1]:8089\"");
        return Err(InvalidAddress(what));
    }
    Ok((host, port))
}

fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    let found: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or_else(|| found.first());
    first.copied().ok_or_else(|| io::Error::other("it has no address"))
}

fn examples(default: Ipv4Addr) -> String {
    format!("an IP address or a name, and a port: \"{default}:8089\", \"localhost:8089\"; or only a port")
}

/// Deserializes a data listener's address.
pub(crate) fn data<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    deserializer.deserialize_any(Text(parse_data))
}

/// Deserializes the admin listener's address.
pub(crate) fn admin<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    deserializer.deserialize_any(Text(parse_admin))
}

/// Visits a text, or a number that is a port.
struct Text(fn(&str) -> Result<SocketAddr, InvalidAddress>);

impl de::Visitor<'_> for Text {
    type Value = SocketAddr;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an address and a port, such as \"0.0.0.0:8089\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<SocketAddr, E> {
        (self.0)(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, port: i64) -> Result<SocketAddr, E> {
        self.visit_str(&port.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_lack_its_host_and_may_be_a_name() {
        for (text, data, admin) in [
            ("8089", "0.0.0.0:8089", "127.0.0.1:8089"),
            (":8089", "0.0.0.0:8089", "127.0.0.1:8089"),
            ("0", "0.0.0.0:0", "127.0.0.1:0"),
            ("10.0.0.1:8089", "10.0.0.1:8089", "10.0.0.1:8089"),
            ("[::]:8089", "[::]:8089", "[::]:8089"),
            ("[fe80::1%2]:8089", "[fe80::1%2]:8089", "[fe80::1%2]:8089"),
            // The loopback interface has the number 1.
            ("[fe80::1%lo]:8089", "[fe80::1%1]:8089", "[fe80::1%1]:8089"),
            ("localhost:8089", "127.0.0.1:8089", "127.0.0.1:8089"),
        ] {
            assert_eq!(parse_data(text).map(|address| address.to_string()), Ok(data.to_owned()), "{text}");
            assert_eq!(parse_admin(text).map(|address| address.to_string()), Ok(admin.to_owned()), "{text}");
        }
    }

    #[test]
    fn errors_name_what_is_wrong_and_what_would_be_right() {
        for (text, parts) in [
            ("", &["has no port", "0.0.0.0:8089"][..]),
            (":", &["no port between 0 and 65535"]),
            ("65536", &["\"65536\" has no port between 0 and 65535"]),
            ("localhost:+80", &["no port between 0 and 65535"]),
            ("localhost:http", &["no port between 0 and 65535"]),
            ("localhost", &["\"localhost\" has no port", "localhost:8089"]),
            ("10.0.0.1", &["\"10.0.0.1\" has no port", "0.0.0.0:8089"]),
            ("::1", &["in brackets"]),
            ("::1:8089", &["in brackets", "\"[::1]:8089\""]),
            ("::8089", &["in brackets"]),
            ("nowhere.invalid:8089", &["cannot resolve \"nowhere.invalid\"", "0.0.0.0:8089"]),
            ("-8089", &["has no port"]),
            ("[::1]", &["\"[::1]\" has no port"]),
        ] {
            let error = parse_data(text).expect_err(text).to_string();
            for part in parts {
                assert!(error.contains(part), "{text:?}: {error:?} does not say {part:?}");
            }
        }
    }
}
