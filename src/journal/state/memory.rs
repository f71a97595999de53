//! The memory tail and its bound: who leaves it, and what that costs.

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

/// The part of the memory that records from the disk may have beside those that come in: one of so many. Where memory is
/// all there is left for what comes in, backends are still sent what the disk has.
const PART_FOR_READING: u64 = 16;
/// How long senders wait for a disk that writes nothing, or for backends that free nothing.
const LONGEST_PRESSURE: Duration = Duration::from_secs(5);

impl State {
    /// Lets the oldest records go until there is room for this many bytes more; false where there is none.
    pub(super) fn make_room(&mut self, bytes: u64) -> bool {
        let bound = match &self.disk {
            Some(_) => self.memory_bound - self.memory_bound / PART_FOR_READING,
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
                |(_, log, place): (Sequence, LogId, usize)| self.logs[log].records[place].is_on_disk(kept_from);
            // What was given back and is on the disk can be read again: nothing is lost for its sake.
            if !candidate.is_some_and(is_on_disk) && self.release_returned() {
                continue;
            }
            let Some((_, log, place)) = candidate else { return false };
            self.forget(log, place);
        }
        true
    }

    /// Sets memory aside for a reading: as much as a lease may hold, or what there is.
    pub(super) fn reserve_for(&self, limits: &Limits) -> Reserve {
        let free = self.memory_bound.saturating_sub(self.memory.load(Ordering::Relaxed));
        Reserve::new(free.min(limits.bytes), &self.memory)
    }

    /// The place of the oldest record of a log that may leave the memory. What is on its way would not free its memory, and
    /// what is not on the disk would be lost with a crash. Of those that have left the disk the oldest goes first: cursors
    /// pass them in order.
    pub(super) fn first_to_forget(&self, log: LogId, pinned: &Range<Sequence>, kept_from: Sequence) -> Option<usize> {
        let is_leased =
            |record: &Record| self.backends.iter().any(|backend| backend.cursors[log].has_leased(record.sequence));
        let is_pinned =
            |record: &Record| !record.is_on_disk(kept_from) && (pinned.contains(&record.sequence) || is_leased(record));
        let records = &self.logs[log].records;
        let left_disk = records.partition_point(|record| record.has_left_disk(kept_from));
        let skipped = if left_disk > 0 && is_pinned(&records[0]) { left_disk } else { 0 };
        records.iter().skip(skipped).position(|record| !is_pinned(record)).map(|place| skipped + place)
    }

    /// Lets go of what was given back and can be read from the disk again; false where there is none.
    pub(super) fn release_returned(&mut self) -> bool {
        let (mut has_released, kept_from) = (false, self.kept_from());
        for (id, log) in LogId::all().zip(&self.logs) {
            for backend in &mut self.backends {
                has_released |= backend.cursors[id].release_returned(log.tail(self.next_sequence), kept_from);
            }
        }
        has_released
    }

    /// Lets one record in memory go: what is on the disk is read from there, what is not is lost.
    pub(in crate::journal) fn forget(&mut self, log: LogId, place: usize) {
        let reason = self.disk.as_ref().map_or(DropReason::MemoryFull, DiskIndex::reason);
        let kept_from = self.kept_from();
        let Log { records, .. } = &mut self.logs[log];
        let Some(record) = records.remove(place) else { return };
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
        // The watermark of a cursor that lost its lowest record rises over what it had acked behind that.
        self.retire(log);
    }

    /// Half of the memory is enough for what is on the disk as well; the rest is for what is read from there. What has left
    /// the disk and is only in memory may have an eighth more, so that senders never wait for its sake.
    pub(super) fn trim(&mut self) {
        loop {
            let (memory, kept_from) = (self.memory.load(Ordering::Relaxed), self.disk().first_sequence());
            let on_disk = LogId::all().zip(&self.logs).filter_map(|(log, known)| {
                let place = known.records.partition_point(|record| record.has_left_disk(kept_from));
                let record = known.records.get(place).filter(|record| record.is_on_disk(kept_from))?;
                Some((record.sequence, log, place))
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
            let Some((_, log, place)) = next else { return };
            self.forget(log, place);
        }
    }

    /// Lets go of the records that every backend has acked.
    pub(super) fn retire(&mut self, log: LogId) {
        let watermark = self.backends.iter().map(|backend| backend.cursors[log].watermark()).min();
        let records = &mut self.logs[log].records;
        while let Some(record) = records.pop_front_if(|record| Some(record.sequence) < watermark) {
            // What every backend has is safe, wherever else it is.
            record.batch.reach(Step::Synced);
        }
    }

    /// Returns every lease: whoever had them is gone.
    pub(in crate::journal) fn requeue_leases(&mut self) {
        self.backends.iter_mut().flat_map(|backend| &mut backend.cursors).for_each(Cursor::give_all_back);
    }

    /// Gives up what is not on the disk, at the end; returns each backend's lines. `reason` is that of what was never written.
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
                // What was read from the disk and given back is in no log.
                lost.extend(cursor.take_returned(kept_from));
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

    /// Records below this sequence have left the disk, whether or not they were written: the quota, the age or the floor took
    /// their segment. What of them is in memory is all there is.
    pub(super) fn kept_from(&self) -> Sequence {
        self.disk.as_ref().map_or(Sequence::FIRST, DiskIndex::first_sequence)
    }

    /// Whether lines that are only in memory are soon to be lost.
    pub(in crate::journal) fn is_memory_scarce(&self) -> bool {
        self.memory.load(Ordering::Relaxed) / 3 > self.memory_bound / 4
    }

    /// Whether what comes now would be lost: memory is scarce, and waiting for it is no use.
    pub(in crate::journal) fn is_full(&mut self, now: Instant) -> bool {
        self.is_memory_scarce() && !self.is_pressed(now)
    }

    /// Whether senders that can wait are to wait: memory is scarce, and there is hope that it is no more in a moment. A
    /// disk that fails, hangs or is full gives none, nor does a dead backend where there is no disk.
    pub(in crate::journal) fn is_pressed(&mut self, now: Instant) -> bool {
        let has_hope = self.disk.as_ref().is_none_or(|disk| disk.writing_is == Condition::Ok);
        if !has_hope || !self.is_memory_scarce() {
            self.scarce_since = None;
            return false;
        }
        now.saturating_duration_since(*self.scarce_since.get_or_insert(now)) < LONGEST_PRESSURE
    }
}
