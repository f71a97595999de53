//! What is pending outlives the relay; `twinflux journal` on what a relay has left.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};

use bytesize::ByteSize;
use twinflux::config::Config;
use twinflux::config::Overrides;
use twinflux::journal::disk::Condition;

use crate::support::{Running, Scripted, config, free_address, influx_error, no_content, wait_for};

fn journal(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_twinflux")).arg("journal").args(arguments).output().expect("the program");
    let text = [stdout, stderr].concat();
    (status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// A relay in this folder for these backends, named a, b and so on.
fn start(folder: &Path, urls: &[String], change: impl FnOnce(&mut Config)) -> Running {
    let mut config = config(urls);
    config.data_dir = folder.to_owned();
    change(&mut config);
    Running::start_in(config)
}

const DEAD: &str = "http://127.0.0.1:1";

#[test]
fn a_restart_delivers_what_the_last_run_could_not_and_nothing_else() {
    let (folder, alive) = (tempfile::tempdir().expect("folder"), Scripted::accepting());
    let dead = free_address();
    let urls = [alive.url(), format!("http://{dead}")];
    let mut relay = start(folder.path(), &urls, |_| {});
    relay.send(&["m v=1 1\n", "m v=2 2\n"]);
    relay.wait_delivered("a", 2);
    let last = relay.stop();
    assert_eq!(last.backends[1].pending_lines, 2);
    drop(relay);

    let revived = Scripted::start_at(dead, |_, _| no_content());
    let before = alive.requests().len();
    let relay = start(folder.path(), &urls, |_| {});
    let recovered: Vec<u64> = relay.status().backends.iter().map(|backend| backend.recovered_lines).collect();
    assert_eq!(recovered, [0, 2]);
    relay.wait_delivered("b", 2);
    relay.send(&["m v=3 3\n"]);
    relay.wait_delivered("a", 1);
    relay.wait_delivered("b", 3);
    assert_eq!(revived.text(), "m v=1 1\nm v=2 2\nm v=3 3\n");
    assert_eq!(alive.requests().len(), before + 1, "nothing is sent again");
    let status = relay.status().journal;
    assert_eq!((status.segments, status.recovery.segments, status.orphans.len()), (1, 1, 0));
}

#[test]
fn a_destination_that_is_held_is_held_after_a_restart_and_the_others_go_on() {
    let folder = tempfile::tempdir().expect("folder");
    let missing = |_: usize, request: &crate::support::Request| {
        let is_missing = request.uri.to_string().contains("db=nowhere");
        if is_missing { influx_error(404, "database not found: \"nowhere\"") } else { no_content() }
    };
    let two = |config: &mut Config| {
        config.udp.push(config.udp[0].clone());
        config.udp[1].database = "nowhere".to_owned();
    };
    let address = free_address();
    for run in 0..2_u64 {
        let backend = Scripted::start_at(address, missing);
        let mut relay = start(folder.path(), &[backend.url()], two);
        let other = relay.relay.as_ref().expect("running").view().listeners[1].address();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        socket.send_to(b"lost v=1 1\n", other).expect("send");
        relay.send(&["m v=1 1\n"]);
        wait_for("the good line", || backend.text().contains("m v=1 1").then_some(()));
        wait_for("the held one", || (relay.backend("a").pending_lines == run + 1).then_some(()));
        assert_eq!(relay.backend("a").recovered_lines, run);
        assert_eq!(relay.stop().backends[0].pending_lines, run + 1);
    }
    let backend = Scripted::start_at(address, |_, _| no_content());
    let relay = start(folder.path(), &[backend.url()], two);
    relay.wait_delivered("a", 2);
    assert!(backend.requests().iter().all(|request| request.uri.to_string().contains("db=nowhere")));
}

#[test]
fn the_journal_of_a_stopped_relay_can_be_read_verified_and_a_backend_forgotten() {
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("data");
    let shown = data.to_str().expect("text");
    let (code, text) = journal(&["verify", shown]);
    assert!(code == Some(1) && text.contains("no journal in"), "{text}");

    let mut relay = start(&data, &[DEAD.to_owned()], |config| {
        config.udp[0].database = "db".to_owned();
        config.udp[0].retention_policy = "week".to_owned();
    });
    relay.send(&["m v=1 1\n", "m v=2 2\n"]);
    let (code, text) = journal(&["stats", shown]);
    assert!(code == Some(1) && text.contains("stop it first"), "{text}");
    relay.stop();

    let (code, text) = journal(&["verify", shown]);
    assert!(code == Some(0) && text.contains("2 lines") && text.ends_with("sound\n"), "{text}");
    let (code, text) = journal(&["stats", shown]);
    assert!(
        code == Some(0)
            && text.contains("backend a (http://127.0.0.1:1): 2 lines")
            && text.contains("db/week (n): 2 lines"),
        "{text}"
    );
    let (code, text) = journal(&["dump", shown]);
    let expected = "# DML\n# CONTEXT-DATABASE: db\n# CONTEXT-RETENTION-POLICY: week\n# precision: ns\n\
         # twinflux: {\"database\":\"db\",\"retention_policy\":\"week\",\"precision\":\"ns\"}\nm v=1 1\nm v=2 2\n";
    assert_eq!((code, text.as_str()), (Some(0), expected));

    let (code, text) = journal(&["forget", "x", "--data-dir", shown]);
    assert!(code == Some(1) && text.contains("knows no backend \"x\", but a"), "{text}");
    let (code, text) = journal(&["forget", "a", "--data-dir", shown]);
    assert!(code == Some(0) && text.contains("a is forgotten"), "{text}");
    let (_, text) = journal(&["stats", shown]);
    assert!(!text.contains("backend a"), "{text}");

    let segment = std::fs::read_dir(data.join("journal")).expect("a folder").flatten();
    let segment = segment.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "segment"));
    let segment = segment.expect("a segment");
    let mut bytes = std::fs::read(&segment).expect("readable");
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    std::fs::write(&segment, bytes).expect("writable");
    let (code, text) = journal(&["verify", shown]);
    assert!(code == Some(1) && text.contains("is damaged") && text.contains("DAMAGED"), "{text}");
}

