//! Barriers: positions in the log that a backend does not pass until told to.
//!
//! A statement that changes a database is one: records before it must be delivered first, records
//! after it later. Owns: which records wait behind a barrier. Never does: saving barriers over a
//! restart; whoever sets them does that.

use super::State;
use super::id::BackendId;
use crate::journal::segment::Sequence;

/// A barrier in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::journal) struct Barrier {
    /// Records from this sequence on wait behind it.
    pub(in crate::journal) sequence: Sequence,
    /// Only records of this database wait. `None`: all records.
    pub(in crate::journal) database: Option<String>,
}

impl Barrier {
    /// Whether records of this database wait behind it.
    pub(in crate::journal) fn is_for(&self, database: &str) -> bool {
        self.database.as_ref().is_none_or(|own| own == database)
    }
}

impl State {
    /// Sets a barrier behind everything appended so far, for these backends. Returns its sequence.
    pub(in crate::journal) fn set_barrier(&mut self, backends: &[BackendId], database: Option<&str>) -> Sequence {
        let sequence = self.next_sequence;
        // No two barriers have the same sequence.
        self.next_sequence = self.next_sequence.next();
        self.restore_barrier(backends, sequence, database);
        sequence
    }

    /// Restores a barrier that was set before a restart.
    pub(in crate::journal) fn restore_barrier(
        &mut self,
        backends: &[BackendId],
        sequence: Sequence,
        database: Option<&str>,
    ) {
        // Even if a power cut took the end of the log, new records still come after the barrier.
        self.next_sequence = self.next_sequence.max(sequence.next());
        for backend in backends {
            let database = database.map(str::to_owned);
            let barriers = &mut self.backends[*backend].barriers;
            let index = barriers.partition_point(|known| known.sequence < sequence);
            barriers.insert(index, Barrier { sequence, database });
        }
    }

    /// Whether a backend has everything before a barrier.
    pub(in crate::journal) fn is_at_barrier(&self, backend: BackendId, sequence: Sequence) -> bool {
        let known = &self.backends[backend];
        let Some(barrier) = known.barriers.iter().find(|barrier| barrier.sequence == sequence) else { return true };
        let logs = self.logs.iter().zip(&known.cursors);
        let mut own = logs.filter(|(log, _)| barrier.is_for(log.destination.database()));
        own.all(|(log, cursor)| !cursor.has_pending_below(log.tail(self.next_sequence), sequence))
    }

    /// Removes a barrier.
    pub(in crate::journal) fn pass_barrier(&mut self, backend: BackendId, sequence: Sequence) {
        self.backends[backend].barriers.retain(|barrier| barrier.sequence != sequence);
    }
}

/// With these barriers, the sequence below which records of a database may be leased.
pub(super) fn open_below(barriers: &[Barrier], database: &str) -> Sequence {
    let first = barriers.iter().find(|barrier| barrier.is_for(database));
    first.map_or(Sequence::END, |barrier| barrier.sequence)
}
