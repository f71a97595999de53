//! No line that the scanner accepts is refused by a real InfluxDB 1.6.7 for its syntax, or crashes
//! it.
//!
//! For more than the usual number: `TWINFLUX_LINES=1000000 TWINFLUX_SEED=2 cargo test --test large
//! syntax`.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use fastrand::Rng;
use twinflux::protocol::{Precision, Scanner};

use crate::influxdb::InfluxDb;

/// Lines in one request. A refused one is then looked for among them.
const BATCH: usize = 200;
const LINES: u64 = 40_000;
const SEED: u64 = 167;

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().expect("a number"))
}

#[test]
fn what_is_accepted_is_read_by_influxdb() {
    let mut server = InfluxDb::start("");
    server.query("", "CREATE DATABASE syntax");
    let lines = setting("TWINFLUX_LINES", LINES);
    let mut random = Rng::with_seed(setting("TWINFLUX_SEED", SEED));
    let mut scanner = Scanner::new(Precision::Nanoseconds);
    let mut batch = Vec::new();
    let mut tried = 0;
    while tried < lines {
        let line = any_line(&mut random, tried);
        let accepted: Vec<String> = scanner
            .lines(&line, false)
            .flatten()
            .map(|line| String::from_utf8(line.bytes.to_vec()).expect("accepted lines are UTF-8"))
            .collect();
        batch.extend(accepted);
        if batch.len() >= BATCH {
            tried += batch.len() as u64;
            check(&mut server, &std::mem::take(&mut batch));
        }
    }
}

#[test]
fn the_corpus_is_decided_as_influxdb_does() {
    let mut server = InfluxDb::start("");
    for (number, row) in include_str!("../corpus/lines.jsonl").lines().enumerate() {
        let row: serde_json::Value = serde_json::from_str(row).expect("a row of JSON");
        let input = match row["input"].as_str() {
            Some(text) => text.as_bytes().to_vec(),
            None => BASE64_STANDARD.decode(row["input_b64"].as_str().expect("an input")).expect("base64"),
        };
        let precision: Precision = row["precision"].as_str().unwrap_or("ns").parse().expect("a precision");
        // Types of other rows are not to matter.
        let database = format!("row{number}");
        server.query("", &format!("CREATE DATABASE {database}"));
        let (status, body) = server.write_bytes(&format!("{database}&precision={}", precision.v1_name()), &input);
        assert!(server.is_alive(), "InfluxDB died of {row}");
        assert_eq!(Some(status == 204), row["influx1"].as_bool(), "{status} {body} for {row}");
    }
}

/// All lines together, and where that fails each alone.
fn check(server: &mut InfluxDb, lines: &[String]) {
    let (status, body) = server.write("syntax", &lines.join("\n"));
    assert!(server.is_alive(), "InfluxDB died of one of {lines:#?}");
    if is_fine(status, &body) {
        return;
    }
    for line in lines {
        let (status, body) = server.write("syntax", line);
        assert!(is_fine(status, &body), "{status} {body} for {line:?}");
    }
    panic!("{status} {body} for these together only: {lines:#?}");
}

/// Fields of other types than before are the schema's matter, not the syntax's.
fn is_fine(status: u16, body: &str) -> bool {
    status == 204 || (status == 400 && body.contains("field type conflict") && !body.contains("unable to parse"))
}

/// A line of parts that are hard for parsers; each has a measurement of its own, so that types do
/// not conflict.
fn any_line(random: &mut Rng, number: u64) -> Vec<u8> {
    const PARTS: &[&str] = &[
        "a", "b", "\\ ", "\\,", "\\=", "\\", "\\\\", "\"", "'", "=", "ä", "日", "#", "time", "i", "0", "-", ".", "(",
        "{", "é", "\u{feff}", "\u{80}", "\u{2028}",
    ];
    const VALUES: &[&str] = &[
        "1",
        "1.",
        ".5",
        "-0",
        "1e5",
        "1E-300",
        "1e-400",
        "00012",
        "123456789012345678",
        "1i",
        "-9223372036854775808i",
        "t",
        "TRUE",
        "False",
        "\"\"",
        "\"a b,c=d\"",
        "\"\\\"\"",
        "\"\\\\\"",
        "\"a\nb\"",
        "\"a\r\n\"",
        "\"\t\u{1}\"",
        "\"#\"",
        "\"\\n\\x\"",
        "\"=\"",
        "\",\"",
        "\"日\"",
    ];
    const TIMES: &[&str] = &[
        "",
        " 1",
        " -1",
        " 1795400726000000000",
        " 9223372036854775806",
        " -9223372036854775806",
        "  7 ",
        " 0000000000000000000007",
    ];
    let pick = |random: &mut Rng, from: &[&'static str]| from[random.usize(..from.len())];
    let token = |random: &mut Rng| -> String { (0..random.usize(1..5)).map(|_| pick(random, PARTS)).collect() };
    let mut line = format!("{}m{number}{}", if random.bool() { "" } else { " " }, token(random));
    for _ in 0..random.usize(..4) {
        write!(line, ",{}={}", token(random), token(random)).expect("memory");
    }
    line.push_str(if random.bool() { " " } else { "  " });
    for place in 0..random.usize(1..4) {
        let comma = if place > 0 { "," } else { "" };
        write!(line, "{comma}{}={}", token(random), pick(random, VALUES)).expect("memory");
    }
    line += pick(random, TIMES);
    line.into_bytes()
}
