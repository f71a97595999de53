//! InfluxDB's own parser beside ours: no text that it takes for a write may pass as a read.
//!
//! Texts are statements of every kind, and mixtures of their parts with what ends a comment, a
//! string or an expression. `TWINFLUX_TEXTS` says how many; a million takes a minute of a release
//! build.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use twinflux::protocol::influxql::{only_reads, parse};

use crate::support::left_out;

/// Statements of every kind, which are cut into parts.
const STATEMENTS: [&str; 50] = [
    "SELECT mean(\"usage\") FROM \"cpu\" WHERE time >= 1ms AND host =~ /a.*/ GROUP BY time(10s), host fill(null)",
    "SELECT * FROM /cpu.*/, db.rp.m, db..m LIMIT 5 SLIMIT 1",
    "SELECT a / b FROM (SELECT mean(x) AS a FROM m GROUP BY time(1m)) tz('UTC')",
    "SELECT DISTINCT v, top(v, host, 3), *::tag, /x/, v::float FROM m ORDER BY time DESC",
    "SELECT percentile(v, 95) - -3 + 1.5 FROM m WHERE v != 'x' OR (v <> 3 AND b = true)",
    "SELECT * INTO x FROM m",
    "SELECT v INTO db.rp.:MEASUREMENT FROM /.*/ GROUP BY *",
    "SELECT value+1.INTO x FROM m",
    "SELECT a FROM (SELECT v INTO x FROM m)",
    "EXPLAIN SELECT v FROM m",
    "EXPLAIN ANALYZE SELECT v INTO x FROM m",
    "SHOW DATABASES",
    "SHOW RETENTION POLICIES ON \"db\"",
    "SHOW MEASUREMENTS ON db WITH MEASUREMENT =~ /(?i)x/ LIMIT 100",
    "SHOW MEASUREMENT EXACT CARDINALITY ON db",
    "SHOW SERIES FROM m WHERE host = 'a' LIMIT 3 OFFSET 2",
    "SHOW SERIES CARDINALITY",
    "SHOW TAG KEYS FROM rp.\"m\" WHERE host = 'a'",
    "SHOW TAG KEY CARDINALITY",
    "SHOW TAG VALUES FROM cpu WITH KEY IN (\"a\", b) WHERE \"a\" =~ /^$/",
    "SHOW TAG VALUES CARDINALITY WITH KEY = x",
    "SHOW FIELD KEYS FROM m",
    "SHOW FIELD KEY CARDINALITY",
    "SHOW USERS",
    "SHOW GRANTS FOR \"me\"",
    "SHOW CONTINUOUS QUERIES",
    "SHOW SUBSCRIPTIONS",
    "SHOW SHARDS",
    "SHOW SHARD GROUPS",
    "SHOW STATS FOR 'runtime'",
    "SHOW DIAGNOSTICS",
    "SHOW QUERIES",
    "CREATE DATABASE x WITH DURATION 30d REPLICATION 1 SHARD DURATION 1h NAME week",
    "CREATE RETENTION POLICY week ON db DURATION INF REPLICATION 1 DEFAULT",
    "ALTER RETENTION POLICY week ON db DURATION 1w",
    "DROP RETENTION POLICY week ON db",
    "DROP DATABASE x",
    "DROP MEASUREMENT \"a b\"",
    "DROP SERIES FROM m WHERE host = 'a'",
    "DROP SHARD 3",
    "DELETE FROM m WHERE time < now() - 1d",
    "CREATE USER me WITH PASSWORD 'x' WITH ALL PRIVILEGES",
    "DROP USER me",
    "SET PASSWORD FOR me = 'x'",
    "GRANT READ ON db TO me",
    "REVOKE ALL PRIVILEGES FROM me",
    "CREATE CONTINUOUS QUERY q ON db RESAMPLE EVERY 1m BEGIN SELECT mean(v) INTO x FROM m GROUP BY time(1m) END",
    "CREATE SUBSCRIPTION s ON \"db\".\"rp\" DESTINATIONS ALL 'udp://h:1'",
    "DROP SUBSCRIPTION s ON db.rp",
    "KILL QUERY 36 ON h",
];

/// What makes one thing look like another.
const TRAPS: [&str; 44] = [
    ";",
    "; ",
    "--",
    "-- x\r",
    "-- x\n",
    "/*",
    "*/",
    "/* x */",
    "/",
    "/;/",
    "/--/",
    "/\\//",
    "/\\\\/",
    "/\\\\/--/",
    "/'/",
    "/\"/",
    "//",
    "'",
    "\"",
    "'a\\'",
    "\"a\\\"b\"",
    "\\",
    "''",
    "=~",
    "!~",
    "::",
    ":",
    ".",
    "..",
    "1.",
    "1.INTO",
    "5e3INTO",
    "1h",
    "INTO",
    "iNtO ",
    "INTO\"x\"",
    "\0",
    "\u{b}",
    "\u{a0}",
    "\u{212a}",
    "$x",
    "(",
    ")",
    "- -",
];

