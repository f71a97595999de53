//! Checks the listeners' tables, and converts them to the configurations of `receive`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;

use crate::auth::Auth;
use crate::batch::Destination;
use crate::config::allow;
use crate::config::invalid::InvalidKey;
use crate::config::load::{ConfigError, MAX_TIMEOUT};
use crate::config::url::BackendUrl;
use crate::config::{
    Backend, Common, Config, DEFAULT_SEPARATOR, DefaultTags, Errors, Format, Http, Mapping, NamedMapping, Partial, Tcp,
    Udp,
};
use crate::deliver::{MAX_FOLDER_BYTES, folder_bytes};
use crate::intake::{Allow, IntakeConfig};
use crate::journal::disk::MAX_NAME_BYTES;
use crate::net::tls::{self, Certificate};
use crate::protocol;
use crate::protocol::line::{LONGEST_LINE_BYTES, MAX_LINE_BYTES};
use crate::receive::{ListenerConfig, http, tcp, udp};

/// More threads than any machine has use for.
const MAX_WORKERS: u16 = 64;
/// More connections than a process may have open files.
const MAX_CONNECTIONS: u32 = 1 << 20;
/// The bounds of `max_body`.
const MIN_BODY_BYTES: u64 = 64 * 1024;
const MAX_BODY_BYTES: u64 = 1 << 30;
/// More destinations than the journal is designed for.
const MAX_DESTINATIONS: u32 = 65_536;
/// Shorter than lines that hosts send.
const MIN_LINE_BYTES: u64 = 1024;
/// More parts than a host's name has.
const MAX_HOST_PARTS: u8 = 16;

/// Error of a stream listener with a multicast address.
pub(super) const NO_MULTICAST: &str = "is a multicast address, which only [[udp]] can listen on";

/// A listener of any kind.
#[derive(Clone, Copy, Debug)]
pub(super) enum Listener<'a> {
    Udp(&'a Udp),
    Tcp(&'a Tcp),
    Http(&'a Http),
}

impl Config {
    /// Returns the listeners' configurations.
    ///
    /// # Errors
    /// A mapping or a certificate cannot be used. Mappings of a loaded configuration are valid.
    pub fn listeners(&self, auth: Option<&Arc<Auth>>) -> Result<Vec<ListenerConfig>, ConfigError> {
        let config = |listener: Listener<'_>| listener.config(auth).map_err(ConfigError::new);
        self.each_listener().map(|(_, _, listener)| config(listener)).collect()
    }

    /// Iterates over the listeners, each with its table and its index there.
    pub(super) fn each_listener(&self) -> impl Iterator<Item = (&'static str, usize, Listener<'_>)> {
        let udp = self.udp.iter().enumerate().map(|(index, one)| ("udp", index, Listener::Udp(one)));
        let tcp = self.tcp.iter().enumerate().map(|(index, one)| ("tcp", index, Listener::Tcp(one)));
        let http = self.http.iter().enumerate().map(|(index, one)| ("http", index, Listener::Http(one)));
        udp.chain(tcp).chain(http)
    }
}

impl Listener<'_> {
    /// Checks the listener against these backends.
    pub(super) fn check(&self, backends: &[Backend]) -> Result<(), InvalidKey> {
        let common = self.common();
        // An HTTP request names its own database.
        if common.database.is_empty() && !matches!(self, Self::Http(_)) {
            return Err(InvalidKey::new("database", "must name a database, such as \"telegraf\""));
        }
        common.check(backends)?;
        allow::check(common.allow, self.listen()).map_err(|error| InvalidKey::new("allow", error))?;
        match self {
            Self::Udp(listener) => check_udp(listener, backends),
            Self::Tcp(listener) => check_tcp(listener, backends),
            Self::Http(listener) => check_http(listener, backends),
        }
    }

    pub(super) fn listen(&self) -> SocketAddr {
        self.common().listen
    }

    fn config(&self, auth: Option<&Arc<Auth>>) -> Result<ListenerConfig, InvalidKey> {
        let intake = self.common().intake(self.max_line())?;
        Ok(match self {
            Self::Udp(one) => ListenerConfig::Udp(udp::UdpConfig {
                listen: one.listen,
                interface: one.interface.clone(),
                intake,
                workers: match one.workers {
                    _ if one.listen.ip().is_multicast() => 1,
                    0 => (std::thread::available_parallelism().map_or(1, usize::from) / 2).clamp(1, 4),
                    workers => usize::from(workers),
                },
                receive_buffer: u32::try_from(one.receive_buffer.as_u64()).unwrap_or(u32::MAX),
            }),
            Self::Tcp(one) => ListenerConfig::Tcp(tcp::TcpConfig {
                listen: one.listen,
                intake,
                tls: certificate((&one.tls_cert_file, &one.tls_key_file), None)
                    .map_err(|error| InvalidKey::new("tcp:", error))?,
                // Without the header no proxy names a source here.
                proxies: if one.proxy_protocol { allow::canonical(&one.trusted_proxies) } else { Vec::new() },
                max_connections: one.max_connections as usize,
                max_connections_per_source: one.max_connections_per_source as usize,
                idle_timeout: one.idle_timeout,
                line_timeout: one.line_timeout,
                first_line_timeout: one.first_line_timeout,
            }),
            Self::Http(one) => ListenerConfig::Http(http::HttpConfig {
                listen: one.listen,
                intake,
                trusted_proxies: allow::canonical(&one.trusted_proxies),
                proxy_protocol: one.proxy_protocol,
                takes_writes: one.write,
                takes_queries: one.query,
                databases: one.databases.clone(),
                max_databases: one.max_databases as usize,
                max_destinations: one.max_destinations as usize,
                max_body: one.max_body.as_u64(),
                max_connections: one.max_connections as usize,
                max_connections_per_source: one.max_connections_per_source as usize,
                is_safe: one.errors == Errors::Safe,
                auth: auth.cloned(),
                tls: certificate((&one.tls_cert_file, &one.tls_key_file), Some(b"http/1.1"))
                    .map_err(|error| InvalidKey::new("http:", error))?,
                reports_partial: one.partial == Partial::Report,
                version: Some(one.claim_version.clone()).filter(|version| version != "auto"),
            }),
        })
    }

    fn common(&self) -> Common<'_> {
        match self {
            Self::Udp(one) => one.common(),
            Self::Tcp(one) => one.common(),
            Self::Http(one) => one.common(),
        }
    }

    /// Returns the longest line, in bytes.
    fn max_line(&self) -> u64 {
        match self {
            Self::Udp(_) => MAX_LINE_BYTES as u64,
            Self::Tcp(one) => one.max_line.as_u64(),
            Self::Http(one) => one.max_line.as_u64(),
        }
    }
}

