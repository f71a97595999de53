//! The page in a real browser: in each state it says what `/api/status` says, on a screen and a
//! phone, light and dark.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use twinflux::observe::Status;

use crate::clients::Client;
use crate::rig::Program;
use crate::support::{Scripted, get, influx_error, left_out, no_content, wait_for};

/// The program with two backends that answer writes with these statuses.
struct Stand {
    program: Program,
    statuses: [Arc<AtomicU16>; 2],
    _backends: [Scripted; 2],
}

impl Stand {
    fn new() -> Self {
        Self::with("")
    }

    /// With more in its configuration.
    fn with(more: &str) -> Self {
        let statuses = [204, 204].map(|status| Arc::new(AtomicU16::new(status)));
        let backends = statuses.each_ref().map(|status| {
            let status = Arc::clone(status);
            Scripted::start(move |_, request| match (request.uri.path(), status.load(Ordering::Relaxed)) {
                ("/write", 400) => influx_error(400, "partial write: field type conflict: input field \"v\" on measurement \"m\" is type float, already exists as type integer dropped=1"),
                ("/write", 401) => influx_error(401, "authorization failed"),
                ("/write", 503) => influx_error(503, "timeout"),
                _ => no_content(),
            })
        });
        let urls = backends.each_ref().map(|backend| (backend.url(), ""));
        let program = Program::with(Command::new(env!("CARGO_BIN_EXE_twinflux")), more, &urls);
        for name in ["a", "b"] {
            program.wait_state(name, "up");
        }
        Self { program, statuses, _backends: backends }
    }

    fn set(&self, backend: usize, status: u16) {
        self.statuses[backend].store(status, Ordering::Relaxed);
    }

    /// What the browser shows, once without and once with a search; each time it fits what the
    /// status says.
    fn look(&self, client: &Client, search: Option<&str>) -> Vec<Value> {
        // What is found may change while the browser looks.
        let (shown, status) = wait_for("a look at one state", || {
            let before = self.program.status();
            let shown = client.run_at(self.program.admin(), search.as_slice());
            let status = self.program.status();
            (before.findings.len() == status.findings.len()).then_some((shown, status))
        });
        assert_eq!(shown.len(), 2, "{shown:?}");
        shown.iter().for_each(|shown| assert_shows(shown, &status));
        shown
    }
}

/// What drives a browser; none, and said so, where there is no browser.
fn browser(test: &str) -> Option<Client> {
    let client = Client::find("page.js", test)?;
    if !std::path::Path::new("/usr/bin/chromium").exists() {
        left_out(test, "there is no /usr/bin/chromium");
        return None;
    }
    Some(client)
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().expect("a list").iter().map(|one| one.as_str().expect("text").to_owned()).collect()
}

/// What does not change from one moment to the next is shown as it is, and nothing is wrong with
/// the page itself.
fn assert_shows(shown: &Value, status: &Status) {
    let none = Vec::<String>::new();
    assert_eq!(texts(&shown["errors"]), none, "{shown}");
    assert_eq!(texts(&shown["elsewhere"]), none);
    assert_eq!(texts(&shown["violations"]), none, "accessibility");
    assert_eq!((shown["overflow"].as_i64(), shown["untitled"].as_i64()), (Some(0), Some(0)), "{shown}");
    let headline = shown["headline"].as_str().expect("a headline");
    let wrong = status.summary();
    match wrong.as_str() {
        "all is well" => assert_eq!(headline, "All is well"),
        wrong => assert!(headline.starts_with(wrong.split(' ').next().expect("a number")), "{headline}: {wrong}"),
    }
    assert_eq!(texts(&shown["findings"]).len(), status.findings.len(), "{shown}");
    for (card, backend) in texts(&shown["backends"]).iter().zip(&status.backends) {
        assert!(card.starts_with(&format!("{}{}", backend.name, backend.state)), "{card}: {backend:?}");
        let complete = if backend.complete { "completeyes" } else { "completeno" };
        assert!(card.contains(complete) || backend.state == "up", "{card}");
    }
    for (row, backend) in shown["ledger"].as_array().expect("rows").iter().zip(&status.backends) {
        let row = texts(row);
        assert_eq!((row[0].as_str(), row[8].as_str()), (backend.name.as_str(), "0 ✓"));
        assert_eq!(row[5].replace(',', ""), backend.rejected().to_string());
    }
    assert_eq!(shown["listeners"].as_array().expect("rows").len(), status.receive.len());
    // Three for each backend, three of all listeners, two of the journal.
    assert_eq!(shown["plots"].as_u64(), Some(3 * status.backends.len() as u64 + 5));
    if let Some(milliseconds) = shown["paint"].as_f64() {
        eprintln!("first paint after {milliseconds:.0} ms");
    }
}

