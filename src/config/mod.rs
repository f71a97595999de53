//! The configuration: the shape of the TOML file, its defaults with their reasons, and the checks
//! beyond types.
//!
//! Owns [`Config`] and the conversion to the components' configurations. Never holds a secret: the
//! file names files that do, so a configuration may be shown. Unknown keys are errors. Durations
//! are text such as `"500ms"`, sizes such as `"8MiB"` or `"8MB"`.

mod allow;
mod backend;
mod backends;
pub mod data_dir;
pub(crate) mod exposure;
pub(crate) mod host;
mod invalid;
pub(crate) mod listen;
mod listener;
mod listeners;
mod load;
mod pair;
pub mod relay_toml;
mod size;
mod source;
pub mod url;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::journal::Durability;
use crate::journal::disk::{Compression, WhenFull};
pub use backend::Backend;
pub(crate) use backends::{check_backend, influx_config};
pub(crate) use listener::{Common, DEFAULT_SEPARATOR};
pub use listener::{DefaultTags, Errors, Format, Http, Mapping, NamedMapping, Partial, Tcp, Udp};
pub use load::{ConfigError, Overrides};
pub use pair::Pair;

/// The whole configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder of the journal, the archive and the dead letters; a lock file guards it. The default
    /// follows the Filesystem Hierarchy Standard.
    pub data_dir: PathBuf,
    /// The longest time that a shutdown delivers pending lines. Below the 90 s after which systemd
    /// kills.
    #[serde(with = "duration")]
    pub shutdown_timeout: Duration,
    /// The admin listener, with the status page.
    pub admin: Admin,
    /// UDP listeners.
    pub udp: Vec<Udp>,
    /// TCP listeners.
    pub tcp: Vec<Tcp>,
    /// HTTP listeners.
    pub http: Vec<Http>,
    /// Backends; each gets every line.
    pub backend: Vec<Backend>,
    /// Users, tokens and their rights over HTTP.
    #[serde(skip_serializing_if = "Auth::is_empty")]
    pub auth: Auth,
    /// Queries of readers.
    pub query: Query,
    /// The journal.
    pub journal: Journal,
    /// Lines that a backend will never take.
    pub dead_letters: DeadLetters,
    /// The other relay of a pair.
    #[serde(skip_serializing_if = "Pair::is_empty")]
    pub pair: Pair,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/twinflux"),
            shutdown_timeout: Duration::from_secs(10),
            admin: Admin::default(),
            udp: Vec::new(),
            tcp: Vec::new(),
            http: Vec::new(),
            backend: Vec::new(),
            auth: Auth::default(),
            query: Query::default(),
            journal: Journal::default(),
            dead_letters: DeadLetters::default(),
            pair: Pair::default(),
        }
    }
}

impl Config {
    /// Whether the only backend is the archive that a file without backends gets.
    pub fn has_default_backend(&self) -> bool {
        matches!(&self.backend[..], [Backend { name, url: url::BackendUrl::Archive(path), .. }]
            if name == "archive" && path.ends_with("archive"))
    }

    /// Whether a backend or the pair has a password or a token.
    pub fn holds_secrets(&self) -> bool {
        self.pair.token_file.is_some() || self.backend.iter().any(exposure::holds_secrets)
    }
}

/// The admin listener, which shows the relay's state.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Address that serves `/metrics`, `/api/status`, `/health` and `/ready`. Loopback by default,
    /// because without `users` it has no password.
    #[serde(deserialize_with = "listen::admin")]
    pub listen: SocketAddr,
    /// Host names under which `/api` may be asked, besides loopback and the listener's own address;
    /// for example a reverse proxy's name. Others are refused, because a web page elsewhere could
    /// read the answers by DNS rebinding.
    pub hosts: Vec<String>,
    /// Whether requests other than `/health` and `/ready` need a user of `[auth]` with the right
    /// `admin`.
    pub users: bool,
    /// Certificate chain (PEM) for TLS; without it the listener speaks plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert_file: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key_file: Option<PathBuf>,
}

impl Default for Admin {
    fn default() -> Self {
        let (hosts, users, tls_cert_file, tls_key_file) = Default::default();
        let listen = SocketAddr::from(([127, 0, 0, 1], 9097));
        Self { listen, hosts, users, tls_cert_file, tls_key_file }
    }
}

