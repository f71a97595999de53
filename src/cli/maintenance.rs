//! `twinflux backend`, `forget-host` and `reload`: requests to a running relay.

use std::net::IpAddr;
use std::path::Path;

use crate::cli::outcome::Failure;
use crate::cli::socket::{Answer, AskError, BackendAction, Request, ask};

/// Acts on a backend of the running relay. Returns the backend's state in words, and whether it
/// takes lines.
///
/// # Errors
/// No relay answers, or it refuses.
pub fn change(data_dir: &Path, name: &str, action: BackendAction) -> Result<(String, bool), ChangeError> {
    let request = Request::Backend { name: name.to_owned(), action };
    match ask(data_dir, &request)? {
        Answer::Backend { state, error } => {
            // A UDP backend gives no answer, and so no error either.
            let is_silent = error.is_none();
            let reason = error.map_or_else(String::new, |error| format!(": {error}"));
            Ok((format!("{name} is {state}{reason}\n"), state == "up" || (state == "unknown" && is_silent)))
        }
        Answer::Failed { error } => Err(ChangeError::Failed(error)),
        _ => Err(ChangeError::OtherVersion),
    }
}

/// Has the running relay forget a host. Returns a confirmation.
///
/// # Errors
/// No relay answers, or it knows no such host.
pub fn forget_host(data_dir: &Path, address: IpAddr) -> Result<String, ChangeError> {
    match ask(data_dir, &Request::ForgetHost { address })? {
        Answer::Done { lines: 0, .. } => Err(ChangeError::UnknownHost(address)),
        Answer::Done { .. } => Ok(format!("{address} is forgotten until it sends again\n")),
        Answer::Failed { error } => Err(ChangeError::Failed(error)),
        _ => Err(ChangeError::OtherVersion),
    }
}

/// Has the running relay read its configuration again. Returns what it did, one sentence a line.
///
/// # Errors
/// No relay answers, or the configuration is invalid.
pub fn reload(data_dir: &Path) -> Result<String, ChangeError> {
    match ask(data_dir, &Request::Reload)? {
        Answer::Reloaded { reloaded } => Ok(reloaded.iter().map(|sentence| format!("{sentence}\n")).collect()),
        Answer::Failed { error } => Err(ChangeError::Failed(error)),
        _ => Err(ChangeError::OtherVersion),
    }
}

/// Why a request to the running relay had no effect.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// No relay answers.
    #[error("{0}")]
    Unreachable(#[from] AskError),
    /// The relay answered with an error.
    #[error("{0}")]
    Failed(String),
    /// The relay has seen no host at this address.
    #[error("no host at {0} is known")]
    UnknownHost(IpAddr),
    /// The relay gave an answer that does not fit the request.
    #[error("the relay is of another version")]
    OtherVersion,
}

impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Unreachable(error) => Self::unreachable(error),
            error => Self::failed(error),
        }
    }
}
