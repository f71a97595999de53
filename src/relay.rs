//! The wiring: which parts there are, in which order they start and stop, and the threads they run on.
//!
//! | thread | what it does | waits for |
//! |---|---|---|
//! | `udp-N` | one socket: receive, scan, batch | datagrams |
//! | `tcp` | a listener's connections: receive, convert, batch | sockets, room in the ring |
//! | `journal` | numbers batches | the ring |
//! | `journal-write` | writes records and cursors to the disk | records, the disk |
//! | `journal-sync` | syncs them, removes what is passed | a time, the disk |
//! | `deliver` | flushers, admin listener (tokio) | sockets, timers |
//!
//! Start: secrets and certificates are read, the data folder is locked, sockets are bound (from then on the
//! kernel queues), the journal is opened, threads start from the backends' end to the sockets' end. Stop goes the other way: workers
//! empty their sockets, the journal's thread empties the ring, flushers deliver what they can in the time given, and
//! what is left is written and synced.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::batch::{Builder, Limits, Pool};
use crate::control::admin::Admin;
use crate::control::config::Config;
use crate::control::data_dir::{self, LockError};
use crate::control::status::{BackendView, Status, View};
use crate::deliver::{self, Backend, Health, SetupError};
use crate::journal::disk::{Folder, Keeper, OpenError, Report};
use crate::journal::ring::{Consumer, Producer};
use crate::journal::{self, Journal, ring};
use crate::receive::udp::Inherited;
use crate::receive::{self, Listener, Pulse};

/// Batches between the workers and the journal's thread: more than a second of batches sealed by age, and at
/// most 16 MiB of full ones.
const RING_BATCHES: usize = 64;
/// The size of a batch: large enough that handing it over costs nothing per line, small enough to stay in a
/// processor's cache from the scan to the send.
const BATCH_BYTES: u64 = 256 * 1024;
/// How long a line waits in a worker for others, at most.
const BATCH_AGE: Duration = Duration::from_millis(20);
/// Idle buffers kept: as many as are under way to two backends at full speed.
const IDLE_BUFFERS: usize = 16;
/// Dropped lines are logged once in this time.
const DROPS_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Files that are open beside connections: sockets, segments, what requests need.
const OTHER_FILES: u64 = 256;
/// How long the journal's thread sleeps while it is hard pressed, before it looks whether it still is.
const PRESSED_SLEEP: Duration = Duration::from_millis(2);
/// How long the journal's thread sleeps at most before it looks whether it is to stop.
const JOURNAL_SLEEP: Duration = Duration::from_millis(200);

