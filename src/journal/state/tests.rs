//! What the journal decides: which backends it wakes, what is leased when, and what gives way. The
//! tests set the time.

mod condition;
mod disk;
mod memory;
mod owed;
mod renewed;
mod shown;

use std::time::Duration;

use super::*;
use crate::batch::Received;
use crate::journal::segment::Sequence;
use crate::protocol::Precision;

const A: BackendId = BackendId::new(0);
const B: BackendId = BackendId::new(1);
const LINES: u64 = 10;
const BYTES: u64 = 100;
const LINGER: Duration = Duration::from_secs(2);
/// A lease of three records.
const LIMITS: Limits = Limits { lines: LINES * 3, bytes: u64::MAX, linger: LINGER };

fn destination(database: &str) -> Arc<Destination> {
    Arc::new(Destination::new(database, "", Precision::Nanoseconds))
}

/// Two backends, and memory for this many records.
fn state(records: u64, replay_share: f64) -> State {
    let backend =
        |name: &str| Backend::new(&BackendConfig { name: name.to_owned(), address: String::new(), replay_share });
    State::new(records * cost(&batch(&destination(""), Instant::now())), vec![backend("a"), backend("b")])
}

fn batch(destination: &Arc<Destination>, received: Instant) -> Batch {
    let received = Received { monotonic: received, wall: WallTime::at(1000) };
    let bytes = vec![b'x'; usize::try_from(BYTES).expect("few")];
    let capacity = bytes.len();
    Batch::new(Arc::clone(destination), bytes, LINES, received).with_capacity(capacity)
}

fn lease_at(state: &mut State, backend: BackendId, now: Instant) -> Ready {
    state.lease(backend, &LIMITS, &HashMap::new(), now, now)
}

/// The database and the sequences of a lease.
fn leased(ready: Ready) -> (Lease, String, Vec<u64>) {
    let Ready::Lease(lease) = ready else { panic!("there is something to lease") };
    let sequences = lease.records.iter().map(|record| record.sequence.get()).collect();
    let database = lease.destination.database().to_owned();
    (lease, database, sequences)
}

/// Writes all records of a log, and removes this one from memory.
fn write_and_forget(state: &mut State, log: LogId, sequence: Sequence) {
    let State { logs, backends, .. } = state;
    let Log { records, written, .. } = &mut logs[log];
    for record in records.iter() {
        if record.note_written(*written) {
            *written = record.end(*written);
            backends.iter_mut().for_each(|backend| backend.cursors[log].note_written(record, *written));
        }
    }
    let index = records.iter().position(|record| record.sequence == sequence).expect("it is in memory");
    let record = records.remove(index).expect("it is there");
    backends.iter_mut().for_each(|backend| backend.cursors[log].fall_behind(&record, records));
}

#[test]
fn a_lease_waits_for_more_until_it_is_full_or_its_first_record_has_waited_enough() {
    let (mut state, db, start) = (state(100, 0.5), destination("db"), Instant::now());
    assert!(matches!(lease_at(&mut state, A, start), Ready::Never));
    state.append(batch(&db, start));
    let later = start + Duration::from_millis(1);
    state.append(batch(&db, later));
    assert!(matches!(lease_at(&mut state, A, later), Ready::At(time) if time == start + LINGER));
    let (lease, ..) = leased(lease_at(&mut state, A, start + LINGER));
    assert_eq!((lease.lines, lease.bytes, lease.records.len()), (2 * LINES, 2 * BYTES, 2));
    // The other one has waited as well; a full lease does not wait.
    state.append(batch(&db, later));
    state.append(batch(&db, later));
    assert_eq!(leased(lease_at(&mut state, B, later)).2, [0, 1, 2]);
    assert!(matches!(lease_at(&mut state, B, later), Ready::At(time) if time == later + LINGER));
    // Nothing waits for a closed journal.
    state.close();
    assert_eq!(leased(lease_at(&mut state, B, later)).2, [3]);
    assert!(matches!(lease_at(&mut state, B, later), Ready::Closed));
}

#[test]
fn a_backend_is_woken_once_it_has_a_reason_to_look_and_only_if_it_waits() {
    let (mut state, db, start) = (state(100, 0.5), destination("db"), Instant::now());
    assert!(state.append(batch(&db, start)).is_empty(), "nobody waits");
    // One waits for more, the other has not polled yet.
    assert!(matches!(lease_at(&mut state, A, start), Ready::At(_)));
    assert!(state.append(batch(&db, start)).is_empty(), "it knows when to look");
    assert_eq!(state.append(batch(&db, start)), [A], "a lease is full");
    assert!(state.append(batch(&db, start)).is_empty(), "it was woken");
    for _ in 0..2 {
        drop(leased(lease_at(&mut state, A, start + LINGER)));
    }
    assert!(matches!(lease_at(&mut state, A, start), Ready::Never));
    assert_eq!(state.append(batch(&db, start)), [A], "there was nothing before");
}

