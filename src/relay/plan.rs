//! Plans a reload: which changes apply at once, which need a successor relay, and which need a
//! restart. Pure.
//!
//! A successor in the same process takes over the sockets; what arrives meanwhile waits there. TCP
//! and HTTP connections end, and counters restart, as with a restart.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::BoxError;
use crate::config::url::BackendUrl;
use crate::config::{Backend, Config, ConfigError, Query};
use crate::deliver;
use crate::journal::Durability;

/// Describes what a reload changes, as `check` prints it.
pub const CHANGEABLE: &str = "\
twinflux reload and SIGHUP change at once: allow of listeners; of [query] max_lag, incomplete, timeout and sticky; and read users, tokens \
and certificates again. They put another relay in this one's place, on the same sockets, for: backends added, removed or changed; the rest of \
[query]; [pair]; [[auth.right]]; databases, limits and time-outs of listeners. Everything else needs a restart, a backend's new address too.";

/// The configuration of a successor relay.
#[derive(Clone, Debug)]
pub struct Successor {
    /// With the addresses that the sockets have.
    pub config: Config,
    /// The same with the addresses as written in the file, for comparison with it.
    pub file: Config,
}

impl Successor {
    /// Creates the configuration for a successor whose sockets have these addresses.
    pub(super) fn new(file: Config, listeners: &[SocketAddr], admin: SocketAddr) -> Self {
        let mut config = file.clone();
        let of_udp = config.udp.iter_mut().map(|one| &mut one.listen);
        let of_tcp = config.tcp.iter_mut().map(|one| &mut one.listen);
        let of_http = config.http.iter_mut().map(|one| &mut one.listen);
        for (listen, address) in of_udp.chain(of_tcp).chain(of_http).zip(listeners) {
            // A wildcard is kept, because the kernel reports IPv4's for both families.
            listen.set_port(address.port());
        }
        config.admin.listen = admin;
        Self { config, file }
    }
}

/// Why a successor could not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoSuccessor {
    /// No backend is left, and the configuration does not say that this is meant.
    #[error("the file names no [[backend]]: lines would go to an archive only; name the backends")]
    NoBackend,
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A backend cannot be used.
    #[error("{0}")]
    Backend(#[from] deliver::BackendError),
    /// Users or the pair cannot be used.
    #[error("{0}")]
    Other(BoxError),
}

/// What to do about a changed configuration.
#[derive(Debug)]
pub(super) struct Plan {
    /// Keys that are changed at once.
    changed: BTreeSet<String>,
    /// Changes that a successor makes, one sentence each.
    anew: Vec<String>,
    /// Keys that only a restart changes.
    left: BTreeSet<String>,
    /// Whether lines are only in memory, which a successor would not have.
    is_in_memory: bool,
    /// Whether the listeners keep their addresses.
    pub(super) has_same_listeners: bool,
    /// The running configuration with the changes that apply at once.
    pub(super) at_once: Config,
    /// The same with the changes that a successor makes.
    file: Config,
}

impl Plan {
    /// Compares the running configuration with a new one. `can_succeed`: a successor may take over.
    pub(super) fn new(running: &Config, new: &Config, can_succeed: bool) -> Self {
        let has_same_listeners = listens(running) == listens(new);
        // Lines that are only in memory would be lost.
        let is_in_memory = running.journal.durability == Durability::Memory;
        let can_succeed = can_succeed && !is_in_memory;
        let at_once = with_what_is_at_once(running, new, has_same_listeners);
        let file = if can_succeed { with_what_is_anew(&at_once, new, has_same_listeners) } else { at_once.clone() };
        let mut anew = of_backends(&at_once.backend, &file.backend);
        let others = differing(&at_once, &file).into_iter().filter(|key| !key.starts_with("backend["));
        anew.extend(others.map(|key| format!("{key} was changed")));
        if anew.is_empty() && !differing(&at_once, &file).is_empty() {
            anew.push("the backends' order was changed".to_owned());
        }
        let (changed, left) = (differing(running, &at_once), differing(&file, new));
        Self { changed, anew, left, is_in_memory, has_same_listeners, at_once, file }
    }

