//! How a command ends: its output, and its failure with the exit code.
//!
//! Owns [`Failure`] and printing to standard output. Never does: writing the failure itself; the
//! program does that, once.

use std::fmt::Display;
use std::io::{self, Write};

use crate::config::ConfigError;

/// The exit code of a failure at run time.
pub const FAILED: u8 = 1;

/// Why a command failed. The variant determines the exit code.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The command failed at run time, or left something undone.
    #[error("{0}")]
    Failed(String),
    /// The command was used wrongly, or the configuration is invalid.
    #[error("{0}")]
    BadConfiguration(String),
    /// The relay or server that the command needs does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// The command found something to do, and has already printed what.
    #[error("there is something to do")]
    Reported,
}

impl Failure {
    /// Returns a failure at run time.
    pub fn failed(error: impl Display) -> Self {
        Self::Failed(error.to_string())
    }

    /// Returns a failure for bad usage or an invalid configuration.
    pub fn bad_configuration(error: impl Display) -> Self {
        Self::BadConfiguration(error.to_string())
    }

    /// Returns a failure for a relay or server that does not answer.
    pub fn unreachable(error: impl Display) -> Self {
        Self::Unreachable(error.to_string())
    }

    /// Returns the exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Reported => FAILED,
            Self::BadConfiguration(_) => 2,
            Self::Unreachable(_) => 3,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::bad_configuration(error)
    }
}

/// The result of a command.
pub type Ended = Result<(), Failure>;

/// Prints a command's result. A closed pipe is not an error: the reader has read what it wanted.
///
/// # Errors
/// The output cannot be written, for example to a full disk.
pub fn print(text: &str) -> Ended {
    print_on(text).map(drop)
}

/// Prints a part of a command's continuous output. Returns false once the reader has closed the
/// pipe.
///
/// # Errors
/// As [`print()`].
pub fn print_on(text: &str) -> Result<bool, Failure> {
    let printed = io::stdout().lock().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
    match printed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Failed(format!("cannot write the output: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_failure_has_its_exit_code_and_its_message() {
        let failures = [Failure::failed("a"), Failure::bad_configuration("b"), Failure::unreachable("c")];
        assert_eq!(failures.each_ref().map(Failure::exit_code), [1, 2, 3]);
        assert_eq!(failures.map(|failure| failure.to_string()).concat(), "abc");
        assert_eq!(Failure::Reported.exit_code(), 1);
    }
}
