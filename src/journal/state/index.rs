//! The disk index, under the journal's lock: which segments exist, what is written, synced and
//! safe, and the disk's condition.
//!
//! Owns: also the files to be synced, until the syncer takes them. Never does: I/O.

use super::id::LogId;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::figures::{Condition, Report};
use super::ledger::DropReason;
use super::options::DiskOptions;
use crate::batch::{Received, Span, WallTime};
use crate::journal::segment::format::{SegmentName, nanoseconds};
use crate::journal::segment::storage::StoredFile;
use crate::journal::segment::{Position, Sequence};
use crate::sys::SteadyClock;
use crate::sys::clock::Step;

/// Longer syncs count as this long: one minute, in microseconds.
const MAX_SYNC_MICROSECONDS: u64 = 60_000_000;

/// With this many unsynced bytes, the sync does not wait for its interval.
const SYNC_BYTES: u64 = 4 << 20;

/// What is known of a segment without reading it.
#[derive(Clone, Debug)]
pub(in crate::journal) struct Segment {
    pub(in crate::journal) name: SegmentName,
    /// No record in it has a lower sequence.
    pub(in crate::journal) first_sequence: Sequence,
    /// No record in it has this sequence or a higher one.
    pub(in crate::journal) end_sequence: Sequence,
    /// It begins by repeating records of the segment before, which has more of them if a crash
    /// intervened.
    pub(in crate::journal) repeats: bool,
    /// It lacks some of the records that it repeats: they had left the memory, or nobody needed
    /// them.
    pub(in crate::journal) has_gaps: bool,
    /// What was written before it, per log.
    pub(in crate::journal) totals: Vec<Position>,
    /// The times of the points in it, per log with records in it.
    pub(in crate::journal) points: Vec<Span>,
    pub(in crate::journal) bytes: u64,
    /// Wall time of its creation.
    pub(in crate::journal) created: Option<WallTime>,
    /// When it was created.
    pub(in crate::journal) begun: When,
    /// When its last record was written.
    pub(in crate::journal) newest: When,
}

impl Segment {
    /// The times of a log's points in it.
    pub(in crate::journal) fn points(&self, log: LogId) -> Span {
        self.points.get(log.index()).copied().unwrap_or(Span::NONE)
    }

    pub(super) fn add_points(&mut self, log: LogId, points: Span) {
        if self.points.len() <= log.index() {
            self.points.resize(log.index() + 1, Span::NONE);
        }
        let known = &mut self.points[log.index()];
        *known = known.and(points);
    }
}

/// Records whose file vanished while the relay was running: reads will find them missing.
#[derive(Clone, Debug, Default)]
pub(in crate::journal) struct Vanished {
    /// The range of their sequences.
    pub(super) sequences: Range<Sequence>,
    /// The times of their points, per log.
    pub(super) points: Vec<Span>,
}

impl Vanished {
    /// Adds a segment whose file is gone.
    fn add(&mut self, gone: &Segment) {
        let own = gone.first_sequence..gone.end_sequence;
        self.sequences = match self.sequences.is_empty() {
            true => own,
            false => self.sequences.start.min(own.start)..self.sequences.end.max(own.end),
        };
        for (index, points) in gone.points.iter().enumerate() {
            match self.points.get_mut(index) {
                Some(known) => *known = known.and(*points),
                None => self.points.push(*points),
            }
        }
    }
}

/// A moment, by the clock that knows it.
#[derive(Clone, Copy, Debug)]
pub(in crate::journal) enum When {
    /// Since the start: by the monotonic clock.
    Seen(Instant),
    /// Before the start: by the wall clock of that time.
    Told(WallTime),
}