    /// Describes what the plan changes and what it cannot, one sentence each.
    pub(super) fn sentences(&self) -> Vec<String> {
        let at_once = self.changed.iter().map(|key| format!("{key} was changed"));
        let succeeds = "another relay takes this one's place in this process: sockets stay open, connections end, figures begin anew";
        let succeeds = (!self.anew.is_empty()).then(|| succeeds.to_owned());
        let is_of_listener = |key: &str| ["udp", "tcp", "http"].iter().any(|kind| key.starts_with(kind));
        let left = self.left.iter().map(|key| {
            let why = match is_of_listener(key) {
                true if !self.has_same_listeners => " (listeners were added, removed or moved)",
                _ if self.is_in_memory => " (durability is \"memory\")",
                _ => "",
            };
            format!("{key} differs, and is changed by a restart only{why}")
        });
        let sentences: Vec<String> = at_once.chain(self.anew.iter().cloned()).chain(left).chain(succeeds).collect();
        if sentences.is_empty() { vec!["the configuration is as it was".to_owned()] } else { sentences }
    }

    /// Returns the configuration of the successor, whose listeners have these addresses. `None` if
    /// no change needs one.
    ///
    /// # Errors
    /// The successor could not start.
    pub(super) fn successor(
        &self,
        listeners: &[SocketAddr],
        admin: SocketAddr,
    ) -> Result<Option<Box<Successor>>, NoSuccessor> {
        if self.anew.is_empty() {
            return Ok(None);
        }
        // A file that is being written is empty for a moment, so a configuration without backends
        // must be explicit.
        if self.file.has_default_backend() && !self.at_once.has_default_backend() {
            return Err(NoSuccessor::NoBackend);
        }
        let successor = Successor::new(self.file.clone(), listeners, admin);
        let config = &successor.config;
        config.verify()?;
        for setup in config.backends() {
            deliver::Backend::new(setup)?;
        }
        config.auth().map_err(|error| NoSuccessor::Other(error.into()))?;
        config.pair.check().map_err(|error| NoSuccessor::Other(error.into()))?;
        Ok(Some(Box::new(successor)))
    }
}

/// Applies the changes that are possible while the relay runs.
fn with_what_is_at_once(running: &Config, new: &Config, has_same_listeners: bool) -> Config {
    let mut config = running.clone();
    let Query { max_concurrent, select_into, .. } = running.query;
    config.query = Query { max_concurrent, select_into, ..new.query.clone() };
    if has_same_listeners {
        for (known, new) in config.udp.iter_mut().zip(&new.udp) {
            known.allow.clone_from(&new.allow);
        }
        for (known, new) in config.tcp.iter_mut().zip(&new.tcp) {
            known.allow.clone_from(&new.allow);
        }
        for (known, new) in config.http.iter_mut().zip(&new.http) {
            known.allow.clone_from(&new.allow);
        }
    }
    config
}

/// Applies the changes that need a successor.
fn with_what_is_anew(running: &Config, new: &Config, has_same_listeners: bool) -> Config {
    let mut config = running.clone();
    config.query = new.query.clone();
    config.backend =
        new.backend.iter().map(|backend| Backend { url: url_of(backend, running), ..backend.clone() }).collect();
    config.pair = new.pair.clone();
    config.auth.right.clone_from(&new.auth.right);
    if !has_same_listeners {
        return config;
    }
    for (known, new) in config.tcp.iter_mut().zip(&new.tcp) {
        known.max_connections = new.max_connections;
        known.max_connections_per_source = new.max_connections_per_source;
        known.idle_timeout = new.idle_timeout;
        known.line_timeout = new.line_timeout;
        known.first_line_timeout = new.first_line_timeout;
    }
    for (known, new) in config.http.iter_mut().zip(&new.http) {
        known.max_connections = new.max_connections;
        known.max_connections_per_source = new.max_connections_per_source;
        known.max_body = new.max_body;
        known.max_databases = new.max_databases;
        known.max_destinations = new.max_destinations;
        known.databases.clone_from(&new.databases);
    }
    config
}

/// A backend's new URL. Keeps the old one if the address changed: an operator must first say which
/// server the lines in the journal belong to.
fn url_of(backend: &Backend, running: &Config) -> BackendUrl {
    let known = running.backend.iter().find(|known| known.name == backend.name);
    let known = known.filter(|known| known.url.address() != backend.url.address());
    known.map_or_else(|| backend.url.clone(), |known| known.url.clone())
}

