//! What writers ask at their start: creating a database or a retention policy, and which databases there are.
//!
//! Never does: any other statement. With users, only one who may administer creates something; without, whoever a backend lets.
//! Bounds: a body of [`MOST_BYTES`], and [`LONGEST_BODY`] for it.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::answer::Answer;
use super::problem::Problem;
use super::request::{Api, parameters};
use super::serve::Serving;
use super::write::Failed;
use crate::auth::Credentials;
use crate::batch::HandOver;
use crate::protocol::influxql::Create;

/// The longest body of a query, in bytes.
const MOST_BYTES: usize = 64 * 1024;
/// How long it may take to come: it is a sentence.
const LONGEST_BODY: Duration = Duration::from_secs(5);

/// Answers a statement, which stands in the URL or in the body's form.
///
/// # Errors
/// Its body does not come in time, or is cut.
pub(super) async fn answer<H: HandOver + Sync + 'static>(
    serving: &Rc<Serving<H>>,
    statement: Option<String>,
    mut request: Request<Incoming>,
    source: IpAddr,
) -> Result<Answer, Failed> {
    let read = timeout(LONGEST_BODY, Limited::new(request.body_mut(), MOST_BYTES).collect()).await;
    match read.map_err(|_| Failed::Slow)? {
        Ok(body) => {
            let form = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            Ok(of_form(serving, statement, &form, request, source).await)
        }
        Err(error) if error.is::<LengthLimitError>() => {
            Ok(Answer::of_problem(Api::V1, &Problem::TooLarge(MOST_BYTES as u64), serving.setup.is_safe))
        }
        Err(_) => Err(Failed::Cut),
    }
}

/// Answers the statement of the URL, else the form's.
async fn of_form<H: HandOver + Sync + 'static>(
    serving: &Rc<Serving<H>>,
    statement: Option<String>,
    form: &str,
    request: Request<Incoming>,
    source: IpAddr,
) -> Answer {
    let problem = |problem: &Problem| Answer::of_problem(Api::V1, problem, serving.setup.is_safe);
    let (head, _) = request.into_parts();
    let statement = statement.or_else(|| parameters(form.trim()).remove("q").map(std::borrow::Cow::into_owned));
    let Some(statement) = statement else { return problem(&Problem::Reads) };
    if is_show_databases(&statement) {
        return show_databases(serving.destinations.borrow().names());
    }
    let Some(create) = Create::parse(&statement) else { return problem(&Problem::Reads) };
    // Old clients create databases by GET; nothing else may be changed by it.
    if head.method == Method::GET && !create.is_database {
        return problem(&Problem::NotAllowed("POST"));
    }
    let query = head.uri.query().unwrap_or_default();
    let may_administer = match serving.gate.may_administer(&head.uri, &head.headers, source).await {
        Ok(may) => may,
        // Telegraf logs an error in a result, and goes on.
        Err(Problem::NoAdministrator) => return result(Err("no right to create anything (admin = true)".to_owned())),
        Err(why) => return problem(&why),
    };
    let authorization = head.headers.get(AUTHORIZATION).cloned().or_else(|| of_query(query));
    let ran = serving.host.create.run(create.to_string(), may_administer, authorization).await;
    result(ran)
}

/// A statement's result, as InfluxDB tells it.
fn result(ran: Result<(), String>) -> Answer {
    let result = match ran {
        Ok(()) => serde_json::json!({ "statement_id": 0 }),
        Err(error) => serde_json::json!({ "statement_id": 0, "error": error }),
    };
    Answer::json(StatusCode::OK, &serde_json::json!({ "results": [result] }))
}

/// The credentials of a URL, as a backend takes them.
fn of_query(query: &str) -> Option<HeaderValue> {
    let mut parameters = parameters(query);
    let (user, password) = (parameters.remove("u"), parameters.remove("p"));
    let credentials = Credentials::of(user.as_deref(), password.as_deref(), &http::HeaderMap::new()).ok()??;
    credentials.basic()
}

fn is_show_databases(statement: &str) -> bool {
    let words: Vec<&str> = statement.trim_matches([' ', ';', '\n', '\r', '\t']).split_whitespace().collect();
    matches!(words[..], [show, databases] if show.eq_ignore_ascii_case("show") && databases.eq_ignore_ascii_case("databases"))
}

fn show_databases(names: Vec<String>) -> Answer {
    let values: Vec<[String; 1]> = names.into_iter().map(|name| [name]).collect();
    let series = serde_json::json!([{ "name": "databases", "columns": ["name"], "values": values }]);
    Answer::json(StatusCode::OK, &serde_json::json!({ "results": [{ "statement_id": 0, "series": series }] }))
}
