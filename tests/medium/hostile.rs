//! Backends that mean harm, or are something else: what they send is bounded, wherever it goes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::program::{PROGRAM, Started, run, text};
use crate::support::{Running, Scripted, config, get, no_content, wait_for};

/// A server that answers each connection's first request with these bytes again and again, until
/// nobody takes them.
fn flooding(first: &'static [u8], again: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                if stream.read(&mut [0; 1024]).is_ok() && stream.write_all(first).is_ok() {
                    while stream.write_all(again).is_ok() {}
                }
            });
        }
    });
    address
}

#[test]
fn an_answer_without_an_end_is_ended_and_the_others_go_on() {
    for (first, again, error) in [
        (&b""[..], &b"HTTP/1.1 100 Continue\r\n\r\n"[..], "without an answer's end"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "without an answer's end"),
        (b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;x=yyyyyyyyyyyyyyyy\r\nz\r\n", ""),
        (b"HTTP/1.1 400 Bad\r\n", b"X: yyyyyyyyyyyyyyyyyyyyyyyyyy\r\n", ""),
        (b"", b"no HTTP at all", ""),
    ] {
        let (hostile, healthy) = (flooding(first, again), Scripted::accepting());
        let relay = Running::start(config(&[format!("http://{hostile}"), healthy.url()]));
        relay.send(&["m v=1 1\n"]);
        relay.wait_delivered("b", 1);
        // No time ran out: it would be told to have stalled.
        let told = wait_for("the flood to be told", || {
            let backend = relay.backend("a");
            backend.last_error.filter(|told| backend.retries > 0 && told.contains(error))
        });
        assert!(!told.contains("did not answer within"), "{told}");
        assert_eq!(relay.backend("a").pending_lines, 1);
    }
}

#[test]
fn a_backend_that_flaps_and_tells_much_fills_no_log() {
    let answer = format!("{{\"error\":\"timeout {}\"}}", "\u{1b}".repeat(60_000));
    let flapping = Scripted::start(
        move |number, _| {
            if number % 2 == 0 { (500, Vec::new(), answer.clone()) } else { no_content() }
        },
    );
    let refusing = Scripted::start(|_, _| {
        (400, Vec::new(), format!("{{\"error\":\"unable to parse {}\"}}", "\u{1b}\u{202e}".repeat(12_000)))
    });
    let folder = tempfile::tempdir().expect("folder");
    let started = Instant::now();
    let relay = Started::new(&["--backend", &flapping.url(), "--backend", &refusing.url()], folder.path());
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    for sent in 1..=10 {
        socket.send_to(b"m v=1 1\n", relay.target).expect("send");
        wait_for("the line to be delivered and refused", || {
            let status: serde_json::Value = serde_json::from_str(&get(relay.admin, "/api/status").1).expect("JSON");
            let (flapping, refusing) = (&status["backends"][0], &status["backends"][1]);
            let is_cut = |one: &serde_json::Value| one["last_error"].as_str().is_none_or(|text| text.len() <= 500);
            assert!(is_cut(flapping) && is_cut(refusing), "{status}");
            (flapping["delivered_lines"] == sent && refusing["rejected_lines"]["unparsable"] == sent).then_some(())
        });
    }
    relay.signal("-TERM");
    let (code, log) = relay.end();
    assert_eq!(code, Some(0), "{log}");
    let minutes = usize::try_from(started.elapsed().as_secs() / 60).expect("a number");
    for event in ["cannot deliver", "takes lines again", "never take lines"] {
        let told = log.lines().filter(|line| line.contains(event)).count();
        assert!((1..=1 + minutes).contains(&told), "{event} is told {told} times in {minutes} minutes: {log}");
    }
    assert!(log.lines().all(|line| line.len() < 5000), "{log}");
    assert!(!log.contains(['\u{1b}', '\u{202e}']), "{log}");
}

/// What a stranger answers to `twinflux status`.
fn answering(body: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            drop(stream.read(&mut [0; 1024]));
            drop(stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{body}").as_bytes()));
        }
    });
    address
}

/// Sets each leaf for which `of` has a value, one at a time.
fn each_leaf(
    value: &serde_json::Value,
    of: &dyn Fn(&serde_json::Value) -> Vec<serde_json::Value>,
) -> Vec<serde_json::Value> {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            let mut all = Vec::new();
            for (key, field) in fields {
                for changed in each_leaf(field, of) {
                    let mut fields = fields.clone();
                    fields.insert(key.clone(), changed);
                    all.push(Value::Object(fields));
                }
            }
            all
        }
        Value::Array(values) => {
            let mut all = Vec::new();
            for (place, one) in values.iter().enumerate() {
                for changed in each_leaf(one, of) {
                    let mut values = values.clone();
                    values[place] = changed;
                    all.push(Value::Array(values));
                }
            }
            all
        }
        leaf => of(leaf),
    }
}

