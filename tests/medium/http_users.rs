//! Who may write over HTTP, and TLS: users, tokens, rights, certificates that change.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, SystemTime};

use twinflux::config::{Auth, Config, Http, Right};

use crate::certificates::{self, Made, certificate};
use crate::support::{Running, Scripted, config, no_content, wait_for};

/// Writes a file, and lets it look as if it were written later than the one before.
fn write_later(path: &Path, text: &str) {
    let before = std::fs::metadata(path).and_then(|data| data.modified()).unwrap_or_else(|_| SystemTime::now());
    std::fs::write(path, text).expect("write");
    let file = std::fs::File::options().write(true).open(path).expect("open");
    file.set_modified(before + Duration::from_secs(2)).expect("a time");
}

/// A header of PROXY protocol 2 that names this source.
fn proxy_header(source: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    header.extend_from_slice(&source);
    header.extend_from_slice(&[127, 0, 0, 1, 0, 1, 0, 2]);
    header
}

fn with_http(backend: &Scripted, http: Http) -> Config {
    let mut config = config(&[backend.url()]);
    config.http.push(Http { listen: ([127, 0, 0, 1], 0).into(), ..http });
    config
}

/// Everything that comes until the end.
fn exchange(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).expect("send");
    let mut answer = Vec::new();
    // A TLS client that is not told of the end has read what there was.
    drop(stream.read_to_end(&mut answer));
    String::from_utf8(answer).expect("text")
}

fn post(address: SocketAddr, target: &str, headers: &str) -> String {
    let stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    exchange(stream, &request(target, headers))
}

fn request(target: &str, headers: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 8\r\n{headers}\r\nm v=1 1\n")
}

fn status(answer: &str) -> u16 {
    answer[9..12].parse().expect("a status")
}

#[test]
fn users_and_tokens_may_write_what_their_rights_say() {
    let folder = tempfile::tempdir().expect("folder");
    let (users, tokens) = (folder.path().join("users"), folder.path().join("tokens"));
    std::fs::write(&users, format!("me:{}\n", bcrypt::hash("right", 4).expect("a hash"))).expect("write");
    std::fs::write(&tokens, "host:abc\n").expect("write");
    let backend = Scripted::start(|_, _| no_content());
    let mut config = with_http(&backend, Http::default());
    let right = |name: &str, write: &[&str]| Right {
        name: name.to_owned(),
        write: write.iter().map(|name| (*name).to_owned()).collect(),
        ..Right::default()
    };
    config.auth = Auth {
        users_file: Some(users.clone()),
        tokens_file: Some(tokens),
        right: vec![right("me", &["telegraf"]), right("host", &["net*"])],
    };
    let relay = Running::start(config);
    let address = relay.listener("http");
    let me = "Authorization: Basic bWU6cmlnaHQ=\r\n";
    for (target, headers, expected) in [
        ("/write?db=telegraf", me, 204),
        ("/write?db=telegraf&u=me&p=right", "", 204),
        ("/api/v2/write?bucket=telegraf", "Authorization: Token me:right\r\n", 204),
        ("/write?db=netdata", "Authorization: Token abc\r\n", 204),
        ("/api/v3/write_lp?db=netdata", "Authorization: Bearer abc\r\n", 204),
        ("/write?db=netdata&p=abc", "", 204),
        ("/write?db=netdata", me, 403),
        ("/write?db=telegraf", "Authorization: Token abc\r\n", 403),
        ("/write?db=telegraf", "", 401),
        ("/write?db=telegraf&u=me&p=wrong", "", 401),
        ("/write?db=telegraf&u=you&p=right", "", 401),
        ("/write?db=telegraf", "Authorization: Token abd\r\n", 401),
        ("/write?db=telegraf", &format!("{me}{me}"), 400),
        ("/api/put", "", 401),
    ] {
        let answer = post(address, target, headers);
        assert_eq!(status(&answer), expected, "{target} {headers} {answer}");
        if expected == 401 {
            assert!(answer.to_ascii_lowercase().contains("www-authenticate: basic realm=\"influxdb\""), "{answer}");
            assert!(answer.ends_with("unauthorized access\n"), "{answer}");
        }
    }
    wait_for("the lines", || (relay.backend("a").delivered_lines == 6).then_some(()));
    let status_now = relay.status();
    let receive = status_now.receive.iter().find(|receive| receive.kind == "http").expect("a listener");
    assert_eq!((receive.auth_failures, receive.answers["401"], receive.answers["403"]), (5, 5, 2));
    // A new password needs no restart.
    write_later(&users, &format!("me:{}\n", bcrypt::hash("new", 4).expect("a hash")));
    relay.reload();
    assert_eq!(status(&post(address, "/write?db=telegraf&u=me&p=right", "")), 401);
    assert_eq!(status(&post(address, "/write?db=telegraf&u=me&p=new", "")), 204);
    // What cannot be read changes nothing.
    write_later(&users, "me:plain\n");
    relay.reload();
    assert_eq!(status(&post(address, "/write?db=telegraf&u=me&p=new", "")), 204);
}

