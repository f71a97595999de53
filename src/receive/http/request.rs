//! Parses a request's path, method and query string, in every spelling that writers use. A pure
//! function.
//!
//! Never does: evaluating `Content-Type`. PHP clients send `application/json` with line protocol,
//! and curl sends a form's type. Bounds: a query string of [`QUERY_BYTES`], of which
//! [`MAX_PARAMETERS`] parameters are read.

use std::borrow::Cow;
use std::collections::HashMap;

use http::header::{HeaderName, HeaderValue, ORIGIN};
use http::{HeaderMap, Method, Uri};
use percent_encoding::percent_decode_str;

use crate::protocol::Precision;

/// Maximum length of a query string in bytes.
const QUERY_BYTES: usize = 8 * 1024;
const MAX_PARAMETERS: usize = 32;

/// The API that an endpoint belongs to. It determines the format of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    /// `/write` of 1.x.
    V1,
    /// `/api/v2/write`.
    V2,
    /// `/api/v3/write_lp`.
    V3,
}

/// A parsed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Line protocol.
    Write(Write),
    /// Data points of another system's exporter, converted by the listener's mapping.
    Put,
    /// A liveness check. `is_verbose`: answer in JSON.
    Ping {
        is_verbose: bool,
    },
    Health,
    Ready,
    /// An InfluxQL query or statement.
    Query,
    /// A CORS preflight request.
    Options,
    /// The path needs another method; holds the allowed ones.
    NotAllowed(Api, &'static str),
    /// Only a backend can answer this; holds the advice for the client.
    Elsewhere(Api, &'static str),
    /// Unknown path.
    Unknown(Api),
}

/// The destination, as far as the request names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) api: Api,
    /// `None` or empty: not named.
    pub(super) database: Option<String>,
    pub(super) retention_policy: Option<String>,
    pub(super) precision: Option<Precision>,
    /// Whether good lines are accepted when others are bad.
    pub(super) accepts_partial: bool,
}

/// An error in a query string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// The endpoint does not know this precision.
    Precision(String),
    /// 1.x does not know this consistency level.
    Consistency(String),
    /// The query string is too long.
    TooLong,
}

impl Api {
    /// The API that a path belongs to.
    pub(super) fn of_path(path: &str) -> Self {
        if path.starts_with("/api/v2/") {
            Self::V2
        } else if path.starts_with("/api/v3/") {
            Self::V3
        } else {
            Self::V1
        }
    }
}

impl Asked {
    /// Parses a request's method and URI.
    ///
    /// # Errors
    /// An error in the query string.
    pub(super) fn of(method: &Method, uri: &Uri) -> Result<Self, Wrong> {
        let path = uri.path();
        if *method == Method::OPTIONS {
            return Ok(Self::Options);
        }
        let api = Api::of_path(path);
        let query = uri.query().unwrap_or_default();
        if query.len() > QUERY_BYTES && path != "/query" {
            return Err(Wrong::TooLong);
        }
        let is_get = matches!(*method, Method::GET | Method::HEAD);
        let is_post = *method == Method::POST;
        match path {
            "/write" | "/api/v2/write" | "/api/v3/write_lp" if is_post => Write::of(api, query).map(Self::Write),
            "/write" => Ok(Self::NotAllowed(api, "OPTIONS, POST")),
            "/api/v2/write" | "/api/v3/write_lp" => Ok(Self::NotAllowed(api, "POST, OPTIONS")),
            "/api/put" if is_post => Ok(Self::Put),
            "/ping" if is_get => {
                let verbose = parameters(query).remove("verbose");
                let is_verbose = verbose.is_some_and(|text| !matches!(&*text, "" | "0" | "false"));
                Ok(Self::Ping { is_verbose })
            }
            "/health" if is_get => Ok(Self::Health),
            "/ready" if is_get => Ok(Self::Ready),
            "/query" if *method == Method::GET || is_post => Ok(Self::Query),
            "/ping" | "/health" | "/ready" => Ok(Self::NotAllowed(api, "GET, HEAD, OPTIONS")),
            "/query" => Ok(Self::NotAllowed(api, "GET, OPTIONS, POST")),
            "/api/put" => Ok(Self::NotAllowed(api, "OPTIONS, POST")),
            _ => Ok(elsewhere(path).map_or(Self::Unknown(api), |how| Self::Elsewhere(api, how))),
        }
    }
}

