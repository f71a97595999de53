//! Readers' questions: which copy answers, and how its answer is passed on.
//!
//! Owns: the choice ([`choose`]), the places of each backend ([`slots`]), connections that are kept, what is seen of it all.
//! Never does: looking into a statement, or merging two copies. A question goes to one backend, and to one other only as long
//! as no byte of the first one's answer was passed on: a head proves nothing, for InfluxDB sends it before it works.
//!
//! Bounds: questions at a time and in line, for each backend; the time for connecting, for an answer's first byte, and without
//! a byte; 64 KiB of an answer; [`MOST_KEPT`] connections that are kept for each backend.

mod answer;
mod choose;
mod figures;
mod slots;

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, HeaderName, RETRY_AFTER, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::time::timeout_at;

use crate::deliver::{Health, Link, State, Upstream};
use crate::journal::{Completeness, Journal};
use crate::protocol::Span;
use crate::receive::http::{Question, Reply};
use answer::Passing;
use choose::{Candidate, Grade};
use figures::Figures;
use slots::{Slot, Slots};

pub use figures::{Reading, Serves};

/// Connections that are kept for the next question, for each backend.
const MOST_KEPT: usize = 32;
/// How long a question waits for a place.
const LONGEST_IN_LINE: Duration = Duration::from_secs(5);
/// How long an answer's head waits for its first byte: clients count from the head, and InfluxDB sends it at once.
const LONGEST_HELD: Duration = Duration::from_secs(15);
/// A connection is used for so long.
const LIFETIME: Duration = Duration::from_secs(300);
/// A backend that fails is not asked for this long, times the failures in a row; and no longer than that.
const REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// Failures in a row before it rests.
const FAILURES: u32 = 3;
/// The bytes of an answer that are looked at.
const LOOK_BYTES: usize = 512;
/// How an answer begins that tells an error.
const ERROR: &[u8] = b"{\"results\":[{\"statement_id\":0,\"error\":\"";
/// What such an error begins with, or holds, if another backend may do better.
const NOT_HERE: [&str; 4] =
    ["max-concurrent-queries limit exceeded", "shard is disabled", "engine is closed", "database not found"];

/// How questions are answered.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A copy that lags less may answer where none is complete.
    pub max_lag: Duration,
    /// Whether the least incomplete copy answers if none is complete.
    pub serves_incomplete: bool,
    /// How long an answer may be silent.
    pub timeout: Duration,
    /// Questions to one backend at a time.
    pub max_concurrent: usize,
}

/// A backend that readers may be sent to.
#[derive(Debug)]
pub struct Backend {
    name: String,
    /// Its place in the journal.
    place: usize,
    upstream: Upstream,
    health: Arc<Health>,
    slots: Arc<Slots>,
    kept: Mutex<Vec<(Link, Instant)>>,
    figures: Figures,
    /// An operator, or the configuration, does not want it to be asked.
    is_closed: AtomicBool,
    /// It was too far behind, and has not caught up yet.
    is_away: AtomicBool,
    /// Failures in a row, and until when it rests.
    failures: Mutex<(u32, Option<Instant>)>,
}

/// All backends that readers may be sent to.
#[derive(Debug)]
pub struct Readers {
    backends: Vec<Arc<Backend>>,
    journal: Journal,
    settings: Settings,
}

/// How asking one backend ended without an answer that can be passed on.
enum Failed {
    /// It did not answer, or says that it cannot now; what it says, if it says anything.
    NotHere(String, Option<Response<UnsyncBoxBody<Bytes, io::Error>>>),
    /// It does not know the client.
    Unknown(Response<UnsyncBoxBody<Bytes, io::Error>>),
    /// It took too long.
    Slow,
}

impl Readers {
    /// Sends questions to these backends: name, place in the journal, what reads from it, its health, and whether it is asked.
    pub fn new(
        backends: impl IntoIterator<Item = (String, usize, Upstream, Arc<Health>, bool)>,
        journal: Journal,
        settings: Settings,
    ) -> Self {
        let backends = backends.into_iter().map(|(name, place, upstream, health, is_open)| {
            Arc::new(Backend {
                name,
                place,
                upstream,
                health,
                slots: Slots::new(settings.max_concurrent),
                kept: Mutex::default(),
                figures: Figures::default(),
                is_closed: AtomicBool::new(!is_open),
                is_away: AtomicBool::new(false),
                failures: Mutex::default(),
            })
        });
        Self { backends: backends.collect(), journal, settings }
    }

    /// Whether there is a backend at all.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    /// Lets readers be sent to a backend, or not; whether it answers queries at all.
    pub fn open(&self, name: &str, is_open: bool) -> bool {
        let found = self.backends.iter().find(|backend| backend.name == name);
        found.inspect(|backend| backend.is_closed.store(!is_open, Ordering::Relaxed)).is_some()
    }

