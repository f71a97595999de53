//! What a changed configuration changes: at once, by a relay that takes this one's place, or by a restart only. Pure.
//!
//! A relay that takes another one's place in the same process gets its sockets: what comes meanwhile waits there. Connections
//! of TCP and HTTP end, and figures begin anew, as with a restart.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::config::{Backend, Config, ConfigError, Query};
use crate::deliver;
use crate::journal::Durability;

/// Keys of listeners that another relay takes, where it has the same listeners.
const LIMITS: [&str; 9] = [
    "max_connections",
    "max_connections_per_source",
    "idle_timeout",
    "line_timeout",
    "first_line_timeout",
    "max_body",
    "max_databases",
    "max_destinations",
    "databases",
];
/// What a reload changes, as `check` says it.
pub const CHANGEABLE: &str = "\
twinflux reload and SIGHUP change at once: allow of listeners; of [query] max_lag, incomplete, timeout and sticky; and read users, tokens \
and certificates again. They put another relay in this one's place, on the same sockets, for: backends added, removed or changed; the rest of \
[query]; [pair]; [[auth.right]]; databases, limits and time-outs of listeners. Everything else needs a restart.";

/// The configuration of a relay that takes another one's place.
#[derive(Clone, Debug)]
pub struct Successor {
    /// With the addresses that the sockets have.
    pub config: Config,
    /// The same with the addresses as the file has them, for comparing it with that.
    pub file: Config,
}

/// What is to be done about a changed configuration.
#[derive(Debug)]
pub(super) struct Plan {
    at_once: Vec<String>,
    /// Sentences.
    anew: Vec<String>,
    left: Vec<String>,
    /// Whether listeners keep their addresses.
    pub(super) has_same_listeners: bool,
    /// The new configuration.
    new: Config,
    /// The configuration afterwards, with what cannot be changed as it was.
    file: Config,
}

impl Plan {
    /// From the configuration that runs to a new one; whether another relay may take this one's place.
    pub(super) fn new(running: &Config, new: &Config, can_succeed: bool) -> Self {
        let has_same_listeners = listens(running) == listens(new);
        // What is only in memory would be lost.
        let can_succeed = can_succeed && running.journal.durability != Durability::Memory;
        let (mut at_once, mut by_another, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for key in differing(running, new) {
            match change(&key, has_same_listeners) {
                Change::AtOnce => at_once.push(key),
                Change::Anew if can_succeed => by_another.push(key),
                _ => left.push(key),
            }
        }
        let file = merged(running, new, (has_same_listeners, !by_another.is_empty()));
        let mut anew = of_backends(&running.backend, &file.backend);
        let others = by_another.iter().filter(|key| !key.starts_with("backend["));
        anew.extend(others.map(|key| format!("{key} was changed")));
        if anew.is_empty() && !by_another.is_empty() {
            anew.push("the backends' order was changed".to_owned());
        }
        Self { at_once, anew, left, has_same_listeners, new: new.clone(), file }
    }

    /// What it does, and what it cannot, a sentence for each.
    pub(super) fn sentences(&self) -> Vec<String> {
        let at_once = self.at_once.iter().map(|key| format!("{key} was changed"));
        let place = "another relay takes this one's place in this process: sockets stay open, connections end, figures begin anew";
        let place = (!self.anew.is_empty()).then(|| place.to_owned());
        let left = self.left.iter().map(|key| format!("{key} differs, and is changed by a restart only"));
        let sentences: Vec<String> = at_once.chain(self.anew.iter().cloned()).chain(left).chain(place).collect();
        if sentences.is_empty() { vec!["the configuration is as it was".to_owned()] } else { sentences }
    }

    /// The running configuration with what is changed at once.
    pub(super) fn at_once_of(&self, running: &Config) -> Config {
        merged(running, &self.new, (self.has_same_listeners, false))
    }

    /// The relay that is to take this one's place, whose listeners have these addresses; none where that is not needed.
    ///
    /// # Errors
    /// It could not start.
    pub(super) fn successor(
        &self,
        listeners: &[SocketAddr],
        admin: SocketAddr,
    ) -> Result<Option<Box<Successor>>, String> {
        if self.anew.is_empty() {
            return Ok(None);
        }
        let (mut config, file) = (self.file.clone(), self.file.clone());
        let of_udp = config.udp.iter_mut().map(|one| &mut one.listen);
        let of_tcp = config.tcp.iter_mut().map(|one| &mut one.listen);
        let of_http = config.http.iter_mut().map(|one| &mut one.listen);
        for (listen, address) in of_udp.chain(of_tcp).chain(of_http).zip(listeners) {
            // A wildcard stays one: the kernel shows IPv4's for both.
            listen.set_port(address.port());
        }
        config.admin.listen = admin;
        config.verify().map_err(|error: ConfigError| error.to_string())?;
        for setup in config.backends() {
            deliver::Backend::new(setup).map_err(|error| error.to_string())?;
        }
        config.auth()?;
        Ok(Some(Box::new(Successor { config, file })))
    }
}

/// How a key is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    AtOnce,
    Anew,
    Restart,
}

