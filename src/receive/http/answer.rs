//! Answers, in the format of the requested endpoint.
//!
//! The texts are an API: clients drop data when an answer contains certain phrases, whatever the
//! status. An error that an operator can fix must not make clients drop lines, so it is answered in
//! plain text, on which Telegraf keeps its data. Errors in the lines themselves are answered in
//! JSON. (`errors = "influxdb"` answers as InfluxDB does, word for word.) No answer has a
//! `Retry-After` header: one client reads it as milliseconds and gives up within a second.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ALLOW, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, ORIGIN,
    WWW_AUTHENTICATE,
};
use http::{Response, StatusCode};
use http_body_util::Full;

use super::reading::Reply;
use super::request::Api;
use crate::intake::Told;
use crate::protocol::Refusal;

/// How many bytes of a refused line an answer repeats. 3.x repeats 20.
const LINE_BYTES: usize = 200;
const V3_LINE_BYTES: usize = 20;
/// Maximum number of refused lines that a text names.
const NAMED: usize = 3;
/// Maximum number of refused lines that are kept and listed for 3.x.
pub(super) const MAX_SAMPLES: usize = 100;
/// Maximum number of characters of an error text in a header.
const HEADER_BYTES: usize = 1024;
/// Maximum length of a client's request ID that is echoed.
const REQUEST_ID_BYTES: usize = 128;

/// An answer, before it is turned into a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) form: Form,
    pub(super) body: String,
    /// Value of `X-Influxdb-Error`.
    pub(super) error: Option<String>,
    /// Value of `X-Platform-Error-Code`.
    pub(super) code: Option<&'static str>,
    pub(super) allow: Option<&'static str>,
    /// Value of `X-Twinflux-Rejected`.
    pub(super) rejected: Option<u64>,
    /// Whether the connection is closed after it.
    pub(super) closes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Empty,
    /// `application/json`; Icinga requires exactly this.
    Json,
    JsonUtf8,
    Text,
}

impl Answer {
    /// Creates an answer without a body.
    pub(super) fn empty(status: StatusCode) -> Self {
        Self {
            status,
            form: Form::Empty,
            body: String::new(),
            error: None,
            code: None,
            allow: None,
            rejected: None,
            closes: false,
        }
    }

    /// Closes the connection after this answer.
    pub(super) fn closing(self) -> Self {
        Self { closes: true, ..self }
    }

    /// Creates an answer with a JSON body.
    pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Self {
        Self { form: Form::Json, body: format!("{body}\n"), ..Self::empty(status) }
    }

    /// Answers a request whose accepted lines are safe.
    pub(super) fn of_lines(api: Api, told: &Told, reports: bool) -> Self {
        if told.refused == 0 {
            return Self::empty(StatusCode::NO_CONTENT);
        }
        if !reports {
            return Self { rejected: Some(told.refused), ..Self::empty(StatusCode::NO_CONTENT) };
        }
        let text = text_of(told);
        if api != Api::V3 {
            return Self::error(api, StatusCode::BAD_REQUEST, "invalid", text);
        }
        let listed: Vec<_> = told
            .samples
            .iter()
            .map(|sample| {
                serde_json::json!({
                    "original_line": shown(&sample.line, V3_LINE_BYTES),
                    "line_number": sample.number,
                    "error_message": words(sample.reason),
                })
            })
            .collect();
        let error = if told.accepted > 0 {
            "partial write of line protocol occurred"
        } else {
            "parsing failed for write_lp endpoint"
        };
        let body = serde_json::json!({ "error": error, "data": listed });
        Self { error: Some(text), ..Self::json(StatusCode::BAD_REQUEST, &body) }
    }

    pub(super) fn error(api: Api, status: StatusCode, code: &'static str, text: String) -> Self {
        let (form, body) = match api {
            Api::V1 | Api::V3 => (Form::Json, serde_json::json!({ "error": text })),
            Api::V2 => (Form::JsonUtf8, serde_json::json!({ "code": code, "message": text })),
        };
        let code = Some(code).filter(|_| api == Api::V2);
        Self { form, body: format!("{body}\n"), error: Some(text), code, ..Self::empty(status) }
    }

