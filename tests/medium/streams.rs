//! Streams: what arrives however it is cut, in which format, and what is refused of it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use bytesize::ByteSize;
use twinflux::config::{DefaultTags, Format, Mapping, NamedMapping, Tcp};

use crate::captures;
use crate::support::{Running, Scripted, free_address, no_content, wait_for};
use crate::tcp::{acked, connect, receive, sorted, with_tcp};

#[test]
fn every_format_is_told_apart_by_its_connections_first_line() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp::default()));
    for text in [
        "# a comment\n\ncpu,host=a usage=1.5 1\ncpu,host=a usage=2.5 2\r\n",
        "a.b;role=web 1.5 1\na.b 2.5 2\r\n",
        "put a.c 1 1.5 host=h\nput a.c 2001 2.5 host=h \n",
        "{\"prefix\":\"netdata\",\"hostname\":\"h\",\"chart_name\":\"x.y\",\"name\":\"z\",\"value\":1,\"timestamp\": 1}\n",
    ] {
        connect(&relay).write_all(text.as_bytes()).expect("send");
    }
    let status = acked(&relay, 4);
    let expected = "cpu,host=a usage=1.5 1\ncpu,host=a usage=2.5 2\na.b,role=web value=1.5 1000000000\na.b value=2.5 2000000000\n\
                    a.c,host=h value=1.5 1000000000\na.c,host=h value=2.5 2001000000000\nnetdata.x.y.z,host=h value=1 1000000000\n";
    assert_eq!(sorted(&backend.text()), sorted(expected));
    assert_eq!((status.receive[1].lines, status.receive[1].converted, status.accepted_lines), (7, 5, 7));
    assert_eq!(status.receive[1].refused.values().sum::<u64>(), 0);
}

#[test]
fn tags_that_are_none_cost_no_value_and_are_counted() {
    let backend = Scripted::accepting();
    let mapping = Mapping::Templates(vec!["a.* .measurement*.field".to_owned()]);
    let tags = DefaultTags::List(vec!["dc=eu".to_owned()]);
    let relay = Running::start(with_tcp(&backend, Tcp { mapping, tags, separator: "_".to_owned(), ..Tcp::default() }));
    for text in ["put disk 1 5 host=h nico\nput disk 2 5 =x host=h\n", "a.b.c.d;t 1.5 1\na.b.c;=1;dc=us 2.5 2\n"] {
        connect(&relay).write_all(text.as_bytes()).expect("send");
    }
    let status = acked(&relay, 2);
    let expected = "disk,host=h,dc=eu value=5 1000000000\ndisk,host=h,dc=eu value=5 2000000000\n\
                    b_c,dc=eu d=1.5 1000000000\nb,dc=us c=2.5 2000000000\n";
    assert_eq!(sorted(&backend.text()), sorted(expected));
    assert_eq!((status.receive[1].converted, status.receive[1].ignored_tags), (4, 4));
    assert_eq!((status.receive[0].ignored_tags, status.receive[1].refused.values().sum::<u64>()), (0, 0));
    assert!(status.to_text().contains("4 tags had no key or no ="), "{}", status.to_text());
    let metrics = relay.get("/metrics").1;
    assert!(
        metrics
            .lines()
            .any(|line| line.starts_with("twinflux_ignored_tags_total{kind=\"tcp\"") && line.ends_with(" 4"))
    );
}

#[test]
fn captured_streams_arrive_whole_however_they_are_cut() {
    let backend = Scripted::accepting();
    let mapping = Mapping::Named(NamedMapping::Netdata);
    let relay = Running::start(with_tcp(&backend, Tcp { mapping, netdata_host_parts: 2, ..Tcp::default() }));
    let stream = captures::frames("netdata-graphite-tcp-all").concat();
    let stream = &stream[..200_000];
    let whole = stream.iter().rposition(|byte| *byte == b'\n').expect("lines") + 1;
    let lines = stream.iter().filter(|byte| **byte == b'\n').count() as u64;
    for (connection, size) in (1_u64..).zip([1 << 20, 65_536, 10_007, 997]) {
        let mut socket = connect(&relay);
        socket.set_nodelay(true).expect("no delay");
        for piece in stream.chunks(size) {
            socket.write_all(piece).expect("send");
        }
        drop(socket);
        let receive = acked(&relay, connection).receive[1].clone();
        // The end without a line feed is counted, and never read.
        assert!(whole < stream.len());
        assert_eq!((receive.converted, receive.refused["truncated"]), (connection * lines, connection));
        assert_eq!(receive.bytes, connection * stream.len() as u64);
        assert_eq!(receive.refused.values().sum::<u64>(), connection);
    }
    // However it was cut, each connection brought the same values: a field more or less in a line
    // does not matter.
    let mut values: Vec<String> = Vec::new();
    for line in backend.text().lines() {
        let (series, rest) = line.split_once(' ').expect("a series");
        let (fields, time) = rest.split_once(' ').expect("a time");
        values.extend(fields.split(',').map(|field| format!("{series} {field} {time}")));
    }
    assert_eq!(values.len() as u64, 4 * lines);
    values.sort_unstable();
    assert!(values.chunks(4).all(|four| four.iter().all(|value| *value == four[0])));
}