/// How a key is changed, as `udp[0].allow`: a listener's only where the listeners are the same.
fn change(key: &str, has_same_listeners: bool) -> Change {
    let is_listeners = ["udp[", "tcp[", "http["].iter().any(|kind| key.starts_with(kind));
    let ends_with = |name: &str| key.rsplit_once("].").is_some_and(|(_, last)| last == name);
    if ["query.max_lag", "query.incomplete", "query.timeout", "query.sticky"].contains(&key) {
        Change::AtOnce
    } else if ["backend", "query", "pair", "auth.right"].iter().any(|table| is_below(key, table)) {
        Change::Anew
    } else if !is_listeners || !has_same_listeners {
        Change::Restart
    } else if ends_with("allow") {
        Change::AtOnce
    } else if LIMITS.iter().any(|limit| ends_with(limit)) {
        Change::Anew
    } else {
        Change::Restart
    }
}

/// Whether a key is of this table.
fn is_below(key: &str, table: &str) -> bool {
    key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The running configuration with what can be changed as the new one has it.
fn merged(running: &Config, new: &Config, (has_same_listeners, is_anew): (bool, bool)) -> Config {
    let mut config = running.clone();
    let Query { max_concurrent, select_into, .. } = running.query;
    config.query = Query { max_concurrent, select_into, ..new.query.clone() };
    if is_anew {
        config.query = new.query.clone();
        config.backend.clone_from(&new.backend);
        config.pair = new.pair.clone();
        config.auth.right.clone_from(&new.auth.right);
    }
    if !has_same_listeners {
        return config;
    }
    for (known, new) in config.udp.iter_mut().zip(&new.udp) {
        known.allow.clone_from(&new.allow);
    }
    for (known, new) in config.tcp.iter_mut().zip(&new.tcp) {
        known.allow.clone_from(&new.allow);
        if is_anew {
            known.max_connections = new.max_connections;
            known.max_connections_per_source = new.max_connections_per_source;
            known.idle_timeout = new.idle_timeout;
            known.line_timeout = new.line_timeout;
            known.first_line_timeout = new.first_line_timeout;
        }
    }
    for (known, new) in config.http.iter_mut().zip(&new.http) {
        known.allow.clone_from(&new.allow);
        if is_anew {
            known.max_connections = new.max_connections;
            known.max_connections_per_source = new.max_connections_per_source;
            known.max_body = new.max_body;
            known.max_databases = new.max_databases;
            known.max_destinations = new.max_destinations;
            known.databases.clone_from(&new.databases);
        }
    }
    config
}

/// What becomes of the backends, a sentence for each.
fn of_backends(running: &[Backend], new: &[Backend]) -> Vec<String> {
    let named = |all: &[Backend], name: &str| all.iter().find(|one| one.name == name).cloned();
    let text = |backend: &Backend| toml::to_string(backend).ok();
    let removed = running.iter().filter(|one| named(new, &one.name).is_none()).map(|one| {
        let name = &one.name;
        format!(
            "backend {name} was removed: what the journal keeps for it stays there, until you stop the relay and run: \
             twinflux journal forget {name}"
        )
    });
    let others = new.iter().filter_map(|one| {
        let name = &one.name;
        match named(running, name) {
            None => Some(format!(
                "backend {name} was added: it gets what comes from now on, and readers are sent to it once its copy is \
                 complete, which you say by: twinflux backend {name} vouch"
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

/// The keys in which two configurations differ, as `udp[0].allow`.
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
            for place in 0..one.len().max(other.len()) {
                compare(found, &format!("{path}[{place}]"), [one.get(place), other.get(place)]);
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
        for (key, expected) in [
            ("udp[0].allow", Change::AtOnce),
            ("query.timeout", Change::AtOnce),
            ("query.select_into", Change::Anew),
            ("backend[1].timeout", Change::Anew),
            ("backend[2]", Change::Anew),
            ("auth.right[0].write", Change::Anew),
            ("auth.users_file", Change::Restart),
            ("pair", Change::Anew),
            ("http[1].max_body", Change::Anew),
            ("http[1].databases", Change::Anew),
            ("http[1].database", Change::Restart),
            ("tcp[0].first_line_timeout", Change::Anew),
            ("tcp[0].format", Change::Restart),
            ("journal.memory", Change::Restart),
            ("data_dir", Change::Restart),
        ] {
            assert_eq!(change(key, true), expected, "{key}");
        }
        assert_eq!(change("udp[0].allow", false), Change::Restart);
        assert_eq!(change("tcp[0].max_connections", false), Change::Restart);
        assert_eq!(change("query.timeout", false), Change::AtOnce);
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
        assert_eq!(plan.at_once_of(&running).backend.len(), 2);
        // Without somebody who does that, or with lines in memory only, it needs a restart.
        running.journal.durability = Durability::Memory;
        new.journal.durability = Durability::Memory;
        for plan in [Plan::new(&running, &new, true), Plan::new(&running, &new, false)] {
            assert!(plan.successor(&[bound], bound).expect("fine").is_none());
            assert!(plan.sentences().iter().any(|one| one.contains("backend[0]") && one.contains("restart only")));
        }
        // Whoever could not start is told before anything is changed.
        running.journal.durability = Durability::Written;
        new.journal.durability = Durability::Written;
        new.backend[0].token_file = Some("/nowhere".into());
        let wrong = Plan::new(&running, &new, true).successor(&[bound], bound).expect_err("no token");
        assert!(wrong.contains("/nowhere"), "{wrong}");
    }
}
