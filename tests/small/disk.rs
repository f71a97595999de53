//! What the journal on the disk does in each situation that has a name: quota, age, floor, full,
//! slow, strict, orphans.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use twinflux::journal::disk::{self, Condition, DiskOptions, Next, Syncer, WhenFull, Writer, inspect};
use twinflux::journal::{BackendId, DropReason, Journal, Limits, Reader, Snapshot};

use crate::course::{backends, batch, number, options};
use crate::faulty::FaultyDisk;

pub(crate) const LIMITS: Limits = Limits { lines: 10, bytes: 20_000, linger: Duration::ZERO };
pub(crate) const PLENTY: u64 = 1 << 30;

pub(crate) struct Life {
    pub(crate) journal: Journal,
    pub(crate) writer: Writer,
    pub(crate) syncer: Syncer,
}

pub(crate) fn open(disk: &FaultyDisk, options: &DiskOptions, memory: u64, names: &[&str], replay_share: f64) -> Life {
    let mut setups = backends(names.len(), replay_share);
    for (setup, name) in setups.iter_mut().zip(names) {
        (*name).clone_into(&mut setup.name);
    }
    let journal = Journal::open(disk.storage(), options, memory, &setups).expect("opens");
    let (writer, syncer) = (journal.writer().expect("a disk"), journal.syncer().expect("a disk"));
    Life { journal, writer, syncer }
}

impl Life {
    pub(crate) fn append(&mut self, numbers: std::ops::Range<u64>, filler: usize) {
        for number in numbers {
            self.journal.append(batch(number, 0, 1, filler));
            self.write();
        }
    }

    pub(crate) fn write(&mut self) {
        while self.writer.step() == Next::Now {}
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.journal.snapshot()
    }

    fn condition(&self) -> Condition {
        self.snapshot().disk.expect("a disk").condition
    }

    /// Everything there is for a backend, in the order it comes.
    pub(crate) fn drain(&self, backend: usize) -> Vec<u64> {
        drain(&mut self.journal.reader(BackendId::new(backend)))
    }

    pub(crate) fn stop(mut self) {
        self.stop_in_place();
    }

    pub(crate) fn stop_in_place(&mut self) {
        self.write();
        assert!(self.syncer.step());
        self.write();
        assert!(self.syncer.step());
        disk::end(&mut self.writer, &mut self.syncer);
    }
}

pub(crate) fn drain(reader: &mut Reader) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(lease) = reader.try_next(&LIMITS) {
        numbers.extend(lease.records.iter().map(|record| number(record.batch.bytes())));
        reader.ack(lease, None);
    }
    numbers
}

pub(crate) fn dropped(snapshot: &Snapshot, backend: usize) -> BTreeMap<&'static str, u64> {
    let dropped = DropReason::ALL.iter().zip(snapshot.ledgers[backend].dropped);
    dropped.filter(|(_, lines)| *lines > 0).map(|(reason, lines)| (reason.name(), lines)).collect()
}

#[test]
fn what_one_backend_lacks_is_there_after_a_restart_and_the_other_gets_nothing_twice() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), PLENTY, &["a", "b"], 0.5);
    life.append(0..20, 100);
    assert_eq!(life.drain(0), (0..20).collect::<Vec<_>>());
    life.stop();
    let mut life = open(&disk, &options(), PLENTY, &["a", "b"], 0.5);
    let recovered: Vec<u64> = life.snapshot().ledgers.iter().map(|ledger| ledger.recovered).collect();
    assert_eq!(recovered, [0, 20]);
    assert!(life.snapshot().oldest_pending_seconds[1] > 0.0);
    life.append(20..25, 100);
    assert_eq!(life.drain(0), (20..25).collect::<Vec<_>>());
    let mut of_b = life.drain(1);
    of_b.sort_unstable();
    assert_eq!(of_b, (0..25).collect::<Vec<_>>());
    life.stop();
    assert_eq!(disk.segments().len(), 1);
}

