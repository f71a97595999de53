//! Authentication and authorization: users and tokens from files, rights by name and database.
//!
//! Owns: the names, the rights, and the cache of checked credentials. Never does: network; showing
//! a secret. A bcrypt check must run on a thread that may block ([`Auth::check`]); known results
//! are available at once ([`Auth::known`]). Listeners use a [`Checker`].
//!
//! Bounds: names per file, cached checks; see the submodules.

mod cache;
mod checker;
mod credentials;
mod error;
mod users;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use crate::sys::wildcard::fits;
use cache::{Cache, Found};
use users::{Names, digest_of};

pub use checker::{Busy, Checker};
pub use credentials::{Ambiguous, Credentials};
pub use error::{AuthError, InvalidLine};

/// A hash to check unknown users' passwords against, so that both checks take the same time.
const DUMMY: &str = "$2y$10$.vGA1O9wmRjrwAVXD98HNOgsNpDczlqm3Jq7KnEd1rVAGv3Fykk1a";

/// The files with names, and each name's rights.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// The file with users and bcrypt hashes.
    pub users_file: Option<PathBuf>,
    /// The file with tokens.
    pub tokens_file: Option<PathBuf>,
    /// The rights of each name.
    pub rights: Vec<Right>,
}

/// The rights of a user or a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Right {
    /// The user's or token's name; `*` for all.
    pub name: String,
    /// Databases that it may write; `*` matches any text.
    pub write: Vec<String>,
    /// Databases that it may read; `*` matches any text.
    pub read: Vec<String>,
    /// Whether it may administer.
    pub admin: bool,
}

/// An authenticated user or token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(Arc<str>);

/// What is known about credentials without a slow check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// They are valid.
    Right(Identity),
    /// They are wrong.
    Wrong,
    /// They must be checked.
    Unknown,
}

/// Users, tokens and rights.
#[derive(Debug)]
pub struct Auth {
    setup: AuthConfig,
    names: RwLock<Arc<Names>>,
    /// The files' modification times when they were read.
    written: Mutex<Vec<Option<SystemTime>>>,
    cache: Mutex<Cache>,
}

impl Auth {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with a file.
    pub fn open(setup: AuthConfig) -> Result<Self, AuthError> {
        let written = written(&setup);
        let names = Names::read(setup.users_file.as_deref(), setup.tokens_file.as_deref())?;
        let names = RwLock::new(Arc::new(names));
        Ok(Self { setup, names, written: Mutex::new(written), cache: Mutex::new(Cache::new()?) })
    }

    /// Reads the files again if they were modified since, or if asked to; returns whether it did.
    ///
    /// # Errors
    /// What is wrong with a file. Nothing is changed then.
    pub fn reload(&self, is_asked: bool) -> Result<bool, AuthError> {
        let now = written(&self.setup);
        {
            let mut before = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            if *before == now && !is_asked {
                return Ok(false);
            }
            // An unusable file is reported once.
            *before = now;
        }
        let names = Names::read(self.setup.users_file.as_deref(), self.setup.tokens_file.as_deref())?;
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(names);
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(true)
    }

