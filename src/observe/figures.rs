//! Tests that every figure is shown in the right place: renders a status whose fields all differ as
//! metrics and as text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::config::{Config, Http, Tcp, Udp};
use crate::intake::Tally;
use crate::journal::disk::Folder;
use crate::journal::{BackendConfig, DropReason, Durability, Journal, Rejection, ring};
use crate::observe::findings::findings;
use crate::observe::metrics;
use crate::observe::receiving::COUNTERS;
use crate::observe::status::{Backend, JournalStatus, Latency, Receive, Status};
use crate::observe::view::BackendView;
use crate::observe::view::tests::view;
use crate::protocol::Refusal;
use crate::receive::{Inherited, Listener};

/// A listener of each kind.
fn listeners() -> Vec<Listener> {
    let any = ([127, 0, 0, 1], 0).into();
    let mut config = Config::default();
    config.udp.push(Udp { listen: any, ..Udp::default() });
    config.tcp.push(Tcp { listen: any, ..Tcp::default() });
    config.http.push(Http { listen: any, ..Http::default() });
    let setups = config.listeners(None).expect("setups");
    setups.into_iter().map(|setup| Listener::bind(setup, &mut Inherited::default()).expect("bound")).collect()
}

/// A status with three listeners and two backends, as JSON, in which no two numbers are equal.
fn picture() -> Value {
    let names = ["a", "b"].map(str::to_owned);
    let setup = |name| BackendConfig { name, address: String::new(), replay_share: 0.5 };
    let journal = Journal::new(1 << 20, &names.clone().map(setup));
    let view = view(listeners(), ring(1).0, journal, Durability::Written, &names);
    let mut picture = serde_json::to_value(view.status()).expect("JSON");
    picture["journal"]["orphans"] = serde_json::json!({ "gone": 0 });
    picture["journal"]["gaps"] = serde_json::json!([{
        "id": 0, "state": "open", "backend": "a", "database": "db", "retention_policy": "", "from": "", "until": "",
        "points_from": "", "points_until": "", "lines": 0, "reason": "quota"
    }]);
    picture["certificates"] = serde_json::json!([{ "file": "/a.pem", "expires": "", "days_left": 0 }]);
    picture["pair"] = serde_json::json!({
        "peer": "http://b:1", "state": "up", "since": "", "address": "192.0.2.9", "role": "active", "peer_role": "active",
        "is_odd": true, "is_self": false, "is_far_apart": false, "version": "0.1.0", "strangers": [], "uptime_seconds": 0,
        "backends": [{ "name": "a", "state": "up", "pending_lines": 0, "lag_seconds": 0, "complete": true }]
    });
    let mut next = 1000;
    fill(&mut picture, &mut next);
    // Some of the lines seen were refused, so their number must be larger.
    for (index, receive) in picture["receive"].as_array_mut().expect("listeners").iter_mut().enumerate() {
        receive["lines"] = (1_000_000 + index).into();
    }
    (picture["backends"][0]["eta_seconds"], picture["journal"]["full_in_seconds"]) = (77.into(), 78.into());
    picture["backends"][1]["state"] = "down".into();
    picture["backends"][1]["last_error"] = "a sentence".into();
    picture["journal"]["state"] = "full".into();
    picture["journal"]["last_error"] = "no room".into();
    picture
}

