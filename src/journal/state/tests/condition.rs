//! What the disk index reports: its condition, the age of what it holds, and what is due next.

use std::io;
use std::sync::atomic::Ordering;

use super::disk::NoFile;
use super::*;
use crate::journal::segment::codec::Compression;
use crate::journal::segment::format::SegmentName;
use crate::journal::state::figures::{Condition, Report};
use crate::journal::state::index::{Opened, Segment, When};
use crate::journal::state::options::{DiskOptions, WhenFull};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// Nanoseconds in a second.
const NANOSECONDS: u64 = 1_000_000_000;
const QUOTA: u64 = 10_000;

/// A segment of this number with 1,000 bytes and ten records; its newest line is from this second
/// of the wall clock.
fn segment(number: u64, newest: u64) -> Segment {
    Segment {
        name: SegmentName { number, salt: 7 },
        first_sequence: Sequence::new(number * 10),
        end_sequence: Sequence::new(number * 10 + 10),
        repeats: false,
        has_gaps: false,
        points: Vec::new(),
        totals: Vec::new(),
        bytes: 1000,
        created: None,
        begun: When::Told(WallTime::MIN),
        newest: When::Told(WallTime::at(newest * NANOSECONDS)),
    }
}

/// The index of a log found with these segments, the last of which is open for writing. The newest
/// line is from second 10,000 of the wall clock.
fn index_of(segments: impl IntoIterator<Item = Segment>, max_age: Option<Duration>) -> DiskIndex {
    let options = DiskOptions {
        is_synced: false,
        compression: Compression::None,
        quota: QUOTA,
        max_age,
        min_free: None,
        full: WhenFull::DropOldest,
        sync_interval: SECOND,
        retry_after: SECOND,
        clock: Received::now,
    };
    let segments: VecDeque<Segment> = segments.into_iter().collect();
    let last = segments.back().map(|last| last.name);
    let opened = Opened {
        next_sequence: segments.back().map_or(Sequence::new(0), |last| last.end_sequence),
        unsynced: last.into_iter().map(|name| (name, Arc::new(NoFile) as _)).collect(),
        last,
        segments,
        abandoned_below: 0,
        report: Report::default(),
        newest: WallTime::new(10_000 * NANOSECONDS),
    };
    DiskIndex::new(&options, opened)
}

fn index() -> DiskIndex {
    index_of([segment(3, 9_000), segment(4, 10_000)], None)
}

fn error(text: &str) -> io::Error {
    io::Error::other(text.to_owned())
}

#[test]
fn what_cannot_be_said_of_ages_is_said_in_words() {
    let start = Instant::now();
    let at = |wall: u64| Received { monotonic: start, wall: WallTime::at(wall * NANOSECONDS) };
    let mut aged = index_of([segment(3, 9_000), segment(4, 10_000)], Some(HOUR));
    for (wall, expected) in [
        (9_000, Some("the clock is 16m 40s behind the newest line in the journal")),
        (9_998, Some("the clock is 2s behind the newest line in the journal")),
        // One second is tolerated.
        (9_999, None),
        (10_000, None),
        // The age is that of the oldest segment.
        (12_600, None),
        (12_601, Some("by the clock, lines in the journal are 1h 1s old")),
        (19_000, Some("by the clock, lines in the journal are 2h 46m 40s old")),
    ] {
        assert_eq!(aged.doubt(at(wall)).as_deref(), expected, "{wall}");
        assert_eq!(index().doubt(at(wall)), None, "nobody asks for ages");
        assert_eq!(index_of([], Some(HOUR)).doubt(at(wall)), None, "there is nothing");
    }
    // Once the clock is trusted there is no doubt.
    for seconds in [0, 1000] {
        let monotonic = start + SECOND * seconds;
        let wall = WallTime::at((19_000 + u64::from(seconds)) * NANOSECONDS);
        assert_eq!(aged.check_clock(Received { monotonic, wall }), None);
    }
    assert_eq!(aged.doubt(at(19_000)), None);
    let back = Received { monotonic: start + SECOND * 1000, wall: WallTime::at(19_000 * NANOSECONDS) };
    assert_eq!(aged.check_clock(back), Some(crate::sys::clock::Step::Back(SECOND * 1000)));
}

