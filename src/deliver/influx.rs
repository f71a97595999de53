//! An InfluxDB as a backend: the write endpoints of its 1.x and 2.x APIs.

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
use crate::net::{SecretFile, Tls};
use crate::protocol::influxql::quoted;
use crate::sys::text::cut;

/// How much of a version is kept, in bytes.
const VERSION_BYTES: usize = 64;

/// How an InfluxDB is reached.
#[derive(Clone, Debug)]
pub struct InfluxConfig {
    /// `http` or `https`, host, port, and what may stand before `/write`.
    pub url: Uri,
    /// Which API, with its credentials.
    pub api: Api,
    /// Whom to trust, and who we are, over TLS.
    pub tls: Tls,
    /// How long things may take.
    pub times: Times,
    /// Whether a missing database is made, by the 1.x API.
    pub create_database: bool,
    /// The user that statements run as, and the file with its password; none for who writes lines.
    pub admin: Option<(String, SecretFile)>,
    /// Whether requests are compressed.
    pub gzip: bool,
}

/// The API and who we are to it.
#[derive(Clone, Debug)]
pub enum Api {
    /// `/write?db=…&rp=…`
    V1 {
        /// The user and the file with the password.
        credentials: Option<(String, SecretFile)>,
    },
    /// `/api/v2/write?org=…&bucket=…`
    V2 {
        /// The organisation's name; empty where the server does not ask for it.
        org: String,
        /// The bucket; without it `database/retention_policy`, as InfluxDB 1.8 reads it.
        bucket: Option<String>,
        /// The file with the token.
        token: SecretFile,
    },
}

/// How long a statement may take: series are dropped one by one.
const LONGEST_STATEMENT: Duration = Duration::from_secs(600);

/// What became of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// It ran, and this is the answer.
    Done(String),
    /// It will not run, and this is why.
    Refused(String),
    /// It did not run, and may at another time: nobody is there, or not now, or the backend's credentials are wrong.
    Later(String),
    /// It may have run: its answer was lost.
    Unsure(String),
}

/// What a backend says of itself.
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
    setup: InfluxConfig,
    client: Client,
    /// Shared by all connections to the backend.
    identity: Arc<Mutex<Identity>>,
    /// Databases that were to be made because they were missing: each once.
    created: HashSet<String>,
}

/// Who we are to a backend.
#[derive(Debug)]
struct Identity {
    authorization: Option<HeaderValue>,
    /// Whether the backend refused it: then the secret is read again before each try.
    was_refused: bool,
}

impl Influx {
    /// Reads secrets and certificates; connects at the first write.
    ///
    /// # Errors
    /// What is wrong with a secret or certificate file.
    pub(super) fn new(setup: InfluxConfig) -> Result<Self, BackendError> {
        let authorization = setup.api.authorization().map_err(BackendError)?;
        let tls = if setup.url.scheme_str() == Some("https") { Some(setup.tls.config()?) } else { None };
        let client = Client::new(&setup.url, tls.zip(Some(setup.tls.server_name.clone())), setup.times);
        let identity = Arc::new(Mutex::new(Identity { authorization, was_refused: false }));
        Ok(Self { setup, client, identity, created: HashSet::new() })
    }