#[test]
fn the_page_shows_each_state_as_the_status_has_it() {
    const TEST: &str = "the_page_shows_each_state_as_the_status_has_it";
    let Some(client) = browser(TEST) else { return };
    let stand = Stand::new();
    let (status, page) = get(stand.program.admin(), "/");
    assert!(status == 200 && page.len() < 150_000, "{} bytes", page.len());
    stand.program.send(100);
    for name in ["a", "b"] {
        stand.program.wait_delivered(name);
    }
    // A small receive buffer may be noted; nothing is to do.
    let well = stand.look(&client, None);
    assert_eq!(well[0]["headline"], "All is well");
    // One that cannot, one that has to be let in, one that refuses a line for good.
    for (answer, state, says) in [(503, "retrying", "does not take lines now"), (401, "held", "authorization failed")] {
        stand.set(1, answer);
        stand.program.send(50);
        stand.program.wait_state("b", state);
        stand.program.wait_delivered("a");
        let shown = stand.look(&client, None);
        let findings = texts(&shown[0]["findings"]);
        assert!(findings[0].contains(says), "{findings:?}");
        stand.set(1, 204);
        stand.program.try_backend("b");
        stand.program.wait_delivered("b");
    }
    stand.set(1, 400);
    stand.program.send(1);
    wait_for("a dead letter", || (stand.program.backend("b").dead_letters.kept > 0).then_some(()));
    let shown = stand.look(&client, None);
    assert!(texts(&shown[0]["commands"]).contains(&"twinflux dead-letters list --backend b".to_owned()), "{shown:?}");
    let card = &texts(&shown[0]["backends"])[1];
    for part in [
        "refused as field_type: m,host=h",
        "for telegraf, from h",
        "field type conflict",
        "twinflux dead-letters show 1",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    stand.set(1, 204);
    // Garbage, with a name that would like to be markup.
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let udp = stand.program.listener("udp");
    socket.send_to(b"<img src=x onerror=alert(1)> 1 2 3", udp).expect("sent");
    socket.send_to(b"cpu,host=<b>bold</b> v=1", udp).expect("sent");
    wait_for("a refused line", || stand.program.status().receive[0].refused_samples.values().next().map(|_| ()));
    let shown = stand.look(&client, None);
    let listeners = shown[0]["listeners"].to_string();
    assert!(listeners.contains("<img src=x onerror=alert(1)> 1 2 3") && listeners.contains("127.0.0.1"), "{listeners}");
    // A thousand hosts: the page shows some, and finds each.
    for number in 0..1000_u16 {
        let socket = UdpSocket::bind(format!("127.1.{}.{}:0", number / 250, number % 250 + 1)).expect("bind");
        socket.send_to(format!("cpu,host=host-{number} v=1").as_bytes(), udp).expect("sent");
    }
    wait_for("a thousand hosts", || (stand.program.status().sources.known > 1000).then_some(()));
    let shown = stand.look(&client, Some("host-777"));
    // With it, the browser is given a full history.
    assert_eq!(shown[0]["points"], 360);
    let rows = shown[0]["sources"].as_array().expect("rows");
    assert!(rows.len() == 1 && rows[0][0] == "host-777" && rows[0][1] == "127.1.3.28 (udp)", "{rows:?}");
}

#[test]
fn the_page_shows_the_other_relay_of_a_pair() {
    const TEST: &str = "the_page_shows_the_other_relay_of_a_pair";
    let Some(client) = browser(TEST) else { return };
    let other = Stand::new();
    let peer = format!("http://{}", other.program.admin());
    let stand = Stand::with(&format!("[pair]\npeer = \"{peer}\"\n"));
    wait_for("the other one", || stand.program.status().pair.filter(|pair| pair.state == "up").map(|_| ()));
    other.set(1, 503);
    other.program.send(30);
    let owes = |lines: u64| {
        wait_for("what it owes", || {
            let pair = stand.program.status().pair.expect("a pair");
            pair.backends.iter().any(|one| one.name == "b" && one.pending_lines == lines && !one.complete).then_some(())
        });
    };
    owes(30);
    let shown = stand.look(&client, None);
    assert_eq!(texts(&shown[0]["owed"][1])[..3], ["b", "retrying", "30"], "{shown:?}");
    let card = &texts(&shown[0]["peer"])[0];
    assert!(card.contains(&peer) && card.contains("up"), "{card}");
    // It goes with what it owed.
    drop(other);
    wait_for("its end", || stand.program.status().pair.filter(|pair| pair.state == "gone").map(|_| ()));
    let shown = stand.look(&client, None);
    let findings = texts(&shown[0]["findings"]);
    assert!(findings[0].contains("the other relay") && findings[0].contains("is gone"), "{findings:?}");
    assert!(findings.iter().any(|finding| finding.contains("b may lack 30 lines")), "{findings:?}");
    assert_eq!(texts(&shown[0]["gaps"][0])[6], "peer");
}

#[test]
fn the_page_shows_a_full_disk_and_hosts_that_are_silent() {
    const TEST: &str = "the_page_shows_a_full_disk_and_hosts_that_are_silent";
    let Some(client) = browser(TEST) else { return };
    let journal = "[journal]\ndisk = \"8MiB\"\nmemory = \"4MiB\"\nfull = \"drop_newest\"\ncompression = \"none\"\n";
    let stand = Stand::with(journal);
    // A host that sends regularly, and then does not.
    let host = UdpSocket::bind("127.2.0.1:0").expect("bind");
    for _ in 0..6 {
        host.send_to(b"cpu,host=quiet v=1", stand.program.listener("udp")).expect("sent");
        std::thread::sleep(Duration::from_millis(700));
    }
    wait_for("a silent host", || (stand.program.status().sources.silent > 0).then_some(()));
    let shown = stand.look(&client, None);
    let sources = shown[0]["sources"].as_array().expect("rows");
    assert!(sources[0][0] == "quiet" && sources[0][2].to_string().contains("silent"), "silent ones first: {sources:?}");
    assert!(
        texts(&shown[0]["findings"]).iter().any(|finding| finding.contains("1 of 1 host silent: quiet")),
        "{shown:?}"
    );
    stand.set(1, 503);
    wait_for("a full disk", || {
        stand.program.send(20_000);
        (stand.program.status().journal.state == twinflux::journal::disk::Condition::Full).then_some(())
    });
    let shown = stand.look(&client, None);
    assert!(
        texts(&shown[0]["findings"]).iter().any(|finding| finding.contains("the journal's disk is full")),
        "{shown:?}"
    );
    assert_eq!(texts(&shown[0]["journal"])[0], "full");
}

/// Each reads what it is sent for so long, and returns how many events that were.
fn view(admin: SocketAddr, time: Duration) -> usize {
    let mut stream = TcpStream::connect(admin).expect("connect");
    stream.write_all(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    let (begun, mut seen, mut buffer) = (Instant::now(), Vec::new(), [0; 64 << 10]);
    while begun.elapsed() < time {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("a viewer was sent away"),
            Ok(read) => seen.extend_from_slice(&buffer[..read]),
            Err(_) => {}
        }
    }
    seen.windows(6).filter(|window| window == b"data: ").count()
}

#[test]
fn a_hundred_viewers_see_every_change_and_cost_no_line() {
    let stand = Stand::new();
    let (admin, time) = (stand.program.admin(), Duration::from_secs(6));
    let events = stand.program.send_while(5_000, || {
        std::thread::scope(|threads| {
            let viewers: Vec<_> = (0..100).map(|_| threads.spawn(|| view(admin, time))).collect();
            viewers.into_iter().map(|viewer| viewer.join().expect("no panic")).collect::<Vec<_>>()
        })
    });
    assert!(events.iter().all(|events| *events >= 2), "{events:?}");
    for name in ["a", "b"] {
        stand.program.wait_delivered(name);
    }
    assert_eq!(stand.program.status().accepted_lines, stand.program.sent());
}
