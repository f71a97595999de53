//! What a real InfluxDB 1.6.7 refuses, found to the line: what it stored is what the ledger says.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::influxdb::InfluxDb;
use crate::support::{Running, config, wait_for};

/// A shard of the default retention policy.
const WEEK: u64 = 7 * 24 * 3600 * 1_000_000_000;

fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos()).expect("before 2554")
}

/// Two servers with the database, in which each of these lines is stored.
fn both(seeds: &[String]) -> [InfluxDb; 2] {
    let servers = [InfluxDb::start(""), InfluxDb::start("")];
    for server in &servers {
        server.query("", "CREATE DATABASE telegraf");
        if !seeds.is_empty() {
            assert_eq!(server.write("telegraf", &seeds.join("\n")).0, 204);
        }
    }
    servers
}

/// Sends lines through a relay to both; returns its figures of refused lines by class once nothing
/// is pending.
fn deliver(servers: &[InfluxDb; 2], lines: &[String]) -> [std::collections::BTreeMap<String, u64>; 2] {
    let mut config = config(&[servers[0].url(), servers[1].url()]);
    for backend in &mut config.backend {
        // As many lines as may be in one request.
        backend.linger = Duration::from_secs(2);
    }
    let relay = Running::start(config);
    let payloads: Vec<String> = lines.chunks(100).map(|lines| lines.join("\n")).collect();
    relay.send(&payloads);
    ["a", "b"].map(|name| {
        wait_for("everything", || {
            let ledger = relay.backend(name);
            let gone = ledger.delivered_lines + ledger.rejected();
            (gone == lines.len() as u64).then_some(ledger.rejected_lines)
        })
    })
}

/// The hosts whose points are stored.
fn stored(server: &InfluxDb) -> BTreeSet<String> {
    server.values("telegraf").into_keys().map(|(_, host, _, _)| host).filter(|host| host != "seed").collect()
}

#[test]
fn types_in_conflict_are_found_in_every_shard() {
    for (shards, count, conflicts) in [(1, 100, 1), (2, 8, 1), (5, 1000, 20), (5, 5000, 50), (1, 5000, 5), (2, 60, 60)]
    {
        let end = now();
        let time = |line: u64| end - (line % shards) * WEEK - line;
        let seeds: Vec<String> = (0..shards).map(|shard| format!("m,host=seed v=0.5 {}", time(shard))).collect();
        let servers = both(&seeds);
        let is_bad = |line: u64| line.is_multiple_of(count / conflicts) && line / (count / conflicts) < conflicts;
        let lines: Vec<String> = (0..count)
            .map(|line| format!("m,host=h{line} v={line}{} {}", if is_bad(line) { "i" } else { "" }, time(line)))
            .collect();
        let expected: BTreeSet<String> =
            (0..count).filter(|line| !is_bad(*line)).map(|line| format!("h{line}")).collect();
        for rejected in deliver(&servers, &lines) {
            assert_eq!(rejected["field_type"], conflicts, "{shards} shards, {count} lines: {rejected:?}");
            assert_eq!(rejected.values().sum::<u64>(), conflicts);
        }
        for server in &servers {
            assert_eq!(stored(server), expected, "{shards} shards, {count} lines, {conflicts} conflicts");
        }
    }
}

#[test]
fn a_type_that_is_wrong_in_one_shard_and_right_in_another_is_refused_where_it_is_wrong() {
    let end = now();
    let seeds = [format!("m,host=seed v=0.5 {end}"), format!("m,host=seed v=1i {}", end - WEEK)];
    let servers = both(&seeds);
    // Of four lines in a row: floats and integers to each shard.
    let line = |n: u64| {
        let (shard, is_integer) = (n % 2, n / 2 % 2 == 1);
        format!("m,host=h{n} v={n}{} {}", if is_integer { "i" } else { "" }, end - shard * WEEK - 1 - n)
    };
    let lines: Vec<String> = (0..400).map(line).collect();
    let expected: BTreeSet<String> = (0..400).filter(|n| n % 4 == 0 || n % 4 == 3).map(|n| format!("h{n}")).collect();
    for rejected in deliver(&servers, &lines) {
        assert_eq!((rejected["field_type"], rejected.values().sum::<u64>()), (200, 200), "{rejected:?}");
    }
    for server in &servers {
        assert_eq!(stored(server), expected);
    }
}

#[test]
fn points_beyond_retention_beside_types_in_conflict_are_both_found() {
    let servers = both(&[]);
    let end = now();
    for server in &servers {
        server.query("", "CREATE RETENTION POLICY short ON telegraf DURATION 1d REPLICATION 1 DEFAULT");
        assert_eq!(server.write("telegraf", &format!("m,host=seed v=0.5 {end}")).0, 204);
    }
    let line = |n: u64| match n % 100 {
        7 => format!("m,host=h{n} v={n} {}", end - 2 * WEEK - n),
        55 => format!("m,host=h{n} v={n}i {}", end - n),
        // Both at once.
        77 => format!("m,host=h{n} v={n}i {}", end - 2 * WEEK - n),
        _ => format!("m,host=h{n} v={n} {}", end - n),
    };
    let lines: Vec<String> = (0..1000).map(line).collect();
    let expected: BTreeSet<String> =
        (0..1000).filter(|n| ![7, 55, 77].contains(&(n % 100))).map(|n| format!("h{n}")).collect();
    for rejected in deliver(&servers, &lines) {
        assert_eq!((rejected["retention"], rejected["field_type"]), (20, 10), "{rejected:?}");
    }
    for server in &servers {
        assert_eq!(stored(server), expected);
    }
}

#[test]
fn a_missing_database_is_made_where_it_is_asked_for() {
    let server = InfluxDb::start("");
    let mut config = config(&[server.url()]);
    config.backend[0].create_database = true;
    config.udp[0].database = "new \"one\"".into();
    let relay = Running::start(config);
    relay.send(&["m,host=h v=1 1\n"]);
    relay.wait_delivered("a", 1);
    assert!(server.query("", "SHOW DATABASES").contains("new"));
    assert_eq!(relay.backend("a").rejected(), 0);
}
