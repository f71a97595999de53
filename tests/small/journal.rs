//! The journal in memory beside a simple model: leases in order, ends in any order, and a ledger
//! that always balances.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use twinflux::batch::{Batch, Destination, Received};
use twinflux::journal::{BackendConfig, BackendId, Journal, Lease, Limits, Reader, Rejection, Snapshot};
use twinflux::protocol::Precision;

use crate::effort;

const LIMITS: Limits = Limits { lines: 10, bytes: 10_000, linger: Duration::ZERO };

fn backends(count: usize) -> Vec<BackendConfig> {
    (0..count)
        .map(|place| BackendConfig { name: format!("b{place}"), address: String::new(), replay_share: 0.5 })
        .collect()
}

fn destination(database: usize) -> Arc<Destination> {
    Arc::new(Destination::new(format!("db{database}"), "", Precision::Nanoseconds))
}

/// A batch whose bytes begin with its number.
fn batch(number: u64, database: usize, lines: u64) -> Batch {
    let bytes = Bytes::from(format!("{number:020}").into_bytes());
    let capacity = bytes.len();
    Batch::new(destination(database), bytes, lines, Received::now()).with_capacity(capacity)
}

fn number(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes).expect("UTF-8").parse().expect("a number")
}

/// What is ready now; none where nothing is.
fn lease_now(runtime: &tokio::runtime::Runtime, reader: &mut Reader) -> Option<Lease> {
    runtime.block_on(async { tokio::time::timeout(Duration::ZERO, reader.next(&LIMITS)).await.ok().flatten() })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime")
}

#[derive(Clone, Debug)]
enum Action {
    Append { database: usize, lines: u64 },
    Lease { backend: usize },
    Settle { backend: usize, which: prop::sample::Index, rejected: u64 },
    GiveBack { backend: usize, which: prop::sample::Index },
    Park { backend: usize, which: prop::sample::Index },
}

fn action() -> impl Strategy<Value = Action> {
    let backend = 0..2_usize;
    let which = any::<prop::sample::Index>();
    prop_oneof![
        4 => (0..3_usize, 1..5_u64).prop_map(|(database, lines)| Action::Append { database, lines }),
        3 => backend.clone().prop_map(|backend| Action::Lease { backend }),
        3 => (backend.clone(), which.clone(), 0..3_u64)
            .prop_map(|(backend, which, rejected)| Action::Settle { backend, which, rejected }),
        2 => (backend.clone(), which.clone()).prop_map(|(backend, which)| Action::GiveBack { backend, which }),
        1 => (backend, which).prop_map(|(backend, which)| Action::Park { backend, which }),
    ]
}

/// What one backend must have seen.
#[derive(Default)]
struct Model {
    leases: Vec<Lease>,
    /// Each batch's number and what became of it: true where acked.
    acked: BTreeMap<u64, bool>,
    delivered: u64,
    rejected: u64,
}

