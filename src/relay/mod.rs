//! The wiring: which parts exist, the order in which they start and stop, and the threads they run
//! on.
//!
//! | thread | what it does | waits for |
//! |---|---|---|
//! | `udp-N` | one socket: receive, scan, batch | datagrams |
//! | `http` | a listener's requests: receive, decompress, batch, answer | sockets, the ring, the journal |
//! | `tcp` | a listener's connections: receive, convert, batch | sockets, the ring |
//! | `journal` | numbers batches | the ring |
//! | `journal-write` | writes records and cursors to the disk | records, the disk |
//! | `journal-sync` | syncs them, removes what all cursors have passed | a time, the disk |
//! | `deliver` | flushers (tokio) | sockets, timers |
//! | `admin` | the admin listener (tokio) | sockets, timers |
//! | `log` | writes the log (the program's, [`crate::sys::log`]) | lines, the reader |
//!
//! Start: reads secrets and certificates, locks the data folder, binds the sockets (from then on
//! the kernel queues), opens the journal, and starts the threads from the backends' end to the
//! sockets' end. Stop goes the other way: workers empty their sockets, the journal's thread empties
//! the ring, flushers deliver what they can in the given time, and the rest is written and synced.

mod ending;
mod error;
pub mod notify;
mod opening;
mod plan;
mod reading;
mod reload;

pub use ending::{HandOverError, Legacy};
pub use error::{BoxError, StartError};
pub use plan::{CHANGEABLE, Successor};
use reload::Running;
pub use reload::{Reload, ReloadError};

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;

use crate::batch::{Builder, Destination, Limits, Pool, Step};
use crate::cli::socket::{self, SocketFile};
use crate::config::Config;
use crate::config::data_dir::{DataDir, LockError};
use crate::deliver::dead_letters::DeadLetters;
use crate::deliver::statements::{Asker, Statements};
use crate::deliver::{self, Around, Backend, Health};
use crate::journal::disk::{DiskThreads, Folder, Storage};
use crate::journal::ring::Producer;
use crate::journal::{BackendId, Durability, Journal, ring};
use crate::net::tls::Certificate;
use crate::observe::admin::{Access, Admin};
use crate::observe::history::History;
use crate::observe::view::{BackendView, Reports, View};
use crate::observe::watch as observer;
use crate::pair::Pair;
use crate::query::Readers;
use crate::receive::Inherited;
use crate::receive::http::{Claim, Creator, Host, NotCreated};
use crate::receive::{self, Listener, Pulse, files, tcp};

/// Capacity of the ring between the workers and the journal's thread in batches: more than a second
/// of batches that are sealed by age, and at most 16 MiB of full ones.
const RING_BATCHES: usize = 64;
/// Maximum size of a batch in bytes: large enough that submitting it costs nothing per line, small
/// enough to stay in a processor's cache from the scan to the send.
const BATCH_BYTES: u64 = 256 * 1024;
/// How long a line waits in a worker for others, approximately. Received lines must be on the disk
/// within 50 ms, and each batch wakes two threads.
const BATCH_AGE: Duration = Duration::from_millis(45);
/// Number of idle buffers that are kept: as many as are in use with two backends at full speed.
const IDLE_BUFFERS: usize = 16;
/// The version of InfluxDB to claim while no backend's is known: the last 1.x version, which every
/// client knows.
const UNKNOWN_VERSION: &str = "1.8.10";

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    runtime: Runtime,
    admin_runtime: Runtime,
    view: View,
    reload: Arc<Reload>,
    admin: SocketAddr,
    /// The workers' threads, each with the index of its listener.
    workers: Vec<(usize, JoinHandle<()>)>,
    journal_thread: JoinHandle<()>,
    disk_threads: Option<DiskThreads>,
    ring: Producer,
    journal_stop: Arc<AtomicBool>,
    flushers: Vec<tokio::task::JoinHandle<()>>,
    closing: watch::Sender<bool>,
    hurry: watch::Sender<bool>,
    shutdown_timeout: Duration,
    _socket_file: Option<SocketFile>,
    _data_dir: Arc<DataDir>,
}

impl Relay {
    /// Starts everything, on its own sockets and on those that were passed or left by a
    /// predecessor.
    ///
    /// # Errors
    /// Why it cannot start. If the system cannot start a thread, those already started end with the
    /// process.
    pub fn start(config: &Config, legacy: impl Into<Legacy>) -> Result<Self, StartError> {
        Self::start_on(config, legacy, |folder| Ok(Arc::new(Folder::open(folder)?)))
    }

