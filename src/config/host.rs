//! Host names, as a browser writes them in `Host` and an operator in `[admin] hosts`.

use std::net::IpAddr;

/// Strips the brackets of an IPv6 address, and the root's dot.
pub(crate) fn normal(host: &str) -> &str {
    let inner = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
    inner.strip_suffix('.').unwrap_or(inner)
}

/// Whether a text is valid in `[admin] hosts`: a host name or an address, without scheme and port.
pub(crate) fn is_host(text: &str) -> bool {
    let text = normal(text);
    let is_name = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    text.len() <= 253 && (is_name || text.parse::<IpAddr>().is_ok())
}
