//! What writers have created: on every backend, at once or later, and with no more right than they
//! have.

use std::net::{SocketAddr, TcpListener};

use twinflux::config::{Auth, Config, Http, Right};

use crate::http::{Answered, Client};
use crate::support::{Request, Running, Scripted, config, no_content, wait_for};

const DONE: &str = "{\"results\":[{\"statement_id\":0}]}\n";

fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address")
}

/// A backend that runs statements, and takes lines.
fn backend_at(address: SocketAddr) -> Scripted {
    Scripted::start_at(address, |_, request| {
        if request.uri.path() == "/query" { (200, Vec::new(), DONE.to_owned()) } else { no_content() }
    })
}

/// The statements that a backend was sent.
fn statements(backend: &Scripted) -> Vec<Request> {
    backend.requests().into_iter().filter(|request| request.uri.path() == "/query").collect()
}

fn with_http(urls: &[String]) -> Config {
    let mut config = config(urls);
    // Readers have tests of their own.
    config.http.push(Http { listen: ([127, 0, 0, 1], 0).into(), query: false, ..Http::default() });
    config
}

fn ask(relay: &Running, query: &str, headers: &str) -> Answered {
    let body = format!("q={query}&db=");
    Client::new(relay.listener("http")).post("/query", headers, body.as_bytes())
}

#[test]
fn a_database_is_created_where_it_can_be_and_elsewhere_later() {
    let folder = tempfile::tempdir().expect("folder");
    let down = closed_port();
    let up = backend_at(closed_port());
    let mut config = with_http(&[up.url(), format!("http://{down}")]);
    config.data_dir = folder.path().join("data");
    let mut relay = Running::start_in(config.clone());
    relay.wait_state("a", "up");
    let answered = ask(&relay, "CREATE+DATABASE+telegraf", "");
    assert_eq!((answered.status, &*answered.body), (200, DONE));
    assert_eq!(statements(&up).len(), 1);
    // By GET, as old clients do.
    let mut client = Client::new(relay.listener("http"));
    client.send(b"GET /query?q=CREATE%20DATABASE%20telegraf HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    client.send(b"GET /query?q=CREATE+RETENTION+POLICY+x+ON+y+DURATION+1d+REPLICATION+1 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.answer().status, 405);
    relay.stop();
    // What is owed is owed after a restart, once.
    let relay = Running::start_in(config);
    let late = backend_at(down);
    let sent = wait_for("the statement", || statements(&late).pop());
    assert_eq!(sent.text(), "q=CREATE%20DATABASE%20%22telegraf%22");
    relay.wait_state("b", "up");
    assert_eq!(statements(&late).len(), 1);
}

#[test]
fn what_a_backend_refuses_is_owed_to_nobody() {
    let refusing = Scripted::start(|_, request| {
        if request.uri.path() != "/query" {
            return no_content();
        }
        match request.headers.get("authorization") {
            Some(value) if value == "Basic bWU6cmlnaHQ=" => (200, Vec::new(), DONE.to_owned()),
            _ => (401, Vec::new(), "{\"error\":\"unable to parse authentication credentials\"}".to_owned()),
        }
    });
    let other = backend_at(closed_port());
    let relay = Running::start(with_http(&[refusing.url(), other.url()]));
    relay.wait_state("a", "up");
    relay.wait_state("b", "up");
    let answered = ask(&relay, "CREATE+DATABASE+x", "");
    assert!(answered.status == 200 && answered.body.contains("\"error\":\"401"), "{answered:?}");
    assert!(statements(&other).is_empty());
    // With the client's own credentials it is run, and owed to the other.
    assert_eq!(ask(&relay, "CREATE+DATABASE+x", "Authorization: Basic bWU6cmlnaHQ=\r\n").body, DONE);
    wait_for("the other", || statements(&other).pop());
    // Nothing else is run.
    for query in ["DROP+DATABASE+x", "CREATE+DATABASE+x%3B+DROP+DATABASE+y", "SELECT+1", ""] {
        assert_eq!(ask(&relay, query, "").status, 400, "{query}");
    }
    assert_eq!((statements(&refusing).len(), statements(&other).len()), (2, 1));
}

#[test]
fn of_the_users_only_an_administrator_creates_something() {
    let folder = tempfile::tempdir().expect("folder");
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, "boss:abc\nhost:def\n").expect("write");
    let backend = backend_at(closed_port());
    let mut config = with_http(&[backend.url()]);
    config.auth = Auth {
        tokens_file: Some(tokens),
        users_file: None,
        right: vec![Right { name: "boss".to_owned(), admin: true, ..Right::default() }],
    };
    let relay = Running::start(config);
    relay.wait_state("a", "up");
    assert_eq!(ask(&relay, "CREATE+DATABASE+x", "").status, 401);
    let answered = ask(&relay, "CREATE+DATABASE+x", "Authorization: Token def\r\n");
    assert!(answered.status == 200 && answered.body.contains("no right to create"), "{answered:?}");
    assert!(statements(&backend).is_empty());
    assert_eq!(ask(&relay, "CREATE+DATABASE+x", "Authorization: Token abc\r\n").body, DONE);
    assert_eq!(statements(&backend)[0].headers.get("authorization"), None, "a relay's token is no backend's");
}