    /// Builds the response. `asked` are the request's headers; `version` is the InfluxDB version to
    /// claim.
    pub(super) fn response(self, asked: &HeaderMap, version: &HeaderValue) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        let content_type = match self.form {
            Form::Empty | Form::Json => "application/json",
            Form::JsonUtf8 => "application/json; charset=utf-8",
            Form::Text => "text/plain; charset=utf-8",
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert("x-influxdb-version", version.clone());
        headers.insert("x-influxdb-build", HeaderValue::from_static("OSS"));
        let request_id = request_id(asked);
        headers.insert("request-id", request_id.clone());
        headers.insert("x-request-id", request_id);
        if let Some(error) = self.error.and_then(|text| header_text(&text)) {
            headers.insert("x-influxdb-error", error);
        }
        if let Some(code) = self.code {
            headers.insert("x-platform-error-code", HeaderValue::from_static(code));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"InfluxDB\""));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(rejected) = self.rejected {
            headers.insert("x-twinflux-rejected", rejected.into());
        }
        if self.closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(origin) = asked.get(ORIGIN) {
            allow_origin(headers, origin);
        }
        response
    }
}

/// Lets a page of the request's origin read a backend's reply.
pub(super) fn allowing_origin(mut reply: Reply, asked: &HeaderMap) -> Reply {
    if let Some(origin) = asked.get(ORIGIN) {
        allow_origin(reply.headers_mut(), origin);
    }
    reply
}

/// Sets the CORS headers as 1.x does, so that a page of this origin can read the answer.
fn allow_origin(headers: &mut HeaderMap, origin: &HeaderValue) {
    let fixed =
        |headers: &mut HeaderMap, name: HeaderName, value| headers.insert(name, HeaderValue::from_static(value));
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    fixed(headers, ACCESS_CONTROL_ALLOW_METHODS, "DELETE, GET, OPTIONS, POST, PUT, PATCH");
    let allowed = "Accept, Accept-Encoding, Authorization, Content-Length, Content-Type, User-Agent, X-CSRF-Token, X-HTTP-Method-Override";
    fixed(headers, ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    fixed(headers, ACCESS_CONTROL_EXPOSE_HEADERS, "Date, X-InfluxDB-Version, X-InfluxDB-Build");
}

/// The client's request ID, or a new one.
fn request_id(asked: &HeaderMap) -> HeaderValue {
    let given = ["x-request-id", "request-id"].into_iter().find_map(|name| asked.get(name));
    let is_fit =
        |value: &&HeaderValue| value.len() <= REQUEST_ID_BYTES && value.to_str().is_ok_and(|text| !text.is_empty());
    if let Some(given) = given.filter(is_fit) {
        return given.clone();
    }
    let number = fastrand::u128(..);
    let digits = format!("{number:032x}");
    let text = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-");
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("0"))
}

/// Converts a text into a header value: one line, as 1.x writes it, with every other character that
/// is not printable ASCII replaced.
fn header_text(text: &str) -> Option<HeaderValue> {
    let plain = |c| match c {
        '\n' => ' ',
        c if c.is_ascii_graphic() || c == ' ' => c,
        _ => '?',
    };
    HeaderValue::from_str(&text.chars().map(plain).take(HEADER_BYTES).collect::<String>()).ok()
}

/// Describes the refused lines in the words of 1.x.
fn text_of(told: &Told) -> String {
    let named = told
        .samples
        .iter()
        .take(NAMED)
        .map(|sample| format!("unable to parse '{}': {}", shown(&sample.line, LINE_BYTES), words(sample.reason)));
    let mut text = named.collect::<Vec<_>>().join("\n");
    let more = told.refused.saturating_sub(NAMED.min(told.samples.len()) as u64);
    if more > 0 {
        text.push_str(&format!("\nand {more} more"));
    }
    if told.accepted > 0 { format!("partial write: {text} dropped={}", told.refused) } else { text }
}