#[test]
fn files_are_for_their_owner_only_and_hold_no_secret() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("data");
    std::fs::write(folder.path().join("password"), "hunter2").expect("write");
    let mut relay = start(&data, &[DEAD.to_owned()], |config| {
        config.backend[0].username = Some("writer".to_owned());
        config.backend[0].password_file = Some(folder.path().join("password"));
    });
    relay.send(&["m v=1 1\n"]);
    relay.stop();
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&data), mode(&data.join("journal"))), (0o700, 0o700));
    for entry in std::fs::read_dir(data.join("journal")).expect("a folder").flatten() {
        assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.path());
        let bytes = std::fs::read(entry.path()).expect("readable");
        assert!(!bytes.windows(7).any(|part| part == b"hunter2"));
    }
}

/// Changes every slot of the cursors; each has a right checksum again.
fn rewrite_cursors(data: &Path, change: impl Fn(&mut [u8])) {
    for slot in 0..3 {
        let path = data.join(format!("journal/cursors-{slot}"));
        let mut bytes = std::fs::read(&path).expect("readable");
        if bytes.is_empty() {
            continue;
        }
        change(&mut bytes);
        bytes[32..36].fill(0);
        let length = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        bytes.truncate(40 + usize::try_from(length).expect("small"));
        let crc = crc32c::crc32c(&bytes);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&path, bytes).expect("writable");
    }
}

/// A checksum says that a slot is whole, not that it is true.
#[test]
fn cursors_that_tell_of_more_than_the_log_holds_are_not_believed() {
    let folder = tempfile::tempdir().expect("folder");
    let mut relay = start(folder.path(), &[DEAD.to_owned()], |_| {});
    relay.send(&["m v=1 1\n", "m v=2 2\n"]);
    relay.stop();
    // Behind the slot's header, three numbers and a count comes what was written: lines and bytes.
    let far = [1_000_000_000_000_u64, 100_000_000_000_000].map(u64::to_le_bytes).concat();
    rewrite_cursors(folder.path(), |slot| slot[68..84].copy_from_slice(&far));
    let (_, text) = journal(&["stats", folder.path().to_str().expect("text")]);
    assert!(text.contains("backend a (http://127.0.0.1:1): 2 lines"), "{text}");
    let mut relay = start(folder.path(), &[DEAD.to_owned()], |_| {});
    relay.send(&["m v=3 3\n"]);
    wait_for("the line", || (relay.backend("a").pending_lines == 3).then_some(()));
    let last = relay.stop();
    assert_eq!((last.backends[0].recovered_lines, last.backends[0].pending_lines), (2, 3));
    let dropped: u64 = last.backends[0].dropped_lines.values().sum();
    assert_eq!(dropped, 0);
}

