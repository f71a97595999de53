//! A connection to one HTTP server, with a limit on everything: connecting, the first byte, the
//! whole answer, and its size, including everything a server sends before its end.
//!
//! Never follows a redirect, never decodes, never keeps more than one connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{DATE, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::ext::on_informational;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{timeout, timeout_at};
use tokio_rustls::client::TlsStream;

use super::addresses::Addresses;
use super::opening::{Heard, Listening, Opening};

/// Maximum length of an answer's body that is read.
pub(crate) const ANSWER_BYTES: usize = 64 * 1024;
/// Maximum number of bytes on the wire before an answer's body: its head, and 1xx answers before
/// it. The framing of the body may have as many again.
const HEAD_BYTES: usize = 64 * 1024;
/// Maximum size of the buffer for an answer, in bytes: its head, or the part of its body that was
/// read and not passed on.
const BUFFER_BYTES: usize = 64 * 1024;
/// Maximum size of a TLS handshake, in bytes on the wire: enough for a chain of many certificates.
const HANDSHAKE_BYTES: usize = 256 * 1024;
/// Maximum number of 1xx answers before the final one: the client does not ask for `100 Continue`,
/// and hints are for browsers.
const MAX_INFORMATIONAL: u32 = 16;

/// Why there is no complete answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No connection: refused, unreachable, unknown name.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, io::Error),
    /// No connection in time.
    #[error("no connection to {0} within {1:?}")]
    ConnectTimeout(String, Duration),
    /// The URL says `https`, but the server speaks plain HTTP.
    #[error("{0} speaks plain HTTP: write http:// in its url")]
    SpeaksPlain(String),
    /// The URL says `http`, but the server speaks TLS.
    #[error("{0} speaks TLS: write https:// in its url")]
    SpeaksTls(String),
    /// The server's certificate is not trusted.
    #[error("TLS to {0} failed: {1}; check ca_file and the server's certificate")]
    Tls(String, io::Error),
    /// The connection ended before the answer.
    #[error("the connection to {0} ended before the answer: {1}")]
    Broken(String, hyper::Error),
    /// The server sends without ending the answer.
    #[error("{0} sent 64 KiB, or 16 answers of 1xx, without an answer's end; is it an InfluxDB?")]
    Endless(String),
    /// No answer in time.
    #[error("{0} took the connection and did not answer within {1:?}")]
    Stalled(String, Duration),
}

/// The used parts of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The text of the header `Retry-After`.
    pub retry_after: Option<String>,
    /// The text of the header `X-Influxdb-Version`.
    pub version: Option<String>,
    /// The header `Date`.
    pub date: Option<SystemTime>,
    /// The first [`ANSWER_BYTES`] of the body.
    pub body: String,
}

/// The client of one server.
#[derive(Debug)]
pub(crate) struct Client {
    host: String,
    port: u16,
    /// Whether the URL names the port.
    is_port_named: bool,
    /// Shared by all clients of the server.
    addresses: Arc<Mutex<Addresses>>,
    /// The TLS configuration, and the name that the certificate must be for.
    tls: Option<(Arc<ClientConfig>, String)>,
    times: Times,
    connection: Option<Connection>,
}

/// Time limits.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Connecting, TLS included.
    pub connect: Duration,
    /// From the start of a request to the first byte of its answer, and again to the answer's end.
    pub answer: Duration,
    /// Maximum time that a connection is used.
    pub lifetime: Duration,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Payload>,
    heard: Heard,
    opened: Instant,
    task: JoinHandle<()>,
}

impl Connection {
    /// Sends a request whose answer may have any length, and waits for the answer's head.
    ///
    /// # Errors
    /// The connection ended before, or the head is too long.
    pub(crate) async fn ask(&mut self, request: Request<Payload>) -> Result<Response<Incoming>, hyper::Error> {
        self.heard.grant(HEAD_BYTES);
        let answered = self.sender.send_request(request).await;
        self.heard.grant(usize::MAX);
        answered
    }

    /// Returns whether another request can be sent.
    pub(crate) async fn is_ready(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The task would run for as long as a hung peer keeps its end open.
        self.task.abort();
    }
}

impl Client {
    /// Creates a client for the host and port of this URL, over TLS if there is a configuration.
    /// The configuration comes with the certificate's name if that is not the host.
    pub(crate) fn new(url: &Uri, tls: Option<(Arc<ClientConfig>, Option<String>)>, times: Times) -> Self {
        let usual_port = if tls.is_some() { 443 } else { 80 };
        let port = url.port_u16().unwrap_or(usual_port);
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let tls = tls.map(|(config, name)| (config, name.unwrap_or_else(|| host.clone())));
        let is_port_named = url.port_u16().is_some();
        let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let addresses = Arc::new(Mutex::new(Addresses::new(authority)));
        Self { host, port, is_port_named, addresses, tls, times, connection: None }
    }

