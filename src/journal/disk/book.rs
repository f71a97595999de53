//! The book that is kept of the disk, under the journal's lock: what is written, synced, needed, and gone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::cursor::{End, SavedLane};
use super::super::gaps::Gap;
use super::super::ledger::DropReason;
use super::super::record::{Position, Record};
use super::super::state::{Log, State};
use super::format::SegmentName;
use super::frame::FRAME_HEADER_BYTES;
use super::saved::{Cursors, SavedBackend};
use super::storage::StoredFile;
use super::{Condition, Disk, DiskFigures, Segment, WhenFull};

/// Records written at once, at most.
const MOST_RECORDS: usize = 256;
/// Bytes written and not synced at which the sync does not wait for its interval.
const SYNC_BYTES: u64 = 4 << 20;

/// How long senders wait for a disk that writes nothing, or for backends that free nothing.
const LONGEST_PRESSURE: Duration = Duration::from_secs(5);

/// A record that is to be written: its log, and its position on the disk.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) log: usize,
    pub(super) record: Arc<Record>,
    pub(super) at: Position,
}

impl Job {
    /// Bytes in a segment, at most.
    pub(super) fn bytes(&self) -> u64 {
        let names = &self.record.batch.destination;
        (FRAME_HEADER_BYTES + names.database.len() + names.retention_policy.len()) as u64 + self.record.bytes()
    }
}

/// A segment that was made.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) name: SegmentName,
    pub(super) first_sequence: u64,
    pub(super) repeats: bool,
    pub(super) totals: Vec<Position>,
    /// Wall time of its making.
    pub(super) created: u64,
    pub(super) bytes: u64,
}

impl State {
    pub(super) fn disk(&mut self) -> &mut Disk {
        self.disk.as_mut().expect("BUG: only a journal with a disk has a writer")
    }

    /// The next records to write, in order, of about this many bytes, at least one where there is one.
    pub(super) fn next_to_write(&mut self, bytes: u64) -> Vec<Job> {
        let from = self.disk().next_write;
        let mut places: Vec<(usize, Position)> = self
            .logs
            .iter()
            .map(|log| (log.records.partition_point(|record| record.sequence < from), log.written))
            .collect();
        let (mut jobs, mut sum) = (Vec::new(), 0);
        while jobs.len() < MOST_RECORDS {
            let candidates = self.logs.iter().zip(&places).enumerate();
            let next = candidates.filter_map(|(log, (known, (place, _)))| Some((known.records.get(*place)?, log)));
            let Some((record, log)) = next.min_by_key(|(record, _)| record.sequence) else { break };
            let (place, written) = &mut places[log];
            let at = record.written().unwrap_or(*written);
            let job = Job { log, record: Arc::clone(record), at };
            sum += job.bytes();
            if !jobs.is_empty() && sum > bytes {
                break;
            }
            *place += 1;
            *written = written.max(record.end(at));
            jobs.push(job);
        }
        let next_sequence = self.next_sequence;
        let disk = self.disk();
        match (jobs.first(), jobs.last()) {
            (Some(first), Some(last)) => {
                // What was before them is gone from memory: a segment that begins now begins with them.
                disk.next_write = first.record.sequence;
                disk.writing = first.record.sequence..last.record.sequence + 1;
            }
            _ => disk.next_write = next_sequence,
        }
        jobs
    }

    /// Whether there is something to write.
    pub(super) fn has_work(&self) -> bool {
        let Some(disk) = &self.disk else { return false };
        (disk.cursors_changed && !disk.saving_fails)
            || (disk.writing_is == Condition::Ok && disk.next_write < self.next_sequence)
    }

    /// Whether there are records that were never written.
    pub(super) fn has_unwritten(&self) -> bool {
        self.logs.iter().any(|log| log.records.back().is_some_and(|record| record.written().is_none()))
    }

    /// The writer's hands are empty again, whatever became of what they held.
    pub(super) fn end_writing(&mut self) {
        self.disk().writing = 0..0;
    }

