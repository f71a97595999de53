//! The log cut off at every byte, and damaged in every way a disk damages: it opens, gives what is
//! whole, and counts the rest to the line.

use std::time::Duration;

use twinflux::journal::disk::{DiskOptions, Next};
use twinflux::journal::{BackendId, DropReason, Journal, Limits, Snapshot};

use crate::course::{backends, batch, number, options, text};
use crate::effort;
use crate::faulty::FaultyDisk;

/// What was written: each record's destination, lines and filler, by its number.
struct Written {
    disk: FaultyDisk,
    options: DiskOptions,
    records: Vec<(usize, u64, usize)>,
}

impl Written {
    /// A log of about this many bytes that one backend has still to get.
    fn new(bytes: usize, options: DiskOptions) -> Self {
        let disk = FaultyDisk::new();
        let journal = Journal::open(disk.storage(), &options, 1 << 30, &backends(1, 0.5)).expect("opens");
        let (mut writer, mut syncer) = (journal.writer().expect("a disk"), journal.syncer().expect("a disk"));
        let (mut records, mut sum) = (Vec::new(), 0);
        while sum < bytes {
            let place = records.len();
            let (database, lines, filler) = (place % 2, 1 + place as u64 % 7, 200 + place * 37 % 1500);
            journal.append(batch(place as u64, database, lines, filler));
            records.push((database, lines, filler));
            sum += filler + 88;
            while writer.step() == Next::Now {}
        }
        assert!(syncer.step());
        Self { disk, options, records }
    }

    fn lines(&self) -> u64 {
        self.records.iter().map(|(_, lines, _)| lines).sum()
    }

    /// What a start on this disk gives: the records' numbers, each of them as it was written.
    fn start(&self, disk: &FaultyDisk) -> (Vec<u64>, Snapshot) {
        let journal = Journal::open(disk.storage(), &self.options, 1 << 30, &backends(1, 0.5)).expect("opens");
        let mut reader = journal.reader(BackendId::new(0));
        let limits = Limits { lines: 100, bytes: 30_000, linger: Duration::ZERO };
        let mut numbers = Vec::new();
        while let Some(lease) = reader.try_next(&limits) {
            for record in &lease.records {
                let number = number(record.batch.bytes());
                let (database, lines, filler) = self.records[usize::try_from(number).expect("small")];
                assert_eq!(record.batch.bytes()[..], text(number, filler), "an altered record");
                assert_eq!((record.batch.lines(), lease.destination.database()), (lines, &*format!("db{database}")));
                numbers.push(number);
            }
            reader.ack(lease, None);
        }
        (numbers, journal.snapshot())
    }

    /// Asserts that what did not come is counted, and returns how many records did not.
    fn missing(&self, numbers: &[u64], snapshot: &Snapshot) -> usize {
        let mut distinct = numbers.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), numbers.len(), "nothing comes twice");
        let ledger = &snapshot.ledgers[0];
        assert_eq!(ledger.delivered + ledger.dropped[DropReason::Corrupt as usize], self.lines(), "{ledger:?}");
        assert_eq!((ledger.recovered, ledger.pending), (self.lines(), 0));
        let gaps: u64 = snapshot.gaps.iter().map(|gap| gap.lines).sum();
        assert_eq!(gaps, self.lines() - ledger.delivered, "the gap ledger has what is missing");
        self.records.len() - numbers.len()
    }
}

#[test]
fn a_log_cut_off_at_any_byte_gives_what_is_before_the_cut() {
    let written = Written::new(64 << 10, options());
    let name = &written.disk.segments()[0];
    assert_eq!(written.disk.segments().len(), 1);
    let whole = written.disk.read(name);
    assert!(whole.len() >= 64 << 10);
    let mut ends = Vec::new();
    // No record is as short as a step.
    let step = effort::times(43, 1, 1);
    for cut in (0..whole.len()).step_by(step).chain([whole.len() - 1]) {
        let disk = written.disk.copy();
        disk.damage(name, |bytes| bytes.truncate(cut));
        let (numbers, snapshot) = written.start(&disk);
        written.missing(&numbers, &snapshot);
        let expected: Vec<u64> = (0..numbers.len() as u64).collect();
        let mut seen = numbers.clone();
        seen.sort_unstable();
        assert_eq!(seen, expected, "cut at {cut}");
        ends.push(numbers.len());
    }
    // With every step there is as much as before, and with the last one all but the last record.
    assert!(ends.is_sorted());
    assert_eq!(ends.last(), Some(&(written.records.len() - 1)));
    let grown = ends.windows(2).filter(|two| two[0] < two[1]).count();
    assert_eq!(grown, written.records.len() - 1, "one record at a time");
}

