//! The snapshot of all figures. `/api/status`, `/metrics` and the terminal show nothing else.

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
use crate::observe::pair::PairStatus;
use crate::observe::reading::Read;
pub use crate::observe::receiving::{Receive, RefusedSample};
use crate::observe::sources::SourcesStatus;
use crate::observe::text::sum;
use crate::observe::view::BackendView;

/// A listener's certificate.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct CertificateStatus {
    /// Path of its file.
    pub file: String,
    /// Time of expiry, in RFC 3339.
    pub expires: String,
    /// Days until then, rounded down; negative after expiry.
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

/// Seconds in a day.
const DAY: u64 = 24 * 3600;
/// Fill level of the journal's disk above which an operator is told, in percent.
const NEARLY_FULL_PERCENT: u64 = 80;

/// All figures since the start, as `/api/status` gives them.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// Seconds since the start.
    pub uptime_seconds: f64,
    /// The listeners.
    pub receive: Vec<Receive>,
    /// Lines accepted by all listeners.
    pub accepted_lines: u64,
    /// The backends.
    pub backends: Vec<Backend>,
    /// The journal.
    pub journal: JournalStatus,
    /// The senders.
    pub sources: SourcesStatus,
    /// The certificates of listeners with TLS.
    #[serde(default)]
    pub certificates: Vec<CertificateStatus>,
    /// Log lines that were lost because nobody read them in time, or because they could not be
    /// written.
    #[serde(default)]
    pub log_lines_dropped: u64,
    /// The pair's other relay; `None` without a pair.
    #[serde(default)]
    pub pair: Option<PairStatus>,
    /// The findings, the most severe first.
    #[serde(default)]
    pub findings: Vec<Finding>,
}

/// A backend's side of the ledger. At every moment `accepted + recovered + resent = delivered +
/// rejected + dropped + pending`.
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
    /// Since when it has not been up, in RFC 3339; `None` if it is up or was not reached yet.
    #[serde(default)]
    pub down_since: Option<String>,
    /// Time of the next try, in RFC 3339; `None` if nothing waits for one.
    #[serde(default)]
    pub next_try: Option<String>,
    /// Lines found in the journal at start.
    pub recovered_lines: u64,
    /// Dead letters that were resent.
    #[serde(default)]
    pub resent_lines: u64,
    /// Lines it acknowledged.
    pub delivered_lines: u64,
    /// Bytes of the delivered lines.
    pub delivered_bytes: u64,
    /// Rejected lines, by class.
    pub rejected_lines: BTreeMap<String, u64>,
    /// Dropped lines, by reason.
    pub dropped_lines: BTreeMap<String, u64>,
    /// Lines lost for it in the last five minutes or so: before the journal, or as dead letters
    /// evicted for lack of space.
    #[serde(default)]
    pub recent_lost: u64,
    /// Lines that it has not acknowledged, wherever they are.
    pub pending_lines: u64,
    /// Bytes of the pending lines in the journal.
    pub pending_bytes: u64,
    /// Pending lines on disk.
    pub pending_on_disk_lines: u64,
    /// Age of the oldest pending line.
    pub oldest_pending_seconds: f64,
    /// Its lag; the same as `oldest_pending_seconds`.
    #[serde(default)]
    pub lag_seconds: f64,
    /// Lines acknowledged a second, over the last minute.
    #[serde(default)]
    pub delivered_per_second: f64,
    /// Seconds until it catches up at the rate of the last minute; `None` if nothing waits or it
    /// falls behind.
    #[serde(default)]
    pub eta_seconds: Option<f64>,
    /// Whether its copy has everything that any other backend's copy has, for all databases and
    /// times.
    #[serde(default)]
    pub complete: bool,
    /// Requests made.
    pub requests: u64,
    /// Requests that were repeated.
    pub retries: u64,
    /// Requests in flight.
    #[serde(default)]
    pub in_flight: u64,
    /// The present limit of a request's bytes.
    #[serde(default)]
    pub max_batch_bytes: u64,
    /// Text of the last error, even if the error is over.
    pub last_error: Option<String>,
    /// Time of that error, in RFC 3339.
    #[serde(default)]
    pub last_error_at: Option<String>,
    /// Destinations held until an operator acts.
    #[serde(default)]
    pub held: Vec<Held>,
    /// Statements that it is owed.
    #[serde(default)]
    pub statements_pending: u64,
    /// Statements that it refused although another backend ran them.
    #[serde(default)]
    pub statements_differed: u64,
    /// Queries that it answered; `None` if it answers no queries.
    #[serde(default)]
    pub read: Option<Read>,
    /// Its dead letters.
    #[serde(default)]
    pub dead_letters: dead_letters::Figures,
    /// The last dead letter of each class.
    #[serde(default)]
    pub rejected_samples: BTreeMap<String, dead_letters::Sample>,
    /// Latency from receipt to acknowledgement.
    pub latency_ms: Latency,
    /// The same for the last five minutes or so; `None` if nothing was acknowledged.
    #[serde(default)]
    pub recent_latency_ms: Option<Latency>,
}

