//! The journal's figures at one moment.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::gaps::Gap;
use super::ledger::Ledger;
use super::record::Record;
use super::{Backend, State};
use crate::batch::Received;

/// The journal's figures at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Lines appended since the start.
    pub appended_lines: u64,
    /// Memory held by records.
    pub memory_bytes: u64,
    /// Its bound, in bytes.
    pub memory_bound: u64,
    /// Each backend's pending lines that are not on disk.
    pub memory_only_lines: Vec<u64>,
    /// Each backend's ledger.
    pub ledgers: Vec<Ledger>,
    /// How long each backend's oldest pending line has waited, in seconds.
    pub oldest_pending_seconds: Vec<f64>,
    /// What was given up, and when it was received; oldest first.
    pub gaps: Vec<Gap>,
    /// The disk. `None` if records are kept in memory only.
    pub disk: Option<DiskFigures>,
}

/// The disk's condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Everything is written.
    Ok,
    /// There is no room, within the quota or on the volume. Records are in memory only.
    Full,
    /// It fails. Records are in memory only, or not safe from a power cut.
    Failing,
}

impl Condition {
    /// Every condition.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Full, Self::Failing];

    /// The condition's name in metrics, JSON and text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Full => "full",
            Self::Failing => "failing",
        }
    }
}

/// The disk's figures.
#[derive(Clone, Debug)]
pub struct DiskFigures {
    /// Bytes of all segments.
    pub bytes: u64,
    /// Their bound, in bytes.
    pub bound: u64,
    /// How many there are.
    pub segments: u64,
    /// The disk's condition.
    pub condition: Condition,
    /// Its last error, whether or not it persists.
    pub error: Option<String>,
    /// File syncs.
    pub syncs: u64,
    /// Failed syncs.
    pub sync_errors: u64,
    /// Failed writes.
    pub write_errors: u64,
    /// Failed reads.
    pub read_errors: u64,
    /// How long syncs took, in microseconds.
    pub sync_latency: Histogram<u64>,
    /// What was found at the start.
    pub report: Report,
    /// Backends that are no longer configured, and the lines kept for them.
    pub orphans: Vec<(String, u64)>,
}

/// What was found when the journal was opened.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Report {
    /// Segments found.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes truncated at the log's end: an unfinished write.
    pub truncated_bytes: u64,
    /// Bytes skipped in the last segments: damage.
    pub skipped_bytes: u64,
    /// Damaged records in the last segments.
    pub damaged_records: u64,
    /// Segments missing between others.
    pub missing_segments: u64,
    /// Quarantined files. The status has called them so since its first version.
    #[serde(rename = "set_aside")]
    pub quarantined: Vec<String>,
    /// There were segments but no cursors: every backend is sent everything in them once more.
    pub cursors_lost: bool,
    /// How long opening took.
    pub seconds: f64,
}

impl State {
    pub(in crate::journal) fn snapshot(&self, now: Received) -> Snapshot {
        let oldest = |backend: &Backend| {
            let pending = self.logs.iter().zip(&backend.cursors);
            let ages = pending.flat_map(|(log, cursor)| {
                let (record, since) = cursor.oldest_pending(log.tail(self.next_sequence));
                let in_memory = record.map(|record| {
                    now.monotonic.saturating_duration_since(record.batch.received().monotonic).as_secs_f64()
                });
                let on_disk = since.map(|since| now.wall.since(since).as_secs_f64());
                [in_memory, on_disk]
            });
            ages.flatten().fold(0.0, f64::max)
        };
        let memory_only: Vec<MemoryOnly> = self.backends.iter().map(|backend| self.memory_only(backend)).collect();
        let oldest_memory_only = memory_only.iter().filter_map(|one| one.since).min();
        let unkept = oldest_memory_only.map(|since| now.monotonic.saturating_duration_since(since));
        Snapshot {
            appended_lines: self.appended_lines,
            memory_bound: self.memory_bound,
            memory_only_lines: memory_only.iter().map(|one| one.lines).collect(),
            memory_bytes: self.memory.load(Ordering::Relaxed),
            ledgers: self.backends.iter().map(|backend| self.ledger(backend)).collect(),
            oldest_pending_seconds: self.backends.iter().map(oldest).collect(),
            gaps: self.gaps.iter().cloned().collect(),
            disk: self.disk_figures(unkept.unwrap_or_default()),
        }
    }

    /// A backend's ledger. Pending lines are counted where they are: held, on disk, or in memory
    /// and not written yet.
    fn ledger(&self, backend: &Backend) -> Ledger {
        let mut pending = backend.resent.pending();
        for (log, cursor) in self.logs.iter().zip(&backend.cursors) {
            let on_disk = cursor.unread_on_disk(log.written);
            let unwritten = log.records.iter().rev().take_while(|record| record.written().is_none());
            let in_memory = unwritten.filter(|record| cursor.is_yet_to_lease(record)).chain(cursor.held());
            let pending_of_log = in_memory.fold(on_disk, |sum, record| record.end(sum));
            pending = pending.plus(pending_of_log.lines, pending_of_log.bytes);
        }
        Ledger { pending: pending.lines, pending_bytes: pending.bytes, ..backend.ledger.clone() }
    }

    /// Whether a backend is owed lines that are only in memory.
    pub(super) fn has_memory_only(&self, backend: &Backend) -> bool {
        self.memory_only(backend).lines > 0
    }

    /// A backend's lines that are only in memory, and when the oldest was received.
    fn memory_only(&self, backend: &Backend) -> MemoryOnly {
        let kept_from = self.kept_from();
        let mut sum = MemoryOnly::default();
        for (log, cursor) in self.logs.iter().zip(&backend.cursors) {
            let left_disk = log.records.iter().take_while(|record| record.has_left_disk(kept_from));
            let unwritten = log.records.iter().rev().take_while(|record| record.written().is_none());
            for record in left_disk.chain(unwritten).filter(|record| cursor.is_yet_to_lease(record)) {
                sum.add(record);
            }
            cursor.held().filter(|record| !record.is_on_disk(kept_from)).for_each(|record| sum.add(record));
        }
        sum
    }

    pub(super) fn disk_figures(&self, unkept: Duration) -> Option<DiskFigures> {
        let disk = self.disk.as_ref()?;
        let (condition, error) = disk.condition(unkept);
        let orphans = self.orphans.iter().map(|orphan| {
            let lanes = orphan.destinations.iter();
            let lines = lanes.map(|(destination, lanes)| {
                let written = self.written_of(destination);
                lanes.iter().map(|lane| lane.pending(written)).sum::<u64>()
            });
            (orphan.name.clone(), lines.sum())
        });
        Some(DiskFigures {
            bytes: disk.bytes,
            bound: disk.options.quota,
            segments: disk.segments.len() as u64,
            condition,
            error,
            syncs: disk.syncs,
            sync_errors: disk.sync_errors,
            write_errors: disk.write_errors,
            read_errors: disk.read_errors,
            sync_latency: disk.sync_latency.clone(),
            report: disk.report.clone(),
            orphans: orphans.collect(),
        })
    }
}

/// A backend's lines that are only in memory.
#[derive(Clone, Copy, Debug, Default)]
struct MemoryOnly {
    lines: u64,
    /// When the oldest was received, if there are any.
    since: Option<Instant>,
}

impl MemoryOnly {
    pub(super) fn add(&mut self, record: &Record) {
        let received = record.batch.received().monotonic;
        self.lines += record.batch.lines();
        self.since = Some(self.since.map_or(received, |since| since.min(received)));
    }
}
