//! Answers readers' questions: chooses a copy, and passes its answer on.
//!
//! Owns: the choice (`choose.rs`), the slots of each backend (`slots.rs`), its connections
//! (`backend.rs`), and the readers' counts.
//!
//! Never does: inspect a statement, or merge two copies. A question goes to one backend, and to a
//! second one only as long as no byte of the first one's answer was passed on. A head alone proves
//! nothing, because InfluxDB sends it before it executes the query.
//!
//! Bounds: for each backend, questions in flight and in the queue; the time to connect, to an
//! answer's first byte, and between bytes; 64 KiB of an answer; idle connections.

mod answer;
mod backend;
mod choose;
mod figures;
mod slots;
mod words;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use tokio::time::timeout_at;

use crate::batch::WallTime;
use crate::deliver::{Health, Upstream};
use crate::journal::{BackendId, Completeness, Journal};
use crate::pair::Pair;
use crate::protocol::{Span, influxql};
use crate::receive::http::{Question, Reply};
use answer::Passing;
use backend::Backend;
use choose::{Candidate, Grade};
use slots::Slot;
use words::{described, refusal, remove_hop_by_hop, tells_not_here, with};

pub use figures::{Reading, Serves};

/// How long a question waits for a slot. The analysis of a question's time range depends on it.
const LONGEST_IN_LINE: Duration = Duration::from_nanos(influxql::LONGEST_IN_LINE.unsigned_abs());
/// How long an answer's head is held back for the first byte: clients expect the head early, and
/// InfluxDB sends it at once.
const LONGEST_HELD: Duration = Duration::from_secs(15);

/// Settings of the readers' side.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A copy that lags less may answer if no copy is complete.
    pub max_lag: Duration,
    /// Whether the least incomplete copy answers if none is complete.
    pub serves_incomplete: bool,
    /// Longest time without a byte of an answer.
    pub timeout: Duration,
    /// Maximum number of questions in flight per backend.
    pub max_concurrent: usize,
    /// Whether a source stays with one copy even if another has less load.
    pub is_sticky: bool,
}

/// All backends that can answer readers.
#[derive(Debug)]
pub struct Readers {
    backends: Vec<Arc<Backend>>,
    journal: Journal,
    /// The other relay, which has pending lines of its own.
    pair: Option<Arc<Pair>>,
    settings: ArcSwap<Settings>,
}

/// Outcome of a question that has no answer to pass on.
enum Failed {
    /// The backend did not answer, cannot answer now, or does not know the client. Holds the
    /// response for the client if no other backend answers.
    Elsewhere(Response<UnsyncBoxBody<Bytes, io::Error>>),
    /// The backend took too long.
    Slow,
}

impl Readers {
    /// Creates the readers' side from these backends: name, id in the journal, upstream, health,
    /// and whether it is open to readers.
    pub fn new(
        backends: impl IntoIterator<Item = (String, BackendId, Upstream, Arc<Health>, bool)>,
        (journal, pair): (Journal, Option<Arc<Pair>>),
        settings: Settings,
    ) -> Self {
        let max = settings.max_concurrent;
        let backends = backends.into_iter().map(|(name, id, upstream, health, is_open)| {
            Arc::new(Backend::new((name, id), upstream, health, is_open, max))
        });
        let backends = backends.collect();
        Self { backends, journal, pair, settings: ArcSwap::from_pointee(settings) }
    }

