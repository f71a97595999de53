//! What is lost is told: to the line, once, with its time, and by who looks at a stopped relay's folder.

use std::collections::BTreeMap;
use std::time::Duration;

use twinflux::journal::disk::{DiskOptions, inspect};

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
    assert_eq!(survey.backends, Some(vec![("a".to_owned(), 0), ("b".to_owned(), 10)]));
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
        assert_eq!(survey.backends, Some(vec![("a".to_owned(), 60)]));
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
    let mut reader = life.journal.reader(0);
    let lease = reader.try_next(&LIMITS).expect("the oldest");
    assert_eq!(number(&lease.records[0].batch.bytes), 0);
    let held = lease.lines;
    life.append(15..100, 5_000);
    let quota = dropped(&life.snapshot(), 0)["quota"];
    assert!(quota > 40);
    // The process ends with the lease under way, whose lines are on the disk no more.
    life.stop();
    let life = open(&disk, &small, 60_000, &["a"], 1.0);
    assert_eq!(dropped(&life.snapshot(), 0), BTreeMap::from([("corrupt", held)]));
    assert_eq!(life.drain(0).len() as u64 + quota + held, 100);
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
        walls.push(batch.received.wall);
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
    assert_eq!((gap.from, gap.until), (walls[first - 1], walls[behind]));
}
