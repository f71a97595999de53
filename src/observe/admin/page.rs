//! The page at `/`: one HTML document that loads nothing from elsewhere, and its data.
//!
//! `/api/events` sends the status each [`EVENT`] as server-sent events, `/api/history` the plots.
//! Bounds: one event waits for its reader, and the next is taken only once it is sent. A connection
//! ends when its slot is taken; browsers reconnect.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body::Frame;
use ring::digest;
use tokio::sync::mpsc;

use super::snapshots::Snapshots;

/// Interval between events.
const EVENT: Duration = Duration::from_secs(2);

const STYLE: &str = include_str!("../page/page.css");
const SCRIPT: &str = include_str!("../page/page.js");

/// The page, and the policy by which a browser loads and runs only the page's own style and script.
static PAGE: LazyLock<(String, String)> = LazyLock::new(|| {
    let frame = include_str!("../page/index.html");
    let page = frame.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT);
    let hash = |text: &str| BASE64_STANDARD.encode(digest::digest(&digest::SHA256, text.as_bytes()));
    let policy = format!(
        "default-src 'none'; img-src data:; connect-src 'self'; style-src 'sha256-{}'; script-src 'sha256-{}'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    (page, policy)
});

pub(super) async fn page() -> impl IntoResponse {
    let (page, policy) = &*PAGE;
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, policy.as_str()),
        (CACHE_CONTROL, "no-cache"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, page.as_str())
}

pub(super) async fn history(State(snapshots): State<Arc<Snapshots>>) -> impl IntoResponse {
    let text = serde_json::to_vec(&snapshots.history().shown()).unwrap_or_default();
    ([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], text)
}

pub(super) async fn events(State(snapshots): State<Arc<Snapshots>>) -> Response {
    let (events, received) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let event = [b"data: ", &*snapshots.next().await.event(), b"\n\n"].concat();
            if events.send(event.into()).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(EVENT) => {}
                () = events.closed() => return,
            }
        }
    });
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    (headers, Body::new(Events(received))).into_response()
}

/// A body that streams events.
#[derive(Debug)]
struct Events(mpsc::Receiver<Bytes>);

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_whole_and_loads_nothing_from_elsewhere() {
        let (page, policy) = &*PAGE;
        assert!(page.len() < 60_000, "{} bytes", page.len());
        assert!(page.contains(STYLE) && page.contains(SCRIPT) && policy.contains("default-src 'none'"));
        for what in ["src=\"", "@import", "url(", "http-equiv", "innerHTML", "style=\""] {
            assert!(!page.contains(what), "{what}");
        }
        // The namespace of SVG is a name, and is not fetched.
        assert_eq!(page.matches("http://").count() + page.matches("https://").count(), 2);
    }
}
