//! What follows when the disk has lost everything: what was only there is given up once, and the
//! rest is written again.

use super::disk::{append, begin_segment, with_disk, write};
use super::*;
use crate::journal::state::lane::SavedLane;
use crate::journal::state::options::WhenFull;

/// Three segments of two records each, the first four of which have left the memory.
fn with_segments() -> State {
    let mut state = with_disk(WhenFull::DropOldest);
    for _ in 0..3 {
        begin_segment(&mut state);
        append(&mut state, &["db", "db"]);
        write(&mut state, u64::MAX);
    }
    (0..4).for_each(|_| state.forget(LogId::new(0), 0));
    state
}

#[test]
fn what_was_only_on_the_disk_is_given_up_and_counted_beside_what_was_before() {
    let mut state = with_segments();
    state.evict(DropReason::Quota);
    assert_eq!(state.dropped_lines(), [2 * LINES, 2 * LINES]);
    assert_eq!(state.lose_disk(WallTime::at(9000)), 4 * LINES, "of both backends, and now");
    assert_eq!(state.dropped_lines(), [4 * LINES, 4 * LINES]);
    let gaps: Vec<_> = state.gaps.iter().filter(|gap| gap.reason.name() == "corrupt").collect();
    let seen: Vec<_> = gaps.iter().map(|gap| (gap.backend.as_str(), gap.lines, gap.from, gap.until)).collect();
    // They were received at 1000, and later than the segments were created.
    let expected = |backend| (backend, 2 * LINES, WallTime::new(1000), WallTime::at(9000));
    assert_eq!(seen, ["a", "b"].map(expected));
    state.begin_anew();
    assert_eq!(write(&mut state, u64::MAX), [4, 5], "what memory holds is written again");
}

#[test]
fn a_backend_that_is_no_longer_configured_loses_what_was_kept_for_it() {
    let mut state = with_segments();
    append(&mut state, &["other"]);
    let all = state.logs[0].written;
    let destinations = |at: Position| {
        let lane = SavedLane { from: Sequence::new(at.lines / LINES), at, since: None, end: None };
        vec![((*state.logs[0].destination).clone(), vec![lane]), ((*state.logs[1].destination).clone(), Vec::new())]
    };
    let saved = |(name, at): (&str, Position)| SavedBackend {
        name: name.to_owned(),
        destinations: destinations(at),
        ..SavedBackend::default()
    };
    let orphans = [("gone", Position { lines: LINES, bytes: BYTES }), ("done", all)].map(saved);
    state.orphans.extend(orphans);
    state.lose_disk(WallTime::at(9000));
    let gaps = state.gaps.iter().filter(|gap| gap.backend == "gone" || gap.backend == "done");
    let seen: Vec<_> = gaps.map(|gap| (gap.backend.as_str(), gap.destination.database(), gap.lines)).collect();
    assert_eq!(seen, [("gone", "db", 5 * LINES)]);
}

#[test]
fn what_was_given_back_is_written_again_also_where_it_has_left_the_memory() {
    let mut state = with_disk(WhenFull::DropOldest);
    begin_segment(&mut state);
    append(&mut state, &["db"; 3]);
    write(&mut state, u64::MAX);
    let now = Instant::now();
    let leases = [0, 1].map(|backend| {
        let limits = Limits { lines: LINES * 3, ..LIMITS };
        leased(state.lease(BackendId::new(backend), &limits, &HashMap::new(), now, now)).0
    });
    (0..3).for_each(|_| state.forget(LogId::new(0), 0));
    state.ack(A, &leases[0], &[], now);
    state.requeue(B, &leases[1]);
    assert_eq!(state.lose_disk(WallTime::at(9000)), 0, "nothing was only on the disk");
    state.begin_anew();
    begin_segment(&mut state);
    assert_eq!(write(&mut state, u64::MAX), [0, 1, 2]);
    assert_eq!(leased(lease_at(&mut state, B, now + LINGER)).2, [0, 1, 2]);
}

#[test]
fn a_new_folder_and_the_cursors_are_to_be_synced() {
    let mut state = with_segments();
    state.disk().note_misplaced("gone".to_owned());
    state.lose_disk(WallTime::at(9000));
    state.disk().take_folder_change();
    state.disk().take_cursors_change();
    state.begin_anew();
    assert!(state.disk().take_folder_change() && state.disk().take_cursors_change());
    assert_eq!(state.disk().condition(Duration::ZERO).0, figures::Condition::Ok);
}
