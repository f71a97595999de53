//! Tests of the flusher's reaction to each outcome, on a clock that only moves while the test
//! waits.

mod interleavings;
mod parts;
mod rules;
mod stops;

use std::sync::{Mutex, PoisonError};

use super::sizes::MIN_BYTES;
use super::*;
use crate::batch::{Batch, Destination, Received};
use crate::journal::{BackendConfig, BackendId, Journal};
use crate::protocol::Precision;

/// Configured maximum size of a request, in bytes.
const MAX_BYTES: u64 = 1 << 20;
const TEN_MINUTES: Duration = Duration::from_secs(600);

/// A request: when it was sent, to which database, and its lines.
#[derive(Clone, Debug)]
struct Request {
    at: Duration,
    database: String,
    text: String,
}

type Answer = Box<dyn FnMut(&Request) -> (Duration, Outcome) + Send>;

/// A backend that records requests, and answers after a delay.
#[derive(Clone)]
pub(in crate::deliver) struct Script(Arc<Mutex<(Vec<Request>, Answer)>>, Instant);

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

impl Script {
    pub(in crate::deliver) async fn write(&self, destination: &Destination, bytes: &[u8]) -> Outcome {
        let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
        let request = Request { at: monotonic::now() - self.1, database: destination.database().to_owned(), text };
        let (delay, outcome) = {
            let mut script = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = (script.1)(&request);
            script.0.push(request);
            answer
        };
        tokio::time::sleep(delay).await;
        outcome
    }

    fn requests(&self) -> Vec<Request> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

/// A flusher with lines for some databases, and a scripted backend.
struct Bench {
    journal: Journal,
    script: Script,
    health: Arc<Health>,
    letters: Arc<DeadLetters>,
    closing: watch::Sender<bool>,
    flusher: Option<Flusher>,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new(answer: impl FnMut(&Request) -> Outcome + Send + 'static) -> Self {
        let mut answer = answer;
        Self::delayed(1, move |request| (Duration::from_millis(1), answer(request)))
    }

    fn delayed(concurrency: usize, answer: impl FnMut(&Request) -> (Duration, Outcome) + Send + 'static) -> Self {
        let backend = BackendConfig { name: "a".to_owned(), address: String::new(), replay_share: 0.5 };
        let journal = Journal::new(1 << 30, &[backend]);
        let limits = Limits { lines: u64::MAX, bytes: MAX_BYTES, linger: Duration::ZERO };
        let script = Script(Arc::new(Mutex::new((Vec::new(), Box::new(answer)))), monotonic::now());
        let (closing, is_closing) = watch::channel(false);
        let health = Arc::<Health>::default();
        let folder = tempfile::tempdir().expect("folder");
        let letters = Arc::new(DeadLetters::open(folder.path(), 1 << 20).expect("open"));
        let endpoints = (0..concurrency).map(|_| Endpoint::Scripted(script.clone())).collect();
        let reader = journal.reader(BackendId::new(0));
        let flusher = Flusher::new(
            "a".to_owned(),
            endpoints,
            reader,
            (limits, Duration::from_secs(30)),
            Arc::clone(&health),
            Arc::clone(&letters),
            is_closing,
        );
        Self { journal, script, health, letters, closing, flusher: Some(flusher), _folder: folder }
    }

    /// Appends a record of so many lines of about 100 bytes.
    fn add(&self, database: &str, lines: u64) {
        let filler = "x".repeat(80);
        let bytes: String = (0..lines).map(|line| format!("m s=\"{filler}\" {line}\n")).collect();
        self.append(database, bytes, lines);
    }

    fn append(&self, database: &str, bytes: String, lines: u64) {
        let destination = Arc::new(Destination::new(database, "", Precision::Nanoseconds));
        let capacity = bytes.len();
        self.journal.append(Batch::new(destination, bytes, lines, Received::now()).with_capacity(capacity));
    }

    /// Runs the flusher for so long.
    async fn run(&mut self, time: Duration) {
        let flusher = self.flusher.take().expect("it runs once");
        tokio::time::timeout(time, flusher.run()).await.expect_err("it goes on");
    }