#[test]
fn any_damage_costs_what_it_hits_and_no_more() {
    let small = DiskOptions { quota: 600_000, ..options() };
    let written = Written::new(200_000, small);
    let segments = written.disk.segments();
    assert!(segments.len() > 2);
    let mut random = fastrand::Rng::with_seed(42);
    let mut worst = [0; 4];
    for round in 0..effort::cases(10_000) as usize {
        let disk = written.disk.copy();
        let name = &segments[random.usize(..segments.len())];
        let kind = round % 4;
        disk.damage(name, |bytes| {
            let sectors = bytes.len() / 512;
            let (one, other) = (random.usize(..sectors) * 512, random.usize(..sectors) * 512);
            let any = random.usize(..bytes.len());
            match kind {
                0 => bytes[any] ^= 1 << random.u8(..8),
                1 => bytes[one..one + 512].fill(0),
                2 => (0..512).for_each(|at| bytes.swap(one + at, other + at)),
                _ => bytes.copy_within(one..one + 512, other),
            }
        });
        let (numbers, snapshot) = written.start(&disk);
        let missing = written.missing(&numbers, &snapshot);
        worst[kind] = worst[kind].max(missing);
    }
    // A record has 288 bytes or more, so that a sector may hold the ends of three.
    let bounds = [1, 3, 6, 3];
    assert!(worst.iter().zip(bounds).all(|(worst, bound)| *worst <= bound), "{worst:?}");
    assert!(worst.iter().all(|worst| *worst > 0), "{worst:?}");
}

#[test]
fn damaged_cursors_cost_duplicates_and_never_a_line() {
    let written = Written::new(100_000, options());
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..500 {
        let disk = written.disk.copy();
        let slots = ["cursors-0", "cursors-1", "cursors-2", "gaps-0", "gaps-1", "gaps-2"];
        for name in &slots[..if round % 2 == 0 { 6 } else { random.usize(1..6) }] {
            disk.damage(name, |bytes| {
                let place = random.usize(..bytes.len().max(1));
                match bytes.len() {
                    0 => bytes.extend_from_slice(b"something else"),
                    _ if round % 3 == 0 => bytes.truncate(place),
                    _ => bytes[place] ^= 1 << random.u8(..8),
                }
            });
        }
        let (numbers, snapshot) = written.start(&disk);
        assert_eq!(written.missing(&numbers, &snapshot), 0, "round {round}");
    }
}

#[test]
fn a_missing_segment_is_a_counted_gap_and_an_unreadable_file_is_set_aside() {
    let small = DiskOptions { quota: 600_000, ..options() };
    let written = Written::new(250_000, small);
    let segments = written.disk.segments();
    let disk = written.disk.copy();
    disk.delete(&segments[1]);
    let (numbers, snapshot) = written.start(&disk);
    assert!(written.missing(&numbers, &snapshot) > 10);
    assert_eq!(snapshot.disk.expect("a disk").report.missing_segments, 1);

    let disk = written.disk.copy();
    disk.damage(&segments[1], |bytes| bytes.fill(0xff));
    let (numbers, snapshot) = written.start(&disk);
    assert!(written.missing(&numbers, &snapshot) > 10);
    let report = snapshot.disk.expect("a disk").report;
    assert_eq!(
        (report.quarantined, disk.inner().quarantine.clone()),
        (vec![segments[1].clone()], vec![segments[1].clone()])
    );
}

#[test]
fn what_a_newer_version_wrote_is_left_untouched() {
    let written = Written::new(10_000, options());
    let name = written.disk.segments()[0].clone();
    let disk = written.disk.copy();
    disk.damage(&name, |bytes| {
        bytes[8] = 2;
        bytes[20..24].fill(0);
        let crc = crc32c::crc32c(&bytes[..64]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    });
    let before = (disk.segments(), disk.read(&name), disk.inner().operations);
    let error = Journal::open(disk.storage(), &written.options, 1 << 30, &backends(1, 0.5)).expect_err("refused");
    assert!(error.to_string().contains("newer version"), "{error}");
    assert_eq!(before, (disk.segments(), disk.read(&name), disk.inner().operations));
}
