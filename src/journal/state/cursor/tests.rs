//! A cursor over records in memory and on a disk that does not exist: what it leases, needs and
//! saves.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::*;
use crate::batch::{Batch, Destination, Received};
use crate::journal::segment::Sequence;
use crate::protocol::Precision;

mod leaving;

/// From one record of the destination to the next: the sequences between belong to other
/// destinations.
const STEP: u64 = 3;
/// Lines and bytes of each record.
const LINES: u64 = 10;
const BYTES: u64 = 100;

struct World {
    cursor: Cursor,
    records: VecDeque<Arc<Record>>,
    /// Every record there ever was.
    all: Vec<Arc<Record>>,
    written: Position,
    next: u64,
}

impl World {
    fn new() -> Self {
        let cursor = Cursor::new(Sequence::new(0), Position::default());
        Self { cursor, records: VecDeque::new(), all: Vec::new(), written: Position::default(), next: 0 }
    }

    /// A world with this many records in memory, all of them written.
    fn with(records: u64) -> Self {
        let mut world = Self::new();
        for _ in 0..records {
            world.append();
            world.write();
        }
        world
    }

    fn append(&mut self) {
        let destination = Arc::new(Destination::new("db", "", Precision::Nanoseconds));
        let received = Received { wall: WallTime::at(1000 + self.next), ..Received::now() };
        let bytes = vec![b'x'; usize::try_from(BYTES).expect("few")];
        let batch = Batch::new(destination, bytes, LINES, received).with_capacity(100);
        let record = Record::new(Sequence::new(self.next), batch, None, &Arc::new(AtomicU64::new(0)));
        self.next += STEP;
        self.cursor.append(&record);
        self.all.push(Arc::clone(&record));
        self.records.push_back(record);
    }

    /// Writes the next record. Returns `false` if all are written.
    fn write(&mut self) -> bool {
        let Some(record) = self.records.iter().find(|record| record.written().is_none()) else { return false };
        assert!(record.note_written(self.written), "it was not written");
        self.written = record.end(self.written);
        self.cursor.note_written(record, self.written);
        true
    }

    /// Removes a record from memory; backends that need it read it from disk.
    fn forget(&mut self, index: usize) {
        let record = self.records.remove(index).expect("a record");
        self.cursor.fall_behind(&record, &self.records);
    }

    fn requeue(&mut self, sequence: Sequence) {
        let record = self.all.iter().find(|record| record.sequence == sequence).expect("there is one");
        self.cursor.requeue(record);
    }

    fn release(&mut self, kept_from: Sequence) -> bool {
        let tail = Tail { records: &self.records, written: self.written, next_sequence: Sequence::new(self.next) };
        self.cursor.release_requeued(tail, kept_from)
    }