/// Advice for a path that only a backend can answer.
fn elsewhere(path: &str) -> Option<&'static str> {
    Some(match path {
        "/api/v2/query" => "Flux is not answered here: ask a backend itself, or ask in InfluxQL at /query",
        "/api/v3/query_sql" | "/api/v3/query_influxql" => {
            "SQL is not answered here: ask a backend itself, or ask in InfluxQL at /query"
        }
        "/api/v1/prom/read" | "/api/v1/prom/write" => {
            "Prometheus's remote read and write are not answered here: let it ask a backend itself"
        }
        "/metrics" => {
            "these are a server's own figures: ask each backend itself; this relay's are at its admin address"
        }
        path if path.starts_with("/debug/") => "these are a server's own figures: ask each backend itself",
        path if path.starts_with("/api/v2/") => {
            "of the API of 2.x only /api/v2/write is answered here: ask a backend itself"
        }
        _ => return None,
    })
}

impl Write {
    fn of(api: Api, query: &str) -> Result<Self, Wrong> {
        let mut parameters = parameters(query);
        let mut take = |name| parameters.remove(name).filter(|value| !value.is_empty()).map(Cow::into_owned);
        if let Some(consistency) = take("consistency").filter(|_| api == Api::V1)
            && !matches!(&*consistency.to_ascii_lowercase(), "any" | "one" | "quorum" | "all")
        {
            return Err(Wrong::Consistency(consistency));
        }
        let precision = match take("precision") {
            Some(text) => Some(precision_of(api, &text).ok_or(Wrong::Precision(text))?),
            None => None,
        };
        let accepts_partial = api != Api::V3 || take("accept_partial").is_none_or(|text| text != "false");
        let (database, retention_policy) = match api {
            Api::V1 | Api::V3 => (take("db"), take("rp")),
            Api::V2 => match take("bucket") {
                // Split as 1.8 does.
                Some(bucket) => match bucket.split_once('/') {
                    Some((database, policy)) => (Some(database.to_owned()), Some(policy.to_owned())),
                    None => (Some(bucket), None),
                },
                None => (take("db"), take("rp")),
            },
        };
        Ok(Self { api, database, retention_policy, precision, accepts_partial })
    }
}

/// Copies the headers that answers echo into memory of their own, so that the head's buffer can be
/// freed while the body arrives.
pub(super) fn repeated(headers: &HeaderMap) -> HeaderMap {
    let copy = |name: HeaderName| {
        let value = HeaderValue::from_bytes(headers.get(&name)?.as_bytes()).ok()?;
        Some((name, value))
    };
    let [given, other] = ["x-request-id", "request-id"].map(HeaderName::from_static);
    [given, other, ORIGIN].into_iter().filter_map(copy).collect()
}

/// Parses a precision: the names of 1.x and 2.x, and for 3.x also its long names.
fn precision_of(api: Api, name: &str) -> Option<Precision> {
    Some(match (name, api) {
        ("n" | "ns", _) | ("auto" | "nanosecond", Api::V3) => Precision::Nanoseconds,
        ("u" | "us" | "µs", _) | ("microsecond", Api::V3) => Precision::Microseconds,
        ("ms", _) | ("millisecond", Api::V3) => Precision::Milliseconds,
        ("s", _) | ("second", Api::V3) => Precision::Seconds,
        ("m", Api::V1) => Precision::Minutes,
        ("h", Api::V1) => Precision::Hours,
        _ => return None,
    })
}

/// Parses a query string. Of several parameters with the same name, the first counts.
pub(super) fn parameters(query: &str) -> HashMap<Cow<'_, str>, Cow<'_, str>> {
    let mut parameters = HashMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()).take(MAX_PARAMETERS) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        parameters.entry(decoded(name)).or_insert_with(|| decoded(value));
    }
    parameters
}