#[test]
fn what_cannot_be_opened_is_an_error_that_says_what_to_do() {
    let folder = tempfile::tempdir().expect("folder");
    let mut relay = start(folder.path(), &[DEAD.to_owned()], |_| {});
    relay.send(&["m v=1 1\n"]);
    relay.stop();
    rewrite_cursors(folder.path(), |slot| slot[8] = 9);
    let mut settings = config(&[DEAD.to_owned()]);
    settings.data_dir = folder.path().to_owned();
    let error = Running::try_start_in(settings).err().expect("refused");
    assert!(error.contains("newer version") && error.contains("cannot open the journal in"), "{error}");
}

/// On the command line, names come from what they address: an order is no identity.
#[test]
fn the_order_of_backends_on_the_command_line_means_nothing() {
    let (folder, alive) = (tempfile::tempdir().expect("folder"), Scripted::accepting());
    let dead = free_address();
    let (alive_url, dead_url) = (alive.url(), format!("http://{dead}"));
    let urls = |urls: [&str; 2]| {
        let urls = urls.map(|url| url.parse().expect("a URL")).to_vec();
        let overrides =
            Overrides { backends: urls, data_dir: Some(folder.path().join("data")), ..Overrides::default() };
        let mut config = Config::load(None, overrides).expect("a configuration");
        config.udp[0].listen = free_udp();
        config.admin.listen = ([127, 0, 0, 1], 0).into();
        config.shutdown_timeout = std::time::Duration::from_secs(2);
        Running::start_in(config)
    };
    let name = |url: &str| url.strip_prefix("http://").expect("a URL").to_owned();
    let mut relay = urls([&alive_url, &dead_url]);
    relay.send(&["m v=1 1\n", "m v=2 2\n"]);
    relay.wait_delivered(&name(&alive_url), 2);
    relay.stop();
    let revived = Scripted::start_at(dead, |_, _| no_content());
    let relay = urls([&dead_url, &alive_url]);
    relay.wait_delivered(&name(&dead_url), 2);
    assert_eq!((alive.text(), revived.text()), ("m v=1 1\nm v=2 2\n".to_owned(), "m v=1 1\nm v=2 2\n".to_owned()));
    assert_eq!(relay.backend(&name(&alive_url)).recovered_lines, 0);
}

/// A name at another address: receiving goes on, nothing is sent or dropped, and two commands
/// decide. Either way the new server gets what was received since.
#[test]
fn a_name_at_another_address_is_held_until_an_operator_says_whose_it_is() {
    for command in ["moved", "forget"] {
        let (folder, old, new) = (tempfile::tempdir().expect("folder"), free_address(), Scripted::accepting());
        let mut relay = start(folder.path(), &[format!("http://{old}")], |_| {});
        relay.send(&["m v=1 1\n"]);
        relay.stop();
        let mut relay = start(folder.path(), &[new.url()], |_| {});
        relay.send(&["m v=2 2\n"]);
        relay.wait_state("a", "held");
        wait_for("both", || (relay.backend("a").pending_lines == 2).then_some(()));
        let error = relay.backend("a").last_error.expect("a reason");
        let was = format!("http://{old}");
        assert!(
            error.contains(&was) && error.contains("journal moved a") && error.contains("journal forget a"),
            "{error}"
        );
        let last = relay.stop();
        assert_eq!((last.backends[0].pending_lines, last.backends[0].dropped()), (2, 0));
        assert!(new.requests().iter().all(|request| request.body.is_empty()), "no line owed to one reaches another");

        let (code, text) = journal(&[command, "a", "--data-dir", folder.path().to_str().expect("text")]);
        assert_eq!(code, Some(0), "{text}");
        assert!(command == "forget" || text.contains(&was), "{text}");
        let relay = start(folder.path(), &[new.url()], |_| {});
        relay.send(&["m v=3 3\n"]);
        let expected = if command == "moved" { "m v=1 1\nm v=2 2\nm v=3 3\n" } else { "m v=2 2\nm v=3 3\n" };
        wait_for("what it is owed", || (new.text() == expected).then_some(()));
    }
}

