//! Numbers of records.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A record's number in the log, over all destinations. It grows from record to record; there may be holes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Sequence(u64);

impl Sequence {
    /// The first there can be.
    pub const FIRST: Self = Self(0);
    /// No record has it: behind all that there can be.
    pub const END: Self = Self(u64::MAX);

    /// This number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The next one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
