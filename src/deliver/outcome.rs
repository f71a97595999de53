//! The meaning of a backend's answer: a pure function from status, headers and body to the fate of
//! the lines.
//!
//! The status alone is not enough. InfluxDB 1.x answers 400 to a full disk (`partial write: … no
//! space left on device`), 500 to a retention policy that does not exist, and a partial write's
//! `dropped=` does not count lines that it could not parse. Senders that only look at the status
//! lose lines when a backend's disk is full.
//!
//! Texts are matched as substrings, never as whole strings: 1.12 appends to them, and 2.x wraps
//! them in JSON.
//!
//! Never does: I/O, or keep state. Bounds: 300 s on a backend's `Retry-After`.

use std::time::{Duration, SystemTime};

use http::StatusCode;

use crate::journal::Rejection;
use crate::net::client::ANSWER_BYTES;

/// Maximum pause accepted from `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Fate of the lines of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The backend has stored them.
    Delivered,
    /// The backend will never accept some of them, and has stored the rest.
    Rejected {
        /// Class of the rejection.
        class: Rejection,
        /// Number of rejected lines. `None`: all of them, or the answer does not tell.
        lines: Option<u64>,
    },
    /// The request as a whole was too large. A smaller one may pass.
    TooLarge,
    /// Retry after a back-off: the backend works but cannot accept lines now, and says why.
    Transient,
    /// Retry after a back-off: the backend failed without a reason. A line may be the cause.
    Failed,
    /// Retry after a back-off: an intermediary (proxy, firewall, gateway) refused the request. A
    /// line may be the cause.
    Unexpected,
    /// Retry no sooner than the backend asked.
    Busy {
        /// The pause that the backend asked for.
        retry_after: Option<Duration>,
    },
    /// The backend is unreachable.
    Down,
    /// The backend accepts connections but does not answer.
    Stalled,
    /// An operator must act on this destination (missing database, credentials). Others go on.
    HoldDestination,
    /// An operator must act on this backend: the server is no InfluxDB, or cannot be trusted.
    HoldBackend,
}

/// Returns the fate of the lines of an answered request. `retry_after` is that header's text; `now`
/// is used if it names a date.
pub fn of_answer(status: StatusCode, retry_after: Option<&str>, body: &str, now: SystemTime) -> Fate {
    match status.as_u16() {
        204 => Fate::Delivered,
        200 if body.trim().is_empty() => Fate::Delivered,
        401 | 403 => Fate::HoldDestination,
        // No InfluxDB refuses the method of a write, or asks for a proxy's password.
        405 | 407 | 501 | 505 => Fate::HoldBackend,
        408 | 425 | 429 | 502 | 503 | 504 => {
            Fate::Busy { retry_after: retry_after.and_then(|text| parse_retry_after(text, now)) }
        }
        413 => Fate::TooLarge,
        400 | 422 => of_refusal(body),
        // The database, bucket or organisation is missing, or a proxy does not know the path.
        404 => Fate::HoldDestination,
        500 if says(MISSING_DESTINATION, body) => Fate::HoldDestination,
        // InfluxDB never answers a write with one of these.
        402..=499 => Fate::Unexpected,
        500..=599 if says(TRANSIENT, body) => Fate::Transient,
        507 => Fate::Transient,
        500..=599 => Fate::Failed,
        // A page, a redirect, an upgrade: not InfluxDB. Redirects are never followed.
        _ => Fate::HoldBackend,
    }
}

/// Classifies 400 and 422. Checks for rejected lines first, because that text quotes parts of
/// lines, which may contain any other text.
fn of_refusal(body: &str) -> Fate {
    if !is_influxdbs(body) {
        // A server that expects TLS never accepts anything. Any other refusal may concern one line.
        return if says(EXPECTS_TLS, body) { Fate::HoldBackend } else { Fate::Unexpected };
    }
    match class_of(body) {
        Rejection::Other if says(TRANSIENT, body) => Fate::Transient,
        Rejection::Other if says(MISCONFIGURED, body) => Fate::HoldDestination,
        class => Fate::Rejected { class, lines: rejected_lines(body) },
    }
}

/// Whether the text contains one of the parts.
fn says(parts: &[&str], text: &str) -> bool {
    parts.iter().any(|part| text.contains(part))
}

/// Whether the body has the shape of an error of 1.x and 3.x (`{"error":…}`) or 2.x (`{"code":…}`).
/// The errors of a reverse proxy or of a server that expects TLS have not: treating them as final
/// would give up every line.
fn is_influxdbs(body: &str) -> bool {
    let body = body.trim_start();
    let begins = || body.starts_with("{\"error\"") || body.starts_with("{\"code\"");
    match serde_json::from_str::<serde_json::Value>(body) {
        Ok(json) => json.get("error").or_else(|| json.get("code")).is_some_and(serde_json::Value::is_string),
        // The body was cut, so it does not parse.
        Err(_) => begins(),
    }
}