fn check_balance(snapshot: &Snapshot) {
    for ledger in &snapshot.ledgers {
        let gone = ledger.delivered + ledger.rejected.iter().sum::<u64>() + ledger.dropped.iter().sum::<u64>();
        assert_eq!(snapshot.appended_lines + ledger.recovered, gone + ledger.pending);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: effort::cases(2_000), ..ProptestConfig::default() })]

    #[test]
    fn any_course_balances_and_loses_nothing_uncounted(
        actions in prop::collection::vec(action(), 1..80),
        memory in prop_oneof![Just(1_u64 << 30), 1_000..6_000_u64],
    ) {
        let runtime = runtime();
        let journal = Journal::new(memory, &backends(2));
        let mut readers = [journal.reader(BackendId::new(0)), journal.reader(BackendId::new(1))];
        let mut models = [Model::default(), Model::default()];
        let mut lines_of: Vec<u64> = Vec::new();
        for action in actions {
            match action {
                Action::Append { database, lines } => {
                    journal.append(batch(lines_of.len() as u64, database, lines));
                    lines_of.push(lines);
                }
                Action::Lease { backend } => {
                    if let Some(lease) = lease_now(&runtime, &mut readers[backend]) {
                        let numbers: Vec<u64> = lease.records.iter().map(|record| number(record.batch.bytes())).collect();
                        prop_assert!(numbers.is_sorted());
                        for (place, record) in lease.records.iter().enumerate() {
                            prop_assert_eq!(record.batch.destination().as_ref(), lease.destination.as_ref());
                            prop_assert_eq!(record.batch.lines(), lines_of[usize::try_from(numbers[place]).expect("small")]);
                            prop_assert!(!models[backend].acked.contains_key(&numbers[place]), "acked once");
                        }
                        prop_assert!(lease.records.len() == 1 || lease.lines <= LIMITS.lines);
                        models[backend].leases.push(lease);
                    }
                }
                Action::Settle { backend, which, rejected } => {
                    let model = &mut models[backend];
                    if model.leases.is_empty() { continue; }
                    let lease = model.leases.swap_remove(which.index(model.leases.len()));
                    let rejected = rejected.min(lease.lines);
                    model.delivered += lease.lines - rejected;
                    model.rejected += rejected;
                    for record in &lease.records {
                        model.acked.insert(number(record.batch.bytes()), true);
                    }
                    readers[backend].ack(lease, Some((Rejection::Other, rejected)));
                }
                Action::GiveBack { backend, which } => {
                    let model = &mut models[backend];
                    if model.leases.is_empty() { continue; }
                    let lease = model.leases.swap_remove(which.index(model.leases.len()));
                    readers[backend].requeue(lease);
                }
                Action::Park { backend, which } => {
                    let model = &mut models[backend];
                    if model.leases.is_empty() { continue; }
                    let lease = model.leases.swap_remove(which.index(model.leases.len()));
                    readers[backend].park(lease.log(), Instant::now());
                    readers[backend].requeue(lease);
                }
            }
            let snapshot = journal.snapshot();
            check_balance(&snapshot);
            prop_assert!(snapshot.memory_bytes <= memory);
            for (model, ledger) in models.iter().zip(&snapshot.ledgers) {
                prop_assert_eq!(ledger.delivered, model.delivered);
                prop_assert_eq!(ledger.rejected.iter().sum::<u64>(), model.rejected);
                prop_assert!(memory < 1 << 30 || ledger.dropped.iter().sum::<u64>() == 0);
            }
        }
        // Liveness: what is still there is delivered in the end, in each destination's order, and
        // nothing is left.
        for (backend, model) in models.iter_mut().enumerate() {
            for lease in model.leases.drain(..) {
                readers[backend].requeue(lease);
            }
            let mut last: BTreeMap<String, u64> = BTreeMap::new();
            while let Some(lease) = lease_now(&runtime, &mut readers[backend]) {
                for record in &lease.records {
                    let number = number(record.batch.bytes());
                    let before = last.insert(lease.destination.database().to_owned(), number);
                    prop_assert!(before.is_none_or(|before| before < number));
                }
                readers[backend].ack(lease, None);
            }
        }
        let snapshot = journal.snapshot();
        check_balance(&snapshot);
        prop_assert!(snapshot.ledgers.iter().all(|ledger| ledger.pending == 0 && ledger.pending_bytes == 0));
        prop_assert_eq!(snapshot.memory_bytes, 0);
    }
}

#[test]
fn a_lease_waits_for_lines_bytes_or_linger() {
    let runtime = runtime();
    let journal = Journal::new(1 << 20, &backends(1));
    let mut reader = journal.reader(BackendId::new(0));
    let patient = Limits { lines: 10, bytes: 100, linger: Duration::from_secs(3600) };
    let ready = |reader: &mut Reader, limits: &Limits| {
        runtime.block_on(async { tokio::time::timeout(Duration::ZERO, reader.next(limits)).await.ok().flatten() })
    };
    journal.append(batch(0, 0, 4));
    assert!(ready(&mut reader, &patient).is_none());
    journal.append(batch(1, 0, 4));
    assert!(ready(&mut reader, &patient).is_none());
    journal.append(batch(2, 0, 4));
    let by_lines = ready(&mut reader, &patient).expect("12 lines are there");
    assert_eq!((by_lines.lines, by_lines.records.len()), (8, 2));
    reader.requeue(by_lines);
    journal.append(batch(3, 0, 1));
    journal.append(batch(4, 0, 1));
    let by_bytes = ready(&mut reader, &Limits { lines: 1000, ..patient }).expect("100 bytes are there");
    assert_eq!((by_bytes.bytes, by_bytes.records.len()), (100, 5));
    reader.requeue(by_bytes);
    let by_linger = ready(&mut reader, &Limits { lines: 1000, bytes: 1000, linger: Duration::ZERO });
    reader.ack(by_linger.expect("lingered"), None);
    assert_eq!(journal.snapshot().ledgers[0].delivered, 14);
}

