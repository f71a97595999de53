//! What a real server holds of lines that are awkward: strings over several lines, fields called
//! `time`, long lines.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use bytesize::ByteSize;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use twinflux::config::{Tcp, Udp};
use twinflux::protocol::Unsigned;

use crate::influxdb::InfluxDb;
use crate::support::{Running, config, http};

/// A field's values with their times, oldest first.
fn values(server: &InfluxDb, measurement: &str, field: &str) -> Vec<(u64, serde_json::Value)> {
    let statement = format!("SELECT \"{field}\" FROM \"{measurement}\"");
    let statement = utf8_percent_encode(&statement, NON_ALPHANUMERIC);
    let path = format!("/query?db=telegraf&epoch=ns&q={statement}");
    let answer = http(server.address, &format!("POST {path} HTTP/1.0\r\nHost: x\r\nContent-Length: 0\r\n\r\n")).1;
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let rows = answer["results"][0]["series"][0]["values"].as_array().cloned().unwrap_or_default();
    rows.into_iter().map(|row| (row[0].as_u64().expect("a time"), row[1].clone())).collect()
}

#[test]
fn awkward_lines_are_stored_as_they_were_meant() {
    let server = InfluxDb::start("");
    server.query("", "CREATE DATABASE telegraf");
    let mut config = config(&[server.url()]);
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.tcp.push(Tcp { listen, max_line: ByteSize::mib(1), unsigned: Unsigned::Signed, ..Tcp::default() });
    config.udp[0] = Udp { unsigned: Unsigned::Signed, ..config.udp[0].clone() };
    let relay = Running::start(config);
    let stream = relay.relay.as_ref().expect("running").view().listeners[1].address();

    let trace = "panic: boom\ngoroutine id=1\nmain.go line=42\ncpu v=1 7\n# DML\n\\\"quoted\\\" \\\\ back";
    let stored = "panic: boom\ngoroutine id=1\nmain.go line=42\ncpu v=1 7\n# DML\n\"quoted\" \\ back";
    let long = "x".repeat(700_000);
    let text = format!(
        "docker_log,host=a message=\"{trace}\" 1000\nlate time=1,v=2 2000\nbig,host=a message=\"{long}\" 3000\n\
         count n=5u,most=18446744073709551615u 4000\ncpu v=9 5000\nfirst,broken 1\n\u{feff}a.b 1 6\n"
    );
    for size in [1000, text.len()] {
        let mut socket = TcpStream::connect(stream).expect("connect");
        text.as_bytes().chunks(size).for_each(|piece| socket.write_all(piece).expect("send"));
    }
    relay.send(&[format!("udp_log,host=a message=\"{trace}\" 1000\nlate time=1,v=3 7000")]);
    relay.wait_delivered("a", 2 * 6 + 2);

    for measurement in ["docker_log", "udp_log"] {
        assert_eq!(values(&server, measurement, "message"), [(1000, stored.into())], "{measurement}");
    }
    assert_eq!(values(&server, "late", "v"), [(2000, 2.into()), (7000, 3.into())]);
    assert_eq!(values(&server, "big", "message"), [(3000, long.into())]);
    assert_eq!(values(&server, "count", "n"), [(4000, 5.into())]);
    assert_eq!(values(&server, "count", "most"), [(4000, i64::MAX.into())]);
    assert_eq!(values(&server, "cpu", "v"), [(5000, 9.into())], "nothing is invented from a string's text");
    let measurements = server.query("telegraf", "SHOW MEASUREMENTS");
    assert_eq!(measurements.lines().filter(|line| line.starts_with("measurements")).count(), 7, "{measurements}");
}
