//! Certificates for listeners, and a client that trusts them.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A certificate and its key.
pub(crate) type Made = rcgen::CertifiedKey<rcgen::KeyPair>;

/// A certificate for localhost, and its key, in files.
pub(crate) fn certificate(folder: &Path, name: &str) -> (PathBuf, PathBuf, Made) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let (cert, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
    std::fs::write(&cert, made.cert.pem()).expect("write");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("write");
    (cert, key, made)
}

/// A client that has said nothing yet.
pub(crate) fn client(trusted: &Made) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.cert.der().clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let client = Arc::new(builder.with_root_certificates(roots).with_no_client_auth());
    ClientConnection::new(client, ServerName::try_from("localhost").expect("a name")).expect("TLS")
}

/// A connection after the handshake.
pub(crate) fn connect(address: SocketAddr, trusted: &Made) -> Result<StreamOwned<ClientConnection, TcpStream>, String> {
    let mut connection = client(trusted);
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).map_err(|error| error.to_string())?;
    }
    Ok(StreamOwned::new(connection, stream))
}
