//! The journal on the disk: one log of records in segments, written behind the memory tail, read by whoever lags.
//!
//! Owns: the files and their format (`format.rs` has it byte by byte), writing and syncing ([`Writer`], [`Syncer`]) on two
//! threads of their own ([`Keeper`]), reading a backlog, opening after whatever happened ([`Report`]), looking at a
//! stopped relay's folder ([`inspect`]).
//!
//! The order of what is done, of which every beginning is a state that can be opened: the cursors as they are when
//! records are chosen, the records' bytes, the cursors again, then (synced, both) the removal of segments that every
//! cursor has passed. Nothing is ever changed in
//! place but the slots, and nothing is removed that a cursor needs, except by the quota, the age and the floor, which
//! are counted.
//!
//! Never does: memory maps, deciding about delivery, removing a file that it does not know.
//! Bounds: the quota in bytes; a segment of 16 MiB; writes of 1 MiB; reads of one request and 64 MiB in search of it.

mod book;
mod compress;
pub(crate) mod format;
mod frame;
mod heads;
pub mod inspect;
mod keeper;
mod load;
mod recovery;
mod saved;
mod slots;
mod storage;
mod syncer;
mod walk;
mod writer;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::ledger::DropReason;
use super::record::Position;
use format::SegmentName;
use slots::Slots;

pub use keeper::{Keeper, end};
pub use recovery::{OpenError, Report};
pub use storage::{Folder, Space, Storage, StoredFile};
pub use syncer::Syncer;
pub use writer::{Next, Writer};

pub(super) use load::{Place, Request, load};
pub(super) use recovery::open;
pub(super) use saved::SavedBackend;

/// The longest name of a database, retention policy or backend, in bytes.
pub const MAX_NAME_BYTES: usize = format::MAX_NAME_BYTES;

/// The longest address of a backend, in bytes.
pub const MAX_ADDRESS_BYTES: usize = 4096;

/// The size of a segment, at most: what is freed at once, and what is lost at most where the quota is reached.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Segments that the quota has room for, at least.
const LEAST_SEGMENTS: u64 = 8;

/// What gives way when the quota is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The oldest lines: metrics are worth most when they are fresh.
    #[default]
    DropOldest,
    /// The newest lines, once the memory is full, too.
    DropNewest,
}

/// How records are compressed on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4 blocks.
    Lz4,
    /// Zstandard, level 1.
    Zstd,
}

/// How the journal is kept on the disk.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Sync at once what was written, instead of by interval.
    pub is_synced: bool,
    /// How records are compressed.
    pub compression: Compression,
    /// Bytes of all segments, at most.
    pub quota: u64,
    /// Lines older than this are given up; none: never.
    pub max_age: Option<Duration>,
    /// Bytes of the volume that are left free; none: 5 %, at most 1 GiB.
    pub min_free: Option<u64>,
    /// What gives way when there is no room.
    pub full: WhenFull,
    /// How long written bytes stay unsynced, at most, while the disk keeps up.
    pub sync_interval: Duration,
    /// How often a disk that fails or is full is tried again.
    pub retry_after: Duration,
}

impl DiskOptions {
    /// The size at which a segment ends.
    pub(super) fn segment_bytes(&self) -> u64 {
        (self.quota / LEAST_SEGMENTS).min(SEGMENT_BYTES)
    }

    /// What must stay free on a volume.
    fn floor(&self, space: Space) -> u64 {
        floor(self.min_free, space)
    }
}

/// What must stay free on a volume: `min_free`, or 5 % of it, at most 1 GiB.
pub fn floor(min_free: Option<u64>, space: Space) -> u64 {
    min_free.unwrap_or_else(|| (space.total / 20).min(1 << 30))
}

/// How the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Everything is written.
    Ok,
    /// There is no room: of the quota, or on the volume. Records are in memory only.
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

/// What is to be seen of the disk.
#[derive(Clone, Debug)]
pub struct DiskFigures {
    /// Bytes of all segments.
    pub bytes: u64,
    /// The bound of that, in bytes.
    pub bound: u64,
    /// How many there are.
    pub segments: u64,
    /// How the disk is.
    pub condition: Condition,
    /// What it said last, whether or not it is over.
    pub error: Option<String>,
    /// Times that files were synced.
    pub syncs: u64,
    /// Syncs that failed.
    pub sync_errors: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// How long syncs took, in microseconds.
    pub sync_latency: Histogram<u64>,
    /// What was found at the start.
    pub report: Report,
    /// Backends that are no longer configured, and the lines that are kept for them.
    pub orphans: Vec<(String, u64)>,
}

