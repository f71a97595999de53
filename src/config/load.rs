//! Loads the configuration from a file and command-line options, checks it, and converts it to the
//! components' configurations.
//!
//! Every error names the file, the line, the key, and what would be right. Never quotes a line of
//! the file, which might hold a secret.

use std::collections::HashSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::auth::{self, Auth, Right};
use crate::batch::Received;
use crate::config::backends::{check_backend, influx_config};
use crate::config::exposure;
use crate::config::host::is_host;
use crate::config::listeners::{NO_MULTICAST, certificate, check_tls};
use crate::config::relay_toml::{self, Converted};
use crate::config::source::Source;
use crate::config::url::BackendUrl;
use crate::config::{self, Backend, Config, Http, Journal, Query, Udp};
use crate::deliver::{self, Bounds, MAX_DATAGRAM_BYTES, Target};
use crate::journal::disk::DiskOptions;
use crate::journal::{BackendConfig, Durability, Limits};
use crate::net::tls::Certificate;
use crate::protocol::line::MAX_LINE_BYTES;

/// The default data folder without a configuration file, below the current folder.
const DATA_DIR_WITHOUT_FILE: &str = "twinflux-data";
/// The least memory of a journal: a few batches in flight.
const MIN_MEMORY: u64 = 4 << 20;
/// The most memory of a journal; more is a mistake.
const MAX_MEMORY: u64 = 64 << 30;
/// The least disk space of a journal: eight segments that each hold a few of the largest records.
pub(super) const MIN_DISK: u64 = 8 << 20;
/// Interval of retries on a disk that fails or is full: two tries within the two seconds that
/// recovery may take.
const DISK_RETRY: Duration = Duration::from_secs(1);
/// The most disk space of a journal: more than any machine has.
pub(super) const MAX_DISK: u64 = 1 << 50;
/// The most names of the admin listener.
const MAX_HOSTS: usize = 64;
/// Error of an age that is too short.
pub(super) const TOO_SHORT: &str = "must be at least 1m, or 0s for none";
/// The longest timeout: longer than anybody waits.
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

/// An invalid configuration: where, and what would be right.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub(super) fn new(what: impl Display) -> Self {
        Self(what.to_string())
    }
}

