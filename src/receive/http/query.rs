//! `/query`: a reader's question goes to one backend, a statement that changes something to all of them.
//!
//! Nothing passes that was not understood, and nobody reads or changes more than its rights say. Never does: choosing the copy.
//! Bounds: a body of 1 MiB, and [`LONGEST_BODY`] for it; of `SHOW DATABASES`, where rights limit it, [`MOST_LISTED`] bytes.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH};
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::answer::Answer;
use super::form::{self, Form};
use super::gate::Reading;
use super::problem::Problem;
use super::reading::{Order, Question, Refused, Reply};
use super::request::{Api, parameters};
use super::serve::Serving;
use super::statements;
use super::write::Failed;
use crate::auth::Credentials;
use crate::batch::Submit;
use crate::protocol::Span;
use crate::protocol::influxql::{self, Create, Kind, Statement};

/// How long a body may take to come: it is a sentence.
const LONGEST_BODY: Duration = Duration::from_secs(5);
/// The bytes of a list of databases that is shortened to what may be seen.
const MOST_LISTED: usize = 1 << 20;

/// What is said to a query.
pub(super) enum Said {
    /// Something of our own.
    Answer(Answer),
    /// A backend's answer.
    Reply(Reply),
}

/// Answers a query.
///
/// # Errors
/// Its body does not come in time, or is cut.
pub(super) async fn answer<H: Submit + Sync + 'static>(
    serving: &Rc<Serving<H>>,
    mut request: Request<Incoming>,
    source: IpAddr,
) -> Result<Said, Failed> {
    let is_safe = serving.setup.is_safe;
    let body = match read_body(&mut request).await? {
        Ok(body) => body,
        Err(problem) => return Ok(Said::Answer(Answer::of_problem(Api::V1, &problem, is_safe))),
    };
    let (head, _) = request.into_parts();
    let query = Query { serving, source, head };
    let said = match Form::of(query.head.uri.query().unwrap_or_default(), &query.head.headers, body).await {
        Ok(form) => query.answer(&form).await,
        Err(error) => Err(Problem::Reader(StatusCode::BAD_REQUEST, format!("cannot read the form: {error}"))),
    };
    Ok(said.unwrap_or_else(|problem| Said::Answer(Answer::of_problem(Api::V1, &problem, is_safe))))
}

/// A form's body, if it is a POST's.
async fn read_body(request: &mut Request<Incoming>) -> Result<Result<Option<Bytes>, Problem>, Failed> {
    let is_post = *request.method() == Method::POST;
    let read = timeout(LONGEST_BODY, Limited::new(request.body_mut(), form::MOST_BYTES).collect()).await;
    match read.map_err(|_| Failed::Slow)? {
        Ok(body) => Ok(Ok(is_post.then(|| body.to_bytes()))),
        Err(error) if error.is::<LengthLimitError>() => Ok(Err(Problem::TooLarge(form::MOST_BYTES as u64))),
        Err(_) => Err(Failed::Cut),
    }
}

/// A query whose body was read.
struct Query<'a, H> {
    serving: &'a Rc<Serving<H>>,
    source: IpAddr,
    head: Parts,
}

