//! TLS for listeners: a certificate and its key, reloaded when their files change. Open connections
//! stay.
//!
//! TLS 1.2 and 1.3. Never does: client authentication, choosing by server name. Bounds: one
//! certificate per listener.

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
use x509_parser::error::X509Error;
use x509_parser::nom;

/// The first byte that a TLS client sends.
const TLS_HANDSHAKE: u8 = 0x16;

/// The answer to a client that speaks plain HTTP to a TLS listener, in words that clients
/// recognise.
const SPEAKS_TLS: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// Waits for a client's first byte, and returns whether it speaks TLS. A closed connection counts
/// as TLS and fails in the handshake.
pub async fn begins_as_tls(stream: &TcpStream) -> bool {
    let mut first = [0];
    !stream.peek(&mut first).await.is_ok_and(|count| count == 1) || first[0] == TLS_HANDSHAKE
}

/// Answers a client that speaks plain HTTP to a TLS listener.
pub fn answer_plain_http(stream: &TcpStream) {
    // The system resets a connection with unread bytes, and the client might not see the answer.
    for _ in 0..16 {
        if !stream.try_read(&mut [0; 4096]).is_ok_and(|count| count > 0) {
            break;
        }
    }
    drop(stream.try_write(SPEAKS_TLS));
}

/// The files of a listener's certificate and key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, followed by its issuers.
    pub cert_file: PathBuf,
    /// The certificate's key.
    pub key_file: PathBuf,
}

/// A listener's certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The certificate's file cannot be used.
    #[error("tls_cert_file {}: {}", .0.display(), .1)]
    Certificate(PathBuf, String),
    /// The key's file cannot be used.
    #[error("tls_key_file {}: {}", .0.display(), .1)]
    Key(PathBuf, String),
    /// The key belongs to another certificate.
    #[error("tls_key_file {} is not the key of tls_cert_file {}", .key_file.display(), .cert_file.display())]
    Mismatch {
        /// The key.
        key_file: PathBuf,
        /// The certificate.
        cert_file: PathBuf,
    },
    /// The TLS library refuses the protocol versions.
    #[error("TLS: {0}")]
    Tls(rustls::Error),
}

/// A listener's current certificate.
#[derive(Debug)]
pub struct Certificate {
    setup: CertificateFiles,
    config: Arc<ServerConfig>,
    current: Arc<Current>,
    /// The files' modification times when they were read.
    written: Mutex<[Option<SystemTime>; 2]>,
}

/// The certificate shown to clients.
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
    /// Which file cannot be used, and why.
    pub fn open(setup: CertificateFiles, protocol: Option<&[u8]>) -> Result<Self, CertificateError> {
        let written = written(&setup);
        let current = Arc::new(Current(RwLock::new(read(&setup)?)));
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(CertificateError::Tls)?;
        let resolver = Arc::clone(&current) as Arc<dyn ResolvesServerCert>;
        let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols.extend(protocol.map(<[u8]>::to_vec));
        Ok(Self { setup, config: Arc::new(config), current, written: Mutex::new(written) })
    }

    /// Returns the acceptor of connections.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// Reads the files again if they were modified since, or if asked to; returns whether it did.
    ///
    /// # Errors
    /// Why the files cannot be used. Nothing is changed then.
    pub fn reload(&self, is_asked: bool) -> Result<bool, CertificateError> {
        let now = written(&self.setup);
        {
            let mut before = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            if *before == now && !is_asked {
                return Ok(false);
            }
            // Unusable files are reported once.
            *before = now;
        }
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = read(&self.setup)?;
        Ok(true)
    }

    /// Returns when the certificate expires.
    pub fn expires(&self) -> SystemTime {
        self.current.0.read().unwrap_or_else(PoisonError::into_inner).expires
    }

    /// Returns the path of the certificate's file.
    pub fn file(&self) -> &Path {
        &self.setup.cert_file
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).key))
    }
}

fn read(CertificateFiles { cert_file, key_file }: &CertificateFiles) -> Result<Pair, CertificateError> {
    let bad_cert = |what: String| CertificateError::Certificate(cert_file.clone(), what);
    let bad_key = |what: String| CertificateError::Key(key_file.clone(), what);
    let chain = CertificateDer::pem_file_iter(cert_file).map_err(|error| bad_cert(error.to_string()))?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(|error| bad_cert(error.to_string()))?;
    let Some(first) = chain.first() else {
        return Err(bad_cert("no certificate in it: it must hold one or more in PEM".to_owned()));
    };
    let expires = expires(first).map_err(|error| bad_cert(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| bad_key(error.to_string()))?;
    let key = ring::sign::any_supported_type(&key).map_err(|error| bad_key(error.to_string()))?;
    let key = CertifiedKey::new(chain.clone(), key);
    key.keys_match()
        .map_err(|_| CertificateError::Mismatch { key_file: key_file.clone(), cert_file: cert_file.clone() })?;
    Ok(Pair { key: Arc::new(key), expires })
}

/// Returns when a certificate expires.
///
/// # Errors
/// The bytes are not a certificate.
pub(super) fn expires(certificate: &CertificateDer<'_>) -> Result<SystemTime, nom::Err<X509Error>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn written(CertificateFiles { cert_file, key_file }: &CertificateFiles) -> [Option<SystemTime>; 2] {
    [cert_file, key_file].map(|path| std::fs::metadata(path).and_then(|data| data.modified()).ok())
}