/// Settings from the command line.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--udp`
    pub udp: Option<std::net::SocketAddr>,
    /// `--http`
    pub http: Option<std::net::SocketAddr>,
    /// `--admin`
    pub admin: Option<std::net::SocketAddr>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--backend`
    pub backends: Vec<BackendUrl>,
    /// `--database`
    pub database: Option<String>,
    /// `--backend-username` and `--backend-password-file`
    pub credentials: Option<(String, PathBuf)>,
}

impl Config {
    /// Reads the file, if there is one, applies the command line, fills in defaults, and checks the
    /// result.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        let text = match file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| ConfigError(format!("cannot read the configuration {}: {error}", path.display())))?,
            None => String::new(),
        };
        let name = file.map_or_else(String::new, |path| path.display().to_string());
        Self::of_text(&Source { name, text }, overrides, file.is_some())
    }

    /// Loads influxdb-relay's file in the same way; also returns how the result differs.
    ///
    /// # Errors
    /// The first thing that is wrong, or that has no counterpart.
    pub fn load_relays(file: &Path, overrides: Overrides) -> Result<(Self, Vec<String>), ConfigError> {
        let Converted { text, differs } = relay_toml::convert(file).map_err(ConfigError::new)?;
        let source = Source { name: format!("{} (converted)", file.display()), text };
        Ok((Self::of_text(&source, overrides, true)?, differs))
    }

    fn of_text(source: &Source, overrides: Overrides, is_file: bool) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(&source.text).map_err(|error| source.syntax(&error))?;
        if !is_file {
            config.data_dir = PathBuf::from(DATA_DIR_WITHOUT_FILE);
        }
        config.apply(overrides);
        config.check(source)?;
        Ok(config)
    }

    /// Returns the users, tokens and rights from the files that `[auth]` names; `None` if it names
    /// none.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn auth(&self) -> Result<Option<Auth>, ConfigError> {
        let config::Auth { users_file, tokens_file, right } = &self.auth;
        if users_file.is_none() && tokens_file.is_none() {
            return Ok(None);
        }
        let rights = right.iter().map(|right| Right {
            name: right.name.clone(),
            write: right.write.clone(),
            read: right.read.clone(),
            admin: right.admin,
        });
        let (users_file, tokens_file) = (users_file.clone(), tokens_file.clone());
        let auth = Auth::open(auth::AuthConfig { users_file, tokens_file, rights: rights.collect() });
        auth.map(Some).map_err(ConfigError::new)
    }

    /// Returns the admin listener's certificate, if it speaks TLS.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn admin_certificate(&self) -> Result<Option<Arc<Certificate>>, ConfigError> {
        let files = (&self.admin.tls_cert_file, &self.admin.tls_key_file);
        certificate(files, Some(b"http/1.1")).map_err(|error| ConfigError::new(format_args!("admin: {error}")))
    }

    /// Returns warnings of settings that work but are probably not intended; each sentence says
    /// what would be right.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = exposure::warnings(self);
        let longest = self.tcp.iter().map(|listener| listener.max_line.as_u64()).max();
        if longest.is_some_and(|bytes| bytes > MAX_LINE_BYTES as u64) {
            let relays = self.backend.iter().filter(|backend| matches!(backend.url, BackendUrl::Relay(_)));
            warnings.extend(relays.map(|backend| {
                format!(
                    "backend {:?} rejects lines of more than {MAX_DATAGRAM_BYTES} bytes, which tcp.max_line lets in: no \
                     datagram carries them",
                    backend.name
                )
            }));
        }
        warnings
    }

    fn apply(&mut self, overrides: Overrides) {
        if let Some(path) = overrides.data_dir {
            self.data_dir = path;
        }
        self.data_dir = std::path::absolute(&self.data_dir).unwrap_or_else(|_| self.data_dir.clone());
        if let Some(listen) = overrides.admin {
            self.admin.listen = listen;
        }
        let has_others = !self.tcp.is_empty() || !self.http.is_empty();
        if self.udp.is_empty() && (!has_others || overrides.udp.is_some()) {
            self.udp.push(Udp::default());
        }
        if let Some(listen) = overrides.udp {
            self.udp.truncate(1);
            self.udp[0].listen = listen;
        }
        if let Some(listen) = overrides.http {
            self.http.truncate(1);
            self.http.resize_with(1, Http::default);
            self.http[0].listen = listen;
        }
        if let Some(database) = overrides.database {
            let of_udp = self.udp.iter_mut().map(|listener| &mut listener.database);
            let of_tcp = self.tcp.iter_mut().map(|listener| &mut listener.database);
            for known in of_udp.chain(of_tcp).chain(self.http.iter_mut().map(|listener| &mut listener.database)) {
                known.clone_from(&database);
            }
        }
        if !overrides.backends.is_empty() {
            // A name derived from the position would give one server's lines to another.
            self.backend = overrides.backends.into_iter().map(|url| Backend::new(url.name(), url)).collect();
        }
        if let Some((username, password_file)) = overrides.credentials {
            let of_influx = self.backend.iter_mut().filter(|one| matches!(one.url, BackendUrl::Influx { .. }));
            for backend in of_influx {
                (backend.username, backend.password_file) = (Some(username.clone()), Some(password_file.clone()));
            }
        }
        if self.backend.is_empty() {
            let archive = BackendUrl::Archive(self.data_dir.join("archive"));
            self.backend.push(Backend::new("archive".to_owned(), archive));
        }
    }

    /// Checks the configuration. A loaded configuration is valid.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&self) -> Result<(), ConfigError> {
        self.check(&Source { name: String::new(), text: String::new() })
    }

    fn check(&self, source: &Source) -> Result<(), ConfigError> {
        if !self.auth.right.is_empty() && self.auth.users_file.is_none() && self.auth.tokens_file.is_none() {
            return Err(ConfigError("[[auth.right]] needs users_file or tokens_file in [auth]".to_owned()));
        }
        if self.auth.right.iter().any(|right| right.name.is_empty()) {
            return Err(ConfigError("auth.right: name must not be empty; \"*\" is for all".to_owned()));
        }
        if self.shutdown_timeout > MAX_TIMEOUT {
            return Err(ConfigError("shutdown_timeout must be at most 1h".to_owned()));
        }
        if self.journal.memory.as_u64() > MAX_MEMORY {
            return Err(source.at("journal", 0, "memory", "must be at most 64GiB"));
        }
        let requests: u64 = self.backend.iter().map(|backend| backend.max_batch_bytes.as_u64()).sum();
        let least = MIN_MEMORY.max(2 * requests);
        if self.journal.memory.as_u64() < least {
            let what =
                format!("must be at least {}MiB: room for two requests to each backend", least.div_ceil(1 << 20));
            return Err(source.at("journal", 0, "memory", &what));
        }
        self.check_disk(source)?;
        if self.admin.listen.ip().is_multicast() {
            return Err(source.at("admin", 0, "listen", NO_MULTICAST));
        }
        check_tls(self.admin.tls_cert_file.as_ref(), self.admin.tls_key_file.as_ref())
            .map_err(|error| source.invalid("admin", 0, &error))?;
        if self.admin.users && self.auth.users_file.is_none() && self.auth.tokens_file.is_none() {
            return Err(source.at("admin", 0, "users", "needs users_file or tokens_file in [auth]"));
        }
        if self.admin.hosts.len() > MAX_HOSTS {
            return Err(source.at("admin", 0, "hosts", "may have at most 64 names"));
        }
        if let Some(host) = self.admin.hosts.iter().find(|host| !is_host(host)) {
            let what = format!("holds {host:?}: write names or addresses without a port: [\"relay.example.org\"]");
            return Err(source.at("admin", 0, "hosts", &what));
        }
        self.check_query(source)?;
        self.pair.setup().map_err(|error| source.invalid("pair", 0, &error))?;
        let mut addresses = HashSet::new();
        for (table, index, listener) in self.each_listener() {
            listener.check(&self.backend).map_err(|error| source.invalid(table, index, &error))?;
            if !addresses.insert((table, listener.listen())) && listener.listen().port() != 0 {
                return Err(source.at(table, index, "listen", "is another listener's, too: give each its own port"));
            }
        }
        let (mut names, mut urls) = (HashSet::new(), HashSet::new());
        for (index, backend) in self.backend.iter().enumerate() {
            let (key, what) = match check_backend(backend) {
                Err(error) => return Err(source.invalid("backend", index, &error)),
                Ok(()) if !urls.insert(backend.url.address()) => {
                    ("url", "is another backend's, too: two copies in one place are no mirror")
                }
                Ok(()) if !names.insert(&backend.name) => ("name", "is taken by another backend: names must differ"),
                Ok(()) => continue,
            };
            return Err(source.at("backend", index, key, what));
        }
        Ok(())
    }

    fn check_query(&self, source: &Source) -> Result<(), ConfigError> {
        let Query { max_lag, timeout, max_concurrent, .. } = &self.query;
        for (key, time) in [("max_lag", max_lag), ("timeout", timeout)] {
            if !(Duration::from_millis(100)..=MAX_TIMEOUT).contains(time) {
                return Err(source.at("query", 0, key, "must be between 100ms and 1h"));
            }
        }
        if !(1..=1024).contains(max_concurrent) {
            return Err(source.at("query", 0, "max_concurrent", "must be between 1 and 1024"));
        }
        Ok(())
    }

    fn check_disk(&self, source: &Source) -> Result<(), ConfigError> {
        let Journal { disk, sync_interval, max_age, min_free, .. } = &self.journal;
        let wrong = [
            (disk.as_u64() < MIN_DISK, "disk", "must be at least 8MiB: a segment is an eighth of it"),
            (disk.as_u64() > MAX_DISK, "disk", "must be at most 1PiB"),
            (
                *sync_interval < Duration::from_millis(10),
                "sync_interval",
                "must be at least 10ms; or set durability = \"synced\"",
            ),
            (*sync_interval > MAX_TIMEOUT, "sync_interval", "must be at most 1h"),
            (is_too_short(*max_age), "max_age", TOO_SHORT),
            (min_free.is_some_and(|free| free.as_u64() > MAX_DISK), "min_free", "must be at most 1PiB"),
        ];
        let first = wrong.into_iter().find(|(is_wrong, ..)| *is_wrong);
        first.map_or(Ok(()), |(_, key, what)| Err(source.at("journal", 0, key, what)))?;
        if !(64 << 10..=1 << 30).contains(&self.dead_letters.disk.as_u64()) {
            return Err(source.at("dead_letters", 0, "disk", "must be between 64KiB and 1GiB"));
        }
        Ok(())
    }

    /// Returns the options of the journal on disk; `None` for a journal in memory.
    pub fn disk(&self) -> Option<DiskOptions> {
        let Journal { durability, disk, sync_interval, compression, full, max_age, min_free, .. } = &self.journal;
        (*durability != Durability::Memory).then(|| DiskOptions {
            is_synced: *durability == Durability::Synced,
            compression: *compression,
            quota: disk.as_u64(),
            max_age: Some(*max_age).filter(|age| !age.is_zero()),
            min_free: min_free.map(|free| free.as_u64()),
            full: *full,
            sync_interval: *sync_interval,
            retry_after: DISK_RETRY,
            clock: Received::now,
        })
    }

    /// Returns the folder of the dead letters.
    pub fn dead_letters_folder(&self) -> PathBuf {
        self.data_dir.join("dead-letters")
    }

    /// Returns the folder of the journal.
    pub fn journal_folder(&self) -> PathBuf {
        self.data_dir.join("journal")
    }

    /// Returns the backends' configurations for the journal.
    pub fn journal_backends(&self) -> Vec<BackendConfig> {
        let setup = |backend: &Backend| BackendConfig {
            name: backend.name.clone(),
            address: backend.url.address(),
            replay_share: backend.replay_share,
        };
        self.backend.iter().map(setup).collect()
    }

    /// Returns the backends' configurations for delivery.
    pub fn backends(&self) -> Vec<deliver::DeliveryConfig> {
        self.backend.iter().map(|backend| self.backend_config(backend)).collect()
    }

    fn backend_config(&self, backend: &Backend) -> deliver::DeliveryConfig {
        let target = match &backend.url {
            BackendUrl::Archive(folder) => {
                let bounds = Bounds {
                    disk: backend.disk.map(|disk| disk.as_u64()),
                    max_age: Some(backend.max_age).filter(|age| !age.is_zero()),
                    min_free: self.journal.min_free.map(|free| free.as_u64()),
                };
                Target::Archive(folder.clone(), bounds)
            }
            BackendUrl::Relay(host) => Target::Relay { host: host.clone(), mtu: usize::from(backend.mtu) },
            BackendUrl::Influx { base, .. } => Target::Influx(Box::new(influx_config(backend, base))),
        };
        deliver::DeliveryConfig {
            name: backend.name.clone(),
            target,
            limits: Limits {
                lines: u64::from(backend.max_batch_lines),
                bytes: backend.max_batch_bytes.as_u64(),
                linger: backend.linger,
            },
            concurrency: usize::from(backend.concurrency),
            retry_max: backend.retry_max,
            probe_interval: backend.probe_interval,
        }
    }
}

pub(super) fn is_too_short(max_age: Duration) -> bool {
    !max_age.is_zero() && max_age < Duration::from_secs(60)
}
