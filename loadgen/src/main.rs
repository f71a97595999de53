//! The load generator's command line.
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use loadgen::burst::{self, Transport};
use loadgen::line::MAX_HOSTS;
use loadgen::netdata::{Format, MAX_DIMENSIONS};
use loadgen::outage::{self, Victim};
use loadgen::run::{Setup, Under, run};
use loadgen::send::{Pace, Plan, Progress, Sent, send};
use loadgen::sink::{Behaviour, Sink, Store};
use loadgen::strain;
use loadgen::workload::Shape;
use tokio::signal::unix::{SignalKind, signal};

/// The number of the first host that runs Telegraf beside those that run Netdata.
const FIRST_BESIDE: u32 = MAX_HOSTS / 2;

/// Simulated Telegraf and Netdata hosts and misbehaving InfluxDB servers, with a ledger that finds every lost, duplicated or
/// altered line.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Simulate hosts that run Telegraf (line protocol over UDP) or Netdata
    Send {
        /// Where to
        #[arg(long, value_name = "ADDR")]
        target: SocketAddr,
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        netdata: Netdata,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Be an InfluxDB that counts and checks lines; `curl -X PUT --data hang ADDR/behaviour` changes how it answers
    Sink {
        /// Where to listen
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8086")]
        listen: SocketAddr,
        /// accept, hang, reset, partial, half-close, slow:200ms, or a status such as 503
        #[arg(long, value_name = "HOW", default_value_t)]
        behave: Behaviour,
    },
    /// Start sinks, drive a relay, and report where every line went; exit code 1 where one is missing
    Run(Box<RunOptions>),
    /// Rehearse outages: kill and revive a sink, or the relay itself, under load, and report what that cost
    Outage(OutageOptions),
    /// Keep a relay's TCP listener busy with greedy senders and unused connections, and report how long ordinary hosts wait
    Strain {
        #[command(flatten)]
        setup: strain::Setup,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args, Clone, Copy, Debug)]
struct Load {
    /// How many hosts
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..i64::from(MAX_HOSTS)))]
    hosts: u32,
    /// How often each of them sends
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// How much faster than that, such as 10x; max: as fast as it goes
    #[arg(long, default_value = "1x")]
    speed: Speed,
    /// Lines a second in all, instead of interval and speed
    #[arg(long, value_name = "LINES", value_parser = positive)]
    rate: Option<f64>,
    /// For how long
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Fill datagrams with whole lines up to this size, instead of one line in each
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1..=65_507))]
    payload: Option<u16>,
}

impl Load {
    fn plan(self, target: SocketAddr) -> Plan {
        let pace = match (self.rate, self.speed) {
            (Some(rate), _) => Pace::Rate(rate),
            (None, Speed::Max) => Pace::Max,
            (None, Speed::Times(times)) => Pace::Every(self.interval.div_f64(times)),
        };
        Plan {
            target,
            hosts: self.hosts,
            first_host: 0,
            shape: Shape::default(),
            pace,
            duration: self.duration,
            payload: self.payload.map(usize::from),
        }
    }
}

/// What hosts are simulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// Telegraf: line protocol over UDP, spread over the interval
    #[default]
    Telegraf,
    /// Netdata: all hosts in the same second, each its whole batch at once
    Netdata,
}

#[derive(Args, Clone, Copy, Debug)]
struct Netdata {
    /// What the hosts run; with netdata, --speed, --rate and --payload say nothing
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// netdata: what the batches are written in
    #[arg(long, value_enum, default_value = "graphite")]
    format: Format,
    /// netdata: what they travel in; over UDP a batch must fit into one datagram of 65,507 bytes (about 390 dimensions with graphite, 360 with opentsdb, 160 with json)
    #[arg(long, value_enum, default_value = "tcp")]
    transport: Transport,
    /// netdata: values in each host's batch
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DIMENSIONS)))]
    dimensions: u32,
}

impl Netdata {
    /// None for hosts that run Telegraf.
    fn plan(self, target: SocketAddr, load: &Load) -> Option<burst::Plan> {
        (self.profile == Profile::Netdata).then_some(burst::Plan {
            target,
            transport: self.transport,
            format: self.format,
            hosts: load.hosts,
            dimensions: self.dimensions,
            interval: load.interval,
            duration: load.duration,
        })
    }
}

#[derive(Clone, Copy, Debug)]
enum Speed {
    Times(f64),
    Max,
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let times = text.strip_suffix('x').and_then(|number| positive(number).ok());
        times
            .filter(|times| times.is_finite() && *times > 0.0)
            .map(Self::Times)
            .ok_or_else(|| "write 1x, 10x or max".to_owned())
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.001..=1e9).contains(number));
    number.ok_or_else(|| "write a number between 0.001 and 1000000000".to_owned())
}