#[test]
fn the_quota_drops_the_oldest_or_refuses_the_newest_and_the_gap_ledger_says_which() {
    for (full, expected) in [(WhenFull::DropOldest, "the newest"), (WhenFull::DropNewest, "the oldest")] {
        let disk = FaultyDisk::new();
        let options = DiskOptions { quota: 100_000, full, ..options() };
        let mut life = open(&disk, &options, 60_000, &["a"], 1.0);
        life.append(0..100, 5_000);
        let snapshot = life.snapshot();
        let figures = snapshot.disk.clone().expect("a disk");
        assert!(figures.bytes <= 100_000);
        assert_eq!(life.condition() == Condition::Full, full == WhenFull::DropNewest);
        let lost = dropped(&snapshot, 0);
        assert_eq!(lost.keys().copied().collect::<Vec<_>>(), ["quota"], "{full:?}");
        let gap = &snapshot.gaps[0];
        assert_eq!((gap.lines, gap.backend.as_str(), gap.reason.name()), (lost["quota"], "a", "quota"));
        assert!(gap.from.is_some_and(|from| from <= gap.until));
        let left = life.drain(0);
        assert_eq!(left.len() as u64 + lost["quota"], 100);
        let has_newest = left.contains(&99);
        match expected {
            "the newest" => assert!(has_newest && !left.contains(&0)),
            _ => assert!(left.contains(&0)),
        }
        // What was given up is known after a restart, too.
        life.stop();
        let life = open(&disk, &options, 60_000, &["a"], 1.0);
        assert_eq!(life.snapshot().gaps.iter().map(|gap| gap.lines).sum::<u64>(), lost["quota"]);
    }
}

#[test]
fn lines_that_are_too_old_are_dropped_by_the_segment() {
    let disk = FaultyDisk::new();
    let options = DiskOptions { max_age: Some(Duration::from_millis(200)), quota: 80_000, ..options() };
    let mut life = open(&disk, &options, PLENTY / 1024, &["a"], 0.5);
    life.append(0..3, 5_000);
    let limit = Instant::now() + Duration::from_secs(180);
    let mut next = 3;
    while dropped(&life.snapshot(), 0).get("age").is_none_or(|lines| *lines < 3) {
        assert!(Instant::now() < limit, "{:?}", life.snapshot().ledgers[0].dropped);
        std::thread::sleep(Duration::from_millis(30));
        life.append(next..next + 1, 0);
        next += 1;
    }
    assert_eq!(life.snapshot().gaps[0].reason.name(), "age");
}

#[test]
fn a_full_volume_is_waited_out_in_memory_and_its_room_is_used_when_it_is_back() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    life.append(0..10, 1_000);
    let used: u64 = disk.segments().iter().map(|name| disk.read(name).len() as u64).sum();
    disk.inner().capacity = used + 3_000;
    life.append(10..30, 1_000);
    assert_eq!(life.condition(), Condition::Full);
    assert!(life.snapshot().disk.expect("a disk").error.is_some());
    let before = disk.segments().iter().map(|name| disk.read(name).len() as u64).sum::<u64>();
    assert!(before <= used + 3_000);
    disk.heal();
    life.write();
    assert_eq!(life.condition(), Condition::Ok);
    life.stop();
    let life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    assert_eq!(life.drain(0), (0..30).collect::<Vec<_>>());
}

#[test]
fn a_floor_of_free_space_is_left_to_others() {
    let disk = FaultyDisk::new();
    disk.inner().capacity = 300_000;
    let options = DiskOptions { min_free: Some(100_000), quota: 1 << 20, ..options() };
    let mut life = open(&disk, &options, PLENTY, &["a"], 0.5);
    life.append(0..100, 5_000);
    let used: u64 = disk.segments().iter().map(|name| disk.read(name).len() as u64).sum();
    assert!(used <= 210_000, "{used}");
    assert!(used > 50_000, "{used}");
}

