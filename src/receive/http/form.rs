//! Parameters of a query, from the URL, a form body, or a multipart body. As in InfluxDB, the body
//! takes precedence over the URL.
//!
//! Never does: forwarding a parameter that it did not parse; the form for the backend is written
//! anew. Bounds: a body of [`MAX_BYTES`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::request::parameters;

/// Maximum size of a query's body in bytes; InfluxDB's limit for a request head.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// Parameters that are forwarded besides the statement, in the order in which they are written.
const PASSED: [&str; 7] = ["db", "rp", "epoch", "params", "chunked", "chunk_size", "time_format"];

/// The parameters of one request.
#[derive(Debug, Default)]
pub(super) struct Form {
    values: HashMap<String, String>,
    pub(super) is_pretty: bool,
}

/// A multipart body that cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct InvalidForm(#[from] multer::Error);

impl Form {
    /// Parses the parameters of a request with this query string, and with this body if it is a
    /// POST.
    ///
    /// # Errors
    /// The multipart body cannot be parsed.
    pub(super) async fn of(query: &str, headers: &HeaderMap, body: Option<Bytes>) -> Result<Self, InvalidForm> {
        let mut values = HashMap::new();
        if let Some(body) = body {
            let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            if let Ok(boundary) = multer::parse_boundary(kind) {
                values = parts(body, boundary).await?;
            } else {
                // Any other content type is read as a form, because old clients do not label forms.
                let text = String::from_utf8_lossy(&body);
                values = owned(parameters(text.trim()));
            }
        }
        let of_query = owned(parameters(query));
        let is_pretty = of_query.get("pretty").is_some_and(|value| value == "true");
        for (name, value) in of_query {
            values.entry(name).or_insert(value);
        }
        Ok(Self { values, is_pretty })
    }

    /// The value of a parameter. `None` if it is absent or empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Encodes the form of a query to a backend.
    pub(super) fn question(&self, statement: &str) -> String {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut form = format!("q={}", encode(statement));
        for name in PASSED {
            if let Some(value) = self.get(name) {
                form.push_str(&format!("&{name}={}", encode(value)));
            }
        }
        form
    }
}

fn owned(parameters: HashMap<Cow<'_, str>, Cow<'_, str>>) -> HashMap<String, String> {
    parameters.into_iter().map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

/// Parses a multipart body, files included. Of several parts with the same name, the first counts.
async fn parts(body: Bytes, boundary: String) -> Result<HashMap<String, String>, InvalidForm> {
    let whole = stream::iter([Ok::<_, Infallible>(body)]);
    let mut parts = multer::Multipart::new(whole, boundary);
    let mut values = HashMap::new();
    while let Some(part) = parts.next_field().await? {
        let name = part.name().unwrap_or_default().to_owned();
        let text = part.text().await?;
        values.entry(name).or_insert(text);
    }
    Ok(values)
}