impl Common<'_> {
    fn check(&self, backends: &[Backend]) -> Result<(), InvalidKey> {
        let bad = |key, what: &str| Err(InvalidKey::new(key, what));
        let names = [self.database, self.retention_policy];
        if names.iter().any(|name| name.len() > MAX_NAME_BYTES) {
            return bad("database", "names of databases and retention policies have at most 255 bytes");
        }
        if names.iter().any(|name| name.chars().any(char::is_control)) {
            return bad("database", "names of databases and retention policies hold no control characters");
        }
        self.check_folder(backends)?;
        let v2 = backends.iter().find(|backend| backend.token_file.is_some());
        if let (Some(backend), None) = (v2, self.precision.v2_name()) {
            let what = format!("the v2 API of backend {:?} knows only ns, us, ms and s", backend.name);
            return Err(InvalidKey::new("precision", what));
        }
        if !(1..=MAX_HOST_PARTS).contains(&self.host_parts) {
            return bad("netdata_host_parts", "must be between 1 and 16: web-01 has 1, web-01.example has 2");
        }
        let is_netdata = *self.mapping == Mapping::Named(NamedMapping::Netdata);
        if !is_netdata && (self.keep_prefix || self.host_parts != 1) {
            let key = if self.keep_prefix { "netdata_keep_prefix" } else { "netdata_host_parts" };
            return bad(key, "needs mapping = \"netdata\"");
        }
        if self.format == Format::Influx && *self.mapping != Mapping::default() {
            return bad("mapping", "is for other formats: line protocol has measurements, tags and fields of its own");
        }
        if self.format == Format::Influx && !self.tags.is_empty() {
            return bad("tags", "are for other formats: lines of line protocol stay as they are");
        }
        self.mapping().map(|_| ())
    }

    /// Checks the length of the folder's name in which an archive stores the destination.
    fn check_folder(&self, backends: &[Backend]) -> Result<(), InvalidKey> {
        let Some(archive) = backends.iter().find(|backend| matches!(backend.url, BackendUrl::Archive(_))) else {
            return Ok(());
        };
        let bytes = folder_bytes(&self.destination());
        if bytes <= MAX_FOLDER_BYTES {
            return Ok(());
        }
        let what = format!(
            "and retention_policy make a folder's name of {bytes} bytes in the archive of backend {:?}, and a name may have \
             {MAX_FOLDER_BYTES}: shorten them (a dot or a space takes 3 bytes there, a letter outside of ASCII 6 or more)",
            archive.name
        );
        Err(InvalidKey::new("database", what))
    }

    fn destination(&self) -> Destination {
        Destination::new(self.database.to_owned(), self.retention_policy.to_owned(), self.precision)
    }

    fn mapping(&self) -> Result<protocol::Mapping, InvalidKey> {
        let mapping = match self.mapping {
            Mapping::Named(NamedMapping::Path) => protocol::Mapping::path(),
            Mapping::Named(NamedMapping::Netdata) => protocol::Mapping::netdata(protocol::Netdata {
                keep_prefix: self.keep_prefix,
                host_parts: usize::from(self.host_parts),
            }),
            Mapping::Templates(templates) => protocol::Mapping::templates(templates)
                .map_err(|what| InvalidKey::new("mapping", format!("has a wrong {what}")))?,
        };
        let mapping = match self.separator {
            DEFAULT_SEPARATOR => mapping,
            separator => mapping.with_separator(separator).map_err(|what| InvalidKey::new("separator", what))?,
        };
        mapping.with_tags(default_tags(self.tags)?).map_err(|what| InvalidKey::new("tags", what))
    }

    fn intake(&self, max_line: u64) -> Result<IntakeConfig, InvalidKey> {
        Ok(IntakeConfig {
            destination: Arc::new(self.destination()),
            format: match self.format {
                Format::Auto => None,
                Format::Influx => Some(protocol::Format::Influx),
                Format::Graphite => Some(protocol::Format::Graphite),
                Format::Opentsdb => Some(protocol::Format::Opentsdb),
                Format::NetdataJson => Some(protocol::Format::NetdataJson),
            },
            mapping: self.mapping()?,
            max_line: usize::try_from(max_line).unwrap_or(LONGEST_LINE_BYTES),
            unsigned: self.unsigned,
            allow: Allow::new(allow::canonical(self.allow)),
        })
    }
}