    /// As [`Self::start`], with the journal on the storage that `open` creates for its folder. For
    /// tests with faulty disks.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(
        config: &Config,
        legacy: impl Into<Legacy>,
        open: impl FnOnce(&Path) -> io::Result<Arc<dyn Storage>>,
    ) -> Result<Self, StartError> {
        let mut legacy = legacy.into();
        let setups = config.backends();
        let backends = setups.iter().cloned().map(Backend::new).collect::<Result<Vec<_>, _>>()?;
        let data_dir = Arc::new(lock_data_dir(&config.data_dir)?);
        for warning in config.warnings() {
            tracing::warn!("{warning}");
        }
        let auth = config.auth().map_err(|error| StartError::Config(error.into()))?.map(Arc::new);
        let setups_of_listeners = config.listeners(auth.as_ref());
        let mut setups_of_listeners = setups_of_listeners.map_err(|error| StartError::Config(error.into()))?;
        let admin_certificate = config.admin_certificate().map_err(|error| StartError::Config(error.into()))?;
        let certificates = setups_of_listeners.iter().filter_map(|setup| setup.certificate().cloned());
        let certificates = certificates.chain(admin_certificate.clone());
        let access = Access {
            hosts: config.admin.hosts.clone(),
            certificate: admin_certificate,
            auth: auth.clone().filter(|_| config.admin.users),
        };
        let certificates: Vec<Arc<Certificate>> = certificates.collect();
        reload::warn(auth.as_ref(), &certificates, &setups_of_listeners);
        let admin_connections = files::share(&mut setups_of_listeners);
        if setups_of_listeners.iter().any(|setup| setup.intake().splits_charts_at_dots()) {
            tracing::info!(
                "dots in the name of a Netdata chart (ping_h.host_rtt_10.0.0.1) cannot be told from others in Graphite's and \
                 OpenTSDB's formats: let hosts with such charts send JSON ([json:NAME] in exporting.conf)"
            );
        }
        let listeners = setups_of_listeners.into_iter().map(|setup| bind(setup, &mut legacy.sockets));
        let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
        for (kind, name, address) in legacy.sockets.left_over() {
            tracing::warn!(
                name,
                "no listener has the address of this passed socket: set {kind}.listen = \"{address}\", or what comes there waits \
                 for nobody"
            );
        }
        let runtime = start_runtime("deliver").map_err(StartError::Thread)?;
        let admin_runtime = start_runtime("admin").map_err(StartError::Thread)?;
        let (admin, address) = admin_runtime.block_on(bind_admin(config.admin.listen))?;
        let journal = opening::open(config, open)?;
        let (ring, consumer) = ring(RING_BATCHES);
        let letters = open_dead_letters(config)?;
        let names: Vec<&str> = config.backend.iter().map(|backend| backend.name.as_str()).collect();
        let statements = Statements::open(&config.data_dir, &journal, &names)
            .map_err(|error| StartError::DataDir(config.data_dir.display().to_string(), error))?;
        let statements = Arc::new(statements);
        let healths: Vec<Arc<Health>> = names.iter().map(|name| legacy.health(name)).collect();
        let pair = opening::pair(config, &journal)?;
        let readers = Arc::new(reading::readers(config, &backends, &healths, (&journal, pair.clone()))?);
        for name in &legacy.closed {
            readers.open(name, false);
        }
        let behind = (&letters, &statements, &readers);
        let view = view(config, listeners, &journal, &ring, (&healths, behind), (certificates.clone(), pair.clone()));
        let running = Running {
            config: config.clone(),
            listeners: Arc::clone(&view.listeners),
            readers: Arc::clone(&readers),
            admin: address,
        };
        let reload = Arc::new(Reload::new(auth, certificates, running));
        drop(admin_runtime.spawn(admin.serve(view.clone(), admin_connections, access)));
        drop(admin_runtime.spawn(Arc::clone(&reload).watch()));
        drop(admin_runtime.spawn(observer::run(view.clone())));
        drop(pair.map(|pair| admin_runtime.spawn(pair.watch())));
        let socket_file = {
            let reload = Arc::clone(&reload);
            let succeed = Arc::clone(&reload);
            let reload: socket::Reloader = Arc::new(move || reload.run().map_err(Into::into));
            let succeed: socket::Successor = Arc::new(move || succeed.succeed());
            let parts = socket::SocketArgs { view: view.clone(), letters: Arc::clone(&letters), reload, succeed };
            socket::start(admin_runtime.handle(), &config.data_dir, parts)
        };

        let (closing, _) = watch::channel(false);
        opening::hold_moved(&journal, &view);
        let moved = journal.moved_from();
        let around = Around {
            letters: Arc::clone(&letters),
            statements: Arc::clone(&statements),
            destinations: known_destinations(&view),
            closing: closing.subscribe(),
        };
        let flushers = backends.into_iter().zip(view.backends.iter()).enumerate();
        let flushers = flushers.filter_map(|(index, (backend, shown))| {
            // Lines owed to a server at another address belong to no other server.
            if moved[index].is_some() {
                backend.await_operator(BackendId::new(index), &statements);
                return None;
            }
            Some(backend.start(
                runtime.handle(),
                journal.reader(BackendId::new(index)),
                Arc::clone(&shown.health),
                &around,
            ))
        });
        let flushers = flushers.collect();
        let journal_stop = Arc::new(AtomicBool::new(false));
        let ours = Arc::clone(&data_dir);
        let disk_threads = journal.start_disk(move || ours.keep()).map_err(StartError::Thread)?;
        let journal_thread = opening::start(&view, consumer, &journal_stop).map_err(StartError::Thread)?;
        let reader = reading::reader(&readers, &statements, runtime.handle(), config);
        let host = Host { claim: claim(&view), create: create(&statements, runtime.handle()), reader };
        let answers = (step(config.journal.durability), host);
        let workers = start_workers(&view.listeners, &setups, &ring, &answers).map_err(StartError::Thread)?;
        Ok(Self {
            runtime,
            admin_runtime,
            view,
            reload,
            admin: address,
            workers,
            journal_thread,
            disk_threads,
            ring,
            journal_stop,
            flushers,
            closing,
            hurry: watch::Sender::new(false),
            shutdown_timeout: config.shutdown_timeout,
            _socket_file: socket_file,
            _data_dir: data_dir,
        })
    }

    /// The observable state.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The address of the admin listener.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The pulses of the threads that lines pass through, except those of the runtime and the disk.
    pub fn pulses(&self) -> Vec<Arc<Pulse>> {
        self.view.pulses()
    }

    /// The runtime of the flushers.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The handle for reloading, as SIGHUP does.
    pub fn reload(&self) -> Arc<Reload> {
        Arc::clone(&self.reload)
    }

    /// Send `true` to make the shutdown wait for no backend.
    pub fn hurry(&self) -> watch::Sender<bool> {
        self.hurry.clone()
    }
}

