//! A real InfluxDB's own listeners beside a relay's: what both take is stored alike.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use twinflux::config::{DefaultTags, Mapping, Tcp};

use crate::influxdb::{InfluxDb, free_port};
use crate::support::{Running, config, wait_for};

const TEMPLATES: [&str; 5] = [
    "servers.* .host.measurement.field*",
    "servers.*.disk .host.measurement.device.measurement kind=block",
    "*.app env.service.resource.measurement",
    "stats.* .host.measurement* agent=sensu",
    "measurement.measurement.region.field",
];
const SEPARATOR: &str = "_";
const TAGS: [&str; 2] = ["region=eu", "dc=one"];

const GRAPHITE: &str = "servers.web.cpu.load.one 1.5 1795400720\n\
    servers.web.disk.sda.reads 2 1795400720\n\
    production.app.memory.used 3 1795400720\n\
    stats.web.queue.length.max 4 1795400720\n\
    cpu.usage.west.idle 5 1795400720\n\
    cpu.usage 6 1795400720\n";

const OPENTSDB: &str = "put disk 1795400720 5 host=h nico\n\
    put disk 1795400721 6 =x host=h\n\
    put disk 1795400722 7 host=h x= y=z\n\
    put disk 1795400723 8.5 host=h =\n";

#[test]
fn names_and_tags_are_stored_as_by_influxdbs_own_listeners() {
    let (graphite, opentsdb) = (free_port(), free_port());
    let server = InfluxDb::start(&format!(
        "[[graphite]]\nenabled = true\nbind-address = \"{graphite}\"\ndatabase = \"own_graphite\"\nbatch-timeout = \"100ms\"\n\
         templates = {TEMPLATES:?}\nseparator = {SEPARATOR:?}\ntags = {TAGS:?}\n\
         [[opentsdb]]\nenabled = true\nbind-address = \"{opentsdb}\"\ndatabase = \"own_opentsdb\"\nbatch-timeout = \"100ms\"\n"
    ));
    for database in ["graphite", "opentsdb"] {
        server.query("", &format!("CREATE DATABASE {database}"));
    }
    let mut config = config(&[server.url()]);
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    config.tcp.push(Tcp {
        listen,
        mapping: Mapping::Templates(texts(&TEMPLATES)),
        separator: SEPARATOR.to_owned(),
        tags: DefaultTags::List(texts(&TAGS)),
        database: "graphite".to_owned(),
        ..Tcp::default()
    });
    config.tcp.push(Tcp { listen, database: "opentsdb".to_owned(), ..Tcp::default() });
    let relay = Running::start(config);
    let listeners: Vec<_> =
        relay.relay.as_ref().expect("running").view().listeners.iter().map(|one| one.address()).collect();
    for (address, text) in
        [(graphite, GRAPHITE), (opentsdb, OPENTSDB), (listeners[1], GRAPHITE), (listeners[2], OPENTSDB)]
    {
        TcpStream::connect(address).expect("connect").write_all(text.as_bytes()).expect("send");
    }
    for (database, lines) in [("graphite", GRAPHITE), ("opentsdb", OPENTSDB)] {
        let points = lines.lines().count();
        // A header for each measurement, and a row for each point.
        let rows = |dump: &str| dump.lines().filter(|line| line.contains(",17954007")).count();
        let [own, relayed] = [format!("own_{database}"), database.to_owned()].map(|database| {
            wait_for("all points", || Some(server.dump(&database)).filter(|dump| rows(dump) == points))
        });
        assert_eq!(own, relayed);
    }
    let receive = relay.status().receive;
    assert_eq!((receive[1].ignored_tags, receive[2].ignored_tags), (0, 3));
}
