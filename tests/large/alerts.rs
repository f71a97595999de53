//! The alert rules of `packaging/prometheus`, by Prometheus' own `promtool`: what a real relay
//! shows in trouble fires the alert that names it, and an hour of health fires none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::rig::Program;
use crate::support::{Scripted, get, influx_error, left_out, no_content, wait_for};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/prometheus/twinflux.rules.yml");

/// The relay's figures at two moments, a minute apart for whoever looks at rates.
type Scrapes = [BTreeMap<String, f64>; 2];

fn scrape(program: &Program) -> BTreeMap<String, f64> {
    let (status, text) = get(program.admin(), "/metrics");
    assert_eq!(status, 200);
    let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    lines.map(|(name, value)| (name.to_owned(), value.parse().expect("a number"))).collect()
}

/// What fires after an hour in which each figure stays as it is, and each counter grows by as much
/// every minute as it did between the two moments.
fn firing([before, now]: &Scrapes, up: u8) -> BTreeSet<String> {
    let mut test = format!("rule_files: [{RULES}]\nevaluation_interval: 1m\ntests:\n- interval: 1m\n  input_series:\n");
    for (series, value) in now {
        let is_counter = series.split('{').next().is_some_and(|name| name.ends_with("_total"));
        let grows = if is_counter { value - before.get(series).copied().unwrap_or(0.0) } else { 0.0 };
        test += &format!("  - {{ series: '{series}', values: '{value}+{grows}x60' }}\n");
    }
    test += &format!("  - {{ series: 'up{{job=\"twinflux\",instance=\"a\"}}', values: '{up}+0x60' }}\n");
    // What is expected is nothing, so that promtool prints what it got.
    test +=
        "  promql_expr_test:\n  - { expr: 'group by (alertname) (ALERTS{alertstate=\"firing\"})', eval_time: 60m }\n";
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("test.yml");
    std::fs::write(&file, test).expect("write");
    let output = Command::new("promtool").args(["test", "rules"]).arg(file).output().expect("promtool");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let names = said.split("alertname=\"").skip(1).filter_map(|rest| rest.split('"').next());
    let names: BTreeSet<String> = names.map(str::to_owned).collect();
    assert_eq!(output.status.success(), names.is_empty(), "{said}");
    names
}

fn assert_fires(scrapes: &Scrapes, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|name| format!("Twinflux{name}")).collect();
    assert_eq!(firing(scrapes, 1), expected);
}

/// The program with a healthy backend and one that answers writes like this.
fn stand(status: u16, more: &str) -> (Program, Arc<AtomicU16>, [Scripted; 2]) {
    let status = Arc::new(AtomicU16::new(status));
    let answer = Arc::clone(&status);
    let sick = Scripted::start(move |_, request| match (request.uri.path(), answer.load(Ordering::Relaxed)) {
        ("/write", 400) => influx_error(
            400,
            "partial write: field type conflict: input field \"v\" on measurement \"m\" is type float, already exists as type integer dropped=1",
        ),
        ("/write", code @ 401..) => influx_error(code, "no"),
        _ => no_content(),
    });
    let backends = [Scripted::accepting(), sick];
    let urls = backends.each_ref().map(|backend| (backend.url(), ""));
    let program = Program::with(Command::new(env!("CARGO_BIN_EXE_twinflux")), more, &urls);
    (program, status, backends)
}

/// The figures before and after something is done.
fn around(program: &Program, work: impl FnOnce()) -> Scrapes {
    let before = scrape(program);
    work();
    [before, scrape(program)]
}

fn has_promtool(test: &str) -> bool {
    let is_there = Path::new("/usr/bin/promtool").exists();
    if !is_there {
        left_out(test, "there is no promtool (Debian's package prometheus)");
    }
    is_there
}

#[test]
fn metrics_and_rules_are_as_prometheus_wants_them() {
    if !has_promtool("metrics_and_rules_are_as_prometheus_wants_them") {
        return;
    }
    let (program, _status, _backends) =
        stand(204, "[[tcp]]\nlisten = \"127.0.0.1:0\"\n[[http]]\nlisten = \"127.0.0.1:0\"\n");
    program.send(100);
    program.wait_delivered("b");
    let (_, text) = get(program.admin(), "/metrics");
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("metrics"), text).expect("write");
    let check = format!("promtool check metrics < {}", folder.path().join("metrics").display());
    let output = Command::new("sh").args(["-c", &check]).output().expect("promtool");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
    let output = Command::new("promtool").args(["check", "rules", RULES]).output().expect("promtool");
    assert!(output.status.success(), "{output:?}");
    // The page of the book names each.
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/metrics.md");
    let page = std::fs::read_to_string(page).expect("the page");
    for series in scrape(&program).keys() {
        let name = series.split('{').next().expect("a name");
        assert!(page.contains(&format!("| `{name}` |")), "docs/src/metrics.md lacks {name}");
    }
    // The dashboard asks for nothing that is not there.
    let board = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/grafana/twinflux.json");
    let board = std::fs::read_to_string(board).expect("the dashboard");
    let board: serde_json::Value = serde_json::from_str(&board).expect("JSON");
    let known = scrape(&program);
    let targets = board["panels"].as_array().expect("panels").iter().flat_map(|panel| panel["targets"].as_array());
    let expressions: Vec<&str> =
        targets.flatten().map(|target| target["expr"].as_str().expect("an expression")).collect();
    assert!(expressions.len() > 10);
    for expression in expressions {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|word| word.starts_with("twinflux_")) {
            let is_known = known.keys().any(|series| series == name || series.starts_with(&format!("{name}{{")));
            // Shown only while something is to be caught up with.
            assert!(
                is_known || name == "twinflux_catch_up_seconds" || name == "twinflux_recent_latency_seconds",
                "{name}"
            );
        }
    }
}

