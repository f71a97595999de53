//! The memory tail and its bound: what leaves the memory, and what that costs.

use super::id::LogId;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::cursor::Cursor;
use super::figures::Condition;
use super::gaps::Loss;
use super::index::DiskIndex;
use super::ledger::DropReason;
use super::limits::Limits;
use super::record::{Record, Reserve};
use super::{Log, State};
use crate::batch::Step;
use crate::journal::segment::Sequence;

/// One part in this many of the memory is reserved for records read from disk. When fresh records
/// fill the rest, backends are still sent what the disk has.
const READING_DIVISOR: u64 = 16;
/// How long senders wait for a disk that writes nothing, or for backends that free nothing.
const MAX_BACKPRESSURE: Duration = Duration::from_secs(5);

impl State {
    /// Removes the oldest records until there is room for this many more bytes. Returns `false` if
    /// that fails.
    pub(super) fn make_room(&mut self, bytes: u64) -> bool {
        let bound = match &self.disk {
            Some(_) => self.memory_bound - self.memory_bound / READING_DIVISOR,
            None => self.memory_bound,
        };
        while self.memory.load(Ordering::Relaxed) + bytes > bound {
            let (pinned, kept_from) = (
                self.disk.as_ref().map_or(Sequence::FIRST..Sequence::FIRST, DiskIndex::being_written),
                self.kept_from(),
            );
            let candidates = LogId::all().zip(&self.logs).filter_map(|(id, log)| {
                let first = self.first_to_forget(id, &pinned, kept_from)?;
                Some((log.records[first].sequence, id, first))
            });
            let candidate = candidates.min();
            let is_on_disk =
                |(_, log, index): (Sequence, LogId, usize)| self.logs[log].records[index].is_on_disk(kept_from);
            // Requeued records that are on disk can be read again, so nothing need be lost to keep
            // them.
            if !candidate.is_some_and(is_on_disk) && self.release_requeued() {
                continue;
            }
            let Some((_, log, index)) = candidate else { return false };
            self.forget(log, index);
        }
        true
    }

    /// Reserves memory for a read: as much as a lease may hold, or what is free.
    pub(super) fn reserve_for(&self, limits: &Limits) -> Reserve {
        let free = self.memory_bound.saturating_sub(self.memory.load(Ordering::Relaxed));
        Reserve::new(free.min(limits.bytes), &self.memory)
    }

    /// The index of the oldest record of a log that may leave the memory. Removing a leased record
    /// would not free its memory, and a record that is not on disk would be lost in a crash.
    /// Records that have left the disk go oldest first: cursors pass them in order.
    pub(super) fn first_to_forget(&self, log: LogId, pinned: &Range<Sequence>, kept_from: Sequence) -> Option<usize> {
        let is_leased =
            |record: &Record| self.backends.iter().any(|backend| backend.cursors[log].has_leased(record.sequence));
        let is_pinned =
            |record: &Record| !record.is_on_disk(kept_from) && (pinned.contains(&record.sequence) || is_leased(record));
        let records = &self.logs[log].records;
        let left_disk = records.partition_point(|record| record.has_left_disk(kept_from));
        let skipped = if left_disk > 0 && is_pinned(&records[0]) { left_disk } else { 0 };
        records.iter().skip(skipped).position(|record| !is_pinned(record)).map(|index| skipped + index)
    }

    /// Removes requeued records that can be read from disk again. Returns `false` if there are
    /// none.
    pub(super) fn release_requeued(&mut self) -> bool {
        let (mut has_released, kept_from) = (false, self.kept_from());
        for (id, log) in LogId::all().zip(&self.logs) {
            for backend in &mut self.backends {
                has_released |= backend.cursors[id].release_requeued(log.tail(self.next_sequence), kept_from);
            }
        }
        has_released
    }

    /// Removes one record from memory. If it is on disk, it will be read from there; if not, it is
    /// lost.
    pub(in crate::journal) fn forget(&mut self, log: LogId, index: usize) {
        let reason = self.disk.as_ref().map_or(DropReason::MemoryFull, DiskIndex::reason);
        let kept_from = self.kept_from();
        let Log { records, .. } = &mut self.logs[log];
        let Some(record) = records.remove(index) else { return };
        let reason = if record.has_left_disk(kept_from) { DropReason::Quota } else { reason };
        let found_below = self.found_below;
        for backend in &mut self.backends {
            if record.is_on_disk(kept_from) {
                backend.cursors[log].fall_behind(&record, records);
            } else if backend.cursors[log].fall_off(&record, records) {
                backend.give_up(&mut self.gaps, reason, Loss::of(&record, found_below));
                record.batch.lose();
            }
        }
        // The watermark of a cursor that lost its lowest record rises past the records acked after
        // it.
        self.retire(log);
    }

