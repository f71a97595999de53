//! Tests of lines that are divided, given up, or resent.

use super::*;
use crate::batch::WallTime;
use crate::journal::BackendId;

/// Rejects lines with this ending.
fn refusing(ending: &'static str) -> impl Fn(&Request) -> Outcome + Send {
    move |request| {
        if !request.text.contains(ending) {
            return delivered();
        }
        let refused = Fate::Rejected { class: Rejection::FieldType, lines: None };
        Outcome::of_answer(refused, String::new(), 400, r#"{"error":"field type conflict"}"#.to_owned())
    }
}

/// Makes a batch of lines for the database `db`.
fn batch(text: String) -> Batch {
    let destination = Arc::new(Destination::new("db", "", Precision::Nanoseconds));
    let received = Received { monotonic: monotonic::now(), wall: WallTime::MIN };
    let (lines, capacity) = (text.lines().count() as u64, text.len());
    Batch::new(destination, text, lines, received).with_capacity(capacity)
}

#[tokio::test(start_paused = true)]
async fn what_fails_while_its_destination_is_divided_waits_until_that_is_done() {
    let (mut fails, refusing) = (true, refusing(" 7\n"));
    let mut bench = Bench::delayed(2, move |request| {
        if request.text.starts_with("divided") {
            (Duration::from_secs(1), refusing(request))
        } else if request.text.starts_with("failing") && std::mem::take(&mut fails) {
            (Duration::from_millis(1700), Outcome::new(Fate::Transient, "not now".to_owned()))
        } else {
            (Duration::from_millis(1), delivered())
        }
    });
    let running = tokio::spawn(bench.flusher.take().expect("it runs once").run());
    let divided: String = (0..100).map(|line| format!("divided v=1 {line}\n")).collect();
    // The second request is in flight when the first one is rejected.
    for text in ["first v=1 1\n".to_owned(), divided, "failing v=1 1\n".to_owned()] {
        bench.journal.append(batch(text));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    running.abort();
    let requests = bench.script.requests();
    let last = |name: &str| requests.iter().rposition(|request| request.text.starts_with(name)).expect("it was sent");
    assert!(requests.iter().filter(|request| request.text.starts_with("failing")).count() == 2);
    assert!(bench.pending() == 0 && last("failing") > last("divided"), "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn a_part_that_is_due_waits_for_a_connection_that_is_busy() {
    fastrand::seed(12);
    let mut bench = Bench::delayed(1, |request| match request.database.as_str() {
        "busy" => (Duration::from_secs(1), delivered()),
        _ if request.text.contains(" 7\n") => (Duration::from_millis(1), Outcome::new(Fate::Failed, String::new())),
        _ => (Duration::from_millis(1), delivered()),
    });
    bench.add("divided", 100);
    let running = tokio::spawn(bench.flusher.take().expect("it runs once").run());
    // There is always something else to send.
    for _ in 0..600 {
        bench.add("busy", 1);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(120)).await;
    running.abort();
    let ledger = bench.journal.snapshot().ledgers.remove(0);
    let poison = ledger.rejected[Rejection::Poison as usize];
    assert_eq!((ledger.pending, ledger.delivered, poison), (0, 699, 1));
}

#[tokio::test(start_paused = true)]
async fn one_connection_serves_the_parts_of_several_destinations() {
    let mut bench = Bench::new(refusing(" 7\n"));
    for database in ["x", "y", "z"] {
        bench.add(database, 100);
    }
    bench.run(Duration::from_secs(10)).await;
    let ledger = bench.journal.snapshot().ledgers.remove(0);
    let refused = ledger.rejected[Rejection::FieldType as usize];
    assert_eq!((ledger.pending, ledger.delivered, refused), (0, 297, 3));
}

#[tokio::test(start_paused = true)]
async fn few_lines_that_break_are_given_up_in_the_same_minute_with_pauses_between_their_tries() {
    fastrand::seed(11);
    let is_bad = |request: &Request| request.text.lines().any(|line| line.ends_with("50"));
    let mut bench =
        Bench::new(
            move |request| {
                if is_bad(request) { Outcome::new(Fate::Failed, "it broke".to_owned()) } else { delivered() }
            },
        );
    bench.add("db", 700);
    bench.run(Duration::from_secs(60)).await;
    let ledger = bench.journal.snapshot().ledgers.remove(0);
    let poison = ledger.rejected[Rejection::Poison as usize];
    assert_eq!((ledger.pending, ledger.delivered, poison), (0, 693, 7));
    // After the first line that passed, the backend is known to work.
    let requests = bench.script.requests();
    let divided = requests.iter().skip_while(|request| is_bad(request));
    let times: Vec<_> = divided.map(|request| (is_bad(request), request.text.lines().count(), request.at)).collect();
    for pair in times.windows(2).filter(|pair| pair[0].0 && pair[0].1 > 1) {
        assert!(pair[1].2 - pair[0].2 >= PART_PAUSE, "{pair:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn letters_that_were_delivered_are_removed_and_no_others() {
    let mut bench = Bench::new(refusing(" 7\n"));
    bench.add("db", 10);
    bench.add("other", 10);
    bench.run(Duration::from_secs(1)).await;
    let kept = |bench: &Bench| {
        let figures = bench.letters.figures("a");
        (figures.kept, figures.resent)
    };
    assert_eq!(kept(&bench), (2, 0));
    let (letters, _) = bench.letters.take(&Filter::default(), &["a"]).expect("letters");
    let sent_again = letters.iter().find(|letter| letter.database == "db").expect("a letter");

    // The backend accepts the line now.
    let letters = Arc::clone(&bench.letters);
    let mut later = Bench::new(|_| delivered());
    later.flusher.as_mut().expect("it has not run").letters = letters;
    later.journal.resend(BackendId::new(0), batch("m v=1 7\n".to_owned()), vec![sent_again.id]);
    let running = tokio::spawn(later.flusher.take().expect("it runs once").run());
    while kept(&bench).1 == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    running.abort();
    assert_eq!((kept(&bench), later.pending()), ((1, 1), 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_as_small_as_the_backend_wants_it_is_sent_as_ever_and_no_retry() {
    let mut bench = Bench::new(|request| {
        Outcome::new(if request.text.len() > 20_000 { Fate::TooLarge } else { Fate::Delivered }, String::new())
    });
    bench.add("db", 1000);
    let flusher = bench.flusher.take().expect("it runs once");
    let running = tokio::spawn(flusher.run());
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.pending(), 0);
    let (made, again) = bench.health.requests();
    for _ in 0..10 {
        bench.add("db", 10);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!((bench.health.requests(), bench.pending()), ((made + 10, again), 0));
    // A larger request is not tried soon either.
    let before = bench.script.requests().len();
    bench.add("db", 1000);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let sizes: Vec<usize> = bench.script.requests()[before..].iter().map(|request| request.text.len()).collect();
    assert!(bench.pending() == 0 && sizes.iter().all(|size| *size <= 20_000), "{sizes:?}");
    running.abort();
}
