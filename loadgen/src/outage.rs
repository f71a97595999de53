//! A rehearsal: hosts that go on sending while a sink, or the relay itself, is killed and revived.
//!
//! The UDP socket is held here and passed on to each relay process, so that what is sent while
//! there is none waits in the kernel. What a killed relay had read from the socket and not yet
//! written to its disk is lost: the report says how long before the kill such lines were sent. What
//! hosts sent by HTTP and were answered 204 for is never lost: whatever of it is missing is missing
//! for no reason.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::answers::Answers;
use crate::http;
use crate::ledger::Counts;
use crate::relay::{Folder, Listeners, Relay};
use crate::run::blocking;
use crate::send::{Pace, Plan, Progress, Round, Sent, send};
use crate::sink::{Sink, Store};

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Victim {
    /// The last sink.
    Sink,
    /// The relay (SIGKILL), with the last sink down every other time.
    Relay,
}

/// What is rehearsed.
#[derive(Clone, Debug)]
pub struct OutageConfig {
    /// The relay's program.
    pub program: PathBuf,
    /// TOML lines of its journal.
    pub journal: String,
    /// What is sent; the target is the relay's, and the time ends with the last outage.
    pub plan: Plan,
    /// What hosts send by HTTP instead, where they do; the target is the relay's, and only what was
    /// answered for counts.
    pub requests: Option<http::Plan>,
    /// What is killed.
    pub victim: Victim,
    /// How often.
    pub times: u32,
    /// The time between two outages; each comes at random between half of it and one and a half.
    pub every: Duration,
    /// How long a sink is down.
    pub down: Duration,
    /// How long the relay may take to deliver everything in the end.
    pub patience: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was sent.
    pub sent: Sent,
    /// What hosts that write by HTTP were told.
    pub answers: Option<Answers>,
    /// Outages.
    pub outages: u32,
    /// From a relay's start to its first reading of the socket, in milliseconds: the median and the
    /// longest.
    pub restart_ms: [f64; 2],
    /// Datagrams, of one line each, that the kernel dropped at the hosts' target over all relays
    /// that had it.
    pub kernel_dropped: u64,
    /// What came after each outage of a sink.
    pub replays: Vec<Replay>,
    /// Each sink.
    pub sinks: Vec<SinkReport>,
}

/// How a revived sink got what it had missed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Replay {
    /// Bytes that the relay's journal had on its disk.
    pub disk_bytes: u64,
    /// Lines that were waiting, and those that came meanwhile.
    pub lines: u64,
    /// From the first of them until no more than two seconds' worth was waiting.
    pub seconds: f64,
    /// How long the other backend's oldest line waited at most meanwhile.
    pub other_lag_seconds: f64,
    /// The relay's resident memory, at most meanwhile.
    pub resident_mib: f64,
}

/// One sink's lines.
#[derive(Clone, Debug, Serialize)]
pub struct SinkReport {
    /// What it has.
    pub stored: Counts,
    /// Lines that it does not have.
    pub missing: u64,
    /// How long before a kill the oldest of them was sent, in milliseconds.
    pub oldest_missing_ms: f64,
    /// Lines missing that were not sent before a kill of the relay, but at some other time.
    pub unexplained: u64,
}

/// Lines sent so long before a kill are not lost by it.
const WINDOW: Duration = Duration::from_secs(1);

impl Report {
    /// Whether nothing is altered, and nothing is missing that was neither on its way through a
    /// killed relay nor dropped by the kernel.
    pub fn is_good(&self) -> bool {
        self.sinks.iter().all(|sink| sink.stored.altered == 0 && sink.unexplained <= self.kernel_dropped)
    }