/// `disk` is smaller than what memory holds: what the quota took and memory had is given up at the
/// stop, and told.
#[test]
fn a_stop_gives_up_what_it_cannot_keep_and_says_so() {
    let (folder, dead) = (tempfile::tempdir().expect("folder"), format!("http://{}", free_address()));
    let small = |config: &mut Config| config.journal.disk = ByteSize::mib(8);
    let mut relay = start(folder.path(), std::slice::from_ref(&dead), small);
    let lines: Vec<String> = (0..200)
        .map(|datagram| {
            (0..200).map(|n| format!("m,host=h{n} v=1,text=\"{}\" {datagram}\n", "x".repeat(250))).collect()
        })
        .collect();
    for datagrams in lines.chunks(20) {
        relay.send(datagrams);
    }
    wait_for("the journal to say that it does not hold all", || {
        let journal = relay.status().journal;
        (journal.state == Condition::Full && journal.last_error.is_some_and(|error| error.contains("memory only")))
            .then_some(())
    });
    let before = relay.backend("a");
    assert!(before.dropped() == 0 && before.pending_on_disk_lines < before.pending_lines, "{before:?}");
    let last = relay.stop();
    let last = &last.backends[0];
    assert_eq!(last.difference(40_000), 0);
    assert!(last.dropped_lines["quota"] > 5_000 && last.pending_on_disk_lines == last.pending_lines, "{last:?}");

    let relay = start(folder.path(), &[dead], small);
    let status = relay.status();
    assert_eq!((status.backends[0].recovered_lines, status.backends[0].dropped()), (last.pending_lines, 0));
    let gaps: u64 = status.journal.gaps.iter().map(|gap| gap.lines).sum();
    assert_eq!(gaps, last.dropped_lines["quota"]);
}

#[test]
fn what_waits_for_long_takes_a_fraction_of_the_disk_and_what_does_not_is_written_as_it_is() {
    let (folder, alive, dead) = (tempfile::tempdir().expect("folder"), Scripted::accepting(), free_address());
    let urls = [alive.url(), format!("http://{dead}")];
    let relay = start(folder.path(), &urls, |config| config.journal.memory = ByteSize::mib(4));
    let mut host = loadgen::workload::Host::new(1, loadgen::workload::Shape::default());
    let mut round = 0;
    let mut send = |mebibytes: usize| {
        let (mut datagrams, mut bytes) = (Vec::new(), 0);
        while bytes < mebibytes << 20 {
            round += 1;
            host.render(1_795_400_726_000_000_000 + round * 10_000_000_000);
            let lines = host.lines().iter().map(|line| host.bytes()[line.clone()].to_vec());
            datagrams.extend(lines.inspect(|line| bytes += line.len()));
        }
        relay.send(&datagrams);
        datagrams.len() as u64
    };
    let disk = || relay.status().journal.disk_bytes;
    // Until the memory is full, nobody needs the disk.
    let first = send(2);
    relay.wait_delivered("a", first);
    let plain = disk();
    assert!(plain > 2 << 20, "{plain} bytes");
    let lines = first + send(4);
    relay.wait_delivered("a", lines);
    let before = disk();
    let more = send(6);
    relay.wait_delivered("a", lines + more);
    let grown = disk() - before;
    eprintln!(
        "{:.1} bytes a line as it is, {:.1} once a backend is behind",
        plain as f64 / first as f64,
        grown as f64 / more as f64
    );
    assert!(grown < (6 << 20) / 3, "{grown} bytes");
    let revived = Scripted::start_at(dead, |_, _| no_content());
    relay.wait_delivered("b", lines + more);
    let stored: usize = revived.requests().iter().map(|request| request.text().lines().count()).sum();
    assert_eq!(stored as u64, lines + more);
}

/// A UDP port that nobody has now.
fn free_udp() -> SocketAddr {
    std::net::UdpSocket::bind("127.0.0.1:0").expect("bind").local_addr().expect("address")
}