#[test]
fn each_alert_fires_in_its_trouble_and_none_in_health() {
    if !has_promtool("each_alert_fires_in_its_trouble_and_none_in_health") {
        return;
    }
    let (program, status, backends) = stand(204, "");
    program.wait_state("b", "up");
    let healthy = around(&program, || {
        program.send(1000);
        ["a", "b"].into_iter().for_each(|name| program.wait_delivered(name));
    });
    assert_fires(&healthy, &[]);
    assert_eq!(firing(&healthy, 0), BTreeSet::from(["TwinfluxDown".to_owned()]));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let refused = around(&program, || {
        socket.send_to(b"nonsense", program.targets[0]).expect("sent");
        wait_for("a refused line", || program.status().receive[0].refused_samples.values().next().map(|_| ()));
    });
    assert_fires(&refused, &["LinesRefused"]);
    let implausible = around(&program, || {
        socket.send_to(b"m v=1 1", program.targets[0]).expect("sent");
        wait_for("an old point", || (program.status().receive[0].implausible > 0).then_some(()));
    });
    assert_fires(&implausible, &["ImplausibleTimes"]);
    for (answer, state, alert) in [(503, "retrying", "BackendRetrying"), (401, "held", "BackendHeld")] {
        status.store(answer, Ordering::Relaxed);
        program.send(1);
        program.wait_state("b", state);
        assert_fires(&around(&program, || ()), &[alert]);
        status.store(204, Ordering::Relaxed);
        program.try_backend("b");
    }
    let [_healthy, sick] = backends;
    drop(sick);
    program.send(1);
    program.wait_state("b", "down");
    assert_fires(&around(&program, || ()), &["BackendDown"]);
    // What cannot be made here in time, or not at all, by figures that are changed.
    let but = |name: &str, value: f64| {
        let mut scrapes = healthy.clone();
        let series = scrapes[1].keys().find(|series| series.starts_with(name)).cloned();
        scrapes[1].insert(series.unwrap_or_else(|| name.to_owned()), value);
        scrapes
    };
    assert_fires(&but("twinflux_ledger_difference_lines", 3.0), &["LedgerDiffers"]);
    assert_fires(&but("twinflux_kernel_dropped_datagrams_total", 3.0), &["KernelDrops"]);
    assert_fires(&but("twinflux_lag_seconds", 400.0), &["BackendLags"]);
    assert_fires(&but("twinflux_journal_state{state=\"full\"}", 1.0), &["JournalDisk"]);
    assert_fires(&but("twinflux_certificate_days_left{file=\"/a.pem\"}", 3.0), &["CertificateExpires"]);
    let mut silent = but("twinflux_sources", 100.0);
    silent[1].insert("twinflux_silent_sources".to_owned(), 30.0);
    assert_fires(&silent, &["HostsSilent"]);
}

#[test]
fn a_refusal_for_good_and_a_full_journal_fire_their_alerts() {
    if !has_promtool("a_refusal_for_good_and_a_full_journal_fire_their_alerts") {
        return;
    }
    let (program, status, _backends) =
        stand(204, "[journal]\ndisk = \"8MiB\"\nmemory = \"4MiB\"\ncompression = \"none\"\n");
    program.wait_state("b", "up");
    status.store(400, Ordering::Relaxed);
    program.send(1);
    wait_for("a dead letter", || (program.backend("b").dead_letters.kept > 0).then_some(()));
    assert_fires(&around(&program, || ()), &["DeadLetters"]);
    status.store(503, Ordering::Relaxed);
    let full = around(&program, || {
        wait_for("dropped lines", || {
            program.send(20_000);
            (program.backend("b").dropped() > 0).then_some(())
        });
    });
    let fired = firing(&full, 1);
    for alert in ["LinesDropped", "JournalFills", "Gaps"] {
        assert!(fired.contains(&format!("Twinflux{alert}")), "{fired:?}");
    }
}

#[test]
fn a_pair_without_its_other_relay_or_its_address_fires_its_alerts() {
    if !has_promtool("a_pair_without_its_other_relay_or_its_address_fires_its_alerts") {
        return;
    }
    let pair = |peer: &str| format!("[pair]\npeer = \"{peer}\"\naddress = \"192.0.2.77\"\n");
    let other = stand(204, &pair("http://127.0.0.1:1"));
    let (program, _status, _backends) = stand(204, &pair(&format!("http://{}", other.0.admin())));
    let state =
        |wanted: &str| wait_for(wanted, || program.status().pair.filter(|pair| pair.state == wanted).map(|_| ()));
    state("up");
    wait_for("the address to be missed", || program.status().pair.filter(|pair| pair.is_odd).map(|_| ()));
    assert_fires(&around(&program, || ()), &["PairAddress"]);
    drop(other);
    state("gone");
    assert_fires(&around(&program, || ()), &["PeerGone"]);
}
