//! `twinflux demo`: shows in half a minute what Twinflux does, in one process and on loopback.
//!
//! Simulated hosts send through a real relay into two embedded stores; one of them writes by HTTP.
//! One store is killed and later revived. At the end, both stores must hold every line.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use loadgen::answers::Answers;
use loadgen::batch::Form;
use loadgen::http;
use loadgen::ledger::Counts;
use loadgen::send::{Pace, Plan, Progress, Sent, send};
use loadgen::sink::{Sink, Store};
use loadgen::workload::Shape;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::url::BackendUrl;
use crate::config::{Backend, Config, Http, Udp};
use crate::observe::status::Status;
use crate::receive::Inherited;
use crate::relay::{Relay, StartError};

const HOSTS: u32 = 500;
/// Telegraf's interval of ten seconds, three times as fast.
const INTERVAL: Duration = Duration::from_millis(3333);
const SENDING: Duration = Duration::from_secs(18);
const KILL_AT: Duration = Duration::from_secs(6);
const REVIVE_AT: Duration = Duration::from_secs(12);
/// When to give up on lines that are still pending. The longest pause between two tries is shorter.
const GIVE_UP_AT: Duration = Duration::from_secs(38);
const REFRESH: Duration = Duration::from_millis(250);

/// Why the demo could not run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The temporary folder cannot be created.
    #[error("cannot make a folder for the demo: {0}")]
    Folder(io::Error),
    /// The stores' runtime cannot start.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    /// The relay cannot start.
    #[error("{0}")]
    Relay(#[from] StartError),
    /// A store cannot start.
    #[error("cannot start a store: {0}")]
    Store(io::Error),
    /// The killed store cannot start again.
    #[error("cannot revive the store: {0}")]
    Revival(io::Error),
    /// A thread of the simulated hosts cannot start.
    #[error("{0}")]
    Thread(io::Error),
    /// The hosts that send by UDP failed.
    #[error("cannot simulate the hosts: {0}; is the limit of open files below 600?")]
    Hosts(io::Error),
    /// The host that writes by HTTP failed.
    #[error("cannot simulate the host that writes by HTTP: {0}")]
    Writer(io::Error),
    /// The screen cannot be written.
    #[error("{0}")]
    Output(io::Error),
    /// A signal ended the demo.
    #[error("interrupted")]
    Interrupted,
    /// The relay lacks a listener.
    #[error("BUG: the demo's relay has both listeners")]
    NoListener,
    /// The UDP hosts' thread panicked.
    #[error("BUG: the hosts' thread panicked")]
    HostsPanicked,
    /// The HTTP writer's thread panicked.
    #[error("BUG: the writer's thread panicked")]
    WriterPanicked,
}

/// Runs the demo. True if both stores hold every line.
///
/// # Errors
/// Why it could not run.
pub fn run() -> Result<bool, DemoError> {
    let folder = Folder::new().map_err(DemoError::Folder)?;
    let runtime = Runtime::new().map_err(DemoError::Runtime)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&interrupted);
    runtime.spawn(async move {
        let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        seen.store(true, Ordering::Relaxed);
    });
    let mut stores = [Stored::start(&runtime)?, Stored::start(&runtime)?];
    let relay = Relay::start(&config(&folder.0, &stores), Inherited::default())?;
    let sending = Sending::start(&relay)?;

    let mut screen = Screen::new();
    let start = Instant::now();
    loop {
        std::thread::sleep(REFRESH);
        let elapsed = start.elapsed();
        let phase = match elapsed {
            elapsed if elapsed < KILL_AT => "both stores are up",
            elapsed if elapsed < REVIVE_AT => {
                stores[1].kill();
                "store b was KILLED; its lines wait"
            }
            elapsed if elapsed < SENDING => {
                stores[1].revive(&runtime)?;
                "store b is back; it gets what it missed"
            }
            _ => "the hosts are done; waiting for store b",
        };
        let status = relay.view().status();
        screen.show(elapsed, phase, sending.progress.sent(), &status).map_err(DemoError::Output)?;
        let is_done = sending.is_finished() && status.backends.iter().all(|backend| backend.pending_lines == 0);
        if is_done || elapsed > GIVE_UP_AT || interrupted.load(Ordering::Relaxed) {
            break;
        }
    }
    sending.progress.stop();
    let sent = sending.finish()?;
    if interrupted.load(Ordering::Relaxed) {
        return Err(DemoError::Interrupted);
    }
    let status = relay.shutdown();
    let kept = stores.map(|stored| stored.store.ledger.counts());
    verdict(sent, &status, kept).map_err(DemoError::Output)
}

fn config(folder: &std::path::Path, stores: &[Stored; 2]) -> Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config { data_dir: folder.to_owned(), ..Config::default() };
    config.admin.listen = any;
    config.udp.push(Udp { listen: any, ..Udp::default() });
    config.http.push(Http { listen: any, ..Http::default() });
    for (name, stored) in ["a", "b"].iter().zip(stores) {
        let url = format!("http://{}", stored.address).parse();
        let url: BackendUrl = url.expect("BUG: a socket's address makes a URL");
        config.backend.push(Backend::new((*name).to_owned(), url));
    }
    config
}

/// A store whose data outlives its server.
struct Stored {
    store: Arc<Store>,
    address: SocketAddr,
    sink: Option<Sink>,
}

impl Stored {
    fn start(runtime: &Runtime) -> Result<Self, DemoError> {
        let store = Arc::new(Store::default());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let sink = runtime.block_on(Sink::start(any, Arc::clone(&store)));
        let sink = sink.map_err(DemoError::Store)?;
        Ok(Self { store, address: sink.address(), sink: Some(sink) })
    }

