//! What a flusher does after each outcome, on a clock that only the pauses move.

use bytes::Bytes;

use super::*;
use crate::batch::{Batch, Destination, Received};
use crate::deliver::archive::{Archive, Bounds};
use crate::journal::{BackendSetup, Journal};
use crate::protocol::Precision;

/// More requests, or turns, than any course here has.
const MANY: usize = 10_000;
/// The most bytes of a request, as configured.
const MOST_BYTES: u64 = 1 << 20;

struct Bench {
    journal: Journal,
    flusher: Flusher,
    closing: watch::Sender<bool>,
}

impl Bench {
    /// A flusher with so many records of 1,000 bytes to deliver.
    fn new(records: u64) -> Self {
        let backend = BackendSetup { name: "a".to_owned(), address: String::new(), replay_share: 0.5 };
        let journal = Journal::new(1 << 30, &[backend]);
        let (database, retention_policy) = ("db".to_owned(), String::new());
        let destination = Arc::new(Destination { database, retention_policy, precision: Precision::Nanoseconds });
        for _ in 0..records {
            let (destination, bytes) = (Arc::clone(&destination), Bytes::from(vec![b'x'; 1000]));
            journal.append(Batch { destination, bytes, lines: 10, received: Received::now(), capacity: 1000 });
        }
        let limits = Limits { lines: u64::MAX, bytes: MOST_BYTES, linger: Duration::ZERO };
        // Nothing can be written there. Most tests bring outcomes of their own.
        let endpoint = Endpoint::Archive(Archive::new("/dev/null/archive".into(), Bounds::default()));
        let (closing, is_closing) = watch::channel(false);
        let reader = journal.reader(0);
        let flusher = Flusher::new("a".to_owned(), endpoint, reader, limits, Arc::default(), is_closing);
        Self { journal, flusher, closing }
    }

    /// Sends a request that has this fate. Returns its bytes, and the pause after it; none where there is nothing to send.
    fn request(&mut self, fate: Fate) -> Option<(u64, Option<Duration>)> {
        let lease = self.flusher.reader.try_next(&self.flusher.limits)?;
        let bytes = lease.bytes;
        Some((bytes, self.flusher.conclude(lease, &Outcome::new(fate, String::new()))))
    }

    /// As many requests in a row as have this fate; their pauses.
    fn pauses(&mut self, fate: Fate, requests: usize) -> Vec<Duration> {
        let pause = |_| self.request(fate).expect("a lease").1.expect("a pause");
        (0..requests).map(pause).collect()
    }
}

/// Each way to fail after which the same lines are sent again, but for those that wait for an operator.
const FAILURES: [Fate; 4] = [Fate::Transient, Fate::Busy { retry_after: None }, Fate::Down, Fate::Stalled];

/// Requests that fail for so long.
fn requests_in(fate: Fate, time: Duration) -> usize {
    let mut bench = Bench::new(10);
    let (mut clock, mut requests) = (Duration::ZERO, 0);
    while clock < time {
        clock += bench.pauses(fate, 1)[0];
        requests += 1;
        assert!(requests < MANY, "{fate:?}: a hot loop");
    }
    requests
}

#[test]
fn no_failure_makes_a_hot_loop_and_none_is_given_up() {
    fastrand::seed(1);
    for fate in FAILURES {
        // About 45 on average: the first ones quickly, then one in 15 seconds.
        let requests = requests_in(fate, Duration::from_secs(600));
        assert!((20..90).contains(&requests), "{fate:?}: {requests} requests in ten minutes");
    }
    let requests = requests_in(Fate::HoldBackend, Duration::from_secs(600));
    assert_eq!(requests, 20, "what waits for an operator is tried twice a minute");
}

