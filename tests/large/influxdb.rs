//! Real InfluxDB servers in temporary folders, on ports of their own.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{http, http_bytes, wait_for};

/// Measurement, host, field, and nanoseconds since 1970.
pub(crate) type Place = (String, String, String, u64);

/// A server, which may be killed and started again on its data and port.
pub(crate) struct InfluxDb {
    pub(crate) address: SocketAddr,
    folder: tempfile::TempDir,
    within: Vec<String>,
    child: Option<Child>,
}

/// How a server is started.
pub(crate) struct ServerConfig<'a> {
    pub(crate) address: SocketAddr,
    /// Where its data are.
    pub(crate) folder: tempfile::TempDir,
    /// Added to these sections of its configuration.
    pub(crate) http: &'a str,
    pub(crate) data: &'a str,
    /// A command that runs it, such as `nsenter`.
    pub(crate) within: Vec<String>,
}

impl Default for ServerConfig<'_> {
    fn default() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        Self { address: free_port(), folder, http: "", data: "", within: Vec::new() }
    }
}

impl InfluxDb {
    /// Starts a server; `http` is added to that section of its configuration.
    pub(crate) fn start(http: &str) -> Self {
        Self::with(ServerConfig { http, ..ServerConfig::default() })
    }

    pub(crate) fn with(setup: ServerConfig<'_>) -> Self {
        let ServerConfig { address, folder, http, data, within } = setup;
        let mut influx = Self { address, folder, within, child: None };
        influx.configure(http, data);
        // Somebody else may have taken a port meanwhile that was free.
        for _ in 0..3 {
            if influx.try_revive() {
                return influx;
            }
            if influx.within.is_empty() {
                influx.address = free_port();
            }
            influx.configure(http, data);
        }
        panic!("influxd ended: {}", std::fs::read_to_string(influx.folder.path().join("log")).unwrap_or_default());
    }

    /// Writes its configuration, which holds from the next start on.
    pub(crate) fn configure(&self, http: &str, data: &str) {
        let folder = self.folder.path().display();
        let rpc = free_port();
        let text = format!(
            "reporting-disabled = true\nbind-address = \"{rpc}\"\n\
             [meta]\ndir = \"{folder}/meta\"\n\
             [data]\ndir = \"{folder}/data\"\nwal-dir = \"{folder}/wal\"\nquery-log-enabled = false\n{data}\n\
             [monitor]\nstore-enabled = false\n\
             [http]\nbind-address = \"{}\"\nlog-enabled = false\n{http}\n",
            self.address
        );
        std::fs::write(self.folder.path().join("influxdb.conf"), text).expect("write");
    }

    /// Starts it again.
    pub(crate) fn revive(&mut self) {
        assert!(self.try_revive(), "influxd ended");
    }

    /// Starts it; whether it listens.
    fn try_revive(&mut self) -> bool {
        let log = std::fs::File::create(self.folder.path().join("log")).expect("log");
        let mut command: Vec<&str> = self.within.iter().map(String::as_str).collect();
        command.push("influxd");
        let child = Command::new(command[0])
            .args(&command[1..])
            .arg("-config")
            .arg(self.folder.path().join("influxdb.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("influxd: install Debian's package influxdb");
        self.child = Some(child);
        let child = self.child.as_mut().expect("just started");
        let address = self.address;
        wait_for("InfluxDB to listen", || {
            let is_alive = matches!(child.try_wait(), Ok(None));
            (!is_alive || std::net::TcpStream::connect(address).is_ok()).then_some(is_alive)
        })
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("running");
        let process = Pid::from_raw(i32::try_from(child.id()).expect("a process")).expect("a process");
        kill_process(process, signal).expect("a signal");
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Runs a statement; returns the answer's body.
    pub(crate) fn query(&self, database: &str, statement: &str) -> String {
        self.query_as(database, statement, "")
    }

    /// The same with more parameters, such as `&u=…&p=…`.
    pub(crate) fn query_as(&self, database: &str, statement: &str, more: &str) -> String {
        let statement = utf8_percent_encode(statement, NON_ALPHANUMERIC);
        let path = format!("/query?db={database}&epoch=ns&q={statement}{more}");
        let request =
            format!("POST {path} HTTP/1.0\r\nHost: x\r\nAccept: application/csv\r\nContent-Length: 0\r\n\r\n");
        http(self.address, &request).1
    }

    /// Everything in a database: each field's value by measurement, host, field and time in
    /// nanoseconds.
    pub(crate) fn values(&self, database: &str) -> BTreeMap<Place, f64> {
        let statement = utf8_percent_encode("SELECT * FROM /.*/ GROUP BY *", NON_ALPHANUMERIC).to_string();
        let path = format!("/query?db={database}&epoch=ns&q={statement}");
        let answer = http(self.address, &format!("POST {path} HTTP/1.0\r\nHost: x\r\nContent-Length: 0\r\n\r\n")).1;
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let mut values = BTreeMap::new();
        for series in answer["results"][0]["series"].as_array().expect("series") {
            let (measurement, host) = (text(&series["name"]), text(&series["tags"]["host"]));
            for row in series["values"].as_array().expect("rows") {
                let time = row[0].as_u64().expect("a time");
                for (column, value) in
                    series["columns"].as_array().expect("columns").iter().zip(row.as_array().expect("a row"))
                {
                    if let (Some(value), true) = (value.as_f64(), column != "time") {
                        values.insert((measurement.clone(), host.clone(), text(column), time), value);
                    }
                }
            }
        }
        values
    }

    /// Writes lines; returns status and body.
    pub(crate) fn write(&self, database: &str, body: &str) -> (u16, String) {
        self.write_bytes(database, body.as_bytes())
    }

    /// The same with bytes of any kind.
    pub(crate) fn write_bytes(&self, database: &str, body: &[u8]) -> (u16, String) {
        let length = body.len();
        let head = format!("POST /write?db={database} HTTP/1.0\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        http_bytes(self.address, &[head.as_bytes(), body].concat())
    }

    /// Everything in a database, in an order of its own making, so that two can be compared.
    pub(crate) fn dump(&self, database: &str) -> String {
        self.query(database, "SELECT * FROM /.*/ GROUP BY *")
    }

    /// How many values one field has in all.
    pub(crate) fn count(&self, database: &str, measurement: &str, field: &str) -> u64 {
        let answer = self.query(database, &format!("SELECT count(\"{field}\") FROM {measurement}"));
        let rows = answer.lines().filter_map(|line| line.rsplit(',').next()?.trim().parse::<u64>().ok());
        rows.sum()
    }
}

impl Drop for InfluxDb {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that was free a moment ago: the server takes no 0.
pub(crate) fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address")
}
