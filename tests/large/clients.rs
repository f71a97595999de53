//! Real clients of HTTP, through the program into two real InfluxDBs, and straight to a third one:
//! what they are told is the same, except where that is meant, and so is what is stored.
//!
//! `tests/run` installs their libraries below the folder of build products. What could not be
//! installed is left out.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::influxdb::{InfluxDb, ServerConfig};
use crate::rig::{Program, server};
use crate::support::{http, http_bytes, left_out, wait_for};

/// The program, servers behind it, and one beside it.
pub(crate) struct Stand {
    pub(crate) servers: [InfluxDb; 2],
    pub(crate) direct: InfluxDb,
    pub(crate) program: Program,
    pub(crate) door: SocketAddr,
}

impl Stand {
    /// With more in the listener's table.
    pub(crate) fn new(more: &str) -> Self {
        let servers = [server(ServerConfig::default()), server(ServerConfig::default())];
        let more = format!("[[http]]\nlisten = \"127.0.0.1:0\"\n{more}\n");
        let backends = [0, 1].map(|number: usize| (servers[number].url(), "create_database = true"));
        let program = Program::with(Command::new(env!("CARGO_BIN_EXE_twinflux")), &more, &backends);
        for name in ["a", "b"] {
            program.wait_state(name, "up");
        }
        let door = program.listener("http");
        Self { servers, direct: server(ServerConfig::default()), program, door }
    }

    /// Both servers hold what the third one holds; what a server refuses for want of a database is
    /// in both.
    pub(crate) fn assert_stored(&self, elsewhere: Option<&str>) {
        for name in ["a", "b"] {
            self.program.wait_delivered(name);
        }
        let direct = self.direct.dump("telegraf");
        assert!(direct.lines().count() > 1, "something was written: {direct}");
        for server in &self.servers {
            assert!(server.dump("telegraf") == direct, "{}\n{direct}", server.dump("telegraf"));
            if let Some(elsewhere) = elsewhere {
                assert_eq!(server.count(elsewhere, "elsewhere", "v"), 1, "a database that was missing is made");
            }
        }
    }

    /// Writes past the program.
    pub(crate) fn write_direct(&self, lines: &str, precision: &str) {
        let (status, text) = self.direct.write(&format!("telegraf&precision={precision}"), lines);
        assert_eq!(status, 204, "{text}");
    }
}

/// What clients write: as their scripts do.
pub(crate) fn lines(measurement: &str, count: u64, units_per_second: u64) -> String {
    let line = |n| format!("{measurement},host=h{} v={n} {}\n", n % 20, 1_500_000_000 * units_per_second + n);
    (0..count).map(line).collect()
}

/// What the clients of 2.x and 3.x write: measurement, lines, precision.
const WRITES: [(&str, u64, &str); 7] = [
    ("one", 1, "ns"),
    ("batch", 1000, "ns"),
    ("zipped", 1000, "ns"),
    ("unit_ns", 3, "ns"),
    ("unit_us", 3, "us"),
    ("unit_ms", 3, "ms"),
    ("unit_s", 3, "s"),
];

/// Writes past the program what clients wrote through it.
fn write_as_clients(stand: &Stand, more: &[(&str, u64, &str)]) {
    for (measurement, count, precision) in WRITES.iter().chain(more) {
        let (name, units) = match *precision {
            "ns" => ("n", 1_000_000_000),
            "us" => ("u", 1_000_000),
            "ms" => ("ms", 1000),
            _ => ("s", 1),
        };
        stand.write_direct(&lines(measurement, *count, units), name);
    }
    stand.write_direct("good v=1 1\ngood v=2 2\n", "n");
}

/// A client library, and the script that writes with it.
pub(crate) struct Client {
    script: &'static str,
    runs: PathBuf,
    libraries: PathBuf,
}