/// What keeps a relay from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration names something that cannot be used.
    #[error("{0}")]
    Setup(#[from] SetupError),
    /// A listener's mapping cannot be read.
    #[error("{0}")]
    Mapping(String),
    /// Another process works on the data folder.
    #[error("{0} is in use by another process: give each relay its own data_dir")]
    Locked(String),
    /// The data folder cannot be used.
    #[error("cannot use the data folder {0}: {1}; create it, or give another with --data-dir")]
    DataDir(String, io::Error),
    /// The journal cannot be opened.
    #[error("cannot open the journal in {0}: {1}")]
    Journal(String, OpenError),
    /// A listener's address cannot be used.
    #[error("cannot listen on {kind} {address}: {error}{}", advice(.kind, .error))]
    Listen {
        /// `udp`, `tcp` or `admin`.
        kind: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// A passed socket is of no use.
    #[error("socket activation: {0}")]
    Inherited(String),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

fn advice(kind: &str, error: &io::Error) -> String {
    let what = match error.kind() {
        io::ErrorKind::AddrInUse => "another program has it: stop that one, or change",
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has this address: change",
        _ => return String::new(),
    };
    let option = if kind == "tcp" { String::new() } else { format!(" (--{kind})") };
    format!("; {what} {kind}.listen{option}")
}

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    runtime: Runtime,
    view: View,
    admin: SocketAddr,
    workers: Vec<JoinHandle<()>>,
    journal_thread: JoinHandle<()>,
    journal_pulse: Arc<Pulse>,
    keeper: Option<Keeper>,
    ring: Producer,
    journal_stop: Arc<AtomicBool>,
    flushers: Vec<tokio::task::JoinHandle<()>>,
    closing: watch::Sender<bool>,
    hurry: watch::Sender<bool>,
    shutdown_timeout: Duration,
    _lock: File,
}

impl Relay {
    /// Starts everything, on sockets of its own and on those that were passed.
    ///
    /// # Errors
    /// What keeps it from starting. Where it is the system that gives no thread, those it gave end with the process.
    pub fn start(config: &Config, mut inherited: Inherited) -> Result<Self, StartError> {
        let setups = config.backends();
        let backends = setups.iter().cloned().map(Backend::new).collect::<Result<Vec<_>, _>>()?;
        let lock = lock_data_dir(&config.data_dir)?;
        let setups_of_listeners = config.listeners().map_err(StartError::Mapping)?;
        raise_file_limit(&setups_of_listeners);
        let listeners = setups_of_listeners.into_iter().map(|setup| bind(setup, &mut inherited));
        let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
        if let Some((name, address)) = inherited.left_over() {
            let what =
                format!("no listener has the address of the passed socket {name:?}: set udp.listen = \"{address}\"");
            return Err(StartError::Inherited(what));
        }
        let runtime = start_runtime().map_err(StartError::Thread)?;
        let (admin, address) = runtime.block_on(bind_admin(config.admin.listen))?;
        let journal = open_journal(config)?;
        let view = view(config, listeners, &journal);
        drop(runtime.spawn(admin.serve(view.clone())));

        let (closing, _) = watch::channel(false);
        let flushers = backends.into_iter().zip(view.backends.iter()).enumerate().map(|(place, (backend, shown))| {
            backend.start(runtime.handle(), journal.reader(place), Arc::clone(&shown.health), closing.subscribe())
        });
        let flushers = flushers.collect();
        let (ring, consumer) = ring(RING_BATCHES);
        let journal_stop = Arc::new(AtomicBool::new(false));
        let keeper = Keeper::start(&journal).map_err(StartError::Thread)?;
        let journal_pulse = Arc::new(Pulse::new("journal"));
        let journal_thread =
            start_journal(&view, consumer, &journal_stop, Arc::clone(&journal_pulse)).map_err(StartError::Thread)?;
        let workers = start_workers(&view.listeners, &setups, &ring).map_err(StartError::Thread)?;
        Ok(Self {
            runtime,
            view,
            admin: address,
            workers,
            journal_thread,
            journal_pulse,
            keeper,
            ring,
            journal_stop,
            flushers,
            closing,
            hurry: watch::Sender::new(false),
            shutdown_timeout: config.shutdown_timeout,
            _lock: lock,
        })
    }

    /// What there is to see of it.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The address of the admin listener.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The pulses of the threads that lines pass through, but for the runtime's and the disk's.
    pub fn pulses(&self) -> Vec<Arc<Pulse>> {
        let receiving = self.view.listeners.iter().flat_map(Listener::pulses);
        receiving.chain([Arc::clone(&self.journal_pulse)]).collect()
    }

    /// The runtime that flushers run on.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Where to send `true` for a shutdown that waits for no backend any more.
    pub fn hurry(&self) -> watch::Sender<bool> {
        self.hurry.clone()
    }

    /// Stops receiving once the sockets are empty, delivers what can be delivered in the configured time, or until it
    /// is to hurry, and returns the last figures.
    pub fn shutdown(self) -> Status {
        for listener in self.view.listeners.iter() {
            listener.stop();
        }
        for worker in self.workers {
            report_panic(&worker.join());
        }
        self.journal_stop.store(true, Ordering::Release);
        self.ring.wake();
        report_panic(&self.journal_thread.join());
        self.view.journal.close();
        self.closing.send_replace(true);
        let mut hurried = self.hurry.subscribe();
        self.runtime.block_on(async {
            let deadline = tokio::time::Instant::now() + self.shutdown_timeout;
            let delivering = async {
                for flusher in self.flushers {
                    // Whatever is not delivered by then shows as pending.
                    drop(tokio::time::timeout_at(deadline, flusher).await);
                }
            };
            tokio::select! {
                () = delivering => {}
                Ok(_) = hurried.wait_for(|is_hurried| *is_hurried) => {}
            }
        });
        if let Some(keeper) = self.keeper {
            report_panic(&keeper.stop());
        }
        let status = self.view.status();
        self.runtime.shutdown_background();
        status
    }
}

fn start_runtime() -> io::Result<Runtime> {
    // One thread is enough for what it does, and leaves the other CPU to the hosts' datagrams.
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("deliver").enable_all().build()
}

async fn bind_admin(address: SocketAddr) -> Result<(Admin, SocketAddr), StartError> {
    let failed = |error| StartError::Listen { kind: "admin", address, error };
    let admin = Admin::bind(address).await.map_err(failed)?;
    let address = admin.address().map_err(failed)?;
    Ok((admin, address))
}

/// Opens the journal, and says what was found.
fn open_journal(config: &Config) -> Result<Journal, StartError> {
    let (memory, backends) = (config.journal.memory.as_u64(), config.journal_backends());
    let folder = config.journal_folder();
    let failed = |error| StartError::Journal(folder.display().to_string(), error);
    let Some(options) = config.disk() else {
        if folder.exists() {
            tracing::warn!(
                folder = %folder.display(),
                "durability is \"memory\": what an earlier run left in the journal stays there, and is not delivered"
            );
        }
        return Ok(Journal::new(memory, &backends));
    };
    let storage = Folder::open(&folder).map_err(|error| failed(error.into()))?;
    let journal = Journal::open(Arc::new(storage), &options, memory, &backends).map_err(failed)?;
    report_opening(&journal.snapshot(), &backends);
    Ok(journal)
}

fn report_opening(found: &journal::Snapshot, backends: &[journal::BackendSetup]) {
    let Some(disk) = &found.disk else { return };
    let report = &disk.report;
    if report.segments == 0 {
        return;
    }
    let Report { segments, bytes, truncated_bytes, skipped_bytes, damaged_records, missing_segments, .. } = report;
    tracing::info!(segments, bytes, truncated_bytes, seconds = report.seconds, "opened the journal");
    if skipped_bytes + damaged_records + missing_segments > 0 || !report.set_aside.is_empty() {
        tracing::warn!(
            skipped_bytes,
            damaged_records,
            missing_segments,
            set_aside = ?report.set_aside,
            "the journal is damaged: what is missing is counted as dropped (corrupt) when a backend comes to it"
        );
    }
    if report.cursors_lost {
        tracing::warn!("the journal's cursors are lost: every backend gets all that is in the journal once more");
    }
    for (backend, ledger) in backends.iter().zip(&found.ledgers) {
        if ledger.recovered > 0 {
            tracing::info!(backend = backend.name, lines = ledger.recovered, "found lines to deliver");
        }
    }
    for (backend, lines) in disk.orphans.iter().filter(|(_, lines)| *lines > 0) {
        tracing::warn!(
            backend,
            lines,
            "the journal keeps lines for a backend that is not configured: configure it again, or stop the relay and \
             run: twinflux journal forget {backend}, with the same --config or --data-dir"
        );
    }
}

fn view(config: &Config, listeners: Vec<Listener>, journal: &Journal) -> View {
    let backends = config.backend.iter().map(|backend| BackendView {
        name: backend.name.clone(),
        url: backend.url.to_string(),
        health: Arc::new(Health::default()),
    });
    View {
        started: Instant::now(),
        listeners: Arc::new(listeners),
        journal: journal.clone(),
        durability: config.journal.durability,
        backends: Arc::new(backends.collect()),
    }
}

fn lock_data_dir(folder: &Path) -> Result<File, StartError> {
    data_dir::lock(folder).map_err(|error| match error {
        LockError::Held => StartError::Locked(folder.display().to_string()),
        LockError::Io(error) => StartError::DataDir(folder.display().to_string(), error),
    })
}

fn bind(setup: receive::Setup, inherited: &mut Inherited) -> Result<Listener, StartError> {
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

/// Lets the process open as many files as its listeners may have connections, as far as the system allows.
fn raise_file_limit(listeners: &[receive::Setup]) {
    let connections = listeners.iter().map(|setup| match setup {
        receive::Setup::Udp(_) => 0,
        receive::Setup::Tcp(setup) => setup.max_connections as u64,
    });
    let wanted = connections.sum::<u64>() + OTHER_FILES;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= wanted) {
        return;
    }
    let raised = maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let result = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum });
    if raised < wanted || result.is_err() {
        tracing::warn!(
            wanted,
            limit = maximum,
            "fewer files may be open than there may be connections: raise the limit (LimitNOFILE=), or lower max_connections"
        );
    }
}

