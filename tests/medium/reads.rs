//! Readers: who may read what, which copy is asked, and what becomes of an answer that ends too
//! early.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use twinflux::cli::socket::BackendAction;
use twinflux::config::{Auth, Config, Http, Incomplete, Right};

use crate::support::{Running, Scripted, config, free_address, http, no_content, wait_for};

pub(crate) const ROWS: &str = "{\"results\":[{\"statement_id\":0,\"series\":[{\"name\":\"m\",\"columns\":[\"time\",\"v\"],\"values\":[[1,2]]}]}]}\n";

/// A backend that answers queries like this, and takes lines.
pub(crate) fn answering(status: u16, body: &'static str) -> Scripted {
    Scripted::start(
        move |_, request| {
            if request.uri.path() == "/query" { (status, Vec::new(), body.to_owned()) } else { no_content() }
        },
    )
}

pub(crate) fn with_http(urls: &[String]) -> Config {
    let mut config = config(urls);
    config.http.push(Http { listen: ([127, 0, 0, 1], 0).into(), ..Http::default() });
    config
}

pub(crate) fn select(relay: &Running, query: &str, headers: &str) -> (u16, String) {
    let request = format!("GET /query?db=telegraf&q={query} HTTP/1.0\r\nHost: x\r\n{headers}\r\n");
    http(relay.listener("http"), &request)
}

pub(crate) fn queries(backend: &Scripted) -> usize {
    backend.requests().iter().filter(|request| request.uri.path() == "/query").count()
}

#[test]
fn rights_say_what_may_be_read_and_seen() {
    let folder = tempfile::tempdir().expect("folder");
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, "boss:abc\nviewer:def\nwriter:ghi\n").expect("write");
    let list = "{\"results\":[{\"statement_id\":0,\"series\":[{\"name\":\"databases\",\"columns\":[\"name\"],\"values\":[[\"telegraf\"],[\"secret\"]]}]}]}\n";
    let backend = Scripted::start(move |_, request| {
        let is_list = String::from_utf8_lossy(&request.body).contains("DATABASES");
        match request.uri.path() {
            "/query" => (200, Vec::new(), if is_list { list } else { ROWS }.to_owned()),
            _ => no_content(),
        }
    });
    let mut config = with_http(&[backend.url()]);
    let right = |name: &str, read: &[&str], write: &[&str], admin| Right {
        name: name.to_owned(),
        read: read.iter().map(|name| (*name).to_owned()).collect(),
        write: write.iter().map(|name| (*name).to_owned()).collect(),
        admin,
    };
    let rights = vec![
        right("boss", &["*"], &[], true),
        right("viewer", &["tele*"], &[], false),
        right("writer", &[], &["x"], false),
    ];
    config.auth = Auth { tokens_file: Some(tokens), users_file: None, right: rights };
    let relay = Running::start(config);
    relay.wait_state("a", "up");
    let as_whom = |token: &str| format!("Authorization: Token {token}\r\n");
    for (token, query, status) in [
        ("abc", "SELECT+v+FROM+m", 200),
        ("def", "SELECT+v+FROM+m", 200),
        ("ghi", "SELECT+v+FROM+m", 403),
        ("none", "SELECT+v+FROM+m", 401),
        ("def", "SELECT+v+FROM+secret..m", 403),
        ("def", "SELECT+v+FROM+m%3BSELECT+v+FROM+secret..m", 403),
        ("def", "SHOW+MEASUREMENTS+ON+secret", 403),
        ("def", "SHOW+USERS", 403),
        ("def", "SHOW+STATS", 403),
        ("abc", "SHOW+USERS", 200),
        ("def", "SELECT+v+FROM", 400),
        ("def", "DROP+MEASUREMENT+m", 405),
    ] {
        assert_eq!(select(&relay, query, &as_whom(token)).0, status, "{token} {query}");
    }
    assert!(select(&relay, "SHOW+DATABASES", &as_whom("abc")).1.contains("secret"));
    let (status, seen) = select(&relay, "SHOW+DATABASES", &as_whom("def"));
    assert!(status == 200 && seen.contains("telegraf") && !seen.contains("secret"), "{seen}");
    let sent = backend.requests();
    let of_query = sent.iter().filter(|request| request.uri.path() == "/query");
    assert!(of_query.clone().count() > 0 && of_query.into_iter().all(|one| one.headers.get("authorization").is_none()));
}