#[test]
fn a_waiting_reader_is_woken_by_an_append_and_by_the_close() {
    let runtime = runtime();
    let journal = Journal::new(1 << 20, &backends(1));
    let mut reader = journal.reader(BackendId::new(0));
    runtime.block_on(async {
        let waiting = tokio::spawn(async move {
            let lease = reader.next(&LIMITS).await.expect("the appended one");
            let lines = lease.lines;
            reader.ack(lease, None);
            (lines, reader.next(&LIMITS).await.is_none())
        });
        tokio::task::yield_now().await;
        journal.append(batch(0, 0, 3));
        tokio::task::yield_now().await;
        journal.close();
        assert_eq!(waiting.await.expect("no panic"), (3, true));
    });
}

#[test]
fn a_parked_destination_holds_up_no_other() {
    let runtime = runtime();
    let journal = Journal::new(1 << 20, &backends(1));
    let mut reader = journal.reader(BackendId::new(0));
    journal.append(batch(0, 0, 1));
    journal.append(batch(1, 1, 1));
    let first = lease_now(&runtime, &mut reader).expect("the older one");
    assert_eq!(first.destination.database(), "db0");
    let log = first.log();
    reader.park(log, Instant::now() + Duration::from_secs(3600));
    reader.requeue(first);
    let second = lease_now(&runtime, &mut reader).expect("the other one");
    assert_eq!(second.destination.database(), "db1");
    reader.ack(second, None);
    assert!(lease_now(&runtime, &mut reader).is_none());
    assert_eq!(journal.snapshot().ledgers[0].pending, 1);
    reader.unpark(log);
    let first = lease_now(&runtime, &mut reader).expect("the first one again");
    assert_eq!(first.destination.database(), "db0");
    reader.ack(first, None);
}

#[test]
fn the_oldest_leave_a_full_tail_and_are_counted_for_each_backend_that_lacked_them() {
    let runtime = runtime();
    // Each record costs its 20 bytes and 256.
    let journal = Journal::new(3 * 276, &backends(2));
    let mut quick = journal.reader(BackendId::new(0));
    for number in 0..3 {
        journal.append(batch(number, 0, 1));
    }
    let lease = lease_now(&runtime, &mut quick).expect("three");
    quick.ack(lease, None);
    for number in 3..5 {
        journal.append(batch(number, 0, 1));
    }
    let snapshot = journal.snapshot();
    let dropped: Vec<u64> = snapshot.ledgers.iter().map(|ledger| ledger.dropped.iter().sum()).collect();
    assert_eq!(dropped, [0, 2]);
    let mut slow = journal.reader(BackendId::new(1));
    let lease = lease_now(&runtime, &mut slow).expect("what is left");
    let numbers: Vec<u64> = lease.records.iter().map(|record| number(record.batch.bytes())).collect();
    assert_eq!(numbers, [2, 3, 4]);
}

#[test]
fn without_a_disk_it_presses_for_a_while_before_anything_is_lost() {
    let journal = Journal::new(100_000, &backends(1));
    let lost = || journal.snapshot().ledgers[0].dropped.iter().sum::<u64>();
    let mut number = 0;
    while !journal.is_pressed() {
        journal.append(batch(number, 0, 1));
        number += 1;
        assert_eq!(lost(), 0, "{number}");
    }
    // A backend that takes them ends it at once; one that takes nothing does so in the end.
    let (runtime, mut reader) = (runtime(), journal.reader(BackendId::new(0)));
    while let Some(lease) = lease_now(&runtime, &mut reader) {
        reader.ack(lease, None);
    }
    assert!(!journal.is_pressed());
    let limit = Instant::now() + Duration::from_secs(180);
    for more in number.. {
        journal.append(batch(more, 0, 1));
        if lost() > 0 && !journal.is_pressed() {
            break;
        }
        assert!(Instant::now() < limit, "it presses for ever");
        std::thread::sleep(Duration::from_millis(1));
    }
}
