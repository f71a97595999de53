//! Who may write: checks a request's credentials and rights before its body is read.
//!
//! Bounds: two slow checks at a time, [`MOST_WAITING`] that wait; [`MOST_MISSES`] slow checks that failed from one source in
//! [`MISS_WINDOW`], so that whoever guesses costs little.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Uri};
use tokio::sync::Semaphore;

use super::problem::Problem;
use super::request::parameters;
use crate::auth::{Auth, Credentials, Identity, Known};

/// Slow checks at a time: each takes a CPU.
const CHECKS: usize = 2;
const MOST_WAITING: usize = 64;
const MOST_MISSES: u32 = 20;
const MISS_WINDOW: Duration = Duration::from_secs(10);
/// Sources whose misses are counted.
const MOST_SOURCES: usize = 4096;

/// One listener's gate.
pub(super) struct Gate {
    /// None: everybody may write everything.
    auth: Option<Arc<Auth>>,
    checks: Semaphore,
    waiting: Cell<usize>,
    /// Since when, and how many.
    misses: RefCell<HashMap<IpAddr, (Instant, u32)>>,
}

impl Gate {
    pub(super) fn new(auth: Option<Arc<Auth>>) -> Self {
        Self { auth, checks: Semaphore::new(CHECKS), waiting: Cell::new(0), misses: RefCell::default() }
    }

    /// Whether the request's sender may write to this database.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn may_write(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        source: IpAddr,
        database: &str,
    ) -> Result<(), Problem> {
        let Some(auth) = &self.auth else { return Ok(()) };
        let identity = self.identify(auth, uri, headers, source).await?;
        if auth.may_write(&identity, database) { Ok(()) } else { Err(Problem::NoRight(database.to_owned())) }
    }

    /// Whether the request's sender may administer here: nobody whom this relay does not know, and must be known if it knows
    /// anybody.
    ///
    /// # Errors
    /// Why it may not even ask.
    pub(super) async fn may_administer(&self, uri: &Uri, headers: &HeaderMap, source: IpAddr) -> Result<bool, Problem> {
        let Some(auth) = &self.auth else { return Ok(false) };
        let identity = self.identify(auth, uri, headers, source).await?;
        if auth.may_administer(&identity) { Ok(true) } else { Err(Problem::NoAdministrator) }
    }

    /// Who sends the request.
    async fn identify(
        &self,
        auth: &Arc<Auth>,
        uri: &Uri,
        headers: &HeaderMap,
        source: IpAddr,
    ) -> Result<Identity, Problem> {
        let mut parameters = parameters(uri.query().unwrap_or_default());
        let (user, password) = (parameters.remove("u"), parameters.remove("p"));
        let credentials = Credentials::of(user.as_deref(), password.as_deref(), headers)
            .map_err(|_| Problem::Framing("there is more than one Authorization header"))?;
        let Some(credentials) = credentials else { return Err(Problem::Unauthorized) };
        let identity = match auth.known(&credentials) {
            Known::Right(identity) => Some(identity),
            Known::Wrong => None,
            Known::Unknown => self.check(auth, credentials, source).await?,
        };
        identity.ok_or(Problem::Unauthorized)
    }

    /// Checks credentials that nothing is known of, on a thread of its own.
    async fn check(
        &self,
        auth: &Arc<Auth>,
        credentials: Credentials,
        source: IpAddr,
    ) -> Result<Option<Identity>, Problem> {
        if self.waiting.get() >= MOST_WAITING || self.has_missed_too_often(source) {
            return Err(Problem::Busy);
        }
        let waiting = Waiting::new(&self.waiting);
        let Ok(_place) = self.checks.acquire().await else { return Err(Problem::Busy) };
        let identity = match auth.known(&credentials) {
            // Another request with the same ones was checked meanwhile.
            Known::Right(identity) => Some(identity),
            Known::Wrong => None,
            Known::Unknown => {
                let auth = Arc::clone(auth);
                let checked = tokio::task::spawn_blocking(move || auth.check(&credentials)).await;
                checked.map_err(|_| Problem::Busy)?
            }
        };
        drop(waiting);
        if identity.is_none() {
            self.note_miss(source);
        }
        Ok(identity)
    }

    fn has_missed_too_often(&self, source: IpAddr) -> bool {
        let misses = self.misses.borrow();
        misses.get(&source).is_some_and(|(since, count)| since.elapsed() < MISS_WINDOW && *count >= MOST_MISSES)
    }

    fn note_miss(&self, source: IpAddr) {
        let mut misses = self.misses.borrow_mut();
        if misses.len() >= MOST_SOURCES && !misses.contains_key(&source) {
            misses.retain(|_, (since, _)| since.elapsed() < MISS_WINDOW);
            if misses.len() >= MOST_SOURCES {
                return;
            }
        }
        let (since, count) = misses.entry(source).or_insert_with(|| (Instant::now(), 0));
        if since.elapsed() >= MISS_WINDOW {
            (*since, *count) = (Instant::now(), 0);
        }
        *count += 1;
    }
}

/// One more that waits, until this goes.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
