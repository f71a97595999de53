//! Handles a request and produces its response.

use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::answer::{Answer, allowing_origin};
use super::forwarded::source_of;
use super::problem::Problem;
use super::query::{self, Said};
use super::reading::Reply;
use super::request::{self, Api, Asked};
use super::serve::Serving;
use super::write::{self, Failed, Job};
use crate::batch::Submit;
use crate::protocol::Format;
use crate::receive::crowd::Member;
use crate::receive::proxy::is_trusted;

/// How often to check whether a client that waits for an answer is still connected.
const GONE_POLL: Duration = Duration::from_millis(250);
/// How long a client that has shut down its sending side may still wait for an answer.
const HALF_CLOSED: Duration = Duration::from_secs(2);

impl<H: Submit + Sync + 'static> Serving<H> {
    /// Answers a request. `None`: close the connection without an answer.
    pub(super) async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
        source: IpAddr,
        member: &Member<TcpStream>,
        has_length: bool,
    ) -> Option<Reply> {
        let headers = request::repeated(request.headers());
        let peer = source;
        let source = source_of(request.headers(), peer, &self.setup.trusted_proxies);
        // The peer's own connections are already counted by the crowd.
        let is_named = source != peer;
        let entered = is_named.then(|| self.under_way.enter(source, self.setup.max_connections_per_source));
        let is_crowded = matches!(entered, Some(None));
        let is_head = *request.method() == Method::HEAD;
        let api = Api::of_path(request.uri().path());
        let answer = match framing(&request, has_length) {
            Some(what) => {
                Ok(Said::Answer(Answer::of_problem(api, &Problem::Framing(what), self.setup.is_safe).closing()))
            }
            None if !self.admits(&request, source) => {
                Ok(Said::Answer(self.refuse(api, request, &Problem::Denied).await))
            }
            None if is_crowded => Ok(Said::Answer(self.refuse(api, request, &Problem::Crowded).await)),
            None if request.uri().path() == "/query" => {
                tokio::select! {
                    biased;
                    said = self.act(api, request, source) => said,
                    () = gone(member) => Err(Failed::Cut),
                }
            }
            None => self.act(api, request, source).await,
        };
        drop(entered);
        let said = match answer {
            Ok(said) => said,
            Err(failed) => {
                self.count_unanswered(&failed, source);
                return None;
            }
        };
        let status = match &said {
            Said::Answer(answer) => answer.status,
            Said::Reply(reply) => reply.status(),
        };
        self.logs.answered(source, status);
        let mut intake = self.intake.borrow_mut();
        let tally = intake.tally();
        tally.requests += 1;
        tally.limited += u64::from(is_crowded);
        tally.auth_failures += u64::from(status == StatusCode::UNAUTHORIZED);
        tally.count_answer(status.as_u16());
        intake.publish();
        drop(intake);
        let is_stopping = *self.stop.borrow();
        let mut response = match said {
            Said::Answer(answer) => {
                let version =
                    HeaderValue::from_str(&self.host.claim.says()).unwrap_or(HeaderValue::from_static("1.8.10"));
                answer.response(&headers, &version).map(whole)
            }
            Said::Reply(reply) => allowing_origin(reply, &headers),
        };
        if is_stopping {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if is_head {
            *response.body_mut() = whole(Full::default());
        }
        Some(response)
    }

    /// Whether a source may send this request: `allow` names it, or it is a trusted balancer
    /// performing a health check.
    fn admits(&self, request: &Request<Incoming>, source: IpAddr) -> bool {
        let is_check =
            || matches!(request.uri().path(), "/ping" | "/health" | "/ready") || request.method() == Method::OPTIONS;
        self.setup.intake.allows(Some(source)) || (is_trusted(&self.setup.trusted_proxies, source) && is_check())
    }

    fn count_unanswered(&self, failed: &Failed, source: IpAddr) {
        let mut intake = self.intake.borrow_mut();
        intake.tally().requests += 1;
        if matches!(failed, Failed::Slow) {
            intake.tally().timed_out += 1;
            self.logs.timed_out(source);
        }
        intake.publish();
    }

    async fn act(self: &Rc<Self>, api: Api, request: Request<Incoming>, source: IpAddr) -> Result<Said, Failed> {
        let asked = match Asked::of(request.method(), request.uri()) {
            Ok(asked) => asked,
            Err(wrong) => return Ok(Said::Answer(self.refuse(api, request, &Problem::Query(wrong)).await)),
        };
        let is_write = matches!(asked, Asked::Write(_) | Asked::Put);
        if is_write && !self.setup.takes_writes {
            return Ok(Said::Answer(self.refuse(api, request, &Problem::NoWriters).await));
        }
        Ok(Said::Answer(match asked {
            Asked::Write(wanted) => {
                let database = wanted.database.as_deref().unwrap_or_else(|| self.setup.intake.destination.database());
                let allowed = self.gate.may_write(request.uri(), request.headers(), source, database).await;
                let destination = allowed.and_then(|()| self.destinations.borrow_mut().of(&wanted));
                let accepts_partial = wanted.accepts_partial;
                let job = |destination| Job {
                    destination,
                    format: Some(Format::Influx),
                    accepts_partial,
                    may_be_list: false,
                };
                self.take(api, destination.map(job), request, source).await?
            }
            Asked::Put => {
                let database = self.setup.intake.destination.database();
                let allowed = self.gate.may_write(request.uri(), request.headers(), source, database).await;
                let destination = allowed.and_then(|()| self.destinations.borrow_mut().usual());
                let format = self.setup.intake.format;
                let job = |destination| Job { destination, format, accepts_partial: true, may_be_list: true };
                self.take(api, destination.map(job), request, source).await?
            }
            Asked::Ping { is_verbose: false } => Answer::empty(StatusCode::NO_CONTENT),
            Asked::Ping { is_verbose: true } => {
                Answer::json(StatusCode::OK, &serde_json::json!({ "version": self.host.claim.says() }))
            }
            Asked::Health => self.health(),
            Asked::Ready => self.ready(),
            Asked::Query => return query::answer(self, request, source).await,
            Asked::Options => Answer::empty(StatusCode::OK),
            Asked::NotAllowed(_, allow) => self.refuse(api, request, &Problem::NotAllowed(allow)).await,
            Asked::Elsewhere(_, how) => {
                let problem = Problem::Reader(StatusCode::NOT_FOUND, how.to_owned());
                self.refuse(api, request, &problem).await
            }
            Asked::Unknown(_) => self.refuse(api, request, &Problem::NotFound).await,
        }))
    }

    /// Takes a request's lines, unless there is already a reason to refuse them before the first
    /// one is read.
    async fn take(
        self: &Rc<Self>,
        api: Api,
        job: Result<Job, Problem>,
        request: Request<Incoming>,
        source: IpAddr,
    ) -> Result<Answer, Failed> {
        let job = match job {
            Ok(_) if self.shelf.is_full() || *self.stop.borrow() => Err(Problem::Full),
            job => job,
        };
        let job = match job {
            Ok(job) => job,
            Err(problem) => return Ok(self.refuse(api, request, &problem).await),
        };
        match write::take(self, job, request, source).await {
            Ok(told) => Ok(Answer::of_lines(api, &told, self.setup.reports_partial)),
            Err(Failed::Problem(problem)) => Ok(Answer::of_problem(api, &problem, self.setup.is_safe).closing()),
            Err(failed) => Err(failed),
        }
    }

    /// Refuses a request without processing its body.
    async fn refuse(&self, api: Api, request: Request<Incoming>, problem: &Problem) -> Answer {
        write::drain(request).await;
        Answer::of_problem(api, problem, self.setup.is_safe)
    }

    fn health(&self) -> Answer {
        let is_full = self.shelf.is_full();
        let (status, word) = if is_full { (StatusCode::SERVICE_UNAVAILABLE, "fail") } else { (StatusCode::OK, "pass") };
        let message = if is_full { "memory and disk are used up" } else { "ready for queries and writes" };
        let body = serde_json::json!({
            "name": "influxdb", "message": message, "status": word, "checks": [], "version": self.host.claim.says(),
        });
        Answer::json(status, &body)
    }

    fn ready(&self) -> Answer {
        let up = Duration::from_secs(self.begun.elapsed().as_secs());
        let started = humantime::format_rfc3339_seconds(std::time::SystemTime::now() - up).to_string();
        let up = humantime::format_duration(up).to_string().replace(' ', "");
        Answer::json(StatusCode::OK, &serde_json::json!({ "status": "ready", "started": started, "up": up }))
    }
}

