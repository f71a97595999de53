//! Statements that change something: on every backend, in their order, whatever their length and
//! whatever becomes of an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use twinflux::config::{Config, Http};

use crate::http::{Answered, Client};
use crate::support::{Running, Scripted, config, no_content, wait_for};

const DONE: &str = "{\"results\":[{\"statement_id\":0}]}\n";

fn with_http(urls: &[String]) -> Config {
    let mut config = config(urls);
    config.http.push(Http { listen: ([127, 0, 0, 1], 0).into(), ..Http::default() });
    config
}

fn order(relay: &Running, form: &str) -> Answered {
    Client::new(relay.listener("http")).post("/query", "", form.as_bytes())
}

/// How often a backend was sent a statement that holds this.
fn count(backend: &Scripted, part: &str) -> usize {
    let requests = backend.requests();
    let queries = requests.iter().filter(|request| request.uri.path() == "/query");
    queries.filter(|request| String::from_utf8_lossy(&request.body).contains(part)).count()
}

fn running_both() -> [Scripted; 2] {
    [(); 2].map(|()| {
        Scripted::start(|_, request| match request.uri.path() {
            "/query" => (200, Vec::new(), DONE.to_owned()),
            _ => no_content(),
        })
    })
}

#[test]
fn a_statement_of_any_length_is_run_and_so_is_none_that_is_longer() {
    let [a, b] = running_both();
    let relay = Running::start(with_http(&[a.url(), b.url()]));
    ["a", "b"].iter().for_each(|name| relay.wait_state(name, "up"));
    let host = "a-".repeat(100_000);
    let answered = order(&relay, &format!("db=d&q=DROP SERIES WHERE host='{host}'"));
    assert_eq!((answered.status, &*answered.body), (200, DONE));
    wait_for("the statement", || (count(&a, "DROP") == 1 && count(&b, "DROP") == 1).then_some(()));
    assert!(b.requests().iter().any(|request| request.body.len() > host.len()));
    let condition = "host='a' OR ".repeat(20_000);
    let answered = order(&relay, &format!("db=d&q=DROP SERIES WHERE {condition}host='b'"));
    assert!(answered.status == 400 && answered.body.contains("operators"), "{} {}", answered.status, answered.body);
    assert_eq!(order(&relay, "db=d&q=DROP MEASUREMENT m").status, 200, "it still runs");
}

#[test]
fn where_the_answer_is_lost_every_backend_runs_the_statement() {
    let both = [(); 2].map(|()| {
        let asked = AtomicUsize::new(0);
        Scripted::start(move |_, request| match request.uri.path() {
            "/query" if asked.fetch_add(1, Ordering::Relaxed) == 0 => (500, Vec::new(), "timeout".to_owned()),
            "/query" => (200, Vec::new(), DONE.to_owned()),
            _ => no_content(),
        })
    });
    let relay = Running::start(with_http(&both.each_ref().map(Scripted::url)));
    ["a", "b"].iter().for_each(|name| relay.wait_state(name, "up"));
    let answered = order(&relay, "db=d&q=DROP MEASUREMENT m");
    assert!(answered.status == 503 && answered.body.contains("may have run"), "{} {}", answered.status, answered.body);
    wait_for("both", || both.iter().all(|one| count(one, "DROP") == 2).then_some(()));
    wait_for("none owed", || ["a", "b"].iter().all(|name| relay.backend(name).statements_pending == 0).then_some(()));
}

#[test]
fn a_statement_that_touches_no_points_waits_for_no_lines() {
    let [well, _] = running_both();
    let held = Scripted::start(|_, request| match request.uri.path() {
        "/query" => (200, Vec::new(), DONE.to_owned()),
        "/write" => (404, Vec::new(), "{\"error\":\"database not found: \\\"telegraf\\\"\"}".to_owned()),
        _ => no_content(),
    });
    let relay = Running::start(with_http(&[well.url(), held.url()]));
    relay.send(&["m v=1 1\n"]);
    relay.wait_delivered("a", 1);
    relay.wait_state("b", "held");
    assert_eq!(order(&relay, "q=CREATE USER me WITH PASSWORD 'x'").status, 200);
    assert_eq!(order(&relay, "db=telegraf&q=DROP MEASUREMENT m").status, 200);
    wait_for("the user", || (count(&held, "USER") == 1).then_some(()));
    assert_eq!(count(&held, "MEASUREMENT"), 0, "its lines come first");
    assert_eq!(relay.backend("b").statements_pending, 1);
}

#[test]
fn what_is_created_after_it_was_removed_is_there_on_every_backend() {
    let folder = tempfile::tempdir().expect("folder");
    let [up, _] = running_both();
    let down = crate::support::free_address();
    let mut config = with_http(&[up.url(), format!("http://{down}")]);
    config.data_dir = folder.path().join("data");
    let relay = Running::start_in(config);
    relay.wait_state("a", "up");
    assert_eq!(order(&relay, "q=DROP DATABASE x").status, 200);
    assert_eq!(order(&relay, "q=CREATE DATABASE x").status, 200);
    assert_eq!(relay.backend("b").statements_pending, 2);
    let late = Scripted::start_at(down, |_, request| match request.uri.path() {
        "/query" => (200, Vec::new(), DONE.to_owned()),
        _ => no_content(),
    });
    wait_for("both statements", || (relay.backend("b").statements_pending == 0).then_some(()));
    let bodies: Vec<String> = late
        .requests()
        .iter()
        .filter(|request| request.uri.path() == "/query")
        .map(|request| String::from_utf8_lossy(&request.body).into_owned())
        .collect();
    assert!(bodies.len() == 2 && bodies[0].contains("DROP") && bodies[1].contains("CREATE"), "{bodies:?}");
}

#[test]
fn a_backend_that_refuses_what_another_one_ran_is_counted() {
    let count = Arc::new(AtomicUsize::new(0));
    let both = [(); 2].map(|()| {
        let count = Arc::clone(&count);
        Scripted::start(move |_, request| match request.uri.path() {
            "/query" if count.fetch_add(1, Ordering::Relaxed) == 0 => (200, Vec::new(), DONE.to_owned()),
            "/query" => (200, Vec::new(), "{\"results\":[{\"statement_id\":0,\"error\":\"no such user\"}]}".to_owned()),
            _ => no_content(),
        })
    });
    let relay = Running::start(with_http(&both.each_ref().map(Scripted::url)));
    ["a", "b"].iter().for_each(|name| relay.wait_state(name, "up"));
    assert_eq!(order(&relay, "q=DROP USER me").status, 200);
    let differed = || ["a", "b"].map(|name| relay.backend(name).statements_differed).iter().sum::<u64>();
    wait_for("the other one's refusal", || (differed() == 1).then_some(()));
    wait_for("none owed", || ["a", "b"].iter().all(|name| relay.backend(name).statements_pending == 0).then_some(()));
}