    /// Records were written to the last segment, in this many bytes; they were chosen after `epoch` failed syncs.
    pub(super) fn note_written(&mut self, jobs: &[Job], bytes: u64, epoch: u64) {
        for Job { log, record, at } in jobs {
            let end = record.end(*at);
            if record.at.set(*at).is_ok() {
                self.logs[*log].written = end;
                for backend in &mut self.backends {
                    backend.cursors[*log].note_written(record, end);
                }
            }
        }
        self.scarce_since = None;
        let disk = self.disk();
        // After a failed sync meanwhile, what was not synced is written again.
        if let Some(last) = jobs.last()
            && disk.epoch == epoch
        {
            disk.next_write = last.record.sequence + 1;
        }
        disk.writing = 0..0;
        disk.bytes += bytes;
        disk.unsynced_bytes += bytes;
        disk.note_unsynced();
        // What was written is to be known where a power cut takes it.
        disk.cursors_changed = true;
        disk.quota_reached = false;
        disk.writing_is = Condition::Ok;
        if let Some(segment) = disk.segments.back_mut() {
            let mut next = segment.end_sequence;
            for job in jobs {
                segment.has_gaps |= segment.repeats && job.record.sequence != next;
                next = job.record.sequence + 1;
            }
            segment.bytes += bytes;
            segment.newest = Instant::now();
            segment.end_sequence = jobs.last().map_or(segment.end_sequence, |job| job.record.sequence + 1);
        }
        self.trim();
    }

    /// Half of the memory is enough for what is on the disk as well; the rest is for what is read from there. What has left
    /// the disk and is only in memory may have an eighth more, so that senders never wait for its sake.
    fn trim(&mut self) {
        loop {
            let (memory, kept_from) = (self.memory.load(Ordering::Relaxed), self.disk().first_sequence());
            let on_disk = self.logs.iter().enumerate().filter_map(|(log, known)| {
                let place = known.records.partition_point(|record| record.has_left_disk(kept_from));
                let record = known.records.get(place).filter(|record| record.is_on_disk(kept_from))?;
                Some((record.sequence, log, place))
            });
            let left_disk = || {
                let fronts =
                    self.logs.iter().enumerate().filter_map(|(log, known)| Some((known.records.front()?, log)));
                fronts
                    .filter(|(record, _)| record.has_left_disk(kept_from))
                    .map(|(record, log)| (record.sequence, log, 0))
                    .min()
            };
            let next = match on_disk.min() {
                Some(next) if memory > self.memory_bound / 2 => Some(next),
                _ if memory > self.memory_bound / 8 * 5 => left_disk(),
                _ => None,
            };
            let Some((_, log, place)) = next else { return };
            self.forget(log, place);
        }
    }

    /// A new segment takes what is written from now on.
    pub(super) fn begin_segment(&mut self, begun: Begun, epoch: u64, file: Arc<dyn StoredFile>) {
        let disk = self.disk();
        if let Some(sealed) = disk.active.take() {
            disk.to_sync.push((sealed, disk.next_write));
        }
        let now = Instant::now();
        let Begun { name, first_sequence, repeats, totals, created, bytes } = begun;
        disk.segments.push_back(Segment {
            name,
            first_sequence,
            end_sequence: first_sequence,
            repeats,
            has_gaps: false,
            totals,
            bytes,
            created,
            begun: now,
            newest: now,
        });
        disk.bytes += bytes;
        disk.active = Some(file);
        // After a sync that failed meanwhile there is to be another one, which repeats.
        if disk.epoch == epoch {
            disk.must_roll = false;
        }
        disk.folder_changed = true;
    }

    /// What was written before the next record, of each destination.
    pub(super) fn totals(&self) -> Vec<(&Log, Position)> {
        let from = self.disk.as_ref().map_or(0, |disk| disk.next_write);
        self.logs.iter().map(|log| (log, log.tail(self.next_sequence).begin(from).at)).collect()
    }