#[test]
fn writes_and_syncs_that_fail_are_counted_and_lose_nothing() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    life.append(0..5, 1_000);
    disk.inner().failing_writes = 1;
    life.append(5..10, 1_000);
    disk.inner().failing_syncs = 1;
    assert!(!life.syncer.step());
    assert_eq!(life.condition(), Condition::Failing);
    life.write();
    assert!(life.syncer.step());
    let figures = life.snapshot().disk.expect("a disk");
    assert_eq!((figures.write_errors, figures.sync_errors, figures.condition), (1, 1, Condition::Ok));
    assert!(figures.syncs > 0 && !figures.sync_latency.is_empty());
    // What could not be synced was written again: a power cut now costs nothing.
    disk.cut_power(|| false);
    let life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    assert_eq!(life.drain(0), (0..10).collect::<Vec<_>>());
    assert_eq!(dropped(&life.snapshot(), 0), BTreeMap::new());
}

#[test]
fn a_block_that_cannot_be_read_costs_what_is_in_it() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    life.append(0..20, 1_000);
    life.stop();
    let life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    // Ten tries of the whole, a last one, and then its first block.
    disk.inner().failing_reads = 12;
    let left = life.drain(0);
    let snapshot = life.snapshot();
    assert_eq!(snapshot.disk.expect("a disk").read_errors, 10);
    let lost = 20 - left.len() as u64;
    assert!((1..6).contains(&lost), "{left:?}");
    assert_eq!(snapshot.ledgers[0].dropped[DropReason::Corrupt as usize], lost);
}

#[test]
fn segments_that_cannot_be_opened_for_a_moment_cost_nothing() {
    let disk = FaultyDisk::new();
    let small = DiskOptions { quota: 200_000, ..options() };
    let mut life = open(&disk, &small, PLENTY, &["a"], 0.5);
    life.append(0..50, 1_000);
    life.stop();
    let life = open(&disk, &small, PLENTY, &["a"], 0.5);
    disk.inner().failing_opens = 7;
    assert_eq!(life.drain(0), (0..50).collect::<Vec<_>>());
    let snapshot = life.snapshot();
    assert_eq!((snapshot.disk.expect("a disk").read_errors, snapshot.ledgers[0].pending), (7, 0));
}

#[test]
fn cursors_that_cannot_be_saved_are_tried_again_in_their_time_and_stop_no_writing() {
    let disk = FaultyDisk::new();
    let patient = DiskOptions { retry_after: Duration::from_secs(3600), ..options() };
    let mut life = open(&disk, &patient, PLENTY, &["a"], 0.5);
    disk.inner().fails_slots = true;
    life.append(0..50, 1_000);
    let figures = life.snapshot().disk.expect("a disk");
    assert_eq!((figures.write_errors, figures.condition), (1, Condition::Failing));
    assert!(figures.bytes > 50_000);
    drop(life);
    disk.inner().fails_slots = false;
    let mut life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    life.write();
    assert_eq!(life.condition(), Condition::Ok);
    assert_eq!(life.drain(0), (0..50).collect::<Vec<_>>());
}

#[test]
fn syncs_that_go_on_failing_fill_no_disk() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    life.append(0..20, 1_000);
    for _ in 0..30 {
        disk.inner().failing_syncs = 1;
        assert!(!life.syncer.step());
        life.write();
    }
    assert!(disk.segments().len() <= 3, "{:?}", disk.segments());
    assert!(life.syncer.step());
    disk.cut_power(|| false);
    let life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    assert_eq!(life.drain(0), (0..20).collect::<Vec<_>>());
}