/// Waits until the client has disconnected, or has sent nothing more and had [`HALF_CLOSED`] to
/// take an answer. Its query costs a backend work and can then be abandoned.
pub(super) async fn gone(member: &Member<TcpStream>) {
    loop {
        sleep(GONE_POLL).await;
        let is_gone = match timeout(Duration::ZERO, member.stream.ready(Interest::READABLE)).await {
            Ok(Ok(ready)) => ready.is_read_closed(),
            Ok(Err(_)) => true,
            Err(_) => false,
        };
        if is_gone {
            // The client may have shut down only its sending side.
            return sleep(HALF_CLOSED).await;
        }
    }
}

/// Boxes a body of our own into the type of a backend's body.
fn whole(body: Full<Bytes>) -> UnsyncBoxBody<Bytes, io::Error> {
    body.map_err(|never| match never {}).boxed_unsync()
}

/// Returns what is wrong with a request whose framing an upstream proxy could interpret differently
/// (request smuggling).
fn framing(request: &Request<Incoming>, has_length: bool) -> Option<&'static str> {
    let headers = request.headers();
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        if encodings.next().is_some() || !encoding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Some("Transfer-Encoding must be chunked, once");
        }
        if has_length {
            return Some("Content-Length and Transfer-Encoding exclude each other");
        }
    }
    if request.uri().authority().is_some() || matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return Some("this is no proxy");
    }
    None
}
