//! Real senders, exporting into a relay with two real InfluxDBs behind it: what arrives is what
//! they measured.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use twinflux::config::{Config, Mapping, NamedMapping, Tcp, Udp};

use crate::influxdb::{InfluxDb, Place, free_port};
use crate::support::{Running, config, get, wait_for};

/// A program that ends with the test.
struct Program(Child);

impl Program {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::File::create(log).expect("log");
        let command = command.stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn both(databases: &[&str]) -> [InfluxDb; 2] {
    let servers = [InfluxDb::start(""), InfluxDb::start("")];
    for (server, database) in servers.iter().flat_map(|server| databases.iter().map(move |database| (server, database)))
    {
        server.query("", &format!("CREATE DATABASE {database}"));
    }
    servers
}

fn addresses(relay: &Running) -> Vec<SocketAddr> {
    relay.relay.as_ref().expect("running").view().listeners.iter().map(|one| one.address()).collect()
}

/// Waits until everything that has come is in both servers, and that is the same in both.
fn assert_same(relay: &Running, servers: &[InfluxDb; 2], databases: &[&str]) {
    wait_for("everything to be delivered", || {
        relay.status().backends.iter().all(|backend| backend.pending_lines == 0).then_some(())
    });
    let status = relay.status();
    for backend in &status.backends {
        assert_eq!((backend.rejected(), backend.dropped()), (0, 0), "{backend:?}");
    }
    for database in databases {
        assert!(servers[0].dump(database) == servers[1].dump(database), "{database}: the contents differ");
    }
}

const NETDATA: [&str; 5] = ["graphite", "opentsdb", "path", "json", "datagrams"];

/// Listeners for each of Netdata's formats: streams, then datagrams.
fn netdata_config(servers: &[InfluxDb; 2]) -> Config {
    let mut config = config(&[servers[0].url(), servers[1].url()]);
    let charts = Mapping::Named(NamedMapping::Netdata);
    let udp =
        |database: &str| Udp { listen: any(), mapping: charts.clone(), database: database.into(), ..Udp::default() };
    config.udp = vec![udp("json"), udp("datagrams")];
    let tcp = |database: &str, mapping| Tcp { listen: any(), mapping, database: database.into(), ..Tcp::default() };
    config.tcp = vec![
        tcp("graphite", charts.clone()),
        tcp("opentsdb", charts.clone()),
        tcp("path", Mapping::Named(NamedMapping::Path)),
    ];
    config
}

/// Starts a Netdata that exports every second, in each format to its listener.
fn start_netdata(folder: &Path, web: SocketAddr, listeners: &[SocketAddr]) -> Program {
    let [json, datagrams, graphite, opentsdb, path] = listeners[..] else { panic!("five listeners") };
    let shown = folder.display();
    for name in ["cache", "lib", "log"] {
        std::fs::create_dir(folder.join(name)).expect("folder");
    }
    let netdata = format!(
        "[global]\nhostname = web-01\nrun as user = root\n\
         [directories]\nconfig = {shown}\ncache = {shown}/cache\nlib = {shown}/lib\nlog = {shown}/log\n\
         [host labels]\ndatacenter = eu-west-1\n[db]\nmode = ram\nupdate every = 1\n[web]\nbind to = {web}\n\
         [plugins]\ngo.d = no\npython.d = no\ncharts.d = no\napps = no\nperf = no\nslabinfo = no\nnfacct = no\n\
         ebpf = no\ntc = no\nstatsd = no\ncgroups = no\n[ml]\nenabled = no\n"
    );
    let instance = |name: &str, to: String, more: &str| {
        format!("[{name}]\nenabled = yes\ndestination = {to}\nupdate every = 1\n{more}\n")
    };
    // Names must differ, whatever the type.
    let exporting = [
        "[exporting:global]\nenabled = yes\n".to_owned(),
        instance("graphite:one", format!("tcp:{graphite}"), ""),
        instance("opentsdb:two", format!("tcp:{opentsdb}"), ""),
        instance("graphite:three", format!("tcp:{path}"), ""),
        instance("json:four", format!("udp:{json}"), "send charts matching = system.*"),
        instance("graphite:five", format!("udp:{datagrams}"), "send charts matching = system.* mem.*"),
    ];
    std::fs::write(folder.join("netdata.conf"), netdata).expect("write");
    std::fs::write(folder.join("exporting.conf"), exporting.concat()).expect("write");
    let mut command = Command::new("netdata");
    Program::start(command.arg("-D").arg("-c").arg(folder.join("netdata.conf")), &folder.join("output"))
}

/// As Netdata writes names in Graphite's and OpenTSDB's lines.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' }).collect()
}

