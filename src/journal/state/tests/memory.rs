//! What gives way where the memory is full, without a disk.

use super::*;

fn sequences(state: &State) -> Vec<u64> {
    state.logs.iter().flat_map(|log| &log.records).map(|record| record.sequence).collect()
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
    let (lease, _, taken) = leased(lease_at(&mut state, 0, start + LINGER));
    assert_eq!(taken, [0, 2]);
    state.settle(0, &lease, &[], start);
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
    let (lease, ..) = leased(lease_at(&mut state, 0, start + LINGER));
    assert!(state.append(batch(&db, start)).is_empty());
    assert_eq!((sequences(&state), state.dropped_lines()), (vec![0, 1, 2], vec![LINES, LINES]));
    // Given back it may go, as anything else.
    state.give_back(0, &lease);
    drop(lease);
    state.append(batch(&db, start));
    assert_eq!((sequences(&state), state.dropped_lines()), (vec![1, 2, 3], vec![2 * LINES, 2 * LINES]));
    // And so may what is on its way to somebody who is gone.
    for _ in 0..2 {
        assert_eq!(leased(lease_at(&mut state, 0, start + LINGER)).2, [1, 2, 3]);
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
        let (lease, ..) = leased(lease_at(&mut state, backend, start));
        state.settle(backend, &lease, &[], start);
        assert_eq!(sequences(&state), left);
    }
}

#[test]
fn at_the_end_what_is_only_in_memory_is_lost_with_its_reason() {
    let (mut state, start) = (state(100, 0.5), Instant::now());
    for database in ["x", "y", "x"] {
        state.append(batch(&destination(database), start));
    }
    let (lease, ..) = leased(lease_at(&mut state, 0, start + LINGER));
    state.settle(0, &lease, &[], start);
    drop(lease);
    let (lease, ..) = leased(lease_at(&mut state, 1, start + LINGER));
    state.give_back(1, &lease);
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
    let (lease, ..) = leased(state.lease(0, &Limits { lines: 400, ..LIMITS }, &HashMap::new(), start, start));
    state.settle(0, &lease, &[], start);
    drop(lease);
    let (lease, ..) = leased(state.lease(1, &Limits { lines: 400, ..LIMITS }, &HashMap::new(), start, start));
    state.settle(1, &lease, &[], start);
    drop(lease);
    assert!(!state.is_pressed(start + longest));
    for _ in 0..40 {
        state.append(batch(&db, start));
    }
    assert!(state.is_pressed(start + longest) && state.is_pressed(start + longest * 2 - Duration::from_millis(1)));
}
