//! The program among others: readers that go away, signals, a service manager.

use std::io::{BufRead, BufReader, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::program::{PROGRAM, Started, text};
use crate::support::{LIMIT, Running, Scripted, config, no_content, wait_for};

/// A pipe that nobody reads any more.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

fn full() -> Stdio {
    std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full").into()
}

/// A folder with a configuration and a journal of more lines than a pipe holds; the journal's
/// folder.
fn with_journal(folder: &Path) -> String {
    std::fs::write(folder.join("good.toml"), "").expect("write");
    let mut settings = config(&["http://127.0.0.1:1".to_owned()]);
    settings.data_dir = folder.join("data");
    let mut relay = Running::start_in(settings);
    let lines = format!("m v=\"{}\" 1\n", "x".repeat(1000)).repeat(60);
    relay.send(&[&lines, &lines, &lines, &lines]);
    relay.stop();
    folder.join("data").display().to_string()
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let folder = tempfile::tempdir().expect("folder");
    let data = with_journal(folder.path());
    let started = Started::new(&["--data-dir", "other"], folder.path());
    let admin = started.admin.to_string();
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["journal", "--help"],
        &["check", "--config", "good.toml"],
        &["status", "--admin", &admin],
        &["journal", "dump", &data],
        &["journal", "stats", &data],
        &["journal", "verify", &data],
    ] {
        let output = Command::new(PROGRAM).args(arguments).current_dir(folder.path()).stdout(closed()).output();
        let output = output.expect("the program");
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{arguments:?}");
        // With neither output read, the code is the same.
        let mut both = Command::new(PROGRAM);
        let ended = both.args(arguments).current_dir(folder.path()).stdout(closed()).stderr(closed()).status();
        assert_eq!(ended.expect("the program").code(), Some(0), "{arguments:?}");
    }
    for wrong in [&["frobnicate"][..], &["check", "--config", "nowhere"]] {
        for unread in [closed, full] {
            let ended = Command::new(PROGRAM).args(wrong).stdout(unread()).stderr(unread()).status();
            assert_eq!(ended.expect("the program").code(), Some(2));
        }
    }
    // One that reads a little, and goes.
    let script = "\"$0\" journal dump \"$1\" | head -1; exit ${PIPESTATUS[0]}";
    let output = Command::new("bash").args(["-c", script, PROGRAM, &data]).output().expect("bash");
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
    assert_eq!(text(&output.stdout), "# DML\n");
    started.signal("-TERM");
    assert_eq!(started.end().0, Some(0));
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let folder = tempfile::tempdir().expect("folder");
    let data = with_journal(folder.path());
    for arguments in [
        &["check", "--config", "good.toml"][..],
        &["journal", "dump", &data],
        &["journal", "stats", &data],
        &["journal", "verify", &data],
    ] {
        let output = Command::new(PROGRAM).args(arguments).current_dir(folder.path()).stdout(full()).output();
        let output = output.expect("the program");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output.stderr).contains("No space left"), "{arguments:?}: {}", text(&output.stderr));
    }
}

/// Its exit code tells whether both stores hold every line, so that it goes on to its end.
#[test]
fn a_demo_that_nobody_watches_goes_on() {
    let mut demo = Command::new(PROGRAM);
    let mut child = demo.arg("demo").stdout(closed()).stderr(Stdio::piped()).spawn().expect("the program");
    let tasks = format!("/proc/{}/task", child.id());
    wait_for("the hosts to send", || {
        let threads = std::fs::read_dir(&tasks).ok()?.flatten();
        let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
        names.into_iter().any(|name| name.trim() == "hosts").then_some(())
    });
    // It draws four times a second.
    std::thread::sleep(Duration::from_secs(1));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill").success());
    let mut error = String::new();
    child.stderr.take().expect("errors").read_to_string(&mut error).expect("text");
    assert_eq!((child.wait().expect("an end").code(), error.as_str()), (Some(1), "twinflux: interrupted\n"));
}

#[test]
fn a_second_signal_ends_the_program_at_once_and_the_journal_keeps_what_is_pending() {
    for (durability, kept) in [("written", true), ("memory", false)] {
        let folder = tempfile::tempdir().expect("folder");
        // It takes connections and never answers.
        let hanging = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let file = |url: String| {
            let text = format!(
                "data_dir = \"data\"\nshutdown_timeout = \"1h\"\n[[udp]]\nlisten = \"127.0.0.1:0\"\n\
                 [journal]\ndurability = \"{durability}\"\n\
                 [[backend]]\nname = \"a\"\nurl = \"{url}\"\ntimeout = \"1h\"\nlinger = \"10ms\"\n"
            );
            std::fs::write(folder.path().join("file.toml"), text).expect("write");
            let mut command = Command::new(PROGRAM);
            command.args(["--config", "file.toml"]);
            Started::from(command, folder.path())
        };
        let address = hanging.local_addr().expect("address");
        let mut started = file(format!("http://{address}"));
        started.send_line();
        started.signal("-INT");
        let mut log = BufReader::new(started.child.stderr.take().expect("log"));
        let mut told = String::new();
        while !told.contains("a second signal ends it") {
            assert!(log.read_line(&mut told).expect("text") > 0, "{told}");
        }
        started.signal("-INT");
        let code = started.child.wait().expect("an end").code();
        log.read_to_string(&mut told).expect("text");
        assert_eq!(code, Some(1), "{told}");
        let what = if kept { "kept in the journal" } else { "lost: they were only in memory" };
        assert!(told.contains("ended by a second signal") && told.contains(what), "{told}");
        if kept {
            drop(hanging);
            let backend = Scripted::start_at(address, |_, _| no_content());
            let started = file(backend.url());
            wait_for("the line", || (backend.text() == "m v=1 1\n").then_some(()));
            started.signal("-TERM");
            assert_eq!(started.end().0, Some(0));
        }
    }
}

