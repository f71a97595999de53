//! Why users and tokens cannot be used.

use std::io;
use std::path::PathBuf;

use super::users::{MAX_COST, MAX_NAMES, MIN_COST};

/// Why users and tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A file cannot be read.
    #[error("cannot read {}: {}", .0.display(), .1)]
    Unreadable(PathBuf, io::Error),
    /// A file has no entry.
    #[error("{} names nobody", .0.display())]
    Empty(PathBuf),
    /// A file has too many entries.
    #[error("{} names more than {MAX_NAMES}", .0.display())]
    TooManyNames(PathBuf),
    /// A line cannot be used.
    #[error("{}, line {number}: {problem}", .file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line's number, from 1.
        number: usize,
        /// What is wrong with the line.
        problem: InvalidLine,
    },
    /// The system gives no key for the cache of checked credentials.
    #[error("the system gives no random numbers")]
    NoRandomNumbers,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum InvalidLine {
    /// The line lacks a name, a colon or a value.
    #[error("write NAME:VALUE")]
    NoPair,
    /// The file has the user on an earlier line.
    #[error("the user {0:?} is there twice")]
    SameUser(String),
    /// The file has the token on an earlier line.
    #[error("the token is there twice")]
    SameToken,
    /// `sha256:` is followed by something other than a digest.
    #[error("sha256: needs 64 hexadecimal digits behind it")]
    NoDigest,
    /// The hash is not one of bcrypt's.
    #[error("the password's hash is not bcrypt's: make it with htpasswd -B")]
    NotBcrypt,
    /// Checking the hash takes too long, or its cost is no number.
    #[error("the hash's cost must be between {MIN_COST} and {MAX_COST}: make it with htpasswd -B -C 10")]
    Cost,
}
