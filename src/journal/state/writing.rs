//! What is written next, and what follows once it is written or synced.

use super::id::LogId;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::figures::Condition;
use super::index::{Segment, When};
use super::record::Record;
use super::saved::{Cursors, SavedBackend};
use super::{Log, State};
use crate::batch::{Span, Step, WallTime};
use crate::journal::segment::format::SegmentName;
use crate::journal::segment::frame::FRAME_HEADER_BYTES;
use crate::journal::segment::storage::StoredFile;
use crate::journal::segment::{Position, Sequence};

/// Most records per write.
const MAX_RECORDS: usize = 256;

/// A record to be written: its log, and its position on disk.
#[derive(Debug)]
pub(in crate::journal) struct Job {
    pub(in crate::journal) log: LogId,
    pub(in crate::journal) record: Arc<Record>,
    pub(in crate::journal) at: Position,
}

impl Job {
    /// An upper bound of its bytes in a segment.
    pub(in crate::journal) fn bytes(&self) -> u64 {
        let names = self.record.batch.destination();
        (FRAME_HEADER_BYTES + names.database().len() + names.retention_policy().len()) as u64 + self.record.bytes()
    }
}

/// A new segment.
#[derive(Debug)]
pub(in crate::journal) struct Begun {
    pub(in crate::journal) name: SegmentName,
    pub(in crate::journal) first_sequence: Sequence,
    pub(in crate::journal) repeats: bool,
    pub(in crate::journal) totals: Vec<Position>,
    /// Wall time of its creation.
    pub(in crate::journal) created: WallTime,
    pub(in crate::journal) bytes: u64,
}

impl State {
    /// The next records to write, in order: about this many bytes, but at least one record if there
    /// is any.
    pub(in crate::journal) fn next_to_write(&mut self, bytes: u64) -> Vec<Job> {
        let from = self.disk().next_write;
        let mut ends: Vec<(usize, Position)> = self
            .logs
            .iter()
            .map(|log| (log.records.partition_point(|record| record.sequence < from), log.written))
            .collect();
        let (mut jobs, mut sum) = (Vec::new(), 0);
        while jobs.len() < MAX_RECORDS {
            let candidates = LogId::all().zip(self.logs.iter().zip(&ends));
            let next = candidates.filter_map(|(log, (known, (index, _)))| Some((known.records.get(*index)?, log)));
            let Some((record, log)) = next.min_by_key(|(record, _)| record.sequence) else { break };
            let (index, written) = &mut ends[log.index()];
            let at = record.written().unwrap_or(*written);
            let job = Job { log, record: Arc::clone(record), at };
            sum += job.bytes();
            if !jobs.is_empty() && sum > bytes {
                break;
            }
            *index += 1;
            *written = written.max(record.end(at));
            jobs.push(job);
        }
        let next_sequence = self.next_sequence;
        let disk = self.disk();
        match (jobs.first(), jobs.last()) {
            (Some(first), Some(last)) => {
                // Earlier records have left the memory, so a segment begun now begins with these.
                disk.next_write = first.record.sequence;
                disk.writing = first.record.sequence..last.record.sequence.next();
            }
            _ => disk.next_write = next_sequence,
        }
        jobs
    }

    /// Whether all records below this sequence are written or gone, and the disk accepts more.
    /// Always `true` without a disk.
    pub(in crate::journal) fn is_written_below(&self, sequence: Sequence) -> bool {
        let Some(disk) = &self.disk else { return true };
        disk.write_condition == Condition::Ok && !disk.sync_fails && disk.next_write >= sequence
    }

    /// Whether there is something to write.
    pub(in crate::journal) fn has_work(&self) -> bool {
        let Some(disk) = &self.disk else { return false };
        (disk.cursors_changed && !disk.saving_fails)
            || (disk.write_condition == Condition::Ok && disk.next_write < self.next_sequence)
    }

    /// Whether there are records that were never written.
    pub(in crate::journal) fn has_unwritten(&self) -> bool {
        self.logs.iter().any(|log| log.records.back().is_some_and(|record| record.written().is_none()))
    }

    /// Unpins the records of a write, whatever its outcome.
    pub(in crate::journal) fn end_writing(&mut self) {
        self.disk().writing = Sequence::FIRST..Sequence::FIRST;
    }

    /// Notes that records were written to the last segment, in this many bytes. They were chosen
    /// after `epoch` failed syncs.
    pub(in crate::journal) fn note_written(&mut self, jobs: &[Job], bytes: u64, epoch: u64) {
        let is_synced = self.disk().options.is_synced;
        for Job { log, record, at } in jobs {
            let end = record.end(*at);
            record.batch.reach(Step::Written);
            if let Some(ticket) = record.batch.ticket().filter(|_| is_synced) {
                self.tickets.push_back((record.sequence, Arc::clone(ticket)));
            }
            if record.note_written(*at) {
                self.logs[*log].written = end;
                for backend in &mut self.backends {
                    backend.cursors[*log].note_written(record, end);
                }
            }
        }
        self.scarce_since = None;
        let disk = self.disk();
        // If a sync has failed meanwhile, the unsynced records are written again.
        if let Some(last) = jobs.last()
            && disk.epoch == epoch
        {
            disk.next_write = last.record.sequence.next();
        }
        disk.writing = Sequence::FIRST..Sequence::FIRST;
        disk.bytes += bytes;
        disk.unsynced_bytes += bytes;
        disk.note_unsynced();
        // Save the cursors, so that written records are known even if a power cut takes them.
        disk.cursors_changed = true;
        disk.quota_reached = false;
        disk.write_condition = Condition::Ok;
        if let Some(segment) = disk.segments.back_mut() {
            let mut next = segment.end_sequence;
            for job in jobs {
                segment.has_gaps |= segment.repeats && job.record.sequence != next;
                segment.add_points(job.log, job.record.batch.points());
                next = job.record.sequence.next();
            }
            segment.bytes += bytes;
            segment.newest = When::Seen(Instant::now());
            segment.end_sequence = jobs.last().map_or(segment.end_sequence, |job| job.record.sequence.next());
        }
        self.trim();
    }

