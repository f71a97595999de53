//! Destinations of requests: which databases are allowed, and every destination that was named so
//! far.
//!
//! Bounds: databases and destinations, as configured. A destination is never removed, because the
//! journal keeps cursors for it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::problem::Problem;
use super::request::Write;
use crate::batch::Destination;
use crate::sys::wildcard::fits;

/// Maximum length of a database or retention policy name in bytes; the limit of the journal's
/// format.
const NAME_BYTES: usize = 255;

/// The destinations of one listener.
#[derive(Debug)]
pub(super) struct Destinations {
    /// Destination of requests that name none.
    usual: Arc<Destination>,
    /// Allowed databases, with `*` as a wildcard. Empty: all.
    allowed: Vec<String>,
    max_databases: usize,
    max_destinations: usize,
    databases: HashSet<String>,
    known: HashMap<Destination, Arc<Destination>>,
}

impl Destinations {
    pub(super) fn new(
        usual: Arc<Destination>,
        allowed: Vec<String>,
        max_databases: usize,
        max_destinations: usize,
    ) -> Self {
        Self { usual, allowed, max_databases, max_destinations, databases: HashSet::new(), known: HashMap::new() }
    }

    /// Resolves the destination of a request.
    ///
    /// # Errors
    /// The request names no destination, or one that is not allowed.
    pub(super) fn of(&mut self, write: &Write) -> Result<Arc<Destination>, Problem> {
        let database = write.database.clone().unwrap_or_else(|| self.usual.database().to_owned());
        if database.is_empty() {
            return Err(Problem::NoDatabase);
        }
        let retention_policy =
            write.retention_policy.clone().unwrap_or_else(|| self.usual.retention_policy().to_owned());
        let precision = write.precision.unwrap_or_else(|| self.usual.precision());
        self.enter(Destination::new(database, retention_policy, precision))
    }

    /// The listener's own destination.
    ///
    /// # Errors
    /// The listener has none.
    pub(super) fn usual(&mut self) -> Result<Arc<Destination>, Problem> {
        if self.usual.database().is_empty() { Err(Problem::NoDatabase) } else { self.enter((*self.usual).clone()) }
    }

    /// The databases that clients may see: those that received lines, and those that are allowed by
    /// name.
    pub(super) fn names(&self) -> Vec<String> {
        let named = self.allowed.iter().filter(|name| !name.contains('*'));
        let usual = Some(self.usual.database().to_owned()).filter(|name| !name.is_empty());
        let mut names: Vec<String> = self.databases.iter().chain(named).cloned().chain(usual).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn enter(&mut self, destination: Destination) -> Result<Arc<Destination>, Problem> {
        if let Some(known) = self.known.get(&destination) {
            return Ok(Arc::clone(known));
        }
        let names = [destination.database(), destination.retention_policy()];
        if names.iter().any(|name| !is_possible(name)) {
            return Err(Problem::BadName);
        }
        let database = destination.database();
        if !self.allowed.is_empty() && !self.allowed.iter().any(|pattern| fits(pattern, database)) {
            return Err(Problem::NotServed(database.to_owned()));
        }
        let is_new = !self.databases.contains(database);
        if self.known.len() >= self.max_destinations || (is_new && self.databases.len() >= self.max_databases) {
            return Err(Problem::TooMany(database.to_owned()));
        }
        self.databases.insert(database.to_owned());
        let kept = Arc::new(destination.clone());
        self.known.insert(destination, Arc::clone(&kept));
        Ok(kept)
    }
}

/// Whether InfluxDB can have a database or policy of this name. Lines for an impossible name would
/// wait for ever.
fn is_possible(name: &str) -> bool {
    let is_odd = |c: char| c.is_control() || matches!(c, '/' | '\\' | char::REPLACEMENT_CHARACTER);
    name.len() <= NAME_BYTES && !matches!(name, "." | "..") && !name.contains(is_odd)
}

#[cfg(test)]
mod tests {
    use super::super::request::Api;
    use super::*;
    use crate::protocol::Precision;

    fn destinations(database: &str, allowed: &[&str], max_databases: usize, max_destinations: usize) -> Destinations {
        let usual = Destination::new(database, "", Precision::Nanoseconds);
        Destinations::new(
            Arc::new(usual),
            allowed.iter().map(|name| (*name).to_owned()).collect(),
            max_databases,
            max_destinations,
        )
    }

    fn write(database: &str, policy: &str, precision: Option<Precision>) -> Write {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let (database, retention_policy) = (some(database), some(policy));
        Write { api: Api::V1, database, retention_policy, precision, accepts_partial: true }
    }

    #[test]
    fn a_request_names_its_destination_or_has_the_usual_one() {
        let mut some = destinations("usual", &[], 10, 10);
        let names = |found: Arc<Destination>| {
            (found.database().to_owned(), found.retention_policy().to_owned(), found.precision())
        };
        let found = some.of(&write("", "", None)).map(names);
        assert_eq!(found, Ok(("usual".to_owned(), String::new(), Precision::Nanoseconds)));
        let found = some.of(&write("db", "week", Some(Precision::Seconds)));
        let again = some.of(&write("db", "week", Some(Precision::Seconds)));
        assert!(Arc::ptr_eq(&found.clone().expect("one"), &again.expect("one")));
        assert_eq!(found.map(names), Ok(("db".to_owned(), "week".to_owned(), Precision::Seconds)));
        assert_eq!(some.names(), ["db", "usual"]);
        assert_eq!(destinations("", &[], 10, 10).of(&write("", "", None)), Err(Problem::NoDatabase));
        for name in ["a\nb", "a/b", "a\\b", ".", "..", "a\u{fffd}", &"x".repeat(256)] {
            assert_eq!(some.of(&write(name, "", None)), Err(Problem::BadName), "{name}");
            assert_eq!(some.of(&write("a", name, None)), Err(Problem::BadName), "{name}");
        }
    }

    #[test]
    fn databases_and_destinations_are_bounded() {
        let mut few = destinations("", &[], 2, 3);
        few.of(&write("a", "", None)).expect("one");
        few.of(&write("b", "", None)).expect("one");
        assert_eq!(few.of(&write("c", "", None)), Err(Problem::TooMany("c".to_owned())));
        few.of(&write("a", "x", None)).expect("one");
        assert_eq!(few.of(&write("a", "y", None)), Err(Problem::TooMany("a".to_owned())));
        few.of(&write("b", "", None)).expect("what is known stays");
    }

    #[test]
    fn only_databases_that_are_allowed_are_taken() {
        let mut some = destinations("", &["telegraf", "net*", "*_test", "a*b*c"], 100, 100);
        for (name, is_taken) in [
            ("telegraf", true),
            ("telegraf2", false),
            ("net", true),
            ("netdata", true),
            ("x_test", true),
            ("test", false),
            ("abc", true),
            ("axxbyyc", true),
            ("acb", false),
        ] {
            assert_eq!(some.of(&write(name, "", None)).is_ok(), is_taken, "{name}");
        }
        assert!(some.names().contains(&"telegraf".to_owned()));
    }
}
