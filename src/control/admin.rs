//! The admin listener: `/api/status`, `/metrics`, `/health`, `/ready`.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use tokio::net::TcpListener;

use super::metrics;
use super::status::{Status, View};

/// A bound admin listener.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
}

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

    /// Serves until the runtime ends.
    pub async fn serve(self, view: View) {
        let router = Router::new()
            .route("/api/status", get(status))
            .route("/metrics", get(metrics))
            .route("/health", get(|| async { "ok\n" }))
            .route("/ready", get(ready))
            .with_state(view);
        if let Err(error) = axum::serve(self.listener, router).await {
            tracing::error!(%error, "the admin listener ended");
        }
    }
}

async fn status(State(view): State<View>) -> Json<Status> {
    Json(view.status())
}

async fn metrics(State(view): State<View>) -> impl IntoResponse {
    match metrics::render(&view) {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
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
