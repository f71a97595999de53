//! The journal's figures: how long lines wait, and which of them are not on disk.

use super::disk::{append, begin_segment, with_disk, write};
use super::*;
use crate::journal::state::figures::Condition;
use crate::journal::state::options::WhenFull;

/// Dashboards and alerts depend on these names.
#[test]
fn the_conditions_names_stay_and_are_those_in_json() {
    assert_eq!(Condition::ALL.map(Condition::name), ["ok", "full", "failing"]);
    for condition in Condition::ALL {
        assert_eq!(serde_json::to_value(condition).expect("JSON"), condition.name());
    }
}

#[test]
fn lines_wait_since_they_were_received_in_memory_and_on_the_disk() {
    let (mut state, db, start) = (state(100, 0.5), destination("db"), Instant::now());
    let waited = |state: &State, nanoseconds: u64| {
        let monotonic = start + Duration::from_nanos(nanoseconds);
        state.snapshot(Received { monotonic, wall: WallTime::at(1000 + nanoseconds) }).oldest_pending_seconds[0]
    };
    assert!(waited(&state, 7_500_000_000) < 0.1, "nothing waits");
    state.append(batch(&db, start));
    state.append(batch(&db, start + LINGER));
    for forgotten in 0..=2 {
        let seconds = waited(&state, 7_500_000_000);
        assert!((7.4..7.6).contains(&seconds), "{forgotten} on the disk: {seconds} s");
        if forgotten < 2 {
            write_and_forget(&mut state, LogId::new(0), Sequence::new(forgotten));
        }
    }
}

#[test]
fn a_leased_line_is_in_memory_only_until_it_is_written() {
    let mut state = with_disk(WhenFull::DropOldest);
    begin_segment(&mut state);
    append(&mut state, &["db"; 3]);
    let limits = Limits { lines: LINES * 2, ..LIMITS };
    let now = Instant::now();
    let (lease, _, sequences) = leased(state.lease(A, &limits, &HashMap::new(), now, now));
    assert_eq!(sequences, [0, 1]);
    let only_in_memory = |state: &State| state.snapshot(Received::now()).memory_only_lines;
    assert_eq!(only_in_memory(&state), [3 * LINES, 3 * LINES]);
    assert_eq!(write(&mut state, 1), [0]);
    assert_eq!(only_in_memory(&state), [2 * LINES, 2 * LINES]);
    assert_eq!(write(&mut state, u64::MAX), [1, 2]);
    assert_eq!(only_in_memory(&state), [0, 0]);
    state.ack(A, &lease, &[], now);
    assert_eq!(only_in_memory(&state), [0, 0]);
}
