//! What is read again while the relay runs, when its file changes and on SIGHUP: users, tokens, certificates.
//!
//! A file that cannot be used changes nothing, and is told.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::auth::Auth;
use crate::net::tls::Certificate;
use crate::receive::Setup;

/// How often to look whether a file has changed.
const INTERVAL: Duration = Duration::from_secs(10);
/// A certificate that expires so soon is told at the start.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// Everything that can be read again.
#[derive(Debug, Default)]
pub struct Reload {
    pub(super) auth: Option<Arc<Auth>>,
    pub(super) certificates: Vec<Arc<Certificate>>,
}

impl Reload {
    /// Reads again what has changed.
    pub fn look(&self) {
        if let Some(auth) = &self.auth {
            match auth.reload() {
                Ok(false) => {}
                Ok(true) => tracing::info!("read users and tokens again"),
                Err(error) => tracing::error!(error, "users and tokens stay as they were"),
            }
        }
        for certificate in &self.certificates {
            let file = certificate.file().display();
            match certificate.reload() {
                Ok(false) => {}
                Ok(true) => tracing::info!(%file, "read a certificate again; new connections get it"),
                Err(error) => tracing::error!(error, "the certificate stays as it was"),
            }
        }
    }

    /// Looks every so often, until the runtime ends.
    pub(super) async fn watch(self: Arc<Self>) {
        if self.auth.is_none() && self.certificates.is_empty() {
            return;
        }
        loop {
            tokio::time::sleep(INTERVAL).await;
            let this = Arc::clone(&self);
            // Files may be on a disk that hangs.
            drop(tokio::task::spawn_blocking(move || this.look()).await);
        }
    }

    /// Says what is likely a mistake, or not what whoever set up users expects of these listeners.
    pub(super) fn warn(&self, listeners: &[Setup]) {
        if self.auth.is_some() {
            for setup in listeners.iter().filter(|setup| !matches!(setup, Setup::Http(_))) {
                let (kind, listen) = (setup.kind(), setup.listen());
                tracing::warn!(kind, %listen, "this listener knows no users: whoever is in allow may write to it");
            }
            for setup in listeners.iter().filter(|setup| matches!(setup, Setup::Http(http) if http.tls.is_none())) {
                if !setup.listen().ip().is_loopback() {
                    tracing::warn!(listen = %setup.listen(), "passwords and tokens come here in clear: set tls_cert_file");
                }
            }
        }
        for name in self.auth.iter().flat_map(|auth| auth.strangers()) {
            tracing::warn!(name, "auth.right names somebody whom no file has");
        }
        for certificate in &self.certificates {
            let (file, expires) = (certificate.file().display(), certificate.expires());
            let at = humantime::format_rfc3339_seconds(expires);
            if expires <= SystemTime::now() {
                tracing::warn!(%file, %at, "the certificate has expired: clients will refuse it");
            } else if expires <= SystemTime::now() + SOON {
                tracing::warn!(%file, %at, "the certificate expires soon");
            }
        }
    }
}