/// Describes the changes to backends, one sentence each.
fn of_backends(running: &[Backend], new: &[Backend]) -> Vec<String> {
    let named = |all: &[Backend], name: &str| all.iter().find(|one| one.name == name).cloned();
    let text = |backend: &Backend| toml::to_string(backend).ok();
    let removed = running.iter().filter(|one| named(new, &one.name).is_none()).map(|one| {
        let name = &one.name;
        format!(
            "backend {name} was removed: the journal keeps what it is owed, and what comes, until it is configured again, or you \
             stop the relay and run: twinflux journal forget {name}"
        )
    });
    let others = new.iter().filter_map(|one| {
        let name = &one.name;
        match named(running, name) {
            None => Some(format!(
                "backend {name} was added: it gets what comes from now on, and what the journal has kept for that name; if the \
                 journal does not know it, readers are sent to it once you say that its copy is complete: twinflux backend \
                 {name} vouch"
            )),
            Some(known) if text(&known) != text(one) => Some(format!("backend {name} was changed")),
            Some(_) => None,
        }
    });
    removed.chain(others).collect()
}

/// Kind and address of each listener.
fn listens(config: &Config) -> Vec<(&'static str, SocketAddr)> {
    let of_udp = config.udp.iter().map(|one| ("udp", one.listen));
    let of_tcp = config.tcp.iter().map(|one| ("tcp", one.listen));
    of_udp.chain(of_tcp).chain(config.http.iter().map(|one| ("http", one.listen))).collect()
}

/// The keys in which two configurations differ, such as `udp[0].allow`.
fn differing(one: &Config, other: &Config) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let values = [one, other].map(|config| toml::Value::try_from(config).ok());
    compare(&mut found, "", values.each_ref().map(Option::as_ref));
    found
}

