//! What gives way when the memory is full, without a disk and with one.

use std::sync::atomic::Ordering;

use super::disk::{append, begin_segment, with_disk, write};
use super::*;
use crate::journal::state::options::WhenFull;

fn sequences(state: &State) -> Vec<u64> {
    state.logs.iter().flat_map(|log| &log.records).map(|record| record.sequence.get()).collect()
}

#[test]
fn where_the_memory_is_full_the_oldest_goes_and_is_counted_for_who_has_not_had_it() {
    let (mut state, start) = (state(4, 0.5), Instant::now());
    let names = ["x", "y", "x", "y"];
    for database in names {
        state.append(batch(&destination(database), start));
    }
    assert_eq!((sequences(&state).len(), state.dropped_lines()), (4, vec![0, 0]));
    // One of them has had the first ones.
    let (lease, _, taken) = leased(lease_at(&mut state, A, start + LINGER));
    assert_eq!(taken, [0, 2]);
    state.ack(A, &lease, &[], start);
    drop(lease);
    for turn in 1..=3 {
        state.append(batch(&destination("x"), start));
        assert_eq!(sequences(&state).len(), 4, "there is room for no more");
        let lost = [0, 1, 1][turn - 1];
        assert_eq!(state.dropped_lines(), [lost * LINES, LINES * u64::try_from(turn).expect("few")], "{turn}");
    }
    let gaps: Vec<_> = state.gaps.iter().map(|gap| (gap.backend.as_str(), gap.lines, gap.reason.name())).collect();
    let full = "memory_full";
    assert_eq!(gaps, [("b", 2 * LINES, full), ("a", LINES, full), ("b", LINES, full)]);
}

#[test]
fn what_is_on_its_way_stays_and_where_all_of_it_is_the_newest_gives_way() {
    let (mut state, db, start) = (state(3, 0.5), destination("db"), Instant::now());
    for _ in 0..3 {
        state.append(batch(&db, start));
    }
    let (lease, ..) = leased(lease_at(&mut state, A, start + LINGER));
    assert!(state.append(batch(&db, start)).is_empty());
    assert_eq!((sequences(&state), state.dropped_lines()), (vec![0, 1, 2], vec![LINES, LINES]));
    // Once requeued it may go, like any other.
    state.requeue(A, &lease);
    drop(lease);
    state.append(batch(&db, start));
    assert_eq!((sequences(&state), state.dropped_lines()), (vec![1, 2, 3], vec![2 * LINES, 2 * LINES]));
    // Records leased by a holder that is gone may go, too.
    for _ in 0..2 {
        assert_eq!(leased(lease_at(&mut state, A, start + LINGER)).2, [1, 2, 3]);
        state.requeue_leases();
    }
}

#[test]
fn what_all_have_settled_leaves_the_memory_at_once() {
    let (mut state, db, start) = (state(100, 0.5), destination("db"), Instant::now());
    for _ in 0..4 {
        state.append(batch(&db, start));
    }
    for (backend, left) in [(0, vec![0, 1, 2, 3]), (1, vec![3])] {
        let (lease, ..) = leased(lease_at(&mut state, BackendId::new(backend), start));
        state.ack(BackendId::new(backend), &lease, &[], start);
        assert_eq!(sequences(&state), left);
    }
}

#[test]
fn at_the_end_what_is_only_in_memory_is_lost_with_its_reason() {
    let (mut state, start) = (state(100, 0.5), Instant::now());
    for database in ["x", "y", "x"] {
        state.append(batch(&destination(database), start));
    }
    let (lease, ..) = leased(lease_at(&mut state, A, start + LINGER));
    state.ack(A, &lease, &[], start);
    drop(lease);
    let (lease, ..) = leased(lease_at(&mut state, B, start + LINGER));
    state.requeue(B, &lease);
    drop(lease);
    assert_eq!(state.give_up_memory_only(DropReason::Corrupt), [LINES, 3 * LINES]);
    assert_eq!(state.backends[1].ledger.dropped[DropReason::Corrupt as usize], 3 * LINES);
    assert_eq!(state.give_up_memory_only(DropReason::Corrupt), [0, 0]);
    assert!(sequences(&state).is_empty());
}