    fn tail(&self) -> Tail<'_> {
        Tail { records: &self.records, written: self.written, next_sequence: Sequence::new(self.next) }
    }

    /// Leases this many records from memory, one by one. Returns their sequences.
    fn lease(&mut self, records: usize) -> Vec<u64> {
        let limits = Limits { lines: 1, bytes: 1, linger: Duration::ZERO };
        let mut leased = Vec::new();
        for _ in 0..records {
            let tail = Tail { records: &self.records, written: self.written, next_sequence: Sequence::new(self.next) };
            leased.extend(self.cursor.lease(tail, &limits, Sequence::END).iter().map(|record| record.sequence.get()));
        }
        leased
    }

    fn split_backlog(&mut self) {
        let tail = Tail { records: &self.records, written: self.written, next_sequence: Sequence::new(self.next) };
        self.cursor.split_backlog(tail);
    }

    /// Leases this many records from disk. Returns their sequences, or `None` if nothing is to be
    /// read.
    fn read(&mut self, records: usize) -> Option<Vec<u64>> {
        let (lane, end) = self.cursor.backlog(self.tail())?;
        let (from, is_of_lane) = (lane.from, |record: &&Arc<Record>| {
            record.sequence >= lane.from && record.sequence < end.sequence && record.written().is_some()
        });
        let rest = self.all.iter().filter(is_of_lane).count();
        let taken: Vec<_> = self.all.iter().filter(is_of_lane).take(records).map(Arc::clone).collect();
        let finished = (taken.len() == rest).then_some(end);
        let read = Read { from, records: taken, resume: None, stopped: None, finished, failed: false };
        let (taken, missing) = self.cursor.lease_read(read, WallTime::at(9999)).expect("the lane is there");
        assert!(missing.is_empty(), "{missing:?}");
        Some(taken.iter().map(|record| record.sequence.get()).collect())
    }

    /// The sequences of the written records that are in a saved lane, in the lanes' order.
    fn saved(&self) -> Vec<u64> {
        let mut saved = Vec::new();
        for lane in self.cursor.saved(self.tail()) {
            let is_in = |record: &&Arc<Record>| {
                let at = record.written().expect("written");
                let is_behind =
                    lane.end.is_some_and(|(sequence, end)| record.sequence >= sequence || at.lines >= end.lines);
                record.sequence >= lane.from && at.lines >= lane.at.lines && !is_behind
            };
            let written = self.all.iter().filter(|record| record.written().is_some());
            saved.extend(written.filter(is_in).map(|record| record.sequence.get()));
        }
        saved
    }

    /// Checks that figures, saved lanes and needs cover the records that are leased (`out`),
    /// requeued or waiting.
    fn check(&self, out: &[u64], acked: &[u64], when: &str) {
        let unsettled: Vec<_> = self.all.iter().filter(|record| !acked.contains(&record.sequence.get())).collect();
        let (on_disk, in_memory): (Vec<_>, Vec<_>) =
            unsettled.iter().map(|record| record.sequence.get()).partition(|sequence| {
                let is_written =
                    |record: &&Arc<Record>| record.sequence.get() == *sequence && record.written().is_some();
                self.all.iter().any(|record| is_written(&record))
            });
        assert_eq!(self.saved(), on_disk, "{when}");
        let needed = self.cursor.needed_from(self.written);
        assert!(on_disk.is_empty() || needed.is_some_and(|needed| needed.get() <= on_disk[0]), "{when}: {needed:?}");
        let held: Vec<u64> = self.cursor.held().map(|record| record.sequence.get()).collect();
        let of_memory = held.iter().filter(|sequence| in_memory.contains(sequence)).count();
        let unread = self.cursor.unread_on_disk(self.written).lines;
        assert_eq!(unread + LINES * held.len() as u64, LINES * (on_disk.len() + of_memory) as u64, "{when}");
        // What can be leased from memory at once.
        let waiting = self.records.iter().filter(|record| self.cursor.is_yet_to_lease(record)).count();
        let available = (held.len() - out.len() + waiting) as u64;
        for (more, is_full) in [(0, true), (1, false)] {
            let (lines, bytes) = (LINES * available + more, BYTES * available + more);
            for limits in [(lines, u64::MAX), (u64::MAX, bytes)] {
                let limits = Limits { lines: limits.0, bytes: limits.1, linger: Duration::ZERO };
                assert_eq!(self.cursor.is_full(&limits), is_full, "{when}: {available} records");
            }
        }
        // The oldest of them, and since when the oldest on disk waits.
        let (oldest, since) = self.cursor.oldest_pending(self.tail());
        let oldest = oldest.map(|record| record.sequence.get());
        assert_eq!(oldest.into_iter().chain(held.iter().copied()).min(), oldest, "{when}");
        assert!(oldest.is_none_or(|oldest| !acked.contains(&oldest)), "{when}: {oldest:?}");
        let backlog = self.cursor.backlog(self.tail());
        assert_eq!(since.is_some(), backlog.is_some(), "{when}");
        let next = backlog.and_then(|(lane, _)| self.all.iter().find(|record| record.sequence >= lane.from));
        assert!(next.is_none_or(|next| since <= Some(next.batch.received().wall)), "{when}: {since:?}");
    }
}

#[test]
fn a_lease_is_as_large_as_it_may_be_and_one_record_at_least() {
    for (lines, bytes, records) in [
        (LINES * 3, u64::MAX, 3),
        (LINES * 3 - 1, u64::MAX, 2),
        (u64::MAX, BYTES * 3, 3),
        (u64::MAX, BYTES * 3 - 1, 2),
        (1, u64::MAX, 1),
        (u64::MAX, 1, 1),
        (u64::MAX, u64::MAX, 5),
    ] {
        let mut world = World::with(5);
        let limits = Limits { lines, bytes, linger: Duration::ZERO };
        let tail = Tail { records: &world.records, written: world.written, next_sequence: Sequence::new(world.next) };
        assert_eq!(world.cursor.lease(tail, &limits, Sequence::END).len(), records, "{lines} lines, {bytes} bytes");
        // A lease is full if more would wait.
        let world = World::with(5);
        assert_eq!(world.cursor.is_full(&limits), records < 5, "{lines} lines, {bytes} bytes");
    }
    let world = World::with(5);
    let limits = Limits { lines: LINES * 5, bytes: u64::MAX, linger: Duration::ZERO };
    assert!(world.cursor.is_full(&limits), "it cannot grow");
    assert!(World::with(5).cursor.is_full(&Limits { lines: u64::MAX, bytes: BYTES * 5, ..limits }));
}