#[test]
fn the_oldest_record_goes_first_and_a_destination_that_is_parked_waits() {
    let (mut state, start) = (state(100, 0.5), Instant::now());
    let now = start + LINGER;
    for database in ["x", "y", "z", "y", "x"] {
        state.append(batch(&destination(database), start));
    }
    let parked = HashMap::from([(LogId::new(0), now + LINGER), (LogId::new(2), now + LINGER * 2)]);
    let ready = state.lease(A, &LIMITS, &parked, now, now);
    let (lease, database, sequences) = leased(ready);
    assert_eq!((lease.log.index(), database.as_str(), sequences), (1, "y", vec![1, 3]));
    let ready = state.lease(A, &LIMITS, &parked, now, now);
    assert!(matches!(ready, Ready::At(time) if time == now + LINGER), "the first of them");
    let ready = state.lease(A, &LIMITS, &parked, now + LINGER, now + LINGER);
    assert_eq!(leased(ready).1, "x");
    // For the other one nothing is parked.
    for (database, expected) in [("x", vec![0, 4]), ("y", vec![1, 3]), ("z", vec![2])] {
        let (_, leased_of, sequences) = leased(lease_at(&mut state, B, now));
        assert_eq!((leased_of.as_str(), sequences), (database, expected));
    }
}

#[test]
fn a_backlog_has_its_share_of_the_leases_and_waits_where_it_is_parked() {
    for (share, expected) in [(0.5, "fbfbfb"), (0.25, "fffbff"), (0.0, "ffffff"), (1.0, "bbbbbb")] {
        let (mut state, db, start) = (state(100, share), destination("db"), Instant::now());
        let now = start + LINGER;
        for _ in 0..40 {
            state.append(batch(&db, start));
        }
        write_and_forget(&mut state, LogId::new(0), Sequence::new(0));
        let turns = (0..6).map(|_| match lease_at(&mut state, A, now) {
            Ready::Lease(_) => 'f',
            Ready::Read(request) => {
                assert_eq!((request.from.get(), request.end.sequence.get()), (0, 1));
                'b'
            }
            _ => '-',
        });
        assert_eq!(turns.collect::<String>(), expected, "{share}");
        // If the disk must not be read yet, fresh records go first; under strict order they wait.
        let ready = state.lease(B, &LIMITS, &HashMap::new(), now + LINGER, now);
        match share {
            1.0 => assert!(matches!(ready, Ready::At(time) if time == now + LINGER)),
            _ => assert_eq!(leased(ready).2, [1, 2, 3]),
        }
    }
}

#[test]
fn of_two_backlogs_the_older_one_is_read_first() {
    let (mut state, start) = (state(100, 0.5), Instant::now());
    for database in ["x", "y", "y", "x"] {
        state.append(batch(&destination(database), start));
    }
    for (log, sequence) in [(1, 1), (1, 2), (0, 0), (0, 3)] {
        write_and_forget(&mut state, LogId::new(log), Sequence::new(sequence));
    }
    let request = |ready| match ready {
        Ready::Read(request) => (request.log.index(), request.from.get()),
        _ => panic!("there is a backlog"),
    };
    assert_eq!(request(lease_at(&mut state, A, start)), (0, 0));
    let parked = HashMap::from([(LogId::new(0), start + LINGER), (LogId::new(1), start + LINGER * 2)]);
    let ready = state.lease(A, &LIMITS, &parked, start, start);
    assert!(matches!(ready, Ready::At(time) if time == start + LINGER), "the first of them");
    assert_eq!(request(state.lease(A, &LIMITS, &parked, start, start + LINGER)), (0, 0));
    state.close();
    let ready = state.lease(A, &LIMITS, &parked, start, start);
    assert!(matches!(ready, Ready::Closed), "a stop does not wait for what is parked");
}

#[test]
fn what_a_backend_rejects_has_no_latency() {
    let (mut state, db, start) = (state(100, 0.5), destination("db"), Instant::now());
    for _ in 0..9 {
        state.append(batch(&db, start));
    }
    let later = start + LINGER;
    for (rejected, times) in [(3 * LINES, 1), (999, 2)] {
        let (lease, ..) = leased(lease_at(&mut state, A, later));
        state.ack(A, &lease, &[(Rejection::Retention, rejected)], later);
        let ledger = &state.backends[0].ledger;
        assert_eq!((ledger.delivered, ledger.rejected[Rejection::Retention as usize]), (0, 3 * LINES * times));
        assert!(ledger.latency.is_empty());
    }
    let (lease, ..) = leased(lease_at(&mut state, A, later));
    state.ack(A, &lease, &[(Rejection::Other, 1)], later);
    let ledger = &state.backends[0].ledger;
    assert_eq!((ledger.delivered, ledger.latency.len()), (3 * LINES - 1, 3 * LINES));
    assert!(ledger.latency.min() >= 1_900_000, "{}", ledger.latency.min());
}

#[test]
fn a_destination_has_one_log_and_a_cursor_of_each_backend() {
    let mut state = state(100, 0.5);
    let start = Instant::now();
    for database in ["x", "y", "x", "x", "y"] {
        // A distinct but equal destination each time.
        state.append(batch(&destination(database), start));
    }
    assert_eq!(state.logs.iter().map(|log| log.records.len()).collect::<Vec<_>>(), [3, 2]);
    assert!(state.backends.iter().all(|backend| backend.cursors.len() == 2));
    let end = state.end_of_log();
    assert_eq!((end.sequence.get(), end.written.len()), (5, 2));
    // A destination is parked by a lease's log.
    state.append(batch(&destination("z"), start));
    for backend in [A, B] {
        let logs = [(); 3].map(|()| leased(lease_at(&mut state, backend, start + LINGER)).0.log());
        assert_eq!(logs, [0, 1, 2].map(LogId::new));
    }
}
