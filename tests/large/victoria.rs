//! VictoriaMetrics beside an InfluxDB: it speaks InfluxDB's write API, and holds the same values.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use crate::influxdb::{InfluxDb, free_port};
use crate::support::{Running, config, get, wait_for};

/// A server in a folder of its own.
struct Victoria {
    address: std::net::SocketAddr,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Victoria {
    fn start() -> Self {
        let (address, folder) = (free_port(), tempfile::tempdir().expect("folder"));
        let child = Command::new("victoria-metrics")
            .arg(format!("-httpListenAddr={address}"))
            .arg(format!("-storageDataPath={}", folder.path().display()))
            .args(["-retentionPeriod=100y", "-search.latencyOffset=0s"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("victoria-metrics: install Debian's package victoria-metrics");
        let server = Self { address, child, _folder: folder };
        wait_for("VictoriaMetrics", || std::net::TcpStream::connect(address).ok());
        wait_for("its health", || (get(address, "/health").0 == 200).then_some(()));
        server
    }

    /// Each value by its metric, host and time in milliseconds.
    fn values(&self) -> BTreeMap<(String, String, u64), f64> {
        get(self.address, "/internal/force_flush");
        let exported = get(self.address, "/api/v1/export?match=%7B__name__!=%22%22%7D").1;
        let mut values = BTreeMap::new();
        for line in exported.lines() {
            let series: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let text = |name: &str| series["metric"][name].as_str().unwrap_or_default().to_owned();
            let numbers = |name: &str| series[name].as_array().expect("a list").clone();
            for (value, time) in numbers("values").iter().zip(numbers("timestamps")) {
                let place = (text("__name__"), text("host"), time.as_u64().expect("a time"));
                values.insert(place, value.as_f64().expect("a number"));
            }
        }
        values
    }
}

impl Drop for Victoria {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn an_influxdb_and_a_victoriametrics_hold_the_same_values() {
    let (influx, victoria) = (InfluxDb::start(""), Victoria::start());
    influx.query("", "CREATE DATABASE telegraf");
    let relay = Running::start(config(&[influx.url(), format!("http://{}", victoria.address)]));
    wait_for("both to be reached", || {
        let status = relay.status();
        status.backends.iter().all(|backend| backend.state == "up").then_some(())
    });
    let begin = 1_790_000_000_000_u64;
    let lines: Vec<String> = (0..2000)
        .map(|n| format!("cpu,host=h{} usage={n}.5,steal={n}i {}\n", n % 50, (begin + n) * 1_000_000))
        .collect();
    relay.send(&lines);
    for name in ["a", "b"] {
        relay.wait_delivered(name, 2000);
    }
    let of_influx: BTreeMap<(String, String, u64), f64> = influx
        .values("telegraf")
        .into_iter()
        .map(|((measurement, host, field, time), value)| {
            ((format!("{measurement}_{field}"), host, time / 1_000_000), value)
        })
        .collect();
    assert_eq!(of_influx.len(), 4000);
    assert_eq!(wait_for("all values", || Some(victoria.values()).filter(|values| values.len() >= 4000)), of_influx);
}
