//! Two real InfluxDBs behind a relay hold the same.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use loadgen::send::{Pace, Plan, Progress, send};
use loadgen::workload::Shape;
use twinflux::config::Udp;
use twinflux::protocol::Precision;

use crate::influxdb::InfluxDb;
use crate::support::{Running, config, wait_for};

/// Hosts of a small kind, from this number on, send all their lines, a number of times; returns the
/// lines sent. Those that the kernel dropped are counted by the relay.
fn send_hosts(relay: &Running, first_host: u32, hosts: u32, rounds: u32) -> u64 {
    let round = Duration::from_millis(4) * hosts;
    let plan = Plan {
        target: relay.target,
        hosts,
        first_host,
        shape: Shape { cpus: 2, mounts: 1, disks: 1, interfaces: 1 },
        pace: Pace::Every(round),
        duration: round * rounds,
        payload: None,
    };
    let progress = Progress::default();
    send(&plan, &progress).expect("send");
    let sent = progress.sent();
    assert_eq!((sent.errors, sent.datagrams), (0, sent.lines));
    sent.lines
}

fn both() -> [InfluxDb; 2] {
    let servers = [InfluxDb::start(""), InfluxDb::start("")];
    for server in &servers {
        server.query("", "CREATE DATABASE telegraf");
    }
    servers
}

/// What both hold is the same, and it is this many points.
fn assert_mirrored(servers: &[InfluxDb; 2], points: u64) {
    let count = servers[0].count("telegraf", "/.*/", "lg_seq");
    assert_eq!(count, points);
    assert_eq!(servers[1].count("telegraf", "/.*/", "lg_seq"), points);
    let dumps = servers.each_ref().map(|server| server.dump("telegraf"));
    assert!(dumps[0].len() as u64 > points * 50, "a dump holds all points");
    assert!(dumps[0] == dumps[1], "the contents differ");
}

#[test]
fn five_hundred_hosts_are_the_same_in_both() {
    let servers = both();
    let relay = Running::start(config(&[servers[0].url(), servers[1].url()]));
    let lines = send_hosts(&relay, 0, 500, 2);
    assert_eq!(lines, 500 * 2 * 12);
    let accepted = relay.wait_counted(lines);
    for name in ["a", "b"] {
        relay.wait_delivered(name, accepted);
    }
    assert_mirrored(&servers, accepted);
}

#[test]
fn a_killed_server_gets_what_it_missed() {
    let mut servers = both();
    let relay = Running::start(config(&[servers[0].url(), servers[1].url()]));
    let mut sent = send_hosts(&relay, 0, 50, 1);
    relay.wait_delivered("b", relay.wait_counted(sent));
    servers[1].kill();
    sent += send_hosts(&relay, 1000, 50, 1);
    let accepted = relay.wait_counted(sent);
    relay.wait_delivered("a", accepted);
    relay.wait_state("b", "down");
    servers[1].revive();
    relay.wait_delivered("b", accepted);
    assert_mirrored(&servers, accepted);
}

#[test]
fn lines_without_timestamps_are_the_same_points_in_both() {
    let servers = both();
    let mut config = config(&[servers[0].url(), servers[1].url()]);
    config.udp[0].precision = Precision::Microseconds;
    let relay = Running::start(config);
    let lines: Vec<String> = (0..500).map(|n| format!("m,host=h{} v={n}", n % 3)).collect();
    relay.send(&lines);
    for name in ["a", "b"] {
        relay.wait_delivered(name, 500);
    }
    // Each of them is a point of its own, though series repeat within one datagram's receive time.
    assert_eq!(servers[0].count("telegraf", "m", "v"), 500);
    assert_eq!(servers[0].dump("telegraf"), servers[1].dump("telegraf"));
}

#[test]
fn a_missing_database_holds_its_lines_until_it_is_made() {
    let server = InfluxDb::start("");
    server.query("", "CREATE DATABASE telegraf");
    let mut config = config(&[server.url()]);
    config.udp.push(Udp { database: "later".into(), ..config.udp[0].clone() });
    let relay = Running::start(config);
    let later = relay.relay.as_ref().expect("running").view().listeners[1].address();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.send_to(b"m v=1 1\nm v=2 2\n", later).expect("send");
    relay.wait_state("a", "held");
    relay.send(&["other v=1 1\n"]);
    wait_for("the other database", || (relay.backend("a").delivered_lines == 1).then_some(()));
    assert_eq!(server.count("telegraf", "other", "v"), 1);
    server.query("", "CREATE DATABASE later");
    relay.wait_delivered("a", 3);
    relay.wait_state("a", "up");
    assert_eq!(server.count("later", "m", "v"), 2);
}

