//! What is lost is told: to the line, once, with its time, and by who looks at a stopped relay's
//! folder.

use std::collections::BTreeMap;
use std::time::Duration;
use twinflux::journal::BackendId;

use twinflux::journal::disk::{Condition, DiskOptions, inspect};

use crate::course::{batch, number, options};
use crate::disk::{LIMITS, PLENTY, dropped, open};
use crate::faulty::FaultyDisk;

#[test]
fn a_survey_changes_nothing_and_tells_what_is_there() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), PLENTY, &["a", "b"], 0.5);
    life.append(0..10, 1_000);
    assert_eq!(life.drain(0).len(), 10);
    life.stop();
    let operations = disk.inner().operations;
    let mut lines = Vec::new();
    let survey = inspect::survey(&*disk.storage(), |_, bytes| {
        lines.push(number(bytes));
        Ok(())
    });
    let survey = survey.expect("readable");
    assert_eq!(disk.inner().operations, operations);
    assert_eq!(lines, (0..10).collect::<Vec<_>>());
    assert!(survey.is_sound());
    assert_eq!(
        survey.backends,
        Some(vec![("a".to_owned(), "http://b0:8086".to_owned(), 0), ("b".to_owned(), "http://b1:8086".to_owned(), 10)])
    );
    assert_eq!((survey.segments.len(), survey.segments[0].lines, survey.destinations[0].1), (1, 10, 10));

    let name = disk.segments()[0].clone();
    disk.damage(&name, |bytes| bytes[3_000] ^= 1);
    let survey = inspect::survey(&*disk.storage(), |_, _| Ok(())).expect("readable");
    assert!(!survey.is_sound());
    assert_eq!((survey.missing_lines, survey.segments[0].damage.len()), (1, 1));
}

#[test]
fn a_survey_knows_from_the_cursors_what_is_missing_at_either_end() {
    let disk = FaultyDisk::new();
    let small = DiskOptions { quota: 200_000, ..options() };
    let mut life = open(&disk, &small, PLENTY, &["a"], 0.5);
    life.append(0..60, 1_000);
    life.stop();
    let segments = disk.segments();
    assert!(segments.len() > 2);
    let missing = |disk: &FaultyDisk| {
        let survey = inspect::survey(&*disk.storage(), |_, _| Ok(())).expect("readable");
        assert_eq!(survey.is_sound(), survey.missing_lines == 0);
        assert_eq!(survey.backends, Some(vec![("a".to_owned(), "http://b0:8086".to_owned(), 60)]));
        survey.missing_lines
    };
    assert_eq!(missing(&disk), 0);
    let (first, last) = (disk.copy(), disk.copy());
    first.delete(&segments[0]);
    last.delete(&segments[segments.len() - 1]);
    for damaged in [&first, &last] {
        let lines = missing(damaged);
        assert!(lines > 0);
        let life = open(damaged, &small, PLENTY, &["a"], 0.5);
        assert_eq!(life.drain(0).len() as u64 + lines, 60);
        assert_eq!(dropped(&life.snapshot(), 0)["corrupt"], lines);
    }
}

#[test]
fn what_the_quota_took_under_a_lease_is_counted_once_over_a_restart() {
    let disk = FaultyDisk::new();
    let small = DiskOptions { quota: 100_000, ..options() };
    let mut life = open(&disk, &small, 60_000, &["a"], 1.0);
    life.append(0..15, 5_000);
    let mut reader = life.journal.reader(BackendId::new(0));
    let lease = reader.try_next(&LIMITS).expect("the oldest");
    assert_eq!(number(lease.records[0].batch.bytes()), 0);
    let held = lease.lines;
    life.append(15..100, 5_000);
    let quota = dropped(&life.snapshot(), 0)["quota"];
    assert!(quota > 40);
    // The process ends with the lease under way, whose lines are on the disk no more: at once, or
    // as it should.
    let (killed, mut stopped) = (disk.copy(), life);
    stopped.stop_in_place();
    assert_eq!(dropped(&stopped.snapshot(), 0), BTreeMap::from([("quota", quota + held)]));
    assert_eq!(stopped.snapshot().memory_only_lines, [0]);
    drop(stopped);
    for (disk, lost) in [(&killed, BTreeMap::from([("quota", held)])), (&disk, BTreeMap::new())] {
        let life = open(disk, &small, 60_000, &["a"], 1.0);
        assert_eq!(dropped(&life.snapshot(), 0), lost);
        assert_eq!(life.drain(0).len() as u64 + quota + held, 100);
    }
    let life = open(&disk, &small, 60_000, &["a"], 1.0);
    assert_eq!(life.snapshot().gaps.iter().map(|gap| gap.lines).sum::<u64>(), quota + held);
}

