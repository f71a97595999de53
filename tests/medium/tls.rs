//! TLS to backends: a server's own certificate, names, clients' certificates. What must not be trusted is held, and nothing is
//! lost for it.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::program::{run, text};
use crate::support::{Running, config, left_out};

/// A server that takes every write over TLS, and counts them.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<usize>>,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    /// With this certificate and key; where `clients` is given, only for clients that one of these certificates signed.
    fn start(certificate: &Path, key: &Path, clients: Option<&Path>) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain: Vec<_> =
            CertificateDer::pem_file_iter(certificate).expect("file").collect::<Result<_, _>>().expect("PEM");
        let key = PrivateKeyDer::from_pem_file(key).expect("key");
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.expect("versions");
        let builder = match clients {
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                for root in CertificateDer::pem_file_iter(clients).expect("file") {
                    roots.add(root.expect("PEM")).expect("a root");
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.expect("verifier"))
            }
            None => builder.with_no_client_auth(),
        };
        let acceptor =
            tokio_rustls::TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).expect("certificate")));
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.set_nonblocking(true).expect("set");
        let (address, requests) = (listener.local_addr().expect("address"), Arc::new(Mutex::new(0)));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
        let counted = Arc::clone(&requests);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, counted) = (acceptor.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut bytes = vec![0; 65_536];
                    while let Ok(1..) = stream.read(&mut bytes).await {
                        *counted.lock().expect("no panic") += 1;
                        drop(stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await);
                    }
                });
            }
        });
        Self { address, requests, _runtime: runtime }
    }
}

