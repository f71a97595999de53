//! Tests of the flusher's shutdown.

use super::*;

/// A shutdown ends a pause and allows one more try, then further tries at short intervals where
/// they may succeed.
#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_pause_and_tries_on() {
    for (fate, goes_on) in [
        (Fate::Transient, true),
        (Fate::Failed, true),
        (Fate::Busy { retry_after: Some(Duration::from_secs(100)) }, true),
        (Fate::HoldDestination, true),
        (Fate::Down, false),
        (Fate::Stalled, false),
        (Fate::HoldBackend, false),
    ] {
        fastrand::seed(8);
        let mut bench = Bench::new(failing(fate));
        bench.add("db", 100);
        let flusher = bench.flusher.take().expect("it runs once");
        let running = tokio::spawn(flusher.run());
        tokio::time::sleep(Duration::from_secs(30)).await;
        let before = bench.script.requests().len();
        bench.journal.close();
        bench.closing.send_replace(true);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(bench.script.requests().len(), before + 1, "{fate:?}: one more try at once");
        tokio::time::sleep(Duration::from_secs(5)).await;
        let after = bench.script.requests().len() - before;
        assert_eq!(running.is_finished(), !goes_on, "{fate:?}");
        assert_eq!(after > 5, goes_on, "{fate:?}: {after}");
        assert_eq!(bench.pending(), 100);
        running.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_once_everything_is_delivered() {
    let mut bench = Bench::delayed(4, |_| (Duration::from_millis(300), delivered()));
    for _ in 0..50 {
        bench.add("db", 1000);
    }
    bench.journal.close();
    bench.closing.send_replace(true);
    let flusher = bench.flusher.take().expect("it runs once");
    tokio::time::timeout(TEN_MINUTES, flusher.run()).await.expect("it ends");
    assert_eq!(bench.pending(), 0);
}
