//! All in one: sinks, a relay, simulated hosts, and where every line went.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::baseline::{Baseline, Cost};
use crate::burst;
use crate::ledger::Counts;
use crate::relay::{Folder, Relay};
use crate::send::{Plan, Progress, Sent, send};
use crate::sink::{Behaviour, Sink, Store};

/// A relay that takes nothing for so long has taken all that it will.
const TAKING: Duration = Duration::from_secs(2);

/// What is run.
#[derive(Clone, Debug)]
pub struct Setup {
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
        /// TOML lines of its UDP listener.
        listener: String,
        /// TOML lines of its TCP listener, where it is to have one.
        streams: Option<String>,
        /// TOML lines of its journal.
        journal: String,
    },
    /// Running already, with the sinks as its backends.
    Running {
        /// Where it takes datagrams.
        target: SocketAddr,
        /// Where it takes streams.
        streams: Option<SocketAddr>,
        /// Where it shows its state.
        admin: SocketAddr,
    },
}

/// What came of it. Figures of a relay that ran before are those of this run only.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was sent, by hosts of both kinds.
    pub sent: Sent,
    /// How long the sending took.
    pub seconds: f64,
    /// What became of the bursts, where there were any.
    pub bursts: Option<BurstReport>,
    /// Datagrams sent in a second.
    pub datagrams_per_second: f64,
    /// Datagrams that neither the relay nor its kernel counted.
    pub lost_on_the_wire: i64,
    /// Datagrams that the relay's kernel dropped for want of room.
    pub kernel_dropped: i64,
    /// Lines the relay refused.
    pub refused_lines: i64,
    /// Each backend.
    pub backends: Vec<BackendReport>,
    /// What the relay cost.
    pub relay: RelayReport,
    /// What the bare loop cost, where it was asked for.
    pub baseline: Option<BaselineReport>,
    /// Whether lines were sent, and every one of them is stored or counted, at each backend.
    pub balanced: bool,
}

/// One backend's lines: as the relay counted them, and as its sink did.
#[derive(Clone, Debug, Serialize)]
pub struct BackendReport {
    /// Its name.
    pub name: String,
    /// Acknowledged, says the relay.
    pub delivered: i64,
    /// Never to be taken, says the relay.
    pub rejected: i64,
    /// Given up, says the relay.
    pub dropped: i64,
    /// Still on the way, says the relay.
    pub pending: i64,
    /// What the sink has.
    pub stored: Counts,
    /// Sent, less stored, less everything the relay counted: 0 where every line is accounted for. Says nothing
    /// where datagrams hold several lines and the kernel dropped some.
    pub difference: i64,
    /// From sending to the sink, in milliseconds: the median, the 99th percentile, the longest.
    pub latency_ms: [f64; 3],
}

/// What became of the bursts of hosts that run Netdata.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BurstReport {
    /// Values sent.
    pub values: u64,
    /// The longest time from a burst's first byte until the hosts' sockets had taken all of it.
    pub sent_seconds: f64,
    /// From the last burst's first byte until the relay had taken all that it did from its sockets.
    pub taken_seconds: f64,
}

/// What the relay cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RelayReport {
    /// Processor time of the whole process.
    pub cpu_seconds: f64,
    /// The same for each datagram it received.
    pub cpu_microseconds_per_datagram: f64,
    /// Most resident memory since its start.
    pub peak_resident_mib: f64,
}

/// What the bare loop cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BaselineReport {
    /// Processor time for each datagram.
    pub cpu_microseconds_per_datagram: f64,
    /// The relay's cost divided by it.
    pub relay_ratio: f64,
}

