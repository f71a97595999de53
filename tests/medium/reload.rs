//! `twinflux reload` and SIGHUP: what a changed configuration changes while the relay runs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use loadgen::send::{Pace, Plan, Progress, send};
use loadgen::sink::{Sink, Store};
use loadgen::workload::Shape;

use crate::program::{PROGRAM, Started, run, text};
use crate::support::{get, wait_for};

fn write(folder: &Path, allow: &str, more: &str) {
    let file = format!(
        "data_dir = \"data\"\n{more}\n[[udp]]\nlisten = \"127.0.0.1:0\"\nallow = [{allow}]\n[[http]]\nlisten = \"127.0.0.1:0\"\n"
    );
    std::fs::write(folder.join("c.toml"), file).expect("write");
}

fn reload(folder: &Path) -> (Option<i32>, String) {
    let output = run(&["reload", "--data-dir", "data"], folder);
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

/// Whether a datagram of loopback is taken.
fn is_taken(relay: &Started) -> bool {
    let figure = |name: &str| {
        let body: serde_json::Value = serde_json::from_str(&get(relay.admin, "/api/status").1).expect("JSON");
        body["receive"][0][name].as_u64().expect("a number")
    };
    let (datagrams, denied) = (figure("datagrams"), figure("denied"));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.send_to(b"m v=1", relay.target).expect("sent");
    wait_for("the datagram", || (figure("datagrams") > datagrams).then_some(()));
    figure("denied") == denied
}

#[test]
fn a_file_that_cannot_be_read_again_is_told_as_often_as_somebody_asks() {
    let folder = tempfile::tempdir().expect("folder");
    let folder = folder.path();
    std::fs::write(folder.join("tokens"), "grafana:secret\n").expect("write");
    write(folder, "", "[auth]\ntokens_file = \"tokens\"");
    let mut command = Command::new(PROGRAM);
    command.args(["--config", "c.toml"]);
    let relay = Started::from(command, folder);
    assert_eq!(reload(folder).0, Some(0));
    std::fs::write(folder.join("tokens"), "garbage\n").expect("write");
    for _ in 0..2 {
        let (code, said) = reload(folder);
        assert!(code == Some(1) && said.contains("users and tokens stay as they were"), "{said}");
    }
    // A file that gives nothing holds up no other signal.
    std::fs::remove_file(folder.join("c.toml")).expect("remove");
    assert!(Command::new("mkfifo").arg(folder.join("c.toml")).status().expect("mkfifo").success());
    relay.signal("-HUP");
    relay.signal("-TERM");
    assert_eq!(relay.end().0, Some(0));
}

#[test]
fn a_reload_changes_what_it_can_and_names_what_it_cannot() {
    let folder = tempfile::tempdir().expect("folder");
    let folder = folder.path();
    write(folder, "", "");
    let mut command = Command::new(PROGRAM);
    command.args(["--config", "c.toml"]);
    let relay = Started::from(command, folder);
    assert!(is_taken(&relay));
    let (code, said) = reload(folder);
    assert!(code == Some(0) && said.contains("the configuration is as it was"), "{said}");
    write(folder, "\"10.0.0.0/8\"", "[query]\nmax_lag = \"3s\"\n[journal]\nmemory = \"32MiB\"");
    let (code, said) = reload(folder);
    assert_eq!(code, Some(0), "{said}");
    for sentence in [
        "udp[0].allow was changed",
        "query.max_lag was changed",
        "journal.memory differs, and is changed by a restart only",
    ] {
        assert!(said.contains(sentence), "{sentence}: {said}");
    }
    assert!(!is_taken(&relay));
    // What needs a restart is named again; what was taken is not.
    let (_, said) = reload(folder);
    assert!(said.contains("journal.memory differs") && !said.contains("was changed"), "{said}");
    // A broken file changes nothing.
    write(folder, "\"127.0.0.0/8\"", "nonsense = 1");
    let (code, said) = reload(folder);
    assert!(code == Some(1) && said.contains("nothing was changed") && said.contains("nonsense"), "{said}");
    assert!(!is_taken(&relay));
    // Other listeners need a restart, with whoever may write to them; readers do not.
    let file = "data_dir = \"data\"\n[query]\nmax_lag = \"4s\"\n[[udp]]\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(folder.join("c.toml"), file).expect("write");
    let (code, said) = reload(folder);
    assert_eq!(code, Some(0), "{said}");
    for sentence in ["udp[0].allow differs", "http[0] differs", "query.max_lag was changed"] {
        assert!(said.contains(sentence), "{sentence}: {said}");
    }
    assert!(!is_taken(&relay));
    // SIGHUP does the same.
    write(folder, "\"127.0.0.0/8\"", "");
    relay.signal("-HUP");
    wait_for("the datagram to be taken", || is_taken(&relay).then_some(()));
    relay.signal("-TERM");
    let (code, log) = relay.end();
    assert_eq!(code, Some(0));
    assert!(
        log.contains("reload: udp[0].allow was changed") && log.contains("the configuration stays as it was"),
        "{log}"
    );
    assert_eq!(reload(folder).0, Some(3));
}

/// The configuration of a relay with these backends.
fn write_backends(folder: &Path, listen: SocketAddr, backends: &[(&str, String)]) {
    let backends = backends.iter().map(|(name, url)| format!("[[backend]]\nname = \"{name}\"\nurl = \"{url}\"\n"));
    let file = format!(
        "data_dir = \"data\"\n[[udp]]\nlisten = \"{listen}\"\n[[http]]\nlisten = \"127.0.0.1:0\"\n{}",
        backends.collect::<String>()
    );
    std::fs::write(folder.join("c.toml"), file).expect("write");
}

/// None where nobody answers, or not to the end.
fn try_status(admin: SocketAddr) -> Option<serde_json::Value> {
    let mut stream = TcpStream::connect(admin).ok()?;
    stream.write_all(b"GET /api/status HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

#[test]
fn backends_come_and_go_under_load_and_no_line_is_lost() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let any: SocketAddr = "127.0.0.1:0".parse().expect("address");
    let sinks: Vec<(Arc<Store>, Sink)> = (0..3)
        .map(|_| {
            let store = Arc::new(Store::default());
            let sink = runtime.block_on(Sink::start(any, Arc::clone(&store))).expect("sink");
            (store, sink)
        })
        .collect();
    let of = |place: usize, name: &'static str| (name, format!("http://{}", sinks[place].1.address()));
    let folder = tempfile::tempdir().expect("folder");
    let folder = folder.path();
    write_backends(folder, any, &[of(0, "a"), of(1, "b")]);
    let mut command = Command::new(PROGRAM);
    command.args(["--config", "c.toml"]);
    let relay = Started::from(command, folder);
    // While one gives way to the other, nobody answers.
    let status = || wait_for("an answer", || try_status(relay.admin));
    let plan = Plan {
        target: relay.target,
        hosts: 50,
        first_host: 0,
        shape: Shape::default(),
        pace: Pace::Rate(5_000.0),
        // It is stopped once the last one listens.
        duration: Duration::from_secs(3600),
        payload: None,
    };
    let progress = Arc::new(Progress::default());
    let shared = Arc::clone(&progress);
    let hosts = std::thread::spawn(move || send(&plan, &shared));
    let stored = |place: usize| sinks[place].0.ledger.counts().distinct;
    let wait_more = |place: usize| {
        let before = stored(place);
        wait_for("lines to be stored", || (stored(place) > before + 500).then_some(()));
    };
    wait_more(1);
    // One goes, another one comes.
    write_backends(folder, any, &[of(0, "a"), of(2, "c")]);
    let (code, said) = reload(folder);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("b was removed") && said.contains("c was added"), "{said}");
    wait_more(2);
    let names = |status: &serde_json::Value| -> Vec<String> {
        let backends = status["backends"].as_array().expect("backends").iter();
        backends.map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&status()), ["a", "c"]);
    // What an operator said stays.
    assert_eq!(run(&["backend", "a", "no-reads", "--data-dir", "data"], folder).status.code(), Some(0));
    run(&["backend", "c", "hold", "--data-dir", "data"], folder);
    wait_for("a hold", || (status()["backends"][1]["held"][0]["reason"] == "operator").then_some(()));
    // By a signal as well; the new one is not taken for complete.
    write_backends(folder, any, &[of(0, "a"), of(1, "b"), of(2, "c")]);
    relay.signal("-HUP");
    wait_for("the third", || (names(&status()).len() == 3).then_some(()));
    wait_more(1);
    let now = status();
    assert_eq!((&now["backends"][2]["complete"], &now["backends"][2]["state"]), (&false.into(), &"held".into()));
    assert_eq!(now["backends"][0]["read"]["serves"], "no");
    run(&["backend", "c", "release", "--data-dir", "data"], folder);
    // A file that is being written is empty for a moment.
    std::fs::write(folder.join("c.toml"), "").expect("write");
    let (code, said) = {
        relay.signal("-HUP");
        let output = run(&["reload", "--data-dir", "data"], folder);
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    assert!(code == Some(1) && said.contains("the file names no [[backend]]"), "{said}");
    assert_eq!(names(&status()).len(), 3);
    // What cannot work changes nothing, and ends nothing.
    write_backends(folder, any, &[of(0, "a"), ("d", "http://127.0.0.1:1\"\ntoken_file = \"nowhere".to_owned())]);
    let (code, said) = reload(folder);
    assert!(code == Some(1) && said.contains("nothing was changed") && said.contains("nowhere"), "{said}");
    wait_more(2);
    progress.stop();
    hosts.join().expect("no panic").expect("sent");
    let sent = progress.sent();
    wait_for("everything to be stored or counted", || {
        let dropped = status()["receive"][0]["kernel_dropped"].as_u64().expect("a number");
        (stored(0) + dropped == sent.lines).then_some(())
    });
    eprintln!("{} sent; {} in b, {} in c", sent.lines, stored(1), stored(2));
    relay.signal("-TERM");
    let (code, log) = relay.end();
    assert!(code == Some(0) && log.contains("the relay works by the new configuration"), "{log}");
}
