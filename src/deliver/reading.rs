//! An InfluxDB as readers use it: one connection per answer in flight, whose body is passed on as
//! it arrives.
//!
//! Owns: connections for reading, and the credentials of readers. Never does: choose a backend, or
//! inspect an answer. Bounds: the time to connect, the size of an answer's head.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, Uri};
use hyper::body::Incoming;

use super::BackendError;
use super::influx::{CredentialError, Influx, basic, secret_value};
use crate::net::SecretFile;
use crate::net::client::{Client, Connection};

/// The credentials that readers' statements run with.
#[derive(Clone, Debug)]
pub enum Reads {
    /// The client's own.
    AsClient,
    /// This user, with the password in this file.
    AsUser(String, SecretFile),
    /// The token in this file.
    WithToken(SecretFile),
}

/// A backend that can answer readers.
#[derive(Debug)]
pub struct Upstream {
    client: Client,
    prefix: String,
    host: HeaderValue,
    reads: Reads,
    /// Header from the secret's file. `None`: the client's own header is used.
    own: Mutex<Option<HeaderValue>>,
}

/// A connection to a backend, with one request in flight at a time.
#[derive(Debug)]
pub struct Link {
    connection: Connection,
    opened: Instant,
}

/// A connection to a backend failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It cannot be opened.
    #[error("{0}")]
    Connect(String),
    /// A request was not answered.
    #[error("{0}")]
    Request(#[from] hyper::Error),
}

/// How long to keep an idle connection: an intermediary may close one that is idle for longer.
const LONGEST_IDLE: Duration = Duration::from_secs(30);

impl Upstream {
    /// Creates an upstream of the InfluxDB that lines are written to.
    ///
    /// # Errors
    /// The file of the reader's secret cannot be used.
    pub(super) fn new(influx: &Influx, reads: &Reads) -> Result<Self, BackendError> {
        let (client, url) = influx.reading();
        let own = Mutex::new(reads.authorization()?);
        Ok(Self { client, prefix: prefix_of(&url), host: host_of(&url), reads: reads.clone(), own })
    }

    /// Reads the secret's file again after the backend refused the credentials, so that a new
    /// secret needs no restart.
    pub fn note_refused(&self) {
        if let Ok(now) = self.reads.authorization() {
            *self.own() = now;
        }
    }

    fn own(&self) -> MutexGuard<'_, Option<HeaderValue>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// The connection cannot be opened.
    pub async fn connect(&self) -> Result<Link, LinkError> {
        let connection = self.client.connect().await.map_err(|error| LinkError::Connect(error.to_string()))?;
        Ok(Link { connection, opened: Instant::now() })
    }

    /// Builds the request of a statement: this form, with those of the client's headers that affect
    /// the answer. `authorization` is the client's, used if the backend has no reader of its own.
    pub fn request(
        &self,
        form: &str,
        is_pretty: bool,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Request<Bytes> {
        let mut request = Request::new(Bytes::copy_from_slice(form.as_bytes()));
        *request.method_mut() = Method::POST;
        let query = if is_pretty { "?pretty=true" } else { "" };
        *request.uri_mut() =
            format!("{}/query{query}", self.prefix).parse().unwrap_or_else(|_| Uri::from_static("/query"));
        let own = request.headers_mut();
        own.insert(HOST, self.host.clone());
        own.insert(USER_AGENT, HeaderValue::from_static(concat!("twinflux/", env!("CARGO_PKG_VERSION"))));
        own.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        for name in PASSED {
            if let Some(value) = headers.get(&name) {
                own.insert(name, value.clone());
            }
        }
        if let Some(value) = self.own().clone().or_else(|| authorization.cloned()) {
            own.insert(AUTHORIZATION, value);
        }
        request
    }
}

impl Reads {
    /// Builds the `Authorization` header from the secret's file as it is now.
    fn authorization(&self) -> Result<Option<HeaderValue>, CredentialError> {
        match self {
            Self::AsClient => Ok(None),
            Self::AsUser(user, file) => basic(user, file.read()?.expose()).map(Some),
            Self::WithToken(file) => secret_value(&format!("Token {}", file.read()?.expose())).map(Some),
        }
    }
}

/// The client's headers that affect an answer.
const PASSED: [HeaderName; 2] = [http::header::ACCEPT, http::header::ACCEPT_ENCODING];

impl Link {
    /// Sends a request, and waits for the answer's head.
    ///
    /// # Errors
    /// There is no answer. An idle connection may have been closed in the meantime.
    pub async fn ask(&mut self, request: Request<Bytes>) -> Result<Response<Incoming>, LinkError> {
        Ok(self.connection.ask(request.map(|body| [body].into_iter().collect())).await?)
    }

    /// Whether another request may be sent on the connection now.
    pub async fn is_ready(&mut self) -> bool {
        self.connection.is_ready().await
    }

    /// Whether the connection may be kept for another request.
    pub fn is_worth_keeping(&self, lifetime: Duration) -> bool {
        self.opened.elapsed() < lifetime
    }

    /// How long to keep an idle connection.
    pub fn longest_idle() -> Duration {
        LONGEST_IDLE
    }
}

fn prefix_of(url: &Uri) -> String {
    url.path().trim_end_matches('/').to_owned()
}

fn host_of(url: &Uri) -> HeaderValue {
    let host = url.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    host.unwrap_or(HeaderValue::from_static("localhost"))
}
