//! What is read again while the relay runs: users, tokens and certificates when their files change; on SIGHUP and
//! `twinflux reload` also the configuration.
//!
//! A file that cannot be used changes nothing, and is told. So is what only a restart changes.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use super::plan::{Plan, Successor};
use crate::auth::Auth;
use crate::config::Config;
use crate::net::tls::Certificate;
use crate::observe::findings::CERTIFICATE_SOON_DAYS;
use crate::query::Readers;
use crate::receive::{Listener, ListenerConfig};

/// How often to look whether a file has changed.
const INTERVAL: Duration = Duration::from_secs(10);
/// A certificate that expires so soon is told at the start, and by the status.
const SOON: Duration = Duration::from_secs(CERTIFICATE_SOON_DAYS * 24 * 3600);

/// Everything that can be read again.
pub struct Reload {
    auth: Option<Arc<Auth>>,
    certificates: Vec<Arc<Certificate>>,
    /// What runs by the configuration.
    running: Mutex<Running>,
    /// How the configuration is read again; none where it came from no file.
    source: OnceLock<Source>,
    /// What has another relay take this one's place; none where nobody does.
    succeed: OnceLock<Succeed>,
    /// The configuration of the relay that is to take this one's place.
    successor: Mutex<Option<Box<Successor>>>,
}

/// Reads the configuration again.
type Source = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;
/// Has a relay take this one's place.
type Succeed = Box<dyn Fn(Box<Successor>) + Send + Sync>;

/// The configuration as it runs, and what can be changed by it.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) config: Config,
    pub(super) listeners: Arc<Vec<Listener>>,
    pub(super) readers: Arc<Readers>,
    /// Where the admin listener is.
    pub(super) admin: SocketAddr,
}

impl Reload {
    /// Of what runs by a configuration.
    pub(super) fn new(auth: Option<Arc<Auth>>, certificates: Vec<Arc<Certificate>>, running: Running) -> Self {
        let (source, succeed, successor) = Default::default();
        Self { auth, certificates, running: Mutex::new(running), source, succeed, successor }
    }

    /// Reads the configuration by this from now on.
    pub fn read_by(&self, source: impl Fn() -> Result<Config, String> + Send + Sync + 'static) {
        self.source.set(Box::new(source)).ok();
    }

    /// Has this put another relay in this one's place where a change needs that.
    pub fn succeed_by(&self, succeed: impl Fn(Box<Successor>) + Send + Sync + 'static) {
        self.succeed.set(Box::new(succeed)).ok();
    }

    /// The configuration as it runs, for one that takes this relay's place after all.
    pub fn standing(&self) -> Successor {
        let running = self.lock();
        let addresses: Vec<SocketAddr> = running.listeners.iter().map(Listener::address).collect();
        Successor::new(running.config.clone(), &addresses, running.admin)
    }

    /// The configuration is this one, for whoever compares it with a file.
    pub fn stands_for(&self, config: Config) {
        self.lock().config = config;
    }

    /// Reads the configuration again, and the files of users, tokens and certificates that it named at the start. Takes what
    /// can be changed, and says what it did, a sentence for each. What needs another relay waits for [`Self::succeed`].
    ///
    /// # Errors
    /// The configuration, or one of the files, cannot be used: what stays as it was, and why.
    pub fn run(&self) -> Result<Vec<String>, String> {
        let read = match self.source.get() {
            Some(source) => source(),
            None => Ok(self.lock().config.clone()),
        };
        let prepared = read.and_then(|config| {
            let setups = config.listeners(None)?;
            let running = self.lock();
            let plan = Plan::new(&running.config, &config, self.succeed.get().is_some());
            let addresses: Vec<SocketAddr> = running.listeners.iter().map(Listener::address).collect();
            let successor = plan.successor(&addresses, running.admin)?;
            Ok((setups, plan, successor))
        });
        let (setups, plan, successor) = prepared.map_err(|error| {
            tracing::error!(error, "the configuration stays as it was");
            format!("nothing was changed: {error}")
        })?;
        let wrong = self.look(true);
        if !wrong.is_empty() {
            return Err(format!("{}; the configuration stays as it was", wrong.join("; ")));
        }
        self.lock().take(&plan, &setups);
        *self.successor.lock().unwrap_or_else(PoisonError::into_inner) = successor;
        let mut done = vec!["users, tokens and certificates were read again".to_owned()];
        done.extend(plan.sentences());
        done.iter().for_each(|sentence| tracing::info!("reload: {sentence}"));
        Ok(done)
    }

    /// Has a relay take this one's place, where the last [`Self::run`] asked for that.
    pub fn succeed(&self) {
        let successor = self.successor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(successor), Some(succeed)) = (successor, self.succeed.get()) {
            succeed(successor);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files of users, tokens and certificates again: those that have changed, or all of them. What is wrong with
    /// one is told, and returned.
    fn look(&self, is_asked: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        if let Some(auth) = &self.auth {
            match auth.reload(is_asked) {
                Ok(false) => {}
                Ok(true) => tracing::info!("read users and tokens again"),
                Err(error) => {
                    tracing::error!(error = error.to_string(), "users and tokens stay as they were");
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
                    tracing::error!(error = error.to_string(), "the certificate stays as it was");
                    wrong.push(format!("the certificate {file} stays as it was: {error}"));
                }
            }
        }
        wrong
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
            drop(tokio::task::spawn_blocking(move || this.look(false)).await);
        }
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").field("running", &self.running).finish_non_exhaustive()
    }
}

impl Running {
    /// Takes what is changed at once.
    fn take(&mut self, plan: &Plan, setups: &[ListenerConfig]) {
        let has_same_listeners = plan.has_same_listeners;
        self.config.clone_from(&plan.at_once);
        self.readers.set(super::reading::settings(&self.config));
        for (listener, setup) in self.listeners.iter().zip(setups).filter(|_| has_same_listeners) {
            listener.allow().replace(setup.intake().allow.networks());
        }
    }
}

/// Says what is likely a mistake, or not what whoever set up users expects of these listeners.
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