    /// What is to be seen of a backend's readers; none if it answers no queries.
    pub fn reading(&self, name: &str) -> Option<Reading> {
        let place = self.backends.iter().position(|backend| backend.name == name)?;
        let candidate = self.candidate(place, &[], &Span::ALWAYS);
        Some(self.backends[place].figures.reading(self.note_serves(place, &candidate)))
    }

    /// Answers a question, by the copy that has most of what it is about.
    pub async fn answer(&self, question: Question) -> Reply {
        let databases: Vec<&str> = question.databases.iter().map(String::as_str).collect();
        let (mut first, mut tried) = (None, Vec::new());
        for _ in 0..2 {
            let candidates: Vec<Candidate> =
                (0..self.backends.len()).map(|place| self.candidate(place, &databases, &question.points)).collect();
            let order = choose::order(&candidates, self.settings.max_lag, start_of(question.source));
            let Some(place) = order.into_iter().find(|place| !tried.contains(place)) else { break };
            let (backend, candidate) = (&self.backends[place], &candidates[place]);
            let is_complete = candidate.has_all(self.settings.max_lag);
            let is_near = candidate.grade(self.settings.max_lag) <= Grade::Edge;
            if !is_complete && !is_near && !self.settings.serves_incomplete {
                return self.no_complete_copy(&candidates);
            }
            let Some(slot) = backend.slots.enter(question.source, LONGEST_IN_LINE).await else {
                let busy = refusal(StatusCode::SERVICE_UNAVAILABLE, "too many queries are under way and in line");
                return with(busy, RETRY_AFTER, HeaderValue::from_static("1"));
            };
            backend.figures.note_query(!is_complete);
            tried.push(place);
            match self.ask(backend, &question, slot).await {
                Ok(response) => return self.told(response, backend, candidate),
                Err(Failed::Slow) => {
                    let seconds = self.settings.timeout.as_secs();
                    let text = format!("{} did not answer within {seconds} s (twinflux [query] timeout)", backend.name);
                    return refusal(StatusCode::GATEWAY_TIMEOUT, &text);
                }
                Err(failed) => {
                    backend.figures.note_failover();
                    let response = match failed {
                        Failed::NotHere(text, response) => {
                            response.unwrap_or_else(|| refusal(StatusCode::SERVICE_UNAVAILABLE, &text))
                        }
                        Failed::Unknown(response) => response,
                        Failed::Slow => continue,
                    };
                    first.get_or_insert_with(|| self.told(response, backend, candidate));
                }
            }
        }
        first.unwrap_or_else(|| refusal(StatusCode::SERVICE_UNAVAILABLE, "no backend answers queries"))
    }

