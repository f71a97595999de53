//! Reloads while the relay runs: users, tokens and certificates when their files change; on SIGHUP
//! and `twinflux reload` also the configuration.
//!
//! A file that cannot be used changes nothing and is reported. So are changes that need a restart.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use super::BoxError;
use super::plan::{Plan, Successor};
use crate::auth::Auth;
use crate::config::Config;
use crate::net::tls::Certificate;
use crate::observe::findings::CERTIFICATE_SOON_DAYS;
use crate::query::Readers;
use crate::receive::{Listener, ListenerConfig};

/// How often to check whether a file has changed.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Certificates that expire within this time are reported at the start and by the status.
const SOON: Duration = Duration::from_secs(CERTIFICATE_SOON_DAYS * 24 * 3600);

/// Everything that can be reloaded.
pub struct Reload {
    auth: Option<Arc<Auth>>,
    certificates: Vec<Arc<Certificate>>,
    /// The parts that the configuration controls.
    running: Mutex<Running>,
    /// Reads the configuration. Unset if it did not come from a file.
    source: OnceLock<Source>,
    /// Starts a successor. Unset if there can be none.
    succeed: OnceLock<Succeed>,
    /// The configuration of the successor that the last reload asked for.
    successor: Mutex<Option<Box<Successor>>>,
}

/// Reads the configuration.
type Source = Box<dyn Fn() -> Result<Config, BoxError> + Send + Sync>;
/// Starts a successor relay.
type Succeed = Box<dyn Fn(Box<Successor>) + Send + Sync>;

/// Why a reload did not change the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration cannot be used. Nothing was changed.
    #[error("nothing was changed: {0}")]
    Config(BoxError),
    /// These files of users, tokens or certificates cannot be used, a sentence for each.
    #[error("{}; the configuration stays as it was", .0.join("; "))]
    Files(Vec<String>),
}

/// The running configuration, and the parts that it can change.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) config: Config,
    pub(super) listeners: Arc<Vec<Listener>>,
    pub(super) readers: Arc<Readers>,
    /// The address of the admin listener.
    pub(super) admin: SocketAddr,
}

impl Reload {
    /// Creates the handle for a running relay.
    pub(super) fn new(auth: Option<Arc<Auth>>, certificates: Vec<Arc<Certificate>>, running: Running) -> Self {
        let (source, succeed, successor) = Default::default();
        Self { auth, certificates, running: Mutex::new(running), source, succeed, successor }
    }

    /// Sets the function that reads the configuration.
    pub fn read_by(&self, source: impl Fn() -> Result<Config, BoxError> + Send + Sync + 'static) {
        self.source.set(Box::new(source)).ok();
    }

    /// Sets the function that starts a successor if a change needs one.
    pub fn succeed_by(&self, succeed: impl Fn(Box<Successor>) + Send + Sync + 'static) {
        self.succeed.set(Box::new(succeed)).ok();
    }

    /// The running configuration as that of a successor, for falling back to it.
    pub fn standing(&self) -> Successor {
        let running = self.lock();
        let addresses: Vec<SocketAddr> = running.listeners.iter().map(Listener::address).collect();
        Successor::new(running.config.clone(), &addresses, running.admin)
    }

    /// Sets the configuration with which a file is compared.
    pub fn stands_for(&self, config: Config) {
        self.lock().config = config;
    }

    /// Reads the configuration again, and the files of users, tokens and certificates that it named
    /// at the start. Applies what can be changed, and returns what it did, one sentence each.
    /// Changes that need a successor wait for [`Self::succeed`].
    ///
    /// # Errors
    /// The configuration or one of the files cannot be used: what stays as it was, and why.
    pub fn run(&self) -> Result<Vec<String>, ReloadError> {
        let read = match self.source.get() {
            Some(source) => source(),
            None => Ok(self.lock().config.clone()),
        };
        let prepared = read.and_then(|config| {
            let setups = config.listeners(None).map_err(|error| error.to_string())?;
            let running = self.lock();
            let plan = Plan::new(&running.config, &config, self.succeed.get().is_some());
            let addresses: Vec<SocketAddr> = running.listeners.iter().map(Listener::address).collect();
            let successor = plan.successor(&addresses, running.admin)?;
            Ok((setups, plan, successor))
        });
        let (setups, plan, successor) = prepared.map_err(|error| {
            tracing::error!(error = error.to_string(), "the configuration stays as it was");
            ReloadError::Config(error)
        })?;
        let wrong = self.check_files(true);
        if !wrong.is_empty() {
            return Err(ReloadError::Files(wrong));
        }
        self.lock().take(&plan, &setups);
        *self.successor.lock().unwrap_or_else(PoisonError::into_inner) = successor;
        let mut done = vec!["users, tokens and certificates were read again".to_owned()];
        done.extend(plan.sentences());
        done.iter().for_each(|sentence| tracing::info!("reload: {sentence}"));
        Ok(done)
    }

