//! HTTP listeners: the write endpoints of InfluxDB 1.x, 2.x and 3.x, and what writers ask beside. One plain thread for each.
//!
//! A request names its own destination. It is answered once its lines are safe: a client that was answered 204 need not
//! keep them, whatever happens to this process.
//!
//! | file | owns |
//! |---|---|
//! | `request` | what is asked for: every spelling of every writer |
//! | `forwarded` | whom a request comes from, behind a balancer |
//! | `gate` | who may write |
//! | `destinations` | where lines may go |
//! | `write` | a body's way to the journal |
//! | `shelf` | batches that wait for room |
//! | `query`, `form`, `reading` | readers' questions, and statements |
//! | `statements` | what writers ask at their start |
//! | `kept` | what is not whole, of all connections |
//! | `answer`, `problem` | what is answered, in each endpoint's form |
//! | `act` | what is done for a request |
//! | `serve`, `stream` | connections, and their limits |
//! | `nap` | when the thread lets requests gather |
//!
//! Bounds: see there.

mod act;
mod answer;
mod destinations;
mod form;
mod forwarded;
mod gate;
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

/// How a listener is set up.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// The address to listen on; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// How bytes are taken, and where lines go whose request does not say.
    pub intake: IntakeConfig,
    /// Whether writers are answered.
    pub takes_writes: bool,
    /// Whether readers are answered.
    pub takes_queries: bool,
    /// Databases that are taken, with `*` for any text; empty: all.
    pub databases: Vec<String>,
    /// Databases, at most.
    pub max_databases: usize,
    /// Databases, retention policies and precisions together, at most.
    pub max_destinations: usize,
    /// The bytes of a body, compressed and decompressed, at most.
    pub max_body: u64,
    /// Open connections, at most.
    pub max_connections: usize,
    /// Open connections from one source, at most.
    pub max_connections_per_source: usize,
    /// Whether errors are answered so that no known client drops good lines for them.
    pub is_safe: bool,
    /// Whether bad lines among good ones are an error.
    pub reports_partial: bool,
    /// Networks of proxies that are believed to name the source.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether those begin each connection with a header of PROXY protocol 2.
    pub proxy_protocol: bool,
    /// The certificate; none: plain HTTP.
    pub tls: Option<Arc<Certificate>>,
    /// Who may write; none: everybody.
    pub auth: Option<Arc<Auth>>,
    /// The version to claim; none: the backends'.
    pub version: Option<String>,
}

/// Tells which version of InfluxDB to claim.
#[derive(Clone)]
pub struct Claim(Arc<dyn Fn() -> String + Send + Sync>);

impl Claim {
    /// What this says at the time of each answer.
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

/// What a statement comes to: it is done or owed, or a backend says no.
type Created = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
type Create = dyn Fn(String, bool, Option<HeaderValue>) -> Created + Send + Sync;

/// Runs statements that create something.
#[derive(Clone)]
pub struct Creator(Arc<Create>);

impl Creator {
    /// What this makes of a statement, of whether its sender may administer here, and of its credentials.
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

/// What a listener asks of the rest of the relay.
#[derive(Clone, Debug)]
pub struct Host {
    /// The version to claim.
    pub claim: Claim,
    /// What runs statements.
    pub create: Creator,
    /// What answers readers; none without a backend that does.
    pub reader: Option<Reader>,
}

#[cfg(test)]
impl Host {
    /// One that takes every statement.
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
    /// Binds a listener, or adopts one that was passed for its address. From now on the kernel accepts connections for it.
    ///
    /// # Errors
    /// What the system says, `AddrInUse` if another process has the port.
    pub fn bind(setup: HttpConfig, inherited: &mut Inherited) -> io::Result<Self> {
        let door = Door::bind(setup.listen, THREAD_NAME, inherited.take_stream(setup.listen))?;
        Ok(Self { setup, door })
    }

    /// Starts the thread. It answers for lines that have come so far, and claims the host's version unless another one is set.
    ///
    /// # Errors
    /// What the system says if it gives no thread.
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

    /// Its socket, and what its thread shows.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// Networks whose bytes it takes.
    pub fn allow(&self) -> &Allow {
        &self.setup.intake.allow
    }

    /// Where lines go whose request does not say.
    pub fn destination(&self) -> &Destination {
        &self.setup.intake.destination
    }
}