    /// Replaces the settings. The number of questions in flight per backend does not change.
    pub fn set(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// Whether there are no backends.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    /// Opens or closes a backend to readers. Returns whether the backend answers queries at all.
    pub fn open(&self, name: &str, is_open: bool) -> bool {
        let found = self.backends.iter().find(|backend| backend.name == name);
        found.inspect(|backend| backend.is_closed.store(!is_open, Ordering::Relaxed)).is_some()
    }

    /// Whether a backend answers queries at all.
    pub fn knows(&self, name: &str) -> bool {
        self.backends.iter().any(|backend| backend.name == name)
    }

    /// Whether the configuration or an operator has closed a backend to readers.
    pub fn is_closed(&self, name: &str) -> bool {
        self.backends.iter().any(|backend| backend.name == name && backend.is_closed.load(Ordering::Relaxed))
    }

    /// Returns the counts of a backend's readers, or `None` if it answers no queries.
    pub fn reading(&self, name: &str) -> Option<Reading> {
        let index = self.backends.iter().position(|backend| backend.name == name)?;
        let candidate = self.candidate(index, &[], &Span::ALWAYS);
        Some(self.backends[index].figures.reading(self.note_serves(index, &candidate)))
    }

    /// Answers a question from the most complete copy.
    pub async fn answer(&self, question: Question) -> Reply {
        let databases: Vec<&str> = question.databases.iter().map(String::as_str).collect();
        let (mut first, mut tried) = (None, Vec::new());
        for _ in 0..2 {
            let candidates: Vec<Candidate> =
                (0..self.backends.len()).map(|index| self.candidate(index, &databases, &question.points)).collect();
            let order = choose::order(
                &candidates,
                self.settings.load().max_lag,
                start_of(question.source),
                self.settings.load().is_sticky,
            );
            let Some(index) = order.into_iter().find(|index| !tried.contains(index)) else { break };
            let (backend, candidate) = (&self.backends[index], &candidates[index]);
            let is_complete = candidate.has_all(self.settings.load().max_lag);
            let is_near = candidate.grade(self.settings.load().max_lag) <= Grade::Edge;
            if !is_complete && !is_near && !self.settings.load().serves_incomplete {
                return self.no_complete_copy(&candidates);
            }
            let Some(slot) = backend.slots.enter(question.source, LONGEST_IN_LINE).await else {
                if let Some(first) = first {
                    return first;
                }
                let busy = refusal(StatusCode::SERVICE_UNAVAILABLE, "too many queries are under way and in line");
                return with(busy, RETRY_AFTER, HeaderValue::from_static("1"));
            };
            backend.figures.note_query(!is_complete);
            tried.push(index);
            match self.ask(backend, &question, slot).await {
                Ok(response) => return self.annotated(response, backend, candidate),
                Err(Failed::Slow) => {
                    backend.note_failure();
                    let seconds = self.settings.load().timeout.as_secs();
                    let text = format!("{} did not answer within {seconds} s (twinflux [query] timeout)", backend.name);
                    return refusal(StatusCode::GATEWAY_TIMEOUT, &text);
                }
                Err(Failed::Elsewhere(response)) => {
                    backend.figures.note_failover();
                    first.get_or_insert_with(|| self.annotated(response, backend, candidate));
                }
            }
        }
        first.unwrap_or_else(|| refusal(StatusCode::SERVICE_UNAVAILABLE, "no backend answers queries"))
    }

    /// Describes one copy for a question about these databases, or about all if there are none.
    fn candidate(&self, index: usize, databases: &[&str], points: &Span) -> Candidate {
        let backend = &self.backends[index];
        let others: Vec<BackendId> =
            self.backends.iter().map(|other| other.id).filter(|other| *other != backend.id).collect();
        let lacks = |database| self.journal.completeness(backend.id, database, points, &others);
        let mut lacks: Vec<Completeness> = if databases.is_empty() {
            vec![lacks(None)]
        } else {
            databases.iter().map(|database| lacks(Some(database))).collect()
        };
        lacks.extend(self.pair.as_ref().and_then(|pair| pair.lacks(&backend.name, points)));
        let now = WallTime::now();
        let since = lacks.iter().filter_map(|one| one.pending_since).min();
        let lag = since.map_or(Duration::ZERO, |since| now.since(since));
        // A copy that was far behind returns once it has nearly caught up. A question about old
        // points does not show the lag.
        let tells_lag = points.until >= i64::try_from(now.nanoseconds()).unwrap_or(i64::MAX);
        if tells_lag && lag >= self.settings.load().max_lag {
            backend.is_away.store(true, Ordering::Relaxed);
            backend.put_on_trial();
        } else if tells_lag && lag < self.settings.load().max_lag / 2 {
            backend.is_away.store(false, Ordering::Relaxed);
        }
        Candidate {
            lacks,
            lag,
            is_well: backend.is_well(),
            is_closed: backend.is_closed.load(Ordering::Relaxed),
            is_away: backend.is_away.load(Ordering::Relaxed),
            is_on_trial: backend.is_on_trial(),
            load: backend.slots.load(),
        }
    }

    /// Asks one backend. Returns once the answer's first byte has arrived.
    async fn ask(
        &self,
        backend: &Arc<Backend>,
        question: &Question,
        slot: Slot,
    ) -> Result<Response<UnsyncBoxBody<Bytes, io::Error>>, Failed> {
        let deadline = tokio::time::Instant::now() + self.settings.load().timeout;
        let asked = timeout_at(deadline, backend.send(question)).await.map_err(|_| Failed::Slow)?;
        let (link, response) = asked.map_err(|error| {
            backend.note_failure();
            Failed::Elsewhere(refusal(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()))
        })?;
        let (head, mut incoming) = response.into_parts();
        let held = deadline.min(tokio::time::Instant::now() + LONGEST_HELD);
        let first = match timeout_at(held, first_bytes(&mut incoming)).await {
            // A long-running query gets its head now, as it would from the backend itself.
            Err(_) if held < deadline => None,
            Err(_) => return Err(Failed::Slow),
            Ok(Err(error)) => {
                backend.note_failure();
                let text = format!("{} ended its answer before it began: {error}", backend.name);
                return Err(Failed::Elsewhere(refusal(StatusCode::SERVICE_UNAVAILABLE, &text)));
            }
            Ok(Ok(first)) => Some(first),
        };
        let is_empty = first.as_ref().is_some_and(Option::is_none);
        let begin = first.flatten();
        let is_elsewhere =
            head.status == StatusCode::OK && (is_empty || tells_not_here(&head.headers, begin.as_deref()));
        let passing = Passing::new(begin, incoming, link, Arc::clone(backend), slot, self.settings.load().timeout);
        let response = Response::from_parts(head, passing.boxed_unsync());
        match response.status() {
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                backend.note_failure();
                Err(Failed::Elsewhere(response))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                backend.note_refused();
                Err(Failed::Elsewhere(response))
            }
            _ if is_elsewhere => Err(Failed::Elsewhere(response)),
            _ => {
                backend.note_success();
                Ok(response)
            }
        }
    }

