//! The data folder and its lock, which admits one process at a time.

use std::fs::{File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Why the data folder cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds the lock.
    #[error("another process uses the data folder")]
    Held,
    /// The folder or its lock file cannot be used.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A data folder whose lock is held.
#[derive(Debug)]
pub struct DataDir {
    folder: PathBuf,
    lock: Mutex<File>,
}

impl DataDir {
    /// Creates the folder if missing, and holds its lock while this value lives.
    ///
    /// # Errors
    /// As [`lock`].
    pub fn lock(folder: &Path) -> Result<Self, LockError> {
        Ok(Self { folder: folder.to_owned(), lock: Mutex::new(lock(folder)?) })
    }

    /// Takes the lock again if the folder was removed or replaced.
    ///
    /// # Errors
    /// Another process holds the lock, or the system refuses access.
    pub fn keep(&self) -> io::Result<()> {
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let there = std::fs::metadata(self.folder.join(NAME)).map(identity).ok();
        if there != Some(identity(held.metadata()?)) {
            *held = lock(&self.folder).map_err(|error| match error {
                LockError::Held => io::Error::other(format!("another process uses {}", self.folder.display())),
                LockError::Io(error) => error,
            })?;
        }
        Ok(())
    }
}

/// The lock's file name.
const NAME: &str = "lock";

/// Mode bits with which another user could open the lock, and so hold it.
const OTHERS_MODE: u32 = 0o077;

/// Creates the folder (mode 0700) if missing, and takes its lock for as long as the file is open.
/// The lock file is private to its owner (0600): whoever may open it can hold the lock, and keep a
/// relay from starting.
///
/// # Errors
/// Another process holds the lock, or the system refuses access.
pub fn lock(folder: &Path) -> Result<File, LockError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(LockError::Io)?;
    let path = folder.join(NAME);
    let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(path);
    let lock = lock.map_err(LockError::Io)?;
    // An earlier version created it readable for others.
    if lock.metadata().map_err(LockError::Io)?.mode() & OTHERS_MODE != 0
        && let Err(error) = lock.set_permissions(Permissions::from_mode(0o600))
    {
        tracing::warn!(folder = %folder.display(), %error, "other users may hold the data folder's lock: chmod 600 it");
    }
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(LockError::Held),
        Err(TryLockError::Error(error)) => Err(LockError::Io(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_its_owners_alone_whoever_made_it() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("lock");
        let mode = || std::fs::metadata(&path).expect("a file").mode() & 0o777;
        drop(lock(folder.path()).expect("a lock"));
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("permissions");
        let held = lock(folder.path()).expect("a lock");
        assert_eq!(mode(), 0o600);
        assert!(matches!(lock(folder.path()), Err(LockError::Held)));
        drop(held);
    }

    #[test]
    fn a_folder_that_is_another_one_is_locked_anew() {
        let folder = tempfile::tempdir().expect("folder");
        let (data, away) = (folder.path().join("data"), folder.path().join("away"));
        let ours = DataDir::lock(&data).expect("a lock");
        ours.keep().expect("it is held");
        assert!(matches!(lock(&data), Err(LockError::Held)));
        std::fs::rename(&data, &away).expect("rename");
        let theirs = lock(&data).expect("nobody has the new one");
        assert!(ours.keep().is_err_and(|error| error.to_string().contains("another process uses")));
        drop(theirs);
        ours.keep().expect("nobody has it any more");
        assert!(matches!(lock(&data), Err(LockError::Held)));
        drop(lock(&away).expect("the old one is let go"));
    }
}
