//! All in one: sinks, a relay, simulated hosts, and where every line went.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::answers::Answers;
use crate::baseline::{Baseline, Cost};
use crate::relay::{Folder, Listeners, Relay};
pub use crate::report::Report;
use crate::report::{BackendReport, BaselineReport, BurstReport, RelayReport, RequestReport, float, signed};
use crate::send::{Plan, Progress, Sent, send};
use crate::sink::{Behaviour, Sink, Store};
use crate::{burst, hostile, http};

/// A relay that takes nothing for so long has taken all that it will.
const TAKING: Duration = Duration::from_secs(2);

/// How often to look at what the sinks have.
const SAMPLE_PAUSE: Duration = Duration::from_millis(5);

/// How long hostile clients are at it before the hosts come.
const HEAD_START: Duration = Duration::from_secs(1);

/// What is run.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// The relay: a program to start, or one that runs.
    pub relay: Under,
    /// The sinks' addresses; port 0 lets the kernel choose.
    pub sinks: Vec<SocketAddr>,
    /// How the last sink behaves; the others accept.
    pub last_sink: Behaviour,
    /// What hosts that run Telegraf send, where there are any; the target is the relay's.
    pub plan: Option<Plan>,
    /// What hosts that run Netdata send, where there are any; the target is the relay's.
    pub bursts: Option<burst::Plan>,
    /// What hosts that write by HTTP send, where there are any; the target is the relay's.
    pub requests: Option<http::Plan>,
    /// How many slow connections there are beside, with a client that sends gzip bombs.
    pub hostile: Option<u32>,
    /// Whether a bare receive loop gets the same load first.
    pub baseline: bool,
    /// How long the relay may take to deliver everything after the sending.
    pub patience: Duration,
}

/// The relay under test.
#[derive(Clone, Debug)]
pub enum Under {
    /// Started for this run.
    Program {
        /// Its file.
        path: PathBuf,
        /// Its listeners.
        listeners: Listeners,
        /// TOML lines of its journal.
        journal: String,
    },
    /// Running already, with the sinks as its backends.
    Running {
        /// Where it takes datagrams.
        target: SocketAddr,
        /// Where it takes streams.
        streams: Option<SocketAddr>,
        /// Where it takes HTTP.
        requests: Option<SocketAddr>,
        /// Where it shows its state.
        admin: SocketAddr,
    },
}

/// Runs it all. Sinks run on the current runtime.
///
/// # Errors
/// What kept it from running; lost lines are no error here.
pub async fn run(setup: RunConfig, progress: Arc<Progress>) -> Result<Report> {
    let mut sinks = Vec::new();
    for address in &setup.sinks {
        let store = Arc::new(Store::default());
        let sink = Sink::start(*address, Arc::clone(&store)).await;
        sinks.push((sink.with_context(|| format!("cannot listen on {address} for a sink"))?, store));
    }
    let Some((_, last)) = sinks.last() else { anyhow::bail!("at least one sink is needed") };
    last.behave(setup.last_sink);

    let baseline = match setup.plan {
        Some(plan) if setup.baseline => Some(run_baseline(plan).await?),
        _ => None,
    };
    let addresses: Vec<SocketAddr> = sinks.iter().map(|(sink, _)| sink.address()).collect();
    let under = setup.relay.clone();
    let relay = blocking(move || match under {
        Under::Program { path, listeners, journal } => {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            Relay::start(&path, &Arc::new(Folder::new(any, &listeners, &journal, &addresses)?), None)
        }
        Under::Running { target, streams, requests, admin } => Ok(Relay::running(target, streams, requests, admin)),
    });
    let relay = Arc::new(relay.await?);
    let before = look(&relay).await?;
    ensure!(
        before.status["backends"].as_array().is_some_and(|backends| backends.len() == sinks.len()),
        "the relay must have the {} sinks as its only backends",
        sinks.len()
    );
    let hostile = match setup.hostile {
        Some(slow) => {
            let clients = hostile::Clients::start(relay.requests.context("the relay takes no HTTP")?, slow)?;
            tokio::time::sleep(HEAD_START).await;
            Some(clients)
        }
        None => None,
    };
    let started = Instant::now();
    let bursting = setup.bursts.map(|plan| tokio::spawn(send_bursts(plan, Arc::clone(&relay), Arc::clone(&progress))));
    let stores: Vec<Arc<Store>> = sinks.iter().map(|(_, store)| Arc::clone(store)).collect();
    let requests = match setup.requests {
        Some(plan) => Some(Requests::start(plan, &relay, &progress, &stores)?),
        None => None,
    };
    let steady = Arc::new(Progress::default());
    let stop = tokio::spawn(pass_stop_on(Arc::clone(&progress), Arc::clone(&steady)));
    if let Some(plan) = setup.plan {
        send_all(Plan { target: relay.target, ..plan }, &steady).await?;
    }
    let bursts = match bursting {
        Some(bursting) => Some(bursting.await??),
        None => None,
    };
    let requests = match requests {
        Some(requests) => Some(requests.end().await?),
        None => None,
    };
    stop.abort();
    let hostile = hostile.map(hostile::Clients::end);
    let seconds = started.elapsed().as_secs_f64();
    let sent = progress.sent().plus(steady.sent());
    let after = wait_for_delivery(&relay, setup.patience, setup.last_sink).await?;
    let requests = requests.map(|(answers, stored)| RequestReport {
        lines_per_second: float(signed(progress.sent().lines)) / answers.seconds,
        stored_per_second: stored.rate(progress.sent().lines),
        answers,
    });
    Ok(Report { bursts, requests, hostile, ..report(seconds, sent, &before, &after, &stores, baseline) })
}

