//! What writers of HTTP send, what they are answered, and what of it arrives.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use twinflux::config::{Config, Http, Partial};

use crate::support::{Running, Scripted, config, no_content, wait_for};

/// An answer: its status, its head in lower case, its body.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answered {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let find = |line: &'_ str| line.split_once(": ").filter(|(key, _)| *key == name).map(|(_, value)| value.len());
        let line = self.head.lines().find(|line| find(line).is_some())?;
        line.split_once(": ").map(|(_, value)| value)
    }
}

/// A client's connection.
pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        Self(stream)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // One that was answered before its end is not read to its end.
        drop(self.0.write_all(bytes));
    }

    pub(crate) fn answer(&mut self) -> Answered {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while !bytes.ends_with(b"\r\n\r\n") {
            assert_eq!(self.0.read(&mut byte).expect("an answer"), 1, "{}", bytes.escape_ascii());
            bytes.push(byte[0]);
        }
        let head = String::from_utf8(bytes).expect("text").to_ascii_lowercase();
        let status = head[9..12].parse().expect("a status");
        let mut answered = Answered { status, head, body: String::new() };
        let length = answered.header("content-length").map_or(0, |length| length.parse().expect("a number"));
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("a body");
        answered.body = String::from_utf8(body).expect("text");
        answered
    }

    pub(crate) fn post(&mut self, target: &str, headers: &str, body: &[u8]) -> Answered {
        let head = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        self.send(&[head.as_bytes(), body].concat());
        self.answer()
    }

    pub(crate) fn is_closed(&mut self) -> bool {
        self.0.read(&mut [0]).is_ok_and(|count| count == 0)
    }
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).expect("memory");
    encoder.finish().expect("memory")
}

pub(crate) fn with_http(urls: &[String], http: Http) -> Config {
    let mut config = config(urls);
    config.http.push(Http { listen: ([127, 0, 0, 1], 0).into(), ..http });
    config
}

/// A relay with an HTTP listener and a backend that takes everything.
pub(crate) struct Door {
    pub(crate) relay: Running,
    backend: Scripted,
    address: SocketAddr,
}