/// What `openssl req -x509` makes: a certificate that is its own CA, as InfluxDB's guide tells.
fn self_signed(folder: &Path, name: &str, more: &[&str]) -> Option<(PathBuf, PathBuf)> {
    let (certificate, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=influx", "-addext"])
        .arg(format!("subjectAltName=DNS:{name}"))
        .args(more)
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    made.ok().filter(|made| made.status.success()).map(|_| (certificate, key))
}

#[test]
fn a_servers_own_certificate_is_trusted_for_its_name_only_and_while_it_is_valid() {
    let folder = tempfile::tempdir().expect("folder");
    let folder = folder.path();
    let Some((certificate, key)) = self_signed(folder, "influx.example", &["-days", "2"]) else {
        left_out("a_servers_own_certificate_is_trusted_for_its_name_only_and_while_it_is_valid", "no openssl here");
        return;
    };
    let server = Server::start(&certificate, &key, None);
    let (other, _) = self_signed(folder, "other.example", &["-days", "2"]).expect("a certificate");
    let both = folder.join("both.pem");
    std::fs::write(&both, [std::fs::read(&other).expect("read"), std::fs::read(&certificate).expect("read")].concat())
        .expect("write");
    for (ca_file, name, is_trusted) in [
        (&certificate, Some("influx.example"), true),
        (&both, Some("influx.example"), true),
        // It is another server's, or not the certificate of the URL's host.
        (&certificate, Some("other.example"), false),
        (&certificate, None, false),
        (&other, Some("influx.example"), false),
    ] {
        let mut config = config(&[format!("https://127.0.0.1:{}", server.address.port())]);
        config.backend[0].ca_file = Some(ca_file.clone());
        config.backend[0].tls_server_name = name.map(str::to_owned);
        let relay = Running::start(config);
        relay.send(&["m v=1 1\n"]);
        if is_trusted {
            relay.wait_delivered("a", 1);
        } else {
            relay.wait_state("a", "held");
            let backend = relay.backend("a");
            assert_eq!((backend.pending_lines, backend.delivered_lines), (1, 0), "{ca_file:?} {name:?}");
            assert!(backend.last_error.is_some_and(|error| error.contains("TLS")), "{ca_file:?} {name:?}");
        }
    }
    assert!(*server.requests.lock().expect("no panic") >= 2);

    // One that is not valid any more.
    let mut parameters = rcgen::CertificateParams::new(vec!["old.example".to_owned()]).expect("a name");
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let pair = rcgen::KeyPair::generate().expect("a key");
    let (certificate, key) = (folder.join("old.pem"), folder.join("old.key"));
    std::fs::write(&certificate, parameters.self_signed(&pair).expect("a certificate").pem()).expect("write");
    std::fs::write(&key, pair.serialize_pem()).expect("write");
    let server = Server::start(&certificate, &key, None);
    let mut config = config(&[format!("https://127.0.0.1:{}", server.address.port())]);
    config.backend[0].ca_file = Some(certificate);
    config.backend[0].tls_server_name = Some("old.example".to_owned());
    let relay = Running::start(config);
    relay.send(&["m v=1 1\n"]);
    relay.wait_state("a", "held");
    let error = relay.backend("a").last_error.expect("an error");
    assert!(error.contains("expired"), "{error}");
}

#[test]
fn a_server_that_asks_for_a_clients_certificate_gets_it() {
    let folder = tempfile::tempdir().expect("folder");
    let folder = folder.path();
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("write");
        path
    };
    let certificate = |name: &str| {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("certificate");
        (
            write(&format!("{name}.pem"), made.cert.pem()),
            write(&format!("{name}.key"), made.signing_key.serialize_pem()),
        )
    };
    let (server_certificate, server_key) = certificate("localhost");
    let (client, client_key) = certificate("relay");
    let (stranger, stranger_key) = certificate("stranger");
    let server = Server::start(&server_certificate, &server_key, Some(&client));
    for (pair, is_taken) in
        [(Some((&client, &client_key)), true), (Some((&stranger, &stranger_key)), false), (None, false)]
    {
        let mut config = config(&[format!("https://localhost:{}", server.address.port())]);
        let backend = &mut config.backend[0];
        backend.ca_file = Some(server_certificate.clone());
        (backend.client_cert_file, backend.client_key_file) =
            pair.map(|(certificate, key)| (certificate.clone(), key.clone())).unzip();
        let relay = Running::start(config);
        relay.send(&["m v=1 1\n"]);
        if is_taken {
            relay.wait_delivered("a", 1);
        } else {
            crate::support::wait_for("a failure", || {
                relay.backend("a").last_error.filter(|_| relay.backend("a").requests > 0)
            });
            assert_eq!((relay.backend("a").delivered_lines, relay.backend("a").pending_lines), (0, 1));
        }
    }
    let broken = write("broken.key", "no key".to_owned());
    let mut config = config(&["https://localhost:1".to_owned()]);
    (config.backend[0].client_cert_file, config.backend[0].client_key_file) = (Some(client), Some(broken));
    let error = Running::try_start(config).map(|_| ()).expect_err("refused");
    assert!(error.contains("client_key_file") && error.contains("broken.key"), "{error}");
}

#[test]
fn the_doctor_says_when_a_backends_certificate_expires() {
    let folder = tempfile::tempdir().expect("folder");
    let folder = folder.path();
    for (days, expected) in [("2", "doubt"), ("40", "ok")] {
        let Some((certificate, key)) = self_signed(folder, "influx.example", &["-days", days]) else {
            left_out("the_doctor_says_when_a_backends_certificate_expires", "no openssl here");
            return;
        };
        let server = Server::start(&certificate, &key, None);
        let file = format!(
            "data_dir = \"data\"\n[[udp]]\nlisten = \"127.0.0.1:0\"\n[[backend]]\nname = \"a\"\nurl = \"https://{}\"\n\
             ca_file = \"{}\"\ntls_server_name = \"influx.example\"\n",
            server.address,
            certificate.display()
        );
        std::fs::write(folder.join("c.toml"), file).expect("write");
        let said = text(&run(&["doctor", "--config", "c.toml"], folder).stdout);
        let line = said.lines().find(|line| line.contains("its certificate is trusted, and expires in"));
        assert!(line.is_some_and(|line| line.trim_start().starts_with(expected)), "{days} days: {said}");
    }
}
