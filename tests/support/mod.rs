//! What medium and large tests share: relays on ports of the kernel's choice, scripted backends,
//! conditions.
//!
//! Nothing here sleeps for a result: a wait is for a condition, with a limit that only a defect
//! reaches.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::IntoResponse;
use twinflux::cli::socket::{self, BackendAction};
use twinflux::config::{Backend, Config, Udp};
use twinflux::observe::status::{self, Status};
use twinflux::receive::Inherited;
use twinflux::relay::Relay;

mod left_out;
pub(crate) use left_out::left_out;

/// How long a condition may take: longer than the busiest machine needs.
pub const LIMIT: Duration = Duration::from_secs(180);
/// Datagrams, and bytes, that wait in the relay's socket at most: the smallest receive buffer has
/// room for them.
const WINDOW: (u64, usize) = (100, 64 << 10);

/// Waits until the condition gives a value.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let limit = Instant::now() + LIMIT;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < limit, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A relay in this process, in a folder of its own.
pub struct Running {
    pub relay: Option<Relay>,
    pub target: SocketAddr,
    pub admin: SocketAddr,
    pub folder: tempfile::TempDir,
    pub data_dir: PathBuf,
}

/// A listener on loopback and backends at these URLs, named a, b and so on, that do not linger.
pub fn config(urls: &[String]) -> Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config { shutdown_timeout: Duration::from_secs(2), ..Config::default() };
    config.admin.listen = any;
    config.udp.push(Udp { listen: any, ..Udp::default() });
    for (name, url) in ["a", "b", "c", "d"].iter().zip(urls) {
        let mut backend = Backend::new((*name).to_owned(), url.parse().expect("a URL"));
        backend.linger = Duration::from_millis(10);
        config.backend.push(backend);
    }
    config
}

impl Running {
    pub fn start(config: Config) -> Self {
        Self::try_start(config).unwrap_or_else(|error| panic!("{error}"))
    }

    /// With the configuration's own data folder, where that is not the default one.
    #[expect(clippy::needless_pass_by_value, reason = "as the others")]
    pub fn start_in(config: Config) -> Self {
        wait_for("the data folder's lock", || match Self::try_start_in(config.clone()) {
            Ok(relay) => Some(relay),
            // Another test's program has every file of this process, until it begins: a lock as
            // well.
            Err(error) if error.contains("in use by another process") => None,
            Err(error) => panic!("{error}"),
        })
    }

    pub fn try_start_in(config: Config) -> Result<Self, String> {
        Self::start_with(config, tempfile::tempdir().expect("folder"))
    }

    pub fn try_start(mut config: Config) -> Result<Self, String> {
        let folder = tempfile::tempdir().expect("folder");
        config.data_dir = folder.path().join("data");
        Self::start_with(config, folder)
    }

    fn start_with(mut config: Config, folder: tempfile::TempDir) -> Result<Self, String> {
        if config.data_dir == Config::default().data_dir {
            config.data_dir = folder.path().join("data");
        }
        let relay = Relay::start(&config, Inherited::default()).map_err(|error| error.to_string())?;
        let (target, admin) = (relay.view().listeners[0].address(), relay.admin());
        Ok(Self { relay: Some(relay), target, admin, folder, data_dir: config.data_dir })
    }

    /// The address of the first listener of this kind.
    pub fn listener(&self, kind: &str) -> SocketAddr {
        let listeners = &self.relay.as_ref().expect("running").view().listeners;
        listeners.iter().find(|listener| listener.kind() == kind).expect("a listener of this kind").address()
    }

    pub fn status(&self) -> Status {
        let status = self.relay.as_ref().expect("running").view().status();
        for backend in &status.backends {
            assert_eq!(backend.difference(status.accepted_lines), 0, "the ledger balances: {status:?}");
        }
        status
    }

    pub fn backend(&self, name: &str) -> status::Backend {
        let backends = self.status().backends;
        backends.into_iter().find(|backend| backend.name == name).expect("a backend of this name")
    }

    /// Sends each payload as a datagram, and waits until the relay has taken as many. However slow
    /// the relay is, the kernel drops none.
    pub fn send<P: AsRef<[u8]>>(&self, payloads: &[P]) {
        // Others may send, too: more may be taken than is expected.
        let mut taken = self.taken();
        let mut expected = taken;
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let mut bytes = 0;
        for payload in payloads {
            let payload = payload.as_ref();
            if expected.saturating_sub(taken) >= WINDOW.0 || (bytes > 0 && bytes + payload.len() > WINDOW.1) {
                (taken, bytes) = (self.wait_taken(expected), 0);
            }
            socket.send_to(payload, self.target).expect("send");
            (expected, bytes) = (expected + 1, bytes + payload.len());
        }
        self.wait_taken(expected);
    }

    fn wait_taken(&self, expected: u64) -> u64 {
        wait_for("the datagrams to be taken", || Some(self.taken()).filter(|taken| *taken >= expected))
    }

    fn taken(&self) -> u64 {
        self.status().receive[0].datagrams
    }

