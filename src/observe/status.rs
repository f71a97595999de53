//! One picture of all figures: `/api/status`, `/metrics` and the terminal show nothing else.

use std::collections::BTreeMap;
use std::time::SystemTime;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::deliver::dead_letters;
use crate::journal::disk::{Condition, DiskFigures, Report};
use crate::journal::{DropReason, Durability, Ledger, Rejection, Snapshot};
use crate::net::tls::Certificate;
use crate::observe::findings::Finding;
use crate::observe::gap::Gap;
use crate::observe::reading::Read;
use crate::observe::sources::SourcesStatus;
use crate::observe::text::sum;
use crate::observe::view::BackendView;
use crate::protocol::Refusal;
use crate::receive::tap::Sample;
use crate::receive::{ANSWERS, Listener, Tally};

/// A listener's certificate.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct CertificateStatus {
    /// Its file.
    pub file: String,
    /// When it expires, in RFC 3339.
    pub expires: String,
    /// Days until then, rounded down; below 0 once it has expired.
    pub days_left: i64,
}

impl CertificateStatus {
    pub(super) fn of(certificate: &Certificate) -> Self {
        let (expires, now) = (certificate.expires(), SystemTime::now());
        let left = expires.duration_since(now).map_or_else(
            |past| -1 - i64::try_from(past.duration().as_secs() / DAY).unwrap_or(i64::MAX - 1),
            |left| i64::try_from(left.as_secs() / DAY).unwrap_or(i64::MAX),
        );
        let expires = humantime::format_rfc3339_seconds(expires).to_string();
        Self { file: certificate.file().display().to_string(), expires, days_left: left }
    }
}

/// A day, in seconds.
const DAY: u64 = 24 * 3600;

/// All figures since the start, as `/api/status` gives them.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// Since the start.
    pub uptime_seconds: f64,
    /// The listeners.
    pub receive: Vec<Receive>,
    /// Lines accepted by all listeners.
    pub accepted_lines: u64,
    /// The backends.
    pub backends: Vec<Backend>,
    /// The journal.
    pub journal: JournalStatus,
    /// Who sends.
    pub sources: SourcesStatus,
    /// The certificates of listeners with TLS.
    #[serde(default)]
    pub certificates: Vec<CertificateStatus>,
    /// Lines of the log that nobody will read: nobody read it in time, or it could not be written.
    #[serde(default)]
    pub log_lines_dropped: u64,
    /// What is wrong and what to do about it, what matters most first.
    #[serde(default)]
    pub findings: Vec<Finding>,
}

/// A listener's figures. Those of another kind are 0.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Receive {
    /// `udp`, `tcp` or `http`
    pub kind: String,
    /// The address it listens on.
    pub listen: String,
    /// The database its lines go to.
    pub database: String,
    /// Datagrams taken from the socket, whatever became of them.
    pub datagrams: u64,
    /// Bytes taken from the sockets.
    pub bytes: u64,
    /// Datagrams that the kernel dropped because the receive buffer was full.
    pub kernel_dropped: u64,
    /// Datagrams that were larger than the largest slot.
    pub truncated: u64,
    /// Datagrams, or connections, from addresses that are not allowed.
    pub denied: u64,
    /// The last of these addresses; none if there was none.
    #[serde(default)]
    pub denied_address: Option<String>,
    /// Datagrams without payload.
    pub empty: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections that are open.
    pub open_connections: u64,
    /// Connections turned away because there were too many.
    pub limited: u64,
    /// Connections ended to make room for one of a source with fewer.
    pub displaced: u64,
    /// Connections ended because nothing came, no first line, or no line's end.
    pub timed_out: u64,
    /// Lines of other formats that became line protocol; several may have become one line.
    pub converted: u64,
    /// Lines of other formats that held nothing to store (`null`).
    pub skipped: u64,
    /// Words of converted lines that stood among the tags and were none: without a key, or without `=`.
    pub ignored_tags: u64,
    /// Lines whose points are far from the clock: an hour ahead, or a day behind.
    #[serde(default)]
    pub implausible: u64,
    /// Lines refused in the last five minutes or so.
    #[serde(default)]
    pub recent_refused: u64,
    /// Datagrams that the kernel dropped in the last five minutes or so.
    #[serde(default)]
    pub recent_kernel_dropped: u64,
    /// Requests answered.
    #[serde(default)]
    pub requests: u64,
    /// Answers by their status.
    #[serde(default)]
    pub answers: BTreeMap<String, u64>,
    /// Requests without the right password or token.
    #[serde(default)]
    pub auth_failures: u64,
    /// Lines seen: accepted and refused.
    pub lines: u64,
    /// Lines refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// The last refused line of each reason.
    #[serde(default)]
    pub refused_samples: BTreeMap<String, RefusedSample>,
    /// What waits in the receive buffers, in bytes as the kernel charges them.
    pub receive_queue: u64,
    /// The receive buffer that was asked for, in bytes.
    pub receive_buffer_wanted: u64,
    /// The receive buffer that each worker got, in bytes.
    pub receive_buffer: u64,
}