    /// Gives the oldest segment up, where there is more than one and the policy allows; returns it.
    pub(super) fn evict(&mut self, reason: DropReason) -> Option<SegmentName> {
        let is_needed = self.needed_from(false) < self.disk.as_ref()?.segments.front()?.end_sequence;
        let disk = self.disk();
        if disk.segments.len() < 2 {
            return None;
        }
        if is_needed && reason != DropReason::Age && disk.options.full == WhenFull::DropNewest {
            return None;
        }
        disk.has_evicted |= is_needed;
        if reason == DropReason::Age {
            let sequence = disk.segments[1].first_sequence;
            self.forget_below(sequence);
        }
        let disk = self.disk();
        let gone = disk.segments.pop_front()?;
        disk.bytes -= gone.bytes;
        disk.folder_changed = true;
        disk.cursors_changed = true;
        let (first, next_sequence) = (disk.segments.front()?.clone(), self.next_sequence);
        for (place, log) in self.logs.iter().enumerate() {
            let at = first.totals.get(place).copied().unwrap_or_default();
            let begin = End { sequence: first.first_sequence, at };
            for backend in &mut self.backends {
                let (lost, since) = backend.cursors[place].cut(log.tail(next_sequence), begin);
                if lost != Position::default() {
                    let from = if since == 0 { gone.created } else { since };
                    backend.give_up(&mut self.gaps, reason, lost, (&log.destination, from, first.created.max(from)));
                }
            }
            for orphan in &mut self.orphans {
                let lanes = orphan.destinations.iter_mut().find(|(known, _)| *known == *log.destination);
                let lost = lanes.map_or(0, |(_, lanes)| cut_saved(lanes, begin, log.written));
                if lost > 0 {
                    let (backend, destination) = (orphan.name.clone(), (*log.destination).clone());
                    let (from, until) = (gone.created, first.created);
                    self.gaps.note(Gap { backend, destination, from, until, lines: lost, reason });
                }
            }
        }
        Some(gone.name)
    }

    /// Lets what is written below a sequence leave the memory, too.
    fn forget_below(&mut self, sequence: u64) {
        for log in 0..self.logs.len() {
            let is_old = |record: &Arc<Record>| record.sequence < sequence && record.written().is_some();
            while self.logs[log].records.front().is_some_and(is_old) {
                self.forget(log, 0);
            }
        }
    }

    /// The oldest segment whose lines are all older than allowed.
    pub(super) fn evict_aged(&mut self) -> Option<SegmentName> {
        let disk = self.disk.as_ref()?;
        let is_old = disk.segments.front()?.newest.elapsed() > disk.options.max_age?;
        if is_old { self.evict(DropReason::Age) } else { None }
    }

    /// Whether the last segment was begun so long ago and holds lines that somebody needs.
    pub(super) fn is_segment_older(&self, age: Duration) -> bool {
        let last = self.disk.as_ref().and_then(|disk| disk.segments.back());
        last.is_some_and(|last| last.begun.elapsed() > age && self.needed_from(true) < self.next_sequence)
    }

    /// Whether lines that are only in memory are soon to be lost.
    pub(super) fn is_memory_scarce(&self) -> bool {
        self.memory.load(Ordering::Relaxed) / 3 > self.memory_bound / 4
    }

    /// Whether senders that can wait are to wait: memory is scarce, and there is hope that it is no more in a moment. A
    /// disk that fails, hangs or is full gives none, nor does a dead backend where there is no disk.
    pub(in super::super) fn is_pressed(&mut self, now: Instant) -> bool {
        let has_hope = self.disk.as_ref().is_none_or(|disk| disk.writing_is == Condition::Ok);
        if !has_hope || !self.is_memory_scarce() {
            self.scarce_since = None;
            return false;
        }
        now.saturating_duration_since(*self.scarce_since.get_or_insert(now)) < LONGEST_PRESSURE
    }

    /// No record below this sequence is needed by a backend, or with `all` by one that is no longer configured.
    pub(super) fn needed_from(&self, all: bool) -> u64 {
        let cursors = self.backends.iter().flat_map(|backend| self.logs.iter().zip(&backend.cursors));
        let needed = cursors.filter_map(|(log, cursor)| cursor.needed_from(log.written));
        needed.chain(self.orphaned_from().filter(|_| all)).min().unwrap_or(self.next_sequence)
    }

