//! A position in the records written of one destination.

/// What was written to disk of one destination, counted since the journal was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::journal) struct Position {
    pub(in crate::journal) lines: u64,
    pub(in crate::journal) bytes: u64,
}

impl Position {
    /// The position this much further on.
    pub(in crate::journal) fn plus(self, lines: u64, bytes: u64) -> Self {
        Self { lines: self.lines.saturating_add(lines), bytes: self.bytes.saturating_add(bytes) }
    }

    /// The distance from `other` to this position; zero if `other` is further.
    pub(in crate::journal) fn since(self, other: Self) -> Self {
        Self { lines: self.lines.saturating_sub(other.lines), bytes: self.bytes.saturating_sub(other.bytes) }
    }

    /// The further of the two.
    pub(in crate::journal) fn max(self, other: Self) -> Self {
        if other.lines > self.lines { other } else { self }
    }

    /// The nearer of the two.
    pub(in crate::journal) fn min(self, other: Self) -> Self {
        if other.lines < self.lines { other } else { self }
    }
}