#[test]
fn what_was_open_is_written_on_where_it_ends() {
    let (mut index, last) = (index(), SegmentName { number: 4, salt: 7 });
    let (_, name, offset) = index.active().expect("a file");
    assert_eq!((name, offset, index.is_roll_requested()), (last, 1000, false));
    assert_eq!((index.first_sequence().get(), index.next_segment()), (30, (5, Sequence::new(50), false)));
    index.request_roll();
    assert!(index.is_roll_requested());
    let empty = index_of([], None);
    assert!(empty.active().is_none() && empty.is_roll_requested());
    assert_eq!((empty.first_sequence().get(), empty.next_segment()), (0, (0, Sequence::new(0), false)));
}

#[test]
fn the_quota_is_what_may_be_used_and_no_byte_more() {
    let mut index = index();
    for (bytes, exceeds) in [(QUOTA - 2000, false), (QUOTA - 1999, true), (0, false)] {
        assert_eq!(index.exceeds_quota(bytes), exceeds, "{bytes}");
        let reason = if exceeds { DropReason::Quota } else { DropReason::MemoryFull };
        assert_eq!(index.reason(), reason, "{bytes}");
    }
}

#[test]
fn what_changed_is_saved_once() {
    let mut index = index();
    assert!(index.take_folder_change() && index.take_cursors_change(), "a start may have changed them");
    assert!(!index.take_folder_change() && !index.take_cursors_change());
    index.note_folder_change();
    assert!(index.take_folder_change() && !index.take_folder_change());
    index.slot_sync_failed();
    assert!(index.take_cursors_change() && !index.take_cursors_change());
    index.note_saved(Sequence::new(7));
    assert_eq!(index.saved_need(), Sequence::new(7));
}

#[test]
fn the_disk_is_as_it_was_when_it_was_last_used_and_lines_that_wait_for_it_count_as_well() {
    let condition = |index: &DiskIndex, unkept| {
        let (condition, error) = index.condition(unkept);
        (condition, error.unwrap_or_default())
    };
    let mut index = index();
    assert_eq!(condition(&index, SECOND), (Condition::Ok, String::new()), "that long a line may wait");
    let (slow, what) = condition(&index, SECOND * 2);
    assert!(slow == Condition::Failing && what.contains("does not keep up") && what.contains("2.0 s"), "{what}");
    index.has_evicted = true;
    let (full, what) = condition(&index, SECOND * 2);
    assert!(full == Condition::Full && what.contains("had no room"), "{what}");
    // The disk's own errors come first.
    for unkept in [Duration::ZERO, SECOND * 2] {
        let mut index = self::index();
        index.note_full("no room");
        assert_eq!(condition(&index, unkept), (Condition::Full, "no room".to_owned()));
        assert!(index.is_full());
        index.note_misplaced("gone".to_owned());
        assert_eq!(condition(&index, unkept), (Condition::Failing, "gone".to_owned()));
        index.note_in_place();
        assert_eq!((index.condition(Duration::ZERO).0, index.is_full()), (Condition::Ok, false));
        index.note_write_error(&error("broken"));
        assert_eq!(condition(&index, unkept), (Condition::Failing, "broken".to_owned()));
        let mut index = self::index();
        index.note_save_error(&error("no slot"));
        assert_eq!(condition(&index, unkept), (Condition::Failing, "no slot".to_owned()));
        assert!(!index.is_full());
        index.note_saved(Sequence::new(0));
        assert_eq!(condition(&index, Duration::ZERO).0, Condition::Ok);
        (index.sync_fails, index.error) = (true, Some("no sync".to_owned()));
        assert_eq!(condition(&index, unkept), (Condition::Failing, "no sync".to_owned()));
    }
}