    /// Makes a new segment the target of further writes.
    pub(in crate::journal) fn begin_segment(&mut self, begun: Begun, epoch: u64, file: Arc<dyn StoredFile>) {
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
            points: Vec::new(),
            bytes,
            created: Some(created),
            begun: When::Seen(now),
            newest: When::Seen(now),
        });
        disk.bytes += bytes;
        disk.active = Some(file);
        // If a sync has failed meanwhile, another segment is needed, one that repeats.
        if disk.epoch == epoch {
            disk.must_roll = false;
        }
        disk.folder_changed = true;
    }

    /// For each destination, what was written before the next record, and the times of its points
    /// in the last segment.
    pub(in crate::journal) fn totals(&self) -> Vec<(&Log, Position, Span)> {
        let from = self.disk.as_ref().map_or(Sequence::FIRST, |disk| disk.next_write);
        let last = self.disk.as_ref().and_then(|disk| disk.segments.back());
        let points = |id| last.map_or(Span::NONE, |last| last.points(id));
        let logs = LogId::all().zip(&self.logs);
        logs.map(|(id, log)| (log, log.tail(self.next_sequence).begin(from).at, points(id))).collect()
    }

    /// The cursors to save, and the sequence from which they need the log.
    pub(in crate::journal) fn cursors(&self) -> (Cursors, Sequence) {
        let backends = self.backends.iter().map(|backend| SavedBackend {
            name: backend.name.clone(),
            address: backend.moved_from.as_ref().unwrap_or(&backend.address).clone(),
            is_unkept: self.disk.as_ref().is_some_and(|disk| disk.cannot_write()) && self.has_memory_only(backend),
            moved_at: backend.moved_at.clone(),
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
        let kept = |index: usize| first.and_then(|first| first.totals.get(index)).copied().unwrap_or_default();
        let kept_from =
            self.logs.iter().enumerate().map(|(index, log)| ((*log.destination).clone(), kept(index))).collect();
        let gaps_version = self.gaps.version();
        let next_sequence = self.next_sequence;
        let cursors = Cursors { next_sequence, abandoned_below, gaps_version, written, kept_from, backends };
        // Records not yet written may be needed once they are.
        let next_write = self.disk.as_ref().map_or(Sequence::FIRST, |disk| disk.next_write);
        (cursors, self.needed_from(true).min(next_write))
    }

    /// Takes the files with unsynced bytes, oldest first. Syncing a file makes everything below its
    /// sequence safe.
    pub(in crate::journal) fn take_unsynced(&mut self) -> Vec<(Arc<dyn StoredFile>, Sequence)> {
        let disk = self.disk();
        let mut files = std::mem::take(&mut disk.to_sync);
        if disk.unsynced_bytes > 0 {
            files.extend(disk.active.as_ref().map(|file| (Arc::clone(file), disk.next_write)));
        }
        disk.unsynced_bytes = 0;
        disk.unsynced_since = None;
        files
    }

    /// Notes that a file of this epoch was synced. Files of an earlier epoch may be gone.
    pub(in crate::journal) fn note_synced(&mut self, below: Sequence, took: Duration, epoch: u64) {
        let disk = self.disk();
        if disk.epoch == epoch {
            disk.synced = disk.synced.max(below);
            while let Some((_, ticket)) = self.tickets.pop_front_if(|(sequence, _)| *sequence < below) {
                ticket.reach(Step::Synced);
            }
        }
        let disk = self.disk();
        disk.syncs += 1;
        disk.sync_latency.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        disk.sync_fails = false;
    }

    /// Notes that a file could not be synced. It is not touched again; records in it that are still
    /// in memory are written again, to a new segment. Records that have left the memory are read
    /// from the old file as long as that works.
    pub(in crate::journal) fn note_sync_failure(&mut self, error: String) {
        self.lose_unsynced();
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

    /// When the next sync is due. `None` if there is nothing to sync.
    pub(in crate::journal) fn sync_due(&self) -> Option<Instant> {
        let disk = self.disk.as_ref()?;
        let since = [disk.unsynced_since, self.gaps.changed()].into_iter().flatten().min()?;
        Some(if disk.syncs_at_once() { since } else { since + disk.options.sync_interval })
    }

    /// Whether the next sync is due at another time than at the last call.
    pub(in crate::journal) fn take_sync_change(&mut self) -> bool {
        let due = self.sync_due();
        let disk = self.disk();
        std::mem::replace(&mut disk.sync_announced, due) != due && due.is_some()
    }

    /// Notes that a cursor moved, so that the writer saves it.
    pub(in crate::journal) fn note_progress(&mut self) {
        if let Some(disk) = &mut self.disk {
            disk.cursors_changed = true;
        }
    }

    /// How long to wait before using a failed disk again.
    pub(in crate::journal) fn retry_after(&self) -> Duration {
        self.disk.as_ref().map_or(Duration::ZERO, |disk| disk.options.retry_after)
    }
}