#[test]
fn the_clients_own_credentials_go_to_the_backend_as_it_takes_them() {
    let backend = answering(200, ROWS);
    let relay = Running::start(with_http(&[backend.url()]));
    relay.wait_state("a", "up");
    for (query, headers, expected) in [
        ("SELECT+v+FROM+m", "Authorization: Basic bWU6eA==\r\n", Some("Basic bWU6eA==")),
        ("SELECT+v+FROM+m", "Authorization: Token me:x\r\n", Some("Basic bWU6eA==")),
        ("SELECT+v+FROM+m&u=me&p=x", "Authorization: Basic b3RoZXI6eQ==\r\n", Some("Basic bWU6eA==")),
        ("SELECT+v+FROM+m", "Authorization: Bearer abc\r\n", Some("Bearer abc")),
        ("SELECT+v+FROM+m", "", None),
    ] {
        assert_eq!(select(&relay, query, headers).0, 200);
        let last = backend.requests().into_iter().rfind(|request| request.uri.path() == "/query").expect("a request");
        assert_eq!(last.headers.get("authorization").map(|value| value.to_str().expect("text")), expected);
        assert!(!String::from_utf8_lossy(&last.body).contains("p="), "no password goes on in a form");
    }
}

#[test]
fn what_one_backend_cannot_answer_another_one_does() {
    for (status, body) in [
        (503, "{\"error\":\"not now\"}"),
        (502, "<html>"),
        (200, "{\"results\":[{\"statement_id\":0,\"error\":\"max-concurrent-queries limit exceeded(1, 1)\"}]}\n"),
        (200, "{\"results\":[{\"statement_id\":0,\"error\":\"database not found: telegraf\"}]}\n"),
        (200, ""),
        (401, "{\"error\":\"unable to parse authentication credentials\"}"),
    ] {
        let (bad, good) = (answering(status, body), answering(200, ROWS));
        let relay = Running::start(with_http(&[bad.url(), good.url()]));
        ["a", "b"].iter().for_each(|name| relay.wait_state(name, "up"));
        for _ in 0..4 {
            let (status, answer) = select(&relay, "SELECT+v+FROM+m", "");
            assert_eq!((status, &*answer), (200, ROWS), "{body}");
        }
        assert!(queries(&good) >= 4);
    }
    // What is wrong with the question is wrong everywhere.
    let (bad, good) =
        (answering(400, "{\"error\":\"error parsing query\"}"), answering(400, "{\"error\":\"error parsing query\"}"));
    let relay = Running::start(with_http(&[bad.url(), good.url()]));
    ["a", "b"].iter().for_each(|name| relay.wait_state(name, "up"));
    assert_eq!(select(&relay, "SELECT+v+FROM+m", "").0, 400);
    assert_eq!(queries(&bad) + queries(&good), 1);
    // Both say no: the first one's words.
    let (one, other) = (answering(503, "{\"error\":\"one\"}"), answering(503, "{\"error\":\"one\"}"));
    let relay = Running::start(with_http(&[one.url(), other.url()]));
    ["a", "b"].iter().for_each(|name| relay.wait_state(name, "up"));
    assert_eq!(select(&relay, "SELECT+v+FROM+m", ""), (503, "{\"error\":\"one\"}".to_owned()));
}

/// A backend whose answers to queries are cut: in the head, behind it, or within the body.
fn cutting(answer: &'static str, count: &Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let (address, count) = (listener.local_addr().expect("address"), Arc::clone(count));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), count) = (stream, Arc::clone(&count)) else { return };
            std::thread::spawn(move || {
                let mut bytes = [0; 65_536];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    if bytes[..length].starts_with(b"POST /query") {
                        count.fetch_add(1, Ordering::Relaxed);
                        drop(stream.write_all(answer.as_bytes()));
                        return;
                    }
                    drop(stream.write_all(b"HTTP/1.1 204 No Content\r\nX-Influxdb-Version: 1.6.7\r\n\r\n"));
                }
            });
        }
    });
    address
}