/// What is known of the disk, under the journal's lock.
#[derive(Debug)]
pub(in crate::journal) struct DiskIndex {
    pub(super) options: DiskOptions,
    pub(super) segments: VecDeque<Segment>,
    /// What was in files that vanished while the relay was running, and may be nowhere else.
    pub(super) vanished: Vanished,
    /// No existing file has this number or a higher one.
    pub(super) min_number: u64,
    pub(super) bytes: u64,
    /// The last segment's file, once it is open for writing.
    pub(super) active: Option<Arc<dyn StoredFile>>,
    /// The next record must go to a new segment.
    pub(super) must_roll: bool,
    /// Records below this sequence were already written, to files that could not be synced. A
    /// segment that begins with one of them repeats.
    pub(super) repeats_below: Sequence,
    /// Segments with a lower number could not be synced.
    pub(super) abandoned_below: u64,
    /// Records below this sequence are written, or gone.
    pub(super) next_write: Sequence,
    /// The records that the writer is writing.
    pub(super) writing: Range<Sequence>,
    /// Records below this sequence are synced, or gone.
    pub(super) synced: Sequence,
    /// Sealed files with unsynced bytes. Syncing a file makes everything below its sequence safe.
    pub(super) to_sync: Vec<(Arc<dyn StoredFile>, Sequence)>,
    pub(super) unsynced_bytes: u64,
    /// Since when there is something to sync: records, cursors, or the folder.
    pub(super) unsynced_since: Option<Instant>,
    /// The due time of the next sync that the syncer knows.
    pub(super) sync_announced: Option<Instant>,
    pub(super) folder_changed: bool,
    pub(super) cursors_changed: bool,
    /// The saved cursors need the log from this sequence on.
    pub(super) saved_need: Sequence,
    /// The outcome of the last write.
    pub(super) write_condition: Condition,
    /// The last sync failed.
    pub(super) sync_fails: bool,
    /// How many syncs of records have failed. A choice of records made in an earlier epoch is void.
    pub(super) epoch: u64,
    /// The cursors could not be saved.
    pub(super) saving_fails: bool,
    /// The quota is used up, rather than the volume.
    pub(super) quota_reached: bool,
    /// Segments were evicted that some backend needed.
    pub(super) has_evicted: bool,
    pub(super) error: Option<String>,
    pub(super) syncs: u64,
    pub(super) sync_errors: u64,
    pub(super) write_errors: u64,
    pub(super) read_errors: u64,
    pub(super) sync_latency: Histogram<u64>,
    pub(super) report: Report,
    /// Tells the age of what was found at the start.
    clock: SteadyClock,
    /// The latest wall time found at the start.
    newest_found: Option<WallTime>,
}

/// A file that a crash may have left unsynced.
pub(in crate::journal) type UnsyncedFile = (SegmentName, Arc<dyn StoredFile>);

/// What was found when the log was opened.
pub(in crate::journal) struct Opened {
    pub(in crate::journal) segments: VecDeque<Segment>,
    /// The last segment, if its header is sound. It is written to, if it can be synced.
    pub(in crate::journal) last: Option<SegmentName>,
    pub(in crate::journal) unsynced: Vec<UnsyncedFile>,
    pub(in crate::journal) next_sequence: Sequence,
    pub(in crate::journal) abandoned_below: u64,
    pub(in crate::journal) report: Report,
    /// The latest wall time of anything in it.
    pub(in crate::journal) newest: Option<WallTime>,
}

impl DiskIndex {
    /// Creates the index of an opened log.
    pub(in crate::journal) fn new(options: &DiskOptions, opened: Opened) -> Self {
        let Opened { segments, last, mut unsynced, next_sequence, abandoned_below, report, newest } = opened;
        let active = unsynced.pop_if(|(name, _)| Some(*name) == last).map(|(_, file)| file);
        let is_active = active.is_some();
        let latency = Histogram::new_with_bounds(1, MAX_SYNC_MICROSECONDS, 2);
        Self {
            options: options.clone(),
            abandoned_below,
            min_number: segments.back().map_or(0, |segment| segment.name.number.saturating_add(1)),
            bytes: segments.iter().map(|segment| segment.bytes).sum(),
            segments,
            vanished: Vanished::default(),
            must_roll: !is_active,
            repeats_below: Sequence::FIRST,
            next_write: next_sequence,
            writing: Range::default(),
            synced: next_sequence,
            unsynced_since: (is_active || !unsynced.is_empty()).then(Instant::now),
            sync_announced: None,
            to_sync: unsynced.into_iter().map(|(_, file)| (file, next_sequence)).collect(),
            // What a crash left unsynced is synced now.
            unsynced_bytes: u64::from(is_active),
            active,
            folder_changed: true,
            cursors_changed: true,
            saved_need: Sequence::FIRST,
            write_condition: Condition::Ok,
            sync_fails: false,
            epoch: 0,
            saving_fails: false,
            quota_reached: false,
            has_evicted: false,
            error: None,
            syncs: 0,
            sync_errors: 0,
            write_errors: 0,
            read_errors: 0,
            sync_latency: latency.expect("BUG: constant bounds are valid"),
            report,
            clock: SteadyClock::default(),
            newest_found: newest,
        }
    }

    /// Compares both clocks. Returns the step since the last call, if there was one.
    pub(in crate::journal) fn check_clock(&mut self, now: Received) -> Option<Step> {
        self.clock.look(now.monotonic, now.wall.nanoseconds(), nanoseconds(self.newest_found))
    }

