//! Lines that one backend is owed once more: leased before everything else, and pending until
//! acked.

use super::*;

/// Dead letters with these numbers.
fn resend(state: &mut State, database: &str, letters: &[u64]) {
    state.resend(A, batch(&destination(database), Instant::now()), letters.to_vec());
}

fn pending(state: &State) -> [(u64, u64); 2] {
    let ledgers = state.snapshot(Received::now()).ledgers;
    [0, 1].map(|backend| (ledgers[backend].pending, ledgers[backend].pending_bytes))
}

/// The database of a lease, and the numbers of its letters.
fn letters(ready: Ready) -> (Lease, String, Vec<u64>) {
    let (lease, database, _) = leased(ready);
    let letters = lease.letters.as_ref().expect("letters").to_vec();
    (lease, database, letters)
}

#[test]
fn letters_go_before_everything_else_to_the_backend_that_is_owed_them() {
    let (mut state, now) = (state(100, 0.5), Instant::now());
    state.append(batch(&destination("db"), now));
    resend(&mut state, "db", &[7, 8]);
    resend(&mut state, "other", &[9]);
    assert_eq!(pending(&state), [(3 * LINES, 3 * BYTES), (LINES, BYTES)]);
    let ledgers = state.snapshot(Received::now()).ledgers;
    assert_eq!((ledgers[0].resent, ledgers[1].resent), (2 * LINES, 0));

    let (lease, database, numbers) = letters(lease_at(&mut state, A, now));
    assert_eq!((database.as_str(), numbers, lease.lines, lease.bytes), ("db", vec![7, 8], LINES, BYTES));
    assert_eq!(pending(&state)[0], (3 * LINES, 3 * BYTES), "it is on its way");
    // A requeued lease is the next again.
    state.requeue(A, &lease);
    let (lease, _, numbers) = letters(lease_at(&mut state, A, now));
    assert_eq!(numbers, [7, 8]);
    state.ack(A, &lease, &[], now);
    assert_eq!(pending(&state), [(2 * LINES, 2 * BYTES), (LINES, BYTES)]);

    let (lease, database, numbers) = letters(lease_at(&mut state, A, now));
    assert_eq!((database.as_str(), numbers), ("other", vec![9]));
    state.ack(A, &lease, &[], now);
    // All other lines are leased as usual.
    for backend in [0, 1] {
        let (lease, database, sequences) = leased(lease_at(&mut state, BackendId::new(backend), now + LINGER));
        assert!(lease.letters.is_none());
        assert_eq!((database.as_str(), sequences), ("db", vec![0]));
    }
}

#[test]
fn letters_of_a_destination_that_is_parked_wait() {
    let (mut state, now) = (state(100, 0.5), Instant::now());
    resend(&mut state, "x", &[1]);
    resend(&mut state, "y", &[2]);
    let parked = HashMap::from([(LogId::new(0), now + LINGER)]);
    let (lease, ..) = letters(state.lease(A, &LIMITS, &parked, now, now));
    assert_eq!((lease.destination.database(), lease.log().index()), ("y", 1));
    assert!(!matches!(state.lease(A, &LIMITS, &parked, now, now), Ready::Lease(_)));
    let (lease, ..) = letters(state.lease(A, &LIMITS, &parked, now + LINGER, now + LINGER));
    assert_eq!((lease.destination.database(), lease.log().index()), ("x", 0));
}
