//! Signals: what ends the relay, and what does not.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::program::{PROGRAM, Started};
use crate::support::{Scripted, no_content};

#[test]
fn both_signals_deliver_what_is_pending_and_end_with_0() {
    for signal in ["-TERM", "-INT"] {
        // It takes its time, so that whoever does not wait for it has lines left.
        let backend = Scripted::start(|_, _| {
            std::thread::sleep(Duration::from_millis(500));
            no_content()
        });
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("file.toml"), "data_dir = \"data\"\nshutdown_timeout = \"5m\"\n")
            .expect("write");
        let backends = ["--config", "file.toml", "--backend", &backend.url(), "--database", "db"];
        let started = Started::new(&backends, folder.path());
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        for n in 0..500 {
            socket.send_to(format!("m v={n} {n}\n").as_bytes(), started.target).expect("send");
        }
        // They are in the socket, or further; none was delivered yet, for lines linger a second.
        started.signal(signal);
        let (code, log) = started.end();
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(backend.text().lines().count(), 500, "{log}");
        assert!(log.contains("delivered=500") && log.contains("pending=0"), "{log}");
    }
}

/// A program whose start waits for its users file, and the pipe that it is.
fn starting(folder: &std::path::Path) -> (Child, File) {
    let (users, file) = (folder.join("users"), folder.join("twinflux.toml"));
    assert!(Command::new("mkfifo").arg(&users).status().expect("mkfifo").success());
    let config =
        "[[udp]]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[auth]\nusers_file = \"users\"\n";
    std::fs::write(&file, config).expect("write");
    let mut command = Command::new(PROGRAM);
    command.arg("--config").arg(&file).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().expect("the program");
    // The file opens as soon as the program reads it, which is amid its start.
    (child, File::options().write(true).open(&users).expect("a reader"))
}

fn signal(child: &Child, name: &str) {
    let ended = Command::new("kill").args(["-s", name, &child.id().to_string()]).status();
    assert!(ended.expect("kill").success());
}

#[test]
fn a_signal_during_the_start_ends_the_relay_when_it_has_started() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut child, mut users) = starting(folder.path());
    let mut told = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    for (name, says) in [("HUP", "still starting"), ("TERM", "as soon as the start is done")] {
        signal(&child, name);
        told.find(|line| line.contains(says)).expect("it is told");
    }
    users.write_all(format!("me:{}\n", bcrypt::hash("right", 4).expect("a hash")).as_bytes()).expect("write");
    drop(users);
    assert!(told.any(|line| line.contains("stopped")), "it starts, and stops as ever");
    assert_eq!(child.wait().expect("an end").code(), Some(0));
}

#[test]
fn a_second_signal_during_the_start_ends_the_process() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut child, _users) = starting(folder.path());
    let mut told = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    signal(&child, "TERM");
    told.find(|line| line.contains("as soon as the start is done")).expect("it is told");
    signal(&child, "TERM");
    assert!(told.any(|line| line.contains("ended at once")), "it says so");
    assert_eq!(child.wait().expect("an end").code(), Some(1));
}

#[test]
fn a_hangup_ends_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let started = Started::new(&[], folder.path());
    started.signal("-HUP");
    started.send_line();
    started.signal("-TERM");
    let (code, log) = started.end();
    assert_eq!(code, Some(0));
    assert!(log.contains("SIGHUP"), "{log}");
}
