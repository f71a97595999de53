//! An InfluxDB as a backend: the write endpoints of its 1.x and 2.x APIs.
//!
//! Owns: requests and their credentials, the meaning of failed requests, and the creation of a
//! missing database.
//!
//! Never does: keep lines, or retry on its own. Bounds: one request at a time per value,
//! [`LONGEST_STATEMENT`] per statement, [`VERSION_BYTES`] of a version.

use std::collections::HashSet;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::{Method, Request, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::outcome::{EXPECTS_TLS, Fate, of_answer};
use super::{BackendError, Outcome};
use crate::batch::Destination;
use crate::net::client::{Answer, Client, ClientError, Payload, Times};
use crate::net::{SecretError, SecretFile, Tls};
use crate::protocol::influxql::quoted;
use crate::sys::text::cut;

/// Maximum length of a kept version, in bytes.
const VERSION_BYTES: usize = 64;

/// How to reach an InfluxDB.
#[derive(Clone, Debug)]
pub struct InfluxConfig {
    /// `http` or `https`, host, port, and an optional prefix of `/write`.
    pub url: Uri,
    /// The API and its credentials.
    pub api: Api,
    /// Certificates to trust and to present over TLS.
    pub tls: Tls,
    /// Time limits of connections and requests.
    pub times: Times,
    /// Whether to create a missing database, by the 1.x API.
    pub create_database: bool,
    /// The user that statements run as, and the file with its password. `None`: the user that
    /// writes lines.
    pub admin: Option<(String, SecretFile)>,
    /// Whether to compress requests.
    pub gzip: bool,
}

/// The API and the credentials for it.
#[derive(Clone, Debug)]
pub enum Api {
    /// `/write?db=…&rp=…`
    V1 {
        /// The user, and the file with the password.
        credentials: Option<(String, SecretFile)>,
    },
    /// `/api/v2/write?org=…&bucket=…`
    V2 {
        /// Name of the organisation. Empty for a server that does not need it.
        org: String,
        /// The bucket. `None`: `database/retention_policy`, as InfluxDB 1.8 reads it.
        bucket: Option<String>,
        /// The file with the token.
        token: SecretFile,
    },
}

/// Time limit of a statement. It is long because InfluxDB drops series one by one.
const LONGEST_STATEMENT: Duration = Duration::from_secs(600);

/// Outcome of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// It ran, with this answer.
    Done(String),
    /// It will never run, for this reason.
    Refused(String),
    /// It did not run, but may later: the backend is unreachable or busy, or its credentials are
    /// wrong.
    Later(String),
    /// It may have run: its answer was lost.
    Unsure(String),
}

/// A statement did not run, or may not have run.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct StatementError(String);

/// Credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The secret's file cannot be read.
    #[error(transparent)]
    Unreadable(#[from] SecretError),
    /// The secret has characters that no header may hold.
    #[error("the secret cannot stand in a header")]
    Header,
}

/// Answer of a backend to a ping.
#[derive(Debug)]
pub(super) struct Pong {
    /// Its version.
    pub(super) version: Option<String>,
    /// Its time, in whole seconds.
    pub(super) date: Option<SystemTime>,
}

/// A backend that speaks InfluxDB's HTTP API.
#[derive(Debug)]
pub(super) struct Influx {
    config: InfluxConfig,
    client: Client,
    /// Shared by all connections to the backend.
    identity: Arc<Mutex<Identity>>,
    /// Missing databases that this value tried to create. It tries each one once.
    created: HashSet<String>,
}

/// Credentials for a backend.
#[derive(Debug)]
struct Identity {
    authorization: Option<HeaderValue>,
    /// Whether the backend refused the credentials. If so, the secret is read again before each
    /// try.
    was_refused: bool,
}

impl Influx {
    /// Reads secrets and certificates. Connects at the first write.
    ///
    /// # Errors
    /// A secret or certificate file cannot be used.
    pub(super) fn new(config: InfluxConfig) -> Result<Self, BackendError> {
        let authorization = config.api.authorization()?;
        let tls = if config.url.scheme_str() == Some("https") { Some(config.tls.config()?) } else { None };
        let client = Client::new(&config.url, tls.zip(Some(config.tls.server_name.clone())), config.times);
        let identity = Arc::new(Mutex::new(Identity { authorization, was_refused: false }));
        Ok(Self { config, client, identity, created: HashSet::new() })
    }

