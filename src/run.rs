//! The relay's life as a process: start, signals, successors, and the end; also a drain, which is
//! the same without listeners.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use twinflux::cli::outcome::{Ended, Failure, print};
use twinflux::cli::{Drain, Run};
use twinflux::config::{Config, Format};
use twinflux::journal::Durability;
use twinflux::observe::Status;
use twinflux::receive::Inherited;
use twinflux::receive::udp::use_small_pages;
use twinflux::relay::{Legacy, Relay, StartError, Successor, notify};
use twinflux::sys::dumps;
use twinflux::sys::log::Log;

use crate::signals::{Current, follow_signals};

/// How often a drain checks whether anything is pending.
const DRAIN_POLL: Duration = Duration::from_millis(200);
/// How long the relay waits until the lines of its start are read.
const FIRST_LINES: Duration = Duration::from_secs(1);

/// Capacity of the queue of requests while one is handled.
const MAX_REQUESTS: usize = 64;

/// A request to the main thread.
#[derive(Debug)]
pub(crate) enum Request {
    /// End.
    Stop,
    /// Give way to a successor.
    GiveWay(Box<Successor>),
}

/// Runs the relay until a signal ends it.
pub(crate) fn run(options: &Run, log: &Arc<Log>) -> Ended {
    use_small_pages();
    let overrides = options.overrides().map_err(Failure::bad_configuration)?;
    let loaded = match &options.relay_config {
        Some(file) => Config::load_relays(file, overrides),
        None => Config::load(options.config.as_deref(), overrides).map(|config| (config, Vec::new())),
    };
    let (mut config, differs) = loaded?;
    for sentence in differs {
        tracing::info!("other than influxdb-relay: {sentence}");
    }
    let inherited = Inherited::from_environment().map_err(|error| Failure::failed(StartError::Inherited(error)))?;
    // Follow signals before the listeners start. Otherwise, a signal in between would end the
    // process and lose received lines.
    let current = Arc::new(Current::default());
    let (requests, requested) = sync_channel(MAX_REQUESTS);
    follow_signals(Arc::clone(&current), requests.clone(), Arc::clone(log)).map_err(Failure::failed)?;
    let mut relay = start(&config, inherited)?;
    current.set(&relay);
    prepare(&relay, options, &requests);
    print_start(describe_start(&relay, &config));
    loop {
        let request = attend(&relay, &requested);
        match request.ok_or_else(|| Failure::failed("BUG: the thread that follows signals ended"))? {
            Request::Stop => break,
            Request::GiveWay(successor) => {
                (relay, config) = give_way(relay, config, *successor)?;
                prepare(&relay, options, &requests);
                current.set(&relay);
            }
        }
    }
    notify::stopping();
    tracing::info!("stopping: emptying the sockets and delivering what is pending; a second signal ends it at once");
    let hurry = relay.hurry();
    tell_end(&relay.shutdown(), config.journal.durability, "for the next start");
    if *hurry.borrow() {
        return Err(Failure::failed("ended by a second signal, before everything could be delivered"));
    }
    Ok(())
}

fn start(config: &Config, legacy: impl Into<Legacy>) -> Result<Relay, Failure> {
    if config.holds_secrets() {
        dumps::forbid();
    }
    Relay::start(config, legacy).map_err(|error| match error {
        StartError::Setup(_) | StartError::Config(_) => Failure::bad_configuration(error),
        error => Failure::failed(error),
    })
}

/// Sets how the relay reads its configuration again, and how it requests a successor.
fn prepare(relay: &Relay, options: &Run, requests: &SyncSender<Request>) {
    // A configuration file of another program is not compared with ours.
    if options.relay_config.is_some() {
        return;
    }
    let (options, requests) = (options.clone(), requests.clone());
    relay.reload().read_by(move || {
        let overrides = options.overrides()?;
        Ok(Config::load(options.config.as_deref(), overrides)?)
    });
    relay.reload().succeed_by(move |successor| {
        if requests.try_send(Request::GiveWay(successor)).is_err() {
            tracing::error!("too much is to be done at a time: reload again");
        }
    });
}

/// Sends keep-alives to the service manager until there is a request.
fn attend(relay: &Relay, requested: &Receiver<Request>) -> Option<Request> {
    notify::ready();
    let watchdog = notify::watchdog_period().map(|period| {
        let watchdog = notify::watchdog(relay.pulses(), period);
        relay.runtime().spawn(watchdog)
    });
    let request = requested.recv().ok();
    if let Some(watchdog) = watchdog {
        watchdog.abort();
    }
    request
}

/// Replaces the relay by a successor on the same sockets. If the successor does not start, starts
/// the previous configuration again.
fn give_way(relay: Relay, config: Config, successor: Successor) -> Result<(Relay, Config), Failure> {
    tracing::info!("another relay takes this one's place: what comes meanwhile waits in the sockets");
    notify::reloading();
    let before = relay.reload().standing();
    let (legacy, last) = match relay.hand_over() {
        Ok(left) => left,
        Err((relay, error)) => {
            tracing::error!(error = error.to_string(), "the configuration stays as it was: reload again later");
            return Ok((*relay, config));
        }
    };
    tell_end(&last, config.journal.durability, "for the relay that follows");
    let again = legacy.try_clone().map_err(|error| Failure::Failed(format!("cannot keep the sockets: {error}")))?;
    match start(&successor.config, legacy) {
        Ok(relay) => {
            relay.reload().stands_for(successor.file);
            tracing::info!("the relay works by the new configuration");
            Ok((relay, successor.config))
        }
        Err(error) => {
            tracing::error!(error = error.to_string(), "the new configuration cannot be used; the one before is");
            let relay = start(&before.config, again)?;
            relay.reload().stands_for(before.file);
            Ok((relay, before.config))
        }
    }
}

