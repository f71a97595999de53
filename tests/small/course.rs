//! What a journal on a disk must keep to, beside a simple model: actions, and what follows from
//! each.
//!
//! Whatever happens: no line is delivered that was not appended, or not as it was; each backend's
//! ledger balances at every step, with as many lines delivered and rejected as were acked so; what
//! is not delivered in the end was either dropped and counted, or not yet on the disk when the
//! process (the power) ended; nothing that was safe is called corrupt; nothing is sent twice but
//! what was under way at a crash; and once the faults end, all is delivered.

mod copies;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use twinflux::batch::{Batch, Destination, Received, Span};
use twinflux::journal::disk::{self, Compression, Condition, DiskOptions, Next, Syncer, WhenFull, Writer};
use twinflux::journal::{BackendConfig, BackendId, DropReason, Journal, Lease, Limits, Reader, Rejection, Sequence};
use twinflux::protocol::Precision;

use crate::action::Action;
use crate::faulty::FaultyDisk;

const LIMITS: Limits = Limits { lines: 10, bytes: 20_000, linger: Duration::ZERO };
pub(crate) const BACKENDS: usize = 2;

pub(crate) fn options() -> DiskOptions {
    DiskOptions {
        is_synced: false,
        compression: Compression::None,
        quota: 1 << 40,
        max_age: None,
        min_free: Some(0),
        full: WhenFull::DropOldest,
        sync_interval: Duration::from_millis(500),
        retry_after: Duration::ZERO,
        clock: Received::now,
    }
}

pub(crate) fn backends(count: usize, replay_share: f64) -> Vec<BackendConfig> {
    let setup =
        |place| BackendConfig { name: format!("b{place}"), address: format!("http://b{place}:8086"), replay_share };
    (0..count).map(setup).collect()
}

pub(crate) fn destination(database: usize) -> Arc<Destination> {
    Arc::new(Destination::new(format!("db{database}"), "", Precision::Nanoseconds))
}

/// A batch's bytes: its number, and as many more as it says.
pub(crate) fn text(number: u64, filler: usize) -> Vec<u8> {
    let mut text = format!("{number:020}").into_bytes();
    let salt = usize::try_from(number).expect("small");
    text.extend((0..filler).map(|place| u8::try_from((place * place + salt * 31) % 251).expect("below 251")));
    text
}

pub(crate) fn batch(number: u64, database: usize, lines: u64, filler: usize) -> Batch {
    let bytes = Bytes::from(text(number, filler));
    let capacity = bytes.len();
    Batch::new(destination(database), bytes, lines, Received::now()).with_points(points(number)).with_capacity(capacity)
}

/// The times of a batch's points: batches meet some others, in no order.
fn points(number: u64) -> Span {
    let from = i64::try_from(number * 7919 % 100).expect("small");
    Span { from, until: from + i64::try_from(number % 5).expect("small") }
}

pub(crate) fn number(bytes: &[u8]) -> u64 {
    std::str::from_utf8(&bytes[..20]).expect("digits").parse().expect("a number")
}

pub(crate) struct Known {
    database: usize,
    lines: u64,
    filler: usize,
    /// It was on the disk, safe from the process's end, and from the power's.
    pub(crate) written: bool,
    synced: bool,
    /// It may be missing: it was not safe when it should have been.
    pub(crate) excused: bool,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) leases: Vec<Lease>,
    /// Leased in this life, and not acked.
    held: BTreeSet<u64>,
    pub(crate) delivered: BTreeSet<u64>,
    /// Delivered, and not yet known to the disk, or known and not synced.
    pub(crate) unsaved: BTreeSet<u64>,
    unsynced: BTreeSet<u64>,
    /// Delivered, and may come again.
    pub(crate) again: BTreeSet<u64>,
    /// Lines that were acked in this life, and how many of them were rejected.
    acked: u64,
    rejected: u64,
    /// Where it waits: the sequence, the database, and how many batches had come.
    barriers: Vec<(Sequence, usize, u64)>,
    /// Lines dropped in earlier lives, by reason.
    dropped: [u64; DropReason::ALL.len()],
}

impl Seen {
    /// What was delivered while something older was out: a cursor is at the oldest.
    fn behind_held(&self) -> BTreeSet<u64> {
        self.held.first().map_or_else(BTreeSet::new, |first| self.delivered.range(first..).copied().collect())
    }
}

struct Life {
    journal: Journal,
    writer: Writer,
    syncer: Syncer,
    readers: Vec<Reader>,
}

pub(crate) struct World {
    pub(crate) disk: FaultyDisk,
    options: DiskOptions,
    memory: u64,
    replay_share: f64,
    life: Life,
    pub(crate) known: Vec<Known>,
    pub(crate) seen: Vec<Seen>,
    sync_failed: bool,
    /// Lines may be corrupt, and files be there again.
    pub(crate) power_was_cut: bool,
    was_full: bool,
    was_corrupted: bool,
}