/// A text, of which most are nearly statements.
fn text(random: &mut fastrand::Rng) -> String {
    let mut text = String::new();
    for number in 0..[1, 1, 1, 2, 3][random.usize(0..5)] {
        if number > 0 {
            text.push_str([";", "; ", " ;\n", "/**/;", "--\n;", " "][random.usize(0..6)]);
        }
        let statement = STATEMENTS[random.usize(0..STATEMENTS.len())];
        let mut parts: Vec<&str> = statement.split_inclusive([' ', '(', ',']).collect();
        for _ in 0..[0, 0, 1, 1, 1, 2][random.usize(0..6)] {
            let place = random.usize(0..parts.len());
            match random.u8(0..5) {
                0 => drop(parts.remove(place)),
                1 => parts.insert(place, TRAPS[random.usize(0..TRAPS.len())]),
                2 => parts[place] = TRAPS[random.usize(0..TRAPS.len())],
                3 => parts.insert(place, parts[random.usize(0..parts.len())]),
                _ => {
                    let other = STATEMENTS[random.usize(0..STATEMENTS.len())];
                    parts.insert(place, other.split_inclusive(' ').next_back().unwrap_or(other));
                }
            }
            if parts.is_empty() {
                break;
            }
        }
        text.push_str(&parts.concat());
    }
    if random.u8(0..6) == 0 && !text.is_empty() {
        let mut characters: Vec<char> = text.chars().collect();
        let place = random.usize(0..characters.len());
        let trap = TRAPS[random.usize(0..TRAPS.len())];
        characters.splice(place..place, trap.chars());
        text = characters.into_iter().collect();
    }
    text
}

#[derive(serde::Deserialize)]
struct Told {
    ok: bool,
    writes: bool,
    count: usize,
}

/// InfluxDB's parser, built from Debian's packages; none if they are not here.
fn oracle(folder: &std::path::Path) -> Option<Child> {
    let program = folder.join("influxql");
    let source = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/large/influxql.go"));
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(&source)
        .env("GOPATH", "/usr/share/gocode")
        .env("GO111MODULE", "off")
        .env("GOCACHE", folder.join("cache"))
        .status();
    if !built.is_ok_and(|status| status.success()) {
        return None;
    }
    Some(Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the oracle"))
}

#[test]
fn what_influxdb_takes_for_a_write_never_passes_as_a_read() {
    let folder = tempfile::tempdir().expect("folder");
    let Some(mut oracle) = oracle(folder.path()) else {
        left_out("what_influxdb_takes_for_a_write_never_passes_as_a_read", "no golang-go and influxql-dev here");
        return;
    };
    let count: usize = std::env::var("TWINFLUX_TEXTS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let texts: Vec<String> = {
        let mut random = fastrand::Rng::with_seed(7);
        (0..count).map(|_| text(&mut random)).collect()
    };
    let mut asked = BufWriter::new(oracle.stdin.take().expect("piped"));
    let told = BufReader::new(oracle.stdout.take().expect("piped"));
    let (mut taken, mut writes, mut refused) = (0, 0, 0);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for text in &texts {
                writeln!(asked, "{}", serde_json::Value::from(text.as_str())).expect("the oracle reads");
            }
            drop(asked);
        });
        for (text, line) in texts.iter().zip(told.lines()) {
            let told: Told = serde_json::from_str(&line.expect("a line")).expect("JSON");
            let ours = parse(text, 0);
            taken += usize::from(told.ok);
            writes += usize::from(told.ok && told.writes);
            refused += usize::from(told.ok && ours.is_err());
            if !told.ok {
                continue;
            }
            if let Ok(ours) = &ours {
                assert_eq!(ours.len(), told.count, "statements in {text:?}");
            }
            let is_read = |ours: &[twinflux::protocol::influxql::Statement]| ours.iter().all(|one| one.kind.is_read());
            let passes = only_reads(text) || ours.as_ref().is_ok_and(|ours| is_read(ours));
            assert!(!(told.writes && passes), "passes as a read: {text:?}");
        }
    });
    oracle.wait().expect("ended");
    eprintln!("{count} texts, {taken} taken by InfluxDB, {writes} of them writes, {refused} refused here");
    assert!(taken > count / 10 && writes > count / 50);
}
