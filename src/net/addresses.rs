//! A name's addresses, kept up to date while lines are sent there.
//!
//! Whoever sends datagrams takes one address: the name is resolved again when its last answer is 30 s old, and the address
//! stays while it is among the answers. Whoever connects takes all of them, and the name is resolved for each connection. While
//! the resolver fails the last answer stays: a resolver's outage moves nothing. After a failure another one is tried first.
//!
//! Bounds: one query at a time; sending waits at most a second for one, unless no address is known yet.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How old an answer may be.
const LONGEST: Duration = Duration::from_secs(30);
/// How long sending waits for an answer while an older one is known.
const PATIENCE: Duration = Duration::from_secs(1);

/// A query under way.
type Query = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;
/// Looks up `name:port`.
type Resolve = Box<dyn Fn(String) -> Query + Send + Sync>;

/// The addresses of one `name:port`.
pub(crate) struct Addresses {
    host: String,
    resolve: Resolve,
    longest: Duration,
    /// The last answer.
    answers: Vec<SocketAddr>,
    /// Those of them that are tried after the others.
    avoided: Vec<SocketAddr>,
    current: Option<SocketAddr>,
    /// Whether the current address failed.
    has_failed: bool,
    /// When the current answer is too old.
    due: Instant,
    query: Option<JoinHandle<io::Result<Vec<SocketAddr>>>>,
}

impl Addresses {
    /// Of `name:port`, as the system resolves it.
    pub(crate) fn new(host: String) -> Self {
        let resolve = |host| -> Query { Box::pin(async move { Ok(tokio::net::lookup_host(host).await?.collect()) }) };
        Self::with(host, Box::new(resolve), LONGEST)
    }

    fn with(host: String, resolve: Resolve, longest: Duration) -> Self {
        let (answers, avoided, due) = (Vec::new(), Vec::new(), Instant::now());
        Self { host, resolve, longest, answers, avoided, current: None, has_failed: false, due, query: None }
    }

    /// The address to send to.
    ///
    /// # Errors
    /// The name has no address, and never had one.
    pub(crate) async fn current(&mut self) -> io::Result<SocketAddr> {
        let is_old = self.current.is_none() || self.has_failed || self.due <= Instant::now();
        let starts = is_old && self.query.is_none();
        if starts {
            self.query = Some(tokio::spawn((self.resolve)(self.host.clone())));
            self.due = Instant::now() + self.longest;
        }
        let patience = match self.current {
            None => Duration::MAX,
            Some(_) if starts => PATIENCE,
            Some(_) => Duration::ZERO,
        };
        let error = self.finish(patience).await;
        self.current.ok_or_else(|| error.unwrap_or_else(no_address))
    }

    /// The addresses to connect to, in the order in which they are to be tried; the name is resolved for it.
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

    /// Tells that an address did not work: the others are tried first, until none of them works either.
    pub(crate) fn avoid(&mut self, address: SocketAddr) {
        self.avoided.retain(|avoided| *avoided != address && self.answers.contains(avoided));
        self.avoided.push(address);
        if self.answers.iter().all(|answer| self.avoided.contains(answer)) {
            self.avoided.clear();
        }
    }

    /// Tells that the current address did not work.
    pub(crate) fn fail(&mut self) {
        self.has_failed = true;
    }

    /// Waits so long for the query under way, where there is one, and takes its answer; returns its error.
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

    /// Stays where it is if it may, else takes the first answer; after a failure, the next one.
    fn choose(&mut self, answers: &[SocketAddr]) {
        let place = answers.iter().position(|answer| Some(*answer) == self.current);
        let place = match place {
            Some(place) if self.has_failed => (place + 1) % answers.len(),
            Some(place) => place,
            None => 0,
        };
        self.current = answers.get(place).copied();
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

    /// A resolver that can be switched; it hangs where there is no answer to give.
    type Switch = Arc<Mutex<Option<Result<Vec<SocketAddr>, &'static str>>>>;

    fn address(host: u8) -> SocketAddr {
        ([10, 0, 0, host], 8089).into()
    }

    fn switched(answers: &[u8], longest: Duration) -> (Addresses, Switch) {
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
        (Addresses::with("relay:8089".to_owned(), Box::new(resolve), longest), switch)
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
        // The query that hangs is the only one.
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
        // As the resolver has them: it may share out hosts among its answers.
        answer(&switch, &[2, 1]);
        assert_eq!(addresses.all().await.expect("addresses"), [2, 1].map(address));
        answer(&switch, &[2, 1, 3]);
        addresses.all().await.expect("addresses");
        // However many say so.
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