/// A service manager's socket, and what to set `NOTIFY_SOCKET` to.
fn manager(folder: &Path, is_abstract: bool) -> (UnixDatagram, String) {
    let (socket, address) = if is_abstract {
        let name = format!("twinflux-{}-{}", std::process::id(), folder.display());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        (UnixDatagram::bind_addr(&address), format!("@{name}"))
    } else {
        let path = folder.join("notify");
        (UnixDatagram::bind(&path), path.display().to_string())
    };
    let socket = socket.expect("bind");
    socket.set_read_timeout(Some(LIMIT)).expect("timeout");
    (socket, address)
}

fn message(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).expect("a message");
    text(&buffer[..length])
}

#[test]
fn a_service_manager_is_told_of_start_reload_and_stop() {
    for is_abstract in [false, true] {
        let folder = tempfile::tempdir().expect("folder");
        let (socket, address) = manager(folder.path(), is_abstract);
        let mut command = Command::new(PROGRAM);
        command.args(["--udp", "127.0.0.1:0"]).env("NOTIFY_SOCKET", &address);
        // A watchdog that is another process's.
        command.env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
        let started = Started::from(command, folder.path());
        assert_eq!(message(&socket), "READY=1\n");
        // It says so when it is.
        started.send_line();
        started.signal("-HUP");
        let reloading = message(&socket);
        let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("a time").trim_end();
        let uptime = std::fs::read_to_string("/proc/uptime").expect("the time");
        let uptime: f64 = uptime.split(' ').next().expect("a word").parse().expect("a number");
        let micros: f64 = micros.parse().expect("a number");
        assert!(micros > 0.0 && micros <= (uptime + 1.0) * 1e6, "{micros} of {uptime} s");
        assert_eq!(message(&socket), "READY=1\n");
        started.signal("-TERM");
        assert_eq!(message(&socket), "STOPPING=1\n");
        assert_eq!(started.end().0, Some(0));
        socket.set_nonblocking(true).expect("nonblocking");
        assert!(socket.recv(&mut [0; 64]).is_err(), "there is nothing more to tell");
    }
}

#[test]
fn a_watchdog_gets_signs_of_life_until_the_relay_stops() {
    let folder = tempfile::tempdir().expect("folder");
    let (socket, address) = manager(folder.path(), false);
    let file = "data_dir = \"data\"\n[[udp]]\nlisten = \"127.0.0.1:0\"\n[[tcp]]\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(folder.path().join("file.toml"), file).expect("write");
    let mut command = Command::new("sh");
    command.args(["-c", "export WATCHDOG_PID=$$; exec \"$0\" \"$@\"", PROGRAM, "--config", "file.toml"]);
    command.env("NOTIFY_SOCKET", &address).env("WATCHDOG_USEC", "100000");
    let started = Started::from(command, folder.path());
    assert_eq!(message(&socket), "READY=1\n");
    for _ in 0..5 {
        assert_eq!(message(&socket), "WATCHDOG=1\n");
    }
    started.signal("-TERM");
    while message(&socket) != "STOPPING=1\n" {}
    assert_eq!(started.end().0, Some(0));
}

#[test]
fn a_service_manager_that_is_not_there_stops_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let mut command = Command::new(PROGRAM);
    command.args(["--udp", "127.0.0.1:0"]).env("NOTIFY_SOCKET", "/nowhere/notify");
    let started = Started::from(command, folder.path());
    started.send_line();
    started.signal("-TERM");
    let (code, log) = started.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("NOTIFY_SOCKET"), "{log}");
}

#[test]
fn every_thread_that_lines_pass_through_answers_the_watchdog() {
    let backend = Scripted::accepting();
    let mut config = config(&[backend.url()]);
    config.udp[0].workers = 2;
    config.tcp.push(twinflux::config::Tcp { listen: config.udp[0].listen, ..Default::default() });
    let relay = Running::start(config);
    let pulses = relay.relay.as_ref().expect("running").pulses();
    assert_eq!(pulses.iter().map(|pulse| pulse.name()).collect::<Vec<_>>(), ["udp-0", "udp-1", "tcp", "journal"]);
    pulses.iter().for_each(|pulse| pulse.ask());
    wait_for("answers", || pulses.iter().all(|pulse| pulse.is_answered()).then_some(()));
}
