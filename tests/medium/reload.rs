//! `twinflux reload` and SIGHUP: what a changed configuration changes while the relay runs.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;

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
    write(folder, "\"10.0.0.0/8\"", "[query]\nmax_lag = \"3s\"\nmax_concurrent = 3");
    let (code, said) = reload(folder);
    assert_eq!(code, Some(0), "{said}");
    for sentence in [
        "udp[0].allow was changed",
        "query.max_lag was changed",
        "query.max_concurrent differs, and is changed by a restart only",
    ] {
        assert!(said.contains(sentence), "{sentence}: {said}");
    }
    assert!(!is_taken(&relay));
    // What needs a restart is named again; what was taken is not.
    let (_, said) = reload(folder);
    assert!(said.contains("max_concurrent differs") && !said.contains("was changed"), "{said}");
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
