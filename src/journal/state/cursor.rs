//! One backend's progress in one destination's records.
//!
//! Records are leased in order. Several leases may be out at once, and they may end in any order:
//! acked, or requeued and then leased again before anything newer.
//!
//! Records not leased yet lie in **lanes**: closed ones, followed by the open one, which has no
//! end. A cursor has one lane until its backend lags so far that records have left the memory. The
//! part that is only on disk then becomes a closed lane, the backlog. Fresh records have the open
//! lane to themselves and need not wait for it. Under strict order there is only the open lane, and
//! fresh records do wait.
//!
//! Bounds: [`MAX_LANES`]; at the bound, the open lane is read from disk until it has caught up.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::backlog::Read;
use super::lane::{End, Lane, Missing, SavedLane};
use super::limits::Limits;
use super::record::Record;
use super::tail::Tail;
use crate::batch::WallTime;
use crate::journal::segment::{Position, Sequence};

/// Most lanes of one cursor: outages during the replay of an earlier one.
const MAX_LANES: usize = 8;

#[derive(Debug)]
pub(in crate::journal) struct Cursor {
    /// The closed lanes, oldest first, and the open one.
    lanes: VecDeque<Lane>,
    leased: BTreeMap<Sequence, Arc<Record>>,
    /// Requeued: to be leased again, first.
    requeued: BTreeMap<Sequence, Arc<Record>>,
    /// In memory and not leased.
    available_lines: u64,
    available_bytes: u64,
}

impl Cursor {
    /// A cursor that has everything written up to `at`, and whose first record has sequence `from`
    /// or a higher one.
    pub(in crate::journal) fn new(from: Sequence, at: Position) -> Self {
        Self::with_lanes(VecDeque::from([Lane { from, at, ..Lane::default() }]))
    }

    /// A cursor with these lanes, the last of which is open.
    pub(in crate::journal) fn with_lanes(lanes: VecDeque<Lane>) -> Self {
        debug_assert!(lanes.back().is_some_and(|open| open.end.is_none()), "BUG: the last lane is open");
        Self { lanes, leased: BTreeMap::new(), requeued: BTreeMap::new(), available_lines: 0, available_bytes: 0 }
    }

    fn open(&self) -> &Lane {
        self.lanes.back().expect("BUG: there is always an open lane")
    }

    fn open_mut(&mut self) -> &mut Lane {
        self.lanes.back_mut().expect("BUG: there is always an open lane")
    }

    /// No record in memory below this sequence is needed.
    pub(in crate::journal) fn watermark(&self) -> Sequence {
        let held = [self.leased.first_key_value(), self.requeued.first_key_value()];
        held.into_iter().flatten().map(|(sequence, _)| *sequence).fold(self.open().from, Sequence::min)
    }

    /// No record on disk below this sequence is needed. `None`: no record is needed.
    pub(in crate::journal) fn needed_from(&self, written: Position) -> Option<Sequence> {
        let held = [self.leased.first_key_value(), self.requeued.first_key_value()];
        let held = held.into_iter().flatten().map(|(sequence, _)| *sequence);
        let lanes = self.lanes.iter().filter(|lane| lane.pending(written) != Position::default()).map(|lane| lane.from);
        held.chain(lanes).min()
    }

    /// The sequence from which records are needed that are on disk and no longer in memory. `None`
    /// if none are.
    pub(in crate::journal) fn needed_from_disk(&self, tail: Tail<'_>) -> Option<Sequence> {
        let is_gone =
            |sequence: &Sequence| tail.records.binary_search_by_key(sequence, |record| record.sequence).is_err();
        let held = self.leased.keys().chain(self.requeued.keys()).copied().filter(is_gone);
        let lanes = self.lanes.iter().filter(|lane| match lane.end {
            Some(_) => !lane.is_read(),
            None => self.is_behind(tail),
        });
        held.chain(lanes.map(|lane| lane.from)).min()
    }