/// What Netdata itself says it measured: chart, dimension and second, for charts of a second; names
/// as they are.
fn netdata_values(web: SocketAddr) -> BTreeMap<(String, String, u64), f64> {
    let json = |path: &str| serde_json::from_str::<serde_json::Value>(&get(web, path).1).expect("JSON");
    let charts = json("/api/v1/charts");
    let mut values = BTreeMap::new();
    for (id, chart) in charts["charts"].as_object().expect("charts") {
        if chart["update_every"] != 1 {
            continue;
        }
        let name = chart["name"].as_str().expect("a name");
        let data = json(&format!("/api/v1/data?chart={id}&after=-120&before=0&points=120&format=json&options=seconds"));
        let labels = data["labels"].as_array().expect("labels");
        for row in data["data"].as_array().expect("rows") {
            let time = row[0].as_u64().expect("a time");
            for (label, value) in labels.iter().zip(row.as_array().expect("a row")).skip(1) {
                if let Some(value) = value.as_f64() {
                    values.insert((name.to_owned(), label.as_str().expect("a name").to_owned(), time), value);
                }
            }
        }
    }
    values
}

/// What is stored under these places is what Netdata measured at the same second; returns how many
/// values that were. Where Netdata itself comes too late for a second, it sends the mean of those
/// since the one before.
fn assert_measured(database: &str, stored: &BTreeMap<Place, f64>, measured: &BTreeMap<Place, f64>) -> usize {
    let dimension = |place: &Place| (place.0.clone(), place.1.clone(), place.2.clone());
    // Charts were asked for one after the other: each knows its own seconds.
    let mut known = BTreeMap::new();
    for place in measured.keys() {
        let (oldest, newest) = known.entry(dimension(place)).or_insert((place.3, place.3));
        (*oldest, *newest) = (place.3.min(*oldest), place.3.max(*newest));
    }
    let (mut compared, mut before) = (0, None);
    for (place, value) in stored {
        let since = before.replace(place).filter(|before| dimension(before) == dimension(place)).map_or(0, |one| one.3);
        // Netdata's API hides some dimensions, and of charts of several seconds it tells other
        // times.
        let seconds = known.get(&dimension(place));
        if seconds.is_none_or(|(oldest, newest)| !(*oldest..=*newest).contains(&place.3)) {
            continue;
        }
        let own = measured.get(place).unwrap_or_else(|| panic!("{database}: Netdata measured no {place:?}"));
        let is = |expected: f64| (value - expected).abs() <= 1e-5 * expected.abs() + 1e-6;
        let (name, host, field, second) = place.clone();
        let mean = |seconds: u64| {
            let at = |back| measured.get(&(name.clone(), host.clone(), field.clone(), second - back * 1_000_000_000));
            (0..seconds).map(at).sum::<Option<f64>>().is_some_and(|sum| is(sum / seconds as f64))
        };
        let seconds = (second - since) / 1_000_000_000;
        assert!(
            is(*own) || (2..=seconds.min(10)).any(mean),
            "{database}: {place:?} is {value}, Netdata says {own}, {seconds} s after the one before"
        );
        compared += 1;
    }
    compared
}

#[test]
fn netdata_is_stored_as_it_measured_also_when_the_relay_restarts() {
    let servers = both(&NETDATA);
    let mut config = netdata_config(&servers);
    let data = tempfile::tempdir().expect("folder");
    config.data_dir = data.path().join("data");
    let mut relay = Running::start_in(config.clone());
    let listeners = addresses(&relay);
    // After a restart the same ports are there again.
    for (listener, address) in config.udp.iter_mut().zip(&listeners) {
        listener.listen = *address;
    }
    for (listener, address) in config.tcp.iter_mut().zip(&listeners[2..]) {
        listener.listen = *address;
    }
    let (folder, web) = (tempfile::tempdir().expect("folder"), free_port());
    let netdata = start_netdata(folder.path(), web, &listeners);
    let stored = || {
        NETDATA.map(|database| match database {
            "path" => servers[1].count(database, "/system.cpu.user/", "value"),
            _ => servers[1].count(database, "\"system.cpu\"", "user"),
        })
    };
    let wait_stored = |count: u64| {
        wait_for("seconds to be stored", || stored().iter().all(|stored| *stored >= count).then_some(()));
    };
    wait_stored(6);
    let status = relay.stop();
    drop(relay);
    assert_eq!(status.receive.iter().map(|one| one.refused["wrong_format"]).sum::<u64>(), 0, "{:?}", status.receive);
    relay = Running::start_in(config);
    wait_stored(stored().into_iter().max().expect("counts") + 6);
    let sources = relay.status().sources;
    assert!(sources.top.iter().all(|source| source.host == "web-01"), "{sources:?}");
    let measured = netdata_values(web);
    drop(netdata);
    assert_same(&relay, &servers, &NETDATA);
    for database in NETDATA {
        let host = if database == "path" { "" } else { "web-01" };
        let place = |((chart, dimension, second), value): (&(String, String, u64), &f64)| {
            let (chart, dimension) = match database {
                "json" => (chart.clone(), dimension.clone()),
                _ => (plain(chart), plain(dimension)),
            };
            let (measurement, field) = match database {
                "path" => (format!("netdata.web-01.{chart}.{dimension}"), "value".to_owned()),
                // InfluxDB keeps this name for itself.
                _ if dimension == "time" => (chart, "time_".to_owned()),
                _ => (chart, dimension),
            };
            ((measurement, host.to_owned(), field, second * 1_000_000_000), *value)
        };
        let measured: BTreeMap<Place, f64> = measured.iter().map(place).collect();
        let compared = assert_measured(database, &servers[0].values(database), &measured);
        eprintln!("{database}: {compared} values are as Netdata measured them");
        assert!(compared > 300, "{database}: {compared}");
    }
}