#[test]
fn an_answer_that_is_cut_is_another_ones_before_its_first_byte_and_visibly_cut_after_it() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (answer, is_other) in [
        ("".to_owned(), true),
        ("HTTP/1.1 200 O".to_owned(), true),
        (head.to_owned(), true),
        (format!("{head}5\r\n"), true),
        (format!("{head}5\r\n{{\"res\r\n"), false),
    ] {
        let count = Arc::new(AtomicUsize::new(0));
        let bad = cutting(Box::leak(answer.clone().into_boxed_str()), &count);
        let good = answering(200, ROWS);
        let relay = Running::start(with_http(&[format!("http://{bad}"), good.url()]));
        ["a", "b"].iter().for_each(|name| relay.wait_state(name, "up"));
        // Which one is asked first is the source's place.
        let mut whole = 0;
        for _ in 0..2 {
            let mut stream = TcpStream::connect(relay.listener("http")).expect("connect");
            stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
            stream
                .write_all(b"GET /query?db=d&q=SELECT+v+FROM+m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .expect("send");
            let mut text = Vec::new();
            drop(stream.read_to_end(&mut text));
            let text = String::from_utf8_lossy(&text).into_owned();
            whole +=
                usize::from(text.contains(ROWS) && (text.ends_with("0\r\n\r\n") || text.contains("content-length")));
        }
        let asked = count.load(Ordering::Relaxed);
        assert_eq!(whole, if is_other { 2 } else { 2 - asked }, "{answer:?}, asked {asked} times");
        let read = relay.backend("a").read.expect("figures");
        assert_eq!(
            (read.failovers, read.cut),
            if is_other { (asked as u64, 0) } else { (0, asked as u64) },
            "{answer:?}"
        );
    }
}

#[test]
fn where_no_copy_is_complete_the_least_incomplete_one_answers_and_says_so_or_nobody() {
    for incomplete in [Incomplete::Serve, Incomplete::Refuse] {
        let alive = answering(200, ROWS);
        // It answers queries, and takes no lines.
        let sick = Scripted::start(|_, request| match request.uri.path() {
            "/query" => (200, Vec::new(), ROWS.to_owned()),
            "/write" => (503, Vec::new(), String::new()),
            _ => no_content(),
        });
        let mut config = with_http(&[sick.url(), alive.url()]);
        config.query.incomplete = incomplete;
        config.query.max_lag = Duration::from_millis(100);
        let relay = Running::start(config);
        relay.send(&["m v=1 1000000000\n"]);
        relay.wait_delivered("b", 1);
        wait_for("the lag", || (relay.backend("a").read.expect("figures").serves == "no").then_some(()));
        assert_eq!(select(&relay, "SELECT+v+FROM+m", "").0, 200, "b has it");
        assert_eq!(queries(&sick), 0);
        relay.change("b", BackendAction::NoReads);
        let all = select(&relay, "SELECT+v+FROM+m", "");
        // What ends before the first point that it lacks is answered by it.
        let old = select(&relay, "SELECT+v+FROM+m+WHERE+time+%3C+-10s", "");
        assert_eq!(old.0, 200);
        if incomplete == Incomplete::Refuse {
            assert!(all.0 == 503 && all.1.contains("no complete copy: a lag"), "{all:?}");
            assert_eq!(queries(&sick), 1);
        } else {
            assert_eq!((all.0, queries(&sick)), (200, 2));
            assert_eq!(relay.backend("a").read.expect("figures").incomplete, 1);
        }
        relay.change("b", BackendAction::Reads);
        assert_eq!(relay.backend("b").read.expect("figures").serves, "yes");
    }
}

