//! The folder of the journal goes under a running relay: what memory holds is written to a new one,
//! and the rest is counted.

use twinflux::journal::disk::{Condition, DiskOptions};

use crate::course::options;
use crate::disk::{PLENTY, dropped, open};
use crate::faulty::FaultyDisk;

#[test]
fn what_memory_holds_is_written_to_a_new_folder_and_nothing_is_lost() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), PLENTY, &["a", "b"], 0.5);
    life.append(0..20, 1_000);
    assert!(life.syncer.step());
    assert_eq!(life.drain(0), (0..20).collect::<Vec<_>>());
    let before = disk.segments();
    disk.remove_folder();
    // It is looked for twice before anything is given up.
    life.write();
    let figures = life.snapshot().disk.expect("a disk");
    assert_eq!(figures.condition, Condition::Failing);
    assert!(figures.error.is_some_and(|error| error.contains("the folder was removed while the relay runs")));
    life.write();
    life.append(20..25, 1_000);
    let snapshot = life.snapshot();
    let figures = snapshot.disk.clone().expect("a disk");
    assert_eq!((figures.condition, snapshot.memory_only_lines.clone()), (Condition::Ok, vec![0, 0]));
    assert!(dropped(&snapshot, 0).is_empty() && dropped(&snapshot, 1).is_empty());
    assert!(disk.segments().iter().all(|name| !before.contains(name)), "no name comes twice");
    life.stop();
    let life = open(&disk, &options(), PLENTY, &["a", "b"], 0.5);
    assert_eq!((life.drain(0), life.drain(1)), ((20..25).collect(), (0..25).collect()));
}

#[test]
fn what_was_only_in_the_old_folder_is_given_up_once_and_told_as_a_gap() {
    for replay_share in [0.5, 1.0] {
        let disk = FaultyDisk::new();
        // Memory for a part of it.
        let mut life = open(&disk, &options(), 60_000, &["a"], replay_share);
        life.append(0..100, 1_000);
        disk.remove_folder();
        life.write();
        life.write();
        let snapshot = life.snapshot();
        let lost = dropped(&snapshot, 0)["corrupt"];
        assert!(lost > 10 && lost < 100, "{lost}");
        let gap = &snapshot.gaps[0];
        assert_eq!((snapshot.gaps.len(), gap.lines, gap.reason.name()), (1, lost, "corrupt"));
        assert!(gap.from.is_some_and(|from| from <= gap.until));
        life.append(100..110, 1_000);
        let mut left = life.drain(0);
        left.sort_unstable();
        assert_eq!(left, (lost..110).collect::<Vec<_>>());
        life.stop();
        let life = open(&disk, &options(), 60_000, &["a"], replay_share);
        assert_eq!(life.snapshot().gaps.iter().map(|gap| gap.lines).sum::<u64>(), lost);
        assert_eq!(life.snapshot().ledgers[0].recovered, 0);
    }
}

#[test]
fn a_last_segment_that_goes_costs_what_memory_does_not_hold_of_it() {
    let disk = FaultyDisk::new();
    let small = DiskOptions { quota: 200_000, ..options() };
    let mut life = open(&disk, &small, PLENTY, &["a"], 0.5);
    life.append(0..60, 1_000);
    let segments = disk.segments();
    assert!(segments.len() > 2);
    disk.delete(segments.last().expect("some"));
    life.write();
    assert_eq!(life.snapshot().disk.expect("a disk").condition, Condition::Failing);
    life.write();
    assert_eq!(life.snapshot().disk.expect("a disk").condition, Condition::Ok);
    life.append(60..65, 1_000);
    life.stop();
    let life = open(&disk, &small, PLENTY, &["a"], 0.5);
    assert_eq!(life.drain(0), (0..65).collect::<Vec<_>>());
    assert!(dropped(&life.snapshot(), 0).is_empty());
    assert!(segments.iter().rev().skip(1).all(|name| disk.segments().contains(name)), "the others stay");
}

#[test]
fn another_journal_in_the_new_folder_is_set_aside_and_not_delivered() {
    let (disk, other) = (FaultyDisk::new(), FaultyDisk::new());
    let mut stranger = open(&other, &options(), PLENTY, &["a"], 0.5);
    stranger.append(0..5, 100);
    stranger.stop();
    let mut life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    life.append(10..20, 100);
    disk.replace_folder(&other);
    life.write();
    life.write();
    life.append(20..25, 100);
    life.stop();
    assert_eq!(disk.inner().quarantine.len(), 7, "a segment and six slots");
    let life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    assert_eq!(life.drain(0), (10..25).collect::<Vec<_>>());
}

#[test]
fn a_folder_that_comes_back_at_once_is_written_on() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    life.append(0..5, 100);
    disk.remove_folder();
    life.write();
    assert_eq!(life.snapshot().disk.expect("a disk").condition, Condition::Failing);
    disk.put_folder_back();
    life.append(5..10, 100);
    assert_eq!(life.snapshot().disk.expect("a disk").condition, Condition::Ok);
    life.stop();
    let life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    assert_eq!((life.drain(0), disk.segments().len()), ((0..10).collect(), 1));
}

#[test]
fn without_a_folder_a_stop_gives_up_what_is_in_memory_and_keeps_nothing() {
    let disk = FaultyDisk::new();
    let mut life = open(&disk, &options(), PLENTY, &["a"], 0.5);
    life.append(0..10, 100);
    disk.remove_folder();
    let at = disk.inner().operations;
    disk.inner().dies_at = Some(at);
    life.write();
    life.write();
    twinflux::journal::disk::end(&mut life.writer, &mut life.syncer);
    let snapshot = life.snapshot();
    assert_eq!((snapshot.ledgers[0].pending, snapshot.ledgers[0].dropped.iter().sum::<u64>()), (0, 10));
}