    /// From this sequence on, records are needed that are on the disk and not in memory.
    fn needed_from_disk(&self) -> Option<u64> {
        let cursors = self.backends.iter().flat_map(|backend| self.logs.iter().zip(&backend.cursors));
        let needed = cursors.filter_map(|(log, cursor)| cursor.needed_from_disk(log.tail(self.next_sequence)));
        needed.chain(self.orphaned_from()).min()
    }

    /// From which sequences on backends that are no longer configured need the log.
    fn orphaned_from(&self) -> impl Iterator<Item = u64> {
        let orphans = self.orphans.iter().flat_map(|orphan| &orphan.destinations);
        orphans.flat_map(|(destination, lanes)| {
            let written = self.written_of(destination);
            lanes.iter().filter(move |lane| lane.pending(written) > 0).map(|lane| lane.from)
        })
    }

    pub(super) fn written_of(&self, destination: &crate::batch::Destination) -> Position {
        let known = self.logs.iter().find(|log| *log.destination == *destination);
        known.map_or_else(Position::default, |log| log.written)
    }

    /// What is to be saved of all cursors, and from which sequence on they need the log.
    pub(super) fn cursors(&self) -> (Cursors, u64) {
        let backends = self.backends.iter().map(|backend| SavedBackend {
            name: backend.name.clone(),
            address: backend.moved_from.as_ref().unwrap_or(&backend.address).clone(),
            destinations: self
                .logs
                .iter()
                .zip(&backend.cursors)
                .map(|(log, cursor)| ((*log.destination).clone(), cursor.saved(log.tail(self.next_sequence))))
                .collect(),
        });
        let backends = backends.chain(self.orphans.iter().cloned()).collect();
        let written = self.logs.iter().map(|log| ((*log.destination).clone(), log.written)).collect();
        let abandoned_below = self.disk.as_ref().map_or(0, |disk| disk.abandoned_below);
        let first = self.disk.as_ref().and_then(|disk| disk.segments.front());
        let kept = |place: usize| first.and_then(|first| first.totals.get(place)).copied().unwrap_or_default();
        let kept_from =
            self.logs.iter().enumerate().map(|(place, log)| ((*log.destination).clone(), kept(place))).collect();
        let cursors = Cursors { next_sequence: self.next_sequence, abandoned_below, written, kept_from, backends };
        // What is not written yet may be needed once it is.
        let next_write = self.disk.as_ref().map_or(0, |disk| disk.next_write);
        (cursors, self.needed_from(true).min(next_write))
    }

    /// Takes the segments out that no saved cursor needs.
    pub(super) fn take_passed(&mut self, saved_need: u64) -> Vec<SegmentName> {
        let disk = self.disk();
        let mut passed = Vec::new();
        while disk.segments.len() > 1 && disk.segments.front().is_some_and(|first| first.end_sequence <= saved_need) {
            let Some(segment) = disk.segments.pop_front() else { break };
            disk.bytes -= segment.bytes;
            disk.folder_changed = true;
            passed.push(segment.name);
        }
        passed
    }

    /// How long to leave a disk alone that failed.
    pub(in super::super) fn retry_after(&self) -> Duration {
        self.disk.as_ref().map_or(Duration::ZERO, |disk| disk.options.retry_after)
    }

    /// Takes the segment before the last one out, where the last one repeats all of it that is still needed: syncs that go
    /// on failing leave no more than two. (One further back may have what comes before the one that would be left.) What had
    /// left the memory is not repeated.
    pub(super) fn take_superseded(&mut self) -> Option<SegmentName> {
        let needed = self.needed_from_disk();
        let disk = self.disk();
        let place = disk.segments.len().checked_sub(2)?;
        let (before, last) = (&disk.segments[place], &disk.segments[place + 1]);
        let is_within = before.first_sequence >= last.first_sequence && before.end_sequence <= last.end_sequence;
        if !last.repeats || !is_within || needed.is_some_and(|needed| needed < before.end_sequence) {
            return None;
        }
        let segment = disk.segments.remove(place)?;
        disk.bytes -= segment.bytes;
        disk.folder_changed = true;
        Some(segment.name)
    }