/// Creates a runtime with one thread, which is enough for its work and leaves the other CPU to
/// datagrams.
fn start_runtime(name: &str) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()
}

async fn bind_admin(address: SocketAddr) -> Result<(Admin, SocketAddr), StartError> {
    let failed = |error| StartError::Listen { kind: "admin", address, error };
    let admin = Admin::bind(address).await.map_err(failed)?;
    let address = admin.address().map_err(failed)?;
    Ok((admin, address))
}

fn open_dead_letters(config: &Config) -> Result<Arc<DeadLetters>, StartError> {
    let folder = config.dead_letters_folder();
    let letters = DeadLetters::open(&folder, config.dead_letters.disk.as_u64());
    letters.map(Arc::new).map_err(|error| StartError::DataDir(folder.display().to_string(), error))
}

/// Parts that all backends share.
type Behind<'a> = (&'a Arc<DeadLetters>, &'a Arc<Statements>, &'a Arc<Readers>);

fn view(
    config: &Config,
    listeners: Vec<Listener>,
    journal: &Journal,
    ring: &Producer,
    (healths, behind): (&[Arc<Health>], Behind<'_>),
    (certificates, pair): (Vec<Arc<Certificate>>, Option<Arc<Pair>>),
) -> View {
    let (letters, statements, readers) = behind;
    // A relay of a pair that receives its own number from the other one is asking itself.
    let process = pair.as_ref().map_or_else(|| fastrand::u64(..), |pair| pair.process());
    let backends = config.backend.iter().zip(healths).map(|(backend, health)| BackendView {
        name: backend.name.clone(),
        url: backend.url.to_string(),
        health: Arc::clone(health),
        readers: Some(Arc::clone(readers)),
        letters: Some(Arc::clone(letters)),
        statements: Some(Arc::clone(statements)),
    });
    View {
        started: Instant::now(),
        listeners: Arc::new(listeners),
        ring: ring.clone(),
        journal: journal.clone(),
        durability: config.journal.durability,
        backends: Arc::new(backends.collect()),
        certificates: Arc::new(certificates),
        history: Arc::new(History::new(config.backend.iter().map(|backend| backend.name.clone()).collect())),
        forgotten: Arc::default(),
        data_dir: config.data_dir.display().to_string().into(),
        pair,
        journal_pulse: {
            let wake = ring.clone();
            Arc::new(Pulse::new("journal").woken_by(move || wake.wake()))
        },
        is_stopping: Arc::default(),
        is_followed: Arc::default(),
        reports: Arc::new(Reports::new(process)),
    }
}

fn lock_data_dir(folder: &Path) -> Result<DataDir, StartError> {
    DataDir::lock(folder).map_err(|error| match error {
        LockError::Held => StartError::Locked(folder.display().to_string()),
        LockError::Io(error) => StartError::DataDir(folder.display().to_string(), error),
    })
}

fn bind(setup: receive::ListenerConfig, inherited: &mut Inherited) -> Result<Listener, StartError> {
    let (kind, address) = (setup.kind(), setup.listen());
    let listener = Listener::bind(setup, inherited).map_err(|error| StartError::Listen { kind, address, error })?;
    if let Listener::Udp(listener) = &listener {
        let (wanted, got) = listener.receive_buffer();
        if got < wanted {
            tracing::warn!(
                listen = %listener.address(),
                wanted,
                got,
                "the kernel gave a smaller receive buffer: sysctl -w net.core.rmem_max={wanted}, or give CAP_NET_ADMIN"
            );
        }
    }
    Ok(listener)
}

fn start_workers(
    listeners: &[Listener],
    backends: &[deliver::DeliveryConfig],
    ring: &Producer,
    (step, host): &(Step, Host),
) -> io::Result<Vec<(usize, JoinHandle<()>)>> {
    // A record is never split, so it must fit the smallest request of any backend.
    let bytes = backends.iter().map(|setup| setup.limits.bytes).fold(BATCH_BYTES, u64::min);
    let lines = backends.iter().map(|setup| setup.limits.lines).min().unwrap_or(u64::MAX);
    let buffer_bytes = usize::try_from(bytes).unwrap_or(usize::MAX).max(Builder::least_buffer_bytes());
    let pool = Pool::new(IDLE_BUFFERS, buffer_bytes);
    let (mut threads, order) = (Vec::new(), tcp::Order::default());
    for (index, listener) in listeners.iter().enumerate() {
        let started = listener.start(&pool, Limits { lines, age: BATCH_AGE }, ring, &order, (*step, host))?;
        threads.extend(started.into_iter().map(|thread| (index, thread)));
    }
    Ok(threads)
}

/// Destinations of listeners whose senders name none.
fn known_destinations(view: &View) -> Vec<Arc<Destination>> {
    let known = view.listeners.iter().map(|listener| listener.destination());
    known.filter(|destination| !destination.database().is_empty()).map(|known| Arc::new(known.clone())).collect()
}

/// The stage that lines must reach before their request is answered.
fn step(durability: Durability) -> Step {
    match durability {
        Durability::Memory => Step::Accepted,
        Durability::Written => Step::Written,
        Durability::Synced => Step::Synced,
    }
}

/// The InfluxDB version that HTTP listeners claim: the lowest of the backends', so that clients use
/// only what all backends support.
fn claim(view: &View) -> Claim {
    let backends = Arc::clone(&view.backends);
    Claim::new(move || {
        let versions = backends.iter().filter_map(|backend| backend.health.version());
        versions.min_by_key(|version| numbers(version)).unwrap_or_else(|| UNKNOWN_VERSION.to_owned())
    })
}

/// Runs statements on the backends, on the backends' runtime.
fn create(statements: &Arc<Statements>, runtime: &Handle) -> Creator {
    let (statements, runtime) = (Arc::clone(statements), runtime.clone());
    Creator::new(move |statement, may_administer, authorization| {
        let statements = Arc::clone(&statements);
        let asker = if may_administer { Asker::Administrator } else { Asker::Client(authorization) };
        let running = runtime.spawn(async move { statements.run(&statement, asker).await });
        Box::pin(async move {
            let ran = running.await.map_err(NotCreated::new)?;
            ran.map_err(NotCreated::new)
        })
    })
}

/// Splits a version into numbers for comparison.
fn numbers(version: &str) -> Vec<u64> {
    let parts = version.trim_start_matches('v').split(|c: char| !c.is_ascii_digit());
    parts.map_while(|part| part.parse().ok()).collect()
}