    /// Returns a digest of credentials that reveals nothing about them.
    fn digest(&self, credentials: &Credentials) -> cache::Digest {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).digest(credentials)
    }

    /// Returns what is known about credentials without a slow check.
    pub fn known(&self, credentials: &Credentials) -> Known {
        let names = self.names();
        let is_user = credentials.user.as_ref().is_some_and(|user| names.users.contains_key(user));
        if !is_user && let Some(name) = names.tokens.get(&digest_of(&credentials.secret)) {
            return Known::Right(Identity(name.as_str().into()));
        }
        if credentials.user.is_none() {
            return Known::Wrong;
        }
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match cache.find(credentials, Instant::now()) {
            Some(Found::Right(identity)) => Known::Right(identity),
            Some(Found::Wrong) => Known::Wrong,
            None => Known::Unknown,
        }
    }

    /// Checks credentials, and caches the result. Takes as long as bcrypt, whether or not the user
    /// exists.
    pub fn check(&self, credentials: &Credentials) -> Option<Identity> {
        let names = self.names();
        let user = credentials.user.as_deref().unwrap_or_default();
        let hash = names.users.get(user);
        let is_right = bcrypt::verify(&credentials.secret, hash.map_or(DUMMY, String::as_str)).unwrap_or(false);
        let identity = (is_right && hash.is_some()).then(|| Identity(user.into()));
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        // Users that were read in the meantime may have other passwords.
        if Arc::ptr_eq(&names, &self.names()) {
            cache.note(credentials, identity.as_ref(), Instant::now());
        }
        identity
    }

    /// Returns whether `who` may write to a database.
    pub fn may_write(&self, who: &Identity, database: &str) -> bool {
        self.rights(who).any(|right| right.write.iter().any(|pattern| fits(pattern, database)))
    }

    /// Returns whether `who` may read from a database.
    pub fn may_read(&self, who: &Identity, database: &str) -> bool {
        self.rights(who).any(|right| right.read.iter().any(|pattern| fits(pattern, database)))
    }

    /// Returns whether `who` may administer.
    pub fn may_administer(&self, who: &Identity) -> bool {
        self.rights(who).any(|right| right.admin)
    }

    /// Returns the names that have rights but are in no file, which is probably a mistake.
    pub fn strangers(&self) -> Vec<String> {
        let names = self.names();
        let is_known =
            |name: &str| name == "*" || names.users.contains_key(name) || names.tokens.values().any(|one| one == name);
        self.setup.rights.iter().map(|right| right.name.clone()).filter(|name| !is_known(name)).collect()
    }

    fn rights<'a>(&'a self, who: &'a Identity) -> impl Iterator<Item = &'a Right> {
        self.setup.rights.iter().filter(|right| right.name == "*" || *right.name == *who.0)
    }

    fn names(&self) -> Arc<Names> {
        Arc::clone(&self.names.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Returns the files' modification times.
fn written(setup: &AuthConfig) -> Vec<Option<SystemTime>> {
    let files = [&setup.users_file, &setup.tokens_file].into_iter().flatten();
    files.map(|path| std::fs::metadata(path).and_then(|data| data.modified()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(user: &str, secret: &str) -> Credentials {
        Credentials { user: Some(user.to_owned()).filter(|user| !user.is_empty()), secret: secret.to_owned() }
    }

    struct Files {
        auth: Auth,
        folder: tempfile::TempDir,
    }

    fn files() -> Files {
        let folder = tempfile::tempdir().expect("folder");
        let hash = bcrypt::hash("right", 4).expect("a hash");
        std::fs::write(folder.path().join("users"), format!("me:{hash}\n")).expect("write");
        std::fs::write(folder.path().join("tokens"), "host:abc\n").expect("write");
        let right = |name: &str, write: &[&str], admin| Right {
            name: name.to_owned(),
            write: write.iter().map(|name| (*name).to_owned()).collect(),
            admin,
            ..Right::default()
        };
        let auth = Auth::open(AuthConfig {
            users_file: Some(folder.path().join("users")),
            tokens_file: Some(folder.path().join("tokens")),
            rights: vec![
                right("me", &["telegraf", "net*"], true),
                right("*", &["all"], false),
                right("nobody", &[], false),
            ],
        });
        Files { auth: auth.expect("good files"), folder }
    }

    #[test]
    fn passwords_and_tokens_are_right_or_wrong() {
        let Files { auth, .. } = files();
        let me = Some(Identity("me".into()));
        assert_eq!(auth.known(&credentials("me", "right")), Known::Unknown);
        assert_eq!(auth.check(&credentials("me", "right")), me);
        assert_eq!(auth.known(&credentials("me", "right")), Known::Right(Identity("me".into())));
        for wrong in [credentials("me", "wrong"), credentials("you", "right"), credentials("me", "")] {
            assert_eq!((auth.check(&wrong), auth.known(&wrong)), (None, Known::Wrong), "{wrong:?}");
        }
        let host = Known::Right(Identity("host".into()));
        // A token is valid alone, and as the password of any name.
        assert_eq!((auth.known(&credentials("", "abc")), auth.known(&credentials("any", "abc"))), (host.clone(), host));
        assert_eq!(auth.known(&credentials("", "right")), Known::Wrong);
        assert_eq!(auth.known(&credentials("me", "abc")), Known::Unknown, "a user has a password");
    }

    #[test]
    fn rights_are_by_name_and_database() {
        let Files { auth, .. } = files();
        let (me, host) = (Identity("me".into()), Identity("host".into()));
        for (who, database, expected) in [
            (&me, "telegraf", true),
            (&me, "netdata", true),
            (&me, "other", false),
            (&me, "all", true),
            (&host, "all", true),
            (&host, "telegraf", false),
        ] {
            assert_eq!(auth.may_write(who, database), expected, "{who:?} {database}");
        }
        assert!(auth.may_administer(&me) && !auth.may_administer(&host));
        assert_eq!(auth.strangers(), ["nobody"]);
    }

    #[test]
    fn files_that_change_are_read_again_and_broken_ones_change_nothing() {
        let Files { auth, folder } = files();
        assert!(!auth.reload(false).expect("unchanged files"));
        assert!(auth.check(&credentials("me", "right")).is_some());
        let users = folder.path().join("users");
        let write = |text: &str, seconds| {
            std::fs::write(&users, text).expect("write");
            let time = SystemTime::now() + std::time::Duration::from_secs(seconds);
            std::fs::File::options().write(true).open(&users).expect("open").set_modified(time).expect("a time");
        };
        write("me:plain\n", 10);
        assert!(auth.reload(false).expect_err("no hash").to_string().contains("line 1"));
        assert!(matches!(auth.known(&credentials("me", "right")), Known::Right(_)), "unchanged");
        assert!(!auth.reload(false).expect("unchanged files"), "it is reported once");
        write(&format!("me:{}\n", bcrypt::hash("new", 4).expect("a hash")), 20);
        assert!(auth.reload(false).expect("good files"));
        assert_eq!(auth.known(&credentials("me", "right")), Known::Unknown, "the cache is empty");
        assert!(auth.check(&credentials("me", "right")).is_none() && auth.check(&credentials("me", "new")).is_some());
    }

    /// The dummy must be a valid hash, so that its check takes the same time.
    #[test]
    fn the_dummy_is_a_hash() {
        assert_eq!(bcrypt::verify("x", DUMMY).ok(), Some(false));
    }
}