    fn kill(&mut self) {
        self.sink = None;
    }

    fn revive(&mut self, runtime: &Runtime) -> Result<(), DemoError> {
        if self.sink.is_none() {
            let sink = runtime.block_on(Sink::start(self.address, Arc::clone(&self.store)));
            self.sink = Some(sink.map_err(DemoError::Revival)?);
        }
        Ok(())
    }
}

/// The simulated hosts.
struct Sending {
    progress: Arc<Progress>,
    thread: std::thread::JoinHandle<io::Result<Duration>>,
    /// The host that writes by HTTP.
    writer: std::thread::JoinHandle<io::Result<Answers>>,
}

impl Sending {
    fn start(relay: &Relay) -> Result<Self, DemoError> {
        let address = |kind: &str| {
            let listener = relay.view().listeners.iter().find(|one| one.kind() == kind);
            listener.map(|one| one.address()).ok_or(DemoError::NoListener)
        };
        let plan = Plan {
            target: address("udp")?,
            hosts: HOSTS,
            first_host: 0,
            shape: Shape::default(),
            pace: Pace::Every(INTERVAL),
            duration: SENDING,
            payload: None,
        };
        let requests = http::Plan {
            target: http::Target::new(address("http")?),
            hosts: 1,
            first_host: HOSTS,
            shape: Shape::default(),
            form: Form { lines: 1000, is_gzip: true, is_chunked: true, ..Form::default() },
            pace: Pace::Every(INTERVAL / 10),
            duration: SENDING,
            connections: None,
            prepared: None,
        };
        let progress = Arc::new(Progress::default());
        let (shared, other) = (Arc::clone(&progress), Arc::clone(&progress));
        let thread = std::thread::Builder::new().name("hosts".to_owned()).spawn(move || send(&plan, &shared));
        let writer = std::thread::Builder::new().name("writer".to_owned()).spawn(move || http::send(&requests, &other));
        let (thread, writer) = (thread.map_err(DemoError::Thread)?, writer.map_err(DemoError::Thread)?);
        Ok(Self { progress, thread, writer })
    }

    fn is_finished(&self) -> bool {
        self.thread.is_finished() && self.writer.is_finished()
    }

    fn finish(self) -> Result<Sent, DemoError> {
        let ended = self.thread.join().map_err(|_| DemoError::HostsPanicked)?;
        ended.map_err(DemoError::Hosts)?;
        let answers = self.writer.join().map_err(|_| DemoError::WriterPanicked)?;
        answers.map_err(DemoError::Writer)?;
        Ok(self.progress.sent())
    }
}

/// The screen, which is redrawn; if output is no terminal, one line per phase.
struct Screen {
    is_terminal: bool,
    /// Whether the reader of the output has gone. The demo continues for its exit code.
    is_gone: bool,
    drawn_lines: usize,
    last_phase: &'static str,
}

impl Screen {
    fn new() -> Self {
        Self { is_terminal: io::stdout().is_terminal(), is_gone: false, drawn_lines: 0, last_phase: "" }
    }

    fn show(&mut self, elapsed: Duration, phase: &'static str, sent: Sent, status: &Status) -> io::Result<()> {
        if self.is_gone {
            return Ok(());
        }
        let drawn = self.draw(elapsed, phase, sent, status);
        self.is_gone = is_gone(&drawn);
        if self.is_gone { Ok(()) } else { drawn }
    }

    fn draw(&mut self, elapsed: Duration, phase: &'static str, sent: Sent, status: &Status) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let head = format!(
            "{:>4.1} s  {HOSTS} hosts by UDP and one by HTTP sent {} lines; {phase}",
            elapsed.as_secs_f64(),
            sent.lines
        );
        if self.is_terminal {
            let text = format!("{head}\n\n{}", status.ledger());
            if self.drawn_lines > 0 {
                write!(out, "\x1b[{}A\x1b[J", self.drawn_lines)?;
            }
            self.drawn_lines = text.matches('\n').count();
            write!(out, "{text}")?;
        } else if self.last_phase != phase {
            writeln!(out, "{head}")?;
        }
        self.last_phase = phase;
        out.flush()
    }
}

fn is_gone(written: &io::Result<()>) -> bool {
    written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn verdict(sent: Sent, status: &Status, kept: [Counts; 2]) -> io::Result<bool> {
    let is_whole = |counts: &Counts| counts.distinct == sent.lines && counts.altered == 0;
    let is_fine = sent.lines > 0 && kept.iter().all(is_whole);
    let written = write_verdict(sent, status, kept, is_fine);
    if is_gone(&written) { Ok(is_fine) } else { written.map(|()| is_fine) }
}

fn write_verdict(sent: Sent, status: &Status, kept: [Counts; 2], is_fine: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "\nThe ledger (accepted = delivered + rejected + dropped + pending; differ must be 0):\n")?;
    write!(out, "{}", status.ledger())?;
    writeln!(out, "\n{:<8} {:>12} {:>12} {:>12} {:>12}", "store", "sent", "stored", "missing", "altered")?;
    for (backend, counts) in status.backends.iter().zip(kept) {
        let missing = sent.lines - counts.distinct.min(sent.lines);
        let name = &backend.name;
        writeln!(out, "{name:<8} {:>12} {:>12} {missing:>12} {:>12}", sent.lines, counts.distinct, counts.altered)?;
    }
    writeln!(out, "\n{}", if is_fine { "Both stores hold every line." } else { "LINES ARE MISSING." })?;
    out.flush()
}

/// A temporary folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("twinflux-demo-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The system cleans up leftover temporary files.
        drop(std::fs::remove_dir_all(&self.0));
    }
}