#[test]
fn what_the_disk_never_took_is_told_at_the_end() {
    let disk = FaultyDisk::new();
    let patient = DiskOptions { retry_after: Duration::from_secs(3600), ..options() };
    let journal = Journal::open(disk.storage(), &patient, PLENTY, &backends(1, 0.5)).expect("opens");
    let threads = journal.start_disk(|| Ok(())).expect("threads").expect("a disk");
    disk.inner().failing_writes = 1;
    journal.append(batch(0, 0, 1, 100));
    wait_for(|| journal.snapshot().disk.expect("a disk").write_errors == 1);
    // The pause after a failure ends with the relay: the last lines are tried once more.
    threads.stop().expect("no panic");
    assert_eq!(open(&disk, &options(), PLENTY, &["b0"], 0.5).drain(0), [0]);
}

#[test]
fn fresh_lines_do_not_wait_behind_a_backlog_unless_the_order_is_strict() {
    for (replay_share, fresh_first) in [(0.5, true), (1.0, false)] {
        let disk = FaultyDisk::new();
        // Half of the memory is for records; the rest of what is written leaves it.
        let mut life = open(&disk, &options(), 40_000, &["a"], replay_share);
        life.append(0..200, 1_000);
        let mut reader = life.journal.reader(BackendId::new(0));
        let mut order = Vec::new();
        let mut next = 200;
        while let Some(lease) = reader.try_next(&LIMITS) {
            order.push(number(lease.records[0].batch.bytes()));
            reader.ack(lease, None);
            if next < 210 {
                life.append(next..next + 1, 1_000);
                next += 1;
            }
        }
        assert_eq!(order.is_sorted(), !fresh_first, "{order:?}");
        let place_of_fresh = order.iter().position(|number| *number >= 180).expect("delivered");
        assert_eq!(place_of_fresh < 4, fresh_first, "{order:?}");
        // Of each two requests one was the backlog's while both waited.
        let old = order[..8].iter().filter(|number| **number < 150).count();
        assert_eq!(old, if fresh_first { 4 } else { 8 }, "{order:?}");
        assert_eq!(life.snapshot().ledgers[0].pending, 0);
    }
}

#[test]
fn a_backend_that_is_not_configured_any_more_is_kept_until_it_is_forgotten() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), PLENTY, &["a", "old"], 0.5);
    life.append(0..10, 1_000);
    assert_eq!(life.drain(0).len(), 10);
    life.stop();
    let mut life = open(&disk, &options(), PLENTY, &["a", "new"], 0.5);
    let snapshot = life.snapshot();
    assert_eq!(snapshot.disk.expect("a disk").orphans, [("old".to_owned(), 10)]);
    assert_eq!(snapshot.ledgers[1].recovered, 0, "a new backend begins at the end");
    life.append(10..12, 1_000);
    assert_eq!(life.drain(1), [10, 11]);
    assert_eq!(life.drain(0).len(), 2);
    life.stop();
    // It comes back, and has missed nothing.
    let mut life = open(&disk, &options(), PLENTY, &["old"], 0.5);
    assert_eq!(life.snapshot().ledgers[0].recovered, 12);
    assert_eq!(life.drain(0), (0..12).collect::<Vec<_>>());
    life.append(12..15, 1_000);
    assert_eq!(life.drain(0), [12, 13, 14]);
    life.stop();

    for (name, expected) in [("nobody", None), ("a", Some(3)), ("new", Some(3))] {
        assert_eq!(inspect::forget(&*disk.storage(), name).expect("readable"), expected, "{name}");
    }
    let life = open(&disk, &options(), PLENTY, &["old"], 0.5);
    assert_eq!(life.snapshot().disk.expect("a disk").orphans, []);
    assert_eq!(life.drain(0), Vec::<u64>::new());
}

