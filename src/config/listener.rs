//! Listeners: the keys common to all, and those of each kind.
//!
//! Each common key is declared once, in the macro `listener`; a new kind of listener is one new
//! struct.

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

/// The format of received bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Detects the format of each line.
    #[default]
    Auto,
    /// InfluxDB line protocol.
    Influx,
    /// Graphite's plain text, with or without tags.
    Graphite,
    /// OpenTSDB's telnet commands.
    Opentsdb,
    /// Netdata's JSON, one object a line.
    NetdataJson,
}

/// How names of other formats become measurements, tags and fields.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "write \"path\", \"netdata\", or a list of graphite templates: [\".host.measurement*\"]")]
pub enum Mapping {
    /// A mapping with a name.
    Named(NamedMapping),
    /// Graphite templates, `[filter] template [key=value,…]`.
    Templates(Vec<String>),
}

/// Mappings with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NamedMapping {
    /// The path becomes the measurement, and its field is `value`, as in InfluxDB's own listeners.
    Path,
    /// Netdata's chart becomes the measurement, its dimensions the fields, and the host a tag.
    Netdata,
}

impl Default for Mapping {
    fn default() -> Self {
        Self::Named(NamedMapping::Path)
    }
}

/// Tags added to each converted line unless it has the key.
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
    /// Whether there are no tags.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Table(tags) => tags.is_empty(),
            Self::List(tags) => tags.is_empty(),
        }
    }
}

/// Default separator that joins the parts of names: the one that senders use.
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

/// Declares a listener's table: its default address and database, its own keys, and the common
/// keys.
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
            /// The address: host and port, or only a port.
            #[serde(deserialize_with = "crate::config::listen::data")]
            pub listen: SocketAddr,
            $($(#[$own_meta])* pub $own: $type,)*
            /// The format of received bytes.
            pub format: Format,
            /// How names of other formats become measurements, tags and fields.
            pub mapping: Mapping,
            /// With templates as mapping: joins several parts of a measurement, a field or a tag.
            pub separator: String,
            /// With `mapping = "netdata"`: keep the prefix before the chart. It is the same for all
            /// hosts, and so carries no information.
            pub netdata_keep_prefix: bool,
            /// With `mapping = "netdata"`: number of dot-separated parts of a host's name in
            /// Graphite paths, where the name's dots look like separators.
            pub netdata_host_parts: u8,
            /// The database for its lines. The default is Telegraf's.
            pub database: String,
            /// The retention policy; empty selects the database's default.
            pub retention_policy: String,
            /// The unit of its lines' timestamps; Telegraf sends nanoseconds. Times of other
            /// formats are converted to it.
            pub precision: Precision,
            /// How to treat unsigned integers (`5u`). Refused by default, because stock InfluxDB
            /// 1.x does not take them.
            pub unsigned: Unsigned,
            /// Networks (CIDR) to accept; empty accepts all. Stops accidents, not forged senders.
            pub allow: Vec<IpNet>,
            /// Tags added to each converted line unless it has the key; line protocol is not
            /// changed.
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
            /// Returns the common keys.
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
        /// For a multicast address: the name or an address of the interface that joins the group;
        /// without it the system chooses.
        #[serde(skip_serializing_if = "Option::is_none")]
        interface: Option<String> = None,
        /// Threads. 0 means 1 on one or two CPUs, else half of the CPUs, at most 4. One thread
        /// takes 200,000 datagrams a second. A multicast address gets one, because every socket
        /// that joined it gets every datagram.
        workers: u16 = 0,
        /// The receive buffer of each worker. 100,000 datagrams of 300 bytes a second fill the
        /// default in 60 ms.
        #[serde(with = "crate::config::size")]
        receive_buffer: ByteSize = ByteSize::mib(8),
    }
}