#[test]
fn a_gap_lasts_from_what_stands_before_it_to_what_stands_behind() {
    let disk = FaultyDisk::new();
    let small = DiskOptions { quota: 200_000, ..options() };
    let mut life = open(&disk, &small, PLENTY, &["a"], 0.5);
    let mut walls = Vec::new();
    for number in 0..60 {
        std::thread::sleep(Duration::from_millis(2));
        let batch = batch(number, 0, 1, 1_000);
        walls.push(batch.received().wall);
        life.journal.append(batch);
        life.write();
    }
    life.stop();
    disk.delete(&disk.segments()[1]);
    let life = open(&disk, &small, PLENTY, &["a"], 0.5);
    let left = life.drain(0);
    let first = (0..60).find(|number| !left.contains(number)).expect("a gap");
    let behind = (first..60).find(|number| left.contains(number)).expect("more behind it");
    let (first, behind) = (usize::try_from(first).expect("small"), usize::try_from(behind).expect("small"));
    let gap = &life.snapshot().gaps[0];
    assert_eq!((gap.from, gap.until), (Some(walls[first - 1]), walls[behind]));
}

#[test]
fn what_is_found_at_a_start_is_reported() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    life.append(0..20, 1_000);
    life.stop();
    let name = disk.segments()[0].clone();
    let report = |change: &dyn Fn(&mut Vec<u8>)| {
        let disk = disk.copy();
        disk.damage(&name, change);
        open(&disk, &options(), PLENTY, &["a"], 0.5).snapshot().disk.expect("a disk").report
    };
    let whole = report(&|_| ());
    assert_eq!((whole.segments, whole.bytes), (1, disk.read(&name).len() as u64));
    assert_eq!((whole.truncated_bytes, whole.skipped_bytes, whole.damaged_records), (0, 0, 0));
    // The payload of the record in the middle, its header, and the last record's end.
    let middle = usize::try_from(whole.bytes).expect("small") / 2;
    assert_eq!(report(&|bytes| bytes[middle] ^= 1).damaged_records, 1);
    assert!(report(&|bytes| bytes[middle - 700..middle + 700].fill(0)).skipped_bytes > 700);
    assert!(report(&|bytes| bytes.truncate(bytes.len() - 5)).truncated_bytes > 1_000);
}

#[test]
fn a_block_that_cannot_be_read_at_a_start_cuts_nothing_off() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    life.append(0..20, 1_000);
    life.stop();
    let (name, before) = (disk.segments()[0].clone(), disk.read(&disk.segments()[0]));
    // The head and the first frame are read; then nothing is, until the block by block reading is
    // over.
    disk.inner().spared_reads = 2;
    disk.inner().failing_reads = 10;
    let mut life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    assert_eq!(disk.inner().failing_reads, 0);
    life.append(20..21, 1_000);
    assert_eq!(disk.read(&name), before, "nothing is cut off, and nothing is written behind it");
    let mut left = life.drain(0);
    left.sort_unstable();
    assert_eq!(left, (0..21).collect::<Vec<_>>());
}

