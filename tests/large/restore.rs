//! An archive and a journal's dump, put back into a real InfluxDB: every point as it was.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use twinflux::config::Udp;
use twinflux::protocol::Precision;

use crate::influxdb::InfluxDb;
use crate::support::{Running, config, http, wait_for};

const PROGRAM: &str = env!("CARGO_BIN_EXE_twinflux");
const FIRST: u64 = 1_795_400_726_000_000_000;
/// A database's name, as odd as InfluxDB takes it.
const ODD: &str = " a \"b\".c: d, é";

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(PROGRAM).args(arguments).output().expect("the program");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text.into_owned())
}

/// Texts that a way back may spoil, and numbered ones of three lines.
fn texts() -> Vec<String> {
    let awkward = [
        "# DML\n# CONTEXT-DATABASE: other\n# precision: s\n# twinflux: {}\nm v=1 1\n",
        "\n\n# DML\n",
        "a \"quoted\" text",
        "back\\slashes \\\\ and \\\"both\\\"\n\\",
        "commas, spaces and = signs, v=1 1795400726000000000",
        "ünïcödé ☃ 🎉\r\nwith CR and LF\r\n",
        "panic: boom\ngoroutine id=1\nmain.go line=42\n",
        "",
        " \n ",
        "\ttab\t\u{1}\u{7f}",
    ];
    let numbered = (0..6000).map(|n| format!("first {n}\nm,host=x v={n} {n}\nlast {n}"));
    awkward.iter().map(|text| (*text).to_owned()).chain(numbered).collect()
}

fn line(number: usize, text: &str, unit: u64) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "logs,host=web\\ {} message=\"{escaped}\",n={number}i {}\n",
        number % 7,
        (FIRST + number as u64 * 1_000_000_000) / unit
    )
}

/// The texts of a database by time.
fn stored(influx: &InfluxDb, database: &str) -> BTreeMap<u64, String> {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let path = format!("/query?db={}&epoch=ns&q={}", encode(database), encode("SELECT message FROM /.*/"));
    let answer = http(influx.address, &format!("POST {path} HTTP/1.0\r\nHost: x\r\nContent-Length: 0\r\n\r\n")).1;
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let rows = answer["results"][0]["series"][0]["values"].as_array().cloned().unwrap_or_default();
    rows.iter().map(|row| (row[0].as_u64().expect("a time"), row[1].as_str().expect("a text").to_owned())).collect()
}

fn assert_each_point(influx: &InfluxDb, database: &str) {
    let stored = stored(influx, database);
    let texts = texts();
    assert_eq!(stored.len(), texts.len(), "{database}");
    for (number, text) in texts.iter().enumerate() {
        assert_eq!(stored.get(&(FIRST + number as u64 * 1_000_000_000)), Some(text), "{database}, point {number}");
    }
}

/// Replaces each of an archive's files but the newest of each folder by a compressed one, as time
/// would.
fn compress(archive: &Path) {
    for folder in std::fs::read_dir(archive).expect("folders").map(|entry| entry.expect("an entry").path()) {
        if !folder.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(folder).expect("files").map(|entry| entry.expect("an entry").path()) {
            assert!(Command::new("gzip").arg(&file).status().expect("gzip").success());
        }
    }
}

#[test]
fn an_archive_and_a_dump_bring_back_every_point() {
    let folder = tempfile::tempdir().expect("folder");
    let archive = folder.path().join("archive");
    // The second one is not there, so that the journal keeps everything for it.
    let mut settings = config(&[format!("file://{}", archive.display()), "http://127.0.0.1:1".to_owned()]);
    settings.data_dir = folder.path().join("data");
    let any = settings.udp[0].listen;
    settings.udp.push(Udp { listen: any, database: ODD.into(), precision: Precision::Seconds, ..Udp::default() });
    let mut relay = Running::start_in(settings);
    let targets: Vec<_> =
        relay.relay.as_ref().expect("running").view().listeners.iter().map(|one| one.address()).collect();
    let texts = texts();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let mut sent = 0;
    for (number, text) in texts.iter().enumerate() {
        for (target, unit) in targets.iter().zip([1, 1_000_000_000]) {
            socket.send_to(line(number, text, unit).as_bytes(), target).expect("send");
            sent += 1;
        }
        if number % 100 == 0 {
            wait_for("the lines", || (relay.status().accepted_lines == sent).then_some(()));
        }
    }
    relay.wait_delivered("a", sent);
    assert_eq!(relay.stop().backends[1].pending_lines, sent);

    let (data, archive) = (folder.path().join("data").display().to_string(), archive.display().to_string());
    let dump = Command::new(PROGRAM).args(["journal", "dump", &data]).output().expect("the program");
    assert!(dump.status.success());
    let dumped = folder.path().join("dump").display().to_string();
    std::fs::write(&dumped, dump.stdout).expect("write");
    for (input, compresses) in [(&archive, false), (&archive, true), (&dumped, false)] {
        if compresses {
            compress(Path::new(input));
        }
        let influx = InfluxDb::start("");
        let to = influx.url();
        let (code, text) = run(&["restore", input, "--to", &to]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("does not exist there") && text.contains("CREATE DATABASE"), "{text}");
        // Twice: what is there already is stored once.
        for _ in 0..2 {
            let (code, text) = run(&["restore", input, "--to", &to, "--create-database"]);
            assert_eq!(code, Some(0), "{text}");
            assert!(text.contains(&format!("{sent} of {sent} lines")), "{text}");
        }
        assert_each_point(&influx, "telegraf");
        assert_each_point(&influx, ODD);
    }
}

#[test]
fn what_a_real_server_refuses_is_counted() {
    let influx = InfluxDb::start("");
    influx.query("", "CREATE DATABASE db");
    assert_eq!(influx.write("db", "m v=1 1\n").0, 204);
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("dump").display().to_string();
    let header = "# DML\n# CONTEXT-DATABASE: db\n";
    std::fs::write(&file, format!("{header}m v=\"text\" 2\nm v=3 3\nother v=4 4\n")).expect("write");
    let (code, text) = run(&["restore", &file, "--to", &influx.url()]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("2 of 3 lines") && text.contains("1 lines were refused") && text.contains("conflict"),
        "{text}"
    );
    assert_eq!((influx.count("db", "m", "v"), influx.count("db", "other", "v")), (2, 1));
    std::fs::write(&file, format!("{header}# CONTEXT-RETENTION-POLICY: week\nm v=1 1\n")).expect("write");
    let (code, text) = run(&["restore", &file, "--to", &influx.url(), "--create-database"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("CREATE RETENTION POLICY \"week\" ON \"db\""), "{text}");
}
