//! What was refused once is sent apart.

use super::*;

/// One host that sends a field in another type does so with each of its lines.
#[tokio::test(start_paused = true)]
async fn what_was_refused_once_is_sent_apart_while_it_is_refused() {
    let conflict = r#"{"error":"partial write: field type conflict: input field \"s\" on measurement \"m\" is type string, already exists as type float dropped=1"}"#;
    let beyond = r#"{"error":"partial write: points beyond retention policy dropped=1"}"#;
    // The lines `add` makes have times from 0 on, and a string `s`. Lines of another measurement come with them.
    for (class, body, refused) in [(Rejection::FieldType, conflict, 1), (Rejection::Retention, beyond, 1)] {
        let mends_at = 6;
        let mut records = 0;
        let mut bench = Bench::new(move |request| {
            records += u64::from(request.text.contains("good"));
            if request.text.contains("m s=") && records < mends_at {
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
        // The first finds out; those after it take one request for each kind of line; once it is taken there is no rule.
        assert_eq!((requests[0], &requests[1..3], requests[7]), (3, &[2, 2][..], refused), "{class:?} {requests:?}");
    }
}