#[test]
fn too_long_lines_are_skipped_and_counted() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp::default()));
    let mut socket = connect(&relay);
    socket.write_all(b"a.b 1 1\n").expect("send");
    socket.write_all(&vec![b'x'; 1 << 20]).expect("send");
    socket.write_all(b"\na.b 2 2\n").expect("send");
    drop(socket);
    let status = acked(&relay, 1);
    assert_eq!(backend.text(), "a.b value=1 1000000000\na.b value=2 2000000000\n");
    assert_eq!((status.receive[1].refused["too_long"], status.receive[1].lines), (1, 3));
}

#[test]
fn longer_lines_are_taken_where_the_listener_says_so() {
    let backend = Scripted::accepting();
    let tcp = Tcp { max_line: ByteSize::mib(1), ..Tcp::default() };
    let mut relay = Running::start(with_tcp(&backend, tcp));
    let line = |length: usize| format!("log,host=a message=\"{}\" 7\n", "x".repeat(length));
    let text = line(70_000) + &line(1) + &line((1 << 20) - 24) + &line(1 << 20) + &line(2);
    connect(&relay).write_all(text.as_bytes()).expect("send");
    let status = acked(&relay, 1);
    assert_eq!((status.receive[1].refused["too_long"], status.accepted_lines), (1, 4));
    assert!(sorted(&backend.text()) == sorted(&text.replace(&line(1 << 20), "")));
    // A record of this size is written to the disk, and found there.
    let address = free_address();
    let mut config = with_tcp(&backend, Tcp { max_line: ByteSize::mib(1), ..Tcp::default() });
    config.backend[0].url = format!("http://{address}").parse().expect("a URL");
    config.data_dir = relay.folder.path().join("other");
    let mut failing = Running::start_in(config);
    connect(&failing).write_all(text.as_bytes()).expect("send");
    wait_for("the lines", || (failing.status().accepted_lines == 4).then_some(()));
    failing.stop();
    relay.stop();
    let backend = Scripted::start_at(address, |_, _| no_content());
    let mut config = with_tcp(&backend, Tcp::default());
    config.data_dir = relay.folder.path().join("other");
    let again = Running::start_in(config);
    wait_for("the rest", || (again.backend("a").pending_lines == 0).then_some(()));
    assert_eq!((again.backend("a").recovered_lines, again.backend("a").delivered_lines), (4, 4));
}

#[test]
fn strings_with_line_feeds_arrive_whole_however_they_are_cut() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp::default()));
    let text = "docker_log,host=a message=\"panic: boom\ngoroutine id=1\nmain.go line=42\n\" 7\ncpu v=1 7\n\
                log,host=a message=\"a.b 1 7\n\ncpu v=2 7\n\\\"\n\",code=1i 7\n";
    for size in [1, 7, text.len()] {
        let mut socket = connect(&relay);
        socket.set_nodelay(true).expect("option");
        text.as_bytes().chunks(size).for_each(|piece| socket.write_all(piece).expect("send"));
    }
    let status = acked(&relay, 3);
    assert_eq!(backend.text().matches(text).count(), 3);
    assert_eq!((status.accepted_lines, status.receive[1].lines), (9, 9));
}