#[test]
fn a_servers_own_rejections_are_counted() {
    let server = InfluxDb::start("");
    server.query("", "CREATE DATABASE telegraf WITH DURATION 1d");
    let relay = Running::start(config(&[server.url()]));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos();
    relay.send(&[format!("m v=1 {now}\n")]);
    relay.wait_delivered("a", 1);
    relay.send(&[format!("m v=\"text\" {}\nm v=2 {}\n", now + 1, now + 2)]);
    wait_for("the type conflict", || (relay.backend("a").rejected_lines["field_type"] == 1).then_some(()));
    relay.send(&[format!("m v=1 5\nm v=3 {}\n", now + 3)]);
    wait_for("the old point", || (relay.backend("a").rejected_lines["retention"] == 1).then_some(()));
    wait_for("the good points", || (server.count("telegraf", "m", "v") == 3).then_some(()));
    assert_eq!(relay.backend("a").delivered_lines, 3);
}

#[test]
fn a_line_of_another_type_takes_no_other_along_in_either_copy() {
    let mut servers = both();
    servers[1].kill();
    let mut config = config(&[servers[0].url(), servers[1].url()]);
    config.backend[0].linger = Duration::from_millis(300);
    let relay = Running::start(config);
    let mut lines: Vec<String> = (0..600).map(|n| format!("m,host=h{n} v={n} {n}\n")).collect();
    lines.insert(300, "m,host=h3 v=t 1000\n".to_owned());
    relay.send(&lines);
    servers[1].revive();
    for (name, server) in ["a", "b"].iter().zip(&servers) {
        wait_for("all answers", || (relay.backend(name).pending_lines == 0).then_some(()));
        let ledger = relay.backend(name);
        assert_eq!((ledger.delivered_lines, ledger.rejected_lines["field_type"]), (600, 1), "{name}");
        wait_for("the points", || (server.count("telegraf", "m", "v") == 600).then_some(()));
    }
}

#[test]
fn credentials_open_a_locked_server() {
    let server = InfluxDb::start("auth-enabled = true");
    server.query("", "CREATE USER admin WITH PASSWORD 'admin-secret' WITH ALL PRIVILEGES");
    let admin = "&u=admin&p=admin-secret";
    server.query_as("", "CREATE DATABASE telegraf", admin);
    let folder = tempfile::tempdir().expect("folder");
    let password = folder.path().join("password");
    std::fs::write(&password, "wrong").expect("write");
    let mut config = config(&[server.url()]);
    config.backend[0].username = Some("admin".into());
    config.backend[0].password_file = Some(password.clone());
    let relay = Running::start(config);
    relay.send(&["m v=1 1\n"]);
    relay.wait_state("a", "held");
    assert_eq!(relay.backend("a").dropped(), 0);
    // Mended, it is taken at the next try.
    std::fs::write(&password, "admin-secret").expect("write");
    relay.wait_delivered("a", 1);
    assert!(server.query_as("telegraf", "SELECT * FROM m", admin).contains("m,,1,1"));
}

#[test]
fn an_archive_is_imported_by_influxdbs_own_tools() {
    let server = InfluxDb::start("");
    server.query("", "CREATE DATABASE telegraf");
    server.query("", "CREATE DATABASE curl");
    let folder = tempfile::tempdir().expect("folder");
    let relay = Running::start(config(&[format!("file://{}", folder.path().display())]));
    relay.send(&["m,host=a v=1 1\n", "m,host=a s=\"x y\" 2\n"]);
    relay.wait_delivered("a", 2);
    drop(relay);
    let segment = std::fs::read_dir(folder.path().join("telegraf.ns")).expect("folder").next();
    let segment = segment.expect("a segment").expect("an entry").path();
    assert!(Command::new("gzip").arg(&segment).status().expect("gzip").success());
    let file = format!("{}.gz", segment.display());
    let shell = |command: String| {
        let output = Command::new("bash").args(["-ec", &command]).output().expect("bash");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let (host, port) = (server.address.ip(), server.address.port());
    shell(format!("zcat {file} | influx -host {host} -port {port} -import -precision ns -path /dev/stdin"));
    shell(format!("zcat {file} | curl --fail --silent --data-binary @- '{}/write?db=curl&precision=n'", server.url()));
    for database in ["telegraf", "curl"] {
        assert_eq!(server.count(database, "m", "v") + server.count(database, "m", "s"), 2, "{database}");
    }
    assert_eq!(server.dump("telegraf"), server.dump("curl"));
}
