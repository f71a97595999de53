//! One picture of all figures: `/api/status`, `/metrics` and the terminal show nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::deliver::statements::Statements;
use crate::deliver::{Health, dead_letters};
use crate::journal::disk::{Condition, DiskFigures, Report};
use crate::journal::ring::Producer;
use crate::journal::{DropReason, Durability, Journal, Ledger, Rejection, Snapshot};
use crate::net::tls::Certificate;
use crate::observe::gap::Gap;
use crate::observe::reading::Read;
use crate::observe::sources::SourcesStatus;
use crate::observe::text::sum;
use crate::protocol::{Refusal, Span};
use crate::query::Readers;
use crate::receive::{ANSWERS, Listener, Tally};
use crate::sys::log;

/// The running parts that the picture is taken of. Clones share them.
#[derive(Clone, Debug)]
pub struct View {
    /// When the relay started.
    pub started: Instant,
    /// The listeners.
    pub listeners: Arc<Vec<Listener>>,
    /// What is between the listeners and the journal.
    pub ring: Producer,
    /// The journal.
    pub journal: Journal,
    /// What a crash may cost.
    pub durability: Durability,
    /// The backends, in the journal's order.
    pub backends: Arc<Vec<BackendView>>,
    /// The certificates of listeners with TLS.
    pub certificates: Arc<Vec<Arc<Certificate>>>,
}

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
    fn of(certificate: &Certificate) -> Self {
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

/// A backend's name, address and health.
#[derive(Debug)]
pub struct BackendView {
    /// Its name.
    pub name: String,
    /// Its URL, which holds no secret.
    pub url: String,
    /// Its state.
    pub health: Arc<Health>,
    /// The lines that it will never take; none where nothing keeps them.
    pub letters: Option<Arc<dead_letters::DeadLetters>>,
    /// The statements that it is owed; none where nothing keeps them.
    pub statements: Option<Arc<Statements>>,
    /// Who is sent to it to read; none where nobody is.
    pub readers: Option<Arc<Readers>>,
}

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
    /// What waits in the receive buffers, in bytes as the kernel charges them.
    pub receive_queue: u64,
    /// The receive buffer that was asked for, in bytes.
    pub receive_buffer_wanted: u64,
    /// The receive buffer that each worker got, in bytes.
    pub receive_buffer: u64,
}

/// A backend's side of the ledger: at every moment
/// `accepted + recovered + resent = delivered + rejected + dropped + pending`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// `unknown`, `up`, `retrying`, `held` or `down`.
    pub state: String,
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
    /// Whether its copy has whatever any other backend's has, of all databases and times.
    #[serde(default)]
    pub complete: bool,
    /// Requests made.
    pub requests: u64,
    /// How many of them were made again.
    pub retries: u64,
    /// The last error's text, whether or not it is over.
    pub last_error: Option<String>,
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

impl View {
    /// Takes the picture.
    pub fn status(&self) -> Status {
        // Lines are counted where they are, so that one that is lost shows. What was popped goes with the journal's
        // figures, in which it is, and what was pushed with the figures of its worker, which had it before. The workers are
        // read last: each batch that was popped is known to its worker, as handed over or, a moment earlier, as still held.
        // Either way it is counted once.
        let (journal, popped) = self.journal.snapshot_with(|| self.ring.popped_lines());
        let tallies: Vec<_> = self.listeners.iter().map(Listener::tally).collect();
        let sum = |lines: fn(&Tally) -> u64| tallies.iter().map(lines).sum::<u64>();
        let (accepted, ring_full) = (sum(|tally| tally.accepted), sum(|tally| tally.ring_full));
        let on_the_way = i128::from(sum(|tally| tally.held) + sum(|tally| tally.handed_over)) - i128::from(popped);

        let receive = self.listeners.iter().zip(&tallies).map(|(listener, tally)| Receive::new(listener, tally));
        let figures = journal.oldest_pending_seconds.iter().zip(&journal.memory_only_lines);
        let ledgers = journal.ledgers.iter().zip(figures);
        let backends = self.backends.iter().zip(ledgers);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            receive: receive.collect(),
            accepted_lines: accepted,
            backends: backends
                .enumerate()
                .map(|(place, (view, (ledger, (oldest, memory_only))))| {
                    let backend = Backend::new(view, ledger, *oldest, ring_full, on_the_way);
                    let on_disk = if journal.disk.is_some() { ledger.pending.saturating_sub(*memory_only) } else { 0 };
                    Backend { pending_on_disk_lines: on_disk, complete: self.is_complete(place), ..backend }
                })
                .collect(),
            journal: JournalStatus::new(self.durability, &journal),
            sources: SourcesStatus::of(&self.listeners),
            certificates: self.certificates.iter().map(|one| CertificateStatus::of(one)).collect(),
            log_lines_dropped: log::lines_dropped(),
        }
    }

    /// Whether a backend has whatever any other has.
    fn is_complete(&self, place: usize) -> bool {
        let others: Vec<usize> = (0..self.backends.len()).filter(|other| *other != place).collect();
        self.journal.completeness(place, None, &Span::ALWAYS, &others).is_current()
    }

    /// Whether the relay is of use: at least one backend took a write or has not yet failed.
    pub fn is_ready(&self) -> bool {
        self.backends.iter().any(|backend| backend.health.is_ready())
    }
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
            empty: tally.empty,
            connections: tally.connections,
            limited: tally.limited,
            displaced: tally.displaced,
            timed_out: tally.timed_out,
            converted: tally.converted,
            skipped: tally.skipped,
            ignored_tags: tally.ignored_tags,
            requests: tally.requests,
            auth_failures: tally.auth_failures,
            lines: tally.lines(),
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
        Self {
            name: view.name.clone(),
            url: view.url.clone(),
            state: view.health.state().name().to_owned(),
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
            complete: false,
            requests,
            retries,
            last_error: view.health.last_error(),
            held: view.health.held().into_iter().map(Held::from).collect(),
            statements_pending: view.statements.as_ref().map_or(0, |statements| statements.pending(&view.name)),
            statements_differed: view.statements.as_ref().map_or(0, |statements| statements.differed(&view.name)),
            read: view.readers.as_ref().and_then(|readers| readers.reading(&view.name)).map(Read::new),
            dead_letters: view.letters.as_ref().map(|letters| letters.figures(&view.name)).unwrap_or_default(),
            latency_ms: Latency::new(&ledger.latency),
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
    fn new(histogram: &Histogram<u64>) -> Self {
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