    /// What is known of one copy for a question about these databases; about all without one.
    fn candidate(&self, place: usize, databases: &[&str], points: &Span) -> Candidate {
        let backend = &self.backends[place];
        let others: Vec<usize> =
            self.backends.iter().map(|other| other.place).filter(|other| *other != backend.place).collect();
        let lacks = |database| self.journal.completeness(backend.place, database, points, &others);
        let lacks: Vec<Completeness> = if databases.is_empty() {
            vec![lacks(None)]
        } else {
            databases.iter().map(|database| lacks(Some(database))).collect()
        };
        let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos());
        let since = lacks.iter().filter_map(|one| one.pending_since).min();
        let lag =
            since.map_or(Duration::ZERO, |since| Duration::from_nanos(now.unwrap_or(u64::MAX).saturating_sub(since)));
        // One that was far behind is asked again once it has nearly caught up.
        if lag >= self.settings.max_lag {
            backend.is_away.store(true, Ordering::Relaxed);
        } else if lag < self.settings.max_lag / 2 {
            backend.is_away.store(false, Ordering::Relaxed);
        }
        Candidate {
            lacks,
            lag,
            is_well: backend.is_well(),
            is_closed: backend.is_closed.load(Ordering::Relaxed),
            is_away: backend.is_away.load(Ordering::Relaxed),
            load: backend.slots.load(),
        }
    }

    /// Asks one backend; the answer's first byte is there.
    async fn ask(
        &self,
        backend: &Arc<Backend>,
        question: &Question,
        slot: Slot,
    ) -> Result<Response<UnsyncBoxBody<Bytes, io::Error>>, Failed> {
        let deadline = tokio::time::Instant::now() + self.settings.timeout;
        let asked = timeout_at(deadline, backend.send(question)).await.map_err(|_| Failed::Slow)?;
        let (link, response) = asked.map_err(|text| {
            backend.note_failure();
            Failed::NotHere(text, None)
        })?;
        let (head, mut incoming) = response.into_parts();
        let held = deadline.min(tokio::time::Instant::now() + LONGEST_HELD);
        let first = match timeout_at(held, first_bytes(&mut incoming)).await {
            // A query that works for long has its head, as it would have from the backend itself.
            Err(_) if held < deadline => None,
            Err(_) => return Err(Failed::Slow),
            Ok(Err(error)) => {
                backend.note_failure();
                return Err(Failed::NotHere(
                    format!("{} ended its answer before it began: {error}", backend.name),
                    None,
                ));
            }
            Ok(Ok(first)) => Some(first),
        };
        let is_empty = first.as_ref().is_some_and(Option::is_none);
        let begin = first.flatten();
        let is_elsewhere =
            head.status == StatusCode::OK && (is_empty || tells_not_here(&head.headers, begin.as_deref()));
        let passing = Passing::new(begin, incoming, link, Arc::clone(backend), slot, self.settings.timeout);
        let response = Response::from_parts(head, passing.boxed_unsync());
        match response.status() {
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                backend.note_failure();
                Err(Failed::NotHere(String::new(), Some(response)))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failed::Unknown(response)),
            _ if is_elsewhere => Err(Failed::NotHere(String::new(), Some(response))),
            _ => {
                *backend.failures.lock().unwrap_or_else(PoisonError::into_inner) = (0, None);
                Ok(response)
            }
        }
    }

    /// An answer with what is known of the copy that gave it.
    fn told(
        &self,
        response: Response<UnsyncBoxBody<Bytes, io::Error>>,
        backend: &Backend,
        candidate: &Candidate,
    ) -> Reply {
        let mut response = response;
        let is_complete = candidate.has_all(self.settings.max_lag);
        let headers = response.headers_mut();
        remove_hop_by_hop(headers);
        let mut insert = |name: &'static str, text: &str| {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        };
        let complete = if is_complete { "yes" } else { "no" };
        insert("x-twinflux-backend", &backend.name);
        insert("x-twinflux-complete", complete);
        let mut words = format!("backend={} complete={complete}", backend.name);
        if !is_complete {
            let lag = candidate.lag.as_secs().to_string();
            let gaps = candidate.lacks.iter().flat_map(|one| &one.gaps).map(described).collect::<Vec<_>>().join(",");
            insert("x-twinflux-lag", &lag);
            if !gaps.is_empty() {
                insert("x-twinflux-gap", &gaps);
            }
            words = format!("{words} lag={lag}s gap={}", if gaps.is_empty() { "none" } else { &gaps });
        }
        // Grafana shows headers of this kind in a panel's inspector.
        insert("x-grafana-meta-add-twinflux", &words);
        response
    }

    /// No copy is complete, and whoever asks wants none that is not.
    fn no_complete_copy(&self, candidates: &[Candidate]) -> Reply {
        let reasons = self.backends.iter().zip(candidates).map(|(backend, candidate)| {
            let (_, reason) = candidate.serves(self.settings.max_lag);
            format!("{} {}", backend.name, reason.unwrap_or_else(|| "complete".to_owned()))
        });
        let text = format!("no complete copy: {}", reasons.collect::<Vec<_>>().join(", "));
        refusal(StatusCode::SERVICE_UNAVAILABLE, &text)
    }

    /// Notes whether a copy may answer anything now, and tells when that changes.
    fn note_serves(&self, place: usize, candidate: &Candidate) -> Serves {
        let (word, reason) = candidate.serves(self.settings.max_lag);
        let backend = &self.backends[place];
        let (serves, before) = backend.figures.note_serves(word, reason);
        if let Some(before) = before {
            let (name, reason) = (&backend.name, serves.reason.as_deref().unwrap_or("complete"));
            tracing::info!(backend = name, serves = word, before, reason, "whether a copy answers readers has changed");
        }
        serves
    }
}

impl Backend {
    fn is_well(&self) -> bool {
        let rests = self.failures.lock().unwrap_or_else(PoisonError::into_inner).1;
        self.health.state() != State::Down && rests.is_none_or(|until| until <= Instant::now())
    }