#[test]
fn senders_wait_while_memory_is_scarce_and_for_a_while_only() {
    let (mut state, db, start) = (state(100, 0.5), destination("db"), Instant::now());
    let mut scarce = Vec::new();
    for records in 1..=100 {
        state.append(batch(&db, start));
        scarce.push(state.is_memory_scarce());
        assert_eq!(state.is_pressed(start), state.is_memory_scarce(), "{records}");
    }
    // From three quarters on.
    assert_eq!(scarce.iter().filter(|is_scarce| !**is_scarce).count(), 75);
    assert!(scarce.is_sorted());
    let longest = Duration::from_secs(5);
    assert!(state.is_pressed(start + longest - Duration::from_millis(1)));
    assert!(!state.is_pressed(start + longest));
    // Once there was room, they wait anew.
    let (lease, ..) = leased(state.lease(A, &Limits { lines: 400, ..LIMITS }, &HashMap::new(), start, start));
    state.ack(A, &lease, &[], start);
    drop(lease);
    let (lease, ..) = leased(state.lease(B, &Limits { lines: 400, ..LIMITS }, &HashMap::new(), start, start));
    state.ack(B, &lease, &[], start);
    drop(lease);
    assert!(!state.is_pressed(start + longest));
    for _ in 0..40 {
        state.append(batch(&db, start));
    }
    assert!(state.is_pressed(start + longest) && state.is_pressed(start + longest * 2 - Duration::from_millis(1)));
}

/// With memory for this many appended records, and for a fifteenth of that to be read.
fn with_memory(records: u64, full: WhenFull) -> State {
    let records = records * cost(&batch(&destination(""), Instant::now()));
    State { memory_bound: (records * 16).div_ceil(15), ..with_disk(full) }
}

fn in_memory(state: &State) -> Vec<u64> {
    state.logs.iter().flat_map(|log| &log.records).map(|record| record.sequence.get()).collect()
}

#[test]
fn half_of_the_memory_is_for_what_is_on_the_disk_as_well() {
    for written in 0..16_u64 {
        let mut state = with_memory(16, WhenFull::DropOldest);
        begin_segment(&mut state);
        append(&mut state, &["db"; 16][..usize::try_from(written).expect("few")]);
        // One by one: records being written stay in memory, too.
        while !write(&mut state, 1).is_empty() {}
        let kept = written.min(8);
        assert_eq!(in_memory(&state), (written - kept..written).collect::<Vec<_>>(), "{written}");
        assert_eq!(state.dropped_lines(), [0, 0]);
    }
}

/// Regression: with a full disk, a backlog's reads got all the memory they asked for although it
/// was full.
#[test]
fn a_reading_has_its_memory_set_aside_and_no_more_than_is_free() {
    let mut state = with_memory(32, WhenFull::DropNewest);
    begin_segment(&mut state);
    append(&mut state, &["db"; 4]);
    write(&mut state, u64::MAX);
    (0..4).for_each(|_| state.forget(LogId::new(0), 0));
    state.disk().note_full("no room");
    let used = |state: &State| state.memory.load(Ordering::Relaxed);
    let limits = Limits { bytes: 100, ..LIMITS };
    let request = state.request(A, LogId::new(0), &limits).expect("a backlog");
    assert_eq!((request.reserve.bytes(), used(&state)), (100, 100), "there is room for what a lease may hold");
    drop(request);
    assert_eq!(used(&state), 0);
    append(&mut state, &["db"; 40]);
    let (full, limits) = (used(&state), Limits { bytes: u64::MAX, ..LIMITS });
    assert!(full < state.memory_bound && state.dropped_lines()[0] > 0);
    let requests = [(); 2].map(|()| state.request(A, LogId::new(0), &limits).expect("a backlog"));
    assert_eq!(requests.each_ref().map(|request| request.reserve.bytes()), [state.memory_bound - full, 0]);
    assert_eq!(used(&state), state.memory_bound);
    // Read records replace the reserve made for them.
    let [mut request, _] = requests;
    let record =
        request.reserve.spend(Sequence::new(0), batch(&request.destination, Instant::now()), Position::default());
    assert_eq!(used(&state), state.memory_bound);
    drop((request, record));
    assert_eq!(used(&state), full);
}