    /// A cursor moved: the writer saves it.
    pub(in super::super) fn note_progress(&mut self) {
        if let Some(disk) = &mut self.disk {
            disk.cursors_changed = true;
        }
    }

    /// Files with unsynced bytes, and below which sequence each makes everything safe; oldest first.
    pub(super) fn take_unsynced(&mut self) -> Vec<(Arc<dyn StoredFile>, u64)> {
        let disk = self.disk();
        let mut files = std::mem::take(&mut disk.to_sync);
        if disk.unsynced_bytes > 0 {
            files.extend(disk.active.as_ref().map(|file| (Arc::clone(file), disk.next_write)));
        }
        disk.unsynced_bytes = 0;
        disk.unsynced_since = None;
        files
    }

    pub(super) fn note_synced(&mut self, below: u64, took: Duration) {
        let disk = self.disk();
        disk.synced = disk.synced.max(below);
        disk.syncs += 1;
        disk.sync_latency.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        disk.sync_fails = false;
    }

    /// A file could not be synced, and is not touched any more: what it holds and is still in memory is written again, to a
    /// new segment. (What has left the memory meanwhile is read from the old file as long as that gives it.)
    pub(super) fn note_sync_failure(&mut self, error: String) {
        let disk = self.disk();
        disk.sync_errors += 1;
        disk.epoch += 1;
        disk.sync_fails = true;
        disk.error = Some(error);
        disk.to_sync.clear();
        disk.active = None;
        disk.must_roll = true;
        disk.repeats_below = disk.repeats_below.max(disk.next_write);
        disk.abandoned_below = disk.segments.back().map_or(0, |segment| segment.name.number + 1);
        disk.cursors_changed = true;
        disk.next_write = disk.synced;
        disk.unsynced_bytes = 0;
        disk.unsynced_since = None;
    }

    /// When the next sync is due; none where there is nothing to sync.
    pub(super) fn sync_due(&self) -> Option<Instant> {
        let disk = self.disk.as_ref()?;
        let since = [disk.unsynced_since, self.gaps.changed()].into_iter().flatten().min()?;
        Some(if disk.syncs_at_once() { since } else { since + disk.options.sync_interval })
    }

    /// Whether the next sync is due at another time than when this was asked last.
    pub(super) fn take_sync_news(&mut self) -> bool {
        let due = self.sync_due();
        let disk = self.disk();
        std::mem::replace(&mut disk.sync_told, due) != due && due.is_some()
    }

    pub(in super::super) fn disk_figures(&self, unkept: Duration) -> Option<DiskFigures> {
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

impl Disk {
    /// Something is to be synced: records, cursors, or the folder.
    pub(super) fn note_unsynced(&mut self) {
        self.unsynced_since.get_or_insert_with(Instant::now);
    }

    fn syncs_at_once(&self) -> bool {
        self.unsynced_bytes > 0 && self.options.is_synced || self.unsynced_bytes >= SYNC_BYTES
    }
}

impl SavedLane {
    /// Lines that it holds, where so much is written.
    pub(super) fn pending(&self, written: Position) -> u64 {
        self.end.map_or(written, |(_, at)| at).since(self.at).lines
    }
}

/// Moves lanes on to where the log begins; returns the lines that costs.
pub(super) fn cut_saved(lanes: &mut Vec<SavedLane>, begin: End, written: Position) -> u64 {
    let mut lost = 0;
    for lane in lanes.iter_mut() {
        let to = lane.end.map_or(written, |(_, at)| at).min(begin.at);
        lost += to.since(lane.at).lines;
        if to.lines > lane.at.lines {
            (lane.from, lane.at) = (lane.from.max(begin.sequence), to);
        }
    }
    lanes.retain(|lane| lane.end.is_none_or(|(_, at)| lane.at.lines < at.lines));
    lost
}
