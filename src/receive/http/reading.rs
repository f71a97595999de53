//! What a listener asks the rest of the relay for a reader, and what comes back.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::combinators::UnsyncBoxBody;

use crate::protocol::Span;

/// A question to a backend, understood as far as it tells which copy may answer.
#[derive(Clone, Debug)]
pub struct Question {
    /// Who asks.
    pub source: IpAddr,
    /// What is asked, as a form that was written anew from what was understood.
    pub form: String,
    /// Whether the answer is to be laid out for people.
    pub is_pretty: bool,
    /// The request's headers.
    pub headers: HeaderMap,
    /// The credentials that came with it, in a form that a backend takes.
    pub authorization: Option<HeaderValue>,
    /// The databases that it is about; none for all.
    pub databases: Vec<String>,
    /// The times of the points that it may read.
    pub points: Span,
}

/// A statement that changes something.
#[derive(Clone, Debug)]
pub struct Order {
    /// The statement, with its times made literal.
    pub statement: String,
    /// The request's database, which it means where it names none.
    pub default: Option<String>,
    /// Whether it changes points, or may.
    pub touches_points: bool,
    /// The database that it changes; none for several, and for what is no database's.
    pub database: Option<String>,
    /// Whether its sender may administer here: then the backends' own credentials are used.
    pub may_administer: bool,
    /// The credentials that came with it.
    pub authorization: Option<HeaderValue>,
}

/// An answer, whose body comes as it comes.
pub type Reply = Response<UnsyncBoxBody<Bytes, io::Error>>;

type Answering = Pin<Box<dyn Future<Output = Reply> + Send>>;
type Ordering = Pin<Box<dyn Future<Output = Result<String, Refused>> + Send>>;

/// Why a statement was not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A backend says no: its words.
    Told(String),
    /// No backend can run it now.
    NoBackend(String),
}

/// What answers readers.
#[derive(Clone)]
pub struct Reader {
    answer: Arc<dyn Fn(Question) -> Answering + Send + Sync>,
    order: Arc<dyn Fn(Order) -> Ordering + Send + Sync>,
    /// Whether `SELECT … INTO` is run on every backend.
    pub(super) takes_select_into: bool,
}

impl Reader {
    /// What this makes of a question, and of a statement that changes something: a backend's answer to it.
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
