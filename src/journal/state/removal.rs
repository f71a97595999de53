//! Removal of segments: what the quota, the age or the floor evicts, and what nobody needs any
//! more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::State;
use super::gaps::{Gap, Loss};
use super::id::LogId;
use super::index::DiskIndex;
use super::lane::{End, cut_saved};
use super::ledger::DropReason;
use super::options::WhenFull;
use super::record::Record;
use crate::batch::WallTime;
use crate::journal::segment::format::SegmentName;
use crate::journal::segment::{Position, Sequence};

impl State {
    /// Evicts the oldest segment, if there is more than one and the policy allows it. Returns its
    /// name.
    pub(in crate::journal) fn evict(&mut self, reason: DropReason) -> Option<SegmentName> {
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
        for (id, log) in LogId::all().zip(&self.logs) {
            let at = first.totals.get(id.index()).copied().unwrap_or_default();
            let begin = End { sequence: first.first_sequence, at };
            for backend in &mut self.backends {
                let (lost, since) = backend.cursors[id].cut(log.tail(next_sequence), begin);
                if lost != Position::default() {
                    let from = since.or(gone.created);
                    let until = first.created.max(from).unwrap_or_else(WallTime::now);
                    let (lines, received) = (lost.lines, (from, until));
                    let (points, is_unsure) = (gone.points(id), gone.first_sequence < self.found_below);
                    let loss = Loss { destination: &log.destination, lines, received, points, is_unsure };
                    backend.give_up(&mut self.gaps, reason, loss);
                }
            }
            for orphan in &mut self.orphans {
                let lanes = orphan.destinations.iter_mut().find(|(known, _)| *known == *log.destination);
                let lost = lanes.map_or(0, |(_, lanes)| cut_saved(lanes, begin, log.written));
                if lost > 0 {
                    let until = first.created.unwrap_or_else(WallTime::now);
                    let (received, points) = ((gone.created, until), gone.points(id));
                    let loss = Loss { destination: &log.destination, lines: lost, received, points, is_unsure: true };
                    self.gaps.note(Gap::of(&orphan.name, loss, reason));
                }
            }
        }
        Some(gone.name)
    }

    /// Also removes written records below a sequence from memory.
    pub(super) fn forget_below(&mut self, sequence: Sequence) {
        for log in LogId::all().take(self.logs.len()) {
            let is_old = |record: &Arc<Record>| record.sequence < sequence && record.written().is_some();
            while self.logs[log].records.front().is_some_and(is_old) {
                self.forget(log, 0);
            }
        }
    }

    /// Evicts the oldest segment if all its lines are known to be older than allowed.
    pub(in crate::journal) fn evict_aged(&mut self, now: Instant) -> Option<SegmentName> {
        let disk = self.disk.as_ref()?;
        let max_age = disk.options.max_age?;
        let is_old = disk.age(disk.segments.front()?.newest, now).is_some_and(|age| age > max_age);
        if is_old { self.evict(DropReason::Age) } else { None }
    }

    /// Whether the last segment was begun longer ago than `age` and holds lines that some backend
    /// needs.
    pub(in crate::journal) fn is_segment_older(&self, age: Duration, now: Instant) -> bool {
        let begun = |disk: &DiskIndex| disk.age(disk.segments.back()?.begun, now);
        let is_older = self.disk.as_ref().and_then(begun).is_some_and(|begun| begun > age);
        is_older && self.needed_from(true) < self.next_sequence
    }

    /// Takes out the segments that no saved cursor needs.
    pub(in crate::journal) fn take_passed(&mut self, saved_need: Sequence) -> Vec<SegmentName> {
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

    /// Takes out the segment before the last one if the last one repeats all of it that is still
    /// needed, so that repeated sync failures leave no more than two. A segment further back may
    /// hold what comes before the one that would be left. Records that had left the memory are not
    /// repeated.
    pub(in crate::journal) fn take_superseded(&mut self) -> Option<SegmentName> {
        let needed = self.needed_from_disk();
        let disk = self.disk();
        let index = disk.segments.len().checked_sub(2)?;
        let (before, last) = (&disk.segments[index], &disk.segments[index + 1]);
        let is_within = before.first_sequence >= last.first_sequence && before.end_sequence <= last.end_sequence;
        if !last.repeats || !is_within || needed.is_some_and(|needed| needed < before.end_sequence) {
            return None;
        }
        let segment = disk.segments.remove(index)?;
        disk.bytes -= segment.bytes;
        disk.folder_changed = true;
        Some(segment.name)
    }

    /// No record below this sequence is needed by a backend, or, with `all`, by one that is no
    /// longer configured.
    pub(in crate::journal) fn needed_from(&self, all: bool) -> Sequence {
        let cursors = self.backends.iter().flat_map(|backend| self.logs.iter().zip(&backend.cursors));
        let needed = cursors.filter_map(|(log, cursor)| cursor.needed_from(log.written));
        needed.chain(self.orphaned_from().filter(|_| all)).min().unwrap_or(self.next_sequence)
    }

    /// The sequence from which records are needed that are on disk and not in memory.
    pub(super) fn needed_from_disk(&self) -> Option<Sequence> {
        let cursors = self.backends.iter().flat_map(|backend| self.logs.iter().zip(&backend.cursors));
        let needed = cursors.filter_map(|(log, cursor)| cursor.needed_from_disk(log.tail(self.next_sequence)));
        needed.chain(self.orphaned_from()).min()
    }

    /// Whether a backend needs records that are on disk and not in memory.
    pub(in crate::journal) fn is_disk_needed(&self) -> bool {
        self.needed_from_disk().is_some()
    }

    /// The sequences from which backends that are no longer configured need the log.
    pub(super) fn orphaned_from(&self) -> impl Iterator<Item = Sequence> {
        let orphans = self.orphans.iter().flat_map(|orphan| &orphan.destinations);
        orphans.flat_map(|(destination, lanes)| {
            let written = self.written_of(destination);
            lanes.iter().filter(move |lane| lane.pending(written) > 0).map(|lane| lane.from)
        })
    }

    pub(in crate::journal) fn written_of(&self, destination: &crate::batch::Destination) -> Position {
        let known = self.logs.iter().find(|log| *log.destination == *destination);
        known.map_or_else(Position::default, |log| log.written)
    }
}