    /// The lanes as a start after a crash should find them: leased records are not delivered yet.
    pub(in crate::journal) fn saved(&self, tail: Tail<'_>) -> Vec<SavedLane> {
        let next_wall = |from| tail.next(from).map(|record| record.batch.received().wall);
        let mut saved = Vec::with_capacity(self.lanes.len());
        let mut held = self.leased.iter().chain(&self.requeued).map(|(_, record)| record).collect::<Vec<_>>();
        held.sort_unstable_by_key(|record| record.sequence);
        let mut held = held.into_iter().peekable();
        for lane in &self.lanes {
            // Held records lie before the lane: adjacent to it, or not, if records between are
            // acked or gone.
            let mut open_run: Option<SavedLane> = None;
            while let Some(record) = held.next_if(|record| record.sequence < lane.from) {
                let at = record.written().unwrap_or(tail.written);
                let end = (record.sequence.next(), record.written().map_or(at, |at| record.end(at)));
                match &mut open_run {
                    Some(run) if run.end.is_some_and(|(_, end)| end == at) => run.end = Some(end),
                    _ => {
                        let since = Some(record.batch.received().wall);
                        let run = SavedLane { from: record.sequence, at, since, end: Some(end) };
                        saved.extend(open_run.replace(run));
                    }
                }
            }
            let end = lane.end.map(|end| (end.sequence, end.at));
            match open_run {
                Some(run) if run.end.is_some_and(|(_, at)| at == lane.at) => saved.push(SavedLane { end, ..run }),
                other => {
                    saved.extend(other);
                    if !lane.is_read() {
                        let since = lane.since.or_else(|| next_wall(lane.from));
                        saved.push(SavedLane { from: lane.from, at: lane.at, since, end });
                    }
                }
            }
        }
        saved
    }

    pub(in crate::journal) fn append(&mut self, record: &Record) {
        self.available_lines += record.batch.lines();
        self.available_bytes += record.bytes();
    }

    /// Whether a lease from memory would be as large as the limits allow.
    pub(in crate::journal) fn is_full(&self, limits: &Limits) -> bool {
        self.available_lines >= limits.lines || self.available_bytes >= limits.bytes
    }

    /// The record in memory with which a lease would begin.
    pub(in crate::journal) fn first_available<'a>(&'a self, tail: Tail<'a>) -> Option<&'a Arc<Record>> {
        let requeued = self.requeued.first_key_value().map(|(_, record)| record);
        requeued.or_else(|| if self.is_behind(tail) { None } else { tail.next(self.open().from) })
    }

    /// Whether the open lane's next record is only on disk.
    fn is_behind(&self, tail: Tail<'_>) -> bool {
        let open = self.open();
        open.at.lines < tail.begin(open.from).at.lines
    }

    /// Splits what is only on disk into a lane of its own, unless there are too many lanes.
    pub(in crate::journal) fn split_backlog(&mut self, tail: Tail<'_>) {
        if !self.is_behind(tail) {
            return;
        }
        let open = self.open();
        let (begin, open_from, open_at) = (tail.begin(open.from), open.from, open.at);
        let before = self.lanes.len().checked_sub(2).and_then(|index| self.lanes.get_mut(index));
        if let Some(lane) = before
            && lane.end == Some(End { sequence: open_from, at: open_at })
        {
            lane.end = Some(begin);
        } else if self.lanes.len() < MAX_LANES {
            self.open_mut().end = Some(begin);
            self.lanes.push_back(Lane::default());
        } else {
            return;
        }
        *self.open_mut() = Lane { from: begin.sequence, at: begin.at, ..Lane::default() };
    }

    /// The lane to read from disk next, and where reading it ends.
    pub(in crate::journal) fn backlog(&self, tail: Tail<'_>) -> Option<(&Lane, End)> {
        let closed = self.lanes.iter().find_map(|lane| Some((lane, lane.end.filter(|_| !lane.is_read())?)));
        let open = || self.is_behind(tail).then(|| (self.open(), tail.begin(self.open().from)));
        closed.or_else(open)
    }

    /// Leases consecutive records from memory within the limits, at least one if there is any, all
    /// with sequences below `before`.
    pub(in crate::journal) fn lease(&mut self, tail: Tail<'_>, limits: &Limits, before: Sequence) -> Vec<Arc<Record>> {
        let mut taken = Vec::new();
        let (mut lines, mut bytes) = (0, 0);
        while let Some(record) = self.first_available(tail).map(Arc::clone) {
            lines += record.batch.lines();
            bytes += record.bytes();
            if record.sequence >= before || !taken.is_empty() && (lines > limits.lines || bytes > limits.bytes) {
                break;
            }
            if self.requeued.remove(&record.sequence).is_none() {
                let open = self.open_mut();
                open.resume = None;
                open.from = record.sequence.next();
                open.at = record.written().map_or(open.at, |at| record.end(at));
            }
            self.take_from_available(&record);
            self.leased.insert(record.sequence, Arc::clone(&record));
            taken.push(record);
        }
        taken
    }

