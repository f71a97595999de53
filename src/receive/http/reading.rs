//! The interface between a listener and the part of the relay that answers readers.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::combinators::UnsyncBoxBody;

use crate::protocol::Span;

/// A query for a backend, parsed as far as is needed to choose the copy that answers it.
#[derive(Clone, Debug)]
pub struct Question {
    /// Address of the client.
    pub source: IpAddr,
    /// The query as a form, written anew from what was parsed.
    pub form: String,
    /// Whether the answer is pretty-printed.
    pub is_pretty: bool,
    /// The request's headers.
    pub headers: HeaderMap,
    /// The credentials of the request, in a form that a backend accepts.
    pub authorization: Option<HeaderValue>,
    /// The databases that it reads; empty: all.
    pub databases: Vec<String>,
    /// Time range of the points that it may read.
    pub points: Span,
}

/// A statement that changes something.
#[derive(Clone, Debug)]
pub struct Order {
    /// The statement, with its times made literal.
    pub statement: String,
    /// The request's database, which the statement uses if it names none.
    pub default: Option<String>,
    /// Whether it changes, or may change, points.
    pub touches_points: bool,
    /// The database that it changes. `None` if it changes several, or something outside any
    /// database.
    pub database: Option<String>,
    /// Whether the sender may administer here. If so, the backends' own credentials are used.
    pub may_administer: bool,
    /// The credentials of the request.
    pub authorization: Option<HeaderValue>,
}

/// A response whose body is streamed.
pub type Reply = Response<UnsyncBoxBody<Bytes, io::Error>>;

type Answering = Pin<Box<dyn Future<Output = Reply> + Send>>;
type Ordering = Pin<Box<dyn Future<Output = Result<String, Refused>> + Send>>;

/// Why a statement was not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A backend refused it; the backend's words.
    #[error("{0}")]
    Told(String),
    /// No backend can run it now.
    #[error("{0}")]
    NoBackend(String),
}

/// Answers queries and runs statements.
#[derive(Clone)]
pub struct Reader {
    answer: Arc<dyn Fn(Question) -> Answering + Send + Sync>,
    order: Arc<dyn Fn(Order) -> Ordering + Send + Sync>,
    /// Whether `SELECT … INTO` is run on every backend.
    pub(super) takes_select_into: bool,
}

impl Reader {
    /// Wraps a function that answers a query with a backend's reply, and one that runs a statement
    /// that changes something.
    pub fn new(
        answer: impl Fn(Question) -> Answering + Send + Sync + 'static,
        order: impl Fn(Order) -> Ordering + Send + Sync + 'static,
        takes_select_into: bool,
    ) -> Self {
        Self { answer: Arc::new(answer), order: Arc::new(order), takes_select_into }
    }

    pub(super) fn answer(&self, question: Question) -> Answering {
        (self.answer)(question)
    }

    pub(super) fn order(&self, order: Order) -> Ordering {
        (self.order)(order)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}
