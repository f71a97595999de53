//! HTTP listeners: the write endpoints of InfluxDB 1.x, 2.x and 3.x, and the other requests that
//! writers send. Each listener has one thread.
//!
//! A request names its own destination. It is answered once its lines are safe: a client that
//! receives 204 may discard them, whatever happens to this process.
//!
//! | file | owns |
//! |---|---|
//! | `request` | parses requests: every spelling of every writer |
//! | `forwarded` | the source of a request behind a balancer |
//! | `gate` | authentication and authorization |
//! | `destinations` | allowed databases and known destinations |
//! | `write`, `inflate` | the path of a body to the journal |
//! | `shelf` | batches that wait for capacity |
//! | `query`, `form`, `reading` | readers' queries, and statements |
//! | `statements` | the statements that writers send at their start |
//! | `kept` | memory of unfinished heads and lines, over all connections |
//! | `answer`, `problem` | answers and errors in each endpoint's format |
//! | `act` | handles a request |
//! | `serve`, `stream` | connections and their limits |
//! | `nap` | when the thread lets requests gather |
//!
//! Bounds: see there.

mod act;
mod answer;
mod destinations;
mod form;
mod forwarded;
mod gate;
mod inflate;
mod kept;
mod logs;
mod nap;
mod problem;
mod query;
mod reading;
mod request;
mod serve;
mod shelf;
mod statements;
mod stream;
mod under_way;
mod write;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use http::HeaderValue;
use ipnet::IpNet;

use super::{Door, Inherited};
use crate::auth::Auth;
use crate::batch::{Destination, Limits, Pool, Step, Submit};
use crate::intake::{Allow, Intake, IntakeConfig};
use crate::net::tls::Certificate;
pub use reading::{Order, Question, Reader, Refused, Reply};
use shelf::Shelf;

/// The name of the thread.
const THREAD_NAME: &str = "http";

/// Configuration of a listener.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// The address to listen on; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// How bytes are taken, and the destination of requests that name none.
    pub intake: IntakeConfig,
    /// Whether write requests are accepted.
    pub takes_writes: bool,
    /// Whether queries are accepted.
    pub takes_queries: bool,
    /// Allowed databases, with `*` as a wildcard. Empty: all.
    pub databases: Vec<String>,
    /// Maximum number of databases.
    pub max_databases: usize,
    /// Maximum number of destinations: combinations of database, retention policy and precision.
    pub max_destinations: usize,
    /// Maximum size of a body in bytes, both compressed and decompressed.
    pub max_body: u64,
    /// Maximum number of open connections.
    pub max_connections: usize,
    /// Maximum number of open connections per source.
    pub max_connections_per_source: usize,
    /// Whether errors are answered such that no known client drops good lines because of them.
    pub is_safe: bool,
    /// Whether bad lines among good ones are answered as an error.
    pub reports_partial: bool,
    /// Networks of proxies that are trusted to name the source.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether these proxies begin each connection with a PROXY protocol 2 header.
    pub proxy_protocol: bool,
    /// The TLS certificate. `None`: plain HTTP.
    pub tls: Option<Arc<Certificate>>,
    /// Users and their rights. `None`: everybody may do everything.
    pub auth: Option<Arc<Auth>>,
    /// The InfluxDB version to claim. `None`: the backends' version.
    pub version: Option<String>,
}

/// Provides the InfluxDB version to claim.
#[derive(Clone)]
pub struct Claim(Arc<dyn Fn() -> String + Send + Sync>);

impl Claim {
    /// Wraps a function that is called for each answer.
    pub fn new(claim: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self(Arc::new(claim))
    }

    fn says(&self) -> String {
        (self.0)()
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Claim").field(&self.says()).finish()
    }
}

/// Why a statement was not run: in a backend's words, or why it cannot be owed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotCreated(String);

impl NotCreated {
    /// Creates the error with the message for the client.
    pub fn new(message: impl fmt::Display) -> Self {
        Self(message.to_string())
    }
}