    /// Adds headers that describe the copy to an answer.
    fn annotated(
        &self,
        response: Response<UnsyncBoxBody<Bytes, io::Error>>,
        backend: &Backend,
        candidate: &Candidate,
    ) -> Reply {
        let mut response = response;
        let is_complete = candidate.has_all(self.settings.load().max_lag);
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
        // Grafana shows headers with this prefix in a panel's inspector.
        insert("x-grafana-meta-add-twinflux", &words);
        response
    }

    /// Refuses a question: no copy is complete, and incomplete ones are not allowed.
    fn no_complete_copy(&self, candidates: &[Candidate]) -> Reply {
        let reasons = self.backends.iter().zip(candidates).map(|(backend, candidate)| {
            let (_, reason) = candidate.serves(self.settings.load().max_lag);
            format!("{} {}", backend.name, reason.unwrap_or_else(|| "complete".to_owned()))
        });
        let text = format!("no complete copy: {}", reasons.collect::<Vec<_>>().join(", "));
        refusal(StatusCode::SERVICE_UNAVAILABLE, &text)
    }

    /// Records whether a copy can answer now, and logs a change.
    fn note_serves(&self, index: usize, candidate: &Candidate) -> Serves {
        let (word, reason) = candidate.serves(self.settings.load().max_lag);
        let backend = &self.backends[index];
        let (serves, before) = backend.figures.note_serves(word, reason);
        if let Some(before) = before {
            let (name, reason) = (&backend.name, serves.reason.as_deref().unwrap_or("complete"));
            tracing::info!(backend = name, serves = word, before, reason, "a copy's availability to readers changed");
        }
        serves
    }
}

impl Candidate {
    /// Returns whether the copy can answer in one word, and why not.
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

/// Returns where a source's preference among equal copies begins, so that it stays with one copy.
fn start_of(source: IpAddr) -> usize {
    match source {
        IpAddr::V4(address) => address.octets().iter().map(|octet| usize::from(*octet)).sum(),
        IpAddr::V6(address) => address.octets().iter().map(|octet| usize::from(*octet)).sum(),
    }
}

/// Returns the first non-empty data of a body.
async fn first_bytes(incoming: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = incoming.frame().await {
        match frame?.into_data() {
            Ok(data) if !data.is_empty() => return Ok(Some(data)),
            _ => {}
        }
    }
    Ok(None)
}