/// Returns the keys and values of default tags, in either notation.
fn default_tags(tags: &DefaultTags) -> Result<Vec<(String, String)>, InvalidKey> {
    match tags {
        DefaultTags::Table(tags) => Ok(tags.iter().map(|(key, value)| (key.clone(), value.clone())).collect()),
        DefaultTags::List(tags) => {
            let pair = |tag: &String| match tag.split_once('=') {
                Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
                None => Err(InvalidKey::new("tags", format!("has {tag:?}: write \"key=value\""))),
            };
            tags.iter().map(pair).collect()
        }
    }
}

fn check_udp(listener: &Udp, backends: &[Backend]) -> Result<(), InvalidKey> {
    if listener.workers > MAX_WORKERS {
        return Err(InvalidKey::new("workers", "must be at most 64"));
    }
    let is_multicast = listener.listen.ip().is_multicast();
    if is_multicast && listener.workers > 1 {
        let what = "must be 0 or 1 for a multicast address: every worker would get every datagram";
        return Err(InvalidKey::new("workers", what));
    }
    if !is_multicast && listener.interface.is_some() {
        let what = "is for a multicast address only, such as listen = \"239.0.0.1:8089\"";
        return Err(InvalidKey::new("interface", what));
    }
    let is_itself =
        |backend: &&Backend| matches!(&backend.url, BackendUrl::Relay(host) if is_loop(host, listener.listen));
    if let Some(backend) = backends.iter().find(is_itself) {
        let what = format!("is where backend {:?} sends to: each line would come back for ever", backend.name);
        return Err(InvalidKey::new("listen", what));
    }
    if listener.receive_buffer.as_u64() > 1 << 30 {
        return Err(InvalidKey::new("receive_buffer", "must be at most 1GiB"));
    }
    Ok(())
}

fn check_tcp(listener: &Tcp, backends: &[Backend]) -> Result<(), InvalidKey> {
    if listener.listen.ip().is_multicast() {
        return Err(InvalidKey::new("listen", NO_MULTICAST));
    }
    check_tls(listener.tls_cert_file.as_ref(), listener.tls_key_file.as_ref())?;
    check_proxies(listener.proxy_protocol, &listener.trusted_proxies)?;
    if !listener.proxy_protocol && !listener.trusted_proxies.is_empty() {
        let what = "needs proxy_protocol = true: on TCP proxies name the source by nothing else";
        return Err(InvalidKey::new("trusted_proxies", what));
    }
    let Tcp { idle_timeout, line_timeout, first_line_timeout, .. } = listener;
    check_max_line(listener.max_line, backends)?;
    check_connections(listener.max_connections, listener.max_connections_per_source)?;
    for (key, timeout) in
        [("idle_timeout", idle_timeout), ("line_timeout", line_timeout), ("first_line_timeout", first_line_timeout)]
    {
        if !(Duration::from_millis(100)..=24 * MAX_TIMEOUT).contains(timeout) {
            return Err(InvalidKey::new(key, "must be between 100ms and 1day"));
        }
    }
    Ok(())
}