#[test]
fn errors_are_counted_each_for_itself() {
    let mut index = index();
    for _ in 0..2 {
        index.note_read_error(&error("a"));
        index.slot_sync_failed();
    }
    for _ in 0..2 {
        index.note_write_error(&error("b"));
        index.note_save_error(&error("c"));
    }
    assert_eq!((index.read_errors, index.sync_errors, index.write_errors), (2, 2, 4));
}

/// Counts log events.
#[derive(Default)]
struct Counter(Arc<AtomicU64>);

impl tracing::Subscriber for Counter {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// The disk is retried each second.
#[test]
fn what_goes_on_failing_is_logged_once() {
    let count = Arc::default();
    tracing::subscriber::with_default(Counter(Arc::clone(&count)), || {
        let mut index = index();
        let mut logged = |times: u64, note: &dyn Fn(&mut DiskIndex), about: &str| {
            let before = count.load(Ordering::Relaxed);
            (0..3).for_each(|_| note(&mut index));
            assert_eq!(count.load(Ordering::Relaxed) - before, times, "{about}");
        };
        logged(1, &|index| index.note_full("no room"), "full");
        logged(1, &|index| index.note_write_error(&error("broken")), "broken");
        logged(1, &|index| index.note_full("no room"), "full again");
        logged(1, &|index| index.note_save_error(&error("no slot")), "not saved");
        logged(0, &|index| index.note_saved(Sequence::new(0)), "saved");
        logged(1, &|index| index.note_save_error(&error("no slot")), "not saved again");
    });
}

#[test]
fn a_sync_is_due_at_once_where_it_is_asked_for_or_much_waits() {
    let mut index = index();
    for (bytes, at_once) in [(0, false), (1000, false), (1 << 30, true)] {
        index.unsynced_bytes = bytes;
        assert_eq!(index.syncs_at_once(), at_once, "{bytes}");
    }
    index.options.is_synced = true;
    for (bytes, at_once) in [(0, false), (1, true)] {
        index.unsynced_bytes = bytes;
        assert_eq!(index.syncs_at_once(), at_once, "{bytes}");
    }
}

#[test]
fn what_was_lost_is_forgotten_and_its_numbers_are_not_used_again() {
    let mut index = index();
    let epoch = index.epoch();
    index.to_sync.push((Arc::new(NoFile), Sequence::new(40)));
    assert_eq!(index.unsynced_files(), 1);
    index.lose(Sequence::new(33));
    assert!(index.active().is_none() && index.segments().is_empty() && index.is_roll_requested());
    assert_eq!((index.bytes, index.unsynced_files(), index.unsynced_bytes), (0, 0, 0));
    assert_eq!(index.next_segment(), (5, Sequence::new(33), false));
    assert_ne!(index.epoch(), epoch, "what was chosen before is not written");

    let mut index = self::index();
    let epoch = index.epoch();
    index.lose_last_segment();
    assert!(index.active().is_none() && index.is_roll_requested());
    assert_eq!((index.bytes, index.segments().len(), index.synced.get()), (1000, 1, 40));
    assert_eq!(index.next_segment(), (5, Sequence::new(40), false));
    assert_ne!(index.epoch(), epoch);
}

#[test]
fn a_new_folder_begins_without_the_old_ones_troubles() {
    let mut index = index();
    index.note_save_error(&error("x"));
    index.note_misplaced("y".to_owned());
    (index.sync_fails, index.has_evicted, index.quota_reached, index.unsynced_since) = (true, true, true, None);
    index.take_folder_change();
    index.begin_anew();
    assert_eq!(index.condition(Duration::ZERO).0, Condition::Ok);
    assert_eq!(index.condition(HOUR).0, Condition::Failing, "and not full");
    assert_eq!(index.reason(), DropReason::MemoryFull);
    assert!(index.take_folder_change() && index.unsynced_since.is_some());
}
