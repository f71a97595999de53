//! `/query`: sends a query to one backend, and a statement that changes something to all of them.
//!
//! Forwards nothing that was not parsed, and enforces the sender's rights to read and to change.
//! Never does: choosing the copy. Bounds: a body of 1 MiB, received within [`BODY_TIMEOUT`]; a
//! filtered `SHOW DATABASES` reply of [`MAX_LIST_BYTES`].

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

/// Time limit for receiving a body; it is only a statement.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size in bytes of a list of databases that is filtered by rights.
const MAX_LIST_BYTES: usize = 1 << 20;

/// The answer to a query.
pub(super) enum Said {
    /// An answer of this relay.
    Answer(Answer),
    /// A backend's reply.
    Reply(Reply),
}

/// Answers a query.
///
/// # Errors
/// The body was not received in time, or was cut off.
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

/// Reads the body, and returns it if the request is a POST.
async fn read_body(request: &mut Request<Incoming>) -> Result<Result<Option<Bytes>, Problem>, Failed> {
    let is_post = *request.method() == Method::POST;
    let read = timeout(BODY_TIMEOUT, Limited::new(request.body_mut(), form::MAX_BYTES).collect()).await;
    match read.map_err(|_| Failed::Slow)? {
        Ok(body) => Ok(Ok(is_post.then(|| body.to_bytes()))),
        Err(error) if error.is::<LengthLimitError>() => Ok(Err(Problem::TooLarge(form::MAX_BYTES as u64))),
        Err(_) => Err(Failed::Cut),
    }
}

/// A query whose body has been read.
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
            // The server reports the error, or understands more than this relay.
            Err(_) if influxql::only_reads(text) && !self.has_users() => return self.ask(form, text, None).await,
            Err(wrong) => return Err(bad_request(&format!("cannot read the statement: {wrong}"))),
        };
        match &statements[..] {
            [one] if !one.kind.is_read() => self.order(form, text, one, now).await,
            all if all.iter().all(|one| one.kind.is_read()) => self.ask(form, text, Some(all)).await,
            _ => Err(bad_request("a statement that changes something must be sent alone")),
        }
    }

    /// Sends a query to one backend. `statements` is `None` if it could not be parsed.
    async fn ask(&self, form: &Form, text: &str, statements: Option<&[Statement]>) -> Result<Said, Problem> {
        let only = statements.and_then(|statements| if let [one] = statements { Some(one.kind) } else { None });
        let Some(reader) = self.serving.host.reader.clone() else {
            // Writers send `SHOW DATABASES` at their start.
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
            // A reply that is filtered must be readable here.
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
        // A writer must be able to start while no backend is up.
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
        // Old clients create databases by GET. No other change is allowed by GET.
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
            // A statement that changes several databases is a barrier for all of them.
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
            // Telegraf logs an error in a result and continues.
            Err(Problem::NoAdministrator) => {
                return Ok(statements::result(Err("no right to create anything (admin = true)")));
            }
            other => other?,
        };
        let ran = self.serving.host.create.run(create.to_string(), may_administer, self.authorization()).await;
        Ok(statements::result(ran))
    }

    async fn may_administer(&self) -> Result<bool, Problem> {
        self.serving.gate.may_administer(&self.head.uri, &self.head.headers, self.source).await
    }

    /// Checks that the sender may read everything that the query names. Returns the rights by which
    /// the reply must be filtered if the query lists databases.
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

    /// The client's credentials in a form that every InfluxDB accepts. `None` if this relay
    /// authenticates users itself.
    fn authorization(&self) -> Option<HeaderValue> {
        if self.has_users() {
            return None;
        }
        let mut of_url = parameters(self.head.uri.query().unwrap_or_default());
        let (user, password) = (of_url.remove("u"), of_url.remove("p"));
        let known = Credentials::of(user.as_deref(), password.as_deref(), &self.head.headers).ok().flatten();
        // 1.6 does not know `Token user:password`.
        known.and_then(|known| known.basic()).or_else(|| self.head.headers.get(AUTHORIZATION).cloned())
    }

    /// Lists the databases that this relay knows, filtered by `may` if given.
    fn configured_databases(&self, may: Option<&Reading>) -> Answer {
        let mut names = self.serving.destinations.borrow().names();
        names.retain(|name| may.is_none_or(|may| may.may_see(name)));
        statements::show_databases(names)
    }
}

/// The databases that a query reads; empty if they are unknown.
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

/// Replaces `now()` in a statement by the time. Copies run the statement at different times and
/// must have the same result.
fn literal(text: &str, statement: &Statement, now: i64) -> String {
    let mut literal = text.to_owned();
    for range in statement.nows.iter().rev() {
        let start = statement.text.start;
        literal.replace_range(range.start - start..range.end - start, &now.to_string());
    }
    literal
}

/// Removes the databases that the reader may not see from a reply.
async fn shortened(reply: Reply, may: &Reading) -> Result<Reply, Problem> {
    let (mut head, body) = reply.into_parts();
    let failed = || Problem::Reader(StatusCode::BAD_GATEWAY, "the list of databases cannot be read".to_owned());
    let body = Limited::new(body, MAX_LIST_BYTES).collect().await.map_err(|_| failed())?.to_bytes();
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