    /// Leases records that were read from the lane at `read.from`, and notes whether the lane has
    /// more. Returns the leased records and what turned out to be missing by `now`. `None` if the
    /// lane has moved meanwhile.
    pub(in crate::journal) fn lease_read(
        &mut self,
        read: Read,
        now: WallTime,
    ) -> Option<(Vec<Arc<Record>>, Vec<Missing>)> {
        let lane = self.lanes.iter_mut().find(|lane| lane.from == read.from && !lane.is_read())?;
        let mut missing = Vec::new();
        for record in &read.records {
            let at = record.written().unwrap_or(lane.at);
            missing.extend(Missing::between(lane, at, record.batch.received().wall));
            (lane.from, lane.at) = (record.sequence.next(), record.end(at));
            lane.since = Some(record.batch.received().wall);
            self.leased.insert(record.sequence, Arc::clone(record));
        }
        lane.failures = if read.failed && read.records.is_empty() { lane.failures + 1 } else { 0 };
        lane.resume = read.resume;
        if let Some(stopped) = read.stopped {
            missing.extend(Missing::between(lane, stopped.at, now));
            (lane.from, lane.at) = (lane.from.max(stopped.sequence), lane.at.max(stopped.at));
        }
        if let Some(end) = read.finished {
            missing.extend(Missing::between(lane, end.at, now));
            (lane.from, lane.at) = (lane.from.max(end.sequence), lane.at.max(end.at));
        }
        self.end_lanes();
        Some((read.records, missing))
    }

    /// The records in memory that are not acked: leased, requeued, or to be leased from memory.
    pub(in crate::journal) fn pending_in_memory<'a>(&'a self, tail: Tail<'a>) -> impl Iterator<Item = &'a Arc<Record>> {
        let open = self.open();
        // Earlier records count as on disk.
        let from = tail.begin(open.from).sequence.max(open.from);
        let fresh = tail.records.range(tail.records.partition_point(|record| record.sequence < from)..);
        self.held().chain(fresh)
    }

    /// Ranges of sequences to be read from disk, each with the receive time of its oldest line, if
    /// known.
    pub(in crate::journal) fn pending_on_disk(
        &self,
        tail: Tail<'_>,
    ) -> impl Iterator<Item = (Range<Sequence>, Option<WallTime>)> {
        self.lanes.iter().filter_map(move |lane| match lane.end {
            Some(end) => (!lane.is_read()).then_some((lane.from..end.sequence, lane.since)),
            None => self.is_behind(tail).then(|| (lane.from..tail.begin(lane.from).sequence, lane.since)),
        })
    }

    /// Whether all existing records of these sequences are unacked.
    pub(in crate::journal) fn has_pending(&self, sequences: &Range<Sequence>) -> bool {
        let is_held = |sequence: &Sequence| self.leased.contains_key(sequence) || self.requeued.contains_key(sequence);
        let in_lane =
            |lane: &Lane| lane.from <= sequences.start && lane.end.is_none_or(|end| sequences.end <= end.sequence);
        let is_one = sequences.end == sequences.start.next();
        self.lanes.iter().any(in_lane) || (is_one && is_held(&sequences.start))
    }

    /// Whether a record below this sequence is unacked.
    pub(in crate::journal) fn has_pending_below(&self, tail: Tail<'_>, sequence: Sequence) -> bool {
        self.pending_in_memory(tail).any(|record| record.sequence < sequence)
            || self.pending_on_disk(tail).any(|(sequences, _)| sequences.start < sequence)
    }

    /// Whether a record is leased.
    pub(in crate::journal) fn has_leased(&self, sequence: Sequence) -> bool {
        self.leased.contains_key(&sequence)
    }

    /// Ends the lease of an acked record.
    pub(in crate::journal) fn ack(&mut self, sequence: Sequence) {
        let leased = self.leased.remove(&sequence);
        debug_assert!(leased.is_some(), "BUG: only a leased record is acked");
        self.end_lanes();
    }

    /// Ends the lease of a record that is to be leased again.
    pub(in crate::journal) fn requeue(&mut self, record: &Arc<Record>) {
        // It may have been replaced meanwhile: see `adopt`.
        let record = self.leased.remove(&record.sequence).unwrap_or_else(|| Arc::clone(record));
        self.append(&record);
        self.requeued.insert(record.sequence, record);
    }

