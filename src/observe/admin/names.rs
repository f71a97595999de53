//! The host names under which the page and `/api/*` may be asked. A browser that comes under
//! another name reads nothing.
//!
//! A page of any site can make its own name resolve to this machine's address (DNS rebinding), and
//! then read the answers under that name. Therefore `Host` must be loopback, the address that the
//! connection came to, or one of `[admin] hosts`. An HTTP/1.0 request needs no `Host`; no browser
//! sends one.

use crate::config::host;
use std::net::IpAddr;

use http::header::HOST;
use http::uri::Authority;
use http::{Request, Version};

/// The accepted names.
#[derive(Clone, Debug)]
pub(super) struct Names(Vec<String>);

impl Names {
    /// Accepts these names besides loopback and the connection's own address.
    pub(super) fn new(hosts: &[String]) -> Self {
        Self(hosts.iter().map(|host| host::normal(host).to_ascii_lowercase()).collect())
    }

    /// Whether all names in a request that came to `local` are accepted.
    pub(super) fn allow<B>(&self, request: &Request<B>, local: IpAddr) -> bool {
        let hosts = request.headers().get_all(HOST).iter();
        let hosts: Vec<_> = hosts.map(|host| host.to_str().ok()?.parse::<Authority>().ok()).collect();
        if hosts.is_empty() && request.version() > Version::HTTP_10 {
            return false;
        }
        // A request's own URI takes precedence over its `Host`.
        let of_uri = request.uri().authority().cloned().map(Some);
        let mut named = hosts.into_iter().chain(of_uri);
        named.all(|authority| authority.is_some_and(|authority| self.knows(authority.host(), local)))
    }

    fn knows(&self, host: &str, local: IpAddr) -> bool {
        let host = host::normal(host);
        let address = host.parse::<IpAddr>().map(|address| address.to_canonical());
        if address.is_ok_and(|address| address.is_loopback() || address == local.to_canonical()) {
            return true;
        }
        host.eq_ignore_ascii_case("localhost") || self.0.iter().any(|known| host.eq_ignore_ascii_case(known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, uri: &str, hosts: &[&str]) -> Request<()> {
        let mut request = Request::builder().version(version).uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).expect("a request")
    }

    #[test]
    fn only_names_of_this_relay_are_taken() {
        let names = Names::new(&["Relay.example.org".to_owned(), "[2001:db8::7]".to_owned()]);
        let local: IpAddr = [10, 0, 0, 5].into();
        for (hosts, is_taken) in [
            (&["localhost"][..], true),
            (&["LOCALHOST:9097"], true),
            (&["localhost."], true),
            (&["127.0.0.1:9097"], true),
            (&["127.3.2.1"], true),
            (&["[::1]:9097"], true),
            (&["[::ffff:127.0.0.1]"], true),
            (&["10.0.0.5:1"], true),
            (&["relay.example.org:9097"], true),
            (&["relay.EXAMPLE.org."], true),
            (&["[2001:db8::7]:80"], true),
            (&["10.0.0.6"], false),
            (&["evil.example"], false),
            (&["evil.example:9097"], false),
            (&["localhost.evil.example"], false),
            (&["localhost@evil.example"], false),
            (&["relay.example.org.evil.example"], false),
            (&["localhost", "evil.example"], false),
            (&["evil.example", "localhost"], false),
            (&[""], false),
            (&["local host"], false),
            (&["0.0.0.0"], false),
            (&[], false),
        ] {
            let request = request(Version::HTTP_11, "/api/status", hosts);
            assert_eq!(names.allow(&request, local), is_taken, "{hosts:?}");
        }
        let mapped: IpAddr = "::ffff:10.0.0.5".parse().expect("an address");
        assert!(names.allow(&request(Version::HTTP_11, "/", &["10.0.0.5"]), mapped));
        assert!(names.allow(&request(Version::HTTP_10, "/", &[]), local));
        assert!(!names.allow(&request(Version::HTTP_10, "/", &["evil.example"]), local));
        assert!(!names.allow(&request(Version::HTTP_11, "http://evil.example/api/status", &["localhost"]), local));
        assert!(names.allow(&request(Version::HTTP_11, "http://localhost/api/status", &["localhost"]), local));
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        for host in ["relay", "relay.example.org", "10.0.0.1", "::1", "[::1]", "a_b-c."] {
            assert!(host::is_host(host), "{host}");
        }
        for host in ["", "http://relay", "relay:9097", "*.example.org", "a b", "[relay]:1", "ü.example", "."] {
            assert!(!host::is_host(host), "{host}");
        }
    }
}