/// A relay's status with all that it may show: sources, silence, gaps, errors.
fn full_status() -> serde_json::Value {
    let relay = Running::start(config(&["http://127.0.0.1:1".to_owned()]));
    relay.send(&["m v=1 1\n"]);
    relay.wait_state("a", "down");
    let mut status: serde_json::Value = serde_json::from_str(&relay.get("/api/status").1).expect("JSON");
    status["sources"]["top"][0]["silent"] = true.into();
    status["sources"]["silent"] = 1.into();
    status["journal"]["state"] = "full".into();
    status["journal"]["last_error"] = "no room".into();
    status["journal"]["orphans"] = serde_json::json!({ "gone": 7 });
    status["journal"]["gaps"] = serde_json::json!([{
        "id": 1, "state": "open", "backend": "a", "database": "db", "retention_policy": "", "from": "", "until": "",
        "points_from": "", "points_until": null, "lines": 1, "reason": "quota"
    }]);
    status["receive"][0]["converted"] = 1.into();
    status
}

#[test]
fn the_status_of_a_stranger_neither_aborts_nor_commands_the_terminal() {
    use serde_json::{Value, json};
    let folder = tempfile::tempdir().expect("folder");
    let status = full_status();
    let show = |status: &Value| {
        let address = answering(status.to_string());
        let output = run(&["status", "--admin", &address.to_string()], folder.path());
        let (out, error) = (text(&output.stdout), text(&output.stderr));
        assert!(matches!(output.status.code(), Some(0 | 3)), "{status}: {:?} {error}", output.status);
        for shown in [&out, &error] {
            assert!(!shown.contains(['\u{1b}', '\u{9b}', '\u{202e}', '\u{7}', '\r']), "{status}: {shown:?}");
        }
        (output.status.code(), out)
    };
    assert_eq!(show(&status).0, Some(0));
    // Every number at once, and the two that are durations one at a time.
    fn all(value: &Value, of: &dyn Fn(&Value) -> Option<Value>) -> Value {
        match value {
            Value::Object(fields) => fields.iter().map(|(key, field)| (key.clone(), all(field, of))).collect(),
            Value::Array(values) => values.iter().map(|one| all(one, of)).collect(),
            leaf => of(leaf).unwrap_or_else(|| leaf.clone()),
        }
    }
    for number in [json!(0), json!(u64::MAX)] {
        let hostile = all(&status, &|leaf| leaf.is_number().then(|| number.clone()));
        assert_eq!(show(&hostile).0, Some(0));
    }
    for seconds in [-1.0, -1e300, 1e19, 1e300] {
        for pointer in ["/uptime_seconds", "/sources/top/0/last_seen_seconds", "/backends/0/latency_ms/p99"] {
            let mut hostile = status.clone();
            *hostile.pointer_mut(pointer).expect("a number") = json!(seconds);
            assert_eq!(show(&hostile).0, Some(0), "{pointer} {seconds}");
        }
    }
    // Every text, one at a time: some are enumerations, whose error may repeat them.
    let hostile = "\u{1b}[2J\u{9b}31m\u{202e}\u{7}\r\nsecond line";
    for status in each_leaf(&status, &|leaf| if leaf.is_string() { vec![json!(hostile)] } else { Vec::new() }) {
        let (_, out) = show(&status);
        assert!(!out.contains("\nsecond line"), "{out}");
    }
    let mut long = status;
    long["backends"][0]["name"] = json!("x".repeat(100_000));
    assert_eq!(show(&long).0, Some(0));
}

#[test]
fn what_answers_bit_by_bit_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    });
    let folder = tempfile::tempdir().expect("folder");
    let output = run(&["status", "--admin", &address.to_string()], folder.path());
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("no whole answer within"), "{}", text(&output.stderr));
}

#[test]
fn a_dump_is_escaped_on_a_terminal_and_raw_elsewhere() {
    let folder = tempfile::tempdir().expect("folder");
    let mut settings = config(&["http://127.0.0.1:1".to_owned()]);
    settings.data_dir = folder.path().join("data");
    let mut relay = Running::start_in(settings);
    let line = "m,host=ä s=\"\u{1b}[2J\u{9b}31m\u{202e}\nx\" 1\n";
    relay.send(&[line]);
    relay.stop();
    let raw = run(&["journal", "dump", "data"], folder.path());
    assert!(text(&raw.stdout).ends_with(line), "{}", text(&raw.stdout));
    let terminal = Command::new("script")
        .args(["-qec", &format!("{PROGRAM} journal dump data"), "/dev/null"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output();
    let Ok(terminal) = terminal else {
        crate::support::left_out("a_dump_is_escaped_on_a_terminal_and_raw_elsewhere", "no `script` here");
        return;
    };
    let shown = text(&terminal.stdout).replace("\r\n", "\n");
    assert!(shown.contains("m,host=ä s=\"\\u{1b}[2J\\u{9b}31m\\u{202e}\nx\" 1\n"), "{shown:?}");
}
