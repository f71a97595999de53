//! Numbers of records.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A record's number in the log, over all destinations. It increases from record to record; numbers
/// may be skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Sequence(u64);

impl Sequence {
    /// The lowest sequence.
    pub const FIRST: Self = Self(0);
    /// Above every record's sequence; no record has it.
    pub const END: Self = Self(u64::MAX);

    /// The sequence with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The next sequence.
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