/// Outcome of a statement: done or owed, or refused by a backend.
type Created = Pin<Box<dyn Future<Output = Result<(), NotCreated>> + Send>>;
type Create = dyn Fn(String, bool, Option<HeaderValue>) -> Created + Send + Sync;

/// Runs statements that create something.
#[derive(Clone)]
pub struct Creator(Arc<Create>);

impl Creator {
    /// Wraps a function of a statement, whether its sender may administer here, and the sender's
    /// credentials.
    pub fn new(create: impl Fn(String, bool, Option<HeaderValue>) -> Created + Send + Sync + 'static) -> Self {
        Self(Arc::new(create))
    }

    fn run(&self, statement: String, may_administer: bool, authorization: Option<HeaderValue>) -> Created {
        (self.0)(statement, may_administer, authorization)
    }
}

impl fmt::Debug for Creator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Creator")
    }
}

/// What a listener needs from the rest of the relay.
#[derive(Clone, Debug)]
pub struct Host {
    /// The version to claim.
    pub claim: Claim,
    /// Runs statements.
    pub create: Creator,
    /// Answers queries. `None` if no backend can.
    pub reader: Option<Reader>,
}

#[cfg(test)]
impl Host {
    /// A host that accepts every statement.
    pub(crate) fn of_test() -> Self {
        Self {
            claim: Claim::new(|| "1.8.10".to_owned()),
            create: Creator::new(|_, _, _| Box::pin(async { Ok(()) })),
            reader: None,
        }
    }
}

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    setup: HttpConfig,
    door: Door,
}

impl Listener {
    /// Binds a listener, or adopts a socket that was passed for its address. From now on the kernel
    /// accepts connections for it.
    ///
    /// # Errors
    /// The system's error; `AddrInUse` if another process has the port.
    pub fn bind(setup: HttpConfig, inherited: &mut Inherited) -> io::Result<Self> {
        let door = Door::bind(setup.listen, THREAD_NAME, inherited.take_stream(setup.listen))?;
        Ok(Self { setup, door })
    }

    /// Starts the thread. `step` is the stage that lines must reach before they are answered; the
    /// host's version is claimed unless the configuration sets another.
    ///
    /// # Errors
    /// The system's error if it cannot start a thread.
    pub fn start<H>(
        &self,
        pool: &Arc<Pool>,
        limits: Limits,
        out: &H,
        (step, host): (Step, &Host),
    ) -> io::Result<JoinHandle<()>>
    where
        H: Submit + Clone + Sync + 'static,
    {
        let address = self.door.address();
        let shelf = Shelf::new(out.clone());
        let shown = Arc::clone(&self.door.shown);
        let intake = Intake::new((&self.setup.intake, address), shown, pool, limits, shelf.clone());
        let claim = match self.setup.version.clone() {
            Some(version) => Claim::new(move || version.clone()),
            None => host.claim.clone(),
        };
        let reader = host.reader.clone().filter(|_| self.setup.takes_queries);
        let parts = serve::ServeArgs {
            setup: HttpConfig { listen: address, ..self.setup.clone() },
            host: Host { claim, create: host.create.clone(), reader },
            open: Arc::clone(&self.door.open),
            stop: self.door.stopping(),
            pulse: self.door.pulse(),
            naps: Arc::default(),
            shelf,
            intake,
            step,
        };
        let naps = Arc::clone(&parts.naps);
        let nap = move || naps.due(Instant::now()).map_or((), std::thread::sleep);
        self.door.start(nap, move |runtime, socket| serve::run(runtime, socket, parts))
    }

    /// The socket and the thread's published state.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// Networks whose bytes are accepted.
    pub fn allow(&self) -> &Allow {
        &self.setup.intake.allow
    }

    /// The destination of requests that name none.
    pub fn destination(&self) -> &Destination {
        &self.setup.intake.destination
    }
}
