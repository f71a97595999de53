//! `twinflux drain`: what a stopped relay's journal keeps is delivered without a listener.

use std::process::{Command, Stdio};

use crate::program::{PROGRAM, Started, run, text};
use crate::support::{Scripted, free_address, no_content, wait_for};

/// A stopped relay with three lines for a backend that was not there, whose address it returns.
fn stopped(folder: &std::path::Path) -> std::net::SocketAddr {
    let address = free_address();
    let relay = Started::new(&["--backend", &format!("http://{address}"), "--data-dir", "data"], folder);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    for number in 0..3 {
        socket.send_to(format!("m v={number} {number}").as_bytes(), relay.target).expect("sent");
    }
    wait_for("the lines", || {
        let output = run(&["status", "--data-dir", "data"], folder);
        text(&output.stdout).contains("accepted 3 lines").then_some(())
    });
    relay.signal("-TERM");
    assert_eq!(relay.end().0, Some(0));
    address
}

#[test]
fn a_journal_is_delivered_to_its_end_without_a_listener() {
    let folder = tempfile::tempdir().expect("folder");
    let address = stopped(folder.path());
    let url = format!("http://{address}");
    let drain = ["drain", "--data-dir", "data", "--backend", &url];
    let sink = Scripted::start_at(address, |_, _| no_content());
    let output = run(&drain, folder.path());
    let (ledger, log) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{ledger}{log}");
    assert!(sink.text().contains("m v=0 0\nm v=1 1\nm v=2 2\n"), "{}", sink.text());
    let row: Vec<&str> = ledger.lines().nth(1).expect("a row").split_whitespace().collect();
    // Delivered, recovered, rejected, dropped, pending, and the difference.
    assert_eq!((&row[2..7], row[8]), (&["3", "3", "0", "0", "0"][..], "0"), "{ledger}");
    assert_eq!(run(&drain, folder.path()).status.code(), Some(0), "there is nothing left");
    let stats = run(&["journal", "stats", "data"], folder.path());
    assert!(text(&stats.stdout).contains(": 0 lines to deliver"), "{}", text(&stats.stdout));
}

#[test]
fn what_cannot_be_delivered_stays_and_a_signal_ends_it() {
    let folder = tempfile::tempdir().expect("folder");
    let address = stopped(folder.path());
    let url = format!("http://{address}");
    let mut command = Command::new(PROGRAM);
    command.args(["drain", "--data-dir", "data", "--backend", &url]).current_dir(folder.path());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
    let status = || run(&["status", "--check", "--data-dir", "data"], folder.path());
    wait_for("the drain", || (status().status.code() == Some(1)).then_some(()));
    // One relay works on a journal at a time.
    let second = run(&["drain", "--data-dir", "data", "--backend", &url], folder.path());
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill").success());
    let output = child.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("3 lines stay in the journal"), "{}", text(&output.stderr));
    // It is not the one that the lines are kept for.
    let other = Scripted::accepting();
    let output = run(&["drain", "--data-dir", "data", "--backend", &other.url()], folder.path());
    assert_eq!((output.status.code(), other.text().contains("m v=")), (Some(1), false));
    assert_eq!(run(&["drain", "--backend", "nonsense"], folder.path()).status.code(), Some(2));
    // A mistyped folder is not made, and not taken for a journal that is empty.
    let output = run(&["drain", "--data-dir", "dato", "--backend", &url], folder.path());
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains("no journal in"), "{output:?}");
    assert!(!folder.path().join("dato").exists());
}
