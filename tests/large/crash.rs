//! The program killed, its disk full, its backend dead for long: what was promised is there.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use loadgen::batch::Form;
use loadgen::http;
use loadgen::outage::{self, Victim};
use loadgen::send::{Pace, Plan, Progress, send};
use loadgen::sink::{Behaviour, Sink, Store};
use loadgen::workload::Shape;

use crate::disk::SmallDisk;
use crate::effort;
use crate::support::{LIMIT, Running, config, left_out, wait_for};

fn plan(lines_per_second: f64, seconds: u64) -> Plan {
    Plan {
        target: "127.0.0.1:0".parse().expect("address"),
        hosts: 100,
        first_host: 0,
        shape: Shape::default(),
        pace: Pace::Rate(lines_per_second),
        duration: Duration::from_secs(seconds),
        payload: None,
    }
}

fn rehearse(victim: Victim, times: u32, every: Duration) -> outage::Report {
    rehearse_with(None, victim, times, every)
}

fn rehearse_with(requests: Option<http::Plan>, victim: Victim, times: u32, every: Duration) -> outage::Report {
    let setup = outage::OutageConfig {
        program: Path::new(env!("CARGO_BIN_EXE_twinflux")).to_owned(),
        journal: String::new(),
        plan: plan(10_000.0, 0),
        requests,
        victim,
        times,
        every,
        down: Duration::from_secs(2),
        patience: LIMIT,
    };
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(outage::run(setup, Arc::new(Progress::with_rounds()))).expect("it runs")
}

#[test]
fn fifty_kills_under_load_lose_only_what_was_not_yet_written() {
    let report = rehearse(Victim::Relay, 50, Duration::from_millis(400));
    eprint!("{}", report.to_text());
    assert!(report.is_good(), "{report:?}");
    for sink in &report.sinks {
        assert_eq!(sink.stored.distinct + sink.missing, report.sent.lines);
        assert!(sink.stored.distinct > 0);
    }
    // Both lack the same: what no journal ever had.
    assert_eq!(report.sinks[0].missing, report.sinks[1].missing);
}

/// The exhaustive tests kill it 50 times.
#[test]
fn a_relay_that_is_killed_again_and_again_keeps_all_that_it_answered_for_over_http() {
    let Plan { target, hosts, first_host, shape, pace, duration, .. } = plan(10_000.0, 0);
    let form = Form { lines: 50, is_gzip: true, ..Form::default() };
    let target = http::Target::new(target);
    let plan = http::Plan { target, hosts, first_host, shape, form, pace, duration, connections: None, prepared: None };
    let times = effort::times(5, 50, 300);
    let report = rehearse_with(Some(plan), Victim::Relay, times, Duration::from_millis(400));
    eprint!("{}", report.to_text());
    let answers = report.answers.as_ref().expect("answers");
    assert!(answers.taken > 0 && report.sent.lines == answers.taken * 50, "{report:?}");
    for sink in &report.sinks {
        assert_eq!((sink.missing, sink.stored.altered, sink.stored.foreign), (0, 0, 0), "{report:?}");
        // What was sent again, or not answered for, may be there too.
        assert!(sink.stored.distinct >= report.sent.lines, "{report:?}");
    }
}

#[test]
fn a_sink_that_was_down_has_everything_in_the_end() {
    let report = rehearse(Victim::Sink, 2, Duration::from_secs(1));
    eprint!("{}", report.to_text());
    for sink in &report.sinks {
        assert_eq!((sink.missing, sink.stored.altered), (report.kernel_dropped, 0));
        assert_eq!(sink.stored.distinct + sink.missing, report.sent.lines);
    }
}

/// Two sinks, of which the second is dead; the sinks, and a relay with this memory and disk for
/// them.
fn half_dead(
    runtime: &tokio::runtime::Runtime,
    change: impl FnOnce(&mut twinflux::config::Config),
) -> (Running, [Arc<Store>; 2], [Sink; 2]) {
    let stores = [Arc::new(Store::default()), Arc::new(Store::default())];
    stores[1].behave(Behaviour::Status(503));
    let any = "127.0.0.1:0".parse().expect("address");
    let sinks = stores.each_ref().map(|store| runtime.block_on(Sink::start(any, Arc::clone(store))).expect("sink"));
    let urls = sinks.each_ref().map(|sink| format!("http://{}", sink.address()));
    let mut config = config(&urls);
    change(&mut config);
    (Running::start_in(config), stores, sinks)
}

/// Sends lines, each in a datagram of its own; returns how many.
fn send_to(relay: &Running, plan: Plan) -> u64 {
    let progress = Progress::default();
    send(&Plan { target: relay.target, ..plan }, &progress).expect("sent");
    progress.sent().lines
}