    /// Requeues all leased records.
    pub(in crate::journal) fn requeue_all(&mut self) {
        for record in std::mem::take(&mut self.leased).into_values() {
            self.requeue(&record);
        }
    }

    /// The records that are leased or requeued.
    pub(in crate::journal) fn held(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.leased.values().chain(self.requeued.values())
    }

    /// Whether the open lane has not leased this record yet.
    pub(in crate::journal) fn is_yet_to_lease(&self, record: &Record) -> bool {
        record.sequence >= self.open().from
    }

    /// Takes the requeued records that are no longer on disk, which holds nothing below
    /// `kept_from`.
    pub(in crate::journal) fn take_requeued(&mut self, kept_from: Sequence) -> Vec<Arc<Record>> {
        let gone = |record: &&Arc<Record>| !record.is_on_disk(kept_from);
        let taken: Vec<Arc<Record>> = self.requeued.values().filter(gone).map(Arc::clone).collect();
        for record in &taken {
            self.requeued.remove(&record.sequence);
            self.take_from_available(record);
        }
        self.end_lanes();
        taken
    }

    /// Puts requeued records that are on disk (which holds nothing below `kept_from`) back into
    /// their lane, newest first, as long as they directly precede what the lane still has. Returns
    /// `false` if there are none.
    pub(in crate::journal) fn release_requeued(&mut self, tail: Tail<'_>, kept_from: Sequence) -> bool {
        let mut has_released = false;
        while let Some((_, record)) = self.requeued.last_key_value() {
            let Some(at) = record.written().filter(|_| record.sequence >= kept_from) else { break };
            let (record, end) = (Arc::clone(record), record.end(at));
            let Some(lane) = self.lanes.iter_mut().find(|lane| lane.at == end && lane.from > record.sequence) else {
                break;
            };
            // Unwritten records have no position; one may lie between, leased or acked.
            let between = record.sequence.next()..lane.from;
            let is_leased = self.leased.range(between.clone()).next().is_some();
            if is_leased || tail.next(between.start).is_some_and(|next| between.contains(&next.sequence)) {
                break;
            }
            (lane.from, lane.at, lane.since) = (record.sequence, at, Some(record.batch.received().wall));
            lane.resume = None;
            self.requeued.remove(&record.sequence);
            // In memory, only the open lane can still lease it.
            if !self.is_in_memory(&record, tail) {
                self.take_from_available(&record);
            }
            has_released = true;
        }
        has_released
    }

    /// Whether this is the open lane's next record in memory.
    fn is_in_memory(&self, record: &Record, tail: Tail<'_>) -> bool {
        let is_next = tail.next(self.open().from).is_some_and(|next| next.sequence == record.sequence);
        is_next && self.open().from == record.sequence
    }

    /// Handles a record that is not on disk leaving the memory; `records` stay. Returns `true` if
    /// this cursor had not leased it yet, so that its lines are lost to the backend.
    pub(in crate::journal) fn fall_off(&mut self, record: &Record, records: &VecDeque<Arc<Record>>) -> bool {
        let is_yet_to_lease = self.is_yet_to_lease(record);
        let lost = self.requeued.remove(&record.sequence).is_some() || is_yet_to_lease;
        if lost {
            self.take_from_available(record);
        }
        if is_yet_to_lease && let Some(at) = record.written() {
            self.hold_before(record, records);
            let open = self.open_mut();
            (open.from, open.at) = (record.sequence.next(), open.at.max(record.end(at)));
        }
        self.end_lanes();
        lost
    }

    /// Handles a record that is on disk leaving the memory; `records` stay. If it is not leased
    /// yet, it will be read from disk.
    pub(in crate::journal) fn fall_behind(&mut self, record: &Record, records: &VecDeque<Arc<Record>>) {
        if self.is_yet_to_lease(record) {
            self.hold_before(record, records);
            self.take_from_available(record);
            let open = self.open_mut();
            open.since.get_or_insert_with(|| record.batch.received().wall);
        }
    }

    /// Requeues the open lane's records in memory before a record that leaves, so that the lane has
    /// no hole: it then begins with that record.
    fn hold_before(&mut self, record: &Record, records: &VecDeque<Arc<Record>>) {
        let open_from = self.open().from;
        let first = records.partition_point(|before| before.sequence < open_from);
        let Some(at) = record.written() else { return };
        let before: Vec<_> = records.range(first..).take_while(|before| before.sequence < record.sequence).collect();
        if before.is_empty() {
            return;
        }
        for record in before {
            self.requeued.insert(record.sequence, Arc::clone(record));
        }
        let open = self.open_mut();
        (open.from, open.at, open.resume) = (record.sequence, at, None);
    }

