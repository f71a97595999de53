//! Whether a backend can be reached, and what is said where it cannot.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use crate::backends::tls_backend;
use crate::support::{Running, Scripted, config, no_content, wait_for};

fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address")
}

/// Its lines wait while it is held, and the sentence says what is wrong.
fn assert_held(url: String, sentence: &str) {
    let relay = Running::start(config(&[url]));
    relay.send(&["m v=1 1\n"]);
    relay.wait_state("a", "held");
    let backend = relay.backend("a");
    assert_eq!((backend.pending_lines, backend.dropped(), backend.rejected()), (1, 0, 0));
    let error = backend.last_error.expect("an error");
    assert!(error.contains(sentence), "{error}");
}

#[test]
fn https_to_a_plain_server_says_http() {
    let plain = Scripted::accepting();
    let address = plain.address;
    assert_held(format!("https://{address}"), &format!("{address} speaks plain HTTP: write http://"));
    assert!(plain.requests().is_empty());
}

#[test]
fn http_to_a_tls_server_says_https() {
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("certificate");
    let (address, _) = tls_backend(&certificate);
    assert_held(format!("http://{address}"), &format!("{address} speaks TLS: write https://"));
    // As Go's servers, nginx and Apache tell it.
    for text in [
        "Client sent an HTTP request to an HTTPS server.\n",
        "<html><center>The plain HTTP request was sent to HTTPS port</center></html>",
        "Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />",
    ] {
        let server = Scripted::start(move |_, _| (400, Vec::new(), text.to_owned()));
        assert_held(server.url(), &format!("{} speaks TLS: write https://", server.address));
    }
}

#[test]
fn a_backend_that_was_never_reached_is_unknown_until_it_is() {
    let address = closed_port();
    let relay = Running::start(config(&[format!("http://{address}")]));
    let missed = wait_for("the first try", || {
        let backend = relay.backend("a");
        backend.last_error.is_some().then_some(backend)
    });
    assert_eq!((missed.state.as_str(), missed.requests), ("unknown", 0));
    assert!(missed.last_error.is_some_and(|error| error.contains("cannot connect")));
    let state = "twinflux_backend_state{backend=\"a\",state=\"unknown\"} 1";
    assert!(relay.get("/metrics").1.contains(state));
    assert!(relay.status().to_text().contains("a was not reached yet: cannot connect"));
    let _server = Scripted::start_at(address, |_, _| no_content());
    relay.wait_state("a", "up");
    assert_eq!(relay.backend("a").requests, 0, "a ping is no write");
}

#[test]
fn lines_tell_more_than_a_probe() {
    let relay = Running::start(config(&[format!("http://{}", closed_port())]));
    relay.send(&["m v=1 1\n"]);
    relay.wait_state("a", "down");
}

#[test]
fn what_is_no_influxdb_is_not_reached() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            // One small request arrives in one read.
            if stream.read(&mut request).is_ok() {
                drop(stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"));
            }
        }
    });
    let relay = Running::start(config(&[format!("http://{address}/elsewhere")]));
    let backend = wait_for("the answer", || {
        let backend = relay.backend("a");
        backend.last_error.is_some().then_some(backend)
    });
    let error = backend.last_error.expect("an error");
    assert_eq!(backend.state, "unknown");
    assert!(error.contains("GET /elsewhere/ping") && error.contains("is it an InfluxDB?"), "{error}");
}

#[test]
fn an_archive_is_reached_where_its_folder_can_be_written() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("archive");
    std::fs::write(&root, "in the way").expect("write");
    let relay = Running::start(config(&[format!("file://{}", root.display())]));
    wait_for("the first try", || relay.backend("a").last_error);
    assert_eq!(relay.backend("a").state, "unknown");
    std::fs::remove_file(&root).expect("remove");
    relay.wait_state("a", "up");
    assert!(!root.join("probe.tmp").exists());
}
