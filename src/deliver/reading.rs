//! An InfluxDB as it is read from: one connection for each answer under way, whose body comes as it comes.
//!
//! Never does: choosing whom to ask, or looking into an answer. Bounds: the time to connect, an answer's head.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, Uri};
use hyper::body::Incoming;

use super::BackendError;
use super::influx::{Influx, basic, secret_value};
use crate::net::SecretFile;
use crate::net::client::{Client, Connection};

/// A user, or a token, that statements of readers run as.
#[derive(Clone, Debug)]
pub enum Reads {
    /// The client's own.
    AsClient,
    /// This user, with the password in this file.
    AsUser(String, SecretFile),
    /// Whoever the token in this file stands for.
    WithToken(SecretFile),
}

/// A backend that readers may be sent to.
#[derive(Debug)]
pub struct Upstream {
    client: Client,
    prefix: String,
    host: HeaderValue,
    reads: Reads,
    /// Who reads, from the secret's file; none for the client itself.
    own: Mutex<Option<HeaderValue>>,
}

/// A connection to it, on which one request at a time is under way.
#[derive(Debug)]
pub struct Link {
    connection: Connection,
    opened: Instant,
}

/// A connection that is kept for so long without a request may be closed by whatever is between.
const LONGEST_IDLE: Duration = Duration::from_secs(30);

impl Upstream {
    /// The same InfluxDB as lines are written to.
    ///
    /// # Errors
    /// What is wrong with the file of the reader's secret.
    pub(super) fn new(influx: &Influx, reads: &Reads) -> Result<Self, BackendError> {
        let (client, url) = influx.reading();
        let own = Mutex::new(reads.authorization().map_err(BackendError)?);
        Ok(Self { client, prefix: prefix_of(&url), host: host_of(&url), reads: reads.clone(), own })
    }

    /// The backend refused who asked: reads the secret's file again, so that a new one needs no restart.
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
    /// Why there is none, as a sentence.
    pub async fn connect(&self) -> Result<Link, String> {
        let connection = self.client.connect().await.map_err(|error| error.to_string())?;
        Ok(Link { connection, opened: Instant::now() })
    }

    /// A statement's request: a form of these pairs, with headers of the client's that matter for the answer. `authorization`
    /// is the client's, which counts where the backend has no reader of its own.
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
    /// The header that says who reads, from the secret's file as it is now.
    fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        match self {
            Self::AsClient => Ok(None),
            Self::AsUser(user, file) => basic(user, file.read().map_err(|error| error.to_string())?.expose()).map(Some),
            Self::WithToken(file) => {
                secret_value(&format!("Token {}", file.read().map_err(|error| error.to_string())?.expose())).map(Some)
            }
        }
    }
}

/// Headers of the client's that an answer depends on.
const PASSED: [HeaderName; 2] = [http::header::ACCEPT, http::header::ACCEPT_ENCODING];

impl Link {
    /// Asks, and waits for the answer's head.
    ///
    /// # Errors
    /// Why there is no answer, as a sentence. A connection that was kept may have been closed meanwhile.
    pub async fn ask(&mut self, request: Request<Bytes>) -> Result<Response<Incoming>, String> {
        self.connection.ask(request.map(|body| [body].into_iter().collect())).await.map_err(|error| error.to_string())
    }

    /// Whether another request may be sent on it now.
    pub async fn is_ready(&mut self) -> bool {
        self.connection.is_ready().await
    }

    /// Whether it may be kept for another request.
    pub fn is_worth_keeping(&self, lifetime: Duration) -> bool {
        self.opened.elapsed() < lifetime
    }

    /// How long a connection without a request may be kept.
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