/// Hosts that write by HTTP, at work.
struct Requests {
    sending: JoinHandle<Result<Answers>>,
    stored: Stored,
}

impl Requests {
    fn start(plan: http::Plan, relay: &Relay, progress: &Arc<Progress>, stores: &[Arc<Store>]) -> Result<Self> {
        let target = if plan.form.is_stream { relay.streams } else { relay.requests };
        plan.target.set(target.context("the relay has no listener for these hosts")?);
        let shared = Arc::clone(progress);
        let sending = tokio::spawn(blocking(move || Ok(http::send(&plan, &shared)?)));
        Ok(Self { sending, stored: Stored::watch(stores) })
    }

    async fn end(self) -> Result<(Answers, Stored)> {
        Ok((self.sending.await??, self.stored))
    }
}

/// How many lines the slowest sink had when.
struct Stored {
    samples: Arc<Mutex<Vec<(Instant, u64)>>>,
    watching: JoinHandle<()>,
}

impl Stored {
    fn watch(stores: &[Arc<Store>]) -> Self {
        let samples: Arc<Mutex<Vec<(Instant, u64)>>> = Arc::default();
        let (stores, kept) = (stores.to_vec(), Arc::clone(&samples));
        let watching = tokio::spawn(async move {
            loop {
                let least = stores.iter().map(|store| store.ledger.counts().distinct).min().unwrap_or(0);
                kept.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), least));
                tokio::time::sleep(SAMPLE_PAUSE).await;
            }
        });
        Self { samples, watching }
    }

    /// Lines a second from the last moment without any until all but one in a hundred of so many
    /// were there.
    fn rate(self, lines: u64) -> f64 {
        self.watching.abort();
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = samples.iter().rev().find(|(_, count)| *count == 0);
        let ended = samples.iter().find(|(_, count)| count * 100 >= lines * 99);
        match (begun, ended) {
            (Some((begun, _)), Some((ended, count))) if ended > begun => {
                float(signed(*count)) / ended.duration_since(*begun).as_secs_f64()
            }
            _ => 0.0,
        }
    }
}

async fn run_baseline(plan: Plan) -> Result<Cost> {
    let baseline = Baseline::start()?;
    let plan = Plan { target: baseline.address(), ..plan };
    send_all(plan, &Arc::default()).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    blocking(move || Ok(baseline.stop()?)).await
}

async fn send_all(plan: Plan, progress: &Arc<Progress>) -> Result<(f64, Sent)> {
    let shared = Arc::clone(progress);
    let taken = blocking(move || Ok(send(&plan, &shared)?)).await?;
    Ok((taken.as_secs_f64(), progress.sent()))
}

/// Sends bursts, and waits until the relay has taken all of them from its sockets.
async fn send_bursts(plan: burst::Plan, relay: Arc<Relay>, progress: Arc<Progress>) -> Result<BurstReport> {
    let target = match plan.transport {
        burst::Transport::Udp => relay.target,
        burst::Transport::Tcp => relay.streams.context("the relay has no TCP listener")?,
    };
    let taken =
        |relay: &Relay| -> Result<i64> { Ok(sum(&relay.status()?["receive"], |one| number(&one["converted"]))) };
    let shared = Arc::clone(&progress);
    blocking(move || {
        let before = taken(&relay)?;
        let (longest, began) = burst::send(&burst::Plan { target, ..plan }, &shared)?;
        let values = shared.sent().lines;
        let (mut count, mut moved) = (taken(&relay)?, Instant::now());
        while count - before < signed(values) && moved.elapsed() < TAKING {
            std::thread::sleep(Duration::from_millis(10));
            let now = taken(&relay)?;
            if now > count {
                (count, moved) = (now, Instant::now());
            }
        }
        let taken_seconds = moved.duration_since(began).as_secs_f64();
        Ok(BurstReport { values, sent_seconds: longest.as_secs_f64(), taken_seconds })
    })
    .await
}

