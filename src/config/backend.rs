//! `[[backend]]`: a server, archive or relay that gets every line.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::duration;
use crate::config::url::BackendUrl;

/// A backend. `name` and `url` have no default.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Identity of the backend in the journal; renaming it starts a new cursor.
    pub name: String,
    /// `http(s)://host:port` for an InfluxDB, `file:///path` for an archive, `udp://host:port` for
    /// another relay.
    pub url: BackendUrl,
    /// The user of the 1.x API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The file with that user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The file with a token; selects the v2 API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The organisation of the v2 API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org: Option<String>,
    /// The bucket of the v2 API; without it `database/retention_policy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Certificates (PEM) to trust instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Name in the server's certificate, if the URL has an address or another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// Certificate chain (PEM) of this client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert_file: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key_file: Option<PathBuf>,
    /// The longest time from a request's beginning to its answer's first byte, and again from there
    /// to the answer's end. InfluxDB's own `write-timeout` is 10 s.
    #[serde(default = "default_timeout", with = "duration")]
    pub timeout: Duration,
    /// The longest time for connecting, TLS included.
    #[serde(default = "default_connect_timeout", with = "duration")]
    pub connect_timeout: Duration,
    /// The longest pause between two tries; 5 s in the first minute of an outage.
    #[serde(default = "default_retry_max", with = "duration")]
    pub retry_max: Duration,
    /// How often to probe a backend that gets no lines; 0 probes at the start only.
    #[serde(default = "default_probe_interval", with = "duration")]
    pub probe_interval: Duration,
    /// Whether to compress requests: less network for more CPU. Off by default, because mirrors are
    /// mostly near.
    #[serde(default)]
    pub gzip: bool,
    /// The most lines in one request; InfluxDB documents 5,000 to 10,000 as the optimum.
    #[serde(default = "default_max_batch_lines")]
    pub max_batch_lines: u32,
    /// The most bytes in one request; common reverse proxies take 1 MiB.
    #[serde(default = "default_max_batch_bytes", with = "crate::config::size")]
    pub max_batch_bytes: ByteSize,
    /// The longest time a line waits for others. The default makes one request a second, which
    /// costs InfluxDB little.
    #[serde(default = "default_linger", with = "duration")]
    pub linger: Duration,
    /// Concurrent requests. The default keeps up with a server 100 ms away; with 1, lines arrive in
    /// strict order.
    #[serde(default = "default_concurrency")]
    pub concurrency: u16,
    /// The longest life of a connection, so that a changed DNS name is followed and a load balancer
    /// can rebalance.
    #[serde(default = "default_connection_lifetime", with = "duration")]
    pub connection_lifetime: Duration,
    /// Whether it may answer readers (1.x API).
    #[serde(default = "default_query")]
    pub query: bool,
    /// The user for readers' queries; without one the client's own credentials are passed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_username: Option<String>,
    /// The file with that user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_password_file: Option<PathBuf>,
    /// The file with a token for readers' queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_token_file: Option<PathBuf>,
    /// The user for statements; without one they use the credentials for lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_username: Option<String>,
    /// The file with that user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_password_file: Option<PathBuf>,
    /// Whether to create a missing database, once (1.x API).
    #[serde(default)]
    pub create_database: bool,
    /// The largest datagram to a `udp://` backend. The default fits an Ethernet frame with room for
    /// tunnels.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// After an outage, the share of requests that the backlog on disk gets while fresh lines wait.
    /// The default, one half, shows the present and still ends the backlog. With 1 the order is
    /// strict, and fresh lines wait.
    #[serde(default = "default_replay_share")]
    pub replay_share: f64,
    /// The most bytes in an archive; the oldest files make room. Without it no file is removed for
    /// lack of space.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::config::size::optional")]
    pub disk: Option<ByteSize>,
    /// Age after which files of an archive are removed, since their last write; 0 disables removal.
    #[serde(default, skip_serializing_if = "Duration::is_zero", with = "duration")]
    pub max_age: Duration,
}

impl Backend {
    /// Creates a backend with defaults.
    pub fn new(name: String, url: BackendUrl) -> Self {
        Self {
            name,
            url,
            username: None,
            password_file: None,
            token_file: None,
            org: None,
            bucket: None,
            ca_file: None,
            tls_server_name: None,
            client_cert_file: None,
            client_key_file: None,
            timeout: default_timeout(),
            connect_timeout: default_connect_timeout(),
            retry_max: default_retry_max(),
            probe_interval: default_probe_interval(),
            gzip: false,
            max_batch_lines: default_max_batch_lines(),
            max_batch_bytes: default_max_batch_bytes(),
            linger: default_linger(),
            concurrency: default_concurrency(),
            connection_lifetime: default_connection_lifetime(),
            query: default_query(),
            query_username: None,
            query_password_file: None,
            query_token_file: None,
            admin_username: None,
            admin_password_file: None,
            create_database: false,
            mtu: default_mtu(),
            replay_share: default_replay_share(),
            disk: None,
            max_age: Duration::ZERO,
        }
    }
}

fn default_timeout() -> Duration {
    Duration::from_secs(10)
}

fn default_connect_timeout() -> Duration {
    Duration::from_secs(3)
}

fn default_retry_max() -> Duration {
    Duration::from_secs(30)
}

fn default_probe_interval() -> Duration {
    Duration::from_secs(30)
}

fn default_max_batch_lines() -> u32 {
    5000
}

fn default_max_batch_bytes() -> ByteSize {
    ByteSize::mib(1)
}

fn default_linger() -> Duration {
    Duration::from_secs(1)
}

fn default_concurrency() -> u16 {
    4
}

fn default_connection_lifetime() -> Duration {
    Duration::from_secs(300)
}

fn default_query() -> bool {
    true
}

fn default_mtu() -> u16 {
    1400
}

fn default_replay_share() -> f64 {
    0.5
}