/// What collectd wrote to its own CSV files: name as in Graphite's path behind the host, second,
/// value.
fn collectd_values(folder: &Path) -> BTreeMap<(String, u64), f64> {
    let mut values = BTreeMap::new();
    for plugin in std::fs::read_dir(folder).expect("folder").map(|entry| entry.expect("an entry").path()) {
        for file in std::fs::read_dir(&plugin).expect("folder").map(|entry| entry.expect("an entry").path()) {
            let base = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
            let (plugin, name) = (base(&plugin), base(&file));
            // The date stands behind the name: `cpu-user-2026-11-23`.
            let name = &name[..name.len() - "-2026-11-23".len()];
            let text = std::fs::read_to_string(&file).expect("text");
            let mut lines = text.lines();
            let sources: Vec<&str> = lines.next().expect("a head").split(',').skip(1).collect();
            for line in lines {
                let mut columns = line.split(',');
                let second =
                    columns.next().expect("a time").split('.').next().expect("seconds").parse().expect("a number");
                for (source, value) in sources.iter().zip(columns) {
                    let suffix = if sources.len() > 1 { format!(".{source}") } else { String::new() };
                    values.insert((format!("{plugin}.{name}{suffix}"), second), value.parse().expect("a number"));
                }
            }
        }
    }
    values
}

#[test]
fn collectd_is_stored_as_it_measured() {
    let databases = ["collectd", "datagrams"];
    let servers = both(&databases);
    let mut config = config(&[servers[0].url(), servers[1].url()]);
    config.udp = vec![Udp { listen: any(), database: "datagrams".into(), ..Udp::default() }];
    let mapping = Mapping::Templates(vec!["collectd.* .host.measurement*".into()]);
    config.tcp = vec![Tcp { listen: any(), mapping, database: "collectd".into(), ..Tcp::default() }];
    let relay = Running::start(config);
    let folder = tempfile::tempdir().expect("folder");
    let shown = folder.path().display();
    let mut text = format!(
        "Hostname \"web-01\"\nFQDNLookup false\nInterval 1\nBaseDir \"{shown}\"\nPIDFile \"{shown}/pid\"\nTypesDB \"/usr/share/collectd/types.db\"\n"
    );
    for plugin in ["cpu", "memory", "load", "interface", "csv", "write_graphite"] {
        text += &format!("LoadPlugin {plugin}\n");
    }
    // Counters as they are: rates are taken when they are written, and may differ between the two.
    // (A relative folder: collectd makes none whose name begins with a dot, as a temporary one's
    // does.)
    text += "<Plugin csv>\nDataDir \"csv\"\nStoreRates false\n</Plugin>\n<Plugin write_graphite>\n";
    for (protocol, address) in ["udp", "tcp"].iter().zip(addresses(&relay)) {
        text += &format!(
            "<Node \"{protocol}\">\nHost \"{}\"\nPort \"{}\"\nProtocol \"{protocol}\"\nPrefix \"collectd.\"\nStoreRates false\n</Node>\n",
            address.ip(),
            address.port()
        );
    }
    text += "</Plugin>\n";
    std::fs::write(folder.path().join("collectd.conf"), text).expect("write");
    let mut command = Command::new("collectd");
    command.arg("-f").arg("-C").arg(folder.path().join("collectd.conf"));
    let collectd = Program::start(&mut command, &folder.path().join("output"));
    wait_for("values to be stored", || {
        let stored = databases.map(|database| servers[1].count(database, "/load.load.shortterm/", "value"));
        stored.iter().all(|stored| *stored >= 8).then_some(())
    });
    let measured = collectd_values(&folder.path().join("csv/web-01"));
    drop(collectd);
    assert_same(&relay, &servers, &databases);
    for database in databases {
        let (prefix, host) = if database == "collectd" { ("", "web-01") } else { ("collectd.web-01.", "") };
        let stored = servers[0].values(database);
        assert!(stored.keys().all(|(_, stored_host, field, _)| stored_host == host && field == "value"));
        // Its own files have fractions of seconds, its lines of Graphite the second before or
        // behind.
        let compare = |shift: u64| {
            let pairs = stored.iter().filter_map(|((measurement, _, _, time), value)| {
                let name = measurement.strip_prefix(prefix).expect("the prefix").to_owned();
                // What was measured last may not be in its files yet.
                Some((value, measured.get(&(name, time / 1_000_000_000 - shift))?))
            });
            pairs.map(|(value, own)| (value - own).abs() <= 1e-5 * own.abs() + 1e-5).collect::<Vec<bool>>()
        };
        let compared = [compare(0), compare(1)].into_iter().find(|equal| equal.iter().all(|equal| *equal));
        let compared = compared.unwrap_or_else(|| panic!("{database}: {stored:?} and {measured:?}")).len();
        eprintln!("{database}: {compared} values are as collectd measured them");
        assert!(compared > 50, "{database}: {compared} of {}", measured.len());
    }
}
