//! Completeness: whether a backend has every point of a database in a range of time.
//!
//! Decides by the points' own times: per record in memory, and per segment for a backlog on disk,
//! so that no disk is read. If in doubt, it reports too much as lacking, never too little.
//!
//! Lines still in builders or in the ring do not count: no copy has them, so none is worse than
//! another.

use super::id::{BackendId, LogId};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::gaps::{Gap, Loss};
use super::lease::Lease;
use super::ledger::DropReason;
use super::{Backend, Log, State};
use crate::batch::{Span, WallTime};
use crate::journal::segment::Sequence;

/// Most gaps that are listed.
const MAX_NAMED: usize = 3;

/// What a backend lacks in a range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Completeness {
    /// A lower bound of the points that it has not acknowledged yet, in nanoseconds since 1970.
    /// `None` if it has all.
    pub pending_from: Option<i64>,
    /// An upper bound of these points. `None` if it has all.
    pub pending_until: Option<i64>,
    /// The wall time when its oldest unacknowledged line in the range was received.
    /// [`WallTime::MIN`] if unknown, `None` if it has all.
    pub pending_since: Option<WallTime>,
    /// Another backend has something in the range that this one has not acknowledged yet.
    pub is_behind: bool,
    /// The point times of the first gaps that meet the range: from and until, in nanoseconds since
    /// 1970.
    pub gaps: Vec<(i64, i64)>,
    /// How many gaps meet it, not counting those that every backend has.
    pub gap_count: u64,
    /// A statement that may change any answer waits for it.
    pub has_statement: bool,
}

impl Completeness {
    /// Whether it lacks nothing.
    pub fn is_complete(&self) -> bool {
        self.pending_from.is_none() && self.gap_count == 0 && !self.has_statement
    }

    /// Whether it has whatever any other backend has.
    pub fn is_current(&self) -> bool {
        !self.is_behind && self.gap_count == 0 && !self.has_statement
    }
}

impl State {
    /// What a backend lacks of a database's points in this range. `None` for `database` means all
    /// databases. `others` are its mirrors.
    pub(in crate::journal) fn completeness(
        &self,
        backend: BackendId,
        database: Option<&str>,
        range: &Span,
        others: &[BackendId],
    ) -> Completeness {
        let known = &self.backends[backend];
        let mut found = Completeness { has_statement: known.has_barrier(database), ..Completeness::default() };
        for (id, log) in LogId::all().zip(&self.logs) {
            if database.is_none_or(|database| log.destination.database() == database) {
                self.add_pending(&mut found, (id, log), backend, range, others);
            }
        }
        let all = || self.gaps.iter();
        let is_shared = |gap: &Gap| {
            let has =
                |other: &BackendId| all().any(|one| one.backend == self.backends[*other].name && gap.is_shared_by(one));
            !others.is_empty() && others.iter().all(has)
        };
        let touches = |gap: &&Gap| match database {
            Some(database) => gap.touches(database, range),
            None => gap.points.meets(range),
        };
        for gap in all().filter(|gap| gap.backend == known.name).filter(touches).filter(|gap| !is_shared(gap)) {
            found.gap_count += 1;
            if found.gaps.len() < MAX_NAMED {
                found.gaps.push((gap.points.from.max(range.from), gap.points.until.min(range.until)));
            }
        }
        found
    }

    /// Adds what a backend has not acknowledged of one log.
    fn add_pending(
        &self,
        found: &mut Completeness,
        (id, log): (LogId, &Log),
        backend: BackendId,
        range: &Span,
        others: &[BackendId],
    ) {
        let (cursor, tail) = (&self.backends[backend].cursors[id], log.tail(self.next_sequence));
        let mut add = |points: &Span, since: WallTime, sequences: Range<Sequence>| {
            let from = points.from.max(range.from);
            found.pending_from = Some(found.pending_from.map_or(from, |known| known.min(from)));
            let until = points.until.min(range.until);
            found.pending_until = Some(found.pending_until.map_or(until, |known| known.max(until)));
            found.pending_since = Some(found.pending_since.map_or(since, |known| known.min(since)));
            // After a crash, others may have records that count as pending.
            let may_have = |other: &BackendId| {
                let other = &self.backends[*other];
                let has_some = other.partly.range(sequences.clone()).next().is_some();
                sequences.start < self.found_below || has_some || !other.cursors[id].has_pending(&sequences)
            };
            found.is_behind |= others.iter().any(may_have);
        };
        for record in cursor.pending_in_memory(tail).filter(|record| record.batch.points().meets(range)) {
            add(&record.batch.points(), record.batch.received().wall, record.sequence..record.sequence.next());
        }
        for (sequences, since) in cursor.pending_on_disk(tail) {
            let since = since.unwrap_or(WallTime::MIN);
            let mut is_covered = false;
            for (own, points) in self.on_disk(id) {
                let common = sequences.start.max(own.start)..sequences.end.min(own.end);
                is_covered |= !common.is_empty();
                if !common.is_empty() && points.meets(range) {
                    add(&points, since, common);
                }
            }
            // The segments with these records are gone; reading them will show that.
            if !is_covered {
                add(&Span::ALWAYS, since, sequences);
            }
        }
    }
}

impl State {
    /// What each file has, or had, of a log: sequences, and the times of their points.
    pub(super) fn on_disk(&self, log: LogId) -> impl Iterator<Item = (Range<Sequence>, Span)> {
        self.disk.iter().flat_map(move |disk| {
            let segments = disk.segments.iter();
            let segments = segments.map(move |one| (one.first_sequence..one.end_sequence, one.points(log)));
            let vanished = &disk.vanished;
            let gone = vanished.points.get(log.index()).map(|points| (vanished.sequences.clone(), *points));
            segments.chain(gone)
        })
    }
}

impl State {
    /// Notes that a backend has some of a lease's lines, and gets others later or never.
    pub(in crate::journal) fn note_partly(&mut self, backend: BackendId, lease: &Lease) {
        if lease.letters.is_none() {
            self.backends[backend].partly.extend(lease.records.iter().map(|record| record.sequence));
        }
    }

    /// Notes lines that found no room in front of the journal: every backend lacks them. The part
    /// that lost them counts them in the ledger.
    pub(in crate::journal) fn note_lost<'a>(&mut self, losses: impl Iterator<Item = Loss<'a>>) {
        for loss in losses {
            for backend in &self.backends {
                self.gaps.note(Gap::of(&backend.name, loss, DropReason::RingFull));
            }
        }
    }

    /// Notes that a backend has no such database. If it had one, what was in it is gone.
    pub(in crate::journal) fn note_missing(&mut self, backend: BackendId, database: &str, now: WallTime) {
        let Backend { name, taken, .. } = &self.backends[backend];
        if taken.iter().any(|log| self.logs[*log].destination.database() == database) {
            self.gaps.note_made(name, database, now);
        }
    }
}

impl Backend {
    /// Whether a statement waits for it that may change answers about this database.
    fn has_barrier(&self, database: Option<&str>) -> bool {
        self.barriers.iter().any(|barrier| database.is_none_or(|database| barrier.is_for(database)))
    }
}
