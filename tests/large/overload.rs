//! The program under more than it can take, and under bursts: every line is stored or counted.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use loadgen::burst::{self, Transport};
use loadgen::netdata::Format;
use loadgen::relay::Listeners;
use loadgen::run::{Report, RunConfig, Under, run};
use loadgen::send::{Pace, Plan, Progress};
use loadgen::sink::Behaviour;
use loadgen::workload::Shape;

use crate::support::LIMIT;

fn drive(listener: &str, pace: Pace, duration: Duration, payload: Option<usize>, last_sink: Behaviour) -> Report {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let setup = RunConfig {
        relay: Under::Program {
            path: PathBuf::from(env!("CARGO_BIN_EXE_twinflux")),
            listeners: Listeners { datagrams: listener.to_owned(), ..Listeners::default() },
            journal: String::new(),
        },
        sinks: vec![any; 2],
        last_sink,
        plan: Some(Plan { target: any, hosts: 100, first_host: 0, shape: Shape::default(), pace, duration, payload }),
        bursts: None,
        requests: None,
        hostile: None,
        baseline: false,
        patience: LIMIT,
    };
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(run(setup, Arc::<Progress>::default())).expect("a report")
}

/// Hosts that run Netdata, all in the same second, with some that run Telegraf beside them.
fn burst(transport: Transport, format: Format, (dimensions, bursts): (u32, u32), mapping: &str) -> Report {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mapping = format!("mapping = \"{mapping}\"");
    let (pace, shape) = (Pace::Rate(5000.0), Shape::default());
    let (interval, duration) = (Duration::from_secs(1), Duration::from_secs(1) * bursts);
    // Netdata's datagrams are large, and all there at once; Telegraf's fit into the default beside
    // any burst of streams.
    let receive_buffer = if transport == Transport::Udp { "64MiB" } else { "8MiB" };
    let setup = RunConfig {
        relay: Under::Program {
            path: PathBuf::from(env!("CARGO_BIN_EXE_twinflux")),
            listeners: Listeners {
                datagrams: format!("receive_buffer = \"{receive_buffer}\"\n{mapping}"),
                streams: Some(mapping),
                requests: None,
            },
            journal: String::new(),
        },
        sinks: vec![any; 2],
        last_sink: Behaviour::Accept,
        plan: Some(Plan { target: any, hosts: 100, first_host: 50_000, shape, pace, duration, payload: None }),
        bursts: Some(burst::Plan { target: any, transport, format, hosts: 500, dimensions, interval, duration }),
        requests: None,
        hostile: None,
        baseline: false,
        patience: LIMIT,
    };
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(run(setup, Arc::<Progress>::default())).expect("a report")
}

/// Every datagram is taken or counted by the kernel, every line that was taken is stored in each
/// backend that takes any. Whether the kernel dropped some is the machine's business: that it drops
/// none is shown by `loadgen run`.
fn assert_conserved(report: &Report) {
    let text = report.to_text();
    assert_eq!(report.lost_on_the_wire, 0, "{text}");
    for backend in &report.backends {
        let stored = backend.stored;
        assert_eq!((backend.rejected, backend.dropped, stored.altered, stored.duplicates), (0, 0, 0, 0), "{text}");
        let delivered = u64::try_from(backend.delivered).expect("a count");
        assert_eq!((delivered, stored.foreign), (stored.lines, 0), "{text}");
        if report.kernel_dropped == 0 {
            assert!(report.balanced, "{text}");
        } else {
            assert!(stored.distinct < report.sent.lines, "{text}");
        }
    }
}

#[test]
fn bursts_of_five_hundred_hosts_are_stored_to_the_value() {
    for (transport, format, dimensions, bursts, mapping) in [
        (Transport::Tcp, Format::Graphite, 2000, 1, "netdata"),
        (Transport::Tcp, Format::Opentsdb, 100, 3, "path"),
        (Transport::Tcp, Format::Json, 100, 3, "netdata"),
        (Transport::Udp, Format::Graphite, 100, 3, "netdata"),
    ] {
        let report = burst(transport, format, (dimensions, bursts), mapping);
        let text = report.to_text();
        assert_conserved(&report);
        assert!(report.relay.peak_resident_mib < 160.0, "{text}");
        let values = u64::from(bursts) * 500 * u64::from(dimensions);
        assert_eq!(report.bursts.map(|bursts| bursts.values), Some(values), "{text}");
        for backend in &report.backends {
            let stored = backend.stored;
            let dropped = u64::try_from(report.kernel_dropped).expect("a count");
            if transport == Transport::Tcp {
                // The kernel drops datagrams of one line only, and nothing of a stream.
                assert_eq!(stored.distinct + dropped, report.sent.lines, "{text}");
            }
            if dropped == 0 {
                let points = stored.lines - (report.sent.lines - values);
                // A chart's values may come in two pieces of a stream, and then are two points of
                // one time.
                let fewest = if mapping == "path" { values } else { values / 4 };
                assert!((fewest..=values).contains(&points) && (mapping == "path" || points < values), "{text}");
            }
        }
    }
}

#[test]
fn overload_balances_to_the_line() {
    let report = drive("receive_buffer = \"256KiB\"", Pace::Max, Duration::from_secs(2), None, Behaviour::Accept);
    assert!(report.balanced, "{}", report.to_text());
    assert_eq!(report.lost_on_the_wire, 0, "{}", report.to_text());
    for backend in &report.backends {
        assert_eq!(backend.difference, 0, "{}", report.to_text());
        assert_eq!(backend.stored.duplicates, 0, "{}", report.to_text());
    }
}

#[test]
fn packed_datagrams_are_stored_or_counted() {
    let pace = Pace::Rate(50_000.0);
    let report = drive("", pace, Duration::from_secs(2), Some(1400), Behaviour::Accept);
    assert!(report.sent.lines > 2 * report.sent.datagrams, "{}", report.to_text());
    assert_conserved(&report);
}

#[test]
fn a_hanging_sink_costs_the_other_nothing() {
    let pace = Pace::Rate(5_000.0);
    let report = drive("", pace, Duration::from_secs(3), None, Behaviour::Hang);
    let [healthy, hanging] = &report.backends[..] else { panic!("two backends") };
    assert_eq!((healthy.difference, healthy.pending), (0, 0), "{}", report.to_text());
    let dropped = u64::try_from(report.kernel_dropped).expect("a count");
    assert_eq!(healthy.stored.distinct + dropped, report.sent.lines, "{}", report.to_text());
    assert_eq!((hanging.difference, hanging.stored.distinct), (0, 0), "{}", report.to_text());
}

#[test]
fn a_sink_that_answers_late_is_waited_for_and_has_everything() {
    let (pace, slow) = (Pace::Rate(5_000.0), Behaviour::Slow(Duration::from_secs(2)));
    let report = drive("", pace, Duration::from_secs(2), None, slow);
    assert_conserved(&report);
    assert!(report.backends.iter().all(|backend| backend.pending == 0), "{}", report.to_text());
}