#[tokio::test(start_paused = true)]
async fn a_flusher_waits_as_long_as_it_is_to() {
    fastrand::seed(4);
    let Bench { journal, flusher, closing } = Bench::new(10);
    let health = Arc::clone(&flusher.health);
    let (mut running, mut turns) = (Box::pin(flusher.run()), 0);
    let running = std::future::poll_fn(|context| {
        turns += 1;
        assert!(turns < MANY, "a hot loop");
        running.as_mut().poll(context)
    });
    tokio::time::timeout(Duration::from_secs(600), running).await.expect_err("it goes on trying");
    let (requests, retries) = health.requests();
    assert!((20..90).contains(&requests), "{requests} requests in ten minutes");
    assert_eq!((retries, health.state()), (requests - 1, State::Retrying));
    assert_eq!(journal.snapshot().ledgers[0].pending, 100);
    drop(closing);
}

/// A stop ends a pause, gives one more try, and then those tries that are worth it, at short intervals.
#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_pause_and_tries_on() {
    for (fate, goes_on) in [
        (Fate::Transient, true),
        (Fate::Busy { retry_after: None }, true),
        (Fate::Down, false),
        (Fate::Stalled, false),
        (Fate::HoldBackend, false),
    ] {
        let Bench { mut flusher, closing, .. } = Bench::new(10);
        let begun = tokio::time::Instant::now();
        let (is_to_go_on, ()) = tokio::join!(flusher.pause(Duration::from_secs(30), fate), async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            closing.send_replace(true);
        });
        assert!(is_to_go_on, "{fate:?}: one more try");
        assert_eq!(begun.elapsed().as_secs(), 3, "{fate:?}");
        let begun = tokio::time::Instant::now();
        assert_eq!(flusher.pause(Duration::from_secs(30), fate).await, goes_on, "{fate:?}");
        assert!((LAST_PAUSE..LAST_PAUSE * 2).contains(&begun.elapsed()), "{fate:?}");
    }
}

#[test]
fn pauses_grow_to_a_bound_differ_and_begin_anew_after_a_success() {
    fastrand::seed(2);
    let least = Duration::from_millis(50);
    for fate in FAILURES {
        let mut benches: Vec<Bench> = (0..40).map(|_| Bench::new(200)).collect();
        let mut means = Vec::new();
        for turn in 0..12 {
            let pauses: Vec<Duration> = benches.iter_mut().map(|bench| bench.pauses(fate, 1)[0]).collect();
            assert!(pauses.iter().all(|pause| (least..=Duration::from_secs(30)).contains(pause)), "{pauses:?}");
            // Relays that failed together do not come back together.
            let distinct = pauses.iter().filter(|pause| **pause != pauses[0]).count();
            assert!(distinct > 20, "{fate:?}, turn {turn}: {pauses:?}");
            means.push(pauses.iter().sum::<Duration>() / 40);
        }
        // From an eighth of a second to 15 on average.
        assert!(means[0] < Duration::from_millis(250), "{means:?}");
        assert!(means[3] > 3 * means[0] && means[6] > 3 * means[3], "{means:?}");
        assert!(means[8..].iter().all(|mean| *mean > Duration::from_secs(8)), "{means:?}");
        for bench in &mut benches {
            assert_eq!(bench.request(Fate::Delivered).expect("a lease").1, None);
            assert!(bench.pauses(fate, 1)[0] <= Duration::from_millis(250), "a success begins anew");
        }
    }
}

#[test]
fn each_fate_leaves_the_backend_in_its_state() {
    for (fate, state) in [
        (Fate::Transient, State::Retrying),
        (Fate::Busy { retry_after: None }, State::Retrying),
        (Fate::Down, State::Down),
        (Fate::Stalled, State::Down),
        (Fate::HoldBackend, State::Held),
        (Fate::HoldDestination, State::Held),
        (Fate::Delivered, State::Up),
        (Fate::Rejected { class: Rejection::Other, lines: Some(1) }, State::Up),
    ] {
        let mut bench = Bench::new(1);
        bench.request(fate).expect("a lease");
        assert_eq!(bench.flusher.health.state(), state, "{fate:?}");
    }
}

