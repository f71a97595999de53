//! The log: whoever does not read it, and whatever fills it, holds up nothing else.

use std::io::{PipeReader, Read};
use std::net::UdpSocket;
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::pipes::full_pipe;
use crate::program::{PROGRAM, Started, text};
use crate::support::{Scripted, get, influx_error, no_content, wait_for};

/// A relay with these backends whose log, and what it prints at its start, nobody reads.
fn start(backends: &[&Scripted], folder: &std::path::Path) -> (Started, PipeReader) {
    let (reader, log) = full_pipe();
    let mut command = Command::new(PROGRAM);
    command.args(["--udp", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    for backend in backends {
        command.args(["--backend", &backend.url()]);
    }
    (Started::with_log(command, log, folder), reader)
}

fn status(relay: &Started) -> Value {
    let (code, body) = get(relay.admin, "/api/status");
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

/// Waits for the end without reading the log.
fn end_of(child: &mut Child) -> Option<i32> {
    wait_for("the end", || child.try_wait().expect("a child")).code()
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let steady = Scripted::accepting();
    let flapping =
        Scripted::start(|number, _| if number % 2 == 0 { influx_error(503, "timeout") } else { no_content() });
    let folder = tempfile::tempdir().expect("folder");
    let (mut relay, _unread) = start(&[&steady, &flapping], folder.path());
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    for sent in 1..=5 {
        for datagram in [&b"junk\n"[..], b"", b"m v=1 1\n"] {
            socket.send_to(datagram, relay.target).expect("send");
        }
        wait_for("both backends to have the line", || {
            let status = status(&relay);
            let delivered: Vec<_> = (0..2).map(|place| &status["backends"][place]["delivered_lines"]).collect();
            let refused = status["receive"][0]["refused"].as_object().expect("reasons");
            let refused: u64 = refused.values().filter_map(Value::as_u64).sum();
            (delivered == [sent, sent] && refused == sent).then_some(())
        });
    }
    assert_eq!((get(relay.admin, "/health").0, get(relay.admin, "/ready").0), (200, 200));
    relay.signal("-TERM");
    assert_eq!(end_of(&mut relay.child), Some(0));
}

#[test]
fn a_second_signal_ends_a_relay_whose_log_nobody_reads() {
    // It takes connections and never answers.
    let hanging = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let folder = tempfile::tempdir().expect("folder");
    let (_unread, log) = full_pipe();
    let file = format!(
        "data_dir = \"data\"\nshutdown_timeout = \"1h\"\n[[udp]]\nlisten = \"127.0.0.1:0\"\n[[backend]]\n\
         name = \"a\"\nurl = \"http://{}\"\ntimeout = \"1h\"\nlinger = \"10ms\"\n",
        hanging.local_addr().expect("address")
    );
    std::fs::write(folder.path().join("file.toml"), file).expect("write");
    let mut command = Command::new(PROGRAM);
    command.args(["--config", "file.toml", "--admin", "127.0.0.1:0"]);
    let mut relay = Started::with_log(command, log, folder.path());
    relay.send_line();
    relay.signal("-TERM");
    // Until it has begun to stop, a second signal might be taken for the first.
    wait_for("the sockets to be closed", || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        socket.connect(relay.target).expect("connect");
        drop(socket.send(b"m v=1 1\n"));
        std::thread::sleep(std::time::Duration::from_millis(5));
        socket.send(b"m v=1 1\n").is_err().then_some(())
    });
    relay.signal("-TERM");
    assert_eq!(end_of(&mut relay.child), Some(1));
}

#[test]
fn lines_that_nobody_read_are_counted_and_the_last_ones_come_out() {
    let backend = Scripted::accepting();
    let folder = tempfile::tempdir().expect("folder");
    let (mut reader, log) = full_pipe();
    let mut command = Command::new(PROGRAM);
    command.args(["--udp", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--backend", &backend.url()]);
    let mut relay = Started::with_log(command, log, folder.path());
    assert_eq!(status(&relay)["log_lines_dropped"], 0);
    let pid = Pid::from_child(&relay.child);
    // Each is a line of the log.
    let dropped = wait_for("lines to be dropped", || {
        for _ in 0..200 {
            kill_process(pid, Signal::HUP).expect("kill");
            std::thread::yield_now();
        }
        status(&relay)["log_lines_dropped"].as_u64().filter(|lines| *lines > 0)
    });
    let metrics = get(relay.admin, "/metrics").1;
    let shown = metrics.lines().find_map(|line| line.strip_prefix("twinflux_log_lines_dropped_total "));
    assert!(shown.expect("the metric").parse::<u64>().expect("a number") >= dropped, "{metrics}");
    relay.signal("-TERM");
    let mut read = Vec::new();
    reader.read_to_end(&mut read).expect("the log");
    assert_eq!(end_of(&mut relay.child), Some(0));
    let read = text(&read);
    assert!(read.contains("lines of the log are missing here: nobody read it\n"), "{read}");
    assert!(read.trim_end().lines().last().is_some_and(|line| line.contains("stopped")), "{read}");
}

/// The log's lines of a relay that was started with this and stopped.
fn logged(arguments: &[&str], is_journal: bool) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().expect("folder");
    let log = std::fs::File::create(folder.path().join("log")).expect("log");
    let file = log.metadata().expect("metadata");
    let mut command = Command::new(PROGRAM);
    command.args(["--udp", "127.0.0.1:0", "--admin", "127.0.0.1:0"]).args(arguments);
    // Another's stream is not this one's.
    let inode = if is_journal { file.ino() } else { file.ino() + 1 };
    command.env("JOURNAL_STREAM", format!("{}:{inode}", file.dev()));
    let relay = Started::with_log(command, log.into(), folder.path());
    relay.send_line();
    relay.signal("-TERM");
    assert_eq!(relay.end_quietly(), Some(0));
    let text = std::fs::read_to_string(folder.path().join("log")).expect("text");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_log_is_text_or_json_and_has_levels_for_a_journal() {
    let lines = logged(&["--log-format", "json"], false);
    let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let stopped = lines.iter().find(|line| line["message"] == "stopped").expect("a line");
    assert_eq!(
        (&stopped["level"], &stopped["delivered"], &stopped["backend"]),
        (&"INFO".into(), &1.into(), &"archive".into())
    );
    let lines = logged(&[], true);
    assert!(lines.iter().all(|line| line.starts_with('<')), "{lines:?}");
    // The line's time is far from now.
    assert!(lines.iter().any(|line| line.starts_with("<4>a point's time is far from now")), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("<6>stopped backend=\"archive\" delivered=1")), "{lines:?}");
    let lines = logged(&[], false);
    assert!(lines.iter().any(|line| line.starts_with("20") && line.contains(" INFO stopped ")), "{lines:?}");
}
