//! What the journal says of its copies, and where they wait for a statement.

use twinflux::batch::Span;
use twinflux::journal::BackendId;

use super::{BACKENDS, Known, World, points};

impl World {
    /// Lets a backend pass its first barrier, if it has what lies before it; whether it did.
    pub(super) fn pass(&mut self, backend: usize) -> bool {
        let (journal, seen) = (&self.life.journal, &mut self.seen[backend]);
        let Some((sequence, database, came)) = seen.barriers.first().copied() else { return false };
        if !journal.is_at_barrier(BackendId::new(backend), sequence) {
            return false;
        }
        let lacks = |(number, known): (usize, &Known)| {
            known.database == database && !known.excused && !seen.delivered.contains(&(number as u64))
        };
        let before = usize::try_from(came).expect("small");
        let lacking: u64 =
            self.known[..before].iter().enumerate().filter(|one| lacks(*one)).map(|(_, one)| one.lines).sum();
        let dropped: u64 =
            journal.snapshot().ledgers[backend].dropped.iter().sum::<u64>() + seen.dropped.iter().sum::<u64>();
        assert!(
            lacking <= dropped || self.was_corrupted || (self.sync_failed && self.power_was_cut),
            "{lacking} lines come behind the statement that they came before"
        );
        seen.barriers.remove(0);
        journal.pass_barrier(BackendId::new(backend), sequence);
        true
    }

    /// A copy that is called current has whatever the other one has, and one that is called
    /// complete has everything.
    pub(super) fn check_completeness(&self) {
        let ranges = [Span::ALWAYS, Span { from: 20, until: 24 }, Span { from: 70, until: 99 }];
        for (backend, database, range) in (0..BACKENDS)
            .flat_map(|backend| (0..2).flat_map(move |database| ranges.map(|range| (backend, database, range))))
        {
            let (other, name) = (1 - backend, format!("db{database}"));
            let found =
                self.life.journal.completeness(BackendId::new(backend), Some(&name), &range, &[BackendId::new(other)]);
            for (number, known) in self.known.iter().enumerate() {
                let number = number as u64;
                // What a crash took from the memory is no gap: nobody knows of it.
                if known.excused || known.database != database || !points(number).meets(&range) {
                    continue;
                }
                let has = |backend: usize| self.seen[backend].delivered.contains(&number);
                assert!(has(backend) || !has(other) || !found.is_current(), "{backend} lacks {number}: {found:?}");
                assert!(has(backend) || !has(other) || !found.is_complete(), "{backend} lacks {number}: {found:?}");
            }
        }
    }
}
