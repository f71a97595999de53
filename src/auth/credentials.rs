//! The credentials of a request, in every form that any client uses, on every endpoint.
//!
//! The URL takes precedence, as in 1.x: `u` and `p`, or `p` alone, which is a token in 3.x. Then
//! comes the header `Authorization`: `Basic`, `Token` or `Bearer`; a token of the form
//! `user:password` is a user's password. Never shows a secret: `Debug` omits it.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};

/// A user with a password, or a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `None` for a token alone.
    pub(super) user: Option<String>,
    /// The password, or the token.
    pub(super) secret: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The request has several `Authorization` headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ambiguous;

impl Credentials {
    /// Reads the credentials of a request with these values of `u` and `p` in its URL. `None` if it
    /// has none, or none that can be read.
    ///
    /// # Errors
    /// The request has several `Authorization` headers.
    pub fn of(user: Option<&str>, password: Option<&str>, headers: &HeaderMap) -> Result<Option<Self>, Ambiguous> {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let header = given.next();
        if given.next().is_some() {
            return Err(Ambiguous);
        }
        let (user, password) = (user.filter(|user| !user.is_empty()), password.filter(|password| !password.is_empty()));
        if let Some(password) = password {
            return Ok(Some(Self { user: user.map(str::to_owned), secret: password.to_owned() }));
        }
        Ok(header.and_then(|value| Self::of_header(value.to_str().ok()?)))
    }

    /// Returns the credentials as a header of the form `Basic`; `None` for a token alone.
    pub fn basic(&self) -> Option<HeaderValue> {
        let user = self.user.as_ref()?;
        let pair = BASE64_STANDARD.encode(format!("{user}:{}", self.secret));
        let mut value = HeaderValue::from_str(&format!("Basic {pair}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    fn of_header(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ')?;
        let rest = rest.trim();
        if rest.is_empty() {
            return None;
        }
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => {
                let decoded = String::from_utf8(BASE64_STANDARD.decode(rest).ok()?).ok()?;
                let (user, secret) = decoded.split_once(':')?;
                let user = Some(user.to_owned()).filter(|user| !user.is_empty());
                Some(Self { user, secret: secret.to_owned() })
            }
            "token" | "bearer" => Some(match rest.split_once(':') {
                Some((user, secret)) => Self { user: Some(user.to_owned()), secret: secret.to_owned() },
                None => Self { user: None, secret: rest.to_owned() },
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().expect("a value"))])
    }

    fn some(user: &str, secret: &str) -> Option<Credentials> {
        let user = Some(user.to_owned()).filter(|user| !user.is_empty());
        Some(Credentials { user, secret: secret.to_owned() })
    }

    #[test]
    fn every_form_is_understood() {
        let basic = |pair: &str| header(&format!("Basic {}", BASE64_STANDARD.encode(pair)));
        for (user, password, headers, expected) in [
            (None, None, HeaderMap::new(), None),
            (Some("me"), Some("x"), HeaderMap::new(), some("me", "x")),
            (Some("me"), Some("x"), basic("other:y"), some("me", "x")),
            (Some("me"), None, basic("other:y"), some("other", "y")),
            (Some(""), Some(""), basic("other:y"), some("other", "y")),
            (None, Some("token"), HeaderMap::new(), some("", "token")),
            (None, None, basic("me:with:colons and ä"), some("me", "with:colons and ä")),
            (None, None, basic(":token"), some("", "token")),
            (None, None, basic("nothing"), None),
            (None, None, header("Basic !!!"), None),
            (None, None, header("Token abc"), some("", "abc")),
            (None, None, header("token   abc "), some("", "abc")),
            (None, None, header("Token me:a:b"), some("me", "a:b")),
            (None, None, header("Bearer abc"), some("", "abc")),
            (None, None, header("Digest abc"), None),
            (None, None, header("Token"), None),
        ] {
            assert_eq!(Credentials::of(user, password, &headers), Ok(expected), "{headers:?}");
        }
        let mut two = header("Token a");
        two.append(AUTHORIZATION, "Token b".parse().expect("a value"));
        assert_eq!(Credentials::of(None, None, &two), Err(Ambiguous));
        assert!(!format!("{:?}", some("me", "secret")).contains("secret"));
    }
}
