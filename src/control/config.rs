//! The configuration: the TOML file's shape, its defaults with their reasons, and what is checked beyond types.
//!
//! Unknown keys are errors. Durations are text like `"500ms"`, sizes like `"8MiB"` or `"8MB"`. Secrets are never in the
//! file: it names files that hold them, so that a configuration may be shown.

mod backend;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::journal::Durability;
use crate::journal::disk::{Compression, WhenFull};
use crate::protocol::line::MAX_LINE_BYTES;
use crate::protocol::{Precision, Unsigned};
pub use backend::Backend;

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
    /// Backends; each gets everything.
    pub backend: Vec<Backend>,
    /// The journal.
    pub journal: Journal,
    /// Lines that a backend will never take.
    pub dead_letters: DeadLetters,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/twinflux"),
            shutdown_timeout: Duration::from_secs(10),
            admin: Admin::default(),
            udp: Vec::new(),
            tcp: Vec::new(),
            backend: Vec::new(),
            journal: Journal::default(),
            dead_letters: DeadLetters::default(),
        }
    }
}

impl Config {
    /// Whether a backend has a password or a token.
    pub fn holds_secrets(&self) -> bool {
        self.backend.iter().any(super::exposure::holds_secrets)
    }
}

/// Where the state is shown.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// `/metrics`, `/api/status`, `/health`, `/ready`. Loopback: it has no password.
    #[serde(deserialize_with = "super::listen::admin")]
    pub listen: SocketAddr,
    /// Names under which `/api` may be asked beside loopback and the listener's own address: a reverse proxy's, say. Any
    /// other is refused, for a web page elsewhere could read the answers by DNS rebinding.
    pub hosts: Vec<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9097)), hosts: Vec::new() }
    }
}

/// What a listener's bytes are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Whatever is known; each line is judged for itself.
    #[default]
    Auto,
    /// InfluxDB line protocol.
    Influx,
    /// Graphite's plain text, with or without tags.
    Graphite,
    /// OpenTSDB's telnet commands.
    Opentsdb,
    /// Netdata's JSON, an object to a line.
    NetdataJson,
}

/// What becomes of names that are not line protocol's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "write \"path\", \"netdata\", or a list of graphite templates: [\".host.measurement*\"]")]
pub enum Mapping {
    /// One of those that have a name.
    Named(NamedMapping),
    /// Graphite templates, `[filter] template [key=value,…]`.
    Templates(Vec<String>),
}

/// The mappings that have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NamedMapping {
    /// The path is the measurement, its field is `value`: what InfluxDB's own listeners do.
    Path,
    /// Netdata's chart is the measurement, its dimensions are the fields, the host is a tag.
    Netdata,
}

impl Default for Mapping {
    fn default() -> Self {
        Self::Named(NamedMapping::Path)
    }
}

/// Tags that each converted line gets unless it has the key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "write a table: { dc = \"eu\" }, or a list: [\"dc=eu\"]")]
pub enum DefaultTags {
    /// Keys and values.
    Table(BTreeMap<String, String>),
    /// Texts `key=value`, as InfluxDB's Graphite listener takes them.
    List(Vec<String>),
}

impl Default for DefaultTags {
    fn default() -> Self {
        Self::Table(BTreeMap::new())
    }
}

impl DefaultTags {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Table(tags) => tags.is_empty(),
            Self::List(tags) => tags.is_empty(),
        }
    }
}

/// Joins the parts of names where nothing else is set: what separates them in what senders write.
pub(super) const DEFAULT_SEPARATOR: &str = ".";

/// A UDP listener.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Udp {
    /// The address; 8089 is InfluxDB's own UDP port.
    #[serde(deserialize_with = "super::listen::data")]
    pub listen: SocketAddr,
    /// For a multicast address: the name or an address of the interface to join it on; without it the system's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// What the datagrams are written in.
    pub format: Format,
    /// What becomes of names that are not line protocol's.
    pub mapping: Mapping,
    /// With templates as mapping: what joins several parts of a measurement, a field or a tag.
    pub separator: String,
    /// With `mapping = "netdata"`: keep the prefix in front of the chart. It is the same everywhere, and says nothing.
    pub netdata_keep_prefix: bool,
    /// With `mapping = "netdata"`: dot-separated parts of a host's name in Graphite's paths, where dots cannot be told apart.
    pub netdata_host_parts: u8,
    /// The database its lines go to; Telegraf's default.
    pub database: String,
    /// The retention policy; empty: the database's default one.
    pub retention_policy: String,
    /// The unit of its lines' timestamps; Telegraf sends nanoseconds. Times of other formats are written in it.
    pub precision: Precision,
    /// What becomes of unsigned integers (`5u`). Refused: stock InfluxDB 1.x does not take them.
    pub unsigned: Unsigned,
    /// Threads; 0: 1 on one or two CPUs, else half of the CPUs, at most 4. One takes 200,000 datagrams a second.
    /// A multicast address has one: every socket that joined it gets every datagram.
    pub workers: u16,
    /// The receive buffer of each worker: what 100,000 datagrams of 300 bytes a second fill in 60 ms.
    #[serde(with = "super::size")]
    pub receive_buffer: ByteSize,
    /// Networks (CIDR) whose datagrams are taken; empty: all. It stops accidents, not forged senders.
    pub allow: Vec<IpNet>,
    /// Tags that each converted line gets unless it has the key; line protocol stays as it is.
    #[serde(skip_serializing_if = "DefaultTags::is_empty")]
    pub tags: DefaultTags,
}

