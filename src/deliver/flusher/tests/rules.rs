//! Lines that look like rejected ones are sent separately.

use super::*;

/// A host that sends a field with another type does so in each of its lines.
#[tokio::test(start_paused = true)]
async fn what_was_refused_once_is_sent_apart_while_it_is_refused() {
    let conflict = r#"{"error":"partial write: field type conflict: input field \"s\" on measurement \"m\" is type string, already exists as type float dropped=1"}"#;
    let beyond = r#"{"error":"partial write: points beyond retention policy dropped=1"}"#;
    // `add` makes lines with times from 0 on, and a string field `s`. Lines of another measurement
    // are mixed in.
    for (class, body, refused) in [(Rejection::FieldType, conflict, 1), (Rejection::Retention, beyond, 1)] {
        let recovers_at = 6;
        let mut records = 0;
        let mut bench = Bench::new(move |request| {
            records += u64::from(request.text.contains("good"));
            if request.text.contains("m s=") && records < recovers_at {
                let fate = Fate::Rejected { class, lines: Some(1) };
                Outcome::of_answer(fate, String::new(), 400, body.to_owned())
            } else {
                delivered()
            }
        });
        let flusher = bench.flusher.take().expect("it runs once");
        let running = tokio::spawn(flusher.run());
        let mut requests = Vec::new();
        for _ in 0..8 {
            let before = bench.script.requests().len();
            let bytes = "good v=1 9\nm s=\"x\" 1\ngood v=1 9\n".to_owned();
            bench.append("db", bytes, 3);
            tokio::time::sleep(Duration::from_secs(2)).await;
            requests.push(bench.script.requests().len() - before);
        }
        running.abort();
        let ledger = bench.journal.snapshot().ledgers.remove(0);
        let rejected = ledger.rejected[class as usize];
        assert_eq!((ledger.pending, ledger.delivered + rejected), (0, 24), "{class:?}");
        // The first request finds the conflict. Later ones take one request per kind of line. Once
        // the lines are accepted, the rule is gone.
        assert_eq!((requests[0], &requests[1..3], requests[7]), (3, &[2, 2][..], refused), "{class:?} {requests:?}");
    }
}
