//! Reasons for refusing a request, and the answers to them: safe ones, or InfluxDB's.
//!
//! With safe answers, an error that an operator can fix is answered in plain text, because Telegraf
//! keeps its lines on it. No text of a 5xx answer contains a phrase that makes a client drop lines.

use http::StatusCode;

use super::answer::{Answer, Form, quoted};
use super::request::{Api, Wrong};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// Memory and disk are used up, or the relay is stopping.
    Full,
    /// Memory and disk were used up while the body was processed. Some lines may be in the journal.
    Half,
    /// The journal took too long, or lost part of the request.
    Late,
    /// The database is not allowed.
    NotServed(String),
    /// The limit of databases or destinations is reached.
    TooMany(String),
    NoDatabase,
    Query(Wrong),
    /// The name of a database or policy is one that no InfluxDB accepts.
    BadName,
    TooLarge(u64),
    Gzip(String),
    Encoding,
    /// A proxy could interpret the framing of the request differently.
    Framing(&'static str),
    /// The request has no credentials, or wrong ones.
    Unauthorized,
    /// The sender has no right to write to this database.
    NoRight(String),
    /// The sender has no right to create anything.
    NoAdministrator,
    /// The source is not in an allowed network.
    Denied,
    /// Too many passwords are being checked, or too many of the source's were wrong.
    Busy,
    /// The source has too many requests in progress through balancers.
    Crowded,
    NotFound,
    NotAllowed(&'static str),
    /// A query, which this relay does not answer.
    Reads,
    /// A query that is refused, with the status and the reason.
    Reader(StatusCode, String),
    /// The listener does not accept writes.
    NoWriters,
    /// A 3.x body that must be accepted as a whole or not at all, but is too large to be buffered.
    TooLargeForWhole,
}

impl Answer {
    /// Builds the answer to a refused request: a safe one, or InfluxDB's.
    pub(super) fn of_problem(api: Api, problem: &Problem, is_safe: bool) -> Self {
        use StatusCode as S;
        let (status, code, text, is_for_operator) = match problem {
            Problem::Full => (
                S::SERVICE_UNAVAILABLE,
                "unavailable",
                "out of space for new data, nothing of this request was taken".to_owned(),
                false,
            ),
            Problem::Half => (
                S::SERVICE_UNAVAILABLE,
                "unavailable",
                "out of space for new data, some of this request may be missing: send it again".to_owned(),
                false,
            ),
            Problem::Late => {
                (S::SERVICE_UNAVAILABLE, "unavailable", "the request was not kept in time".to_owned(), false)
            }
            // Not in 1.x's words: one client takes them for a success, and others drop the lines.
            Problem::Unauthorized => {
                (S::UNAUTHORIZED, "unauthorized", "unauthorized access".to_owned(), api != Api::V2)
            }
            Problem::NoRight(name) => {
                (S::FORBIDDEN, "forbidden", format!("no right to write to {}", quoted(name)), api != Api::V2)
            }
            Problem::NoAdministrator => {
                (S::FORBIDDEN, "forbidden", "no right to create anything (admin = true)".to_owned(), false)
            }
            Problem::Denied => (S::FORBIDDEN, "forbidden", "this address may not send to this relay".to_owned(), true),
            Problem::Busy => (
                S::SERVICE_UNAVAILABLE,
                "unavailable",
                "too many passwords are being checked, or were wrong".to_owned(),
                false,
            ),
            Problem::Crowded => (
                S::SERVICE_UNAVAILABLE,
                "unavailable",
                "this address has too many requests under way (max_connections_per_source)".to_owned(),
                false,
            ),
            Problem::NotServed(name) => {
                (S::FORBIDDEN, "forbidden", format!("database {} is not served by this relay", quoted(name)), true)
            }
            Problem::TooMany(name) => (
                S::FORBIDDEN,
                "forbidden",
                format!(
                    "database {} is one more than this relay serves (max_databases, max_destinations)",
                    quoted(name)
                ),
                true,
            ),
            Problem::NoDatabase if api == Api::V2 => (S::NOT_FOUND, "not found", "bucket not found".to_owned(), false),
            Problem::NoDatabase => (S::BAD_REQUEST, "invalid", "database is required".to_owned(), false),
            Problem::BadName => (S::BAD_REQUEST, "invalid", "invalid database name".to_owned(), false),
            Problem::Query(Wrong::Precision(name)) => (
                S::BAD_REQUEST,
                "invalid",
                format!("invalid precision {} (use n, u, ms, s, m or h)", quoted(name)),
                false,
            ),
            Problem::Query(Wrong::Consistency(name)) => {
                (S::BAD_REQUEST, "invalid", format!("invalid consistency level {}", quoted(name)), false)
            }
            Problem::Query(Wrong::TooLong) => {
                (S::URI_TOO_LONG, "invalid", "the query is longer than 8 KiB".to_owned(), false)
            }
            Problem::TooLarge(limit) => (
                S::PAYLOAD_TOO_LARGE,
                "request too large",
                format!("Request Entity Too Large: a body may have {limit} bytes, compressed and decompressed"),
                false,
            ),
            Problem::TooLargeForWhole => (
                S::PAYLOAD_TOO_LARGE,
                "request too large",
                "with accept_partial=false a body may have 1 MiB".to_owned(),
                false,
            ),
            Problem::Gzip(what) => (S::BAD_REQUEST, "invalid", format!("unable to parse gzip body: {what}"), false),
            Problem::Encoding => (
                S::UNSUPPORTED_MEDIA_TYPE,
                "invalid",
                "unsupported content encoding: send gzip, or none".to_owned(),
                false,
            ),
            Problem::Framing(what) => (S::BAD_REQUEST, "invalid", (*what).to_owned(), false),
            Problem::NotFound => (S::NOT_FOUND, "not found", "path not found".to_owned(), false),
            Problem::NotAllowed(allow) => {
                (S::METHOD_NOT_ALLOWED, "method not allowed", format!("allow: {allow}"), false)
            }
            Problem::Reader(status, text) => (*status, "invalid", text.clone(), false),
            Problem::NoWriters => {
                (S::FORBIDDEN, "forbidden", "this listener takes no writes (write = false)".to_owned(), true)
            }
            Problem::Reads => (
                S::BAD_REQUEST,
                "invalid",
                "this relay answers no queries here; ask an InfluxDB behind it".to_owned(),
                false,
            ),
        };
        let answer = if is_safe && is_for_operator {
            Self { form: Form::Text, body: format!("{text}\n"), error: Some(text), ..Self::empty(status) }
        } else {
            Self::error(api, status, code, text)
        };
        let allow = match problem {
            Problem::NotAllowed(allow) => Some(*allow),
            _ => None,
        };
        Self { allow, ..answer }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    /// Phrases for which clients drop a batch, whatever the status.
    const PHRASES: [&str; 11] = [
        "partial write",
        "unable to parse",
        "points beyond retention policy",
        "hinted handoff queue not empty",
        "retention policy not found",
        "database not found",
        "field type conflict",
        "authorization failed",
        "username required",
        "user is required to write",
        "user is not authorized to write",
    ];

    fn problems() -> Vec<Problem> {
        let name = || "a partial write: unable to parse database not found".to_owned();
        vec![
            Problem::Full,
            Problem::Half,
            Problem::Late,
            Problem::Unauthorized,
            Problem::NoRight(name()),
            Problem::NoAdministrator,
            Problem::Denied,
            Problem::Busy,
            Problem::Crowded,
            Problem::NotServed(name()),
            Problem::TooMany(name()),
            Problem::NoDatabase,
            Problem::BadName,
            Problem::Query(Wrong::Precision(name())),
            Problem::Query(Wrong::Consistency(name())),
            Problem::Query(Wrong::TooLong),
            Problem::TooLarge(1),
            Problem::TooLargeForWhole,
            Problem::Gzip("x".to_owned()),
            Problem::Encoding,
            Problem::Framing("x"),
            Problem::NotFound,
            Problem::NotAllowed("POST"),
            Problem::Reads,
        ]
    }

    #[test]
    fn no_answer_that_asks_for_another_try_makes_a_client_drop() {
        for problem in problems() {
            for api in [Api::V1, Api::V2, Api::V3] {
                let answer = Answer::of_problem(api, &problem, true);
                let response = answer.clone().response(&HeaderMap::new(), &HeaderValue::from_static("1.8.10"));
                assert!(response.headers().get("retry-after").is_none());
                if answer.status.is_server_error() {
                    let error = response.headers().get("x-influxdb-error").expect("an error").to_str().expect("text");
                    for phrase in PHRASES {
                        assert!(!answer.body.contains(phrase) && !error.contains(phrase), "{phrase}: {answer:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_an_operator_mends_is_plain_text_unless_answers_are_influxdbs() {
        for problem in [Problem::NotServed("db".to_owned()), Problem::TooMany("db".to_owned())] {
            assert_eq!(Answer::of_problem(Api::V1, &problem, true).form, Form::Text, "{problem:?}");
            assert_eq!(Answer::of_problem(Api::V1, &problem, false).form, Form::Json, "{problem:?}");
        }
    }
}