/// Logs each backend's final counters. `whom`: for whom the journal keeps pending lines.
fn tell_end(last: &Status, durability: Durability, whom: &str) {
    for backend in &last.backends {
        let (name, lines) = (&backend.name, backend.pending_lines);
        match durability {
            _ if lines == 0 => {}
            Durability::Memory => tracing::warn!(backend = name, lines, "lost: they were only in memory"),
            _ => tracing::info!(backend = name, lines, "kept in the journal {whom}"),
        }
        tracing::info!(
            backend = backend.name,
            delivered = backend.delivered_lines,
            rejected = backend.rejected(),
            dropped = backend.dropped(),
            pending = backend.pending_lines,
            "stopped"
        );
    }
}

/// Delivers what a journal holds. Ends when nothing is pending, or at a signal.
pub(crate) fn drain(options: &Drain, log: &Arc<Log>) -> Ended {
    use_small_pages();
    let overrides = options.overrides().map_err(Failure::bad_configuration)?;
    let mut config = Config::load(options.config.as_deref(), overrides)?;
    (config.udp, config.tcp, config.http) = Default::default();
    if !config.data_dir.join("journal").is_dir() {
        return Err(Failure::Failed(format!(
            "there is no journal in {}: is that the data folder?",
            config.data_dir.display()
        )));
    }
    let current = Arc::new(Current::default());
    let (requests, requested) = sync_channel(MAX_REQUESTS);
    follow_signals(Arc::clone(&current), requests, Arc::clone(log)).map_err(Failure::failed)?;
    let relay = start(&config, Inherited::default())?;
    current.set(&relay);
    let pending = |status: &Status| {
        status.backends.iter().map(|backend| backend.pending_lines + backend.statements_pending).sum::<u64>()
    };
    tracing::info!(lines = pending(&relay.view().status()), admin = %relay.admin(), "draining the journal");
    while pending(&relay.view().status()) > 0 {
        match requested.recv_timeout(DRAIN_POLL) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => break,
        }
    }
    let last = relay.shutdown();
    print(&last.ledger())?;
    let left = pending(&last) + last.journal.orphans.values().sum::<u64>();
    for (name, lines) in &last.journal.orphans {
        tracing::warn!(backend = name, lines, "is not configured: its lines stay in the journal");
    }
    if left > 0 { Err(Failure::Failed(format!("{left} lines stay in the journal"))) } else { Ok(()) }
}

/// Prints the lines of the start. Unread output delays the start for a moment and blocks nothing
/// else.
fn print_start(text: String) {
    let (done, printed) = sync_channel(1);
    let printing = std::thread::Builder::new().name("start".to_owned()).spawn(move || {
        // A closed output is no error.
        drop(print(&text));
        done.send(()).ok();
    });
    if printing.is_ok() {
        printed.recv_timeout(FIRST_LINES).ok();
    }
}

/// Describes the start in five lines: the listeners, the backends, how to send a first line, and
/// where to look.
fn describe_start(relay: &Relay, config: &Config) -> String {
    let listeners = &relay.view().listeners;
    let listens: Vec<String> = listeners
        .iter()
        .map(|one| match one.destination().database() {
            "" => format!("{} {} (database of each request)", one.kind(), one.address()),
            database => format!("{} {} (database {database})", one.kind(), one.address()),
        })
        .collect();
    let backends: Vec<String> = config.backend.iter().map(|one| format!("{} = {}", one.name, one.url)).collect();
    let (kind, first) =
        listeners.first().map_or_else(|| ("udp", ([127, 0, 0, 1], 8089).into()), |one| (one.kind(), one.address()));
    let host = if first.ip().is_unspecified() { std::net::Ipv4Addr::LOCALHOST.into() } else { first.ip() };
    let port = first.port();
    let format = config.udp.first().map(|one| one.format).or_else(|| config.tcp.first().map(|one| one.format));
    let line = match format {
        Some(Format::Graphite) => "me.cpu.usage 1.5",
        Some(Format::Opentsdb) => "put cpu.usage 1795400726 1.5 host=me",
        Some(Format::NetdataJson) => {
            r#"{"hostname":"me","chart_name":"cpu","name":"usage","value":1.5,"timestamp":1795400726}"#
        }
        Some(Format::Auto | Format::Influx) | None => "cpu,host=me usage=1.5",
    };
    let first = match kind {
        "http" => {
            let is_tls = config.http.first().is_some_and(|one| one.tls_cert_file.is_some());
            let scheme = if is_tls { "https" } else { "http" };
            format!("curl -d '{line}' '{scheme}://{host}:{port}/write?db=telegraf'")
        }
        _ => format!("echo '{line}' > /dev/{kind}/{host}/{port}    (in bash)"),
    };
    let mut admin = relay.admin();
    if admin.ip().is_unspecified() {
        admin.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let (listens, writes) = (listens.join(", "), backends.join(", "));
    let version = env!("CARGO_PKG_VERSION");
    let scheme = if config.admin.tls_cert_file.is_some() { "https" } else { "http" };
    let how = match config.admin.users || config.admin.tls_cert_file.is_some() {
        true => format!("--data-dir {}", config.data_dir.display()),
        false => format!("--admin {admin}"),
    };
    [
        format!("Twinflux {version}: every line to every backend\n"),
        format!("  listening on  {listens}\n"),
        format!("  writing to    {writes}\n"),
        format!("  try           {first}\n"),
        format!("  look at       {scheme}://{admin}/ in a browser; or: twinflux status {how}\n"),
    ]
    .concat()
}