    /// Notes that a record was written, up to `end`.
    pub(in crate::journal) fn note_written(&mut self, record: &Record, end: Position) {
        let open = self.open_mut();
        if open.from > record.sequence {
            open.at = end;
        }
    }

    /// Notes that the disk lost everything before `begin`. Returns what this cursor loses, and
    /// since when.
    pub(in crate::journal) fn cut(&mut self, tail: Tail<'_>, begin: End) -> (Position, Option<WallTime>) {
        let (mut lost, mut since) = (Position::default(), None);
        for lane in &mut self.lanes {
            let end = lane.end.unwrap_or_else(|| tail.begin(lane.from));
            let to = if end.at.lines < begin.at.lines { end } else { begin };
            let gap = to.at.since(lane.at);
            if gap == Position::default() {
                continue;
            }
            lost = lost.plus(gap.lines, gap.bytes);
            since = since.or(lane.since);
            (lane.from, lane.at, lane.resume) = (lane.from.max(to.sequence), to.at, None);
        }
        self.end_lanes();
        (lost, since)
    }

    /// Notes that the disk lost everything. What is left to lease is in memory, and counts as never
    /// written. Returns what this cursor loses, and since when.
    pub(in crate::journal) fn leave_disk(&mut self, tail: Tail<'_>) -> (Position, Option<WallTime>) {
        let open = self.open();
        let (open_from, next) = (open.from, tail.begin(open.from).sequence);
        let in_memory = tail.records.range(tail.records.partition_point(|record| record.sequence < open_from)..);
        let in_memory = in_memory.filter(|record| record.written().is_some());
        let kept = in_memory.fold(Position::default(), |sum, record| record.end(sum));
        let lost = self.unread_on_disk(tail.written).since(kept);
        let since = self.lanes.iter().find_map(|lane| lane.since);
        self.lanes = VecDeque::from([Lane { from: next, at: tail.written, ..Lane::default() }]);
        (lost, since)
    }

    /// Replaces held records that were read from disk by the same records in memory. Whether one
    /// copy is written says nothing about the other.
    pub(in crate::journal) fn adopt(&mut self, records: &BTreeMap<Sequence, Arc<Record>>) {
        for (sequence, held) in self.leased.iter_mut().chain(&mut self.requeued) {
            if let Some(record) = records.get(sequence) {
                *held = Arc::clone(record);
            }
        }
    }

    /// The open lane has no record below this sequence.
    pub(in crate::journal) fn next_in_memory(&self) -> Sequence {
        self.open().from
    }

    /// The oldest unacked record: in memory, or known only by its receive time.
    pub(in crate::journal) fn oldest_pending<'a>(
        &'a self,
        tail: Tail<'a>,
    ) -> (Option<&'a Arc<Record>>, Option<WallTime>) {
        let available = self.first_available(tail);
        let leased = self.leased.first_key_value().map(|(_, record)| record);
        let record = [available, leased].into_iter().flatten().min_by_key(|record| record.sequence);
        (record, self.backlog(tail).and_then(|(lane, _)| lane.since))
    }

    /// The size of what the lanes hold, on disk or about to be written.
    pub(in crate::journal) fn unread_on_disk(&self, written: Position) -> Position {
        self.lanes
            .iter()
            .map(|lane| lane.pending(written))
            .fold(Position::default(), |sum, one| sum.plus(one.lines, one.bytes))
    }

    /// Removes closed lanes whose records are all acked. Until then they mark where leased records
    /// end.
    fn end_lanes(&mut self) {
        let held = [self.leased.first_key_value(), self.requeued.first_key_value()];
        let held = held.into_iter().flatten().map(|(sequence, _)| *sequence).min().unwrap_or(Sequence::END);
        let is_over = |lane: &Lane| lane.is_read() && lane.end.is_some_and(|end| held >= end.sequence);
        while self.lanes.front().is_some_and(is_over) {
            self.lanes.pop_front();
        }
    }

    fn take_from_available(&mut self, record: &Record) {
        self.available_lines -= record.batch.lines();
        self.available_bytes -= record.bytes();
    }
}

#[cfg(test)]
mod tests;