fn decoded(text: &str) -> Cow<'_, str> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        return Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned());
    }
    percent_decode_str(text).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &str, uri: &str) -> Result<Asked, Wrong> {
        Asked::of(&method.parse().expect("a method"), &uri.parse().expect("a URI"))
    }

    fn write(uri: &str) -> Write {
        match asked("POST", uri) {
            Ok(Asked::Write(write)) => write,
            other => panic!("{uri}: {other:?}"),
        }
    }

    /// The request lines of the writers in use.
    #[test]
    fn every_spelling_of_a_write_is_understood() {
        use Precision::{Hours, Microseconds, Milliseconds, Nanoseconds, Seconds};
        for (uri, api, database, policy, precision) in [
            ("/write?db=telegraf", Api::V1, Some("telegraf"), None, None),
            ("/write?consistency=&db=d&precision=ns&rp=", Api::V1, Some("d"), None, Some(Nanoseconds)),
            (
                "/write?db=a+b%26c&rp=one%20week&precision=n",
                Api::V1,
                Some("a b&c"),
                Some("one week"),
                Some(Nanoseconds),
            ),
            ("/write?db=d&db=e&precision=h", Api::V1, Some("d"), None, Some(Hours)),
            ("/write?u=me&p=x&precision=%C2%B5s&db=d", Api::V1, Some("d"), None, Some(Microseconds)),
            ("/write", Api::V1, None, None, None),
            ("/write?db=", Api::V1, None, None, None),
            ("/api/v2/write?org=-&bucket=telegraf&precision=ms", Api::V2, Some("telegraf"), None, Some(Milliseconds)),
            ("/api/v2/write?bucket=db/rp&org=", Api::V2, Some("db"), Some("rp"), None),
            ("/api/v2/write?bucket=db/", Api::V2, Some("db"), Some(""), None),
            ("/api/v3/write_lp?db=d&precision=second&no_sync=true", Api::V3, Some("d"), None, Some(Seconds)),
            ("/api/v3/write_lp?db=d&precision=auto", Api::V3, Some("d"), None, Some(Nanoseconds)),
        ] {
            let found = write(uri);
            let names = (found.database.as_deref(), found.retention_policy.as_deref());
            assert_eq!((found.api, names, found.precision), (api, (database, policy), precision), "{uri}");
            assert!(found.accepts_partial);
        }
        assert!(!write("/api/v3/write_lp?db=d&accept_partial=false").accepts_partial);
        assert!(write("/write?db=d&accept_partial=false").accepts_partial, "1.x does not know it");
    }

    #[test]
    fn what_is_wrong_with_a_query_is_named() {
        for (uri, wrong) in [
            ("/write?db=d&precision=NS", Wrong::Precision("NS".to_owned())),
            ("/write?db=d&precision=second", Wrong::Precision("second".to_owned())),
            ("/api/v2/write?bucket=d&precision=m", Wrong::Precision("m".to_owned())),
            ("/write?db=d&consistency=some", Wrong::Consistency("some".to_owned())),
            (&*format!("/write?db={}", "x".repeat(QUERY_BYTES)), Wrong::TooLong),
        ] {
            assert_eq!(asked("POST", uri), Err(wrong), "{uri}");
        }
    }

    #[test]
    fn what_only_a_server_itself_answers_is_told_with_what_to_do() {
        for (path, part) in [
            ("/api/v2/query?org=x", "Flux"),
            ("/api/v3/query_sql", "SQL"),
            ("/api/v1/prom/read", "Prometheus"),
            ("/debug/vars", "each backend itself"),
            ("/metrics", "admin address"),
            ("/api/v2/buckets", "ask a backend itself"),
        ] {
            let Ok(Asked::Elsewhere(_, how)) = asked("POST", path) else { panic!("{path}") };
            assert!(how.contains(part), "{path}: {how}");
        }
    }

    #[test]
    fn other_paths_and_methods_have_their_answer() {
        for (method, uri, expected) in [
            ("GET", "/ping", Asked::Ping { is_verbose: false }),
            ("HEAD", "/ping?wait_for_leader=5s", Asked::Ping { is_verbose: false }),
            ("GET", "/ping?verbose=true", Asked::Ping { is_verbose: true }),
            ("GET", "/ping?verbose=false", Asked::Ping { is_verbose: false }),
            ("POST", "/ping", Asked::NotAllowed(Api::V1, "GET, HEAD, OPTIONS")),
            ("GET", "/write?db=d", Asked::NotAllowed(Api::V1, "OPTIONS, POST")),
            ("OPTIONS", "/write", Asked::Options),
            ("GET", "/health", Asked::Health),
            ("GET", "/ready", Asked::Ready),
            ("POST", "/api/put?details", Asked::Put),
            ("POST", "/query?q=SHOW+DATABASES", Asked::Query),
            ("GET", "/", Asked::Unknown(Api::V1)),
            ("GET", "/api/v3/nothing", Asked::Unknown(Api::V3)),
        ] {
            assert_eq!(asked(method, uri), Ok(expected), "{method} {uri}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_name_comes_as_it_was_whoever_encodes_it(name in "\\PC{1,40}", other in "\\PC{0,10}") {
            let encode = |text: &str, is_form| {
                let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
                if is_form { encoded.replace("%20", "+") } else { encoded }
            };
            for is_form in [false, true] {
                let (name_sent, other_sent) = (encode(&name, is_form), encode(&other, is_form));
                let found = write(&format!("/write?db={name_sent}&rp={other_sent}&db=x"));
                proptest::prop_assert_eq!(found.database.as_deref(), Some(&*name));
                proptest::prop_assert_eq!(found.retention_policy.unwrap_or_default(), other.as_str());
            }
        }

        #[test]
        fn any_query_is_read_or_refused(path in "/(write|query|ping|api/v2/write|api/v3/write_lp|[a-z/]{0,9})",
                                        query in "[!-~&&[^#]]{0,200}") {
            if let Ok(uri) = format!("{path}?{query}").parse() {
                for method in [Method::GET, Method::POST, Method::DELETE] {
                    drop(Asked::of(&method, &uri));
                }
            }
        }
    }
}
