//! What a backend's answer means: a pure table from status, headers and body to the fate of what was sent.
//!
//! The status alone is not enough. InfluxDB 1.x answers 400 to a full disk (`partial write: … no space left on
//! device`), 500 to a retention policy that nobody made, and a partial write's `dropped=` does not count lines
//! that it could not read. Peers that go by the status lose a full backend's lines.
//!
//! Texts are matched as parts, never as whole strings: 1.12 appends to them, 2.x wraps them in JSON.

use std::time::{Duration, SystemTime};

use http::StatusCode;

use crate::journal::Rejection;
use crate::net::client::ANSWER_BYTES;

/// The longest time that a backend may ask for with `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// What becomes of the lines of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The backend has them.
    Delivered,
    /// The backend will never take some of them, and has the rest.
    Rejected {
        /// Why.
        class: Rejection,
        /// How many, as far as the answer tells; none: all of them.
        lines: Option<u64>,
    },
    /// The request was too large as a whole: a smaller one may pass.
    TooLarge,
    /// To be sent again after a pause: the backend works, but cannot now, and says why.
    Transient,
    /// To be sent again after a pause: the backend failed, and does not say why. A line may be the cause.
    Failed,
    /// To be sent again after a pause: something between refused it (a proxy, a firewall, a gateway). A line may be the cause.
    Unexpected,
    /// To be sent again, no sooner than the backend asked.
    Busy {
        /// How long it asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// Nobody answers.
    Down,
    /// It takes connections and does not answer.
    Stalled,
    /// An operator must act on this destination (missing database, credentials): others go on.
    HoldDestination,
    /// An operator must act on this backend: what answers is no InfluxDB, or cannot be trusted.
    HoldBackend,
}

/// The fate of the lines of a request that was answered. `retry_after` is that header's text; `now` is for one
/// that names a date.
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
        // A database, bucket or organisation that is missing, or a path that a proxy does not know.
        404 => Fate::HoldDestination,
        500 if says(MISSING_DESTINATION, body) => Fate::HoldDestination,
        // InfluxDB gives none of them to a write.
        402..=499 => Fate::Unexpected,
        500..=599 if says(TRANSIENT, body) => Fate::Transient,
        507 => Fate::Transient,
        500..=599 => Fate::Failed,
        // A page, a redirect, an upgrade: something else than InfluxDB. A redirect is never followed.
        _ => Fate::HoldBackend,
    }
}

/// 400 and 422: what is wrong with lines comes first, for its text repeats parts of them, which may say anything.
fn of_refusal(body: &str) -> Fate {
    if !is_influxdbs(body) {
        // A server that expects TLS never takes anything; what else says so may do so for one line.
        return if says(EXPECTS_TLS, body) { Fate::HoldBackend } else { Fate::Unexpected };
    }
    match class_of(body) {
        Rejection::Other if says(TRANSIENT, body) => Fate::Transient,
        Rejection::Other if says(MISCONFIGURED, body) => Fate::HoldDestination,
        class => Fate::Rejected { class, lines: rejected_lines(body) },
    }
}

/// Whether a text holds one of these.
fn says(parts: &[&str], text: &str) -> bool {
    parts.iter().any(|part| text.contains(part))
}

/// Whether an error has the shape of 1.x and 3.x (`{"error":…}`) or 2.x (`{"code":…}`). A reverse proxy's has not, nor
/// that of a server which expects TLS: to take them for a final answer would give up every line.
fn is_influxdbs(body: &str) -> bool {
    let body = body.trim_start();
    let begins = || body.starts_with("{\"error\"") || body.starts_with("{\"code\"");
    match serde_json::from_str::<serde_json::Value>(body) {
        Ok(json) => json.get("error").or_else(|| json.get("code")).is_some_and(serde_json::Value::is_string),
        // It is longer than what was read of it.
        Err(_) => begins(),
    }
}

/// What servers that expect TLS say in plain text: Go's (InfluxDB's own), nginx, Apache.
pub(super) const EXPECTS_TLS: &[&str] =
    &["HTTP request to an HTTPS server", "plain HTTP request was sent to HTTPS port", "plain HTTP to an SSL-enabled"];

/// The server, or a gateway before it, cannot now, whatever the status says.
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

/// What is asked for is wrong, not the lines.
const MISCONFIGURED: &[&str] = &[
    "database is required",
    "please provide either",
    "invalid database name",
    "invalid retention policy",
    "bucket not specified",
    "org not specified",
];

/// 1.x, and 2.x behind its 1.x endpoint.
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

/// How many lines a partial write left out: what `dropped=` says, plus the lines that could not be read, which it
/// does not count; 3.x lists each. None where the answer does not tell, was cut, or says nothing of the rest
/// being written.
fn rejected_lines(body: &str) -> Option<u64> {
    if !body.contains("partial write") || body.len() >= ANSWER_BYTES {
        return None;
    }
    let unparsable = body.matches("unable to parse").count() as u64;
    let listed = body.matches("\"line_number\"").count() as u64;
    let dropped = dropped(body).unwrap_or(0);
    Some(unparsable.saturating_add(listed).saturating_add(dropped)).filter(|lines| *lines > 0)
}

/// What `dropped=` says.
pub(super) fn dropped(text: &str) -> Option<u64> {
    let (_, number) = text.rsplit_once("dropped=")?;
    match number.bytes().take_while(u8::is_ascii_digit).count() {
        0 => None,
        // A number that is too large for any count is all there are.
        digits => Some(number[..digits].parse().unwrap_or(u64::MAX)),
    }
}

/// Seconds, or an HTTP date; a time in the past or a negative number asks for nothing.
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
            // The text repeats names and lines, which may say anything.
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

    /// What each status means where nothing else is told. Each is named here, so that none changes unseen.
    #[test]
    fn every_status_has_its_fate() {
        for status in 100..1000 {
            let expected = match status {
                200 | 204 => Fate::Delivered,
                401 | 403 => Fate::HoldDestination,
                404 => Fate::HoldDestination,
                405 | 407 | 501 | 505 => Fate::HoldBackend,
                // 400 and 422 that say nothing are not InfluxDB's, and the others never are.
                400 | 422 => Fate::Unexpected,
                413 => Fate::TooLarge,
                408 | 425 | 429 | 502 | 503 | 504 => Fate::Busy { retry_after: None },
                402 | 406 | 409 | 410 | 411 | 412 | 414..=421 | 423 | 424 | 426..=428 | 430..=499 => Fate::Unexpected,
                507 => Fate::Transient,
                500 | 506 | 508..=599 => Fate::Failed,
                // A page, a redirect, an upgrade, or no status of HTTP.
                _ => Fate::HoldBackend,
            };
            assert_eq!(fate(status, ""), expected, "{status}");
        }
    }

    /// An error's text as 1.x and 2.x wrap it.
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