/// Ends one sending when another was told to end.
async fn pass_stop_on(from: Arc<Progress>, to: Arc<Progress>) {
    while !from.is_stopped() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    to.stop();
}

/// What a relay shows at one moment.
struct Look {
    status: Value,
    cpu_seconds: f64,
    peak_resident_bytes: f64,
}

async fn look(relay: &Arc<Relay>) -> Result<Look> {
    let relay = Arc::clone(relay);
    blocking(move || {
        Ok(Look {
            status: relay.status()?,
            cpu_seconds: relay.metric("twinflux_process_cpu_seconds_total")?,
            peak_resident_bytes: relay.metric("twinflux_process_resident_peak_bytes")?,
        })
    })
    .await
}

/// Waits until nothing is pending at the backends that are to take lines, and nothing comes in any
/// more.
async fn wait_for_delivery(relay: &Arc<Relay>, patience: Duration, last_sink: Behaviour) -> Result<Look> {
    let limit = Instant::now() + patience;
    let mut accepted = None;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = look(relay).await?;
        let backends = now.status["backends"].as_array().cloned().unwrap_or_default();
        let expected = if matches!(last_sink, Behaviour::Accept | Behaviour::Partial | Behaviour::Slow(_)) {
            backends.len()
        } else {
            backends.len() - 1
        };
        let is_done = backends.iter().take(expected).all(|backend| backend["pending_lines"] == 0);
        let is_still = accepted == Some(now.status["accepted_lines"].clone());
        if (is_done && is_still) || Instant::now() > limit {
            return Ok(now);
        }
        accepted = Some(now.status["accepted_lines"].clone());
    }
}

fn report(
    seconds: f64,
    sent: Sent,
    before: &Look,
    after: &Look,
    stores: &[Arc<Store>],
    baseline: Option<Cost>,
) -> Report {
    let receive = |key: &str| grown(before, after, |status| sum(&status["receive"], |one| number(&one[key])));
    let refused = grown(before, after, |status| sum(&status["receive"], |one| total(&one["refused"])));
    let (datagrams, kernel_dropped) = (receive("datagrams"), receive("kernel_dropped"));
    let cpu_seconds = after.cpu_seconds - before.cpu_seconds;
    let each = cpu_seconds * 1e6 / float(datagrams.max(1));
    let backends: Vec<BackendReport> = stores
        .iter()
        .enumerate()
        .map(|(place, store)| {
            let value = |key: &str| grown(before, after, |status| number(&status["backends"][place][key]));
            let totals = |key: &str| grown(before, after, |status| total(&status["backends"][place][key]));
            let stored = store.ledger.counts();
            let (rejected, dropped, pending) =
                (totals("rejected_lines"), totals("dropped_lines"), value("pending_lines"));
            let lines = signed(sent.lines);
            BackendReport {
                name: after.status["backends"][place]["name"].as_str().unwrap_or_default().to_owned(),
                delivered: value("delivered_lines"),
                rejected,
                dropped,
                pending,
                stored,
                difference: lines - kernel_dropped - refused - signed(stored.distinct) - rejected - dropped - pending,
                latency_ms: store.ledger.latency_ms(),
            }
        })
        .collect();
    Report {
        sent,
        seconds,
        bursts: None,
        requests: None,
        hostile: None,
        datagrams_per_second: float(signed(sent.datagrams)) / seconds,
        lost_on_the_wire: signed(sent.datagrams) - datagrams - kernel_dropped,
        kernel_dropped,
        refused_lines: refused,
        balanced: sent.lines > 0
            && backends.iter().all(|backend| backend.difference == 0 && backend.stored.altered == 0),
        backends,
        relay: RelayReport {
            cpu_seconds,
            cpu_seconds_per_million_lines: cpu_seconds * 1e6 / float(signed(sent.lines.max(1))),
            cpu_microseconds_per_datagram: each,
            peak_resident_mib: after.peak_resident_bytes / f64::from(1 << 20),
        },
        baseline: baseline.map(|cost| {
            let bare = cost.cpu.as_secs_f64() * 1e6 / float(signed(cost.datagrams.max(1)));
            BaselineReport { cpu_microseconds_per_datagram: bare, relay_ratio: each / bare }
        }),
    }
}

fn grown(before: &Look, after: &Look, value: impl Fn(&Value) -> i64) -> i64 {
    value(&after.status) - value(&before.status)
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// The sum of an object's values.
fn total(object: &Value) -> i64 {
    object.as_object().map_or(0, |entries| entries.values().map(number).sum())
}

fn sum(array: &Value, value: impl Fn(&Value) -> i64) -> i64 {
    array.as_array().map_or(0, |entries| entries.iter().map(value).sum())
}

/// Does what blocks beside the runtime.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}
