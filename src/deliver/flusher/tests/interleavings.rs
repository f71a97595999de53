//! Any interleaving of answers for several databases and requests: the stored lines, the dead
//! letters and the ledger agree to the line. With one request at a time, lines arrive in order.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const DATABASES: [&str; 3] = ["one", "two", "three"];
/// Failures that no line can cause.
const TELLING: [Fate; 4] = [Fate::Transient, Fate::Busy { retry_after: None }, Fate::Down, Fate::HoldDestination];
const RECORDS: u64 = 40;
const LINES: u64 = 25;

/// A model of a backend: the stored lines by database, in the order in which they first arrived.
#[derive(Default)]
struct Model {
    stored: BTreeMap<String, Vec<String>>,
}

impl Model {
    fn store<'a>(&mut self, database: &str, lines: impl Iterator<Item = &'a str>) {
        let stored = self.stored.entry(database.to_owned()).or_default();
        for line in lines.map(str::to_owned) {
            if !stored.contains(&line) {
                stored.push(line);
            }
        }
    }
}

/// Returns a random answer. One line in a hundred is bad. A backend of the first kind stores the
/// other lines and reports how many it dropped; one of the second kind stores nothing.
fn answer(
    model: &mut Model,
    request: &Request,
    (fails, fates): (f64, &[Fate]),
    is_partial: bool,
) -> (Duration, Outcome) {
    let delay = Duration::from_millis(fastrand::u64(1..300));
    if fastrand::f64() < fails {
        let fate = fates[fastrand::usize(..fates.len())];
        // A failed request may have been stored nevertheless.
        if fastrand::bool() {
            model.store(&request.database, request.text.lines().filter(|line| !is_bad(line)));
        }
        return (delay, Outcome::new(fate, String::new()));
    }
    let bad = request.text.lines().filter(|line| is_bad(line)).count() as u64;
    if bad == 0 || is_partial {
        model.store(&request.database, request.text.lines().filter(|line| !is_bad(line)));
    }
    if bad == 0 {
        return (delay, delivered());
    }
    let fate = Fate::Rejected { class: Rejection::FieldType, lines: is_partial.then_some(bad) };
    let dropped = if is_partial { format!(" dropped={bad}") } else { String::new() };
    let body = format!("{{\"error\":\"field type conflict{dropped}\"}}");
    (delay, Outcome::of_answer(fate, String::new(), 400, body))
}

fn is_bad(line: &str) -> bool {
    line.ends_with("77")
}

/// Runs a random sequence. Returns what the backend stored, and the bench.
async fn course(
    seed: u64,
    concurrency: usize,
    fails: (f64, &'static [Fate]),
    has_bad: bool,
) -> (Arc<Mutex<Model>>, Bench) {
    fastrand::seed(seed);
    let model = Arc::<Mutex<Model>>::default();
    let of_backend = Arc::clone(&model);
    let is_partial = seed.is_multiple_of(2);
    let mut bench = Bench::delayed(concurrency, move |request| {
        answer(&mut of_backend.lock().expect("no panic"), request, fails, is_partial)
    });
    let flusher = bench.flusher.take().expect("it runs once");
    let running = tokio::spawn(flusher.run());
    for record in 0..RECORDS {
        for database in DATABASES {
            let numbers = (record * LINES..(record + 1) * LINES).filter(|number| has_bad || number % 100 != 77);
            let lines: Vec<String> = numbers.map(|number| format!("m,d={database} v=1 {number}\n")).collect();
            bench.append(database, lines.concat(), lines.len() as u64);
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..500))).await;
    }
    tokio::time::sleep(TEN_MINUTES * 12).await;
    running.abort();
    (model, bench)
}

#[tokio::test(start_paused = true)]
async fn every_line_is_stored_or_a_dead_letter_whatever_comes_between() {
    let kinds = [1, 2, 4].into_iter().flat_map(|concurrency| [0.0, 0.1, 0.4].map(|fails| (concurrency, fails)));
    for (seed, (concurrency, fails)) in (0..54).zip(kinds.cycle()) {
        let (model, bench) = course(seed, concurrency, (fails, &FAILURES), true).await;
        let about = format!("seed {seed}, {concurrency} requests, {fails} of them fail");
        let ledger = bench.journal.snapshot().ledgers.remove(0);
        let (all, bad) = (RECORDS * LINES * 3, RECORDS * LINES * 3 / 100);
        let rejected: u64 = ledger.rejected.iter().sum();
        assert_eq!((ledger.pending, ledger.delivered + rejected), (0, all), "{about}");
        let letters = bench.letters.figures("a").kept;
        let poison = ledger.rejected[Rejection::Poison as usize];
        assert_eq!(letters, rejected, "{about}");
        assert!(bad <= rejected && rejected - bad <= poison, "{about}: {rejected}, {poison}");
        // Random answers may look like those to a line that breaks requests.
        assert!(poison <= if fails > 0.2 { 30 } else { 0 }, "{about}: {poison}");
        let model = model.lock().expect("no panic");
        for database in DATABASES {
            let stored: BTreeSet<&String> = model.stored[database].iter().collect();
            let wanted = RECORDS * LINES - RECORDS * LINES / 100;
            assert!(wanted - poison <= stored.len() as u64 && stored.len() as u64 <= wanted, "{about}");
        }
        // 120 records, of which 30 hold a bad line, and 40 % of all requests fail: this bounds the
        // requests, so no sequence loops.
        let requests = bench.script.requests().len();
        assert!(requests < 2500, "{about}: {requests}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_one_request_at_a_time_lines_arrive_in_order() {
    for (seed, fails) in (0..30).zip([0.0, 0.3, 0.6].into_iter().cycle()) {
        let (model, bench) = course(seed, 1, (fails, &TELLING), false).await;
        assert_eq!(bench.pending(), 0, "seed {seed}");
        let model = model.lock().expect("no panic");
        for database in DATABASES {
            let number = |line: &String| line.rsplit(' ').next().and_then(|number| number.parse::<u64>().ok());
            let numbers: Vec<_> = model.stored[database].iter().map(number).collect();
            assert!(numbers.is_sorted(), "seed {seed}");
        }
    }
}