impl World {
    pub(crate) fn new(options: DiskOptions, memory: u64, replay_share: f64) -> Self {
        let disk = FaultyDisk::new();
        let life = Life::begin(&disk, &options, memory, replay_share);
        let seen = (0..BACKENDS).map(|_| Seen::default()).collect();
        Self {
            disk,
            options,
            memory,
            replay_share,
            life,
            known: Vec::new(),
            seen,
            sync_failed: false,
            power_was_cut: false,
            was_full: false,
            was_corrupted: false,
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "an action is over once it is done")]
    pub(crate) fn act(&mut self, action: Action) {
        match action {
            Action::Append { database, lines, filler } => {
                let number = self.known.len() as u64;
                self.known.push(Known { database, lines, filler, written: false, synced: false, excused: false });
                self.life.journal.append(batch(number, database, lines, filler));
            }
            Action::Lease { backend } => {
                self.lease(backend);
            }
            Action::Settle { backend, which } => {
                if let Some(lease) = self.pick(backend, which) {
                    self.ack(backend, lease, None);
                }
            }
            Action::Reject { backend, which, lines } => {
                if let Some(lease) = self.pick(backend, which) {
                    self.ack(backend, lease, Some((Rejection::Other, lines)));
                }
            }
            Action::GiveBack { backend, which } => {
                if let Some(lease) = self.pick(backend, which) {
                    self.life.readers[backend].requeue(lease);
                }
            }
            Action::SetBarrier { database } => {
                let (all, name) = ([0, 1].map(BackendId::new), format!("db{database}"));
                let sequence = self.life.journal.set_barrier(&all, Some(&name));
                let came = self.known.len() as u64;
                self.seen.iter_mut().for_each(|seen| seen.barriers.push((sequence, database, came)));
            }
            Action::PassBarrier { backend } => drop(self.pass(backend)),
            Action::Write => drop(self.write()),
            Action::Sync => self.sync(),
            Action::SyncAlone => drop(self.life.syncer.step()),
            Action::Kill => {
                self.disk.end_process();
                self.restart(|known| known.written, |seen| &seen.unsaved);
            }
            Action::KillWithin { operations } => {
                let at = self.disk.inner().operations + operations;
                self.disk.inner().dies_at = Some(at);
                let life = &mut self.life;
                while life.writer.step() == Next::Now {}
                life.syncer.step();
                self.disk.inner().dies_at = None;
                self.disk.end_process();
                self.restart(|known| known.written, |seen| &seen.unsaved);
            }
            Action::CutPower { seed } => {
                let mut random = fastrand::Rng::with_seed(seed);
                self.cut_power(|| random.bool());
            }
            Action::Stop => {
                for _ in 0..2 {
                    self.sync();
                }
                self.sync();
                let is_clean = self.write();
                disk::end(&mut self.life.writer, &mut self.life.syncer);
                self.check_end();
                let keeps = move |known: &Known| known.written || is_clean;
                self.restart(keeps, |seen| &seen.unsaved);
            }
            Action::FailWrites { times } => self.disk.inner().failing_writes = times,
            Action::FailSyncs { times } => {
                self.sync_failed = true;
                self.disk.inner().failing_syncs = times;
            }
            Action::FailReads { times } => self.disk.inner().failing_reads = times,
            Action::Fill => {
                self.was_full = true;
                self.disk.inner().capacity = 0;
            }
            Action::Heal => self.disk.heal(),
            Action::Corrupt { which } => self.corrupt(which),
            Action::RemoveFolder => {
                self.disk.remove_folder();
                self.lose();
            }
            Action::RemoveLast => {
                if let Some(last) = self.disk.segments().last() {
                    self.disk.delete(last);
                    self.lose();
                }
            }
        }
    }

    /// What was on the disk is not there any more, and the writer looks twice.
    fn lose(&mut self) {
        self.was_corrupted = true;
        for known in &mut self.known {
            (known.written, known.synced) = (false, false);
        }
        // Where the process ends before the cursors are saved again, everything may come again.
        for seen in &mut self.seen {
            seen.unsaved.clone_from(&seen.delivered);
            seen.unsynced.clone_from(&seen.delivered);
        }
        self.life.writer.step();
        self.life.writer.step();
    }

    fn pick(&mut self, backend: usize, which: usize) -> Option<Lease> {
        let leases = &mut self.seen[backend].leases;
        (!leases.is_empty()).then(|| leases.swap_remove(which % leases.len()))
    }

    fn corrupt(&mut self, which: usize) {
        let segments = self.disk.segments();
        if segments.is_empty() {
            return;
        }
        let name = &segments[which % segments.len()];
        let length = self.disk.read(name).len();
        if length > 0 {
            self.was_corrupted = true;
            self.disk.damage(name, |bytes| bytes[which / 8 % length] ^= 1 << (which % 8));
        }
    }