/// A line that was refused.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct RefusedSample {
    /// Its beginning; bytes that are no text are escaped.
    pub line: String,
    /// The address that it came from; empty where that is not known.
    pub source: String,
    /// What would cure its sender, where the line tells.
    #[serde(default)]
    pub cure: Option<String>,
}

/// A backend's side of the ledger: at every moment
/// `accepted + recovered + resent = delivered + rejected + dropped + pending`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// The group of backends that mirror each other.
    #[serde(default)]
    pub group: String,
    /// `unknown`, `up`, `retrying`, `held` or `down`.
    pub state: String,
    /// Since when it has not been up, in RFC 3339; none if it is, or was not reached yet.
    #[serde(default)]
    pub down_since: Option<String>,
    /// When it is tried next, in RFC 3339; none if nothing waits for that.
    #[serde(default)]
    pub next_try: Option<String>,
    /// Lines found in the journal at start.
    pub recovered_lines: u64,
    /// Dead letters that were sent again.
    #[serde(default)]
    pub resent_lines: u64,
    /// Lines it acknowledged.
    pub delivered_lines: u64,
    /// Bytes of those.
    pub delivered_bytes: u64,
    /// Lines it will never take, by class.
    pub rejected_lines: BTreeMap<String, u64>,
    /// Lines given up, by reason.
    pub dropped_lines: BTreeMap<String, u64>,
    /// Lines it has not yet acknowledged, wherever they are.
    pub pending_lines: u64,
    /// Bytes of those in the journal.
    pub pending_bytes: u64,
    /// Those of the pending lines that are on the disk.
    pub pending_on_disk_lines: u64,
    /// How long the oldest of them has waited.
    pub oldest_pending_seconds: f64,
    /// How far it is behind: the same, as lag.
    #[serde(default)]
    pub lag_seconds: f64,
    /// Lines it acknowledged a second, over the last minute.
    #[serde(default)]
    pub delivered_per_second: f64,
    /// When it will have caught up at the rate of the last minute; none if nothing waits, or it falls behind.
    #[serde(default)]
    pub eta_seconds: Option<f64>,
    /// Whether its copy has whatever any other backend's has, of all databases and times.
    #[serde(default)]
    pub complete: bool,
    /// Requests made.
    pub requests: u64,
    /// How many of them were made again.
    pub retries: u64,
    /// Requests under way.
    #[serde(default)]
    pub in_flight: u64,
    /// The bytes of a request, at most, as it is now.
    #[serde(default)]
    pub max_batch_bytes: u64,
    /// The last error's text, whether or not it is over.
    pub last_error: Option<String>,
    /// When that came, in RFC 3339.
    #[serde(default)]
    pub last_error_at: Option<String>,
    /// Destinations that wait until an operator acts.
    #[serde(default)]
    pub held: Vec<Held>,
    /// Statements that it is owed.
    #[serde(default)]
    pub statements_pending: u64,
    /// Statements that it refused and another backend ran.
    #[serde(default)]
    pub statements_differed: u64,
    /// What readers are answered by it; none if it answers no queries.
    #[serde(default)]
    pub read: Option<Read>,
    /// Lines that it will never take.
    #[serde(default)]
    pub dead_letters: dead_letters::Figures,
    /// Receive to acknowledged.
    pub latency_ms: Latency,
    /// The same for the last five minutes or so; none if nothing was acknowledged then.
    #[serde(default)]
    pub recent_latency_ms: Option<Latency>,
}

