//! Checks `[[backend]]` tables, and converts them to the configurations of `deliver`.

use std::time::Duration;

use crate::batch::Builder;
use crate::config::Backend;
use crate::config::invalid::InvalidKey;
use crate::config::load::{MAX_DISK, MAX_TIMEOUT, MIN_DISK, TOO_SHORT, is_too_short};
use crate::config::url::{self, BackendUrl};
use crate::deliver::{Api, InfluxConfig, MAX_DATAGRAM_BYTES};
use crate::journal::disk::{MAX_ADDRESS_BYTES, MAX_NAME_BYTES};
use crate::net::{SecretFile, Times, Tls};

/// Checks a backend.
///
/// # Errors
/// The first key that is invalid.
pub(crate) fn check_backend(backend: &Backend) -> Result<(), InvalidKey> {
    let is_influx = matches!(backend.url, BackendUrl::Influx { .. });
    let is_archive = matches!(backend.url, BackendUrl::Archive(_));
    let is_tls = backend.url.to_string().starts_with("https://");
    let is_v2 = backend.token_file.is_some();
    let names_v2 = matches!(backend.url, BackendUrl::Influx { names_v2: true, .. });
    let wrong = [
        (backend.name.is_empty(), "name", "must not be empty: it is the backend's identity in the journal"),
        (
            !backend.name.chars().all(|c| c.is_ascii_alphanumeric() || url::NAME_SIGNS.contains(c)),
            "name",
            "may hold letters, digits, and the signs - _ . : / % [ ]",
        ),
        (!is_influx && backend.username.is_some(), "username", "is for http:// and https:// backends only"),
        (!is_influx && is_v2, "token_file", "is for http:// and https:// backends only"),
        (is_v2 && backend.username.is_some(), "username", "and token_file exclude each other: 1.x or v2 API"),
        (backend.username.is_some() != backend.password_file.is_some(), "username", "and password_file go together"),
        (
            backend.query_username.is_some() != backend.query_password_file.is_some(),
            "query_username",
            "and query_password_file go together",
        ),
        (
            backend.admin_username.is_some() != backend.admin_password_file.is_some(),
            "admin_username",
            "and admin_password_file go together",
        ),
        (
            backend.query_username.is_some() && backend.query_token_file.is_some(),
            "query_username",
            "and query_token_file exclude each other",
        ),
        (names_v2 && !is_v2, "url", "is the v2 API's: set token_file, or leave out the path for the 1.x API"),
        (!is_v2 && backend.org.is_some(), "org", "needs token_file: it belongs to the v2 API"),
        (!is_v2 && backend.bucket.is_some(), "bucket", "needs token_file: it belongs to the v2 API"),
        (!is_tls && backend.ca_file.is_some(), "ca_file", "is for https:// backends only"),
        (!is_tls && backend.tls_server_name.is_some(), "tls_server_name", "is for https:// backends only"),
        (!is_tls && backend.client_cert_file.is_some(), "client_cert_file", "is for https:// backends only"),
        (
            backend.client_cert_file.is_some() != backend.client_key_file.is_some(),
            "client_cert_file",
            "and client_key_file go together",
        ),
        (
            backend.create_database && (!is_influx || is_v2),
            "create_database",
            "is for the 1.x API of http:// and https:// backends only",
        ),
        (!(1..=64).contains(&backend.concurrency), "concurrency", "must be between 1 and 64; 1 is strict order"),
        (backend.connection_lifetime < Duration::from_secs(1), "connection_lifetime", "must be at least 1s"),
        (!is_archive && backend.disk.is_some(), "disk", "is for file:// backends only"),
        (!is_archive && !backend.max_age.is_zero(), "max_age", "is for file:// backends only"),
        (
            backend.disk.is_some_and(|disk| disk.as_u64() < MIN_DISK.max(8 * backend.max_batch_bytes.as_u64())),
            "disk",
            "must be at least 8MiB, and eight times max_batch_bytes",
        ),
        (backend.disk.is_some_and(|disk| disk.as_u64() > MAX_DISK), "disk", "must be at most 1PiB"),
        (is_too_short(backend.max_age), "max_age", TOO_SHORT),
        (backend.name.len() > MAX_NAME_BYTES, "name", "may have at most 255 bytes"),
        (backend.url.address().len() > MAX_ADDRESS_BYTES, "url", "may have at most 4096 bytes"),
        (
            !(0.01..=1.0).contains(&backend.replay_share),
            "replay_share",
            "must be between 0.01 and 1; 1 is strict order",
        ),
        (backend.timeout < Duration::from_millis(100), "timeout", "must be at least 100ms"),
        (backend.timeout > MAX_TIMEOUT, "timeout", "must be at most 1h"),
        (
            !(Duration::from_millis(10)..=MAX_TIMEOUT).contains(&backend.connect_timeout),
            "connect_timeout",
            "must be at least 10ms and at most 1h",
        ),
        (
            !(Duration::from_millis(100)..=MAX_TIMEOUT).contains(&backend.retry_max),
            "retry_max",
            "must be at least 100ms and at most 1h",
        ),
        (
            !backend.probe_interval.is_zero() && backend.probe_interval < Duration::from_millis(100),
            "probe_interval",
            "must be at least 100ms, or 0: then a backend is asked at the start only",
        ),
        (backend.linger > Duration::from_secs(60), "linger", "must be at most 60s"),
        (backend.max_batch_lines == 0, "max_batch_lines", "must be at least 1"),
        (
            backend.max_batch_bytes.as_u64() < Builder::least_buffer_bytes() as u64,
            "max_batch_bytes",
            "must be at least 65KiB: one line may have 64KiB",
        ),
        (backend.max_batch_bytes.as_u64() > 64 << 20, "max_batch_bytes", "must be at most 64MiB"),
        (
            backend.mtu < 512 || usize::from(backend.mtu) > MAX_DATAGRAM_BYTES,
            "mtu",
            "must be between 512 and 65507 bytes",
        ),
    ];
    wrong.into_iter().find(|(is_wrong, ..)| *is_wrong).map_or(Ok(()), |(_, key, what)| Err(InvalidKey::new(key, what)))
}

pub(crate) fn influx_config(backend: &Backend, base: &http::Uri) -> InfluxConfig {
    InfluxConfig {
        url: base.clone(),
        api: api(backend),
        tls: Tls {
            ca_file: backend.ca_file.clone(),
            server_name: backend.tls_server_name.clone(),
            client: backend.client_cert_file.clone().zip(backend.client_key_file.clone()),
        },
        times: Times {
            connect: backend.connect_timeout,
            answer: backend.timeout,
            lifetime: backend.connection_lifetime,
        },
        admin: backend.admin_username.clone().zip(backend.admin_password_file.clone().map(SecretFile::new)),
        create_database: backend.create_database,
        gzip: backend.gzip,
    }
}

fn api(backend: &Backend) -> Api {
    match &backend.token_file {
        Some(token) => Api::V2 {
            org: backend.org.clone().unwrap_or_default(),
            bucket: backend.bucket.clone(),
            token: SecretFile::new(token.clone()),
        },
        None => {
            let credentials = backend.username.clone().zip(backend.password_file.clone().map(SecretFile::new));
            Api::V1 { credentials }
        }
    }
}