#[test]
fn a_disk_that_syncs_nothing_holds_no_more_files_open_than_agreed() {
    let disk = FaultyDisk::new();
    let small = DiskOptions { quota: 2 << 20, ..options() };
    let mut life = open(&disk, &small, 64 << 20, &["a"], 0.5);
    let segment = 2 << 20 >> 3;
    life.append(0..100, segment);
    assert!(life.snapshot().disk.expect("a disk").error.is_some_and(|error| error.contains("syncs nothing")));
    assert!(life.syncer.step());
    life.write();
    // What the quota took is in memory only until it is delivered.
    assert_eq!(life.drain(0).len(), 100);
    assert_eq!(life.snapshot().disk.expect("a disk").condition, Condition::Ok);
}

#[test]
fn a_disk_that_does_not_keep_up_presses_before_anything_is_lost() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), 100_000, &["a"], 0.5);
    let mut number = 0;
    while !life.journal.is_pressed() {
        life.journal.append(batch(number, 0, 1, 1_000));
        number += 1;
        assert!(dropped(&life.snapshot(), 0).is_empty(), "{number}");
    }
    assert!(number > 40, "a good part of the memory is for bursts: {number}");
    life.write();
    assert!(!life.journal.is_pressed());
    assert_eq!(life.drain(0).len() as u64, number);
    // One that fails presses nobody: the others' lines go on.
    disk.inner().failing_writes = u32::MAX;
    for more in number..2 * number {
        life.journal.append(batch(more, 0, 1, 1_000));
        life.write();
    }
    assert_ne!(life.snapshot().disk.expect("a disk").condition, Condition::Ok);
    assert!(!life.journal.is_pressed());
}

/// The quota takes segments whose lines are in memory, where a backend is still to get them from.
#[test]
fn a_stop_keeps_what_it_says_and_gives_up_the_rest_as_what_it_is() {
    let disk = FaultyDisk::new();
    let small = DiskOptions { quota: 200_000, ..options() };
    let mut life = open(&disk, &small, PLENTY, &["a", "b"], 0.5);
    life.append(0..300, 1_000);
    // All of it is in memory, and nothing is lost while the process lives.
    let snapshot = life.snapshot();
    let figures = snapshot.disk.clone().expect("a disk");
    assert!(dropped(&snapshot, 0).is_empty() && figures.bytes <= figures.bound);
    assert_eq!(snapshot.ledgers[0].pending, 300);
    let memory_only = snapshot.memory_only_lines[0];
    assert!(memory_only > 100 && memory_only < 300);
    std::thread::sleep(small.sync_interval);
    let figures = life.snapshot().disk.expect("a disk");
    assert!(figures.condition == Condition::Full && figures.error.is_some_and(|error| error.contains("memory only")));
    assert_eq!(life.drain(0), (0..300).collect::<Vec<_>>());
    assert_eq!(life.snapshot().memory_only_lines, [0, memory_only]);

    life.stop_in_place();
    let snapshot = life.snapshot();
    assert_eq!(
        (dropped(&snapshot, 0), dropped(&snapshot, 1)),
        (BTreeMap::new(), BTreeMap::from([("quota", memory_only)]))
    );
    assert_eq!(snapshot.ledgers[1].pending, 300 - memory_only);
    drop(life);
    let life = open(&disk, &small, PLENTY, &["a", "b"], 0.5);
    let snapshot = life.snapshot();
    assert!(dropped(&snapshot, 1).is_empty());
    assert_eq!((snapshot.ledgers[1].recovered, snapshot.gaps[0].lines), (300 - memory_only, memory_only));
    assert_eq!(life.drain(1), (memory_only..300).collect::<Vec<_>>());
}