    /// How long ago a moment was. `None` while no clock can tell.
    pub(super) fn age(&self, when: When, now: Instant) -> Option<Duration> {
        match when {
            When::Seen(then) => Some(now.saturating_duration_since(then)),
            When::Told(then) => Some(Duration::from_nanos(self.clock.now(now)?.saturating_sub(then.nanoseconds()))),
        }
    }

    /// What keeps ages from being known, as a sentence. `None` if nothing does.
    pub(in crate::journal) fn doubt(&self, now: Received) -> Option<String> {
        let (first, max_age) = (self.segments.front()?, self.options.max_age?);
        let (When::Told(newest), None) = (first.newest, self.clock.now(now.monotonic)) else { return None };
        let whole_seconds = |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs()));
        let behind = self.newest_found.map_or(Duration::ZERO, |newest| newest.since(now.wall));
        if behind > Duration::from_secs(1) {
            return Some(format!("the clock is {} behind the newest line in the journal", whole_seconds(behind)));
        }
        let age = now.wall.since(newest);
        (age > max_age).then(|| format!("by the clock, lines in the journal are {} old", whole_seconds(age)))
    }

    /// The disk's options.
    pub(in crate::journal) fn options(&self) -> &DiskOptions {
        &self.options
    }

    /// The segments, oldest first.
    pub(in crate::journal) fn segments(&self) -> &VecDeque<Segment> {
        &self.segments
    }

    /// The segment being written: its file, its name, and the offset of the next frame.
    pub(in crate::journal) fn active(&self) -> Option<(Arc<dyn StoredFile>, SegmentName, u64)> {
        let (segment, file) = self.segments.back().zip(self.active.clone())?;
        Some((file, segment.name, segment.bytes))
    }

    /// How many syncs of records have failed. A choice of records made in an earlier epoch is void.
    pub(in crate::journal) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether this many more bytes exceed the quota.
    pub(in crate::journal) fn exceeds_quota(&mut self, bytes: u64) -> bool {
        self.quota_reached = self.bytes + bytes > self.options.quota;
        self.quota_reached
    }

    /// Makes the next record go to a new segment.
    pub(in crate::journal) fn request_roll(&mut self) {
        self.must_roll = true;
    }

    pub(in crate::journal) fn is_roll_requested(&self) -> bool {
        self.must_roll
    }

    /// A new segment's number, its first sequence, and whether it repeats.
    pub(in crate::journal) fn next_segment(&self) -> (u64, Sequence, bool) {
        (self.next_number(), self.next_write, self.next_write < self.repeats_below)
    }

    /// The number of sealed files that wait for a sync.
    pub(in crate::journal) fn unsynced_files(&self) -> usize {
        self.to_sync.len()
    }

    /// Notes that files were added to the folder or removed.
    pub(in crate::journal) fn note_folder_change(&mut self) {
        self.folder_changed = true;
    }

    /// Takes whether the folder must be synced.
    pub(in crate::journal) fn take_folder_change(&mut self) -> bool {
        std::mem::take(&mut self.folder_changed)
    }

    /// Takes whether the cursors must be saved.
    pub(in crate::journal) fn take_cursors_change(&mut self) -> bool {
        std::mem::take(&mut self.cursors_changed)
    }

    /// Notes that the cursors were saved; they need the log from this sequence on.
    pub(in crate::journal) fn note_saved(&mut self, need: Sequence) {
        (self.saved_need, self.saving_fails) = (need, false);
        self.note_unsynced();
    }

    /// The sequence from which the saved cursors need the log.
    pub(in crate::journal) fn saved_need(&self) -> Sequence {
        self.saved_need
    }

    /// Notes a failed sync of the cursors' slot: they are saved again, to another slot.
    pub(in crate::journal) fn slot_sync_failed(&mut self) {
        self.cursors_changed = true;
        self.sync_errors += 1;
    }

    pub(in crate::journal) fn note_read_error(&mut self, error: &io::Error) {
        self.read_errors += 1;
        self.error = Some(error.to_string());
    }

    /// The sequences being written, which must stay in memory.
    pub(in crate::journal) fn being_written(&self) -> Range<Sequence> {
        self.writing.clone()
    }

    /// Whether appended records stay in memory for now.
    pub(in crate::journal) fn cannot_write(&self) -> bool {
        self.write_condition != Condition::Ok
    }

    /// The disk's condition, and its last error. `unkept` is for how long lines that some backend
    /// needs have been in memory only.
    pub(in crate::journal) fn condition(&self, unkept: Duration) -> (Condition, Option<String>) {
        let known = if self.sync_fails || self.saving_fails { Condition::Failing } else { self.write_condition };
        if known != Condition::Ok || unkept <= self.options.sync_interval {
            return (known, self.error.clone());
        }
        let seconds = unkept.as_secs_f64();
        let (condition, what) = if self.has_evicted {
            (
                Condition::Full,
                "journal.disk, or what the volume has free beyond journal.min_free, had no room for lines that a backend still needs",
            )
        } else {
            (Condition::Failing, "the disk does not keep up")
        };
        (condition, Some(format!("{what}: lines have been in memory only for {seconds:.1} s")))
    }

    /// No record below this sequence is on disk.
    pub(in crate::journal) fn first_sequence(&self) -> Sequence {
        self.segments.front().map_or(Sequence::FIRST, |first| first.first_sequence)
    }

    /// Whether there is no room for what is to be written.
    pub(in crate::journal) fn is_full(&self) -> bool {
        self.write_condition == Condition::Full
    }

    /// The drop reason of a record that leaves the memory unwritten.
    pub(in crate::journal) fn reason(&self) -> DropReason {
        if self.quota_reached { DropReason::Quota } else { DropReason::MemoryFull }
    }

    /// Notes that something is to be synced: records, cursors, or the folder.
    pub(in crate::journal) fn note_unsynced(&mut self) {
        self.unsynced_since.get_or_insert_with(Instant::now);
    }

    pub(in crate::journal) fn syncs_at_once(&self) -> bool {
        self.unsynced_bytes > 0 && self.options.is_synced || self.unsynced_bytes >= SYNC_BYTES
    }

    pub(in crate::journal) fn next_number(&self) -> u64 {
        self.segments.back().map_or(0, |segment| segment.name.number.saturating_add(1)).max(self.min_number)
    }

    pub(in crate::journal) fn note_save_error(&mut self, error: &io::Error) {
        if !self.saving_fails {
            tracing::error!(%error, "the journal cannot save its cursors: after a crash backends get lines twice");
        }
        self.write_errors += 1;
        self.saving_fails = true;
        self.error = Some(error.to_string());
    }

    pub(in crate::journal) fn note_full(&mut self, why: &str) {
        if self.write_condition != Condition::Full {
            tracing::warn!(why, "the journal cannot write: lines are kept in memory until there is room");
        }
        self.write_condition = Condition::Full;
        self.error = Some(why.to_owned());
    }

    /// Notes that the folder or the last segment's file is out of place: nothing is written until
    /// that is resolved.
    pub(in crate::journal) fn note_misplaced(&mut self, what: String) {
        self.write_condition = Condition::Failing;
        self.error = Some(what);
    }

    /// Notes that everything is in place again.
    pub(in crate::journal) fn note_in_place(&mut self) {
        self.write_condition = Condition::Ok;
    }

    /// Notes that nothing written is left. Records in memory, from `next_write` on, are to be
    /// written again.
    pub(super) fn lose(&mut self, next_write: Sequence) {
        self.min_number = self.next_number();
        self.segments.clear();
        self.vanished = Vanished::default();
        self.active = None;
        self.to_sync.clear();
        (self.bytes, self.unsynced_bytes, self.unsynced_since) = (0, 0, None);
        (self.next_write, self.synced, self.repeats_below) = (next_write, next_write, Sequence::FIRST);
        self.writing = Range::default();
        self.must_roll = true;
        self.epoch += 1;
        self.saved_need = Sequence::FIRST;
    }

    /// Notes that the last segment is gone.
    pub(super) fn lose_last_segment(&mut self) {
        self.min_number = self.next_number();
        let Some(gone) = self.segments.pop_back() else { return };
        self.vanished.add(&gone);
        self.bytes -= gone.bytes;
        (self.active, self.must_roll, self.writing) = (None, true, Range::default());
        self.next_write = gone.first_sequence;
        self.synced = self.synced.min(gone.first_sequence);
        self.unsynced_bytes = 0;
        self.epoch += 1;
    }

    /// Notes that there is a new, empty folder.
    pub(super) fn begin_anew(&mut self) {
        (self.sync_fails, self.saving_fails, self.quota_reached, self.has_evicted) = (false, false, false, false);
        self.folder_changed = true;
        // The condition is unknown until memory's records are written.
        self.write_condition = Condition::Ok;
        self.note_unsynced();
    }

    pub(in crate::journal) fn note_write_error(&mut self, error: &io::Error) {
        if self.write_condition != Condition::Failing {
            tracing::error!(%error, "the journal cannot write: lines are kept in memory; trying again each second");
        }
        self.write_errors += 1;
        self.write_condition = Condition::Failing;
        self.error = Some(error.to_string());
    }
}
