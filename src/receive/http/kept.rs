//! Accounts for the memory of unfinished request heads and lines, so that no client can use all of
//! it.
//!
//! Bounds: [`MAX_BYTES`] for all connections together. Beyond it, a connection that holds more than
//! its share gets no more.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes that all connections may hold together before the shares are enforced.
const MAX_BYTES: usize = 16 << 20;

/// Bytes that all connections of a listener hold.
#[derive(Clone, Debug, Default)]
pub(super) struct All(Rc<Cell<usize>>);

impl All {
    /// Creates the account of a connection that holds nothing yet.
    pub(super) fn part(&self) -> Part {
        Part { all: self.clone(), bytes: 0 }
    }
}

/// Bytes that one connection holds. Dropping it releases them.
#[derive(Debug)]
pub(super) struct Part {
    all: All,
    bytes: usize,
}

impl Part {
    /// Sets the number of bytes that this connection holds, as one of `sharers`. False if they
    /// exceed its share.
    pub(super) fn set(&mut self, bytes: usize, sharers: usize) -> bool {
        let all = self.all.0.get() - self.bytes + bytes;
        self.all.0.set(all);
        self.bytes = bytes;
        all <= MAX_BYTES || bytes <= MAX_BYTES / sharers.max(1)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.all.0.set(self.all.0.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_with_more_than_their_share_have_no_room_once_all_is_taken() {
        let all = All::default();
        let mut parts: Vec<Part> = (0..4).map(|_| all.part()).collect();
        assert!(parts[0].set(MAX_BYTES, 4), "there is room as long as there is");
        assert!(parts[1].set(MAX_BYTES / 4, 4), "everybody has a share");
        assert!(!parts[2].set(MAX_BYTES / 4 + 1, 4));
        assert!(!parts[0].set(MAX_BYTES, 4));
        parts.drain(..1);
        assert!(parts[1].set(MAX_BYTES / 4 + 1, 4), "what is gone keeps nothing");
        parts.clear();
        assert_eq!(all.0.get(), 0);
    }
}