#[derive(Args, Debug)]
struct RunOptions {
    /// A relay that runs already, with the sinks as its only backends: where it takes datagrams
    #[arg(long, value_name = "ADDR", requires = "admin", requires = "sink_addresses", conflicts_with = "relay")]
    target: Option<SocketAddr>,
    /// Where it takes streams
    #[arg(long, value_name = "ADDR", conflicts_with = "relay")]
    stream_target: Option<SocketAddr>,
    /// Where it shows its state
    #[arg(long, value_name = "ADDR", conflicts_with = "relay")]
    admin: Option<SocketAddr>,
    /// Where a sink listens; repeat it for each
    #[arg(long = "sink", value_name = "ADDR", conflicts_with = "relay")]
    sink_addresses: Vec<SocketAddr>,
    /// Start this relay for the run, with two sinks, instead
    #[arg(long, value_name = "FILE", required_unless_present = "target")]
    relay: Option<PathBuf>,
    /// How many sinks it gets
    #[arg(long, default_value_t = 2, requires = "relay", value_parser = clap::value_parser!(u8).range(1..=16))]
    sinks: u8,
    /// The receive buffer it asks for
    #[arg(long, default_value = "8MiB", requires = "relay")]
    receive_buffer: String,
    /// The journal's durability; without it the relay's default
    #[arg(long, requires = "relay")]
    durability: Option<String>,
    /// How the last sink behaves; the others accept
    #[arg(long, value_name = "HOW", default_value_t)]
    last_sink: Behaviour,
    /// Give a bare receive loop the same load first, and compare
    #[arg(long)]
    baseline: bool,
    /// How long the relay may take to deliver everything after the sending
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    patience: Duration,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    netdata: Netdata,
    /// netdata: lines a second that other hosts send with Telegraf meanwhile
    #[arg(long, value_name = "LINES", value_parser = positive)]
    beside: Option<f64>,
    /// netdata: the relay's mapping, path or netdata
    #[arg(long, default_value = "netdata", requires = "relay")]
    mapping: String,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct OutageOptions {
    /// The relay's program, which gets two sinks
    #[arg(long, value_name = "FILE")]
    relay: PathBuf,
    /// What is killed: the last sink, or the relay (and the last sink is down every other time)
    #[arg(long, value_enum, default_value = "sink")]
    kill: Victim,
    /// How often
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    times: u32,
    /// The time between outages, at random between half of it and one and a half
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    every: Duration,
    /// How long a sink is down
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    down: Duration,
    /// How many hosts
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..i64::from(MAX_HOSTS)))]
    hosts: u32,
    /// Lines a second in all
    #[arg(long, value_name = "LINES", default_value = "10000", value_parser = positive)]
    rate: f64,
    /// The journal's durability; without it the relay's default
    #[arg(long)]
    durability: Option<String>,
    /// How long the relay may take to deliver everything in the end
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Send { target, load, netdata, json } => match netdata.plan(target, &load) {
            Some(plan) => send_bursts(plan, json).await,
            None => send_only(load.plan(target), json).await,
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
    let plan = Plan {
        target: SocketAddr::from(([127, 0, 0, 1], 0)),
        hosts: options.hosts,
        first_host: 0,
        shape: Shape::default(),
        pace: Pace::Rate(options.rate),
        duration: Duration::ZERO,
        payload: None,
    };
    let setup = outage::Setup {
        program: options.relay,
        journal: options.durability.map_or_else(String::new, |name| format!("durability = \"{name}\"")),
        plan,
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

async fn strain_relay(setup: strain::Setup, json: bool) -> Result<bool> {
    let report = tokio::select! {
        report = strain::run(setup) => report?,
        () = end_asked_for() => bail!("interrupted"),
    };
    say(&if json { format!("{}\n", serde_json::to_string_pretty(&report)?) } else { report.to_text() });
    Ok(report.is_good())
}

async fn run_all(options: RunOptions) -> Result<bool> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (relay, sinks) = match (options.relay, options.target, options.admin) {
        (Some(path), ..) => {
            let listener = format!("receive_buffer = \"{}\"", options.receive_buffer);
            let (listener, streams) = match (options.netdata.profile, options.netdata.transport) {
                (Profile::Telegraf, _) => (listener, None),
                (_, Transport::Udp) => (format!("{listener}\nmapping = \"{}\"", options.mapping), None),
                (_, Transport::Tcp) => (listener, Some(format!("mapping = \"{}\"", options.mapping))),
            };
            let journal = options.durability.map_or_else(String::new, |name| format!("durability = \"{name}\""));
            (Under::Program { path, listener, streams, journal }, vec![any; usize::from(options.sinks)])
        }
        (None, Some(target), Some(admin)) => {
            (Under::Running { target, streams: options.stream_target, admin }, options.sink_addresses)
        }
        _ => bail!("give --relay FILE, or --target, --admin and --sink"),
    };
    let setup = Setup {
        relay,
        sinks,
        last_sink: options.last_sink,
        plan: match (options.netdata.profile, options.beside) {
            (Profile::Telegraf, _) => Some(options.load.plan(any)),
            (Profile::Netdata, rate) => rate.map(|rate| Plan {
                first_host: FIRST_BESIDE,
                pace: Pace::Rate(rate),
                payload: None,
                ..options.load.plan(any)
            }),
        },
        bursts: options.netdata.plan(any, &options.load),
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