/// Users, tokens and their rights. Without a file, everybody may do everything.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// Users, in the format that `htpasswd -B` writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_file: Option<PathBuf>,
    /// Tokens, as `NAME:TOKEN` or `NAME:sha256:HEX`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_file: Option<PathBuf>,
    /// Rights; a user or token without one may do nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub right: Vec<Right>,
}

impl Auth {
    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.users_file.is_none() && self.tokens_file.is_none() && self.right.is_empty()
    }
}

/// The rights of a user or a token.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Right {
    /// Name of the user or token; `*` matches all.
    pub name: String,
    /// Databases it may write; `*` stands for any text.
    pub write: Vec<String>,
    /// Databases it may read.
    pub read: Vec<String>,
    /// Whether it may use the admin listener.
    pub admin: bool,
}

/// How queries of readers are answered.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// If no copy is complete, a copy may answer that lags less than this. The default covers some
    /// requests, but no outage.
    #[serde(with = "duration")]
    pub max_lag: Duration,
    /// What to answer if no copy is complete.
    pub incomplete: Incomplete,
    /// The longest silence of an answer. Grafana waits for 30 s.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Concurrent queries to one backend; more wait for at most 5 s. InfluxDB itself has no limit.
    pub max_concurrent: u16,
    /// Whether a source stays with one copy even if another one has less to do.
    pub sticky: bool,
    /// How to treat `SELECT … INTO`.
    pub select_into: SelectInto,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            max_lag: Duration::from_secs(10),
            incomplete: Incomplete::default(),
            timeout: Duration::from_secs(60),
            max_concurrent: 16,
            sticky: false,
            select_into: SelectInto::default(),
        }
    }
}

/// What to answer if no copy is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Incomplete {
    /// Answer from the least incomplete copy, with headers that say so.
    #[default]
    Serve,
    /// Answer 503.
    Refuse,
}

/// How to treat `SELECT … INTO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SelectInto {
    /// Refuse it: copies that differ for a moment would differ for ever.
    #[default]
    Refuse,
    /// Run it on every backend.
    All,
}

/// The store of lines that a backend will never take.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeadLetters {
    /// The most disk space; the oldest letters go first. The default holds some 200,000 lines, more
    /// than anybody reads.
    #[serde(with = "size")]
    pub disk: ByteSize,
}

impl Default for DeadLetters {
    fn default() -> Self {
        Self { disk: ByteSize::mib(64) }
    }
}

/// The journal's settings. All but `durability` and `memory` concern the disk.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Journal {
    /// What a crash may cost. With the default, `written`, a killed process loses nothing at little
    /// cost.
    pub durability: Durability,
    /// Memory for pending lines, a hard bound. The default holds 200,000 lines and is small beside
    /// an InfluxDB.
    #[serde(with = "size")]
    pub memory: ByteSize,
    /// Disk space for pending lines, a hard bound. The default holds a day of 300 lines a second.
    #[serde(with = "size")]
    pub disk: ByteSize,
    /// The longest time that written lines stay unsynced, and so what a power cut may cost. 4 MiB
    /// of unsynced data are synced earlier.
    #[serde(with = "duration")]
    pub sync_interval: Duration,
    /// Trades CPU for disk space. Old segments shrink to a sixth; data that is delivered soon costs
    /// nothing.
    pub compression: Compression,
    /// What gives way when the disk is full. By default old lines do: fresh metrics are worth more.
    pub full: WhenFull,
    /// Lines older than this are given up; 0 disables the limit, because the quota bounds the
    /// journal anyway.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// Space to leave free on the volume, because other programs use it, too. By default 5 %, at
    /// most 1 GiB.
    #[serde(skip_serializing_if = "Option::is_none", with = "size::optional")]
    pub min_free: Option<ByteSize>,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            memory: ByteSize::mib(64),
            disk: ByteSize::gib(8),
            sync_interval: Duration::from_millis(500),
            compression: Compression::default(),
            full: WhenFull::default(),
            max_age: Duration::ZERO,
            min_free: None,
        }
    }
}

/// Durations as text, such as `"500ms"`.
mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|error| {
            de::Error::custom(format!("{text:?} is no duration ({error}): write \"500ms\" or \"10s\""))
        })
    }

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }
}