    /// Writes lines in one request.
    pub(super) async fn send(&mut self, destination: &Destination, parts: Vec<Bytes>) -> Outcome {
        let Some(target) = self.target(destination) else {
            return Outcome::new(
                Fate::HoldDestination,
                format!("the v2 API has no precision {}: it takes ns, us, ms and s", destination.precision()),
            );
        };
        let parts = if self.config.gzip { compress(parts).await } else { parts };
        let authorization = self.authorization();
        let sent = self.client.send(|| self.config.write(authorization.as_ref(), &target, &parts)).await;
        match sent {
            Ok(answer) if self.is_to_create(&answer, destination) => {
                let fate = self.create(destination.database()).await;
                Outcome::of_answer(fate, self.describe(&answer), answer.status.as_u16(), answer.body)
            }
            Ok(answer) => {
                let fate = of_answer(answer.status, answer.retry_after.as_deref(), &answer.body, SystemTime::now());
                self.identity().was_refused = matches!(answer.status.as_u16(), 401 | 403);
                Outcome::of_answer(fate, self.describe(&answer), answer.status.as_u16(), answer.body)
            }
            Err(error) => Outcome::new(fate_of(&error), error.to_string()),
        }
    }

    /// Returns when the server's certificate expires, or `None` without TLS.
    ///
    /// # Errors
    /// The server could not be reached.
    pub(super) async fn certificate_expires(&self) -> Result<Option<SystemTime>, ClientError> {
        self.client.certificate_expires().await
    }

    /// Pings the server, and returns its version and time.
    ///
    /// # Errors
    /// The server could not be reached, or something else answers.
    pub(super) async fn ping(&mut self) -> Result<Pong, Outcome> {
        let target = format!("{}/ping", self.prefix());
        let authorization = self.authorization();
        let sent = self.client.send(|| self.config.request(Method::GET, authorization.as_ref(), &target, &[])).await;
        let text = match sent {
            Ok(Answer { status, version, date, .. }) if status.is_success() => {
                return Ok(Pong { version: version.map(|one| cut(&one, VERSION_BYTES).to_owned()), date });
            }
            Ok(answer) if self.expects_tls(&answer) => self.describe(&answer),
            Ok(answer) => format!("GET {target} was answered with {}; is it an InfluxDB?", self.describe(&answer)),
            Err(error) => return Err(Outcome::new(fate_of(&error), error.to_string())),
        };
        Err(Outcome::new(Fate::HoldBackend, text))
    }

    /// Asks whether the backend accepts lines for this destination, with a write that has no line:
    /// a server checks the credentials and the database first. (1.x and VictoriaMetrics answer with
    /// 204, 2.x with 400.)
    pub(super) async fn ask(&mut self, destination: &Destination) -> Outcome {
        self.send(destination, Vec::new()).await
    }

    /// Runs an InfluxQL statement by the 1.x API, on this database unless the statement names one.
    pub(super) async fn run(&mut self, statement: &str, database: Option<&str>) -> Ran {
        let of_admin = match &self.config.admin {
            Some((user, file)) => {
                match file.read().map_err(CredentialError::from).and_then(|password| basic(user, password.expose())) {
                    Ok(authorization) => Some(authorization),
                    Err(error) => return Ran::Later(error.to_string()),
                }
            }
            None => None,
        };
        if of_admin.is_some() {
            return self.run_with(statement, database, of_admin.as_ref()).await.0;
        }
        let authorization = self.authorization();
        let (ran, status) = self.run_with(statement, database, authorization.as_ref()).await;
        self.identity().was_refused |= status == Some(401);
        ran
    }

    /// Like `run`, with these credentials or none.
    pub(super) async fn run_as(
        &mut self,
        statement: &str,
        database: Option<&str>,
        authorization: Option<&HeaderValue>,
    ) -> Ran {
        match self.run_with(statement, database, authorization).await {
            // Another try with the same credentials would fail, too.
            (Ran::Later(error), Some(401)) => Ran::Refused(error),
            (ran, _) => ran,
        }
    }

