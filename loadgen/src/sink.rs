//! A fake InfluxDB that keeps a ledger of what it is sent, and misbehaves on command.
//!
//! `POST /write` and `/api/v2/write` are answered as told; only what was answered with success
//! counts as stored. `PUT /behaviour` with a behaviour's name changes it; `GET /ledger` gives the
//! figures as JSON.

use std::fmt;
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_ENCODING;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use crate::ledger::Ledger;

/// The largest request body: InfluxDB's own default.
const MAX_BODY_BYTES: usize = 25_000_000;
/// How long a hanging answer hangs: longer than anybody waits.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

/// How writes are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// 204, and the lines are stored.
    #[default]
    Accept,
    /// This status, and nothing is stored (204 apart).
    Status(u16),
    /// The request is taken and never answered.
    Hang,
    /// As `Accept`, this much later.
    Slow(Duration),
    /// The connection is reset instead of an answer.
    Reset,
    /// 400 `partial write`: the first line of each request is left out.
    Partial,
    /// The connection's sending side is closed instead of an answer.
    HalfClose,
}

impl FromStr for Behaviour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || {
            format!(
                "unknown behaviour {text:?}: accept, hang, reset, partial, half-close, slow:200ms, or a status as 503"
            )
        };
        Ok(match text {
            "accept" => Self::Accept,
            "hang" => Self::Hang,
            "reset" => Self::Reset,
            "partial" => Self::Partial,
            "half-close" => Self::HalfClose,
            other => match other.strip_prefix("slow:") {
                Some(delay) => Self::Slow(humantime::parse_duration(delay).map_err(|_| unknown())?),
                None => Self::Status(other.parse().ok().filter(|code| (200..600).contains(code)).ok_or_else(unknown)?),
            },
        })
    }
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Status(code) => write!(f, "{code}"),
            Self::Hang => f.write_str("hang"),
            Self::Slow(delay) => write!(f, "slow:{}", humantime::format_duration(*delay)),
            Self::Reset => f.write_str("reset"),
            Self::Partial => f.write_str("partial"),
            Self::HalfClose => f.write_str("half-close"),
        }
    }
}

/// What a sink has and does; it outlives the sink's listening.
#[derive(Debug, Default)]
pub struct Store {
    /// The lines that are stored.
    pub ledger: Ledger,
    behaviour: Mutex<Behaviour>,
    requests: AtomicU64,
}

impl Store {
    /// Changes how writes are answered from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }

    /// How writes are answered.
    pub fn behaviour(&self) -> Behaviour {
        *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Write requests that arrived whole.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// A listening sink. Dropping it closes its port and its connections, as if it had been killed.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    accepting: AbortHandle,
}

impl Sink {
    /// Listens and serves on the current runtime.
    ///
    /// # Errors
    /// What the system says, `AddrInUse` where the port is taken.
    pub async fn start(address: SocketAddr, store: Arc<Store>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(accept(listener, store)).abort_handle();
        Ok(Self { address, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Serves connections until aborted; they end with it.
async fn accept(listener: TcpListener, store: Arc<Store>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let (Ok(stream), store) = (stream.into_std(), Arc::clone(&store)) else { continue };
        let Ok(handle) = stream.try_clone().map(Arc::new) else { continue };
        let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { continue };
        connections.spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&store), Arc::clone(&handle)));
            // A peer that goes away is no news to a sink.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

/// The end of a connection that misbehaves.
#[derive(Debug)]
struct Misbehaved;

impl fmt::Display for Misbehaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the sink was told to misbehave")
    }
}

impl std::error::Error for Misbehaved {}

type Answer = Response<Full<Bytes>>;

async fn answer(
    request: Request<Incoming>,
    store: Arc<Store>,
    connection: Arc<std::net::TcpStream>,
) -> Result<Answer, Misbehaved> {
    match (request.method(), request.uri().path()) {
        (&Method::POST, "/write" | "/api/v2/write") => write(request, &store, &connection).await,
        (&Method::PUT, "/behaviour") => Ok(set_behaviour(request, &store).await),
        (&Method::GET, "/ledger") => {
            let text = serde_json::to_string(&store.ledger.counts()).unwrap_or_default();
            Ok(response(StatusCode::OK, text))
        }
        (&Method::GET | &Method::HEAD, "/ping") => Ok(response(StatusCode::NO_CONTENT, String::new())),
        _ => Ok(response(StatusCode::NOT_FOUND, "404 page not found\n".to_owned())),
    }
}

async fn write(
    request: Request<Incoming>,
    store: &Store,
    connection: &std::net::TcpStream,
) -> Result<Answer, Misbehaved> {
    let behaviour = store.behaviour();
    if behaviour == Behaviour::Hang {
        tokio::time::sleep(FOREVER).await;
    }
    let is_gzip = request.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip");
    let Ok(body) = Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await else {
        return Ok(error(StatusCode::PAYLOAD_TOO_LARGE, "Request Entity Too Large"));
    };
    let body = if is_gzip { inflate(&body.to_bytes()) } else { Some(body.to_bytes()) };
    let Some(body) = body else { return Ok(error(StatusCode::BAD_REQUEST, "gzip: invalid, or too large")) };
    store.requests.fetch_add(1, Ordering::Relaxed);
    match behaviour {
        Behaviour::Accept | Behaviour::Hang | Behaviour::Status(204) => {}
        Behaviour::Slow(delay) => tokio::time::sleep(delay).await,
        Behaviour::Status(code) => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return Ok(error(status, "told to"));
        }
        Behaviour::Partial => {
            let rest = memchr::memchr(b'\n', &body).map_or(body.len(), |end| end + 1);
            store.ledger.note(&body[rest..]);
            let text = "partial write: field type conflict: input field \"v\" on measurement \"m\" is type integer, \
                        already exists as type float dropped=1";
            return Ok(error(StatusCode::BAD_REQUEST, text));
        }
        Behaviour::Reset => {
            // An error leaves the connection with data that was not sent; without lingering its end
            // is a reset.
            drop(socket2::SockRef::from(connection).set_linger(Some(Duration::ZERO)));
            return Err(Misbehaved);
        }
        Behaviour::HalfClose => {
            drop(connection.shutdown(Shutdown::Write));
            tokio::time::sleep(FOREVER).await;
        }
    }
    store.ledger.note(&body);
    Ok(response(StatusCode::NO_CONTENT, String::new()))
}

fn inflate(body: &[u8]) -> Option<Bytes> {
    let mut text = Vec::new();
    let limit = MAX_BODY_BYTES as u64 + 1;
    flate2::read::MultiGzDecoder::new(body).take(limit).read_to_end(&mut text).ok()?;
    (text.len() <= MAX_BODY_BYTES).then(|| text.into())
}

async fn set_behaviour(request: Request<Incoming>, store: &Store) -> Answer {
    let body = Limited::new(request.into_body(), 1024).collect().await;
    let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
    match text.parse() {
        Ok(behaviour) => {
            store.behave(behaviour);
            response(StatusCode::NO_CONTENT, String::new())
        }
        Err(unknown) => response(StatusCode::BAD_REQUEST, unknown),
    }
}

/// An error in InfluxDB 1.x's own shape.
fn error(status: StatusCode, text: &str) -> Answer {
    response(status, serde_json::json!({ "error": text }).to_string() + "\n")
}

fn response(status: StatusCode, text: String) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}