    /// The report for people.
    pub fn to_text(&self) -> String {
        let [median, longest] = self.restart_ms;
        let Self { sent, outages, kernel_dropped, .. } = self;
        let mut text = format!(
            "sent        {} lines over {outages} outages, {kernel_dropped} dropped by the kernel\n",
            sent.lines
        );
        if let Some(answers) = &self.answers {
            text.push_str(&format!("{}\n", answers.to_text()));
        }
        if longest > 0.0 {
            text.push_str(&format!(
                "restarts    {median:.0} ms median, {longest:.0} ms longest, from start to receiving\n"
            ));
        }
        for replay in &self.replays {
            let Replay { disk_bytes, lines, seconds, other_lag_seconds, resident_mib } = *replay;
            let (mib, each) = (disk_bytes >> 20, lines as f64 / seconds.max(1e-3));
            text.push_str(&format!(
                "replay      {lines} lines from {mib} MiB in {seconds:.2} s = {each:.0} lines/s; the other sink's lag {other_lag_seconds:.2} s at most, {resident_mib:.0} MiB resident at most\n"
            ));
        }
        for (place, sink) in self.sinks.iter().enumerate() {
            let Counts { distinct, duplicates, altered, .. } = sink.stored;
            let SinkReport { missing, oldest_missing_ms, unexplained, .. } = sink;
            text.push_str(&format!(
                "sink-{place}      {distinct} stored, {duplicates} twice, {altered} altered; {missing} missing, the oldest sent {oldest_missing_ms:.1} ms before a kill; {unexplained} missing for no reason\n"
            ));
        }
        text.push_str(if self.is_good() { "good\n" } else { "NOT GOOD\n" });
        text
    }
}

/// Runs it all.
///
/// # Errors
/// What kept it from running to its end.
pub async fn run(setup: OutageConfig, progress: Arc<Progress>) -> Result<Report> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let stores = [Arc::new(Store::default()), Arc::new(Store::default())];
    let steady = Sink::start(any, Arc::clone(&stores[0])).await.context("cannot start a sink")?;
    let mut last = Some(Sink::start(any, Arc::clone(&stores[1])).await.context("cannot start a sink")?);
    let last_address = last.as_ref().map_or(any, Sink::address);
    let socket = UdpSocket::bind(any).context("cannot bind the hosts' target")?;
    let target = socket.local_addr()?;
    let requests = setup.requests.as_ref().map(|_| String::new());
    let listeners = Listeners { requests, ..Listeners::default() };
    let folder = Arc::new(Folder::new(target, &listeners, &setup.journal, &[steady.address(), last_address])?);
    let start = move |program: PathBuf, folder: Arc<Folder>, socket: UdpSocket| {
        blocking(move || {
            let begun = Instant::now();
            Relay::start(&program, &folder, Some(&socket)).map(|relay| (relay, begun.elapsed()))
        })
    };
    let (mut relay, _) = start(setup.program.clone(), Arc::clone(&folder), socket.try_clone()?).await?;
    let door = http::Target::new(relay.requests.unwrap_or(target));
    let shared = Arc::clone(&progress);
    let hosts = match setup.requests.clone() {
        Some(plan) => {
            let plan = http::Plan { target: door.clone(), duration: FOREVER, ..plan };
            tokio::task::spawn_blocking(move || http::send(&plan, &shared).map(Some))
        }
        None => {
            let plan = Plan { target, duration: FOREVER, ..setup.plan };
            tokio::task::spawn_blocking(move || send(&plan, &shared).map(|_| None))
        }
    };

    let (mut kills, mut restarts, mut replays) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..setup.times {
        tokio::time::sleep(setup.every.mul_f64(0.5 + fastrand::f64())).await;
        match setup.victim {
            Victim::Sink => {
                drop(last.take());
                tokio::time::sleep(setup.down).await;
                last = Some(revive(last_address, &stores[1]).await?);
                let (watched, rest) = watch_replay(relay, setup.plan.pace, setup.patience).await?;
                (relay, replays) = (rest, [replays, vec![watched]].concat());
            }
            Victim::Relay => {
                if number % 2 == 0 {
                    drop(last.take());
                } else if last.is_none() {
                    last = Some(revive(last_address, &stores[1]).await?);
                }
                blocking(move || {
                    relay.kill();
                    Ok(())
                })
                .await?;
                // Until it is gone it takes lines that go with it.
                kills.push(now());
                let (next, took) = start(setup.program.clone(), Arc::clone(&folder), socket.try_clone()?).await?;
                (relay, restarts) = (next, [restarts, vec![took]].concat());
                door.set(relay.requests.unwrap_or(target));
            }
        }
    }
    tokio::time::sleep(setup.every).await;
    if last.is_none() {
        last = Some(revive(last_address, &stores[1]).await?);
    }
    progress.stop();
    let answers = hosts.await??;
    let relay = wait_for_delivery(relay, &stores, progress.sent().lines, setup.patience).await?;
    let rounds = progress.rounds();
    // Killing the relay is no reason for missing what it had answered for.
    let window = if answers.is_some() { Duration::ZERO } else { WINDOW };
    let sinks = stores.iter().map(|store| judge(store, &rounds, (&kills, window))).collect();
    let relay = Arc::new(relay);
    let looked_at = Arc::clone(&relay);
    let status = blocking(move || looked_at.status()).await?;
    let kernel_dropped = status["receive"][0]["kernel_dropped"].as_u64().unwrap_or(0);
    drop((relay, steady, last));
    let (outages, restart_ms) = (setup.times, middle_and_most(restarts));
    Ok(Report { sent: progress.sent(), answers, outages, restart_ms, kernel_dropped, replays, sinks })
}