/// Percentiles of a latency, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Latency {
    /// Half of the lines took no longer.
    pub p50: f64,
    /// 99 % of the lines took no longer.
    pub p99: f64,
    /// The longest latency.
    pub max: f64,
}

/// The journal's figures. Those of the disk are 0 for a journal in memory.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct JournalStatus {
    /// The journal's unique number; `None` for a journal in memory.
    #[serde(default)]
    pub identity: Option<String>,
    /// The data folder.
    #[serde(default)]
    pub data_dir: String,
    /// Seconds until its disk is full at the rate of the last minute; `None` if it does not fill.
    #[serde(default)]
    pub full_in_seconds: Option<f64>,
    /// What a crash may cost.
    pub durability: Durability,
    /// Memory held by records.
    pub memory_bytes: u64,
    /// Bound of the memory.
    pub memory_bound_bytes: u64,
    /// Disk held by segments.
    pub disk_bytes: u64,
    /// Bound of the disk space.
    pub disk_bound_bytes: u64,
    /// Segments on disk.
    pub segments: u64,
    /// `ok`, `full` or `failing`. If not `ok`, lines are in memory only, or not safe from a power
    /// cut.
    pub state: Condition,
    /// Last error of the disk, even if the error is over.
    pub last_error: Option<String>,
    /// Syncs of files.
    pub syncs: u64,
    /// Syncs that failed.
    pub sync_errors: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Latency of syncs.
    pub sync_ms: Latency,
    /// What recovery found at the start.
    pub recovery: Report,
    /// Lines kept for backends that are no longer configured, by backend.
    pub orphans: BTreeMap<String, u64>,
    /// Gaps of the backends, oldest first: the work list for repairing a copy from its mirror.
    pub gaps: Vec<Gap>,
}

/// A destination held until an operator acts.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Held {
    /// The database.
    pub database: String,
    /// The retention policy; empty for the database's default.
    pub retention_policy: String,
    /// `credentials`, `rights`, `missing`, `size`, `refused` or `setup`.
    pub reason: String,
    /// The backend's answer.
    pub answer: String,
    /// Since when, in RFC 3339.
    pub since: String,
    /// What would release it.
    pub what_to_do: String,
}

impl Held {
    /// Converts a destination held by the backend of this name.
    fn of(held: crate::deliver::Held, name: &str) -> Self {
        let crate::deliver::Held { database, retention_policy, reason, answer, since, what_to_do } = held;
        let since = humantime::format_rfc3339_seconds(since).to_string();
        let what_to_do = what_to_do.replace("backend NAME ", &format!("backend {name} "));
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
            recent_lost: 0,
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
            held: view.health.held().into_iter().map(|held| Held::of(held, &view.name)).collect(),
            statements_pending: view.statements.as_ref().map_or(0, |statements| statements.pending(&view.name)),
            statements_differed: view.statements.as_ref().map_or(0, |statements| statements.differed(&view.name)),
            read: view.readers.as_ref().and_then(|readers| readers.reading(&view.name)).map(Read::new),
            dead_letters: view.letters.as_ref().map(|letters| letters.figures(&view.name)).unwrap_or_default(),
            rejected_samples: view.letters.as_ref().map(|letters| letters.samples(&view.name)).unwrap_or_default(),
            latency_ms: Latency::new(&ledger.latency),
            recent_latency_ms: None,
        }
    }

    /// Returns the number of rejected lines, over all classes.
    pub fn rejected(&self) -> u64 {
        sum(self.rejected_lines.values())
    }

    /// Returns the number of dropped lines, over all reasons.
    pub fn dropped(&self) -> u64 {
        sum(self.dropped_lines.values())
    }

    /// Returns `accepted + recovered + resent` minus everything that became of these lines. Any
    /// value but 0 means that lines were lost without being counted, or counted twice.
    pub fn difference(&self, accepted: u64) -> i128 {
        let gone = [self.delivered_lines, self.rejected(), self.dropped(), self.pending_lines].map(i128::from);
        i128::from(accepted) + i128::from(self.recovered_lines) + i128::from(self.resent_lines)
            - gone.iter().sum::<i128>()
    }
}

impl JournalStatus {
    /// Returns how full the disk is, in percent, if an operator should know.
    pub(super) fn nearly_full(&self) -> Option<u64> {
        let bytes = self.disk_bytes.saturating_mul(100);
        bytes.checked_div(self.disk_bound_bytes).filter(|percent| *percent >= NEARLY_FULL_PERCENT)
    }

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