#[test]
fn what_is_saved_has_what_is_on_its_way_and_not_what_is_settled() {
    let mut world = World::with(7);
    assert_eq!(world.lease(5), [0, 3, 6, 9, 12]);
    world.cursor.ack(Sequence::new(3));
    assert_eq!(world.saved(), [0, 6, 9, 12, 15, 18]);
    // Adjacent records are one lane: those up to the acked one, and all after it.
    let lanes = world.cursor.saved(world.tail());
    assert_eq!(lanes.iter().map(|lane| lane.from.get()).collect::<Vec<_>>(), [0, 6]);
    let at = |records| Position { lines: LINES * records, bytes: BYTES * records };
    assert_eq!((lanes[0].at, lanes[0].end), (at(0), Some((Sequence::new(1), at(1)))));
    assert_eq!((lanes[1].at, lanes[1].end), (at(2), None));
    assert_eq!([lanes[0].since, lanes[1].since], [1000, 1006].map(WallTime::new));

    world.cursor.ack(Sequence::new(12));
    world.cursor.ack(Sequence::new(0));
    assert_eq!(world.saved(), [6, 9, 15, 18]);
    let lanes = world.cursor.saved(world.tail());
    assert_eq!((lanes[0].at, lanes[0].end), (at(2), Some((Sequence::new(10), at(4)))));
    assert_eq!((lanes[1].from.get(), lanes[1].at, lanes[1].since), (13, at(5), WallTime::new(1015)));
}

#[test]
fn what_is_only_on_the_disk_becomes_a_lane_and_fresh_records_do_not_wait_for_it() {
    let mut world = World::with(4);
    assert_eq!(world.cursor.needed_from_disk(world.tail()), None, "all of it is in memory");
    world.forget(0);
    world.forget(0);
    assert!(world.cursor.first_available(world.tail()).is_none(), "before it is parted, fresh records wait");
    assert_eq!(world.cursor.needed_from_disk(world.tail()), Some(Sequence::new(0)));
    for _ in 0..3 {
        // Once is enough.
        world.split_backlog();
        assert_eq!((world.cursor.lanes.len(), world.cursor.watermark().get()), (2, 6));
    }
    assert_eq!(world.cursor.needed_from_disk(world.tail()), Some(Sequence::new(0)));
    assert_eq!(world.lease(1), [6]);
    assert_eq!(world.saved(), [0, 3, 6, 9]);
    assert_eq!(world.read(1), Some(vec![0]));
    assert_eq!(world.saved(), [0, 3, 6, 9]);
    assert_eq!(world.read(9), Some(vec![3]));
    assert_eq!(world.read(9), None);
    // The lane exists until all of it is acked: requeued records need it.
    world.requeue(Sequence::new(3));
    assert!(world.release(Sequence::new(0)));
    assert_eq!((world.lease(0), world.read(9)), (vec![], Some(vec![3])));
    for sequence in [0, 3, 6] {
        world.cursor.ack(Sequence::new(sequence));
    }
    assert_eq!((world.cursor.lanes.len(), world.saved()), (1, vec![9]));
    assert_eq!(world.cursor.needed_from_disk(world.tail()), None);
}

#[test]
fn reading_that_fails_is_counted_until_something_was_read() {
    let mut world = World::with(3);
    world.forget(0);
    world.forget(0);
    world.split_backlog();
    let failures = |world: &World| world.cursor.backlog(world.tail()).map(|(lane, _)| lane.failures);
    let read = |world: &mut World, records: Vec<Arc<Record>>, failed| {
        let from = records.first().map_or(Sequence::FIRST, |record| record.sequence);
        let read = Read { from, records, resume: None, stopped: None, finished: None, failed };
        world.cursor.lease_read(read, WallTime::at(9999)).expect("the lane is there");
    };
    for times in 1..4 {
        read(&mut world, vec![], true);
        assert_eq!(failures(&world), Some(times));
    }
    read(&mut world, vec![], false);
    assert_eq!(failures(&world), Some(0), "there was nothing yet");
    read(&mut world, vec![], true);
    // Records read before the failure are progress.
    let first = vec![Arc::clone(&world.all[0])];
    read(&mut world, first, true);
    assert_eq!(failures(&world), Some(0));
}

/// Until they are known to be missing, a copy would be reported complete without them.
#[test]
fn what_is_missing_before_a_barrier_is_missing_at_once() {
    let mut world = World::with(3);
    (0..2).for_each(|_| world.forget(0));
    world.split_backlog();
    // The first two are gone, and the third one waits behind a barrier.
    let stopped =
        Some(End { sequence: Sequence::new(STEP * 2 - 1), at: Position { lines: 2 * LINES, bytes: 2 * BYTES } });
    let read = Read { from: Sequence::new(0), records: vec![], resume: None, stopped, finished: None, failed: false };
    let (leased, missing) = world.cursor.lease_read(read, WallTime::at(9999)).expect("the lane is there");
    assert!(leased.is_empty());
    assert_eq!(missing.iter().map(|one| one.size.lines).collect::<Vec<_>>(), [2 * LINES]);
}