#[test]
fn what_has_left_the_disk_may_have_an_eighth_of_the_memory_more() {
    for more in 0..7 {
        let mut state = with_memory(16, WhenFull::DropOldest);
        // Eight records, whose segment is evicted while they are in memory.
        begin_segment(&mut state);
        append(&mut state, &["db"; 8]);
        write(&mut state, u64::MAX);
        begin_segment(&mut state);
        assert!(state.evict(DropReason::Quota).is_some());
        assert_eq!(state.dropped_lines(), [0, 0], "memory has them");
        // Records on disk leave first, then as many of these as exceed ten.
        append(&mut state, &["db"; 8][..more]);
        state.disk().note_full("no room");
        state.trim();
        let left = 8 + more - (8 + more).saturating_sub(10);
        assert_eq!(in_memory(&state).len(), left, "{more}");
        let lost = LINES * u64::try_from(8 + more - left).expect("few");
        assert_eq!(state.dropped_lines(), [lost, lost]);
    }
}

#[test]
fn for_room_what_can_be_read_again_goes_before_what_would_be_lost() {
    let mut state = with_memory(6, WhenFull::DropOldest);
    begin_segment(&mut state);
    append(&mut state, &["db"; 3]);
    write(&mut state, u64::MAX);
    append(&mut state, &["db"; 3]);
    // One backend requeues those on disk; nobody has the others yet.
    let limits = Limits { lines: LINES * 3, ..LIMITS };
    let (lease, _, sequences) = leased(state.lease(A, &limits, &HashMap::new(), Instant::now(), Instant::now()));
    assert_eq!(sequences, [0, 1, 2]);
    state.requeue(A, &lease);
    drop(lease);
    append(&mut state, &["db"; 3]);
    assert_eq!((in_memory(&state), state.dropped_lines()), (vec![3, 4, 5, 6, 7, 8], vec![0, 0]));
    // Now there is nothing else to give up.
    append(&mut state, &["db"]);
    assert_eq!((in_memory(&state), state.dropped_lines()), (vec![4, 5, 6, 7, 8, 9], vec![LINES, LINES]));
}

#[test]
fn senders_wait_only_for_a_disk_that_works() {
    let mut state = with_memory(10, WhenFull::DropOldest);
    append(&mut state, &["db"; 10]);
    let now = Instant::now();
    assert!(state.is_memory_scarce() && state.is_pressed(now));
    state.disk().note_full("no room");
    assert!(!state.is_pressed(now));
    state.disk().write_condition = figures::Condition::Ok;
    assert!(state.is_pressed(now));
}

#[test]
fn what_was_given_back_and_is_in_no_log_any_more_makes_room_before_anything_is_lost() {
    let mut state = with_memory(6, WhenFull::DropOldest);
    begin_segment(&mut state);
    append(&mut state, &["db"; 3]);
    write(&mut state, u64::MAX);
    let limits = Limits { lines: LINES * 3, ..LIMITS };
    let (lease, ..) = leased(state.lease(A, &limits, &HashMap::new(), Instant::now(), Instant::now()));
    for _ in 0..3 {
        state.forget(LogId::new(0), 0);
    }
    state.requeue(A, &lease);
    drop(lease);
    append(&mut state, &["db"; 6]);
    assert_eq!((in_memory(&state), state.dropped_lines()), (vec![3, 4, 5, 6, 7, 8], vec![0, 0]));
}

#[test]
fn of_what_has_left_the_disk_nothing_goes_before_what_is_on_its_way() {
    let mut state = with_disk(WhenFull::DropOldest);
    for _ in 0..2 {
        begin_segment(&mut state);
        append(&mut state, &["db"; 2]);
        write(&mut state, u64::MAX);
    }
    state.evict(DropReason::Quota);
    let next =
        |state: &State| state.first_to_forget(LogId::new(0), &(Sequence::new(0)..Sequence::new(0)), state.kept_from());
    assert_eq!(next(&state), Some(0));
    let limits = Limits { lines: 1, ..LIMITS };
    let now = Instant::now();
    let (lease, _, sequences) = leased(state.lease(A, &limits, &HashMap::new(), now, now));
    assert_eq!((sequences, next(&state)), (vec![0], Some(2)), "cursors pass them in order");
    state.requeue(A, &lease);
    assert_eq!(next(&state), Some(0));
}