/// The sending is stopped, not timed.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

async fn revive(address: SocketAddr, store: &Arc<Store>) -> Result<Sink> {
    Sink::start(address, Arc::clone(store)).await.context("cannot revive a sink")
}

/// Follows a revived sink until it has no more than two seconds' worth of lines to get.
async fn watch_replay(relay: Relay, pace: Pace, patience: Duration) -> Result<(Replay, Relay)> {
    let rate = if let Pace::Rate(rate) = pace { rate } else { 0.0 };
    blocking(move || {
        let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
        let before = relay.status()?;
        let delivered = number(&before["backends"][1]["delivered_lines"]);
        let (limit, mut begun) = (Instant::now() + patience, None);
        let (mut lag, mut resident) = (0.0_f64, 0.0_f64);
        loop {
            let status = relay.status()?;
            let (other, revived) = (&status["backends"][0], &status["backends"][1]);
            lag = lag.max(other["oldest_pending_seconds"].as_f64().unwrap_or(0.0));
            resident = resident.max(relay.metric("twinflux_process_resident_bytes")? / f64::from(1 << 20));
            let lines = number(&revived["delivered_lines"]) - delivered;
            if lines > 0 {
                begun.get_or_insert_with(Instant::now);
            }
            if (lines > 0 && number(&revived["pending_lines"]) as f64 <= 2.0 * rate) || Instant::now() > limit {
                let seconds = begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
                let disk_bytes = number(&before["journal"]["disk_bytes"]);
                let replay = Replay { disk_bytes, lines, seconds, other_lag_seconds: lag, resident_mib: resident };
                return Ok((replay, relay));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    })
    .await
}

/// Waits until both sinks have everything, or the relay has nothing more to give them.
async fn wait_for_delivery(relay: Relay, stores: &[Arc<Store>], lines: u64, patience: Duration) -> Result<Relay> {
    let (limit, relay) = (Instant::now() + patience, Arc::new(relay));
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let looked_at = Arc::clone(&relay);
        let status = blocking(move || looked_at.status()).await?;
        let backends = status["backends"].as_array().cloned().unwrap_or_default();
        let is_idle = backends.iter().all(|backend| backend["pending_lines"] == 0);
        let stored: u64 = stores.iter().map(|store| store.ledger.counts().distinct).sum();
        let has_all = stored == lines * stores.len() as u64;
        if (is_idle && (has_all || stored == before)) || Instant::now() > limit {
            return Arc::into_inner(relay).context("BUG: nobody else looks at the relay");
        }
        before = stored;
    }
}

fn judge(store: &Store, rounds: &[Round], (kills, window): (&[u64], Duration)) -> SinkReport {
    let (mut missing, mut oldest, mut unexplained) = (0, 0, 0);
    for round in rounds {
        let lines = store.ledger.missing(round.host, round.first, round.lines);
        if lines == 0 {
            continue;
        }
        missing += lines;
        let before = kills.iter().filter_map(|kill| kill.checked_sub(round.time)).min();
        match before.filter(|before| u128::from(*before) < window.as_nanos()) {
            Some(before) => oldest = oldest.max(before),
            None => unexplained += lines,
        }
    }
    let oldest_missing_ms = Duration::from_nanos(oldest).as_secs_f64() * 1e3;
    SinkReport { stored: store.ledger.counts(), missing, oldest_missing_ms, unexplained }
}

fn middle_and_most(mut times: Vec<Duration>) -> [f64; 2] {
    times.sort_unstable();
    let milliseconds = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    [milliseconds(times.get(times.len() / 2)), milliseconds(times.last())]
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    u64::try_from(now).unwrap_or(u64::MAX)
}
