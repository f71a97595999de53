//! What befalls a real InfluxDB while a relay writes to it. Nothing is lost, and the other one is
//! not held up: every point that the relay says was delivered is read back from both.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::disk::SmallDisk;
use crate::effort;
use crate::influxdb::{InfluxDb, ServerConfig};
use crate::rig::{Program, assert_numbers, server, stored};
use crate::support::{left_out, wait_for};

/// Two servers, of which the second is set up so, and a relay before them.
fn pair(setup: ServerConfig<'_>, more: &str) -> (InfluxDb, InfluxDb, Program) {
    let (a, b) = (server(ServerConfig::default()), server(setup));
    let program = Program::start(&[(a.url(), more), (b.url(), more)]);
    (a, b, program)
}

/// Leaves no room on a disk; returns the file that took it.
fn fill(disk: &Path) -> PathBuf {
    let path = disk.join("ballast");
    let mut ballast = std::fs::File::create(&path).expect("ballast");
    for size in [1 << 20, 1 << 12] {
        while ballast.write_all(&vec![0; size]).is_ok() {}
    }
    path
}

/// The second server's disk is full for a while, once it has so many points; `mend` is what it
/// needs when there is space again. `TWINFLUX_FULL_DISK_SECONDS=60` leaves it full for as long, and
/// the test prints how long delivery took then.
fn fill_the_disk(test: &str, before: u64, mend: impl FnOnce(&mut InfluxDb)) {
    let Some(disk) = SmallDisk::mount("96m") else {
        left_out(test, "this user may not mount");
        return;
    };
    let seconds = std::env::var("TWINFLUX_FULL_DISK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let folder = tempfile::tempdir_in(disk.path()).expect("folder");
    let (a, mut b, program) = pair(ServerConfig { folder, ..ServerConfig::default() }, "");
    program.send(before);
    program.wait_delivered("b");
    let ballast = fill(disk.path());
    program.send_while(5000, || {
        let full = Instant::now();
        wait_for("no space", || {
            let backend = program.backend("b");
            let says = backend.last_error.is_some_and(|error| error.contains("no space left"));
            (backend.state == "retrying" && says).then_some(())
        });
        std::thread::sleep(Duration::from_secs(seconds.unwrap_or(2)).saturating_sub(full.elapsed()));
    });
    program.wait_delivered("a");
    assert!(program.backend("b").pending_lines > 0);
    std::fs::remove_file(ballast).expect("space again");
    mend(&mut b);
    let freed = Instant::now();
    wait_for("what is left", || (program.backend("b").pending_lines == 0).then_some(()));
    eprintln!("{} points, delivered {:.1?} after there was space again", program.sent(), freed.elapsed());
    program.assert_stored([&a, &b]);
}

#[test]
fn a_server_without_space_for_a_new_shard_gets_everything_once_there_is_some() {
    fill_the_disk("a_server_without_space_for_a_new_shard_gets_everything_once_there_is_some", 0, |_| {});
}

/// InfluxDB 1.6.7 goes on refusing what it once had no space to log, until it is started again.
#[test]
fn a_server_without_space_for_its_log_gets_everything_once_it_is_started_again() {
    fill_the_disk("a_server_without_space_for_its_log_gets_everything_once_it_is_started_again", 1000, |server| {
        server.kill();
        server.revive();
    });
}

#[test]
fn a_server_that_asks_for_a_password_gets_the_one_in_the_file() {
    let secrets = tempfile::tempdir().expect("folder");
    let password = secrets.path().join("password");
    std::fs::write(&password, "wrong").expect("write");
    let (a, mut b) = (server(ServerConfig::default()), server(ServerConfig::default()));
    let more = format!("username = \"writer\"\npassword_file = \"{}\"", password.display());
    let program = Program::start(&[(a.url(), ""), (b.url(), &more)]);
    program.send(500);
    program.wait_delivered("b");
    b.query("", "CREATE USER admin WITH PASSWORD 'admin-secret' WITH ALL PRIVILEGES");
    b.query("", "CREATE USER writer WITH PASSWORD 'right'");
    b.query("", "GRANT WRITE ON telegraf TO writer");
    b.kill();
    b.configure("auth-enabled = true", "");
    program.send(500);
    b.revive();
    let held = wait_for("the password to be refused", || program.backend("b").held.first().cloned());
    assert_eq!((held.database.as_str(), held.reason.as_str()), ("telegraf", "credentials"));
    assert!(held.answer.contains("401") && held.what_to_do.contains("password_file"), "{held:?}");
    program.send(500);
    program.wait_delivered("a");
    let waits = program.backend("b");
    assert_eq!((waits.pending_lines, waits.state.as_str()), (1000, "held"));
    std::fs::write(&password, "right").expect("write");
    program.wait_delivered("b");
    program.wait_state("b", "up");
    assert!(program.backend("b").held.is_empty());
    // Reads need a password, too.
    b.kill();
    b.configure("", "");
    b.revive();
    program.assert_stored([&a, &b]);
}

#[test]
fn a_database_and_a_retention_policy_that_are_made_later_get_their_lines() {
    let (a, b) = (server(ServerConfig::default()), server(ServerConfig::default()));
    let database = "CREATE DATABASE later";
    let policy = "CREATE RETENTION POLICY weeks ON later DURATION 52w REPLICATION 1";
    a.query("", database);
    a.query("", policy);
    let listener = "\n[[udp]]\nlisten = \"127.0.0.1:0\"\ndatabase = \"later\"\nretention_policy = \"weeks\"\n";
    let command = std::process::Command::new(env!("CARGO_BIN_EXE_twinflux"));
    let program = Program::with(command, listener, &[(a.url(), ""), (b.url(), "")]);
    let lines: Vec<String> = (0..500).map(|number| program.line(number)).collect();
    program.send_lines(program.targets[1], &lines);
    for (says, missing) in [("database not found", database), ("retention policy not found", policy)] {
        let held = wait_for(says, || program.backend("b").held.into_iter().find(|held| held.answer.contains(says)));
        assert_eq!((held.database.as_str(), held.retention_policy.as_str()), ("later", "weeks"));
        assert_eq!(held.reason, "missing", "{held:?}");
        // The other destination of this server goes on.
        program.send(250);
        wait_for("the other destination", || (program.backend("b").delivered_lines == program.sent()).then_some(()));
        wait_for("the other server", || (program.backend("a").pending_lines == 0).then_some(()));
        b.query("", missing);
    }
    let made = Instant::now();
    for name in ["a", "b"] {
        program.wait_delivered(name);
        assert_eq!(program.backend(name).delivered_lines, 1000);
    }
    eprintln!("delivered {:.1?} after it was made", made.elapsed());
    for server in [&a, &b] {
        assert_numbers("telegraf", &stored(server), 0..500);
        assert_eq!(server.count("later", "weeks.m", "v"), 500);
    }
}

#[test]
fn lines_over_a_servers_limits_of_series_are_dead_letters_and_no_other_is() {
    for (limit, says) in
        [("max-values-per-tag = 12", "max-values-per-tag"), ("max-series-per-database = 12", "max-series-per-database")]
    {
        let (a, b, program) = pair(ServerConfig { data: limit, ..ServerConfig::default() }, "");
        // Of twenty hosts: the first lines fill the limit, so that each later line of the others is
        // over it.
        program.send(12);
        program.wait_delivered("b");
        program.send(1988);
        let refused = wait_for("every line", || {
            let backend = program.backend("b");
            (backend.delivered_lines + backend.rejected() == 2000).then_some(backend)
        });
        assert_eq!((refused.rejected_lines["series_limit"], refused.rejected(), refused.dropped()), (800, 800, 0));
        assert_eq!(refused.dead_letters.kept, 800, "{limit}");
        eprintln!("{limit}: {} requests", refused.requests);
        assert!(refused.last_error.is_some_and(|error| error.contains(says)), "{limit}");
        program.wait_delivered("a");
        assert_numbers("a", &stored(&a), 0..2000);
        assert_eq!(stored(&b), (0..2000).filter(|number| number % 20 < 12).collect(), "{limit}");
    }
}

#[test]
fn a_server_whose_cache_is_full_gets_everything_once_it_has_room() {
    let data = "cache-max-memory-size = 200000\ncache-snapshot-write-cold-duration = \"1s\"";
    let (a, b, program) = pair(ServerConfig { data, ..ServerConfig::default() }, "");
    program.send(15_000);
    program.wait_delivered("a");
    let full = wait_for("the cache to be full", || program.backend("b").last_error);
    assert!(full.contains("cache-max-memory-size exceeded"), "{full}");
    program.assert_stored([&a, &b]);
}

#[test]
fn a_server_that_is_stopped_and_goes_on_misses_nothing() {
    let (a, b, program) = pair(ServerConfig::default(), "timeout = \"1s\"");
    program.send(1000);
    program.wait_delivered("b");
    b.signal(Signal::STOP);
    program.send_while(2000, || {
        program.wait_state("b", "down");
        // The other is served meanwhile.
        let before = program.backend("a").delivered_lines;
        wait_for("the other", || (program.backend("a").delivered_lines > before + 2000).then_some(()));
    });
    program.wait_delivered("a");
    assert!(program.backend("b").pending_lines > 0);
    b.signal(Signal::CONT);
    program.assert_stored([&a, &b]);
}

#[test]
fn servers_that_are_killed_again_and_again_under_load_have_every_point() {
    let (a, b, program) = pair(ServerConfig::default(), "");
    let mut servers = [a, b];
    program.send_while(3000, || {
        for kill in 0..effort::times(5, 20, 200) {
            let before = program.sent();
            wait_for("load", || (program.sent() > before + 1500).then_some(()));
            let victim = kill % 2;
            servers[victim].kill();
            std::thread::sleep(Duration::from_millis(200));
            servers[victim].revive();
        }
    });
    let [a, b] = &servers;
    program.assert_stored([a, b]);
    eprintln!("{} points, both have them all", program.sent());
}
