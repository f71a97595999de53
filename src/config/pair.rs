//! `[pair]`: the other relay of a pair.

use std::net::IpAddr;
use std::path::PathBuf;

use http::Uri;
use serde::{Deserialize, Serialize};

use crate::config::invalid::InvalidKey;
use crate::config::load::ConfigError;
use crate::net::{SecretFile, Tls};
use crate::pair::PairConfig;

/// The other relay of a pair.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pair {
    /// URL of the other relay's admin listener, such as `https://other:9097`; without it there is
    /// no pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The file with a token that may administer there, if its `[admin]` requires users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Certificates (PEM) to trust instead of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The address that exactly one relay holds; a finding tells when both hold it, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

impl Pair {
    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.peer.is_none() && self.token_file.is_none() && self.ca_file.is_none() && self.address.is_none()
    }

    /// Checks that the files it names can be used.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self.setup() {
            Ok(Some(setup)) => {
                crate::pair::check(&setup).map_err(|error| ConfigError::new(format_args!("pair: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// Returns how to reach the other relay; `None` without a pair.
    ///
    /// # Errors
    /// The first key that is invalid.
    pub(crate) fn setup(&self) -> Result<Option<PairConfig>, InvalidKey> {
        let Some(peer) = &self.peer else {
            return if self.is_empty() {
                Ok(None)
            } else {
                Err(InvalidKey::new("peer", "is missing: \"https://other:9097\""))
            };
        };
        let peer = url(peer)?;
        if self.ca_file.is_some() && peer.scheme_str() != Some("https") {
            return Err(InvalidKey::new("ca_file", "is for an https:// peer only"));
        }
        if self.address.is_some_and(|address| address.is_loopback() || address.is_unspecified()) {
            return Err(InvalidKey::new("address", "must be the one that hosts send to: both relays have loopback"));
        }
        let tls = Tls { ca_file: self.ca_file.clone(), ..Tls::default() };
        let token = self.token_file.clone().map(SecretFile::new);
        Ok(Some(PairConfig { peer, token, tls, address: self.address }))
    }
}

fn url(text: &str) -> Result<Uri, InvalidKey> {
    const FORM: &str = "must be the other relay's admin listener: \"http://HOST:9097\" or \"https://HOST:9097\"";
    if text.contains('@') {
        return Err(InvalidKey::new("peer", "must hold no user or password: use token_file"));
    }
    let uri: Uri = text.parse().map_err(|_| InvalidKey::new("peer", FORM))?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    if !is_http || !has_host || uri.path() != "/" || uri.query().is_some() {
        return Err(InvalidKey::new("peer", FORM));
    }
    if uri.port_u16().is_none() {
        return Err(InvalidKey::new("peer", "names no port: a relay's admin listener has 9097"));
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_an_admin_listener() {
        for (text, expected) in [
            ("http://other:9097", None),
            ("https://[2001:db8::1]:9097/", None),
            ("other:9097", Some("must be the other relay's")),
            ("udp://other:9097", Some("must be the other relay's")),
            ("http://other:9097/api/status", Some("must be the other relay's")),
            ("http://other", Some("names no port")),
            ("http://me:secret@other:9097", Some("no user or password")),
            ("", Some("must be the other relay's")),
        ] {
            let pair = Pair { peer: Some(text.to_owned()), ..Pair::default() };
            let wrong = pair.setup().err().map(|error| error.what);
            assert_eq!(wrong.is_some(), expected.is_some(), "{text}: {wrong:?}");
            assert!(
                expected.is_none_or(|part| wrong.as_ref().is_some_and(|what| what.contains(part))),
                "{text}: {wrong:?}"
            );
        }
        let alone = Pair { address: Some([10, 0, 0, 9].into()), ..Pair::default() };
        assert!(alone.setup().is_err() && Pair::default().setup().expect("fine").is_none());
        let loopback = Pair { peer: Some("http://other:1".to_owned()), address: Some([127, 0, 0, 1].into()), ..alone };
        assert_eq!(loopback.setup().expect_err("of no use").key, "address");
    }
}