    fn note_failure(&self) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.0 += 1;
        if failures.0 >= FAILURES {
            failures.1 = Some(Instant::now() + (REST * (failures.0 - FAILURES + 1)).min(LONGEST_REST));
        }
    }

    /// Sends a question, on a connection that is kept or a new one; the answer's head.
    async fn send(&self, question: &Question) -> Result<(Link, Response<Incoming>), String> {
        let request = || {
            self.upstream.request(
                &question.form,
                question.is_pretty,
                &question.headers,
                question.authorization.as_ref(),
            )
        };
        if let Some(mut link) = self.kept_link()
            && link.is_ready().await
            && let Ok(response) = link.ask(request()).await
        {
            return Ok((link, response));
        }
        // A connection that was kept may have been closed as the question came: that says nothing of the backend.
        let mut link = self.upstream.connect().await?;
        let response = link.ask(request()).await?;
        Ok((link, response))
    }

    fn kept_link(&self) -> Option<Link> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((link, since)) = kept.pop() {
            if since.elapsed() < Link::longest_idle() && link.is_worth_keeping(LIFETIME) {
                return Some(link);
            }
        }
        None
    }

    /// Keeps a connection whose answer was read to its end.
    fn keep(&self, link: Link) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MOST_KEPT {
            kept.push((link, Instant::now()));
        }
    }
}

impl Candidate {
    /// Whether it may answer anything, in a word, and why not.
    fn serves(&self, max_lag: Duration) -> (&'static str, Option<String>) {
        let gaps = self.lacks.iter().map(|one| one.gap_count).sum::<u64>();
        let lag = self.lag.as_secs_f64();
        if self.is_closed {
            ("no", Some("closed to readers".to_owned()))
        } else if !self.is_well {
            ("no", Some("does not answer".to_owned()))
        } else if gaps > 0 {
            let times = self.lacks.iter().flat_map(|one| &one.gaps).map(described).collect::<Vec<_>>().join(", ");
            ("no", Some(format!("gap {times}")))
        } else if self.lacks.iter().any(|one| one.has_statement) {
            ("no", Some("a statement waits".to_owned()))
        } else if self.lag >= max_lag || self.is_away {
            ("no", Some(format!("lag {lag:.0}s")))
        } else if self.lacks.iter().all(Completeness::is_complete) {
            ("yes", None)
        } else {
            ("edge", Some(format!("lag {lag:.1}s")))
        }
    }
}

/// Where equals begin for a source: it stays with one copy.
fn start_of(source: IpAddr) -> usize {
    match source {
        IpAddr::V4(address) => address.octets().iter().map(|octet| usize::from(*octet)).sum(),
        IpAddr::V6(address) => address.octets().iter().map(|octet| usize::from(*octet)).sum(),
    }
}

/// The first bytes of a body that is not empty.
async fn first_bytes(incoming: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = incoming.frame().await {
        match frame?.into_data() {
            Ok(data) if !data.is_empty() => return Ok(Some(data)),
            _ => {}
        }
    }
    Ok(None)
}

/// Whether an answer begins with an error that another backend may not have.
fn tells_not_here(headers: &HeaderMap, begin: Option<&[u8]>) -> bool {
    let Some(begin) = begin else { return false };
    let begin = &begin[..begin.len().min(LOOK_BYTES)];
    let plain = match headers.get(http::header::CONTENT_ENCODING) {
        Some(coding) if coding.as_bytes().eq_ignore_ascii_case(b"gzip") => inflated(begin),
        _ => begin.to_vec(),
    };
    let Some(error) = plain.strip_prefix(ERROR) else { return false };
    let error = String::from_utf8_lossy(error);
    NOT_HERE.iter().any(|phrase| error.starts_with(phrase))
}

/// As much of compressed bytes as they tell.
fn inflated(bytes: &[u8]) -> Vec<u8> {
    use std::io::Read;
    let mut plain = vec![0; LOOK_BYTES];
    let mut decoder = flate2::read::GzDecoder::new(bytes);
    let mut length = 0;
    while let Ok(count @ 1..) = decoder.read(&mut plain[length..]) {
        length += count;
    }
    plain.truncate(length);
    plain
}

/// Takes away what is said from one end of a connection to the other, and no further.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
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

/// From when until when, for people.
fn described((from, until): &(i64, i64)) -> String {
    let time = |nanoseconds: i64, unknown: &'static str| match u64::try_from(nanoseconds) {
        Ok(known) if known < i64::MAX as u64 => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(known)).to_string()
        }
        _ => unknown.to_owned(),
    };
    format!("{}/{}", time(*from, "always"), time(*until, "always"))
}

/// An answer of our own, in the form that readers show.
fn refusal(status: StatusCode, text: &str) -> Reply {
    let body = format!("{}\n", serde_json::json!({ "error": text }));
    let mut response = Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    with(response, http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
}

fn with(mut response: Reply, name: HeaderName, value: HeaderValue) -> Reply {
    response.headers_mut().insert(name, value);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_another_backend_may_not_have_are_known_by_an_answers_beginning() {
        let plain = HeaderMap::new();
        let gzip = HeaderMap::from_iter([(http::header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
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
