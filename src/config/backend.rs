//! `[[backend]]`: one place that gets everything.

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
    /// Its identity in the journal: renaming it starts a new cursor.
    pub name: String,
    /// `http(s)://host:port` an InfluxDB, `file:///path` an archive, `udp://host:port` another relay.
    pub url: BackendUrl,
    /// The user of the 1.x API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The file with that user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The file with a token; with it the v2 API is used.
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
    /// The name that the server's certificate is for, where the URL has an address or another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// This client's certificate (PEM), with those that it was signed by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert_file: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key_file: Option<PathBuf>,
    /// From a request's beginning to its answer's first byte, and again to its end. InfluxDB's own
    /// `write-timeout` is 10 s.
    #[serde(default = "default_timeout", with = "duration")]
    pub timeout: Duration,
    /// How long connecting may take, TLS included.
    #[serde(default = "default_connect_timeout", with = "duration")]
    pub connect_timeout: Duration,
    /// The pause between two tries, at most. (5 s in the first minute of an outage.)
    #[serde(default = "default_retry_max", with = "duration")]
    pub retry_max: Duration,
    /// How often a backend that gets no lines is asked whether it would take some; 0: at the start only.
    #[serde(default = "default_probe_interval", with = "duration")]
    pub probe_interval: Duration,
    /// Compress requests: less network for more CPU. Off, because mirrors mostly stand side by side.
    #[serde(default)]
    pub gzip: bool,
    /// Lines in one request, at most; InfluxDB's documented optimum is 5,000 to 10,000.
    #[serde(default = "default_max_batch_lines")]
    pub max_batch_lines: u32,
    /// Bytes in one request, at most: what common reverse proxies take (1 MiB).
    #[serde(default = "default_max_batch_bytes", with = "crate::config::size")]
    pub max_batch_bytes: ByteSize,
    /// How long a line waits for others, at most: one request a second costs InfluxDB little.
    #[serde(default = "default_linger", with = "duration")]
    pub linger: Duration,
    /// Requests that may be under way at a time: a server 100 ms away keeps up. With 1 lines arrive in strict order.
    #[serde(default = "default_concurrency")]
    pub concurrency: u16,
    /// How long a connection lives: a name that moves is followed, and a balancer may share anew.
    #[serde(default = "default_connection_lifetime", with = "duration")]
    pub connection_lifetime: Duration,
    /// Whether it may answer readers (1.x API).
    #[serde(default = "default_query")]
    pub query: bool,
    /// The user that readers' questions are asked as; without one the client's own credentials go through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_username: Option<String>,
    /// The file with that user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_password_file: Option<PathBuf>,
    /// The file with a token that readers' questions are asked with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_token_file: Option<PathBuf>,
    /// The user that statements run as; without one the credentials that lines are written with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_username: Option<String>,
    /// The file with that user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_password_file: Option<PathBuf>,
    /// Whether a database that is missing is made, once (1.x API).
    #[serde(default)]
    pub create_database: bool,
    /// The largest datagram of a `udp://` backend: fits an Ethernet frame with room for tunnels.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// After an outage: the share of requests that the backlog on the disk gets while fresh lines wait. Half: the
    /// present is to be seen, and the past is to end. With 1 the order is strict, and fresh lines wait.
    #[serde(default = "default_replay_share")]
    pub replay_share: f64,
    /// The bytes of an archive, at most: its oldest files make room. Without it nothing is removed for want of room.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::config::size::optional")]
    pub disk: Option<ByteSize>,
    /// Files of an archive that were last written to so long ago are removed; 0 never.
    #[serde(default, skip_serializing_if = "Duration::is_zero", with = "duration")]
    pub max_age: Duration,
}

impl Backend {
    /// A backend with defaults.
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
