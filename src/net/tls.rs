//! TLS for listeners: a certificate and its key, read again when their files change. Connections that are open stay.
//!
//! TLS 1.2 and 1.3. Never does: trusting a client; deciding by a name. Bounds: one certificate for each listener.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// The first byte of a TLS client.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a client that speaks plain HTTP to a listener with TLS is told, in the words that clients know.
const SPEAKS_TLS: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// Waits for the first byte of a client, and tells whether it speaks TLS. One that is gone fails at the handshake.
pub async fn begins_as_tls(stream: &TcpStream) -> bool {
    let mut first = [0];
    !stream.peek(&mut first).await.is_ok_and(|count| count == 1) || first[0] == TLS_HANDSHAKE
}

/// Tells a client that speaks plain HTTP that this listener speaks TLS.
pub fn answer_plain_http(stream: &TcpStream) {
    // Where a request is left unread, the system resets the connection, and the client may never see the answer.
    for _ in 0..16 {
        if !stream.try_read(&mut [0; 4096]).is_ok_and(|count| count > 0) {
            break;
        }
    }
    drop(stream.try_write(SPEAKS_TLS));
}

/// Where a listener's certificate and its key are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, and those that it was signed by.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

/// A listener's certificate, as it is now.
#[derive(Debug)]
pub struct Certificate {
    setup: CertificateFiles,
    config: Arc<ServerConfig>,
    current: Arc<Current>,
    /// When the files were last written to, as they were read.
    written: Mutex<[Option<SystemTime>; 2]>,
}

/// What is shown to clients.
#[derive(Debug)]
struct Current(RwLock<Pair>);

#[derive(Clone, Debug)]
struct Pair {
    key: Arc<CertifiedKey>,
    expires: SystemTime,
}

impl Certificate {
    /// Reads the files, for a listener that speaks this protocol over TLS.
    ///
    /// # Errors
    /// A sentence: which file cannot be used, and why.
    pub fn open(setup: CertificateFiles, protocol: Option<&[u8]>) -> Result<Self, String> {
        let written = written(&setup);
        let current = Arc::new(Current(RwLock::new(read(&setup)?)));
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| format!("TLS: {error}"))?;
        let resolver = Arc::clone(&current) as Arc<dyn ResolvesServerCert>;
        let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols.extend(protocol.map(<[u8]>::to_vec));
        Ok(Self { setup, config: Arc::new(config), current, written: Mutex::new(written) })
    }

    /// What accepts a connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// Reads the files again if they were written to since; returns whether they were.
    ///
    /// # Errors
    /// Why they cannot be used. Then everything stays as it was.
    pub fn reload(&self, is_asked: bool) -> Result<bool, String> {
        let now = written(&self.setup);
        {
            let mut before = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            if *before == now && !is_asked {
                return Ok(false);
            }
            // Files that cannot be used are told once.
            *before = now;
        }
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = read(&self.setup)?;
        Ok(true)
    }

    /// When the certificate expires.
    pub fn expires(&self) -> SystemTime {
        self.current.0.read().unwrap_or_else(PoisonError::into_inner).expires
    }

    /// The file with the certificate.
    pub fn file(&self) -> &Path {
        &self.setup.cert_file
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).key))
    }
}

fn read(CertificateFiles { cert_file, key_file }: &CertificateFiles) -> Result<Pair, String> {
    let (cert_name, key_name) = (cert_file.display(), key_file.display());
    let bad_cert = |what: String| format!("tls_cert_file {cert_name}: {what}");
    let bad_key = |what: String| format!("tls_key_file {key_name}: {what}");
    let chain = CertificateDer::pem_file_iter(cert_file).map_err(|error| bad_cert(error.to_string()))?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(|error| bad_cert(error.to_string()))?;
    let Some(first) = chain.first() else {
        return Err(bad_cert("no certificate in it: it must hold one or more in PEM".to_owned()));
    };
    let expires = expires(first).map_err(bad_cert)?;
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| bad_key(error.to_string()))?;
    let key = ring::sign::any_supported_type(&key).map_err(|error| bad_key(error.to_string()))?;
    let key = CertifiedKey::new(chain.clone(), key);
    key.keys_match().map_err(|_| format!("tls_key_file {key_name} is not the key of tls_cert_file {cert_name}"))?;
    Ok(Pair { key: Arc::new(key), expires })
}

/// When a certificate expires.
///
/// # Errors
/// It is none.
pub(super) fn expires(certificate: &CertificateDer<'_>) -> Result<SystemTime, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn written(CertificateFiles { cert_file, key_file }: &CertificateFiles) -> [Option<SystemTime>; 2] {
    [cert_file, key_file].map(|path| std::fs::metadata(path).and_then(|data| data.modified()).ok())
}
