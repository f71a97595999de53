//! A relay under strain: ordinary hosts on TCP beside greedy senders, and beside connections that
//! nobody uses.
//!
//! An ordinary host sends a line once in an interval, and asks for the relay's version behind it:
//! once that is answered, the line has been taken. The time from one to the other is what the host
//! waits for acceptance, the network and the load generator's own turns included. A greedy sender
//! writes as fast as its socket takes.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::relay::{Folder, Listeners, Relay};
use crate::sink::{Sink, Store};

/// Bytes that a greedy sender writes at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// How long greedy senders are at it before the first host connects.
const HEAD_START: Duration = Duration::from_secs(1);
/// How long a host waits for an answer before it counts as shut out.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer that is read.
const ANSWER_BYTES: usize = 256;

/// What greedy senders send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Comments: nothing is easier to read
    Comments,
    /// Ordinary lines, each of which is stored
    Lines,
    /// Lines with 250 tags that look alike
    Tags,
    /// Lines of one byte, each of which is refused
    Refused,
}

impl Kind {
    fn line(self) -> String {
        match self {
            Self::Comments => "# a comment that nobody needs\n".to_owned(),
            Self::Lines => "cpu,cpu=cpu0,host=greedy usage_idle=97.5,usage_user=1.5 1795400720000000000\n".to_owned(),
            Self::Tags => {
                let tags: String = (0..250).map(|n| format!(",k{n:02x}=v")).collect();
                format!("m{tags} f=1 1795400720000000000\n")
            }
            Self::Refused => "x\n".to_owned(),
        }
    }
}

/// What is done to the relay.
#[derive(Args, Clone, Debug)]
pub struct StrainConfig {
    /// The relay's program, which gets one sink
    #[arg(long, value_name = "FILE")]
    relay: PathBuf,
    /// Ordinary hosts
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    hosts: u16,
    /// How often each of them sends
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// Greedy senders
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=100))]
    greedy: u16,
    /// What they send
    #[arg(long, value_enum, default_value = "lines")]
    kind: Kind,
    /// Connections that send nothing, made before the hosts come
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=10_000))]
    silent: u16,
    /// The addresses that they come from
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=200))]
    silent_addresses: u8,
    /// For how long
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Lines of ordinary hosts that were taken.
    pub taken: u64,
    /// Hosts that were shut out: no connection, or no answer.
    pub shut_out: u64,
    /// The time from connecting to the first answer, in milliseconds: median, 99 %, the longest.
    pub first_ms: [f64; 3],
    /// The time from sending a line to its answer.
    pub acceptance_ms: [f64; 3],
    /// What greedy senders sent, in MB a second.
    pub greedy_mb_per_second: f64,
    /// The listener's figures at the end, as `/api/status` has them.
    pub listener: Value,
    /// Most resident memory, in MiB.
    pub peak_resident_mib: f64,
}

/// Times in microseconds.
type Times = Arc<Mutex<Histogram<u64>>>;

/// Strains a relay.
///
/// # Errors
/// What kept it from being strained.
pub async fn run(setup: StrainConfig) -> Result<Report> {
    raise_file_limit();
    let sink = Sink::start(SocketAddr::from(([127, 0, 0, 1], 0)), Arc::new(Store::default())).await?;
    let (program, backends) = (setup.relay.clone(), [sink.address()]);
    let relay = tokio::task::spawn_blocking(move || {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listeners = Listeners { streams: Some(String::new()), ..Listeners::default() };
        Relay::start(&program, &Arc::new(Folder::new(any, &listeners, "", &backends)?), None)
    });
    let relay = relay.await??;
    let target = relay.streams.context("the relay has no TCP listener")?;
    let silent = (0..setup.silent).map(|n| {
        let last = 10 + u8::try_from(n % u16::from(setup.silent_addresses)).unwrap_or_default();
        connect([127, 0, 0, last].into(), target)
    });
    let silent = silent.collect::<std::io::Result<Vec<_>>>().context("cannot open silent connections")?;

    let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let greedy = (0..setup.greedy).map(|n| {
        let socket = connect(Ipv4Addr::from(0x7f00_0100 + u32::from(n)), target)?;
        Ok(greed(socket, setup.kind, Arc::clone(&stop), Arc::clone(&bytes)))
    });
    let greedy = greedy.collect::<std::io::Result<Vec<_>>>().context("cannot open greedy connections")?;
    tokio::time::sleep(HEAD_START).await;

    let started = Instant::now();
    let before = bytes.load(Ordering::Relaxed);
    let (first, times) = (histogram()?, histogram()?);
    let hosts = (0..setup.hosts).map(|number| {
        let (first, times) = (Arc::clone(&first), Arc::clone(&times));
        let offset = setup.interval.mul_f64(f64::from(number) / f64::from(setup.hosts));
        let (interval, end) = (setup.interval, started + setup.duration);
        tokio::spawn(async move {
            tokio::time::sleep(offset).await;
            visit(number, target, interval, end, &first, &times).await
        })
    });
    let hosts: Vec<_> = hosts.collect();
    let (mut taken, mut shut_out) = (0, 0);
    for host in hosts {
        match host.await? {
            Ok(lines) => taken += lines,
            Err(_) => shut_out += 1,
        }
    }
    let sent = bytes.load(Ordering::Relaxed) - before;
    let seconds = started.elapsed().as_secs_f64();
    let looked = tokio::task::spawn_blocking(move || {
        let (status, peak) = (relay.status()?, relay.metric("twinflux_process_resident_peak_bytes")?);
        anyhow::Ok((status, peak, relay))
    });
    let (status, peak, relay) = looked.await??;
    stop.store(true, Ordering::Relaxed);
    // A greedy sender may wait for the relay, whose end ends it.
    tokio::task::spawn_blocking(move || drop(relay)).await?;
    for thread in greedy {
        ensure!(thread.join().is_ok(), "BUG: a greedy sender panicked");
    }
    drop(silent);
    let listeners = status["receive"].as_array().into_iter().flatten();
    Ok(Report {
        taken,
        shut_out,
        first_ms: milliseconds(&first),
        acceptance_ms: milliseconds(&times),
        greedy_mb_per_second: per_second(sent, seconds) / 1e6,
        listener: listeners.last().cloned().unwrap_or_default(),
        peak_resident_mib: peak / f64::from(1 << 20),
    })
}