/// Opens the certificate of a listener that speaks this protocol over TLS.
pub(super) fn certificate(
    (cert_file, key_file): (&Option<PathBuf>, &Option<PathBuf>),
    protocol: Option<&[u8]>,
) -> Result<Option<Arc<Certificate>>, ConfigError> {
    let Some((cert_file, key_file)) = cert_file.clone().zip(key_file.clone()) else { return Ok(None) };
    let opened = Certificate::open(tls::CertificateFiles { cert_file, key_file }, protocol);
    opened.map(|opened| Some(Arc::new(opened))).map_err(ConfigError::new)
}

/// Checks that both files of a certificate are set, or neither.
pub(super) fn check_tls(cert_file: Option<&PathBuf>, key_file: Option<&PathBuf>) -> Result<(), InvalidKey> {
    if cert_file.is_some() != key_file.is_some() {
        return Err(InvalidKey::new("tls_cert_file", "and tls_key_file go together"));
    }
    Ok(())
}

/// Checks that `proxy_protocol` comes with trusted proxies.
fn check_proxies(proxy_protocol: bool, trusted_proxies: &[IpNet]) -> Result<(), InvalidKey> {
    if proxy_protocol && trusted_proxies.is_empty() {
        return Err(InvalidKey::new("proxy_protocol", "needs trusted_proxies: the networks of the proxies"));
    }
    Ok(())
}

fn check_http(listener: &Http, backends: &[Backend]) -> Result<(), InvalidKey> {
    check_proxies(listener.proxy_protocol, &listener.trusted_proxies)?;
    check_tls(listener.tls_cert_file.as_ref(), listener.tls_key_file.as_ref())?;
    if listener.listen.ip().is_multicast() {
        return Err(InvalidKey::new("listen", NO_MULTICAST));
    }
    check_max_line(listener.max_line, backends)?;
    check_connections(listener.max_connections, listener.max_connections_per_source)?;
    if !(MIN_BODY_BYTES..=MAX_BODY_BYTES).contains(&listener.max_body.as_u64()) {
        return Err(InvalidKey::new("max_body", "must be between 64KiB and 1GiB"));
    }
    for (key, count) in [("max_databases", listener.max_databases), ("max_destinations", listener.max_destinations)] {
        if !(1..=MAX_DESTINATIONS).contains(&count) {
            return Err(InvalidKey::new(key, "must be between 1 and 65536"));
        }
    }
    let version = &listener.claim_version;
    if version.is_empty() || version.len() > 64 || !version.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(InvalidKey::new("claim_version", "must be \"auto\" or a version, such as \"1.8.10\""));
    }
    Ok(())
}

fn check_max_line(max_line: ByteSize, backends: &[Backend]) -> Result<(), InvalidKey> {
    if !(MIN_LINE_BYTES..=LONGEST_LINE_BYTES as u64).contains(&max_line.as_u64()) {
        return Err(InvalidKey::new("max_line", "must be between 1KiB and 1MiB"));
    }
    let is_small =
        |backend: &&Backend| matches!(backend.url, BackendUrl::Influx { .. }) && backend.max_batch_bytes < max_line;
    if let Some(backend) = backends.iter().find(is_small) {
        let what = format!("must be at most the max_batch_bytes of backend {:?}: no line is split", backend.name);
        return Err(InvalidKey::new("max_line", what));
    }
    Ok(())
}

fn check_connections(all: u32, of_source: u32) -> Result<(), InvalidKey> {
    for (key, connections) in [("max_connections", all), ("max_connections_per_source", of_source)] {
        if !(1..=MAX_CONNECTIONS).contains(&connections) {
            return Err(InvalidKey::new(key, "must be between 1 and 1048576"));
        }
    }
    Ok(())
}

/// Whether the relay at `host` (`name:port`) is the listener at this address, as far as the text
/// tells.
fn is_loop(host: &str, listen: SocketAddr) -> bool {
    let Some((name, port)) = host.rsplit_once(':') else { return false };
    let name = name.trim_matches(['[', ']']);
    let ip = if name == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { name.parse().ok() };
    let is_any = listen.ip().is_unspecified();
    let reaches = |ip: IpAddr| ip == listen.ip() || (is_any && (ip.is_loopback() || ip.is_unspecified()));
    port.parse() == Ok(listen.port()) && listen.port() != 0 && ip.is_some_and(reaches)
}
