//! Takes the snapshot: reads every figure at its owner, so that the ledger balances in every
//! snapshot.
//!
//! Owns [`View`], the running parts. Never changes anything. Bounds: holds the journal's lock once,
//! for a short time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::deliver::statements::Statements;
use crate::deliver::{Health, dead_letters};
use crate::intake::Tally;
use crate::journal::ring::Producer;
use crate::journal::{BackendId, DropReason, Durability, Journal, Ledger, Snapshot};
use crate::net::tls::Certificate;
use crate::observe::findings::findings;
use crate::observe::history::{BackendSample, History, ListenerSample, Sample, between, rate};
use crate::observe::pair::PairStatus;
use crate::observe::sources::{Forgotten, SourcesStatus};
use crate::observe::status::{Backend, CertificateStatus, JournalStatus, Latency, Receive, Status};
use crate::pair::Pair;
use crate::protocol::{Refusal, Span};
use crate::query::Readers;
use crate::receive::{Listener, Pulse};
use crate::sys::log;

/// A relay that asks each second has asked within this time.
const RECENT: Duration = Duration::from_secs(4);

/// The running parts that a snapshot reads. Clones share them.
#[derive(Clone, Debug)]
pub struct View {
    /// When the relay started.
    pub started: Instant,
    /// The listeners.
    pub listeners: Arc<Vec<Listener>>,
    /// The ring between the listeners and the journal.
    pub ring: Producer,
    /// The journal.
    pub journal: Journal,
    /// What a crash may cost.
    pub durability: Durability,
    /// The backends, in the journal's order.
    pub backends: Arc<Vec<BackendView>>,
    /// The certificates of listeners with TLS.
    pub certificates: Arc<Vec<Arc<Certificate>>>,
    /// Earlier figures.
    pub history: Arc<History>,
    /// Hosts that an operator has hidden.
    pub forgotten: Arc<Forgotten>,
    /// The data folder.
    pub data_dir: Arc<str>,
    /// The other relay of the pair; `None` without a pair.
    pub pair: Option<Arc<Pair>>,
    /// The pulse of the thread that appends batches to the journal.
    pub journal_pulse: Arc<Pulse>,
    /// Whether the relay is stopping, and takes nothing any more.
    pub is_stopping: Arc<AtomicBool>,
    /// Whether another relay succeeds this one; meanwhile data waits in the sockets.
    pub is_followed: Arc<AtomicBool>,
    /// The reports given to the pair's other relay.
    pub reports: Arc<Reports>,
}

/// Counts the requests of the pair's other relay for a report.
#[derive(Debug)]
pub struct Reports {
    /// Random number of this process.
    pub(super) process: u64,
    count: AtomicU64,
    last: Mutex<Option<Instant>>,
}

impl Reports {
    /// Creates the count for the process with this number.
    pub fn new(process: u64) -> Self {
        Self { process, count: AtomicU64::new(0), last: Mutex::new(None) }
    }

    /// Records a request.
    pub(super) fn note(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.count.fetch_add(1, Ordering::Release);
    }

    /// Returns the number of requests.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Whether the other relay has asked within the last seconds.
    pub fn is_recent(&self) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| last.elapsed() < RECENT)
    }
}

/// A backend's name, address and health.
#[derive(Debug)]
pub struct BackendView {
    /// Its name.
    pub name: String,
    /// Its URL, which holds no secret.
    pub url: String,
    /// The delivery's state.
    pub health: Arc<Health>,
    /// Lines that it will never take; `None` if they are not stored.
    pub letters: Option<Arc<dead_letters::DeadLetters>>,
    /// Statements that it is owed; `None` if they are not stored.
    pub statements: Option<Arc<Statements>>,
    /// Readers of the copies; `None` if there are none.
    pub readers: Option<Arc<Readers>>,
}