fn compare(found: &mut BTreeSet<String>, path: &str, values: [Option<&toml::Value>; 2]) {
    use toml::Value::{Array, Table};
    match values {
        [one, other] if one == other => {}
        [Some(Table(one)), Some(Table(other))] => {
            for key in one.keys().chain(other.keys()).collect::<BTreeSet<_>>() {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(found, &path, [one.get(key), other.get(key)]);
            }
        }
        [Some(Array(one)), Some(Array(other))] if one.iter().chain(other).all(toml::Value::is_table) => {
            for index in 0..one.len().max(other.len()) {
                compare(found, &format!("{path}[{index}]"), [one.get(index), other.get(index)]);
            }
        }
        _ => drop(found.insert(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Udp;

    #[test]
    fn what_differs_is_named_by_its_key() {
        let mut one = Config::default();
        one.udp.push(Udp::default());
        let mut other = one.clone();
        assert!(differing(&one, &other).is_empty());
        other.udp[0].allow = vec!["10.0.0.0/8".parse().expect("a network")];
        other.query.max_lag = Duration::from_secs(3);
        other.udp.push(Udp::default());
        let found: Vec<String> = differing(&one, &other).into_iter().collect();
        assert_eq!(found, ["query.max_lag", "udp[0].allow", "udp[1]"]);
    }

    #[test]
    fn each_key_has_its_way() {
        let base = "[[udp]]\n[[tcp]]\n[[http]]\n[[backend]]\nname = \"a\"\nurl = \"http://a:8086\"\n";
        let load = |text: &str| toml::from_str::<Config>(text).expect("a configuration");
        let running = load(base);
        for (table, more, key, how) in [
            ("[[udp]]", "allow = [\"10.0.0.0/8\"]", "udp[0].allow", "at once"),
            ("[[http]]", "max_body = \"1MB\"", "http[0].max_body", "anew"),
            ("[[http]]", "databases = [\"x\"]", "http[0].databases", "anew"),
            ("[[http]]", "database = \"x\"", "http[0].database", "restart"),
            ("[[tcp]]", "first_line_timeout = \"1s\"", "tcp[0].first_line_timeout", "anew"),
            ("[[tcp]]", "format = \"graphite\"", "tcp[0].format", "restart"),
            ("[[backend]]", "gzip = true", "backend a", "anew"),
        ] {
            let new = load(&base.replacen(table, &format!("{table}\n{more}"), 1));
            assert_way(&running, &new, key, how);
        }
        for (more, key, how) in [
            ("[query]\ntimeout = \"9s\"", "query.timeout", "at once"),
            ("[query]\nselect_into = \"all\"", "query.select_into", "anew"),
            ("[pair]\npeer = \"http://b:9097\"", "pair", "anew"),
            ("[[auth.right]]\nname = \"x\"", "auth", "anew"),
            ("[journal]\nmemory = \"99MiB\"", "journal.memory", "restart"),
            ("[[udp]]\nlisten = \"0.0.0.0:1\"", "udp[1]", "restart"),
        ] {
            assert_way(&running, &load(&format!("{base}{more}\n")), key, how);
        }
        // Other listeners need a restart, together with their allowed networks.
        let text = "[[udp]]\nlisten = \"0.0.0.0:1\"\nallow = [\"10.0.0.0/8\"]\n";
        assert_way(&running, &load(&base.replacen("[[udp]]\n", text, 1)), "udp[0].allow", "restart");
        let said = Plan::new(&running, &load(&base.replacen("[[udp]]\n", text, 1)), true).sentences();
        assert!(said.iter().any(|one| one.contains("udp[0].allow") && one.contains("listeners were")), "{said:?}");
        // A backend at another address is another server until an operator says otherwise.
        let elsewhere = load(&base.replace("http://a:8086", "http://b:8086"));
        assert_way(&running, &elsewhere, "backend[0].url", "restart");
        assert!(Plan::new(&running, &elsewhere, true).anew.is_empty());
    }

    fn assert_way(running: &Config, new: &Config, key: &str, how: &str) {
        let plan = Plan::new(running, new, true);
        let is_in =
            |mut sentences: std::collections::btree_set::Iter<'_, String>| sentences.any(|one| one.starts_with(key));
        let ways = [
            ("at once", is_in(plan.changed.iter())),
            ("anew", plan.anew.iter().any(|one| one.starts_with(key))),
            ("restart", is_in(plan.left.iter())),
        ];
        let found: Vec<&str> = ways.iter().filter(|(_, is_so)| *is_so).map(|(how, _)| *how).collect();
        assert_eq!(found, [how], "{key}: {plan:?}");
    }

    fn backend(name: &str) -> Backend {
        Backend::new(name.to_owned(), format!("http://{name}:8086").parse().expect("a URL"))
    }

    #[test]
    fn backends_are_told_by_their_names_and_taken_by_another_relay() {
        let mut running = Config { backend: vec![backend("a"), backend("b")], ..Config::default() };
        running.udp.push(Udp::default());
        let mut new = Config { backend: vec![backend("c"), backend("a")], ..running.clone() };
        new.backend[1].gzip = true;
        new.journal.memory = bytesize::ByteSize::mib(128);
        let plan = Plan::new(&running, &new, true);
        let said = plan.sentences().join("\n");
        for part in ["b was removed", "c was added", "a was changed", "journal.memory differs", "another relay"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let bound = ([10, 0, 0, 1], 9999).into();
        let successor = plan.successor(&[bound], bound).expect("it would start").expect("one");
        assert_eq!(successor.config.backend.len(), 2);
        assert_eq!((successor.config.udp[0].listen.port(), successor.file.udp[0].listen.port()), (9999, 8089));
        assert_eq!(successor.config.journal.memory, running.journal.memory, "what needs a restart stays as it was");
        assert_eq!(plan.at_once.backend.len(), 2);
        // Without a successor, or with lines only in memory, this needs a restart.
        running.journal.durability = Durability::Memory;
        new.journal.durability = Durability::Memory;
        for plan in [Plan::new(&running, &new, true), Plan::new(&running, &new, false)] {
            assert!(plan.successor(&[bound], bound).expect("fine").is_none());
            assert!(plan.sentences().iter().any(|one| one.starts_with("backend[0]") && one.contains("restart only")));
        }
        // A successor that could not start is reported before anything is changed.
        running.journal.durability = Durability::Written;
        new.journal.durability = Durability::Written;
        new.backend[0].token_file = Some("/nowhere".into());
        let wrong = Plan::new(&running, &new, true).successor(&[bound], bound).expect_err("no token").to_string();
        assert!(wrong.contains("/nowhere"), "{wrong}");
    }
}
