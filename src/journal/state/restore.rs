//! Restores the state from what the disk says: the logs, and where every backend was in them.
//!
//! Owns: what a backend is owed after a start, and which of it counts as lost. Never does: I/O.
//! Bounds: what the saved cursors hold.

use std::collections::VecDeque;
use std::sync::Arc;

use super::cursor::Cursor;
use super::gaps::{Gaps, Loss};
use super::id::LogId;
use super::index::{DiskIndex, Segment};
use super::lane::{End, Lane, SavedLane, cut_saved};
use super::ledger::DropReason;
use super::saved::{Cursors, MovedAt, SavedBackend};
use super::{Backend, Log, State};
use crate::batch::{Destination, Span, WallTime};
use crate::journal::segment::{Position, Sequence};

impl State {
    /// Creates the state of a journal whose next record has this sequence, with a log for each
    /// destination and what was written of it.
    pub(in crate::journal) fn with_logs(
        memory: u64,
        backends: Vec<Backend>,
        next_sequence: Sequence,
        written: Vec<(Destination, Position)>,
    ) -> Self {
        let logs = written.into_iter().map(|(destination, at)| Log::new(Arc::new(destination), at)).collect();
        Self { next_sequence, found_below: next_sequence, logs, ..Self::new(memory, backends) }
    }

    /// Restores every backend's cursors, and the gap ledger. A new backend starts at the log's end.
    /// Without saved cursors, all start at the log's beginning. `now` is the wall clock's time.
    pub(in crate::journal) fn restore(
        &mut self,
        saved: Option<Cursors>,
        gaps: Gaps,
        segments: &VecDeque<Segment>,
        now: WallTime,
    ) {
        self.gaps = gaps;
        // A power cut may take the gap ledger and leave the cursors.
        if saved.as_ref().is_some_and(|saved| saved.gaps_version > self.gaps.version()) {
            for backend in &self.backends {
                self.gaps.note_unknown(&backend.name, now);
            }
        }
        let begin = |index: usize, log: &Log| match segments.front() {
            Some(first) => {
                End { sequence: first.first_sequence, at: first.totals.get(index).copied().unwrap_or_default() }
            }
            None => End { sequence: self.next_sequence, at: log.written },
        };
        let begins: Vec<End> = self.logs.iter().enumerate().map(|(index, log)| begin(index, log)).collect();
        let is_known = saved.is_some();
        let Cursors { backends: mut saved, kept_from, .. } = saved.unwrap_or_default();
        let kept = |log: &Log| {
            let known = kept_from.iter().find(|(known, _)| *known == *log.destination);
            End { sequence: Sequence::FIRST, at: known.map_or_else(Position::default, |(_, at)| *at) }
        };
        let end_of_log = self.end_of_log();
        for backend in &mut self.backends {
            let index = saved.iter().position(|known| known.name == backend.name);
            let known = index.map(|index| saved.remove(index));
            if is_known && known.is_none() {
                self.gaps.note_joined(&backend.name, now);
            }
            if known.as_ref().is_some_and(|known| known.is_unkept) {
                self.gaps.note_unknown(&backend.name, now);
            }
            backend.note_address(known.as_ref(), &end_of_log);
            for (id, (log, begin)) in LogId::all().zip(self.logs.iter().zip(&begins)) {
                let lanes = known.as_ref().and_then(|known| lanes_of(known, &log.destination));
                if lanes.as_ref().and_then(VecDeque::front).is_some_and(|first| first.at.lines > 0) {
                    backend.taken.insert(id);
                }
                let mut cursor = match lanes {
                    Some(lanes) => Cursor::with_lanes(lanes),
                    // Its first lines came after the cursors were saved.
                    None if known.is_some() => Cursor::new(begin.sequence, Position::default()),
                    None if is_known => Cursor::new(self.next_sequence, log.written),
                    None => Cursor::new(begin.sequence, begin.at),
                };
                backend.ledger.recover(cursor.unread_on_disk(log.written).lines);
                // What the policy took while the lines were in memory is not damage, even if the
                // process ended with them.
                for (begin, reason) in [(kept(log).min(*begin), DropReason::Quota), (*begin, DropReason::Corrupt)] {
                    let (lost, since) = cursor.cut(log.tail(self.next_sequence), begin);
                    if lost != Position::default() {
                        let until = segments.front().and_then(|first| first.created).max(since).unwrap_or(now);
                        let (lines, received) = (lost.lines, (since, until));
                        // Nobody knows the point times of lost lines.
                        let points = Span::ALWAYS;
                        let loss = Loss { destination: &log.destination, lines, received, points, is_unsure: true };
                        backend.give_up(&mut self.gaps, reason, loss);
                    }
                }
                backend.cursors.push(cursor);
            }
        }
        self.keep_orphans(saved, &begins);
    }

    /// Keeps backends that are no longer configured, from where the logs begin.
    fn keep_orphans(&mut self, mut orphans: Vec<SavedBackend>, begins: &[End]) {
        for (destination, lanes) in orphans.iter_mut().flat_map(|orphan| &mut orphan.destinations) {
            if let Some(log) = self.logs.iter().position(|log| *log.destination == *destination) {
                cut_saved(lanes, begins[log], self.logs[log].written);
            }
        }
        self.orphans = orphans;
    }

    /// Begins to write to this disk.
    pub(in crate::journal) fn attach(&mut self, disk: DiskIndex) {
        self.disk = Some(disk);
    }
}

impl Backend {
    /// Notes whether the journal saw it at another address, and where the log ended when it was
    /// first seen at this one.
    fn note_address(&mut self, known: Option<&SavedBackend>, end_of_log: &MovedAt) {
        let address = known.map_or("", |known| &known.address);
        self.moved_from = (!address.is_empty() && address != self.address).then(|| address.to_owned());
        let moved_at = known.and_then(|known| known.moved_at.clone());
        self.moved_at = self.moved_from.as_ref().map(|_| moved_at.unwrap_or_else(|| end_of_log.clone()));
    }
}

/// A saved backend's lanes in a destination. `None` if there are none or they are inconsistent.
fn lanes_of(saved: &SavedBackend, destination: &Destination) -> Option<VecDeque<Lane>> {
    let (_, lanes) = saved.destinations.iter().find(|(known, _)| known == destination)?;
    let is_sound = lanes
        .split_last()
        .is_some_and(|(open, closed)| open.end.is_none() && closed.iter().all(|lane| lane.end.is_some()));
    let lane = |saved: &SavedLane| Lane {
        from: saved.from,
        at: saved.at,
        end: saved.end.map(|(sequence, at)| End { sequence, at }),
        since: saved.since,
        resume: None,
        failures: 0,
    };
    is_sound.then(|| lanes.iter().map(lane).collect())
}
