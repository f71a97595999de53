//! Reading clients, through the program before two real InfluxDBs, and straight to a third one with
//! the same points: what they are given is the same.

use std::net::SocketAddr;
use std::process::Command;

use crate::clients::{Client, Stand, assert_alike, lines};
use crate::support::{http, wait_for};

/// A stand whose servers hold the same points.
fn stand() -> Stand {
    let stand = Stand::new("");
    let text = lines("batch", 1000, 1_000_000_000);
    let request =
        format!("POST /write?db=telegraf HTTP/1.0\r\nHost: x\r\nContent-Length: {}\r\n\r\n{text}", text.len());
    assert_eq!(http(stand.door, &request).0, 204);
    stand.write_direct(&text, "n");
    stand.assert_stored(None);
    stand
}

#[test]
fn influxdb_python_reads_what_influxdb_gives_it() {
    let Some(client) = Client::find("python_1x_reads.py", "influxdb_python_reads_what_influxdb_gives_it") else {
        return;
    };
    let stand = stand();
    let (direct, through) = (client.run_1x(stand.direct.address, &[]), client.run_1x(stand.door, &[]));
    assert_alike(&direct, &through, &[]);
}

#[test]
fn node_influx_reads_what_influxdb_gives_it() {
    let Some(client) = Client::find("node_1x_reads.js", "node_influx_reads_what_influxdb_gives_it") else { return };
    let stand = stand();
    let (direct, through) = (client.run_1x(stand.direct.address, &[]), client.run_1x(stand.door, &[]));
    assert_alike(&direct, &through, &[]);
}

#[test]
fn the_shell_reads_what_influxdb_gives_it() {
    let stand = stand();
    let run = |address: SocketAddr, statement: &str| {
        let port = address.port().to_string();
        let mut command = Command::new("influx");
        command.args([
            "-host",
            "127.0.0.1",
            "-port",
            &port,
            "-database",
            "telegraf",
            "-precision",
            "rfc3339",
            "-execute",
            statement,
        ]);
        for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(name);
        }
        let output = command.output().expect("influx: install Debian's package influxdb-client");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    for statement in [
        "SELECT v FROM batch WHERE v < 20 GROUP BY host",
        "SHOW MEASUREMENTS",
        "SHOW TAG VALUES FROM batch WITH KEY = host",
        "SELECT FROM",
        "SHOW DATABASES",
    ] {
        let (direct, through) = (run(stand.direct.address, statement), run(stand.door, statement));
        assert!(direct == through && !direct.trim().is_empty(), "{statement}:\n{direct}\n{through}");
    }
    // One statement reaches both.
    let told = run(stand.door, "DROP MEASUREMENT batch");
    assert_eq!(told.trim(), "", "{told}");
    for server in &stand.servers {
        wait_for("the statement on every server", || (server.count("telegraf", "batch", "v") == 0).then_some(()));
    }
}