impl Client {
    /// None if it is not there, which is told.
    pub(crate) fn find(script: &'static str, test: &str) -> Option<Self> {
        let products =
            PathBuf::from(env!("CARGO_BIN_EXE_twinflux")).ancestors().nth(2).expect("a folder").join("clients");
        let (runs, libraries, needs) = if script.ends_with(".py") {
            let python = products.join("python/bin/python");
            (python.clone(), python, "Python with venv")
        } else {
            (PathBuf::from("node"), products.join("node_modules"), "Node.js with npm")
        };
        if libraries.exists() {
            return Some(Self { script, runs, libraries });
        }
        let is_python = script.ends_with(".py");
        assert!(!is_python || std::env::var("CI").as_deref() != Ok("true"), "tests/run installs the Python clients");
        left_out(test, &format!("its client is not installed: run tests/run where there is {needs}"));
        None
    }

    /// What each of its calls gives, as JSON.
    fn run(&self, arguments: &[&str]) -> Vec<Value> {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/large/clients").join(self.script);
        let mut command = Command::new(&self.runs);
        // A proxy of this machine's is none of the test's.
        for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(name);
        }
        let output = command.env("NODE_PATH", &self.libraries).arg(script).args(arguments).output().expect("a client");
        let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}{wrong}");
        said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// By address and port, as clients of 1.x want it.
    pub(crate) fn run_1x(&self, address: SocketAddr, more: &[&str]) -> Vec<Value> {
        let port = address.port().to_string();
        self.run(&[&["127.0.0.1", &port][..], more].concat())
    }

    /// By URL.
    pub(crate) fn run_at(&self, address: SocketAddr, more: &[&str]) -> Vec<Value> {
        self.run(&[&[&*format!("http://{address}")][..], more].concat())
    }
}

/// What a call gave; null unless it is among these.
fn of<'a>(outcomes: &'a [Value], call: &str) -> &'a Value {
    outcomes.iter().find(|outcome| outcome["call"] == call).unwrap_or(&Value::Null)
}

/// Outcomes are the same, but for these calls: what the server says, what the program says.
pub(crate) fn assert_alike(direct: &[Value], through: &[Value], differ: &[(&str, &str, &str)]) {
    assert!(direct.len() > 5 && direct.len() == through.len(), "{direct:?} {through:?}");
    for (direct, through) in direct.iter().zip(through) {
        let texts = [direct, through].map(|outcome| outcome.to_string().replace("\\n\"", "\"").replace("\\\\\"", "\""));
        let differ = differ.iter().find(|(call, ..)| direct["call"] == *call);
        match differ {
            None => assert_eq!(texts[0], texts[1]),
            Some((_, server, program)) => {
                assert!(texts[0].contains(server) && texts[1].contains(program), "{} {}", texts[0], texts[1]);
            }
        }
    }
}

/// Every call succeeds, but for these, whose outcome has these texts.
fn assert_outcomes(outcomes: &[Value], except: &[(&str, &[&str])]) {
    assert!(outcomes.len() > 5, "{outcomes:?}");
    for outcome in outcomes {
        match except.iter().find(|(call, _)| outcome["call"] == *call) {
            None => assert!(outcome.get("raises").is_none(), "{outcome}"),
            Some((_, texts)) => assert!(texts.iter().all(|text| outcome.to_string().contains(text)), "{outcome}"),
        }
    }
}

#[test]
fn influxdb_python_is_told_what_influxdb_tells_it() {
    let Some(client) = Client::find("python_1x.py", "influxdb_python_is_told_what_influxdb_tells_it") else { return };
    let stand = Stand::new("");
    let through = client.run_1x(stand.door, &["other"]);
    let direct = client.run_1x(stand.direct.address, &["other"]);
    let differ = [
        ("bad line", "missing fields dropped=0", "missing fields dropped=1"),
        ("missing database", "database not found", "\"gives\":true"),
    ];
    assert_alike(&direct, &through, &differ);
    stand.assert_stored(Some("other"));
}