#[test]
fn retry_after_is_the_least_and_not_the_most() {
    fastrand::seed(3);
    let mut bench = Bench::new(10);
    let wanted = Duration::from_secs(7);
    for pause in bench.pauses(Fate::Busy { retry_after: Some(wanted) }, 30) {
        assert!((wanted..=Duration::from_secs(30)).contains(&pause), "{pause:?}");
    }
    // A server that asks for no pause at all gets one.
    let mut bench = Bench::new(10);
    for pause in bench.pauses(Fate::Busy { retry_after: Some(Duration::ZERO) }, 30) {
        assert!(pause >= Duration::from_millis(50), "{pause:?}");
    }
}

#[test]
fn who_comes_back_finds_small_requests_that_grow() {
    for fate in FAILURES {
        let mut bench = Bench::new(20_000);
        let (first, _) = bench.request(fate).expect("a lease");
        assert!(first > MOST_BYTES - 1000, "{first}: as much as may be");
        let sizes: Vec<u64> = (0..20).map(|_| bench.request(Fate::Delivered).expect("a lease").0).collect();
        assert!(sizes[0] <= LEAST_BYTES, "{sizes:?}");
        assert!(sizes.windows(2).all(|pair| pair[1] <= pair[0] + LEAST_BYTES + 1000), "{sizes:?}");
        assert!(sizes[..14].windows(2).all(|pair| pair[1] > pair[0]), "{sizes:?}");
        assert!(sizes[19] > MOST_BYTES - 1000, "{sizes:?}");
    }
}

#[test]
fn a_destination_that_waits_for_an_operator_is_left_alone() {
    let mut bench = Bench::new(10);
    let (_, pause) = bench.request(Fate::HoldDestination).expect("a lease");
    assert_eq!(pause, None, "others go on");
    assert!(bench.request(Fate::Delivered).is_none());
    assert_eq!(bench.journal.snapshot().ledgers[0].pending, 100);
}

#[test]
fn what_is_too_large_is_halved_until_one_record_is_given_up() {
    let mut bench = Bench::new(16);
    let mut sizes = Vec::new();
    while bench.journal.snapshot().ledgers[0].pending > 0 {
        let (bytes, pause) = bench.request(Fate::TooLarge).expect("a lease");
        assert_eq!(pause, None);
        sizes.push(bytes);
        assert!(sizes.len() < 100, "{sizes:?}");
    }
    assert_eq!(sizes[..5], [16_000, 8000, 4000, 2000, 1000]);
    // From then on, requests grow from one record again, and are halved again.
    assert_eq!(bench.journal.snapshot().ledgers[0].rejected[Rejection::TooLarge as usize], 160);
}

#[test]
fn a_refusal_of_everything_is_tried_record_by_record_and_twice() {
    let refused = Fate::Rejected { class: Rejection::Unparsable, lines: None };
    let mut bench = Bench::new(4);
    let mut requests = 0;
    while bench.journal.snapshot().ledgers[0].pending > 0 {
        assert_eq!(bench.request(refused).expect("a lease").1, None);
        requests += 1;
        assert!(requests <= 20, "every record is given up after two tries");
    }
    assert!(requests >= 8, "{requests} requests for four records");
    assert_eq!(bench.journal.snapshot().ledgers[0].rejected[Rejection::Unparsable as usize], 40);
}

#[test]
fn an_answer_that_claims_more_than_was_sent_costs_what_was_sent() {
    for lines in [11, 1000, u64::MAX] {
        let mut bench = Bench::new(1);
        let (_, pause) =
            bench.request(Fate::Rejected { class: Rejection::Retention, lines: Some(lines) }).expect("one");
        let ledger = bench.journal.snapshot().ledgers.remove(0);
        assert_eq!((pause, ledger.rejected.iter().sum(), ledger.delivered, ledger.pending), (None, 10_u64, 0, 0));
    }
}

