//! Who was checked lately: bcrypt is slow by intent, and one host writes every ten seconds.
//!
//! Knows no secret: entries are found by a digest that is keyed anew at each start. A right password is known until the users
//! are read again; a wrong one for [`MISS_TIME`], so that a mistyped one costs a hash now and then, and not with each request.
//! Bounds: [`MOST`] of each kind, the oldest goes.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use ring::hmac::{HMAC_SHA256, Key, sign};
use ring::rand::SystemRandom;

use super::Identity;
use super::credentials::Credentials;

const MOST: usize = 4096;
const MISS_TIME: Duration = Duration::from_secs(10);

/// A keyed digest of credentials.
pub(super) type Digest = Vec<u8>;

/// The results of earlier checks.
#[derive(Debug)]
pub(super) struct Cache {
    key: Key,
    known: HashMap<Digest, Identity>,
    known_order: VecDeque<Digest>,
    missed: HashMap<Digest, Instant>,
    missed_order: VecDeque<Digest>,
}

/// What an earlier check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// They are right.
    Right(Identity),
    /// They were wrong a moment ago.
    Wrong,
}

impl Cache {
    /// An empty one.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub(super) fn new() -> Result<Self, String> {
        let key = Key::generate(HMAC_SHA256, &SystemRandom::new());
        let key = key.map_err(|_| "the system gives no random numbers".to_owned())?;
        let (known, known_order, missed, missed_order) = Default::default();
        Ok(Self { key, known, known_order, missed, missed_order })
    }

    /// What is known of credentials.
    pub(super) fn find(&self, credentials: &Credentials, now: Instant) -> Option<Found> {
        let digest = self.digest(credentials);
        if let Some(identity) = self.known.get(&digest) {
            return Some(Found::Right(identity.clone()));
        }
        self.missed.get(&digest).filter(|until| now < **until).map(|_| Found::Wrong)
    }

    /// Notes a check's result.
    pub(super) fn note(&mut self, credentials: &Credentials, identity: Option<&Identity>, now: Instant) {
        let digest = self.digest(credentials);
        match identity {
            Some(identity) => {
                if self.known.insert(digest.clone(), identity.clone()).is_none() {
                    self.known_order.push_back(digest);
                }
            }
            None => {
                if self.missed.insert(digest.clone(), now + MISS_TIME).is_none() {
                    self.missed_order.push_back(digest);
                }
            }
        }
        if self.known_order.len() > MOST
            && let Some(oldest) = self.known_order.pop_front()
        {
            self.known.remove(&oldest);
        }
        if self.missed_order.len() > MOST
            && let Some(oldest) = self.missed_order.pop_front()
        {
            self.missed.remove(&oldest);
        }
    }

    /// Forgets everything: users may have other passwords now.
    pub(super) fn clear(&mut self) {
        let Self { known, known_order, missed, missed_order, .. } = self;
        known.clear();
        known_order.clear();
        missed.clear();
        missed_order.clear();
    }

    /// What stands for these credentials.
    pub(super) fn digest(&self, Credentials { user, secret }: &Credentials) -> Digest {
        // A name and a token alone never look alike.
        let text = match user {
            Some(user) => format!("user\0{user}\0{secret}"),
            None => format!("token\0{secret}"),
        };
        sign(&self.key, text.as_bytes()).as_ref().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(user: &str, secret: &str) -> Credentials {
        Credentials { user: Some(user.to_owned()).filter(|user| !user.is_empty()), secret: secret.to_owned() }
    }

    #[test]
    fn right_ones_are_known_and_wrong_ones_for_a_while() {
        let (mut cache, now) = (Cache::new().expect("a cache"), Instant::now());
        let (right, wrong) = (credentials("me", "x"), credentials("me", "y"));
        let me = Identity("me".into());
        assert_eq!(cache.find(&right, now), None);
        cache.note(&right, Some(&me), now);
        cache.note(&wrong, None, now);
        let later = now + Duration::from_secs(3600);
        assert_eq!(cache.find(&right, later), Some(Found::Right(me.clone())));
        assert_eq!(cache.find(&wrong, now + Duration::from_secs(9)), Some(Found::Wrong));
        assert_eq!(cache.find(&wrong, later), None);
        assert_eq!(cache.find(&credentials("", "x"), now), None);
        cache.clear();
        assert_eq!(cache.find(&right, now), None);
    }

    #[test]
    fn it_is_bounded_and_one_goes_for_one_that_comes() {
        let (mut cache, now) = (Cache::new().expect("a cache"), Instant::now());
        let me = Identity("me".into());
        for number in 0..MOST + 10 {
            cache.note(&credentials("me", &number.to_string()), Some(&me), now);
            cache.note(&credentials("you", &number.to_string()), None, now);
        }
        assert_eq!((cache.known.len(), cache.missed.len()), (MOST, MOST));
        assert_eq!(cache.find(&credentials("me", "9"), now), None);
        assert_eq!(cache.find(&credentials("me", "10"), now), Some(Found::Right(me)));
    }
}