#[test]
fn many_questions_wait_for_each_other_and_too_many_are_told() {
    let slow = Scripted::start(|_, request| {
        if request.uri.path() == "/query" {
            std::thread::sleep(Duration::from_millis(300));
            return (200, Vec::new(), ROWS.to_owned());
        }
        no_content()
    });
    let mut config = with_http(&[slow.url()]);
    config.query.max_concurrent = 1;
    let relay = Running::start(config);
    relay.wait_state("a", "up");
    let answers: Vec<u16> = std::thread::scope(|threads| {
        let asked: Vec<_> = (0..40).map(|_| threads.spawn(|| select(&relay, "SELECT+v+FROM+m", "").0)).collect();
        asked.into_iter().map(|one| one.join().expect("an answer")).collect()
    });
    let good = answers.iter().filter(|status| **status == 200).count();
    assert!((2..40).contains(&good) && answers.iter().all(|status| matches!(status, 200 | 503)), "{answers:?}");
    assert_eq!(queries(&slow), good);
}

#[test]
fn a_backend_that_is_silent_is_given_up_in_time() {
    let silent = Scripted::start(|_, request| {
        if request.uri.path() == "/query" {
            std::thread::sleep(Duration::from_secs(3));
        }
        no_content()
    });
    let mut config = with_http(&[silent.url()]);
    config.query.timeout = Duration::from_millis(200);
    let relay = Running::start(config);
    relay.wait_state("a", "up");
    let (status, text) = select(&relay, "SELECT+v+FROM+m", "");
    assert!(status == 504 && text.contains("[query] timeout"), "{status} {text}");
    // One that is not there at all.
    let relay = Running::start(with_http(&[format!("http://{}", free_address())]));
    let (status, text) = select(&relay, "SELECT+v+FROM+m", "");
    assert!(status == 503 && text.contains("\"error\""), "{status} {text}");
    assert_eq!(select(&relay, "SHOW+DATABASES", "").0, 200, "a writer that starts is not kept from it");
}

#[test]
fn a_backend_whose_address_has_changed_is_not_asked() {
    let folder = tempfile::tempdir().expect("folder");
    let [a, b, other] = [(); 3].map(|()| answering(200, ROWS));
    let mut config = with_http(&[a.url(), b.url()]);
    config.data_dir = folder.path().join("data");
    let mut relay = Running::start_in(config.clone());
    relay.send(&["m v=1 1\n"]);
    ["a", "b"].iter().for_each(|name| relay.wait_delivered(name, 1));
    relay.stop();
    let mut moved = with_http(&[a.url(), other.url()]);
    moved.data_dir.clone_from(&config.data_dir);
    let relay = Running::start_in(moved);
    relay.wait_state("a", "up");
    relay.wait_state("b", "held");
    for _ in 0..4 {
        assert_eq!(select(&relay, "SELECT+v+FROM+m", ""), (200, ROWS.to_owned()));
    }
    assert_eq!((queries(&a), queries(&other)), (4, 0));
}

#[test]
fn a_backend_that_lost_its_database_does_not_answer_for_what_was_in_it() {
    let is_gone = Arc::new(AtomicUsize::new(0));
    let gone = Arc::clone(&is_gone);
    let forgetful = Scripted::start(move |_, request| match request.uri.path() {
        "/query" => (200, Vec::new(), ROWS.to_owned()),
        "/write" if !request.body.is_empty() && gone.load(Ordering::Relaxed) > 0 => {
            gone.fetch_sub(1, Ordering::Relaxed);
            (404, Vec::new(), "{\"error\":\"database not found: \\\"telegraf\\\"\"}".to_owned())
        }
        _ => no_content(),
    });
    let good = answering(200, ROWS);
    let relay = Running::start(with_http(&[forgetful.url(), good.url()]));
    relay.send(&["m v=1 1\n"]);
    ["a", "b"].iter().for_each(|name| relay.wait_delivered(name, 1));
    assert_eq!(relay.status().journal.gaps, []);
    is_gone.store(1, Ordering::Relaxed);
    relay.send(&["m v=1 2\n"]);
    ["a", "b"].iter().for_each(|name| relay.wait_delivered(name, 2));
    let gaps = relay.status().journal.gaps;
    assert_eq!((gaps.len(), &*gaps[0].backend, &*gaps[0].reason), (1, "a", "made"));
    assert_eq!(relay.backend("a").read.expect("figures").serves, "no");
    assert_eq!(["a", "b"].map(|name| relay.backend(name).complete), [false, true]);
    let before = queries(&forgetful);
    assert_eq!(select(&relay, "SELECT+v+FROM+m", "").0, 200);
    assert_eq!(queries(&forgetful), before);
}

