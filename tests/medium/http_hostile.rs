//! Clients of HTTP that break rules, or ask for more than their share: what they are answered, and
//! what they cost.

use std::io::Read;
use std::net::Shutdown;

use bytesize::ByteSize;
use twinflux::config::Http;
use twinflux::observe::status::Receive;
use twinflux::protocol::Unsigned;

use crate::http::{Client, Door};
use crate::support::wait_for;

fn door() -> Door {
    Door::open(Http { database: "d".to_owned(), max_connections_per_source: 2000, ..Http::default() })
}

fn listener(door: &Door) -> Receive {
    door.relay.status().receive.into_iter().find(|receive| receive.kind == "http").expect("a listener")
}

/// What comes until the other end closes.
fn rest(client: &mut Client) -> String {
    let mut bytes = Vec::new();
    drop(client.0.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

const CHUNKED: &str = "POST /write HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn requests_that_come_together_are_framed_each_for_itself() {
    let door = door();
    let by_length = "POST /write HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\nm v=1 1";
    let by_chunks = format!("{CHUNKED}7\r\nm v=2 2\r\n0\r\n\r\n");
    for order in [[by_length, &by_chunks, by_length], [&by_chunks, by_length, &by_chunks]] {
        let mut client = door.client();
        client.send(order.concat().as_bytes());
        assert_eq!([client.answer().status, client.answer().status, client.answer().status], [204; 3]);
    }
    door.stored(6);
}

#[test]
fn what_was_cut_or_comes_too_slowly_is_not_answered() {
    let door = door();
    let mut slow = door.client();
    slow.send(b"POST /write HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nm v=1 1\nm v=2");
    let mut slow_query = door.client();
    slow_query.send(b"POST /query HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nq=CREATE");
    for (cut, is_over) in [
        (format!("{CHUNKED}7\r\nm v=1 1\r\n"), true),
        (format!("{CHUNKED}7\r\nm v=1 1\r\nxyz\r\n"), false),
        ("POST /write HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nm v=1 1\nm v=2".to_owned(), true),
        ("POST /query HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nq=SHOW DATABASES".to_owned(), true),
    ] {
        let mut client = door.client();
        client.send(cut.as_bytes());
        if is_over {
            client.0.shutdown(Shutdown::Write).expect("shut down");
        }
        assert_eq!(rest(&mut client), "", "{cut}");
    }
    assert_eq!((rest(&mut slow), rest(&mut slow_query)), (String::new(), String::new()));
    let listener = listener(&door);
    assert_eq!((listener.requests, listener.timed_out, listener.answers.values().sum::<u64>()), (6, 2, 0));
    door.stored(2);
}

#[test]
fn who_asks_first_does_not_send_what_is_refused() {
    let door = door();
    for (target, length, status) in
        [("/write?precision=x", 100, 400), ("/write", 100_000_000, 413), ("/nothing", 100, 404)]
    {
        let mut client = door.client();
        let head = format!("POST {target} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}");
        client.send(format!("{head}\r\n\r\n").as_bytes());
        assert_eq!(client.answer().status, status, "{target}");
        assert!(client.is_closed());
    }
}

#[test]
fn a_body_that_is_taken_whole_or_not_at_all_has_the_listeners_rules() {
    let door = Door::open(Http { unsigned: Unsigned::Signed, max_line: ByteSize::kib(128), ..Http::default() });
    let long = format!("m s=\"{}\" 3", "x".repeat(100_000));
    let body = format!("m v=1 1\nm v=2u 2\n{long}\n");
    let target = "/api/v3/write_lp?db=d&accept_partial=false";
    assert_eq!(door.client().post(target, "", body.as_bytes()).status, 204);
    door.stored(3);
    let body = format!("{body}m s=\"{}\" 4\n", "x".repeat(200_000));
    let answered = door.client().post(target, "", body.as_bytes());
    assert!(answered.status == 400 && answered.body.contains("parsing failed"), "{answered:?}");
    assert_eq!(door.relay.status().accepted_lines, 3);
}

#[test]
fn chunks_that_are_tiny_are_not_read_for_ever() {
    let door = door();
    let mut client = door.client();
    client.send(CHUNKED.as_bytes());
    client.send("1\r\n\n\r\n".repeat(70_000).as_bytes());
    let answered = client.answer();
    assert!(answered.status == 400 && answered.body.contains("too many tiny chunks"), "{answered:?}");
    // As many that are not tiny are fine.
    let mut client = door.client();
    client.send(CHUNKED.as_bytes());
    client.send(format!("50\r\n{}\r\n", "\n".repeat(80)).repeat(70_000).as_bytes());
    client.send(b"0\r\n\r\n");
    assert_eq!(client.answer().status, 204);
}

#[test]
fn unfinished_heads_and_lines_share_what_there_is() {
    let door = door();
    let line = format!("POST /write HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\nm s=\"{}", "x".repeat(60_000));
    let head = format!("GET /ping HTTP/1.1\r\nHost: x\r\nX-Long: {}", "x".repeat(60_000));
    let mut clients: Vec<Client> = Vec::new();
    let mut send = |text: &str| {
        clients.extend((0..400).map(|_| {
            let mut client = door.client();
            client.send(text.as_bytes());
            client
        }));
    };
    send(&line);
    wait_for("some to be refused", || (listener(&door).answers["503"] > 0).then_some(()));
    send(&head);
    wait_for("some to be ended", || (listener(&door).limited > 0).then_some(()));
    // Whoever has little has room.
    assert_eq!(door.client().post("/write", "", b"m v=1 1").status, 204);
}