/// Plain-text errors of servers that expect TLS: Go's (InfluxDB's own), nginx, Apache.
pub(super) const EXPECTS_TLS: &[&str] =
    &["HTTP request to an HTTPS server", "plain HTTP request was sent to HTTPS port", "plain HTTP to an SSL-enabled"];

/// The server, or a gateway in front of it, cannot accept lines now, whatever the status says.
const TRANSIENT: &[&str] = &[
    "no space left",
    "disk quota exceeded",
    "cache-max-memory",
    "cannot allocate memory",
    "timeout",
    "deadline exceeded",
    "context canceled",
    "unexpected EOF",
    "connection reset",
    "broken pipe",
    "engine is closed",
    "being deleted",
    "shard is disabled",
    "was removed",
    "too many open files",
    "permission denied",
    "read-only file system",
    "input/output error",
    "upstream connect error",
    "no healthy upstream",
];

/// The request is wrong, not the lines.
const MISCONFIGURED: &[&str] = &[
    "database is required",
    "please provide either",
    "invalid database name",
    "invalid retention policy",
    "bucket not specified",
    "org not specified",
];

/// The destination is missing: 1.x, and 2.x behind its 1.x endpoint.
const MISSING_DESTINATION: &[&str] = &["database not found", "retention policy not found", "no dbrp mapping found"];

fn class_of(body: &str) -> Rejection {
    const CLASSES: &[(&str, Rejection)] = &[
        ("unable to parse", Rejection::Unparsable),
        ("field type conflict", Rejection::FieldType),
        ("beyond retention policy", Rejection::Retention),
        ("max-series-per-database", Rejection::SeriesLimit),
        ("max-values-per-tag", Rejection::SeriesLimit),
    ];
    let class = CLASSES.iter().find(|(text, _)| body.contains(text));
    class.map_or(Rejection::Other, |(_, class)| *class)
}

/// Returns how many lines a partial write left out: the number of `dropped=`, plus the unparsable
/// lines, which that number does not count; 3.x lists each line. `None` if the answer does not
/// tell, was cut, or does not say that the rest was written.
fn rejected_lines(body: &str) -> Option<u64> {
    if !body.contains("partial write") || body.len() >= ANSWER_BYTES {
        return None;
    }
    let unparsable = body.matches("unable to parse").count() as u64;
    let listed = body.matches("\"line_number\"").count() as u64;
    let dropped = dropped(body).unwrap_or(0);
    Some(unparsable.saturating_add(listed).saturating_add(dropped)).filter(|lines| *lines > 0)
}

/// Returns the number of `dropped=`.
pub(super) fn dropped(text: &str) -> Option<u64> {
    let (_, number) = text.rsplit_once("dropped=")?;
    match number.bytes().take_while(u8::is_ascii_digit).count() {
        0 => None,
        // A number that does not fit in `u64` means all lines.
        digits => Some(number[..digits].parse().unwrap_or(u64::MAX)),
    }
}