/// Sends until the condition holds, each second from other hosts; returns how many lines.
fn send_until(relay: &Running, what: &str, mut holds: impl FnMut() -> bool) -> u64 {
    let (mut sent, mut first_host) = (0, 0);
    wait_for(what, || {
        sent += send_to(relay, Plan { first_host, ..plan(20_000.0, 1) });
        first_host += 100;
        holds().then_some(())
    });
    sent
}

#[test]
fn a_full_disk_under_the_journal_is_waited_out_and_every_line_is_counted() {
    // What is left of it holds, once there is room, all that memory holds, too.
    let Some(disk) = SmallDisk::mount("48m") else {
        left_out("a_full_disk_under_the_journal_is_waited_out_and_every_line_is_counted", "this user may not mount");
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let (mut relay, stores, _sinks) = half_dead(&runtime, |config| {
        config.data_dir = disk.path().join("data");
        config.journal.min_free = Some(ByteSize::b(0));
        config.journal.memory = ByteSize::mib(16);
        config.journal.full = twinflux::journal::disk::WhenFull::DropNewest;
    });
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![0; 40 << 20]).expect("ballast");
    let dropped = || relay.backend("b").dropped() > 0;
    let mut sent = send_until(&relay, "more lines than disk and memory hold", dropped);
    let full = wait_for("a full disk", || {
        let status = relay.status();
        (status.journal.state == twinflux::journal::disk::Condition::Full).then_some(status)
    });
    assert!(full.journal.last_error.is_some());
    // The healthy backend has everything, and the memory its bound.
    relay.wait_delivered("a", relay.wait_counted(sent));
    assert!(relay.status().journal.memory_bytes <= 16 << 20);
    std::fs::remove_file(ballast).expect("room again");
    wait_for("the journal to write again", || {
        (relay.status().journal.state == twinflux::journal::disk::Condition::Ok).then_some(())
    });
    sent += send_to(&relay, Plan { first_host: 50_000, ..plan(5_000.0, 1) });
    let accepted = relay.wait_counted(sent);
    relay.wait_delivered("a", accepted);
    stores[1].behave(Behaviour::Accept);
    wait_for("what is left", || (relay.backend("b").pending_lines == 0).then_some(()));
    let dead = relay.backend("b");
    assert_eq!(dead.delivered_lines + dead.dropped(), accepted);
    assert_eq!(dead.dropped(), dead.dropped_lines["memory_full"]);
    assert!(dead.dropped() > 0);
    assert_eq!(stores[1].ledger.counts().distinct, dead.delivered_lines);
    let gaps = relay.status().journal.gaps;
    assert_eq!(gaps.iter().map(|gap| gap.lines).sum::<u64>(), dead.dropped());
    assert_eq!(stores[0].ledger.counts().distinct, accepted);
    relay.stop();
}

#[test]
fn a_dead_and_a_slow_backend_keep_memory_and_disk_within_their_bounds() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    for behaviour in [Behaviour::Hang, Behaviour::Slow(Duration::from_millis(300))] {
        let (mut relay, stores, _sinks) = half_dead(&runtime, |config| {
            config.journal.memory = ByteSize::mib(8);
            config.journal.disk = ByteSize::mib(8);
            config.backend[1].timeout = Duration::from_secs(1);
            // So slow that it lacks lines on any machine.
            config.backend[1].concurrency = 1;
            config.backend[1].max_batch_lines = 1000;
        });
        stores[1].behave(behaviour);
        let has_dropped = || relay.backend("b").dropped_lines["quota"] > 0;
        let sending = std::thread::scope(|scope| {
            let sending = scope.spawn(|| send_until(&relay, "more lines than disk and memory hold", has_dropped));
            while !sending.is_finished() {
                let status = relay.status();
                assert!(status.journal.memory_bytes <= 8 << 20, "{behaviour}: {status:?}");
                assert!(status.journal.disk_bytes <= 8 << 20, "{behaviour}: {status:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
            sending.join()
        });
        let accepted = relay.wait_counted(sending.expect("no panic"));
        relay.wait_delivered("a", accepted);
        stores[1].behave(Behaviour::Accept);
        wait_for("what is left", || (relay.backend("b").pending_lines == 0).then_some(()));
        let other = relay.backend("b");
        assert_eq!(other.delivered_lines + other.dropped(), accepted);
        // A request that hung may have been stored.
        assert!(stores[1].ledger.counts().distinct >= other.delivered_lines);
        relay.stop();
    }
}