    /// Sends a request and reads its answer. If a kept connection turns out to be closed, `request`
    /// is called again for an immediate second try.
    ///
    /// # Errors
    /// What went wrong. The connection is closed then; the request may or may not have arrived.
    pub(crate) async fn send(&mut self, request: impl Fn() -> Request<Payload>) -> Result<Answer, ClientError> {
        if let Some(mut kept) = self.connection.take()
            && kept.opened.elapsed() < self.times.lifetime
            && matches!(timeout(self.times.answer, kept.sender.ready()).await, Ok(Ok(())))
        {
            match self.exchange(kept, request()).await {
                Err(ClientError::Broken(..)) => {}
                ended => return ended,
            }
        }
        let fresh = self.connect().await?;
        self.exchange(fresh, request()).await
    }

    async fn exchange(
        &mut self,
        mut connection: Connection,
        mut request: Request<Payload>,
    ) -> Result<Answer, ClientError> {
        let heard = connection.heard.clone();
        heard.grant(HEAD_BYTES);
        let (informational, of_callback) = (AtomicU32::new(0), heard.clone());
        on_informational(&mut request, move |_| {
            if informational.fetch_add(1, Ordering::Relaxed) >= MAX_INFORMATIONAL {
                of_callback.grant(0);
            }
        });
        let broken = |error| match heard.opening() {
            Opening::Tls if self.tls.is_none() => ClientError::SpeaksTls(self.address()),
            _ if heard.is_exhausted() => ClientError::Endless(self.address()),
            _ => ClientError::Broken(self.address(), error),
        };
        let response = timeout(self.times.answer, connection.sender.send_request(request)).await;
        let response =
            response.map_err(|_| ClientError::Stalled(self.address(), self.times.answer))?.map_err(broken)?;
        heard.grant(HEAD_BYTES + ANSWER_BYTES);
        let answer = timeout(self.times.answer, read_answer(response)).await;
        let (answer, is_whole) =
            answer.map_err(|_| ClientError::Stalled(self.address(), self.times.answer))?.map_err(broken)?;
        if is_whole {
            self.connection = Some(connection);
        }
        Ok(answer)
    }

    /// Opens a connection for the caller.
    ///
    /// # Errors
    /// Why the connection failed.
    pub(crate) async fn connect(&self) -> Result<Connection, ClientError> {
        let limit = tokio::time::Instant::now() + self.times.connect;
        let late = |_| ClientError::ConnectTimeout(self.address(), self.times.connect);
        // The server may have moved.
        let resolved = timeout_at(limit, async { self.addresses.lock().await.all().await }).await.map_err(late)?;
        let addresses = resolved.map_err(|error| self.not_connected(error))?;
        let opened = timeout_at(limit, self.open(&addresses)).await.map_err(late).flatten();
        if let (Err(_), [first, ..]) = (&opened, &addresses[..]) {
            self.addresses.lock().await.avoid(*first);
        }
        opened
    }

    /// Returns when the server's certificate expires, using a separate connection; `None` without
    /// TLS.
    ///
    /// # Errors
    /// Why the connection failed.
    pub(crate) async fn certificate_expires(&self) -> Result<Option<SystemTime>, ClientError> {
        let Some(tls) = &self.tls else { return Ok(None) };
        let limit = tokio::time::Instant::now() + self.times.connect;
        let late = |_| ClientError::ConnectTimeout(self.address(), self.times.connect);
        let seen = async {
            let addresses = self.addresses.lock().await.all().await.map_err(|error| self.not_connected(error))?;
            let (stream, heard) = self.dial(&addresses).await?;
            let encrypted = self.encrypt(tls, stream, &heard).await?;
            let certificates = encrypted.get_ref().1.peer_certificates();
            Ok(certificates.and_then(|chain| super::tls::expires(chain.first()?).ok()))
        };
        timeout_at(limit, seen).await.map_err(late)?
    }

    async fn open(&self, addresses: &[SocketAddr]) -> Result<Connection, ClientError> {
        let (stream, heard) = self.dial(addresses).await?;
        match &self.tls {
            Some(tls) => {
                let encrypted = self.encrypt(tls, stream, &heard).await?;
                self.handshake(encrypted, heard).await
            }
            None => self.handshake(stream, heard).await,
        }
    }

    async fn dial(&self, addresses: &[SocketAddr]) -> Result<(Listening, Heard), ClientError> {
        let failed = |error| self.not_connected(error);
        let stream = TcpStream::connect(addresses).await.map_err(failed)?;
        set_options(&stream, self.times.answer).map_err(failed)?;
        let stream = Listening::new(stream, HANDSHAKE_BYTES);
        let heard = stream.heard();
        Ok((stream, heard))
    }

