//! Requests of curl, the `influx` shell and Telegraf, through the program into two real InfluxDBs,
//! and straight to a third one: status, the headers that clients look at, the body's text, and what
//! is stored.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::clients::{Stand, lines};
use crate::support::LIMIT;

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).expect("memory");
    encoder.finish().expect("memory")
}

/// An answer, without what is another one each time.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    /// Those that clients look at, sorted.
    headers: Vec<(String, String)>,
    body: String,
}

/// The headers that clients look at.
const HEADERS: [&str; 6] = [
    "content-type",
    "x-influxdb-version",
    "x-influxdb-build",
    "x-influxdb-error",
    "access-control-allow-origin",
    "access-control-expose-headers",
];

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
        if head.starts_with("HTTP/1.1 100 ") {
            return Self::parse(body);
        }
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        let headers = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
        let mut headers: Vec<_> = headers.filter(|(name, _)| HEADERS.contains(&name.as_str())).collect();
        headers.sort();
        Self { status, headers, body: body.to_owned() }
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n", self.status);
        for (name, value) in &self.headers {
            writeln!(text, "{name}: {value}").expect("memory");
        }
        text + &self.body
    }
}

/// What curl is answered.
fn curl(address: SocketAddr, arguments: &[&str], target: &str) -> Answer {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--noproxy", "*", "--include"]).args(arguments);
    let output =
        command.arg(format!("http://{address}{target}")).output().expect("curl: install Debian's package curl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Answer::parse(&String::from_utf8_lossy(&output.stdout))
}

/// A request of curl's: its arguments, and its target.
type Asked<'a> = (&'a [&'a str], &'a str);

#[test]
fn curl_is_answered_as_influxdb_answers() {
    let stand = Stand::new("");
    let one = "m,host=a v=1 1";
    let origin = &["--header", "Origin: http://page"][..];
    let same: [Asked<'_>; 19] = [
        (&[], "/ping"),
        (&["--head"], "/ping"),
        (&[], "/ping?wait_for_leader=1s"),
        (origin, "/ping"),
        (&["--data-binary", one], "/write?db=telegraf"),
        (&["--data-binary", "m,host=b v=1 1\n"], "/write?db=telegraf&rp=autogen&precision=ns&consistency="),
        (&["--data-binary", "m,host=c v=1 1"], "/write?db=telegraf&rp=&precision=&consistency=all&u=me&p=secret"),
        (&["--data-binary", "m,unit=u v=1 1500000000000000"], "/write?db=telegraf&precision=u"),
        (&["--data-binary", "m,unit=ms v=1 1500000000000"], "/write?db=telegraf&precision=ms"),
        (&["--data-binary", "m,unit=s v=1 1500000000"], "/write?db=telegraf&precision=s"),
        (&["--data-binary", "m,unit=m v=1 25000000"], "/write?db=telegraf&precision=m"),
        (&["--data-binary", "m,unit=h v=1 416666"], "/write?db=telegraf&precision=h"),
        (&["--user", "root:root", "--data-binary", "m,host=d v=1 1\n"], "/write?db=telegraf"),
        (&["--header", "Content-Type: application/json", "--data-binary", "m,host=e v=1 1"], "/write?db=telegraf"),
        (&["--http1.0", "--data-binary", "m,host=f v=1 1"], "/write?db=telegraf"),
        (&["--header", "Transfer-Encoding: chunked", "--data-binary", "m,host=g v=1 1"], "/write?db=telegraf"),
        (&["--request", "POST"], "/write?db=telegraf"),
        (&["--data-binary", one], "/write"),
        (&["--data-binary", "bad\nm,host= v=1\nm v"], "/write?db=telegraf"),
    ];
    for (arguments, target) in same {
        let [through, direct] = [stand.door, stand.direct.address].map(|address| curl(address, arguments, target));
        assert_eq!(through.text(), direct.text(), "{arguments:?} {target}");
    }
    // What differs: what the server says, what the program says.
    let differ: [(Asked<'_>, &str, &str); 11] = [
        ((&["--data-binary", "cr v=1 1\r\n"], "/write?db=other"), "database not found", "204\n"),
        (
            (&["--data-binary", "m,host=h v=1 1\nbad\nm,host=i v=1 1"], "/write?db=telegraf"),
            "partial write: unable to parse 'bad': missing fields dropped=0",
            "partial write: unable to parse 'bad': missing fields dropped=1",
        ),
        ((&["--data-binary", "elsewhere v=1 1"], "/write?db=other"), "404\n", "204\n"),
        ((&[], "/ping?verbose=true"), "204\n", "{\"version\":\"1.6.7"),
        ((&["--data-binary", ""], "/write?db=telegraf&precision=x"), "204\n", "invalid precision"),
        ((&["--data-binary", one], "/write?db=telegraf&consistency=x"), "invalid consistency level", "400\n"),
        ((&[], "/write?db=telegraf"), "405\n", "405\n"),
        ((&[], "/nothing"), "404\n", "404\n"),
        ((&["--header", "Content-Encoding: br", "--data-binary", ""], "/write?db=telegraf"), "204\n", "415\n"),
        ((&["--header", "Accept: application/csv", "--data-binary", "bad"], "/write?db=telegraf"), "text/csv", "json"),
        ((&[], "/query?q=SHOW+DATABASES"), "[\"telegraf\"]", "[\"telegraf\"]"),
    ];
    for ((arguments, target), server, program) in differ {
        let [through, direct] =
            [stand.door, stand.direct.address].map(|address| curl(address, arguments, target).text());
        assert!(direct.contains(server) && through.contains(program), "{target}\n{direct}\n{through}");
    }
    // The number of a request is repeated, and there is one in any case.
    for number in ["X-Request-Id", "Request-Id"] {
        for address in [stand.door, stand.direct.address] {
            let head = format!("GET /ping HTTP/1.0\r\n{number}: mine\r\n\r\n");
            let answer = exchange(&mut TcpStream::connect(address).expect("connect"), head.as_bytes());
            let answer = answer.to_ascii_lowercase();
            assert!(answer.contains("\r\nrequest-id: mine") && answer.contains("\r\nx-request-id: mine"), "{answer}");
        }
    }
    stand.assert_stored(Some("other"));
}

#[test]
fn curl_sends_files_compressed_and_in_chunks() {
    let stand = Stand::new("");
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    // More than curl sends without asking first.
    let text = lines("large", 50_000, 1_000_000_000);
    std::fs::write(path("text"), &text).expect("write");
    std::fs::write(path("gzip"), gzip(&text.replace("large", "zipped"))).expect("write");
    let (plain, zipped) = (format!("@{}", path("text")), format!("@{}", path("gzip")));
    let requests: [&[&str]; 3] = [
        &["--data-binary", &plain],
        &["--header", "Content-Encoding: gzip", "--data-binary", &zipped],
        &["--header", "Transfer-Encoding: chunked", "--header", "Content-Encoding: gzip", "--data-binary", &zipped],
    ];
    for arguments in requests {
        let [through, direct] =
            [stand.door, stand.direct.address].map(|address| curl(address, arguments, "/write?db=telegraf"));
        assert_eq!((&through, through.status), (&direct, 204));
    }
    stand.assert_stored(None);
}

/// What the `influx` shell says.
fn shell(address: SocketAddr, arguments: &[&str]) -> String {
    let mut command = Command::new("influx");
    command.args(["-host", "127.0.0.1", "-port", &address.port().to_string(), "-database", "telegraf"]);
    let output = command.args(arguments).output().expect("influx: install Debian's package influxdb-client");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    // Its log begins each line with the time.
    said.lines()
        .map(|line| line.trim_start_matches(|c: char| " /:".contains(c) || c.is_ascii_digit()).to_owned() + "\n")
        .collect()
}

#[test]
fn the_shell_writes_as_to_influxdb() {
    let stand = Stand::new("");
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("import").display().to_string();
    let text = format!("# DML\n# CONTEXT-DATABASE: telegraf\n{}", lines("imported", 1000, 1));
    std::fs::write(&path, &text).expect("write");
    let zipped = format!("{path}.gz");
    std::fs::write(&zipped, gzip(&text.replace("imported", "zipped"))).expect("write");
    let calls: [(&[&str], &str); 8] = [
        (&["-execute", "INSERT m,host=a v=1 1500000000000000000"], ""),
        (&["-execute", "INSERT INTO autogen m,host=b v=1 1500000000000000000"], ""),
        (&["-precision", "s", "-execute", "INSERT m,host=c v=1 1500000000"], ""),
        (&["-consistency", "any", "-execute", "INSERT m,host=d v=1 1500000000000000000"], ""),
        (&["-execute", "INSERT bad"], "unable to parse 'bad': missing fields"),
        (&["-import", "-path", &path, "-precision", "s"], "Processed 1000 inserts"),
        (&["-import", "-compressed", "-path", &zipped, "-precision", "s"], "Failed 0 inserts"),
        (&["-execute", "SHOW DATABASES"], "telegraf"),
    ];
    for (arguments, says) in calls {
        let [through, direct] = [stand.door, stand.direct.address].map(|address| shell(address, arguments));
        assert_eq!(through, direct, "{arguments:?}");
        assert!(through.contains(says), "{through}");
    }
    stand.assert_stored(None);
}

/// Sends a request on a connection, and reads its answer, which has a length or no body.
fn exchange(stream: &mut TcpStream, request: &[u8]) -> String {
    stream.set_read_timeout(Some(LIMIT)).expect("a time-out");
    stream.write_all(request).expect("send");
    let (mut answer, mut byte) = (Vec::new(), [0]);
    let mut rest = usize::MAX;
    while rest > 0 && stream.read(&mut byte).expect("an answer") > 0 {
        answer.push(byte[0]);
        if rest < usize::MAX {
            rest -= 1;
        } else if answer.ends_with(b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&answer).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            rest = length.map_or(0, |length| length.parse().expect("a number"));
        }
    }
    String::from_utf8(answer).expect("text")
}

/// A body in chunks, as Go sends what it compresses on the way.
fn chunked(body: &[u8]) -> Vec<u8> {
    let chunk = |piece: &[u8]| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
    let mut bytes: Vec<u8> = body.chunks(2048).flat_map(chunk).collect();
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

/// Telegraf's outputs of 1.x, 2.x and 3.x: their heads as they send them, a batch on one connection
/// after the other.
#[test]
fn telegrafs_requests_are_taken_on_one_connection() {
    let stand = Stand::new("");
    let host = stand.door;
    let telegraf = "User-Agent: Telegraf/1.35.0 Go/1.24.3";
    let heads = [
        format!(
            "POST /write?consistency=any&db=telegraf HTTP/1.1\r\nHost: {host}\r\n{telegraf}\r\nTransfer-Encoding: chunked\r\n\
             Content-Encoding: gzip\r\nContent-Type: text/plain; charset=utf-8\r\nAccept-Encoding: gzip\r\n\r\n"
        ),
        format!(
            "POST /write?db=telegraf&rp=autogen HTTP/1.1\r\nHost: {host}\r\n{telegraf}\r\nTransfer-Encoding: chunked\r\n\
             Authorization: Basic cm9vdDpyb290\r\nContent-Encoding: gzip\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Accept-Encoding: gzip\r\n\r\n"
        ),
        format!(
            "POST /api/v2/write?bucket=telegraf&org=org HTTP/1.1\r\nHost: {host}\r\n{telegraf}\r\nTransfer-Encoding: chunked\r\n\
             Authorization: Token secret\r\nContent-Encoding: gzip\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Accept-Encoding: gzip\r\n\r\n"
        ),
        format!(
            "POST /api/v3/write_lp?db=telegraf HTTP/1.1\r\nHost: {host}\r\n{telegraf}\r\nTransfer-Encoding: chunked\r\n\
             Authorization: Bearer secret\r\nContent-Encoding: gzip\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Accept-Encoding: gzip\r\n\r\n"
        ),
    ];
    for (number, head) in heads.iter().enumerate() {
        let mut stream = TcpStream::connect(host).expect("connect");
        for batch in 0..3 {
            let text = lines(&format!("telegraf_{number}_{batch}"), 1000, 1_000_000_000);
            let answer = exchange(&mut stream, &[head.as_bytes(), &chunked(&gzip(&text))].concat());
            assert!(answer.starts_with("HTTP/1.1 204 No Content\r\n"), "{head}{answer}");
            stand.write_direct(&text, "n");
        }
        // What it drops: only the bad line, of which it reads in JSON.
        let text = format!("telegraf_{number} v=1 1\nbad\ntelegraf_{number} v=2 2\n");
        let answer = exchange(&mut stream, &[head.as_bytes(), &chunked(&gzip(&text))].concat());
        let body = answer.split_once("\r\n\r\n").expect("a body").1;
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert!(answer.starts_with("HTTP/1.1 400 ") && body.to_string().contains("partial write"), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("retry-after"));
        stand.write_direct(&text.replace("bad\n", ""), "n");
    }
    stand.assert_stored(None);
}
