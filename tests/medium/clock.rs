//! A clock that is ahead at a start, as libfaketime makes it (Debian's package `faketime`), gives
//! up no backlog.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use bytesize::ByteSize;

use crate::program::{PROGRAM, Started};
use crate::support::{Running, Scripted, config, free_address, get, left_out, no_content, wait_for};

/// The library that changes a program's clock; none where it is not installed.
fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|library| library.exists())
}

#[test]
fn a_clock_that_is_ahead_at_the_start_gives_up_no_backlog() {
    let Some(library) = faketime() else {
        left_out("a_clock_that_is_ahead_at_the_start_gives_up_no_backlog", "there is no libfaketime");
        return;
    };
    let (folder, dead) = (tempfile::tempdir().expect("folder"), free_address());
    let mut settings = config(&[format!("http://{dead}")]);
    settings.data_dir = folder.path().join("data");
    settings.journal.disk = ByteSize::mib(16);
    let mut relay = Running::start_in(settings);
    let lines: Vec<String> = (0..200)
        .map(|datagram| {
            (0..100).map(|n| format!("m,host=h{n} v=1,text=\"{}\" {datagram}\n", "x".repeat(250))).collect()
        })
        .collect();
    relay.send(&lines);
    wait_for("several segments", || (relay.status().journal.segments > 2).then_some(()));
    relay.stop();

    let file = format!(
        "data_dir = \"data\"\n[[udp]]\nlisten = \"127.0.0.1:0\"\n[journal]\ndisk = \"16MiB\"\nmax_age = \"1h\"\n\
         [[backend]]\nname = \"a\"\nurl = \"http://{dead}\"\n"
    );
    std::fs::write(folder.path().join("twinflux.toml"), file).expect("write");
    let mut command = Command::new(PROGRAM);
    command.args(["--config", "twinflux.toml", "--admin", "127.0.0.1:0"]);
    command.env("LD_PRELOAD", library).env("FAKETIME", "+10d").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let started = Started::with_log(command, Stdio::piped(), folder.path());
    let status = || -> serde_json::Value { serde_json::from_str(&get(started.admin, "/api/status").1).expect("JSON") };
    started.send_line();
    // The writer looks at the clock before it writes.
    wait_for("the line to be written", || {
        let backend = &status()["backends"][0];
        (backend["pending_on_disk_lines"] == backend["pending_lines"]).then_some(())
    });
    assert_eq!(status()["backends"][0]["pending_lines"], 20_001);
    let revived = Scripted::start_at(dead, |_, _| no_content());
    wait_for("the backlog", || (status()["backends"][0]["delivered_lines"] == 20_001).then_some(()));
    assert_eq!(revived.text().lines().count(), 20_001);
    started.signal("-TERM");
    let (code, log) = started.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("by the clock, lines in the journal are 10days") && log.contains("dropped=0"), "{log}");
}
