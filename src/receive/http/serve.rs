//! The thread of an HTTP listener: accepts connections, reads requests, and answers them, all on one runtime.
//!
//! Never does: answering a write before its lines are safe. Bounds: connections, in all and of one source; a request's head,
//! and the time for it; the time without a request.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::{IpAddr, Shutdown, TcpListener as StdListener};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, sleep_until};

use super::answer::{Answer, Problem};
use super::destinations::Destinations;
use super::logs::Logs;
use super::nap::Naps;
use super::request::{self, Api, Asked};
use super::shelf::Shelf;
use super::stream::{Phase, Progress, Stream};
use super::write::{self, Job};
use super::{Claim, Setup};
use crate::batch::{HandOver, Step};
use crate::protocol::Format;
use crate::receive::Pulse;
use crate::receive::crowd::{Crowd, Entered, Member};
use crate::receive::intake::{Intake, PUBLISH_INTERVAL};

/// How long the thread waits if it cannot accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection may wait for its first request, and a request's head may take from its first byte.
const FIRST_BYTE: Duration = Duration::from_secs(15);
const LONGEST_HEAD: Duration = Duration::from_secs(10);
/// How long a connection may wait between requests: longer than any writer's interval.
const IDLE: Duration = Duration::from_secs(180);
/// The longest head, in bytes: Grafana's queries are long.
const HEAD_BYTES: usize = 64 * 1024;
const MOST_HEADERS: usize = 64;
/// How long requests under way may take once the thread is to end.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// What the thread is made of.
pub(super) struct Parts<H> {
    pub(super) setup: Setup,
    pub(super) claim: Claim,
    pub(super) open: Arc<AtomicU64>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) naps: Arc<Naps>,
    pub(super) shelf: Shelf<H>,
    pub(super) intake: Intake<Shelf<H>>,
    /// How safe lines must be before they are answered for.
    pub(super) step: Step,
}

/// Runs until told to stop, then ends the requests that are under way, and ends.
pub(super) fn run<H: HandOver + Sync + 'static>(runtime: &Runtime, socket: StdListener, parts: Parts<H>) {
    let Parts { setup, claim, open, stop, pulse, naps, shelf, intake, step } = parts;
    let destinations = Destinations::new(
        Arc::clone(&setup.intake.destination),
        setup.databases.clone(),
        setup.max_databases,
        setup.max_destinations,
    );
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(HEAD_BYTES)
        .max_headers(MOST_HEADERS)
        .half_close(true);
    let serving = Rc::new(Serving {
        crowd: RefCell::new(Crowd::new(setup.max_connections, setup.max_connections_per_source)),
        logs: Logs::new(socket.local_addr().unwrap_or(setup.listen)),
        destinations: RefCell::new(destinations),
        begun: Instant::now(),
        intake: RefCell::new(intake),
        noted: Notify::new(),
        naps,
        setup,
        claim,
        open,
        stop,
        shelf,
        http,
        step,
    });
    let tasks = LocalSet::new();
    tasks.spawn_local(async move { pulse.answer().await });
    tasks.block_on(runtime, serving.serve(socket));
}

/// What all connections of a listener share; all of it is used on one thread.
pub(super) struct Serving<H> {
    pub(super) setup: Setup,
    claim: Claim,
    open: Arc<AtomicU64>,
    stop: watch::Receiver<bool>,
    pub(super) shelf: Shelf<H>,
    pub(super) intake: RefCell<Intake<Shelf<H>>>,
    crowd: RefCell<Crowd<TcpStream>>,
    destinations: RefCell<Destinations>,
    logs: Logs,
    /// The table of sources may have changed.
    noted: Notify,
    pub(super) naps: Arc<Naps>,
    begun: Instant,
    http: http1::Builder,
    pub(super) step: Step,
}

