//! Checks credentials for a listener: cached results at once, the rest on threads that may block.
//!
//! Bounds: [`CHECKS`] slow checks at a time; [`MAX_WAITING`] different credentials waiting, with
//! any number of requests each; [`MAX_MISSES`] failed slow checks per source within
//! [`MISS_WINDOW`], so that guessing costs little.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::cache::Digest;
use super::{Auth, Credentials, Identity, Known};

/// Maximum number of concurrent slow checks: each occupies a CPU.
const CHECKS: usize = 2;
const MAX_WAITING: usize = 64;
const MAX_MISSES: u32 = 20;
const MISS_WINDOW: Duration = Duration::from_secs(10);
/// Maximum number of sources whose failed checks are counted.
const MAX_SOURCES: usize = 4096;

/// Too many checks are in progress, or have failed recently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// The checks of one listener.
#[derive(Debug)]
pub struct Checker {
    auth: Arc<Auth>,
    checks: Semaphore,
    /// Digests of the credentials that wait for a check, with the number of requests for each.
    waiting: Mutex<HashMap<Digest, usize>>,
    /// The start of each source's window, and the failed checks within it.
    misses: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

impl Checker {
    /// Creates a checker for these users and tokens.
    pub fn new(auth: Arc<Auth>) -> Self {
        Self { auth, checks: Semaphore::new(CHECKS), waiting: Mutex::default(), misses: Mutex::default() }
    }

    /// Returns the users and tokens.
    pub fn auth(&self) -> &Auth {
        &self.auth
    }

    /// Returns the users and tokens, for shared ownership.
    pub fn shared_auth(&self) -> &Arc<Auth> {
        &self.auth
    }

    /// Returns the identity for credentials; `None` if they are wrong.
    ///
    /// # Errors
    /// The check is not possible now.
    pub async fn identify(&self, credentials: Credentials, source: IpAddr) -> Result<Option<Identity>, Busy> {
        match self.auth.known(&credentials) {
            Known::Right(identity) => Ok(Some(identity)),
            Known::Wrong => Ok(None),
            Known::Unknown => self.check(credentials, source).await,
        }
    }

    /// Checks credentials without a cached result, on a blocking thread.
    async fn check(&self, credentials: Credentials, source: IpAddr) -> Result<Option<Identity>, Busy> {
        if self.has_missed_too_often(source) {
            return Err(Busy);
        }
        let waiting = Waiting::new(&self.waiting, self.auth.digest(&credentials)).ok_or(Busy)?;
        let Ok(_permit) = self.checks.acquire().await else { return Err(Busy) };
        let identity = match self.auth.known(&credentials) {
            // Another request with the same credentials was checked in the meantime.
            Known::Right(identity) => Some(identity),
            Known::Wrong => None,
            Known::Unknown => {
                let auth = Arc::clone(&self.auth);
                let checked = tokio::task::spawn_blocking(move || auth.check(&credentials)).await;
                checked.map_err(|_| Busy)?
            }
        };
        drop(waiting);
        if identity.is_none() {
            self.note_miss(source);
        }
        Ok(identity)
    }

    fn has_missed_too_often(&self, source: IpAddr) -> bool {
        let misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        misses.get(&source).is_some_and(|(since, count)| since.elapsed() < MISS_WINDOW && *count >= MAX_MISSES)
    }

    fn note_miss(&self, source: IpAddr) {
        let mut misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        if misses.len() >= MAX_SOURCES && !misses.contains_key(&source) {
            misses.retain(|_, (since, _)| since.elapsed() < MISS_WINDOW);
            if misses.len() >= MAX_SOURCES {
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

/// A waiting request; counted until dropped.
struct Waiting<'a> {
    all: &'a Mutex<HashMap<Digest, usize>>,
    own: Digest,
}

impl<'a> Waiting<'a> {
    /// Returns `None` if too many other credentials wait. The hosts of a restarting fleet usually
    /// share theirs, and all wait.
    fn new(all: &'a Mutex<HashMap<Digest, usize>>, own: Digest) -> Option<Self> {
        let mut counts = all.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= MAX_WAITING && !counts.contains_key(&own) {
            return None;
        }
        *counts.entry(own.clone()).or_default() += 1;
        drop(counts);
        Some(Self { all, own })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut counts = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.own) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.own);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_that_wait_are_bounded_and_requests_with_the_same_ones_are_one() {
        let all = Mutex::default();
        let digest = |number: usize| number.to_le_bytes().to_vec();
        let same: Vec<_> = (0..500).map(|_| Waiting::new(&all, digest(0)).expect("room")).collect();
        let others: Vec<_> = (1..MAX_WAITING).map(|number| Waiting::new(&all, digest(number)).expect("room")).collect();
        assert!(Waiting::new(&all, digest(MAX_WAITING)).is_none() && Waiting::new(&all, digest(1)).is_some());
        drop(same);
        assert!(Waiting::new(&all, digest(MAX_WAITING)).is_some());
        drop(others);
        assert!(all.lock().expect("no panic").is_empty());
    }
}
