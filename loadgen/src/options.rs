//! The options of the commands, and the plans that they mean.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use loadgen::batch::Form;
use loadgen::burst::{self, Transport};
use loadgen::http;
use loadgen::line::MAX_HOSTS;
use loadgen::netdata::{Format, MAX_DIMENSIONS};
use loadgen::outage::Victim;
use loadgen::relay::Listeners;
use loadgen::send::{Pace, Plan};
use loadgen::sink::Behaviour;
use loadgen::workload::Shape;

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Load {
    /// How many hosts
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..i64::from(MAX_HOSTS)))]
    pub(crate) hosts: u32,
    /// How often each of them sends
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) interval: Duration,
    /// How much faster than that, such as 10x; max: as fast as it goes
    #[arg(long, default_value = "1x")]
    pub(crate) speed: Speed,
    /// Lines a second in all, instead of interval and speed
    #[arg(long, value_name = "LINES", value_parser = positive)]
    pub(crate) rate: Option<f64>,
    /// For how long
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,
    /// Fill datagrams with whole lines up to this size, instead of one line in each
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1..=65_507))]
    pub(crate) payload: Option<u16>,
}

impl Load {
    pub(crate) fn plan(self, target: SocketAddr) -> Plan {
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
pub(crate) enum Profile {
    /// Telegraf: line protocol over UDP, spread over the interval
    #[default]
    Telegraf,
    /// Netdata: all hosts in the same second, each its whole batch at once
    Netdata,
    /// Telegraf's lines in batches over HTTP: each is answered before the next one of its
    /// connection
    Http,
}

/// How hosts write by HTTP.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Http {
    /// http: lines in each batch; a host sends one batch in each interval
    #[arg(long, value_name = "LINES", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) batch: u32,
    /// http: compress the bodies
    #[arg(long)]
    pub(crate) gzip: bool,
    /// http: send bodies in chunks of 32 KiB instead of with their length
    #[arg(long)]
    pub(crate) chunked: bool,
    /// http: connections that the hosts share; without it each host has its own
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) connections: Option<u32>,
    /// http: a new connection for each batch
    #[arg(long)]
    pub(crate) one_shot: bool,
    /// http: make so many batches before the time begins, and send each once the one before it is
    /// answered; with it --interval, --speed and --rate say nothing
    #[arg(long, value_name = "BATCHES", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) prepared: Option<u32>,
    /// http: write the same batches to the TCP listener, which answers nothing, to compare
    #[arg(long, conflicts_with_all = ["gzip", "chunked", "one_shot"])]
    pub(crate) streams: bool,
}

impl Http {
    pub(crate) fn plan(self, target: SocketAddr, load: &Load) -> http::Plan {
        self.paced(&load.plan(target))
    }

    /// The same hosts as these, as fast as they are.
    pub(crate) fn paced(self, plan: &Plan) -> http::Plan {
        http::Plan {
            target: http::Target::new(plan.target),
            hosts: plan.hosts,
            first_host: plan.first_host,
            shape: plan.shape,
            form: Form {
                lines: self.batch as usize,
                is_gzip: self.gzip,
                is_chunked: self.chunked,
                is_one_shot: self.one_shot,
                is_stream: self.streams,
            },
            pace: if self.prepared.is_some() { Pace::Max } else { plan.pace },
            duration: plan.duration,
            connections: self.connections,
            prepared: self.prepared.map(|count| count as usize),
        }
    }
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Netdata {
    /// What the hosts run; with netdata, --speed, --rate and --payload say nothing
    #[arg(long, value_enum, default_value_t)]
    pub(crate) profile: Profile,
    /// netdata: what the batches are written in
    #[arg(long, value_enum, default_value = "graphite")]
    pub(crate) format: Format,
    /// netdata: what they travel in; over UDP a batch must fit into one datagram of 65,507 bytes
    /// (about 390 dimensions with graphite, 360 with opentsdb, 160 with json)
    #[arg(long, value_enum, default_value = "tcp")]
    pub(crate) transport: Transport,
    /// netdata: values in each host's batch
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DIMENSIONS)))]
    pub(crate) dimensions: u32,
}

impl Netdata {
    /// None for hosts that run Telegraf.
    pub(crate) fn plan(self, target: SocketAddr, load: &Load) -> Option<burst::Plan> {
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
pub(crate) enum Speed {
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

pub(crate) fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.001..=1e9).contains(number));
    number.ok_or_else(|| "write a number between 0.001 and 1000000000".to_owned())
}