#[test]
fn whoever_guesses_is_slowed_down_and_others_are_not_kept_waiting() {
    let folder = tempfile::tempdir().expect("folder");
    let users = folder.path().join("users");
    std::fs::write(&users, format!("me:{}\n", bcrypt::hash("right", 4).expect("a hash"))).expect("write");
    let backend = Scripted::start(|_, _| no_content());
    let mut config = with_http(&backend, Http::default());
    let right = Right { name: "*".to_owned(), write: vec!["*".to_owned()], ..Right::default() };
    config.auth = Auth { users_file: Some(users), tokens_file: None, right: vec![right] };
    let relay = Running::start(config);
    let address = relay.listener("http");
    assert_eq!(status(&post(address, "/write?db=d&u=me&p=right", "")), 204);
    let answers: Vec<u16> =
        (0..40).map(|guess| status(&post(address, &format!("/write?db=d&u=me&p={guess}"), ""))).collect();
    assert_eq!(answers[..20], [401; 20]);
    assert!(answers[20..].contains(&503), "{answers:?}");
    // What is known already is not checked again.
    assert_eq!(status(&post(address, "/write?db=d&u=me&p=right", "")), 204);
}

#[test]
fn files_that_cannot_be_used_keep_the_relay_from_starting() {
    let folder = tempfile::tempdir().expect("folder");
    let users = folder.path().join("users");
    for (text, part) in [("me:plain\n", "line 1: the password's hash is not bcrypt's"), ("", "names nobody")] {
        std::fs::write(&users, text).expect("write");
        let mut config = with_http(&Scripted::start(|_, _| no_content()), Http::default());
        config.auth.users_file = Some(users.clone());
        let error = Running::try_start(config).err().expect("it does not start");
        assert!(error.contains(part), "{error}");
    }
}

fn tls_post(address: SocketAddr, trusted: &Made) -> Result<String, String> {
    Ok(exchange(certificates::connect(address, trusted)?, &request("/write?db=d", "")))
}

#[test]
fn requests_come_over_tls_and_a_new_certificate_needs_no_restart() {
    let folder = tempfile::tempdir().expect("folder");
    let (cert, key, first) = certificate(folder.path(), "one");
    let backend = Scripted::start(|_, _| no_content());
    let http = Http { tls_cert_file: Some(cert.clone()), tls_key_file: Some(key.clone()), ..Http::default() };
    let relay = Running::start(with_http(&backend, http));
    let address = relay.listener("http");
    assert_eq!(status(&tls_post(address, &first).expect("TLS")), 204);
    let shown = relay.status().certificates;
    assert_eq!((shown.len(), shown[0].file.as_str()), (1, cert.display().to_string().as_str()));
    assert!(shown[0].days_left > 365 && shown[0].expires.ends_with('Z'), "{shown:?}");
    // A client that does not speak TLS is told so.
    let answer = post(address, "/write?db=d", "");
    assert!(answer.starts_with("HTTP/1.0 400") && answer.contains("Client sent an HTTP request to an HTTPS server"));

    let (new_cert, new_key, second) = certificate(folder.path(), "two");
    write_later(&cert, &std::fs::read_to_string(new_cert).expect("text"));
    // A certificate without its key changes nothing.
    relay.reload();
    assert_eq!(status(&tls_post(address, &first).expect("TLS")), 204);
    write_later(&key, &std::fs::read_to_string(new_key).expect("text"));
    relay.reload();
    assert!(tls_post(address, &first).is_err(), "another one is shown");
    assert_eq!(status(&tls_post(address, &second).expect("TLS")), 204);
    wait_for("the lines", || (relay.backend("a").delivered_lines == 3).then_some(()));
}