fn start_journal(view: &View, ring: Consumer, stop: &Arc<AtomicBool>, pulse: Arc<Pulse>) -> io::Result<JoinHandle<()>> {
    let stop = Arc::clone(stop);
    let View { journal, backends, .. } = view.clone();
    std::thread::Builder::new().name("journal".to_owned()).spawn(move || {
        let mut logged = vec![0; backends.len()];
        let mut log_next = Instant::now();
        loop {
            pulse.beat();
            // Read before the ring is emptied: what is in it when the stop comes is not left behind.
            let stopping = stop.load(Ordering::Acquire);
            while let Some(batch) = ring.pop() {
                journal.append(batch);
                ring.set_pressed(journal.is_pressed());
            }
            let is_pressed = journal.is_pressed();
            ring.set_pressed(is_pressed);
            if log_next <= Instant::now() || stopping {
                log_next = Instant::now() + DROPS_LOG_INTERVAL;
                log_drops(&journal.dropped_lines(), &mut logged, &backends);
            }
            if stopping {
                break;
            }
            ring.wait(if is_pressed { PRESSED_SLEEP } else { JOURNAL_SLEEP });
        }
    })
}

fn log_drops(dropped: &[u64], logged: &mut [u64], backends: &[BackendView]) {
    for ((total, logged), backend) in dropped.iter().zip(logged).zip(backends) {
        if total > logged {
            tracing::warn!(
                backend = backend.name,
                lines = *total - *logged,
                total,
                "dropped lines that the backend has not taken; /api/status has the reasons and the gaps"
            );
            *logged = *total;
        }
    }
}

fn start_workers(
    listeners: &[Listener],
    backends: &[deliver::Setup],
    ring: &Producer,
) -> io::Result<Vec<JoinHandle<()>>> {
    // A record is never split, so that it must fit the smallest request of any backend.
    let bytes = backends.iter().map(|setup| setup.limits.bytes).fold(BATCH_BYTES, u64::min);
    let lines = backends.iter().map(|setup| setup.limits.lines).min().unwrap_or(u64::MAX);
    let buffer_bytes = usize::try_from(bytes).unwrap_or(usize::MAX).max(Builder::least_buffer_bytes());
    let pool = Pool::new(IDLE_BUFFERS, buffer_bytes);
    let mut threads = Vec::new();
    for listener in listeners {
        threads.extend(listener.start(&pool, Limits { lines, age: BATCH_AGE }, ring)?);
    }
    Ok(threads)
}

fn report_panic(ended: &std::thread::Result<()>) {
    if ended.is_err() {
        tracing::error!("BUG: a thread panicked; its last batch may be missing");
    }
}