    /// Waits until each of the datagrams sent so far to the first listener is taken, or counted as
    /// dropped by the kernel; returns the lines accepted.
    pub fn wait_counted(&self, sent: u64) -> u64 {
        wait_for("every datagram to be taken or counted", || {
            let status = self.status();
            let receive = &status.receive[0];
            (receive.datagrams + receive.kernel_dropped == sent).then_some(status.accepted_lines)
        })
    }

    /// Waits until a backend has nothing pending and has delivered as many lines.
    pub fn wait_delivered(&self, name: &str, lines: u64) {
        wait_for(&format!("{name} to have {lines} lines"), || {
            let backend = self.backend(name);
            (backend.delivered_lines >= lines && backend.pending_lines == 0).then_some(())
        });
        assert_eq!(self.backend(name).delivered_lines, lines);
    }

    pub fn wait_state(&self, name: &str, state: &str) {
        wait_for(&format!("{name} to be {state}"), || (self.backend(name).state == state).then_some(()));
    }

    /// An answer of the admin listener: status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        get(self.admin, path)
    }

    /// Has what has changed read again, as SIGHUP does.
    pub fn reload(&self) {
        self.relay.as_ref().expect("running").reload().run().ok();
    }

    /// Has it do something with a backend, through the control socket.
    pub fn change(&self, name: &str, action: BackendAction) -> socket::Answer {
        let request = socket::Request::Backend { name: name.to_owned(), action };
        socket::ask(&self.data_dir, &request).expect("an answer")
    }

    pub fn stop(&mut self) -> Status {
        self.relay.take().expect("running").shutdown()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(relay) = self.relay.take() {
            relay.shutdown();
        }
    }
}

/// An address where nobody listens now.
pub fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address")
}

/// A plain HTTP GET.
pub fn get(address: SocketAddr, path: &str) -> (u16, String) {
    http(address, &format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n"))
}

/// Sends a request's text, and reads the answer to its end.
pub fn http(address: SocketAddr, request: &str) -> (u16, String) {
    http_bytes(address, request.as_bytes())
}

/// The same with a body that is no text.
pub fn http_bytes(address: SocketAddr, request: &[u8]) -> (u16, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(LIMIT)).expect("timeout");
    stream.write_all(request).expect("send");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    (head.split(' ').nth(1).expect("a status").parse().expect("a number"), body.to_owned())
}

/// A write request as a scripted backend saw it.
#[derive(Clone, Debug)]
pub struct Request {
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Request {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }
}

/// A scripted answer: status, headers, body.
pub type Answer = (u16, Vec<(&'static str, String)>, String);
type Script = Box<dyn Fn(usize, &Request) -> Answer + Send + Sync>;

/// A backend that answers as a function says, and keeps what it was sent. Pings are answered apart,
/// and not kept.
#[derive(Clone)]
pub struct Scripted {
    shared: Arc<(Script, Mutex<Vec<Request>>)>,
    pub address: SocketAddr,
    _runtime: Arc<tokio::runtime::Runtime>,
}

/// 204 without a body.
pub fn no_content() -> Answer {
    (204, Vec::new(), String::new())
}

/// An error in InfluxDB 1.x's shape.
pub fn influx_error(status: u16, text: &str) -> Answer {
    (status, Vec::new(), serde_json::json!({ "error": text }).to_string())
}

impl Scripted {
    /// `script` gets each request with its number from 0.
    pub fn start(script: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), script)
    }

    /// At the address of one that is no more: the same server, for whoever knows it by that.
    pub fn start_at(listen: SocketAddr, script: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = Arc::new(runtime.expect("runtime"));
        let shared: Arc<(Script, Mutex<Vec<Request>>)> = Arc::new((Box::new(script), Mutex::default()));
        let listener = runtime.block_on(tokio::net::TcpListener::bind(listen)).expect("bind");
        let address = listener.local_addr().expect("address");
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let router = router.layer(axum::extract::DefaultBodyLimit::max(64 << 20));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { shared, address, _runtime: runtime }
    }

    /// One that accepts everything.
    pub fn accepting() -> Self {
        Self::start(|_, _| no_content())
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.1.lock().expect("no panic").clone()
    }

    /// The bodies of all requests, one behind the other.
    pub fn text(&self) -> String {
        self.requests().iter().map(Request::text).collect()
    }
}

async fn answer(
    State(shared): State<Arc<(Script, Mutex<Vec<Request>>)>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    if uri.path().ends_with("/ping") {
        let version =
            HeaderMap::from_iter([("x-influxdb-version".parse().expect("a name"), "1.8.10".parse().expect("text"))]);
        return (StatusCode::NO_CONTENT, version, String::new());
    }
    let request = Request { uri, headers, body };
    let number = {
        let mut requests = shared.1.lock().expect("no panic");
        requests.push(request.clone());
        requests.len() - 1
    };
    let (status, headers, body) = shared.0(number, &request);
    let headers: HeaderMap = headers
        .into_iter()
        .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
        .collect();
    (StatusCode::from_u16(status).expect("a status"), headers, body)
}