#[test]
fn a_quote_that_nobody_closes_costs_its_line_and_holds_nothing_back() {
    let backend = Scripted::accepting();
    let tcp = Tcp { line_timeout: Duration::from_millis(300), ..Tcp::default() };
    let relay = Running::start(with_tcp(&backend, tcp));
    let mut socket = connect(&relay);
    socket.write_all(b"log,host=a message=\"never closed\ncpu v=1 7\ncpu v=2 7\n").expect("send");
    relay.wait_delivered("a", 2);
    assert_eq!((receive(&relay).refused["unterminated_string"], receive(&relay).open_connections), (1, 1));
    // At the connection's end, and at the longest line, nothing waits either.
    socket.write_all(b"log,host=a message=\"never closed\ncpu v=3 7\n").expect("send");
    drop(socket);
    let long: String = (0..10_000).map(|n| format!("cpu v={n} 8\n")).collect();
    connect(&relay).write_all(format!("log message=\"never closed\n{long}").as_bytes()).expect("send");
    let status = acked(&relay, 2);
    let refused = &status.receive[1].refused;
    assert_eq!((refused["unterminated_string"], refused["too_long"], status.accepted_lines), (3, 0, 10_003));
    assert!(backend.text().ends_with("cpu v=9999 8\n"));
}

#[test]
fn a_bad_first_line_costs_no_other() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp::default()));
    let good: String = (0..20_000).map(|n| format!("a.metric {n} 7\n")).collect();
    for bad in ["metric;tag1=aaa1;tag2=bb b2 2", "{", "put a=b", "cpu,dc=a.b 1.5", "version"] {
        let mut socket = connect(&relay);
        socket.write_all(format!("{bad}\n{good}").as_bytes()).expect("send");
        // Whoever closes without reading the answer resets the connection.
        socket.shutdown(Shutdown::Write).expect("shut down");
        socket.read_to_end(&mut Vec::new()).expect("read");
    }
    let status = acked(&relay, 5);
    assert_eq!((status.accepted_lines, status.receive[1].refused.values().sum::<u64>()), (100_000, 4));
    // A datagram's, too.
    relay.send(&["cpu,dc=a.b 1.5\ncpu,dc=a v=1 7\na.b 1 7", "\u{feff}a.b 1 7"]);
    relay.wait_delivered("a", 100_003);
    assert!(!backend.text().contains("cpu\\,") && !backend.text().contains('\u{feff}'));
}

#[test]
fn a_version_is_answered_and_http_is_turned_away() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp::default()));
    let mut socket = connect(&relay);
    socket.write_all(b"version\n").expect("send");
    socket.shutdown(Shutdown::Write).expect("shutdown");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    assert_eq!(answer, format!("twinflux {}\n", env!("CARGO_PKG_VERSION")));

    // Netdata's HTTP variants, by a wrong setting: their headers look like lines of Graphite's.
    for name in ["netdata-graphite-http-tcp", "netdata-opentsdb-http-tcp", "netdata-json-http-tcp"] {
        let mut socket = connect(&relay);
        // The relay ends the connection early.
        drop(socket.write_all(&captures::frames(name).concat()));
    }
    // A TLS client's first record, which holds no line feed.
    let mut tls = connect(&relay);
    tls.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").expect("send");
    assert_eq!(tls.read(&mut [0]).unwrap_or(0), 0, "it is turned away at once");
    let status = acked(&relay, 5);
    assert_eq!((status.receive[1].refused["wrong_format"], status.receive[1].lines, status.accepted_lines), (4, 4, 0));
}

#[test]
fn another_formats_lines_are_refused_by_their_kind_and_the_connection_goes_on() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp { format: Format::Graphite, ..Tcp::default() }));
    connect(&relay).write_all(b"cpu,host=a usage=1 1\na.b nan 1\na.b 1 1\n{}\n").expect("send");
    let status = acked(&relay, 1);
    let refused = &status.receive[1].refused;
    assert_eq!((refused["wrong_format"], refused["not_a_number"], status.accepted_lines), (2, 1, 1));
}

#[test]
fn broken_json_is_refused_and_null_is_skipped() {
    let backend = Scripted::accepting();
    let relay = Running::start(with_tcp(&backend, Tcp::default()));
    let line = |value: &str, unit: &str, name: &str| {
        format!(
            "{{\"prefix\":\"p\",\"chart_name\":\"c\",\"units\":\"{unit}\",\"name\":\"{name}\",\"value\":{value},\"timestamp\":1}}\n"
        )
    };
    // A quote that is not escaped matters where it is used.
    let text = [line("1", "s", "d"), line("2", "s", "15\" disk"), line("null", "s", "d"), line("3", "15\" disks", "d")]
        .concat();
    connect(&relay).write_all(text.as_bytes()).expect("send");
    let receive = acked(&relay, 1).receive[1].clone();
    assert_eq!((receive.refused["invalid_json"], receive.skipped, receive.converted), (1, 1, 2));
    assert_eq!(backend.text(), "p.c.d value=1 1000000000\np.c.d value=3 1000000000\n");
}