#[test]
fn cursors_of_another_journal_say_nothing_about_this_one() {
    let (disk, other) = (FaultyDisk::new(), FaultyDisk::new());
    for (disk, records) in [(&disk, 10), (&other, 100)] {
        let mut life = open(disk, &options(), PLENTY, &["a"], 0.5);
        life.append(0..records, 100);
        assert_eq!(life.drain(0).len() as u64, if records == 100 { 100 } else { 10 });
        life.append(records..records + 5, 100);
        life.stop();
    }
    for slot in 0..3 {
        let name = format!("cursors-{slot}");
        let foreign = other.read(&name);
        disk.damage(&name, |bytes| *bytes = foreign);
    }
    let life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    assert!(life.snapshot().disk.expect("a disk").report.cursors_lost);
    assert_eq!(life.drain(0), (0..15).collect::<Vec<_>>());
}

#[test]
fn a_sync_that_takes_long_delays_no_append_no_write_and_no_delivery() {
    let disk = FaultyDisk::new();
    let journal = Journal::open(disk.storage(), &options(), PLENTY, &backends(1, 0.5)).expect("opens");
    let threads = journal.start_disk(|| Ok(())).expect("threads").expect("a disk");
    let mut reader = journal.reader(BackendId::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    disk.inner().holds_syncs = true;
    journal.append(batch(0, 0, 1, 100));
    wait_for(|| disk.inner().held_syncs > 0);
    // From here on the syncing thread stands still.
    for number in 1..50 {
        journal.append(batch(number, 0, 1, 100));
    }
    let mut seen = 0;
    while seen < 50 {
        let lease = runtime.block_on(reader.next(&LIMITS)).expect("open");
        seen += lease.records.len();
        reader.ack(lease, None);
    }
    // One that nobody reads: what is acked before it is written is never written.
    journal.append(batch(50, 0, 1, 100));
    let is_written = |name: &String| disk.read(name).windows(20).any(|part| part == b"00000000000000000050");
    wait_for(|| disk.segments().iter().any(is_written));
    assert_eq!(disk.inner().held_syncs, 1, "still the same sync");
    disk.inner().holds_syncs = false;
    threads.stop().expect("no panic");
    assert!(journal.snapshot().disk.expect("a disk").syncs > 0);
}

#[test]
fn synced_syncs_at_once_and_written_after_its_interval() {
    for (is_synced, expected) in [(true, true), (false, false)] {
        let disk = FaultyDisk::new();
        let options = DiskOptions { is_synced, sync_interval: Duration::from_secs(3600), ..options() };
        let journal = Journal::open(disk.storage(), &options, PLENTY, &backends(1, 0.5)).expect("opens");
        let threads = journal.start_disk(|| Ok(())).expect("threads").expect("a disk");
        journal.append(batch(0, 0, 1, 100));
        if expected {
            wait_for(|| journal.snapshot().disk.expect("a disk").syncs > 0);
        } else {
            wait_for(|| !disk.segments().is_empty());
            journal.append(batch(1, 0, 1, 5 << 20 >> 3));
            assert_eq!(journal.snapshot().disk.expect("a disk").syncs, 0);
        }
        threads.stop().expect("no panic");
        disk.cut_power(|| false);
        let left = open(&disk, &options, PLENTY, &["b0"], 0.5).drain(0);
        assert_eq!(left[0], 0, "an end syncs");
    }
}

#[test]
fn reading_a_backlog_goes_on_while_a_reader_is_dropped_and_made_again() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    life.append(0..300, 1_000);
    life.stop();
    let life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let mut numbers = Vec::new();
    let mut reader = life.journal.reader(BackendId::new(0));
    while numbers.len() < 300 {
        // Most of these waits end before the disk is read.
        let limit = Duration::from_micros(numbers.len() as u64 % 7);
        let next = runtime.block_on(async { tokio::time::timeout(limit, reader.next(&LIMITS)).await });
        if let Ok(Some(lease)) = next {
            numbers.extend(lease.records.iter().map(|record| number(record.batch.bytes())));
            reader.ack(lease, None);
        }
        if numbers.len() > 150 {
            reader = life.journal.reader(BackendId::new(0));
            numbers.extend(drain(&mut reader));
        }
    }
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(180);
    while !condition() {
        assert!(Instant::now() < limit, "waited too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}