/// Gives each number a unique value.
fn fill(value: &mut Value, next: &mut u64) {
    match value {
        Value::Number(_) => {
            *next += 17;
            *value = (*next).into();
        }
        Value::Array(values) => values.iter_mut().for_each(|value| fill(value, next)),
        Value::Object(values) => values.values_mut().for_each(|value| fill(value, next)),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn number(picture: &Value, pointer: &str) -> f64 {
    picture.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{pointer} is a number"))
}

fn sum(picture: &Value, pointer: &str) -> f64 {
    picture.pointer(pointer).and_then(Value::as_object).expect("entries").values().filter_map(Value::as_f64).sum()
}

/// The difference of a backend's ledger.
fn difference(picture: &Value, index: usize) -> f64 {
    let of = |field: &str| number(picture, &format!("/backends/{index}/{field}"));
    let all = |field: &str| sum(picture, &format!("/backends/{index}/{field}"));
    let gone = of("delivered_lines") + all("rejected_lines") + all("dropped_lines") + of("pending_lines");
    number(picture, "/accepted_lines") + of("recovered_lines") + of("resent_lines") - gone
}

/// Metrics of a listener that are not counters of a worker, and their fields.
const RECEIVE: &[(&str, &str)] = &[
    ("kernel_dropped_datagrams_total", "kernel_dropped"),
    ("lines_total", "lines"),
    ("receive_queue_bytes", "receive_queue"),
    ("open_connections", "open_connections"),
    ("receive_buffer_bytes", "receive_buffer"),
    ("receive_buffer_wanted_bytes", "receive_buffer_wanted"),
];

/// Metrics of a backend.
const BACKEND: &[(&str, &str)] = &[
    ("recovered_lines_total", "recovered_lines"),
    ("resent_lines_total", "resent_lines"),
    ("delivered_lines_total", "delivered_lines"),
    ("delivered_bytes_total", "delivered_bytes"),
    ("requests_total", "requests"),
    ("retries_total", "retries"),
    ("dead_letters_resent_lines_total", "dead_letters/resent"),
    ("dead_letters_discarded_lines_total", "dead_letters/discarded"),
    ("dead_letters_evicted_lines_total", "dead_letters/evicted"),
    ("dead_letters_lines", "dead_letters/kept"),
    ("dead_letters_bytes", "dead_letters/bytes"),
    ("statements_pending", "statements_pending"),
    ("pending_lines", "pending_lines"),
    ("pending_bytes", "pending_bytes"),
    ("pending_on_disk_lines", "pending_on_disk_lines"),
    ("oldest_pending_seconds", "oldest_pending_seconds"),
    ("lag_seconds", "lag_seconds"),
    ("delivered_lines_per_second", "delivered_per_second"),
    ("in_flight_requests", "in_flight"),
    ("max_batch_bytes", "max_batch_bytes"),
];

/// Metrics without labels.
const PLAIN: &[(&str, &str)] = &[
    ("accepted_lines_total", "/accepted_lines"),
    ("sources", "/sources/known"),
    ("silent_sources", "/sources/silent"),
    ("uptime_seconds", "/uptime_seconds"),
    ("log_lines_dropped_total", "/log_lines_dropped"),
    ("journal_memory_bytes", "/journal/memory_bytes"),
    ("journal_disk_bytes", "/journal/disk_bytes"),
    ("journal_memory_bound_bytes", "/journal/memory_bound_bytes"),
    ("journal_disk_bound_bytes", "/journal/disk_bound_bytes"),
    ("journal_segments", "/journal/segments"),
    ("journal_syncs_total", "/journal/syncs"),
    ("journal_sync_errors_total", "/journal/sync_errors"),
    ("journal_write_errors_total", "/journal/write_errors"),
    ("journal_read_errors_total", "/journal/read_errors"),
];

/// Returns the expected metrics, except those of the process itself.
fn expected_metrics(picture: &Value) -> BTreeMap<String, f64> {
    let mut expected = BTreeMap::new();
    let mut add = |name: &str, labels: String, value: f64| {
        assert!(expected.insert(format!("twinflux_{name}{labels}"), value).is_none(), "{name} is there once");
    };
    for (index, receive) in picture["receive"].as_array().expect("listeners").iter().enumerate() {
        let (kind, listen) = (receive["kind"].as_str().expect("text"), receive["listen"].as_str().expect("text"));
        let labels = format!("kind=\"{kind}\",listen=\"{listen}\"");
        for (name, field) in RECEIVE {
            add(name, format!("{{{labels}}}"), number(picture, &format!("/receive/{index}/{field}")));
        }
        for one in COUNTERS.iter().filter(|one| one.kinds.contains(&kind)) {
            let value = number(picture, &format!("/receive/{index}/{}", one.field));
            add(&format!("{}_total", one.metric), format!("{{{labels}}}"), value);
        }
        for (reason, lines) in receive["refused"].as_object().expect("reasons") {
            let labels = format!("{{{labels},reason=\"{reason}\"}}");
            add("refused_lines_total", labels, lines.as_f64().expect("a number"));
        }
        for (status, count) in receive["answers"].as_object().expect("statuses") {
            add("http_answers_total", format!("{{{labels},status=\"{status}\"}}"), count.as_f64().expect("a number"));
        }
    }
    for (index, backend) in picture["backends"].as_array().expect("backends").iter().enumerate() {
        let labels = format!("backend={}", backend["name"]);
        for (name, field) in BACKEND {
            add(name, format!("{{{labels}}}"), number(picture, &format!("/backends/{index}/{field}")));
        }
        for (name, key, field) in
            [("rejected_lines_total", "class", "rejected_lines"), ("dropped_lines_total", "reason", "dropped_lines")]
        {
            for (entry, lines) in backend[field].as_object().expect("entries") {
                add(name, format!("{{{labels},{key}=\"{entry}\"}}"), lines.as_f64().expect("a number"));
            }
        }
        for (percentile, field) in [("50", "p50"), ("99", "p99"), ("100", "max")] {
            let milliseconds = number(picture, &format!("/backends/{index}/latency_ms/{field}"));
            add("latency_seconds", format!("{{{labels},percentile=\"{percentile}\"}}"), milliseconds / 1000.0);
        }
        add("ledger_difference_lines", format!("{{{labels}}}"), difference(picture, index));
        add("held_destinations", format!("{{{labels}}}"), 0.0);
        add("backend_complete", format!("{{{labels}}}"), f64::from(u8::from(backend["complete"] == true)));
        for state in ["unknown", "up", "retrying", "held", "down"] {
            let value = f64::from(u8::from(backend["state"] == state));
            add("backend_state", format!("{{{labels},state=\"{state}\"}}"), value);
        }
    }
    for (name, pointer) in PLAIN {
        add(name, String::new(), number(picture, pointer));
    }
    for state in ["ok", "full", "failing"] {
        let value = f64::from(u8::from(picture["journal"]["state"] == state));
        add("journal_state", format!("{{state=\"{state}\"}}"), value);
    }
    add("journal_orphan_lines", "{backend=\"gone\"}".to_owned(), number(picture, "/journal/orphans/gone"));
    add("journal_gaps", String::new(), 1.0);
    add("journal_full_in_seconds", String::new(), 78.0);
    add("catch_up_seconds", "{backend=\"a\"}".to_owned(), 77.0);
    for severity in ["problem", "warning", "note"] {
        add("findings", format!("{{severity=\"{severity}\"}}"), 0.0);
    }
    add("peer_up", "{peer=\"http://b:1\"}".to_owned(), 1.0);
    add("pair_address_held", String::new(), 1.0);
    add("pair_address_odd", String::new(), 1.0);
    add("peer_pending_lines", "{backend=\"a\"}".to_owned(), number(picture, "/pair/backends/0/pending_lines"));
    add("peer_lag_seconds", "{backend=\"a\"}".to_owned(), number(picture, "/pair/backends/0/lag_seconds"));
    add("certificate_days_left", "{file=\"/a.pem\"}".to_owned(), number(picture, "/certificates/0/days_left"));
    expected
}

#[test]
fn every_metric_shows_its_own_field_in_its_unit() {
    let picture = picture();
    let status: Status = serde_json::from_value(picture.clone()).expect("a status");
    let open = metrics::render(Arc::new(status)).expect("metrics");
    let mut found = BTreeMap::new();
    for line in metrics::to_classic(&open).lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a value");
        if !name.starts_with("twinflux_process_") {
            assert!(found.insert(name.to_owned(), value.parse::<f64>().expect("a number")).is_none(), "{name} twice");
        }
    }
    let expected = expected_metrics(&picture);
    let differing: Vec<_> = expected.iter().filter(|(name, value)| found.get(*name) != Some(value)).collect();
    assert!(differing.is_empty(), "expected {differing:#?}");
    let unknown: Vec<_> = found.keys().filter(|name| !expected.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "the table above has no {unknown:#?}");
}

#[test]
fn every_figure_of_the_terminal_is_its_own_fields() {
    let mut picture = picture();
    picture["backends"][0]["recent_latency_ms"] = picture["backends"][0]["latency_ms"].clone();
    let mut status: Status = serde_json::from_value(picture.clone()).expect("a status");
    status.findings = findings(&status);
    let text = status.to_text();
    let at = |pointer: &str| number(&picture, pointer);
    let sum = |pointer: &str| sum(&picture, pointer);
    let listens = [0, 1, 2].map(|index| picture["receive"][index]["listen"].as_str().expect("text").to_owned());
    let seconds = status.uptime_seconds.floor();
    let mut expected = vec![
        format!("up {}", humantime::format_duration(Duration::from_secs_f64(seconds))),
        format!(
            "udp {} -> telegraf: {} datagrams, {} dropped by the kernel, {} denied, {} bytes, {} lines, {} refused",
            listens[0],
            at("/receive/0/datagrams"),
            at("/receive/0/kernel_dropped"),
            at("/receive/0/denied"),
            at("/receive/0/bytes"),
            at("/receive/0/lines"),
            sum("/receive/0/refused")
        ),
        format!(
            "tcp {} -> telegraf: {} connections, {} open, {} denied, {} bytes, {} lines, {} refused",
            listens[1],
            at("/receive/1/connections"),
            at("/receive/1/open_connections"),
            at("/receive/1/denied"),
            at("/receive/1/bytes"),
            at("/receive/1/lines"),
            sum("/receive/1/refused")
        ),
        format!(
            "http {} -> what requests name: {} requests, {} connections open, {} denied, {} bytes, {} lines, {} refused",
            listens[2],
            at("/receive/2/requests"),
            at("/receive/2/open_connections"),
            at("/receive/2/denied"),
            at("/receive/2/bytes"),
            at("/receive/2/lines"),
            sum("/receive/2/refused")
        ),
        format!("answered 503: {} requests", at("/receive/2/answers/503")),
        format!("accepted {} lines", at("/accepted_lines")),
        format!("sources  {}, {} of them silent", at("/sources/known"), at("/sources/silent")),
        format!(
            "journal  {} of {} in memory, {} of {} in {} segments",
            bytesize::ByteSize::b(status.journal.memory_bytes),
            bytesize::ByteSize::b(status.journal.memory_bound_bytes),
            bytesize::ByteSize::b(status.journal.disk_bytes),
            bytesize::ByteSize::b(status.journal.disk_bound_bytes),
            at("/journal/segments")
        ),
        "the journal's disk is full: no room".to_owned(),
        format!("the journal keeps {} lines for gone, which is not configured", at("/journal/orphans/gone")),
        format!("a lacks {} lines in 1 gap (quota)", at("/journal/gaps/0/lines")),
        format!("b is down: a sentence; {} lines", at("/backends/1/pending_lines")),
        format!("{} lines of the log were dropped", at("/log_lines_dropped")),
    ];
    for index in [0, 1, 2] {
        let receive = format!("/receive/{index}");
        let points = at(&format!("{receive}/lines")) - sum(&format!("{receive}/refused"));
        let converted = at(&format!("{receive}/converted"));
        expected.push(format!("{converted} values of other formats are among its {points} accepted lines"));
        for (field, what) in [
            ("empty", "empty datagrams"),
            ("skipped", "lines of other formats held nothing to store"),
            ("limited", "connections turned away"),
            ("displaced", "connections ended to make room"),
            ("timed_out", "connections timed out"),
        ] {
            expected.push(format!("{} {what}", at(&format!("{receive}/{field}"))));
        }
        for (reason, lines) in picture["receive"][index]["refused"].as_object().expect("reasons") {
            expected.push(format!("refused {reason}: {lines}"));
        }
        let (got, wanted) = (at(&format!("{receive}/receive_buffer")), at(&format!("{receive}/receive_buffer_wanted")));
        if got < wanted {
            expected.push(format!("sysctl -w net.core.rmem_max={wanted}"));
        }
    }
    for (index, backend) in picture["backends"].as_array().expect("backends").iter().enumerate() {
        let name = backend["name"].as_str().expect("text");
        for (reason, lines) in backend["dropped_lines"].as_object().expect("reasons") {
            expected.push(format!("{name} dropped {lines} lines: {reason}"));
        }
        let of = |field: &str| at(&format!("/backends/{index}/{field}"));
        let (rejected, dropped) =
            (sum(&format!("/backends/{index}/rejected_lines")), sum(&format!("/backends/{index}/dropped_lines")));
        let differ = difference(&picture, index);
        expected.push(format!("the ledger of {name} does not balance: {} lines were ", differ.abs()));
        // In the order of the table's head.
        let columns = [
            of("delivered_lines").to_string(),
            of("recovered_lines").to_string(),
            rejected.to_string(),
            dropped.to_string(),
            of("pending_lines").to_string(),
            if index == 0 { format!("{:.1}", of("recent_latency_ms/p99")) } else { "-".to_owned() },
            differ.to_string(),
        ];
        let row = text
            .lines()
            .find(|line| line.split_whitespace().take(2).eq([name, backend["state"].as_str().expect("text")]));
        let row: Vec<&str> = row.expect("a row").split_whitespace().skip(2).collect();
        assert_eq!(row, columns, "{text}");
    }
    let head = "backend state delivered recovered rejected dropped pending p99 ms differ";
    assert!(text.lines().any(|line| line.split_whitespace().eq(head.split(' '))), "{text}");
    for part in expected {
        assert!(text.contains(&part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn every_counter_of_a_listener_is_shown_under_its_own_name() {
    let mut tally = Tally { accepted: 1000, ring_full: 999, ..Tally::default() };
    let fields: [(&str, &mut u64); 15] = [
        ("datagrams", &mut tally.datagrams),
        ("bytes", &mut tally.bytes),
        ("empty", &mut tally.empty),
        ("truncated", &mut tally.truncated),
        ("denied", &mut tally.denied),
        ("connections", &mut tally.connections),
        ("limited", &mut tally.limited),
        ("displaced", &mut tally.displaced),
        ("timed_out", &mut tally.timed_out),
        ("converted", &mut tally.converted),
        ("skipped", &mut tally.skipped),
        ("ignored_tags", &mut tally.ignored_tags),
        ("implausible", &mut tally.implausible),
        ("requests", &mut tally.requests),
        ("auth_failures", &mut tally.auth_failures),
    ];
    let mut expected: Vec<(String, u64)> = Vec::new();
    for (value, (name, field)) in (1..).zip(fields) {
        *field = value;
        expected.push((format!("/{name}"), value));
    }
    for (value, (reason, lines)) in (100..).zip(Refusal::ALL.into_iter().zip(&mut tally.refused)) {
        *lines = value;
        expected.push((format!("/refused/{}", reason.name()), value));
    }
    for (value, answers) in (200..).zip(&mut tally.answers) {
        *answers = value;
    }
    expected.push(("/lines".to_owned(), 1000 + tally.refused.iter().sum::<u64>()));
    for listener in listeners() {
        let shown = serde_json::to_value(Receive::new(&listener, &tally)).expect("JSON");
        for (pointer, value) in &expected {
            assert_eq!(shown.pointer(pointer).and_then(Value::as_u64), Some(*value), "{pointer}");
        }
        if listener.kind() == "http" {
            let answers = &shown["answers"];
            assert_eq!((&answers["200"], &answers["204"], &answers["other"]), (&200.into(), &201.into(), &213.into()));
        }
    }
}

/// A journal on disk, with a backend named a.
fn journal(folder: &std::path::Path) -> Journal {
    let storage = Arc::new(Folder::open(folder).expect("a folder"));
    let options = Config::default().disk().expect("a disk");
    let backends = [BackendConfig { name: "a".to_owned(), address: String::new(), replay_share: 0.5 }];
    Journal::open(storage, &options, 1 << 20, &backends).expect("a journal")
}

#[test]
fn every_figure_of_a_ledger_is_shown_under_its_own_name() {
    let folder = tempfile::tempdir().expect("folder");
    let mut ledger = journal(folder.path()).snapshot().ledgers[0].clone();
    (ledger.recovered, ledger.delivered, ledger.delivered_bytes) = (1, 2, 3);
    (ledger.pending, ledger.pending_bytes) = (4000, 5);
    let mut expected =
        vec![("/recovered_lines", 1), ("/delivered_lines", 2), ("/delivered_bytes", 3), ("/pending_bytes", 5)]
            .into_iter()
            .map(|(pointer, value)| (pointer.to_owned(), value))
            .collect::<Vec<_>>();
    for (value, (class, lines)) in (10..).zip(Rejection::ALL.into_iter().zip(&mut ledger.rejected)) {
        *lines = value;
        expected.push((format!("/rejected_lines/{}", class.name()), value));
    }
    for (value, reason) in (50..).zip(DropReason::ALL) {
        ledger.dropped[reason as usize] = value;
        let ring_full = if reason == DropReason::RingFull { 7000 } else { 0 };
        expected.push((format!("/dropped_lines/{}", reason.name()), value + ring_full));
    }
    // Lines on their way are pending, too.
    expected.push(("/pending_lines".to_owned(), 4000 + 300));
    for (lines, microseconds) in [(90, 11_000), (9, 22_000), (1, 33_000)] {
        ledger.latency.record_n(microseconds, lines).expect("in range");
    }
    let view = BackendView {
        name: "a".to_owned(),
        url: "u".to_owned(),
        health: Arc::default(),
        letters: None,
        statements: None,
        readers: None,
    };
    let shown = Backend::new(&view, &ledger, 8.5, 7000, 300);
    // A histogram keeps two significant digits.
    let about = |value: f64, expected: f64| (value - expected).abs() < expected / 50.0;
    let Latency { p50, p99, max } = shown.latency_ms;
    assert!(about(p50, 11.0) && about(p99, 22.0) && about(max, 33.0), "{:?}", shown.latency_ms);
    assert!(about(shown.oldest_pending_seconds, 8.5));
    let shown = serde_json::to_value(shown).expect("JSON");
    for (pointer, value) in &expected {
        assert_eq!(shown.pointer(pointer).and_then(Value::as_u64), Some(*value), "{pointer}");
    }
}

#[test]
fn every_figure_of_the_disk_is_shown_under_its_own_name() {
    let folder = tempfile::tempdir().expect("folder");
    let mut snapshot = journal(folder.path()).snapshot();
    (snapshot.memory_bytes, snapshot.memory_bound) = (1, 9);
    let disk = snapshot.disk.as_mut().expect("a disk");
    (disk.bytes, disk.segments, disk.syncs) = (2, 3, 4);
    (disk.sync_errors, disk.write_errors, disk.read_errors) = (5, 6, 7);
    disk.orphans = vec![("gone".to_owned(), 8)];
    disk.bound = 10;
    disk.sync_latency.record(9000).expect("in range");
    let shown = serde_json::to_value(JournalStatus::new(Durability::Synced, &snapshot)).expect("JSON");
    for (pointer, value) in [
        ("/memory_bytes", 1),
        ("/disk_bytes", 2),
        ("/segments", 3),
        ("/syncs", 4),
        ("/sync_errors", 5),
        ("/write_errors", 6),
        ("/read_errors", 7),
        ("/orphans/gone", 8),
        ("/memory_bound_bytes", 9),
        ("/disk_bound_bytes", 10),
    ] {
        assert_eq!(shown.pointer(pointer).and_then(Value::as_u64), Some(value), "{pointer}");
    }
    assert!((shown["sync_ms"]["max"].as_f64().expect("a number") - 9.0).abs() < 0.2, "{shown}");
    assert_eq!((shown["durability"].as_str(), shown["state"].as_str()), (Some("synced"), Some("ok")));
}
