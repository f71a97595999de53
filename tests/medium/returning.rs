//! Copies that come back, or come later: when readers are sent to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use twinflux::cli::socket::BackendAction;

use crate::reads::{ROWS, answering, queries, select, with_http};
use crate::support::{Running, Scripted, no_content, wait_for};

#[test]
fn a_copy_that_comes_back_answers_two_questions_one_by_one_before_it_is_asked_as_before() {
    let (is_sick, is_held) = (Arc::new(AtomicUsize::new(1)), Arc::new(AtomicUsize::new(0)));
    let states = (Arc::clone(&is_sick), Arc::clone(&is_held));
    let back = Scripted::start(move |_, request| match request.uri.path() {
        "/query" => {
            while states.1.load(Ordering::Relaxed) > 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
            (200, Vec::new(), ROWS.to_owned())
        }
        "/write" if states.0.load(Ordering::Relaxed) > 0 => (503, Vec::new(), String::new()),
        _ => no_content(),
    });
    let other = answering(200, ROWS);
    let mut config = with_http(&[back.url(), other.url()]);
    (config.query.max_lag, config.query.sticky) = (Duration::from_millis(100), true);
    let relay = Running::start(config);
    relay.send(&["m v=1 1000000000\n"]);
    relay.wait_delivered("b", 1);
    let serves = |word: &str| {
        wait_for(word, || (relay.backend("a").read.expect("figures").serves == word).then_some(()));
    };
    serves("no");
    is_sick.store(0, Ordering::Relaxed);
    relay.wait_delivered("a", 1);
    serves("yes");
    // Of two copies that are equal, loopback's is the first one.
    for round in 1..=2 {
        is_held.store(1, Ordering::Relaxed);
        std::thread::scope(|threads| {
            let first = threads.spawn(|| select(&relay, "SELECT+v+FROM+m", "").0);
            wait_for("a question under way", || {
                (relay.backend("a").read.expect("figures").queries == round).then_some(())
            });
            assert_eq!(select(&relay, "SELECT+v+FROM+m", "").0, 200, "the other copy answers meanwhile");
            assert_eq!(queries(&other), usize::try_from(round).expect("few"));
            is_held.store(0, Ordering::Relaxed);
            assert_eq!(first.join().expect("an answer"), 200);
        });
    }
    is_held.store(1, Ordering::Relaxed);
    std::thread::scope(|threads| {
        let asked: Vec<_> = (0..3).map(|_| threads.spawn(|| select(&relay, "SELECT+v+FROM+m", "").0)).collect();
        wait_for("three questions under way", || {
            (relay.backend("a").read.expect("figures").queries == 5).then_some(())
        });
        is_held.store(0, Ordering::Relaxed);
        asked.into_iter().for_each(|one| assert_eq!(one.join().expect("an answer"), 200));
    });
    assert_eq!(queries(&other), 2);
}

#[test]
fn a_backend_that_comes_later_answers_once_somebody_vouches_for_it() {
    let folder = tempfile::tempdir().expect("folder");
    let (first, second) = (answering(200, ROWS), answering(200, ROWS));
    let mut config = with_http(&[first.url()]);
    config.data_dir = folder.path().join("data");
    let mut relay = Running::start_in(config.clone());
    relay.send(&["m v=1 1\n"]);
    relay.wait_delivered("a", 1);
    relay.stop();
    let mut both = with_http(&[first.url(), second.url()]);
    both.data_dir.clone_from(&config.data_dir);
    let mut relay = Running::start_in(both.clone());
    ["a", "b"].iter().for_each(|name| relay.wait_state(name, "up"));
    let serves = |relay: &Running| relay.backend("b").read.expect("figures").serves;
    assert_eq!(serves(&relay), "no");
    let gaps = relay.status().journal.gaps;
    assert_eq!((gaps.len(), &*gaps[0].backend, &*gaps[0].reason, &gaps[0].points_from), (1, "b", "joined", &None));
    assert_eq!(select(&relay, "SELECT+v+FROM+m", "").0, 200);
    assert_eq!(queries(&second), 0);
    // It is still so after a restart.
    relay.stop();
    let mut relay = Running::start_in(both.clone());
    relay.wait_state("b", "up");
    assert_eq!(serves(&relay), "no");
    relay.change("b", BackendAction::Vouch);
    assert_eq!(serves(&relay), "yes");
    relay.stop();
    let relay = Running::start_in(both);
    relay.wait_state("b", "up");
    assert_eq!(serves(&relay), "yes");
}