    async fn run_with(
        &mut self,
        statement: &str,
        database: Option<&str>,
        authorization: Option<&HeaderValue>,
    ) -> (Ran, Option<u16>) {
        let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let database = database.map_or_else(String::new, |database| format!("&db={}", encode(database)));
        // A statement may be longer than a request's target can be.
        let form = [Bytes::from(format!("q={}{database}", encode(statement)))];
        let target = format!("{}/query", self.prefix());
        let answer = match self.client.send(|| self.config.form(authorization, &target, &form)).await {
            Ok(answer) => answer,
            Err(error) if is_unsent(&error) => return (Ran::Later(error.to_string()), None),
            Err(error) => return (Ran::Unsure(error.to_string()), None),
        };
        let status = answer.status;
        // InfluxDB answers a failed statement with 200, too.
        let ran = if status.is_success() && !answer.body.contains("\"error\"") {
            Ran::Done(answer.body)
        } else if matches!(status.as_u16(), 401 | 429 | 503) {
            Ran::Later(self.describe(&answer))
        } else if status.is_server_error() {
            Ran::Unsure(self.describe(&answer))
        } else {
            Ran::Refused(self.describe(&answer))
        };
        (ran, Some(status.as_u16()))
    }

    /// Runs an InfluxQL statement.
    ///
    /// # Errors
    /// The statement did not run, or may not have run.
    pub(super) async fn execute(&mut self, statement: &str) -> Result<(), StatementError> {
        match self.run(statement, None).await {
            Ran::Done(_) => Ok(()),
            Ran::Refused(error) | Ran::Later(error) | Ran::Unsure(error) => Err(StatementError(error)),
        }
    }

    /// Returns the same backend with a time limit for statements that take minutes.
    pub(super) fn with_statement_timeout(self) -> Self {
        Self { client: self.client.patient(LONGEST_STATEMENT), ..self }
    }

    /// Returns a client for reading from the same backend, and its URL.
    pub(super) fn reading(&self) -> (Client, Uri) {
        (self.client.another(), self.config.url.clone())
    }

    /// Returns the same backend with a connection of its own.
    pub(super) fn another(&self) -> Self {
        let (config, client, identity) = (self.config.clone(), self.client.another(), Arc::clone(&self.identity));
        Self { config, client, identity, created: HashSet::new() }
    }

    /// Creates a database. Returns the fate of the lines that were sent to it.
    async fn create(&mut self, database: &str) -> Fate {
        self.created.insert(database.to_owned());
        match self.execute(&format!("CREATE DATABASE {}", quoted(database))).await {
            Ok(()) => {
                tracing::info!(database, "created a missing database");
                Fate::Transient
            }
            Err(StatementError(error)) => {
                tracing::warn!(database, error, "cannot create a missing database: create it there");
                Fate::HoldDestination
            }
        }
    }

    /// Whether the answer says that the database is missing, and it should be created.
    fn is_to_create(&self, answer: &Answer, destination: &Destination) -> bool {
        let may = self.config.create_database && !self.created.contains(destination.database());
        may && answer.status.as_u16() == 404 && answer.body.contains("database not found")
    }

    /// Describes an answer for people.
    fn describe(&self, answer: &Answer) -> String {
        let Answer { status, body, .. } = answer;
        if self.expects_tls(answer) {
            return ClientError::SpeaksTls(self.client.address()).to_string();
        }
        format!("{status}: {}", body.trim_end())
    }

    /// Whether a TLS server answered to plain HTTP.
    fn expects_tls(&self, answer: &Answer) -> bool {
        let is_plain = self.config.url.scheme_str() == Some("http");
        is_plain && answer.status.as_u16() == 400 && EXPECTS_TLS.iter().any(|text| answer.body.contains(text))
    }

    /// The prefix of the API's paths.
    fn prefix(&self) -> &str {
        self.config.url.path().trim_end_matches('/')
    }

    /// Returns the path and query for a destination, or `None` if the API cannot name its
    /// precision.
    fn target(&self, destination: &Destination) -> Option<String> {
        let prefix = self.prefix();
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let (database, precision) = (destination.database(), destination.precision());
        match &self.config.api {
            Api::V1 { .. } => {
                let policy = match destination.retention_policy() {
                    "" => String::new(),
                    policy => format!("&rp={}", encode(policy)),
                };
                Some(format!("{prefix}/write?db={}{policy}&precision={}", encode(database), precision.v1_name()))
            }
            Api::V2 { org, bucket, .. } => {
                let from_database = || match destination.retention_policy() {
                    "" => database.to_owned(),
                    policy => format!("{database}/{policy}"),
                };
                let bucket = encode(&bucket.clone().unwrap_or_else(from_database));
                let precision = precision.v2_name()?;
                Some(format!("{prefix}/api/v2/write?org={}&bucket={bucket}&precision={precision}", encode(org)))
            }
        }
    }

