//! Authenticates requests to the admin listener: a user or a token of `[auth]` with the right to
//! administer.
//!
//! Never keeps a session; a browser sends its credentials with each request. Bounds: see
//! [`Checker`].

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::header::WWW_AUTHENTICATE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::auth::{Auth, Busy, Checker, Credentials};

/// The prompt that a browser shows when it asks for a password.
const REALM: &str = "Basic realm=\"twinflux\", charset=\"UTF-8\"";

/// The users that may ask.
#[derive(Debug)]
pub(super) struct Users(Checker);

impl Users {
    pub(super) fn new(auth: Arc<Auth>) -> Self {
        Self(Checker::new(auth))
    }

    /// Returns why a request with these headers is refused; `None` if it is allowed.
    pub(super) async fn refusal(&self, headers: &HeaderMap, source: IpAddr) -> Option<Response> {
        let Ok(Some(credentials)) = Credentials::of(None, None, headers) else { return Some(unauthorized()) };
        match self.0.identify(credentials, source).await {
            Ok(Some(identity)) if self.0.auth().may_administer(&identity) => None,
            Ok(Some(_)) => {
                Some((StatusCode::FORBIDDEN, "this needs a user with admin = true in [[auth.right]]\n").into_response())
            }
            Ok(None) => Some(unauthorized()),
            Err(Busy) => {
                Some((StatusCode::SERVICE_UNAVAILABLE, "too many passwords are being checked\n").into_response())
            }
        }
    }
}

fn unauthorized() -> Response {
    let what = "name a user of [auth] with its password, or a token\n";
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, REALM)], what).into_response()
}
