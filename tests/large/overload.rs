//! The program, as released, under more than it can take: every line is stored or counted.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use loadgen::run::{Report, Setup, Under, run};
use loadgen::send::{Pace, Plan, Progress};
use loadgen::sink::Behaviour;
use loadgen::workload::Shape;

fn drive(listener: &str, pace: Pace, duration: Duration, payload: Option<usize>, last_sink: Behaviour) -> Report {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let setup = Setup {
        relay: Under::Program {
            path: PathBuf::from(env!("CARGO_BIN_EXE_twinflux")),
            listener: listener.to_owned(),
            streams: None,
            journal: String::new(),
        },
        sinks: vec![any; 2],
        last_sink,
        plan: Some(Plan { target: any, hosts: 100, first_host: 0, shape: Shape::default(), pace, duration, payload }),
        bursts: None,
        baseline: false,
        patience: Duration::from_secs(60),
    };
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(run(setup, Arc::<Progress>::default())).expect("a report")
}

#[test]
fn overload_balances_to_the_line() {
    let report = drive("receive_buffer = \"256KiB\"", Pace::Max, Duration::from_secs(2), None, Behaviour::Accept);
    assert!(report.balanced, "{}", report.to_text());
    assert_eq!(report.lost_on_the_wire, 0, "{}", report.to_text());
    assert!(report.kernel_dropped > 0, "{}", report.to_text());
    for backend in &report.backends {
        assert_eq!(backend.difference, 0, "{}", report.to_text());
        assert_eq!(backend.stored.duplicates, 0, "{}", report.to_text());
    }
}

#[test]
fn packed_datagrams_lose_nothing() {
    let pace = Pace::Rate(50_000.0);
    let report = drive("", pace, Duration::from_secs(2), Some(1400), Behaviour::Accept);
    assert!(report.balanced && report.kernel_dropped == 0, "{}", report.to_text());
}

#[test]
fn a_hanging_sink_costs_the_other_nothing() {
    let pace = Pace::Rate(5_000.0);
    let report = drive("", pace, Duration::from_secs(3), None, Behaviour::Hang);
    let [healthy, hanging] = &report.backends[..] else { panic!("two backends") };
    assert_eq!((healthy.difference, healthy.pending), (0, 0), "{}", report.to_text());
    assert_eq!(healthy.stored.distinct, report.sent.lines, "{}", report.to_text());
    assert_eq!((hanging.difference, hanging.stored.distinct), (0, 0), "{}", report.to_text());
}
