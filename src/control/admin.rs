//! The admin listener: `/api/status`, `/metrics`, `/health`, `/ready`.
//!
//! Bounds: connections at a time, and 5 s for a request's head. Others wait to be taken, so that idle ones never use up
//! the descriptors that delivery needs, and lock nobody out for long.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::metrics;
use super::status::{Status, View};

/// A bound admin listener.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
}

/// How long to wait when the system has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a request's head may take to come: whoever connects and asks nothing makes room for others.
const LONGEST_HEAD: Duration = Duration::from_secs(5);
/// How long a connection may be open: far longer than any answer takes.
const LONGEST: Duration = Duration::from_secs(60);

impl Admin {
    /// Binds to the address; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// What the system says, `AddrInUse` where the port is taken.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await? })
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the runtime ends, at most so many connections at a time.
    pub async fn serve(self, view: View, connections: usize) {
        let router = Router::new()
            .route("/api/status", get(status))
            .route("/metrics", get(metrics))
            .route("/health", get(|| async { "ok\n" }))
            .route("/ready", get(ready))
            .with_state(view);
        let places = Arc::new(Semaphore::new(connections));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "cannot take an admin connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(LONGEST_HEAD);
                let connection = server.serve_connection(TokioIo::new(stream), service);
                // Whoever asks and goes away is no news.
                drop(tokio::time::timeout(LONGEST, connection).await);
                drop(place);
            });
        }
    }
}

async fn status(State(view): State<View>) -> Json<Status> {
    Json(view.status())
}

async fn metrics(State(view): State<View>, headers: HeaderMap) -> impl IntoResponse {
    let accepts = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match metrics::render(&view) {
        Ok(text) if accepts.contains("application/openmetrics-text") => {
            ([(CONTENT_TYPE, metrics::OPENMETRICS)], text).into_response()
        }
        Ok(text) => ([(CONTENT_TYPE, metrics::CLASSIC)], metrics::to_classic(&text)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(view): State<View>) -> (StatusCode, &'static str) {
    if view.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no backend takes writes\n")
    }
}
