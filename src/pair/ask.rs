//! Requests a report from the other relay.
//!
//! Owns: the connection, the request, and the meaning of an answer. Never does: judge a report.
//! Bounds: time limits, and what [`Client`] keeps of an answer.

use std::net::IpAddr;
use std::time::Duration;

use http::header::{AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use http::{Request, StatusCode, Uri};

use super::report::Report;
use crate::net::client::{Client, Payload};
use crate::net::{ClientTlsError, Secret, SecretError, SecretFile, Times, Tls};
use crate::sys::text::{cut, printable};

/// Path of the report.
const PATH: &str = "/api/pair";
/// Time limits to connect and to answer.
const TIMES: Times =
    Times { connect: Duration::from_secs(2), answer: Duration::from_secs(2), lifetime: Duration::from_secs(50) };
/// Maximum length of a kept error, in bytes.
const ERROR_BYTES: usize = 500;

/// How to reach the other relay.
#[derive(Clone, Debug)]
pub struct PairConfig {
    /// Its admin listener: `http` or `https`, host and port.
    pub peer: Uri,
    /// The file with a token of an administrator there.
    pub token: Option<SecretFile>,
    /// Certificates to trust.
    pub tls: Tls,
    /// The address that one of the relays holds.
    pub address: Option<IpAddr>,
}

/// The other relay cannot be polled, or sends no report.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// A certificate file cannot be used.
    #[error("{0}")]
    Tls(#[from] ClientTlsError),
    /// The token's file cannot be read.
    #[error(transparent)]
    Token(#[from] SecretError),
    /// There is no report, for this reason.
    #[error("{0}")]
    NoReport(String),
}

/// Why there is no report.
pub(super) enum Missed {
    /// There was no answer.
    Silent(String),
    /// The answer is not a report.
    Refused(String),
}

/// Requests a report once.
///
/// # Errors
/// There is no report.
pub async fn look(config: &PairConfig) -> Result<Report, PairError> {
    let mut client = client(config)?;
    let token = config.token.as_ref().map(SecretFile::read).transpose()?;
    ask(config, &mut client, token.as_ref()).await.map_err(|missed| match missed {
        Missed::Silent(error) | Missed::Refused(error) => PairError::NoReport(error),
    })
}

/// Checks that the files of a configuration can be read.
///
/// # Errors
/// One of them cannot be used.
pub fn check(config: &PairConfig) -> Result<(), PairError> {
    client(config)?;
    if let Some(file) = &config.token {
        file.read()?;
    }
    Ok(())
}

/// Requests a report.
pub(super) async fn ask(config: &PairConfig, client: &mut Client, token: Option<&Secret>) -> Result<Report, Missed> {
    let authority = config.peer.authority().map(ToString::to_string).unwrap_or_default();
    let request = || {
        let mut request = Request::new(Payload::default());
        *request.uri_mut() = Uri::from_static(PATH);
        let headers = request.headers_mut();
        headers.extend(HeaderValue::from_str(&authority).ok().map(|host| (HOST, host)));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("twinflux/", env!("CARGO_PKG_VERSION"))));
        let token = token.as_ref().and_then(|token| HeaderValue::from_str(&format!("Token {}", token.expose())).ok());
        headers.extend(token.map(|mut value| {
            value.set_sensitive(true);
            (AUTHORIZATION, value)
        }));
        request
    };
    let answer = client.send(request).await.map_err(|error| Missed::Silent(error.to_string()))?;
    let shown = |text: &str| printable(cut(text.trim(), ERROR_BYTES)).into_owned();
    match answer.status {
        StatusCode::OK => serde_json::from_str(&answer.body).map_err(|error| {
            Missed::Refused(format!("what answers there is no relay ({})", shown(&error.to_string())))
        }),
        StatusCode::UNAUTHORIZED => {
            Err(Missed::Refused("it asks for a user: set token_file to a token that may administer there".to_owned()))
        }
        status => Err(Missed::Refused(format!("it answered {status}: {}", shown(&answer.body)))),
    }
}

/// Creates the client.
///
/// # Errors
/// A certificate file cannot be used.
pub(super) fn client(config: &PairConfig) -> Result<Client, ClientTlsError> {
    let tls = if config.peer.scheme_str() == Some("https") { Some((config.tls.config()?, None)) } else { None };
    Ok(Client::new(&config.peer, tls, TIMES))
}
