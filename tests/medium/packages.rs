//! What packages install: the units, and the configuration that runs before anybody has edited it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::{Started, run, text};
use crate::support::{get, left_out, wait_for};

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(file)
}

#[test]
fn the_unit_is_as_systemd_wants_it_and_exposes_little() {
    let analyze = |arguments: &[&str]| Command::new("systemd-analyze").args(arguments).output().ok();
    let unit = packaging("systemd/twinflux.service").display().to_string();
    let Some(scored) = analyze(&["security", "--offline=true", "--threshold=13", &unit]) else {
        left_out("the_unit_is_as_systemd_wants_it_and_exposes_little", "there is no systemd-analyze");
        return;
    };
    assert!(scored.status.success(), "more than 1.3: {}", text(&scored.stdout));
    let sockets =
        ["", "-tcp", "-http"].map(|name| packaging(&format!("systemd/twinflux{name}.socket")).display().to_string());
    let all: Vec<&str> = ["verify", "--man=no", &unit].into_iter().chain(sockets.iter().map(String::as_str)).collect();
    let verified = analyze(&all).expect("systemd-analyze");
    let said = text(&verified.stderr);
    // The program is not installed where tests run.
    let wrong: Vec<&str> = said.lines().filter(|line| !line.contains("/usr/bin/twinflux is not executable")).collect();
    assert!(wrong.is_empty(), "{said}");
}

#[test]
fn the_installed_configuration_runs_and_loses_nothing_before_it_is_edited() {
    let file = std::fs::read_to_string(packaging("etc/twinflux.toml")).expect("the file");
    let socket = std::fs::read_to_string(packaging("systemd/twinflux.socket")).expect("the unit");
    let listen = socket.lines().find_map(|line| line.strip_prefix("ListenDatagram=")).expect("an address");
    assert!(file.contains(&format!("listen = \"{listen}\"")), "the socket unit holds the listener's socket");
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("data");
    let file = file.replace("/var/lib/twinflux", &data.display().to_string());
    std::fs::write(folder.path().join("twinflux.toml"), file).expect("write");
    let checked = run(&["check", "--config", "twinflux.toml"], folder.path());
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    let relay = Started::new(&["--config", "twinflux.toml"], folder.path());
    relay.send_line();
    wait_for("the line", || get(relay.admin, "/api/status").1.contains("\"delivered_lines\":1").then_some(()));
    let check = run(&["status", "--check", "--data-dir", "data"], folder.path());
    // Whatever the line's time, the relay itself has nothing to do.
    let said = text(&check.stdout);
    assert!(check.status.code() == Some(0) || said.contains("far from now"), "{said}");
}
