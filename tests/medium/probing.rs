//! What is asked of a backend that gets no lines, and a try that an operator asks for.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{Running, Scripted, config, influx_error, no_content, wait_for};

const OFTEN: Duration = Duration::from_millis(100);

/// A backend whose database is missing until it is made.
fn without_database() -> (Scripted, Arc<AtomicBool>) {
    let is_made = Arc::new(AtomicBool::new(false));
    let made = Arc::clone(&is_made);
    let server = Scripted::start(move |_, _| {
        if made.load(Ordering::Relaxed) {
            no_content()
        } else {
            influx_error(404, r#"database not found: \"telegraf\""#)
        }
    });
    (server, is_made)
}

#[test]
fn an_idle_backend_that_goes_and_comes_is_seen() {
    let address = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let mut config = config(&[format!("http://{address}")]);
    config.backend[0].probe_interval = OFTEN;
    let server = Scripted::start_at(address, |_, _| no_content());
    let relay = Running::start(config);
    relay.send(&["m v=1 1\n"]);
    wait_for("the line", || (relay.backend("a").delivered_lines == 1).then_some(()));
    drop(server);
    relay.wait_state("a", "down");
    let backend = relay.backend("a");
    assert_eq!((backend.requests, backend.pending_lines), (1, 0), "no line was tried");
    let server = Scripted::start_at(address, |_, _| no_content());
    relay.wait_state("a", "up");
    assert!(server.requests().iter().all(|request| request.text().is_empty()), "no question writes a line");
    relay.send(&["m v=2 2\n"]);
    wait_for("the line", || (relay.backend("a").delivered_lines == 2).then_some(()));
}

#[test]
fn a_missing_database_is_told_before_there_is_a_line() {
    let (server, is_made) = without_database();
    let mut config = config(&[server.url()]);
    config.backend[0].probe_interval = OFTEN;
    let relay = Running::start(config);
    relay.wait_state("a", "held");
    let backend = relay.backend("a");
    assert_eq!((backend.requests, backend.held.len()), (0, 1));
    assert_eq!((&*backend.held[0].database, &*backend.held[0].reason), ("telegraf", "missing"));
    assert!(backend.held[0].what_to_do.contains("CREATE DATABASE"), "{:?}", backend.held);
    is_made.store(true, Ordering::Relaxed);
    relay.wait_state("a", "up");
    assert_eq!(relay.backend("a").held, []);
}

#[test]
fn a_proxy_that_lets_writes_through_and_no_ping_is_no_fault() {
    let server =
        Scripted::start(
            |_, request| {
                if request.uri.path() == "/write" { no_content() } else { (404, Vec::new(), String::new()) }
            },
        );
    let relay = Running::start(config(&[server.url()]));
    relay.wait_state("a", "up");
}

#[test]
fn an_operator_may_ask_for_a_try() {
    let folder = tempfile::tempdir().expect("folder");
    let (server, is_made) = without_database();
    let mut config = config(&[server.url()]);
    config.data_dir = folder.path().join("data");
    let data_dir = config.data_dir.clone();
    config.backend[0].retry_max = Duration::from_secs(3600);
    let relay = Running::start_in(config);
    relay.send(&["m v=1 1\n"]);
    relay.wait_state("a", "held");
    let (code, said) = try_backend(&data_dir, "a");
    assert!(code == Some(1) && said.contains("a is held: 404") && said.contains("database not found"), "{said}");
    is_made.store(true, Ordering::Relaxed);
    assert_eq!(try_backend(&data_dir, "a"), (Some(0), "a is up\n".to_owned()));
    wait_for("the line", || (relay.backend("a").delivered_lines == 1).then_some(()));
    let (code, said) = try_backend(&data_dir, "b");
    assert!(code == Some(1) && said.contains("there is no backend \"b\"; there are: a"), "{said}");
    drop(relay);
    let (code, said) = try_backend(&data_dir, "a");
    assert!(code == Some(3) && said.contains("is it running"), "{said}");
}

/// The exit code of `twinflux backend NAME try`, and what it says.
fn try_backend(data_dir: &Path, name: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinflux"));
    let ended = command.args(["backend", name, "try", "--data-dir"]).arg(data_dir).output().expect("it runs");
    let said = [ended.stdout, ended.stderr].concat();
    (ended.status.code(), String::from_utf8(said).expect("UTF-8"))
}