/// One host: sends a line in each interval, and one at least; returns how many were taken.
async fn visit(
    number: u16,
    target: SocketAddr,
    interval: Duration,
    end: Instant,
    first: &Times,
    times: &Times,
) -> Result<u64> {
    let mut began = Instant::now();
    let mut socket = tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(target)).await??;
    socket.set_nodelay(true)?;
    let (mut lines, mut answer) = (0, [0; ANSWER_BYTES]);
    loop {
        let line = format!("m,host=h{number} v={lines} 1795400720000000000\nversion\n");
        socket.write_all(line.as_bytes()).await?;
        let count = tokio::time::timeout(PATIENCE, socket.read(&mut answer)).await??;
        ensure!(answer[..count].ends_with(b"\n"), "the connection was ended");
        let elapsed = u64::try_from(began.elapsed().as_micros())?;
        let of = if lines == 0 { first } else { times };
        of.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(elapsed);
        lines += 1;
        tokio::time::sleep_until((began + interval).into()).await;
        began = Instant::now();
        if began >= end {
            return Ok(lines);
        }
    }
}

/// A thread that sends as fast as it can, until it is to stop or its connection ends.
fn greed(
    mut socket: TcpStream,
    kind: Kind,
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
) -> std::thread::JoinHandle<()> {
    let line = kind.line();
    let piece = line.repeat(PIECE_BYTES / line.len());
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) && socket.write_all(piece.as_bytes()).is_ok() {
            bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    })
}

/// A connection from this address of the loopback network.
fn connect(from: Ipv4Addr, target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect(&target.into())?;
    Ok(socket.into())
}

/// Lets the process have as many connections as the system allows.
fn raise_file_limit() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where it stays too low, connecting says so.
        setrlimit(Resource::RLIMIT_NOFILE, most, most).ok();
    }
}

fn histogram() -> Result<Times> {
    Ok(Arc::new(Mutex::new(Histogram::new_with_bounds(1, 600_000_000, 2)?)))
}

#[expect(clippy::cast_precision_loss, reason = "times are far below 2^52 microseconds")]
fn milliseconds(times: &Times) -> [f64; 3] {
    let times = times.lock().unwrap_or_else(PoisonError::into_inner);
    [times.value_at_quantile(0.5), times.value_at_quantile(0.99), times.max()].map(|time| time as f64 / 1000.0)
}

#[expect(clippy::cast_precision_loss, reason = "sums are far below 2^52")]
fn per_second(sum: u64, seconds: f64) -> f64 {
    sum as f64 / seconds
}

impl Report {
    /// Whether every host was served.
    pub fn is_good(&self) -> bool {
        self.shut_out == 0
    }

    /// The report in words.
    pub fn to_text(&self) -> String {
        let [p50, p99, max] = self.acceptance_ms;
        let [first, _, longest] = self.first_ms;
        let of = |key: &str| self.listener[key].as_u64().unwrap_or_default();
        format!(
            "hosts    {} lines taken, {} hosts shut out; from connecting to the first answer {first:.1} ms median, {longest:.1} ms longest\n\
             taken    after {p50:.2} ms median, {p99:.2} ms p99, {max:.2} ms longest\n\
             greedy   {:.0} MB/s\n\
             relay    {} open connections, {} displaced, {} limited, {} timed out, {:.1} MiB peak memory\n",
            self.taken,
            self.shut_out,
            self.greedy_mb_per_second,
            of("open_connections"),
            of("displaced"),
            of("limited"),
            of("timed_out"),
            self.peak_resident_mib
        )
    }
}