/// Parses seconds or an HTTP date. Returns `None` for a date in the past or a negative number.
fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).ok()?,
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fate(status: u16, body: &str) -> Fate {
        of_answer(StatusCode::from_u16(status).expect("status"), None, body, SystemTime::UNIX_EPOCH)
    }

    fn rejected(class: Rejection, lines: Option<u64>) -> Fate {
        Fate::Rejected { class, lines }
    }

    /// Bodies as InfluxDB 1.6.7 and 2.x write them.
    #[test]
    fn table() {
        use Fate::{Delivered, Failed, HoldBackend, HoldDestination, TooLarge, Transient, Unexpected};
        use Rejection::{FieldType, Other, Retention, SeriesLimit, Unparsable};
        let cases: &[(u16, &str, Fate)] = &[
            (204, "", Delivered),
            (200, "", Delivered),
            (200, "<html>hello</html>", HoldBackend),
            (301, "", HoldBackend),
            (302, "", HoldBackend),
            (101, "", HoldBackend),
            (401, r#"{"error":"authorization failed"}"#, HoldDestination),
            (403, r#"{"error":"\"r\" user is not authorized to write to database \"x\""}"#, HoldDestination),
            (404, r#"{"error":"database not found: \"nope\""}"#, HoldDestination),
            (404, "404 page not found", HoldDestination),
            (404, r#"{"code":"not found","message":"bucket \"x\" not found"}"#, HoldDestination),
            (404, r#"{"code":"not found","message":"no dbrp mapping found"}"#, HoldDestination),
            (500, r#"{"error":"retention policy not found: nope"}"#, HoldDestination),
            (413, r#"{"error":"Request Entity Too Large"}"#, TooLarge),
            (500, r#"{"error":"timeout"}"#, Transient),
            (500, "Internal Server Error", Failed),
            (500, r#"{"error":"engine: index out of range"}"#, Failed),
            (503, r#"{"error":"no healthy upstream"}"#, Fate::Busy { retry_after: None }),
            (400, r#"{"error":"upstream connect error or disconnect/reset before headers"}"#, Transient),
            (400, r#"{"error":"unexpected EOF"}"#, Transient),
            (400, r#"{"error":"database is required"}"#, HoldDestination),
            (400, r#"{"code":"invalid","message":"please provide either orgID or org"}"#, HoldDestination),
            (400, r#"{"error":"invalid database name"}"#, HoldDestination),
            (500, r#"{"error":"engine: cache-max-memory-size exceeded: (1 / 0)"}"#, Transient),
            (507, "", Transient),
            (
                400,
                r#"{"error":"partial write: write /var/lib/influxdb/x: no space left on device dropped=500"}"#,
                Transient,
            ),
            (
                400,
                r#"{"error":"partial write: unable to parse 'a': missing fields dropped=0"}"#,
                rejected(Unparsable, Some(1)),
            ),
            (
                400,
                r#"{"error":"partial write: unable to parse 'a': missing fields\nunable to parse 'b': x dropped=0"}"#,
                rejected(Unparsable, Some(2)),
            ),
            (400, r#"{"error":"unable to parse 'a': missing fields"}"#, rejected(Unparsable, None)),
            (
                400,
                r#"{"error":"partial write: field type conflict: input field \"v\" on measurement \"m\" is type integer, already exists as type float dropped=1"}"#,
                rejected(FieldType, Some(1)),
            ),
            (400, r#"{"error":"field type conflict"}"#, rejected(FieldType, None)),
            (
                400,
                r#"{"error":"partial write: points beyond retention policy dropped=17 for database: d"}"#,
                rejected(Retention, Some(17)),
            ),
            (
                400,
                r#"{"error":"partial write: max-series-per-database limit exceeded: (3) dropped=5"}"#,
                rejected(SeriesLimit, Some(5)),
            ),
            (
                422,
                r#"{"code":"unprocessable entity","message":"failure writing points to database: partial write: points beyond retention policy dropped=2"}"#,
                rejected(Retention, Some(2)),
            ),
            (400, r#"{"code":"invalid","message":"something new"}"#, rejected(Other, None)),
            (405, "<html>", HoldBackend),
            (407, "", HoldBackend),
            (501, "<html>Unsupported method</html>", HoldBackend),
            (400, "Client sent an HTTP request to an HTTPS server.\n", HoldBackend),
            (400, "<html>Bad Request</html>", Unexpected),
            (418, "", Unexpected),
            (402, "", Unexpected),
            // The text quotes names and lines, which may contain anything.
            (
                400,
                r#"{"error":"partial write: field type conflict: input field \"timeout\" on measurement \"m\" is type integer, already exists as type float dropped=1"}"#,
                rejected(FieldType, Some(1)),
            ),
            (
                400,
                r#"{"error":"partial write: unable to parse 'm msg=\"database not found\" x': bad timestamp dropped=0"}"#,
                rejected(Unparsable, Some(1)),
            ),
            (
                400,
                r#"{"error":"partial write of line protocol occurred","data":[{"original_line":"a","line_number":1,"error_message":"x"},{"original_line":"b","line_number":7,"error_message":"x"}]}"#,
                rejected(Other, Some(2)),
            ),
        ];
        for (status, body, expected) in cases {
            assert_eq!(fate(*status, body), *expected, "{status} {body}");
        }
    }

    /// The fate of each status with an empty body. Every status is listed, so that no change goes
    /// unnoticed.
    #[test]
    fn every_status_has_its_fate() {
        for status in 100..1000 {
            let expected = match status {
                200 | 204 => Fate::Delivered,
                401 | 403 => Fate::HoldDestination,
                404 => Fate::HoldDestination,
                405 | 407 | 501 | 505 => Fate::HoldBackend,
                // An empty 400 or 422 is not InfluxDB's, and the others never are.
                400 | 422 => Fate::Unexpected,
                413 => Fate::TooLarge,
                408 | 425 | 429 | 502 | 503 | 504 => Fate::Busy { retry_after: None },
                402 | 406 | 409 | 410 | 411 | 412 | 414..=421 | 423 | 424 | 426..=428 | 430..=499 => Fate::Unexpected,
                507 => Fate::Transient,
                500 | 506 | 508..=599 => Fate::Failed,
                // A page, a redirect, an upgrade, or not a status of HTTP.
                _ => Fate::HoldBackend,
            };
            assert_eq!(fate(status, ""), expected, "{status}");
        }
    }

    /// Wraps an error's text as 1.x and 2.x do.
    fn wrapped(text: &str) -> [String; 2] {
        [
            serde_json::json!({ "error": text }).to_string(),
            format!("{{\"code\":\"invalid\",\"message\":{}}}", serde_json::json!(text)),
        ]
    }

    #[test]
    fn every_text_that_asks_for_another_try_loses_no_line() {
        for text in [
            "partial write: write /var/lib/influxdb/wal: no space left on device dropped=5",
            "engine: cache-max-memory-size exceeded: (1 / 0)",
            "timeout",
            "partial write: engine is closed dropped=3",
            "engine is closed",
            "shard is being deleted",
            "shard is disabled",
            "partial write: open /x/000001.wal: too many open files dropped=7",
            "write /x/_00001.wal: read-only file system",
            "read /x/000001.tsi: input/output error",
            "open /x/wal: permission denied",
            "mmap: cannot allocate memory",
            "write /x: disk quota exceeded",
            "shard 7 was removed",
            "context canceled",
            "unexpected EOF",
            "read tcp 127.0.0.1:8086: i/o timeout",
        ] {
            for status in [400, 422, 500] {
                for body in wrapped(text) {
                    assert_eq!(fate(status, &body), Fate::Transient, "{status} {body}");
                }
            }
        }
    }

    #[test]
    fn every_text_of_a_missing_destination_holds_it() {
        for text in ["database not found: \"x\"", "retention policy not found: x", "no dbrp mapping found"] {
            for status in [404, 500] {
                for body in wrapped(text) {
                    assert_eq!(fate(status, &body), Fate::HoldDestination, "{status} {body}");
                }
            }
        }
        assert_eq!(
            fate(404, r#"{"code":"not found","message":"organization name \"x\" not found"}"#),
            Fate::HoldDestination
        );
    }

    #[test]
    fn every_text_of_a_refusal_has_its_class() {
        use Rejection::{FieldType, Other, Retention, SeriesLimit, Unparsable};
        for (text, class) in [
            ("unable to parse 'x': missing fields", Unparsable),
            ("field type conflict: input field \"v\" on measurement \"m\"", FieldType),
            ("points beyond retention policy", Retention),
            ("max-series-per-database limit exceeded: (1)", SeriesLimit),
            ("max-values-per-tag limit exceeded (1/1): measurement=\"m\"", SeriesLimit),
            ("something new", Other),
        ] {
            for status in [400, 422] {
                for body in wrapped(text) {
                    assert_eq!(fate(status, &body), rejected(class, None), "{status} {body}");
                }
                let unparsable = u64::from(class == Unparsable);
                for body in wrapped(&format!("partial write: {text} dropped=4")) {
                    assert_eq!(fate(status, &body), rejected(class, Some(4 + unparsable)), "{status} {body}");
                }
            }
        }
    }

    #[test]
    fn a_number_that_no_request_has_is_a_number() {
        for (dropped, lines) in [
            ("1000", Some(1000)),
            ("18446744073709551615", Some(u64::MAX)),
            ("99999999999999999999999999", Some(u64::MAX)),
            ("x", None),
            ("-1", None),
            ("", None),
        ] {
            let body = format!("{{\"error\":\"partial write: points beyond retention policy dropped={dropped}\"}}");
            assert_eq!(fate(400, &body), rejected(Rejection::Retention, lines), "{dropped}");
        }
        let body = r#"{"error":"partial write: unable to parse 'a': x dropped=18446744073709551615"}"#;
        assert_eq!(fate(400, body), rejected(Rejection::Unparsable, Some(u64::MAX)));
    }

    #[test]
    fn an_answer_that_was_cut_does_not_tell_how_many() {
        let body = format!("{{\"error\":\"partial write: {}", "unable to parse 'a': x\\n".repeat(5000));
        assert_eq!(fate(400, &body[..ANSWER_BYTES]), rejected(Rejection::Unparsable, None));
    }

    #[test]
    fn retry_after_is_honoured_within_reason() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, expected) in [
            ("3", Some(3)),
            (" 0 ", Some(0)),
            ("1000000000", Some(300)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", None),
            ("-1", None),
            ("soon", None),
        ] {
            for status in [429, 503] {
                let status = StatusCode::from_u16(status).expect("status");
                let retry_after = expected.map(Duration::from_secs);
                assert_eq!(of_answer(status, Some(text), "", now), Fate::Busy { retry_after }, "{text}");
            }
        }
    }
}
