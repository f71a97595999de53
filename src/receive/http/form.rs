//! A query's parameters: of the URL, of a body's form, of its parts. What stands in the body counts, as in InfluxDB.
//!
//! Never passes on what it did not read: a question is written anew. Bounds: a body of [`MOST_BYTES`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::request::parameters;

/// The longest body of a query, in bytes: what InfluxDB takes for a head.
pub(super) const MOST_BYTES: usize = 1 << 20;

/// What a question may have beside the statement, in the order in which it is written.
const PASSED: [&str; 7] = ["db", "rp", "epoch", "params", "chunked", "chunk_size", "time_format"];

/// The parameters of one request.
#[derive(Debug, Default)]
pub(super) struct Form {
    values: HashMap<String, String>,
    pub(super) is_pretty: bool,
}

impl Form {
    /// Of a request with this query, and with this body if it is a POST.
    ///
    /// # Errors
    /// The parts of the body cannot be read.
    pub(super) async fn of(query: &str, headers: &HeaderMap, body: Option<Bytes>) -> Result<Self, String> {
        let mut values = HashMap::new();
        if let Some(body) = body {
            let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            if let Ok(boundary) = multer::parse_boundary(kind) {
                values = parts(body, boundary).await?;
            } else {
                // Whatever it calls itself: old clients call a form nothing.
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

    /// A parameter that is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The form of a question to a backend.
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

/// The parts of a body, files included: of those of one name the first counts.
async fn parts(body: Bytes, boundary: String) -> Result<HashMap<String, String>, String> {
    let whole = stream::iter([Ok::<_, Infallible>(body)]);
    let mut parts = multer::Multipart::new(whole, boundary);
    let mut values = HashMap::new();
    while let Some(part) = parts.next_field().await.map_err(|error| error.to_string())? {
        let name = part.name().unwrap_or_default().to_owned();
        let text = part.text().await.map_err(|error| error.to_string())?;
        values.entry(name).or_insert(text);
    }
    Ok(values)
}
