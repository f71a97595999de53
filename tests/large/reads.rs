//! Readers through the program: two real InfluxDBs behind it, of which one may be down, catch up,
//! or lack something.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::balancer::Balancer;
use crate::effort;
use crate::influxdb::InfluxDb;
use crate::rig::Program;
use crate::support::{LIMIT, http, wait_for};

/// Two servers with a database, and a program before them.
struct Stand {
    servers: [InfluxDb; 2],
    program: Program,
    address: SocketAddr,
}

impl Stand {
    fn start(more: &str) -> Self {
        let servers = [InfluxDb::start(""), InfluxDb::start("")];
        for server in &servers {
            server.query("", "CREATE DATABASE telegraf");
        }
        let backends = servers.each_ref().map(|server| (server.url(), ""));
        let more = format!("[[http]]\nlisten = \"127.0.0.1:0\"\n{more}");
        let program = Program::with(Command::new(env!("CARGO_BIN_EXE_twinflux")), &more, &backends);
        let address = program.listener("http");
        let stand = Self { servers, program, address };
        ["a", "b"].iter().for_each(|name| stand.program.wait_state(name, "up"));
        stand
    }

    fn write(&self, lines: &str) {
        let request =
            format!("POST /write?db=telegraf HTTP/1.0\r\nHost: x\r\nContent-Length: {}\r\n\r\n{lines}", lines.len());
        assert_eq!(http(self.address, &request).0, 204);
    }

    fn wait_delivered(&self, names: &[&str]) {
        for name in names {
            wait_for("delivery", || (self.program.backend(name).pending_lines == 0).then_some(()));
        }
    }

    fn count(&self, place: usize) -> u64 {
        self.servers[place].count("telegraf", "m", "v")
    }
}

/// An answer: its status, its headers in lower case, its body.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

/// The whole answer, if it came to its end as it should.
fn ask(address: SocketAddr, request: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(LIMIT)).expect("a time-out");
    stream.write_all(request.as_bytes()).ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let head = head.to_ascii_lowercase();
    let body = if head.contains("transfer-encoding: chunked") { unchunked(body)? } else { body.to_owned() };
    Some(Answer { status, head, body })
}

fn unchunked(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size + 2..)?;
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