impl Default for Udp {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8089)),
            interface: None,
            format: Format::Auto,
            mapping: Mapping::default(),
            separator: DEFAULT_SEPARATOR.to_owned(),
            netdata_keep_prefix: false,
            netdata_host_parts: 1,
            database: "telegraf".to_owned(),
            retention_policy: String::new(),
            precision: Precision::Nanoseconds,
            unsigned: Unsigned::default(),
            workers: 0,
            receive_buffer: ByteSize::mib(8),
            allow: Vec::new(),
            tags: DefaultTags::default(),
        }
    }
}

/// A TCP listener. What it shares with a UDP listener means the same.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tcp {
    /// The address; 2003 is Graphite's port, and Netdata's default for it.
    #[serde(deserialize_with = "super::listen::data")]
    pub listen: SocketAddr,
    /// What the connections' lines are written in.
    pub format: Format,
    /// What becomes of names that are not line protocol's.
    pub mapping: Mapping,
    /// As for UDP.
    pub separator: String,
    /// As for UDP.
    pub netdata_keep_prefix: bool,
    /// As for UDP.
    pub netdata_host_parts: u8,
    /// The database its lines go to; Telegraf's default.
    pub database: String,
    /// The retention policy; empty: the database's default one.
    pub retention_policy: String,
    /// The unit of its lines' timestamps.
    pub precision: Precision,
    /// As for UDP.
    pub unsigned: Unsigned,
    /// The longest line, without its line feed, and the longest that a string with line feeds may become: what fits into a
    /// datagram. InfluxDB takes longer ones.
    #[serde(with = "super::size")]
    pub max_line: ByteSize,
    /// Open connections, at most: eight times the hosts that a relay is made for.
    pub max_connections: u32,
    /// Open connections from one source, at most: an IPv4 address, or an IPv6 network of 64 bits. One broken client is not
    /// to take all of them.
    pub max_connections_per_source: u32,
    /// A connection on which nothing comes for so long is ended: longer than hosts wait between two batches.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// A line that takes longer than this ends its connection: hosts send whole lines at once.
    #[serde(with = "duration")]
    pub line_timeout: Duration,
    /// A connection on which no whole line comes for so long is ended; after 10 s while more than half of the connections
    /// are open. Hosts may connect long before they send.
    #[serde(with = "duration")]
    pub first_line_timeout: Duration,
    /// Networks (CIDR) whose connections are taken; empty: all.
    pub allow: Vec<IpNet>,
    /// As for UDP.
    #[serde(skip_serializing_if = "DefaultTags::is_empty")]
    pub tags: DefaultTags,
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 2003)),
            format: Format::Auto,
            mapping: Mapping::default(),
            separator: DEFAULT_SEPARATOR.to_owned(),
            netdata_keep_prefix: false,
            netdata_host_parts: 1,
            database: "telegraf".to_owned(),
            retention_policy: String::new(),
            precision: Precision::Nanoseconds,
            unsigned: Unsigned::default(),
            max_line: ByteSize::b(MAX_LINE_BYTES as u64),
            max_connections: 4096,
            max_connections_per_source: 1024,
            idle_timeout: Duration::from_secs(15 * 60),
            line_timeout: Duration::from_secs(30),
            first_line_timeout: Duration::from_secs(90),
            allow: Vec::new(),
            tags: DefaultTags::default(),
        }
    }
}

/// Where lines are kept that a backend will never take.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeadLetters {
    /// The disk for them: the oldest go first. Some 200,000 lines are more than anybody reads.
    #[serde(with = "super::size")]
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
    #[serde(with = "super::size")]
    pub memory: ByteSize,
    /// The disk for lines that a backend has yet to take, a hard bound: a day of 300 lines a second.
    #[serde(with = "super::size")]
    pub disk: ByteSize,
    /// How long written lines stay unsynced: what a power cut may cost. A disk is synced earlier after 4 MiB.
    #[serde(with = "duration")]
    pub sync_interval: Duration,
    /// Less disk for more CPU. Off: the backlog of an outage is rare and short, the CPU is always needed.
    pub compression: Compression,
    /// What gives way when there is no room on the disk: fresh metrics are worth more than old ones.
    pub full: WhenFull,
    /// Lines older than this are given up; 0 never: the quota is bound enough.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// What is left free on the volume; without it 5 %, at most 1 GiB: other programs live there, too.
    #[serde(skip_serializing_if = "Option::is_none", with = "super::size::optional")]
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