listener! {
    /// A TCP listener; 2003 is Graphite's port, and Netdata's default for it.
    Tcp(([0, 0, 0, 0], 2003), "telegraf") {
        /// Certificate chain (PEM) for TLS; without it the listener takes plain text.
        #[serde(skip_serializing_if = "Option::is_none")]
        tls_cert_file: Option<PathBuf> = None,
        /// The certificate's key (PEM).
        #[serde(skip_serializing_if = "Option::is_none")]
        tls_key_file: Option<PathBuf> = None,
        /// Networks (CIDR) of proxies that name a connection's source by PROXY protocol 2.
        trusted_proxies: Vec<IpNet> = Vec::new(),
        /// Whether those proxies start each connection with a header of PROXY protocol 2.
        proxy_protocol: bool = false,
        /// The longest line, without its line feed; also limits a string with line feeds. The
        /// default fits into a datagram; InfluxDB takes longer lines.
        #[serde(with = "crate::config::size")]
        max_line: ByteSize = ByteSize::b(MAX_LINE_BYTES as u64),
        /// The most open connections. The default is eight times the hosts that a relay is made
        /// for.
        max_connections: u32 = 4096,
        /// The most open connections from one source: an IPv4 address, or an IPv6 /64 network.
        /// Keeps one broken client from taking all of them.
        max_connections_per_source: u32 = 1024,
        /// A connection that receives nothing for this long is closed. The default is longer than
        /// hosts wait between two batches.
        #[serde(with = "duration")]
        idle_timeout: Duration = Duration::from_secs(15 * 60),
        /// A connection whose line takes longer than this is closed; hosts send whole lines at
        /// once.
        #[serde(with = "duration")]
        line_timeout: Duration = Duration::from_secs(30),
        /// A connection that sends no whole line for this long is closed; after 10 s if more than
        /// half of the connections are open. Hosts may connect long before they send.
        #[serde(with = "duration")]
        first_line_timeout: Duration = Duration::from_secs(90),
    }
}

listener! {
    /// An HTTP listener; 8086 is InfluxDB's own port.
    Http(([0, 0, 0, 0], 8086), "") {
        /// Certificate chain (PEM) for TLS; without it the listener speaks plain HTTP.
        #[serde(skip_serializing_if = "Option::is_none")]
        tls_cert_file: Option<PathBuf> = None,
        /// The certificate's key (PEM).
        #[serde(skip_serializing_if = "Option::is_none")]
        tls_key_file: Option<PathBuf> = None,
        /// Networks (CIDR) of proxies that are trusted to name the source, by `X-Forwarded-For` or
        /// PROXY protocol 2.
        trusted_proxies: Vec<IpNet> = Vec::new(),
        /// Whether those proxies start each connection with a header of PROXY protocol 2.
        proxy_protocol: bool = false,
        /// Whether to answer writes.
        write: bool = true,
        /// Whether to answer queries.
        query: bool = true,
        /// Databases to accept, with `*` for any text; empty accepts all.
        databases: Vec<String> = Vec::new(),
        /// The most databases that requests may name; each is kept for good.
        max_databases: u32 = 256,
        /// The most combinations of database, retention policy and precision.
        max_destinations: u32 = 1024,
        /// The longest line, without its line feed. The default fits into a datagram.
        #[serde(with = "crate::config::size")]
        max_line: ByteSize = ByteSize::b(MAX_LINE_BYTES as u64),
        /// The largest body, compressed and decompressed. The default is InfluxDB 1.x's.
        #[serde(with = "crate::config::size")]
        max_body: ByteSize = ByteSize::mb(25),
        /// The most open connections. The default is eight times the hosts that a relay is made
        /// for.
        max_connections: u32 = 4096,
        /// The most open connections from one source: an IPv4 address, or an IPv6 /64 network.
        max_connections_per_source: u32 = 256,
        /// How to answer errors.
        errors: Errors = Errors::Safe,
        /// How to answer a body with some bad lines.
        partial: Partial = Partial::Report,
        /// The InfluxDB version that answers claim; `auto` selects the lowest version of the
        /// backends.
        claim_version: String = "auto".to_owned(),
    }
}

/// How to answer errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Errors {
    /// Chosen so that no known client drops good lines because of an answer.
    #[default]
    Safe,
    /// Word for word as InfluxDB answers.
    Influxdb,
}

/// How to answer a body with some bad lines. The good lines are taken either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Partial {
    /// 400 with the bad lines, as InfluxDB answers.
    #[default]
    Report,
    /// 204 with the number of bad lines in the header `X-Twinflux-Rejected`.
    Accept,
}
