//! The admin listener: `/api/status`, `/metrics`, `/health`, `/ready`, and the page.
//!
//! Owns the sockets, the names (`names`) and users (`users`) by which requests are allowed, what is
//! shown (`snapshots`), and which connections give way in a crowd (`slots`). Runs on a thread of
//! its own, so requests take nothing from delivery.
//!
//! Bounds: the connections, 5 s for a request's head, 60 s for a connection, ten snapshots a
//! second.

mod names;
mod page;
mod slots;
mod snapshots;
mod users;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use super::{json, metrics};
use crate::auth::Auth;
use crate::net::tls::{Certificate, answer_plain_http, begins_as_tls};
use crate::observe::view::View;
use names::Names;
use slots::{Class, Slot, Slots};
use snapshots::Snapshots;
use users::Users;

/// Who may ask, and how.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Host names by which browsers may ask, besides the listener's address.
    pub hosts: Vec<String>,
    /// The certificate, if the listener speaks TLS.
    pub certificate: Option<Arc<Certificate>>,
    /// The users; only one with the right to administer may ask. `None` admits everybody.
    pub auth: Option<Arc<Auth>>,
}

/// A bound admin listener.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
}

/// Pause after a failed `accept`, for example without a free descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The longest time for a request's head. A client that connects and asks nothing makes room for
/// others.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest life of a connection; far longer than any answer takes.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Paths that are answered under any host name: an orchestrator asks by a pod's address, Prometheus
/// by a name from its configuration.
const PROBES: [&str; 3] = ["/health", "/ready", "/metrics"];
/// Paths that anybody may ask for, because they only say whether the relay works.
const OPEN: [&str; 2] = ["/health", "/ready"];
/// Answer to an unknown host name.
const UNKNOWN_NAME: &str = "this relay is not known by the name in Host: ask for it by its address or as localhost, or add the name to [admin] hosts\n";

impl Admin {
    /// Binds to the address; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// The system's error; `AddrInUse` if the port is taken.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await? })
    }

    /// Returns the address it listens on.
    ///
    /// # Errors
    /// The system's error.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the runtime ends, with about `connections` connections at a time.
    pub async fn serve(self, view: View, connections: usize, access: Access) {
        let router = Router::new()
            .route("/", get(page::page))
            .route("/api/events", get(page::events))
            .route("/api/history", get(page::history))
            .route("/api/status", get(status))
            .route("/api/pair", get(pair))
            .route("/metrics", get(metrics))
            .route("/health", get(|| async { "ok\n" }))
            .route("/ready", get(ready))
            .with_state(Arc::new(Snapshots::new(view)));
        let names = Arc::new(Names::new(&access.hosts));
        let users = access.auth.map(|auth| Arc::new(Users::new(auth)));
        let slots = Arc::new(Slots::new(connections));
        loop {
            let (stream, source) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "cannot take an admin connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // A connection that is closed already has no address.
            let Ok(local) = stream.local_addr() else { continue };
            let guard = Guard {
                names: Arc::clone(&names),
                users: users.clone(),
                local: local.ip(),
                source: source.ip().to_canonical(),
                slot: Arc::new(slots.enter()),
            };
            tokio::spawn(guard.attend(stream, access.certificate.clone(), router.clone()));
            // Lets earlier connections send their requests first: in a crowd, a client that asks at
            // once does not give way.
            tokio::task::yield_now().await;
        }
    }
}

/// Checks the requests of one connection before the pages answer them.
#[derive(Clone)]
struct Guard {
    names: Arc<Names>,
    users: Option<Arc<Users>>,
    local: IpAddr,
    source: IpAddr,
    slot: Arc<Slot>,
}

impl Guard {
    /// Serves a connection to its end.
    async fn attend(self, stream: TcpStream, certificate: Option<Arc<Certificate>>, router: Router) {
        let Some(certificate) = certificate else { return self.serve(stream, router).await };
        // A client that does not complete the handshake in time makes room for others.
        let shaken = tokio::time::timeout(HEAD_TIMEOUT, async {
            if begins_as_tls(&stream).await {
                return Some(certificate.acceptor().accept(stream).await);
            }
            answer_plain_http(&stream);
            None
        });
        match shaken.await {
            Ok(Some(Ok(stream))) => self.serve(stream, router).await,
            Ok(Some(Err(error))) => tracing::debug!(%error, "a TLS handshake with the admin listener failed"),
            Ok(None) | Err(_) => {}
        }
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
        let slot = Arc::clone(&self.slot);
        let service = service_fn(move |request| self.clone().answer(request, router.clone()));
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        let connection =
            tokio::time::timeout(CONNECTION_TIMEOUT, server.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            // Clients that disconnect are not logged.
            _ = connection => {}
            () = slot.evicted() => {}
        }
    }

    async fn answer(
        self,
        request: hyper::Request<hyper::body::Incoming>,
        router: Router,
    ) -> Result<Response, Infallible> {
        let class = if PROBES.contains(&request.uri().path()) { Class::Probe } else { Class::Page };
        self.slot.begin(class);
        let mut response = if class == Class::Page && !self.names.allow(&request, self.local) {
            (StatusCode::FORBIDDEN, UNKNOWN_NAME).into_response()
        } else if let Some(refusal) = self.refusal(&request).await {
            refusal
        } else {
            TowerToHyperService::new(router).call(request).await?
        };
        // Browsers must not guess another content type.
        response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        self.slot.end();
        Ok(response)
    }

    /// Returns why a request is refused, if the listener asks for users.
    async fn refusal(&self, request: &hyper::Request<hyper::body::Incoming>) -> Option<Response> {
        match &self.users {
            Some(users) if !OPEN.contains(&request.uri().path()) => users.refusal(request.headers(), self.source).await,
            _ => None,
        }
    }
}

async fn status(State(snapshots): State<Arc<Snapshots>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], snapshots.next().await.json())
}

/// Answers the pair's other relay with this one's report.
async fn pair(State(snapshots): State<Arc<Snapshots>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], json::render(&*snapshots.report().await))
}

async fn metrics(State(snapshots): State<Arc<Snapshots>>, headers: HeaderMap) -> impl IntoResponse {
    let accepts = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match snapshots.next().await.metrics() {
        Ok(text) if accepts.contains("application/openmetrics-text") => {
            ([(CONTENT_TYPE, metrics::OPENMETRICS)], text).into_response()
        }
        Ok(text) => {
            ([(CONTENT_TYPE, metrics::CLASSIC)], metrics::to_classic(&String::from_utf8_lossy(&text))).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(snapshots): State<Arc<Snapshots>>) -> (StatusCode, String) {
    match snapshots.unready().await {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
