//! The configuration: the TOML file's shape, its defaults with their reasons, and what is checked beyond types.
//!
//! Unknown keys are errors. Durations are text like `"500ms"`, sizes like `"8MiB"` or `"8MB"`. Secrets are never in the
//! file: it names files that hold them, so that a configuration may be shown.

mod allow;
mod backend;
mod backends;
pub mod data_dir;
pub(crate) mod exposure;
pub(crate) mod host;
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
    /// Journal, archive and dead letters; a lock file guards it. The place the Filesystem Hierarchy Standard gives.
    pub data_dir: PathBuf,
    /// How long a shutdown may take to deliver what is pending: below the 90 s after which systemd kills.
    #[serde(with = "duration")]
    pub shutdown_timeout: Duration,
    /// The status page.
    pub admin: Admin,
    /// UDP listeners.
    pub udp: Vec<Udp>,
    /// TCP listeners.
    pub tcp: Vec<Tcp>,
    /// HTTP listeners.
    pub http: Vec<Http>,
    /// Backends; each gets everything.
    pub backend: Vec<Backend>,
    /// Who may do what, over HTTP.
    #[serde(skip_serializing_if = "Auth::is_empty")]
    pub auth: Auth,
    /// Readers' questions.
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
    /// Whether its only backend is the archive that a file without backends has.
    pub fn has_default_backend(&self) -> bool {
        matches!(&self.backend[..], [Backend { name, url: url::BackendUrl::Archive(path), .. }]
            if name == "archive" && path.ends_with("archive"))
    }

    /// Whether a backend has a password or a token, or the pair has one.
    pub fn holds_secrets(&self) -> bool {
        self.pair.token_file.is_some() || self.backend.iter().any(exposure::holds_secrets)
    }
}

/// Where the state is shown.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// `/metrics`, `/api/status`, `/health`, `/ready`. Loopback: without `users` it has no password.
    #[serde(deserialize_with = "listen::admin")]
    pub listen: SocketAddr,
    /// Names under which `/api` may be asked beside loopback and the listener's own address: a reverse proxy's, say. Any
    /// other is refused, for a web page elsewhere could read the answers by DNS rebinding.
    pub hosts: Vec<String>,
    /// Whether only a user of `[auth]` with the right `admin` may ask for more than `/health` and `/ready`.
    pub users: bool,
    /// The certificate (PEM) for TLS, with those that it was signed by; without it the listener speaks plain HTTP.
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

/// Users, tokens and their rights. Without a file everybody may everything.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// Users, as `htpasswd -B` writes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_file: Option<PathBuf>,
    /// Tokens: `NAME:TOKEN` or `NAME:sha256:HEX`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_file: Option<PathBuf>,
    /// What each may do: nothing without one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub right: Vec<Right>,
}

impl Auth {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.users_file.is_none() && self.tokens_file.is_none() && self.right.is_empty()
    }
}

/// What a user or a token may do.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Right {
    /// The user's or token's name; `*` for all.
    pub name: String,
    /// Databases that it may write, with `*` for any text.
    pub write: Vec<String>,
    /// Databases that it may read.
    pub read: Vec<String>,
    /// Whether it may administer.
    pub admin: bool,
}

/// How readers' questions are answered.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// A copy that lags less may answer where none is complete: some requests, and no outage.
    #[serde(with = "duration")]
    pub max_lag: Duration,
    /// What is answered if no copy is complete.
    pub incomplete: Incomplete,
    /// How long an answer may be silent: Grafana waits for 30 s.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Questions to one backend at a time; more wait, at most 5 s. InfluxDB itself has no limit.
    pub max_concurrent: u16,
    /// Whether a source stays with one copy also where another one has less to do.
    pub sticky: bool,
    /// What becomes of `SELECT … INTO`.
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

/// What is answered if no copy is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Incomplete {
    /// The least incomplete copy's answer, with headers that say so.
    #[default]
    Serve,
    /// 503.
    Refuse,
}

/// What becomes of `SELECT … INTO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SelectInto {
    /// It is refused: copies that differ for a moment would differ for ever.
    #[default]
    Refuse,
    /// Every backend runs it.
    All,
}

/// Where lines are kept that a backend will never take.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeadLetters {
    /// The disk for them: the oldest go first. Some 200,000 lines are more than anybody reads.
    #[serde(with = "size")]
    pub disk: ByteSize,
}

impl Default for DeadLetters {
    fn default() -> Self {
        Self { disk: ByteSize::mib(64) }
    }
}

/// The journal's settings. All but `durability` and `memory` are about the disk.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Journal {
    /// What a crash may cost. Written: a killed process costs nothing, and it costs little.
    pub durability: Durability,
    /// The memory for lines that a backend has yet to take, a hard bound: 200,000 lines, and small beside an InfluxDB.
    #[serde(with = "size")]
    pub memory: ByteSize,
    /// The disk for lines that a backend has yet to take, a hard bound: a day of 300 lines a second.
    #[serde(with = "size")]
    pub disk: ByteSize,
    /// How long written lines stay unsynced: what a power cut may cost. A disk is synced earlier after 4 MiB.
    #[serde(with = "duration")]
    pub sync_interval: Duration,
    /// Less disk for more CPU: what lies on the disk for long takes a sixth, and what does not costs nothing.
    pub compression: Compression,
    /// What gives way when there is no room on the disk: fresh metrics are worth more than old ones.
    pub full: WhenFull,
    /// Lines older than this are given up; 0 never: the quota is bound enough.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// What is left free on the volume; without it 5 %, at most 1 GiB: other programs live there, too.
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

/// Durations as text, `"500ms"`.
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
