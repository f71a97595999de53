//! The load generator's command line.
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use loadgen::line::MAX_HOSTS;
use loadgen::outage;
use loadgen::run::{RunConfig, Under, run};
use loadgen::send::{Pace, Plan, Progress, Sent, send};
use loadgen::sink::{Behaviour, Sink, Store};
use loadgen::workload::Shape;
use loadgen::{burst, http, strain};
use tokio::signal::unix::{SignalKind, signal};

use options::{Http, Load, Netdata, OutageOptions, Profile, RunOptions};

mod options;

/// The number of the first host that runs Telegraf beside those that run Netdata.
const FIRST_BESIDE: u32 = MAX_HOSTS / 2;

/// Simulated Telegraf and Netdata hosts and misbehaving InfluxDB servers, with a ledger that finds
/// every lost, duplicated or altered line.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Simulate hosts that run Telegraf (line protocol over UDP, or over HTTP) or Netdata
    Send {
        /// Where to
        #[arg(long, value_name = "ADDR")]
        target: SocketAddr,
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        netdata: Netdata,
        #[command(flatten)]
        http: Http,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Be an InfluxDB that counts and checks lines; `curl -X PUT --data hang ADDR/behaviour`
    /// changes how it answers
    Sink {
        /// Where to listen
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8086")]
        listen: SocketAddr,
        /// accept, hang, reset, partial, half-close, slow:200ms, or a status such as 503
        #[arg(long, value_name = "HOW", default_value_t)]
        behave: Behaviour,
    },
    /// Start sinks, drive a relay, and report where every line went; exit code 1 where one is
    /// missing
    Run(Box<RunOptions>),
    /// Rehearse outages: kill and revive a sink, or the relay itself, under load, and report what
    /// that cost
    Outage(OutageOptions),
    /// Keep a relay's TCP listener busy with greedy senders and unused connections, and report how
    /// long ordinary hosts wait
    Strain {
        #[command(flatten)]
        setup: strain::StrainConfig,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Send { target, load, netdata, http, json } => match (netdata.profile, netdata.plan(target, &load)) {
            (Profile::Http, _) => send_requests(http.plan(target, &load), json).await,
            (_, Some(plan)) => send_bursts(plan, json).await,
            (_, None) => send_only(load.plan(target), json).await,
        },
        Command::Sink { listen, behave } => sink(listen, behave).await,
        Command::Run(options) => run_all(*options).await,
        Command::Outage(options) => rehearse(options).await,
        Command::Strain { setup, json } => strain_relay(setup, json).await,
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            whisper(&format!("loadgen: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

async fn send_only(plan: Plan, json: bool) -> Result<bool> {
    let progress = Arc::new(Progress::default());
    let shown = tokio::spawn(show(Arc::clone(&progress), plan.duration));
    let shared = Arc::clone(&progress);
    let mut sending = tokio::task::spawn_blocking(move || send(&plan, &shared));
    let taken = tokio::select! {
        taken = &mut sending => taken,
        () = end_asked_for() => {
            progress.stop();
            sending.await
        }
    };
    let seconds = taken?.context("cannot open the hosts' sockets; is the limit of open files too low?")?.as_secs_f64();
    shown.abort();
    let sent = progress.sent();
    if json {
        say(&format!("{}\n", serde_json::json!({ "sent": sent, "seconds": seconds })));
    } else {
        say(&format!("sent {} in {seconds:.2} s\n", describe(sent)));
    }
    Ok(sent.errors == 0)
}

/// One line, anew each second.
async fn show(progress: Arc<Progress>, duration: Duration) {
    let mut before = Sent::default();
    for second in 1..=duration.as_secs() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let sent = progress.sent();
        let (sum, newest) = (describe(sent), sent.datagrams - before.datagrams);
        whisper(&format!("\r{second:>4} s  {sum} ({newest} datagrams in the last second)  "));
        before = sent;
    }
    whisper("\n");
}

async fn send_bursts(plan: burst::Plan, json: bool) -> Result<bool> {
    let progress = Arc::new(Progress::default());
    let shared = Arc::clone(&progress);
    let mut sending = tokio::task::spawn_blocking(move || burst::send(&plan, &shared));
    let (longest, _) = tokio::select! {
        ended = &mut sending => ended?,
        () = end_asked_for() => {
            progress.stop();
            sending.await?
        }
    }
    .with_context(|| format!("cannot send to {}", plan.target))?;
    let sent = progress.sent();
    let text = format!("sent {}; the longest burst took {:.2} s\n", describe(sent), longest.as_secs_f64());
    say(&if json { format!("{}\n", serde_json::to_string(&sent)?) } else { text });
    Ok(sent.errors == 0)
}

async fn send_requests(plan: http::Plan, json: bool) -> Result<bool> {
    let progress = Arc::new(Progress::default());
    let shared = Arc::clone(&progress);
    let mut sending = tokio::task::spawn_blocking(move || http::send(&plan, &shared));
    let answers = tokio::select! {
        ended = &mut sending => ended??,
        () = end_asked_for() => {
            progress.stop();
            sending.await??
        }
    };
    let sent = progress.sent();
    let text = format!("sent {} lines, {} bytes\n{}\n", sent.lines, sent.bytes, answers.to_text());
    say(&if json { format!("{}\n", serde_json::json!({ "sent": sent, "answers": answers })) } else { text });
    Ok(answers.others.is_empty())
}

fn describe(sent: Sent) -> String {
    format!("{} datagrams, {} lines, {} bytes, {} errors", sent.datagrams, sent.lines, sent.bytes, sent.errors)
}

async fn sink(listen: SocketAddr, behave: Behaviour) -> Result<bool> {
    let store = Arc::new(Store::default());
    store.behave(behave);
    let sink = Sink::start(listen, Arc::clone(&store)).await.with_context(|| format!("cannot listen on {listen}"))?;
    say(&format!("listening on http://{}, behaviour: {behave}; Ctrl-C ends and prints the ledger\n", sink.address()));
    end_asked_for().await;
    let counts = store.ledger.counts();
    say(&format!("{}\n", serde_json::to_string(&counts)?));
    Ok(counts.altered == 0)
}

/// SIGINT or SIGTERM.
async fn end_asked_for() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// Where nobody reads the output, the exit code still tells.
fn say(text: &str) {
    drop(std::io::stdout().write_all(text.as_bytes()));
}

/// The same for what is no result.
fn whisper(text: &str) {
    drop(std::io::stderr().write_all(text.as_bytes()));
}

async fn rehearse(options: OutageOptions) -> Result<bool> {
    ensure!(options.profile != Profile::Netdata, "outages are rehearsed with telegraf or http");
    let plan = Plan {
        target: SocketAddr::from(([127, 0, 0, 1], 0)),
        hosts: options.hosts,
        first_host: 0,
        shape: Shape::default(),
        pace: Pace::Rate(options.rate),
        duration: Duration::ZERO,
        payload: None,
    };
    let is_http = options.profile == Profile::Http;
    let requests = is_http.then(|| options.http.paced(&plan));
    let setup = outage::OutageConfig {
        program: options.relay,
        journal: options.durability.map_or_else(String::new, |name| format!("durability = \"{name}\"")),
        plan,
        requests,
        victim: options.kill,
        times: options.times,
        every: options.every,
        down: options.down,
        patience: options.patience,
    };
    let progress = Arc::new(Progress::with_rounds());
    let report = tokio::select! {
        report = outage::run(setup, Arc::clone(&progress)) => report?,
        () = end_asked_for() => {
            progress.stop();
            bail!("interrupted");
        }
    };
    say(&if options.json { format!("{}\n", serde_json::to_string_pretty(&report)?) } else { report.to_text() });
    Ok(report.is_good())
}

async fn strain_relay(setup: strain::StrainConfig, json: bool) -> Result<bool> {
    let report = tokio::select! {
        report = strain::run(setup) => report?,
        () = end_asked_for() => bail!("interrupted"),
    };
    say(&if json { format!("{}\n", serde_json::to_string_pretty(&report)?) } else { report.to_text() });
    Ok(report.is_good())
}

async fn run_all(options: RunOptions) -> Result<bool> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listeners = options.listeners();
    let (relay, sinks) = match (options.relay, options.target, options.admin) {
        (Some(path), ..) => {
            let journal = options.durability.map_or_else(String::new, |name| format!("durability = \"{name}\""));
            (Under::Program { path, listeners, journal }, vec![any; usize::from(options.sinks)])
        }
        (None, Some(target), Some(admin)) => {
            let (streams, requests) = (options.stream_target, options.http_target);
            (Under::Running { target, streams, requests, admin }, options.sink_addresses)
        }
        _ => bail!("give --relay FILE, or --target, --admin and --sink"),
    };
    let setup = RunConfig {
        relay,
        sinks,
        last_sink: options.last_sink,
        plan: match (options.netdata.profile, options.beside) {
            (Profile::Telegraf, _) => Some(options.load.plan(any)),
            (Profile::Netdata | Profile::Http, rate) => rate.map(|rate| Plan {
                first_host: FIRST_BESIDE,
                pace: Pace::Rate(rate),
                payload: None,
                ..options.load.plan(any)
            }),
        },
        bursts: options.netdata.plan(any, &options.load),
        requests: (options.netdata.profile == Profile::Http).then(|| options.http.plan(any, &options.load)),
        hostile: options.hostile,
        baseline: options.baseline,
        patience: options.patience,
    };
    let progress = Arc::new(Progress::default());
    let report = tokio::select! {
        report = run(setup, Arc::clone(&progress)) => report?,
        // What was started for the run ends with it.
        () = end_asked_for() => {
            progress.stop();
            bail!("interrupted");
        }
    };
    if options.json {
        say(&format!("{}\n", serde_json::to_string_pretty(&report)?));
    } else {
        say(&report.to_text());
    }
    Ok(report.balanced)
}