#[test]
fn tls_to_a_plain_listener_ends_and_a_key_must_fit() {
    let folder = tempfile::tempdir().expect("folder");
    let (cert, key, made) = certificate(folder.path(), "one");
    let backend = Scripted::start(|_, _| no_content());
    let relay = Running::start(with_http(&backend, Http::default()));
    assert!(tls_post(relay.listener("http"), &made).is_err());
    let (_, other, _) = certificate(folder.path(), "two");
    for (cert, key, part) in [
        (&cert, &other, "is not the key of tls_cert_file"),
        (&folder.path().join("none"), &key, "tls_cert_file"),
        (&key, &key, "no certificate in it"),
    ] {
        let http = Http { tls_cert_file: Some(cert.clone()), tls_key_file: Some(key.clone()), ..Http::default() };
        let error = Running::try_start(with_http(&backend, http)).err().expect("it does not start");
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_balancer_in_front_names_the_source() {
    let backend = Scripted::start(|_, _| no_content());
    let loopback: ipnet::IpNet = "127.0.0.0/8".parse().expect("a network");
    let allowed: ipnet::IpNet = "192.0.2.0/24".parse().expect("a network");
    let http = Http { trusted_proxies: vec![loopback], allow: vec![allowed], ..Http::default() };
    let relay = Running::start(with_http(&backend, http.clone()));
    let address = relay.listener("http");
    assert_eq!(status(&post(address, "/write?db=d", "X-Forwarded-For: 6.6.6.6, 192.0.2.7\r\n")), 204);
    let answer = post(address, "/write?db=d", "X-Forwarded-For: 198.51.100.1\r\n");
    assert!(status(&answer) == 403 && answer.ends_with("this address may not send to this relay\n"), "{answer}");
    for (target, expected) in [("/ping", 405), ("/health", 405), ("/write?db=d", 403)] {
        assert_eq!(status(&post(address, target, "")), expected, "the balancer itself may look, not write: {target}");
    }
    let sources = wait_for("the source", || {
        let sources = relay.status().sources.top;
        sources.iter().any(|source| source.address == "192.0.2.7").then_some(sources)
    });
    assert!(sources.iter().all(|source| source.address != "6.6.6.6"), "{sources:?}");

    let relay = Running::start(with_http(&backend, Http { proxy_protocol: true, ..http }));
    let address = relay.listener("http");
    let send = |header: &[u8]| {
        let mut stream = TcpStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        stream.write_all(header).expect("send");
        stream.write_all(request("/write?db=d", "").as_bytes()).ok();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok();
        answer
    };
    assert_eq!(status(&send(&proxy_header([192, 0, 2, 8]))), 204);
    assert_eq!(send(&proxy_header([198, 51, 100, 1])), "", "not allowed");
    assert_eq!(send(b""), "", "no header");
    wait_for("the source", || relay.status().sources.top.iter().any(|one| one.address == "192.0.2.8").then_some(()));
}

#[test]
fn a_source_behind_a_balancer_has_its_own_limit() {
    let backend = Scripted::start(|_, _| no_content());
    let loopback: ipnet::IpNet = "127.0.0.0/8".parse().expect("a network");
    let http = Http { trusted_proxies: vec![loopback], max_connections_per_source: 1, ..Http::default() };
    let relay = Running::start(with_http(&backend, http.clone()));
    let address = relay.listener("http");
    let limited = |relay: &Running| {
        let status = relay.status();
        status.receive.iter().find(|receive| receive.kind == "http").expect("a listener").limited
    };
    let mut slow = TcpStream::connect(address).expect("connect");
    let head = "POST /write?db=d HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\nX-Forwarded-For: 192.0.2.7\r\n\r\nm v=1";
    slow.write_all(head.as_bytes()).expect("send");
    wait_for("a refusal", || {
        let answer = post(address, "/write?db=d", "X-Forwarded-For: 192.0.2.7\r\n");
        (status(&answer) == 503).then_some(())
    });
    assert_eq!(limited(&relay), 1);
    assert_eq!(status(&post(address, "/write?db=d", "X-Forwarded-For: 192.0.2.8\r\n")), 204);
    slow.write_all(b" 1\n").expect("send");
    wait_for("room", || (status(&post(address, "/write?db=d", "X-Forwarded-For: 192.0.2.7\r\n")) == 204).then_some(()));

    let relay = Running::start(with_http(&backend, Http { proxy_protocol: true, ..http }));
    let address = relay.listener("http");
    let connect = |source| {
        let mut stream = TcpStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        stream.write_all(&proxy_header(source)).expect("send");
        stream
    };
    let first = connect([192, 0, 2, 7]);
    // Its header is read once it is answered.
    let ping = "GET /ping HTTP/1.1\r\nHost: x\r\n\r\n";
    (&first).write_all(ping.as_bytes()).expect("send");
    (&first).read_exact(&mut [0; 12]).expect("an answer");
    assert_eq!(connect([192, 0, 2, 7]).read(&mut [0]).unwrap_or(0), 0, "one more of the same source");
    let other = connect([192, 0, 2, 8]);
    (&other).write_all(ping.as_bytes()).expect("send");
    (&other).read_exact(&mut [0; 12]).expect("an answer");
    assert_eq!(limited(&relay), 1);
    drop(first);
    wait_for("room", || {
        let again = connect([192, 0, 2, 7]);
        (&again).write_all(ping.as_bytes()).ok();
        (&again).read_exact(&mut [0; 12]).ok()
    });
}
