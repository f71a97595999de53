//! Asking the other relay how it is.
//!
//! Owns how it is reached, the request, and what each answer means. Never does: judging what was said. Bounds: time limits, and
//! what [`Client`] keeps of an answer.

use std::net::IpAddr;
use std::time::Duration;

use http::header::{AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use http::{Request, StatusCode, Uri};

use super::report::Report;
use crate::net::client::{Client, Payload};
use crate::net::{ClientTlsError, Secret, SecretFile, Times, Tls};
use crate::sys::text::{cut, printable};

/// What it is asked.
const PATH: &str = "/api/pair";
/// How long it may take to connect, and to answer.
const TIMES: Times =
    Times { connect: Duration::from_secs(2), answer: Duration::from_secs(2), lifetime: Duration::from_secs(50) };
/// How much of an error is kept, in bytes.
const ERROR_BYTES: usize = 500;

/// How the other relay is reached.
#[derive(Clone, Debug)]
pub struct PairConfig {
    /// Its admin listener: `http` or `https`, host and port.
    pub peer: Uri,
    /// The file with a token that may administer there.
    pub token: Option<SecretFile>,
    /// Whom to trust.
    pub tls: Tls,
    /// The address that one of both holds.
    pub address: Option<IpAddr>,
}

/// Why there is no report.
pub(super) enum Missed {
    /// Nobody answers.
    Silent(String),
    /// Somebody answers, and does not say how the other relay is.
    Refused(String),
}

/// Asks the other relay once.
///
/// # Errors
/// Why it does not say how it is, as a sentence.
pub async fn look(setup: &PairConfig) -> Result<Report, String> {
    let mut client = client(setup).map_err(|error| error.to_string())?;
    let token = setup.token.as_ref().map(SecretFile::read).transpose().map_err(|error| error.to_string())?;
    ask(setup, &mut client, token.as_ref()).await.map_err(|missed| match missed {
        Missed::Silent(error) | Missed::Refused(error) => error,
    })
}

/// Whether a setup can be used: its files can be read.
///
/// # Errors
/// What is wrong with one of them.
pub fn check(setup: &PairConfig) -> Result<(), String> {
    client(setup).map_err(|error| error.to_string())?;
    setup.token.as_ref().map_or(Ok(()), |file| file.read().map(|_| ()).map_err(|error| error.to_string()))
}

/// Asks the other relay.
pub(super) async fn ask(setup: &PairConfig, client: &mut Client, token: Option<&Secret>) -> Result<Report, Missed> {
    let authority = setup.peer.authority().map(ToString::to_string).unwrap_or_default();
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

/// What connects there.
///
/// # Errors
/// What is wrong with the files of certificates.
pub(super) fn client(setup: &PairConfig) -> Result<Client, ClientTlsError> {
    let tls = if setup.peer.scheme_str() == Some("https") { Some((setup.tls.config()?, None)) } else { None };
    Ok(Client::new(&setup.peer, tls, TIMES))
}