impl View {
    /// Takes a snapshot.
    pub fn status(&self) -> Status {
        let (journal, tallies, on_the_way) = self.figures();
        let sum = |lines: fn(&Tally) -> u64| tallies.iter().map(lines).sum::<u64>();
        let (accepted, ring_full) = (sum(|tally| tally.accepted), sum(|tally| tally.ring_full));
        let receive = self.listeners.iter().zip(&tallies).map(|(listener, tally)| Receive::new(listener, tally));
        let figures = journal.oldest_pending_seconds.iter().zip(&journal.memory_only_lines);
        let ledgers = journal.ledgers.iter().zip(figures);
        let backends = self.backends.iter().zip(ledgers);
        let status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            receive: receive.collect(),
            accepted_lines: accepted,
            backends: backends
                .enumerate()
                .map(|(index, (view, (ledger, (oldest, memory_only))))| {
                    let backend = Backend::new(view, ledger, *oldest, ring_full, on_the_way);
                    let on_disk = if journal.disk.is_some() { ledger.pending.saturating_sub(*memory_only) } else { 0 };
                    Backend {
                        pending_on_disk_lines: on_disk,
                        complete: self.is_complete(BackendId::new(index)),
                        ..backend
                    }
                })
                .collect(),
            journal: JournalStatus::new(self.durability, &journal),
            sources: SourcesStatus::of(&self.listeners, &self.forgotten),
            certificates: self.certificates.iter().map(|one| CertificateStatus::of(one)).collect(),
            log_lines_dropped: log::lines_dropped(),
            pair: self.pair.as_ref().map(|pair| PairStatus::new(pair.seen())),
            findings: Vec::new(),
        };
        self.with_history(status, &journal)
    }

    /// Returns the figures of the journal and of the listeners, and the lines on the way between
    /// them.
    pub(super) fn figures(&self) -> (Snapshot, Vec<Tally>, i128) {
        // Lines are counted where they are, so that a lost line shows. The count of popped lines is
        // read together with the journal's figures, which include them. The count of submitted
        // lines is read together with the figures of its worker, which held them before. The
        // workers are read last: each popped batch is known to its worker as submitted or, a moment
        // earlier, as held, and is counted once in either case.
        let (journal, popped) = self.journal.snapshot_with(|| self.ring.popped_lines());
        let tallies: Vec<_> = self.listeners.iter().map(Listener::tally).collect();
        let handed = tallies.iter().map(|tally| tally.held + tally.submitted).sum::<u64>();
        (journal, tallies, i128::from(handed) - i128::from(popped))
    }

    /// Returns the journal's number as text.
    pub(super) fn identity(&self) -> Option<String> {
        self.journal.identity().map(|number| format!("{number:016x}"))
    }

    /// Adds the figures that follow from older samples, and the findings.
    fn with_history(&self, mut status: Status, journal: &Snapshot) -> Status {
        status.journal.identity = self.identity();
        status.journal.data_dir = self.data_dir.to_string();
        if let Some(before) = self.history.minute_ago() {
            status.note_rates(&before);
        }
        if let Some(before) = self.history.minutes_ago() {
            status.note_recent(&before, &journal.ledgers);
        }
        status.findings = findings(&status);
        status
    }

    /// Takes a sample for the history.
    pub(super) fn sample(&self) -> Sample {
        let journal = self.journal.snapshot();
        let tallies: Vec<_> = self.listeners.iter().map(Listener::tally).collect();
        let listener = |(one, tally): (&Listener, &Tally)| ListenerSample {
            refused: tally.refused,
            kernel_dropped: if let Listener::Udp(udp) = one { udp.kernel_drops() } else { 0 },
        };
        let ledgers = journal.ledgers.into_iter().zip(&journal.oldest_pending_seconds);
        let backend = |((ledger, oldest), view): ((Ledger, &f64), &BackendView)| BackendSample {
            evicted: view.letters.as_ref().map_or(0, |letters| letters.figures(&view.name).evicted),
            delivered: ledger.delivered,
            pending: ledger.pending,
            oldest_seconds: *oldest,
            latency: ledger.latency,
        };
        Sample {
            at: Instant::now(),
            accepted: tallies.iter().map(|tally| tally.accepted).sum(),
            memory_bytes: journal.memory_bytes,
            disk_bytes: journal.disk.as_ref().map_or(0, |disk| disk.bytes),
            listeners: self.listeners.iter().zip(&tallies).map(listener).collect(),
            ring_full: tallies.iter().map(|tally| tally.ring_full).sum(),
            backends: ledgers.zip(self.backends.iter()).map(backend).collect(),
        }
    }

    /// Whether a backend has everything that any other backend has.
    fn is_complete(&self, backend: BackendId) -> bool {
        let others: Vec<_> = BackendId::all().take(self.backends.len()).filter(|other| *other != backend).collect();
        self.journal.completeness(backend, None, &Span::ALWAYS, &others).is_current()
    }

    /// Returns the pulses of the threads that lines pass through, except the runtime's and the
    /// disk's.
    pub fn pulses(&self) -> Vec<Arc<Pulse>> {
        let receiving = self.listeners.iter().flat_map(Listener::pulses);
        receiving.chain([Arc::clone(&self.journal_pulse)]).collect()
    }
}

impl Status {
    /// Computes rates from a sample that is about a minute old.
    fn note_rates(&mut self, before: &Sample) {
        let time = before.at.elapsed();
        for (backend, before) in self.backends.iter_mut().zip(&before.backends) {
            backend.delivered_per_second = rate(before.delivered, backend.delivered_lines, time);
            let shrinks = rate(backend.pending_lines, before.pending, time);
            let seconds = backend.pending_lines as f64 / shrinks;
            backend.eta_seconds = Some(seconds).filter(|_| backend.pending_lines > 0 && shrinks > 0.0);
        }
        let journal = &mut self.journal;
        let grows = rate(before.disk_bytes, journal.disk_bytes, time);
        let free = journal.disk_bound_bytes.saturating_sub(journal.disk_bytes) as f64;
        journal.full_in_seconds = Some(free / grows).filter(|_| grows > 0.0 && journal.disk_bound_bytes > 0);
    }