    /// Returns the `Authorization` header. After a refusal it reads the secret again, so that a
    /// corrected password needs no restart.
    fn authorization(&self) -> Option<HeaderValue> {
        let mut identity = self.identity();
        if identity.was_refused
            && let Ok(authorization) = self.config.api.authorization()
        {
            identity.authorization = authorization;
        }
        identity.authorization.clone()
    }

    fn identity(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Api {
    /// Builds the `Authorization` header from the secret's file as it is now.
    fn authorization(&self) -> Result<Option<HeaderValue>, CredentialError> {
        let text = match self {
            Self::V1 { credentials: None } => return Ok(None),
            Self::V1 { credentials: Some((user, password)) } => {
                return basic(user, password.read()?.expose()).map(Some);
            }
            Self::V2 { token, .. } => format!("Token {}", token.read()?.expose()),
        };
        secret_value(&text).map(Some)
    }
}

/// Builds the header of a user with a password.
pub(super) fn basic(user: &str, password: &str) -> Result<HeaderValue, CredentialError> {
    secret_value(&format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
}

/// Builds a header that holds a secret.
pub(super) fn secret_value(text: &str) -> Result<HeaderValue, CredentialError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| CredentialError::Header)?;
    value.set_sensitive(true);
    Ok(value)
}

impl InfluxConfig {
    /// Builds a write of these lines.
    fn write(&self, authorization: Option<&HeaderValue>, target: &str, parts: &[Bytes]) -> Request<Payload> {
        let mut request = self.request(Method::POST, authorization, target, parts);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        request
    }

    /// Builds a request with this form.
    fn form(&self, authorization: Option<&HeaderValue>, target: &str, form: &[Bytes]) -> Request<Payload> {
        let mut request = self.request(Method::POST, authorization, target, form);
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        request
    }

    fn request(
        &self,
        method: Method,
        authorization: Option<&HeaderValue>,
        target: &str,
        parts: &[Bytes],
    ) -> Request<Payload> {
        let mut request = Request::new(parts.iter().cloned().collect::<Payload>());
        *request.method_mut() = method;
        *request.uri_mut() = target.parse().expect("BUG: a target is made of encoded parts");
        let headers = request.headers_mut();
        if let Some(host) = self.url.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
            headers.insert(HOST, host);
        }
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("twinflux/", env!("CARGO_PKG_VERSION"))));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        request
    }
}

/// Whether the request was certainly not sent.
fn is_unsent(error: &ClientError) -> bool {
    use ClientError::{Broken, Connect, ConnectTimeout, Endless, SpeaksPlain, SpeaksTls, Stalled, Tls};
    match error {
        Connect(..) | ConnectTimeout(..) | Tls(..) | SpeaksPlain(..) | SpeaksTls(..) => true,
        Broken(..) | Endless(..) | Stalled(..) => false,
    }
}

fn fate_of(error: &ClientError) -> Fate {
    match error {
        ClientError::Connect(..) | ClientError::ConnectTimeout(..) => Fate::Down,
        ClientError::Tls(..) | ClientError::SpeaksPlain(..) | ClientError::SpeaksTls(..) => Fate::HoldBackend,
        ClientError::Broken(..) | ClientError::Endless(..) => Fate::Failed,
        ClientError::Stalled(..) => Fate::Stalled,
    }
}

/// Compresses all parts into one gzip stream at level 1, the best trade of speed for size. Runs on
/// a thread of its own, so that other backends' requests go on.
async fn compress(parts: Vec<Bytes>) -> Vec<Bytes> {
    let compressed = tokio::task::spawn_blocking(move || {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(1));
        let written = parts.iter().try_for_each(|part| encoder.write_all(part)).and_then(|()| encoder.finish());
        written.expect("BUG: writing to memory does not fail")
    });
    vec![compressed.await.expect("BUG: compressing does not panic").into()]
}
