//! What follows when the disk has lost everything: its folder was removed or replaced.
//!
//! Records in memory count as never written, and are written again. Lines that were only on disk
//! are given up (`corrupt`), each once, so that the ledgers balance. Positions and segment numbers
//! continue, so that nothing in the old folder can be mistaken for part of the new one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::State;
use super::gaps::{Gap, Loss};
use super::id::LogId;
use super::lane::{End, cut_saved};
use super::ledger::DropReason;
use super::record::Record;
use crate::batch::{Span, WallTime};
use crate::journal::segment::{Position, Sequence};

impl State {
    /// Gives up lines that were only on disk, for each backend that had not read them yet. `now` is
    /// the wall clock's time. Nothing is written until [`Self::begin_anew`]. Returns the lines of
    /// all backends together.
    pub(in crate::journal) fn lose_disk(&mut self, now: WallTime) -> u64 {
        self.lose_unsynced();
        let before: u64 = self.dropped_lines().iter().sum();
        let oldest = self.disk().segments.front().map_or(Some(now), |first| first.created);
        for log in LogId::all().take(self.logs.len()) {
            self.lose_log(log, oldest, now);
        }
        let in_memory = self.logs.iter().filter_map(|log| log.records.front());
        let next_write = in_memory.map(|record| record.sequence).min().unwrap_or(self.next_sequence);
        self.gaps.note_change();
        self.disk().lose(next_write);
        self.dropped_lines().iter().sum::<u64>() - before
    }

    fn lose_log(&mut self, id: LogId, oldest: Option<WallTime>, now: WallTime) {
        let points = self.on_disk(id).fold(Span::NONE, |sum, (_, points)| sum.and(points));
        let Self { logs, backends, orphans, gaps, next_sequence, .. } = self;
        let log = &mut logs[id];
        for backend in backends.iter_mut() {
            let (lost, since) = backend.cursors[id].leave_disk(log.tail(*next_sequence));
            if lost != Position::default() {
                let from = since.or(oldest);
                let (lines, received) = (lost.lines, (from, from.map_or(now, |from| from.max(now))));
                let loss = Loss { destination: &log.destination, lines, received, points, is_unsure: true };
                backend.give_up(gaps, DropReason::Corrupt, loss);
            }
        }
        let end = End { sequence: *next_sequence, at: log.written };
        for orphan in orphans {
            let lanes = orphan.destinations.iter_mut().find(|(known, _)| *known == *log.destination);
            let lines = lanes.map_or(0, |(_, lanes)| cut_saved(lanes, end, log.written));
            if lines > 0 {
                let loss =
                    Loss { destination: &log.destination, lines, received: (oldest, now), points, is_unsure: true };
                gaps.note(Gap::of(&orphan.name, loss, DropReason::Corrupt));
            }
        }
        // Leased and requeued records are written again with the rest, unless another cursor has
        // yet to pass them.
        let passed = backends.iter().map(|backend| backend.cursors[id].next_in_memory()).min().unwrap_or_default();
        let mut records: BTreeMap<Sequence, Arc<Record>> =
            std::mem::take(&mut log.records).into_iter().map(|record| (record.sequence, record)).collect();
        for record in backends.iter().flat_map(|backend| backend.cursors[id].held()) {
            record.leave_disk();
            if record.sequence < passed {
                records.entry(record.sequence).or_insert_with(|| Arc::clone(record));
            }
        }
        for backend in backends.iter_mut() {
            backend.cursors[id].adopt(&records);
        }
        log.records = records.into_values().inspect(|record| record.leave_disk()).collect();
    }

    /// Handles the loss of the last segment's file while others remain. Its records that are still
    /// in memory are written again, at their positions; the rest is damage.
    pub(in crate::journal) fn lose_last_segment(&mut self) {
        self.disk().lose_last_segment();
        self.note_progress();
    }

    /// Notes that the disk has a new, empty folder.
    pub(in crate::journal) fn begin_anew(&mut self) {
        self.disk().begin_anew();
        self.note_progress();
    }
}