/// Runs it all. Sinks run on the current runtime.
///
/// # Errors
/// What kept it from running; lost lines are no error here.
pub async fn run(setup: Setup, progress: Arc<Progress>) -> Result<Report> {
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
        Under::Program { path, listener, streams, journal } => {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            Relay::start(&path, &Arc::new(Folder::new(any, &listener, streams.as_deref(), &journal, &addresses)?), None)
        }
        Under::Running { target, streams, admin } => Ok(Relay::running(target, streams, admin)),
    });
    let relay = Arc::new(relay.await?);
    let before = look(&relay).await?;
    ensure!(
        before.status["backends"].as_array().is_some_and(|backends| backends.len() == sinks.len()),
        "the relay must have the {} sinks as its only backends",
        sinks.len()
    );
    let started = Instant::now();
    let bursting = setup.bursts.map(|plan| tokio::spawn(send_bursts(plan, Arc::clone(&relay), Arc::clone(&progress))));
    let steady = Arc::new(Progress::default());
    let stop = tokio::spawn(pass_stop_on(Arc::clone(&progress), Arc::clone(&steady)));
    if let Some(plan) = setup.plan {
        send_all(Plan { target: relay.target, ..plan }, &steady).await?;
    }
    let bursts = match bursting {
        Some(bursting) => Some(bursting.await??),
        None => None,
    };
    stop.abort();
    let seconds = started.elapsed().as_secs_f64();
    let sent = progress.sent().plus(steady.sent());
    let after = wait_for_delivery(&relay, setup.patience, setup.last_sink).await?;
    let stores: Vec<Arc<Store>> = sinks.iter().map(|(_, store)| Arc::clone(store)).collect();
    Ok(Report { bursts, ..report(seconds, sent, &before, &after, &stores, baseline) })
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

/// Waits until nothing is pending at the backends that are to take lines, and nothing comes in any more.
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
        datagrams_per_second: float(signed(sent.datagrams)) / seconds,
        lost_on_the_wire: signed(sent.datagrams) - datagrams - kernel_dropped,
        kernel_dropped,
        refused_lines: refused,
        balanced: sent.lines > 0
            && backends.iter().all(|backend| backend.difference == 0 && backend.stored.altered == 0),
        backends,
        relay: RelayReport {
            cpu_seconds,
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

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn float(count: i64) -> f64 {
    count as f64
}

/// Does what blocks beside the runtime.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

impl Report {
    /// The report for people.
    pub fn to_text(&self) -> String {
        let mut lines = vec![format!(
            "sent        {} datagrams, {} lines, {:.1} MB in {:.2} s = {:.0} datagrams/s, {} errors",
            self.sent.datagrams,
            self.sent.lines,
            float(signed(self.sent.bytes)) / 1e6,
            self.seconds,
            self.datagrams_per_second,
            self.sent.errors
        )];
        if let Some(bursts) = self.bursts {
            lines.push(format!(
                "bursts      {} values; sent in {:.2} s at most, the last one taken from the sockets in {:.2} s",
                bursts.values, bursts.sent_seconds, bursts.taken_seconds
            ));
        }
        lines.push(format!(
            "lost        {} on the wire, {} dropped by the relay's kernel, {} lines refused",
            self.lost_on_the_wire, self.kernel_dropped, self.refused_lines
        ));
        for backend in &self.backends {
            let stored = backend.stored;
            lines.push(format!(
                "{:<11} {} stored in {} lines, {} twice, {} altered; relay: {} delivered, {} rejected, {} dropped, {} pending; difference {}",
                backend.name,
                stored.distinct,
                stored.lines,
                stored.duplicates,
                stored.altered,
                backend.delivered,
                backend.rejected,
                backend.dropped,
                backend.pending,
                backend.difference
            ));
            let [median, high, longest] = backend.latency_ms;
            lines.push(format!("            latency {median:.1} ms median, {high:.1} ms p99, {longest:.1} ms longest"));
        }
        let each = match self.sent.datagrams {
            0 => {
                format!("{:.2} us for each line", self.relay.cpu_seconds * 1e6 / float(signed(self.sent.lines.max(1))))
            }
            _ => format!("{:.2} us for each datagram", self.relay.cpu_microseconds_per_datagram),
        };
        lines.push(format!(
            "relay       {:.2} s CPU, {each}, {:.1} MiB most resident",
            self.relay.cpu_seconds, self.relay.peak_resident_mib
        ));
        if let Some(baseline) = self.baseline {
            lines.push(format!(
                "bare loop   {:.2} us for each datagram: the relay costs {:.2} times as much",
                baseline.cpu_microseconds_per_datagram, baseline.relay_ratio
            ));
        }
        lines.push(if self.balanced {
            "balanced    every line is stored or counted".to_owned()
        } else {
            "NOT BALANCED".to_owned()
        });
        lines.join("\n") + "\n"
    }
}
