//! Keeps a name's addresses up to date while lines are sent there.
//!
//! Owns: the resolution of one name. A sender of datagrams uses one address: the name is resolved
//! again when its last answer is 30 s old, and the address is kept while it is among the answers. A
//! client that connects uses all addresses, and resolves the name for each connection. If the
//! resolver fails, the last answer stays in use. After a failed connection another address is tried
//! first.
//!
//! Bounds: one query at a time; sending waits at most a second for it, unless no address is known
//! yet.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Maximum age of an answer.
const MAX_AGE: Duration = Duration::from_secs(30);
/// How long sending waits for an answer while an older one is known.
const PATIENCE: Duration = Duration::from_secs(1);

/// A query in progress.
type Query = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;
/// Resolves `name:port`.
type Resolve = Box<dyn Fn(String) -> Query + Send + Sync>;

/// The addresses of one `name:port`.
pub(crate) struct Addresses {
    host: String,
    resolve: Resolve,
    max_age: Duration,
    /// The last answer.
    answers: Vec<SocketAddr>,
    /// The answers to try after the others.
    avoided: Vec<SocketAddr>,
    current: Option<SocketAddr>,
    /// Whether the current address failed.
    has_failed: bool,
    /// When the current answer expires.
    due: Instant,
    query: Option<JoinHandle<io::Result<Vec<SocketAddr>>>>,
}

impl Addresses {
    /// Creates the addresses of `name:port`, as resolved by the system.
    pub(crate) fn new(host: String) -> Self {
        let resolve = |host| -> Query { Box::pin(async move { Ok(tokio::net::lookup_host(host).await?.collect()) }) };
        Self::with(host, Box::new(resolve), MAX_AGE)
    }

    fn with(host: String, resolve: Resolve, max_age: Duration) -> Self {
        let (answers, avoided, due) = (Vec::new(), Vec::new(), Instant::now());
        Self { host, resolve, max_age, answers, avoided, current: None, has_failed: false, due, query: None }
    }

    /// Returns the address to send to.
    ///
    /// # Errors
    /// The name has no address, and never had one.
    pub(crate) async fn current(&mut self) -> io::Result<SocketAddr> {
        let is_old = self.current.is_none() || self.has_failed || self.due <= Instant::now();
        let starts = is_old && self.query.is_none();
        if starts {
            self.query = Some(tokio::spawn((self.resolve)(self.host.clone())));
            self.due = Instant::now() + self.max_age;
        }
        let patience = match self.current {
            None => Duration::MAX,
            Some(_) if starts => PATIENCE,
            Some(_) => Duration::ZERO,
        };
        let error = self.finish(patience).await;
        self.current.ok_or_else(|| error.unwrap_or_else(no_address))
    }

    /// Resolves the name, and returns the addresses to connect to in the order to try them.
    ///
    /// # Errors
    /// The name has no address, and never had one.
    pub(crate) async fn all(&mut self) -> io::Result<Vec<SocketAddr>> {
        self.due = Instant::now();
        self.current().await?;
        let mut all = self.answers.clone();
        all.sort_by_key(|answer| self.avoided.contains(answer));
        Ok(all)
    }

    /// Notes that an address failed: the others are tried first, until all of them have failed.
    pub(crate) fn avoid(&mut self, address: SocketAddr) {
        self.avoided.retain(|avoided| *avoided != address && self.answers.contains(avoided));
        self.avoided.push(address);
        if self.answers.iter().all(|answer| self.avoided.contains(answer)) {
            self.avoided.clear();
        }
    }

    /// Notes that the current address failed.
    pub(crate) fn fail(&mut self) {
        self.has_failed = true;
    }

    /// Waits at most `patience` for the query in progress, if any, and stores its answer; returns
    /// its error.
    async fn finish(&mut self, patience: Duration) -> Option<io::Error> {
        let query = self.query.as_mut()?;
        let answer = timeout(patience, query).await.ok()?;
        self.query = None;
        match answer.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(answers) if answers.is_empty() => Some(no_address()),
            Ok(answers) => {
                self.choose(&answers);
                None
            }
            Err(error) => Some(error),
        }
    }

    /// Keeps the current address if it is among the answers, otherwise uses the first answer; after
    /// a failure, the next one.
    fn choose(&mut self, answers: &[SocketAddr]) {
        let index = answers.iter().position(|answer| Some(*answer) == self.current);
        let index = match index {
            Some(index) if self.has_failed => (index + 1) % answers.len(),
            Some(index) => index,
            None => 0,
        };
        self.current = answers.get(index).copied();
        self.answers = answers.to_vec();
        self.has_failed = false;
    }
}

fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the name has no address")
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses").field("host", &self.host).field("current", &self.current).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A resolver with a settable answer; it hangs if there is none.
    type Switch = Arc<Mutex<Option<Result<Vec<SocketAddr>, &'static str>>>>;

    fn address(host: u8) -> SocketAddr {
        ([10, 0, 0, host], 8089).into()
    }

    fn switched(answers: &[u8], max_age: Duration) -> (Addresses, Switch) {
        let switch: Switch = Arc::default();
        answer(&switch, answers);
        let asked = Arc::clone(&switch);
        let resolve = move |host: String| -> Query {
            assert_eq!(host, "relay:8089");
            let answer = asked.lock().expect("no panic").clone();
            Box::pin(async move {
                match answer {
                    Some(answer) => answer.map_err(io::Error::other),
                    None => std::future::pending().await,
                }
            })
        };
        (Addresses::with("relay:8089".to_owned(), Box::new(resolve), max_age), switch)
    }

    fn answer(switch: &Switch, answers: &[u8]) {
        *switch.lock().expect("no panic") = Some(Ok(answers.iter().copied().map(address).collect()));
    }

    #[tokio::test]
    async fn a_name_that_moves_is_followed_and_one_that_does_not_is_not() {
        let (mut addresses, switch) = switched(&[1, 2], Duration::ZERO);
        assert_eq!(addresses.current().await.expect("an address"), address(1));
        for (answers, expected) in [(&[2, 1][..], 1), (&[3, 2], 3), (&[2, 3], 3), (&[4], 4)] {
            answer(&switch, answers);
            assert_eq!(addresses.current().await.expect("an address"), address(expected), "{answers:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_used_until_it_is_too_old() {
        let (mut addresses, switch) = switched(&[1], Duration::from_secs(3600));
        assert_eq!(addresses.current().await.expect("an address"), address(1));
        answer(&switch, &[2]);
        assert_eq!(addresses.current().await.expect("an address"), address(1));
    }

    #[tokio::test]
    async fn a_resolver_that_fails_or_hangs_moves_nothing() {
        let (mut addresses, switch) = switched(&[1], Duration::ZERO);
        assert_eq!(addresses.current().await.expect("an address"), address(1));
        for broken in [Some(Err("no such name")), Some(Ok(Vec::new())), None] {
            *switch.lock().expect("no panic") = broken;
            assert_eq!(addresses.current().await.expect("an address"), address(1));
        }
        // The hung query is the only one.
        answer(&switch, &[2]);
        assert_eq!(addresses.current().await.expect("an address"), address(1));
    }

    #[tokio::test]
    async fn an_address_that_failed_makes_room_for_the_next_answer() {
        let (mut addresses, switch) = switched(&[1, 2], Duration::from_secs(3600));
        for expected in [1, 2, 1] {
            assert_eq!(addresses.current().await.expect("an address"), address(expected));
            addresses.fail();
        }
        answer(&switch, &[1]);
        assert_eq!(addresses.current().await.expect("an address"), address(1));
    }

    #[tokio::test]
    async fn whoever_connects_has_the_answers_of_now_and_the_last_ones_without_a_resolver() {
        let (mut addresses, switch) = switched(&[1, 2], Duration::from_secs(3600));
        assert_eq!(addresses.all().await.expect("addresses"), [1, 2].map(address));
        // The resolver's order is kept: it may distribute hosts over its answers.
        answer(&switch, &[2, 1]);
        assert_eq!(addresses.all().await.expect("addresses"), [2, 1].map(address));
        answer(&switch, &[2, 1, 3]);
        addresses.all().await.expect("addresses");
        // Any number of reports has the same effect.
        for (avoided, expected) in [(&[2][..], [1, 3, 2]), (&[1, 1], [3, 2, 1]), (&[3], [2, 1, 3])] {
            avoided.iter().for_each(|number| addresses.avoid(address(*number)));
            answer(&switch, &[2, 1, 3]);
            let all = addresses.all().await.expect("addresses");
            assert_eq!(all, expected.map(address));
        }
        answer(&switch, &[3]);
        assert_eq!(addresses.all().await.expect("addresses"), [address(3)]);
        for broken in [Some(Err("no such name")), Some(Ok(Vec::new())), None] {
            *switch.lock().expect("no panic") = broken;
            assert_eq!(addresses.all().await.expect("addresses"), [address(3)]);
        }
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_an_error_that_passes() {
        let (mut addresses, switch) = switched(&[], Duration::from_secs(3600));
        assert!(addresses.current().await.is_err_and(|error| error.to_string().contains("no address")));
        *switch.lock().expect("no panic") = Some(Err("the resolver is down"));
        assert!(addresses.current().await.is_err_and(|error| error.to_string().contains("resolver is down")));
        answer(&switch, &[1]);
        assert_eq!(addresses.current().await.expect("an address"), address(1));
    }
}
