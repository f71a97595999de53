//! Under strain and under attack: nothing that one host, one backend, one log or one clock does
//! stops the others.
//!
//! | promise | shown by |
//! |---|---|
//! | A log that nobody reads stops nothing, and a stop is obeyed | here, `medium/log.rs` |
//! | A greedy connection leaves the others their turns, timers included; listeners take turns, too | here, `medium/strain.rs` |
//! | An answer without an end, or of many 1xx, delays no other backend | `medium/hostile.rs` |
//! | Whoever polls the status takes nothing from delivery | `medium/admin.rs` |
//! | Silent connections lock nobody out; an IPv6 network of 64 bits is one source | here, `medium/strain.rs` |
//! | Idle connections lock nobody out of the admin listener; probes have places of their own | `medium/access.rs`, `medium/admin.rs` |
//! | Forged addresses drive no host out of the table of sources | `medium/strain.rs` |
//! | Others neither hold the data folder's lock nor read secrets unnoticed | `medium/secrets.rs` |
//! | A clock that is wrong at a start gives up no line for its age | `small/clock.rs`, `medium/clock.rs` |
//! | A destination that cannot be stored holds up no other | `medium/backends.rs`, `small/config.rs` |
//! | A data folder that goes is noticed, begun anew, and costs only what is counted | `small/folder.rs`, `medium/folder.rs` |
//! | No line costs much more for its bytes than an ordinary one | `benches/hostile.rs` |
//! | A backend fills no log, however it flaps and whatever it answers | `medium/hostile.rs` |
//! | What came from outside is never trusted by a terminal | `medium/hostile.rs` |
//! | No page reads the admin listener by DNS rebinding | `medium/admin.rs` |
//! | A mapped network is its IPv4 network; cursors tell of no more than the log holds | `small/config.rs`, `medium/journal.rs` |
//! | A process that holds secrets leaves no core dump | `medium/secrets.rs` |
//!
//! The tests here have as much load as the promises speak of. They assert what was taken, stored,
//! counted and answered; how long that takes is a figure (`docs/src/figures.md`).

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use loadgen::relay::Relay;
use loadgen::send::{Pace, Plan, Progress, send};
use loadgen::sink::{Behaviour, Sink, Store};
use loadgen::strain::{self, Report, StrainConfig};
use loadgen::workload::Shape;
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process};
use serde_json::Value;

use crate::pipes::full_pipe;
use crate::support::{get, left_out, wait_for};

const PROGRAM: &str = env!("CARGO_BIN_EXE_twinflux");
/// How long hosts send: long enough for the log's pipe and queue to be full many times over.
const SENDING: Duration = Duration::from_secs(20);
/// How long a backend takes lines, and then does not.
const FLAPPING: Duration = Duration::from_millis(200);