    /// Writes lines in one request.
    pub(super) async fn send(&mut self, destination: &Destination, parts: Vec<Bytes>) -> Outcome {
        let Some(target) = self.target(destination) else {
            return Outcome::new(
                Fate::HoldDestination,
                format!("the v2 API has no precision {}: it takes ns, us, ms and s", destination.precision()),
            );
        };
        let parts = if self.setup.gzip { compress(parts).await } else { parts };
        let authorization = self.authorization();
        let sent = self.client.send(|| self.setup.write(authorization.as_ref(), &target, &parts)).await;
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

    /// When its certificate expires; none without TLS.
    ///
    /// # Errors
    /// Why it was not reached.
    pub(super) async fn certificate_expires(&self) -> Result<Option<SystemTime>, ClientError> {
        self.client.certificate_expires().await
    }

    /// Asks whether it is there; returns what it says of itself.
    ///
    /// # Errors
    /// Why it was not reached, or what answers instead.
    pub(super) async fn ping(&mut self) -> Result<Pong, Outcome> {
        let target = format!("{}/ping", self.prefix());
        let authorization = self.authorization();
        let sent = self.client.send(|| self.setup.request(Method::GET, authorization.as_ref(), &target, &[])).await;
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

    /// Asks whether lines for this destination would be taken, by a write without a line: a server looks at who asks and at the
    /// database first. (1.x and VictoriaMetrics answer it with 204, 2.x with 400.)
    pub(super) async fn ask(&mut self, destination: &Destination) -> Outcome {
        self.send(destination, Vec::new()).await
    }

    /// Runs a statement of InfluxQL, by the 1.x API; it means this database where it names none.
    pub(super) async fn run(&mut self, statement: &str, database: Option<&str>) -> Ran {
        let of_admin = match &self.setup.admin {
            Some((user, file)) => {
                match file.read().map_err(|error| error.to_string()).and_then(|password| basic(user, password.expose()))
                {
                    Ok(authorization) => Some(authorization),
                    Err(error) => return Ran::Later(error),
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

    /// The same, with these credentials, or none.
    pub(super) async fn run_as(
        &mut self,
        statement: &str,
        database: Option<&str>,
        authorization: Option<&HeaderValue>,
    ) -> Ran {
        match self.run_with(statement, database, authorization).await {
            // They will be as wrong at another time.
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
        let answer = match self.client.send(|| self.setup.form(authorization, &target, &form)).await {
            Ok(answer) => answer,
            Err(error) if is_unsent(&error) => return (Ran::Later(error.to_string()), None),
            Err(error) => return (Ran::Unsure(error.to_string()), None),
        };
        let status = answer.status;
        // A statement that failed is answered with 200, too.
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

    /// Runs a statement of InfluxQL.
    ///
    /// # Errors
    /// Why it did not run.
    pub(super) async fn execute(&mut self, statement: &str) -> Result<(), String> {
        match self.run(statement, None).await {
            Ran::Done(_) => Ok(()),
            Ran::Refused(error) | Ran::Later(error) | Ran::Unsure(error) => Err(error),
        }
    }

    /// The same backend, with patience for what takes minutes.
    pub(super) fn patient(self) -> Self {
        Self { client: self.client.patient(LONGEST_STATEMENT), ..self }
    }

    /// What reads from the same backend, and its URL.
    pub(super) fn reading(&self) -> (Client, Uri) {
        (self.client.another(), self.setup.url.clone())
    }

    /// The same backend, with a connection of its own.
    pub(super) fn another(&self) -> Self {
        let (setup, client, identity) = (self.setup.clone(), self.client.another(), Arc::clone(&self.identity));
        Self { setup, client, identity, created: HashSet::new() }
    }

    /// Makes a database; the fate of what was sent to it.
    async fn create(&mut self, database: &str) -> Fate {
        self.created.insert(database.to_owned());
        match self.execute(&format!("CREATE DATABASE {}", quoted(database))).await {
            Ok(()) => {
                tracing::info!(database, "made a database that was missing");
                Fate::Transient
            }
            Err(error) => {
                tracing::warn!(database, error, "cannot make a database that is missing: make it there");
                Fate::HoldDestination
            }
        }
    }

    /// Whether the answer says that the database is missing, and it is to be made.
    fn is_to_create(&self, answer: &Answer, destination: &Destination) -> bool {
        let may = self.setup.create_database && !self.created.contains(destination.database());
        may && answer.status.as_u16() == 404 && answer.body.contains("database not found")
    }

    /// An answer for people.
    fn describe(&self, answer: &Answer) -> String {
        let Answer { status, body, .. } = answer;
        if self.expects_tls(answer) {
            return ClientError::SpeaksTls(self.client.address()).to_string();
        }
        format!("{status}: {}", body.trim_end())
    }

    /// Whether the answer is a TLS server's to plain HTTP.
    fn expects_tls(&self, answer: &Answer) -> bool {
        let is_plain = self.setup.url.scheme_str() == Some("http");
        is_plain && answer.status.as_u16() == 400 && EXPECTS_TLS.iter().any(|text| answer.body.contains(text))
    }

    /// What stands before the API's paths.
    fn prefix(&self) -> &str {
        self.setup.url.path().trim_end_matches('/')
    }

    /// The path and query for a destination; none where the API cannot name its precision.
    fn target(&self, destination: &Destination) -> Option<String> {
        let prefix = self.prefix();
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let (database, precision) = (destination.database(), destination.precision());
        match &self.setup.api {
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

    /// The header that says who we are. An operator who mends a refused password does not have to restart anything.
    fn authorization(&self) -> Option<HeaderValue> {
        let mut identity = self.identity();
        if identity.was_refused
            && let Ok(authorization) = self.setup.api.authorization()
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
    /// The header that says who we are, from the secret's file as it is now.
    fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        let text = match self {
            Self::V1 { credentials: None } => return Ok(None),
            Self::V1 { credentials: Some((user, password)) } => {
                return basic(user, password.read().map_err(|error| error.to_string())?.expose()).map(Some);
            }
            Self::V2 { token, .. } => format!("Token {}", token.read().map_err(|error| error.to_string())?.expose()),
        };
        secret_value(&text).map(Some)
    }
}

/// The header of a user with a password.
pub(super) fn basic(user: &str, password: &str) -> Result<HeaderValue, String> {
    secret_value(&format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
}

/// A header that holds a secret.
pub(super) fn secret_value(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text).map_err(|_| "the secret cannot stand in a header".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

impl InfluxConfig {
    /// A write of these lines.
    fn write(&self, authorization: Option<&HeaderValue>, target: &str, parts: &[Bytes]) -> Request<Payload> {
        let mut request = self.request(Method::POST, authorization, target, parts);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        request
    }

    /// A form of these bytes.
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

/// Whether a request was not sent at all.
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

/// One gzip stream of all parts, at the level where its speed is best worth its size; made on a thread of its
/// own, so that other backends' requests go on.
async fn compress(parts: Vec<Bytes>) -> Vec<Bytes> {
    let compressed = tokio::task::spawn_blocking(move || {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(1));
        let written = parts.iter().try_for_each(|part| encoder.write_all(part)).and_then(|()| encoder.finish());
        written.expect("BUG: writing to memory does not fail")
    });
    vec![compressed.await.expect("BUG: compressing does not panic").into()]
}