/// Percentiles of a latency, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Latency {
    /// Half of the lines took no longer.
    pub p50: f64,
    /// Of a hundred lines, 99 took no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// The journal's figures. Those of the disk are 0 where records are kept in memory only.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct JournalStatus {
    /// Its number, which no other journal has; none where records are kept in memory only.
    #[serde(default)]
    pub identity: Option<String>,
    /// Where it is.
    #[serde(default)]
    pub data_dir: String,
    /// When its disk will be full at the rate of the last minute; none if it does not fill.
    #[serde(default)]
    pub full_in_seconds: Option<f64>,
    /// What a crash may cost.
    pub durability: Durability,
    /// Memory held by records.
    pub memory_bytes: u64,
    /// The bound of that.
    pub memory_bound_bytes: u64,
    /// Disk held by segments.
    pub disk_bytes: u64,
    /// The bound of that.
    pub disk_bound_bytes: u64,
    /// Segments on disk.
    pub segments: u64,
    /// `ok`, `full` or `failing`: lines are in memory only, or not safe from a power cut.
    pub state: Condition,
    /// What the disk said last, whether or not it is over.
    pub last_error: Option<String>,
    /// Times that files were synced.
    pub syncs: u64,
    /// Syncs that failed.
    pub sync_errors: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// How long syncs took.
    pub sync_ms: Latency,
    /// What was found at the start.
    pub recovery: Report,
    /// Backends that are not configured any more, and the lines that are kept for them.
    pub orphans: BTreeMap<String, u64>,
    /// What was given up for a backend, oldest first: the work list for repairing it from its twin.
    pub gaps: Vec<Gap>,
}

impl Receive {
    pub(super) fn new(listener: &Listener, tally: &Tally) -> Self {
        let shown = Self {
            kind: listener.kind().to_owned(),
            listen: listener.address().to_string(),
            database: listener.destination().database.clone(),
            datagrams: tally.datagrams,
            bytes: tally.bytes,
            truncated: tally.truncated,
            denied: tally.denied,
            denied_address: denied_address(listener),
            empty: tally.empty,
            connections: tally.connections,
            limited: tally.limited,
            displaced: tally.displaced,
            timed_out: tally.timed_out,
            converted: tally.converted,
            skipped: tally.skipped,
            ignored_tags: tally.ignored_tags,
            implausible: tally.implausible,
            requests: tally.requests,
            auth_failures: tally.auth_failures,
            lines: tally.lines(),
            refused_samples: refused_samples(listener),
            refused: Refusal::ALL.map(|reason| (reason.name().to_owned(), tally.refused[reason.index()])).into(),
            ..Self::default()
        };
        match listener {
            Listener::Tcp(listener) => Self { open_connections: listener.door().open_connections(), ..shown },
            Listener::Http(listener) => {
                let name = |status: u16| if status == 0 { "other".to_owned() } else { status.to_string() };
                let answers = ANSWERS.into_iter().zip(tally.answers).map(|(status, count)| (name(status), count));
                Self { open_connections: listener.door().open_connections(), answers: answers.collect(), ..shown }
            }
            Listener::Udp(listener) => {
                let (wanted, got) = listener.receive_buffer();
                Self {
                    kernel_dropped: listener.kernel_drops(),
                    receive_queue: listener.queued_bytes(),
                    receive_buffer_wanted: wanted,
                    receive_buffer: got,
                    ..shown
                }
            }
        }
    }
}

/// The last refused line of each reason, of all workers.
fn refused_samples(listener: &Listener) -> BTreeMap<String, RefusedSample> {
    let mut all = Vec::new();
    listener.each_tap(|tap| all.extend(tap.samples()));
    all.sort_by_key(|(_, at, _)| *at);
    let shown = all.into_iter().map(|(reason, _, Sample { source, line, cure })| {
        let source = source.map_or_else(String::new, |source| source.to_string());
        (reason.name().to_owned(), RefusedSample { line, source, cure: cure.map(str::to_owned) })
    });
    shown.collect()
}

/// The last address that was not allowed, of all workers.
fn denied_address(listener: &Listener) -> Option<String> {
    let mut last = None;
    listener.each_tap(|tap| last = last.max(tap.denied()));
    last.map(|(_, address)| address.to_canonical().to_string())
}

/// A destination that waits until an operator acts.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Held {
    /// The database.
    pub database: String,
    /// The retention policy; empty for the database's default.
    pub retention_policy: String,
    /// `credentials`, `rights`, `missing`, `size`, `refused` or `setup`.
    pub reason: String,
    /// What the backend answered.
    pub answer: String,
    /// Since when, in RFC 3339.
    pub since: String,
    /// What would end it.
    pub what_to_do: String,
}

impl From<crate::deliver::Held> for Held {
    fn from(held: crate::deliver::Held) -> Self {
        let crate::deliver::Held { database, retention_policy, reason, answer, since, what_to_do } = held;
        let since = humantime::format_rfc3339_seconds(since).to_string();
        Self { database, retention_policy, reason: reason.to_owned(), answer, since, what_to_do }
    }
}