#[derive(Args, Debug)]
pub(crate) struct RunOptions {
    /// A relay that runs already, with the sinks as its only backends: where it takes datagrams
    #[arg(long, value_name = "ADDR", requires = "admin", requires = "sink_addresses", conflicts_with = "relay")]
    pub(crate) target: Option<SocketAddr>,
    /// Where it takes streams
    #[arg(long, value_name = "ADDR", conflicts_with = "relay")]
    pub(crate) stream_target: Option<SocketAddr>,
    /// Where it takes HTTP
    #[arg(long, value_name = "ADDR", conflicts_with = "relay")]
    pub(crate) http_target: Option<SocketAddr>,
    /// Where it shows its state
    #[arg(long, value_name = "ADDR", conflicts_with = "relay")]
    pub(crate) admin: Option<SocketAddr>,
    /// Where a sink listens; repeat it for each
    #[arg(long = "sink", value_name = "ADDR", conflicts_with = "relay")]
    pub(crate) sink_addresses: Vec<SocketAddr>,
    /// Start this relay for the run, with two sinks, instead
    #[arg(long, value_name = "FILE", required_unless_present = "target")]
    pub(crate) relay: Option<PathBuf>,
    /// How many sinks it gets
    #[arg(long, default_value_t = 2, requires = "relay", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) sinks: u8,
    /// The receive buffer it asks for
    #[arg(long, default_value = "8MiB", requires = "relay")]
    pub(crate) receive_buffer: String,
    /// The journal's durability; without it the relay's default
    #[arg(long, requires = "relay")]
    pub(crate) durability: Option<String>,
    /// How the last sink behaves; the others accept
    #[arg(long, value_name = "HOW", default_value_t)]
    pub(crate) last_sink: Behaviour,
    /// Give a bare receive loop the same load first, and compare
    #[arg(long)]
    pub(crate) baseline: bool,
    /// How long the relay may take to deliver everything after the sending
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) patience: Duration,
    #[command(flatten)]
    pub(crate) load: Load,
    #[command(flatten)]
    pub(crate) netdata: Netdata,
    #[command(flatten)]
    pub(crate) http: Http,
    /// netdata, http: lines a second that other hosts send with Telegraf meanwhile
    #[arg(long, value_name = "LINES", value_parser = positive)]
    pub(crate) beside: Option<f64>,
    /// So many HTTP connections beside whose requests come a byte a second, and a client that sends
    /// gzip bombs
    #[arg(long, value_name = "CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) hostile: Option<u32>,
    /// netdata: the relay's mapping, path or netdata
    #[arg(long, default_value = "netdata", requires = "relay")]
    pub(crate) mapping: String,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct OutageOptions {
    /// The relay's program, which gets two sinks
    #[arg(long, value_name = "FILE")]
    pub(crate) relay: PathBuf,
    /// What is killed: the last sink, or the relay (and the last sink is down every other time)
    #[arg(long, value_enum, default_value = "sink")]
    pub(crate) kill: Victim,
    /// How often
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) times: u32,
    /// The time between outages, at random between half of it and one and a half
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    pub(crate) every: Duration,
    /// How long a sink is down
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) down: Duration,
    /// What the hosts run: telegraf, or http, of whose lines only those count that were answered
    /// for
    #[arg(long, value_enum, default_value_t)]
    pub(crate) profile: Profile,
    #[command(flatten)]
    pub(crate) http: Http,
    /// How many hosts
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..i64::from(MAX_HOSTS)))]
    pub(crate) hosts: u32,
    /// Lines a second in all
    #[arg(long, value_name = "LINES", default_value = "10000", value_parser = positive)]
    pub(crate) rate: f64,
    /// The journal's durability; without it the relay's default
    #[arg(long)]
    pub(crate) durability: Option<String>,
    /// How long the relay may take to deliver everything in the end
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) patience: Duration,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl RunOptions {
    /// The listeners of a relay that is started for the run.
    pub(crate) fn listeners(&self) -> Listeners {
        let datagrams = format!("receive_buffer = \"{}\"", self.receive_buffer);
        let mapping = format!("mapping = \"{}\"", self.mapping);
        let listeners = Listeners { datagrams: datagrams.clone(), ..Listeners::default() };
        match (self.netdata.profile, self.netdata.transport) {
            (Profile::Telegraf, _) => Listeners { requests: self.hostile.map(|_| String::new()), ..listeners },
            (Profile::Http, _) if self.http.streams => Listeners { streams: Some(String::new()), ..listeners },
            (Profile::Http, _) => Listeners { requests: Some(String::new()), ..listeners },
            (Profile::Netdata, Transport::Udp) => {
                Listeners { datagrams: format!("{datagrams}\n{mapping}"), ..listeners }
            }
            (Profile::Netdata, Transport::Tcp) => Listeners { streams: Some(mapping), ..listeners },
        }
    }
}
