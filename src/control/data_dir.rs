//! The data folder and its lock: one process works on it at a time.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Why the folder cannot be had.
#[derive(Debug)]
pub enum LockError {
    /// Another process works on it.
    Held,
    /// It cannot be used.
    Io(io::Error),
}

/// Makes the folder where it is missing (0700), and takes its lock for as long as the file is open.
///
/// # Errors
/// Another process has it, or the system does not let it be used.
pub fn lock(folder: &Path) -> Result<File, LockError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(LockError::Io)?;
    let path = folder.join("lock");
    let lock = File::options().create(true).truncate(false).write(true).open(path).map_err(LockError::Io)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(LockError::Held),
        Err(TryLockError::Error(error)) => Err(LockError::Io(error)),
    }
}