fn post(path: &str, body: &str, headers: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// Requests as Grafana, Chronograf, the `influx` shell, Kapacitor and libraries send them.
fn requests() -> Vec<String> {
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let select = encoded(
        "SELECT mean(\"v\") FROM \"m\" WHERE time >= 1000ms and time <= 9000ms GROUP BY time(1s), \"host\" fill(null)",
    );
    let multipart =
        "--x\r\nContent-Disposition: form-data; name=\"q\"; filename=\"f\"\r\n\r\nSELECT v FROM m\r\n--x--\r\n";
    vec![
        get(&format!("/query?db=telegraf&epoch=ms&q={select}")),
        post("/query?db=telegraf&epoch=ms", &format!("q={select}"), form),
        post(&format!("/query?q={select}&db=telegraf&rp=&epoch=ms"), "", "Content-Type: application/json\r\n"),
        post(&format!("/query?chunked=true&db=telegraf&epoch=ns&q={}", encoded("SELECT * FROM m")), "", ""),
        get(&format!("/query?db=telegraf&chunked=true&chunk_size=3&q={}", encoded("SELECT v FROM m GROUP BY host"))),
        get(&format!("/query?db=telegraf&pretty=true&q={}", encoded("SHOW RETENTION POLICIES on \"telegraf\""))),
        get(&format!("/query?db=telegraf&q={}", encoded("SHOW TAG VALUES FROM m WITH KEY = \"host\""))),
        get(&format!("/query?db=telegraf&q={}", encoded("SHOW MEASUREMENTS WITH MEASUREMENT =~ /(?i)M/ LIMIT 100"))),
        get(&format!("/query?db=telegraf&q={}", encoded("SHOW FIELD KEYS; SELECT max(v) FROM m; SHOW DATABASES"))),
        get(&format!("/query?q={}", encoded("SELECT count(v) FROM telegraf..m"))),
        get("/query?db=telegraf&q=SELECT+v+FROM+nothing"),
        get("/query?db=nowhere&q=SELECT+v+FROM+m"),
        get("/query?db=telegraf&q=SELECT+FROM"),
        get("/query?db=telegraf&q=SELECT+v"),
        get(&format!(
            "/query?db=telegraf&params={}&q={}",
            encoded("{\"h\":\"a\"}"),
            encoded("SELECT v FROM m WHERE host = $h")
        )),
        post("/query?db=telegraf", multipart, "Content-Type: multipart/form-data; boundary=x\r\n"),
        format!(
            "GET /query?db=telegraf&q=SELECT+v+FROM+m HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: application/csv\r\n\r\n"
        ),
        get("/query?db=telegraf"),
    ]
}

#[test]
fn readers_get_what_a_server_answers_itself() {
    let stand = Stand::start("");
    let lines: String = (1..=40)
        .map(|n| format!("m,host={} v={n} {}\n", if n % 2 == 0 { "a" } else { "b" }, n * 250_000_000_i64))
        .collect();
    stand.write(&lines);
    stand.wait_delivered(&["a", "b"]);
    for request in requests() {
        let own = ask(stand.servers[0].address, &request).expect("an answer");
        let through = ask(stand.address, &request).unwrap_or_else(|| panic!("no whole answer to {request}"));
        assert_eq!((through.status, &through.body), (own.status, &own.body), "{request}");
        for name in ["content-type", "x-influxdb-version", "x-influxdb-error"] {
            assert_eq!(through.header(name), own.header(name), "{name} of {request}");
        }
        if own.status == 200 {
            assert_eq!(through.header("x-twinflux-complete"), Some("yes"), "{}", through.head);
            assert!(through.header("x-grafana-meta-add-twinflux").is_some_and(|text| text.contains("complete=yes")));
        }
    }
    let read = stand.program.backend("a").read.expect("figures");
    // The database that is nowhere may have been somewhere.
    assert_eq!((&*read.serves, read.incomplete, read.cut, read.failovers), ("yes", 0, 0, 1), "{read:?}");
    // Compressed as it came.
    let gzip = "GET /query?db=telegraf&q=SELECT+v+FROM+m HTTP/1.0\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n";
    let mut stream = TcpStream::connect(stand.address).expect("connect");
    stream.write_all(gzip.as_bytes()).expect("send");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an answer");
    let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    assert!(text.contains("content-encoding: gzip"), "{text}");
}

/// Points that queries are about.
const RECENT: i64 = 200_000;

#[test]
fn a_copy_that_lags_answers_nothing_that_the_other_one_knows_better() {
    let mut stand = Stand::start("");
    let queries: u32 = std::env::var("TWINFLUX_QUERIES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| effort::times(300, 1000, 10_000));
    let balancer = Balancer::before(stand.servers.each_ref().map(|server| server.address));
    let (mut point, mut stale, mut whole, mut stale_beside) = (0_i64, 0, 0, 0);
    let mut write = |stand: &Stand, count: i64| {
        let lines: String = (0..count).map(|n| format!("m,host=a v=1 {}\n", (point + n) * 1_000_000)).collect();
        point += count;
        stand.write(&lines);
        point
    };
    let mut end = write(&stand, 1_000);
    stand.wait_delivered(&["a", "b"]);
    for number in 0..queries {
        // An outage for every hundred queries, and a backlog that takes some of them to be
        // delivered.
        if number % 100 == 0 {
            stand.servers[1].kill();
            (0..20).for_each(|_| end = write(&stand, 5_000));
            stand.wait_delivered(&["a"]);
        }
        if number % 100 == 20 {
            stand.servers[1].revive();
        }
        write(&stand, 100);
        // Any range of the last outages' points, so that the ten-thousandth query costs no more
        // than the first.
        let from = fastrand::i64((end - RECENT).max(0)..end) * 1_000_000;
        let until = if number % 3 == 0 { i64::MAX / 2 } else { from + fastrand::i64(1..RECENT) * 1_000_000 };
        let statement = format!("SELECT count(v) FROM m WHERE time >= {from} AND time <= {until}");
        let request = get(&format!("/query?db=telegraf&q={}", encoded(&statement)));
        let counts = |answer: &Answer| {
            let json: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
            json["results"][0]["series"][0]["values"][0][1].as_u64().unwrap_or(0)
        };
        let known = stand.servers.each_ref().map(|server| ask(server.address, &request));
        let known = known.each_ref().map(|one| one.as_ref().filter(|one| one.status == 200).map(counts));
        let best = known.iter().flatten().copied().max().expect("one is up");
        // InfluxDB shows points a moment before it acknowledges them: only what was acknowledged
        // may not be missing.
        let status = stand.program.status();
        let of_best = status.backends.iter().zip(known).filter(|(_, count)| *count == Some(best));
        let unacknowledged = of_best.map(|(backend, _)| backend.pending_lines).min().unwrap_or(0);
        let answer = ask(stand.address, &request).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        let is_whole = answer.header("x-twinflux-complete") == Some("yes");
        whole += u32::from(is_whole);
        let missing = best.saturating_sub(counts(&answer));
        if is_whole && missing > 0 {
            eprintln!(
                "query {number}: {missing} of {known:?} missing, {unacknowledged} unacknowledged: {}",
                answer.head
            );
        }
        stale += u32::from(is_whole && missing > unacknowledged);
        let beside = ask(balancer.address, &request).filter(|answer| answer.status == 200);
        stale_beside += u32::from(beside.is_some_and(|answer| counts(&answer) < best));
    }
    assert_eq!(stale, 0, "of {queries}");
    assert!(whole > queries / 2, "{whole} of {queries} answers are whole");
    stand.wait_delivered(&["a", "b"]);
    assert_eq!(stand.count(0), stand.count(1));
    eprintln!("{queries} queries: none stale, {whole} whole; {stale_beside} stale through HAProxy");
}

#[test]
fn a_query_is_answered_while_one_of_two_lives() {
    let mut stand = Stand::start("");
    stand.write("m,host=a v=1 1000000000\n");
    stand.wait_delivered(&["a", "b"]);
    let request = get("/query?db=telegraf&q=SELECT+v+FROM+m");
    for dead in [0, 1] {
        stand.servers[dead].kill();
        for _ in 0..20 {
            let answer = ask(stand.address, &request).expect("an answer");
            assert!(answer.status == 200 && answer.body.contains("[\"1970-01-01T00:00:01Z\",1]"), "{answer:?}");
        }
        stand.servers[dead].revive();
        stand.program.wait_state(["a", "b"][dead], "up");
    }
    stand.servers.iter_mut().for_each(InfluxDb::kill);
    let answer = ask(stand.address, &request).expect("an answer");
    assert!(answer.status == 503 && answer.body.contains("\"error\""), "{answer:?}");
}

#[test]
fn a_backend_that_is_killed_during_queries_costs_no_answer_that_had_not_begun() {
    let mut stand = Stand::start("");
    let lines: String = (0..5_000).map(|n| format!("m,host=h{} v={n} {n}000000\n", n % 50)).collect();
    stand.write(&lines);
    stand.wait_delivered(&["a", "b"]);
    let kills: usize = std::env::var("TWINFLUX_KILLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| effort::times(4, 20, 100));
    let request = get(&format!("/query?db=telegraf&q={}", encoded("SELECT v FROM m")));
    let expected = ask(stand.servers[0].address, &request).expect("an answer").body;
    let (is_over, address) = (AtomicBool::new(false), stand.address);
    let (mut whole, mut cut) = (0, 0);
    std::thread::scope(|threads| {
        let asking: Vec<_> = (0..3)
            .map(|_| {
                threads.spawn(|| {
                    let (mut whole, mut cut) = (0, 0);
                    while !is_over.load(Ordering::Relaxed) {
                        match ask(address, &request) {
                            Some(answer) => {
                                assert_eq!((answer.status, &answer.body), (200, &expected));
                                whole += 1;
                            }
                            // Visibly: it has no end.
                            None => cut += 1,
                        }
                    }
                    (whole, cut)
                })
            })
            .collect();
        for number in 0..kills {
            let name = ["a", "b"][number % 2];
            std::thread::sleep(Duration::from_millis(fastrand::u64(200..500)));
            stand.servers[number % 2].kill();
            std::thread::sleep(Duration::from_millis(200));
            stand.servers[number % 2].revive();
            // It is known by its lines that it is there again.
            stand.write("other v=1 1\n");
            stand.program.wait_state(name, "up");
            stand.wait_delivered(&["a", "b"]);
        }
        is_over.store(true, Ordering::Relaxed);
        for one in asking {
            let (more_whole, more_cut) = one.join().expect("no panic");
            (whole, cut) = (whole + more_whole, cut + more_cut);
        }
    });
    let told: u64 = ["a", "b"].iter().map(|name| stand.program.backend(name).read.expect("figures").cut).sum();
    assert!(cut <= told && whole > kills as u64, "{whole} whole, {cut} cut, {told} told");
    eprintln!("{kills} kills: {whole} answers whole, {cut} cut behind their first byte");
}

#[test]
fn a_statement_comes_behind_what_was_written_before_it_on_every_backend() {
    let mut stand = Stand::start("");
    stand.write("m,host=a v=1 1000000000\nother v=1 1\n");
    stand.wait_delivered(&["a", "b"]);
    stand.servers[1].kill();
    stand.write("m,host=b v=2 2000000000\n");
    let order = |statement: &str| {
        ask(stand.address, &post(&format!("/query?db=telegraf&q={}", encoded(statement)), "", "")).expect("an answer")
    };
    let answer = order("DROP MEASUREMENT m");
    assert_eq!((answer.status, answer.body.trim()), (200, "{\"results\":[{\"statement_id\":0}]}"));
    stand.write("m,host=c v=3 3000000000\n");
    wait_for("a's copy", || (stand.count(0) == 1).then_some(()));
    assert_eq!(stand.program.backend("b").statements_pending, 1);
    // One that is refused changes nothing, and is owed to nobody.
    let refused = order("ALTER RETENTION POLICY nothing ON telegraf DURATION 1w");
    assert!(refused.status == 200 && refused.body.contains("error"), "{refused:?}");
    assert_eq!(stand.program.backend("b").statements_pending, 1);
    stand.servers[1].revive();
    wait_for("b's copy", || {
        (stand.program.backend("b").statements_pending == 0 && stand.program.backend("b").pending_lines == 0)
            .then_some(())
    });
    assert_eq!((stand.count(0), stand.count(1)), (1, 1), "what came before is gone, what came after is there");
    assert_eq!(stand.servers[1].count("telegraf", "other", "v"), 1);
    for (request, status, part) in [
        (get(&format!("/query?db=telegraf&q={}", encoded("DROP MEASUREMENT m"))), 405, "allow"),
        (post(&format!("/query?db=telegraf&q={}", encoded("KILL QUERY 3")), "", ""), 400, "one server only"),
        (post(&format!("/query?db=telegraf&q={}", encoded("SELECT v INTO x FROM m")), "", ""), 400, "select_into"),
        (
            post(&format!("/query?db=telegraf&q={}", encoded("SHOW DATABASES; DROP DATABASE telegraf")), "", ""),
            400,
            "alone",
        ),
        (
            post(&format!("/query?db=telegraf&q={}", encoded("DRO DATABASE telegraf INTO")), "", ""),
            400,
            "begins no statement",
        ),
        (post(&format!("/query?q={}", encoded("DROP MEASUREMENT m")), "", ""), 400, "database name required"),
    ] {
        let answer = ask(stand.address, &request).expect("an answer");
        assert!(answer.status == status && answer.body.contains(part), "{request}: {answer:?}");
    }
    assert_eq!((stand.count(0), stand.count(1)), (1, 1));
    // With both down nothing is run, and nothing is owed.
    stand.servers.iter_mut().for_each(InfluxDb::kill);
    stand.write("x v=1 1\n");
    wait_for("both to be known as down", || {
        ["a", "b"].iter().all(|name| stand.program.backend(name).state != "up").then_some(())
    });
    assert_eq!(
        ask(stand.address, &post(&format!("/query?db=telegraf&q={}", encoded("DROP MEASUREMENT m")), "", ""))
            .expect("an answer")
            .status,
        503
    );
    assert_eq!(stand.program.backend("a").statements_pending, 0);
}

#[test]
fn an_abandoned_query_ends_on_the_server() {
    let stand = Stand::start("");
    // Enough that a query over it takes some seconds.
    for part in 0..40_i64 {
        let lines: String =
            (0..5_000_i64).map(|n| format!("m,host=h{} v={n} {}\n", n % 50, (part * 5_000 + n) * 1_000_000)).collect();
        stand.write(&lines);
    }
    stand.wait_delivered(&["a", "b"]);
    let statement =
        "SELECT count(v), stddev(v), percentile(v, 99) FROM m WHERE time > 0 AND time < 400s GROUP BY time(1ms), host";
    let mut stream = TcpStream::connect(stand.address).expect("connect");
    stream.write_all(get(&format!("/query?db=telegraf&q={}", encoded(statement))).as_bytes()).expect("send");
    let running =
        || stand.servers.iter().filter(|server| server.query("", "SHOW QUERIES").matches("stddev").count() > 0).count();
    wait_for("the query to run", || (running() > 0).then_some(()));
    drop(stream);
    let begun = Instant::now();
    wait_for("the query to end", || (running() == 0).then_some(()));
    eprintln!("an abandoned query ended after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(60));
}