#[test]
fn node_influx_is_told_what_influxdb_tells_it() {
    let Some(client) = Client::find("node_1x.js", "node_influx_is_told_what_influxdb_tells_it") else { return };
    let stand = Stand::new("");
    let through = client.run_1x(stand.door, &["other"]);
    let direct = client.run_1x(stand.direct.address, &["other"]);
    let differ = [
        ("bad line", "'bad v=NaN': invalid number dropped=0", "'bad v=NaN': invalid field format dropped=1"),
        ("missing database", "database not found", "\"gives\":null"),
    ];
    assert_alike(&direct, &through, &differ);
    stand.assert_stored(Some("other"));
}

/// A real 1.6.7 has no such endpoint: what is stored is compared with the same lines in its own.
#[test]
fn influxdb_client_writes_to_servers_that_know_no_2x() {
    let Some(client) = Client::find("python_2x.py", "influxdb_client_writes_to_servers_that_know_no_2x") else {
        return;
    };
    let stand = Stand::new("");
    let through = client.run_at(stand.door, &["other"]);
    let partial: &[&str] = &["400", "partial write: unable to parse 'bad': missing fields dropped=1"];
    let except: [(&str, &[&str]); 4] = [
        ("bad line", partial),
        ("bad line in batches", partial),
        ("bad lines only", &["400", "unable to parse 'bad': missing fields\\nunable to parse 'm v'"]),
        ("no database", &["404", "bucket not found"]),
    ];
    assert_outcomes(&through, &except);
    for (call, gives) in [("health", "\"pass\""), ("ready", "\"ready\""), ("batching", "[\"success\",\"success\"]")] {
        assert_eq!(of(&through, call)["gives"].to_string(), gives);
    }
    let direct = client.run_at(stand.direct.address, &["other", "ping", "version", "one"]);
    assert_eq!((of(&direct, "ping"), of(&direct, "version")), (of(&through, "ping"), of(&through, "version")));
    assert_eq!(of(&direct, "one")["code"], 404);
    write_as_clients(&stand, &[("batching", 1000, "ns"), ("policy", 1, "ns")]);
    stand.assert_stored(Some("other"));
}

#[test]
fn influxdb3_python_writes_to_both_endpoints() {
    let Some(client) = Client::find("python_3x.py", "influxdb3_python_writes_to_both_endpoints") else { return };
    for endpoint in ["2.x", "3.x"] {
        let stand = Stand::new("");
        let through = client.run_at(stand.door, &["other", endpoint]);
        let lines = r#""lines":[[2,"missing fields"]]"#;
        let except: [(&str, &[&str]); 3] = match endpoint {
            "2.x" => [
                ("bad line", &["400", "partial write: unable to parse 'bad': missing fields dropped=1"]),
                ("bad lines only", &["400", "unable to parse 'bad'"]),
                ("not whole", &[]),
            ],
            _ => [
                ("bad line", &["InfluxDBPartialWriteError", "400", "partial write of line protocol occurred", lines]),
                ("bad lines only", &["InfluxDBPartialWriteError", "400", "parsing failed for write_lp endpoint"]),
                ("not whole", &["InfluxDBPartialWriteError", "400", "parsing failed for write_lp endpoint", lines]),
            ],
        };
        assert_outcomes(&through, &except);
        let more: &[_] = if endpoint == "3.x" { &[("whole", 3, "ns")] } else { &[] };
        write_as_clients(&stand, more);
        stand.assert_stored(Some("other"));
    }
}

#[test]
fn influxdb_client_js_writes_to_servers_that_know_no_2x() {
    let Some(client) = Client::find("node_2x.js", "influxdb_client_js_writes_to_servers_that_know_no_2x") else {
        return;
    };
    let stand = Stand::new("");
    let through = client.run_at(stand.door, &["other"]);
    let except: [(&str, &[&str]); 1] =
        [("bad line", &["400", "partial write: unable to parse 'bad': missing fields dropped=1"])];
    assert_outcomes(&through, &except);
    for (call, gives) in [("health", "\"pass\""), ("ready", "\"ready\""), ("one", "[]"), ("batch with gzip", "[]")] {
        assert_eq!(of(&through, call)["gives"].to_string(), gives);
    }
    write_as_clients(&stand, &[]);
    stand.assert_stored(Some("other"));
}

