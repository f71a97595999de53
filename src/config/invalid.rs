//! Errors in single keys of the configuration.
//!
//! Owns the key and the message. Never knows the table or the line, which `source` adds.

use std::fmt::Display;

/// A key with an invalid value. The message follows the key's name and says what would be right.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} {what}")]
pub(crate) struct InvalidKey {
    pub(crate) key: &'static str,
    pub(crate) what: String,
}

impl InvalidKey {
    pub(super) fn new(key: &'static str, what: impl Display) -> Self {
        Self { key, what: what.to_string() }
    }
}
