//! What real senders sent, replayed datagram by datagram.

use twinflux::config::{Mapping, NamedMapping};

use crate::captures;
use crate::support::{Running, Scripted, config, wait_for};

#[test]
fn captured_datagrams_are_all_taken_and_counted() {
    for name in [
        "netdata-graphite-udp",
        "netdata-graphite-udp-ascollected",
        "netdata-graphite-udp-nolabels-sys",
        "netdata-graphite-udp-nolabels-ip-apps",
        "netdata-graphite-udp-1s",
        "netdata-graphite-udp-oversize",
        "netdata-opentsdb-telnet-udp",
        "netdata-opentsdb-telnet-udp-ascollected",
        "netdata-json-udp",
        "collectd-graphite-udp",
    ] {
        let backend = Scripted::accepting();
        let mut config = config(&[backend.url()]);
        config.udp[0].mapping = Mapping::Named(NamedMapping::Netdata);
        config.udp[0].netdata_host_parts = 2;
        let relay = Running::start(config);
        let datagrams = captures::frames(name);
        relay.send(&datagrams);
        wait_for("everything to be delivered", || (relay.backend("a").pending_lines == 0).then_some(()));
        let status = relay.status();
        let receive = &status.receive[0];
        let lines = datagrams.iter().flatten().filter(|byte| **byte == b'\n').count() as u64;
        let empty = datagrams.iter().filter(|datagram| datagram.is_empty()).count() as u64;
        let nan = receive.refused["not_a_number"];
        assert_eq!((receive.converted + nan, receive.empty, receive.kernel_dropped), (lines, empty, 0), "{name}");
        assert_eq!((receive.refused.values().sum::<u64>(), nan > 0), (nan, name.starts_with("collectd")), "{name}");
        assert_eq!(backend.text().lines().count() as u64, status.accepted_lines, "{name}");
        let source = wait_for("the source", || {
            let sources = relay.status().sources.top;
            sources.into_iter().find(|source| source.datagrams == datagrams.len() as u64)
        });
        let host = if name.starts_with("collectd") || lines == 0 { "" } else { "web-01.example" };
        assert_eq!(source.host, host, "{name}");
    }
}