/// The first bytes of a line as printable text.
fn shown(line: &[u8], bytes: usize) -> String {
    let line = &line[..line.len().min(bytes)];
    String::from_utf8_lossy(line).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

pub(super) fn quoted(name: &str) -> String {
    format!("{:?}", shown(name.as_bytes(), LINE_BYTES))
}

/// Why a line was refused, in InfluxDB's words if it has any.
fn words(reason: Refusal) -> &'static str {
    match reason {
        Refusal::MissingMeasurement => "missing measurement",
        Refusal::MissingTagKey => "missing tag key",
        Refusal::InvalidTagValue => "missing tag value",
        Refusal::DuplicateTag => "duplicate tags",
        Refusal::ReservedTag => "the tag key is reserved",
        Refusal::TooManyTags => "too many tags",
        Refusal::MissingField => "missing fields",
        Refusal::ReservedField => "the only field is time, which is reserved",
        Refusal::InvalidValue => "invalid field format",
        Refusal::NumberOutOfRange => "number out of range",
        Refusal::UnsignedInteger => "unsigned integers are not taken (unsigned = \"refuse\")",
        Refusal::UnterminatedString => "unbalanced quotes",
        Refusal::TrailingText => "text behind the fields or the timestamp",
        Refusal::InvalidTimestamp => "bad timestamp",
        Refusal::TimestampOutOfRange => "time outside range",
        Refusal::ControlByte => "a control character outside a string",
        Refusal::InvalidUtf8 => "invalid UTF-8",
        Refusal::AmbiguousEscape => "a backslash that servers read differently",
        Refusal::TooLong => "the line or its series key is too long",
        Refusal::Truncated => "the line has no end",
        Refusal::NotANumber => "NaN and infinity are not taken",
        Refusal::InvalidJson => "invalid JSON",
        Refusal::WrongFormat => "no known format",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::Sample;

    fn told(accepted: u64, refused: u64) -> Told {
        let sample = |number, line: &[u8], reason| Sample { number, line: line.to_vec(), reason };
        let mut told = Told::default();
        (told.accepted, told.refused) = (accepted, refused);
        told.samples = vec![
            sample(2, b"m v", Refusal::InvalidValue),
            sample(3, b"m,a=\r\nX-Evil:\xff 1", Refusal::InvalidUtf8),
            sample(7, "ä".repeat(150).as_bytes(), Refusal::MissingField),
            sample(9, b"m", Refusal::MissingField),
        ];
        told
    }

    #[test]
    fn bad_lines_are_named_in_each_form() {
        let json = |answer: &Answer| serde_json::from_str::<serde_json::Value>(&answer.body).expect("JSON");
        let some = Answer::of_lines(Api::V1, &told(5, 4), true);
        let body = json(&some);
        let text = body["error"].as_str().expect("text");
        assert!(
            text.starts_with(
                "partial write: unable to parse 'm v': invalid field format\nunable to parse 'm,a=??X-Evil:"
            )
        );
        assert!(text.ends_with("\nand 1 more dropped=4"), "{text}");
        assert!(text.len() < 1_000);
        let none = json(&Answer::of_lines(Api::V2, &told(0, 4), true));
        assert_eq!(none["code"], "invalid");
        let text = none["message"].as_str().expect("text");
        assert!(text.starts_with("unable to parse 'm v'") && !text.contains("dropped"), "{text}");
        let listed = json(&Answer::of_lines(Api::V3, &told(5, 4), true));
        assert_eq!(
            (&listed["error"], &listed["data"][0]["line_number"]),
            (&"partial write of line protocol occurred".into(), &2.into())
        );
        assert_eq!(listed["data"].as_array().expect("a list").len(), 4);
        let header = some.response(&HeaderMap::new(), &HeaderValue::from_static("1.8.10"));
        let header = header.headers()["x-influxdb-error"].to_str().expect("text");
        assert!(header.contains(" unable to parse 'm,a=??X-Evil:"), "{header}");
    }

    #[test]
    fn bad_lines_may_be_only_counted() {
        let answer = Answer::of_lines(Api::V1, &told(5, 4), false);
        let response = answer.response(&HeaderMap::new(), &HeaderValue::from_static("1.8.10"));
        assert_eq!(
            (response.status(), &response.headers()["x-twinflux-rejected"]),
            (StatusCode::NO_CONTENT, &HeaderValue::from(4))
        );
    }

    #[test]
    fn a_requests_number_is_repeated_if_it_is_fit_to_be() {
        let answered = |number: &str| {
            let mut asked = HeaderMap::new();
            asked.insert("x-request-id", HeaderValue::from_bytes(number.as_bytes()).expect("a header"));
            Answer::empty(StatusCode::NO_CONTENT).response(&asked, &HeaderValue::from_static("1")).headers()["request-id"].clone()
        };
        assert_eq!(answered("mine"), "mine");
        for unfit in ["", "ä", &"x".repeat(129)] {
            let made = answered(unfit);
            assert_eq!(made.len(), 36, "{made:?}");
        }
    }
}
