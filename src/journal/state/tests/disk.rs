//! What is written next and which segments are removed, with an index of a disk that does not
//! exist.

use std::io;

use super::*;
use crate::journal::segment::codec::Compression;
use crate::journal::segment::format::SegmentName;
use crate::journal::segment::frame::FRAME_HEADER_BYTES;
use crate::journal::segment::storage::{Identity, StoredFile};
use crate::journal::state::index::Opened;
use crate::journal::state::lane::SavedLane;
use crate::journal::state::options::{DiskOptions, WhenFull};
use crate::journal::state::writing::{Begun, Job};

const HOUR: Duration = Duration::from_secs(3600);
/// The bytes of a segment's header and totals.
const HEADER: u64 = 50;

/// A file to which these tests write nothing.
#[derive(Debug)]
pub(super) struct NoFile;

impl StoredFile for NoFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        Ok(0)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok((0, 0))
    }

    fn reserve(&self, _: u64) {}

    fn truncate(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Memory for a thousand records, and a disk without segments.
pub(super) fn with_disk(full: WhenFull) -> State {
    let options = DiskOptions {
        is_synced: false,
        compression: Compression::None,
        quota: 1 << 30,
        max_age: None,
        min_free: None,
        full,
        sync_interval: HOUR,
        retry_after: LINGER,
        clock: Received::now,
    };
    let opened = Opened {
        segments: VecDeque::new(),
        last: None,
        unsynced: Vec::new(),
        next_sequence: Sequence::new(0),
        abandoned_below: 0,
        report: figures::Report::default(),
        newest: None,
    };
    State { disk: Some(DiskIndex::new(&options, opened)), ..state(1000, 0.5) }
}

pub(super) fn append(state: &mut State, databases: &[&str]) {
    for database in databases {
        state.append(batch(&destination(database), Instant::now()));
    }
}

pub(super) fn begin_segment(state: &mut State) {
    let totals = state.totals().into_iter().map(|(_, total, _)| total).collect();
    let (number, first_sequence, repeats) = state.disk().next_segment();
    let epoch = state.disk().epoch();
    let name = SegmentName { number, salt: 7 };
    let begun = Begun { name, first_sequence, repeats, totals, created: WallTime::at(500 + number), bytes: HEADER };
    state.begin_segment(begun, epoch, Arc::new(NoFile));
}

/// Writes the next records: all there are, or as many as fit these bytes.
pub(super) fn write(state: &mut State, bytes: u64) -> Vec<u64> {
    let epoch = state.disk().epoch();
    let jobs = state.next_to_write(bytes);
    let written = jobs.iter().map(Job::bytes).sum();
    state.note_written(&jobs, written, epoch);
    jobs.iter().map(|job| job.record.sequence.get()).collect()
}

/// Three segments of two records each, of one destination.
fn with_segments(full: WhenFull) -> State {
    let mut state = with_disk(full);
    for _ in 0..3 {
        begin_segment(&mut state);
        append(&mut state, &["db", "db"]);
        write(&mut state, u64::MAX);
    }
    state
}

fn numbers(state: &State) -> Vec<u64> {
    let disk = state.disk.as_ref().expect("a disk");
    disk.segments().iter().map(|segment| segment.name.number).collect()
}

/// Both backends ack what they can lease from memory, up to one lease each time.
fn deliver(state: &mut State, backends: &[BackendId], leases: usize) {
    for backend in backends {
        for _ in 0..leases {
            let limits = Limits { lines: LINES * 2, ..LIMITS };
            let (now, parked) = (Instant::now() + LINGER, HashMap::new());
            let (lease, ..) = leased(state.lease(*backend, &limits, &parked, now, now));
            state.ack(*backend, &lease, &[], now);
        }
    }
}

#[test]
fn what_is_written_next_is_the_oldest_of_all_destinations_and_no_more_than_fits() {
    let mut state = with_disk(WhenFull::DropOldest);
    begin_segment(&mut state);
    append(&mut state, &["x", "other", "x", "x", "other"]);
    assert!(state.has_unwritten());
    let jobs = state.next_to_write(u64::MAX);
    let positions: Vec<_> = jobs.iter().map(|job| (job.record.sequence.get(), job.log.index(), job.at.lines)).collect();
    assert_eq!(positions, [(0, 0, 0), (1, 1, 0), (2, 0, 10), (3, 0, 20), (4, 1, 10)]);
    assert_eq!(state.disk().being_written(), Sequence::new(0)..Sequence::new(5));
    state.end_writing();
    assert!(state.disk().being_written().is_empty());
    // Three records fit, and then this many more.
    let bytes = |database: &str| FRAME_HEADER_BYTES as u64 + database.len() as u64 + BYTES;
    assert_eq!(jobs[1].bytes(), bytes("other"));
    let of_policy = Destination::new("x", "week", Precision::Nanoseconds);
    let (batch, memory) = (batch(&Arc::new(of_policy), Instant::now()), Arc::default());
    let job = Job {
        log: LogId::new(0),
        record: Record::new(Sequence::new(0), batch, None, &memory),
        at: Position::default(),
    };
    assert_eq!(job.bytes(), bytes("x") + 4);
    assert_eq!(write(&mut state, bytes("x") * 2 + bytes("other")), [0, 1, 2]);
    assert_eq!(write(&mut state, 1), [3], "one at least");
    assert!(state.has_unwritten() && state.has_work());
    assert_eq!(write(&mut state, bytes("other")), [4]);
    assert!(!state.has_unwritten());
    let written: Vec<_> = state.logs.iter().map(|log| (log.written.lines, log.written.bytes)).collect();
    assert_eq!(written, [(3 * LINES, 3 * BYTES), (2 * LINES, 2 * BYTES)]);
    let segment = state.disk().segments()[0].clone();
    assert_eq!((segment.first_sequence.get(), segment.end_sequence.get(), segment.has_gaps), (0, 5, false));
    assert_eq!(segment.bytes, HEADER + bytes("x") * 3 + bytes("other") * 2);
    assert_eq!(state.disk().bytes, segment.bytes);
    assert_eq!(write(&mut state, u64::MAX), [0; 0]);
    // Only the cursors are left to write.
    assert!(state.has_work() && state.disk().take_cursors_change() && !state.has_work());
    // However many there are, the writer takes some at a time.
    append(&mut state, &["x"; 300]);
    assert_eq!(write(&mut state, u64::MAX).len(), 256);
}

#[test]
fn a_disk_that_fails_or_is_full_has_no_work_until_it_is_tried_again() {
    let mut state = with_segments(WhenFull::DropOldest);
    state.disk().take_cursors_change();
    assert!(!state.has_work());
    append(&mut state, &["db"]);
    assert!(state.has_work());
    state.disk().note_full("no room");
    assert!(!state.has_work());
    assert_eq!(write(&mut state, u64::MAX), [6]);
    assert!(state.has_work(), "it works again, and the cursors are to be saved");
    state.disk().note_save_error(&io::Error::other("x"));
    assert!(!state.has_work());
    state.disk().note_saved(Sequence::new(0));
    assert!(state.has_work());
    assert_eq!(state.retry_after(), LINGER);
}

#[test]
fn what_could_not_be_synced_is_written_again_to_a_segment_that_repeats() {
    let mut state = with_segments(WhenFull::DropOldest);
    assert!(!state.disk().is_roll_requested());
    let files = state.take_unsynced();
    assert_eq!(files.iter().map(|(_, below)| below.get()).collect::<Vec<_>>(), [2, 4, 6]);
    assert!(state.take_unsynced().is_empty());
    let epoch = state.disk().epoch();
    state.note_synced(Sequence::new(4), Duration::from_millis(5), epoch);
    let epoch = state.disk().epoch();
    state.note_synced(Sequence::new(2), Duration::from_millis(5), epoch);
    assert_eq!((state.disk().synced.get(), state.disk().syncs, state.disk().sync_latency.len()), (4, 2, 2));

    // A choice made before a failed sync is void after it.
    append(&mut state, &["db"]);
    let (epoch, jobs) = (state.disk().epoch(), state.next_to_write(u64::MAX));
    state.note_sync_failure("x".to_owned());
    state.note_written(&jobs, 1, epoch);
    assert!(state.disk().is_roll_requested() && state.disk().sync_fails);
    assert_eq!((state.disk().sync_errors, state.disk().abandoned_below, state.disk().next_write.get()), (1, 3, 4));
    assert_eq!(state.disk().next_segment(), (3, Sequence::new(4), true));
    begin_segment(&mut state);
    assert!(!state.disk().is_roll_requested());
    assert_eq!(write(&mut state, u64::MAX), [4, 5, 6]);
    let segment = state.disk().segments()[3].clone();
    assert_eq!(
        (segment.first_sequence.get(), segment.end_sequence.get(), segment.repeats, segment.has_gaps),
        (4, 7, true, false)
    );
    // Positions are unchanged.
    assert_eq!(state.logs[0].written.lines, 7 * LINES);
    assert_eq!(segment.totals, [Position { lines: 4 * LINES, bytes: 4 * BYTES }]);
    // A successful sync ends the failure; later records repeat nothing.
    let epoch = state.disk().epoch();
    state.note_synced(Sequence::new(7), Duration::ZERO, epoch);
    assert!(!state.disk().sync_fails);
    begin_segment(&mut state);
    assert!(!state.disk().segments()[4].repeats);
    append(&mut state, &["db"]);
    assert_eq!(write(&mut state, u64::MAX), [7]);
    assert!(!state.disk().segments()[4].has_gaps);
}

#[test]
fn a_segment_that_repeats_says_where_it_lacks_what_has_left_the_memory() {
    for (gone, has_gaps) in [(0, false), (1, true), (2, true)] {
        let mut state = with_disk(WhenFull::DropOldest);
        begin_segment(&mut state);
        append(&mut state, &["db", "db", "db", "db"]);
        write(&mut state, u64::MAX);
        state.note_sync_failure("x".to_owned());
        // Records in memory are written again, and the segment begins with the first of them.
        state.forget(LogId::new(0), gone);
        state.next_to_write(u64::MAX);
        begin_segment(&mut state);
        write(&mut state, u64::MAX);
        let segment = &state.disk().segments()[1];
        assert_eq!((segment.repeats, segment.has_gaps), (true, has_gaps), "{gone}");
    }
}

#[test]
fn a_sync_is_due_an_interval_after_there_was_something_or_at_once() {
    let mut state = with_segments(WhenFull::DropOldest);
    let since = state.disk().unsynced_since.expect("something is to be synced");
    assert_eq!(state.sync_due(), Some(since + HOUR));
    assert!(state.take_sync_change() && !state.take_sync_change(), "the same is reported once");
    state.disk().options.is_synced = true;
    assert_eq!(state.sync_due(), Some(since));
    assert!(state.take_sync_change());
    state.take_unsynced();
    assert_eq!((state.sync_due(), state.take_sync_change()), (None, false));
    // A loss must be saved, too.
    state.evict(DropReason::Age);
    let changed = state.gaps.changed().expect("a gap");
    assert_eq!(state.sync_due(), Some(changed + HOUR), "nothing is written that is to be synced at once");
}

#[test]
fn the_oldest_segment_gives_way_and_what_of_it_is_needed_is_counted() {
    for (full, gives_way) in [(WhenFull::DropOldest, true), (WhenFull::DropNewest, false)] {
        // Backends that lag read it from disk; nobody needs it in memory.
        let mut state = with_segments(full);
        deliver(&mut state, &[A], 1);
        state.forget_below(Sequence::new(4));
        let evicted = state.evict(DropReason::Quota);
        assert_eq!(evicted.map(|name| name.number), gives_way.then_some(0), "{full:?}");
        let lost = if gives_way { 2 * LINES } else { 0 };
        assert_eq!(state.dropped_lines(), [0, lost]);
        assert_eq!(state.disk().has_evicted, gives_way);
        // Lines that are too old go in any case.
        let next = u64::from(gives_way);
        assert_eq!(state.evict(DropReason::Age).map(|name| name.number), Some(next));
        assert_eq!(state.dropped_lines(), [lost, lost + 2 * LINES]);
        let gaps: Vec<_> = state.gaps.iter().map(|gap| (gap.backend.as_str(), gap.lines, gap.from)).collect();
        assert!(gaps.iter().all(|(_, lines, from)| *lines == 2 * LINES && *from == WallTime::new(1000)), "{gaps:?}");
    }
    // Records that nobody needs cost nothing, under any policy.
    let mut state = with_segments(WhenFull::DropNewest);
    deliver(&mut state, &[A, B], 2);
    let bytes = state.disk().bytes;
    state.disk().take_cursors_change();
    state.disk().take_folder_change();
    let freed = state.disk().segments()[0].bytes;
    assert_eq!(state.evict(DropReason::Quota).map(|name| name.number), Some(0));
    assert_eq!((state.dropped_lines(), state.disk().has_evicted), (vec![0, 0], false));
    assert_eq!(state.disk().bytes, bytes - freed);
    assert!(state.disk().take_cursors_change() && state.disk().take_folder_change());
    // One segment always remains.
    assert!(state.evict(DropReason::Quota).is_some() && state.evict(DropReason::Age).is_none());
    assert_eq!(numbers(&state), [2]);
}

#[test]
fn a_segment_is_too_old_once_its_last_line_is() {
    let mut state = with_segments(WhenFull::DropNewest);
    assert!(state.evict_aged(Instant::now()).is_none(), "without an age nothing is");
    state.disk().options.max_age = Some(HOUR);
    assert!(state.evict_aged(Instant::now()).is_none());
    state.disk().options.max_age = Some(Duration::ZERO);
    assert_eq!(state.evict_aged(Instant::now()).map(|name| name.number), Some(0));
    // A segment waiting to be ended counts as older than zero, if it is needed.
    assert!(state.is_segment_older(Duration::ZERO, Instant::now()) && !state.is_segment_older(HOUR, Instant::now()));
    deliver(&mut state, &[A, B], 2);
    assert!(!state.is_segment_older(Duration::ZERO, Instant::now()), "nobody needs it");
}

#[test]
fn segments_that_no_saved_cursor_needs_are_taken_out() {
    for (need, left) in [(0, vec![0, 1, 2]), (1, vec![0, 1, 2]), (2, vec![1, 2]), (4, vec![2]), (99, vec![2])] {
        let mut state = with_segments(WhenFull::DropOldest);
        state.disk().take_folder_change();
        let bytes: u64 = state.disk().segments().iter().map(|segment| segment.bytes).sum();
        let passed = state.take_passed(Sequence::new(need));
        assert_eq!((passed.len(), numbers(&state)), (3 - left.len(), left), "{need}");
        let rest: u64 = state.disk().segments().iter().map(|segment| segment.bytes).sum();
        assert_eq!(state.disk().bytes, rest);
        assert_eq!((state.disk().take_folder_change(), rest < bytes), (!passed.is_empty(), !passed.is_empty()));
    }
}

#[test]
fn a_segment_goes_once_the_last_one_repeats_all_of_it() {
    // A sync fails, and unsynced records are written again.
    let repeated = |gone: usize| {
        let mut state = with_segments(WhenFull::DropOldest);
        let epoch = state.disk().epoch();
        state.note_synced(Sequence::new(2), Duration::ZERO, epoch);
        state.note_sync_failure("x".to_owned());
        state.forget_below(Sequence::new(gone as u64));
        begin_segment(&mut state);
        write(&mut state, u64::MAX);
        state
    };
    let mut state = repeated(0);
    let (bytes, freed) = (state.disk().bytes, state.disk().segments()[2].bytes);
    state.disk().take_folder_change();
    assert_eq!(state.take_superseded().map(|name| name.number), Some(2));
    assert_eq!((state.disk().bytes, state.disk().take_folder_change()), (bytes - freed, true));
    assert_eq!(state.take_superseded().map(|name| name.number), Some(1));
    assert!(state.take_superseded().is_none(), "the one before is not repeated");
    assert_eq!(numbers(&state), [0, 3]);
    // Records that have left the memory are read from their old segment.
    let mut state = repeated(5);
    assert!(state.take_superseded().is_none());
    // A segment that repeats nothing supersedes no other.
    let mut state = with_segments(WhenFull::DropOldest);
    assert!(state.take_superseded().is_none());
    state.disk().segments.drain(..2);
    assert!(state.take_superseded().is_none());
}

#[test]
fn a_backend_that_is_no_longer_configured_keeps_its_lines_as_long_as_there_is_room() {
    let mut state = with_segments(WhenFull::DropOldest);
    deliver(&mut state, &[A, B], 3);
    assert_eq!((state.needed_from(false).get(), state.needed_from(true).get()), (6, 6));
    let lanes =
        vec![SavedLane { from: Sequence::new(1), at: Position { lines: LINES, bytes: BYTES }, since: None, end: None }];
    let of_log = (*state.logs[0].destination).clone();
    let destinations = vec![(of_log, lanes)];
    state.orphans.push(SavedBackend { name: "gone".to_owned(), destinations, ..SavedBackend::default() });
    assert_eq!((state.needed_from(false).get(), state.needed_from(true).get()), (6, 1));
    assert!(state.is_segment_older(Duration::ZERO, Instant::now()));
    for lost in [LINES, 2 * LINES] {
        state.evict(DropReason::Quota);
        let gap = state.gaps.iter().last().expect("a gap").clone();
        assert_eq!((gap.backend.as_str(), gap.reason.name()), ("gone", "quota"));
        assert!(gap.lines >= lost, "{gap:?}");
    }
    assert_eq!((state.needed_from(true).get(), state.gaps.iter().map(|gap| gap.lines).sum::<u64>()), (4, 3 * LINES));
}

#[test]
fn a_backend_that_is_no_longer_configured_and_has_everything_keeps_nothing() {
    let mut state = with_segments(WhenFull::DropOldest);
    deliver(&mut state, &[A, B], 3);
    let lanes = vec![SavedLane { from: Sequence::new(5), at: state.logs[0].written, since: None, end: None }];
    let destinations = vec![((*state.logs[0].destination).clone(), lanes)];
    state.orphans.push(SavedBackend { name: "gone".to_owned(), destinations, ..SavedBackend::default() });
    assert_eq!(state.needed_from(true), Sequence::new(6));
    state.evict(DropReason::Quota);
    assert_eq!(state.gaps.iter().len(), 0, "it lost nothing");
}