impl<H: HandOver + Sync + 'static> Serving<H> {
    async fn serve(self: Rc<Self>, socket: StdListener) {
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "cannot serve HTTP");
                return;
            }
        };
        let publishing = tokio::task::spawn_local(Rc::clone(&self).publish_sources());
        let mut connections = JoinSet::new();
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => self.admit(stream, address.ip(), &mut connections),
                    Err(error) => {
                        self.logs.accept_error(&error);
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
            while connections.try_join_next().is_some() {}
        }
        drop(listener);
        let ending = async { while connections.join_next().await.is_some() {} };
        drop(tokio::time::timeout(LAST_REQUESTS, ending).await);
        connections.shutdown().await;
        publishing.abort();
        let mut intake = self.intake.borrow_mut();
        intake.publish();
        intake.publish_sources(Instant::now() + PUBLISH_INTERVAL);
    }

    /// Serves a connection, or turns it away.
    fn admit(self: &Rc<Self>, stream: TcpStream, source: IpAddr, connections: &mut JoinSet<()>) {
        let source = source.to_canonical();
        let mut intake = self.intake.borrow_mut();
        if self.setup.intake.allows(Some(source)) {
            let now = Instant::now();
            let entered = self.crowd.borrow_mut().enter(stream, source, now);
            if let Entered::Instead(_, idlest) = &entered {
                intake.tally().displaced += 1;
                drop(SockRef::from(&idlest.stream).shutdown(Shutdown::Both));
                self.logs.displaced(self.setup.max_connections);
            }
            match entered {
                Entered::Free(member) | Entered::Instead(member, _) => {
                    intake.connect(source, now);
                    drop(member.stream.set_nodelay(true));
                    connections.spawn_local(Rc::clone(self).attend(member, source));
                }
                Entered::Full(of_source) => {
                    intake.tally().limited += 1;
                    self.logs.turned_away(source, of_source);
                }
            }
            self.show_open();
        } else {
            intake.tally().denied += 1;
        }
        self.notify(&intake);
        intake.publish();
    }

    /// Serves one connection to its end.
    async fn attend(self: Rc<Self>, member: Rc<Member<TcpStream>>, source: IpAddr) {
        let progress = Progress::new(member.opened);
        let stream = Stream { member: Rc::clone(&member), progress: Rc::clone(&progress) };
        let answered = Rc::new(Cell::new(None));
        let service = service_fn(|request| {
            member.has_line.set(true);
            self.naps.request(answered.get(), Instant::now());
            progress.phase.set(Phase::Working);
            let (serving, progress, answered) = (Rc::clone(&self), Rc::clone(&progress), Rc::clone(&answered));
            async move {
                let response = Box::pin(serving.answer(request, source, progress.has_length.get())).await;
                let now = Instant::now();
                progress.phase.set(Phase::Idle(now));
                answered.set(Some(now));
                Ok::<_, Infallible>(response)
            }
        });
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(stream), service));
        let mut stop = self.stop.clone();
        let mut is_stopping = false;
        loop {
            let due = self.due(&member, &progress);
            tokio::select! {
                // Clients that go away are not logged.
                _ = connection.as_mut() => break,
                () = stopped(&mut stop), if !is_stopping => {
                    connection.as_mut().graceful_shutdown();
                    is_stopping = true;
                }
                () = progress.is_slow.notified() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    if self.due(&member, &progress).is_some_and(|due| due <= Instant::now()) {
                        let mut intake = self.intake.borrow_mut();
                        intake.tally().timed_out += 1;
                        intake.publish();
                        self.logs.timed_out(source);
                        break;
                    }
                }
            }
        }
        self.crowd.borrow_mut().leave(&member);
        self.show_open();
    }

    /// When the connection is ended unless more comes.
    fn due(&self, member: &Member<TcpStream>, progress: &Progress) -> Option<Instant> {
        match progress.phase.get() {
            Phase::Head(since) => Some(since + LONGEST_HEAD),
            Phase::Idle(_) if !member.has_line.get() => Some(member.opened + FIRST_BYTE),
            Phase::Idle(_) | Phase::Working => None,
        }
    }

    async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
        source: IpAddr,
        has_length: bool,
    ) -> Response<Full<Bytes>> {
        let headers = request::repeated(request.headers());
        let is_head = *request.method() == Method::HEAD;
        let api = Api::of_path(request.uri().path());
        let answer = match framing(&request, has_length) {
            Some(what) => Answer::of_problem(api, &Problem::Framing(what), self.setup.is_safe).closing(),
            None => self.act(api, request, source).await,
        };
        self.logs.answered(source, answer.status);
        let mut intake = self.intake.borrow_mut();
        let tally = intake.tally();
        tally.requests += 1;
        tally.count_answer(answer.status.as_u16());
        intake.publish();
        drop(intake);
        let is_stopping = *self.stop.borrow();
        let version = HeaderValue::from_str(&self.claim.says()).unwrap_or(HeaderValue::from_static("1.8.10"));
        let mut response = answer.response(&headers, &version);
        if is_stopping {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if is_head {
            *response.body_mut() = Full::default();
        }
        response
    }

    async fn act(self: &Rc<Self>, api: Api, request: Request<Incoming>, source: IpAddr) -> Answer {
        let problem = |problem: &Problem| Answer::of_problem(api, problem, self.setup.is_safe);
        let asked = match Asked::of(request.method(), request.uri()) {
            Ok(asked) => asked,
            Err(wrong) => return self.refuse(api, request, &Problem::Query(wrong)).await,
        };
        match asked {
            Asked::Write(wanted) => {
                let destination = self.destinations.borrow_mut().of(&wanted);
                let accepts_partial = wanted.accepts_partial;
                let job =
                    destination.map(|destination| Job { destination, format: Some(Format::Influx), accepts_partial });
                self.take(api, job, request, source).await
            }
            Asked::Put => {
                let format = self.setup.intake.format;
                let job = self.destinations.borrow_mut().usual();
                let job = job.map(|destination| Job { destination, format, accepts_partial: true });
                self.take(api, job, request, source).await
            }
            Asked::Ping { is_verbose: false } => Answer::empty(StatusCode::NO_CONTENT),
            Asked::Ping { is_verbose: true } => {
                Answer::json(StatusCode::OK, &serde_json::json!({ "version": self.claim.says() }))
            }
            Asked::Health => self.health(),
            Asked::Ready => self.ready(),
            Asked::Query { statement } => self.query(statement.as_deref()),
            Asked::Options => Answer::empty(StatusCode::OK),
            Asked::NotAllowed(_, allow) => problem(&Problem::NotAllowed(allow)),
            Asked::Unknown(_) => self.refuse(api, request, &Problem::NotFound).await,
        }
    }

    /// Takes lines, unless something keeps it from that which is known before the first one.
    async fn take(
        self: &Rc<Self>,
        api: Api,
        job: Result<Job, Problem>,
        request: Request<Incoming>,
        source: IpAddr,
    ) -> Answer {
        let job = match job {
            Ok(_) if self.shelf.is_full() || *self.stop.borrow() => Err(Problem::Full),
            job => job,
        };
        let job = match job {
            Ok(job) => job,
            Err(problem) => return self.refuse(api, request, &problem).await,
        };
        match write::take(self, job, request, source).await {
            Ok(told) => Answer::of_lines(api, &told, self.setup.reports_partial),
            Err(problem) => Answer::of_problem(api, &problem, self.setup.is_safe).closing(),
        }
    }

    /// Says no to a request whose body is not looked at.
    async fn refuse(&self, api: Api, request: Request<Incoming>, problem: &Problem) -> Answer {
        write::drain(&mut request.into_body()).await;
        Answer::of_problem(api, problem, self.setup.is_safe)
    }

    fn health(&self) -> Answer {
        let is_full = self.shelf.is_full();
        let (status, word) = if is_full { (StatusCode::SERVICE_UNAVAILABLE, "fail") } else { (StatusCode::OK, "pass") };
        let message = if is_full { "memory and disk are used up" } else { "ready for queries and writes" };
        let body = serde_json::json!({
            "name": "influxdb", "message": message, "status": word, "checks": [], "version": self.claim.says(),
        });
        Answer::json(status, &body)
    }

    fn ready(&self) -> Answer {
        let up = Duration::from_secs(self.begun.elapsed().as_secs());
        let started = humantime::format_rfc3339_seconds(std::time::SystemTime::now() - up).to_string();
        let up = humantime::format_duration(up).to_string().replace(' ', "");
        Answer::json(StatusCode::OK, &serde_json::json!({ "status": "ready", "started": started, "up": up }))
    }

    /// What writers ask at their start.
    fn query(&self, statement: Option<&str>) -> Answer {
        let words: Vec<&str> =
            statement.unwrap_or_default().trim_matches([' ', ';', '\n']).split_whitespace().collect();
        if let [show, databases] = words[..]
            && show.eq_ignore_ascii_case("show")
            && databases.eq_ignore_ascii_case("databases")
        {
            let values: Vec<[String; 1]> = self.destinations.borrow().names().into_iter().map(|name| [name]).collect();
            let series = serde_json::json!([{ "name": "databases", "columns": ["name"], "values": values }]);
            let results = serde_json::json!({ "results": [{ "statement_id": 0, "series": series }] });
            return Answer::json(StatusCode::OK, &results);
        }
        Answer::of_problem(Api::V1, &Problem::Reads, self.setup.is_safe)
    }

    /// Publishes the table of sources also when nothing comes any more.
    async fn publish_sources(self: Rc<Self>) {
        loop {
            let due = self.intake.borrow().sources_due();
            match due {
                None => self.noted.notified().await,
                Some(due) if due <= Instant::now() => self.intake.borrow_mut().publish_sources(Instant::now()),
                Some(due) => sleep_until(due.into()).await,
            }
        }
    }

    /// Tells those that wait for a time that there may be one.
    pub(super) fn notify(&self, intake: &Intake<Shelf<H>>) {
        if intake.sources_due().is_some() {
            self.noted.notify_one();
        }
    }

    fn show_open(&self) {
        self.open.store(self.crowd.borrow().open() as u64, Ordering::Relaxed);
    }
}

/// What is wrong with a request that a proxy before this relay may have read in another way.
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

/// Waits until the listener is to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The other end is never gone before that.
    drop(stop.wait_for(|stop| *stop).await);
}