/// As in a journal whose saved cursors do not say.
#[test]
fn since_when_a_backlog_waits_is_not_told_where_that_is_unknown() {
    let mut world = World::with(2);
    world.records.clear();
    assert!(world.cursor.backlog(world.tail()).is_some());
    let (oldest, since) = world.cursor.oldest_pending(world.tail());
    assert_eq!((oldest.map(|record| record.sequence), since), (None, None));
}

#[test]
fn more_that_falls_behind_lengthens_the_lane_before_it() {
    let mut world = World::with(6);
    for records in 1..5 {
        world.forget(0);
        world.split_backlog();
        assert_eq!((world.cursor.lanes.len(), world.cursor.watermark().get()), (2, STEP * records));
    }
    assert_eq!(world.read(9), Some(vec![0, 3, 6, 9]));
    assert_eq!(world.lease(9), [12, 15]);
}

#[test]
fn many_outages_make_a_few_lanes_and_lose_nothing() {
    let mut world = World::new();
    let mut leased = Vec::new();
    for _ in 0..MAX_LANES * 2 {
        // Each time something is leased from memory, so that the next outage begins a new lane.
        for _ in 0..3 {
            world.append();
            world.write();
        }
        leased.extend(world.lease(1));
        while !world.records.is_empty() {
            world.forget(0);
        }
        world.append();
        world.write();
        world.split_backlog();
        assert!(world.cursor.lanes.len() <= MAX_LANES);
    }
    assert_eq!(world.cursor.lanes.len(), MAX_LANES);
    while let Some(read) = world.read(2) {
        leased.extend(read);
    }
    leased.extend(world.lease(100));
    leased.sort_unstable();
    assert_eq!(leased, world.all.iter().map(|record| record.sequence.get()).collect::<Vec<_>>());
}

/// In any course of events, the saved lanes hold each written unacked record exactly once, and no
/// other; in the end each record was delivered once.
#[test]
fn any_course_saves_each_record_until_it_is_settled() {
    for seed in 0..400 {
        fastrand::seed(seed);
        let (mut world, mut out, mut acked) = (World::new(), Vec::new(), Vec::new());
        for step in 0..80 {
            match fastrand::u32(..12) {
                0..3 => world.append(),
                3 | 4 => drop(world.write()),
                5 => out.extend(world.lease(2)),
                6 => out.extend(world.read(2).unwrap_or_default()),
                7 if world.records.front().is_some_and(|first| first.written().is_some()) => world.forget(0),
                8 => world.split_backlog(),
                9 if fastrand::bool() => drop(world.release(Sequence::new(0))),
                10 if !out.is_empty() => world.requeue(Sequence::new(out.swap_remove(fastrand::usize(..out.len())))),
                _ if !out.is_empty() => {
                    let sequence = out.swap_remove(fastrand::usize(..out.len()));
                    world.cursor.ack(Sequence::new(sequence));
                    acked.push(sequence);
                }
                _ => {}
            }
            world.check(&out, &acked, &format!("seed {seed}, step {step}"));
        }
        if fastrand::bool() {
            world.cursor.requeue_all();
            out.clear();
        }
        while world.write() {}
        loop {
            let (leased, read) = (world.lease(2), world.read(2).unwrap_or_default());
            if leased.is_empty() && read.is_empty() {
                break;
            }
            out.extend(leased.into_iter().chain(read));
        }
        acked.extend(out);
        acked.sort_unstable();
        assert!(
            acked.iter().copied().eq(world.all.iter().map(|record| record.sequence.get())),
            "seed {seed}: {acked:?}"
        );
    }
}

#[test]
fn what_is_given_back_is_leased_again_before_anything_newer() {
    let mut world = World::with(4);
    assert_eq!(world.lease(3), [0, 3, 6]);
    assert!(world.cursor.has_leased(Sequence::new(3)) && !world.cursor.has_leased(Sequence::new(9)));
    world.requeue(Sequence::new(3));
    assert!(
        !world.cursor.has_leased(Sequence::new(3))
            && world.cursor.is_full(&Limits { lines: 20, bytes: 200, linger: Duration::ZERO })
    );
    assert_eq!(world.cursor.watermark().get(), 0);
    world.cursor.ack(Sequence::new(0));
    assert_eq!((world.cursor.watermark().get(), world.lease(4)), (3, vec![3, 9]));
    world.cursor.requeue_all();
    assert_eq!(world.lease(9), [3, 6, 9]);
}
