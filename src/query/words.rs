//! Text for readers beside a backend's answer, and the check of an answer's beginning.
//!
//! Pure functions. Never does: read more of an answer than its beginning. Bounds:
//! [`INSPECTED_BYTES`] of an answer.

use std::io::Read;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderMap, HeaderName, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full};

use crate::receive::http::Reply;

/// Maximum number of an answer's bytes that are inspected.
const INSPECTED_BYTES: usize = 512;
/// Beginning of an answer that reports an error.
const ERROR: &[u8] = b"{\"results\":[{\"statement_id\":0,\"error\":\"";
/// Errors that another backend may not have, by their beginnings.
const NOT_HERE: [&str; 4] =
    ["max-concurrent-queries limit exceeded", "shard is disabled", "engine is closed", "database not found"];

/// Whether an answer begins with an error that another backend may not have.
pub(super) fn tells_not_here(headers: &HeaderMap, begin: Option<&[u8]>) -> bool {
    let Some(begin) = begin else { return false };
    let begin = &begin[..begin.len().min(INSPECTED_BYTES)];
    let plain = match headers.get(CONTENT_ENCODING) {
        Some(coding) if coding.as_bytes().eq_ignore_ascii_case(b"gzip") => inflated(begin),
        _ => begin.to_vec(),
    };
    let Some(error) = plain.strip_prefix(ERROR) else { return false };
    let error = String::from_utf8_lossy(error);
    NOT_HERE.iter().any(|phrase| error.starts_with(phrase))
}

/// Decompresses as much as these bytes hold.
fn inflated(bytes: &[u8]) -> Vec<u8> {
    let mut plain = vec![0; INSPECTED_BYTES];
    let mut decoder = flate2::read::GzDecoder::new(bytes);
    let mut length = 0;
    while let Ok(count @ 1..) = decoder.read(&mut plain[length..]) {
        length += count;
    }
    plain.truncate(length);
    plain
}

/// Removes headers that concern a single connection.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let fixed = [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA, DATE];
    let others = ["keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"];
    for name in named.into_iter().chain(fixed).filter(|name| *name != CONTENT_LENGTH) {
        headers.remove(name);
    }
    others.iter().for_each(|name| drop(headers.remove(*name)));
}

/// Formats a time range for people.
pub(super) fn described((from, until): &(i64, i64)) -> String {
    let time = |nanoseconds: i64, unknown: &'static str| match u64::try_from(nanoseconds) {
        Ok(known) if known < i64::MAX as u64 => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(known)).to_string()
        }
        _ => unknown.to_owned(),
    };
    format!("{}/{}", time(*from, "always"), time(*until, "always"))
}

/// Makes a response of our own, in a form that readers display.
pub(super) fn refusal(status: StatusCode, text: &str) -> Reply {
    let body = format!("{}\n", serde_json::json!({ "error": text }));
    let mut response = Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    with(response, CONTENT_TYPE, HeaderValue::from_static("application/json"))
}

pub(super) fn with(mut response: Reply, name: HeaderName, value: HeaderValue) -> Reply {
    response.headers_mut().insert(name, value);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_another_backend_may_not_have_are_known_by_an_answers_beginning() {
        let plain = HeaderMap::new();
        let gzip = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
        let compressed = |text: &str| {
            use std::io::Write;
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text.as_bytes()).expect("memory");
            encoder.finish().expect("memory")
        };
        for (error, expected) in [
            ("max-concurrent-queries limit exceeded(1, 1)", true),
            ("database not found: telegraf", true),
            ("shard is disabled", true),
            ("query-timeout limit exceeded", false),
            ("undefined tag", false),
        ] {
            let text = format!("{{\"results\":[{{\"statement_id\":0,\"error\":\"{error}\"}}]}}\n");
            assert_eq!(tells_not_here(&plain, Some(text.as_bytes())), expected, "{error}");
            assert_eq!(tells_not_here(&gzip, Some(&compressed(&text))), expected, "{error}");
        }
        assert!(!tells_not_here(&plain, Some(b"{\"results\":[{\"statement_id\":0}]}")));
        assert!(!tells_not_here(&gzip, Some(b"no gzip")));
    }

    #[test]
    fn what_is_said_on_one_connection_goes_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "X-Private, close"),
            ("x-private", "1"),
            ("keep-alive", "5"),
            ("x-influxdb-version", "1.6.7"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-influxdb-version"]);
    }

    #[test]
    fn times_are_told_for_people() {
        assert_eq!(described(&(1_795_400_726_000_000_000, i64::MAX)), "2026-11-23T02:25:26Z/always");
        assert_eq!(described(&(i64::MIN, 0)), "always/1970-01-01T00:00:00Z");
    }
}