impl Door {
    pub(crate) fn open(http: Http) -> Self {
        let backend = Scripted::start(|_, _| no_content());
        let relay = Running::start(with_http(&[backend.url()], http));
        let address = relay.listener("http");
        Self { relay, backend, address }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// What has arrived: the query of its request, and the lines, without what is asked without
    /// lines.
    pub(crate) fn stored(&self, lines: u64) -> Vec<(String, String)> {
        wait_for("the lines", || (self.relay.backend("a").delivered_lines == lines).then_some(()));
        let requests = self.backend.requests().into_iter().filter(|request| !request.text().is_empty());
        requests.map(|request| (request.uri.query().unwrap_or_default().to_owned(), request.text())).collect()
    }
}

#[test]
fn each_endpoint_writes_to_the_destination_that_it_names() {
    let door = Door::open(Http::default());
    let mut client = door.client();
    for (target, expected) in [
        ("/write?db=one", "db=one&precision=n"),
        ("/write?consistency=&db=two&precision=ms&rp=week", "db=two&rp=week&precision=ms"),
        ("/api/v2/write?org=-&bucket=three/month&precision=us", "db=three&rp=month&precision=u"),
        ("/api/v3/write_lp?db=four&precision=second", "db=four&precision=s"),
    ] {
        let answered = client.post(target, "Content-Type: application/json\r\n", b"m v=1 1\nm v=2 2");
        assert_eq!((answered.status, &*answered.body), (204, ""), "{target}");
        assert_eq!(answered.header("x-influxdb-version"), Some("1.8.10"));
        assert!(answered.header("request-id").is_some());
        wait_for(expected, || {
            let mut requests = door.backend.requests().into_iter();
            requests.find(|request| request.uri.query() == Some(expected) && request.text() == "m v=1 1\nm v=2 2\n")
        });
    }
    assert_eq!(door.stored(8).len(), 4);
    let status = door.relay.status();
    let receive = status.receive.iter().find(|receive| receive.kind == "http").expect("a listener");
    assert_eq!((receive.requests, receive.answers["204"], receive.lines, receive.connections), (4, 4, 8, 1));
}

#[test]
fn good_lines_are_taken_and_bad_ones_are_named() {
    let door = Door::open(Http::default());
    let body = b"m v=1 1\nbad\n# a comment\n\nm v=2 2\nm v= 3\n";
    let answered = door.client().post("/write?db=d", "", body);
    assert_eq!(answered.status, 400);
    let text = "partial write: unable to parse 'bad': missing fields\\nunable to parse 'm v= 3': invalid field format dropped=2";
    assert_eq!(answered.body, format!("{{\"error\":\"{text}\"}}\n"));
    assert_eq!(answered.header("content-type"), Some("application/json"));
    let answered = door.client().post("/api/v2/write?bucket=d", "", body);
    assert_eq!(answered.body, format!("{{\"code\":\"invalid\",\"message\":\"{text}\"}}\n"));
    assert_eq!(answered.header("x-platform-error-code"), Some("invalid"));
    let answered = door.client().post("/api/v3/write_lp?db=d", "", body);
    assert!(
        answered.body.contains(r#""line_number":2"#)
            && answered.body.contains("partial write of line protocol occurred")
    );
    let answered = door.client().post("/write?db=d", "", b"bad\n");
    assert_eq!(answered.body, "{\"error\":\"unable to parse 'bad': missing fields\"}\n");
    // Nothing, if that is wanted.
    let answered = door.client().post("/api/v3/write_lp?db=d&accept_partial=false", "", body);
    assert!(answered.status == 400 && answered.body.contains("parsing failed for write_lp endpoint"), "{answered:?}");
    let answered = door.client().post("/api/v3/write_lp?db=d&accept_partial=false", "", b"m v=1 9");
    assert_eq!(answered.status, 204);
    door.stored(7);

    let door = Door::open(Http { partial: Partial::Accept, ..Http::default() });
    let answered = door.client().post("/write?db=d", "", body);
    assert_eq!((answered.status, answered.header("x-twinflux-rejected")), (204, Some("2")));
    door.stored(2);
}

#[test]
fn a_body_is_read_however_it_comes() {
    let door = Door::open(Http { database: "d".to_owned(), ..Http::default() });
    let mut client = door.client();
    let lines = b"m v=1 1\nm v=2 2\n";
    let members = [gzip(b"m v=1 1\nm v="), gzip(b"2 2\n")].concat();
    for (headers, body) in [
        ("", &lines[..]),
        ("", b"m v=1 1\r\nm v=2 2"),
        ("Content-Encoding: gzip\r\n", &gzip(lines)),
        ("Content-Encoding: X-GZIP\r\n", &members),
        ("Content-Encoding: identity\r\n", lines),
        ("Authorization: Basic cm9vdDpyb290\r\n", lines),
        ("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", lines),
    ] {
        let answered = client.post("/write", headers, body);
        assert_eq!(answered.status, 204, "{headers}");
    }
    client.send(b"POST /write HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nm v=1\r\n8\r\n 1\nm v=2\r\n3\r\n 2\n\r\n0\r\n\r\n");
    assert_eq!(client.answer().status, 204);
    client.send(b"POST /write HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 16\r\n\r\n");
    assert_eq!(client.answer().status, 100);
    client.send(lines);
    assert_eq!(client.answer().status, 204);
    // Two at once, answered in order.
    let request = b"POST /write HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\nm v=1 1\nm v=2 2\n";
    client.send(&request.repeat(2));
    assert_eq!((client.answer().status, client.answer().status), (204, 204));
    // An old client, and one that says no more after its request.
    for last in [&b"POST /write HTTP/1.0\r\nContent-Length: 16\r\n\r\nm v=1 1\nm v=2 2\n"[..], request] {
        let mut client = door.client();
        client.send(last);
        client.0.shutdown(Shutdown::Write).expect("shut down");
        assert_eq!(client.answer().status, 204);
        assert!(client.is_closed());
    }
    assert!(door.stored(26).iter().all(|(_, text)| text.replace("m v=1 1\nm v=2 2\n", "").is_empty()));
    // Nothing at all is nothing wrong.
    assert_eq!(client.post("/write", "", b"").status, 204);
    assert_eq!(client.post("/write", "Content-Encoding: gzip\r\n", b"").status, 204);
}

#[test]
fn a_body_that_ends_early_leaves_its_whole_lines_and_no_answer() {
    let door = Door::open(Http { database: "d".to_owned(), ..Http::default() });
    for cut in [
        &b"POST /write HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nm v=1 1\nm v=2 2"[..],
        b"POST /write HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nf\r\nm v=1 1\nm v=2 2\r\n",
    ] {
        let mut client = door.client();
        client.send(cut);
        client.0.shutdown(Shutdown::Both).expect("shut down");
    }
    assert!(door.stored(2).iter().all(|(_, text)| text.replace("m v=1 1\n", "").is_empty()));
    wait_for("the cut lines", || {
        let status = door.relay.status();
        (status.receive.iter().any(|receive| receive.refused["truncated"] == 2)).then_some(())
    });
}

#[test]
fn lines_without_a_timestamp_get_one_each() {
    let door = Door::open(Http { database: "d".to_owned(), ..Http::default() });
    assert_eq!(door.client().post("/write?precision=ms", "", b"m v=1\nm v=2\nm v=3 7\n").status, 204);
    let text: String = door.stored(3).into_iter().map(|(_, text)| text).collect();
    let times: Vec<u64> =
        text.lines().map(|line| line.rsplit(' ').next().expect("a time").parse().expect("a number")).collect();
    assert_eq!((times[1], times[2]), (times[0] + 1, 7), "{text}");
    assert!((1_700_000_000_000..4_000_000_000_000).contains(&times[0]), "milliseconds: {text}");
}

#[test]
fn what_cannot_be_taken_is_refused_with_a_sentence() {
    let door = Door::open(Http {
        databases: vec!["good".to_owned(), "net*".to_owned()],
        max_databases: 2,
        max_body: bytesize::ByteSize::kib(64),
        query: false,
        ..Http::default()
    });
    let bomb = gzip(&vec![b'\n'; 10 << 20]);
    let line = b"m v=1 1\n";
    for (target, headers, body, status, sentence) in [
        ("/write", "", &line[..], 400, "database is required"),
        ("/api/v2/write?org=x", "", line, 404, "bucket not found"),
        ("/write?db=evil", "", line, 403, "database \"evil\" is not served by this relay"),
        ("/write?db=good&precision=x", "", line, 400, "invalid precision \"x\""),
        ("/write?db=good&consistency=x", "", line, 400, "invalid consistency level"),
        ("/write?db=good", "Content-Encoding: br\r\n", line, 415, "unsupported content encoding"),
        ("/write?db=good", "Content-Encoding: gzip\r\n", line, 400, "unable to parse gzip body"),
        ("/write?db=good", "Content-Encoding: gzip\r\n", &gzip(line)[..20], 400, "unable to parse gzip body"),
        ("/write?db=good", "Content-Encoding: gzip\r\n", &bomb, 413, "Request Entity Too Large"),
        ("/write?db=good", "", &vec![b'\n'; 70_000], 413, "a body may have 65536 bytes"),
        ("/elsewhere", "", line, 404, "path not found"),
        ("/api/v2/delete?bucket=good", "", line, 404, "only /api/v2/write is answered here"),
        ("/query?q=SELECT+1", "", b"", 400, "answers no queries here"),
    ] {
        let answered = door.client().post(target, headers, body);
        assert_eq!(answered.status, status, "{target} {answered:?}");
        assert!(answered.body.contains(sentence) || answered.body.replace('\\', "").contains(sentence), "{answered:?}");
        assert_eq!(answered.header("retry-after"), None);
    }
    // What an operator mends is no JSON: Telegraf keeps its lines then.
    let answered = door.client().post("/write?db=evil", "", line);
    assert_eq!(answered.header("content-type"), Some("text/plain; charset=utf-8"));
    for name in ["good", "netdata"] {
        assert_eq!(door.client().post(&format!("/write?db={name}"), "", line).status, 204);
    }
    let answered = door.client().post("/write?db=net2", "", line);
    assert!(answered.status == 403 && answered.body.contains("one more than this relay serves"), "{answered:?}");
    door.stored(2);
}

#[test]
fn what_a_proxy_could_read_in_another_way_is_refused() {
    let door = Door::open(Http { database: "d".to_owned(), ..Http::default() });
    let smuggled = "0\r\n\r\nPOST /write HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nm v=1 1\n";
    for headers in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Content-Length: 4\r\nContent-Length: 5\r\n",
        "Content-Length: +4\r\n",
        "Content-Length: 4, 4\r\n",
        "Transfer-Encoding : chunked\r\n",
    ] {
        let mut client = door.client();
        client.send(format!("POST /write HTTP/1.1\r\nHost: x\r\n{headers}\r\n{smuggled}").as_bytes());
        assert_eq!(client.answer().status, 400, "{headers}");
        assert!(client.is_closed(), "{headers}");
    }
    for request in [
        "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST http://other/write?db=d HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    ] {
        let mut client = door.client();
        client.send(request.as_bytes());
        assert_eq!(client.answer().status, 400, "{request}");
    }
    assert_eq!(door.relay.status().accepted_lines, 0);
}

#[test]
fn what_writers_ask_at_their_start_is_answered() {
    let door = Door::open(Http { database: "d".to_owned(), query: false, ..Http::default() });
    let mut client = door.client();
    for (request, status, part) in [
        ("GET /ping", 204, ""),
        ("HEAD /ping?wait_for_leader=5s", 204, ""),
        ("GET /ping?verbose=true", 200, "{\"version\":\"1.8.10\"}"),
        ("GET /health", 200, "\"status\":\"pass\""),
        ("GET /ready", 200, "\"status\":\"ready\""),
        ("GET /query?q=SHOW+DATABASES", 200, "\"values\":[[\"d\"]]"),
        ("GET /write?db=d", 405, "allow: OPTIONS, POST"),
        ("OPTIONS /write", 200, ""),
    ] {
        client.send(
            format!("{request} HTTP/1.1\r\nHost: x\r\nOrigin: http://page\r\nX-Request-Id: mine\r\n\r\n").as_bytes(),
        );
        let answered = client.answer();
        assert_eq!(answered.status, status, "{request}");
        assert!(answered.body.contains(part), "{answered:?}");
        assert_eq!(answered.header("access-control-allow-origin"), Some("http://page"));
        assert_eq!(answered.header("request-id"), Some("mine"));
    }
}

#[test]
fn exporters_of_other_systems_post_their_lines() {
    let door = Door::open(Http { database: "d".to_owned(), ..Http::default() });
    let body = b"netdata.web.system.cpu.user 1.5 1795400976\nnetdata.web.system.cpu.system 2.5 1795400976\n";
    assert_eq!(door.client().post("/api/put", "Content-Type: application/graphite\r\n", body).status, 204);
    let text: String = door.stored(2).into_iter().map(|(_, text)| text).collect();
    assert_eq!(text.lines().next(), Some("netdata.web.system.cpu.user value=1.5 1795400976000000000"));
}

#[test]
fn lists_of_json_are_taken_object_by_object() {
    let door = Door::open(Http { database: "d".to_owned(), ..Http::default() });
    let opentsdb = b"[\n{\"metric\":\"sys.cpu\",\"timestamp\":1795400726,\"value\":1.5,\"tags\":{\"host\":\"web\"}},\n{\"metric\":\"sys.load\",\"timestamp\":1795400726,\"value\":2,\"tags\":{\"host\":\"web\"}}]";
    assert_eq!(door.client().post("/api/put?details", "Content-Type: application/json\r\n", opentsdb).status, 204);
    let netdata = b"[\n{\"prefix\":\"netdata\",\"hostname\":\"web\",\"chart_name\":\"system.cpu\",\"name\":\"user\",\"value\":3.5,\"timestamp\":1795400726}\n]\n";
    assert_eq!(door.client().post("/api/put", "Content-Encoding: gzip\r\n", &gzip(netdata)).status, 204);
    // What Netdata asks with at its start.
    assert_eq!(door.client().post("/api/put", "", b"[\n\n]\n").status, 204);
    let text: String = door.stored(3).into_iter().map(|(_, text)| text).collect();
    for line in
        ["sys.cpu,host=web value=1.5 1795400726000000000", "sys.load,host=web value=2 1795400726000000000", "value=3.5"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    let answered =
        door.client().post("/api/put", "", b"[{\"metric\":1},{\"metric\":\"a\",\"timestamp\":1,\"value\":1}]");
    assert!(answered.status == 400 && answered.body.contains("dropped=1"), "{answered:?}");
}

#[test]
fn what_finds_no_room_is_told_before_its_body_is_read() {
    let mut config =
        with_http(&["http://127.0.0.1:1".to_owned()], Http { database: "d".to_owned(), ..Http::default() });
    config.journal.durability = twinflux::journal::Durability::Memory;
    config.journal.memory = bytesize::ByteSize::mib(1);
    let relay = Running::start(config);
    let body: String = (0..2_000).map(|n| format!("m v={n} {n}\n")).collect();
    let mut client = Client::new(relay.listener("http"));
    // Once the memory is full, and nothing has made room for some seconds.
    let refused = wait_for("an answer", || {
        let answered = client.post("/write", "", body.as_bytes());
        (answered.status != 204).then_some(answered)
    });
    assert_eq!((refused.status, refused.header("retry-after")), (503, None));
    assert!(refused.body.contains("out of space for new data"), "{refused:?}");
    let status = relay.status();
    let receive = status.receive.iter().find(|receive| receive.kind == "http").expect("a listener");
    assert!(receive.answers["503"] > 0);
    assert_eq!(Client::new(relay.listener("http")).post("/health", "", b"").status, 405);
}

#[test]
fn a_stop_answers_what_is_under_way() {
    let door = Door::open(Http { database: "d".to_owned(), ..Http::default() });
    let (mut idle, mut busy) = (door.client(), door.client());
    assert_eq!(idle.post("/write", "", b"m v=1 1\n").status, 204);
    busy.send(b"POST /write HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\nm v=1 2\n");
    wait_for("its beginning", || (door.relay.status().accepted_lines == 2).then_some(()));
    let Door { mut relay, backend, .. } = door;
    let stopping = std::thread::spawn(move || relay.stop());
    assert!(idle.is_closed());
    busy.send(b"m v=1 3\n");
    assert_eq!(busy.answer().status, 204);
    let last = stopping.join().expect("it stops");
    assert_eq!(last.backends[0].delivered_lines, 3);
    assert!(backend.requests().iter().any(|request| request.text().contains("m v=1 3")));
}