/// A program that is ended with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts the program with these backends; its log goes there.
fn start(backends: &[SocketAddr], log: Stdio, folder: &std::path::Path) -> (Program, Relay) {
    let mut command = Command::new(PROGRAM);
    command.args(["--udp", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir", "data"]);
    for backend in backends {
        command.args(["--backend", &format!("http://{backend}")]);
    }
    let mut child = command.current_dir(folder).stdout(Stdio::piped()).stderr(log).spawn().expect("the program");
    let output = BufReader::new(child.stdout.take().expect("output"));
    let lines: Vec<String> = output.lines().take(5).map(|line| line.expect("text")).collect();
    let address = |line: &str, after: &str| -> SocketAddr {
        let (_, rest) = line.split_once(after).expect("an address");
        rest.split([' ', '/']).next().expect("a word").parse().expect("an address")
    };
    let relay = Relay::running(address(&lines[1], "udp "), None, None, address(&lines[4], "http://"));
    (Program(child), relay)
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a count")
}

#[test]
fn with_a_full_log_and_a_flapping_backend_every_datagram_is_taken_or_counted_and_a_stop_is_obeyed() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let (steady, flapping) = (Arc::new(Store::default()), Arc::new(Store::default()));
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let sink = |store: &Arc<Store>| runtime.block_on(Sink::start(any, Arc::clone(store))).expect("a sink");
    let sinks = [sink(&steady), sink(&flapping)];
    let folder = tempfile::tempdir().expect("folder");
    let (_unread, log) = full_pipe();
    let (mut program, relay) = start(&[sinks[0].address(), sinks[1].address()], log, folder.path());
    let plan = Plan {
        target: relay.target,
        hosts: 500,
        first_host: 0,
        shape: Shape::default(),
        pace: Pace::Rate(50_000.0),
        duration: SENDING,
        payload: None,
    };
    let (progress, is_over) = (Progress::default(), AtomicBool::new(false));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for turn in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                flapping.behave(if turn % 2 == 0 { Behaviour::Status(503) } else { Behaviour::Accept });
                std::thread::sleep(FLAPPING);
            }
            flapping.behave(Behaviour::Accept);
        });
        // Each of them is a line of the log, too.
        let stranger = std::net::UdpSocket::bind(any).expect("bind");
        let sending = threads.spawn(|| send(&plan, &progress).expect("sockets"));
        let mut strangers = 0;
        while !sending.is_finished() {
            stranger.send_to(b"junk\n", relay.target).expect("send");
            strangers += 1;
            assert_eq!(get(relay.admin, "/health").0, 200);
            std::thread::sleep(Duration::from_millis(50));
        }
        is_over.store(true, Ordering::Relaxed);
        let sent = progress.sent().datagrams + strangers;
        wait_for("every datagram to be taken or counted", || {
            let receive = &relay.status().ok()?["receive"][0];
            (number(&receive["datagrams"]) + number(&receive["kernel_dropped"]) == sent).then_some(())
        });
    });
    let status = wait_for("both backends to have everything", || {
        let status = relay.status().ok()?;
        let backends = status["backends"].as_array()?;
        backends.iter().all(|backend| backend["pending_lines"] == 0).then(|| status.clone())
    });
    let (accepted, dropped) = (number(&status["accepted_lines"]), number(&status["receive"][0]["kernel_dropped"]));
    assert!(accepted > 0 && accepted <= progress.sent().lines && progress.sent().lines <= accepted + dropped);
    for (store, backend) in [&steady, &flapping].into_iter().zip(status["backends"].as_array().expect("backends")) {
        let stored = store.ledger.counts();
        assert_eq!(number(&backend["delivered_lines"]), accepted, "{backend}");
        // Lines by which it was tried whether any pass may have come twice: they are the same
        // points.
        assert_eq!((stored.distinct, stored.altered, stored.foreign), (accepted, 0, 0), "{backend}");
    }
    assert!(number(&status["backends"][1]["retries"]) > 0, "it flapped");
    kill_process(Pid::from_child(&program.0), Signal::TERM).expect("kill");
    let ended = wait_for("the end", || program.0.try_wait().expect("a child"));
    assert_eq!(ended.code(), Some(0));
}

/// What `loadgen strain` is given.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    setup: StrainConfig,
}

fn strained(arguments: &[&str]) -> Report {
    let program = PathBuf::from(PROGRAM).display().to_string();
    let options = Options::parse_from([&["strain", "--relay", &program], arguments].concat());
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(strain::run(options.setup)).expect("a report")
}

#[test]
fn five_hundred_hosts_are_served_beside_ten_greedy_senders() {
    for kind in ["comments", "lines", "tags", "refused"] {
        let report = strained(&["--greedy", "10", "--kind", kind, "--hosts", "500", "--duration", "3s"]);
        let text = report.to_text();
        assert_eq!(report.shut_out, 0, "{kind}: {text}");
        assert!(report.taken >= 500, "{kind}: {text}");
        let figures = ["displaced", "limited", "timed_out"].map(|key| number(&report.listener[key]));
        assert_eq!(figures, [0, 0, 0], "{kind}: {text}");
    }
}

#[test]
fn hosts_find_their_place_among_silent_connections() {
    let name = "hosts_find_their_place_among_silent_connections";
    if getrlimit(Resource::Nofile).maximum.is_some_and(|files| files < 10_000) {
        left_out(name, "a process may not have 10,000 files");
        return;
    }
    let report = strained(&["--greedy", "0", "--silent", "4096", "--hosts", "500", "--duration", "2s"]);
    let text = report.to_text();
    assert_eq!(report.shut_out, 0, "{text}");
    assert!(report.taken >= 500, "{text}");
    let [displaced, timed_out, limited] =
        ["displaced", "timed_out", "limited"].map(|key| number(&report.listener[key]));
    assert!(displaced + timed_out >= 500, "a silent connection made room for each host: {text}");
    assert_eq!(limited, 0, "{text}");
}