/// One segment, as far as it is to be known without reading it.
#[derive(Clone, Debug)]
struct Segment {
    name: SegmentName,
    /// No record in it has a lower sequence.
    first_sequence: u64,
    /// No record in it has this sequence or a higher one.
    end_sequence: u64,
    /// It begins by repeating records of the one before, which has more of them if a crash came in between.
    repeats: bool,
    /// It lacks records of those that it repeats: they had left the memory, or nobody needed them.
    has_gaps: bool,
    /// What was written before it, of each log.
    totals: Vec<Position>,
    bytes: u64,
    /// Wall time of its making.
    created: u64,
    /// When it was made, by the clock that only moves forward.
    begun: Instant,
    /// When its last record was written.
    newest: Instant,
}

/// What is known of the disk, under the journal's lock.
#[derive(Debug)]
pub(super) struct Disk {
    options: DiskOptions,
    segments: VecDeque<Segment>,
    /// No file has this number or a higher one.
    least_number: u64,
    bytes: u64,
    /// The file of the last segment, once it is open for writing.
    active: Option<Arc<dyn StoredFile>>,
    /// The next record goes to a new segment.
    must_roll: bool,
    /// Records below this sequence were written before, to files that could not be synced: a segment that begins with one of
    /// them repeats.
    repeats_below: u64,
    /// Segments with a lower number could not be synced.
    abandoned_below: u64,
    /// Records below this sequence are written, or gone.
    next_write: u64,
    /// What the writer has in its hands.
    writing: Range<u64>,
    /// Records below this sequence are synced, or gone.
    synced: u64,
    /// Sealed files with unsynced bytes, and below which sequence they make everything safe.
    to_sync: Vec<(Arc<dyn StoredFile>, u64)>,
    unsynced_bytes: u64,
    /// Since when there is something to sync: records, cursors, or the folder.
    unsynced_since: Option<Instant>,
    /// When the syncer was told that the next sync is due.
    sync_told: Option<Instant>,
    folder_changed: bool,
    cursors_changed: bool,
    /// What the saved cursors need, from this sequence on.
    saved_need: u64,
    /// How the last write went.
    writing_is: Condition,
    /// The last sync failed.
    sync_fails: bool,
    /// How often records could not be synced: what was chosen for writing before is not what is next.
    epoch: u64,
    /// The cursors could not be saved.
    saving_fails: bool,
    /// Room has run out by the quota, and not on the volume.
    quota_reached: bool,
    /// Segments were given up that somebody needed.
    has_evicted: bool,
    error: Option<String>,
    syncs: u64,
    sync_errors: u64,
    write_errors: u64,
    read_errors: u64,
    sync_latency: Histogram<u64>,
    report: Report,
}

impl Disk {
    /// Sequences in the writer's hands, which must stay in memory.
    pub(super) fn being_written(&self) -> Range<u64> {
        self.writing.clone()
    }

    /// How the disk is, and what it said last. `unkept` is for how long lines that somebody needs have been in memory only.
    fn condition(&self, unkept: Duration) -> (Condition, Option<String>) {
        let known = if self.sync_fails || self.saving_fails { Condition::Failing } else { self.writing_is };
        if known != Condition::Ok || unkept <= self.options.sync_interval {
            return (known, self.error.clone());
        }
        let seconds = unkept.as_secs_f64();
        let (condition, what) = if self.has_evicted {
            (Condition::Full, "journal.disk had no room for lines that a backend still needs")
        } else {
            (Condition::Failing, "the disk does not keep up")
        };
        (condition, Some(format!("{what}: lines have been in memory only for {seconds:.1} s")))
    }

    /// No record below this sequence is on the disk.
    pub(super) fn first_sequence(&self) -> u64 {
        self.segments.front().map_or(0, |first| first.first_sequence)
    }

    /// Whether there is no room for what is to be written.
    fn is_full(&self) -> bool {
        self.writing_is == Condition::Full
    }

    /// Why a record that was not written leaves the memory.
    pub(super) fn reason(&self) -> DropReason {
        if self.quota_reached { DropReason::Quota } else { DropReason::MemoryFull }
    }
}

/// What the threads of the disk share, beside the journal's lock.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) storage: Arc<dyn Storage>,
    journal: u64,
    cursors: Mutex<Slots>,
    gaps: Mutex<Slots>,
}
