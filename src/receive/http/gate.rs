//! Authentication and authorization: checks a request's credentials and rights before its body is
//! read.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, Uri};

use super::problem::Problem;
use super::request::parameters;
use crate::auth::{Auth, Busy, Checker, Credentials, Identity};

/// Access control of one listener.
pub(super) struct Gate {
    /// `None`: everybody may read and write everything.
    checker: Option<Checker>,
}

impl Gate {
    pub(super) fn new(auth: Option<Arc<Auth>>) -> Self {
        Self { checker: auth.map(Checker::new) }
    }

    /// Checks that the request's sender may write to this database.
    ///
    /// # Errors
    /// Why the sender may not write.
    pub(super) async fn may_write(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        source: IpAddr,
        database: &str,
    ) -> Result<(), Problem> {
        let Some(checker) = &self.checker else { return Ok(()) };
        let identity = identify(checker, uri, headers, source).await?;
        if checker.auth().may_write(&identity, database) { Ok(()) } else { Err(Problem::NoRight(database.to_owned())) }
    }

    /// Returns what the request's sender may read. `None` if everybody may read everything.
    ///
    /// # Errors
    /// The sender cannot be authenticated.
    pub(super) async fn reading(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        source: IpAddr,
    ) -> Result<Option<Reading>, Problem> {
        let Some(checker) = &self.checker else { return Ok(None) };
        let identity = identify(checker, uri, headers, source).await?;
        Ok(Some(Reading { auth: Arc::clone(checker.shared_auth()), identity }))
    }

    /// Whether the request's sender may administer here. A relay without users returns false for
    /// everybody; one with users requires an administrator's credentials.
    ///
    /// # Errors
    /// The sender cannot be authenticated, or is no administrator.
    pub(super) async fn may_administer(&self, uri: &Uri, headers: &HeaderMap, source: IpAddr) -> Result<bool, Problem> {
        let Some(checker) = &self.checker else { return Ok(false) };
        let identity = identify(checker, uri, headers, source).await?;
        if checker.auth().may_administer(&identity) { Ok(true) } else { Err(Problem::NoAdministrator) }
    }
}

/// The rights of an authenticated reader.
pub(super) struct Reading {
    auth: Arc<Auth>,
    identity: Identity,
}

impl Reading {
    pub(super) fn may_read(&self, database: &str) -> bool {
        self.auth.may_read(&self.identity, database)
    }

    pub(super) fn may_administer(&self) -> bool {
        self.auth.may_administer(&self.identity)
    }

    /// Whether the reader may know that this database exists.
    pub(super) fn may_see(&self, database: &str) -> bool {
        self.may_administer() || self.may_read(database) || self.auth.may_write(&self.identity, database)
    }
}

/// Authenticates the sender of a request.
async fn identify(checker: &Checker, uri: &Uri, headers: &HeaderMap, source: IpAddr) -> Result<Identity, Problem> {
    let mut parameters = parameters(uri.query().unwrap_or_default());
    let (user, password) = (parameters.remove("u"), parameters.remove("p"));
    let credentials = Credentials::of(user.as_deref(), password.as_deref(), headers)
        .map_err(|_| Problem::Framing("there is more than one Authorization header"))?;
    let Some(credentials) = credentials else { return Err(Problem::Unauthorized) };
    match checker.identify(credentials, source).await {
        Ok(identity) => identity.ok_or(Problem::Unauthorized),
        Err(Busy) => Err(Problem::Busy),
    }
}