impl Backend {
    pub(super) fn new(view: &BackendView, ledger: &Ledger, oldest: f64, ring_full: u64, on_the_way: i128) -> Self {
        let rejected = Rejection::ALL.iter().zip(ledger.rejected);
        let dropped = DropReason::ALL.iter().map(|reason| {
            let before_the_journal = if *reason == DropReason::RingFull { ring_full } else { 0 };
            (reason.name().to_owned(), ledger.dropped[*reason as usize] + before_the_journal)
        });
        let (requests, retries) = view.health.requests();
        let (times, (in_flight, max_batch_bytes)) = (view.health.times(), view.health.load());
        let time = |time: SystemTime| humantime::format_rfc3339_seconds(time).to_string();
        Self {
            name: view.name.clone(),
            url: view.url.clone(),
            group: "main".to_owned(),
            state: view.health.state().name().to_owned(),
            down_since: times.unwell_since.map(time),
            next_try: times.next_try.map(time),
            recovered_lines: ledger.recovered,
            resent_lines: ledger.resent,
            delivered_lines: ledger.delivered,
            delivered_bytes: ledger.delivered_bytes,
            rejected_lines: rejected.map(|(class, lines)| (class.name().to_owned(), lines)).collect(),
            dropped_lines: dropped.collect(),
            pending_lines: u64::try_from(i128::from(ledger.pending) + on_the_way).unwrap_or(0),
            pending_bytes: ledger.pending_bytes,
            pending_on_disk_lines: 0,
            oldest_pending_seconds: oldest,
            lag_seconds: oldest,
            delivered_per_second: 0.0,
            eta_seconds: None,
            complete: false,
            requests,
            retries,
            in_flight,
            max_batch_bytes,
            last_error: view.health.last_error(),
            last_error_at: times.last_error_at.map(time),
            held: view.health.held().into_iter().map(Held::from).collect(),
            statements_pending: view.statements.as_ref().map_or(0, |statements| statements.pending(&view.name)),
            statements_differed: view.statements.as_ref().map_or(0, |statements| statements.differed(&view.name)),
            read: view.readers.as_ref().and_then(|readers| readers.reading(&view.name)).map(Read::new),
            dead_letters: view.letters.as_ref().map(|letters| letters.figures(&view.name)).unwrap_or_default(),
            latency_ms: Latency::new(&ledger.latency),
            recent_latency_ms: None,
        }
    }

    /// Lines rejected, of all classes.
    pub fn rejected(&self) -> u64 {
        sum(self.rejected_lines.values())
    }

    /// Lines dropped, for all reasons.
    pub fn dropped(&self) -> u64 {
        sum(self.dropped_lines.values())
    }

    /// `accepted + recovered + resent` less everything that became of it: 0 at every moment, or lines were lost and not counted.
    pub fn difference(&self, accepted: u64) -> i128 {
        let gone = [self.delivered_lines, self.rejected(), self.dropped(), self.pending_lines].map(i128::from);
        i128::from(accepted) + i128::from(self.recovered_lines) + i128::from(self.resent_lines)
            - gone.iter().sum::<i128>()
    }
}

impl JournalStatus {
    pub(super) fn new(durability: Durability, journal: &Snapshot) -> Self {
        let disk = journal.disk.as_ref();
        let figure = |value: fn(&DiskFigures) -> u64| disk.map_or(0, value);
        Self {
            identity: None,
            data_dir: String::new(),
            full_in_seconds: None,
            durability,
            memory_bytes: journal.memory_bytes,
            memory_bound_bytes: journal.memory_bound,
            disk_bytes: figure(|disk| disk.bytes),
            disk_bound_bytes: figure(|disk| disk.bound),
            segments: figure(|disk| disk.segments),
            state: disk.map_or(Condition::Ok, |disk| disk.condition),
            last_error: disk.and_then(|disk| disk.error.clone()),
            syncs: figure(|disk| disk.syncs),
            sync_errors: figure(|disk| disk.sync_errors),
            write_errors: figure(|disk| disk.write_errors),
            read_errors: figure(|disk| disk.read_errors),
            sync_ms: disk.map_or(Latency { p50: 0.0, p99: 0.0, max: 0.0 }, |disk| Latency::new(&disk.sync_latency)),
            recovery: disk.map(|disk| disk.report.clone()).unwrap_or_default(),
            orphans: disk.map(|disk| disk.orphans.iter().cloned().collect()).unwrap_or_default(),
            gaps: journal.gaps.iter().map(Gap::new).collect(),
        }
    }
}

impl Latency {
    pub(super) fn new(histogram: &Histogram<u64>) -> Self {
        Self {
            p50: milliseconds(histogram.value_at_quantile(0.5)),
            p99: milliseconds(histogram.value_at_quantile(0.99)),
            max: milliseconds(histogram.max()),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^52 microseconds")]
fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1000.0
}
