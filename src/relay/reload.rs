//! What is read again while the relay runs: users, tokens and certificates when their files change; on SIGHUP and
//! `twinflux reload` also the configuration.
//!
//! A file that cannot be used changes nothing, and is told. So is what only a restart changes.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use crate::auth::Auth;
use crate::config::{Config, Query};
use crate::net::tls::Certificate;
use crate::observe::findings::CERTIFICATE_SOON_DAYS;
use crate::query::Readers;
use crate::receive::{Listener, Setup};

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
}

/// Reads the configuration again.
type Source = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// The configuration as it runs, and what can be changed by it.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) config: Config,
    pub(super) listeners: Arc<Vec<Listener>>,
    pub(super) readers: Arc<Readers>,
}

/// The keys of readers that a reload changes.
const CHANGEABLE: [&str; 4] = ["query.max_lag", "query.incomplete", "query.timeout", "query.sticky"];

/// Whether a reload changes this key, as `udp[0].allow`: a listener's only where the listeners are the same.
fn is_changeable(key: &str, has_same_listeners: bool) -> bool {
    let is_listeners = ["udp[", "tcp[", "http["].iter().any(|kind| key.starts_with(kind));
    CHANGEABLE.contains(&key) || (has_same_listeners && is_listeners && key.ends_with("].allow"))
}

impl Reload {
    /// Of what runs by a configuration.
    pub(super) fn new(auth: Option<Arc<Auth>>, certificates: Vec<Arc<Certificate>>, running: Running) -> Self {
        Self { auth, certificates, running: Mutex::new(running), source: OnceLock::new() }
    }

    /// Reads the configuration by this from now on.
    pub fn read_by(&self, source: impl Fn() -> Result<Config, String> + Send + Sync + 'static) {
        self.source.set(Box::new(source)).ok();
    }

    /// Reads the configuration again, and the files of users, tokens and certificates that it named at the start. Takes what
    /// can be changed, and says what it did, a sentence for each.
    ///
    /// # Errors
    /// The configuration, or one of the files, cannot be used: what stays as it was, and why.
    pub fn run(&self) -> Result<Vec<String>, String> {
        let read = match self.source.get() {
            Some(source) => source(),
            None => Ok(self.running.lock().unwrap_or_else(PoisonError::into_inner).config.clone()),
        };
        let (setups, config) = read.and_then(|config| Ok((config.listeners(None)?, config))).map_err(|error| {
            tracing::error!(error, "the configuration stays as it was");
            format!("nothing was changed: {error}")
        })?;
        let wrong = self.look(true);
        if !wrong.is_empty() {
            return Err(format!("{}; the configuration stays as it was", wrong.join("; ")));
        }
        let mut done = vec!["users, tokens and certificates were read again".to_owned()];
        done.extend(self.take(&setups, config));
        done.iter().for_each(|sentence| tracing::info!("reload: {sentence}"));
        Ok(done)
    }

    /// Takes what can be changed; what was, and what needs a restart.
    fn take(&self, setups: &[Setup], config: Config) -> Vec<String> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = differing(&running.config, &config);
        if changed.is_empty() {
            return vec!["the configuration is as it was".to_owned()];
        }
        let has_same_listeners = listens(&running.config) == listens(&config);
        running.take_query(&config);
        if has_same_listeners {
            running.take_allow(setups, config);
        }
        let (taken, left): (Vec<_>, Vec<_>) =
            changed.into_iter().partition(|key| is_changeable(key, has_same_listeners));
        let taken = taken.into_iter().map(|key| format!("{key} was changed"));
        taken.chain(left.into_iter().map(|key| format!("{key} differs, and is changed by a restart only"))).collect()
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
    fn take_query(&mut self, config: &Config) {
        let Query { max_concurrent, select_into, .. } = self.config.query;
        self.config.query = Query { max_concurrent, select_into, ..config.query.clone() };
        self.readers.set(super::reading::settings(&self.config));
    }

    /// Takes who may write; the listeners are the same.
    fn take_allow(&mut self, setups: &[Setup], config: Config) {
        for (listener, setup) in self.listeners.iter().zip(setups) {
            listener.allow().replace(setup.intake().allow.networks());
        }
        for (known, new) in self.config.udp.iter_mut().zip(config.udp) {
            known.allow = new.allow;
        }
        for (known, new) in self.config.tcp.iter_mut().zip(config.tcp) {
            known.allow = new.allow;
        }
        for (known, new) in self.config.http.iter_mut().zip(config.http) {
            known.allow = new.allow;
        }
    }
}

/// Says what is likely a mistake, or not what whoever set up users expects of these listeners.
pub(super) fn warn(auth: Option<&Arc<Auth>>, certificates: &[Arc<Certificate>], listeners: &[Setup]) {
    if auth.is_some() {
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

/// Kind and address of each listener.
fn listens(config: &Config) -> Vec<(&'static str, std::net::SocketAddr)> {
    let of_udp = config.udp.iter().map(|one| ("udp", one.listen));
    let of_tcp = config.tcp.iter().map(|one| ("tcp", one.listen));
    of_udp.chain(of_tcp).chain(config.http.iter().map(|one| ("http", one.listen))).collect()
}

/// The keys in which two configurations differ, as `udp[0].allow`.
fn differing(one: &Config, other: &Config) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let values = [one, other].map(|config| toml::Value::try_from(config).ok());
    compare(&mut found, "", values.each_ref().map(Option::as_ref));
    found
}

fn compare(found: &mut BTreeSet<String>, path: &str, values: [Option<&toml::Value>; 2]) {
    use toml::Value::{Array, Table};
    match values {
        [one, other] if one == other => {}
        [Some(Table(one)), Some(Table(other))] => {
            for key in one.keys().chain(other.keys()).collect::<BTreeSet<_>>() {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(found, &path, [one.get(key), other.get(key)]);
            }
        }
        [Some(Array(one)), Some(Array(other))] if one.iter().chain(other).all(toml::Value::is_table) => {
            for place in 0..one.len().max(other.len()) {
                compare(found, &format!("{path}[{place}]"), [one.get(place), other.get(place)]);
            }
        }
        _ => drop(found.insert(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Udp;

    #[test]
    fn what_differs_is_named_by_its_key() {
        let mut one = Config::default();
        one.udp.push(Udp::default());
        let mut other = one.clone();
        assert!(differing(&one, &other).is_empty());
        other.udp[0].allow = vec!["10.0.0.0/8".parse().expect("a network")];
        other.query.max_lag = Duration::from_secs(3);
        other.udp.push(Udp::default());
        let found: Vec<String> = differing(&one, &other).into_iter().collect();
        assert_eq!(found, ["query.max_lag", "udp[0].allow", "udp[1]"]);
        for (key, expected) in [
            ("udp[0].allow", true),
            ("query.timeout", true),
            ("backend[1].timeout", false),
            ("query.select_into", false),
        ] {
            assert_eq!(is_changeable(key, true), expected, "{key}");
        }
        assert!(is_changeable("query.timeout", false) && !is_changeable("udp[0].allow", false));
    }
}