#[test]
fn a_client_that_leaves_ends_its_question_also_after_the_answers_head() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let left = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&left);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), seen) = (stream, Arc::clone(&seen)) else { return };
            std::thread::spawn(move || {
                let mut bytes = [0; 65_536];
                let mut is_asked = false;
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    is_asked |= bytes[..length].starts_with(b"POST /query");
                    let answer: &[u8] = if is_asked {
                        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"res\r\n"
                    } else {
                        b"HTTP/1.1 204 No Content\r\nX-Influxdb-Version: 1.6.7\r\n\r\n"
                    };
                    drop(stream.write_all(answer));
                }
                seen.fetch_add(usize::from(is_asked), Ordering::Relaxed);
            });
        }
    });
    let mut config = with_http(&[format!("http://{address}")]);
    config.query.timeout = Duration::from_secs(3600);
    let relay = Running::start(config);
    relay.wait_state("a", "up");
    let mut client = TcpStream::connect(relay.listener("http")).expect("connect");
    client.write_all(b"GET /query?db=d&q=SELECT+v+FROM+m HTTP/1.1\r\nHost: x\r\n\r\n").expect("send");
    let mut head = [0; 12];
    client.read_exact(&mut head).expect("the answer's head");
    assert_eq!((&head, left.load(Ordering::Relaxed)), (b"HTTP/1.1 200", 0));
    drop(client);
    wait_for("the backend to be left", || (left.load(Ordering::Relaxed) == 1).then_some(()));
}

#[test]
fn a_connection_serves_many_questions_whether_an_answers_length_is_told_or_not() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{\"a\":1}\r\n0\r\n\r\n",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let connections = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&connections);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(mut stream), seen) = (stream, Arc::clone(&seen)) else { return };
                std::thread::spawn(move || {
                    let (mut bytes, mut is_asked) = ([0; 65_536], false);
                    while let Ok(length @ 1..) = stream.read(&mut bytes) {
                        let is_query = bytes[..length].starts_with(b"POST /query");
                        seen.fetch_add(usize::from(is_query && !is_asked), Ordering::Relaxed);
                        is_asked |= is_query;
                        let other = "HTTP/1.1 204 No Content\r\nX-Influxdb-Version: 1.6.7\r\n\r\n";
                        drop(stream.write_all(if is_query { answer } else { other }.as_bytes()));
                    }
                });
            }
        });
        let relay = Running::start(with_http(&[format!("http://{address}")]));
        relay.wait_state("a", "up");
        for _ in 0..20 {
            let (status, text) = select(&relay, "SELECT+v+FROM+m", "");
            assert!(status == 200 && text.contains("{\"a\":1}"), "{status} {text}");
        }
        assert_eq!(connections.load(Ordering::Relaxed), 1, "{answer}");
    }
}

#[test]
fn a_readers_new_secret_needs_no_restart() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "old").expect("write");
    let backend = Scripted::start(|_, request| match request.uri.path() {
        "/query" if request.header("authorization") == "Token new" => (200, Vec::new(), ROWS.to_owned()),
        "/query" => (401, Vec::new(), "{\"error\":\"authorization failed\"}".to_owned()),
        _ => no_content(),
    });
    let mut config = with_http(&[backend.url()]);
    config.backend[0].query_token_file = Some(file.clone());
    let relay = Running::start(config);
    relay.wait_state("a", "up");
    assert_eq!(select(&relay, "SELECT+v+FROM+m", "").0, 401);
    std::fs::write(&file, "new").expect("write");
    assert_eq!(select(&relay, "SELECT+v+FROM+m", "").0, 401, "the old one is refused, and the file read again");
    assert_eq!(select(&relay, "SELECT+v+FROM+m", ""), (200, ROWS.to_owned()));
}
