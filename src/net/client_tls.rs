//! TLS to a server: whom to trust, and who we are.
//!
//! Owns the one exception to the rules of certificates: a server's own certificate may stand in `ca_file`, whether or not it
//! calls itself a CA, as `openssl req -x509` makes it. Never skips a check.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

/// A file that TLS cannot use: which, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ClientTlsError(String);

/// What TLS to a server needs beside its name.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Certificates to trust instead of the system's, in PEM.
    pub ca_file: Option<PathBuf>,
    /// The name that the server's certificate is for; without it the URL's host.
    pub server_name: Option<String>,
    /// This client's certificate and its key, in PEM.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, ClientTlsError> {
        if let Some(name) = &self.server_name {
            ServerName::try_from(name.as_str())
                .map_err(|_| ClientTlsError(format!("tls_server_name {name:?} is no name and no address")))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| ClientTlsError(format!("TLS: {error}")))?;
        let builder = match &self.ca_file {
            Some(path) => {
                let verifier = Trusted::new(certificates("ca_file", path)?, provider)
                    .map_err(|what| ClientTlsError(format!("ca_file {}: {what}", path.display())))?;
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
            None => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                builder.with_root_certificates(roots)
            }
        };
        let Some((certificate, key)) = &self.client else { return Ok(Arc::new(builder.with_no_client_auth())) };
        let bad = |error: &dyn std::fmt::Display| ClientTlsError(format!("client_key_file {}: {error}", key.display()));
        let chain = certificates("client_cert_file", certificate)?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(&error))?;
        Ok(Arc::new(builder.with_client_auth_cert(chain, key).map_err(|error| bad(&error))?))
    }
}

/// The certificates in a file, at least one.
fn certificates(name: &str, path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, ClientTlsError> {
    let bad = |what: String| ClientTlsError(format!("{name} {}: {what}", path.display()));
    let found = CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| bad(error.to_string()))?;
    if found.is_empty() {
        return Err(bad("no certificate in it: it must hold one or more in PEM".to_owned()));
    }
    Ok(found)
}

/// Trusts what these certificates signed, and these certificates themselves.
#[derive(Debug)]
struct Trusted {
    certificates: Vec<CertificateDer<'static>>,
    web: Arc<WebPkiServerVerifier>,
}

impl Trusted {
    fn new(certificates: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(|error| error.to_string())?;
        }
        let web = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Self { certificates, web: web.map_err(|error| error.to_string())? })
    }
}

impl ServerCertVerifier for Trusted {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.web.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // Its times were checked before that (webpki: verify_cert.rs, check_issuer_independent_properties).
            Err(error) if is_ca(&error) && self.certificates.iter().any(|trusted| trusted == end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.web.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.web.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.web.supported_verify_schemes()
    }
}

/// Whether a certificate was refused because it is a CA's.
fn is_ca(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(OtherError(error))) = error else { return false };
    matches!(error.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}