    /// Half of the memory suffices for records that are on disk as well; the rest is for reads.
    /// Records that have left the disk and are only in memory may use an eighth more, so that
    /// senders never wait because of them.
    pub(super) fn trim(&mut self) {
        loop {
            let (memory, kept_from) = (self.memory.load(Ordering::Relaxed), self.disk().first_sequence());
            let on_disk = LogId::all().zip(&self.logs).filter_map(|(log, known)| {
                let index = known.records.partition_point(|record| record.has_left_disk(kept_from));
                let record = known.records.get(index).filter(|record| record.is_on_disk(kept_from))?;
                Some((record.sequence, log, index))
            });
            let left_disk = || {
                let fronts =
                    LogId::all().zip(&self.logs).filter_map(|(log, known)| Some((known.records.front()?, log)));
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
            let Some((_, log, index)) = next else { return };
            self.forget(log, index);
        }
    }

    /// Removes the records that every backend has acked.
    pub(super) fn retire(&mut self, log: LogId) {
        let watermark = self.backends.iter().map(|backend| backend.cursors[log].watermark()).min();
        let records = &mut self.logs[log].records;
        while let Some(record) = records.pop_front_if(|record| Some(record.sequence) < watermark) {
            // What every backend has is safe, wherever else it is.
            record.batch.reach(Step::Synced);
        }
    }

    /// Requeues every lease: the holders are gone.
    pub(in crate::journal) fn requeue_leases(&mut self) {
        self.backends.iter_mut().flat_map(|backend| &mut backend.cursors).for_each(Cursor::requeue_all);
    }

    /// At the end, gives up what is not on disk. Returns each backend's lines. `reason` applies to
    /// records that were never written.
    pub(in crate::journal) fn give_up_memory_only(&mut self, reason: DropReason) -> Vec<u64> {
        let (kept_from, found_below, before) = (self.kept_from(), self.found_below, self.dropped_lines());
        for id in LogId::all().take(self.logs.len()) {
            let log = &mut self.logs[id];
            let records = std::mem::take(&mut log.records).into_iter();
            let (kept, gone): (VecDeque<Arc<Record>>, VecDeque<Arc<Record>>) =
                records.partition(|record| record.is_on_disk(kept_from));
            log.records = kept;
            for backend in &mut self.backends {
                let cursor = &mut backend.cursors[id];
                let mut lost: Vec<_> =
                    gone.iter().filter(|record| cursor.fall_off(record, &log.records)).map(Arc::clone).collect();
                // Records read from disk and requeued are in no log.
                lost.extend(cursor.take_requeued(kept_from));
                for record in lost {
                    record.batch.lose();
                    let reason = if record.has_left_disk(kept_from) { DropReason::Quota } else { reason };
                    backend.give_up(&mut self.gaps, reason, Loss::of(&record, found_below));
                }
            }
            self.retire(id);
        }
        self.note_progress();
        self.dropped_lines().iter().zip(before).map(|(after, before)| after - before).collect()
    }

    /// Records below this sequence have left the disk, written or not, because the quota, the age
    /// or the floor evicted their segment. Only the copies in memory remain.
    pub(super) fn kept_from(&self) -> Sequence {
        self.disk.as_ref().map_or(Sequence::FIRST, DiskIndex::first_sequence)
    }

    /// Whether lines that are only in memory will soon be lost.
    pub(in crate::journal) fn is_memory_scarce(&self) -> bool {
        self.memory.load(Ordering::Relaxed) / 3 > self.memory_bound / 4
    }

    /// Whether new records would be lost: memory is scarce, and waiting would not help.
    pub(in crate::journal) fn is_full(&mut self, now: Instant) -> bool {
        self.is_memory_scarce() && !self.is_pressed(now)
    }

    /// Whether senders that can wait should: memory is scarce, and may not be in a moment. There is
    /// no such hope if the disk fails, hangs or is full, or, without a disk, if a backend is dead.
    pub(in crate::journal) fn is_pressed(&mut self, now: Instant) -> bool {
        let has_hope = self.disk.as_ref().is_none_or(|disk| disk.write_condition == Condition::Ok);
        if !has_hope || !self.is_memory_scarce() {
            self.scarce_since = None;
            return false;
        }
        now.saturating_duration_since(*self.scarce_since.get_or_insert(now)) < MAX_BACKPRESSURE
    }
}
