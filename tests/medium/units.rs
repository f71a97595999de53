//! Units of timestamps: what a listener is told is what each API is told, also after a restart.

use twinflux::config::Config;
use twinflux::config::Udp;
use twinflux::protocol::Precision;

use crate::support::{Running, Scripted, config, free_address, no_content, wait_for};

/// Each unit, and what the APIs call it: `/write` of 1.x, `/api/v2/write`.
const UNITS: [(Precision, &str, Option<&str>); 6] = [
    (Precision::Nanoseconds, "n", Some("ns")),
    (Precision::Microseconds, "u", Some("us")),
    (Precision::Milliseconds, "ms", Some("ms")),
    (Precision::Seconds, "s", Some("s")),
    (Precision::Minutes, "m", None),
    (Precision::Hours, "h", None),
];

/// A listener for each unit, with a database named after it.
fn listeners(config: &mut Config, units: &[(Precision, &str)]) {
    let any = config.udp[0].listen;
    let listener = |(precision, name): &(Precision, &str)| Udp {
        listen: any,
        precision: *precision,
        database: format!("db-{name}"),
        ..Udp::default()
    };
    config.udp = units.iter().map(listener).collect();
}

#[test]
fn every_unit_is_told_to_both_apis_at_once_and_after_a_restart() {
    for is_v2 in [false, true] {
        let units: Vec<(Precision, &str)> = UNITS
            .into_iter()
            .filter_map(|(precision, v1, v2)| Some((precision, if is_v2 { v2? } else { v1 })))
            .collect();
        let folder = tempfile::tempdir().expect("folder");
        let token = folder.path().join("token");
        std::fs::write(&token, "secret").expect("write");
        let start = |url: String, data: &str| {
            let mut config = config(&[url]);
            config.data_dir = folder.path().join(data);
            config.backend[0].token_file = is_v2.then(|| token.clone());
            listeners(&mut config, &units);
            Running::start_in(config)
        };
        // The units as requests tell them, each with the lines that came with it.
        let told = |backend: &Scripted| {
            let mut told: Vec<(String, String, String)> = Vec::new();
            for request in backend.requests() {
                let uri = request.uri.to_string();
                let value = |key: &str| {
                    let (_, rest) = uri.split_once(&format!("{key}=")).unwrap_or_else(|| panic!("{key} in {uri}"));
                    rest.split('&').next().expect("a value").replace("%2D", "-")
                };
                let database = value(if is_v2 { "bucket" } else { "db" });
                told.push((database, value("precision"), request.text()));
            }
            told.sort();
            told
        };
        let mut expected: Vec<(String, String, String)> = units
            .iter()
            .map(|(_, name)| (format!("db-{name}"), (*name).to_owned(), format!("m,u={name} v=1 1\n")))
            .collect();
        expected.sort();
        let send = |relay: &Running| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
            let listeners = &relay.relay.as_ref().expect("running").view().listeners;
            for (listener, (_, name)) in listeners.iter().zip(&units) {
                socket.send_to(format!("m,u={name} v=1 1\n").as_bytes(), listener.address()).expect("send");
            }
            let all = units.len() as u64;
            wait_for("the lines", || (relay.status().accepted_lines == all).then_some(all))
        };

        // From memory.
        let backend = Scripted::accepting();
        let mut relay = start(backend.url(), "memory");
        relay.wait_delivered("a", send(&relay));
        assert_eq!(told(&backend), expected);
        relay.stop();
        // From the disk, after a restart.
        let dead = free_address();
        let mut relay = start(format!("http://{dead}"), "disk");
        send(&relay);
        relay.stop();
        let backend = Scripted::start_at(dead, |_, _| no_content());
        let relay = start(backend.url(), "disk");
        assert_eq!(relay.backend("a").recovered_lines, units.len() as u64);
        relay.wait_delivered("a", units.len() as u64);
        assert_eq!(told(&backend), expected);
    }
}