impl<H: Submit + Sync + 'static> Query<'_, H> {
    async fn answer(&self, form: &Form) -> Result<Said, Problem> {
        let Some(text) = form.get("q") else {
            return Err(bad_request("missing required parameter \"q\""));
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        let statements = match influxql::parse(text, now) {
            Ok(statements) => statements,
            // The server says what is wrong with it, or knows more than this relay.
            Err(_) if influxql::only_reads(text) && !self.has_users() => return self.ask(form, text, None).await,
            Err(wrong) => return Err(bad_request(&format!("cannot read the statement: {wrong}"))),
        };
        match &statements[..] {
            [one] if !one.kind.is_read() => self.order(form, text, one, now).await,
            all if all.iter().all(|one| one.kind.is_read()) => self.ask(form, text, Some(all)).await,
            _ => Err(bad_request("a statement that changes something must be sent alone")),
        }
    }

    /// Sends a question to one backend. `statements` is what was understood of it.
    async fn ask(&self, form: &Form, text: &str, statements: Option<&[Statement]>) -> Result<Said, Problem> {
        let only = statements.and_then(|statements| if let [one] = statements { Some(one.kind) } else { None });
        let Some(reader) = self.serving.host.reader.clone() else {
            // Writers ask for it at their start.
            return match only {
                Some(Kind::ShowDatabases) => {
                    let list = self.check_rights(statements, &[]).await?;
                    Ok(Said::Answer(self.configured_databases(list.as_ref())))
                }
                _ => Err(Problem::Reads),
            };
        };
        if form.get("async") == Some("true") {
            return Err(bad_request("async is for statements that change something"));
        }
        let databases = databases_of(form, statements);
        let list = self.check_rights(statements, &databases).await?;
        let mut headers = self.head.headers.clone();
        if list.is_some() {
            // What is to be shortened is to be read.
            headers.remove(ACCEPT_ENCODING);
            headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        }
        let points = statements.map_or(Span::ALWAYS, |all| all.iter().fold(Span::NONE, |sum, one| sum.and(one.points)));
        let question = Question {
            source: self.source,
            form: form.question(text),
            is_pretty: form.is_pretty,
            headers,
            authorization: self.authorization(),
            databases,
            points: if points.is_none() { Span::ALWAYS } else { points },
        };
        let reply = reader.answer(question).await;
        // A writer that starts while no backend is up is not kept from it.
        if only == Some(Kind::ShowDatabases) && reply.status() == StatusCode::SERVICE_UNAVAILABLE {
            return Ok(Said::Answer(self.configured_databases(list.as_ref())));
        }
        match list {
            Some(may) if reply.status() == StatusCode::OK => Ok(Said::Reply(shortened(reply, &may).await?)),
            _ => Ok(Said::Reply(reply)),
        }
    }

    /// Runs a statement that changes something on every backend.
    async fn order(&self, form: &Form, text: &str, one: &Statement, now: i64) -> Result<Said, Problem> {
        let create = Create::parse(&text[one.text.clone()]);
        let is_post = self.head.method == Method::POST;
        // Old clients create databases by GET; nothing else may be changed by it.
        if !is_post && !create.as_ref().is_some_and(|create| create.is_database) {
            return Err(Problem::NotAllowed("POST"));
        }
        if let Some(create) = create {
            return self.create(&create).await.map(Said::Answer);
        }
        let Some(reader) = self.serving.host.reader.clone() else { return Err(Problem::Reads) };
        let refused = match one.kind {
            Kind::OneServer => Some("this means something on one server only: send it to that server itself"),
            Kind::Subscription => Some(
                "every backend would send its points to the subscriber, each once more: create subscriptions on one server itself",
            ),
            Kind::SelectInto if !reader.takes_select_into => Some(
                "SELECT INTO is not run: copies that differ for a moment would differ for ever; set [query] select_into = \"all\" \
                 to run it on every backend",
            ),
            _ => None,
        };
        if let Some(why) = refused {
            return Err(bad_request(why));
        }
        let may_administer = self.may_administer().await?;
        if one.kind == Kind::SelectInto && form.get("rp").is_some_and(|policy| !policy.is_empty()) {
            return Err(bad_request("rp is for questions: name the retention policy in the statement"));
        }
        let default = form.get("db").map(str::to_owned);
        let is_of_database = matches!(one.kind, Kind::Remove | Kind::SelectInto | Kind::ChangePolicy);
        if is_of_database && one.uses_default && default.is_none() {
            return Err(bad_request("database name required"));
        }
        let own = default.clone().filter(|_| one.uses_default);
        let mut databases: Vec<String> = one.databases.iter().cloned().chain(own).collect();
        databases.dedup();
        let order = Order {
            statement: literal(&text[one.text.clone()], one, now),
            default,
            touches_points: is_of_database,
            // One that changes several is a barrier for all of them.
            database: if let [one] = &databases[..] { Some(one.clone()) } else { None },
            may_administer,
            authorization: self.authorization(),
        };
        match reader.order(order).await {
            Ok(answer) => {
                Ok(Said::Answer(Answer { body: answer, ..Answer::json(StatusCode::OK, &serde_json::Value::Null) }))
            }
            Err(Refused::Told(error)) => Ok(Said::Answer(statements::result(Err(error)))),
            Err(Refused::NoBackend(why)) => Err(Problem::Reader(StatusCode::SERVICE_UNAVAILABLE, why)),
        }
    }

    async fn create(&self, create: &Create) -> Result<Answer, Problem> {
        let may_administer = match self.may_administer().await {
            // Telegraf logs an error in a result, and goes on.
            Err(Problem::NoAdministrator) => {
                return Ok(statements::result(Err("no right to create anything (admin = true)".to_owned())));
            }
            other => other?,
        };
        let ran = self.serving.host.create.run(create.to_string(), may_administer, self.authorization()).await;
        Ok(statements::result(ran))
    }

    async fn may_administer(&self) -> Result<bool, Problem> {
        self.serving.gate.may_administer(&self.head.uri, &self.head.headers, self.source).await
    }

    /// Whether the sender may read all of this; what it may see of the databases, if it asks for those.
    async fn check_rights(
        &self,
        statements: Option<&[Statement]>,
        databases: &[String],
    ) -> Result<Option<Reading>, Problem> {
        let Some(reading) = self.serving.gate.reading(&self.head.uri, &self.head.headers, self.source).await? else {
            return Ok(None);
        };
        let kinds = || statements.into_iter().flatten().map(|one| one.kind);
        if kinds().any(|kind| matches!(kind, Kind::ShowAdmin | Kind::ShowServer)) && !reading.may_administer() {
            return Err(Problem::Reader(StatusCode::FORBIDDEN, "this needs admin = true in [[auth.right]]".to_owned()));
        }
        if let Some(database) = databases.iter().find(|database| !reading.may_read(database)) {
            return Err(Problem::Reader(StatusCode::FORBIDDEN, format!("no right to read from {database:?}")));
        }
        let lists = kinds().any(|kind| kind == Kind::ShowDatabases);
        if lists && statements.is_some_and(|all| all.len() > 1) {
            return Err(bad_request("SHOW DATABASES must be sent alone"));
        }
        Ok(Some(reading).filter(|_| lists))
    }

    fn has_users(&self) -> bool {
        self.serving.setup.auth.is_some()
    }

    /// The client's credentials, as every InfluxDB takes them; none if this relay knows its users itself.
    fn authorization(&self) -> Option<HeaderValue> {
        if self.has_users() {
            return None;
        }
        let mut of_url = parameters(self.head.uri.query().unwrap_or_default());
        let (user, password) = (of_url.remove("u"), of_url.remove("p"));
        let known = Credentials::of(user.as_deref(), password.as_deref(), &self.head.headers).ok().flatten();
        // `Token user:password` is not known to 1.6.
        known.and_then(|known| known.basic()).or_else(|| self.head.headers.get(AUTHORIZATION).cloned())
    }

    /// Those that are known here; `may` is what the sender may see.
    fn configured_databases(&self, may: Option<&Reading>) -> Answer {
        let mut names = self.serving.destinations.borrow().names();
        names.retain(|name| may.is_none_or(|may| may.may_see(name)));
        statements::show_databases(names)
    }
}

/// The databases that a question is about; none if that is not known.
fn databases_of(form: &Form, statements: Option<&[Statement]>) -> Vec<String> {
    let Some(statements) = statements else { return Vec::new() };
    let mut databases: Vec<String> = statements.iter().flat_map(|one| one.databases.iter().cloned()).collect();
    if statements.iter().any(|one| one.uses_default) {
        databases.extend(form.get("db").map(str::to_owned));
    }
    databases.sort_unstable();
    databases.dedup();
    databases
}

/// A statement with the time instead of `now()`: another copy runs it later, and is to do the same.
fn literal(text: &str, statement: &Statement, now: i64) -> String {
    let mut literal = text.to_owned();
    for place in statement.nows.iter().rev() {
        let start = statement.text.start;
        literal.replace_range(place.start - start..place.end - start, &now.to_string());
    }
    literal
}

/// A list of databases, without those that may not be seen.
async fn shortened(reply: Reply, may: &Reading) -> Result<Reply, Problem> {
    let (mut head, body) = reply.into_parts();
    let failed = || Problem::Reader(StatusCode::BAD_GATEWAY, "the list of databases cannot be read".to_owned());
    let body = Limited::new(body, MOST_LISTED).collect().await.map_err(|_| failed())?.to_bytes();
    let mut list: serde_json::Value = serde_json::from_slice(&body).map_err(|_| failed())?;
    if let Some(values) = list.pointer_mut("/results/0/series/0/values").and_then(serde_json::Value::as_array_mut) {
        values.retain(|row| row.get(0).and_then(serde_json::Value::as_str).is_some_and(|name| may.may_see(name)));
    }
    head.headers.remove(CONTENT_LENGTH);
    let body = Full::new(Bytes::from(format!("{list}\n"))).map_err(|never| match never {});
    Ok(Reply::from_parts(head, body.boxed_unsync()))
}

fn bad_request(text: &str) -> Problem {
    Problem::Reader(StatusCode::BAD_REQUEST, text.to_owned())
}