/// How often an event was not told, as the log will say once it may be told again.
fn untold(throttle: &Throttle) -> u64 {
    let later = Instant::now() + crate::sys::throttle::INTERVAL * 2;
    throttle.pass_at(later).expect("it is due").untold.unwrap_or(0)
}

#[test]
fn the_log_is_told_of_each_failure_and_of_its_end() {
    for (fate, state) in [
        (Fate::Transient, State::Retrying),
        (Fate::Down, State::Down),
        (Fate::HoldBackend, State::Held),
        (Fate::HoldDestination, State::Held),
    ] {
        let mut bench = Bench::new(2000);
        bench.request(fate).expect("a lease");
        assert_eq!(bench.flusher.told.failure, Some(state), "{fate:?}");
        assert!(bench.flusher.told.recovered.is_due(), "{fate:?}: no end yet");
    }
    for fate in FAILURES {
        let mut bench = Bench::new(2000);
        for fate in [fate, fate, Fate::Delivered, Fate::Delivered] {
            bench.request(fate).expect("a lease");
        }
        assert_eq!(bench.flusher.told.failure, None, "{fate:?}");
        assert!(!bench.flusher.told.recovered.is_due(), "{fate:?}: the end was told");
    }
    // The probe told that it was not reached.
    let mut bench = Bench::new(2000);
    bench.flusher.health.miss("refused");
    bench.request(Fate::Delivered).expect("a lease");
    assert!(!bench.flusher.told.recovered.is_due());
    // Where nothing failed, nothing is told.
    let mut bench = Bench::new(2000);
    bench.request(Fate::Delivered).expect("a lease");
    assert!(bench.flusher.told.recovered.is_due());
    bench.request(Fate::Rejected { class: Rejection::Other, lines: Some(1) }).expect("a lease");
    assert!(!bench.flusher.told.rejected.is_due(), "what is rejected is told");
}

#[test]
fn a_backend_that_flaps_is_told_once_a_minute_and_how_it_is_in_the_end() {
    let down = State::Down as usize;
    let mut bench = Bench::new(20_000);
    for _ in 0..5 {
        for fate in [Fate::Down, Fate::Down, Fate::Down, Fate::Delivered, Fate::Delivered] {
            bench.request(fate).expect("a lease");
        }
    }
    // A failure that was not told has no end that is told.
    assert_eq!((untold(&bench.flusher.told.failures[down]), untold(&bench.flusher.told.recovered)), (4, 0));

    // A failure that was not told at first is told with the next try, once it may be.
    let mut bench = Bench::new(20_000);
    for fate in [Fate::Down, Fate::Delivered, Fate::Down] {
        bench.request(fate).expect("a lease");
    }
    assert_eq!(bench.flusher.told.failure, None);
    bench.flusher.told.failures[down] = Throttle::default();
    bench.request(Fate::Down).expect("a lease");
    assert_eq!(bench.flusher.told.failure, Some(State::Down));

    // And so is an end.
    let mut bench = Bench::new(20_000);
    let course = [Fate::Down, Fate::Delivered, Fate::Transient, Fate::Delivered, Fate::Delivered, Fate::Delivered];
    for fate in course {
        bench.request(fate).expect("a lease");
    }
    assert_eq!(bench.flusher.told.failure, Some(State::Retrying));
    let recovered = std::mem::take(&mut bench.flusher.told.recovered);
    assert_eq!(untold(&recovered), 1);
    bench.request(Fate::Delivered).expect("a lease");
    assert_eq!(bench.flusher.told.failure, None);

    // What was told still holds, whatever was between and could not be told.
    let mut bench = Bench::new(20_000);
    for fate in [Fate::HoldBackend, Fate::Delivered, Fate::Down, Fate::HoldBackend, Fate::Down] {
        bench.request(fate).expect("a lease");
    }
    assert_eq!((bench.flusher.told.failure, untold(&bench.flusher.told.failures[down])), (Some(State::Down), 0));
}
