//! The data folder goes under a running relay: it is noticed, told, and begun anew, and every line
//! is counted.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use bytesize::ByteSize;
use twinflux::journal::disk::Condition;

use crate::program::{PROGRAM, Started, run, text};
use crate::support::{Running, Scripted, config, free_address, get, no_content, wait_for};

/// Runs a shell's command in a folder. What is written there meanwhile may make it fail.
fn shell(folder: &Path, command: &str) -> bool {
    Command::new("sh").args(["-c", command]).current_dir(folder).status().expect("sh").success()
}

/// A hundred lines of about 500 bytes.
fn datagram(number: usize) -> String {
    (0..100).map(|n| format!("m,host=h{n} v=1,text=\"{}\" {number}\n", "x".repeat(450))).collect()
}

fn has_segment(data: &Path) -> bool {
    let files = std::fs::read_dir(data.join("journal")).into_iter().flatten().flatten();
    files.into_iter().any(|file| file.path().extension().is_some_and(|ending| ending == "segment"))
}

#[test]
fn a_data_folder_that_goes_under_load_is_begun_anew_and_every_line_is_counted() {
    for (command, told) in [
        ("rm -rf data", "journal was removed"),
        ("mv data away && mkdir data", "journal was removed"),
        ("rm -rf data/journal", "journal was removed"),
        ("mv data/journal away && mkdir data/journal", "journal was replaced"),
        ("rm -rf data/journal/*", "segment was removed"),
    ] {
        let (folder, alive, dead) = (tempfile::tempdir().expect("folder"), Scripted::accepting(), free_address());
        let data = folder.path().join("data");
        let mut settings = config(&[alive.url(), format!("http://{dead}")]);
        settings.data_dir.clone_from(&data);
        // Memory for a part of what the dead one lacks.
        settings.journal.memory = ByteSize::mib(4);
        let mut relay = Running::start_in(settings.clone());
        let is_over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                // Where the test fails, this ends, too.
                for number in (0..20_000).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                    relay.send(&[datagram(number)]);
                }
            });
            wait_for("a backlog on the disk", || (relay.backend("b").pending_on_disk_lines > 20_000).then_some(()));
            wait_for("the command to succeed", || shell(folder.path(), command).then_some(()));
            wait_for("it to be noticed", || {
                let error = relay.status().journal.last_error?;
                (error.contains(told) && error.contains("while the relay runs")).then_some(())
            });
            let lines = relay.status().accepted_lines;
            wait_for("lines to be safe again", || {
                let (status, b) = (relay.status(), relay.backend("b"));
                let is_safe = b.pending_on_disk_lines > 0 && b.dropped() + b.pending_on_disk_lines > lines;
                (has_segment(&data) && status.journal.state == Condition::Ok && is_safe).then_some(())
            });
            is_over.store(true, Ordering::Relaxed);
        });
        let accepted = relay.status().accepted_lines;
        wait_for("the other to have what it can", || (relay.backend("a").pending_lines == 0).then_some(()));
        let last = relay.stop();
        let b = &last.backends[1];
        assert!(b.dropped_lines["corrupt"] > 0, "{command}: more than memory holds was on the disk");
        // Without a folder, memory may have had no room for all that came.
        assert_eq!(b.dropped(), b.dropped_lines["corrupt"] + b.dropped_lines["memory_full"], "{command}");
        assert_eq!(b.pending_on_disk_lines, b.pending_lines, "{command}: what is said to be kept is there");
        let gaps: u64 = last.journal.gaps.iter().filter(|gap| gap.backend == "b").map(|gap| gap.lines).sum();
        assert_eq!((gaps, b.difference(accepted)), (b.dropped(), 0), "{command}");

        let revived = Scripted::start_at(dead, |_, _| no_content());
        let relay = Running::start_in(settings);
        assert_eq!(relay.backend("b").recovered_lines, b.pending_lines, "{command}");
        relay.wait_delivered("b", b.pending_lines);
        assert_eq!(revived.text().lines().count() as u64, b.pending_lines, "{command}");
        assert_eq!(relay.backend("a").recovered_lines, 0, "{command}: nothing is sent again");
    }
}

#[test]
fn a_stop_keeps_lines_in_a_folder_that_was_removed_just_before() {
    let folder = tempfile::tempdir().expect("folder");
    let started = Started::new(&["--backend", "http://127.0.0.1:1", "--data-dir", "data"], folder.path());
    started.send_line();
    wait_for("the segment", || has_segment(&folder.path().join("data")).then_some(()));
    wait_for("the removal", || shell(folder.path(), "rm -rf data").then_some(()));
    started.signal("-TERM");
    let (code, log) = started.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("journal was removed while the relay runs") && log.contains("kept in the journal"), "{log}");
    let stats = text(&run(&["journal", "stats", "data"], folder.path()).stdout);
    assert!(stats.contains("1 lines to deliver") && stats.contains("telegraf (n): 1 lines"), "{stats}");
}

#[test]
fn a_stop_without_a_folder_says_that_lines_are_given_up() {
    let folder = tempfile::tempdir().expect("folder");
    let mut command = Command::new(PROGRAM);
    command.args(["--udp", "127.0.0.1:0", "--backend", "http://127.0.0.1:1", "--data-dir", "data"]);
    let started = Started::from(command, folder.path());
    started.send_line();
    wait_for("the removal", || shell(folder.path(), "rm -rf data && touch data").then_some(()));
    wait_for("the loss to be told", || {
        get(started.admin, "/api/status").1.contains("and there is no new folder").then_some(())
    });
    let status: serde_json::Value = serde_json::from_str(&get(started.admin, "/api/status").1).expect("JSON");
    assert_eq!(status["journal"]["state"], "failing");
    assert_eq!(status["backends"][0]["pending_lines"], 1, "memory has it");
    started.signal("-TERM");
    let (code, log) = started.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("given up; see the gaps") && !log.contains("kept in the journal"), "{log}");
    assert!(log.contains("dropped=1 pending=0"), "{log}");
}