    /// Computes what happened since a sample that is some minutes old.
    fn note_recent(&mut self, before: &Sample, ledgers: &[Ledger]) {
        for (receive, before) in self.receive.iter_mut().zip(&before.listeners) {
            let grown = Refusal::ALL.into_iter().filter_map(|reason| {
                let (name, before) = (reason.name(), before.refused[reason.index()]);
                let grown = receive.refused.get(name).copied().unwrap_or(0).saturating_sub(before);
                (grown > 0).then(|| (name.to_owned(), grown))
            });
            receive.recent_refused = grown.collect();
            receive.recent_kernel_dropped = receive.kernel_dropped.saturating_sub(before.kernel_dropped);
        }
        for (backend, before_it) in self.backends.iter_mut().zip(&before.backends) {
            let ring_full = backend.dropped_lines.get(DropReason::RingFull.name()).copied().unwrap_or(0);
            backend.recent_lost = ring_full.saturating_sub(before.ring_full)
                + backend.dead_letters.evicted.saturating_sub(before_it.evicted);
        }
        for ((backend, before), ledger) in self.backends.iter_mut().zip(&before.backends).zip(ledgers) {
            backend.recent_latency_ms = between(&before.latency, &ledger.latency).map(|recent| Latency::new(&recent));
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A view of these parts and backends only.
    pub(in crate::observe) fn view(
        listeners: Vec<Listener>,
        ring: Producer,
        journal: Journal,
        durability: Durability,
        backends: &[String],
    ) -> View {
        let shown = |name: &String| BackendView {
            name: name.clone(),
            url: String::new(),
            health: Arc::default(),
            letters: None,
            statements: None,
            readers: None,
        };
        View {
            started: Instant::now(),
            listeners: Arc::new(listeners),
            ring,
            journal,
            durability,
            backends: Arc::new(backends.iter().map(shown).collect()),
            certificates: Arc::default(),
            history: Arc::new(History::new(Vec::new())),
            forgotten: Arc::default(),
            data_dir: "".into(),
            pair: None,
            journal_pulse: Arc::new(Pulse::new("journal")),
            is_stopping: Arc::default(),
            is_followed: Arc::default(),
            reports: Arc::new(Reports::new(1)),
        }
    }
    use crate::observe::findings::tests::status;

    /// A sample some seconds before the status of the test.
    fn before(seconds: u64) -> Sample {
        let mut refused = [0; Refusal::COUNT];
        refused[Refusal::TooLong.index()] = 2;
        let mut latency = Ledger::default().latency;
        latency.record_n(500_000, 1000).expect("in range");
        Sample {
            at: Instant::now().checked_sub(Duration::from_secs(seconds)).expect("a time"),
            accepted: 0,
            memory_bytes: 0,
            disk_bytes: 10,
            listeners: vec![ListenerSample { refused, kernel_dropped: 1 }],
            ring_full: 4,
            backends: vec![BackendSample { delivered: 400, pending: 900, oldest_seconds: 0.0, evicted: 1, latency }],
        }
    }

    #[test]
    fn rates_and_remaining_times_follow_from_a_minute() {
        let mut now = status(|json| {
            json["backends"][0]["delivered_lines"] = 1000.into();
            json["backends"][0]["pending_lines"] = 600.into();
            json["journal"]["disk_bytes"] = 40.into();
        });
        now.note_rates(&before(60));
        let about =
            |value: f64, expected: f64| assert!((value / expected - 1.0).abs() < 0.5, "{value}, not {expected}");
        about(now.backends[0].delivered_per_second, 10.0);
        about(now.backends[0].eta_seconds.expect("it shrinks"), 120.0);
        about(now.journal.full_in_seconds.expect("it grows"), 120.0);
        // A growing backlog has no ETA, and a shrinking journal does not fill.
        (now.backends[0].pending_lines, now.journal.disk_bytes) = (1000, 5);
        now.note_rates(&before(60));
        assert_eq!((now.backends[0].eta_seconds, now.journal.full_in_seconds), (None, None));
    }

    #[test]
    fn what_is_recent_is_what_came_since_the_sample() {
        let mut now = status(|json| {
            json["receive"][0]["refused"] = serde_json::json!({ "too_long": 5, "bad_number": 0 });
            json["receive"][0]["kernel_dropped"] = 8.into();
            json["backends"][0]["dropped_lines"] = serde_json::json!({ "ring_full": 10 });
        });
        now.backends[0].dead_letters.evicted = 3;
        let before = before(300);
        let mut ledger = Ledger { latency: before.backends[0].latency.clone(), ..Ledger::default() };
        now.note_recent(&before, std::slice::from_ref(&ledger));
        assert!(now.backends[0].recent_latency_ms.is_none(), "nothing came since");
        ledger.latency.record(2000).expect("in range");
        now.note_recent(&before, std::slice::from_ref(&ledger));
        assert_eq!(now.receive[0].recent_refused.iter().collect::<Vec<_>>(), [(&"too_long".to_owned(), &3)]);
        assert_eq!((now.receive[0].recent_kernel_dropped, now.backends[0].recent_lost), (7, 6 + 2));
        // Without the half second of the earlier lines.
        assert!(now.backends[0].recent_latency_ms.expect("one").p99 < 3.0);
    }
}
