//! The data folder and its lock: one process works on it at a time.

use std::fs::{File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Why the folder cannot be had.
#[derive(Debug)]
pub enum LockError {
    /// Another process works on it.
    Held,
    /// It cannot be used.
    Io(io::Error),
}

/// What another user would need to open the lock, and thereby to hold it.
const OF_OTHERS: u32 = 0o077;

/// Makes the folder where it is missing (0700), and takes its lock for as long as the file is open. The lock is its
/// owner's alone (0600): whoever may open it can hold it, and keep a relay from starting.
///
/// # Errors
/// Another process has it, or the system does not let it be used.
pub fn lock(folder: &Path) -> Result<File, LockError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(LockError::Io)?;
    let path = folder.join("lock");
    let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(path);
    let lock = lock.map_err(LockError::Io)?;
    // An earlier version let others read it.
    if lock.metadata().map_err(LockError::Io)?.mode() & OF_OTHERS != 0
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
}