    /// Leases and checks what comes; false where nothing does.
    pub(crate) fn lease(&mut self, backend: usize) -> bool {
        let Some(lease) = self.life.readers[backend].try_next(&LIMITS) else { return false };
        let seen = &mut self.seen[backend];
        let mut before = None;
        for record in &lease.records {
            let bytes = &record.batch.bytes();
            let number = number(bytes);
            let known = &self.known[usize::try_from(number).expect("small")];
            assert_eq!(bytes[..], text(number, known.filler), "not as it was appended");
            assert_eq!(record.batch.lines(), known.lines);
            assert_eq!(**record.batch.destination(), *destination(known.database));
            assert_eq!(*lease.destination, **record.batch.destination());
            // Where cursors could not be synced, a power cut may take them back to any earlier
            // state.
            let may_come = seen.again.contains(&number) || (self.sync_failed && self.power_was_cut);
            assert!(!seen.delivered.contains(&number) || may_come, "{number} came again");
            let waits = |(_, database, came): &(Sequence, usize, u64)| *database == known.database && number >= *came;
            assert!(!seen.barriers.iter().any(waits), "{number} comes behind a statement");
            seen.held.insert(number);
            assert!(before.replace(number).is_none_or(|before| before < number), "out of order");
        }
        assert!(lease.records.len() == 1 || (lease.lines <= LIMITS.lines && lease.bytes <= LIMITS.bytes));
        seen.leases.push(lease);
        true
    }

    pub(crate) fn ack(&mut self, backend: usize, lease: Lease, rejected: Option<(Rejection, u64)>) {
        let seen = &mut self.seen[backend];
        seen.acked += lease.lines;
        seen.rejected += rejected.map_or(0, |(_, lines)| lines.min(lease.lines));
        for record in &lease.records {
            let number = number(record.batch.bytes());
            seen.delivered.insert(number);
            seen.again.remove(&number);
            seen.held.remove(&number);
            seen.unsaved.insert(number);
            seen.unsynced.insert(number);
        }
        self.life.readers[backend].ack(lease, rejected);
    }

    /// Writes everything that can be written; true where that is all.
    pub(crate) fn write(&mut self) -> bool {
        while self.life.writer.step() == Next::Now {}
        for seen in &mut self.seen {
            seen.unsaved = seen.behind_held();
        }
        let disk = self.life.journal.snapshot().disk.expect("a disk");
        let is_all = disk.condition == Condition::Ok;
        if is_all {
            self.known.iter_mut().for_each(|known| known.written = true);
        }
        is_all
    }

    pub(crate) fn sync(&mut self) {
        let is_written = self.write();
        if self.life.syncer.step() {
            self.seen.iter_mut().for_each(|seen| seen.unsynced = seen.behind_held());
            for known in self.known.iter_mut().filter(|_| is_written) {
                known.synced = true;
            }
        }
    }

    /// The power fails: of what was not synced, what `survives` says is there at the next start.
    pub(crate) fn cut_power(&mut self, survives: impl FnMut() -> bool) {
        self.power_was_cut = true;
        self.disk.cut_power(survives);
        self.restart(|known| known.synced, |seen| &seen.unsynced);
    }

    /// The process begins again. What `keeps` does not hold of may be missing, and what `lost`
    /// holds may come again.
    pub(crate) fn restart(&mut self, keeps: impl Fn(&Known) -> bool, lost: impl Fn(&Seen) -> &BTreeSet<u64>) {
        let snapshot = self.life.journal.snapshot();
        for (seen, ledger) in self.seen.iter_mut().zip(&snapshot.ledgers) {
            for (sum, lines) in seen.dropped.iter_mut().zip(ledger.dropped) {
                *sum += lines;
            }
            let mut again = lost(seen).clone();
            // What was delivered behind something that was out, or given back, is sent again with
            // it.
            again.extend(seen.behind_held());
            seen.held.clear();
            seen.leases.clear();
            seen.again.extend(again);
            seen.unsaved.clear();
            (seen.acked, seen.rejected) = (0, 0);
        }
        self.known.iter_mut().filter(|known| !keeps(known)).for_each(|known| known.excused = true);
        self.life = Life::begin(&self.disk, &self.options, self.memory, self.replay_share);
        for (backend, seen) in self.seen.iter().enumerate() {
            for (sequence, database, _) in &seen.barriers {
                self.life.journal.restore_barrier(
                    &[BackendId::new(backend)],
                    *sequence,
                    Some(&format!("db{database}")),
                );
            }
        }
    }