/// What each client does where its database is not served: it hears why, and never that it
/// succeeded.
#[test]
fn clients_hear_that_a_database_is_not_served() {
    let stand = Stand::new("databases = [\"telegraf\"]");
    let heard = "database \\\"other\\\" is not served by this relay";
    for script in ["python_1x.py", "node_1x.js", "python_2x.py", "python_3x.py", "node_2x.js"] {
        let Some(client) = Client::find(script, "clients_hear_that_a_database_is_not_served") else { continue };
        let outcomes = refused(&client, stand.door, "missing database");
        let text = outcomes[0].to_string().replace("\\\\\\\"", "\\\"");
        assert!(text.contains("\"raises\"") && text.contains("403") && text.contains(heard), "{script}: {text}");
    }
    // Telegraf keeps what was answered in plain text.
    let (status, text) = http(stand.door, "POST /write?db=other HTTP/1.0\r\nContent-Length: 7\r\n\r\nm v=1 1");
    assert_eq!((status, text.contains('{')), (403, false), "{text}");
}

/// What a client does with one call.
fn refused(client: &Client, door: SocketAddr, call: &str) -> Vec<Value> {
    let outcomes = match client.script {
        "python_3x.py" => client.run_at(door, &["other", "3.x", call]),
        "python_2x.py" | "node_2x.js" => client.run_at(door, &["other", call]),
        _ => client.run_1x(door, &["other", call]),
    };
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    outcomes
}

/// What each client does while there is no room: it fails or tries again, and never drops lines as
/// bad.
#[test]
fn clients_hear_that_there_is_no_room() {
    let more = "[[http]]\nlisten = \"127.0.0.1:0\"\n[journal]\ndurability = \"memory\"\nmemory = \"4MiB\"\n";
    let nobody = ("http://127.0.0.1:1".to_owned(), "");
    let program = Program::with(Command::new(env!("CARGO_BIN_EXE_twinflux")), more, &[nobody]);
    let door = program.listener("http");
    let body = lines("fill", 2000, 1_000_000_000);
    let head = format!("POST /write?db=telegraf HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
    wait_for("no room", || (http_bytes(door, (head.clone() + &body).as_bytes()).0 != 204).then_some(()));
    let is_full = || http(door, "GET /health HTTP/1.0\r\n\r\n").0 == 503;
    wait_for("no room and no hope", || is_full().then_some(()));
    let heard = "out of space for new data, nothing of this request was taken";
    for (script, says) in [
        ("python_1x.py", ["InfluxDBServerError", heard]),
        ("node_1x.js", ["ServiceNotAvailableError", ""]),
        ("python_2x.py", ["503", heard]),
        ("python_3x.py", ["503", heard]),
        ("node_2x.js", ["503", heard]),
    ] {
        let Some(client) = Client::find(script, "clients_hear_that_there_is_no_room") else { continue };
        let text = refused(&client, door, "one")[0].to_string();
        let is_heard = says.iter().all(|said| text.contains(said));
        assert!(text.contains("\"raises\"") && is_heard, "{script}: {text}");
    }
    if let Some(client) = Client::find("python_2x.py", "clients_hear_that_there_is_no_room") {
        let said = &refused(&client, door, "batching")[0]["gives"].to_string();
        assert!(
            said.contains("retry None: out of space") && said.contains("error 503") && !said.contains("success"),
            "{said}"
        );
    }
    if let Some(client) = Client::find("node_2x.js", "clients_hear_that_there_is_no_room") {
        let outcome = &refused(&client, door, "with tries")[0];
        assert_eq!(outcome["code"], 503, "{outcome}");
    }
}