    fn pending(&self) -> u64 {
        self.journal.snapshot().ledgers[0].pending
    }
}

fn failing(fate: Fate) -> impl Fn(&Request) -> Outcome + Send {
    move |_| Outcome::new(fate, "it fails".to_owned())
}

fn delivered() -> Outcome {
    Outcome::new(Fate::Delivered, String::new())
}

/// Every failure after which lines wait.
const FAILURES: [Fate; 8] = [
    Fate::Transient,
    Fate::Failed,
    Fate::Unexpected,
    Fate::Busy { retry_after: None },
    Fate::Down,
    Fate::Stalled,
    Fate::HoldBackend,
    Fate::HoldDestination,
];

#[tokio::test(start_paused = true)]
async fn no_failure_makes_a_hot_loop_and_no_line_is_given_up() {
    fastrand::seed(1);
    for fate in FAILURES {
        let mut bench = Bench::new(failing(fate));
        bench.add("db", 100);
        bench.run(TEN_MINUTES).await;
        let requests = bench.script.requests();
        // In the first minute there is one request in 2.5 seconds on average, then one in 15.
        assert!((30..120).contains(&requests.len()), "{fate:?}: {} requests in ten minutes", requests.len());
        let first_minute = requests.iter().filter(|request| request.at < Duration::from_secs(60));
        let times: Vec<Duration> = first_minute.map(|request| request.at).collect();
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] <= Duration::from_millis(5_010)), "{fate:?}: {times:?}");
        assert_eq!(bench.pending(), 100, "{fate:?}");
        let (made, again) = bench.health.requests();
        assert_eq!((made, again), (requests.len() as u64, made - 1), "{fate:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_differ_and_begin_anew_after_a_success() {
    for fate in FAILURES {
        let mut firsts = Vec::new();
        for seed in 0..30 {
            fastrand::seed(seed);
            let mut count = 0;
            let mut bench = Bench::new(move |_| {
                count += 1;
                // The backend accepts lines once in between.
                if count == 20 { delivered() } else { Outcome::new(fate, String::new()) }
            });
            for _ in 0..200 {
                bench.add("db", 400);
            }
            bench.run(TEN_MINUTES).await;
            let times: Vec<Duration> = bench.script.requests().iter().map(|request| request.at).collect();
            let pauses: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(pauses[..19].iter().all(|pause| *pause >= Duration::from_millis(50)), "{fate:?} {pauses:?}");
            assert!(pauses.iter().max() > Some(&Duration::from_secs(8)), "{fate:?} {pauses:?}");
            assert!(pauses[0] <= Duration::from_millis(260) && pauses[20] <= Duration::from_millis(260), "{pauses:?}");
            firsts.push(pauses[3]);
        }
        // Relays that failed together do not retry together.
        firsts.sort_unstable();
        firsts.dedup();
        assert!(firsts.len() > 20, "{fate:?}: {firsts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_fate_leaves_the_backend_in_its_state() {
    for (fate, state) in [
        (Fate::Transient, State::Retrying),
        (Fate::Failed, State::Retrying),
        (Fate::Unexpected, State::Retrying),
        (Fate::Busy { retry_after: None }, State::Retrying),
        (Fate::Down, State::Down),
        (Fate::Stalled, State::Down),
        (Fate::HoldBackend, State::Held),
        (Fate::HoldDestination, State::Held),
        (Fate::Delivered, State::Up),
        (Fate::Rejected { class: Rejection::FieldType, lines: Some(1) }, State::Up),
        (Fate::Rejected { class: Rejection::Other, lines: None }, State::Held),
        (Fate::TooLarge, State::Held),
    ] {
        let mut bench = Bench::new(failing(fate));
        bench.add("db", 1);
        // Shorter than any pause, so that no random retry is included.
        bench.run(Duration::from_millis(40)).await;
        assert_eq!(bench.health.state(), state, "{fate:?}");
        let held = usize::from(state == State::Held);
        assert_eq!(bench.health.held().len(), held, "{fate:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_the_least_and_not_the_most() {
    fastrand::seed(3);
    let wanted = Duration::from_secs(7);
    let mut bench = Bench::new(failing(Fate::Busy { retry_after: Some(wanted) }));
    bench.add("db", 100);
    bench.run(TEN_MINUTES).await;
    let times: Vec<Duration> = bench.script.requests().iter().map(|request| request.at).collect();
    assert!(times.len() > 20 && times.windows(2).all(|pair| pair[1] - pair[0] >= wanted), "{times:?}");
    assert!(times.windows(2).any(|pair| pair[1] - pair[0] > wanted * 2), "{times:?}");
    // A server that asks for a pause of zero gets the usual one.
    let mut bench = Bench::new(failing(Fate::Busy { retry_after: Some(Duration::ZERO) }));
    bench.add("db", 100);
    bench.run(TEN_MINUTES).await;
    assert!(bench.script.requests().len() < 120);
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_finds_small_requests_that_grow() {
    for fate in FAILURES {
        let mut count = 0;
        let mut bench = Bench::new(move |_| {
            count += 1;
            if count == 1 { Outcome::new(fate, String::new()) } else { delivered() }
        });
        for _ in 0..2_000 {
            bench.add("db", 100);
        }
        bench.run(TEN_MINUTES).await;
        let sizes: Vec<u64> = bench.script.requests().iter().map(|request| request.text.len() as u64).collect();
        let record = 10_000;
        assert!(sizes[0] > MAX_BYTES - record, "{}: as much as may be", sizes[0]);
        assert!(sizes[1] <= MIN_BYTES, "{sizes:?}");
        assert!(sizes[1..].windows(2).all(|pair| pair[1] <= pair[0] + MIN_BYTES + record), "{sizes:?}");
        assert!(sizes[1..14].windows(2).all(|pair| pair[1] > pair[0]), "{sizes:?}");
        assert!(sizes[18] > MAX_BYTES - record, "{sizes:?}");
        assert_eq!((bench.pending(), bench.health.state()), (0, State::Up), "{fate:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_one_destination_is_answered_holds_up_no_other() {
    for fate in FAILURES.into_iter().filter(|fate| !matches!(fate, Fate::Down | Fate::HoldBackend)) {
        let mut bench =
            Bench::new(
                move |request| {
                    if request.database == "sick" { Outcome::new(fate, String::new()) } else { delivered() }
                },
            );
        for _ in 0..10 {
            bench.add("sick", 10);
            bench.add("well", 10);
        }
        bench.run(Duration::from_secs(30)).await;
        assert_eq!(bench.pending(), 100, "{fate:?}");
        assert_ne!(bench.health.state(), State::Up, "{fate:?}: one destination waits");
        let sick = bench.script.requests().iter().filter(|request| request.database == "sick").count();
        assert!((5..60).contains(&sick), "{fate:?}: {sick}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_that_breaks_every_request_is_given_up_within_a_minute_and_the_others_arrive() {
    for fate in [Fate::Failed, Fate::Stalled, Fate::Unexpected] {
        fastrand::seed(5);
        let mut bench = Bench::delayed(4, move |request| {
            let breaks = request.text.contains(" 77\n");
            // Only a stalled request takes the whole time limit.
            let delay = if breaks && fate == Fate::Stalled { Duration::from_secs(2) } else { Duration::from_millis(1) };
            (delay, if breaks { Outcome::new(fate, "it broke".to_owned()) } else { delivered() })
        });
        bench.add("db", 1000);
        bench.run(Duration::from_secs(60)).await;
        let ledger = bench.journal.snapshot().ledgers.remove(0);
        let poison = ledger.rejected[Rejection::Poison as usize];
        assert_eq!((ledger.pending, ledger.delivered, poison), (0, 999, 1), "{fate:?}");
        assert_eq!(bench.letters.figures("a").kept, 1);
        assert_eq!(bench.health.state(), State::Up);
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_goes_in_the_middle_of_a_division_gets_everything_once_it_is_back() {
    for fate in FAILURES {
        for begins_at in [1, 2, 3, 5, 6, 7, 8, 10, 12] {
            fastrand::seed(begins_at);
            let mut count = 0;
            let mut bench = Bench::delayed(4, move |request| {
                count += 1;
                let outcome = match count {
                    // The request is rejected, or fails often enough to be divided.
                    _ if count < begins_at && fate == Fate::Failed => Outcome::new(Fate::Failed, String::new()),
                    _ if (begins_at..begins_at + 3).contains(&count) => Outcome::new(fate, String::new()),
                    _ if request.text.contains(" 77\n") => {
                        let refused = Fate::Rejected { class: Rejection::FieldType, lines: None };
                        Outcome::of_answer(refused, String::new(), 400, r#"{"error":"field type conflict"}"#.to_owned())
                    }
                    _ => delivered(),
                };
                (Duration::from_millis(10), outcome)
            });
            for _ in 0..10 {
                bench.add("db", 100);
            }
            bench.run(TEN_MINUTES).await;
            let ledger = bench.journal.snapshot().ledgers.remove(0);
            let refused = ledger.rejected[Rejection::FieldType as usize];
            assert_eq!((ledger.pending, ledger.delivered, refused), (0, 990, 10), "{fate:?} from {begins_at} on");
            assert_eq!(bench.health.state(), State::Up);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn thousands_of_lines_that_break_are_not_given_up() {
    fastrand::seed(6);
    // An incident: every other line breaks its request.
    let mut bench = Bench::new(|request| {
        let breaks = request.text.lines().any(|line| line.ends_with(|last: char| "13579".contains(last)));
        if breaks { Outcome::new(Fate::Failed, "it broke".to_owned()) } else { delivered() }
    });
    bench.add("db", 1000);
    bench.run(TEN_MINUTES).await;
    let ledger = bench.journal.snapshot().ledgers.remove(0);
    // Nothing of the lease is acked yet, and the number of lines given up grows by ten a minute.
    assert_eq!((ledger.pending, bench.health.state()), (1000, State::Held));
    assert!(bench.script.requests().len() < 2000);
}

#[tokio::test(start_paused = true)]
async fn sizes_that_a_backend_takes_are_learned_and_grow_again() {
    let limit = Arc::new(Mutex::new(20_000));
    let of_backend = Arc::clone(&limit);
    let mut bench = Bench::new(move |request| {
        let is_larger = request.text.len() > *of_backend.lock().expect("no panic");
        Outcome::new(if is_larger { Fate::TooLarge } else { Fate::Delivered }, String::new())
    });
    for _ in 0..400 {
        bench.add("db", 300);
    }
    let flusher = bench.flusher.take().expect("it runs once");
    let running = tokio::spawn(flusher.run());
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(bench.pending(), 0, "a record of 29,000 bytes goes in parts");
    let before = bench.script.requests();
    let refused = before.iter().filter(|request| request.text.len() > 20_000).count();
    assert!(refused < 20, "{refused} of {}", before.len());
    *limit.lock().expect("no panic") = usize::MAX;
    let mut largest = Vec::new();
    for _ in 0..20 {
        let so_far = bench.script.requests().len();
        tokio::time::sleep(Duration::from_secs(31)).await;
        for _ in 0..100 {
            bench.add("db", 300);
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
        let sizes = bench.script.requests()[so_far..].iter().map(|request| request.text.len() as u64).max();
        largest.extend(sizes);
    }
    assert_eq!(bench.pending(), 0);
    let grown = largest[1] <= 2 * 20_000 && largest.last() > Some(&(MAX_BYTES - 40_000));
    assert!(grown, "twice as much each minute: {largest:?} after {}", before.len());
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_far_backend_has_several_requests_under_way_and_a_failing_one_has_one() {
    let under_way = Arc::new(Mutex::new(Vec::<(Instant, Instant)>::new()));
    let seen = Arc::clone(&under_way);
    let delay = Duration::from_millis(100);
    let mut bench = Bench::delayed(4, move |_| {
        let now = monotonic::now();
        seen.lock().expect("no panic").push((now, now + delay));
        (delay, delivered())
    });
    for _ in 0..2_000 {
        bench.add("db", 100);
    }
    bench.run(Duration::from_secs(10)).await;
    assert_eq!(bench.pending(), 0);
    let times = under_way.lock().expect("no panic").clone();
    let together = |at: Instant| times.iter().filter(|(begin, end)| *begin <= at && at < *end).count();
    let most = times.iter().map(|(begin, _)| together(*begin)).max();
    assert_eq!((together(times[0].0), most), (1, Some(4)), "the first request shows whether it takes lines");

    let mut bench = Bench::delayed(4, move |_| (delay, Outcome::new(Fate::Down, String::new())));
    for _ in 0..2_000 {
        bench.add("db", 100);
    }
    bench.run(TEN_MINUTES).await;
    let times: Vec<Duration> = bench.script.requests().iter().map(|request| request.at).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= delay), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_under_way_together_when_a_backend_goes_cost_one_pause() {
    for seed in 0..20 {
        fastrand::seed(seed);
        let (mut count, times) = (0, Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&times);
        let mut bench = Bench::delayed(4, move |request| {
            count += 1;
            if count <= 8 {
                return (Duration::from_millis(5), delivered());
            }
            // All requests end within the shortest pause.
            let delay = Duration::from_millis(10 + 10 * (count % 4));
            seen.lock().expect("no panic").push((request.at, request.at + delay));
            (delay, Outcome::new(Fate::Down, String::new()))
        });
        for _ in 0..2_000 {
            bench.add("db", 100);
        }
        bench.run(Duration::from_secs(5)).await;
        let times = times.lock().expect("no panic").clone();
        let first_end = times.iter().map(|(_, end)| *end).min().expect("it failed");
        let (under_way, later): (Vec<_>, Vec<_>) = times.iter().copied().partition(|(begin, _)| *begin < first_end);
        assert_eq!(under_way.len(), 4, "{times:?}");
        assert!(later[0].0 - first_end <= Duration::from_millis(260), "{seed}: as after one failure: {times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_claims_more_than_was_sent_costs_what_was_sent() {
    for lines in [11, 1000, u64::MAX] {
        let mut bench = Bench::new(failing(Fate::Rejected { class: Rejection::Retention, lines: Some(lines) }));
        bench.add("db", 10);
        bench.run(Duration::from_secs(60)).await;
        let ledger = bench.journal.snapshot().ledgers.remove(0);
        assert_eq!((ledger.rejected.iter().sum(), ledger.delivered, ledger.pending), (10_u64, 0, 0));
        assert_eq!(bench.letters.figures("a").kept, 10);
    }
}