    pub(crate) fn check(&self) {
        let snapshot = self.life.journal.snapshot();
        // Without damage, only what was not safe when the power failed can be missing where it
        // should be.
        let unsafe_lines = self.known.iter().filter(|known| known.excused).map(|known| known.lines).sum::<u64>();
        let may_lose = self.sync_failed || self.was_corrupted;
        for (ledger, seen) in snapshot.ledgers.iter().zip(&self.seen) {
            assert!(ledger.dropped[DropReason::Corrupt as usize] <= unsafe_lines || may_lose, "{ledger:?}");
            let rejected = ledger.rejected.iter().sum::<u64>();
            assert_eq!((ledger.delivered + rejected, rejected), (seen.acked, seen.rejected), "{ledger:?}");
            let gone = ledger.delivered + rejected + ledger.dropped.iter().sum::<u64>();
            assert_eq!(snapshot.appended_lines + ledger.recovered, gone + ledger.pending, "{ledger:?}");
        }
        let disk = snapshot.disk.expect("a disk");
        let files: usize = self.disk.segments().iter().map(|name| self.disk.read(name).len()).sum();
        assert!(disk.condition != Condition::Ok || disk.bytes == files as u64, "{} of {files} bytes", disk.bytes);
        // Files that were removed may be there again after a power cut, until the next write.
        assert!(disk.bytes <= self.options.quota || self.power_was_cut);
        // What is read from the disk for a lease comes on top; a flusher has one, and the
        // configuration leaves room.
        self.check_completeness();
        let held = self.seen.iter().flat_map(|seen| &seen.held);
        let cost = |number: &u64| 20 + 256 + self.known[usize::try_from(*number).expect("small")].filler as u64;
        assert!(snapshot.memory_bytes <= self.memory + held.map(cost).sum::<u64>());
    }

    /// After a stop, everything that is still pending is on the disk.
    fn check_end(&self) {
        let snapshot = self.life.journal.snapshot();
        assert_eq!(snapshot.memory_only_lines, [0; BACKENDS], "pending, and only in memory");
    }

    /// The faults end, everything is delivered, and the process ends and begins once more.
    pub(crate) fn finish(mut self) {
        self.disk.heal();
        for backend in 0..BACKENDS {
            for lease in std::mem::take(&mut self.seen[backend].leases) {
                self.life.readers[backend].requeue(lease);
            }
        }
        for backend in 0..BACKENDS {
            while self.lease(backend) || self.pass(backend) {
                if self.seen[backend].leases.is_empty() {
                    continue;
                }
                let lease = self.seen[backend].leases.pop().expect("just leased");
                self.ack(backend, lease, None);
                self.write();
            }
        }
        self.check();
        let snapshot = self.life.journal.snapshot();
        for (seen, ledger) in self.seen.iter().zip(&snapshot.ledgers) {
            assert_eq!((ledger.pending, ledger.pending_bytes), (0, 0), "all is delivered");
            let mut dropped = seen.dropped;
            dropped.iter_mut().zip(ledger.dropped).for_each(|(sum, lines)| *sum += lines);
            let corrupt = std::mem::take(&mut dropped[DropReason::Corrupt as usize]);
            let may_be_corrupt = self.power_was_cut || self.was_corrupted;
            assert!(corrupt == 0 || may_be_corrupt, "{corrupt} lines are corrupt: {:?}", snapshot.gaps);
            let missing = self
                .known
                .iter()
                .enumerate()
                .filter(|(number, known)| !known.excused && !seen.delivered.contains(&(*number as u64)));
            let missing: u64 = missing.map(|(_, known)| known.lines).sum();
            let excuse = if (self.sync_failed && self.power_was_cut) || self.was_corrupted { corrupt } else { 0 };
            assert!(missing <= dropped.iter().sum::<u64>() + excuse, "{missing} lines are missing");
        }
        assert!(snapshot.memory_bytes == 0);
        // A clean end with nothing pending: nothing is sent again, and one segment is left.
        self.sync();
        self.sync();
        self.restart(|_| true, |seen| &seen.unsaved);
        assert!(self.disk.segments().len() <= 1, "{:?}", self.disk.segments());
        for (backend, ledger) in self.life.journal.snapshot().ledgers.iter().enumerate() {
            assert_eq!((ledger.recovered, ledger.pending), (0, 0));
            assert!(!self.lease(backend));
        }
    }
}

impl Life {
    fn begin(disk: &FaultyDisk, options: &DiskOptions, memory: u64, replay_share: f64) -> Self {
        let journal = Journal::open(disk.storage(), options, memory, &backends(BACKENDS, replay_share));
        let journal = journal.expect("content never keeps it from opening");
        let (writer, syncer) = (journal.writer().expect("a disk"), journal.syncer().expect("a disk"));
        let readers = (0..BACKENDS).map(|backend| journal.reader(BackendId::new(backend))).collect();
        Self { journal, writer, syncer, readers }
    }
}