    /// Starts a successor if the last [`Self::run`] asked for one.
    pub fn succeed(&self) {
        let successor = self.successor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(successor), Some(succeed)) = (successor, self.succeed.get()) {
            succeed(successor);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files of users, tokens and certificates again: those that have changed, or all of
    /// them. Logs and returns the errors.
    fn check_files(&self, is_asked: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        if let Some(auth) = &self.auth {
            match auth.reload(is_asked) {
                Ok(false) => {}
                Ok(true) => tracing::info!("read users and tokens again"),
                Err(error) => {
                    tracing::error!(error, "users and tokens stay as they were");
                    wrong.push(format!("users and tokens stay as they were: {error}"));
                }
            }
        }
        for certificate in &self.certificates {
            let file = certificate.file().display();
            match certificate.reload(is_asked) {
                Ok(false) => {}
                Ok(true) => tracing::info!(%file, "read a certificate again; new connections get it"),
                Err(error) => {
                    tracing::error!(error, "the certificate stays as it was");
                    wrong.push(format!("the certificate {file} stays as it was: {error}"));
                }
            }
        }
        wrong
    }

    /// Checks the files at intervals until the runtime ends.
    pub(super) async fn watch(self: Arc<Self>) {
        if self.auth.is_none() && self.certificates.is_empty() {
            return;
        }
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            let this = Arc::clone(&self);
            // Files may be on a hung disk.
            drop(tokio::task::spawn_blocking(move || this.check_files(false)).await);
        }
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").field("running", &self.running).finish_non_exhaustive()
    }
}

impl Running {
    /// Applies the changes that are possible while the relay runs.
    fn take(&mut self, plan: &Plan, setups: &[ListenerConfig]) {
        let has_same_listeners = plan.has_same_listeners;
        self.config.clone_from(&plan.at_once);
        self.readers.set(super::reading::settings(&self.config));
        for (listener, setup) in self.listeners.iter().zip(setups).filter(|_| has_same_listeners) {
            listener.allow().replace(setup.intake().allow.networks());
        }
    }
}

/// Warns about likely mistakes, and about listeners that ignore users.
pub(super) fn warn(auth: Option<&Arc<Auth>>, certificates: &[Arc<Certificate>], listeners: &[ListenerConfig]) {
    if auth.is_some() {
        for setup in listeners.iter().filter(|setup| !matches!(setup, ListenerConfig::Http(_))) {
            let (kind, listen) = (setup.kind(), setup.listen());
            tracing::warn!(kind, %listen, "this listener knows no users: whoever is in allow may write to it");
        }
        for setup in listeners.iter().filter(|setup| matches!(setup, ListenerConfig::Http(http) if http.tls.is_none()))
        {
            if !setup.listen().ip().is_loopback() {
                tracing::warn!(listen = %setup.listen(), "passwords and tokens come here in clear: set tls_cert_file");
            }
        }
    }
    for name in auth.iter().flat_map(|auth| auth.strangers()) {
        tracing::warn!(name, "auth.right names somebody whom no file has");
    }
    for certificate in certificates {
        let (file, expires) = (certificate.file().display(), certificate.expires());
        let at = humantime::format_rfc3339_seconds(expires);
        if expires <= SystemTime::now() {
            tracing::warn!(%file, %at, "the certificate has expired: clients will refuse it");
        } else if expires <= SystemTime::now() + SOON {
            tracing::warn!(%file, %at, "the certificate expires soon");
        }
    }
}
