//! Listeners: the keys that all have, and those of each kind.
//!
//! A key that all listeners have is declared once, in the macro `listener`: a new kind of listener is one new struct.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::duration;
use crate::protocol::line::MAX_LINE_BYTES;
use crate::protocol::{Precision, Unsigned};

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
pub(crate) const DEFAULT_SEPARATOR: &str = ".";

/// The keys that every listener has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Common<'a> {
    pub(crate) listen: SocketAddr,
    pub(crate) format: Format,
    pub(crate) mapping: &'a Mapping,
    pub(crate) separator: &'a str,
    pub(crate) tags: &'a DefaultTags,
    pub(crate) keep_prefix: bool,
    pub(crate) host_parts: u8,
    pub(crate) database: &'a str,
    pub(crate) retention_policy: &'a str,
    pub(crate) precision: Precision,
    pub(crate) unsigned: Unsigned,
    pub(crate) allow: &'a [IpNet],
}

/// Declares a listener's table: its usual address and database, its own keys, and those that every listener has.
macro_rules! listener {
    (
        $(#[$meta:meta])*
        $name:ident($address:expr, $database:expr) {
            $($(#[$own_meta:meta])* $own:ident: $type:ty = $default:expr,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Deserialize, Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            /// The address: host and port, or a port only.
            #[serde(deserialize_with = "crate::config::listen::data")]
            pub listen: SocketAddr,
            $($(#[$own_meta])* pub $own: $type,)*
            /// What the bytes are written in.
            pub format: Format,
            /// What becomes of names that are not line protocol's.
            pub mapping: Mapping,
            /// With templates as mapping: what joins several parts of a measurement, a field or a tag.
            pub separator: String,
            /// With `mapping = "netdata"`: keep the prefix in front of the chart. It is the same everywhere, and says nothing.
            pub netdata_keep_prefix: bool,
            /// With `mapping = "netdata"`: dot-separated parts of a host's name in Graphite's paths, where dots cannot be told
            /// apart.
            pub netdata_host_parts: u8,
            /// The database its lines go to; Telegraf's default.
            pub database: String,
            /// The retention policy; empty: the database's default one.
            pub retention_policy: String,
            /// The unit of its lines' timestamps; Telegraf sends nanoseconds. Times of other formats are written in it.
            pub precision: Precision,
            /// What becomes of unsigned integers (`5u`). Refused: stock InfluxDB 1.x does not take them.
            pub unsigned: Unsigned,
            /// Networks (CIDR) whose bytes are taken; empty: all. It stops accidents, not forged senders.
            pub allow: Vec<IpNet>,
            /// Tags that each converted line gets unless it has the key; line protocol stays as it is.
            #[serde(skip_serializing_if = "DefaultTags::is_empty")]
            pub tags: DefaultTags,
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    listen: SocketAddr::from($address),
                    $($own: $default,)*
                    format: Format::Auto,
                    mapping: Mapping::default(),
                    separator: DEFAULT_SEPARATOR.to_owned(),
                    netdata_keep_prefix: false,
                    netdata_host_parts: 1,
                    database: $database.to_owned(),
                    retention_policy: String::new(),
                    precision: Precision::Nanoseconds,
                    unsigned: Unsigned::default(),
                    allow: Vec::new(),
                    tags: DefaultTags::default(),
                }
            }
        }

        impl $name {
            /// The keys that every listener has.
            pub(crate) fn common(&self) -> Common<'_> {
                Common {
                    listen: self.listen,
                    format: self.format,
                    mapping: &self.mapping,
                    separator: &self.separator,
                    tags: &self.tags,
                    keep_prefix: self.netdata_keep_prefix,
                    host_parts: self.netdata_host_parts,
                    database: &self.database,
                    retention_policy: &self.retention_policy,
                    precision: self.precision,
                    unsigned: self.unsigned,
                    allow: &self.allow,
                }
            }
        }
    };
}

listener! {
    /// A UDP listener; 8089 is InfluxDB's own UDP port.
    Udp(([0, 0, 0, 0], 8089), "telegraf") {
        /// For a multicast address: the name or an address of the interface to join it on; without it the system's choice.
        #[serde(skip_serializing_if = "Option::is_none")]
        interface: Option<String> = None,
        /// Threads; 0: 1 on one or two CPUs, else half of the CPUs, at most 4. One takes 200,000 datagrams a second.
        /// A multicast address has one: every socket that joined it gets every datagram.
        workers: u16 = 0,
        /// The receive buffer of each worker: what 100,000 datagrams of 300 bytes a second fill in 60 ms.
        #[serde(with = "crate::config::size")]
        receive_buffer: ByteSize = ByteSize::mib(8),
    }
}

listener! {
    /// A TCP listener; 2003 is Graphite's port, and Netdata's default for it.
    Tcp(([0, 0, 0, 0], 2003), "telegraf") {
        /// The certificate (PEM) for TLS, with those that it was signed by; without it the listener takes plain text.
        #[serde(skip_serializing_if = "Option::is_none")]
        tls_cert_file: Option<PathBuf> = None,
        /// The certificate's key (PEM).
        #[serde(skip_serializing_if = "Option::is_none")]
        tls_key_file: Option<PathBuf> = None,
        /// Networks (CIDR) of proxies that name the source of a connection by PROXY protocol 2.
        trusted_proxies: Vec<IpNet> = Vec::new(),
        /// Whether those proxies begin each connection with a header of PROXY protocol 2.
        proxy_protocol: bool = false,
        /// The longest line, without its line feed, and the longest that a string with line feeds may become: what fits into
        /// a datagram. InfluxDB takes longer ones.
        #[serde(with = "crate::config::size")]
        max_line: ByteSize = ByteSize::b(MAX_LINE_BYTES as u64),
        /// Open connections, at most: eight times the hosts that a relay is made for.
        max_connections: u32 = 4096,
        /// Open connections from one source, at most: an IPv4 address, or an IPv6 network of 64 bits. One broken client is
        /// not to take all of them.
        max_connections_per_source: u32 = 1024,
        /// A connection on which nothing comes for so long is ended: longer than hosts wait between two batches.
        #[serde(with = "duration")]
        idle_timeout: Duration = Duration::from_secs(15 * 60),
        /// A line that takes longer than this ends its connection: hosts send whole lines at once.
        #[serde(with = "duration")]
        line_timeout: Duration = Duration::from_secs(30),
        /// A connection on which no whole line comes for so long is ended; after 10 s while more than half of the connections
        /// are open. Hosts may connect long before they send.
        #[serde(with = "duration")]
        first_line_timeout: Duration = Duration::from_secs(90),
    }
}

listener! {
    /// An HTTP listener; 8086 is InfluxDB's own port.
    Http(([0, 0, 0, 0], 8086), "") {
        /// The certificate (PEM) for TLS, with those that it was signed by; without it the listener speaks plain HTTP.
        #[serde(skip_serializing_if = "Option::is_none")]
        tls_cert_file: Option<PathBuf> = None,
        /// The certificate's key (PEM).
        #[serde(skip_serializing_if = "Option::is_none")]
        tls_key_file: Option<PathBuf> = None,
        /// Networks (CIDR) of proxies whose word is taken for the source: `X-Forwarded-For`, or PROXY protocol 2.
        trusted_proxies: Vec<IpNet> = Vec::new(),
        /// Whether those proxies begin each connection with a header of PROXY protocol 2.
        proxy_protocol: bool = false,
        /// Whether writers are answered.
        write: bool = true,
        /// Whether readers are answered.
        query: bool = true,
        /// Databases that are taken, with `*` for any text; empty: all.
        databases: Vec<String> = Vec::new(),
        /// Databases that requests may name, at most: each is kept for good.
        max_databases: u32 = 256,
        /// Databases, retention policies and precisions together, at most.
        max_destinations: u32 = 1024,
        /// The longest line, without its line feed: what fits into a datagram.
        #[serde(with = "crate::config::size")]
        max_line: ByteSize = ByteSize::b(MAX_LINE_BYTES as u64),
        /// The largest body, compressed and decompressed: what InfluxDB 1.x takes.
        #[serde(with = "crate::config::size")]
        max_body: ByteSize = ByteSize::mb(25),
        /// Open connections, at most: eight times the hosts that a relay is made for.
        max_connections: u32 = 4096,
        /// Open connections from one source, at most: an IPv4 address, or an IPv6 network of 64 bits.
        max_connections_per_source: u32 = 256,
        /// How errors are answered. Safe: so that no known client drops good lines for it.
        errors: Errors = Errors::Safe,
        /// What is answered to a body of which some lines are bad.
        partial: Partial = Partial::Report,
        /// The version of InfluxDB that answers claim. `auto`: the lowest of the backends'.
        claim_version: String = "auto".to_owned(),
    }
}

/// How errors are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Errors {
    /// So that no known client drops good lines for it.
    #[default]
    Safe,
    /// Word for word as InfluxDB does.
    Influxdb,
}

/// What is answered to a body of which some lines are bad. The good ones are taken either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Partial {
    /// As InfluxDB does: 400, with the bad lines.
    #[default]
    Report,
    /// 204, with their number in the header `X-Twinflux-Rejected`.
    Accept,
}