/// A full disk keeps nothing: whoever has got its lines, a process that ends without a stop leaves
/// the others without them.
#[test]
fn lines_that_could_not_be_written_are_a_gap_after_a_kill_and_none_after_a_stop() {
    for is_stopped in [false, true] {
        let disk = FaultyDisk::new();
        let mut life = open(&disk, &options(), PLENTY, &["a", "b"], 0.5);
        life.append(0..10, 1_000);
        disk.inner().failing_writes = u32::MAX;
        life.append(10..20, 1_000);
        assert_eq!(life.drain(0), (0..20).collect::<Vec<_>>());
        std::thread::sleep(options().sync_interval);
        life.write();
        assert!(life.syncer.step());
        disk.inner().failing_writes = 0;
        if is_stopped {
            disk.inner().failing_writes = u32::MAX;
            life.stop_in_place();
            disk.inner().failing_writes = 0;
        }
        drop(life);
        let life = open(&disk, &options(), PLENTY, &["a", "b"], 0.5);
        let gaps = life.snapshot().gaps;
        let unknown: Vec<&str> = gaps.iter().filter(|gap| gap.lines == 0).map(|gap| &*gap.backend).collect();
        let known: u64 = gaps.iter().map(|gap| gap.lines).sum();
        if is_stopped {
            assert_eq!((unknown.len(), known), (0, 10), "{gaps:?}");
        } else {
            assert_eq!((unknown, known), (vec!["b"], 0), "{gaps:?}");
        }
    }
}

/// Memory that is full gives up what left the disk first, in order, and none of it is counted
/// twice.
#[test]
fn what_left_the_disk_leaves_the_memory_as_quota() {
    for replay_share in [0.5, 1.0] {
        let disk = FaultyDisk::new();
        let small = DiskOptions { quota: 100_000, ..options() };
        let mut life = open(&disk, &small, 400_000, &["a"], replay_share);
        life.append(0..1_000, 1_000);
        let lost = dropped(&life.snapshot(), 0);
        assert_eq!(lost.keys().copied().collect::<Vec<_>>(), ["quota"]);
        let mut left = life.drain(0);
        left.sort_unstable();
        assert!(left == (lost["quota"]..1_000).collect::<Vec<_>>(), "{replay_share}: {} of {lost:?}", left.len());
        assert_eq!(dropped(&life.snapshot(), 0), lost);
    }
}

/// A name that is at another address may be another server's: nobody gets what it is owed until
/// somebody says.
#[test]
fn a_backend_at_another_address_waits_until_somebody_says_whether_it_is_the_same() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), PLENTY, &["a", "b"], 0.5);
    life.append(0..10, 100);
    assert_eq!(life.drain(0).len(), 10);
    life.stop();
    // Their places changed, and with them their addresses (which come of the place, here).
    let mut life = open(&disk, &options(), PLENTY, &["b", "a"], 0.5);
    let was = |place: usize| Some(format!("http://b{place}:8086"));
    assert_eq!(life.journal.moved_from(), [was(1), was(0)]);
    life.append(10..12, 100);
    life.stop();
    // It is not forgotten by the next start.
    let life = open(&disk, &options(), PLENTY, &["b", "a"], 0.5);
    assert_eq!(life.journal.moved_from(), [was(1), was(0)]);
    assert_eq!(life.snapshot().ledgers.iter().map(|ledger| ledger.pending).collect::<Vec<_>>(), [12, 2]);
    drop(life);
    // Back in their old places they are themselves.
    assert_eq!(open(&disk, &options(), PLENTY, &["a", "b"], 0.5).journal.moved_from(), [None, None]);
    assert_eq!(inspect::moved(&*disk.storage(), "b").expect("readable"), was(1));
    assert_eq!(inspect::moved(&*disk.storage(), "c").expect("readable"), None);
    // What came since the address changed is owed to whoever has the name now.
    assert_eq!(inspect::forget(&*disk.storage(), "a").expect("readable"), Some(0));
    let life = open(&disk, &options(), PLENTY, &["b", "a"], 0.5);
    assert_eq!(life.journal.moved_from(), [None, None]);
    assert_eq!((life.drain(0), life.drain(1)), ((0..12).collect::<Vec<_>>(), vec![10, 11]));
}