    /// Starts TLS on a stream.
    async fn encrypt(
        &self,
        (config, name): &(Arc<ClientConfig>, String),
        stream: Listening,
        heard: &Heard,
    ) -> Result<TlsStream<Listening>, ClientError> {
        let failed = |error| self.not_connected(error);
        let name = ServerName::try_from(name.clone()).map_err(|error| failed(io::Error::other(error)))?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
        match connector.connect(name, stream).await {
            Ok(stream) => Ok(stream),
            Err(_) if heard.opening() == Opening::Http => Err(ClientError::SpeaksPlain(self.address())),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(ClientError::Tls(self.address(), error)),
            Err(error) => Err(failed(error)),
        }
    }

    async fn handshake<S>(&self, stream: S, heard: Heard) -> Result<Connection, ClientError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = http1::Builder::new().max_buf_size(BUFFER_BYTES).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| ClientError::Broken(self.address(), error))?;
        // Errors of the connection are returned by the request in progress.
        let task = tokio::spawn(async move { drop(connection.await) });
        Ok(Connection { sender, heard, opened: Instant::now(), task })
    }

    fn not_connected(&self, error: io::Error) -> ClientError {
        ClientError::Connect(self.address(), self.explain(error))
    }

    /// Adds the probable cause if a port that the URL does not name refuses the connection.
    fn explain(&self, error: io::Error) -> io::Error {
        if error.kind() != io::ErrorKind::ConnectionRefused || self.is_port_named {
            return error;
        }
        io::Error::new(error.kind(), format!("{error}; the url names no port, and an InfluxDB's is 8086"))
    }

    /// Creates a client of the same server with a connection of its own.
    pub(crate) fn another(&self) -> Self {
        let Self { host, port, is_port_named, addresses, tls, times, .. } = self;
        Self {
            host: host.clone(),
            port: *port,
            is_port_named: *is_port_named,
            addresses: Arc::clone(addresses),
            tls: tls.clone(),
            times: *times,
            connection: None,
        }
    }

    /// Sets a longer time limit for answers.
    pub(crate) fn patient(self, answer: Duration) -> Self {
        let times = Times { answer, ..self.times };
        Self { times, ..self }
    }

    /// Returns the server's host and port.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// Sets options that detect a half-open connection, during a request and between requests.
fn set_options(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(timeout))?;
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    socket.set_tcp_keepalive(&keepalive.with_retries(3))
}

/// Reads an answer up to the maximum length; returns whether that was all of it.
async fn read_answer(response: Response<Incoming>) -> Result<(Answer, bool), hyper::Error> {
    let status = response.status();
    let header = |value: Option<&HeaderValue>| value.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let retry_after = header(response.headers().get(RETRY_AFTER));
    let version = header(response.headers().get("x-influxdb-version"));
    let date = header(response.headers().get(DATE)).and_then(|text| httpdate::parse_http_date(&text).ok());
    let mut incoming = response.into_body();
    let mut body = Vec::new();
    let mut is_whole = true;
    while let Some(frame) = incoming.frame().await {
        if let Some(data) = frame?.data_ref() {
            let room = ANSWER_BYTES - body.len();
            body.extend_from_slice(&data[..data.len().min(room)]);
            if data.len() > room {
                is_whole = false;
                break;
            }
        }
    }
    Ok((Answer { status, retry_after, version, date, body: String::from_utf8_lossy(&body).into_owned() }, is_whole))
}

/// A request's body: the records' own bytes, one after another, without copying.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    parts: VecDeque<Bytes>,
    bytes: u64,
}

impl FromIterator<Bytes> for Payload {
    fn from_iter<I: IntoIterator<Item = Bytes>>(parts: I) -> Self {
        let parts: VecDeque<Bytes> = parts.into_iter().collect();
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        Self { parts, bytes }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.parts.pop_front();
        self.bytes -= part.as_ref().map_or(0, |part| part.len() as u64);
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_tells_where_the_url_names_no_port() {
        let refused = |url: &str, kind| {
            let second = Duration::from_secs(1);
            let times = Times { connect: second, answer: second, lifetime: second };
            let client = Client::new(&url.parse().expect("a URL"), None, times);
            client.explain(io::Error::new(kind, "refused")).to_string()
        };
        for (url, kind, is_told) in [
            ("http://influx", io::ErrorKind::ConnectionRefused, true),
            ("http://influx:80", io::ErrorKind::ConnectionRefused, false),
            ("http://influx", io::ErrorKind::HostUnreachable, false),
        ] {
            let error = refused(url, kind);
            assert!(error.starts_with("refused") && error.contains("is 8086") == is_told, "{url}: {error}");
        }
    }
}
